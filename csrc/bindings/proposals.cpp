// Proposals on discrete spaces, and their acceptance.
#include "tensor.h"

namespace ebm {
namespace {

TensorView differences_view(const py::object& differences, int64_t num_categories, const char* name) {
    TensorView d = view(differences, name, "differences");
    if (d.dtype != Dtype::float32 && d.dtype != Dtype::float64)
        throw py::type_error(std::string(name) + ": differences must be float32 or float64");
    if (num_categories < 1 || d.dim < 1 || d.dim % num_categories != 0)
        throw py::value_error(std::string(name) +
                              ": differences must be (num_chains, num_sites) or (num_chains, num_sites, num_categories)");
    return d;
}

int64_t element_size(const TensorView& t) { return t.dtype == Dtype::float64 ? 8 : 4; }

void* flip_workspace(const py::object& workspace, const TensorView& d, bool with_replacement, const char* name) {
    if (!d.is_cuda) return nullptr;
    return data_of<void>(workspace, Dtype::uint8, d.num_chains * flip_scratch_bytes(d.dim, element_size(d), with_replacement), d, name,
                         "workspace");
}

void propose_flips(const py::object& index, const py::object& log_q, const py::object& differences, const py::object& key,
                   int64_t num_categories, int64_t num_draws, bool with_replacement, int32_t balancing, const py::object& workspace,
                   uint32_t stream) {
    const char* name = "propose_flips";
    TensorView d = differences_view(differences, num_categories, name);
    ProposeFlipsParams p{};
    p.index = data_of<int64_t>(index, Dtype::int64, d.num_chains * num_draws, d, name, "index");
    p.log_q = data_of<double>(log_q, Dtype::float64, d.num_chains, d, name, "log_q");
    p.differences = d.data;
    p.key = key_pointer(key, d, name);
    p.workspace = flip_workspace(workspace, d, with_replacement, name);
    p.num_chains = d.num_chains;
    p.num_sites = d.dim / num_categories;
    p.num_categories = num_categories;
    p.num_draws = num_draws;
    p.with_replacement = with_replacement;
    p.stream = stream;
    p.balancing = static_cast<Balancing>(balancing);
    p.dtype = d.dtype;
    p.place = place_of(d);
    call(&OpTable::propose_flips, p, d, name);
}

void accept_flips(const py::object& energy, const py::object& differences, const py::object& new_energy, const py::object& new_differences,
                  const py::object& back, const py::object& log_q, const py::object& key, int64_t num_categories, bool with_replacement,
                  int32_t balancing, const py::object& is_accepted, const py::object& is_diverged, const py::object& acceptance_prob,
                  const py::object& workspace, uint32_t stream) {
    const char* name = "accept_flips";
    TensorView d = differences_view(differences, num_categories, name), b = view(back, name, "back");
    AcceptFlipsParams p{};
    p.energy = data_of<void>(energy, d.dtype, d.num_chains, d, name, "energy");
    p.differences = d.data;
    p.new_energy = data_of<void>(new_energy, d.dtype, d.num_chains, d, name, "new_energy");
    p.new_differences = data_of<void>(new_differences, d.dtype, d.numel(), d, name, "new_differences");
    p.back = data_of<int64_t>(back, Dtype::int64, d.num_chains * b.dim, d, name, "back");
    p.log_q = data_of<double>(log_q, Dtype::float64, d.num_chains, d, name, "log_q");
    p.key = key_pointer(key, d, name);
    p.workspace = flip_workspace(workspace, d, with_replacement, name);
    p.is_accepted = data_of<uint8_t>(is_accepted, Dtype::uint8, d.num_chains, d, name, "is_accepted");
    p.is_diverged = data_of<uint8_t>(is_diverged, Dtype::uint8, d.num_chains, d, name, "is_diverged");
    p.acceptance_prob = data_of<double>(acceptance_prob, Dtype::float64, d.num_chains, d, name, "acceptance_prob");
    p.num_chains = d.num_chains;
    p.num_sites = d.dim / num_categories;
    p.num_categories = num_categories;
    p.num_draws = b.dim;
    p.with_replacement = with_replacement;
    p.stream = stream;
    p.balancing = static_cast<Balancing>(balancing);
    p.dtype = d.dtype;
    p.place = place_of(d);
    call(&OpTable::accept_flips, p, d, name);
}

// What the tokens before or after are typed as; uint8 for the bools of two values.
Dtype site_dtype(const py::object& sites, const char* name, const char* argument) {
    Dtype dtype = view(sites, name, argument).dtype;
    if (dtype != Dtype::uint8 && dtype != Dtype::int64)
        throw py::type_error(std::string(name) + ": " + argument + " must be uint8 or int64");
    return dtype;
}

void propose_langevin(const py::object& proposed, const py::object& log_q, const py::object& differences, const py::object& tokens,
                      const py::object& key, int64_t num_categories, double penalty, uint32_t stream) {
    const char* name = "propose_langevin";
    TensorView d = differences_view(differences, num_categories, name);
    ProposeLangevinParams p{};
    int64_t num_sites = d.dim / num_categories;
    p.token_dtype = site_dtype(proposed, name, "proposed");
    p.proposed = data_of<void>(proposed, p.token_dtype, d.num_chains * num_sites, d, name, "proposed");
    p.log_q = data_of<double>(log_q, Dtype::float64, d.num_chains, d, name, "log_q");
    p.differences = d.data;
    if (num_categories > 1) p.tokens = data_of<void>(tokens, p.token_dtype, d.num_chains * num_sites, d, name, "tokens");
    p.key = key_pointer(key, d, name);
    p.num_chains = d.num_chains;
    p.num_sites = num_sites;
    p.num_categories = num_categories;
    p.penalty = penalty;
    p.stream = stream;
    p.dtype = d.dtype;
    p.place = place_of(d);
    call(&OpTable::propose_langevin, p, d, name);
}

void accept_langevin(const py::object& energy, const py::object& differences, const py::object& new_energy,
                     const py::object& new_differences, const py::object& proposed, const py::object& tokens, const py::object& log_q,
                     const py::object& key, int64_t num_categories, double penalty, bool metropolis, const py::object& is_accepted,
                     const py::object& is_diverged, const py::object& acceptance_prob, uint32_t stream) {
    const char* name = "accept_langevin";
    TensorView d = differences_view(differences, num_categories, name);
    AcceptLangevinParams p{};
    int64_t num_sites = d.dim / num_categories;
    p.token_dtype = site_dtype(proposed, name, "proposed");
    p.energy = data_of<void>(energy, d.dtype, d.num_chains, d, name, "energy");
    p.differences = d.data;
    p.new_energy = data_of<void>(new_energy, d.dtype, d.num_chains, d, name, "new_energy");
    p.new_differences = data_of<void>(new_differences, d.dtype, d.numel(), d, name, "new_differences");
    p.proposed = data_of<void>(proposed, p.token_dtype, d.num_chains * num_sites, d, name, "proposed");
    if (num_categories > 1) p.tokens = data_of<void>(tokens, p.token_dtype, d.num_chains * num_sites, d, name, "tokens");
    p.log_q = data_of<double>(log_q, Dtype::float64, d.num_chains, d, name, "log_q");
    p.key = key_pointer(key, d, name);
    p.is_accepted = data_of<uint8_t>(is_accepted, Dtype::uint8, d.num_chains, d, name, "is_accepted");
    p.is_diverged = data_of<uint8_t>(is_diverged, Dtype::uint8, d.num_chains, d, name, "is_diverged");
    p.acceptance_prob = data_of<double>(acceptance_prob, Dtype::float64, d.num_chains, d, name, "acceptance_prob");
    p.num_chains = d.num_chains;
    p.num_sites = num_sites;
    p.num_categories = num_categories;
    p.penalty = penalty;
    p.metropolis = metropolis;
    p.stream = stream;
    p.dtype = d.dtype;
    p.place = place_of(d);
    call(&OpTable::accept_langevin, p, d, name);
}

}  // namespace

void register_proposals(py::module_& m) {
    m.def("flip_scratch_bytes", &flip_scratch_bytes, py::arg("num_changes"), py::arg("element_size"), py::arg("with_replacement"));
    m.def("propose_flips", &propose_flips, py::arg("index"), py::arg("log_q"), py::arg("differences"), py::arg("key"),
          py::arg("num_categories"), py::arg("num_draws"), py::arg("with_replacement"), py::arg("balancing"), py::arg("workspace"),
          py::arg("stream"));
    m.def("accept_flips", &accept_flips, py::arg("energy"), py::arg("differences"), py::arg("new_energy"), py::arg("new_differences"),
          py::arg("back"), py::arg("log_q"), py::arg("key"), py::arg("num_categories"), py::arg("with_replacement"), py::arg("balancing"),
          py::arg("is_accepted"), py::arg("is_diverged"), py::arg("acceptance_prob"), py::arg("workspace"), py::arg("stream"));
    m.def("propose_langevin", &propose_langevin, py::arg("proposed"), py::arg("log_q"), py::arg("differences"), py::arg("tokens"),
          py::arg("key"), py::arg("num_categories"), py::arg("penalty"), py::arg("stream"));
    m.def("accept_langevin", &accept_langevin, py::arg("energy"), py::arg("differences"), py::arg("new_energy"), py::arg("new_differences"),
          py::arg("proposed"), py::arg("tokens"), py::arg("log_q"), py::arg("key"), py::arg("num_categories"), py::arg("penalty"),
          py::arg("metropolis"), py::arg("is_accepted"), py::arg("is_diverged"), py::arg("acceptance_prob"), py::arg("stream"));
}

}  // namespace ebm
