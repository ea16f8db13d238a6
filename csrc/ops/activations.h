#pragma once

#include "types.h"

namespace ebm {

enum class Activation : int32_t { sigmoid, softplus, silu, tanh, relu };

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

}  // namespace ebm
