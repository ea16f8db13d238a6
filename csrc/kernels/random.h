// What becomes of one Philox block per lane, and of its draws in memory order.
//
// A Draw turns words into values: `operator()(words, values)` in float32 (four values a block) or float64 (two).
// A Sink takes values: `put(row, element, value)` one of them, `put_lanes(row, element, values)` a vector of neighbours. Where it
// is_flat(), row 0 takes those of all rows, one behind the other.
#pragma once

#include "../core/random.h"
#include "../core/storage.h"
#include "../ops/random.h"

EBM_BEGIN

template <class Compute>
constexpr int kBlockSize = sizeof(Compute) == 8 ? 2 : 4;

struct DrawWord {
    EBM_HD void operator()(const U32 (&w)[4], F32 (&v)[4]) const {
        EBM_UNROLL for (int j = 0; j < 4; ++j)
            v[j] = as_float(w[j]);
    }
};

struct DrawUniform {
    EBM_HD void operator()(const U32 (&w)[4], F32 (&v)[4]) const {
        EBM_UNROLL for (int j = 0; j < 4; ++j)
            v[j] = uniform_of(w[j]);
    }
    EBM_HD void operator()(const U64 (&w)[2], F64 (&v)[2]) const {
        v[0] = uniform_of(w[0]);
        v[1] = uniform_of(w[1]);
    }
};

struct DrawNormal {
    EBM_HD void operator()(const U32 (&w)[4], F32 (&v)[4]) const {
        normal_pair(w[0], w[1], v[0], v[1]);
        normal_pair(w[2], w[3], v[2], v[3]);
    }
    EBM_HD void operator()(const U64 (&w)[2], F64 (&v)[2]) const { normal_pair(w[0], w[1], v[0], v[1]); }
};

struct DrawBernoulli {
    uint32_t threshold;
    EBM_HD void operator()(const U32 (&w)[4], F32 (&v)[4]) const {
        EBM_UNROLL for (int j = 0; j < 4; ++j)
            v[j] = bernoulli_of(w[j], threshold);
    }
};

template <class T>
struct StoreSink {
    T* out;
    int64_t dim;
    struct Row {
        T* out;
    };
    EBM_HD Row row(int64_t chain) const { return {out + chain * dim}; }
    EBM_HD bool is_flat() const { return true; }
    template <class V>
    EBM_HD void put(const Row& row, int64_t element, V value) const {
        narrow(row.out + element, value);
    }
#if !defined(__CUDACC__)
    template <class V>
    EBM_HD void put_lanes(const Row& row, int64_t element, V values) const {
        store_lanes(row.out + element, values);
    }
#endif
};

// Each 32-bit value is 32 signs, bit 0 first. Elements are counted in words here, dim in signs.
template <class T>
struct RademacherSink {
    T* out;
    int64_t dim;
    struct Row {
        T* out;
        int64_t dim;
    };
    EBM_HD Row row(int64_t chain) const { return {out + chain * dim, dim}; }
    EBM_HD bool is_flat() const { return false; }
    EBM_HD void put(const Row& row, int64_t word, float value) const {
        uint32_t bits = as_bits(value);
        int64_t begin = word * 32;
        int count = row.dim - begin < 32 ? static_cast<int>(row.dim - begin) : 32;
        for (int i = 0; i < count; ++i) row.out[begin + i] = static_cast<T>(as_float(0x3f800000u | (bits >> i) << 31));
    }
#if !defined(__CUDACC__)
    EBM_HD void put_lanes(const Row& row, int64_t word, F32 values) const {
        float one[kLanes];
        store(one, values);
        for (int i = 0; i < kLanes; ++i) put(row, word + i, one[i]);
    }
#endif
};

EBM_END
