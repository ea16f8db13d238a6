// Sizes of what a chain needs besides its state, in bytes.
#pragma once

#include <cstdint>

namespace ebm {

static inline constexpr int64_t round_up_64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// A SumTree of n weights: levels of n, n / 16, ... numbers, each padded to a multiple of 16, and for each level and each of the
// `max_touched` weights that change at once a number and its index.
static inline constexpr int64_t sum_tree_bytes(int64_t n, int64_t max_touched) {
    int64_t bytes = 0, size = (n + 15) / 16 * 16;
    for (;; size = (size / 16 + 15) / 16 * 16) {
        bytes += 4 * size + 8 * max_touched;
        if (size == 16) return round_up_64(bytes);
    }
}

}  // namespace ebm
