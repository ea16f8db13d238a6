#pragma once

#include "../core/math.h"
#include "energy.h"

EBM_BEGIN

// E = p v²/2 + ½ e⁻ᵛ Σ_{i > 0} x_i² + ½ (dim - 1) v, v = x_0. constants: p.
template <class C>
struct Funnel {
    C precision;
    int64_t dim;

    EBM_HD explicit Funnel(const EnergyParams& p) : precision(static_cast<const C*>(p.constants)[0]), dim(p.dim) {}

    template <bool kEnergy, bool kGrad, class F>
    EBM_HD void evaluate(Rows<F> x, Rows<F> grad, Rows<F>, LaneSum<F>& energy) const {
        const F v = x[0], shrink = exp_of(-v);
        const C half_rest = C(0.5) * static_cast<C>(dim - 1);
        LaneSum<F> squares;
        for (int64_t e = 1; e < dim; ++e) {
            const F t = x[e];
            squares.add(t * t);
            if (kGrad) grad[e] = t * shrink;
        }
        const F spread = shrink * squares.value() * C(0.5);
        if (kEnergy) energy.add(v * v * (C(0.5) * precision) + (spread + v * half_rest));
        if (kGrad) grad[0] = v * precision + (half_rest - spread);
    }
};

EBM_END
