// Langevin steps.
#include "tensor.h"

namespace ebm {
namespace {

void langevin_step(const py::object& out, const py::object& x, const py::object& grad, const py::object& key, double step_size,
                   double noise_std, double clip_grad, double clip_grad_norm, double clamp_min, double clamp_max,
                   const py::object& workspace, uint32_t stream) {
    const char* name = "langevin_step";
    TensorView xv = view(x, name, "x"), gv = view(grad, name, "grad"), ov = view(out, name, "out");
    require_floating(xv, name, "x");
    check_same(gv, xv, name, "grad");
    check_same(ov, xv, name, "out");
    LangevinStepParams p{};
    p.out = ov.data;
    p.x = xv.data;
    p.grad = gv.data;
    p.key = key_pointer(key, xv, name);
    p.num_chains = xv.num_chains;
    p.dim = xv.dim;
    if (!workspace.is_none()) {
        TensorView scratch = view(workspace, name, "workspace");
        int64_t segments = (xv.dim + kNormSegment - 1) / kNormSegment;
        if (scratch.dtype != Dtype::float64 || scratch.numel() != xv.num_chains * (segments + 1) || scratch.is_cuda != xv.is_cuda)
            throw py::value_error("langevin_step: workspace must be float64 of num_chains * (num_segments + 1) elements");
        p.grad_scales = static_cast<double*>(scratch.data);
        p.segment_sums = p.grad_scales + xv.num_chains;
    }
    p.step_size = step_size;
    p.noise_std = noise_std;
    p.clip_grad = clip_grad;
    p.clip_grad_norm = clip_grad_norm;
    p.clamp_min = clamp_min;
    p.clamp_max = clamp_max;
    p.stream = stream;
    p.dtype = xv.dtype;
    p.place = place_of(xv);
    call(&OpTable::langevin_step, p, xv, name);
}

}  // namespace

void register_langevin(py::module_& m) {
    m.attr("NORM_SEGMENT") = kNormSegment;
    m.def("langevin_step", &langevin_step, py::arg("out"), py::arg("x"), py::arg("grad"), py::arg("key"), py::arg("step_size"),
          py::arg("noise_std"), py::arg("clip_grad"), py::arg("clip_grad_norm"), py::arg("clamp_min"), py::arg("clamp_max"),
          py::arg("workspace"), py::arg("stream"));
}

}  // namespace ebm
