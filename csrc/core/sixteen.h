// Sums of sixteen weights and draws from them, in one order on every target. The running sums are a scan by halves,
// p[j] += p[last of the left half] for halves of 1, 2, 4, 8: rounded as they are, they never decrease in j, and stay as they are
// where a weight is 0, so that a draw by comparing with them cannot give what has no weight.
#pragma once

#include "lanes.h"

EBM_BEGIN

#if !defined(__CUDACC__) && defined(__AVX512F__)

EBM_HD __m512 scan16(__m512 p) {
    const __m512i of_four = _mm512_setr_epi32(3, 3, 3, 3, 3, 3, 3, 3, 11, 11, 11, 11, 11, 11, 11, 11), of_eight = _mm512_set1_epi32(7);
    p = _mm512_mask_add_ps(p, 0xaaaa, p, _mm512_moveldup_ps(p));
    p = _mm512_mask_add_ps(p, 0xcccc, p, _mm512_permute_ps(p, 0x55));
    p = _mm512_mask_add_ps(p, 0xf0f0, p, _mm512_permutexvar_ps(of_four, p));
    return _mm512_mask_add_ps(p, 0xff00, p, _mm512_permutexvar_ps(of_eight, p));
}

EBM_HD float sum16(const float* weights) {
    __m512 p = _mm512_loadu_ps(weights);
    p = _mm512_add_ps(p, _mm512_permute_ps(p, 0xb1));
    p = _mm512_add_ps(p, _mm512_permute_ps(p, 0x4e));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(p), _mm256_permute2f128_ps(_mm512_castps512_ps256(p), _mm512_castps512_ps256(p), 1));
    __m256 high = _mm512_extractf32x8_ps(p, 1);
    high = _mm256_add_ps(high, _mm256_permute2f128_ps(high, high, 1));
    return _mm256_cvtss_f32(_mm256_add_ps(half, high));
}

#else

EBM_HD void scan16(const float* weights, float* p) {
    EBM_UNROLL for (int j = 0; j < 16; ++j)
        p[j] = weights[j];
    EBM_UNROLL for (int half = 1; half < 16; half *= 2) {
        EBM_UNROLL for (int j = 0; j < 16; ++j)
            if (j & half) p[j] += p[(j & ~(2 * half - 1)) + half - 1];
    }
}

EBM_HD float sum16(const float* w) {
    float quads[4];
    EBM_UNROLL for (int j = 0; j < 4; ++j)
        quads[j] = (w[4 * j] + w[4 * j + 1]) + (w[4 * j + 2] + w[4 * j + 3]);
    return (quads[0] + quads[1]) + (quads[2] + quads[3]);
}

#endif

// `point` as a float in [0, total).
EBM_HD float point_below(double point, float total) {
    float p = static_cast<float>(point), below = as_float(as_bits(total) - 1u);
    p = p < 0.0f ? 0.0f : p;
    return p < below ? p : below;
}

// The j in whose share of [0, sum16(weights)) `point` lies; `point` becomes its distance from the start of the share. Some weight must
// be > 0; a j of weight 0 never comes.
EBM_HD int pick16(const float* weights, double& point) {
    float sums[17];
    sums[0] = 0.0f;
#if !defined(__CUDACC__) && defined(__AVX512F__)
    __m512 p = scan16(_mm512_loadu_ps(weights));
    _mm512_storeu_ps(sums + 1, p);
    float x = point_below(point, sums[16]);
    int j = __builtin_popcount(_mm512_cmp_ps_mask(p, _mm512_set1_ps(x), _CMP_LE_OQ));
#else
    scan16(weights, sums + 1);
    float x = point_below(point, sums[16]);
    int j = 0;
    EBM_UNROLL for (int k = 1; k < 17; ++k)
        j += sums[k] <= x;
#endif
    point -= static_cast<double>(sums[j]);
    return j;
}

EBM_END
