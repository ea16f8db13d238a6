#pragma once

#include "perceptron.h"

namespace ebm {

enum class EnergyKind : int32_t {
    perceptron,
#define EBM_ENERGY(name, Functor) name,
#include "energies.def"
#undef EBM_ENERGY
};

constexpr int kMaxParts = 4;  // of a sum of energies

// A native energy: what E is a formula of lies in `constants`, in the chains' dtype, where they are; a perceptron's parameters lie where
// its owner has them.
struct EnergyParams {
    const void* constants;
    int64_t dim;
    int64_t num_components;  // of sums; else 0
    int64_t num_chains;      // of the call
    EnergyKind kind;
    PerceptronParams perceptron;  // float32 alone
};

// num_steps steps of a chain for each row of x, in one call, on E = factor · Σ weight_k E_k. A number of this struct that a sampler does
// not use is not read.
struct DynamicsParams {
    EnergyParams parts[kMaxParts];
    double weights[kMaxParts];
    int32_t num_parts;
    const void* factors;    // (num_chains,) in the dtype of x; null: 1
    void* x;                // (num_chains, dim), float32 or float64, changed in place
    void* momentum;         // kinetic Langevin: as x
    void* energies;         // (num_chains,) in the dtype of x, written: E at the end
    void* grad;             // as x, written: ∇E at the end; null: not wanted
    uint8_t* is_accepted;   // (num_chains,), written: the last step
    double* acceptance;     // (num_chains,), written: summed over the steps
    int64_t* num_diverged;  // (num_chains,), written: proposals that were not finite
    const void* drift;      // (dim,) in the dtype of x: what a sampler multiplies ∇E by, or momenta
    const void* noise;      // (dim,) in the dtype of x: what it multiplies normals by
    const int64_t* key;     // [seed, step, first_chain] of the first step
    int64_t num_chains;
    int64_t dim;
    int64_t num_components;  // the most of any part
    int64_t num_steps;
    int64_t num_leapfrog;
    double step_size;
    double noise_std;  // Langevin; 0: no noise is drawn
    double clip_grad;  // +inf: no clipping
    double clamp_min;  // -inf, +inf: no clamp
    double clamp_max;
    double decay;   // of momenta in a step
    double jitter;  // HMC: steps are step_size · (1 + jitter · (2u - 1))
    uint32_t proposal_stream;
    uint32_t acceptance_stream;
    uint32_t jitter_stream;
    void* workspace;  // CUDA: num_chains · dynamics_scratch numbers
    Dtype dtype;
    Place place;
};

// Numbers that a chain needs besides its state: five rows of elements, of a sum six, filled up to whole blocks of draws, and one of
// components.
constexpr int64_t dynamics_scratch(int64_t dim, int64_t num_components, int64_t num_parts) {
    return (num_parts > 1 ? 6 : 5) * ((dim + 3) / 4 * 4) + num_components;
}

}  // namespace ebm
