// Steps of Swendsen & Wang of one chain: satisfied edges are laid as bonds, and each cluster that they join is drawn anew from its
// conditional given the fields: spins keep or turn round their pattern, tokens take one value.
#pragma once

#include "../core/math.h"
#include "../core/words.h"
#include "../ops/clusters.h"

EBM_BEGIN

// T: int8_t for spins, uint8_t for tokens.
template <class T>
struct SwendsenWang {
    static constexpr bool kSpin = static_cast<T>(-1) < 0;
    static constexpr uint32_t kBonds = 1, kClusters = 2;  // Stream.PROPOSAL and Stream.ACCEPTANCE
    SwendsenWangParams p;

    // Of the clusters, by their roots: the site of the smallest number, whatever the order of the bonds.
    struct Scratch {
        double* sums;  // of the fields, for each value
        int32_t* parent;
        T* value;  // tokens: the new value; spins: the sign to multiply by
    };

    EBM_HD int32_t root_of(int32_t* parent, int32_t i) const {
        while (parent[i] != i) i = parent[i] = parent[parent[i]];
        return i;
    }

    EBM_HD void lay_bonds(const T* x, int32_t* parent, const PhiloxKey& key, uint64_t step, uint64_t id) const {
        uint32_t words[kWordBlocks][4];
        for (int64_t i = 0; i < p.num_sites; ++i) parent[i] = static_cast<int32_t>(i);
        for (int64_t first = 0; first < p.num_edges; first += 4 * kWordBlocks) {
            const int count = static_cast<int>(p.num_edges - first < 4 * kWordBlocks ? p.num_edges - first : 4 * kWordBlocks);
            words_of_blocks(key, step, id, static_cast<uint64_t>(first / 4), kBonds, (count + 3) / 4, words);
            for (int j = 0; j < count; ++j) {
                const int64_t a = p.edges[2 * (first + j)], b = p.edges[2 * (first + j) + 1];
                double probability = p.bond_probs[(first + j) * p.bond_stride];
                if (kSpin) {
                    probability = x[a] == x[b] ? probability : -probability;
                } else if (x[a] != x[b]) {
                    continue;
                }
                if (unit_of(words[j / 4][j % 4]) < probability) {
                    const int32_t u = root_of(parent, static_cast<int32_t>(a)), v = root_of(parent, static_cast<int32_t>(b));
                    parent[u > v ? u : v] = u > v ? v : u;
                }
            }
        }
    }

    EBM_HD T draw(const double* sums, uint32_t word) const {
        if (kSpin) {
            const float keep = p.fields ? sigmoid_of<float>(static_cast<float>(2.0 * sums[0])) : 0.5f;
            return static_cast<T>(unit_of(word) < static_cast<double>(keep) ? 1 : -1);
        }
        if (!p.fields) return static_cast<T>((static_cast<uint64_t>(word) * static_cast<uint32_t>(p.num_categories)) >> 32);
        double largest = sums[0], total = 0.0;
        for (int c = 1; c < p.num_categories; ++c) largest = sums[c] > largest ? sums[c] : largest;
        for (int c = 0; c < p.num_categories; ++c) total += static_cast<double>(exp_of<float>(static_cast<float>(sums[c] - largest)));
        double left = unit_of(word) * total;
        int value = 0;
        for (int c = 0; c < p.num_categories && left >= 0.0; ++c) {
            const double weight = static_cast<double>(exp_of<float>(static_cast<float>(sums[c] - largest)));
            left -= weight;
            if (weight > 0.0) value = c;
        }
        return static_cast<T>(value);
    }

    EBM_HD int64_t draw_clusters(T* x, const Scratch& scratch, const PhiloxKey& key, uint64_t step, uint64_t id) const {
        const int num_values = kSpin ? 1 : p.num_categories;
        if (p.fields) {
            for (int64_t i = 0; i < p.num_sites * num_values; ++i) scratch.sums[i] = 0.0;
            for (int64_t i = 0; i < p.num_sites; ++i) {
                double* sums = scratch.sums + static_cast<int64_t>(root_of(scratch.parent, static_cast<int32_t>(i))) * num_values;
                const double* own = p.fields + i * num_values;
                for (int c = 0; c < num_values; ++c) sums[c] += kSpin ? own[c] * static_cast<double>(x[i]) : own[c];
            }
        }
        uint32_t words[kWordBlocks][4];
        int64_t num_flips = 0;
        for (int64_t first = 0; first < p.num_sites; first += 4 * kWordBlocks) {
            const int count = static_cast<int>(p.num_sites - first < 4 * kWordBlocks ? p.num_sites - first : 4 * kWordBlocks);
            words_of_blocks(key, step, id, static_cast<uint64_t>(first / 4), kClusters, (count + 3) / 4, words);
            for (int j = 0; j < count; ++j) {
                const int64_t i = first + j, root = root_of(scratch.parent, static_cast<int32_t>(i));
                if (root == i) scratch.value[i] = draw(scratch.sums + i * num_values, words[j / 4][j % 4]);
                const T next = kSpin ? static_cast<T>(x[i] * scratch.value[root]) : scratch.value[root];
                num_flips += next != x[i];
                x[i] = next;
            }
        }
        return num_flips;
    }

    EBM_HD static int64_t sums_bytes(const SwendsenWangParams& p) {
        return p.fields ? 8 * p.num_sites * (kSpin ? 1 : p.num_categories) : 0;
    }

    EBM_HD void run(int64_t chain, void* memory) const {
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const uint64_t step = static_cast<uint64_t>(p.key[1]), id = static_cast<uint64_t>(p.key[2] + chain);
        T* x = static_cast<T*>(p.states) + chain * p.num_sites;
        char* base = static_cast<char*>(memory);
        const Scratch scratch{reinterpret_cast<double*>(base), reinterpret_cast<int32_t*>(base + sums_bytes(p)),
                              reinterpret_cast<T*>(base + sums_bytes(p) + 4 * p.num_sites)};
        int64_t num_flips = 0;
        for (int64_t s = 0; s < p.num_steps; ++s) {
            lay_bonds(x, scratch.parent, key, step + static_cast<uint64_t>(s), id);
            num_flips += draw_clusters(x, scratch, key, step + static_cast<uint64_t>(s), id);
        }
        p.num_flips[chain] = num_flips;
    }
};

EBM_END
