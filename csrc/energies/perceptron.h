// The energy of a perceptron with one output, and its gradient. Products are fused multiply-adds in one order: every target that has them
// gives the same bits, however many groups of chains there are and wherever the weights lie.
#pragma once

#include "../core/activations.h"
#include "bfloat16_products.h"
#include "energy.h"

EBM_BEGIN

#if defined(__CUDACC__)
#define EBM_APART EBM_HD
#elif defined(__clang__)
#define EBM_APART static __attribute__((noinline))
#else
#define EBM_APART static __attribute__((noinline, optimize("no-schedule-insns")))  // its scheduler leaves no register for some of the sums
#endif

#if defined(__AVX512F__)
constexpr int kProductSums = 24;  // what fits into the registers beside the inputs
#else
constexpr int kProductSums = 12;
#endif

template <int kCount>
struct Count {
    static constexpr int value = kCount;
};

// Element (r, k) lies at at[r / kPanelRows * panel_stride + r % kPanelRows * row_stride + k * stride]; one of row_stride and stride is 1.
struct Matrix {
    const float* at;
    int64_t row_stride, stride, panel_stride;
};

// out[m][at + r] = initial[at + r] + Σ_k w(r, k) in[m][k], r < R.
template <int R, int M, bool kAreRowsAdjacent, class V>
EBM_APART void multiply_rows(const Matrix& matrix, const float* w, const float* initial, const Rows<V>* in, int64_t size,
                             const Rows<V>* out, int64_t at) {
    const int64_t row_stride = kAreRowsAdjacent ? 1 : matrix.row_stride, stride = kAreRowsAdjacent ? matrix.stride : 1;
    V sums[R][M];
    Rows<V> from[M], to[M];
    EBM_UNROLL_ROWS for (int m = 0; m < M; ++m) {
        from[m] = in[m];
        to[m] = out[m].from(at);
    }
    EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) {
        EBM_UNROLL_ROWS for (int m = 0; m < M; ++m) sums[r][m] = initial ? V{} + initial[at + r] : V{};
    }
    for (int64_t k = 0; k < size; ++k, w += stride) {
        V values[M];
        EBM_UNROLL_ROWS for (int m = 0; m < M; ++m) values[m] = from[m][k];
        EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) {
            EBM_UNROLL_ROWS for (int m = 0; m < M; ++m) sums[r][m] = multiply_add(w[r * row_stride], values[m], sums[r][m]);
        }
    }
    EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) { EBM_UNROLL_ROWS for (int m = 0; m < M; ++m) to[m][r] = sums[r][m]; }
}

// Rows [at, at + rows) of M groups of chains; rows <= kPanelRows.
template <int M, bool kAreRowsAdjacent, class V>
EBM_HD void multiply_panel(const Matrix& matrix, const float* w, const float* initial, const Rows<V>* in, int64_t size, const Rows<V>* out,
                           int64_t at, int64_t rows) {
    constexpr int kMany = kProductSums / M < kPanelRows ? kProductSums / M : kPanelRows;
    const int64_t row_stride = kAreRowsAdjacent ? 1 : matrix.row_stride;
    int64_t r = 0;
    const auto take = [&](auto count) {
        constexpr int R = decltype(count)::value;
        for (; r + R <= rows; r += R) multiply_rows<R, M, kAreRowsAdjacent>(matrix, w + r * row_stride, initial, in, size, out, at + r);
    };
    take(Count<kMany>{});
    if constexpr (kMany > 8) take(Count<8>{});
    take(Count<4>{});
    take(Count<1>{});
}

template <bool kAreRowsAdjacent, class V>
EBM_HD void multiply_with(const Matrix& w, const float* initial, int count, const Rows<V>* in, int64_t size, const Rows<V>* out,
                          int64_t rows) {
    for (int64_t at = 0; at < rows; at += kPanelRows) {
        const float* panel = w.at + at / kPanelRows * w.panel_stride;
        const int64_t left = rows - at < kPanelRows ? rows - at : kPanelRows;
        int g = 0;
        for (; g + 2 <= count; g += 2) multiply_panel<2, kAreRowsAdjacent>(w, panel, initial, in + g, size, out + g, at, left);
        if (g < count) multiply_panel<1, kAreRowsAdjacent>(w, panel, initial, in + g, size, out + g, at, left);
    }
}

// out[g] = initial + w in[g] for `count` groups of chains: two of them read a weight together, and all of them while its panel is near.
template <class V>
EBM_HD void multiply(const Matrix& w, const float* initial, int count, const Rows<V>* in, int64_t size, const Rows<V>* out, int64_t rows) {
    if (w.row_stride == 1) return multiply_with<true>(w, initial, count, in, size, out, rows);
    multiply_with<false>(w, initial, count, in, size, out, rows);
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

namespace {  // what a lambda in here becomes is no symbol that objects share

// Of `count` groups of chains, whose rows of x and grad start widths[0] elements after one another. `work` has room for `count` times the
// network's num_numbers.
template <bool kEnergy, bool kGrad, int kMostGroups, class V>
EBM_HD void evaluate_perceptron(const PerceptronParams& p, int count, Rows<V> x, Rows<V> grad, Rows<V> work, LaneSum<V>* energy) {
    const int last = p.num_hidden_layers;
    // Of each hidden layer a row of slopes and one of values; the values' rows take ∂E/∂h on the way back.
    Rows<V> h[kMostGroups], next[kMostGroups];
    int64_t begin[kMaxHiddenLayers + 2] = {};
    for (int l = 0; l < last; ++l) begin[l + 1] = begin[l] + 2 * count * p.widths[l + 1];
    const auto place = [&](int l, int g, int row) { return work.from(begin[l - 1] + (2 * g + row) * p.widths[l]); };
    const auto product = [&](const Matrix& w, const uint32_t* tiles, const float* initial, int64_t size, int64_t rows) {
#if !defined(__CUDACC__)
        if (tiles) return multiply_bfloat16(p.products, tiles, initial, count, h, size, next, rows, work.from(begin[last]));
#endif
        multiply(w, initial, count, h, size, next, rows);
    };
    for (int g = 0; g < count; ++g) h[g] = x.from(g * p.widths[0]);
    for (int l = 0; l < last; ++l) {
        const int64_t size = p.widths[l], width = p.widths[l + 1];
        for (int g = 0; g < count; ++g) next[g] = place(l + 1, g, 1);
        const Matrix w =
            p.panels[l] ? Matrix{p.panels[l], 1, kPanelRows, kPanelRows * size} : Matrix{p.weights[l], size, 1, kPanelRows * size};
        product(w, p.tiles[l], p.biases[l], size, width);
        for (int g = 0; g < count; ++g) {
            activate(p.activations[l], p.parameters[l], next[g], place(l + 1, g, 0), width);
            h[g] = next[g];
        }
    }
    const float* weight = p.weights[last];
    const int64_t width = p.widths[last];
    if (kEnergy) {
        for (int g = 0; g < count; ++g) {
            V sum = p.biases[last] ? V{} + p.biases[last][0] : V{};
            for (int64_t k = 0; k < width; ++k) sum = multiply_add(weight[k], h[g][k], sum);
            energy[g] = LaneSum<V>();
            energy[g].add(sum * p.sign);
        }
    }
    if constexpr (kGrad) {
        for (int g = 0; g < count; ++g) {
            h[g] = last == 0 ? grad.from(g * p.widths[0]) : place(last, g, 1);
            for (int64_t k = 0; k < width; ++k) h[g][k] = V{} + weight[k] * p.sign;
        }
        for (int l = last; l > 0; --l) {
            const int64_t size = p.widths[l], below = p.widths[l - 1];
            for (int g = 0; g < count; ++g) {
                const Rows<V> slopes = place(l, g, 0);
                for (int64_t k = 0; k < size; ++k) h[g][k] = h[g][k] * slopes[k];
                next[g] = l == 1 ? grad.from(g * below) : place(l - 1, g, 1);
            }
            const Matrix w = p.panels[l - 1] ? Matrix{p.transposed_panels[l - 1], 1, kPanelRows, kPanelRows * size}
                                             : Matrix{p.weights[l - 1], 1, below, kPanelRows};
            product(w, p.transposed_tiles[l - 1], nullptr, size, below);
            for (int g = 0; g < count; ++g) h[g] = next[g];
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

}  // namespace
EBM_END
