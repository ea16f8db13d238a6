// Philox4x32-10: a counter and a key become four random words (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011). Noise is a pure function of where it is used; this table is the whole contract and never changes:
//
//   key       k0, k1       low and high 32 bits of the seed
//   counter   c0           block: elements 4b .. 4b+3 of a chain (float32), 2b, 2b+1 (float64), 128b .. 128b+127 (Rademacher)
//             c1           step, bits 0..31
//             c2           chain, bits 0..31
//             c3           stream (bits 0..7) | chain, bits 32..39 (bits 8..15) | step, bits 32..47 (bits 16..31)
//
// so: fewer than 2^32 blocks in a chain, 2^40 chains, 2^48 steps, 256 streams. A stream names what a draw is for (Stream, in
// ebmcore/ops/random.py); no two draws can meet.
//
// Words are computed in 64-bit lanes of which only the low half counts: a widening multiply ignores the high half of its
// operand, so a product needs neither masks nor shuffles to go on with. c0 alone differs between the blocks of a chain in a
// step, hence rounds 1 and 2 are done but for one product each in `philox_row`.
#pragma once

#include "lanes.h"

EBM_BEGIN

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

struct PhiloxKey {
    uint32_t k0[10], k1[10];
};

EBM_HD PhiloxKey philox_key(uint64_t seed) {
    PhiloxKey key;
    EBM_UNROLL for (int r = 0; r < 10; ++r) {
        key.k0[r] = static_cast<uint32_t>(seed) + static_cast<uint32_t>(r) * kPhiloxW0;
        key.k1[r] = static_cast<uint32_t>(seed >> 32) + static_cast<uint32_t>(r) * kPhiloxW1;
    }
    return key;
}

EBM_HD uint32_t philox_c3(uint64_t step, uint64_t chain, uint32_t stream) {
    return stream | static_cast<uint32_t>(chain >> 32) << 8 | static_cast<uint32_t>(step >> 32) << 16;
}

// What rounds 1 to 3 need of c1, c2, c3 (V: uint64_t for one chain, U64 for a chain per lane).
template <class V>
struct PhiloxRow {
    V xor1, xor2a, xor2b, xor3;
};

template <class V>
EBM_HD PhiloxRow<V> philox_row(V c1, V c2, V c3, const PhiloxKey& key) {
    V p1 = mul_wide(c2, kPhiloxM1);
    V p0 = mul_wide((p1 >> 32) ^ c1 ^ key.k0[0], kPhiloxM0);
    return {c3 ^ key.k1[0], p1 ^ key.k0[1], (p0 >> 32) ^ key.k1[1], p0 ^ key.k1[2]};
}

// One block of one chain.
EBM_HD void philox_block(const PhiloxKey& key, uint64_t step, uint64_t chain, uint64_t block, uint32_t stream, uint32_t (&words)[4]) {
    uint32_t c[4] = {static_cast<uint32_t>(block), static_cast<uint32_t>(step), static_cast<uint32_t>(chain),
                     philox_c3(step, chain, stream)};
    EBM_UNROLL for (int r = 0; r < 10; ++r) {
        uint64_t p0 = mul_wide(c[0], kPhiloxM0), p1 = mul_wide(c[2], kPhiloxM1);
        c[0] = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key.k0[r];
        c[2] = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key.k1[r];
        c[1] = static_cast<uint32_t>(p1);
        c[3] = static_cast<uint32_t>(p0);
    }
    EBM_UNROLL for (int j = 0; j < 4; ++j)
        words[j] = c[j];
}

// N groups of blocks at once: their rounds interleave and hide one another's latency.
template <int N, class V>
EBM_HD void philox4x32(const U64 (&c0)[N], const PhiloxRow<V> (&row)[N], const PhiloxKey& key, U64 (&words)[N][4]) {
    U64 w0[N], w1[N], w2[N], w3[N];
    EBM_UNROLL for (int i = 0; i < N; ++i) {
        U64 p0 = mul_wide(c0[i], kPhiloxM0);
        U64 p1 = mul_wide((p0 >> 32) ^ row[i].xor1, kPhiloxM1);
        w0[i] = (p1 >> 32) ^ row[i].xor2a;
        w1[i] = p1;
        w2[i] = p0 ^ row[i].xor2b;
    }
    EBM_UNROLL for (int i = 0; i < N; ++i) {
        U64 p0 = mul_wide(w0[i], kPhiloxM0), p1 = mul_wide(w2[i], kPhiloxM1);
        w0[i] = (p1 >> 32) ^ w1[i] ^ key.k0[2];
        w2[i] = (p0 >> 32) ^ row[i].xor3;
        w1[i] = p1;
        w3[i] = p0;
    }
    EBM_UNROLL for (int r = 3; r < 10; ++r) {
        EBM_UNROLL for (int i = 0; i < N; ++i) {
            U64 p0 = mul_wide(w0[i], kPhiloxM0), p1 = mul_wide(w2[i], kPhiloxM1);
            w0[i] = (p1 >> 32) ^ w1[i] ^ key.k0[r];
            w2[i] = (p0 >> 32) ^ w3[i] ^ key.k1[r];
            w1[i] = p1;
            w3[i] = p0;
        }
    }
    EBM_UNROLL for (int i = 0; i < N; ++i) {
        words[i][0] = w0[i];
        words[i][1] = w1[i];
        words[i][2] = w2[i];
        words[i][3] = w3[i];
    }
}

EBM_END
