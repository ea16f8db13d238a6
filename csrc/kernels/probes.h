// Probes of trace estimators, made in registers: to be stored, scaled, or summed up against what is in memory.
//
// A row is one probe of one chain. It is walked in rounds of 32 elements, whatever the lanes, and a dot product has a running sum for
// each place in a round: 32 sums, added up at the end of a segment in one order on every target. A round of signs is one word.
#pragma once

#include "../core/sixteen.h"
#include "../ops/probes.h"
#include "block.h"
#include "random.h"

EBM_BEGIN

constexpr int kRound = 32;
constexpr int64_t kProbeSegment = 4096;  // elements whose sum is in C; sums of segments are added up in double

EBM_HD double sum16(const double* w) {
    double quads[4];
    for (int j = 0; j < 4; ++j) quads[j] = (w[4 * j] + w[4 * j + 1]) + (w[4 * j + 2] + w[4 * j + 3]);
    return (quads[0] + quads[1]) + (quads[2] + quads[3]);
}

template <class C>
EBM_HD C round_sum(const C (&sums)[kRound]) {
    C halves[kRound / 2];
    for (int i = 0; i < kRound / 2; ++i) halves[i] = sums[i] + sums[i + kRound / 2];
    return sum16(halves);
}

EBM_HD int64_t num_probe_rows(const ProbeParams& p) { return p.num_probes * p.num_chains; }

#if defined(__CUDACC__)

// A round on 32 threads. `source.value(block, k)` is the k-th value that a Draw makes of a block of the row; all threads ask together,
// for blocks of the same 32.
struct RademacherLaw {
    using Draw = DrawWord;
    template <class C>
    using Drawn = float;

    template <class C, class Source>
    static EBM_HD C value(Source& source, int64_t round, int lane) {
        return (as_bits(source.value(round / 4, static_cast<int>(round % 4))) >> lane & 1u) != 0 ? C(-1) : C(1);
    }
};

struct GaussianLaw {
    using Draw = DrawNormal;
    template <class C>
    using Drawn = C;

    template <class C, class Source>
    static EBM_HD C value(Source& source, int64_t round, int lane) {
        return source.value((round * kRound + lane) / kBlockSize<C>, lane % kBlockSize<C>);
    }
};

// What one thread adds up of a segment of u, from element `begin` of the row.
template <class Law, class C, class Source>
EBM_HD C probe_lane_sum(const C* u, int64_t begin, int64_t dim, int lane, Source& source) {
    C sum = 0;
    const int64_t end = begin + kProbeSegment < dim ? begin + kProbeSegment : dim;
    for (int64_t e = begin; e < end; e += kRound) {
        const C v = Law::template value<C>(source, e / kRound, lane);
        if (e + lane < end) sum += v * u[e + lane];
    }
    return sum;
}

// The part of one thread in the elements [begin, end) of a row; both are multiples of 32, or the row's end.
template <class Law, class C, bool kScaled, class Source>
EBM_HD void store_probe_lane(C* out, C scale, int64_t begin, int64_t end, int lane, Source& source) {
    for (int64_t e = begin; e < end; e += kRound) {
        const C v = Law::template value<C>(source, e / kRound, lane);
        if (e + lane < end) out[e + lane] = kScaled ? v * scale : v;
    }
}

#else

template <class C>
using ProbeLanes = decltype(load_lanes(static_cast<const C*>(nullptr)));
template <class C>
constexpr int kProbeWidth = sizeof(ProbeLanes<C>) / sizeof(C);
template <class C>
constexpr int kRoundParts = kRound / kProbeWidth<C>;  // vectors of a round

template <class Bits>
struct BitTable {
    Bits bits[kRound];
    constexpr BitTable() : bits() {
        for (int i = 0; i < kRound; ++i) bits[i] = Bits(1) << i;
    }
};
constexpr BitTable<uint32_t> kBits32;
constexpr BitTable<uint64_t> kBits64;

struct RademacherLaw {
    template <class C>
    static constexpr int kBlock = 128;

    static EBM_HD void round(const uint32_t* words, F32 (&v)[kRoundParts<float>]) {
        const U32 word = U32{} + words[0];
        EBM_UNROLL for (int i = 0; i < kRoundParts<float>; ++i)
            v[i] = (word & load<U32>(kBits32.bits + i * kLanes)) != 0 ? F32{} - 1.0f : F32{} + 1.0f;
    }
    static EBM_HD void round(const uint32_t* words, F64 (&v)[kRoundParts<double>]) {
        const U64 word = U64{} + words[0];
        EBM_UNROLL for (int i = 0; i < kRoundParts<double>; ++i)
            v[i] = (word & load<U64>(kBits64.bits + i * kProbeWidth<double>)) != 0 ? F64{} - 1.0 : F64{} + 1.0;
    }
};

struct GaussianLaw {
    template <class C>
    static constexpr int kBlock = kBlockSize<C>;

    static EBM_HD void round(const uint32_t* words, F32 (&v)[kRoundParts<float>]) {
        EBM_UNROLL for (int i = 0; i < kRoundParts<float>; i += 2) {
            const U64 a = load<U64>(words + i * kLanes), b = load<U64>(words + (i + 1) * kLanes);
            F32 z0, z1;
            normal_pair(merge(a, b), merge(a >> 32, b >> 32), z0, z1);
            v[i] = as_float(merge((U64)z0, (U64)z1));
            v[i + 1] = as_float(merge((U64)z0 >> 32, (U64)z1 >> 32));
        }
    }
    static EBM_HD void round(const uint32_t* words, F64 (&v)[kRoundParts<double>]) {
        EBM_UNROLL for (int i = 0; i < kRoundParts<double>; i += 2) {
            const F64 a = load<F64>(words + i * kLanes), b = load<F64>(words + (i + 1) * kLanes);
            F64 z0, z1;
            normal_pair((U64)zip_lo64(a, b), (U64)zip_hi64(a, b), z0, z1);
            v[i] = zip_lo64(z0, z1);
            v[i + 1] = zip_hi64(z0, z1);
        }
    }
};

// What becomes of the probe `v` at elements e, e + 1, ... of a row, of which `count` are there.
template <class C, bool kScaled>
class StoreProbe {
public:
    EBM_HD StoreProbe(const ProbeParams& p, int64_t row)
        : out_(static_cast<C*>(p.out) + row * p.dim), scale_(kScaled ? static_cast<const C*>(p.other)[row] : C(1)) {}

    template <class V>
    EBM_HD void add(int, int64_t e, V v) {
        store(out_ + e, kScaled ? v * scale_ : v);
    }
    template <class V>
    EBM_HD void add_some(int, int64_t e, int count, V v) {
        C copy[kProbeWidth<C>];
        store(copy, kScaled ? v * scale_ : v);
        for (int i = 0; i < count; ++i) out_[e + i] = copy[i];
    }
    EBM_HD void end_segment() {}
    EBM_HD void end_row() {}

private:
    C* out_;
    C scale_;
};

template <class C>
class DotProbe {
public:
    using V = ProbeLanes<C>;

    EBM_HD DotProbe(const ProbeParams& p, int64_t row)
        : out_(static_cast<C*>(p.out) + row), u_(static_cast<const C*>(p.other) + (p.is_shared ? row % p.num_chains : row) * p.dim) {}

    EBM_HD void add(int part, int64_t e, V v) { sums_[part] += v * load<V>(u_ + e); }
    EBM_HD void add_some(int part, int64_t e, int count, V v) {
        C copy[kProbeWidth<C>] = {};
        for (int i = 0; i < count; ++i) copy[i] = u_[e + i];
        sums_[part] += v * load<V>(copy);  // ±0 where nothing is: a sum that began with +0 stays as it is
    }
    EBM_HD void end_segment() {
        C sums[kRound];
        EBM_UNROLL for (int i = 0; i < kRoundParts<C>; ++i) {
            store(sums + i * kProbeWidth<C>, sums_[i]);
            sums_[i] = V{};
        }
        total_ += static_cast<double>(round_sum(sums));
    }
    EBM_HD void end_row() { *out_ = static_cast<C>(total_); }

private:
    C* out_;
    const C* u_;
    V sums_[kRoundParts<C>] = {};
    double total_ = 0.0;
};

namespace {

constexpr int kProbeBlocks = 32;  // drawn at a time
constexpr int kBlockLanes = kLanes / kHalves;
constexpr int kBlockGroups = 4;  // interleaved

// Block k of kBlockLanes in the lane from which zips put it into memory order.
EBM_HD int lane_of_block(int k) { return k < kLanes / 4 ? 2 * k : 2 * (k - kLanes / 4) + 1; }

template <class V>
EBM_HD void draw_block_groups(const U64 (&c0)[kBlockGroups], const PhiloxRow<V> (&rows)[kBlockGroups], const PhiloxKey& rounds,
                              uint32_t* words) {
    U64 drawn[kBlockGroups][4];
    philox4x32<kBlockGroups>(c0, rows, rounds, drawn);
    EBM_UNROLL for (int g = 0; g < kBlockGroups; ++g) {
        const U64(&w)[4] = drawn[g];
        const F64 low = (F64)((w[0] & 0xffffffffu) | w[1] << 32), high = (F64)((w[2] & 0xffffffffu) | w[3] << 32);
        store(words + 2 * g * kLanes, zip_lo64(low, high));
        store(words + (2 * g + 1) * kLanes, zip_hi64(low, high));
    }
}

// Words of the blocks first_block, ... of one row, `count` <= kProbeBlocks of them.
__attribute__((noinline)) void draw_row(const PhiloxKey& rounds, uint64_t step, uint64_t chain, uint32_t stream, uint64_t first_block,
                                        int count, uint32_t* words) {
    const PhiloxRow<uint64_t> constants = philox_row<uint64_t>(step, chain, philox_c3(step, chain, stream), rounds);
    uint64_t order[kBlockLanes];
    for (int k = 0; k < kBlockLanes; ++k) order[lane_of_block(k)] = static_cast<uint64_t>(k);
    for (int k = 0; k < count; k += kBlockGroups * kBlockLanes) {
        U64 c0[kBlockGroups];
        PhiloxRow<uint64_t> rows[kBlockGroups];
        EBM_UNROLL for (int g = 0; g < kBlockGroups; ++g) {
            rows[g] = constants;
            c0[g] = load<U64>(order) + (first_block + static_cast<uint64_t>(k + g * kBlockLanes));
        }
        draw_block_groups(c0, rows, rounds, words + 4 * k);
    }
}

// Words of all blocks of a few short rows, one row behind the other.
__attribute__((noinline)) void draw_rows(const PhiloxKey& rounds, const ProbeParams& p, int64_t first_row, int num_rows, int blocks_per_row,
                                         uint32_t* words) {
    uint64_t c0[kProbeBlocks] = {}, c1[kProbeBlocks] = {}, c2[kProbeBlocks] = {}, c3[kProbeBlocks] = {};
    int64_t probe = first_row / p.num_chains, chain = first_row % p.num_chains;
    for (int k = 0; k < num_rows * blocks_per_row; ++chain) {
        if (chain == p.num_chains) chain = 0, ++probe;
        const uint64_t step = static_cast<uint64_t>(p.key[1] + probe), id = static_cast<uint64_t>(p.key[2] + chain);
        for (int block = 0; block < blocks_per_row; ++block, ++k) {
            const int place = k / kBlockLanes * kBlockLanes + lane_of_block(k % kBlockLanes);
            c0[place] = static_cast<uint64_t>(block);
            c1[place] = step & 0xffffffffu;
            c2[place] = id;
            c3[place] = philox_c3(step, id, p.stream);
        }
    }
    for (int k = 0; k < num_rows * blocks_per_row; k += kBlockGroups * kBlockLanes) {
        U64 blocks[kBlockGroups];
        PhiloxRow<U64> rows[kBlockGroups];
        EBM_UNROLL for (int g = 0; g < kBlockGroups; ++g) {
            const int at = k + g * kBlockLanes;
            blocks[g] = load<U64>(c0 + at);
            rows[g] = philox_row<U64>(load<U64>(c1 + at), load<U64>(c2 + at), load<U64>(c3 + at), rounds);
        }
        draw_block_groups(blocks, rows, rounds, words + 4 * k);
    }
}

}  // namespace

// A long row, or as many short ones as kProbeBlocks blocks make.
template <class Law, class C, class Use>
struct ProbeRows {
    ProbeParams p;

    static constexpr int kBlock = Law::template kBlock<C>;
    static constexpr int kWordsPerRound = kRound * 4 / kBlock;

    EBM_HD int64_t blocks_per_row() const { return (p.dim + kBlock - 1) / kBlock; }
    EBM_HD int64_t rows_per_group() const { return blocks_per_row() >= kProbeBlocks ? 1 : kProbeBlocks / blocks_per_row(); }
    EBM_HD int64_t num_groups() const { return (num_probe_rows(p) + rows_per_group() - 1) / rows_per_group(); }

    EBM_HD void run(int64_t group, void*) const {
        alignas(64) uint32_t words[4 * kProbeBlocks];
        const PhiloxKey rounds = philox_key(static_cast<uint64_t>(p.key[0]));
        const int64_t blocks = blocks_per_row(), first = group * rows_per_group(), left = num_probe_rows(p) - first;
        const int num_rows = static_cast<int>(left < rows_per_group() ? left : rows_per_group());
        if (num_rows > 1) draw_rows(rounds, p, first, num_rows, static_cast<int>(blocks), words);
        for (int64_t row = first; row < first + num_rows; ++row) {
            Use use(p, row);
            for (int64_t block = 0; block < blocks; block += kProbeBlocks) {
                const uint32_t* at = words + (num_rows > 1 ? (row - first) * blocks * 4 : 0);
                if (num_rows == 1) {
                    const int count = blocks - block < kProbeBlocks ? static_cast<int>(blocks - block) : kProbeBlocks;
                    draw_row(rounds, static_cast<uint64_t>(p.key[1] + row / p.num_chains),
                             static_cast<uint64_t>(p.key[2] + row % p.num_chains), p.stream, static_cast<uint64_t>(block), count, words);
                }
                const int64_t begin = block * kBlock, end = begin + kProbeBlocks * kBlock < p.dim ? begin + kProbeBlocks * kBlock : p.dim;
                for (int64_t e = begin; e < end; e += kRound, at += kWordsPerRound) use_round(at, e, end - e, use);
                if (end % kProbeSegment == 0 || end == p.dim) use.end_segment();
            }
            use.end_row();
        }
    }

private:
    EBM_HD void use_round(const uint32_t* words, int64_t e, int64_t count, Use& use) const {
        constexpr int kWidth = kProbeWidth<C>;
        ProbeLanes<C> v[kRoundParts<C>];
        Law::round(words, v);
        if (count >= kRound) {
            EBM_UNROLL for (int i = 0; i < kRoundParts<C>; ++i)
                use.add(i, e + i * kWidth, v[i]);
        } else {
            EBM_UNROLL for (int i = 0; i < kRoundParts<C>; ++i) {
                const int64_t some = count - i * kWidth;
                if (some >= kWidth) {
                    use.add(i, e + i * kWidth, v[i]);
                } else if (some > 0) {
                    use.add_some(i, e + i * kWidth, static_cast<int>(some), v[i]);
                }
            }
        }
    }
};

#endif

EBM_END
