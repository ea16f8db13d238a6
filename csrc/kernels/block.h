// One block of one chain on a single lane: what a CUDA thread does, without a word about threads.
#pragma once

#include "random.h"

#if defined(__CUDACC__)

EBM_BEGIN

template <class Draw>
EBM_HD void block_values(const Draw& draw, const U64 (&w)[4], F32 (&v)[4]) {
    U32 words[4] = {U32(w[0]), U32(w[1]), U32(w[2]), U32(w[3])};
    draw(words, v);
}
template <class Draw>
EBM_HD void block_values(const Draw& draw, const U64 (&w)[4], F64 (&v)[2]) {
    U64 words[2] = {(w[0] & 0xffffffffu) | (w[1] << 32), (w[2] & 0xffffffffu) | (w[3] << 32)};
    draw(words, v);
}

template <class C, class Draw>
EBM_HD void draw_block(const Draw& draw, const PhiloxKey& rounds, uint64_t step, uint64_t chain, uint64_t block, uint32_t stream,
                       C (&v)[kBlockSize<C>]) {
    const PhiloxRow<U64> rows[1] = {philox_row<U64>(step, chain, philox_c3(step, chain, stream), rounds)};
    const U64 c0[1] = {block};
    U64 words[1][4];
    philox4x32<1>(c0, rows, rounds, words);
    block_values(draw, words[0], v);
}

// key: [seed, step, first_chain]; chain and block are counted within the array, whose rows have dim elements.
template <class C, class Draw, class Sink>
EBM_HD void run_block(const Draw& draw, const Sink& sink, const int64_t* key, int64_t chain, int64_t block, int64_t dim,
                      int64_t first_block, uint32_t stream) {
    constexpr int kBlock = kBlockSize<C>;
    C v[kBlock];
    draw_block<C>(draw, philox_key(static_cast<uint64_t>(key[0])), static_cast<uint64_t>(key[1]), static_cast<uint64_t>(key[2] + chain),
                  static_cast<uint64_t>(first_block + block), stream, v);
    const auto row = sink.row(chain);
    const int64_t element = block * kBlock;
    EBM_UNROLL for (int j = 0; j < kBlock; ++j) {
        if (element + j < dim) sink.put(row, element + j, v[j]);
    }
}

EBM_END

#endif
