// The table of contents of ebmcore._core.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace ebm {
void register_runtime(py::module_& m);
void register_random(py::module_& m);
void register_langevin(py::module_& m);
void register_ising(py::module_& m);
void register_proposals(py::module_& m);
void register_potts(py::module_& m);
void register_clusters(py::module_& m);
void register_rbm(py::module_& m);
void register_probes(py::module_& m);
void register_activations(py::module_& m);
void register_dynamics(py::module_& m);
void register_metropolis(py::module_& m);
void register_swaps(py::module_& m);
}  // namespace ebm

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    m.doc() = "Native CPU ops of ebmcore, and the doors to the CUDA ones. Private: use ebmcore.ops.";
    ebm::register_runtime(m);
    ebm::register_random(m);
    ebm::register_langevin(m);
    ebm::register_ising(m);
    ebm::register_proposals(m);
    ebm::register_potts(m);
    ebm::register_clusters(m);
    ebm::register_rbm(m);
    ebm::register_probes(m);
    ebm::register_activations(m);
    ebm::register_dynamics(m);
    ebm::register_metropolis(m);
    ebm::register_swaps(m);
}
