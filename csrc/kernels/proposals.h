// Proposals of one chain on a discrete space from the differences d = E(x) - E(x with one site changed), and their acceptance.
//
// Weights are g(exp d) relative to the largest, so that no difference overflows. A row is summed in kSumLanes running sums, cut into
// chunks of kSumDepth rows of lanes; the inverse of the distribution function goes by lane, chunk, element. What decides is in double.
#pragma once

#include "../core/math.h"
#include "../core/philox.h"
#include "../core/storage.h"
#include "../ops/proposals.h"

EBM_BEGIN

constexpr double kInfinity = __builtin_inf();

EBM_HD double not_a_number() { return as_double(uint64_t{0x7ff8000000000000u}); }

EBM_HD bool is_finite(double x) { return x - x == 0.0; }

// Uniform on the midpoints of 2^52 intervals, from draw `draw` of a chain's step: two to a block.
EBM_HD double uniform_draw(const int64_t* key, int64_t chain, int64_t draw, uint32_t stream) {
    uint32_t words[4];
    philox_block(philox_key(static_cast<uint64_t>(key[0])), static_cast<uint64_t>(key[1]), static_cast<uint64_t>(key[2] + chain),
                 static_cast<uint64_t>(draw / 2), stream, words);
    uint64_t bits = draw % 2 ? words[2] | static_cast<uint64_t>(words[3]) << 32 : words[0] | static_cast<uint64_t>(words[1]) << 32;
    return as_double((bits >> 12) | 0x3ff0000000000000u) - 0.9999999999999999;
}

// kSumLanes neighbours of a row, in as many vectors as the instruction set needs.
template <class C>
struct Lanes {
#if defined(__CUDACC__)
    using V = C;
    static EBM_HD V load_from(const C* p) { return *p; }
    static EBM_HD void store_to(C* p, V v) { *p = v; }
#else
    using V = decltype(load_lanes(static_cast<const C*>(nullptr)));
    static EBM_HD V load_from(const C* p) { return load<V>(p); }
    static EBM_HD void store_to(C* p, V v) { store(p, v); }
#endif
    static constexpr int kWidth = sizeof(V) / sizeof(C);
    static constexpr int kCount = static_cast<int>(kSumLanes) / kWidth;
    static constexpr int kAtOnce = kCount < 4 ? 4 / kCount : 1;

    V v[kCount];

    static EBM_HD Lanes at(const C* p) {
        Lanes out;
        EBM_UNROLL_LANES for (int i = 0; i < kCount; ++i) out.v[i] = load_from(p + i * kWidth);
        return out;
    }

    // The first `count` of them, 0 < count < kSumLanes, and -inf.
    static EBM_HD Lanes part_of(const C* p, int64_t count) {
        C padded[kSumLanes];
        for (int i = 0; i < kSumLanes; ++i) padded[i] = i < count ? p[i] : -C(kInfinity);
        return at(padded);
    }

    static EBM_HD Lanes filled(C value) {
        Lanes out;
        EBM_UNROLL_LANES for (int i = 0; i < kCount; ++i) out.v[i] = V{} + value;
        return out;
    }

    EBM_HD void put(C* values) const { EBM_UNROLL_LANES for (int i = 0; i < kCount; ++i) store_to(values + i * kWidth, v[i]); }

    EBM_HD void add_to(double (&sums)[kSumLanes]) const {
#if defined(__CUDACC__)
        EBM_UNROLL_LANES for (int i = 0; i < kCount; ++i) sums[i] += static_cast<double>(v[i]);
#else
        alignas(64) double wide[kSumLanes];
        EBM_UNROLL_LANES for (int i = 0; i < kCount; ++i) store_lanes(wide + i * kWidth, v[i]);
        EBM_UNROLL_LANES for (int i = 0; i < kSumLanes; i += kLanes / 2) store(sums + i, load<F64>(sums + i) + load<F64>(wide + i));
#endif
    }
};

EBM_HD double sum_of(const double (&sums)[kSumLanes]) {
    double half[kSumLanes / 2];
    for (int i = 0; i < kSumLanes / 2; ++i) half[i] = sums[i] + sums[i + kSumLanes / 2];
    for (int i = 0; i < kSumLanes / 4; ++i) half[i] += half[i + kSumLanes / 4];
    return (half[0] + half[2]) + (half[1] + half[3]);
}

// ln g(exp d) - ln g(exp top). V: one number or a vector of them. kIsSqrt: the usual g, in code of its own.
template <bool kIsSqrt, class C>
struct LogWeight {
    Balancing balancing;
    C top, top_negative_part, top_correction;

    EBM_HD LogWeight(C top, Balancing balancing)
        : balancing(balancing), top(top), top_negative_part(top > 0 ? C(0) : top), top_correction(correction<C>(top)) {}

    template <class V>
    EBM_HD V correction(V d) const {
        return !kIsSqrt && balancing == Balancing::barker ? V(log_of(exp_of_negative(d > V{} ? -d : d) + C(1))) : V{};
    }

    template <class V>
    EBM_HD V operator()(V d) const {
        if (kIsSqrt || balancing == Balancing::sqrt) return (d - top) * C(0.5);
        V negative_part = d > V{} ? V{} : d;  // a NaN stays one
        if (balancing == Balancing::min) return negative_part - top_negative_part;
        if (balancing == Balancing::barker) return (negative_part - top_negative_part) - (correction<V>(d) - top_correction);
        V positive_part = d < V{} ? V{} : d;
        V log_weight = positive_part - (top > 0 ? top : C(0));
        return d == V{} - C(kInfinity) ? d : log_weight;
    }
};

template <class C>
EBM_HD void take_larger(const Lanes<C>& row, Lanes<C>& top) {
    EBM_UNROLL_LANES for (int i = 0; i < Lanes<C>::kCount; ++i) top.v[i] = row.v[i] > top.v[i] ? row.v[i] : top.v[i];
}

template <class C>
EBM_HD C largest(const C* d, int64_t size) {
    using L = Lanes<C>;
    L top = L::filled(-C(kInfinity));
    int64_t begin = 0;
    for (; begin + kSumLanes <= size; begin += kSumLanes) take_larger(L::at(d + begin), top);
    if (begin < size) take_larger(L::part_of(d + begin, size - begin), top);
    C values[kSumLanes];
    top.put(values);
    C result = values[0];
    for (int i = 1; i < kSumLanes; ++i) result = values[i] > result ? values[i] : result;
    return result;
}

// The distribution over the changes of a chain.
template <bool kIsSqrt, class C>
class Changes {
public:
    // chunk_sums: room for kSumLanes sums of every chunk; null if nothing will be drawn.
    EBM_HD Changes(const C* d, int64_t size, C* chunk_sums, Balancing balancing)
        : d_(d), size_(size), chunk_sums_(chunk_sums), top_(largest(d, size)), log_weight_(top_, balancing) {
        using L = Lanes<C>;
        for (int i = 0; i < kSumLanes; ++i) lane_[i] = 0.0;
        for (int64_t begin = 0, chunk = 0; begin < size; ++chunk) {
            L sums = L::filled(C(0));
            int64_t stop = begin + kSumChunk < size ? begin + kSumChunk : size;
            for (; begin + L::kAtOnce * kSumLanes <= stop; begin += L::kAtOnce * kSumLanes) add_weights<L::kAtOnce>(d + begin, sums);
            for (; begin + kSumLanes <= stop; begin += kSumLanes) add_weights<1>(d + begin, sums);
            if (begin < stop) {
                C rest[kSumLanes];
                for (int i = 0; i < kSumLanes; ++i) rest[i] = begin + i < stop ? d[begin + i] : -C(kInfinity);
                add_weights<1>(rest, sums);
                begin = stop;
            }
            sums.add_to(lane_);
            if (chunk_sums) sums.put(chunk_sums + chunk * kSumLanes);
        }
        total_ = sum_of(lane_);
        log_total_ = log_of(total_);
    }

    // False if a difference is NaN or +inf, or none is above -inf.
    EBM_HD bool is_proper() const { return is_finite(static_cast<double>(top_)) && is_finite(total_); }

    // NaN for what is no change.
    EBM_HD double log_prob(int64_t index) const {
        if (index < 0 || index >= size_) return not_a_number();
        return static_cast<double>(log_weight_(d_[index])) - log_total_;
    }

    // The change at which the distribution function passes u, 0 < u < 1; one of weight 0 never. Rounding can carry the residual past
    // the end of a sum: then it is the last of positive weight.
    EBM_HD int64_t draw(double u) const {
        double rest = u * total_;
        int64_t lane = 0, last = 0;
        for (; lane < kSumLanes; ++lane) {
            if (rest < lane_[lane]) break;
            rest -= lane_[lane];
            if (lane_[lane] > 0.0) last = lane;
        }
        if (lane == kSumLanes) {
            lane = last;
            rest = kInfinity;
        }
        int64_t num_chunks = (size_ + kSumChunk - 1) / kSumChunk, chunk = 0;
        last = 0;
        for (; chunk < num_chunks; ++chunk) {
            double sum = static_cast<double>(chunk_sums_[chunk * kSumLanes + lane]);
            if (rest < sum) break;
            rest -= sum;
            if (sum > 0.0) last = chunk;
        }
        if (chunk == num_chunks) {
            chunk = last;
            rest = kInfinity;
        }
        int64_t begin = chunk * kSumChunk + lane, stop = begin + kSumChunk < size_ ? begin + kSumChunk : size_;
        last = begin;
        for (int64_t i = begin; i < stop; i += kSumLanes) {
            double weight = static_cast<double>(exp_of_negative(log_weight_(d_[i])));
            if (rest < weight) return i;
            rest -= weight;
            if (weight > 0.0) last = i;
        }
        return last;
    }

private:
    // kRows rows of lanes at once, so that the exponentials of one hide the latency of the others; summed in order.
    template <int kRows>
    EBM_HD void add_weights(const C* d, Lanes<C>& sums) const {
        Lanes<C> rows[kRows];
        EBM_UNROLL_LANES for (int j = 0; j < kRows; ++j) rows[j] = Lanes<C>::at(d + j * kSumLanes);
        EBM_UNROLL_LANES for (int j = 0; j < kRows; ++j) {
            EBM_UNROLL_LANES for (int i = 0; i < Lanes<C>::kCount; ++i) rows[j].v[i] = exp_of_negative(log_weight_(rows[j].v[i]));
        }
        EBM_UNROLL_LANES for (int j = 0; j < kRows; ++j) {
            EBM_UNROLL_LANES for (int i = 0; i < Lanes<C>::kCount; ++i) sums.v[i] = sums.v[i] + rows[j].v[i];
        }
    }

    const C* d_;
    int64_t size_;
    C* chunk_sums_;
    C top_;
    LogWeight<kIsSqrt, C> log_weight_;
    alignas(64) double lane_[kSumLanes];
    double total_, log_total_;
};

template <class C>
EBM_HD void strike_out(C* d, int64_t index, int64_t size, int64_t num_categories) {
    int64_t begin = index / num_categories * num_categories;
    if (index < 0 || index >= size) return;
    for (int64_t i = begin; i < begin + num_categories; ++i) d[i] = -C(kInfinity);
}

template <class C>
EBM_HD C* copy_row(C* to, const C* from, int64_t size) {
    using L = Lanes<C>;
    int64_t i = 0;
    for (; i + L::kWidth <= size; i += L::kWidth) L::store_to(to + i, L::load_from(from + i));
    for (; i < size; ++i) to[i] = from[i];
    return to;
}

template <bool kIsSqrt, class C>
struct ProposeFlips {
    ProposeFlipsParams p;

    EBM_HD void run(int64_t chain, void* scratch) const {
        const int64_t size = p.num_sites * p.num_categories, chunks = (size + kSumChunk - 1) / kSumChunk;
        const C* d = static_cast<const C*>(p.differences) + chain * size;
        C* chunk_sums = static_cast<C*>(scratch);
        int64_t* index = p.index + chain * p.num_draws;
        double log_q = 0.0;
        if (p.with_replacement) {
            Changes<kIsSqrt, C> changes(d, size, chunk_sums, p.balancing);
            for (int64_t j = 0; j < p.num_draws; ++j) log_q += draw(changes, chain, j, index);
            if (p.num_categories > 1 && has_conflict(index)) log_q = log_q == log_q ? kInfinity : log_q;
        } else {
            C* left = copy_row(chunk_sums + chunks * kSumLanes, d, size);
            for (int64_t j = 0; j < p.num_draws; ++j) {
                log_q += draw(Changes<kIsSqrt, C>(left, size, chunk_sums, p.balancing), chain, j, index);
                strike_out(left, index[j], size, p.num_categories);
            }
        }
        p.log_q[chain] = log_q;
    }

    EBM_HD double draw(const Changes<kIsSqrt, C>& changes, int64_t chain, int64_t j, int64_t* index) const {
        index[j] = 0;
        if (!changes.is_proper()) return not_a_number();
        index[j] = changes.draw(uniform_draw(p.key, chain, j, p.stream));
        return changes.log_prob(index[j]);
    }

    // Two draws would give one site different values.
    EBM_HD bool has_conflict(const int64_t* index) const {
        for (int64_t i = 1; i < p.num_draws; ++i) {
            for (int64_t j = 0; j < i; ++j) {
                if (index[i] != index[j] && index[i] / p.num_categories == index[j] / p.num_categories) return true;
            }
        }
        return false;
    }
};

// min(1, exp(log_ratio)) against a uniform; NaN and what is not finite are rejected. Returns whether the chain accepts.
struct Verdict {
    bool is_accepted, is_diverged;
    double prob;

    EBM_HD Verdict(double log_ratio, bool is_proper, double u) {
        is_diverged = !is_proper || log_ratio != log_ratio;
        prob = is_diverged ? 0.0 : log_ratio < 0.0 ? exp_of_negative(log_ratio) : 1.0;
        is_accepted = u < prob;
    }
};

template <class P, class C>
EBM_HD void settle(const P& p, const Verdict& verdict, int64_t chain, int64_t size) {
    p.is_accepted[chain] = verdict.is_accepted;
    p.is_diverged[chain] = verdict.is_diverged;
    p.acceptance_prob[chain] = verdict.prob;
    if (!verdict.is_accepted) return;
    static_cast<C*>(p.energy)[chain] = static_cast<const C*>(p.new_energy)[chain];
    copy_row(static_cast<C*>(p.differences) + chain * size, static_cast<const C*>(p.new_differences) + chain * size, size);
}

template <bool kIsSqrt, class C>
struct AcceptFlips {
    AcceptFlipsParams p;

    EBM_HD void run(int64_t chain, void* scratch) const {
        const int64_t size = p.num_sites * p.num_categories;
        const C* d = static_cast<const C*>(p.new_differences) + chain * size;
        const int64_t* back = p.back + chain * p.num_draws;
        double before = static_cast<double>(static_cast<const C*>(p.energy)[chain]);
        double after = static_cast<double>(static_cast<const C*>(p.new_energy)[chain]);
        double log_q_back = 0.0;
        bool is_proper = is_finite(after);
        if (p.with_replacement) {
            Changes<kIsSqrt, C> changes(d, size, nullptr, p.balancing);
            is_proper = is_proper && changes.is_proper();
            for (int64_t j = 0; j < p.num_draws; ++j) log_q_back += changes.log_prob(back[j]);
        } else {
            C* left = copy_row(static_cast<C*>(scratch), d, size);
            for (int64_t j = p.num_draws - 1; j >= 0; --j) {  // the way back visits the sites the other way round
                Changes<kIsSqrt, C> changes(left, size, nullptr, p.balancing);
                is_proper = is_proper && changes.is_proper();
                log_q_back += changes.log_prob(back[j]);
                strike_out(left, back[j], size, p.num_categories);
            }
        }
        double log_ratio = (before - after) + (log_q_back - p.log_q[chain]);
        settle<AcceptFlipsParams, C>(p, Verdict(log_ratio, is_proper, uniform_draw(p.key, chain, 0, p.stream)), chain, size);
    }
};

// ------------------------------------------------------------------------------------------------------------------------------------
// Discrete Langevin, two values: a site changes with probability sigmoid(z), z = d / 2 - penalty.

// The less likely outcome has probability e / (1 + e), e = exp(-|z|), and is drawn by u (1 + e) < e: small probabilities keep their
// digits, and what cannot happen does not. float32 takes u from all 32 bits of a word.
template <class C>
struct LangevinSites {
    uint8_t* changes;
    const C* d;
    int64_t dim;
    C penalty;

    struct Row {
        uint8_t* changes;
        const C* d;
    };
    EBM_HD Row row(int64_t chain) const { return {changes + chain * dim, d + chain * dim}; }
    EBM_HD bool is_flat() const { return true; }

    static EBM_HD float uniform_from(float word) { return (to_float(as_bits(word)) + 0.5f) * 2.3283064e-10f; }
    static EBM_HD double uniform_from(double u) { return u; }
    EBM_HD void put(const Row& row, int64_t e, C word) const {
        C z = row.d[e] * C(0.5) - penalty;
        C small = exp_of_negative(z > 0 ? -z : z);
        row.changes[e] = (z > 0) != (uniform_from(word) * (small + C(1)) < small);
    }
#if !defined(__CUDACC__)
    static EBM_HD F32 uniform_from(F32 word) { return (to_float(as_bits(word)) + 0.5f) * 2.3283064e-10f; }
    static EBM_HD F64 uniform_from(F64 u) { return u; }
    template <class V>
    EBM_HD void put_lanes(const Row& row, int64_t e, V word) const {
        constexpr int kWidth = sizeof(V) / sizeof(C);
        V z = load_lanes(row.d + e) * C(0.5) - penalty;
        V small = exp_of_negative(z > V{} ? -z : z);
        V changes = (uniform_from(word) * (small + C(1)) < small) != (z > V{}) ? V{} + C(1) : V{};
        C values[kWidth];
        store(values, changes);
        for (int i = 0; i < kWidth; ++i) row.changes[e + i] = static_cast<uint8_t>(values[i]);
    }
#endif
};

// ln of the probability of `changes` given d; NaN where d is NaN or +inf.
template <class C>
class LangevinLogProb {
public:
    EBM_HD LangevinLogProb(const C* d, const uint8_t* changes, int64_t size, C penalty) : penalty_(penalty) {
        using L = Lanes<C>;
        alignas(64) double lane[kSumLanes];
        for (int i = 0; i < kSumLanes; ++i) lane[i] = 0.0;
        for (int64_t begin = 0; begin < size;) {
            L sums = L::filled(C(0)), products = L::filled(C(1));  // of up to kSumDepth factors of at most 2
            int64_t stop = begin + kSumChunk < size ? begin + kSumChunk : size;
            C signs[kSumLanes];
            for (; begin + kSumLanes <= stop; begin += kSumLanes) {
                for (int i = 0; i < kSumLanes; ++i) signs[i] = sign_of(changes[begin + i]);
                add_sites(L::at(d + begin), L::at(signs), sums, products);
            }
            if (begin < stop) {  // past the end a difference of -inf that stays: probability 1
                for (int i = 0; i < kSumLanes; ++i) signs[i] = sign_of(begin + i < stop ? changes[begin + i] : 0);
                add_sites(L::part_of(d + begin, stop - begin), L::at(signs), sums, products);
                begin = stop;
            }
            EBM_UNROLL_LANES for (int i = 0; i < L::kCount; ++i) sums.v[i] = sums.v[i] - log_of(products.v[i]);
            sums.add_to(lane);
        }
        value = sum_of(lane);
    }

    double value;

private:
    static EBM_HD C sign_of(uint8_t is_changed) { return static_cast<C>(2 * static_cast<int32_t>(is_changed) - 1); }

    // ln sigmoid(chosen) = min(chosen, 0) - ln(1 + exp(-|z|)); the latter of several sites by one logarithm of the product.
    EBM_HD void add_sites(const Lanes<C>& row, const Lanes<C>& sign, Lanes<C>& sums, Lanes<C>& products) const {
        using V = typename Lanes<C>::V;
        EBM_UNROLL_LANES for (int i = 0; i < Lanes<C>::kCount; ++i) {
            V z = row.v[i] * C(0.5) - penalty_;
            products.v[i] = products.v[i] * (exp_of_negative(z > V{} ? -z : z) + C(1));
            V chosen = z * sign.v[i];
            V excess = row.v[i] == V{} + C(kInfinity) ? row.v[i] - row.v[i] : V{};  // +inf must not come out as a number
            sums.v[i] = sums.v[i] + ((chosen > V{} ? V{} : chosen) + excess);
        }
    }

    C penalty_;
};

// ------------------------------------------------------------------------------------------------------------------------------------
// Discrete Langevin, tokens: a site is value c with probability ∝ exp(d_c / 2 - penalty), ∝ 1 for its present value.

struct TokenRow {
    const void* tokens;
    Dtype dtype;
    EBM_HD int64_t operator[](int64_t i) const {
        return dtype == Dtype::uint8 ? static_cast<const uint8_t*>(tokens)[i] : static_cast<const int64_t*>(tokens)[i];
    }
};

EBM_HD TokenRow token_row(const void* tokens, Dtype dtype, int64_t begin) {
    return {static_cast<const char*>(tokens) + begin * (dtype == Dtype::uint8 ? 1 : 8), dtype};
}

template <class C>
class SiteValues {
public:
    EBM_HD SiteValues(const C* d, int64_t num_categories, int64_t present, C penalty)
        : d_(d), num_categories_(num_categories), present_(present), penalty_(penalty) {
        top_ = C(0);
        for (int64_t c = 0; c < num_categories; ++c) {
            C z = value(c);
            top_ = z > top_ ? z : top_;
        }
        total_ = 0.0;
        for (int64_t c = 0; c < num_categories; ++c) total_ += weight(c);
    }
    EBM_HD C value(int64_t c) const { return c == present_ ? C(0) : d_[c] * C(0.5) - penalty_; }
    EBM_HD double weight(int64_t c) const { return static_cast<double>(exp_of_negative(value(c) - top_)); }
    // NaN for what is no value.
    EBM_HD double log_prob(int64_t c) const {
        if (c < 0 || c >= num_categories_) return not_a_number();
        return static_cast<double>(value(c) - top_) - log_of(total_);
    }
    EBM_HD int64_t draw(double u) const {
        double rest = u * total_;
        int64_t last = present_;
        for (int64_t c = 0; c < num_categories_; ++c) {
            double w = weight(c);
            if (rest < w) return c;
            rest -= w;
            if (w > 0.0) last = c;
        }
        return last;
    }
    EBM_HD bool is_proper() const { return is_finite(total_); }

private:
    const C* d_;
    int64_t num_categories_, present_;
    C penalty_, top_;
    double total_;
};

template <class C>
struct ProposeTokens {
    ProposeLangevinParams p;

    EBM_HD void run(int64_t chain, void*) const {
        TokenRow old = token_row(p.tokens, p.token_dtype, chain * p.num_sites);
        double log_q = 0.0;
        for (int64_t site = 0; site < p.num_sites; ++site) {
            int64_t i = chain * p.num_sites + site;
            SiteValues<C> values(static_cast<const C*>(p.differences) + i * p.num_categories, p.num_categories, old[site],
                                 static_cast<C>(p.penalty));
            int64_t chosen = values.is_proper() ? values.draw(uniform_draw(p.key, chain, site, p.stream)) : old[site];
            log_q += values.is_proper() ? values.log_prob(chosen) : not_a_number();
            if (p.token_dtype == Dtype::uint8) {
                static_cast<uint8_t*>(p.proposed)[i] = static_cast<uint8_t>(chosen);
            } else {
                static_cast<int64_t*>(p.proposed)[i] = chosen;
            }
        }
        p.log_q[chain] = log_q;
    }
};

template <class C>
struct JudgeSites {
    ProposeLangevinParams p;

    EBM_HD void run(int64_t chain, void*) const {
        int64_t begin = chain * p.num_sites;
        p.log_q[chain] = LangevinLogProb<C>(static_cast<const C*>(p.differences) + begin, static_cast<const uint8_t*>(p.proposed) + begin,
                                            p.num_sites, static_cast<C>(p.penalty))
                             .value;
    }
};

template <class C>
struct AcceptLangevin {
    AcceptLangevinParams p;

    EBM_HD void run(int64_t chain, void*) const {
        const int64_t size = p.num_sites * p.num_categories, begin = chain * p.num_sites;
        const C* d = static_cast<const C*>(p.new_differences) + chain * size;
        double before = static_cast<double>(static_cast<const C*>(p.energy)[chain]);
        double after = static_cast<double>(static_cast<const C*>(p.new_energy)[chain]);
        double log_q_back = 0.0;
        if (p.num_categories == 1) {
            const uint8_t* changes = static_cast<const uint8_t*>(p.proposed) + begin;
            log_q_back = LangevinLogProb<C>(d, changes, p.num_sites, static_cast<C>(p.penalty)).value;
        } else {
            TokenRow old = token_row(p.tokens, p.token_dtype, begin), present = token_row(p.proposed, p.token_dtype, begin);
            for (int64_t site = 0; site < p.num_sites; ++site) {
                SiteValues<C> values(d + site * p.num_categories, p.num_categories, present[site], static_cast<C>(p.penalty));
                log_q_back += values.is_proper() ? values.log_prob(old[site]) : not_a_number();
            }
        }
        double log_ratio = (before - after) + (log_q_back - p.log_q[chain]);
        bool is_proper = is_finite(after) && log_q_back == log_q_back;
        if (!p.metropolis && log_ratio == log_ratio) log_ratio = 0.0;
        settle<AcceptLangevinParams, C>(p, Verdict(log_ratio, is_proper, uniform_draw(p.key, chain, 0, p.stream)), chain, size);
    }
};

EBM_END
