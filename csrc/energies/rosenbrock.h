#pragma once

#include "energy.h"

EBM_BEGIN

// E = Σ_{i < dim - 1} (a - x_i)² + b (x_{i+1} - x_i²)². constants: a, b.
template <class C>
struct Rosenbrock {
    C a, b;
    int64_t dim;

    EBM_HD explicit Rosenbrock(const EnergyParams& p)
        : a(static_cast<const C*>(p.constants)[0]), b(static_cast<const C*>(p.constants)[1]), dim(p.dim) {}

    template <bool kEnergy, bool kGrad, class F>
    EBM_HD void evaluate(Rows<F> x, Rows<F> grad, Rows<F>, LaneSum<F>& energy) const {
        F slope = F{};  // of the term before, in this element
        for (int64_t e = 0; e + 1 < dim; ++e) {
            const F t = x[e], off = t - a, rise = x[e + 1] - t * t, pull = rise * b;
            if (kEnergy) energy.add(off * off + rise * pull);
            if (kGrad) grad[e] = slope + (off * C(2) - t * pull * C(4));
            slope = pull * C(2);
        }
        if (kGrad) grad[dim - 1] = slope;
    }
};

EBM_END
