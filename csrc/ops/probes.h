#pragma once

#include "types.h"

namespace ebm {

// Element e of probe p of chain i is the draw of (seed, step + p, first_chain + i, e, stream): a sign, or a standard normal.
enum class ProbeLaw : int32_t { rademacher, gaussian };

struct ProbeParams {
    void* out;           // (num_probes, num_chains, dim), contiguous; of probe_dot (num_probes, num_chains)
    const void* other;   // contiguous: u of probe_dot, shaped as the probes; g of probe_scale, (num_probes, num_chains)
    const int64_t* key;  // [seed, step, first_chain], where `out` is
    int64_t num_probes;
    int64_t num_chains;
    int64_t dim;
    bool is_shared;  // probe_dot: u is (num_chains, dim), one for all probes
    ProbeLaw law;
    uint32_t stream;
    Dtype dtype;
    Place place;
};

}  // namespace ebm
