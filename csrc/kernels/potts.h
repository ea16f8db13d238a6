// Steps of one chain of a Potts model: Gibbs, Gibbs-with-Gradients and Metropolis.
//
// A row is what a site has of every category, in kRow numbers where they are few (4), else in 16 at a time. What a row holds beyond the
// categories is undefined until a weight is made of it, which is 0 there.
#pragma once

#include "../core/math.h"
#include "../core/sixteen.h"
#include "../core/words.h"
#include "../ops/potts.h"

EBM_BEGIN

constexpr uint32_t kPottsStream = 1;    // Stream.PROPOSAL
constexpr int kMaxCategories = 256;
constexpr int32_t kNoChange = -2147483647 - 1;  // where there is no difference of fields to make a weight of

EBM_HD constexpr int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }
EBM_HD constexpr int padded_row(int num_categories) { return num_categories <= 4 ? 4 : (num_categories + 15) / 16 * 16; }

// As many numbers of a row as fit into a vector.
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
    EBM_UNROLL for (int j = 0; j < kCount; ++j)
        numbers[j] = first + j;
    return load<V>(numbers);
}

// What all kernels know of the model.
template <bool kTable, int kRow>
struct PottsModel {
    using Ints = typename RowVector<kRow>::Ints;
    using Bits = typename RowVector<kRow>::Bits;
    static constexpr int kStep = sizeof(Ints) / 4;
    PottsParams p;

    EBM_HD int row_size() const { return kRow == 4 ? 4 : padded_row(p.num_categories); }
    EBM_HD const int32_t* table_row(int64_t entry, int32_t value) const {
        return p.couplings + entry * p.coupling_stride + static_cast<int64_t>(value) * p.num_categories;
    }

    // row = fields of `site` given its neighbours.
    EBM_HD void fields_of(const uint8_t* x, int64_t site, int32_t* row) const {
        const int32_t* own = p.fields + site * p.num_categories;
        const int size = row_size();
        for (int c = 0; c < size; ++c) row[c] = c < p.num_categories ? own[c] : 0;
        for (int64_t e = p.offsets[site]; e < p.offsets[site + 1]; ++e) {
            int32_t value = x[p.neighbours[e]];
            if (kTable) {
                add_row(row, table_row(e, value));
            } else {
                row[value] += p.couplings[e * p.coupling_stride];
            }
        }
    }

    EBM_HD void add_row(int32_t* row, const int32_t* gain) const {
        const int size = row_size();
        for (int c = 0; c < size; c += kStep) store(row + c, (Ints)(load<Bits>(row + c) + load<Bits>(gain + c)));
    }
    EBM_HD void add_difference(int32_t* row, const int32_t* gain, const int32_t* loss) const {
        const int size = row_size();
        for (int c = 0; c < size; c += kStep)
            store(row + c, (Ints)(load<Bits>(row + c) + (load<Bits>(gain + c) - load<Bits>(loss + c))));
    }

    // changes = row - base, and kNoChange beyond the categories and at `except` (-1: nowhere).
    EBM_HD void changes_of(const int32_t* row, int32_t base, int32_t except, int32_t* changes) const {
        const int size = row_size();
        for (int c = 0; c < size; c += kStep) {
            Ints category = count_from<Ints>(c);
            Ints change = (Ints)(load<Bits>(row + c) - static_cast<uint32_t>(base));
            change = category < p.num_categories ? change : Ints{} + kNoChange;
            store(changes + c, category == except ? Ints{} + kNoChange : change);
        }
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
        const float total = sum_of(weights);
        double point = static_cast<double>(total) * unit_of(word);
        if (kRow == 4) {
            const float x = point_below(point, total), two = weights[0] + weights[1];
            return (weights[0] <= x) + (two <= x) + (two + weights[2] <= x);
        }
        const float x = point_below(point, total);
        float before = 0.0f, sum = sum16(weights);
        int c = 0;
        for (; sum <= x; sum = before + sum16(weights + c)) {
            before = sum;
            c += 16;
        }
        point = static_cast<double>(x) - static_cast<double>(before);
        return c + pick16(weights + c, point);
    }
};

// g(e^d) for a change of the fields by d = change · unit.
template <Balancing kBalancing>
EBM_HD void balance(const int32_t* changes, float unit, float* weights, int count) {
    for (int j = 0; j < count; j += kLanes) {
        I32 change = load<I32>(changes + j);
        F32 d = to_float(change) * unit;
        F32 w;
        if (kBalancing == Balancing::sqrt) w = exp_of<F32>(d * 0.5f);
        if (kBalancing == Balancing::barker) w = sigmoid_of<F32>(d);
        if (kBalancing == Balancing::min) w = exp_of<F32>(d < 0.0f ? d : F32{});
        if (kBalancing == Balancing::max) w = exp_of<F32>(d > 0.0f ? d : F32{});
        store(weights + j, change == kNoChange ? F32{} : w);
    }
}

// A site drawn uniformly; its bias is below num_sites / 2^64.
EBM_HD int64_t uniform_site(uint32_t low, uint32_t high, int64_t num_sites) {
    const uint64_t n = static_cast<uint64_t>(num_sites);  // < 2^32
    return static_cast<int64_t>((high * n + ((low * n) >> 32)) >> 32);
}

template <bool kTable, int kRow>
struct PottsGibbs : PottsModel<kTable, kRow> {
    using Model = PottsModel<kTable, kRow>;
    using Model::p;

    // Draws `site` from its conditional; whether it changed.
    EBM_HD bool update(uint8_t* x, int64_t site, uint32_t word, float unit) const {
        alignas(64) int32_t row[kRow == 4 ? 16 : kMaxCategories];
        alignas(64) float weights[kRow == 4 ? 16 : kMaxCategories];
        const int size = this->row_size();
        this->fields_of(x, site, row);
        int32_t largest = row[0];
        for (int c = 1; c < p.num_categories; ++c) largest = row[c] > largest ? row[c] : largest;
        this->changes_of(row, largest, -1, row);
        for (int c = 0; c < size; c += kLanes) {
            I32 change = load<I32>(row + c);
            store(weights + c, change == kNoChange ? F32{} : exp_of<F32>(to_float(change) * unit));
        }
        const uint8_t now = x[site], next = static_cast<uint8_t>(this->pick(weights, word));
        x[site] = next;
        return next != now;
    }

    EBM_HD void run(int64_t chain, void*) const {
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const uint64_t id = static_cast<uint64_t>(p.key[2] + chain);
        uint64_t step = static_cast<uint64_t>(p.key[1]);
        const float unit = static_cast<float>(p.unit[0]);
        uint8_t* x = p.states + chain * p.num_sites;
        uint32_t words[kWordBlocks][4];
        int64_t num_flips = 0;
        if (p.scan == Scan::random) {
            for (int64_t s = 0; s < p.num_steps; s += kWordBlocks) {
                const int count = static_cast<int>(p.num_steps - s < kWordBlocks ? p.num_steps - s : kWordBlocks);
                words_of_steps(key, step + static_cast<uint64_t>(s), id, 0, kPottsStream, count, words);
                for (int j = 0; j < count; ++j)
                    num_flips += update(x, uniform_site(words[j][0], words[j][1], p.num_sites), words[j][2], unit);
            }
        } else {
            for (int64_t s = 0; s < p.num_steps; ++s, ++step) {
                for (int64_t first = 0; first < p.num_sites; first += 4 * kWordBlocks) {
                    const int count = static_cast<int>(p.num_sites - first < 4 * kWordBlocks ? p.num_sites - first : 4 * kWordBlocks);
                    words_of_blocks(key, step, id, static_cast<uint64_t>(first / 4), kPottsStream, (count + 3) / 4, words);
                    for (int j = 0; j < count; ++j) {
                        const int64_t site = p.order ? p.order[first + j] : first + j;
                        num_flips += update(x, site, words[j / 4][j % 4], unit);
                    }
                }
            }
        }
        p.num_flips[chain] = num_flips;
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
                int32_t next = static_cast<int32_t>((static_cast<uint64_t>(words[j][2]) * static_cast<uint32_t>(p.num_categories - 1)) >> 32);
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

// Where things lie in the scratch of one chain of potts_gwg, in bytes.
struct PottsGwgLayout {
    static constexpr int kMaxLevels = 8;
    int64_t level[kMaxLevels];  // in floats from `tree`; level 0 are the sites' weights, each number of a level is a sum of 16 of the one below
    int num_levels;             // the last has 16 numbers at most
    int64_t words, fields, tree, changed, saved, bytes;

    EBM_HD PottsGwgLayout(int64_t num_sites, int32_t num_categories, int64_t max_degree) {
        int64_t size = 0, nodes = num_sites;
        num_levels = 0;
        do {
            if (num_levels) nodes = (nodes + 15) / 16;
            level[num_levels++] = size;
            size += (nodes + 15) / 16 * 16;
        } while (nodes > 16);
        const int64_t log = (max_degree + 1) * num_levels;
        words = 0;
        fields = words + whole_lines(kWordBlocks * 16);
        tree = fields + whole_lines(num_sites * padded_row(num_categories) * 4);
        changed = tree + whole_lines(size * 4);
        saved = changed + whole_lines(log * 4);
        bytes = saved + whole_lines(log * 4);
    }
};

// Grathwohl, Swersky, Hashemi, Duvenaud & Maddison (2021) with exact differences: q(change) = g(e^d) / Z, hence acceptance
// min(1, Z / Z') for every g(t) = t g(1/t). Z is the top of a tree of sums; a change of one site touches its neighbours only.
template <bool kTable, int kRow, Balancing kBalancing>
struct PottsGwg : PottsModel<kTable, kRow> {
    using Model = PottsModel<kTable, kRow>;
    using Model::p;
    PottsGwgLayout layout;

    EBM_HD explicit PottsGwg(const PottsParams& params) : Model{params}, layout(params.num_sites, params.num_categories, params.max_degree) {}

    static constexpr int kChunk = 256;  // weights made at a time

    struct Chain {
        uint8_t* x;
        int32_t* fields;
        float* tree;
        int32_t* changed;  // numbers of the tree and what they were
        float* saved;
        int64_t num_changed;
        float unit;
    };

    // Weights of `count` sites, the first of them `site`, the others from `sites`; handed to put(index among them, weight).
    template <class Put>
    EBM_HD void weigh(const Chain& c, int64_t site, const int32_t* sites, int64_t count, const Put& put) const {
        alignas(64) int32_t changes[kChunk];
        alignas(64) float weights[kChunk];
        const int size = this->row_size(), at_once = kChunk / size;
        for (int64_t first = 0; first < count; first += at_once) {
            const int here = static_cast<int>(count - first < at_once ? count - first : at_once);
            for (int t = 0; t < here; ++t) {
                const int64_t i = first + t == 0 ? site : sites[first + t - 1];
                const int32_t* row = c.fields + i * size;
                const int32_t now = c.x[i];
                this->changes_of(row, row[now], now, changes + t * size);
            }
            balance<kBalancing>(changes, c.unit, weights, here * size);
            for (int t = 0; t < here; ++t) put(first + t, this->sum_of(weights + t * size));
        }
    }

    EBM_HD void set(Chain& c, int64_t node, float value) const {
        c.changed[c.num_changed] = static_cast<int32_t>(node);
        c.saved[c.num_changed++] = c.tree[node];
        c.tree[node] = value;
    }

    // The weights of a site and its neighbours, and the sums above them, anew.
    EBM_HD void refresh(Chain& c, int64_t site) const {
        const int32_t* neighbours = p.neighbours + p.offsets[site];
        const int64_t degree = p.offsets[site + 1] - p.offsets[site];
        c.num_changed = 0;
        weigh(c, site, neighbours, degree + 1, [&](int64_t t, float weight) { set(c, t ? neighbours[t - 1] : site, weight); });
        for (int l = 1; l < layout.num_levels; ++l) {
            const float* below = c.tree + layout.level[l - 1];
            const int64_t own = site >> (4 * l);
            set(c, layout.level[l] + own, sum16(below + 16 * own));
            int64_t last = own;
            for (int64_t t = 0; t < degree; ++t) {  // ascending, so that equal ones are neighbours
                const int64_t node = neighbours[t] >> (4 * l);
                if (node == last || node == own) continue;
                set(c, layout.level[l] + node, sum16(below + 16 * node));
                last = node;
            }
        }
    }

    EBM_HD void change(Chain& c, int64_t site, int32_t now, int32_t next) const {
        c.x[site] = static_cast<uint8_t>(next);
        const int size = this->row_size();
        for (int64_t e = p.offsets[site]; e < p.offsets[site + 1]; ++e) {
            int32_t* row = c.fields + static_cast<int64_t>(p.neighbours[e]) * size;
            if (kTable) {
                const int64_t back = p.reverse ? p.reverse[e] : 0;
                this->add_difference(row, this->table_row(back, next), this->table_row(back, now));
            } else {
                const int32_t gain = p.couplings[e * p.coupling_stride];
                row[now] -= gain;
                row[next] += gain;
            }
        }
    }

    EBM_HD float total(const Chain& c) const { return sum16(c.tree + layout.level[layout.num_levels - 1]); }

    EBM_HD void start(Chain& c) const {
        const int size = this->row_size();
        for (int64_t i = 0; i < p.num_sites; ++i) this->fields_of(c.x, i, c.fields + i * size);
        for (int64_t i = 0; i < p.num_sites; ++i) weigh(c, i, nullptr, 1, [&](int64_t, float weight) { c.tree[i] = weight; });
        int64_t nodes = p.num_sites;
        for (int l = 0; l < layout.num_levels; ++l) {
            float* at = c.tree + layout.level[l];
            if (l) {
                nodes = (nodes + 15) / 16;
                for (int64_t i = 0; i < nodes; ++i) at[i] = sum16(c.tree + layout.level[l - 1] + 16 * i);
            }
            for (int64_t i = nodes; i % 16; ++i) at[i] = 0.0f;
        }
    }

    EBM_HD void run(int64_t chain, void* scratch) const {
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const uint64_t step = static_cast<uint64_t>(p.key[1]), id = static_cast<uint64_t>(p.key[2] + chain);
        char* base = static_cast<char*>(scratch);
        uint32_t(*words)[4] = reinterpret_cast<uint32_t(*)[4]>(base + layout.words);
        Chain c{p.states + chain * p.num_sites,
                reinterpret_cast<int32_t*>(base + layout.fields),
                reinterpret_cast<float*>(base + layout.tree),
                reinterpret_cast<int32_t*>(base + layout.changed),
                reinterpret_cast<float*>(base + layout.saved),
                0,
                static_cast<float>(p.unit[0])};
        start(c);
        float z = total(c);
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
            double point = static_cast<double>(z) * unit_of(words[j][0], words[j][1]);
            int64_t site = 0;
            for (int l = layout.num_levels - 1; l >= 0; --l) site = 16 * site + pick16(c.tree + layout.level[l] + 16 * site, point);
            alignas(64) int32_t changes[kRow == 4 ? 16 : kMaxCategories];
            alignas(64) float weights[kRow == 4 ? 16 : kMaxCategories];
            const int32_t now = c.x[site];
            const int32_t* row = c.fields + site * this->row_size();
            this->changes_of(row, row[now], now, changes);
            balance<kBalancing>(changes, c.unit, weights, this->row_size());
            const int32_t next = this->pick(weights, words[j][2]);
            change(c, site, now, next);
            refresh(c, site);
            const float z_next = total(c);
            is_accepted = unit_of(words[j][3]) * static_cast<double>(z_next) < static_cast<double>(z);
            sum += z_next > z ? static_cast<double>(z) / static_cast<double>(z_next) : 1.0;
            if (is_accepted) {
                z = z_next;
                ++num_flips;
            } else {
                change(c, site, next, now);
                for (int64_t t = 0; t < c.num_changed; ++t) c.tree[c.changed[t]] = c.saved[t];
            }
        }
        p.num_flips[chain] = num_flips;
        p.is_accepted[chain] = is_accepted;
        p.acceptance_prob[chain] = p.num_steps ? sum / static_cast<double>(p.num_steps) : 0.0;
    }
};

EBM_END
