// Restricted Boltzmann machines: Bernoulli draws of a layer, its part of the free energy, and Gibbs-with-Gradients around one
// matrix product a step. Rows are walked in chunks of 16 whatever the lanes, so that sums have one order.
#pragma once

#include "../core/random.h"
#include "../ops/rbm.h"
#include "langevin.h"

EBM_BEGIN

constexpr int kChunk = 16;

template <class V, class T>
EBM_HD V take(const T* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class T, class V>
EBM_HD void give(T* p, V v) {
    memcpy(p, &v, sizeof v);
}

// A whole chunk at `p`, or a copy of the last one, with `idle` beyond its `count` elements, in `copy`.
template <class T>
EBM_HD const T* padded(const T* p, int64_t count, T idle, T (&copy)[kChunk]) {
    if (count >= kChunk) return p;
    for (int i = 0; i < kChunk; ++i) copy[i] = idle;
    for (int64_t i = 0; i < count; ++i) copy[i] = p[i];
    return copy;
}

// kChunk running sums in double; the columns lie in memory order.
struct Columns {
    F64 sums[kChunk / kLanes * kHalves];

    EBM_HD explicit Columns(double start) {
        EBM_UNROLL for (int i = 0; i < kChunk / kLanes * kHalves; ++i)
            sums[i] = F64{} + start;
    }
    EBM_HD static void widen_part(F32 x, F64 (&wide)[kHalves]) {
#if defined(__CUDACC__)
        wide[0] = static_cast<double>(x);
#else
        HalfF32 halves[2];
        memcpy(halves, &x, sizeof x);
        wide[0] = __builtin_convertvector(halves[0], F64);
        wide[1] = __builtin_convertvector(halves[1], F64);
#endif
    }
    EBM_HD void add(int part, F32 x) {
        F64 wide[kHalves];
        widen_part(x, wide);
        EBM_UNROLL for (int i = 0; i < kHalves; ++i)
            sums[part * kHalves + i] += wide[i];
    }
    EBM_HD void multiply(int part, F32 x) {
        F64 wide[kHalves];
        widen_part(x, wide);
        EBM_UNROLL for (int i = 0; i < kHalves; ++i)
            sums[part * kHalves + i] *= wide[i];
    }
    EBM_HD double total() const {
        double all[kChunk];
        memcpy(all, sums, sizeof all);
        return add_tree(all);
    }
};

template <class F>
EBM_HD F magnitude_of(F x) {
    return x < 0.0f ? -x : x;
}

// The likelier outcome unless the word, of 2^32, is below the odds' share of the other: probabilities near 1 are as fine as those
// near 0. NaN for NaN.
struct SigmoidBernoulliSink {
    float* out;
    const float* logits;
    const float* bias;
    int64_t dim;
    float scale;

    struct Row {
        float* out;
        const float* logits;
    };
    EBM_HD Row row(int64_t chain) const { return {out + chain * dim, logits + chain * dim}; }

    template <class F>
    EBM_HD F draw(F x, F word) const {
        F odds = exp_of<F>(-magnitude_of<F>(x));  // of the rarer outcome
        F likely = x > 0.0f ? F{} + 1.0f : F{};
        F result = (to_float(as_bits(word)) + 0.5f) * (odds + 1.0f) < odds * 4294967296.0f ? 1.0f - likely : likely;
        return x == x ? result : x;
    }
    EBM_HD void put(const Row& row, int64_t e, float word) const { row.out[e] = draw<float>(row.logits[e] * scale + bias[e], word); }
};

// The same of whole chains, whose words already lie in `out`.
struct SigmoidBernoulliBody {
    SigmoidBernoulliSink sink;

    EBM_HD void run(int64_t chain, void*) const {
        const typename SigmoidBernoulliSink::Row row = sink.row(chain);
        for (int64_t e = 0; e < sink.dim; e += kChunk) {
            const int64_t count = sink.dim - e;
            float word_copy[kChunk], x_copy[kChunk], bias_copy[kChunk];
            const float* words = padded(row.out + e, count, 0.0f, word_copy);
            const float* x = padded(row.logits + e, count, 0.0f, x_copy);
            const float* bias = padded(sink.bias + e, count, 0.0f, bias_copy);
            float* out = count >= kChunk ? row.out + e : word_copy;
            for (int i = 0; i < kChunk; i += kLanes) {
                give(out + i, sink.draw<F32>(take<F32>(x + i) * sink.scale + take<F32>(bias + i), take<F32>(words + i)));
            }
            if (count < kChunk) {
                for (int64_t i = 0; i < count; ++i) row.out[e + i] = word_copy[i];
            }
        }
    }
};

// Σ ln(1 + e^x) = Σ max(x, 0) + ln Π (1 + e^-|x|), in double.
class SoftplusSum {
public:
    // Of kChunk elements; an element of -1000 adds exactly nothing. `means`: sigmoid of x.
    EBM_HD void add(const float* x, float* means) {
        EBM_UNROLL for (int part = 0; part < kChunk / kLanes; ++part) {
            F32 v = take<F32>(x + part * kLanes);
            F32 odds = exp_of<F32>(-magnitude_of<F32>(v));
            F32 whole = odds + 1.0f;
            sums_.add(part, v > 0.0f ? v : F32{});
            products_.multiply(part, whole);
            give(means + part * kLanes, (v > 0.0f ? F32{} + 1.0f : odds) / whole);
        }
        if (++chunks_ % 1000 == 0) fold();  // factors are at most 2
    }

    EBM_HD double value() {
        fold();
        return sums_.total();
    }

private:
    EBM_HD void fold() {
        for (int i = 0; i < kChunk / kLanes * kHalves; ++i) {
            sums_.sums[i] += -0.5 * neg_two_log(products_.sums[i]);
            products_.sums[i] = F64{} + 1.0;
        }
    }

    Columns sums_{0.0}, products_{1.0};
    int64_t chunks_ = 0;
};

struct SoftplusSumBody {
    SoftplusSumParams p;

    EBM_HD void run(int64_t chain, void*) const {
        const float* logits = p.logits + chain * p.dim;
        SoftplusSum sum;
        for (int64_t e = 0; e < p.dim; e += kChunk) {
            float x[kChunk], x_copy[kChunk], bias_copy[kChunk];
            const float* z = padded(logits + e, p.dim - e, 0.0f, x_copy);
            const float* bias = padded(p.bias + e, p.dim - e, -1000.0f, bias_copy);
            for (int i = 0; i < kChunk; i += kLanes) give(x + i, take<F32>(z + i) * p.scale + take<F32>(bias + i));
            sum.add(x, x_copy);
        }
        p.out[chain] = sum.value();
    }
};

// What a chain carries from one call to the next, in kRbmRecord doubles. Of two sides, `side` is of the present state.
struct RbmRecord {
    double accepted, acceptance, flips;  // in the order of RbmGwgColumn
    double side;
    double site;   // of the flip that waits, -1: none
    double log_q;  // of its proposal
    double softplus[2];
    double shift[2], total[2];  // log weights are shift + ln(balanced), and total is the sum of balanced
    double columns[2][kChunk];  // sums over every 16th site
};
static_assert(sizeof(RbmRecord) <= kRbmRecord * sizeof(double), "a record is longer than its columns");

// Log weight of a flip, ln g(e^d).
template <int kBalancing, class F>
EBM_HD F balance(F d) {
    if (kBalancing == 1) return -softplus_of<F>(-d);
    if (kBalancing == 2) return d < 0.0f ? d : F{};
    if (kBalancing == 3) return d > 0.0f ? d : F{};
    return d * 0.5f;
}

// Gibbs-with-Gradients (Grathwohl et al. 2021, algorithm 1) on the free energy F(v) = -aᵀv - Σ softplus(b + vW), whose differences are
// taken to first order: d_i = (1 - 2 v_i)(a_i + (sigmoid(b + vW) Wᵀ)_i). The inputs b + vW are exact sums of fixed-point numbers, hence
// a function of v alone, however v was reached.
template <int kBalancing>
struct RbmGwgBody {
    RbmGwgParams p;

    EBM_HD void run(int64_t chain, void*) const {
        RbmRecord& record = *reinterpret_cast<RbmRecord*>(p.records + chain * kRbmRecord);
        if (p.step < 0) {
            record.site = -1.0;
            record.side = 1.0;  // the first weights go to side 0
            record.softplus[0] = activate(chain, 0, 0);
            return;
        }
        weigh(chain, record);
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        judge(chain, record, key);
        if (p.step < p.num_steps) propose(chain, record, key);
    }

private:
    EBM_HD float log_weight(float v, float a, float pull) const { return balance<kBalancing, float>((1.0f - 2.0f * v) * (a + pull)); }

    // inputs += direction · row of the weights; means = sigmoid(inputs). Returns Σ softplus(inputs).
    EBM_HD double activate(int64_t chain, int64_t site, int32_t direction) const {
        int32_t* inputs = p.inputs + chain * p.num_hidden;
        float* means = p.means + chain * p.num_hidden;
        const int32_t* row = p.weight + site * p.num_hidden;
        SoftplusSum sum;
        for (int64_t e = 0; e < p.num_hidden; e += kChunk) {
            const int64_t count = p.num_hidden - e;
            int32_t z_copy[kChunk], w_copy[kChunk];
            float x[kChunk], mean[kChunk];
            const int32_t* z = padded(inputs + e, count, 0, z_copy);
            const int32_t* w = padded(row + e, count, 0, w_copy);
            for (int i = 0; i < kChunk; i += kLanes) {
                I32 sum_of = take<I32>(z + i) + direction * take<I32>(w + i);
                give(z_copy + i, sum_of);
                give(x + i, to_float(sum_of) * p.unit);
            }
            if (count >= kChunk) {
                memcpy(inputs + e, z_copy, sizeof z_copy);
                sum.add(x, means + e);
            } else {
                for (int64_t i = count; i < kChunk; ++i) x[i] = -1000.0f;
                sum.add(x, mean);
                for (int64_t i = 0; i < count; ++i) {
                    inputs[e + i] = z_copy[i];
                    means[e + i] = mean[i];
                }
            }
        }
        return sum.value();
    }

    // The weights of all flips of the state as it stands, on the side that is not the present one.
    EBM_HD void weigh(int64_t chain, RbmRecord& record) const {
        const int side = 1 - static_cast<int>(record.side);
        const float* states = p.states + chain * p.num_visible;
        const float* pulls = p.pulls + chain * p.num_visible;
        float* balanced = p.balanced + (chain * 2 + side) * p.num_visible;
        constexpr float none = -3.0e38f;
        float largest[kChunk];
        for (int i = 0; i < kChunk; ++i) largest[i] = none;
        for (int64_t e = 0; e < p.num_visible; e += kChunk) {
            const int64_t count = p.num_visible - e;
            float v_copy[kChunk], a_copy[kChunk], g_copy[kChunk];
            const float* v = padded(states + e, count, 0.0f, v_copy);
            const float* a = padded(p.visible_bias + e, count, 0.0f, a_copy);
            const float* g = padded(pulls + e, count, 0.0f, g_copy);
            float* logs = count >= kChunk ? balanced + e : g_copy;
            for (int i = 0; i < kChunk; i += kLanes) {
                F32 sign = 1.0f - 2.0f * take<F32>(v + i);
                give(logs + i, balance<kBalancing, F32>(sign * (take<F32>(a + i) + take<F32>(g + i))));
            }
            if (count < kChunk) {
                for (int64_t i = 0; i < count; ++i) balanced[e + i] = g_copy[i];
                for (int64_t i = count; i < kChunk; ++i) g_copy[i] = none;
            }
            for (int i = 0; i < kChunk; i += kLanes) {
                F32 l = take<F32>(logs + i), most = take<F32>(largest + i);
                give(largest + i, l > most ? l : most);
            }
        }
        for (int i = 1; i < kChunk; ++i) largest[0] = largest[i] > largest[0] ? largest[i] : largest[0];
        Columns sums(0.0);
        for (int64_t e = 0; e < p.num_visible; e += kChunk) {
            const int64_t count = p.num_visible - e;
            float copy[kChunk];
            const float* logs = padded(balanced + e, count, none, copy);
            float* w = count >= kChunk ? balanced + e : copy;
            EBM_UNROLL for (int part = 0; part < kChunk / kLanes; ++part) {
                F32 weights = exp_of<F32>(take<F32>(logs + part * kLanes) - largest[0]);
                sums.add(part, weights);
                give(w + part * kLanes, weights);
            }
            if (count < kChunk) {
                for (int64_t i = 0; i < count; ++i) balanced[e + i] = copy[i];
            }
        }
        memcpy(record.columns[side], sums.sums, sizeof record.columns[side]);
        record.shift[side] = static_cast<double>(largest[0]);
        record.total[side] = sums.total();
    }

    EBM_HD static double log_of_total(double total) { return static_cast<double>(log_of<float>(static_cast<float>(total))); }

    EBM_HD void judge(int64_t chain, RbmRecord& record, const PhiloxKey& key) const {
        const int old = static_cast<int>(record.side), proposed = 1 - old;
        const int64_t site = static_cast<int64_t>(record.site);
        if (site < 0) {
            record.side = proposed;
            return;
        }
        float* states = p.states + chain * p.num_visible;
        const float a = p.visible_bias[site], v = states[site];
        const double log_q = static_cast<double>(log_weight(v, a, p.pulls[chain * p.num_visible + site])) - record.shift[proposed] -
                             log_of_total(record.total[proposed]);
        const double gain = static_cast<double>((2.0f * v - 1.0f) * a) + record.softplus[proposed] - record.softplus[old];
        const double log_ratio = gain + log_q - record.log_q;
        const float ratio = log_ratio < 0.0 ? exp_of<float>(static_cast<float>(log_ratio)) : log_ratio == log_ratio ? 1.0f : 0.0f;
        uint32_t words[4];
        philox_block(key, static_cast<uint64_t>(p.key[1] + p.step - 1), static_cast<uint64_t>(p.key[2] + chain), 0, p.acceptance_stream,
                     words);
        const bool is_accepted = (static_cast<double>(words[0]) + 0.5) * 2.3283064365386963e-10 < static_cast<double>(ratio);
        record.accepted = is_accepted;
        record.acceptance += static_cast<double>(ratio);
        if (is_accepted) {
            record.flips += 1.0;
            record.side = proposed;
        } else {
            states[site] = 1.0f - v;
            const int32_t direction = v > 0.5f ? -1 : 1;
            int32_t* inputs = p.inputs + chain * p.num_hidden;
            const int32_t* row = p.weight + site * p.num_hidden;
            for (int64_t j = 0; j < p.num_hidden; ++j) inputs[j] += direction * row[j];
        }
    }

    EBM_HD void propose(int64_t chain, RbmRecord& record, const PhiloxKey& key) const {
        const int side = static_cast<int>(record.side);
        const float* balanced = p.balanced + (chain * 2 + side) * p.num_visible;
        uint32_t words[4];
        philox_block(key, static_cast<uint64_t>(p.key[1] + p.step), static_cast<uint64_t>(p.key[2] + chain), 0, p.proposal_stream, words);
        const uint64_t bits = (static_cast<uint64_t>(words[1]) << 32 | words[0]) >> 11;
        double left = (static_cast<double>(bits) + 0.5) * 1.1102230246251565e-16 * record.total[side];
        // Column by column, then down the column; what rounding may leave over falls to the last site of some weight.
        int column = 0;
        while (column < kChunk - 1 && left >= record.columns[side][column]) left -= record.columns[side][column++];
        while (record.columns[side][column] == 0.0) --column;
        int64_t site = -1;
        for (int64_t i = column; i < p.num_visible; i += kChunk) {
            const double w = static_cast<double>(balanced[i]);
            if (w > 0.0) site = i;
            if (left < w) break;
            left -= w;
        }
        record.site = static_cast<double>(site);
        record.log_q = static_cast<double>(log_of<float>(balanced[site])) - log_of_total(record.total[side]);
        float& v = p.states[chain * p.num_visible + site];
        const int32_t direction = v > 0.5f ? -1 : 1;
        v = 1.0f - v;
        record.softplus[1 - side] = activate(chain, site, direction);
    }
};

EBM_END
