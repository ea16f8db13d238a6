#pragma once

#include "balancing.h"
#include "types.h"

namespace ebm {

// out = 1 with probability sigmoid(scale · logits + bias), else 0.
struct SigmoidBernoulliParams {
    float* out;           // (num_chains, dim), contiguous; may be logits
    const float* logits;  // (num_chains, dim), contiguous
    const float* bias;    // (dim,)
    const int64_t* key;   // [seed, step, first_chain], where `out` is
    int64_t num_chains;
    int64_t dim;
    float scale;
    uint32_t stream;
    Place place;
};

// out = sum over a row of ln(1 + exp(scale · logits + bias)).
struct SoftplusSumParams {
    double* out;          // (num_chains,)
    const float* logits;  // (num_chains, dim), contiguous
    const float* bias;    // (dim,)
    int64_t num_chains;
    int64_t dim;
    float scale;
    Place place;
};

// Columns of a chain's record in RbmGwgParams. The caller reads the first three: 1 if the last flip was accepted, the sum of the
// probabilities of acceptance, and the flips accepted.
constexpr int64_t kRbmRecord = 32;

// Between two products with the transposed weights: accept or undo the flip that was proposed before, and propose the next. num_visible
// and num_hidden are multiples of kRbmChunk; in places that fill rows up, states, weight and hidden bias are 0, visible_bias is -3e38.
constexpr int64_t kRbmChunk = 16;
struct RbmGwgParams {
    float* states;              // (num_chains, num_visible), 0 or 1
    int32_t* inputs;            // (num_chains, num_hidden), b + vW in multiples of `unit`
    float* means;               // (num_chains, num_hidden), written: sigmoid of the inputs
    const float* pulls;         // (num_chains, num_visible), means · Wᵀ at the states as they come in
    float* balanced;            // (num_chains, 2, num_visible), own
    double* records;            // (num_chains, kRbmRecord), own; all 0 before the first call
    const int32_t* weight;      // (num_visible, num_hidden) in multiples of `unit`
    const float* visible_bias;  // (num_visible,)
    const int64_t* key;         // [seed, step, first_chain] of step 0
    int64_t num_chains;
    int64_t num_visible;
    int64_t num_hidden;
    int64_t step;  // to be proposed; -1: only the means of the start; num_steps: only accept or undo
    int64_t num_steps;
    float unit;
    Balancing balancing;
    uint32_t proposal_stream;
    uint32_t acceptance_stream;
    Place place;
};

// Whole chains of small machines. Rows over visible or hidden units that are said to be tiled are filled up to a multiple of kRbmTile:
// weights with 0, biases with -3e38.
constexpr int64_t kRbmTile = 8;

// num_steps steps of block Gibbs.
struct RbmGibbsParams {
    float* states;              // (num_chains, num_visible), 0 or 1
    int64_t* num_flips;         // (num_chains,), written: visible units that changed, summed over the steps
    const float* weight;        // (num_visible, num_hidden), tiled
    const float* transposed;    // (num_hidden, num_visible), tiled
    const float* visible_bias;  // (num_visible,), tiled
    const float* hidden_bias;   // (num_hidden,), tiled
    const int64_t* key;         // [seed, step, first_chain] of the first step
    int64_t num_chains;
    int64_t num_visible;
    int64_t num_hidden;
    int64_t num_steps;
    uint32_t hidden_stream;
    uint32_t visible_stream;
    void* workspace;  // CUDA: num_chains · rbm_scratch_bytes
    Place place;
};

// num_steps steps of Gibbs-with-Gradients.
struct RbmGwgChainsParams {
    float* states;              // (num_chains, num_visible), 0 or 1
    const int32_t* inputs;      // (num_chains, num_hidden), b + vW at the start in multiples of `unit`
    const int32_t* weight;      // (num_visible, num_hidden) in multiples of `unit`
    const float* transposed;    // (num_hidden, num_visible), tiled
    const float* visible_bias;  // (num_visible,), tiled
    const int64_t* key;         // [seed, step, first_chain] of the first step
    uint8_t* is_accepted;       // (num_chains,), written: the last step
    double* acceptance;         // (num_chains,), written: summed over the steps
    int64_t* num_flips;         // (num_chains,), written
    int64_t num_chains;
    int64_t num_visible;
    int64_t num_hidden;
    int64_t num_steps;
    float unit;
    Balancing balancing;
    uint32_t proposal_stream;
    uint32_t acceptance_stream;
    void* workspace;  // CUDA: num_chains · rbm_scratch_bytes
    Place place;
};

// Scratch of a chain, a multiple of 64: three rows of visible units and three of hidden ones.
constexpr int64_t rbm_scratch_bytes(int64_t num_visible, int64_t num_hidden) {
    return ((num_visible + kRbmTile) / kRbmTile + (num_hidden + kRbmTile) / kRbmTile) * 3 * kRbmTile * 4 / 64 * 64 + 64;
}

}  // namespace ebm
