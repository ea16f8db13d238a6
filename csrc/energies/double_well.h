#pragma once

#include "energy.h"

EBM_BEGIN

// E = Σ height (x² - b²)². constants: height, b².
template <class C>
struct DoubleWell {
    C height, square;
    int64_t dim;

    EBM_HD explicit DoubleWell(const EnergyParams& p)
        : height(static_cast<const C*>(p.constants)[0]), square(static_cast<const C*>(p.constants)[1]), dim(p.dim) {}

    template <bool kEnergy, bool kGrad, class F>
    EBM_HD void evaluate(Rows<F> x, Rows<F> grad, Rows<F>, LaneSum<F>& energy) const {
        for (int64_t e = 0; e < dim; ++e) {
            const F t = x[e], well = t * t - square, scaled = well * height;
            if (kEnergy) energy.add(well * scaled);
            if (kGrad) grad[e] = t * scaled * C(4);
        }
    }
};

EBM_END
