// Restricted Boltzmann machines: Bernoulli draws of a layer, its part of the free energy, and Gibbs-with-Gradients around one
// matrix product a step. Rows are walked in chunks of 16 whatever the lanes, so that sums have one order.
#pragma once

#include "../core/random.h"
#include "../ops/rbm.h"
#include "langevin.h"

EBM_BEGIN

constexpr int kChunk = kRbmChunk;

// A whole chunk at `p`, or a copy of the last one, with `idle` beyond its `count` elements, in `copy`.
template <class T>
EBM_HD const T* padded(const T* p, int64_t count, T idle, T (&copy)[kChunk]) {
    if (count >= kChunk) return p;
    for (int i = 0; i < kChunk; ++i) copy[i] = idle;
    for (int64_t i = 0; i < count; ++i) copy[i] = p[i];
    return copy;
}

EBM_HD float tree_sum(const float (&x)[kChunk]) {
    float sums[kChunk];
    memcpy(sums, x, sizeof sums);
    EBM_UNROLL_LANES for (int half = kChunk / 2; half > 0; half /= 2) {
        EBM_UNROLL_LANES for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sums[0];
}

template <class F>
EBM_HD F magnitude_of(F x) {
    return x < 0.0f ? -x : x;
}

// e^x with the bits of `exp_of`, for x <= 88 alone; what comes out above is no number to be used.
template <class F>
EBM_HD F exp_below(F x) {
    F bounded = x < -87.33654f ? F{} - 87.33654f : x;
    F shifted = bounded * 1.44269504f + 12582912.0f;  // as in exp_of
    F n = shifted - 12582912.0f;
    F r = (bounded - n * 0.693359375f) - n * -0.000212194440f;
    F p = 0.00138888892f * r + 0.00833333377f;
    p = p * r + 0.0416666679f;
    p = p * r + 0.166666672f;
    p = p * r + 0.5f;
    F result = (p * (r * r) + r) + 1.0f;
    result = as_float(as_bits(result) + (as_bits(shifted) << 23));
    return x < -87.33654f ? F{} : result;
}

// 1 with probability sigmoid(x). The likelier outcome unless the word, of 2^32, is below the odds' share of the other: probabilities
// near 1 are as fine as those near 0. NaN for NaN.
template <class F>
EBM_HD F draw_sigmoid(F x, F word) {
    F odds = exp_below<F>(-magnitude_of<F>(x));  // of the rarer outcome
    F likely = x > 0.0f ? F{} + 1.0f : F{};
    F result = (to_float(as_bits(word)) + 0.5f) * (odds + 1.0f) < odds * 4294967296.0f ? 1.0f - likely : likely;
    return x == x ? result : x;
}

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

    EBM_HD void put(const Row& row, int64_t e, float word) const {
        row.out[e] = draw_sigmoid<float>(row.logits[e] * scale + bias[e], word);
    }
};

#if !defined(__CUDACC__)
// The same, a chain at a time: what a row has beyond whole tiles of the launcher for blocks would be drawn one by one, and exp one by
// one costs more than words that nobody needs.
struct SigmoidBernoulliBody {
    SigmoidBernoulliSink sink;
    const int64_t* key;
    uint32_t stream;

    static constexpr int64_t kTile = 4 * kLanes;  // elements of a block per lane

    EBM_HD void run(int64_t chain, void*) const {
        const PhiloxKey rounds = philox_key(static_cast<uint64_t>(key[0]));
        const uint64_t step = static_cast<uint64_t>(key[1]), id = static_cast<uint64_t>(key[2] + chain);
        const PhiloxRow<uint64_t> constants = philox_row<uint64_t>(step, id, philox_c3(step, id, stream), rounds);
        uint64_t order[2][kLanes / 2];  // of the blocks in the lanes, such that zips put words into memory order
        for (int lane = 0; lane < kLanes; ++lane) order[lane % 2][lane / 2] = static_cast<uint64_t>(kLanes / 4 * (lane % 4) + lane / 4);
        const SigmoidBernoulliSink::Row row = sink.row(chain);
        int64_t e = 0;
        for (; e + kTile < sink.dim; e += 2 * kTile) draw_tiles<2>(row, constants, rounds, order, e);
        if (e < sink.dim) draw_tiles<1>(row, constants, rounds, order, e);
    }

private:
    template <int N>
    EBM_HD void draw_tiles(const SigmoidBernoulliSink::Row& row, const PhiloxRow<uint64_t>& constants, const PhiloxKey& rounds,
                           const uint64_t (&order)[2][kLanes / 2], int64_t first) const {
        U64 c0[2 * N], drawn[2 * N][4];
        PhiloxRow<uint64_t> rows[2 * N];
        EBM_UNROLL for (int i = 0; i < 2 * N; ++i) {
            rows[i] = constants;
            c0[i] = load<U64>(order[i % 2]) + static_cast<uint64_t>(first / 4 + i / 2 * kLanes);
        }
        philox4x32<2 * N>(c0, rows, rounds, drawn);
        EBM_UNROLL for (int i = 0; i < N; ++i) {
            F32 w[4];
            EBM_UNROLL for (int j = 0; j < 4; ++j)
                w[j] = as_float(merge(drawn[2 * i][j], drawn[2 * i + 1][j]));
            const F64 lo01 = (F64)zip_lo32(w[0], w[1]), lo23 = (F64)zip_lo32(w[2], w[3]);
            const F64 hi01 = (F64)zip_hi32(w[0], w[1]), hi23 = (F64)zip_hi32(w[2], w[3]);
            const F32 words[4] = {(F32)zip_lo64(lo01, lo23), (F32)zip_hi64(lo01, lo23), (F32)zip_lo64(hi01, hi23),
                                  (F32)zip_hi64(hi01, hi23)};
            EBM_UNROLL for (int j = 0; j < 4; ++j)
                draw_lanes(row, first + i * kTile + j * kLanes, words[j]);
        }
    }

    EBM_HD void draw_lanes(const SigmoidBernoulliSink::Row& row, int64_t e, F32 words) const {
        const int64_t count = sink.dim - e;
        if (count >= kLanes) {
            store(row.out + e, draw_sigmoid<F32>(load<F32>(row.logits + e) * sink.scale + load<F32>(sink.bias + e), words));
        } else if (count > 0) {
            float x[kLanes], bias[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                x[i] = i < count ? row.logits[e + i] : 0.0f;
                bias[i] = i < count ? sink.bias[e + i] : 0.0f;
            }
            store(x, draw_sigmoid<F32>(load<F32>(x) * sink.scale + load<F32>(bias), words));
            for (int64_t i = 0; i < count; ++i) row.out[e + i] = x[i];
        }
    }
};
#endif

// Σ ln(1 + e^x) = Σ max(x, 0) + ln Π (1 + e^-|x|): the sum in double, the product in 16 floats that are emptied in time.
class SoftplusSum {
public:
    EBM_HD SoftplusSum() { EBM_UNROLL_LANES for (int i = 0; i < kParts; ++i) products_[i] = F32{} + 1.0f; }

    // Of kChunk elements; an element of -1000 adds exactly nothing. `means`: sigmoid of x.
    EBM_HD void add(const float* x, float* means) {
        EBM_UNROLL_LANES for (int i = 0; i < kParts; ++i) {
            F32 v = load<F32>(x + i * kLanes);
            F32 odds = exp_below<F32>(-magnitude_of<F32>(v));
            F32 whole = odds + 1.0f;
            F64 positive[kHalves];
            to_double(v <= 0.0f ? F32{} : v, positive);  // a NaN stays
            EBM_UNROLL_LANES for (int j = 0; j < kHalves; ++j) sums_[i * kHalves + j] += positive[j];
            products_[i] *= whole;
            store(means + i * kLanes, (v > 0.0f ? F32{} + 1.0f : odds) / whole);
        }
        if (++chunks_ % 32 == 0) fold();  // a factor is at most 2, a product 2^32, and that of all sixteen 2^512
    }

    EBM_HD double value() {
        fold();
        double all[kChunk];
        memcpy(all, sums_, sizeof all);
        return add_tree(all) + logs_;
    }

private:
    static constexpr int kParts = kChunk / kLanes;

    EBM_HD void fold() {
        float all[kChunk];
        memcpy(all, products_, sizeof all);
        double product[kChunk];
        for (int i = 0; i < kChunk; ++i) product[i] = static_cast<double>(all[i]);
        EBM_UNROLL_LANES for (int half = kChunk / 2; half > 0; half /= 2) {
            EBM_UNROLL_LANES for (int i = 0; i < half; ++i) product[i] *= product[i + half];
        }
        const F64 logs = neg_two_log(F64{} + product[0]);
        logs_ += -0.5 * load<double>(reinterpret_cast<const double*>(&logs));
        EBM_UNROLL_LANES for (int i = 0; i < kParts; ++i) products_[i] = F32{} + 1.0f;
    }

    F64 sums_[kParts * kHalves] = {};
    F32 products_[kParts];
    double logs_ = 0.0;
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
            for (int i = 0; i < kChunk; i += kLanes) store(x + i, load<F32>(z + i) * p.scale + load<F32>(bias + i));
            sum.add(x, x_copy);
        }
        p.out[chain] = sum.value();
    }
};

// What a chain carries from one call to the next, in kRbmRecord doubles. Of two sides, `side` is of the present state.
struct RbmRecord {
    double accepted, acceptance, flips;  // these three are read by the caller
    double softplus[2];
    double log_q;                            // of the proposal that waits
    float shift[2], total[2], log_total[2];  // log weights are shift + ln(balanced), and total is the sum of balanced
    float columns[2][kChunk];                // sums over every 16th site
    int64_t site;                            // of the proposal that waits, -1: none
    int64_t side;
};
static_assert(sizeof(RbmRecord) <= kRbmRecord * sizeof(double), "a record is longer than its columns");

// Log weight of a flip, ln g(e^d); below -1e38 whatever g is, where d is: such are the places that fill up a row.
template <class F>
EBM_HD F log_balanced(F d, Balancing balancing) {
    if (balancing == Balancing::barker) return -softplus_of<F>(-d);
    if (balancing == Balancing::min) return d < 0.0f ? d : F{};
    if (balancing == Balancing::max) return (d > 0.0f) | (d < -1.0e38f) ? d : F{};
    return d * 0.5f;
}

// Gibbs-with-Gradients (Grathwohl et al. 2021, algorithm 1) on the free energy F(v) = -aᵀv - Σ softplus(b + vW), whose differences are
// taken to first order: d_i = (1 - 2 v_i)(a_i + (sigmoid(b + vW) Wᵀ)_i). The inputs b + vW are exact sums of fixed-point numbers, hence
// a function of v alone, however v was reached. Rows are filled up to whole chunks with sites that weigh nothing and hidden units that no
// site sees: those add the same to every Σ softplus.
struct RbmGwgBody {
    RbmGwgParams p;

    EBM_HD void run(int64_t chain, void*) const {
        RbmRecord& record = *reinterpret_cast<RbmRecord*>(p.records + chain * kRbmRecord);
        if (p.step < 0) {
            record.site = -1;
            record.side = 1;  // the first weights go to side 0
            record.softplus[0] = activate(chain, 0, 0);
            return;
        }
        // Drawn first: these scalars are ready while the vectors of `weigh` still run.
        const PhiloxKey key = philox_key(static_cast<uint64_t>(p.key[0]));
        const uint64_t step = static_cast<uint64_t>(p.key[1] + p.step), id = static_cast<uint64_t>(p.key[2] + chain);
        uint32_t acceptance[4], proposal[4];
        philox_block(key, step - 1, id, 0, p.acceptance_stream, acceptance);
        philox_block(key, step, id, 0, p.proposal_stream, proposal);
        weigh(chain, record);
        judge(chain, record, (static_cast<double>(acceptance[0]) + 0.5) * 2.3283064365386963e-10);
        const uint64_t bits = (static_cast<uint64_t>(proposal[1]) << 32 | proposal[0]) >> 11;
        if (p.step < p.num_steps) propose(chain, record, (static_cast<double>(bits) + 0.5) * 1.1102230246251565e-16);
    }

private:
    EBM_HD float log_weight(float v, float a, float pull) const { return log_balanced<float>((1.0f - 2.0f * v) * (a + pull), p.balancing); }

    // inputs += direction · row of the weights; means = sigmoid(inputs). Returns Σ softplus(inputs).
    EBM_HD double activate(int64_t chain, int64_t site, int32_t direction) const {
        int32_t* inputs = p.inputs + chain * p.num_hidden;
        float* means = p.means + chain * p.num_hidden;
        const int32_t* row = p.weight + site * p.num_hidden;
        SoftplusSum sum;
        for (int64_t e = 0; e < p.num_hidden; e += kChunk) {
            float x[kChunk];
            for (int i = 0; i < kChunk; i += kLanes) {
                I32 z = load<I32>(inputs + e + i) + direction * load<I32>(row + e + i);
                store(inputs + e + i, z);
                store(x + i, to_float(z) * p.unit);
            }
            sum.add(x, means + e);
        }
        return sum.value();
    }

    // The weights of all flips of the state as it stands, on the side that is not the present one, and the largest of their logs.
    EBM_HD float weigh_with(int64_t chain, RbmRecord& record, float shift) const {
        const int64_t side = 1 - record.side;
        const float* states = p.states + chain * p.num_visible;
        const float* pulls = p.pulls + chain * p.num_visible;
        float* balanced = p.balanced + (chain * 2 + side) * p.num_visible;
        constexpr int kParts = kChunk / kLanes;
        F32 largest[kParts], sums[kParts];
        EBM_UNROLL_LANES for (int i = 0; i < kParts; ++i) {
            largest[i] = F32{} - 3.0e38f;
            sums[i] = F32{};
        }
        for (int64_t e = 0; e < p.num_visible; e += kChunk) {
            EBM_UNROLL_LANES for (int part = 0; part < kParts; ++part) {
                const int64_t i = e + part * kLanes;
                F32 sign = 1.0f - 2.0f * load<F32>(states + i);
                F32 log_weight = log_balanced<F32>(sign * (load<F32>(p.visible_bias + i) + load<F32>(pulls + i)), p.balancing);
                F32 weight = exp_below<F32>(log_weight - shift);
                largest[part] = log_weight > largest[part] ? log_weight : largest[part];
                sums[part] += weight;
                store(balanced + i, weight);
            }
        }
        memcpy(record.columns[side], sums, sizeof sums);
        record.shift[side] = shift;
        record.total[side] = tree_sum(record.columns[side]);
        record.log_total[side] = log_of<float>(record.total[side]);
        float all[kChunk];
        memcpy(all, largest, sizeof all);
        for (int i = 1; i < kChunk; ++i) all[0] = all[i] > all[0] ? all[i] : all[0];
        return all[0];
    }

    EBM_HD void weigh(int64_t chain, RbmRecord& record) const {
        const float largest = weigh_with(chain, record, 0.0f);
        if (!(largest < 60.0f && largest > -60.0f)) weigh_with(chain, record, largest);
    }

    EBM_HD void judge(int64_t chain, RbmRecord& record, double u) const {
        const int64_t old = record.side, proposed = 1 - old, site = record.site;
        if (site < 0) {
            record.side = proposed;
            return;
        }
        float* states = p.states + chain * p.num_visible;
        const float a = p.visible_bias[site], v = states[site];
        const double log_q = static_cast<double>(log_weight(v, a, p.pulls[chain * p.num_visible + site]) - record.shift[proposed] -
                                                 record.log_total[proposed]);
        const double gain = static_cast<double>((2.0f * v - 1.0f) * a) + record.softplus[proposed] - record.softplus[old];
        const double log_ratio = gain + log_q - record.log_q;
        const float ratio = log_ratio < 0.0 ? exp_of<float>(static_cast<float>(log_ratio)) : log_ratio == log_ratio ? 1.0f : 0.0f;
        const bool is_accepted = u < static_cast<double>(ratio);
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

    EBM_HD void propose(int64_t chain, RbmRecord& record, double u) const {
        const int64_t side = record.side;
        const float* balanced = p.balanced + (chain * 2 + side) * p.num_visible;
        double left = u * static_cast<double>(record.total[side]);
        // Column by column, then down the column; what rounding may leave over falls to the last site of some weight.
        int column = 0;
        while (column < kChunk - 1 && left >= static_cast<double>(record.columns[side][column])) {
            left -= static_cast<double>(record.columns[side][column++]);
        }
        while (record.columns[side][column] == 0.0f) --column;
        int64_t site = -1;
        for (int64_t i = column; i < p.num_visible; i += kChunk) {
            const double w = static_cast<double>(balanced[i]);
            if (w > 0.0) site = i;
            if (left < w) break;
            left -= w;
        }
        record.site = site;
        record.log_q = static_cast<double>(log_of<float>(balanced[site]) - record.log_total[side]);
        float& v = p.states[chain * p.num_visible + site];
        const int32_t direction = v > 0.5f ? -1 : 1;
        v = 1.0f - v;
        record.softplus[1 - side] = activate(chain, site, direction);
    }
};

EBM_END
