// Activation functions and their derivatives, element by element.
#pragma once

#include "../core/activations.h"
#include "../core/storage.h"
#include "../ops/activations.h"

EBM_BEGIN

static_assert(kDerivatives == kMaxDerivative + 1);

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
