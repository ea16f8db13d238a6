// Langevin steps.
#include "../launch.h"

EBM_BEGIN
namespace {

template <class T, bool kBounded>
Status langevin_with(const LangevinStepParams& p) {
    if (p.noise_std == 0.0) {  // nothing is drawn
        return for_each_element<T>(LangevinSink<T, kBounded, false>(p), p.num_chains, p.dim, p.place);
    }
    LangevinSink<T, kBounded, true> sink(p);
    return for_each_block<Compute<T>>(DrawNormal{}, sink, p.key, p.num_chains, p.dim, 0, p.stream, p.place);
}

template <class T>
Status langevin_of(const LangevinStepParams& p) {
    if (p.grad_scales) {
        if (Status status = scale_gradients<T>(p)) return status;
    }
    constexpr double inf = __builtin_inf();
    bool bounded = p.grad_scales || p.clip_grad < inf || p.clamp_min > -inf || p.clamp_max < inf;
    return bounded ? langevin_with<T, true>(p) : langevin_with<T, false>(p);
}

}  // namespace

Status langevin_step(const LangevinStepParams& p) {
    DefaultFloatingPoint guard;  // the scalars are converted on this thread
    switch (p.dtype) {
        case Dtype::float32: return langevin_of<float>(p);
        case Dtype::float64: return langevin_of<double>(p);
        case Dtype::bfloat16: return langevin_of<BFloat16>(p);
        case Dtype::float16: return langevin_of<Float16>(p);
        default: return "no such dtype";
    }
}

EBM_END
