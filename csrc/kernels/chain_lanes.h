// Draws for groups of chains, a chain in each lane: the values that ops.normal and ops.uniform give them.
#pragma once

#include "../core/rows.h"
#include "block.h"
#include "random.h"

EBM_BEGIN

// C: float or double. A group is what the lanes of V hold; its Philox words lie in kParts vectors.
template <class C>
struct ChainLanes;
#if defined(__CUDACC__)
template <>
struct ChainLanes<float> {
    using V = float;
    static constexpr int kWidth = 1, kParts = 1, kAtOnce = 1;
};
template <>
struct ChainLanes<double> {
    using V = double;
    static constexpr int kWidth = 1, kParts = 1, kAtOnce = 1;
};
#else
template <>
struct ChainLanes<float> {
    using V = F32;
    static constexpr int kWidth = kLanes, kParts = 2, kAtOnce = kLanes == 16 ? 4 : 2;
};
template <>
struct ChainLanes<double> {
    using V = F64;
    static constexpr int kWidth = kLanes / 2, kParts = 1, kAtOnce = 4;
};

template <class Draw>
EBM_HD void group_values(const Draw& draw, const U64 (&w)[2][4], F32 (&v)[4]) {
    U32 words[4];
    EBM_UNROLL for (int j = 0; j < 4; ++j)
        words[j] = merge(w[0][j], w[1][j]);
    draw(words, v);
}
template <class Draw>
EBM_HD void group_values(const Draw& draw, const U64 (&w)[1][4], F64 (&v)[2]) {
    const U64 words[2] = {(w[0][0] & 0xffffffffu) | (w[0][1] << 32), (w[0][2] & 0xffffffffu) | (w[0][3] << 32)};
    draw(words, v);
}
#endif
#if defined(__CUDACC__)
template <class Draw, class C>
EBM_HD void group_values(const Draw& draw, const U64 (&w)[1][4], C (&v)[kBlockSize<C>]) {
    block_values(draw, w[0], v);
}
#endif

namespace {

// Of all chains of some groups at one step.
template <class C>
class GroupDraws {
    using L = ChainLanes<C>;
    using V = typename L::V;
    static constexpr int kParts = L::kParts;

public:
    // first_chain: the id of the first chain of the first group
    EBM_HD GroupDraws(const int64_t* key, int64_t first_chain)
        : key_(philox_key(static_cast<uint64_t>(key[0]))),
          first_step_(static_cast<uint64_t>(key[1])),
          first_id_(static_cast<uint64_t>(key[2] + first_chain)) {}

    // `dim` normals of each chain of `count` groups; those of a group start `row` elements after those of the one before.
    EBM_HD void normals(int64_t step, uint32_t stream, int count, int64_t dim, int64_t row, Rows<V> out) const {
        if (dim <= 2) {
            draw<DrawNormal, 2>(step, stream, count, 1, row, out);
        } else {
            draw<DrawNormal, kBlockSize<C>>(step, stream, count, (dim + kBlockSize<C> - 1) / kBlockSize<C>, row, out);
        }
    }

    // One uniform of each chain of `count` groups.
    EBM_HD void uniforms(int64_t step, uint32_t stream, int count, V* out) const {
        draw<DrawUniform, 1>(step, stream, count, 1, 1, Rows<V>{out, 1});
    }

private:
    // The first kValues values of each of the first `blocks` blocks; of a part of a block there is only one.
    template <class Draw, int kValues>
#if !defined(__CUDACC__)
    __attribute__((noinline))
#else
    EBM_HD
#endif
    void draw(int64_t step, uint32_t stream, int count, int64_t blocks, int64_t row, Rows<V> out) const {
        constexpr int N = L::kAtOnce;
        const uint64_t at = first_step_ + static_cast<uint64_t>(step);
        PhiloxRow<U64> constants[N * kParts];
        if (count >= N) {  // the same block of N groups; the last N may have been drawn before
            for (int next = 0; next < count; next += N) {
                const int g = next + N <= count ? next : count - N;
                EBM_UNROLL for (int i = 0; i < N; ++i)
                    constants_of(at, stream, g + i, constants + i * kParts);
                for (int64_t b = 0; b < blocks; ++b) emit<Draw, kValues, N>(constants, b, 0, out, g * row + b * kValues, row);
            }
            return;
        }
        for (int g = 0; g < count; ++g) {
            constants_of(at, stream, g, constants);
            if (blocks < N) {
                for (int64_t b = 0; b < blocks; ++b) emit<Draw, kValues, 1>(constants, b, 0, out, g * row + b * kValues, 0);
                continue;
            }
            EBM_UNROLL for (int i = kParts; i < N * kParts; ++i)
                constants[i] = constants[i - kParts];
            for (int64_t next = 0; next < blocks; next += N) {
                const int64_t b = next + N <= blocks ? next : blocks - N;
                emit<Draw, kValues, N>(constants, b, 1, out, g * row + b * kValues, kValues);
            }
        }
    }

    EBM_HD void constants_of(uint64_t step, uint32_t stream, int group, PhiloxRow<U64>* rows) const {
        constexpr int kWords = L::kWidth / kParts;              // 64-bit lanes of a part
        EBM_UNROLL for (int part = 0; part < kParts; ++part) {  // the lanes that `merge` takes from each
            uint64_t offsets[kWords];
            EBM_UNROLL for (int i = 0; i < kWords; ++i)
                offsets[i] = static_cast<uint64_t>(group * L::kWidth + i * kParts + part);
            const U64 ids = load<U64>(offsets) + first_id_;
            const U64 c3 = ((ids >> 32) << 8) | philox_c3(step, 0, stream);
            rows[part] = philox_row<U64>(U64{} + step, ids, c3, key_);
        }
    }

    // Units i < N: block first_block + i · block_step under constants i; its values go to out[to + i · to_step] and on.
    template <class Draw, int kValues, int N>
    EBM_HD void emit(const PhiloxRow<U64>* constants, int64_t first_block, int64_t block_step, Rows<V> out, int64_t to,
                     int64_t to_step) const {
        U64 c0[N * kParts], words[N * kParts][4];
        PhiloxRow<U64> rows[N * kParts];
        EBM_UNROLL for (int i = 0; i < N * kParts; ++i) {
            c0[i] = kValues < kBlockSize<C> ? U64{} : U64{} + static_cast<uint64_t>(first_block + i / kParts * block_step);  // one block
            rows[i] = constants[i];
        }
        philox4x32<N * kParts>(c0, rows, key_, words);
        EBM_UNROLL for (int i = 0; i < N; ++i) {
            U64 part[kParts][4];
            EBM_UNROLL for (int j = 0; j < 4 * kParts; ++j)
                part[j / 4][j % 4] = words[i * kParts + j / 4][j % 4];
            V values[kBlockSize<C>];
            group_values(Draw{}, part, values);
            EBM_UNROLL for (int j = 0; j < kValues; ++j)
                out[to + i * to_step + j] = values[j];
        }
    }

    const PhiloxKey key_;
    const uint64_t first_step_, first_id_;
};

}  // namespace
EBM_END
