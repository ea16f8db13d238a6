// Cluster updates.
#include "tensor.h"

namespace ebm {
namespace {

void swendsen_wang(const py::object& states, const py::object& key, const py::object& edges, const py::object& bond_probs,
                   const py::object& fields, int32_t num_categories, int64_t num_steps, const py::object& num_flips,
                   const py::object& workspace, int64_t scratch_bytes) {
    const char* name = "swendsen_wang";
    TensorView x = view(states, name, "states");
    if (x.dtype != Dtype::int8 && x.dtype != Dtype::uint8) throw py::type_error("swendsen_wang: states must be int8 spins or uint8 tokens");
    SwendsenWangParams p{};
    p.dtype = x.dtype;
    p.num_chains = x.num_chains;
    p.num_sites = x.dim;
    p.num_categories = num_categories;
    TensorView edge_view = view(edges, name, "edges"), bonds = view(bond_probs, name, "bond_probs"),
               flips = view(num_flips, name, "num_flips");
    p.num_edges = edge_view.num_chains;
    p.bond_stride = bonds.numel() == 1 ? 0 : 1;
    auto check = [&](const TensorView& v, Dtype dtype, int64_t numel, const char* argument) {
        if (v.dtype != dtype || v.numel() != numel || v.is_cuda != x.is_cuda || v.device_index != x.device_index)
            throw py::value_error(std::string("swendsen_wang: ") + argument + " has the wrong dtype, size or device");
    };
    check(edge_view, Dtype::int64, 2 * p.num_edges, "edges");
    check(bonds, Dtype::float64, p.bond_stride ? p.num_edges : 1, "bond_probs");
    check(flips, Dtype::int64, p.num_chains, "num_flips");
    p.states = x.data;
    p.key = key_pointer(key, x, name);
    p.edges = static_cast<const int64_t*>(edge_view.data);
    p.bond_probs = static_cast<const double*>(bonds.data);
    p.num_flips = static_cast<int64_t*>(flips.data);
    if (!fields.is_none()) {
        TensorView f = view(fields, name, "fields");
        check(f, Dtype::float64, p.num_sites * (p.dtype == Dtype::int8 ? 1 : num_categories), "fields");
        p.fields = static_cast<const double*>(f.data);
    }
    if (!workspace.is_none()) {
        TensorView w = view(workspace, name, "workspace");
        check(w, Dtype::uint8, p.num_chains * scratch_bytes, "workspace");
        p.workspace = w.data;
    }
    p.num_steps = num_steps;
    p.scratch_bytes = scratch_bytes;
    p.place = place_of(x);
    call(&OpTable::swendsen_wang, p, x, name);
}

}  // namespace

void register_clusters(py::module_& m) {
    m.def("swendsen_wang", &swendsen_wang, py::arg("states"), py::arg("key"), py::arg("edges"), py::arg("bond_probs"), py::arg("fields"),
          py::arg("num_categories"), py::arg("num_steps"), py::arg("num_flips"), py::arg("workspace"), py::arg("scratch_bytes"));
}

}  // namespace ebm
