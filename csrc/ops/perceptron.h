#pragma once

#include "activations.h"

namespace ebm {

constexpr int kMaxHiddenLayers = 8;
constexpr int kPanelRows = 12;

// How products in bfloat16 are made.
enum class Bfloat16Products : int32_t {
    emulated,     // float32 products of the rounded numbers
    avx512_bf16,  // the AVX-512 target alone, as amx
    amx,
};

// E(x) = sign · (w_{L+1} · h_L + b_{L+1}), h_l = a_l(W_l h_{l-1} + b_l), h_0 = x.
struct PerceptronParams {
    const float* weights[kMaxHiddenLayers + 1];  // (widths[l + 1], widths[l]), contiguous
    // Of each hidden layer, each null if not given. (widths[l], widths[l + 1]), contiguous, for a few chains, whose units are lanes then.
    const float* transposed[kMaxHiddenLayers];
    // Panels of kPanelRows rows, column after column, of the weights and of the transposed ones: for many steps, which read them faster.
    const float* panels[kMaxHiddenLayers];
    const float* transposed_panels[kMaxHiddenLayers];
    // In the tiles of csrc/energies/bfloat16_products.h, for products in bfloat16.
    const uint32_t* tiles[kMaxHiddenLayers];
    const uint32_t* transposed_tiles[kMaxHiddenLayers];
    const float* biases[kMaxHiddenLayers + 1];  // (widths[l + 1],), or null for 0
    int64_t widths[kMaxHiddenLayers + 1];       // of x and of each hidden layer
    Activation activations[kMaxHiddenLayers];
    float parameters[kMaxHiddenLayers];  // alpha of ELU, slope of leaky ReLU below 0
    int32_t num_hidden_layers;
    Bfloat16Products products;
    float sign;
};

}  // namespace ebm
