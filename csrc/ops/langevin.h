#pragma once

#include "types.h"

namespace ebm {

// Elements of a chain whose squares are summed into one term of its squared gradient norm.
constexpr int64_t kNormSegment = 8192;

// out = clamp(x - step_size · clip(grad) + noise_std · normal), rounded once to dtype.
struct LangevinStepParams {
    void* out;             // (num_chains, dim), contiguous; may be x
    const void* x;         // (num_chains, dim), contiguous
    const void* grad;      // (num_chains, dim), contiguous
    const int64_t* key;    // [seed, step, first_chain], where `out` is
    double* segment_sums;  // (num_chains, ceil(dim / kNormSegment)) scratch; null: no clipping by norm
    double* grad_scales;   // (num_chains,) scratch; null: no clipping by norm
    int64_t num_chains;
    int64_t dim;
    double step_size;
    double noise_std;       // 0: no noise is drawn
    double clip_grad;       // |grad_i| at most; +inf: no clipping
    double clip_grad_norm;  // |grad| of a chain at most
    double clamp_min;       // -inf, +inf: no clamp
    double clamp_max;
    uint32_t stream;
    Dtype dtype;
    Place place;
};

}  // namespace ebm
