// Philox words for the steps, or the blocks, of one chain: a lane for each.
#pragma once

#include "philox.h"

EBM_BEGIN

constexpr int kWordBlocks = 64;  // made at a time, at most

// Uniform on the midpoints (k + 1/2) · 2^-32, or 2^-52: never 0 and never 1.
EBM_HD double unit_of(uint32_t word) { return (static_cast<double>(word) + 0.5) * 2.3283064365386963e-10; }
EBM_HD double unit_of(uint32_t low, uint32_t high) {
    return (static_cast<double>((static_cast<uint64_t>(high) << 32 | low) >> 12) + 0.5) * 2.220446049250313e-16;
}

// One of num_sites < 2^32, uniform to num_sites · 2^-64.
EBM_HD int64_t uniform_site(uint32_t low, uint32_t high, int64_t num_sites) {
    const uint64_t n = static_cast<uint64_t>(num_sites);
    return static_cast<int64_t>((high * n + ((low * n) >> 32)) >> 32);
}

constexpr int kWordLanes = kLanes / kHalves;
constexpr int kWordGroups = kLanes == 1 ? 1 : 2;  // interleaved

template <class V>
EBM_HD void store_words(const U64 (&from)[kWordGroups][4], V words, int first) {
    EBM_UNROLL for (int g = 0; g < kWordGroups; ++g) {
        uint64_t lanes[4][kWordLanes];
        EBM_UNROLL for (int j = 0; j < 4; ++j)
            store(lanes[j], from[g][j]);
        EBM_UNROLL for (int i = 0; i < kWordLanes; ++i) EBM_UNROLL
            for (int j = 0; j < 4; ++j) words[first + g * kWordLanes + i][j] = static_cast<uint32_t>(lanes[j][i]);
    }
}

// words[k] = block `block` of step first_step + k, for k < count <= kWordBlocks; what lies between count and kWordBlocks is undefined.
EBM_HD void words_of_steps(const PhiloxKey& key, uint64_t first_step, uint64_t chain, uint64_t block, uint32_t stream, int count,
                           uint32_t (*words)[4]) {
    for (int k = 0; k < count; k += kWordGroups * kWordLanes) {
        PhiloxRow<U64> rows[kWordGroups];
        U64 c0[kWordGroups], drawn[kWordGroups][4];
        EBM_UNROLL for (int g = 0; g < kWordGroups; ++g) {
            uint64_t c1[kWordLanes], c3[kWordLanes];
            EBM_UNROLL for (int i = 0; i < kWordLanes; ++i) {
                const uint64_t step = first_step + static_cast<uint64_t>(k + g * kWordLanes + i);
                c1[i] = step & 0xffffffffu;
                c3[i] = philox_c3(step, chain, stream);
            }
            rows[g] = philox_row<U64>(load<U64>(c1), U64{} + chain, load<U64>(c3), key);
            c0[g] = U64{} + block;
        }
        philox4x32<kWordGroups>(c0, rows, key, drawn);
        store_words(drawn, words, k);
    }
}

// words[k] = block first_block + k of one step.
EBM_HD void words_of_blocks(const PhiloxKey& key, uint64_t step, uint64_t chain, uint64_t first_block, uint32_t stream, int count,
                            uint32_t (*words)[4]) {
    const U64 step_lanes = U64{} + step, chain_lanes = U64{} + chain;
    const PhiloxRow<U64> row = philox_row<U64>(step_lanes, chain_lanes, U64{} + philox_c3(step, chain, stream), key);
    for (int k = 0; k < count; k += kWordGroups * kWordLanes) {
        PhiloxRow<U64> rows[kWordGroups];
        U64 c0[kWordGroups], drawn[kWordGroups][4];
        EBM_UNROLL for (int g = 0; g < kWordGroups; ++g) {
            uint64_t blocks[kWordLanes];
            EBM_UNROLL for (int i = 0; i < kWordLanes; ++i)
                blocks[i] = first_block + static_cast<uint64_t>(k + g * kWordLanes + i);
            rows[g] = row;
            c0[g] = load<U64>(blocks);
        }
        philox4x32<kWordGroups>(c0, rows, key, drawn);
        store_words(drawn, words, k);
    }
}

EBM_END
