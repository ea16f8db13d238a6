// Memory to lanes and back: float32 and float64 as they are, bfloat16 and float16 widened to float32 and rounded to nearest,
// ties to even. Written in integer operations so that every target gives the same bits.
#pragma once

#include "lanes.h"

EBM_BEGIN

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

// Arithmetic is done in Compute<Storage>.
template <class Storage>
struct ComputeOf {
    using type = float;
};
template <>
struct ComputeOf<double> {
    using type = double;
};
template <class Storage>
using Compute = typename ComputeOf<Storage>::type;

// U: uint32_t or U32, F: float or F32.
template <class F, class U>
EBM_HD F widen_bfloat16(U bits) {
    return as_float(bits << 16);
}

template <class U, class F>
EBM_HD U narrow_bfloat16(F x) {
    U bits = as_bits(x);
    U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? ((bits >> 16) | 0x40u) : rounded;
}

template <class F, class U>
EBM_HD F widen_float16(U bits) {
    U magnitude = (bits & 0x7fffu) << 13;
    U normal = magnitude + (112u << 23);
    U special = normal + (112u << 23);                                        // infinities and NaN
    U subnormal = as_bits(as_float(normal + (1u << 23)) - 6.103515625e-05f);  // 2^-14
    U result = magnitude >= (0x1fu << 23) ? special : magnitude < (1u << 23) ? subnormal : normal;
    return as_float(result | ((bits & 0x8000u) << 16));
}

template <class U, class F>
EBM_HD U narrow_float16(F x) {
    U sign = (as_bits(x) >> 16) & 0x8000u;
    U bits = as_bits(x) & 0x7fffffffu;
    U normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    U subnormal = as_bits(as_float(bits) + 0.5f) - 0x3f000000u;  // the addition rounds to multiples of 2^-24
    U special = (bits & 0x7fffffffu) > 0x7f800000u ? (bits & 0u) + 0x7e00u : (bits & 0u) + 0x7c00u;
    U result = bits >= 0x477ff000u ? special : bits < 0x38800000u ? subnormal : normal;
    return result | sign;
}

EBM_HD float widen(float x) { return x; }
EBM_HD double widen(double x) { return x; }
EBM_HD float widen(BFloat16 x) { return widen_bfloat16<float, uint32_t>(x.bits); }
EBM_HD float widen(Float16 x) { return widen_float16<float, uint32_t>(x.bits); }
EBM_HD void narrow(float* p, float x) { *p = x; }
EBM_HD void narrow(double* p, double x) { *p = x; }
EBM_HD void narrow(double* p, float x) { *p = x; }
EBM_HD void narrow(BFloat16* p, float x) { p->bits = static_cast<uint16_t>(narrow_bfloat16<uint32_t>(x)); }
EBM_HD void narrow(Float16* p, float x) { p->bits = static_cast<uint16_t>(narrow_float16<uint32_t>(x)); }

#if !defined(__CUDACC__)

typedef uint16_t U16 __attribute__((vector_size(2 * kLanes)));
typedef float HalfF32 __attribute__((vector_size(2 * kLanes)));

EBM_HD F32 load_lanes(const float* p) { return load<F32>(p); }
EBM_HD F64 load_lanes(const double* p) { return load<F64>(p); }
EBM_HD F32 load_lanes(const BFloat16* p) { return widen_bfloat16<F32>(__builtin_convertvector(load<U16>(p), U32)); }
EBM_HD F32 load_lanes(const Float16* p) { return widen_float16<F32>(__builtin_convertvector(load<U16>(p), U32)); }
EBM_HD void store_lanes(float* p, F32 x) { store(p, x); }
EBM_HD void store_lanes(double* p, F64 x) { store(p, x); }
EBM_HD void store_lanes(double* p, F32 x) {
    HalfF32 halves[2];
    memcpy(halves, &x, sizeof x);
    store(p, __builtin_convertvector(halves[0], F64));
    store(p + kLanes / 2, __builtin_convertvector(halves[1], F64));
}
EBM_HD void store_lanes(BFloat16* p, F32 x) { store(p, __builtin_convertvector(narrow_bfloat16<U32>(x), U16)); }
EBM_HD void store_lanes(Float16* p, F32 x) { store(p, __builtin_convertvector(narrow_float16<U32>(x), U16)); }

#endif

EBM_END
