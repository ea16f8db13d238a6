// Single-site dynamics of Ising models, one chain on one lane: the bodies that define the law and the draws.
//
// Fields are integers (IsingModel), so they do not depend on the order of summation: whatever updates them in place or adds them
// up in lanes gives the same bits.
#pragma once

#include "../core/random.h"
#include "../core/words.h"
#include "../ops/ising.h"
#include "balancing.h"
#include "sum_tree.h"

EBM_BEGIN

// Streams of the contract in ebmcore/ops/random.py.
constexpr uint32_t kProposalStream = 1, kTieStream = 7;

EBM_HD int32_t coupling_at(const IsingModel& m, int64_t entry) { return m.couplings[m.has_one_coupling ? 0 : entry]; }
EBM_HD int32_t field_at(const IsingModel& m, int64_t site) { return m.field[m.has_one_field ? 0 : site]; }

EBM_HD int32_t local_field(const IsingModel& m, const int8_t* spins, int64_t site) {
    const int64_t begin = m.offsets[site], end = m.offsets[site + 1];
    int32_t sum = 0;
    if (m.has_one_coupling) {
        for (int64_t k = begin; k < end; ++k) sum += spins[m.neighbours[k]];
        sum *= m.couplings[0];
    } else {
        for (int64_t k = begin; k < end; ++k) sum += m.couplings[k] * spins[m.neighbours[k]];
    }
    return sum + field_at(m, site);
}

// A site with local field f is +1 with probability σ(2f). Its less likely value, -sign f (-1 for f = 0), comes up iff a 32-bit word is
// below this threshold: σ(-|2f|) · 2^32, exact to 2^-31 and to seven digits. `scale` is 2 · unit; F: float or F32.
template <class F>
EBM_HD BitsOf<F> rare_threshold(IntOf<F> local, float scale) {
    F magnitude = to_float(local < 0 ? -local : local) * scale;
    F e = exp_of<F>(-magnitude);
    return (BitsOf<F>)to_int(e / (e + 1.0f) * 2147483648.0f) << 1;
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
                int64_t site = uniform_site(words[0], words[1], m.num_sites);
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
            int64_t site = uniform_site(words[0], words[1], m.num_sites);
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

// Gibbs with Gradients (Grathwohl et al. 2021, arXiv 2102.04509) with exact differences: site i is proposed with probability
// w_i / Z, w_i = g(exp(-2 s_i f_i)), and the flip accepted with min(1, Z / Z').
struct IsingGwg {
    IsingChainParams p;

    EBM_HD void run(int64_t chain, void* scratch) const {
        const IsingModel& m = p.model;
        int8_t* spins = p.spins + chain * m.num_sites;
        const float scale = static_cast<float>(-2.0 * *m.unit);
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const uint64_t first = static_cast<uint64_t>(p.key[1]), id = static_cast<uint64_t>(p.key[2] + chain);

        SumTree tree(scratch, m.num_sites, m.max_degree + 1);
        int32_t* fields = static_cast<int32_t*>(tree.end);
        int32_t* new_fields = fields + m.num_sites;
        float* weights = reinterpret_cast<float*>(new_fields + m.max_degree);

        for (int64_t i = 0; i < m.num_sites; ++i) {
            fields[i] = local_field(m, spins, i);
            tree.nodes[i] = to_float(spins[i] * fields[i]) * scale;
        }
        weigh(tree.nodes, m.num_sites);
        tree.build();

        float total = tree.total();
        int64_t flips = 0;
        double sum = 0.0;
        bool accepts = false;
        uint32_t words[kWordBlocks][4];
        for (int64_t t = 0; t < p.num_steps; ++t) {
            const int ahead = static_cast<int>(t % kWordBlocks);
            if (ahead == 0) {
                const int64_t left = p.num_steps - t;
                words_of_steps(key, first + static_cast<uint64_t>(t), id, 0, kProposalStream,
                               static_cast<int>(left < kWordBlocks ? left : kWordBlocks), words);
            }
            const uint32_t (&w)[4] = words[ahead];
            const int64_t site = tree.find(static_cast<double>(total) * unit_of(w[0], w[1]));
            const int64_t begin = m.offsets[site], degree = m.offsets[site + 1] - begin;
            const int32_t* neighbours = m.neighbours + begin;
            const int32_t spin = spins[site];

            for (int64_t k = 0; k < degree; ++k) {
                new_fields[k] = fields[neighbours[k]] - 2 * spin * coupling_at(m, begin + k);
                weights[k] = to_float(spins[neighbours[k]] * new_fields[k]) * scale;
            }
            weights[degree] = to_float(-spin * fields[site]) * scale;
            weigh(weights, degree + 1);

            tree.mark();
            for (int64_t k = 0; k < degree; ++k) tree.set(neighbours[k], weights[k]);
            tree.set(site, weights[degree]);
            tree.refresh(site, neighbours, degree);
            const float new_total = tree.total();

            accepts = unit_of(w[2]) * static_cast<double>(new_total) < static_cast<double>(total);
            sum += static_cast<double>(total < new_total ? total / new_total : 1.0f);
            if (accepts) {
                for (int64_t k = 0; k < degree; ++k) fields[neighbours[k]] = new_fields[k];
                spins[site] = static_cast<int8_t>(-spin);
                total = new_total;
                ++flips;
            } else {
                tree.undo();
            }
        }
        p.is_accepted[chain] = accepts;
        p.acceptance_sums[chain] = sum;
        p.num_flips[chain] = flips;
    }

private:
    // In place: d = E - E' to g(e^d). Room up to the next multiple of 16.
    EBM_HD void weigh(float* values, int64_t count) const {
        for (int64_t k = 0; k < count; k += kLanes) store(values + k, balanced<F32>(load<F32>(values + k), p.balancing));
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
