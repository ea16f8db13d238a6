#pragma once

#include "../core/math.h"
#include "energy.h"

EBM_BEGIN

// E = -ln Σ_k exp(c_k - ½ Σ p_k (x - m_k)²). constants: c (num_components,), m and p (num_components, dim).
template <class C>
struct GaussianMixture {
    const C *log_weights, *means, *precisions;
    int64_t dim, num_components;

    EBM_HD explicit GaussianMixture(const EnergyParams& p)
        : log_weights(static_cast<const C*>(p.constants)),
          means(log_weights + p.num_components),
          precisions(means + p.num_components * p.dim),
          dim(p.dim),
          num_components(p.num_components) {}

    template <bool kEnergy, bool kGrad, class F>
    EBM_HD void evaluate(Rows<F> x, Rows<F> grad, Rows<F> work, LaneSum<F>& energy) const {
        F largest = F{};
        for (int64_t k = 0; k < num_components; ++k) {
            const C *mean = means + k * dim, *precision = precisions + k * dim;
            F square = F{};
            for (int64_t e = 0; e < dim; ++e) {
                const F y = x[e] - mean[e];
                square += y * y * precision[e];
            }
            const F log_part = square * C(-0.5) + log_weights[k];
            largest = k == 0 ? log_part : log_part > largest ? log_part : largest;
            work[k] = log_part;
        }
        F total = F{};
        for (int64_t k = 0; k < num_components; ++k) {
            const F part = exp_of_negative(work[k] - largest);
            total += part;
            if (kGrad) work[k] = part;
        }
        if (kEnergy) energy.add(-(largest + log_of(total)));
        if (kGrad) {
            const F scale = C(1) / total;
            for (int64_t e = 0; e < dim; ++e) {
                F sum = F{};
                for (int64_t k = 0; k < num_components; ++k) sum += work[k] * precisions[k * dim + e] * (x[e] - means[k * dim + e]);
                grad[e] = sum * scale;
            }
        }
    }
};

EBM_END
