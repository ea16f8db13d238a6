#pragma once

#include "balancing.h"
#include "scan.h"
#include "scratch.h"
#include "types.h"

namespace ebm {

// E = -Σ_edges J s s' - Σ h s in integers: couplings and fields are multiples of `unit`, small enough that no site's field
// h_i + Σ_j J_ij s_j leaves int32.
struct IsingModel {
    const int64_t* offsets;     // (num_sites + 1,) into neighbours
    const int32_t* neighbours;  // ascending within a site
    const int32_t* couplings;   // beside neighbours; one for all if has_one_coupling
    const int32_t* field;       // (num_sites,); one for all if has_one_field
    const double* unit;
    int64_t num_sites;
    int64_t max_degree;
    bool has_one_coupling;
    bool has_one_field;
};

constexpr int kMaxLatticeDims = 3;

struct IsingGibbsParams {
    int8_t* spins;       // (num_chains, num_sites), -1 or +1, modified
    int64_t* num_flips;  // (num_chains,), added to; null: not wanted
    const int64_t* key;
    IsingModel model;
    const int32_t* order;            // (num_sites,) the sites in the order of a sweep; null: 0, 1, 2, ...
    const int64_t* colour_offsets;   // into order, ending with num_sites: no two sites between two of them are neighbours; or null
    int64_t sides[kMaxLatticeDims];  // of a torus with even sides, one coupling and one field, that has no neighbour lists
    int32_t num_dims;                // 0: neighbour lists; else a sweep updates the even sites, then the odd ones
    int64_t num_chains;
    int64_t num_steps;
    Scan scan;
    Place place;
};

// Scratch of a chain of ising_gwg: the tree, the field of each site, a field and a weight of each that a flip touches. The last vector
// of weights may run over.
static inline constexpr int64_t ising_gwg_scratch_bytes(const IsingModel& m) {
    return sum_tree_bytes(m.num_sites, m.max_degree + 1) + round_up_64(4 * (m.num_sites + 2 * m.max_degree + 1 + 16));
}

// Random-site Metropolis and Gibbs-with-Gradients.
struct IsingChainParams {
    int8_t* spins;
    bool* is_accepted;        // (num_chains,), of the last step
    double* acceptance_sums;  // (num_chains,), of probabilities
    int64_t* num_flips;       // (num_chains,)
    const int64_t* key;
    IsingModel model;
    int64_t num_chains;
    int64_t num_steps;
    Balancing balancing;
    void* workspace;  // CUDA: num_chains · ising_gwg_scratch_bytes
    Place place;
};

struct IsingEnergyParams {
    const int8_t* spins;
    double* energies;  // (num_chains,)
    int32_t* fields;   // (num_chains, num_sites), or null
    IsingModel model;
    int64_t sides[kMaxLatticeDims];
    int32_t num_dims;
    int64_t num_chains;
    Place place;
};

}  // namespace ebm
