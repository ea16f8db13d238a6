// A block per lane: how the words of kLanes Philox blocks become vectors in memory order. CPU only.
#pragma once

#include "../core/philox.h"

#if !defined(__CUDACC__)

EBM_BEGIN
namespace {

// Lane l of a tile holds block `order(l)` of it, chosen such that zips within 128 bits put values into memory order.
template <class C>
struct Tile;

template <>
struct Tile<float> {
    static constexpr int kVectors = 4;
    static EBM_HD int order(int lane) { return kLanes / 4 * (lane % 4) + lane / 4; }

    template <class Draw>
    static EBM_HD void values(const U64 (&even)[4], const U64 (&odd)[4], const Draw& draw, F32 (&out)[4]) {
        U32 w[4];
        EBM_UNROLL for (int j = 0; j < 4; ++j)
            w[j] = merge(even[j], odd[j]);
        F32 v[4];
        draw(w, v);
        F64 lo01 = (F64)zip_lo32(v[0], v[1]), lo23 = (F64)zip_lo32(v[2], v[3]);
        F64 hi01 = (F64)zip_hi32(v[0], v[1]), hi23 = (F64)zip_hi32(v[2], v[3]);
        out[0] = (F32)zip_lo64(lo01, lo23);
        out[1] = (F32)zip_hi64(lo01, lo23);
        out[2] = (F32)zip_lo64(hi01, hi23);
        out[3] = (F32)zip_hi64(hi01, hi23);
    }
};

template <>
struct Tile<double> {
    static constexpr int kVectors = 4;
    static EBM_HD int order(int lane) {
        int half = lane % 2, i = lane / 2;  // lane 2i is lane i of the even half
        return kLanes / 2 * half + kLanes / 4 * (i % 2) + i / 2;
    }

    template <class Draw>
    static EBM_HD void half(const U64 (&words)[4], const Draw& draw, F64& first, F64& second) {
        U64 w[2] = {(words[0] & 0xffffffffu) | (words[1] << 32), (words[2] & 0xffffffffu) | (words[3] << 32)};
        F64 v[2];
        draw(w, v);
        first = zip_lo64(v[0], v[1]);
        second = zip_hi64(v[0], v[1]);
    }
    template <class Draw>
    static EBM_HD void values(const U64 (&even)[4], const U64 (&odd)[4], const Draw& draw, F64 (&out)[4]) {
        half(even, draw, out[0], out[1]);
        half(odd, draw, out[2], out[3]);
    }
};

}  // namespace
EBM_END

#endif
