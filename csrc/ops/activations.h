#pragma once

#include "types.h"

namespace ebm {

enum class Activation : int32_t { sigmoid, softplus, silu, tanh, relu, gelu, elu, leaky_relu };

constexpr int32_t kMaxDerivative = 4;

// Derivatives of order first, ..., first + count - 1 <= kMaxDerivative, element by element.
struct ActivationParams {
    float* out;            // (count, size), contiguous; of activation_derivatives_dot (size,)
    const float* x;        // (size,)
    const float* weights;  // activation_derivatives_dot: (count, size), contiguous
    int64_t size;
    int32_t first;
    int32_t count;
    Activation activation;
    Place place;
};

// One hidden layer in forward mode: rows[0] = a(rows[0] + bias), and the tangents that follow times a' at the same points.
struct ActivationTangentsParams {
    float* rows;        // (1 + num_tangents, num_chains, dim), contiguous
    float* slopes;      // (num_chains, dim), written: a'; or null
    const float* bias;  // (dim,) or null
    int64_t num_chains;
    int64_t dim;
    int64_t num_tangents;
    Activation activation;
    Place place;
};

}  // namespace ebm
