#pragma once

#include "types.h"

namespace ebm {

constexpr int kMaxSwapFields = 8;

// Rows of a sampler's state, chain · num_temperatures + temperature.
struct SwapField {
    void* data;            // (num_chains · num_temperatures, row_size)
    const double* scales;  // (2, num_temperatures - 1): of rows that come to temperature r from r + 1, and the other way; null: 1
    int64_t row_size;
    Dtype dtype;  // floating where scaled
};

// One attempt of replica exchange: neighbours change places with probability min(1, exp((1/T_r - 1/T_{r+1}) (E_r - E_{r+1}))).
struct SwapReplicasParams {
    SwapField fields[kMaxSwapFields];  // in place; the first holds E / T, float32 or float64, one number a row
    const double* betas;               // (num_temperatures,), 1 / T
    uint8_t* has_been_hottest;         // (num_chains, num_temperatures), in place
    double* prob_sum;                  // (num_chains, num_temperatures - 1), added to: of all pairs
    int64_t* num_swaps;                // (num_chains, num_temperatures - 1), added to
    int64_t* num_round_trips;          // (num_chains,), added to
    const int64_t* key;  // [seed, step, first_chain]: in even steps it is the turn of even pairs, a single pair's in every one
    int64_t num_chains;
    int64_t num_temperatures;
    int32_t num_fields;
    uint32_t stream;
    Place place;
};

}  // namespace ebm
