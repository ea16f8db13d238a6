// Probes of trace estimators.
#include "tensor.h"

namespace ebm {
namespace {

// Runs `op` on the probes of `array`, (num_probes, num_chains, *event), or (num_chains, *event) where all share it.
void run(const char* name, Status (*OpTable::*op)(const ProbeParams&), ProbeParams p, const TensorView& array, const py::handle& key) {
    if (array.dtype != Dtype::float32 && array.dtype != Dtype::float64)
        throw py::type_error(std::string(name) + ": tensors must be float32 or float64");
    const int64_t rows = p.is_shared ? p.num_chains : p.num_probes * p.num_chains;
    if (array.numel() == 0) return;
    if (array.num_chains != (p.is_shared ? p.num_chains : p.num_probes) || array.numel() % rows != 0)
        throw py::value_error(std::string(name) + ": shapes do not fit");
    TensorView chains = array;
    chains.num_chains = p.num_chains;
    p.key = key_pointer(key, chains, name);
    if (!array.is_cuda && p.key[1] + p.num_probes > int64_t{1} << 48)
        throw py::value_error(std::string(name) + ": key must have step + num_probes <= 2**48");
    p.dim = array.numel() / rows;
    p.dtype = array.dtype;
    p.place = place_of(array);
    call(op, p, array, name);
}

ProbeParams params_of(int64_t num_probes, int64_t num_chains, bool is_gaussian, uint32_t stream) {
    ProbeParams p{};
    p.num_probes = num_probes;
    p.num_chains = num_chains;
    p.law = is_gaussian ? ProbeLaw::gaussian : ProbeLaw::rademacher;
    p.stream = stream;
    return p;
}

void probes(const py::object& out, const py::object& key, int64_t num_chains, bool is_gaussian, uint32_t stream) {
    TensorView o = view(out, "probes", "out");
    ProbeParams p = params_of(o.num_chains, num_chains, is_gaussian, stream);
    p.out = o.data;
    run("probes", &OpTable::probes, p, o, key);
}

void probe_dot(const py::object& out, const py::object& u, bool is_shared, const py::object& key, bool is_gaussian, uint32_t stream) {
    TensorView o = view(out, "probe_dot", "out"), array = view(u, "probe_dot", "u");
    ProbeParams p = params_of(o.num_chains, o.dim, is_gaussian, stream);
    p.out = data_of<void>(out, array.dtype, kAnySize, array, "probe_dot", "out");
    p.other = array.data;
    p.is_shared = is_shared;
    run("probe_dot", &OpTable::probe_dot, p, array, key);
}

void probe_scale(const py::object& out, const py::object& g, const py::object& key, bool is_gaussian, uint32_t stream) {
    TensorView o = view(out, "probe_scale", "out"), scales = view(g, "probe_scale", "g");
    ProbeParams p = params_of(scales.num_chains, scales.dim, is_gaussian, stream);
    p.out = o.data;
    p.other = data_of<void>(g, o.dtype, kAnySize, o, "probe_scale", "g");
    run("probe_scale", &OpTable::probe_scale, p, o, key);
}

}  // namespace

void register_probes(py::module_& m) {
    m.def("probes", &probes, py::arg("out"), py::arg("key"), py::arg("num_chains"), py::arg("is_gaussian"), py::arg("stream"));
    m.def("probe_dot", &probe_dot, py::arg("out"), py::arg("u"), py::arg("is_shared"), py::arg("key"), py::arg("is_gaussian"),
          py::arg("stream"));
    m.def("probe_scale", &probe_scale, py::arg("out"), py::arg("g"), py::arg("key"), py::arg("is_gaussian"), py::arg("stream"));
}

}  // namespace ebm
