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

void activation_tangents(const py::object& rows, const py::object& slopes, const py::object& bias, int64_t num_chains, int32_t activation) {
    const char* name = "activation_tangents";
    TensorView rv = view(rows, name, "rows");
    if (rv.dtype != Dtype::float32) throw py::type_error("activation_tangents: rows must be float32");
    if (rv.numel() == 0) return;
    ActivationTangentsParams p{};
    p.rows = static_cast<float*>(rv.data);
    p.num_chains = num_chains;
    p.dim = rv.dim / num_chains;
    p.num_tangents = rv.num_chains - 1;
    p.slopes = optional_data_of<float>(slopes, Dtype::float32, p.num_chains * p.dim, rv, name, "slopes");
    p.bias = optional_data_of<const float>(bias, Dtype::float32, p.dim, rv, name, "bias");
    p.activation = static_cast<Activation>(activation);
    p.place = place_of(rv);
    call(&OpTable::activation_tangents, p, rv, name);
}

}  // namespace

void register_activations(py::module_& m) {
    m.attr("MAX_DERIVATIVE") = kMaxDerivative;
    m.def("activation_derivatives", &activation_derivatives, py::arg("out"), py::arg("x"), py::arg("activation"), py::arg("first"),
          py::arg("count"));
    m.def("activation_derivatives_dot", &activation_derivatives_dot, py::arg("out"), py::arg("x"), py::arg("weights"),
          py::arg("activation"), py::arg("first"));
    m.def("activation_tangents", &activation_tangents, py::arg("rows"), py::arg("slopes"), py::arg("bias"), py::arg("num_chains"),
          py::arg("activation"));
}

}  // namespace ebm
