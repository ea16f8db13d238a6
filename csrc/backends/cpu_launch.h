// The CPU backend: loop order and threads of every op. Compiled once per family and instruction set (EBM_TARGET).
//
// The elements of all chains are cut into Philox blocks, numbered through; a thread takes a range of them. Within a chain,
// whole tiles (a block per lane) run over neighbouring blocks. What is left of a chain, or a chain shorter than a tile, is
// queued block by block and runs in tiles whose lanes belong to different chains.
#pragma once

#include <cstdlib>

#include "../kernels/langevin.h"
#include "../kernels/random.h"
#include "../kernels/tile.h"
#include "floating_point.h"
#include "thread_pool.h"

EBM_BEGIN
namespace {

constexpr int kInterleave = 3;  // tiles in flight: one hides the latency of the others

template <class C>
using LanesOf = decltype(load_lanes(static_cast<const C*>(nullptr)));

// The blocks [begin, end) of a (num_chains, dim) array.
template <class C, class Draw, class Sink>
class BlockRange {
    using V = LanesOf<C>;
    static constexpr int kBlock = kBlockSize<C>;
    static constexpr int kWidth = sizeof(V) / sizeof(C);  // elements of a vector

public:
    BlockRange(const Draw& draw, const Sink& sink, const int64_t* key, int64_t dim, int64_t first_block, uint32_t stream)
        : draw_(draw),
          sink_(sink),
          key_(philox_key(static_cast<uint64_t>(key[0]))),
          step_(static_cast<uint64_t>(key[1])),
          first_chain_(static_cast<uint64_t>(key[2])),
          dim_(dim),
          first_block_(static_cast<uint64_t>(first_block)),
          stream_(stream) {
        for (int lane = 0; lane < kLanes; ++lane) {
            order_[lane % 2][lane / 2] = static_cast<uint64_t>(Tile<C>::order(lane));
            slots_[Tile<C>::order(lane)] = lane % 2 * (kLanes / 2) + lane / 2;
        }
    }

    void run(int64_t begin, int64_t end) {
        if (dim_ < kLanes * kBlock && sink_.is_flat()) return run_short(begin, end);
        int64_t blocks_per_chain = (dim_ + kBlock - 1) / kBlock;
        int64_t chain = begin / blocks_per_chain, block = begin % blocks_per_chain;
        for (int64_t left = end - begin; left > 0; ++chain, block = 0) {
            int64_t stop = block + left < blocks_per_chain ? block + left : blocks_per_chain;
            left -= stop - block;
            run_chain(chain, block, stop);
        }
        run_queue();
    }

private:
    void run_chain(int64_t chain, int64_t block, int64_t stop) {
        int64_t whole = dim_ / kBlock < stop ? dim_ / kBlock : stop;  // the last block may be a part of one
        if (whole - block >= kLanes) {
            typename Sink::Row row = sink_.row(chain);
            PhiloxRow<uint64_t> constants = constants_of(chain);
            for (; block + kInterleave * kLanes <= whole; block += kInterleave * kLanes) run_tiles<kInterleave>(row, constants, block);
            for (; block + kLanes <= whole; block += kLanes) run_tiles<1>(row, constants, block);
        }
        for (; block < stop; ++block) {
            queue_chain_[queued_] = chain;
            queue_block_[queued_] = block;
            if (++queued_ == kLanes) run_queue();
        }
    }

    PhiloxRow<uint64_t> constants_of(int64_t chain) const {
        uint64_t id = first_chain_ + static_cast<uint64_t>(chain);
        return philox_row<uint64_t>(step_, id, philox_c3(step_, id, stream_), key_);
    }

    template <int N>
    EBM_HD void run_tiles(const typename Sink::Row& row, const PhiloxRow<uint64_t>& constants, int64_t block) const {
        U64 c0[2 * N], words[2 * N][4];
        PhiloxRow<uint64_t> rows[2 * N];
        EBM_UNROLL for (int i = 0; i < 2 * N; ++i) {
            rows[i] = constants;
            c0[i] = load<U64>(order_[i % 2]) + (first_block_ + static_cast<uint64_t>(block) + static_cast<uint64_t>(i / 2 * kLanes));
        }
        philox4x32<2 * N>(c0, rows, key_, words);
        EBM_UNROLL for (int i = 0; i < N; ++i) {
            V v[4];
            Tile<C>::values(words[2 * i], words[2 * i + 1], draw_, v);
            EBM_UNROLL for (int j = 0; j < 4; ++j)
                sink_.put_lanes(row, (block + i * kLanes) * kBlock + j * kWidth, v[j]);
        }
    }

    // Chains without a whole tile, whose rows the sink takes for one: blocks of several chains in each tile.
    void run_short(int64_t begin, int64_t end) {
        const int64_t blocks_per_chain = (dim_ + kBlock - 1) / kBlock;
        int64_t chain = begin / blocks_per_chain, block = begin % blocks_per_chain;
        for (int64_t left = end - begin; left > 0;) {
            left -= left > kLanes ? run_some<kInterleave>(left, chain, block) : run_some<1>(left, chain, block);
        }
    }

    // The next blocks, `left` at the most; chain and block move on. Returns how many they were.
    template <int N>
    __attribute__((noinline)) int64_t run_some(int64_t left, int64_t& chain, int64_t& block) const {
        constexpr int kMany = N * kLanes;
        const int count = left < kMany ? static_cast<int>(left) : kMany;
        const int64_t first = chain * dim_ + block * kBlock;
        alignas(64) uint64_t blocks[kMany], ids[kMany];
        alignas(64) C values[kMany * kBlock], packed[(kMany + 1) * kBlock];
        int starts[kMany], size = 0;
        int64_t at = chain, in = block, rest = dim_ - block * kBlock;
        for (int tile = 0; tile < kMany; tile += kLanes) {  // idle lanes draw what follows, and nobody reads it
            for (int place = 0; place < kLanes; ++place) {
                const int slot = tile + slots_[place];
                blocks[slot] = first_block_ + static_cast<uint64_t>(in);
                ids[slot] = first_chain_ + static_cast<uint64_t>(at);
                starts[tile + place] = size;
                const bool is_last = rest <= kBlock;
                if (tile + place < count) size += is_last ? static_cast<int>(rest) : kBlock;
                in = is_last ? 0 : in + 1;
                at += is_last;
                rest = is_last ? dim_ : rest - kBlock;
            }
        }
        chain = at;
        block = in;
        U64 c0[2 * N], words[2 * N][4];
        PhiloxRow<U64> rows[2 * N];
        EBM_UNROLL for (int i = 0; i < 2 * N; ++i) {
            const U64 id = load<U64>(ids + i * (kLanes / 2));
            c0[i] = load<U64>(blocks + i * (kLanes / 2));
            rows[i] = philox_row<U64>(U64{} + step_, id, ((id >> 32) << 8) | philox_c3(step_, 0, stream_), key_);
        }
        philox4x32<2 * N>(c0, rows, key_, words);
        EBM_UNROLL for (int i = 0; i < N; ++i) {
            V v[4];
            Tile<C>::values(words[2 * i], words[2 * i + 1], draw_, v);
            EBM_UNROLL for (int j = 0; j < 4; ++j)
                store(values + (4 * i + j) * kWidth, v[j]);
        }
        for (int place = 0; place < count; ++place) memcpy(packed + starts[place], values + place * kBlock, kBlock * sizeof(C));
        const typename Sink::Row row = sink_.row(0);
        int e = 0;
        for (; e + kWidth <= size; e += kWidth) sink_.put_lanes(row, first + e, load<V>(packed + e));
        for (; e < size; ++e) sink_.put(row, first + e, packed[e]);
        return count;
    }

    __attribute__((noinline)) void run_queue() {
        if (queued_ == 0) return;
        alignas(64) uint64_t c0[2][kLanes / 2], c1[2][kLanes / 2], c2[2][kLanes / 2], c3[2][kLanes / 2];
        for (int lane = 0; lane < kLanes; ++lane) {
            int place = Tile<C>::order(lane) < queued_ ? Tile<C>::order(lane) : 0;  // idle lanes repeat the first block
            uint64_t id = first_chain_ + static_cast<uint64_t>(queue_chain_[place]);
            c0[lane % 2][lane / 2] = first_block_ + static_cast<uint64_t>(queue_block_[place]);
            c1[lane % 2][lane / 2] = step_;
            c2[lane % 2][lane / 2] = id;
            c3[lane % 2][lane / 2] = philox_c3(step_, id, stream_);
        }
        U64 blocks[2], words[2][4];
        PhiloxRow<U64> rows[2];
        for (int half = 0; half < 2; ++half) {
            blocks[half] = load<U64>(c0[half]);
            rows[half] = philox_row<U64>(load<U64>(c1[half]), load<U64>(c2[half]), load<U64>(c3[half]), key_);
        }
        philox4x32<2>(blocks, rows, key_, words);
        V v[4];
        Tile<C>::values(words[0], words[1], draw_, v);
        alignas(64) C values[4 * kWidth];
        for (int j = 0; j < 4; ++j) store(values + j * kWidth, v[j]);
        int64_t chain = -1;
        typename Sink::Row row{};
        for (int place = 0; place < queued_; ++place) {
            if (queue_chain_[place] != chain) row = sink_.row(chain = queue_chain_[place]);
            int64_t element = queue_block_[place] * kBlock;
            int count = dim_ - element < kBlock ? static_cast<int>(dim_ - element) : kBlock;
            for (int j = 0; j < count; ++j) sink_.put(row, element + j, values[place * kBlock + j]);
        }
        queued_ = 0;
    }

    const Draw draw_;
    const Sink sink_;
    const PhiloxKey key_;
    const uint64_t step_, first_chain_;
    const int64_t dim_;
    const uint64_t first_block_;
    const uint32_t stream_;
    alignas(64) uint64_t order_[2][kLanes / 2];
    int slots_[kLanes];  // where the lane of each block of a tile lies, even lanes before odd ones
    int queued_ = 0;
    int64_t queue_chain_[kLanes], queue_block_[kLanes];
};

constexpr int64_t kGrainBlocks = 4096;  // 16,384 float32 elements, about 10 µs of work

template <class C, class Draw, class Sink>
struct BlockJob {
    const Draw& draw;
    const Sink& sink;
    const int64_t* key;
    int64_t dim, first_block;
    uint32_t stream;

    static void range(int64_t begin, int64_t end, void* context) {
        DefaultFloatingPoint guard;
        const BlockJob& job = *static_cast<const BlockJob*>(context);
        BlockRange<C, Draw, Sink>(job.draw, job.sink, job.key, job.dim, job.first_block, job.stream).run(begin, end);
    }
};

template <class C, class Draw, class Sink>
Status for_each_block(const Draw& draw, const Sink& sink, const int64_t* key, int64_t num_chains, int64_t dim, int64_t first_block,
                      uint32_t stream, const Place&) {
    BlockJob<C, Draw, Sink> job{draw, sink, key, dim, first_block, stream};
    int64_t blocks_per_chain = (dim + kBlockSize<C> - 1) / kBlockSize<C>;
    parallel_for(num_chains * blocks_per_chain, kGrainBlocks, BlockJob<C, Draw, Sink>::range, &job);
    return nullptr;
}

template <class T>
void norm_range(int64_t begin, int64_t end, void* context) {
    DefaultFloatingPoint guard;
    const LangevinStepParams& p = *static_cast<const LangevinStepParams*>(context);
    int64_t segments = (p.dim + kNormSegment - 1) / kNormSegment;
    for (int64_t i = begin; i < end; ++i) {
        int64_t chain = i / segments, start = i % segments * kNormSegment;
        int64_t size = p.dim - start < kNormSegment ? p.dim - start : kNormSegment;
        double sums[kNormLanes];
        add_squares<kNormLanes>(static_cast<const T*>(p.grad) + chain * p.dim + start, size, 0, sums);
        p.segment_sums[i] = add_tree(sums);
    }
}

template <class T>
void scale_range(int64_t begin, int64_t end, void* context) {
    DefaultFloatingPoint guard;
    const LangevinStepParams& p = *static_cast<const LangevinStepParams*>(context);
    int64_t segments = (p.dim + kNormSegment - 1) / kNormSegment;
    for (int64_t chain = begin; chain < end; ++chain) {
        p.grad_scales[chain] = grad_scale(p.segment_sums + chain * segments, segments, p.clip_grad_norm);
    }
}

template <class T>
Status scale_gradients(const LangevinStepParams& p) {
    LangevinStepParams copy = p;
    int64_t segments = (p.dim + kNormSegment - 1) / kNormSegment;
    int64_t segment_size = p.dim < kNormSegment ? p.dim : kNormSegment;
    parallel_for(p.num_chains * segments, 1 + 65536 / segment_size, norm_range<T>, &copy);
    parallel_for(p.num_chains, kGrainBlocks, scale_range<T>, &copy);
    return nullptr;
}

template <class Sink>
struct ElementJob {
    const Sink& sink;
    int64_t dim;

    template <class T>
    static void range(int64_t begin, int64_t end, void* context) {
        DefaultFloatingPoint guard;
        const ElementJob& job = *static_cast<const ElementJob*>(context);
        using V = LanesOf<Compute<T>>;
        constexpr int64_t width = sizeof(V) / sizeof(Compute<T>);
        while (begin < end) {
            int64_t chain = begin / job.dim, e = begin % job.dim;
            int64_t stop = e + (end - begin) < job.dim ? e + (end - begin) : job.dim;
            begin += stop - e;
            typename Sink::Row row = job.sink.row(chain);
            for (; e + width <= stop; e += width) job.sink.put_lanes(row, e, V{});
            for (; e < stop; ++e) job.sink.put(row, e, Compute<T>{});
        }
    }
};

template <class T, class Sink>
Status for_each_element(const Sink& sink, int64_t num_chains, int64_t dim, const Place&) {
    ElementJob<Sink> job{sink, dim};
    parallel_for(num_chains * dim, 16 * kGrainBlocks, ElementJob<Sink>::template range<T>, &job);
    return nullptr;
}

template <class Body>
struct ChainJob {
    const Body& body;
    int64_t scratch_bytes;
    bool* is_out_of_memory;

    static void range(int64_t begin, int64_t end, void* context) {
        DefaultFloatingPoint guard;
        const ChainJob& job = *static_cast<const ChainJob*>(context);
        int64_t bytes = (job.scratch_bytes + 63) / 64 * 64;
        void* scratch = bytes ? std::aligned_alloc(64, static_cast<size_t>(bytes)) : nullptr;
        if (bytes && !scratch) {
            __atomic_store_n(job.is_out_of_memory, true, __ATOMIC_RELAXED);
            return;
        }
        for (int64_t chain = begin; chain < end; ++chain) job.body.run(chain, scratch);
        std::free(scratch);
    }
};

// The scratch of a thread serves its chains one after another: it stays in the cache, and `workspace` is not used.
template <class Body>
Status for_each_chain(const Body& body, int64_t num_chains, int64_t grain, int64_t scratch_bytes, void*, const Place&) {
    bool is_out_of_memory = false;
    ChainJob<Body> job{body, scratch_bytes, &is_out_of_memory};
    parallel_for(num_chains, grain, ChainJob<Body>::range, &job);
    return is_out_of_memory ? "out of memory for the scratch of a thread" : nullptr;
}

}  // namespace
EBM_END
