// Products of matrices in bfloat16 with float32 sums, chains in lanes. A matrix lies in tiles of 16 rows and 16 pairs of columns, filled up
// with zeros to whole tiles and an even number of rows of tiles; its partner as pairs of rows, of which each lane holds two. How the sums
// are rounded is the processor's affair: which lane a chain is in, and how many there are, changes no bit.
#pragma once

#include "../core/rows.h"
#include "../core/storage.h"
#include "../ops/perceptron.h"

EBM_BEGIN

#if !defined(__CUDACC__)

constexpr int kTileSide = 16;  // rows of a tile, and pairs of columns

EBM_HD int64_t num_pairs(int64_t size) { return (size + 2 * kTileSide - 1) / (2 * kTileSide) * kTileSide; }

// Two rows of `in` in each of num_pairs(size) rows of `pairs`.
EBM_HD void pack_pairs(Rows<F32> in, int64_t size, U32* pairs) {
    int64_t k = 0;
    for (; k + 2 <= size; k += 2) *pairs++ = narrow_bfloat16<U32>(in[k]) | (narrow_bfloat16<U32>(in[k + 1]) << 16);
    if (k < size) *pairs++ = narrow_bfloat16<U32>(in[k]);
    for (k = (size + 1) / 2; k < num_pairs(size); ++k) *pairs++ = U32{};
}

template <bool kHasInstruction>
EBM_HD F32 add_pair(F32 sum, uint32_t weights, U32 values) {
#if defined(EBM_HAVE_BFLOAT16)
    if constexpr (kHasInstruction) {
        const __m512i both = _mm512_set1_epi32(static_cast<int>(weights));
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"((__m512i)values), "v"(both));
        return sum;
    }
#endif
    sum = multiply_add(as_float(weights << 16), as_float(values << 16), sum);
    return multiply_add(as_float(weights & 0xffff0000u), as_float(values & 0xffff0000u), sum);
}

// Rows [first, first + 8) of M groups of chains.
template <bool kHasInstruction, int M>
EBM_HD void multiply_eight(const uint32_t* tile, const float* initial, const U32* in, int64_t pairs, const Rows<F32>* out, int64_t first,
                           int64_t rows) {
    constexpr int R = 8;
    F32 sums[R][M] = {};
    for (int64_t k = 0; k < pairs; k += kTileSide, tile += kTileSide * kTileSide) {
        for (int j = 0; j < kTileSide; ++j) {
            EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) {
                EBM_UNROLL_ROWS for (int m = 0; m < M; ++m) sums[r][m] =
                    add_pair<kHasInstruction>(sums[r][m], tile[r * kTileSide + j], in[m * pairs + k + j]);
            }
        }
    }
    EBM_UNROLL_ROWS for (int r = 0; r < R; ++r) {
        for (int m = 0; m < M && first + r < rows; ++m) out[m][first + r] = initial ? sums[r][m] + initial[first + r] : sums[r][m];
    }
}

template <bool kHasInstruction>
EBM_HD void multiply_pairs(const uint32_t* w, const float* initial, int count, const U32* in, int64_t pairs, const Rows<F32>* out,
                           int64_t rows) {
    for (int64_t first = 0; first < rows; first += 8) {
        const uint32_t* tile = w + first / kTileSide * kTileSide * pairs + first % kTileSide * kTileSide;
        int g = 0;
        for (; g + 2 <= count; g += 2) multiply_eight<kHasInstruction, 2>(tile, initial, in + g * pairs, pairs, out + g, first, rows);
        if (g < count) multiply_eight<kHasInstruction, 1>(tile, initial, in + g * pairs, pairs, out + g, first, rows);
    }
}

#if defined(EBM_HAVE_BFLOAT16)

// The same by tile registers, for which there are compilers without a name: two rows of tiles times two groups of chains.
EBM_HD void multiply_tiles(const uint32_t* w, const float* initial, int count, const U32* in, int64_t pairs, const Rows<F32>* out,
                           int64_t rows) {
    struct {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t num_rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shapes;
    constexpr int64_t kStride = 64;
    asm volatile("ldtilecfg %0" ::"m"(shapes));
    for (int64_t first = 0; first < rows; first += 2 * kTileSide) {
        for (int g = 0; g < count; g += 2) {
            const int groups[2] = {g, g + 1 < count ? g + 1 : g};  // the last one twice
            const uint32_t *above = w + first * pairs, *below = above + kTileSide * pairs;
            const U32 *left = in + groups[0] * pairs, *right = in + groups[1] * pairs;
            asm volatile("tilezero %%tmm0; tilezero %%tmm1; tilezero %%tmm2; tilezero %%tmm3" ::);
            for (int64_t k = 0; k < pairs; k += kTileSide) {
                asm volatile(
                    "tileloadd (%0, %4), %%tmm4; tileloadd (%2, %4), %%tmm6; tdpbf16ps %%tmm6, %%tmm4, %%tmm0;"
                    "tileloadd (%3, %4), %%tmm7; tdpbf16ps %%tmm7, %%tmm4, %%tmm1;"
                    "tileloadd (%1, %4), %%tmm5; tdpbf16ps %%tmm6, %%tmm5, %%tmm2; tdpbf16ps %%tmm7, %%tmm5, %%tmm3" ::"r"(above +
                                                                                                                           k * kTileSide),
                    "r"(below + k * kTileSide), "r"(left + k), "r"(right + k), "r"(kStride)
                    : "memory");
            }
            F32 sums[4][kTileSide];
            asm volatile(
                "tilestored %%tmm0, (%0, %4); tilestored %%tmm1, (%1, %4); tilestored %%tmm2, (%2, %4); tilestored %%tmm3, (%3, %4)" ::"r"(
                    sums[0]),
                "r"(sums[1]), "r"(sums[2]), "r"(sums[3]), "r"(kStride)
                : "memory");
            for (int i = 0; i < 4; ++i) {
                const int64_t at = first + i / 2 * kTileSide;
                const Rows<F32> to = out[groups[i % 2]];
                for (int r = 0; r < kTileSide && at + r < rows; ++r) to[at + r] = initial ? sums[i][r] + initial[at + r] : sums[i][r];
            }
        }
    }
    asm volatile("tilerelease" ::);
}

#endif

// out[g][r] = initial[r] + Σ_k w[r, k] in[g][k] for `count` groups of chains; `work` has room for count · num_pairs(size) rows.
EBM_HD void multiply_bfloat16(Bfloat16Products products, const uint32_t* w, const float* initial, int count, const Rows<F32>* in,
                              int64_t size, const Rows<F32>* out, int64_t rows, Rows<F32> work) {
    const int64_t pairs = num_pairs(size);
    U32* const packed = reinterpret_cast<U32*>(&work[0]);
    for (int g = 0; g < count; ++g) pack_pairs(in[g], size, packed + g * pairs);
#if defined(EBM_HAVE_BFLOAT16)
    if (products == Bfloat16Products::amx) return multiply_tiles(w, initial, count, packed, pairs, out, rows);
    if (products == Bfloat16Products::avx512_bf16) return multiply_pairs<true>(w, initial, count, packed, pairs, out, rows);
#else
    static_cast<void>(products);
#endif
    multiply_pairs<false>(w, initial, count, packed, pairs, out, rows);
}

#endif

EBM_END
