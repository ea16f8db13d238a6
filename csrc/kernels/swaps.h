// Replica exchange between neighbouring temperatures.
#pragma once

#include "../core/random.h"
#include "../core/storage.h"
#include "../ops/swaps.h"

EBM_BEGIN
namespace {

struct SwapReplicas {
    SwapReplicasParams p;

    // E of a row, of any temperature.
    EBM_HD double energy(int64_t row) const {
        const SwapField& field = p.fields[0];
        const double scaled = field.dtype == Dtype::float64 ? static_cast<const double*>(field.data)[row]
                                                            : static_cast<double>(static_cast<const float*>(field.data)[row]);
        return scaled / p.betas[row % p.num_temperatures];
    }

    EBM_HD double uniform(int64_t chain, int64_t pair) const {
        uint32_t words[4];
        philox_block(philox_key(static_cast<uint64_t>(p.key[0])), static_cast<uint64_t>(p.key[1]), static_cast<uint64_t>(p.key[2] + chain),
                     static_cast<uint64_t>(pair / 2), p.stream, words);
        const uint64_t low = words[pair % 2 * 2], high = words[pair % 2 * 2 + 1];
        return as_double(((low | high << 32) >> 12) | 0x3ff0000000000000u) - 0.9999999999999999;
    }

    // Whether the pair (r, r + 1) of a chain changes places. `lower` is E of r before any swap of this attempt, and becomes that of r + 1.
    EBM_HD bool judge(int64_t chain, int64_t r, double& lower) const {
        const double upper = energy(chain * p.num_temperatures + r + 1);
        const double log_ratio = (p.betas[r] - p.betas[r + 1]) * (lower - upper);
        lower = upper;
        const double prob = log_ratio >= 0.0 ? 1.0 : exp_of(log_ratio);  // NaN stays NaN, and is rejected
        const int64_t at = chain * (p.num_temperatures - 1) + r;
        p.prob_sum[at] += prob;
        const bool is_turn = p.num_temperatures == 2 || (r - p.key[1]) % 2 == 0;
        if (!is_turn || !(uniform(chain, r) < prob)) return false;
        p.num_swaps[at] += 1;
        uint8_t* flags = p.has_been_hottest + chain * p.num_temperatures + r;
        const uint8_t flag = flags[0];
        flags[0] = flags[1];
        flags[1] = flag;
        return true;
    }

    // Of the rows of a pair, elements first, first + kStride, ... change places.
    template <int kStride>
    EBM_HD void exchange(int64_t chain, int64_t r, int first) const {
        for (int i = 0; i < p.num_fields; ++i) {
            const SwapField& field = p.fields[i];
            const int64_t row = chain * p.num_temperatures + r;
            switch (field.dtype) {
                case Dtype::float32: exchange_of<kStride, float>(field, row, r, first); break;
                case Dtype::float64: exchange_of<kStride, double>(field, row, r, first); break;
                case Dtype::bfloat16: exchange_of<kStride, BFloat16>(field, row, r, first); break;
                case Dtype::float16: exchange_of<kStride, Float16>(field, row, r, first); break;
                case Dtype::int8:
                case Dtype::uint8: exchange_words<kStride, uint8_t>(field, row, first); break;
                case Dtype::int32:
                case Dtype::uint32: exchange_words<kStride, uint32_t>(field, row, first); break;
                case Dtype::int64: exchange_words<kStride, uint64_t>(field, row, first); break;
            }
        }
    }

    // At the end of an attempt.
    EBM_HD void settle(int64_t chain) const {
        uint8_t* flags = p.has_been_hottest + chain * p.num_temperatures;
        p.num_round_trips[chain] += flags[0];
        flags[0] = 0;
        flags[p.num_temperatures - 1] = 1;
    }

    EBM_HD void run(int64_t chain, void*) const {
        double lower = energy(chain * p.num_temperatures);
        for (int64_t r = 0; r + 1 < p.num_temperatures; ++r) {
            if (judge(chain, r, lower)) exchange<1>(chain, r, 0);
        }
        settle(chain);
    }

private:
    template <int kStride, class T>
    EBM_HD void exchange_of(const SwapField& field, int64_t row, int64_t r, int first) const {
        if (!field.scales) return exchange_words<kStride, T>(field, row, first);
        T *low = static_cast<T*>(field.data) + row * field.row_size, *high = low + field.row_size;
        const double down = field.scales[r], up = field.scales[p.num_temperatures - 1 + r];
        for (int64_t e = first; e < field.row_size; e += kStride) {
            const double a = static_cast<double>(widen(low[e])), b = static_cast<double>(widen(high[e]));
            narrow(low + e, static_cast<Compute<T>>(b * down));
            narrow(high + e, static_cast<Compute<T>>(a * up));
        }
    }

    template <int kStride, class T>
    EBM_HD void exchange_words(const SwapField& field, int64_t row, int first) const {
        T *low = static_cast<T*>(field.data) + row * field.row_size, *high = low + field.row_size;
        for (int64_t e = first; e < field.row_size; e += kStride) {
            const T word = low[e];
            low[e] = high[e];
            high[e] = word;
        }
    }
};

}  // namespace
EBM_END
