// Derivatives of activation functions: all orders from one exponential, as polynomials in what it gives. A NaN stays one in all of them.
#pragma once

#include "math.h"

EBM_BEGIN

constexpr int kDerivatives = 5;  // orders 0 to 4

// With e = exp(-|x|): sigmoid s and 1 - s, both to the last bits of a float, and s' = s (1 - s).
template <class F>
struct Logistic {
    F e, inverse, s, c, q;

    EBM_HD explicit Logistic(F x) {
        e = exp_of_negative<F>(x < 0.0f ? x : -x);
        inverse = 1.0f / (e + 1.0f);
        const F small = e * inverse;
        s = x > 0.0f ? inverse : small;
        c = x > 0.0f ? small : inverse;
        q = small * inverse;
    }
    // Of s, order 1 to 4.
    EBM_HD F first() const { return q; }
    EBM_HD F second() const { return q * (c - s); }
    EBM_HD F third() const { return q * (1.0f - q * 6.0f); }
    EBM_HD F fourth() const { return q * (c - s) * (1.0f - q * 12.0f); }
};

// d[k] = the derivative of order k at x.
struct SigmoidDerivatives {
    template <class F>
    EBM_HD void operator()(F x, F (&d)[kDerivatives]) const {
        const Logistic<F> l(x);
        d[0] = l.s;
        d[1] = l.first();
        d[2] = l.second();
        d[3] = l.third();
        d[4] = l.fourth();
    }
};

struct SoftplusDerivatives {
    template <class F>
    EBM_HD void operator()(F x, F (&d)[kDerivatives]) const {
        const Logistic<F> l(x);
        // ln(1 + e) where 1 + e is rounded: what the rounding took away, to first order.
        const F whole = l.e + 1.0f;
        d[0] = (x <= 0.0f ? F{} : x) + (log_of<F>(whole) + (l.e - (whole - 1.0f)) * l.inverse);
        d[1] = l.s;
        d[2] = l.first();
        d[3] = l.second();
        d[4] = l.third();
    }
};

// (x s)^(n) = n s^(n-1) + x s^(n).
struct SiluDerivatives {
    template <class F>
    EBM_HD void operator()(F x, F (&d)[kDerivatives]) const {
        const Logistic<F> l(x);
        d[0] = x * l.s;
        d[1] = l.s + x * l.first();
        d[2] = l.first() * 2.0f + x * l.second();
        d[3] = l.second() * 3.0f + x * l.third();
        d[4] = l.third() * 4.0f + x * l.fourth();
    }
};

struct TanhDerivatives {
    template <class F>
    EBM_HD void operator()(F x, F (&d)[kDerivatives]) const {
        const F magnitude = x < 0.0f ? -x : x;
        const F e = exp_of_negative<F>(magnitude * -2.0f);
        const F inverse = 1.0f / (e + 1.0f);
        const F far = (1.0f - e) * inverse;
        // Towards 0 that would cancel: an odd polynomial (least relative error on [0, 0.55], 1e-8).
        const F z = x * x;
        F p = -0.00627423916f * z + 0.02107167803f;
        p = p * z + -0.05385230854f;
        p = p * z + 0.1333258599f;
        p = p * z + -0.3333331645f;
        const F near = p * z * x + x;
        const F t = magnitude < 0.55f ? near : x < 0.0f ? -far : far;
        const F t2 = t * t, slope = e * 4.0f * inverse * inverse;  // 1 - t²
        d[0] = t;
        d[1] = slope;
        d[2] = t * slope * -2.0f;
        d[3] = slope * (t2 * 6.0f - 2.0f);
        d[4] = t * slope * (2.0f - t2 * 3.0f) * 8.0f;
    }
};

struct ReluDerivatives {
    template <class F>
    EBM_HD void operator()(F x, F (&d)[kDerivatives]) const {
        const F zero = x == x ? F{} : x;
        d[0] = x > 0.0f ? x : zero;
        d[1] = x > 0.0f ? F{} + 1.0f : zero;
        d[2] = d[3] = d[4] = zero;
    }
};

// x Φ(x). Φ by Abramowitz & Stegun 7.1.26, right to 8e-8.
struct GeluDerivatives {
    template <class F>
    EBM_HD void operator()(F x, F (&d)[kDerivatives]) const {
        const F magnitude = x < 0.0f ? -x : x, square = x * x;
        const F e = exp_of_negative<F>(square * -0.5f), t = 1.0f / (magnitude * 0.2316419f + 1.0f);
        F p = t * 0.5307027145f - 0.7265760135f;
        p = p * t + 0.7107068705f;
        p = p * t - 0.142248368f;
        p = p * t + 0.127414796f;
        const F tail = p * t * e, density = e * 0.3989422804f;
        const F below = x > 0.0f ? 1.0f - tail : tail;
        d[0] = x * below;
        d[1] = below + x * density;
        d[2] = density * (2.0f - square);
        d[3] = density * x * (square - 4.0f);
        d[4] = density * ((7.0f - square) * square - 4.0f);
    }
};

struct EluDerivatives {
    float alpha;

    template <class F>
    EBM_HD void operator()(F x, F (&d)[kDerivatives]) const {
        const F e = exp_of_negative<F>(x > 0.0f ? F{} : x) * alpha;
        d[0] = x > 0.0f ? x : e - alpha;
        d[1] = x > 0.0f ? F{} + 1.0f : e;
        d[2] = d[3] = d[4] = x > 0.0f ? F{} : e;
    }
};

struct LeakyReluDerivatives {
    float slope;

    template <class F>
    EBM_HD void operator()(F x, F (&d)[kDerivatives]) const {
        const F zero = x == x ? F{} : x;
        d[0] = x > 0.0f ? x : x * slope;
        d[1] = x > 0.0f ? F{} + 1.0f : zero + slope;
        d[2] = d[3] = d[4] = zero;
    }
};

EBM_END
