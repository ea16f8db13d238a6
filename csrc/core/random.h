// Words to draws. float32 uses one word per element, float64 two (w0 | w1 << 32, w2 | w3 << 32).
#pragma once

#include "math.h"
#include "philox.h"

EBM_BEGIN

// Uniform on the midpoints (k + 1/2) 2^-23 (float64: 2^-52): never 0 and never 1.
EBM_HD F32 uniform_of(U32 w) { return as_float((w >> 9) | 0x3f800000u) - 0.99999994f; }
EBM_HD F64 uniform_of(U64 w) { return as_double((w >> 12) | 0x3ff0000000000000u) - 0.9999999999999999; }

// Two standard normals (Box & Muller 1958). All 32 bits make the radius, so |z| reaches 6.7 (float64: 53 bits, 8.5). Towards
// radius 0 a float has fewer: z is right to 1e-6 + 4e-8 / radius, never off by 2.5e-4.
EBM_HD void normal_pair(U32 radius, U32 angle, F32& z0, F32& z1) {
    F32 r = square_root(neg_two_log(to_float(radius) + 0.5f));
    F32 c, s;
    cos_sin_turn(angle, c, s);
    z0 = r * c;
    z1 = r * s;
}
EBM_HD void normal_pair(U64 radius, U64 angle, F64& z0, F64& z1) {
    F64 r = square_root(neg_two_log(uniform_of(radius)));
    F64 c, s;
    cos_sin_turn(angle, c, s);
    z0 = r * c;
    z1 = r * s;
}

// 1 with probability threshold · 2^-32, else 0.
EBM_HD F32 bernoulli_of(U32 w, uint32_t threshold) { return w < threshold ? 1.0f : 0.0f; }

EBM_END
