#pragma once

#include "energy.h"

EBM_BEGIN

// E = ½ p x² + ½ q (y - curvature x²)². constants: p, curvature, q.
template <class C>
struct Banana {
    C along, curvature, across;

    EBM_HD explicit Banana(const EnergyParams& p)
        : along(static_cast<const C*>(p.constants)[0]),
          curvature(static_cast<const C*>(p.constants)[1]),
          across(static_cast<const C*>(p.constants)[2]) {}

    template <bool kEnergy, bool kGrad, class F>
    EBM_HD void evaluate(Rows<F> x, Rows<F> grad, Rows<F>, LaneSum<F>& energy) const {
        const F t = x[0], bend = t * curvature, off = x[1] - t * bend, pull = off * across;
        if (kEnergy) energy.add(t * t * (C(0.5) * along) + off * pull * C(0.5));
        if (kGrad) {
            grad[0] = t * along - bend * pull * C(2);
            grad[1] = pull;
        }
    }
};

EBM_END
