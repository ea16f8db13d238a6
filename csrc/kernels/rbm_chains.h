// Whole chains of small restricted Boltzmann machines, a chain in each lane: every sum runs over the units in their order, whatever the
// lanes. A unit's values in all lanes lie side by side.
#pragma once

#include "../core/words.h"
#include "rbm.h"

EBM_BEGIN

constexpr int kTileUnits = kRbmTile;

EBM_HD int64_t whole_tiles(int64_t units) { return (units + kTileUnits - 1) / kTileUnits * kTileUnits; }

// The chain of a lane: lanes that the last group has too many run its last chain once more, and nobody reads them.
EBM_HD int64_t chain_of(int64_t first, int lane, int64_t num_chains) { return first + lane < num_chains ? first + lane : num_chains - 1; }

template <class T>
EBM_HD void gather_units(const T* rows, int64_t num_units, int64_t first, int64_t num_chains, T* units) {
    for (int lane = 0; lane < kLanes; ++lane) {
        const T* row = rows + chain_of(first, lane, num_chains) * num_units;
        for (int64_t e = 0; e < num_units; ++e) units[e * kLanes + lane] = row[e];
    }
}

EBM_HD void scatter_units(const float* units, int64_t num_units, int64_t first, int64_t num_chains, float* rows) {
    for (int lane = 0; lane < kLanes && first + lane < num_chains; ++lane) {
        for (int64_t e = 0; e < num_units; ++e) rows[(first + lane) * num_units + e] = units[e * kLanes + lane];
    }
}

// The words of one step of all chains of a group.
class GroupWords {
public:
    EBM_HD GroupWords(const PhiloxKey& key, uint64_t step, uint64_t first_id, uint32_t stream) : key_(key) {
        constexpr int kWidth = kLanes / kHalves;
        for (int h = 0; h < kHalves; ++h) {  // the lanes that `merge` takes from each
            uint64_t ids[kWidth], c3[kWidth];
            for (int i = 0; i < kWidth; ++i) {
                ids[i] = first_id + static_cast<uint64_t>(i * kHalves + h);
                c3[i] = philox_c3(step, ids[i], stream);
            }
            rows_[h] = philox_row<U64>(U64{} + step, load<U64>(ids), load<U64>(c3), key);
        }
    }

    // words[4 i + j] = word j of block first_block + i.
    template <int N>
    EBM_HD void draw(int64_t first_block, F32 (&words)[4 * N]) const {
        U64 c0[N * kHalves], drawn[N * kHalves][4];
        PhiloxRow<U64> rows[N * kHalves];
        EBM_UNROLL for (int i = 0; i < N * kHalves; ++i) {
            c0[i] = U64{} + static_cast<uint64_t>(first_block + i / kHalves);
            rows[i] = rows_[i % kHalves];
        }
        philox4x32<N * kHalves>(c0, rows, key_, drawn);
        EBM_UNROLL for (int i = 0; i < N; ++i) {
            EBM_UNROLL for (int j = 0; j < 4; ++j) {
#if defined(__CUDACC__)
                words[4 * i + j] = as_float(static_cast<uint32_t>(drawn[i][j]));
#else
                words[4 * i + j] = as_float(merge(drawn[2 * i][j], drawn[2 * i + 1][j]));
#endif
            }
        }
    }

private:
    const PhiloxKey& key_;
    PhiloxRow<U64> rows_[kHalves];
};

// A tile of units · weight; `weight` is at the tile, in rows of `stride`.
EBM_HD void add_products(const float* units, int64_t num_units, const float* weight, int64_t stride, F32 (&sums)[kTileUnits]) {
    for (int64_t e = 0; e < num_units; ++e) {
        const F32 x = load<F32>(units + e * kLanes);
        EBM_UNROLL for (int t = 0; t < kTileUnits; ++t)
            sums[t] += x * weight[e * stride + t];
    }
}

// Block Gibbs. A zero times a NaN stays a NaN: no unit is left out, though half of them are 0.
struct RbmGibbsBody {
    RbmGibbsParams p;

    EBM_HD void run(int64_t group, void* scratch) const {
        const int64_t first = group * kLanes;
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const uint64_t first_id = static_cast<uint64_t>(p.key[2] + first);
        float* visible = static_cast<float*>(scratch);
        float* hidden = visible + whole_tiles(p.num_visible) * kLanes;
        for (int64_t i = p.num_visible * kLanes; i < whole_tiles(p.num_visible) * kLanes; ++i) visible[i] = 0.0f;
        gather_units(p.states, p.num_visible, first, p.num_chains, visible);
        int64_t num_flips[kLanes] = {};
        for (int64_t s = 0; s < p.num_steps; ++s) {
            const uint64_t step = static_cast<uint64_t>(p.key[1] + s);
            draw_layer(visible, p.num_visible, p.weight, p.hidden_bias, hidden, p.num_hidden, {key, step, first_id, p.hidden_stream});
            const F32 changes = draw_layer(hidden, p.num_hidden, p.transposed, p.visible_bias, visible, p.num_visible,
                                           {key, step, first_id, p.visible_stream});
            float counts[kLanes];
            store(counts, changes);
            for (int lane = 0; lane < kLanes; ++lane) num_flips[lane] += static_cast<int64_t>(counts[lane]);
        }
        scatter_units(visible, p.num_visible, first, p.num_chains, p.states);
        for (int lane = 0; lane < kLanes && first + lane < p.num_chains; ++lane) p.num_flips[first + lane] = num_flips[lane];
    }

private:
    // One layer given the other; returns how many of its units changed. Those that fill the last tile are never 1.
    EBM_HD F32 draw_layer(const float* given, int64_t num_given, const float* weight, const float* bias, float* units, int64_t num_units,
                          const GroupWords& words) const {
        F32 changes = F32{};
        for (int64_t e = 0; e < num_units; e += kTileUnits) {
            F32 logits[kTileUnits] = {}, drawn[kTileUnits];
            add_products(given, num_given, weight + e, whole_tiles(num_units), logits);
            words.draw<kTileUnits / 4>(e / 4, drawn);
            EBM_UNROLL for (int t = 0; t < kTileUnits; ++t) {
                float* unit = units + (e + t) * kLanes;
                const F32 next = draw_sigmoid<F32>(logits[t] + bias[e + t], drawn[t]);
                changes += next != load<F32>(unit) ? F32{} + 1.0f : F32{};
                store(unit, next);
            }
        }
        return changes;
    }
};

// The law of RbmGwgBody, with products of its own.
struct RbmGwgChainsBody {
    RbmGwgChainsParams p;

    EBM_HD void run(int64_t group, void* scratch) const {
        const int64_t first = group * kLanes;
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const uint64_t first_id = static_cast<uint64_t>(p.key[2] + first);
        Group g;
        g.visible = static_cast<float*>(scratch);
        g.weights = g.visible + whole_tiles(p.num_visible) * kLanes;
        g.proposed_weights = g.weights + whole_tiles(p.num_visible) * kLanes;
        g.means = g.proposed_weights + whole_tiles(p.num_visible) * kLanes;
        g.inputs = reinterpret_cast<int32_t*>(g.means + whole_tiles(p.num_hidden) * kLanes);
        g.proposed_inputs = g.inputs + whole_tiles(p.num_hidden) * kLanes;
        for (int64_t i = p.num_visible * kLanes; i < whole_tiles(p.num_visible) * kLanes; ++i) g.visible[i] = 0.0f;
        gather_units(p.states, p.num_visible, first, p.num_chains, g.visible);
        gather_units(p.inputs, p.num_hidden, first, p.num_chains, g.proposed_inputs);
        for (int lane = 0; lane < kLanes; ++lane) {
            g.site[lane] = 0;
            g.acceptance[lane] = 0.0;
            g.num_flips[lane] = 0;
            g.softplus[lane] = g.total[lane] = 0.0;
        }
        for (int64_t e = 0; e < p.num_visible * kLanes; ++e) g.weights[e] = 0.0f;
        for (int64_t e = 0; e < p.num_hidden * kLanes; ++e) g.inputs[e] = 0;
        activate(g);
        weigh(g);
        g.log_total = g.log_proposed_total;
        adopt(g, F32{} + 1.0f);
        for (int64_t s = 0; s < p.num_steps; ++s) {
            const uint64_t step = static_cast<uint64_t>(p.key[1] + s);
            F32 proposal[4], acceptance[4];
            GroupWords(key, step, first_id, p.proposal_stream).draw<1>(0, proposal);
            GroupWords(key, step, first_id, p.acceptance_stream).draw<1>(0, acceptance);
            propose(g, proposal[0]);
            activate(g);
            weigh(g);
            judge(g, acceptance[0]);
        }
        scatter_units(g.visible, p.num_visible, first, p.num_chains, p.states);
        float is_accepted[kLanes];
        store(is_accepted, g.is_accepted);
        for (int lane = 0; lane < kLanes && first + lane < p.num_chains; ++lane) {
            p.is_accepted[first + lane] = is_accepted[lane] > 0.0f ? 1 : 0;
            p.acceptance[first + lane] = g.acceptance[lane];
            p.num_flips[first + lane] = g.num_flips[lane];
        }
    }

private:
    struct Group {
        float *visible, *weights, *proposed_weights, *means;
        int32_t *inputs, *proposed_inputs;
        int64_t site[kLanes], num_flips[kLanes];
        double softplus[kLanes], proposed_softplus[kLanes], total[kLanes], proposed_total[kLanes], acceptance[kLanes];
        float sign[kLanes], bias[kLanes];  // 1 - 2v before the flip of a site, and the bias there
        F32 is_accepted;                   // the last proposal: 1 or 0
        F32 log_q, log_reverse_q, log_total, log_proposed_total;
    };

    // Means and Σ softplus of the proposed inputs.
    EBM_HD void activate(Group& g) const {
        F64 sums[kHalves] = {}, logs[kHalves] = {}, halves[kHalves];
        for (int64_t first = 0; first < p.num_hidden; first += 32) {  // a factor is at most 2, a product 2^32
            F32 product = F32{} + 1.0f;
            for (int64_t j = first; j < p.num_hidden && j < first + 32; ++j) {
                const F32 x = to_float(load<I32>(g.proposed_inputs + j * kLanes)) * p.unit;
                const F32 odds = exp_below<F32>(-magnitude_of<F32>(x));
                const F32 whole = odds + 1.0f;
                product *= whole;
                to_double(x > 0.0f ? x : F32{}, halves);
                EBM_UNROLL for (int h = 0; h < kHalves; ++h)
                    sums[h] += halves[h];
                store(g.means + j * kLanes, (x > 0.0f ? F32{} + 1.0f : odds) / whole);
            }
            to_double(product, halves);
            EBM_UNROLL for (int h = 0; h < kHalves; ++h)
                logs[h] += log_of(halves[h]);
        }
        EBM_UNROLL for (int h = 0; h < kHalves; ++h)
            store(g.proposed_softplus + h * (kLanes / kHalves), sums[h] + logs[h]);
    }

    // The weights of all flips of the proposed state, their sum, and the log share of the flip back.
    EBM_HD void weigh(Group& g) const {
        F32 largest = F32{} - 3.0e38f;
        for (int64_t e = 0; e < p.num_visible; e += kTileUnits) {
            F32 pulls[kTileUnits] = {};
            add_products(g.means, p.num_hidden, p.transposed + e, whole_tiles(p.num_visible), pulls);
            EBM_UNROLL for (int t = 0; t < kTileUnits; ++t) {
                const F32 sign = 1.0f - 2.0f * load<F32>(g.visible + (e + t) * kLanes);
                const F32 log_weight = log_balanced<F32>(sign * (p.visible_bias[e + t] + pulls[t]), p.balancing);
                largest = log_weight > largest ? log_weight : largest;
                store(g.proposed_weights + (e + t) * kLanes, log_weight);
            }
        }
        float back[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) back[lane] = g.proposed_weights[g.site[lane] * kLanes + lane];
        const F32 shift = (largest < 60.0f) & (largest > -60.0f) ? F32{} : largest;
        F64 sums[kHalves] = {}, halves[kHalves];
        for (int64_t e = 0; e < whole_tiles(p.num_visible); ++e) {
            const F32 weight = exp_below<F32>(load<F32>(g.proposed_weights + e * kLanes) - shift);
            store(g.proposed_weights + e * kLanes, weight);
            to_double(weight, halves);
            EBM_UNROLL for (int h = 0; h < kHalves; ++h)
                sums[h] += halves[h];
        }
        EBM_UNROLL for (int h = 0; h < kHalves; ++h)
            store(g.proposed_total + h * (kLanes / kHalves), sums[h]);
        g.log_proposed_total = log_of_doubles(g.proposed_total);
        g.log_reverse_q = load<F32>(back) - shift - g.log_proposed_total;
    }

    EBM_HD static F32 log_of_doubles(const double (&x)[kLanes]) {
        float rounded[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) rounded[lane] = static_cast<float>(x[lane]);
        return log_of<F32>(load<F32>(rounded));
    }

    // In `propose` the rest of the proposed state is taken over, where it was accepted.
    EBM_HD void adopt(Group& g, F32 is_accepted) const {
        g.is_accepted = is_accepted;
        g.log_total = is_accepted > 0.0f ? g.log_proposed_total : g.log_total;
        float taken[kLanes];
        store(taken, is_accepted);
        for (int lane = 0; lane < kLanes; ++lane) {
            g.softplus[lane] = taken[lane] > 0.0f ? g.proposed_softplus[lane] : g.softplus[lane];
            g.total[lane] = taken[lane] > 0.0f ? g.proposed_total[lane] : g.total[lane];
        }
    }

    EBM_HD void propose(Group& g, F32 word) const {
        constexpr int kWidth = kLanes / kHalves;
        float words[kLanes];
        store(words, word);
        double targets[kLanes], sites[kLanes], chosen[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) targets[lane] = unit_of(as_bits(words[lane])) * g.total[lane];
        F64 target[kHalves], below[kHalves] = {}, site[kHalves] = {}, weights[kHalves] = {}, halves[kHalves];
        EBM_UNROLL for (int h = 0; h < kHalves; ++h)
            target[h] = load<F64>(targets + h * kWidth);
        // The last site of some weight below which the weights do not exceed the target.
        for (int64_t e = 0; e < p.num_visible; ++e) {
            float* present = g.weights + e * kLanes;
            const F32 weight = g.is_accepted > 0.0f ? load<F32>(g.proposed_weights + e * kLanes) : load<F32>(present);
            store(present, weight);
            to_double(weight, halves);
            EBM_UNROLL for (int h = 0; h < kHalves; ++h) {
                const auto is_reached = (halves[h] > 0.0) & (below[h] <= target[h]);
                site[h] = is_reached ? F64{} + static_cast<double>(e) : site[h];
                weights[h] = is_reached ? halves[h] : weights[h];
                below[h] += halves[h];
            }
        }
        EBM_UNROLL for (int h = 0; h < kHalves; ++h) {
            store(sites + h * kWidth, site[h]);
            store(chosen + h * kWidth, weights[h]);
        }
        g.log_q = log_of_doubles(chosen) - g.log_total;
        for (int64_t j = 0; j < p.num_hidden; ++j) {
            const I32 proposed = load<I32>(g.proposed_inputs + j * kLanes), present = load<I32>(g.inputs + j * kLanes);
            store(g.inputs + j * kLanes, g.is_accepted > 0.0f ? proposed : present);
        }
        for (int lane = 0; lane < kLanes; ++lane) {
            g.site[lane] = static_cast<int64_t>(sites[lane]);
            g.bias[lane] = p.visible_bias[g.site[lane]];
            float& v = g.visible[g.site[lane] * kLanes + lane];
            g.sign[lane] = 1.0f - 2.0f * v;
            v = 1.0f - v;
            const int32_t* row = p.weight + g.site[lane] * p.num_hidden;
            const int32_t direction = g.sign[lane] > 0.0f ? 1 : -1;
            for (int64_t j = 0; j < p.num_hidden; ++j)
                g.proposed_inputs[j * kLanes + lane] = g.inputs[j * kLanes + lane] + direction * row[j];
        }
    }

    EBM_HD void judge(Group& g, F32 word) const {
        float gains[kLanes], ratios[kLanes], taken[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) gains[lane] = static_cast<float>(g.proposed_softplus[lane] - g.softplus[lane]);
        const F32 gain = load<F32>(gains) + load<F32>(g.sign) * load<F32>(g.bias);
        const F32 log_ratio = gain + (g.log_reverse_q - g.log_q);
        const F32 certain = log_ratio >= 0.0f ? F32{} + 1.0f : F32{};
        const F32 ratio = log_ratio < 0.0f ? exp_of<F32>(log_ratio) : certain;
        const F32 drawn = (to_float(as_bits(word)) + 0.5f) * 2.3283064e-10f;
        adopt(g, drawn < ratio ? F32{} + 1.0f : certain);
        store(ratios, ratio);
        store(taken, g.is_accepted);
        for (int lane = 0; lane < kLanes; ++lane) {
            g.acceptance[lane] += static_cast<double>(ratios[lane]);
            g.num_flips[lane] += taken[lane] > 0.0f;
            float& v = g.visible[g.site[lane] * kLanes + lane];
            v = taken[lane] > 0.0f ? v : 1.0f - v;
        }
    }
};

EBM_END
