// Derivatives of activation functions.
#include "tensor.h"

namespace ebm {
namespace {

void run(const char* name, Status (*OpTable::*op)(const ActivationParams&), ActivationParams p, const TensorView& x, int32_t activation,
         int32_t first) {
    if (x.dtype != Dtype::float32) throw py::type_error(std::string(name) + ": x must be float32");
    if (first < 0 || p.count < 1 || first > kMaxDerivative || p.count > kMaxDerivative + 1 - first)
        throw py::value_error(std::string(name) + ": no derivatives of order above " + std::to_string(kMaxDerivative));
    p.x = static_cast<const float*>(x.data);
    p.size = x.numel();
    p.first = first;
    p.activation = static_cast<Activation>(activation);
    p.place = place_of(x);
    call(op, p, x, name);
}

void activation_derivatives(const py::object& out, const py::object& x, int32_t activation, int32_t first, int32_t count) {
    const char* name = "activation_derivatives";
    TensorView xv = view(x, name, "x");
    ActivationParams p{};
    p.out = data_of<float>(out, Dtype::float32, count * xv.numel(), xv, name, "out");
    p.count = count;
    run(name, &OpTable::activation_derivatives, p, xv, activation, first);
}

void activation_derivatives_dot(const py::object& out, const py::object& x, const py::object& weights, int32_t activation, int32_t first) {
    const char* name = "activation_derivatives_dot";
    TensorView xv = view(x, name, "x"), wv = view(weights, name, "weights");
    ActivationParams p{};
    p.out = data_of<float>(out, Dtype::float32, xv.numel(), xv, name, "out");
    p.weights = data_of<const float>(weights, Dtype::float32, wv.num_chains * xv.numel(), xv, name, "weights");
    p.count = static_cast<int32_t>(wv.num_chains);
    run(name, &OpTable::activation_derivatives_dot, p, xv, activation, first);
}

}  // namespace

void register_activations(py::module_& m) {
    m.attr("MAX_DERIVATIVE") = kMaxDerivative;
    m.def("activation_derivatives", &activation_derivatives, py::arg("out"), py::arg("x"), py::arg("activation"), py::arg("first"),
          py::arg("count"));
    m.def("activation_derivatives_dot", &activation_derivatives_dot, py::arg("out"), py::arg("x"), py::arg("weights"),
          py::arg("activation"), py::arg("first"));
}

}  // namespace ebm
