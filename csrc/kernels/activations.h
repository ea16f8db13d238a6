// Derivatives of activation functions: all orders from one exponential, as polynomials in what it gives. A NaN stays one in all of them.
#pragma once

#include "../core/math.h"
#include "../core/storage.h"
#include "../ops/activations.h"

EBM_BEGIN

constexpr int kDerivatives = kMaxDerivative + 1;

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

template <class Function>
struct DerivativesSink {
    ActivationParams p;

    struct Row {};
    EBM_HD Row row(int64_t) const { return {}; }

    template <class F>
    EBM_HD void run(int64_t e) const {
        F d[kDerivatives];
        Function{}(load<F>(p.x + e), d);
        EBM_UNROLL for (int k = 0; k < kDerivatives; ++k) {
            if (k >= p.first && k < p.first + p.count) store(p.out + (k - p.first) * p.size + e, d[k]);
        }
    }
    EBM_HD void put(const Row&, int64_t e, float) const { run<float>(e); }
    EBM_HD void put_lanes(const Row&, int64_t e, F32) const { run<F32>(e); }
};

template <class Function>
struct DerivativesDotSink {
    ActivationParams p;

    struct Row {};
    EBM_HD Row row(int64_t) const { return {}; }

    template <class F>
    EBM_HD void run(int64_t e) const {
        F d[kDerivatives], sum = F{};
        Function{}(load<F>(p.x + e), d);
        EBM_UNROLL for (int k = 0; k < kDerivatives; ++k) {
            if (k >= p.first && k < p.first + p.count) sum = sum + load<F>(p.weights + (k - p.first) * p.size + e) * d[k];
        }
        store(p.out + e, sum);
    }
    EBM_HD void put(const Row&, int64_t e, float) const { run<float>(e); }
    EBM_HD void put_lanes(const Row&, int64_t e, F32) const { run<F32>(e); }
};

template <class Function>
struct TangentsSink {
    ActivationTangentsParams p;

    struct Row {
        float* z;
        float* slopes;
    };
    EBM_HD Row row(int64_t chain) const { return {p.rows + chain * p.dim, p.slopes ? p.slopes + chain * p.dim : nullptr}; }

    template <class F>
    EBM_HD void run(const Row& row, int64_t e) const {
        F d[kDerivatives], z = load<F>(row.z + e);
        if (p.bias) z = z + load<F>(p.bias + e);
        Function{}(z, d);
        store(row.z + e, d[0]);
        if (row.slopes) store(row.slopes + e, d[1]);
        float* tangent = row.z + e;
        for (int64_t i = 0; i < p.num_tangents; ++i) {
            tangent += p.num_chains * p.dim;
            store(tangent, load<F>(tangent) * d[1]);
        }
    }
    EBM_HD void put(const Row& row, int64_t e, float) const { run<float>(row, e); }
    EBM_HD void put_lanes(const Row& row, int64_t e, F32) const { run<F32>(row, e); }
};

EBM_END
