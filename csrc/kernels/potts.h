// Steps of one chain of a Potts model: Gibbs, Gibbs-with-Gradients and Metropolis.
//
// A row is what a site has of every category, in kRow numbers: 4, 16, 32, or up to 256 in multiples of 16. What a row of integers holds
// beyond the categories is undefined (in the tables: what comes next); the weights that are made of it are 0.
#pragma once

#include "../core/math.h"
#include "../core/words.h"
#include "../ops/potts.h"
#include "balancing.h"
#include "sum_tree.h"

EBM_BEGIN

constexpr uint32_t kPottsStream = 1;  // Stream.PROPOSAL
constexpr int kMaxCategories = 256;
constexpr int32_t kNoChange = -2147483647 - 1;  // where there is no difference of fields to make a weight of

// As many numbers of a row of 4 or more as fit into a vector.
#if defined(__CUDACC__)
template <int kRow>
struct RowVector {
    using Ints = int32_t;
    using Bits = uint32_t;
};
#else
template <int kRow>
struct RowVector {
    typedef int32_t Ints __attribute__((vector_size(4 * (kRow < kLanes ? kRow : kLanes))));
    typedef uint32_t Bits __attribute__((vector_size(4 * (kRow < kLanes ? kRow : kLanes))));
};
#endif

// 0, 1, 2, ... from `first` on.
template <class V>
EBM_HD V count_from(int32_t first) {
    constexpr int kCount = sizeof(V) / 4;
    int32_t numbers[kCount];
    EBM_UNROLL_LANES for (int j = 0; j < kCount; ++j) numbers[j] = first + j;
    return load<V>(numbers);
}

// What all kernels know of the model.
template <bool kTable, int kRow>
struct PottsModel {
    using Ints = typename RowVector<kRow>::Ints;
    using Bits = typename RowVector<kRow>::Bits;
    static constexpr int kStep = sizeof(Ints) / 4;
    static constexpr int kRowVectors = kRow > kLanes ? kRow / kLanes : 1;
    PottsParams p;

    EBM_HD int row_size() const { return kRow < kMaxCategories ? kRow : potts_row(p.num_categories); }
    EBM_HD int row_vectors() const { return kRow < kMaxCategories ? kRowVectors : potts_row(p.num_categories) / kLanes; }
    EBM_HD const int32_t* table_row(int64_t entry, int32_t value) const {
        return p.couplings + entry * p.coupling_stride + static_cast<int64_t>(value) * p.num_categories;
    }

    // Sum of the weights of a row.
    EBM_HD float sum_of(const float* weights) const {
        if (kRow == 4) return (weights[0] + weights[1]) + (weights[2] + weights[3]);
        float sum = sum16(weights);
        for (int c = 16; c < row_size(); c += 16) sum += sum16(weights + c);
        return sum;
    }

    // A category with probability in proportion to its weight.
    EBM_HD int pick(const float* weights, uint32_t word) const {
        if (kRow == 4) {
            const float two = weights[0] + weights[1], total = two + (weights[2] + weights[3]);
            const float x = point_below(static_cast<double>(total) * unit_of(word), total);
            return (weights[0] <= x) + (two <= x) + (two + weights[2] <= x);
        }
        const float total = sum_of(weights), x = point_below(static_cast<double>(total) * unit_of(word), total);
        double point = static_cast<double>(x);
        if constexpr (kRow == 16) return pick16(weights, point);
        float before = 0.0f, sum = sum16(weights);
        int c = 0;
        while (sum <= x) {
            c += 16;
            before = sum;
            sum += sum16(weights + c);
        }
        point -= static_cast<double>(before);
        return c + pick16(weights + c, point);
    }
};

// Sweeps of kGroup chains side by side: their updates of a site do not wait for one another, and they share its tables.
template <bool kTable, int kRow>
struct PottsGibbs : PottsModel<kTable, kRow> {
    using Model = PottsModel<kTable, kRow>;
    using Model::p;
    static constexpr int kRowVectors = Model::kRowVectors;
    static constexpr int kGroup = kLanes == 1 ? 1 : kTable ? 32 : 4;
    static constexpr int kBlocksAhead = 16;

    struct Row {
        I32 v[kRowVectors];
    };

    EBM_HD void own_fields(int64_t site, Row& row) const {
        const int32_t* own = p.fields + site * p.num_categories;
        for (int k = 0; k < this->row_vectors(); ++k) row.v[k] = load<I32>(own + k * kLanes);
    }
    EBM_HD void add(int64_t entry, int32_t value, Row& row) const {
        const int32_t* gain = kTable ? this->table_row(entry, value) : p.couplings + entry * p.coupling_stride;
        for (int k = 0; k < this->row_vectors(); ++k) {
            I32 more = kTable ? load<I32>(gain + k * kLanes) : count_from<I32>(k * kLanes) == value ? I32{} + *gain : I32{};
            row.v[k] = (I32)((U32)row.v[k] + (U32)more);
        }
    }

    // A draw from exp(unit · row).
    EBM_HD uint8_t draw(const Row& row, uint32_t word, float unit) const {
        alignas(64) float weights[kRow > kLanes ? kRow : kLanes];
        alignas(64) int32_t numbers[kRow > kLanes ? kRow : kLanes];
        for (int k = 0; k < this->row_vectors(); ++k) store(numbers + k * kLanes, row.v[k]);
        int32_t top = numbers[0];
        if (!p.is_bounded) {
            for (int c = 1; c < p.num_categories; ++c) top = numbers[c] > top ? numbers[c] : top;
        }
        for (int k = 0; k < this->row_vectors(); ++k) {
            F32 w = exp_of<F32>(to_float((I32)((U32)row.v[k] - static_cast<uint32_t>(top))) * unit);
            store(weights + k * kLanes, count_from<I32>(k * kLanes) < p.num_categories ? w : F32{});
        }
        return static_cast<uint8_t>(this->pick(weights, word));
    }

    EBM_HD int64_t update(uint8_t* x, int64_t site, uint32_t word, float unit) const {
        Row row;
        own_fields(site, row);
        for (int64_t e = p.offsets[site]; e < p.offsets[site + 1]; ++e) add(e, x[p.neighbours[e]], row);
        const uint8_t now = x[site], next = draw(row, word, unit);
        x[site] = next;
        return next != now;
    }

    EBM_HD void run(int64_t group, void*) const {
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const int64_t first_chain = group * kGroup;
        const int count = static_cast<int>(p.num_chains - first_chain < kGroup ? p.num_chains - first_chain : kGroup);
        const uint64_t id = static_cast<uint64_t>(p.key[2] + first_chain), step = static_cast<uint64_t>(p.key[1]);
        const float unit = static_cast<float>(p.unit[0]);
        uint8_t* x = p.states + first_chain * p.num_sites;
        uint32_t words[kGroup][kBlocksAhead][4];
        int64_t num_flips[kGroup];
        for (int k = 0; k < count; ++k) num_flips[k] = 0;
        if (p.scan == Scan::random) {
            for (int64_t s = 0; s < p.num_steps; s += kBlocksAhead) {
                const int here = static_cast<int>(p.num_steps - s < kBlocksAhead ? p.num_steps - s : kBlocksAhead);
                for (int k = 0; k < count; ++k) {
                    words_of_steps(key, step + static_cast<uint64_t>(s), id + static_cast<uint64_t>(k), 0, kPottsStream, here, words[k]);
                }
                for (int j = 0; j < here; ++j) {
                    for (int k = 0; k < count; ++k) {
                        const uint32_t* w = words[k][j];
                        num_flips[k] += update(x + k * p.num_sites, uniform_site(w[0], w[1], p.num_sites), w[2], unit);
                    }
                }
            }
        } else {
            for (int64_t s = 0; s < p.num_steps; ++s) sweep(key, step + static_cast<uint64_t>(s), id, count, x, unit, words, num_flips);
        }
        for (int k = 0; k < count; ++k) p.num_flips[first_chain + k] = num_flips[k];
    }

    EBM_HD void sweep(const PhiloxKey& key, uint64_t step, uint64_t id, int count, uint8_t* x, float unit,
                      uint32_t (&words)[kGroup][kBlocksAhead][4], int64_t (&num_flips)[kGroup]) const {
        [[maybe_unused]] Row rows[kTable ? kGroup : 1];
        for (int64_t first = 0; first < p.num_sites; first += 4 * kBlocksAhead) {
            const int here = static_cast<int>(p.num_sites - first < 4 * kBlocksAhead ? p.num_sites - first : 4 * kBlocksAhead);
            for (int k = 0; k < count; ++k) {
                words_of_blocks(key, step, id + static_cast<uint64_t>(k), static_cast<uint64_t>(first / 4), kPottsStream, (here + 3) / 4,
                                words[k]);
            }
            for (int j = 0; j < here; ++j) {
                const int64_t site = p.order ? p.order[first + j] : first + j;
                if constexpr (kTable) {
                    for (int k = 0; k < count; ++k) own_fields(site, rows[k]);
                    for (int64_t e = p.offsets[site]; e < p.offsets[site + 1]; ++e) {
                        const uint8_t* neighbour = x + p.neighbours[e];
                        for (int k = 0; k < count; ++k) add(e, neighbour[k * p.num_sites], rows[k]);
                    }
                    for (int k = 0; k < count; ++k) {
                        uint8_t& now = x[k * p.num_sites + site];
                        const uint8_t next = draw(rows[k], words[k][j / 4][j % 4], unit);
                        num_flips[k] += next != now;
                        now = next;
                    }
                } else {
                    for (int k = 0; k < count; ++k) num_flips[k] += update(x + k * p.num_sites, site, words[k][j / 4][j % 4], unit);
                }
            }
        }
    }
};

template <bool kTable, int kRow>
struct PottsMetropolis : PottsModel<kTable, kRow> {
    using Model = PottsModel<kTable, kRow>;
    using Model::p;

    EBM_HD void run(int64_t chain, void*) const {
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const uint64_t step = static_cast<uint64_t>(p.key[1]), id = static_cast<uint64_t>(p.key[2] + chain);
        const float unit = static_cast<float>(p.unit[0]);
        uint8_t* x = p.states + chain * p.num_sites;
        uint32_t words[kWordBlocks][4];
        int64_t num_flips = 0;
        double sum = 0.0;
        bool is_accepted = false;
        for (int64_t s = 0; s < p.num_steps; s += kWordBlocks) {
            const int count = static_cast<int>(p.num_steps - s < kWordBlocks ? p.num_steps - s : kWordBlocks);
            words_of_steps(key, step + static_cast<uint64_t>(s), id, 0, kPottsStream, count, words);
            for (int j = 0; j < count; ++j) {
                const int64_t site = uniform_site(words[j][0], words[j][1], p.num_sites);
                const int32_t now = x[site];
                int32_t next =
                    static_cast<int32_t>((static_cast<uint64_t>(words[j][2]) * static_cast<uint32_t>(p.num_categories - 1)) >> 32);
                next += next >= now;
                const int32_t* own = p.fields + site * p.num_categories;
                int32_t change = own[next] - own[now];
                for (int64_t e = p.offsets[site]; e < p.offsets[site + 1]; ++e) {
                    const int32_t value = x[p.neighbours[e]];
                    if (kTable) {
                        const int32_t* row = this->table_row(e, value);
                        change += row[next] - row[now];
                    } else {
                        const int32_t gain = p.couplings[e * p.coupling_stride];
                        change += (value == next ? gain : 0) - (value == now ? gain : 0);
                    }
                }
                const float probability = change < 0 ? exp_of<float>(to_float(change) * unit) : 1.0f;
                is_accepted = unit_of(words[j][3]) < static_cast<double>(probability);
                sum += static_cast<double>(probability);
                num_flips += is_accepted;
                if (is_accepted) x[site] = static_cast<uint8_t>(next);
            }
        }
        p.num_flips[chain] = num_flips;
        p.is_accepted[chain] = is_accepted;
        p.acceptance_prob[chain] = p.num_steps ? sum / static_cast<double>(p.num_steps) : 0.0;
    }
};

// Grathwohl, Swersky, Hashemi, Duvenaud & Maddison (2021) with exact differences: q(change) = g(e^d) / Z, hence acceptance
// min(1, Z / Z') for every g(t) = t g(1/t). Z is the top of a tree of sums; a change of one site touches its neighbours only.
template <bool kTable, int kRow>
struct PottsGwg : PottsModel<kTable, kRow> {
    using Model = PottsModel<kTable, kRow>;
    using Model::p;
    using typename Model::Bits;
    using typename Model::Ints;
    static constexpr int kStep = Model::kStep;

    EBM_HD explicit PottsGwg(const PottsParams& params) : Model{params} {}

    struct Chain {
        uint8_t* x;
        int32_t* fields;
        SumTree tree;
        float unit;
    };

    // What a vector of fields weighs at a site of value `now` and field `base`; `first` is its first category.
    template <class V>
    EBM_HD V changes(const int32_t* fields, int32_t base, int32_t now, int32_t first) const {
        V category = count_from<V>(first), change = (V)(load<Bits>(fields) - static_cast<uint32_t>(base));
        return (category < p.num_categories) & (category != now) ? change : V{} + kNoChange;
    }
    EBM_HD F32 weights_of(I32 change, float unit) const {
        return change == kNoChange ? F32{} : balanced<F32>(to_float(change) * unit, p.balancing);
    }

    // The weights of the values of one site.
    EBM_HD void weigh_site(const Chain& c, int64_t site, float* weights) const {
        const int32_t* row = c.fields + site * this->row_size();
        const int32_t now = c.x[site], base = row[now];
        if constexpr (kRow == 4) {
            alignas(64) int32_t padded[16];
            for (int k = 0; k < 4; k += kStep) store(padded + k, changes<Ints>(row + k, base, now, k));
            for (int k = 0; k < 4; k += kLanes) store(weights + k, weights_of(load<I32>(padded + k), c.unit));
        } else {
            for (int k = 0; k < this->row_size(); k += kLanes) store(weights + k, weights_of(changes<I32>(row + k, base, now, k), c.unit));
        }
    }

    // The weights of `count` sites, of which site_of(t) is the t-th, handed to put(t, weight).
    template <class SiteOf, class Put>
    EBM_HD void weigh(const Chain& c, int64_t count, const SiteOf& site_of, const Put& put) const {
        alignas(64) float weights[kRow == 4 ? 64 : kRow];
        if constexpr (kRow > 4) {
            for (int64_t t = 0; t < count; ++t) {
                weigh_site(c, site_of(t), weights);
                put(t, this->sum_of(weights));
            }
        } else {
            alignas(64) int32_t packed[64];  // rows of 16 sites, so that no lane is idle
            for (int64_t first = 0; first < count; first += 16) {
                const int here = static_cast<int>(count - first < 16 ? count - first : 16);
                for (int t = 0; t < here; ++t) {
                    const int64_t site = site_of(first + t);
                    const int32_t* row = c.fields + 4 * site;
                    const int32_t now = c.x[site];
                    EBM_UNROLL_LANES for (int k = 0; k < 4; k += kStep) store(packed + 4 * t + k, changes<Ints>(row + k, row[now], now, k));
                }
                for (int k = 0; k < 4 * here; k += kLanes) store(weights + k, weights_of(load<I32>(packed + k), c.unit));
                for (int t = 0; t < here; ++t) put(first + t, this->sum_of(weights + 4 * t));
            }
        }
    }

    // The weights of a site and its neighbours, and the sums above them, anew.
    EBM_HD void refresh(Chain& c, int64_t site) const {
        const int32_t* neighbours = p.neighbours + p.offsets[site];
        const int64_t degree = p.offsets[site + 1] - p.offsets[site];
        c.tree.mark();
        const auto site_of = [&](int64_t t) { return t ? static_cast<int64_t>(neighbours[t - 1]) : site; };
        weigh(c, degree + 1, site_of, [&](int64_t t, float weight) { c.tree.set(site_of(t), weight); });
        c.tree.refresh(site, neighbours, degree);
    }

    EBM_HD void change(Chain& c, int64_t site, int32_t now, int32_t next) const {
        c.x[site] = static_cast<uint8_t>(next);
        const int size = this->row_size();
        for (int64_t e = p.offsets[site]; e < p.offsets[site + 1]; ++e) {
            int32_t* row = c.fields + static_cast<int64_t>(p.neighbours[e]) * size;
            if (kTable) {
                const int64_t back = p.reverse ? p.reverse[e] : 0;
                const int32_t *gain = this->table_row(back, next), *loss = this->table_row(back, now);
                for (int k = 0; k < size; k += kStep) store(row + k, load<Bits>(row + k) + (load<Bits>(gain + k) - load<Bits>(loss + k)));
            } else {
                const int32_t gain = p.couplings[e * p.coupling_stride];
                row[now] -= gain;
                row[next] += gain;
            }
        }
    }

    EBM_HD void start(Chain& c) const {
        const int size = this->row_size();
        for (int64_t i = 0; i < p.num_sites; ++i) {
            int32_t* row = c.fields + i * size;
            for (int k = 0; k < size; k += kStep) store(row + k, load<Bits>(p.fields + i * p.num_categories + k));
            for (int64_t e = p.offsets[i]; e < p.offsets[i + 1]; ++e) {
                const int32_t value = c.x[p.neighbours[e]];
                if (!kTable) {
                    row[value] += p.couplings[e * p.coupling_stride];
                    continue;
                }
                const int32_t* gain = this->table_row(e, value);
                for (int k = 0; k < size; k += kStep) store(row + k, load<Bits>(row + k) + load<Bits>(gain + k));
            }
        }
        weigh(c, p.num_sites, [](int64_t i) { return i; }, [&](int64_t i, float weight) { c.tree.nodes[i] = weight; });
        c.tree.build();
    }

    EBM_HD void run(int64_t chain, void* scratch) const {
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const uint64_t step = static_cast<uint64_t>(p.key[1]), id = static_cast<uint64_t>(p.key[2] + chain);
        uint32_t words[kWordBlocks][4];
        SumTree tree(scratch, p.num_sites, p.max_degree + 1);
        Chain c{p.states + chain * p.num_sites, static_cast<int32_t*>(tree.end), tree, static_cast<float>(p.unit[0])};
        start(c);
        float z = c.tree.total();
        int64_t num_flips = 0;
        double sum = 0.0;
        bool is_accepted = false;
        for (int64_t s = 0; s < p.num_steps; ++s) {
            const int j = static_cast<int>(s % kWordBlocks);
            if (j == 0) {
                const int64_t left = p.num_steps - s;
                words_of_steps(key, step + static_cast<uint64_t>(s), id, 0, kPottsStream,
                               static_cast<int>(left < kWordBlocks ? left : kWordBlocks), words);
            }
            const int64_t site = c.tree.find(static_cast<double>(z) * unit_of(words[j][0], words[j][1]));
            alignas(64) float weights[kRow == 4 ? 16 : kRow];
            const int32_t now = c.x[site];
            weigh_site(c, site, weights);
            const int32_t next = this->pick(weights, words[j][2]);
            change(c, site, now, next);
            refresh(c, site);
            const float z_next = c.tree.total();
            is_accepted = unit_of(words[j][3]) * static_cast<double>(z_next) < static_cast<double>(z);
            sum += z_next > z ? static_cast<double>(z) / static_cast<double>(z_next) : 1.0;
            if (is_accepted) {
                z = z_next;
                ++num_flips;
            } else {
                change(c, site, next, now);
                c.tree.undo();
            }
        }
        p.num_flips[chain] = num_flips;
        p.is_accepted[chain] = is_accepted;
        p.acceptance_prob[chain] = p.num_steps ? sum / static_cast<double>(p.num_steps) : 0.0;
    }
};

EBM_END
