// Every op in terms of a backend's three launchers, which the including file has defined:
//
//   for_each_block<C>(draw, sink, key, num_chains, dim, first_block, stream, place)    draws of all blocks into the sink
//   for_each_element<T>(sink, num_chains, dim, place)                                  the sink without draws
//   scale_gradients<T>(params)                                                         params.segment_sums, params.grad_scales
//
// and the table that dispatch hands out.
#pragma once

#include "../kernels/langevin.h"
#include "../ops/table.h"
#include "floating_point.h"

EBM_BEGIN
namespace {

template <class C, class T, class Draw>
Status fill(const FillParams& p, const Draw& draw) {
    StoreSink<T> sink{static_cast<T*>(p.out), p.dim};
    return for_each_block<C>(draw, sink, p.key, p.num_chains, p.dim, p.first_block, p.stream, p.place);
}

template <class T>
Status fill_rademacher(const FillParams& p) {
    RademacherSink<T> sink{static_cast<T*>(p.out), p.dim};
    return for_each_block<float>(DrawWord{}, sink, p.key, p.num_chains, (p.dim + 31) / 32, p.first_block, p.stream, p.place);
}

Status philox(const FillParams& p) { return fill<float, float>(p, DrawWord{}); }
Status uniform(const FillParams& p) {
    return p.dtype == Dtype::float64 ? fill<double, double>(p, DrawUniform{}) : fill<float, float>(p, DrawUniform{});
}
Status normal(const FillParams& p) {
    return p.dtype == Dtype::float64 ? fill<double, double>(p, DrawNormal{}) : fill<float, float>(p, DrawNormal{});
}
Status rademacher(const FillParams& p) { return p.dtype == Dtype::float64 ? fill_rademacher<double>(p) : fill_rademacher<float>(p); }
Status bernoulli(const FillParams& p) {
    DrawBernoulli draw{p.threshold};
    return p.dtype == Dtype::float64 ? fill<float, double>(p, draw) : fill<float, float>(p, draw);
}

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

}  // namespace

#define EBM_STRING(x) #x
#define EBM_NAME(x) EBM_STRING(x)
extern const OpTable table;
const OpTable table = {
    EBM_NAME(EBM_TARGET),
#define EBM_OP(name, Params) name,
#include "../ops/ops.def"
#undef EBM_OP
};

EBM_END
