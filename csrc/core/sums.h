// Sums in double of what lies in lanes of float or double.
#pragma once

#include "lanes.h"

EBM_BEGIN

template <class F>
class LaneSum;

template <>
class LaneSum<F32> {
public:
    EBM_HD void add(F32 x) {
        F64 halves[kHalves];
        to_double(x, halves);
        EBM_UNROLL for (int h = 0; h < kHalves; ++h)
            halves_[h] += halves[h];
    }
    // this - other, in double
    EBM_HD F32 minus(const LaneSum& other) const {
        F64 halves[kHalves];
        EBM_UNROLL for (int h = 0; h < kHalves; ++h)
            halves[h] = halves_[h] - other.halves_[h];
        return to_single(halves);
    }
    EBM_HD F32 value() const { return to_single(halves_); }
    EBM_HD void add(const LaneSum& other, double weight) {
        EBM_UNROLL for (int h = 0; h < kHalves; ++h)
            halves_[h] += other.halves_[h] * weight;
    }
    EBM_HD void multiply_by(F32 factor) {
        F64 halves[kHalves];
        to_double(factor, halves);
        EBM_UNROLL for (int h = 0; h < kHalves; ++h)
            halves_[h] *= halves[h];
    }
    // `other` where is_chosen > 0
    EBM_HD void choose(F32 is_chosen, const LaneSum& other) {
        F64 halves[kHalves];
        to_double(is_chosen, halves);
        EBM_UNROLL for (int h = 0; h < kHalves; ++h)
            halves_[h] = halves[h] > 0.0 ? other.halves_[h] : halves_[h];
    }
    EBM_HD void store_doubles(double* to) const {
        EBM_UNROLL for (int h = 0; h < kHalves; ++h)
            store(to + h * (kLanes / kHalves), halves_[h]);
    }

private:
    static EBM_HD F32 to_single(const F64 (&halves)[kHalves]) {
#if defined(__CUDACC__)
        return static_cast<float>(halves[0]);
#else
        typedef float Half __attribute__((vector_size(2 * kLanes)));
        const Half singles[2] = {__builtin_convertvector(halves[0], Half), __builtin_convertvector(halves[1], Half)};
        F32 whole;
        memcpy(&whole, singles, sizeof whole);
        return whole;
#endif
    }

    F64 halves_[kHalves] = {};
};

template <>
class LaneSum<F64> {
public:
    EBM_HD void add(F64 x) { total_ += x; }
    EBM_HD F64 minus(const LaneSum& other) const { return total_ - other.total_; }
    EBM_HD F64 value() const { return total_; }
    EBM_HD void add(const LaneSum& other, double weight) { total_ += other.total_ * weight; }
    EBM_HD void multiply_by(F64 factor) { total_ *= factor; }
    EBM_HD void choose(F64 is_chosen, const LaneSum& other) { total_ = is_chosen > 0.0 ? other.total_ : total_; }
    EBM_HD void store_doubles(double* to) const { store(to, total_); }

private:
    F64 total_ = {};
};

EBM_END
