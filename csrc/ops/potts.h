#pragma once

#include "balancing.h"
#include "scan.h"
#include "scratch.h"
#include "types.h"

namespace ebm {

// num_steps steps of chains of E = -unit · (Σ_i fields[i][x_i] + Σ_{i<j} coupling_ij(x_i, x_j)) in integers: sums of them are the same
// in any order, and a field that is updated for ever does not drift. No field or difference of fields overflows.
struct PottsParams {
    uint8_t* states;            // (num_chains, num_sites), in place
    const int64_t* key;         // [seed, step, first_chain], where `states` is
    const int64_t* offsets;     // (num_sites + 1,), the entries of a site
    const int32_t* neighbours;  // (num_entries,), the site j of an entry of site i
    const int32_t* couplings;  // of an entry: one number, gained where x_i == x_j; with is_table a table [x_j][x_i]. Tables are followed by
                               // 16 more numbers, of any value
    const int32_t* reverse;    // (num_entries,), the entry of site j that leads back to i; only with tables of their own
    const int32_t* fields;     // (num_sites, num_categories), followed by 16 more numbers
    const double* unit;        // (1,)
    const int32_t* order;      // (num_sites,), for Scan::checkerboard
    bool* is_accepted;         // (num_chains,), of the last step; null for Gibbs
    double* acceptance_prob;   // (num_chains,), mean over the steps; null for Gibbs
    int64_t* num_flips;        // (num_chains,)
    void* workspace;           // CUDA, potts_gwg: num_chains times the scratch of a chain
    int64_t num_chains;
    int64_t num_sites;
    int64_t num_steps;
    int64_t max_degree;
    int64_t coupling_stride;  // numbers of an entry; 0: all entries share theirs
    int32_t num_categories;
    bool is_table;
    bool is_bounded;  // no two fields of a site differ by more than 80 / unit
    Scan scan;
    Balancing balancing;
    Place place;
};

// Numbers of a site: of its categories, and what fills them up to vectors.
static inline constexpr int potts_row(int num_categories) { return num_categories <= 4 ? 4 : (num_categories + 15) / 16 * 16; }

// Scratch of a chain of potts_gwg: the tree, and the fields of every site.
static inline constexpr int64_t potts_gwg_scratch_bytes(int64_t num_sites, int32_t num_categories, int64_t max_degree) {
    return sum_tree_bytes(num_sites, max_degree + 1) + round_up_64(4 * num_sites * potts_row(num_categories));
}

}  // namespace ebm
