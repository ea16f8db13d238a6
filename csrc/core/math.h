// Branch-free elementary functions of the draws: the same IEEE operations, in the same order, on every target (no libm, no
// contraction), hence the same bits. Polynomials are minimax (Remez) fits; the bounds are of the fits.
#pragma once

#include "lanes.h"

EBM_BEGIN

// -2 ln(x · 2^-32) for x in [1/2, 2^32]. x = m · 2^e with m in [2/3, 4/3), t = m - 1: -2 ln m = -2t + t² + t³ q(t), relative
// error 4e-8, exactly 0 at x = 2^32.
EBM_HD F32 neg_two_log(F32 x) {
    constexpr uint32_t two_thirds = 0x3f2aaaabu;
    U32 bits = as_bits(x);
    I32 e = (I32)(bits - two_thirds) >> 23;
    F32 t = as_float(bits - ((U32)e << 23)) - 1.0f;
    F32 q = -0.284546028f * t + 0.3024918362f;
    q = q * t + -0.2791600457f;
    q = q * t + 0.3294381762f;
    q = q * t + -0.4002617887f;
    q = q * t + 0.5000850995f;
    q = q * t + -0.6666635989f;
    return to_float(e - 32) * -1.38629436f + ((q * t + 1.0f) * (t * t) + -2.0f * t);
}

// cos and sin of 2π · turn · 2^-32: quadrant from the two high bits, polynomials (errors 3e-8, 4e-9) on the rest in [-π/4, π/4).
EBM_HD void cos_sin_turn(U32 turn, F32& c, F32& s) {
    F32 a = to_float((I32)(turn << 2)) * 3.6572952e-10f;  // 2π / 2^34
    F32 a2 = a * a;
    F32 sin_a = ((-0.0001951729898f * a2 + 0.008332178146f) * a2 + -0.1666665494f) * a2 * a + a;
    F32 cos_a = ((-0.001359782311f * a2 + 0.04165629458f) * a2 + -0.4999989478f) * a2 + 1.0f;
    U32 quadrant = turn + 0x20000000u;
    F32 cos_abs = (quadrant & 0x40000000u) != 0 ? sin_a : cos_a;
    F32 sin_abs = (quadrant & 0x40000000u) != 0 ? cos_a : sin_a;
    c = as_float(as_bits(cos_abs) ^ ((quadrant ^ (quadrant << 1)) & 0x80000000u));
    s = as_float(as_bits(sin_abs) ^ (quadrant & 0x80000000u));
}

// The integers as wide as F: of a lane, or of a vector of them.
template <class F>
using IntOf = decltype(to_int(F{}));
template <class F>
using BitsOf = decltype(as_bits(F{}));

// e^x for one float (F: float) or a vector (F32), relative error 2.4e-7; 0 below -87.3, +inf above 88.7, NaN for NaN. x = n ln 2 + r
// with |r| <= ln 2 / 2; ln 2 in two parts, of which the first times n is exact.
template <class F>
EBM_HD F exp_of(F x) {
    F bounded = x < -87.33654f ? F{} - 87.33654f : x > 88.72283f ? F{} + 88.72283f : x;
    F shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 · 2^23: the sum is rounded to an integer, its low bits are n
    F n = shifted - 12582912.0f;
    F r = (bounded - n * 0.693359375f) - n * -0.000212194440f;
    F p = 0.00138888892f * r + 0.00833333377f;
    p = p * r + 0.0416666679f;
    p = p * r + 0.166666672f;
    p = p * r + 0.5f;
    F result = (p * (r * r) + r) + 1.0f;
    BitsOf<F> power = (as_bits(shifted) - 0x4b400000u) << 22;  // 2^n in two factors of which neither overflows: n / 2 and the rest
    BitsOf<F> half = power & 0xff800000u;
    BitsOf<F> rest = ((as_bits(shifted) - 0x4b400000u) << 23) - half;
    result = result * as_float(half + 0x3f800000u) * as_float(rest + 0x3f800000u);
    result = x < -87.33654f ? F{} : result;
    return x > 88.72283f ? F{} + __builtin_inff() : result;
}

// The same bits for |x| <= 87, without a thought for others.
template <class F>
EBM_HD F exp_in_range(F x) {
    F shifted = x * 1.44269504f + 12582912.0f;
    F n = shifted - 12582912.0f;
    F r = (x - n * 0.693359375f) - n * -0.000212194440f;
    F p = 0.00138888892f * r + 0.00833333377f;
    p = p * r + 0.0416666679f;
    p = p * r + 0.166666672f;
    p = p * r + 0.5f;
    F result = (p * (r * r) + r) + 1.0f;
    return as_float(as_bits(result) + (as_bits(shifted) << 23));
}

// ln x for a normal positive float, relative error 1e-7 away from 1 and absolute error 1e-7 near it.
template <class F>
EBM_HD F log_of(F x) {
    BitsOf<F> bits = as_bits(x);
    IntOf<F> e = (IntOf<F>)(bits - 0x3f2aaaabu) >> 23;
    F t = as_float(bits - ((BitsOf<F>)e << 23)) - 1.0f;
    F q = -0.284546028f * t + 0.3024918362f;
    q = q * t + -0.2791600457f;
    q = q * t + 0.3294381762f;
    q = q * t + -0.4002617887f;
    q = q * t + 0.5000850995f;
    q = q * t + -0.6666635989f;
    return to_float(e) * 0.693147182f + -0.5f * ((q * t + 1.0f) * (t * t) + -2.0f * t);
}

// The same for x <= 0 or NaN, to the same bits.
template <class F>
EBM_HD F exp_of_negative(F x) {
    F bounded = x < -87.33654f ? F{} - 87.33654f : x;
    F shifted = bounded * 1.44269504f + 12582912.0f;
    F n = shifted - 12582912.0f;
    F r = (bounded - n * 0.693359375f) - n * -0.000212194440f;
    F p = 0.00138888892f * r + 0.00833333377f;
    p = p * r + 0.0416666679f;
    p = p * r + 0.166666672f;
    p = p * r + 0.5f;
    F result = ((p * (r * r) + r) + 1.0f) * as_float((as_bits(shifted) << 23) + 0x3f800000u);
    return x < -87.33654f ? F{} : result;
}

// e^x for one double or a vector of them, relative error 3e-16; 0 below -708, +inf above 709.7. A Taylor series: the first term
// left out is below 4e-18.
template <class F>
EBM_HD F exp_of_double(F x) {
    F bounded = x < -708.0 ? F{} - 708.0 : x > 709.7 ? F{} + 709.7 : x;
    F shifted = bounded * 1.4426950408889634 + 6755399441055744.0;  // 1.5 · 2^52
    F n = shifted - 6755399441055744.0;
    F r = (bounded - n * 0.69314718036912382) - n * 1.9082149292705877e-10;
    F p = 1.6059043836821615e-10 * r + 2.0876756987868099e-9;
    p = p * r + 2.505210838544172e-8;
    p = p * r + 2.7557319223985891e-7;
    p = p * r + 2.7557319223985893e-6;
    p = p * r + 2.4801587301587302e-5;
    p = p * r + 0.00019841269841269841;
    p = p * r + 0.0013888888888888889;
    p = p * r + 0.0083333333333333333;
    p = p * r + 0.041666666666666664;
    p = p * r + 0.16666666666666666;
    p = p * r + 0.5;
    F result = (p * (r * r) + r) + 1.0;
    BitsOf<F> power = (as_bits(shifted) - 0x4338000000000000u) << 51;
    BitsOf<F> half = power & 0xfff0000000000000u;
    BitsOf<F> rest = ((as_bits(shifted) - 0x4338000000000000u) << 52) - half;
    result = result * as_double(half + 0x3ff0000000000000u) * as_double(rest + 0x3ff0000000000000u);
    result = x < -708.0 ? F{} : result;
    return x > 709.7 ? F{} + __builtin_inf() : result;
}

// ln x for a normal positive double or a vector of them: with s = t / (2 + t), ln m = 2 (s + s³ r(s²)), error 2e-17.
template <class F>
EBM_HD F log_of_double(F x) {
    constexpr uint64_t two_thirds = 0x3fe5555555555555u;
    constexpr uint64_t bias = 1023;  // keeps the exponent positive: 64-bit lanes have no arithmetic shift below AVX-512
    BitsOf<F> bits = as_bits(x);
    BitsOf<F> e = (bits - two_thirds + (bias << 52)) >> 52;
    F t = as_double(bits - ((e - bias) << 52)) - 1.0;
    F ef = as_double(e | 0x4330000000000000u) - (4503599627370496.0 + static_cast<double>(bias));
    F s = t / (t + 2.0), s2 = s * s;
    F r = 0.0768409949386252676 * s2 + 0.0762509435532086962;
    r = r * s2 + 0.0909317803166179964;
    r = r * s2 + 0.111110692508387942;
    r = r * s2 + 0.142857146976445143;
    r = r * s2 + 0.199999999980808386;
    r = r * s2 + 0.333333333333363554;
    return ef * 0.6931471805599453 + 2.0 * (r * s2 * s + s);
}

EBM_HD double exp_of(double x) { return exp_of_double<double>(x); }
EBM_HD double exp_of_negative(double x) { return exp_of_double<double>(x); }
EBM_HD double log_of(double x) { return log_of_double<double>(x); }
#if !defined(__CUDACC__)
EBM_HD F64 exp_of(F64 x) { return exp_of_double<F64>(x); }
EBM_HD F64 exp_of_negative(F64 x) { return exp_of_double<F64>(x); }
EBM_HD F64 log_of(F64 x) { return log_of_double<F64>(x); }
#endif

// 1 / (1 + e^-x), relative error 3e-7 down to where it is 0.
template <class F>
EBM_HD F sigmoid_of(F x) {
    return 1.0f / (exp_of<F>(-x) + 1.0f);
}

// ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|).
template <class F>
EBM_HD F softplus_of(F x) {
    F magnitude = x < 0.0f ? -x : x;
    return (x > 0.0f ? x : F{}) + log_of<F>(exp_of<F>(-magnitude) + 1.0f);
}

EBM_HD F64 neg_two_log(F64 x) { return log_of_double<F64>(x) * -2.0; }

// cos and sin of 2π · turn · 2^-64, errors 4e-18.
EBM_HD void cos_sin_turn(U64 turn, F64& c, F64& s) {
    F64 a = as_double(((turn << 2 ^ 0x8000000000000000u) >> 12) | 0x3ff0000000000000u) - 1.5;  // [-1/2, 1/2) of a quarter turn
    a = a * 1.5707963267948966;
    F64 a2 = a * a;
    F64 p = 1.58968279720487369e-10 * a2 + -2.50507586540581396e-8;
    p = p * a2 + 2.75573136952318256e-6;
    p = p * a2 + -0.000198412698298169669;
    p = p * a2 + 0.00833333333332242455;
    p = p * a2 + -0.166666666666666321;
    F64 sin_a = p * a2 * a + a;
    F64 q = -1.13596699192758416e-11 * a2 + 2.08757236853639852e-9;
    q = q * a2 + -2.75573143552480337e-7;
    q = q * a2 + 0.0000248015872894918457;
    q = q * a2 + -0.00138888888888741387;
    q = q * a2 + 0.0416666666666665996;
    F64 cos_a = q * a2 * a2 + (1.0 - 0.5 * a2);
    U64 quadrant = turn + 0x2000000000000000u;
    F64 cos_abs = (quadrant & 0x4000000000000000u) != 0 ? sin_a : cos_a;
    F64 sin_abs = (quadrant & 0x4000000000000000u) != 0 ? cos_a : sin_a;
    c = as_double(as_bits(cos_abs) ^ ((quadrant ^ (quadrant << 1)) & 0x8000000000000000u));
    s = as_double(as_bits(sin_abs) ^ (quadrant & 0x8000000000000000u));
}

EBM_END
