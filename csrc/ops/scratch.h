// Sizes of what a chain needs besides its state.
#pragma once

#include <cstdint>

namespace ebm {

static inline constexpr int64_t round_up_64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

constexpr int64_t kSumTreeFan = 16;

// Floats of all levels of a sum tree: n weights, sums of 16 of them, of 16 of those, ..., each level padded to a multiple of 16.
static inline constexpr int64_t sum_tree_floats(int64_t n) {
    int64_t total = 0;
    for (int64_t m = (n + 15) / 16 * 16;; m = (m / 16 + 15) / 16 * 16) {
        total += m;
        if (m == kSumTreeFan) return total;
    }
}

}  // namespace ebm
