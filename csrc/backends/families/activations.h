// Derivatives of activation functions.
#include "../../kernels/activations.h"

#include "../launch.h"

EBM_BEGIN
namespace {

template <template <class> class Sink, class Function>
Status run_elements_of(const ActivationParams& p) {
    return for_each_element<float>(Sink<Function>{p}, 1, p.size, p.place);
}

template <template <class> class Sink>
Status run_activation(const ActivationParams& p) {
    switch (p.activation) {
        case Activation::sigmoid: return run_elements_of<Sink, SigmoidDerivatives>(p);
        case Activation::softplus: return run_elements_of<Sink, SoftplusDerivatives>(p);
        case Activation::silu: return run_elements_of<Sink, SiluDerivatives>(p);
        case Activation::tanh: return run_elements_of<Sink, TanhDerivatives>(p);
        case Activation::relu: return run_elements_of<Sink, ReluDerivatives>(p);
    }
    return "no such activation";
}

}  // namespace

Status activation_derivatives(const ActivationParams& p) { return run_activation<DerivativesSink>(p); }
Status activation_derivatives_dot(const ActivationParams& p) { return run_activation<DerivativesDotSink>(p); }

EBM_END
