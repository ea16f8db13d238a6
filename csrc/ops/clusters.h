#pragma once

#include "types.h"

namespace ebm {

// num_steps steps of Swendsen & Wang (1987) on an Ising (int8 spins) or a Potts (uint8 tokens, couplings of equal values) model.
struct SwendsenWangParams {
    void* states;              // (num_chains, num_sites), in place
    const int64_t* key;        // [seed, step, first_chain], where `states` is
    const int64_t* edges;      // (num_edges, 2)
    const double* bond_probs;  // (num_edges,): that an edge is laid where it is satisfied; with the sign of the coupling for spins
    const double* fields;      // (num_sites,) of spins, (num_sites, num_categories) of tokens; null: none
    int64_t* num_flips;        // (num_chains,), sites that changed
    void* workspace;           // CUDA: num_chains times swendsen_wang_scratch bytes
    int64_t num_chains;
    int64_t num_sites;
    int64_t num_edges;
    int64_t num_steps;
    int64_t bond_stride;  // 0: all edges share their probability
    int32_t num_categories;
    Dtype dtype;            // int8: spins, uint8: tokens
    int64_t scratch_bytes;  // of one chain
    Place place;
};

}  // namespace ebm
