// Lanes: the number types of all maths above. One lane on CUDA; on the CPU a vector register of kLanes 32-bit lanes (or
// kLanes / 2 lanes of 64 bits), written with the compiler's vector types, so that +, *, <, ?: and & mean the same on both.
// What those operators lack is here, once per instruction set: widening multiply, square root, zips, and `merge`, which makes
// one vector of 32-bit lanes from the low halves of two of 64: even[0], odd[0], even[1], odd[1], ...
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

#if !defined(__CUDACC__) && defined(__x86_64__)
#include <immintrin.h>
#elif !defined(__CUDACC__) && defined(__aarch64__)
#include <arm_neon.h>
#endif

EBM_BEGIN

EBM_HD float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
EBM_HD uint32_t as_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
EBM_HD double as_double(uint64_t bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}
EBM_HD uint64_t as_bits(double x) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    return bits;
}

template <class Vector, class T>
EBM_HD Vector load(const T* p) {
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class Vector, class T>
EBM_HD void store(T* p, Vector v) {
    memcpy(p, &v, sizeof v);
}

EBM_HD float to_float(uint32_t x) { return static_cast<float>(x); }
EBM_HD float to_float(int32_t x) { return static_cast<float>(x); }
EBM_HD int32_t to_int(float x) { return static_cast<int32_t>(x); }

#if defined(__CUDACC__)

constexpr int kLanes = 1, kHalves = 1;
using F32 = float;
using I32 = int32_t;
using U32 = uint32_t;
using F64 = double;
using U64 = uint64_t;

EBM_HD float square_root(float x) { return sqrtf(x); }
EBM_HD double square_root(double x) { return sqrt(x); }
EBM_HD void to_double(float x, double (&halves)[kHalves]) { halves[0] = static_cast<double>(x); }
EBM_HD float multiply_add(float a, float x, float y) { return fmaf(a, x, y); }

#else

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kHalves = 2;  // a vector of 32-bit lanes is two vectors of 64-bit lanes

typedef float F32 __attribute__((vector_size(4 * kLanes)));
typedef int32_t I32 __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U32 __attribute__((vector_size(4 * kLanes)));
typedef double F64 __attribute__((vector_size(4 * kLanes)));
typedef int64_t I64 __attribute__((vector_size(4 * kLanes)));
typedef uint64_t U64 __attribute__((vector_size(4 * kLanes)));

EBM_HD F32 as_float(U32 bits) { return (F32)bits; }
EBM_HD U32 as_bits(F32 x) { return (U32)x; }
EBM_HD F64 as_double(U64 bits) { return (F64)bits; }
EBM_HD U64 as_bits(F64 x) { return (U64)x; }
EBM_HD F32 to_float(U32 x) { return __builtin_convertvector(x, F32); }
EBM_HD F32 to_float(I32 x) { return __builtin_convertvector(x, F32); }
EBM_HD I32 to_int(F32 x) { return __builtin_convertvector(x, I32); }

// a · x + y, rounded once; in two steps on x86-64 without FMA, where what needs it is not run.
#if defined(__AVX512F__)
EBM_HD F32 multiply_add(float a, F32 x, F32 y) { return (F32)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)x, (__m512)y); }
#elif defined(__AVX2__)
EBM_HD F32 multiply_add(float a, F32 x, F32 y) { return (F32)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)x, (__m256)y); }
#elif defined(__aarch64__)
EBM_HD F32 multiply_add(float a, F32 x, F32 y) { return (F32)vfmaq_n_f32((float32x4_t)y, (float32x4_t)x, a); }
#else
EBM_HD F32 multiply_add(float a, F32 x, F32 y) { return a * x + y; }
#endif

#if defined(__AVX512F__)
EBM_HD U64 mul_wide(U64 a, uint32_t m) { return (U64)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m)); }
EBM_HD U32 merge(U64 even, U64 odd) { return (U32)_mm512_mask_shuffle_epi32((__m512i)even, 0xaaaa, (__m512i)odd, (_MM_PERM_ENUM)0xa0); }
EBM_HD F32 square_root(F32 x) { return (F32)_mm512_sqrt_ps((__m512)x); }
EBM_HD F64 square_root(F64 x) { return (F64)_mm512_sqrt_pd((__m512d)x); }
EBM_HD F32 zip_lo32(F32 a, F32 b) { return (F32)_mm512_unpacklo_ps((__m512)a, (__m512)b); }
EBM_HD F32 zip_hi32(F32 a, F32 b) { return (F32)_mm512_unpackhi_ps((__m512)a, (__m512)b); }
EBM_HD F64 zip_lo64(F64 a, F64 b) { return (F64)_mm512_unpacklo_pd((__m512d)a, (__m512d)b); }
EBM_HD F64 zip_hi64(F64 a, F64 b) { return (F64)_mm512_unpackhi_pd((__m512d)a, (__m512d)b); }
EBM_HD void to_double(F32 x, F64 (&halves)[kHalves]) {
    halves[0] = (F64)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x));
    halves[1] = (F64)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)x, 1));
}
#elif defined(__AVX2__)
EBM_HD U64 mul_wide(U64 a, uint32_t m) { return (U64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m)); }
EBM_HD U32 merge(U64 even, U64 odd) { return (U32)_mm256_blend_epi32((__m256i)even, (__m256i)(odd << 32), 0xaa); }
EBM_HD F32 square_root(F32 x) { return (F32)_mm256_sqrt_ps((__m256)x); }
EBM_HD F64 square_root(F64 x) { return (F64)_mm256_sqrt_pd((__m256d)x); }
EBM_HD F32 zip_lo32(F32 a, F32 b) { return (F32)_mm256_unpacklo_ps((__m256)a, (__m256)b); }
EBM_HD F32 zip_hi32(F32 a, F32 b) { return (F32)_mm256_unpackhi_ps((__m256)a, (__m256)b); }
EBM_HD F64 zip_lo64(F64 a, F64 b) { return (F64)_mm256_unpacklo_pd((__m256d)a, (__m256d)b); }
EBM_HD F64 zip_hi64(F64 a, F64 b) { return (F64)_mm256_unpackhi_pd((__m256d)a, (__m256d)b); }
EBM_HD void to_double(F32 x, F64 (&halves)[kHalves]) {
    halves[0] = (F64)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x));
    halves[1] = (F64)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1));
}
#elif defined(__x86_64__)
EBM_HD U64 mul_wide(U64 a, uint32_t m) { return (U64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m)); }
EBM_HD U32 merge(U64 even, U64 odd) { return (U32)((even & 0xffffffffu) | (odd << 32)); }
EBM_HD F32 square_root(F32 x) { return (F32)_mm_sqrt_ps((__m128)x); }
EBM_HD F64 square_root(F64 x) { return (F64)_mm_sqrt_pd((__m128d)x); }
EBM_HD F32 zip_lo32(F32 a, F32 b) { return (F32)_mm_unpacklo_ps((__m128)a, (__m128)b); }
EBM_HD F32 zip_hi32(F32 a, F32 b) { return (F32)_mm_unpackhi_ps((__m128)a, (__m128)b); }
EBM_HD F64 zip_lo64(F64 a, F64 b) { return (F64)_mm_unpacklo_pd((__m128d)a, (__m128d)b); }
EBM_HD F64 zip_hi64(F64 a, F64 b) { return (F64)_mm_unpackhi_pd((__m128d)a, (__m128d)b); }
EBM_HD void to_double(F32 x, F64 (&halves)[kHalves]) {
    halves[0] = (F64)_mm_cvtps_pd((__m128)x);
    halves[1] = (F64)_mm_cvtps_pd(_mm_movehl_ps((__m128)x, (__m128)x));
}
#elif defined(__aarch64__)
EBM_HD U64 mul_wide(U64 a, uint32_t m) { return (U64)vmull_n_u32(vmovn_u64((uint64x2_t)a), m); }
EBM_HD U32 merge(U64 even, U64 odd) { return (U32)vtrn1q_u32((uint32x4_t)even, (uint32x4_t)odd); }
EBM_HD F32 square_root(F32 x) { return (F32)vsqrtq_f32((float32x4_t)x); }
EBM_HD F64 square_root(F64 x) { return (F64)vsqrtq_f64((float64x2_t)x); }
EBM_HD F32 zip_lo32(F32 a, F32 b) { return (F32)vzip1q_f32((float32x4_t)a, (float32x4_t)b); }
EBM_HD F32 zip_hi32(F32 a, F32 b) { return (F32)vzip2q_f32((float32x4_t)a, (float32x4_t)b); }
EBM_HD F64 zip_lo64(F64 a, F64 b) { return (F64)vzip1q_f64((float64x2_t)a, (float64x2_t)b); }
EBM_HD F64 zip_hi64(F64 a, F64 b) { return (F64)vzip2q_f64((float64x2_t)a, (float64x2_t)b); }
EBM_HD void to_double(F32 x, F64 (&halves)[kHalves]) {
    halves[0] = (F64)vcvt_f64_f32(vget_low_f32((float32x4_t)x));
    halves[1] = (F64)vcvt_high_f64_f32((float32x4_t)x);
}
#else
#error "ebmcore has lanes for x86-64, aarch64 and CUDA"
#endif

#endif

#if !defined(__CUDACC__)

// The first `count` lanes alone, fewer than there are; a load fills up with 0.
#if defined(__AVX512F__)
EBM_HD F32 load_some(const float* p, int count) { return (F32)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p); }
EBM_HD F64 load_some(const double* p, int count) { return (F64)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p); }
EBM_HD void store_some(float* p, F32 x, int count) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)x); }
EBM_HD void store_some(double* p, F64 x, int count) { _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1), (__m512d)x); }
#else
EBM_HD F32 load_some(const float* p, int count) {
    float copy[kLanes] = {};
    for (int i = 0; i < count; ++i) copy[i] = p[i];
    return load<F32>(copy);
}
EBM_HD F64 load_some(const double* p, int count) {
    double copy[kLanes / 2] = {};
    for (int i = 0; i < count; ++i) copy[i] = p[i];
    return load<F64>(copy);
}
template <class T, class V>
EBM_HD void store_some(T* p, V x, int count) {
    T copy[sizeof(V) / sizeof(T)];
    store(copy, x);
    for (int i = 0; i < count; ++i) p[i] = copy[i];
}
#endif

// Bytes: kBytes of them a register. `lookup` takes table[index] for indices below 16; `byte_bits` the top bit of each byte.
constexpr int kBytes = 4 * kLanes;
typedef uint8_t U8 __attribute__((vector_size(kBytes)));
typedef int8_t I8 __attribute__((vector_size(kBytes)));

#if defined(__AVX512F__)
EBM_HD U8 lookup(const uint8_t (&table)[16], U8 index) {
    __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return (U8)_mm512_shuffle_epi8(t, (__m512i)index);
}
EBM_HD uint64_t byte_bits(U8 x) { return _mm512_movepi8_mask((__m512i)x); }
#elif defined(__AVX2__)
EBM_HD U8 lookup(const uint8_t (&table)[16], U8 index) {
    __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return (U8)_mm256_shuffle_epi8(t, (__m256i)index);
}
EBM_HD uint64_t byte_bits(U8 x) { return static_cast<uint32_t>(_mm256_movemask_epi8((__m256i)x)); }
#else
EBM_HD U8 lookup(const uint8_t (&table)[16], U8 index) {
    U8 out;
    for (int i = 0; i < kBytes; ++i) out[i] = table[index[i]];
    return out;
}
#if defined(__x86_64__)
EBM_HD uint64_t byte_bits(U8 x) { return static_cast<uint32_t>(_mm_movemask_epi8((__m128i)x)); }
#else
EBM_HD uint64_t byte_bits(U8 x) {
    uint64_t bits = 0;
    for (int i = 0; i < kBytes; ++i) bits |= uint64_t(x[i] >> 7) << i;
    return bits;
}
#endif
#endif

#endif

// Also for one scalar beside a vector of lanes; the high half of `a` is ignored, as in the vector instructions.
EBM_HD uint64_t mul_wide(uint64_t a, uint32_t m) { return (a & 0xffffffffu) * m; }

EBM_END
