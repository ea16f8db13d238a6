// Chains of Potts models.
#include "tensor.h"

namespace ebm {
namespace {

// A pointer to what `array` holds, or null for None.
template <class T>
T* pointer(const py::object& array, const TensorView& like, Dtype dtype, int64_t numel, const char* op, const char* argument) {
    if (array.is_none()) return nullptr;
    TensorView v = view(array, op, argument);
    std::string prefix = std::string(op) + ": " + argument;
    if (v.dtype != dtype) throw py::type_error(prefix + " has the wrong dtype");
    if (v.is_cuda != like.is_cuda || v.device_index != like.device_index) throw py::value_error(prefix + " must be on the device of x");
    if (v.numel() < numel) throw py::value_error(prefix + " is too short");
    return static_cast<T*>(v.data);
}

using PottsOp = Status (*OpTable::*)(const PottsParams&);

template <PottsOp op>
void potts(const char* name, const py::object& states, const py::object& key, const py::object& offsets, const py::object& neighbours,
           const py::object& couplings, int64_t coupling_stride, bool is_table, bool is_bounded, const py::object& reverse,
           const py::object& fields, int32_t num_categories, const py::object& unit, const py::object& order, int32_t scan,
           int32_t balancing, int64_t max_degree, int64_t num_steps, const py::object& is_accepted, const py::object& acceptance_prob,
           const py::object& num_flips, const py::object& workspace) {
    TensorView x = view(states, name, "states");
    if (x.dtype != Dtype::uint8) throw py::type_error(std::string(name) + ": states must be uint8");
    PottsParams p{};
    p.states = static_cast<uint8_t*>(x.data);
    p.key = key_pointer(key, x, name);
    p.num_chains = x.num_chains;
    p.num_sites = x.dim;
    p.num_categories = num_categories;
    int64_t num_entries = view(neighbours, name, "neighbours").numel(), table = is_table ? int64_t{num_categories} * num_categories : 1;
    p.offsets = pointer<int64_t>(offsets, x, Dtype::int64, p.num_sites + 1, name, "offsets");
    p.neighbours = pointer<int32_t>(neighbours, x, Dtype::int32, 0, name, "neighbours");
    int64_t num_couplings = (coupling_stride ? num_entries : 1) * table + (is_table ? 16 : 0);
    p.couplings = pointer<int32_t>(couplings, x, Dtype::int32, num_couplings, name, "couplings");
    p.reverse = pointer<int32_t>(reverse, x, Dtype::int32, num_entries, name, "reverse");
    p.fields = pointer<int32_t>(fields, x, Dtype::int32, p.num_sites * num_categories + 16, name, "fields");
    p.unit = pointer<double>(unit, x, Dtype::float64, 1, name, "unit");
    p.order = pointer<int32_t>(order, x, Dtype::int32, p.num_sites, name, "order");
    p.is_accepted = pointer<bool>(is_accepted, x, Dtype::uint8, p.num_chains, name, "is_accepted");
    p.acceptance_prob = pointer<double>(acceptance_prob, x, Dtype::float64, p.num_chains, name, "acceptance_prob");
    p.num_flips = pointer<int64_t>(num_flips, x, Dtype::int64, p.num_chains, name, "num_flips");
    p.workspace = pointer<char>(workspace, x, Dtype::uint8, 0, name, "workspace");
    p.coupling_stride = coupling_stride;
    p.is_table = is_table;
    p.is_bounded = is_bounded;
    p.scan = static_cast<Scan>(scan);
    p.balancing = static_cast<Balancing>(balancing);
    p.max_degree = max_degree;
    p.num_steps = num_steps;
    p.place = place_of(x);
    call(op, p, x, name);
}

template <PottsOp op>
void define(py::module_& m, const char* name) {
    auto call = [name](auto&&... arguments) { potts<op>(name, std::forward<decltype(arguments)>(arguments)...); };
    m.def(
        name,
        [call](const py::object& states, const py::object& key, const py::object& offsets, const py::object& neighbours,
               const py::object& couplings, int64_t coupling_stride, bool is_table, bool is_bounded, const py::object& reverse,
               const py::object& fields, int32_t num_categories, const py::object& unit, const py::object& order, int32_t scan,
               int32_t balancing, int64_t max_degree, int64_t num_steps, const py::object& is_accepted, const py::object& acceptance_prob,
               const py::object& num_flips, const py::object& workspace) {
            call(states, key, offsets, neighbours, couplings, coupling_stride, is_table, is_bounded, reverse, fields, num_categories, unit,
                 order, scan, balancing, max_degree, num_steps, is_accepted, acceptance_prob, num_flips, workspace);
        },
        py::arg("states"), py::arg("key"), py::arg("offsets"), py::arg("neighbours"), py::arg("couplings"), py::arg("coupling_stride"),
        py::arg("is_table"), py::arg("is_bounded"), py::arg("reverse"), py::arg("fields"), py::arg("num_categories"), py::arg("unit"),
        py::arg("order"), py::arg("scan"), py::arg("balancing"), py::arg("max_degree"), py::arg("num_steps"), py::arg("is_accepted"),
        py::arg("acceptance_prob"), py::arg("num_flips"), py::arg("workspace"));
}

}  // namespace

void register_potts(py::module_& m) {
    define<&OpTable::potts_gibbs>(m, "potts_gibbs");
    define<&OpTable::potts_metropolis>(m, "potts_metropolis");
    define<&OpTable::potts_gwg>(m, "potts_gwg");
    m.def("potts_gwg_scratch", &potts_gwg_scratch_bytes, py::arg("num_sites"), py::arg("num_categories"), py::arg("max_degree"));
}

}  // namespace ebm
