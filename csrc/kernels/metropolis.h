// Metropolis' rule for proposals that were evaluated elsewhere.
#pragma once

#include "../core/math.h"
#include "../ops/metropolis.h"
#include "chain_lanes.h"
#include "langevin.h"

EBM_BEGIN
namespace {

template <class C, bool kLangevin>
struct MetropolisAccept {
    using L = ChainLanes<C>;
    MetropolisAcceptParams p;

    // Of the chains [first, first + kWidth).
    EBM_HD typename L::V uniforms(int64_t first) const {
        typename L::V values;
        GroupDraws<C>(p.key, first).uniforms(0, p.stream, 1, &values);
        return values;
    }

    // Running sums over a chain, every kNormLanes-th element from `first` on in each: of a Langevin step what its log correction is half
    // of, else 0; not finite where the proposal is not. log q(x | x') - log q(x' | x) = ½ (g + g') · (x' - x - ½ h M⁻¹ (g' - g)): the
    // squares have too much in common to be subtracted.
    template <int kCount>
    EBM_HD void add_terms(int64_t chain, int first, double (&sums)[kCount]) const {
        const int64_t begin = chain * p.dim;
        const C *x = static_cast<const C*>(p.x) + begin, *new_x = static_cast<const C*>(p.new_x) + begin;
        const C *grad = static_cast<const C*>(p.grad) + begin, *new_grad = static_cast<const C*>(p.new_grad) + begin;
        const C* inverse_mass = static_cast<const C*>(p.inverse_mass);
        const C half = static_cast<C>(0.5 * p.step_size);
        const auto term = [&](int64_t e) {
            if (!kLangevin) return static_cast<double>(new_x[e] - new_x[e]);
            const C change = inverse_mass ? (new_grad[e] - grad[e]) * inverse_mass[e] : new_grad[e] - grad[e];
            return static_cast<double>(((new_x[e] - x[e]) - change * half) * (grad[e] + new_grad[e]));
        };
        for (int i = 0; i < kCount; ++i) sums[i] = 0.0;
        int64_t e = first;
        for (; e + kCount <= p.dim; e += kNormLanes) {
            for (int i = 0; i < kCount; ++i) sums[i] += term(e + i);
        }
        for (int i = 0; e + i < p.dim; ++i) sums[i] += term(e + i);
    }

    EBM_HD double energy_of(const void* energies, int64_t chain) const {
        return p.energy_dtype == Dtype::float64 ? static_cast<const double*>(energies)[chain]
                                                : static_cast<double>(static_cast<const float*>(energies)[chain]);
    }

    // Whether the chain goes to its proposal.
    EBM_HD bool judge(int64_t chain, double sum, C uniform) const {
        const double correction = kLangevin ? 0.5 * sum : p.log_corrections ? p.log_corrections[chain] + sum : sum;
        const double log_ratio = (energy_of(p.energies, chain) - energy_of(p.new_energies, chain)) + correction;
        const bool is_finite = log_ratio - log_ratio == 0.0;
        const double prob = !is_finite ? 0.0 : log_ratio < 0.0 ? exp_of(log_ratio) : 1.0;
        const bool is_accepted = static_cast<double>(uniform) < prob;
        p.is_accepted[chain] = is_accepted;
        p.prob_sum[chain] += prob;
        p.num_diverged[chain] += is_finite ? 0 : 1;
        return is_accepted;
    }

    // Elements first, first + kStride, ... of the proposal.
    template <int kStride>
    EBM_HD void adopt(int64_t chain, int first) const {
        if (first == 0 && p.energy_dtype == Dtype::float64) {
            static_cast<double*>(p.energies)[chain] = static_cast<const double*>(p.new_energies)[chain];
        } else if (first == 0) {
            static_cast<float*>(p.energies)[chain] = static_cast<const float*>(p.new_energies)[chain];
        }
        const int64_t begin = chain * p.dim, end = begin + p.dim;
        for (int64_t e = begin + first; e < end; e += kStride) static_cast<C*>(p.x)[e] = static_cast<const C*>(p.new_x)[e];
        for (int64_t e = begin + first; p.grad && e < end; e += kStride) static_cast<C*>(p.grad)[e] = static_cast<const C*>(p.new_grad)[e];
    }

    // kWidth chains.
    EBM_HD void run(int64_t item, void*) const {
        C drawn[L::kWidth];
        const int64_t first = item * L::kWidth;
        store(drawn, uniforms(first));
        for (int lane = 0; lane < L::kWidth && first + lane < p.num_chains; ++lane) {
            double sums[kNormLanes];
            add_terms<kNormLanes>(first + lane, 0, sums);
            if (judge(first + lane, add_tree(sums), drawn[lane])) adopt<1>(first + lane, 0);
        }
    }
};

}  // namespace
EBM_END
