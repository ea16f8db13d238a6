#pragma once

#include "activations.h"

namespace ebm {

constexpr int kMaxHiddenLayers = 8;

// E(x) = sign · (w_{L+1} · h_L + b_{L+1}), h_l = a_l(W_l h_{l-1} + b_l), h_0 = x.
struct PerceptronParams {
    const float* weights[kMaxHiddenLayers + 1];  // (widths[l + 1], widths[l]), contiguous
    // Of each hidden layer, (widths[l], widths[l + 1]), contiguous: given for a few chains, whose units are lanes then; else null.
    const float* transposed[kMaxHiddenLayers];
    const float* biases[kMaxHiddenLayers + 1];  // (widths[l + 1],), or null for 0
    int64_t widths[kMaxHiddenLayers + 1];       // of x and of each hidden layer
    Activation activations[kMaxHiddenLayers];
    float parameters[kMaxHiddenLayers];  // alpha of ELU, slope of leaky ReLU below 0
    int32_t num_hidden_layers;
    float sign;
};

}  // namespace ebm
