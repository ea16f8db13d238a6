// Metropolis' rule.
#include "../../kernels/metropolis.h"

#include "../launch.h"

EBM_BEGIN
namespace {

#if defined(__CUDACC__)

// kNormLanes threads share a chain.
template <class Body>
__global__ void __launch_bounds__(kThreads) run_rule(Body body) {
    constexpr int kChains = kThreads / kNormLanes;
    const int64_t total = body.p.num_chains, stride = static_cast<int64_t>(gridDim.x) * kChains;
    const int lane = threadIdx.x % kNormLanes, slot = threadIdx.x / kNormLanes;
    __shared__ double shared[kThreads];
    __shared__ bool is_accepted[kChains];
    for (int64_t base = static_cast<int64_t>(blockIdx.x) * kChains; base < total; base += stride) {
        const int64_t chain = base + slot;
        double sum[1] = {0.0};
        if (chain < total) body.template add_terms<1>(chain, lane, sum);
        shared[threadIdx.x] = sum[0];
        __syncthreads();
        if (lane == 0 && chain < total) {
            double sums[kNormLanes];
            for (int j = 0; j < kNormLanes; ++j) sums[j] = shared[threadIdx.x + j];
            is_accepted[slot] = body.judge(chain, add_tree(sums), body.uniforms(chain));
        }
        __syncthreads();
        if (chain < total && is_accepted[slot]) body.template adopt<kNormLanes>(chain, lane);
    }
}

template <class C, bool kLangevin>
Status accept(const MetropolisAcceptParams& p) {
    const MetropolisAccept<C, kLangevin> body{p};
    return launch(p.place, p.num_chains * kNormLanes, [&](unsigned grid, cudaStream_t on) { run_rule<<<grid, kThreads, 0, on>>>(body); });
}

#else

template <class C, bool kLangevin>
Status accept(const MetropolisAcceptParams& p) {
    constexpr int kWidth = ChainLanes<C>::kWidth;
    const int64_t ns = kWidth * (p.dim * 2 + 50);
    return for_each_chain(MetropolisAccept<C, kLangevin>{p}, (p.num_chains + kWidth - 1) / kWidth, 1 + 50000 / ns, 0, nullptr, p.place);
}

#endif

}  // namespace

Status metropolis_accept(const MetropolisAcceptParams& p) {
    if (p.step_size > 0.0) return p.dtype == Dtype::float64 ? accept<double, true>(p) : accept<float, true>(p);
    return p.dtype == Dtype::float64 ? accept<double, false>(p) : accept<float, false>(p);
}

EBM_END
