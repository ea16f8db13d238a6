// Cluster updates.
#include "../../kernels/clusters.h"
#include "../launch.h"

EBM_BEGIN

Status swendsen_wang(const SwendsenWangParams& p) {
    const int64_t ns = 1 + p.num_steps * (p.num_edges + p.num_sites) * 4, grain = 1 + 50000 / ns;
    if (p.dtype == Dtype::int8) return for_each_chain(SwendsenWang<int8_t>{p}, p.num_chains, grain, p.scratch_bytes, p.workspace, p.place);
    return for_each_chain(SwendsenWang<uint8_t>{p}, p.num_chains, grain, p.scratch_bytes, p.workspace, p.place);
}

EBM_END
