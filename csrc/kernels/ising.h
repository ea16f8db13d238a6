// Single-site dynamics of Ising models, one chain on one lane: the bodies that define the law and the draws.
//
// Fields are integers (IsingModel), so they do not depend on the order of summation: whatever updates them in place or adds them
// up in lanes gives the same bits.
#pragma once

#include "../core/random.h"
#include "../ops/ising.h"
#include "sum_tree.h"

EBM_BEGIN

// Streams of the contract in ebmcore/ops/random.py.
constexpr uint32_t kProposalStream = 1, kTieStream = 7;

EBM_HD int32_t coupling_at(const IsingModel& m, int64_t entry) { return m.couplings[m.has_one_coupling ? 0 : entry]; }
EBM_HD int32_t field_at(const IsingModel& m, int64_t site) { return m.field[m.has_one_field ? 0 : site]; }

EBM_HD int32_t local_field(const IsingModel& m, const int8_t* spins, int64_t site) {
    int32_t sum = field_at(m, site);
    for (int64_t k = m.offsets[site]; k < m.offsets[site + 1]; ++k) sum += coupling_at(m, k) * spins[m.neighbours[k]];
    return sum;
}

// A site with local field f is +1 with probability σ(2f). Its less likely value, -sign f (-1 for f = 0), comes up iff a 32-bit word is
// below this threshold: σ(-|2f|) · 2^32, exact to 2^-31 and to seven digits. `scale` is 2 · unit; F: float or F32.
template <class F>
EBM_HD BitsOf<F> rare_threshold(IntOf<F> local, float scale) {
    F magnitude = to_float(local < 0 ? -local : local) * scale;
    F e = exp_of<F>(-magnitude);
    return (BitsOf<F>)to_int(e / (e + 1.0f) * 2147483648.0f) << 1;
}

// Site of a 64-bit word, uniform to num_sites · 2^-64.
EBM_HD int64_t site_of(const uint32_t (&words)[4], int64_t num_sites) {
    uint64_t n = static_cast<uint64_t>(num_sites);
    return static_cast<int64_t>((words[1] * n + (words[0] * n >> 32)) >> 32);
}

// What the draw at `position` of a sweep decides. Eight bits of the proposal stream, 16 positions a block, tell all but one time in
// 256; then 24 more of the tie stream do.
EBM_HD bool is_below(uint32_t byte, uint32_t threshold, const PhiloxKey& key, uint64_t step, uint64_t chain, int64_t position) {
    if (byte != threshold >> 24) return byte < threshold >> 24;
    uint32_t words[4];
    philox_block(key, step, chain, static_cast<uint64_t>(position >> 2), kTieStream, words);
    return words[position & 3] >> 8 < (threshold & 0xffffffu);
}

struct IsingGibbs {
    IsingGibbsParams p;

    EBM_HD void run(int64_t chain, void*) const {
        const IsingModel& m = p.model;
        int8_t* spins = p.spins + chain * m.num_sites;
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const uint64_t first = static_cast<uint64_t>(p.key[1]), id = static_cast<uint64_t>(p.key[2] + chain);
        const float scale = static_cast<float>(2.0 * *m.unit);
        int64_t flips = 0;
        for (int64_t t = 0; t < p.num_steps; ++t) {
            const uint64_t step = first + static_cast<uint64_t>(t);
            uint32_t words[4];
            if (p.scan == Scan::random) {
                philox_block(key, step, id, 0, kProposalStream, words);
                int64_t site = site_of(words, m.num_sites);
                int32_t local = local_field(m, spins, site);
                flips += set(spins + site, local, words[2] < rare_threshold<float>(local, scale));
                continue;
            }
            for (int64_t position = 0; position < m.num_sites; ++position) {
                int j = static_cast<int>(position & 15);
                if (j == 0) philox_block(key, step, id, static_cast<uint64_t>(position >> 4), kProposalStream, words);
                int64_t site = p.order ? p.order[position] : position;
                int32_t local = local_field(m, spins, site);
                uint32_t byte = words[j >> 2] >> 8 * (j & 3) & 0xffu;
                flips += set(spins + site, local, is_below(byte, rare_threshold<float>(local, scale), key, step, id, position));
            }
        }
        if (p.num_flips) p.num_flips[chain] += flips;
    }

    static EBM_HD int set(int8_t* spin, int32_t local, bool is_rare) {
        int8_t value = (local >= 0) != is_rare ? 1 : -1;
        int is_changed = value != *spin;
        *spin = value;
        return is_changed;
    }
};

struct IsingMetropolis {
    IsingChainParams p;

    EBM_HD void run(int64_t chain, void*) const {
        const IsingModel& m = p.model;
        int8_t* spins = p.spins + chain * m.num_sites;
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const uint64_t first = static_cast<uint64_t>(p.key[1]), id = static_cast<uint64_t>(p.key[2] + chain);
        const float scale = static_cast<float>(2.0 * *m.unit);
        int64_t flips = 0;
        double sum = 0.0;
        bool accepts = false;
        for (int64_t t = 0; t < p.num_steps; ++t) {
            uint32_t words[4];
            philox_block(key, first + static_cast<uint64_t>(t), id, 0, kProposalStream, words);
            int64_t site = site_of(words, m.num_sites);
            float rise = to_float(spins[site] * local_field(m, spins, site)) * scale;
            float probability = rise > 0.0f ? exp_of<float>(-rise) : 1.0f;
            // A word as a multiple of 2^-32, compared without rounding it.
            accepts = rise <= 0.0f || words[2] < static_cast<uint32_t>(probability * 4294967296.0f);
            spins[site] = static_cast<int8_t>(accepts ? -spins[site] : spins[site]);
            flips += accepts;
            sum += probability;
        }
        p.is_accepted[chain] = accepts;
        p.acceptance_sums[chain] = sum;
        p.num_flips[chain] = flips;
    }
};

// g(e^d) of d = -2 · half for the balancing functions of Zanella (2020): √t, t / (1 + t), min(1, t), max(1, t).
template <class F>
EBM_HD F balanced(F half, Balancing balancing) {
    if (balancing == Balancing::sqrt) return exp_of<F>(-half);
    F twice = half + half;
    if (balancing == Balancing::barker) return sigmoid_of<F>(-twice);
    if (balancing == Balancing::min) return exp_of<F>(twice > 0.0f ? -twice : F{});
    return exp_of<F>(twice > 0.0f ? F{} : -twice);
}

// Philox block 0 of one step after another, kHalves · kLanes / 2 steps at a time.
class StepWords {
public:
    EBM_HD StepWords(const PhiloxKey& key, uint64_t first, uint64_t chain, uint32_t stream)
        : key_(key), step_(first), chain_(chain), stream_(stream) {}

    EBM_HD void next(uint32_t (&words)[4]) {
        if (at_ == kSteps) fill();
        EBM_UNROLL for (int j = 0; j < 4; ++j)
            words[j] = static_cast<uint32_t>(words_[j][at_]);
        ++at_;
    }

private:
#if defined(__CUDACC__)
    static constexpr int kSteps = 1;
    EBM_HD void fill() {
        uint32_t words[4];
        philox_block(key_, step_++, chain_, 0, stream_, words);
        for (int j = 0; j < 4; ++j) words_[j][0] = words[j];
        at_ = 0;
    }
#else
    static constexpr int kSteps = kLanes / 2;
    EBM_HD void fill() {
        uint64_t steps[kSteps], c3[kSteps];
        for (int i = 0; i < kSteps; ++i) {
            steps[i] = step_ + static_cast<uint64_t>(i);
            c3[i] = philox_c3(steps[i], chain_, stream_);
        }
        PhiloxRow<U64> rows[1] = {philox_row<U64>(load<U64>(steps), U64{} + chain_, load<U64>(c3), key_)};
        U64 blocks[1] = {U64{}}, words[1][4];
        philox4x32<1>(blocks, rows, key_, words);
        for (int j = 0; j < 4; ++j) store(words_[j], words[0][j]);
        step_ += kSteps;
        at_ = 0;
    }
#endif

    const PhiloxKey& key_;
    uint64_t step_;
    const uint64_t chain_;
    const uint32_t stream_;
    int at_ = kSteps;
    alignas(64) uint64_t words_[4][kSteps];
};

// Gibbs with Gradients (Grathwohl et al. 2021, arXiv 2102.04509) with exact differences: site i is proposed with probability
// w_i / Z, w_i = g(exp(-2 s_i f_i)), and the flip accepted with min(1, Z / Z'). Weights are the leaves of a sum tree; a flip
// recomputes those of the site and its neighbours and the sums above them, a rejection puts the old numbers back.
struct IsingGwg {
    IsingChainParams p;

    EBM_HD void run(int64_t chain, void* scratch) const {
        const IsingModel& m = p.model;
        int8_t* spins = p.spins + chain * m.num_sites;
        const float unit = static_cast<float>(*m.unit);
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        StepWords draws(key, static_cast<uint64_t>(p.key[1]), static_cast<uint64_t>(p.key[2] + chain), kProposalStream);

        SumTree tree(static_cast<float*>(scratch), m.num_sites);
        const int64_t room = m.max_degree + 1 + kFan;  // the last vector of weights may run over
        int32_t* fields = reinterpret_cast<int32_t*>(tree.end);
        int32_t* new_fields = fields + m.num_sites;
        float* weights = reinterpret_cast<float*>(new_fields + room);  // of what a flip touches: the new ones, then the old ones
        float* sums[kMaxLevels];
        for (int k = 1; k < kMaxLevels; ++k) sums[k] = weights + k * room;

        float* leaves = tree.level[0];
        for (int64_t i = 0; i < m.num_sites; ++i) {
            fields[i] = local_field(m, spins, i);
            leaves[i] = to_float(spins[i] * fields[i]) * unit;
        }
        for (int64_t i = m.num_sites; i < tree.blocks[0] * kFan; ++i) leaves[i] = 0.0f;
        weigh(leaves, tree.blocks[0] * kFan);
        for (int64_t i = m.num_sites; i < tree.blocks[0] * kFan; ++i) leaves[i] = 0.0f;
        tree.build();

        float total = tree.total();
        int64_t flips = 0;
        double sum = 0.0;
        bool accepts = false;
        for (int64_t t = 0; t < p.num_steps; ++t) {
            uint32_t words[4];
            draws.next(words);
            // 52 bits of words 0 and 1, never 0 and never 1.
            double u = static_cast<double>((static_cast<uint64_t>(words[1]) << 32 | words[0]) >> 12) * 0x1p-52 + 0x1p-53;
            const int64_t site = tree.find(u * static_cast<double>(total));
            const int64_t begin = m.offsets[site], degree = m.offsets[site + 1] - begin;
            const int32_t* neighbours = m.neighbours + begin;
            const int32_t spin = spins[site];

            for (int64_t k = 0; k < degree; ++k) {
                int32_t j = neighbours[k];
                new_fields[k] = fields[j] - 2 * spin * coupling_at(m, begin + k);
                weights[k] = to_float(spins[j] * new_fields[k]) * unit;
            }
            weights[degree] = to_float(-spin * fields[site]) * unit;
            weigh(weights, degree + 1);

            for (int64_t k = 0; k <= degree; ++k) {
                float* leaf = leaves + (k < degree ? neighbours[k] : site);
                float old = *leaf;
                *leaf = weights[k];
                weights[k] = old;
            }
            refresh(tree, neighbours, degree, site, sums);
            const float new_total = tree.total();

            accepts = to_float(words[2] >> 8) * 0x1p-24f * new_total < total;
            sum += static_cast<double>(total < new_total ? total / new_total : 1.0f);
            if (accepts) {
                for (int64_t k = 0; k < degree; ++k) fields[neighbours[k]] = new_fields[k];
                spins[site] = static_cast<int8_t>(-spin);
                total = new_total;
                ++flips;
            } else {
                for (int64_t k = 0; k < degree; ++k) leaves[neighbours[k]] = weights[k];
                leaves[site] = weights[degree];
                restore(tree, neighbours, degree, site, sums);
            }
        }
        p.is_accepted[chain] = accepts;
        p.acceptance_sums[chain] = sum;
        p.num_flips[chain] = flips;
    }

private:
    // In place: s_i f_i to weights. Room up to the next multiple of 16.
    EBM_HD void weigh(float* values, int64_t count) const {
#if defined(__CUDACC__)
        for (int64_t k = 0; k < count; ++k) values[k] = balanced<float>(values[k], p.balancing);
#else
        for (int64_t k = 0; k < count; k += kLanes) store(values + k, balanced<F32>(load<F32>(values + k), p.balancing));
#endif
    }

    // Calls visit(level, block, index of the visit) for each block with a touched entry. The site and its neighbours come in
    // ascending order, so that equal blocks are next to one another.
    template <class Visit>
    static EBM_HD void for_each_block_above(const SumTree& tree, const int32_t* neighbours, int64_t degree, int64_t site,
                                            const Visit& visit) {
        for (int level = 0, shift = 4; level + 1 < tree.num_levels; ++level, shift += 4) {
            int64_t last = -1, count = 0, own = site >> shift;
            bool is_own_due = true;
            for (int64_t k = 0; k <= degree; ++k) {
                int64_t block = k < degree ? static_cast<int64_t>(neighbours[k]) >> shift : tree.blocks[level];
                if (is_own_due && own <= block) {
                    is_own_due = false;
                    if (own != last) visit(level, last = own, count++);
                }
                if (block != last && k < degree) visit(level, last = block, count++);
            }
        }
    }

    static EBM_HD void refresh(const SumTree& tree, const int32_t* neighbours, int64_t degree, int64_t site,
                               float* const (&sums)[kMaxLevels]) {
        for_each_block_above(tree, neighbours, degree, site, [&](int level, int64_t block, int64_t index) {
            sums[level + 1][index] = tree.level[level + 1][block];
            tree.level[level + 1][block] = add_16(tree.level[level] + block * kFan);
        });
    }

    static EBM_HD void restore(const SumTree& tree, const int32_t* neighbours, int64_t degree, int64_t site,
                               float* const (&sums)[kMaxLevels]) {
        for_each_block_above(tree, neighbours, degree, site,
                             [&](int level, int64_t block, int64_t index) { tree.level[level + 1][block] = sums[level + 1][index]; });
    }
};

// E of a chain, and the local fields if they are wanted.
struct IsingEnergy {
    IsingEnergyParams p;

    EBM_HD void run(int64_t chain, void*) const {
        const IsingModel& m = p.model;
        const int8_t* spins = p.spins + chain * m.num_sites;
        int64_t twice = 0;
        for (int64_t i = 0; i < m.num_sites; ++i) {
            int32_t local = local_field(m, spins, i);
            twice += static_cast<int64_t>(spins[i]) * (static_cast<int64_t>(local) + field_at(m, i));
            if (p.fields) p.fields[chain * m.num_sites + i] = local;
        }
        p.energies[chain] = -0.5 * static_cast<double>(twice) * *m.unit;
    }
};

// The same on a torus with one coupling and one field, by products with the next site along each axis.
struct IsingTorusEnergy {
    IsingEnergyParams p;

    EBM_HD void run(int64_t chain, void*) const {
        const IsingModel& m = p.model;
        const int8_t* spins = p.spins + chain * m.num_sites;
        int64_t bonds = 0, magnetisation = 0, stride = 1;
        for (int64_t i = 0; i < m.num_sites; ++i) magnetisation += spins[i];
        for (int d = p.num_dims - 1; d >= 0; stride *= p.sides[d--]) {
            const int64_t outer = stride * p.sides[d];
            for (int64_t base = 0; base < m.num_sites; base += outer) {
                for (int64_t place = 0; place < p.sides[d]; ++place) {
                    const int8_t* here = spins + base + place * stride;
                    const int8_t* next = spins + base + (place + 1 == p.sides[d] ? 0 : place + 1) * stride;
                    for (int64_t begin = 0; begin < stride; begin += 4096) {
                        int32_t sum = 0;
                        const int64_t end = stride - begin < 4096 ? stride : begin + 4096;
                        for (int64_t i = begin; i < end; ++i) sum += here[i] * next[i];
                        bonds += sum;
                    }
                }
            }
        }
        const int64_t total = m.couplings[0] * bonds + m.field[0] * magnetisation;
        p.energies[chain] = -static_cast<double>(total) * *m.unit;
    }
};

EBM_END
