#pragma once

#include "energy.h"

EBM_BEGIN

// E = ½ Σ p (x - m)². constants: m (dim,), p (dim,).
template <class C>
struct DiagonalGaussian {
    const C *mean, *precision;
    int64_t dim;

    EBM_HD explicit DiagonalGaussian(const EnergyParams& p)
        : mean(static_cast<const C*>(p.constants)), precision(mean + p.dim), dim(p.dim) {}

    template <bool kEnergy, bool kGrad, class F>
    EBM_HD void evaluate(Rows<F> x, Rows<F> grad, Rows<F>, LaneSum<F>& energy) const {
        for (int64_t e = 0; e < dim; ++e) {
            const F y = x[e] - mean[e], g = y * precision[e];
            if (kEnergy) energy.add(y * g * C(0.5));
            if (kGrad) grad[e] = g;
        }
    }
};

// E = ½ (x - m)ᵀ P (x - m), P symmetric. constants: m, filled up with 0 to width = a multiple of kTile, and P (dim, width).
template <class C>
struct FullGaussian {
    static constexpr int kTile = 8;  // elements of the gradient at a time
    const C *mean, *precision;
    int64_t dim, width;

    EBM_HD explicit FullGaussian(const EnergyParams& p)
        : mean(static_cast<const C*>(p.constants)), dim(p.dim), width((p.dim + kTile - 1) / kTile * kTile) {
        precision = mean + width;
    }

    template <bool kEnergy, bool kGrad, class F>
    EBM_HD void evaluate(Rows<F> x, Rows<F> grad, Rows<F>, LaneSum<F>& energy) const {
        for (int64_t e = 0; e < dim; e += kTile) {
            F sums[kTile] = {};
            for (int64_t i = 0; i < dim; ++i) {
                const F y = x[i] - mean[i];
                EBM_UNROLL for (int t = 0; t < kTile; ++t)
                    sums[t] += y * precision[i * width + e + t];
            }
            EBM_UNROLL for (int t = 0; t < kTile; ++t) {
                if (e + t < dim) {
                    if (kEnergy) energy.add((x[e + t] - mean[e + t]) * sums[t] * C(0.5));
                    if (kGrad) grad[e + t] = sums[t];
                }
            }
        }
    }
};

EBM_END
