#pragma once

#include "balancing.h"
#include "scratch.h"
#include "types.h"

namespace ebm {

// Weights of changes are summed in kSumLanes running sums, each over kSumDepth elements at a time: a chunk. No instruction set changes
// that.
constexpr int64_t kSumLanes = 16, kSumDepth = 16, kSumChunk = kSumLanes * kSumDepth;

// Draws changes with probability ∝ g(exp(differences)): num_draws independent ones, or of different sites.
struct ProposeFlipsParams {
    int64_t* index;           // (num_chains, num_draws), into the changes of a chain
    double* log_q;            // (num_chains,), the log-probability of all draws together
    const void* differences;  // (num_chains, num_sites, num_categories); -inf: never drawn
    const int64_t* key;       // [seed, step, first_chain], where `differences` is
    void* workspace;          // CUDA: num_chains · flip_scratch_bytes
    int64_t num_chains;
    int64_t num_sites;
    int64_t num_categories;  // 1: a site has one other value, and `differences` no axis for it
    int64_t num_draws;
    bool with_replacement;
    uint32_t stream;
    Balancing balancing;
    Dtype dtype;  // of differences
    Place place;
};

// Accepts or rejects what was proposed, by Metropolis and Hastings. Rows that accept take over the new energy and differences.
struct AcceptFlipsParams {
    void* energy;                 // (num_chains,)
    void* differences;            // (num_chains, num_sites, num_categories)
    const void* new_energy;       // as energy
    const void* new_differences;  // as differences
    const int64_t* back;          // (num_chains, num_draws), the changes that lead back
    const double* log_q;          // (num_chains,)
    const int64_t* key;
    void* workspace;
    uint8_t* is_accepted;     // (num_chains,) bool
    uint8_t* is_diverged;     // (num_chains,) bool
    double* acceptance_prob;  // (num_chains,)
    int64_t num_chains;
    int64_t num_sites;
    int64_t num_categories;
    int64_t num_draws;
    bool with_replacement;
    uint32_t stream;
    Balancing balancing;
    Dtype dtype;  // of energies and differences
    Place place;
};

// Draws every site anew, each by itself, ∝ exp(difference / 2 - penalty of a change).
struct ProposeLangevinParams {
    void* proposed;           // (num_chains, num_sites): bool, whether a site changes; of tokens their new values, typed as `tokens`
    double* log_q;            // (num_chains,)
    const void* differences;  // (num_chains, num_sites, num_categories)
    const void* tokens;       // (num_chains, num_sites), uint8 or int64; null where num_categories is 1
    const int64_t* key;
    int64_t num_chains;
    int64_t num_sites;
    int64_t num_categories;
    double penalty;
    uint32_t stream;
    Dtype dtype;
    Dtype token_dtype;
    Place place;
};

struct AcceptLangevinParams {
    void* energy;
    void* differences;
    const void* new_energy;
    const void* new_differences;
    const void* proposed;  // as above
    const void* tokens;    // the old ones
    const double* log_q;
    const int64_t* key;
    uint8_t* is_accepted;
    uint8_t* is_diverged;
    double* acceptance_prob;
    int64_t num_chains;
    int64_t num_sites;
    int64_t num_categories;
    double penalty;
    bool metropolis;  // false: accepted unless it is not finite
    uint32_t stream;
    Dtype dtype;
    Dtype token_dtype;
    Place place;
};

// Of a chain, for flips: sums of chunks, and a copy of the differences where sites are struck out.
static inline constexpr int64_t flip_scratch_bytes(int64_t num_changes, int64_t element_size, bool with_replacement) {
    int64_t chunks = (num_changes + kSumChunk - 1) / kSumChunk;
    int64_t copy = with_replacement ? 0 : num_changes;
    return round_up_64((chunks * kSumLanes + copy) * element_size);
}

}  // namespace ebm
