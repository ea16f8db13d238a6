// Replica exchange.
#include "../../kernels/swaps.h"

#include "../launch.h"

EBM_BEGIN

#if defined(__CUDACC__)
namespace {

constexpr int kTeam = 32;  // threads that share a chain

__global__ void __launch_bounds__(kThreads) run_swaps(SwapReplicas body) {
    const int64_t total = body.p.num_chains, stride = static_cast<int64_t>(gridDim.x) * (kThreads / kTeam);
    const int lane = threadIdx.x % kTeam;
    for (int64_t chain = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kTeam; chain < total; chain += stride) {
        double lower = lane == 0 ? body.energy(chain * body.p.num_temperatures) : 0.0;
        for (int64_t r = 0; r + 1 < body.p.num_temperatures; ++r) {
            const int is_swapped = lane == 0 ? body.judge(chain, r, lower) : 0;
            if (__shfl_sync(0xffffffffu, is_swapped, 0)) body.exchange<kTeam>(chain, r, lane);
        }
        if (lane == 0) body.settle(chain);
    }
}

}  // namespace

Status swap_replicas(const SwapReplicasParams& p) {
    return launch(p.place, p.num_chains * kTeam,
                  [&](unsigned grid, cudaStream_t on) { run_swaps<<<grid, kThreads, 0, on>>>(SwapReplicas{p}); });
}

#else

Status swap_replicas(const SwapReplicasParams& p) {
    int64_t numbers = 0;
    for (int i = 0; i < p.num_fields; ++i) numbers += p.fields[i].row_size;
    return for_each_chain(SwapReplicas{p}, p.num_chains, 1 + 50000 / (p.num_temperatures * (numbers + 50)), 0, nullptr, p.place);
}

#endif

EBM_END
