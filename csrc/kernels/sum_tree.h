// A sum tree of fan-out 16 over float weights, in memory that the caller owns: draws an index with probability proportional to
// its weight, in O(log16 n). Sums are always recomputed from what is below them, in one fixed order, never updated by
// differences: they are a function of the weights alone, so nothing drifts and no history shows.
#pragma once

#include "../core/random.h"
#include "../ops/scratch.h"

EBM_BEGIN

constexpr int kFan = kSumTreeFan;
constexpr int kMaxLevels = 9;  // 16^9 > 2^31 leaves

// Sums of 16 weights, by halves: s8[i] = w[i] + w[i + 8], s4[i] = s8[i] + s8[i + 4], ...
struct Halves {
    float s8[8], s4[4], s2[2];
};

EBM_HD float add_halves(const float* w, Halves& h) {
#if !defined(__CUDACC__)
    typedef float V4 __attribute__((vector_size(16)));
    V4 low = load<V4>(w) + load<V4>(w + 8), high = load<V4>(w + 4) + load<V4>(w + 12);
    store(h.s8, low);
    store(h.s8 + 4, high);
    store(h.s4, low + high);
#else
    for (int i = 0; i < 8; ++i) h.s8[i] = w[i] + w[i + 8];
    for (int i = 0; i < 4; ++i) h.s4[i] = h.s8[i] + h.s8[i + 4];
#endif
    h.s2[0] = h.s4[0] + h.s4[2];
    h.s2[1] = h.s4[1] + h.s4[3];
    return h.s2[0] + h.s2[1];
}

EBM_HD float add_16(const float* w) {
    Halves h;
    return add_halves(w, h);
}

struct SumTree {
    float* level[kMaxLevels];    // level[0]: the weights, padded with zeros to a multiple of 16; level[k + 1]: sums of 16 of level[k]
    int64_t blocks[kMaxLevels];  // of 16 entries
    int num_levels;
    float* end;

    static EBM_HD int64_t padded(int64_t n) { return (n + kFan - 1) / kFan * kFan; }

    // memory: sum_tree_floats(n), of which `end` is left behind it.
    EBM_HD SumTree(float* memory, int64_t n) {
        num_levels = 0;
        for (int64_t m = padded(n);; m = padded(m / kFan)) {
            level[num_levels] = memory;
            blocks[num_levels++] = m / kFan;
            memory += m;
            end = memory;
            if (m == kFan) return;
        }
    }

    // After all weights were written (the padding too).
    EBM_HD void build() {
        for (int k = 0; k + 1 < num_levels; ++k) {
            for (int64_t b = 0; b < blocks[k]; ++b) level[k + 1][b] = add_16(level[k] + b * kFan);
            for (int64_t b = blocks[k]; b < blocks[k + 1] * kFan; ++b) level[k + 1][b] = 0.0f;
        }
    }

    EBM_HD float total() const { return add_16(level[num_levels - 1]); }

    // The index at `place` in [0, total()); never one of weight 0.
    EBM_HD int64_t find(double place) const {
        int64_t index = 0;
        for (int k = num_levels - 1; k >= 0; --k) {
            const float* w = level[k] + index * kFan;
            Halves h;
            add_halves(w, h);
            int i = step(h.s2[0], h.s2[1], place);
            i += 2 * step(h.s4[i], h.s4[i + 2], place);
            i += 4 * step(h.s8[i], h.s8[i + 4], place);
            i += 8 * step(w[i], w[i + 8], place);
            index = index * kFan + i;
        }
        return index;
    }

private:
    static EBM_HD int step(float left, float right, double& place) {
        bool goes_right = place >= static_cast<double>(left) && right > 0.0f;
        place -= goes_right ? static_cast<double>(left) : 0.0;
        return goes_right;
    }
};

EBM_END
