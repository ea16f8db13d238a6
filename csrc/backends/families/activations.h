// Derivatives of activation functions.
#include "../../kernels/activations.h"

#include "../launch.h"

EBM_BEGIN
namespace {

template <template <class> class Sink, class Params>
Status run_activation(const Params& p, int64_t num_chains, int64_t dim) {
    switch (p.activation) {
        case Activation::sigmoid: return for_each_element<float>(Sink<SigmoidDerivatives>{p}, num_chains, dim, p.place);
        case Activation::softplus: return for_each_element<float>(Sink<SoftplusDerivatives>{p}, num_chains, dim, p.place);
        case Activation::silu: return for_each_element<float>(Sink<SiluDerivatives>{p}, num_chains, dim, p.place);
        case Activation::tanh: return for_each_element<float>(Sink<TanhDerivatives>{p}, num_chains, dim, p.place);
        case Activation::relu: return for_each_element<float>(Sink<ReluDerivatives>{p}, num_chains, dim, p.place);
        default: break;  // in perceptrons alone
    }
    return "no such activation";
}

}  // namespace

Status activation_derivatives(const ActivationParams& p) { return run_activation<DerivativesSink>(p, 1, p.size); }
Status activation_derivatives_dot(const ActivationParams& p) { return run_activation<DerivativesDotSink>(p, 1, p.size); }
Status activation_tangents(const ActivationTangentsParams& p) { return run_activation<TangentsSink>(p, p.num_chains, p.dim); }

EBM_END
