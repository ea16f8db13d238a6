// Probes of trace estimators, made in registers: to be stored, scaled, or summed up against what is in memory.
//
// A row is one probe of one chain. It is walked in rounds of 32 elements, whatever the lanes, and a dot product has a running sum for
// each place in a round: 32 sums, added up at the end of a segment in one order on every target. A round of signs is one word.
#pragma once

#include "../core/sixteen.h"
#include "../ops/probes.h"
#include "block.h"
#include "random.h"
#include "tile.h"

EBM_BEGIN

constexpr int kRound = 32;
constexpr int64_t kProbeSegment = 4096;  // elements whose sum is in C; sums of segments are added up in double

EBM_HD double sum16(const double* w) {
    double quads[4];
    for (int j = 0; j < 4; ++j) quads[j] = (w[4 * j] + w[4 * j + 1]) + (w[4 * j + 2] + w[4 * j + 3]);
    return (quads[0] + quads[1]) + (quads[2] + quads[3]);
}

// What a block of words becomes first: 4 words of 32 signs each, or normals.
struct RademacherLaw {
    using Draw = DrawWord;
    template <class C>
    using Drawn = float;
    template <class C>
    static constexpr int kBlock = 128;  // elements
};
struct GaussianLaw {
    using Draw = DrawNormal;
    template <class C>
    using Drawn = C;
    template <class C>
    static constexpr int kBlock = kBlockSize<C>;
};

EBM_HD int64_t num_probe_rows(const ProbeParams& p) { return p.num_probes * p.num_chains; }

#if defined(__CUDACC__)

template <class C>
EBM_HD C round_sum(const C (&sums)[kRound]) {
    C halves[kRound / 2];
    for (int i = 0; i < kRound / 2; ++i) halves[i] = sums[i] + sums[i + kRound / 2];
    return sum16(halves);
}

// Element `lane` of a round. `source.value(block, k)` is the k-th value that a Draw makes of a block of the row; 32 threads ask together,
// for blocks of the same 32.
template <class C, class Source>
EBM_HD C probe_value(RademacherLaw, Source& source, int64_t round, int lane) {
    return (as_bits(source.value(round / 4, static_cast<int>(round % 4))) >> lane & 1u) != 0 ? C(-1) : C(1);
}
template <class C, class Source>
EBM_HD C probe_value(GaussianLaw, Source& source, int64_t round, int lane) {
    return source.value((round * kRound + lane) / kBlockSize<C>, lane % kBlockSize<C>);
}

// What one thread adds up of a segment of u, from element `begin` of the row.
template <class Law, class C, class Source>
EBM_HD C probe_lane_sum(const C* u, int64_t begin, int64_t dim, int lane, Source& source) {
    C sum = 0;
    const int64_t end = begin + kProbeSegment < dim ? begin + kProbeSegment : dim;
    for (int64_t e = begin; e < end; e += kRound) {
        const C v = probe_value<C>(Law{}, source, e / kRound, lane);
        if (e + lane < end) sum += v * u[e + lane];
    }
    return sum;
}

// The part of one thread in the elements [begin, end) of a row; both are multiples of 32, or the row's end.
template <class Law, class C, bool kScaled, class Source>
EBM_HD void store_probe_lane(C* out, C scale, int64_t begin, int64_t end, int lane, Source& source) {
    for (int64_t e = begin; e < end; e += kRound) {
        const C v = probe_value<C>(Law{}, source, e / kRound, lane);
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

// One round from what was drawn for it.
EBM_HD void probe_round(RademacherLaw, const float* drawn, F32 (&v)[kRoundParts<float>]) {
    const U32 word = U32{} + as_bits(drawn[0]);
    EBM_UNROLL for (int i = 0; i < kRoundParts<float>; ++i)
        v[i] = (word & load<U32>(kBits32.bits + i * kLanes)) != 0 ? F32{} - 1.0f : F32{} + 1.0f;
}
EBM_HD void probe_round(RademacherLaw, const float* drawn, F64 (&v)[kRoundParts<double>]) {
    const U64 word = U64{} + as_bits(drawn[0]);
    EBM_UNROLL for (int i = 0; i < kRoundParts<double>; ++i)
        v[i] = (word & load<U64>(kBits64.bits + i * kProbeWidth<double>)) != 0 ? F64{} - 1.0 : F64{} + 1.0;
}
template <class C, class V>
EBM_HD void probe_round(GaussianLaw, const C* drawn, V (&v)[kRoundParts<C>]) {
    EBM_UNROLL for (int i = 0; i < kRoundParts<C>; ++i)
        v[i] = load<V>(drawn + i * kProbeWidth<C>);
}

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
        store_some(out_ + e, kScaled ? v * scale_ : v, count);
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
        sums_[part] += v * load_some(u_ + e, count);  // ±0 where nothing is: sums that began with +0 stay as they are
    }
    EBM_HD void end_segment() {
        C halves[kRound / 2];
        EBM_UNROLL for (int i = 0; i < kRoundParts<C> / 2; ++i) {
            store(halves + i * kProbeWidth<C>, sums_[i] + sums_[i + kRoundParts<C> / 2]);
            sums_[i] = sums_[i + kRoundParts<C> / 2] = V{};
        }
        total_ += static_cast<double>(sum16(halves));
    }
    EBM_HD void end_row() { *out_ = static_cast<C>(total_); }

private:
    C* out_;
    const C* u_;
    V sums_[kRoundParts<C>] = {};
    double total_ = 0.0;
};

constexpr int kProbeBlocks = 32;  // drawn at a time, at most
constexpr int kBlockLanes = kLanes / kHalves;

namespace {

// Draws blocks into memory, in order. Drawn: float or double.
template <class Law, class Drawn>
class BlockSource {
public:
    explicit BlockSource(const ProbeParams& p) : p_(p), key_(philox_key(static_cast<uint64_t>(p.key[0]))) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const int place = lane % 2 * kBlockLanes + lane / 2;
            order_[place] = static_cast<uint64_t>(Tile<Drawn>::order(lane));
            place_of_[Tile<Drawn>::order(lane)] = place;
        }
    }

    // `count` <= kProbeBlocks blocks of a row, from first_block on.
    __attribute__((noinline)) void draw_row(int64_t row, int64_t first_block, int count, Drawn* drawn) const {
        const uint64_t step = step_of(row / p_.num_chains), id = id_of(row % p_.num_chains);
        const PhiloxRow<uint64_t> constants = philox_row<uint64_t>(step, id, philox_c3(step, id, p_.stream), key_);
        int k = 0;
        for (; k + kLanes < count; k += 2 * kLanes) draw_part<2>(constants, first_block + k, drawn + k * kBlockSize<Drawn>);
        if (k < count) draw_part<1>(constants, first_block + k, drawn + k * kBlockSize<Drawn>);
    }

    // All blocks of a few short rows, one row behind the other.
    __attribute__((noinline)) void draw_rows(int64_t first_row, int num_rows, int blocks_per_row, Drawn* drawn) const {
        uint64_t c0[kProbeBlocks] = {}, c1[kProbeBlocks] = {}, c2[kProbeBlocks] = {}, c3[kProbeBlocks] = {};
        const int count = num_rows * blocks_per_row;
        int64_t probe = first_row / p_.num_chains, chain = first_row % p_.num_chains;
        for (int k = 0; k < count; ++chain) {
            if (chain == p_.num_chains) chain = 0, ++probe;
            const uint64_t step = step_of(probe), id = id_of(chain);
            for (int block = 0; block < blocks_per_row; ++block, ++k) {
                const int place = k / kLanes * kLanes + place_of_[k % kLanes];
                c0[place] = static_cast<uint64_t>(block);
                c1[place] = step;
                c2[place] = id;
                c3[place] = philox_c3(step, id, p_.stream);
            }
        }
        for (int k = 0; k < count; k += 2 * kLanes) {
            U64 blocks[4];
            PhiloxRow<U64> rows[4];
            EBM_UNROLL for (int i = 0; i < 4; ++i) {
                const int at = k + i * kBlockLanes;
                blocks[i] = load<U64>(c0 + at);
                rows[i] = philox_row<U64>(load<U64>(c1 + at), load<U64>(c2 + at), load<U64>(c3 + at), key_);
            }
            draw_tiles<2>(blocks, rows, drawn + k * kBlockSize<Drawn>);
        }
    }

private:
    uint64_t step_of(int64_t probe) const { return static_cast<uint64_t>(p_.key[1] + probe); }
    uint64_t id_of(int64_t chain) const { return static_cast<uint64_t>(p_.key[2] + chain); }

    template <int N>
    EBM_HD void draw_part(const PhiloxRow<uint64_t>& constants, int64_t block, Drawn* drawn) const {
        U64 c0[2 * N];
        PhiloxRow<uint64_t> rows[2 * N];
        EBM_UNROLL for (int i = 0; i < 2 * N; ++i) {
            rows[i] = constants;
            c0[i] = load<U64>(order_ + i % 2 * kBlockLanes) + static_cast<uint64_t>(block + i / 2 * kLanes);
        }
        draw_tiles<N>(c0, rows, drawn);
    }

    template <int N, class V>
    EBM_HD void draw_tiles(const U64 (&c0)[2 * N], const PhiloxRow<V> (&rows)[2 * N], Drawn* drawn) const {
        U64 words[2 * N][4];
        philox4x32<2 * N>(c0, rows, key_, words);
        EBM_UNROLL for (int i = 0; i < N; ++i) {
            ProbeLanes<Drawn> v[4];
            Tile<Drawn>::values(words[2 * i], words[2 * i + 1], typename Law::Draw{}, v);
            EBM_UNROLL for (int j = 0; j < 4; ++j)
                store(drawn + (4 * i + j) * kProbeWidth<Drawn>, v[j]);
        }
    }

    const ProbeParams& p_;
    const PhiloxKey key_;
    alignas(64) uint64_t order_[kLanes];  // of the blocks in the even lanes of a tile, then in the odd ones
    int place_of_[kLanes];                // in order_
};

}  // namespace

// A long row, or as many short ones as kProbeBlocks blocks make.
template <class Law, class C, class Use>
struct ProbeRows {
    ProbeParams p;

    static constexpr int kBlock = Law::template kBlock<C>;
    using Drawn = typename Law::template Drawn<C>;
    static constexpr int kDrawnPerBlock = kBlockSize<Drawn>, kDrawnPerRound = kRound * kDrawnPerBlock / kBlock;

    EBM_HD int64_t blocks_per_row() const { return (p.dim + kBlock - 1) / kBlock; }
    EBM_HD int64_t rows_per_group() const { return blocks_per_row() >= kProbeBlocks ? 1 : kProbeBlocks / blocks_per_row(); }
    EBM_HD int64_t num_groups() const { return (num_probe_rows(p) + rows_per_group() - 1) / rows_per_group(); }

    EBM_HD void run(int64_t group, void*) const {
        alignas(64) Drawn drawn[kDrawnPerBlock * kProbeBlocks + kDrawnPerRound] = {};  // a round may go beyond its row: numbers, times 0
        const BlockSource<Law, Drawn> source(p);
        const int64_t blocks = blocks_per_row(), first = group * rows_per_group(), left = num_probe_rows(p) - first;
        const int num_rows = static_cast<int>(left < rows_per_group() ? left : rows_per_group());
        if (num_rows > 1) source.draw_rows(first, num_rows, static_cast<int>(blocks), drawn);
        for (int64_t row = first; row < first + num_rows; ++row) {
            Use use(p, row);
            for (int64_t block = 0; block < blocks; block += kProbeBlocks) {
                const Drawn* at = drawn + (num_rows > 1 ? (row - first) * blocks * kDrawnPerBlock : 0);
                if (num_rows == 1) {
                    source.draw_row(row, block, blocks - block < kProbeBlocks ? static_cast<int>(blocks - block) : kProbeBlocks, drawn);
                }
                const int64_t begin = block * kBlock, end = begin + kProbeBlocks * kBlock < p.dim ? begin + kProbeBlocks * kBlock : p.dim;
                for (int64_t e = begin; e < end; e += kRound, at += kDrawnPerRound) use_round(at, e, end - e, use);
                if (end % kProbeSegment == 0 || end == p.dim) use.end_segment();
            }
            use.end_row();
        }
    }

private:
    EBM_HD void use_round(const Drawn* drawn, int64_t e, int64_t count, Use& use) const {
        constexpr int kWidth = kProbeWidth<C>;
        ProbeLanes<C> v[kRoundParts<C>];
        probe_round(Law{}, drawn, v);
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
