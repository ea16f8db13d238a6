#pragma once

#include "energy.h"

EBM_BEGIN

// E = ½ p (|x| - radius)² in the plane, ∇E(0) = 0. constants: radius, p.
template <class C>
struct Ring {
    C radius, precision;

    EBM_HD explicit Ring(const EnergyParams& p)
        : radius(static_cast<const C*>(p.constants)[0]), precision(static_cast<const C*>(p.constants)[1]) {}

    template <bool kEnergy, bool kGrad, class F>
    EBM_HD void evaluate(Rows<F> x, Rows<F> grad, Rows<F>, LaneSum<F>& energy) const {
        const F a = x[0], b = x[1], r = square_root(a * a + b * b), off = r - radius, pull = off * precision;
        if (kEnergy) energy.add(off * pull * C(0.5));
        if (kGrad) {
            const F scale = r == C(0) ? F{} : pull / r;
            grad[0] = a * scale;
            grad[1] = b * scale;
        }
    }
};

EBM_END
