// Probes of trace estimators.
#include "../../kernels/probes.h"

#include "../launch.h"

EBM_BEGIN
namespace {

#if defined(__CUDACC__)

constexpr int kWarp = 32;

// Each thread of a warp draws one block of 32; all of them read from all.
template <class Law, class C>
struct WarpBlocks {
    using Drawn = typename Law::template Drawn<C>;
    PhiloxKey rounds;
    uint64_t step, chain;
    uint32_t stream;
    int lane;
    int64_t batch = -1;
    Drawn values[kBlockSize<Drawn>];

    __device__ Drawn value(int64_t block, int k) {
        if (block / kWarp != batch) {
            batch = block / kWarp;
            draw_block<Drawn>(typename Law::Draw{}, rounds, step, chain, static_cast<uint64_t>(batch * kWarp + lane), stream, values);
        }
        Drawn result = 0;
        EBM_UNROLL for (int j = 0; j < kBlockSize<Drawn>; ++j) {
            const Drawn x = __shfl_sync(0xffffffffu, values[j], static_cast<int>(block % kWarp));
            result = j == k ? x : result;
        }
        return result;
    }
};

template <class Law, class C>
__device__ WarpBlocks<Law, C> warp_blocks(const ProbeParams& p, int64_t row) {
    return {philox_key(static_cast<uint64_t>(p.key[0])), static_cast<uint64_t>(p.key[1] + row / p.num_chains),
            static_cast<uint64_t>(p.key[2] + row % p.num_chains), p.stream, static_cast<int>(threadIdx.x % kWarp)};
}

// A warp for each segment of each row.
template <class Law, class C, bool kScaled>
__global__ void __launch_bounds__(kThreads) run_probe_stores(ProbeParams p, int64_t segments) {
    const int64_t total = num_probe_rows(p) * segments, stride = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
    for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp; i < total; i += stride) {
        const int64_t row = i / segments, begin = i % segments * kProbeSegment;
        const int64_t end = begin + kProbeSegment < p.dim ? begin + kProbeSegment : p.dim;
        WarpBlocks<Law, C> source = warp_blocks<Law, C>(p, row);
        const C scale = kScaled ? static_cast<const C*>(p.other)[row] : C(1);
        store_probe_lane<Law, C, kScaled>(static_cast<C*>(p.out) + row * p.dim, scale, begin, end, source.lane, source);
    }
}

// A warp for each row.
template <class Law, class C>
__global__ void __launch_bounds__(kThreads) run_probe_dots(ProbeParams p) {
    __shared__ C shared[kThreads / kWarp][kWarp];
    C(&sums)[kWarp] = shared[threadIdx.x / kWarp];
    const int64_t total = num_probe_rows(p), stride = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
    for (int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp; row < total; row += stride) {
        WarpBlocks<Law, C> source = warp_blocks<Law, C>(p, row);
        const C* u = static_cast<const C*>(p.other) + (p.is_shared ? row % p.num_chains : row) * p.dim;
        double sum = 0.0;
        for (int64_t begin = 0; begin < p.dim; begin += kProbeSegment) {
            sums[source.lane] = probe_lane_sum<Law, C>(u, begin, p.dim, source.lane, source);
            __syncwarp();
            if (source.lane == 0) sum += static_cast<double>(round_sum(sums));
            __syncwarp();
        }
        if (source.lane == 0) static_cast<C*>(p.out)[row] = static_cast<C>(sum);
    }
}

template <class Law, class C, bool kScaled>
Status store_probes(const ProbeParams& p) {
    const int64_t segments = (p.dim + kProbeSegment - 1) / kProbeSegment;
    return launch(p.place, num_probe_rows(p) * segments * kWarp,
                  [&](unsigned grid, cudaStream_t on) { run_probe_stores<Law, C, kScaled><<<grid, kThreads, 0, on>>>(p, segments); });
}

template <class Law, class C>
Status dot_probes(const ProbeParams& p) {
    return launch(p.place, num_probe_rows(p) * kWarp,
                  [&](unsigned grid, cudaStream_t on) { run_probe_dots<Law, C><<<grid, kThreads, 0, on>>>(p); });
}

#else

template <class Law, class C, class Use>
Status run_probe_rows(const ProbeParams& p) {
    const ProbeRows<Law, C, Use> body{p};
    const int64_t ns = body.rows_per_group() * (10 + (p.law == ProbeLaw::gaussian ? p.dim : p.dim / 8));
    return for_each_chain(body, body.num_groups(), 1 + 16384 / ns, 0, nullptr, p.place);
}

template <class Law, class C, bool kScaled>
Status store_probes(const ProbeParams& p) {
    return run_probe_rows<Law, C, StoreProbe<C, kScaled>>(p);
}

template <class Law, class C>
Status dot_probes(const ProbeParams& p) {
    return run_probe_rows<Law, C, DotProbe<C>>(p);
}

#endif

template <bool kScaled>
Status store_probes_of(const ProbeParams& p) {
    if (p.law == ProbeLaw::gaussian)
        return p.dtype == Dtype::float64 ? store_probes<GaussianLaw, double, kScaled>(p) : store_probes<GaussianLaw, float, kScaled>(p);
    return p.dtype == Dtype::float64 ? store_probes<RademacherLaw, double, kScaled>(p) : store_probes<RademacherLaw, float, kScaled>(p);
}

}  // namespace

Status probes(const ProbeParams& p) { return store_probes_of<false>(p); }
Status probe_scale(const ProbeParams& p) { return store_probes_of<true>(p); }
Status probe_dot(const ProbeParams& p) {
    if (p.law == ProbeLaw::gaussian)
        return p.dtype == Dtype::float64 ? dot_probes<GaussianLaw, double>(p) : dot_probes<GaussianLaw, float>(p);
    return p.dtype == Dtype::float64 ? dot_probes<RademacherLaw, double>(p) : dot_probes<RademacherLaw, float>(p);
}

EBM_END
