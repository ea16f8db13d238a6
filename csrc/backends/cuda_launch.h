// The CUDA backend: launches of every op on the caller's stream.
//
// One thread computes one Philox block of one chain at a time, with the maths of csrc/core on single lanes. Nothing allocates,
// synchronises or reads device data on the host, so every launch can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>

#include "../kernels/block.h"
#include "../kernels/langevin.h"

EBM_BEGIN
namespace {

constexpr int kThreads = 256;
constexpr int kChainThreads = 64;  // whole chains: few and long
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

template <int kBlockThreads = kThreads, class Launch>
Status launch(const Place& place, int64_t num_threads, Launch&& kernel) {
    DeviceGuard guard(place.device_index);
    if (guard.error() != cudaSuccess) return cudaGetErrorString(guard.error());
    if (cudaPeekAtLastError() != cudaSuccess) {
        static thread_local char text[256];
        snprintf(text, sizeof text, "a CUDA error was pending before this call: %s", cudaGetErrorString(cudaGetLastError()));
        return text;
    }
    int64_t blocks = (num_threads + kBlockThreads - 1) / kBlockThreads;
    kernel(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), static_cast<cudaStream_t>(place.stream));
    cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Blocks [0, count) of the array, counted on from block `begin` of row 0 of the sink. 32-bit counts: 64-bit division is slow.
template <class C, class Draw, class Sink>
__global__ void __launch_bounds__(kThreads) run_blocks(Draw draw, Sink sink, const int64_t* key_data, int64_t dim, int64_t first_chain_here,
                                                       uint32_t begin, uint32_t count, int64_t first_block, uint32_t stream) {
    const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
    if (i >= count) return;
    const uint32_t blocks_per_chain = static_cast<uint32_t>((dim + kBlockSize<C> - 1) / kBlockSize<C>);
    const int64_t chain = first_chain_here + (begin + i) / blocks_per_chain;
    run_block<C>(draw, sink, key_data, chain, (begin + i) % blocks_per_chain, dim, first_block, stream);
}

template <class C, class Draw, class Sink>
Status for_each_block(const Draw& draw, const Sink& sink, const int64_t* key, int64_t num_chains, int64_t dim, int64_t first_block,
                      uint32_t stream, const Place& place) {
    const int64_t blocks_per_chain = (dim + kBlockSize<C> - 1) / kBlockSize<C>, total = num_chains * blocks_per_chain;
    if (blocks_per_chain >= int64_t{1} << 32) return "a chain has 2^32 blocks or more";
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
            p.segment_sums[i] = add_tree(sums);
        }
        __syncthreads();
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) run_scales(LangevinStepParams p, int64_t segments) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t chain = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; chain < p.num_chains; chain += stride) {
        p.grad_scales[chain] = grad_scale(p.segment_sums + chain * segments, segments, p.clip_grad_norm);
    }
}

template <class T>
Status scale_gradients(const LangevinStepParams& p) {
    int64_t segments = (p.dim + kNormSegment - 1) / kNormSegment;
    Status status = launch(p.place, p.num_chains * segments * kNormLanes,
                           [&](unsigned grid, cudaStream_t on) { run_norms<T><<<grid, kThreads, 0, on>>>(p, segments); });
    if (status) return status;
    return launch(p.place, p.num_chains, [&](unsigned grid, cudaStream_t on) { run_scales<T><<<grid, kThreads, 0, on>>>(p, segments); });
}

template <class T, class Sink>
__global__ void __launch_bounds__(kThreads) run_elements(Sink sink, int64_t num_chains, int64_t dim) {
    const int64_t total = num_chains * dim, stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += stride) {
        sink.put(sink.row(i / dim), i % dim, Compute<T>(0));
    }
}

template <class T, class Sink>
Status for_each_element(const Sink& sink, int64_t num_chains, int64_t dim, const Place& place) {
    return launch(place, num_chains * dim,
                  [&](unsigned grid, cudaStream_t on) { run_elements<T><<<grid, kThreads, 0, on>>>(sink, num_chains, dim); });
}

// A grid constant: what a body hands on by reference stays where it is, and is not copied into the memory of each thread.
template <class Body>
__global__ void __launch_bounds__(kChainThreads)
    run_chains(const __grid_constant__ Body body, int64_t num_chains, int64_t scratch_bytes, char* workspace) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kChainThreads;
    for (int64_t chain = static_cast<int64_t>(blockIdx.x) * kChainThreads + threadIdx.x; chain < num_chains; chain += stride) {
        body.run(chain, workspace + chain * scratch_bytes);
    }
}

// One thread per chain. `workspace`: num_chains · scratch_bytes on the device, scratch_bytes a multiple of 64.
template <class Body>
Status for_each_chain(const Body& body, int64_t num_chains, int64_t, int64_t scratch_bytes, void* workspace, const Place& place) {
    return launch<kChainThreads>(place, num_chains, [&](unsigned grid, cudaStream_t on) {
        run_chains<<<grid, kChainThreads, 0, on>>>(body, num_chains, scratch_bytes, static_cast<char*>(workspace));
    });
}

}  // namespace
EBM_END
