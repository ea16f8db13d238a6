// The energy of a perceptron with one output, and its gradient. Each weight is read where it lies, once for the chains of M groups.
// Products are fused multiply-adds in one order: every target that has them gives the same bits, whatever M.
#pragma once

#include "../core/activations.h"
#include "bfloat16_products.h"
#include "energy.h"

EBM_BEGIN

#if defined(__CUDACC__)
constexpr int kProductSums = 8;
#elif defined(__AVX512F__)
constexpr int kProductSums = 24;  // what fits into the registers beside the inputs
#else
constexpr int kProductSums = 12;
#endif

// out[m][r] = initial[r] + Σ_k w[r · row_stride + k · stride] in[m][k], r < R.
template <int R, int M, class V>
EBM_HD void multiply_rows(const float* w, int64_t row_stride, int64_t stride, const float* initial, const Rows<V> (&in)[M], int64_t size,
                          const Rows<V> (&out)[M], int64_t at) {
    V sums[R][M];
    EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) {
        EBM_UNROLL_ROWS for (int m = 0; m < M; ++m) sums[r][m] = initial ? V{} + initial[at + r] : V{};
    }
    w += at * row_stride;
    for (int64_t k = 0; k < size; ++k, w += stride) {
        V values[M];
        EBM_UNROLL_ROWS for (int m = 0; m < M; ++m) values[m] = in[m][k];
        EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) {
            EBM_UNROLL_ROWS for (int m = 0; m < M; ++m) sums[r][m] = multiply_add(w[r * row_stride], values[m], sums[r][m]);
        }
    }
    EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) { EBM_UNROLL_ROWS for (int m = 0; m < M; ++m) out[m][at + r] = sums[r][m]; }
}

template <int M, class V>
EBM_HD void multiply(const float* w, int64_t row_stride, int64_t stride, const float* initial, const Rows<V> (&in)[M], int64_t size,
                     const Rows<V> (&out)[M], int64_t rows) {
    constexpr int kMany = kProductSums / M;
    int64_t r = 0;
    for (; r + kMany <= rows; r += kMany) multiply_rows<kMany>(w, row_stride, stride, initial, in, size, out, r);
    for (; r + 8 <= rows; r += 8) multiply_rows<8>(w, row_stride, stride, initial, in, size, out, r);
    for (; r + 4 <= rows; r += 4) multiply_rows<4>(w, row_stride, stride, initial, in, size, out, r);
    for (; r < rows; ++r) multiply_rows<1>(w, row_stride, stride, initial, in, size, out, r);
}

#if !defined(__CUDACC__)

// out[j] = initial[j] + Σ_k w[k · columns + j] in[k] with j in the lanes of R vectors, of which the last may be cut short.
template <int R>
EBM_HD void multiply_columns(const float* w, const float* initial, const float* in, int64_t size, float* out, int64_t columns, int64_t at) {
    const int64_t left = columns - at - (R - 1) * kLanes;
    const int some = left < kLanes ? static_cast<int>(left) : 0;
    const auto read = [&](const float* from, int r) { return some && r == R - 1 ? load_some(from, some) : load<F32>(from); };
    F32 sums[R];
    EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) sums[r] = initial ? read(initial + at + r * kLanes, r) : F32{};
    w += at;
    for (int64_t k = 0; k < size; ++k, w += columns) {
        EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) sums[r] = multiply_add(in[k], read(w + r * kLanes, r), sums[r]);
    }
    EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) {
        if (some && r == R - 1) {
            store_some(out + at + r * kLanes, sums[r], some);
        } else {
            store(out + at + r * kLanes, sums[r]);
        }
    }
}

EBM_HD void multiply_columns(const float* w, const float* initial, const float* in, int64_t size, float* out, int64_t columns) {
    int64_t at = 0;
    for (; at + 8 * kLanes <= columns; at += 8 * kLanes) multiply_columns<8>(w, initial, in, size, out, columns, at);
    for (; at < columns; at += kLanes) multiply_columns<1>(w, initial, in, size, out, columns, at);
}

#endif

// h = a(z) in place of z, and slopes = a'(z).
template <class V, class Function>
EBM_HD void activate(const Function& function, Rows<V> z, Rows<V> slopes, int64_t width) {
    for (int64_t j = 0; j < width; ++j) {
        V d[kDerivatives];
        function(z[j], d);
        z[j] = d[0];
        slopes[j] = d[1];
    }
}

template <class V>
EBM_HD void activate(Activation activation, float parameter, Rows<V> z, Rows<V> slopes, int64_t width) {
    switch (activation) {
        case Activation::sigmoid: return activate(SigmoidDerivatives{}, z, slopes, width);
        case Activation::softplus: return activate(SoftplusDerivatives{}, z, slopes, width);
        case Activation::silu: return activate(SiluDerivatives{}, z, slopes, width);
        case Activation::tanh: return activate(TanhDerivatives{}, z, slopes, width);
        case Activation::relu: return activate(ReluDerivatives{}, z, slopes, width);
        case Activation::gelu: return activate(GeluDerivatives{}, z, slopes, width);
        case Activation::elu: return activate(EluDerivatives{parameter}, z, slopes, width);
        case Activation::leaky_relu: return activate(LeakyReluDerivatives{parameter}, z, slopes, width);
    }
}

// Of M groups of chains. `work` has room for M times the network's num_numbers.
template <bool kEnergy, bool kGrad, int M, class V>
EBM_HD void evaluate_perceptron(const PerceptronParams& p, const Rows<V> (&x)[M], const Rows<V> (&grad)[M], Rows<V> work,
                                LaneSum<V>* energy) {
    const int last = p.num_hidden_layers;
    // Of each hidden layer a row of slopes and one of values; the values' rows take ∂E/∂h on the way back.
    Rows<V> h[M], u[M];
    int64_t begin[kMaxHiddenLayers + 2] = {};
    for (int l = 0; l < last; ++l) begin[l + 1] = begin[l] + 2 * M * p.widths[l + 1];
    const auto place = [&](int l, int m, int row) { return work.from(begin[l - 1] + (2 * m + row) * p.widths[l]); };
    const auto product = [&](const float* w, int64_t row_stride, int64_t stride, const uint32_t* tiles, const float* initial,
                             const Rows<V>(&in)[M], int64_t size, const Rows<V>(&out)[M], int64_t rows) {
#if !defined(__CUDACC__)
        if (tiles) return multiply_bfloat16(p.products, tiles, initial, in, size, out, rows, work.from(begin[last]));
#endif
        multiply(w, row_stride, stride, initial, in, size, out, rows);
    };
    for (int m = 0; m < M; ++m) h[m] = x[m];
    for (int l = 0; l < last; ++l) {
        const int64_t width = p.widths[l + 1];
        Rows<V> z[M];
        for (int m = 0; m < M; ++m) z[m] = place(l + 1, m, 1);
        product(p.weights[l], p.widths[l], int64_t(1), p.tiles[l], p.biases[l], h, p.widths[l], z, width);
        for (int m = 0; m < M; ++m) {
            activate(p.activations[l], p.parameters[l], z[m], place(l + 1, m, 0), width);
            h[m] = z[m];
        }
    }
    const float* weight = p.weights[last];
    const int64_t width = p.widths[last];
    if (kEnergy) {
        for (int m = 0; m < M; ++m) {
            V sum = p.biases[last] ? V{} + p.biases[last][0] : V{};
            for (int64_t k = 0; k < width; ++k) sum = multiply_add(weight[k], h[m][k], sum);
            energy[m] = LaneSum<V>();
            energy[m].add(sum * p.sign);
        }
    }
    if constexpr (kGrad) {
        for (int m = 0; m < M; ++m) {
            u[m] = last == 0 ? grad[m] : place(last, m, 1);
            for (int64_t k = 0; k < width; ++k) u[m][k] = V{} + weight[k] * p.sign;
        }
        for (int l = last; l > 0; --l) {
            Rows<V> below[M];
            for (int m = 0; m < M; ++m) {
                const Rows<V> slopes = place(l, m, 0);
                for (int64_t k = 0; k < p.widths[l]; ++k) u[m][k] = u[m][k] * slopes[k];
                below[m] = l == 1 ? grad[m] : place(l - 1, m, 1);
            }
            product(p.weights[l - 1], int64_t(1), p.widths[l - 1], p.transposed_tiles[l - 1], nullptr, u, p.widths[l], below,
                    p.widths[l - 1]);
            for (int m = 0; m < M; ++m) u[m] = below[m];
        }
    }
}

#if !defined(__CUDACC__)

// Of one chain, with units in lanes: to the same bits. x and grad are (widths[0],); `work` has room for the network's num_numbers and a
// vector more.
template <bool kEnergy, bool kGrad>
EBM_HD float evaluate_perceptron(const PerceptronParams& p, const float* x, float* grad, float* work) {
    const int last = p.num_hidden_layers;
    float* values[kMaxHiddenLayers + 1];
    float* slopes[kMaxHiddenLayers + 1];
    const float* h = x;
    for (int l = 0; l < last; ++l) {
        const int64_t width = p.widths[l + 1], padded = (width + kLanes - 1) / kLanes * kLanes;
        values[l + 1] = work;
        slopes[l + 1] = work + padded;
        work += 2 * padded;
        for (int64_t j = width; j < padded; ++j) values[l + 1][j] = 0.0f;
        multiply_columns(p.transposed[l], p.biases[l], h, p.widths[l], values[l + 1], width);
        const Rows<F32> z{reinterpret_cast<F32*>(values[l + 1]), 1}, slope{reinterpret_cast<F32*>(slopes[l + 1]), 1};
        activate(p.activations[l], p.parameters[l], z, slope, padded / kLanes);
        h = values[l + 1];
    }
    float energy = 0.0f;
    const float* weight = p.weights[last];
    const int64_t width = p.widths[last];
    if (kEnergy) {
        F32 sum = p.biases[last] ? F32{} + p.biases[last][0] : F32{};
        for (int64_t k = 0; k < width; ++k) sum = multiply_add(weight[k], F32{} + h[k], sum);
        energy = sum[0] * p.sign;
    }
    if (!kGrad) return energy;
    float* u = last == 0 ? grad : values[last];
    for (int64_t k = 0; k < width; ++k) u[k] = weight[k] * p.sign;
    for (int l = last; l > 0; --l) {
        for (int64_t k = 0; k < p.widths[l]; ++k) u[k] *= slopes[l][k];
        float* below = l == 1 ? grad : values[l - 1];
        multiply_columns(p.weights[l - 1], nullptr, u, p.widths[l], below, p.widths[l - 1]);
        u = below;
    }
    return energy;
}

#endif

EBM_END
