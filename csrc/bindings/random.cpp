// Draws: out[i, e] = draw(key, chain i, element e, stream).
#include "tensor.h"

namespace ebm {
namespace {

using FillOp = Status (*OpTable::*)(const FillParams&);

void fill(const char* name, FillOp op, const py::handle& out, const py::handle& key, uint32_t stream, int64_t first_block,
          uint32_t threshold) {
    TensorView o = view(out, name, "out");
    FillParams p{};
    p.out = o.data;
    p.key = key_pointer(key, o, name);
    p.num_chains = o.num_chains;
    p.dim = o.dim;
    p.first_block = first_block;
    p.stream = stream;
    p.threshold = threshold;
    p.dtype = o.dtype;
    p.place = place_of(o);
    call(op, p, o, name);
}

template <FillOp op>
void define(py::module_& m, const char* name) {
    m.def(
        name,
        [name](const py::object& out, const py::object& key, uint32_t stream, int64_t first_block) {
            fill(name, op, out, key, stream, first_block, 0);
        },
        py::arg("out"), py::arg("key"), py::arg("stream"), py::arg("first_block"));
}

}  // namespace

void register_random(py::module_& m) {
    define<&OpTable::philox>(m, "philox");
    define<&OpTable::uniform>(m, "uniform");
    define<&OpTable::normal>(m, "normal");
    define<&OpTable::rademacher>(m, "rademacher");
    m.def(
        "bernoulli",
        [](const py::object& out, const py::object& key, uint32_t stream, int64_t first_block, uint32_t threshold) {
            fill("bernoulli", &OpTable::bernoulli, out, key, stream, first_block, threshold);
        },
        py::arg("out"), py::arg("key"), py::arg("stream"), py::arg("first_block"), py::arg("threshold"));
}

}  // namespace ebm
