// A sum tree of fan-out 16 over float weights, in memory that the caller owns: draws an index with probability proportional to
// its weight, in O(log16 n). Sums are recomputed from what is below them, in one fixed order, never updated by differences: they
// are a function of the weights alone, so nothing drifts and no history shows.
#pragma once

#include "../core/sixteen.h"
#include "../ops/scratch.h"

EBM_BEGIN

struct SumTree {
    static constexpr int kMaxLevels = 8;  // 16^8 leaves

    float* nodes;               // level after level: the weights, sums of 16 of them, sums of 16 of those, ... down to 16 or fewer
    int64_t level[kMaxLevels];  // where each begins, and how many it has
    int64_t count[kMaxLevels];
    int num_levels;
    int32_t* changed;  // nodes that changed since `mark`, and what they were
    float* saved;
    int64_t num_changed;
    void* end;  // of the memory in use

    // memory: sum_tree_bytes(n, max_touched), aligned to 64.
    EBM_HD SumTree(void* memory, int64_t n, int64_t max_touched) : nodes(static_cast<float*>(memory)), num_levels(0), num_changed(0) {
        int64_t size = 0;
        for (int64_t m = n;; m = (m + 15) / 16) {
            level[num_levels] = size;
            count[num_levels++] = m;
            size += (m + 15) / 16 * 16;
            if (m <= 16) break;
        }
        saved = nodes + size;
        changed = reinterpret_cast<int32_t*>(saved + max_touched * num_levels);
        end = static_cast<char*>(memory) + sum_tree_bytes(n, max_touched);
    }

    // All sums, and the padding, after the weights were written to nodes[0, n).
    EBM_HD void build() {
        for (int l = 0; l < num_levels; ++l) {
            float* at = nodes + level[l];
            for (int64_t i = 0; l > 0 && i < count[l]; ++i) at[i] = sum16(nodes + level[l - 1] + 16 * i);
            for (int64_t i = count[l]; i % 16 != 0; ++i) at[i] = 0.0f;
        }
    }

    EBM_HD float total() const { return sum16(nodes + level[num_levels - 1]); }

    // The index at `place` in [0, total()); never one of weight 0.
    EBM_HD int64_t find(double place) const {
        int64_t index = 0;
        for (int l = num_levels - 1; l >= 0; --l) index = 16 * index + pick16(nodes + level[l] + 16 * index, place);
        return index;
    }

    // Changes from here on can be undone, all together.
    EBM_HD void mark() { num_changed = 0; }
    EBM_HD void set(int64_t node, float value) {
        changed[num_changed] = static_cast<int32_t>(node);
        saved[num_changed++] = nodes[node];
        nodes[node] = value;
    }
    EBM_HD void undo() const {
        for (int64_t t = 0; t < num_changed; ++t) nodes[changed[t]] = saved[t];
    }

    // The sums above `index` and above `others`, which ascend (equal sums are then next to one another).
    EBM_HD void refresh(int64_t index, const int32_t* others, int64_t num_others) {
        for (int l = 1; l < num_levels; ++l) {
            const float* below = nodes + level[l - 1];
            const int64_t own = index >> (4 * l);
            set(level[l] + own, sum16(below + 16 * own));
            int64_t last = own;
            for (int64_t t = 0; t < num_others; ++t) {
                const int64_t node = others[t] >> (4 * l);
                if (node == last || node == own) continue;
                set(level[l] + node, sum16(below + 16 * node));
                last = node;
            }
        }
    }
};

EBM_END
