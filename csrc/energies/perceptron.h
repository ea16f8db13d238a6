// The energy of a perceptron with one output, and its gradient: chains are lanes, and each weight is read where it lies, once for a block
// of chains. Products are fused multiply-adds in one order, so that every target that has them gives the same bits.
#pragma once

#include "../core/activations.h"
#include "../ops/perceptron.h"

EBM_BEGIN

#if defined(__CUDACC__)
constexpr int kRowsAtOnce = 8;
#elif defined(__AVX512F__)
constexpr int kRowsAtOnce = 28;  // sums that fit into the registers beside an input
#else
constexpr int kRowsAtOnce = 12;
#endif

// out[r] = initial[r] + Σ_k w[r · row_stride + k · stride] in[k], r < R.
template <int R, class F>
EBM_HD void multiply_rows(const float* w, int64_t row_stride, int64_t stride, const float* initial, const F* in, int64_t size, F* out) {
    F sums[R];
    EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) sums[r] = initial ? F{} + initial[r] : F{};
    for (int64_t k = 0; k < size; ++k) {
        const F value = in[k];
        const float* column = w + k * stride;
        EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) sums[r] = multiply_add(column[r * row_stride], value, sums[r]);
    }
    EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) out[r] = sums[r];
}

template <class F>
EBM_HD void multiply(const float* w, int64_t row_stride, int64_t stride, const float* initial, const F* in, int64_t size, F* out, int64_t rows) {
    int64_t r = 0;
    for (; r + kRowsAtOnce <= rows; r += kRowsAtOnce)
        multiply_rows<kRowsAtOnce>(w + r * row_stride, row_stride, stride, initial ? initial + r : nullptr, in, size, out + r);
    for (; r + 4 <= rows; r += 4) multiply_rows<4>(w + r * row_stride, row_stride, stride, initial ? initial + r : nullptr, in, size, out + r);
    for (; r < rows; ++r) multiply_rows<1>(w + r * row_stride, row_stride, stride, initial ? initial + r : nullptr, in, size, out + r);
}

// h = a(z) in place of z, and slopes = a'(z).
template <class F, class Function>
EBM_HD void activate(const Function& function, F* z, F* slopes, int64_t width) {
    for (int64_t j = 0; j < width; ++j) {
        F d[kDerivatives];
        function(z[j], d);
        z[j] = d[0];
        slopes[j] = d[1];
    }
}

template <class F>
EBM_HD void activate(Activation activation, float parameter, F* z, F* slopes, int64_t width) {
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

// Numbers of type F that `perceptron_energy` needs beside x and its gradient.
inline int64_t perceptron_scratch(const PerceptronParams& p) {
    int64_t sum = 0;
    for (int l = 1; l <= p.num_hidden_layers; ++l) sum += 2 * p.widths[l];
    return sum;
}

// E and ∇E at x (widths[0],); grad likewise.
template <class F>
EBM_HD F perceptron_energy(const PerceptronParams& p, const F* x, F* grad, F* scratch) {
    const F* h = x;
    F* slopes = scratch;
    for (int l = 0; l < p.num_hidden_layers; ++l) {
        const int64_t width = p.widths[l + 1];
        F* z = slopes + width;
        multiply(p.weights[l], p.widths[l], int64_t(1), p.biases[l], h, p.widths[l], z, width);
        activate(p.activations[l], p.parameters[l], z, slopes, width);
        h = z;
        slopes = z + width;
    }
    const int last = p.num_hidden_layers;
    F energy;
    multiply_rows<1>(p.weights[last], p.widths[last], int64_t(1), p.biases[last], h, p.widths[last], &energy);
    // The hidden layers' places, last first, take u = ∂E/∂h and then ∂E/∂z.
    F* u = last == 0 ? grad : slopes - p.widths[last];
    for (int64_t k = 0; k < p.widths[last]; ++k) u[k] = F{} + p.weights[last][k] * p.sign;
    for (int l = last; l > 0; --l) {
        const int64_t width = p.widths[l], width_below = p.widths[l - 1];
        const F* slope = u - width;
        for (int64_t k = 0; k < width; ++k) u[k] = u[k] * slope[k];
        F* below = l == 1 ? grad : u - width - width_below;
        multiply(p.weights[l - 1], int64_t(1), width_below, nullptr, u, width, below, width_below);
        u = below;
    }
    return energy * p.sign;
}

EBM_END
