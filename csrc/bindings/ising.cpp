// Ising models.
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "tensor.h"

namespace ebm {
namespace {

TensorView spins_view(const py::handle& spins, const char* op) {
    TensorView s = view(spins, op, "spins");
    if (s.dtype != Dtype::int8) throw py::type_error(std::string(op) + ": spins must be int8");
    return s;
}

// (offsets, neighbours, couplings, field, unit, max_degree); offsets and neighbours may be None where sides are given.
using ModelTuple = std::tuple<py::object, py::object, py::object, py::object, py::object, int64_t>;

IsingModel model_of(const ModelTuple& model, const TensorView& s, const char* op) {
    IsingModel m{};
    m.num_sites = s.dim;
    m.offsets = optional_data_of<int64_t>(std::get<0>(model), Dtype::int64, s.dim + 1, s, op, "offsets");
    m.neighbours = optional_data_of<int32_t>(std::get<1>(model), Dtype::int32, -1, s, op, "neighbours");
    m.couplings = optional_data_of<int32_t>(std::get<2>(model), Dtype::int32, -1, s, op, "couplings");
    m.field = optional_data_of<int32_t>(std::get<3>(model), Dtype::int32, -1, s, op, "field");
    m.unit = optional_data_of<double>(std::get<4>(model), Dtype::float64, 1, s, op, "unit");
    m.max_degree = std::get<5>(model);
    int64_t num_entries = std::get<1>(model).is_none() ? -1 : view(std::get<1>(model), op, "neighbours").numel();
    int64_t num_couplings = view(std::get<2>(model), op, "couplings").numel(), num_fields = view(std::get<3>(model), op, "field").numel();
    m.has_one_coupling = num_couplings == 1 && num_entries != 1;
    m.has_one_field = num_fields == 1;
    if (!m.has_one_coupling && num_couplings != num_entries)
        throw py::value_error(std::string(op) + ": couplings must be one or as many as neighbours");
    if (!m.has_one_field && num_fields != s.dim) throw py::value_error(std::string(op) + ": field must be one or as many as sites");
    return m;
}

template <class Params>
void set_sides(Params& p, const std::vector<int64_t>& sides, const ModelTuple& model, const char* op) {
    if (sides.size() > kMaxLatticeDims) throw py::value_error(std::string(op) + ": sides must be at most 3");
    int64_t product = 1;
    for (size_t d = 0; d < sides.size(); ++d) product *= p.sides[d] = sides[d];
    p.num_dims = static_cast<int32_t>(sides.size());
    if (p.num_dims ? product != p.model.num_sites || !p.model.has_one_coupling || !p.model.has_one_field
                   : std::get<0>(model).is_none() || std::get<1>(model).is_none())
        throw py::value_error(std::string(op) + ": the model needs neighbour lists, or sides, one coupling and one field");
}

void ising_gibbs(const py::object& spins, const py::object& key, const ModelTuple& model, const py::object& order,
                 const py::object& colour_offsets, const std::vector<int64_t>& sides, int64_t num_steps, bool is_random,
                 const py::object& num_flips) {
    const char* name = "ising_gibbs";
    TensorView s = spins_view(spins, name);
    IsingGibbsParams p{};
    p.spins = static_cast<int8_t*>(s.data);
    p.num_flips = optional_data_of<int64_t>(num_flips, Dtype::int64, s.num_chains, s, name, "num_flips");
    p.key = key_pointer(key, s, name);
    p.model = model_of(model, s, name);
    p.order = optional_data_of<int32_t>(order, Dtype::int32, s.dim, s, name, "order");
    p.colour_offsets = optional_data_of<int64_t>(colour_offsets, Dtype::int64, -1, s, name, "colour_offsets");
    set_sides(p, sides, model, name);
    p.num_chains = s.num_chains;
    p.num_steps = num_steps;
    p.scan = is_random ? Scan::random : Scan::raster;
    p.place = place_of(s);
    call(&OpTable::ising_gibbs, p, s, name);
}

template <Status (*OpTable::*op)(const IsingChainParams&)>
void define_chain(py::module_& m, const char* name) {
    m.def(
        name,
        [name](const py::object& spins, const py::object& key, const ModelTuple& model, int64_t num_steps, int32_t balancing,
               const py::object& is_accepted, const py::object& acceptance_sums, const py::object& num_flips, const py::object& workspace) {
            TensorView s = spins_view(spins, name);
            IsingChainParams p{};
            p.spins = static_cast<int8_t*>(s.data);
            p.is_accepted = optional_data_of<bool>(is_accepted, Dtype::uint8, s.num_chains, s, name, "is_accepted");
            p.acceptance_sums = optional_data_of<double>(acceptance_sums, Dtype::float64, s.num_chains, s, name, "acceptance_sums");
            p.num_flips = optional_data_of<int64_t>(num_flips, Dtype::int64, s.num_chains, s, name, "num_flips");
            p.key = key_pointer(key, s, name);
            p.model = model_of(model, s, name);
            if (std::get<0>(model).is_none() || std::get<1>(model).is_none())
                throw py::value_error(std::string(name) + ": the model needs neighbour lists");
            p.num_chains = s.num_chains;
            p.num_steps = num_steps;
            p.balancing = static_cast<Balancing>(balancing);
            p.workspace =
                optional_data_of<void>(workspace, Dtype::uint8, s.num_chains * ising_gwg_scratch_bytes(p.model), s, name, "workspace");
            p.place = place_of(s);
            call(op, p, s, name);
        },
        py::arg("spins"), py::arg("key"), py::arg("model"), py::arg("num_steps"), py::arg("balancing"), py::arg("is_accepted"),
        py::arg("acceptance_sums"), py::arg("num_flips"), py::arg("workspace"));
}

void ising_energy(const py::object& spins, const ModelTuple& model, const std::vector<int64_t>& sides, const py::object& energies,
                  const py::object& fields) {
    const char* name = "ising_energy";
    TensorView s = spins_view(spins, name);
    IsingEnergyParams p{};
    p.spins = static_cast<const int8_t*>(s.data);
    p.energies = optional_data_of<double>(energies, Dtype::float64, s.num_chains, s, name, "energies");
    p.fields = optional_data_of<int32_t>(fields, Dtype::int32, s.numel(), s, name, "fields");
    p.model = model_of(model, s, name);
    set_sides(p, sides, model, name);
    p.num_chains = s.num_chains;
    p.place = place_of(s);
    call(&OpTable::ising_energy, p, s, name);
}

}  // namespace

void register_ising(py::module_& m) {
    m.def("ising_gibbs", &ising_gibbs, py::arg("spins"), py::arg("key"), py::arg("model"), py::arg("order"), py::arg("colour_offsets"),
          py::arg("sides"), py::arg("num_steps"), py::arg("is_random"), py::arg("num_flips"));
    define_chain<&OpTable::ising_metropolis>(m, "ising_metropolis");
    define_chain<&OpTable::ising_gwg>(m, "ising_gwg");
    m.def("ising_energy", &ising_energy, py::arg("spins"), py::arg("model"), py::arg("sides"), py::arg("energies"), py::arg("fields"));
    m.def(
        "ising_gwg_scratch",
        [](int64_t num_sites, int64_t max_degree) {
            IsingModel model{};
            model.num_sites = num_sites;
            model.max_degree = max_degree;
            return ising_gwg_scratch_bytes(model);
        },
        py::arg("num_sites"), py::arg("max_degree"), "Bytes of scratch of a chain.");
}

}  // namespace ebm
