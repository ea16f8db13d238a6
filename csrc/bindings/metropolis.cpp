// Metropolis' rule.
#include "tensor.h"

namespace ebm {
namespace {

// grad and new_grad, log_corrections and inverse_mass may be None.
void metropolis_accept(const py::object& x, const py::object& energies, const py::object& grad, const py::object& new_x,
                       const py::object& new_energies, const py::object& new_grad, const py::object& log_corrections, double step_size,
                       const py::object& inverse_mass, const py::object& key, const py::object& is_accepted, const py::object& prob_sum,
                       const py::object& num_diverged, uint32_t stream) {
    const char* name = "metropolis_accept";
    const TensorView states = view(x, name, "x"), values = view(energies, name, "energies");
    const auto is_float = [](Dtype dtype) { return dtype == Dtype::float32 || dtype == Dtype::float64; };
    if (!is_float(states.dtype)) throw py::type_error("metropolis_accept: x must be float32 or float64");
    if (!is_float(values.dtype)) throw py::type_error("metropolis_accept: energies must be float32 or float64");
    if (step_size > 0.0 && (grad.is_none() || !log_corrections.is_none()))
        throw py::value_error("metropolis_accept: a Langevin step needs gradients, and has a correction of its own");
    const int64_t n = states.num_chains, size = states.numel();
    MetropolisAcceptParams p{};
    p.x = states.data;
    p.energies = data_of<void>(energies, values.dtype, n, states, name, "energies");
    p.new_x = data_of<void>(new_x, states.dtype, size, states, name, "new_x");
    p.new_energies = data_of<void>(new_energies, values.dtype, n, states, name, "new_energies");
    if (!grad.is_none()) {
        p.grad = data_of<void>(grad, states.dtype, size, states, name, "grad");
        p.new_grad = data_of<void>(new_grad, states.dtype, size, states, name, "new_grad");
    }
    p.log_corrections = optional_data_of<const double>(log_corrections, Dtype::float64, n, states, name, "log_corrections");
    p.inverse_mass = optional_data_of<const void>(inverse_mass, states.dtype, states.dim, states, name, "inverse_mass");
    p.key = key_pointer(key, states, name);
    p.is_accepted = data_of<uint8_t>(is_accepted, Dtype::uint8, n, states, name, "is_accepted");
    p.prob_sum = data_of<double>(prob_sum, Dtype::float64, n, states, name, "prob_sum");
    p.num_diverged = data_of<int64_t>(num_diverged, Dtype::int64, n, states, name, "num_diverged");
    p.num_chains = n;
    p.dim = states.dim;
    p.step_size = step_size;
    p.stream = stream;
    p.dtype = states.dtype;
    p.energy_dtype = values.dtype;
    p.place = place_of(states);
    call(&OpTable::metropolis_accept, p, states, name);
}

}  // namespace

void register_metropolis(py::module_& m) {
    m.def("metropolis_accept", &metropolis_accept, py::arg("x"), py::arg("energies"), py::arg("grad"), py::arg("new_x"),
          py::arg("new_energies"), py::arg("new_grad"), py::arg("log_corrections"), py::arg("step_size"), py::arg("inverse_mass"),
          py::arg("key"), py::arg("is_accepted"), py::arg("prob_sum"), py::arg("num_diverged"), py::arg("stream"));
}

}  // namespace ebm
