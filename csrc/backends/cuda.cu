// The CUDA backend: launches of every op on the caller's stream.
//
// One thread computes one Philox block of one chain at a time, with the maths of csrc/core on single lanes. Nothing allocates,
// synchronises or reads device data on the host, so every launch can be captured in a CUDA graph.
#include <cuda_runtime.h>

#include <cstdio>

#include "../kernels/langevin.h"
#include "../kernels/random.h"
#include "../ops/table.h"

EBM_BEGIN
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = int64_t{1} << 22;

// Launches on the device of the tensors and leaves the caller's current device as it was.
class DeviceGuard {
public:
    explicit DeviceGuard(int device) {
        error_ = cudaGetDevice(&saved_);
        if (error_ == cudaSuccess && saved_ != device) {
            error_ = cudaSetDevice(device);
            switched_ = error_ == cudaSuccess;
        }
    }
    ~DeviceGuard() {
        if (switched_) cudaSetDevice(saved_);
    }
    cudaError_t error() const { return error_; }

private:
    int saved_ = 0;
    bool switched_ = false;
    cudaError_t error_ = cudaSuccess;
};

template <class Launch>
Status launch(const Place& place, int64_t num_threads, Launch&& kernel) {
    DeviceGuard guard(place.device_index);
    if (guard.error() != cudaSuccess) return cudaGetErrorString(guard.error());
    if (cudaPeekAtLastError() != cudaSuccess) {
        static thread_local char text[256];
        snprintf(text, sizeof text, "a CUDA error was pending before this call: %s", cudaGetErrorString(cudaGetLastError()));
        return text;
    }
    int64_t blocks = (num_threads + kThreads - 1) / kThreads;
    kernel(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), static_cast<cudaStream_t>(place.stream));
    cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class Draw>
__device__ inline void block_values(const Draw& draw, const U64 (&w)[4], F32 (&v)[4]) {
    U32 words[4] = {U32(w[0]), U32(w[1]), U32(w[2]), U32(w[3])};
    draw(words, v);
}
template <class Draw>
__device__ inline void block_values(const Draw& draw, const U64 (&w)[4], F64 (&v)[2]) {
    U64 words[2] = {(w[0] & 0xffffffffu) | (w[1] << 32), (w[2] & 0xffffffffu) | (w[3] << 32)};
    draw(words, v);
}

// Blocks [0, count) of the array, counted on from block `begin` of row 0 of the sink. 32-bit counts: 64-bit division is slow.
template <class C, class Draw, class Sink>
__global__ void __launch_bounds__(kThreads) run_blocks(Draw draw, Sink sink, const int64_t* key_data, int64_t dim, int64_t first_chain_here,
                                                       uint32_t begin, uint32_t count, int64_t first_block, uint32_t stream) {
    constexpr int kBlock = kBlockSize<C>;
    const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
    if (i >= count) return;
    const uint32_t blocks_per_chain = static_cast<uint32_t>((dim + kBlock - 1) / kBlock);
    const int64_t chain = first_chain_here + (begin + i) / blocks_per_chain;
    const uint32_t block = (begin + i) % blocks_per_chain;
    const PhiloxKey key = philox_key(static_cast<uint64_t>(key_data[0]));
    const uint64_t step = static_cast<uint64_t>(key_data[1]), id = static_cast<uint64_t>(key_data[2] + chain);
    const PhiloxRow<U64> rows[1] = {philox_row<U64>(step, id, philox_c3(step, id, stream), key)};
    const U64 c0[1] = {static_cast<uint64_t>(first_block) + block};
    U64 words[1][4];
    philox4x32<1>(c0, rows, key, words);
    C v[kBlock];
    block_values(draw, words[0], v);
    const auto row = sink.row(chain);
    const int64_t element = static_cast<int64_t>(block) * kBlock;
    EBM_UNROLL for (int j = 0; j < kBlock; ++j) {
        if (element + j < dim) sink.put(row, element + j, v[j]);
    }
}

template <class C, class Draw, class Sink>
Status for_each_block(const Draw& draw, const Sink& sink, const int64_t* key, int64_t num_chains, int64_t dim, int64_t first_block,
                      uint32_t stream, const Place& place) {
    const int64_t blocks_per_chain = (dim + kBlockSize<C> - 1) / kBlockSize<C>, total = num_chains * blocks_per_chain;
    for (int64_t at = 0; at < total;) {
        const int64_t begin = at % blocks_per_chain, room = (int64_t{1} << 32) - 1 - begin;
        int64_t count = total - at < room ? total - at : room;
        if (count > kThreads * kMaxBlocks) count = kThreads * kMaxBlocks;
        Status status = launch(place, count, [&](unsigned grid, cudaStream_t on) {
            run_blocks<C><<<grid, kThreads, 0, on>>>(draw, sink, key, dim, at / blocks_per_chain, static_cast<uint32_t>(begin),
                                                     static_cast<uint32_t>(count), first_block, stream);
        });
        if (status) return status;
        at += count;
    }
    return nullptr;
}

template <class C, class T, class Draw>
Status fill(const FillParams& p, const Draw& draw) {
    StoreSink<T> sink{static_cast<T*>(p.out), p.dim};
    return for_each_block<C>(draw, sink, p.key, p.num_chains, p.dim, p.first_block, p.stream, p.place);
}

template <class T>
Status fill_rademacher(const FillParams& p) {
    RademacherSink<T> sink{static_cast<T*>(p.out), p.dim};
    return for_each_block<float>(DrawWord{}, sink, p.key, p.num_chains, (p.dim + 31) / 32, p.first_block, p.stream, p.place);
}

Status philox(const FillParams& p) { return fill<float, float>(p, DrawWord{}); }
Status uniform(const FillParams& p) {
    return p.dtype == Dtype::float64 ? fill<double, double>(p, DrawUniform{}) : fill<float, float>(p, DrawUniform{});
}
Status normal(const FillParams& p) {
    return p.dtype == Dtype::float64 ? fill<double, double>(p, DrawNormal{}) : fill<float, float>(p, DrawNormal{});
}
Status rademacher(const FillParams& p) { return p.dtype == Dtype::float64 ? fill_rademacher<double>(p) : fill_rademacher<float>(p); }
Status bernoulli(const FillParams& p) {
    DrawBernoulli draw{p.threshold};
    return p.dtype == Dtype::float64 ? fill<float, double>(p, draw) : fill<float, float>(p, draw);
}

// kNormLanes threads share a segment.
template <class T>
__global__ void __launch_bounds__(kThreads) run_norms(LangevinStepParams p, int64_t segments) {
    const int64_t total = p.num_chains * segments;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * (kThreads / kNormLanes);
    const int lane = threadIdx.x % kNormLanes;
    __shared__ double shared[kThreads];
    for (int64_t base = static_cast<int64_t>(blockIdx.x) * (kThreads / kNormLanes); base < total; base += stride) {
        const int64_t i = base + threadIdx.x / kNormLanes;
        double sum[1] = {0.0};
        if (i < total) {
            const int64_t chain = i / segments, start = i % segments * kNormSegment;
            const int64_t size = p.dim - start < kNormSegment ? p.dim - start : kNormSegment;
            add_squares<1>(static_cast<const T*>(p.grad) + chain * p.dim + start, size, lane, sum);
        }
        shared[threadIdx.x] = sum[0];
        __syncthreads();
        if (lane == 0 && i < total) {
            double sums[kNormLanes];
            for (int j = 0; j < kNormLanes; ++j) sums[j] = shared[threadIdx.x + j];
            p.norm_partials[i] = add_tree(sums);
        }
        __syncthreads();
    }
}

template <class T, class Sink>
__global__ void __launch_bounds__(kThreads) run_quiet(Sink sink, int64_t num_chains, int64_t dim) {
    const int64_t total = num_chains * dim, stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += stride) {
        sink.put(sink.row(i / dim), i % dim, Compute<T>(0));
    }
}

template <class T, bool kBounded>
Status langevin_with(const LangevinStepParams& p) {
    if (p.noise_std == 0.0) {
        LangevinSink<T, kBounded, false> sink(p);
        return launch(p.place, p.num_chains * p.dim,
                      [&](unsigned grid, cudaStream_t on) { run_quiet<T><<<grid, kThreads, 0, on>>>(sink, p.num_chains, p.dim); });
    }
    LangevinSink<T, kBounded, true> sink(p);
    return for_each_block<Compute<T>>(DrawNormal{}, sink, p.key, p.num_chains, p.dim, 0, p.stream, p.place);
}

template <class T>
Status langevin_of(const LangevinStepParams& p) {
    if (p.norm_partials) {
        int64_t segments = (p.dim + kNormSegment - 1) / kNormSegment;
        Status status = launch(p.place, p.num_chains * segments * kNormLanes,
                               [&](unsigned grid, cudaStream_t on) { run_norms<T><<<grid, kThreads, 0, on>>>(p, segments); });
        if (status) return status;
    }
    constexpr double inf = __builtin_inf();
    bool bounded = p.norm_partials || p.clip_grad < inf || p.clamp_min > -inf || p.clamp_max < inf;
    return bounded ? langevin_with<T, true>(p) : langevin_with<T, false>(p);
}

Status langevin_step(const LangevinStepParams& p) {
    switch (p.dtype) {
        case Dtype::float32: return langevin_of<float>(p);
        case Dtype::float64: return langevin_of<double>(p);
        case Dtype::bfloat16: return langevin_of<BFloat16>(p);
        case Dtype::float16: return langevin_of<Float16>(p);
        default: return "no such dtype";
    }
}

}  // namespace

extern const OpTable table;
const OpTable table = {
    "cuda",
#define EBM_OP(name, Params) name,
#include "../ops/ops.def"
#undef EBM_OP
};

Status problem() {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    return count == 0 ? "no CUDA device" : nullptr;
}

EBM_END
