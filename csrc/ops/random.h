#pragma once

#include "types.h"

namespace ebm {

// out[i, e] = draw(seed, step, first_chain + i, first_block + block of e, stream); see core/philox.h.
struct FillParams {
    void* out;           // (num_chains, dim), contiguous
    const int64_t* key;  // [seed, step, first_chain], where `out` is
    int64_t num_chains;
    int64_t dim;
    int64_t first_block;
    uint32_t stream;
    uint32_t threshold;  // Bernoulli: probability · 2^32
    Dtype dtype;
    Place place;
};

}  // namespace ebm
