// One step of Langevin dynamics for the elements of one block, given the gradient.
#pragma once

#include "../ops/langevin.h"
#include "random.h"

EBM_BEGIN

// x' = clamp(x - step_size · clip(scale · g) + noise_std · z). A NaN stays a NaN through clip and clamp, and an infinite
// gradient becomes one: neither may come out as a number.
template <class T, bool kBounded, bool kNoise>
struct LangevinSink {
    using C = Compute<T>;
    T* out;
    const T* x;
    const T* grad;
    const double* scales;  // (num_chains,), or null
    int64_t dim;
    C step_size, noise_std, clip_grad, clamp_min, clamp_max;

    EBM_HD explicit LangevinSink(const LangevinStepParams& p)
        : out(static_cast<T*>(p.out)),
          x(static_cast<const T*>(p.x)),
          grad(static_cast<const T*>(p.grad)),
          scales(p.grad_scales),
          dim(p.dim),
          step_size(static_cast<C>(p.step_size)),
          noise_std(static_cast<C>(p.noise_std)),
          clip_grad(static_cast<C>(p.clip_grad)),
          clamp_min(static_cast<C>(p.clamp_min)),
          clamp_max(static_cast<C>(p.clamp_max)) {}

    struct Row {
        T* out;
        const T* x;
        const T* grad;
        C scale;
    };
    EBM_HD Row row(int64_t chain) const {
        return {out + chain * dim, x + chain * dim, grad + chain * dim, scales ? static_cast<C>(scales[chain]) : C(1)};
    }

    EBM_HD bool is_flat() const { return !scales; }

    template <class V>
    EBM_HD V update(V x, V g, V z, C scale) const {
        if (kBounded) {
            g = g * scale;
            V clipped = g > clip_grad ? V{} + clip_grad : g < -clip_grad ? V{} - clip_grad : g;
            g = clipped + (g - g);
        }
        x = x - g * step_size;
        if (kNoise) x = x + z * noise_std;
        if (kBounded) x = x < clamp_min ? V{} + clamp_min : x > clamp_max ? V{} + clamp_max : x;
        return x;
    }

    EBM_HD void put(const Row& row, int64_t e, C z) const {
        narrow(row.out + e, update<C>(widen(row.x[e]), widen(row.grad[e]), z, row.scale));
    }
#if !defined(__CUDACC__)
    template <class V>
    EBM_HD void put_lanes(const Row& row, int64_t e, V z) const {
        store_lanes(row.out + e, update<V>(load_lanes(row.x + e), load_lanes(row.grad + e), z, row.scale));
    }
#endif
};

// Sum of squares of one segment in double, in an order that no target can change: kNormLanes running sums of every
// kNormLanes-th element, then a tree. A thread adds up kCount of them, from `first`.
constexpr int kNormLanes = 16;

template <int kCount, class T>
EBM_HD void add_squares(const T* grad, int64_t size, int first, double (&sums)[kCount]) {
    for (int i = 0; i < kCount; ++i) sums[i] = 0.0;
    int64_t e = first;
    for (; e + kCount <= size; e += kNormLanes) {
        for (int i = 0; i < kCount; ++i) {
            double g = widen(grad[e + i]);
            sums[i] += g * g;
        }
    }
    for (int i = 0; e + i < size; ++i) {
        double g = widen(grad[e + i]);
        sums[i] += g * g;
    }
}

EBM_HD double add_tree(double (&sums)[kNormLanes]) {
    EBM_UNROLL for (int half = kNormLanes / 2; half > 0; half /= 2) {
        EBM_UNROLL for (int i = 0; i < half; ++i)
            sums[i] += sums[i + half];
    }
    return sums[0];
}

// min(1, clip_grad_norm / |grad|) from the sums of a chain's segments; NaN where the norm is not finite.
EBM_HD double grad_scale(const double* segment_sums, int64_t num_segments, double clip_grad_norm) {
    double sum = 0.0;
    for (int64_t i = 0; i < num_segments; ++i) sum += segment_sums[i];
#if defined(__CUDACC__)
    double norm = sqrt(sum);
#else
    double norm = __builtin_sqrt(sum);
#endif
    return norm - norm == 0.0 ? (norm > clip_grad_norm ? clip_grad_norm / norm : 1.0) : norm - norm;
}

EBM_END
