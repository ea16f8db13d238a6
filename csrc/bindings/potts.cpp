// Chains of Potts models.
#include "tensor.h"

namespace ebm {
namespace {

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
    p.offsets = optional_data_of<int64_t>(offsets, Dtype::int64, p.num_sites + 1, x, name, "offsets");
    p.neighbours = optional_data_of<int32_t>(neighbours, Dtype::int32, kAnySize, x, name, "neighbours");
    int64_t num_couplings = (coupling_stride ? num_entries : 1) * table + (is_table ? 16 : 0);
    if (view(couplings, name, "couplings").numel() < num_couplings) throw py::value_error(std::string(name) + ": couplings are too short");
    p.couplings = data_of<int32_t>(couplings, Dtype::int32, kAnySize, x, name, "couplings");
    p.reverse = optional_data_of<int32_t>(reverse, Dtype::int32, num_entries, x, name, "reverse");
    p.fields = optional_data_of<int32_t>(fields, Dtype::int32, p.num_sites * num_categories + 16, x, name, "fields");
    p.unit = optional_data_of<double>(unit, Dtype::float64, 1, x, name, "unit");
    p.order = optional_data_of<int32_t>(order, Dtype::int32, p.num_sites, x, name, "order");
    p.is_accepted = optional_data_of<bool>(is_accepted, Dtype::uint8, p.num_chains, x, name, "is_accepted");
    p.acceptance_prob = optional_data_of<double>(acceptance_prob, Dtype::float64, p.num_chains, x, name, "acceptance_prob");
    p.num_flips = optional_data_of<int64_t>(num_flips, Dtype::int64, p.num_chains, x, name, "num_flips");
    p.workspace = optional_data_of<char>(workspace, Dtype::uint8, kAnySize, x, name, "workspace");
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
