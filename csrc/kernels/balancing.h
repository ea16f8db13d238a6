#pragma once

#include "../core/math.h"
#include "../ops/balancing.h"

EBM_BEGIN

// g(e^d) (Zanella 2020), for |d| up to 80, of the square root 160.
template <class F>
EBM_HD F balanced(F d, Balancing balancing) {
    if (balancing == Balancing::sqrt) return exp_in_range<F>(d * 0.5f);
    if (balancing == Balancing::barker) return 1.0f / (exp_in_range<F>(-d) + 1.0f);
    if (balancing == Balancing::min) return exp_in_range<F>(d < 0.0f ? d : F{});
    return exp_in_range<F>(d > 0.0f ? d : F{});
}

EBM_END
