#pragma once

#include "types.h"

namespace ebm {

// Metropolis' rule for proposed states: accepted with probability min(1, exp(E - E' + log correction)). Rows of x, energies and grad become
// the proposal's where it is accepted.
struct MetropolisAcceptParams {
    void* x;                        // (num_chains, dim), float32 or float64, in place
    void* energies;                 // (num_chains,), float32 or float64, in place
    void* grad;                     // as x, in place; null: there is none
    const void* new_x;              // as x
    const void* new_energies;       // as energies
    const void* new_grad;           // as grad
    const double* log_corrections;  // (num_chains,); null: 0, or that of a Langevin step
    const void* inverse_mass;       // (dim,) in the dtype of x, of a Langevin step; null: 1
    const int64_t* key;             // [seed, step, first_chain], where x is
    uint8_t* is_accepted;           // (num_chains,), written
    double* prob_sum;               // (num_chains,), added to
    int64_t* num_diverged;          // (num_chains,), added to: a proposal that is not finite
    int64_t num_chains;
    int64_t dim;
    double step_size;  // h of a Langevin step x' = x - h M⁻¹ ∇E + sqrt(2h M⁻¹) ξ, whose correction is then the log one; 0: none
    uint32_t stream;
    Dtype dtype;
    Dtype energy_dtype;
    Place place;
};

}  // namespace ebm
