// Whole chains of continuous samplers on native energies, a chain in each lane. What a step does is written here once; what E and ∇E are
// is asked of `evaluate`, which knows all energies.
#pragma once

#include "../core/math.h"
#include "../energies/all.h"
#include "../ops/langevin.h"
#include "chain_lanes.h"
#include "langevin.h"

EBM_BEGIN
namespace {

#if defined(__CUDACC__)
#define EBM_CALL __host__ __device__ __noinline__
constexpr int kMostGroups = 1;
#else
#define EBM_CALL __attribute__((noinline))
constexpr int kMostGroups = 8;
#endif

// E and ∇E for `count` groups of chains, whose rows start p.dim elements after one another.
template <bool kEnergy, bool kGrad, class Functor, class V>
EBM_HD void evaluate_with(const Functor& functor, const EnergyParams& p, int count, Rows<V> x, Rows<V> grad, Rows<V> work,
                          LaneSum<V>* energy) {
    for (int g = 0; g < count; ++g) {
        LaneSum<V> sum;
        functor.template evaluate<kEnergy, kGrad>(x.from(g * p.dim), kGrad ? grad.from(g * p.dim) : grad, work, sum);
        if (kEnergy) energy[g] = sum;
    }
}

template <bool kEnergy, bool kGrad>
EBM_HD void evaluate_network(const EnergyParams& p, int count, Rows<F32> x, Rows<F32> grad, Rows<F32> work, LaneSum<F32>* energy) {
#if !defined(__CUDACC__)
    if (p.perceptron.transposed[0]) {
        float* scratch = reinterpret_cast<float*>(&work[0]);
        float *at = scratch, *slope = scratch + (p.dim + kLanes - 1) / kLanes * kLanes;
        float* rest = slope + (p.dim + kLanes - 1) / kLanes * kLanes;
        F32 values = F32{};
        for (int lane = 0; lane < p.num_chains; ++lane) {
            for (int64_t e = 0; e < p.dim; ++e) at[e] = x[e][lane];
            values[lane] = evaluate_perceptron<kEnergy, kGrad>(p.perceptron, at, slope, rest);
            for (int64_t e = 0; kGrad && e < p.dim; ++e) grad[e][lane] = slope[e];
        }
        if (kEnergy) {
            energy[0] = LaneSum<F32>();
            energy[0].add(values);
        }
        return;
    }
#endif
    evaluate_perceptron<kEnergy, kGrad, kMostGroups>(p.perceptron, count, x, grad, work, energy);
}
template <bool kEnergy, bool kGrad>
EBM_HD void evaluate_network(const EnergyParams&, int, Rows<F64>, Rows<F64>, Rows<F64>, LaneSum<F64>*) {}

template <class C, bool kEnergy, bool kGrad, class V>
EBM_CALL void evaluate(const EnergyParams& p, int count, Rows<V> x, Rows<V> grad, Rows<V> work, LaneSum<V>* energy) {
    switch (p.kind) {
        case EnergyKind::perceptron: return evaluate_network<kEnergy, kGrad>(p, count, x, grad, work, energy);
#define EBM_ENERGY(name, Functor) \
    case EnergyKind::name: return evaluate_with<kEnergy, kGrad>(Functor<C>(p), p, count, x, grad, work, energy);
#include "../ops/energies.def"
#undef EBM_ENERGY
    }
}

// The chains of one call of `run`: kWidth in each of `count` groups.
template <class C>
class Groups {
public:
    using L = ChainLanes<C>;
    using V = typename L::V;

    const DynamicsParams& p;
    const int64_t dim;
    const int64_t padded;  // elements of a row of draws: whole blocks
    const int64_t first;   // chain
    const int count;
    const GroupDraws<C> draws;
    LaneSum<V> energy[kMostGroups];

    EBM_HD Groups(const DynamicsParams& params, int64_t item, int per_item, void* scratch)
        : p(params),
          dim(p.energy.dim),
          padded((dim + 3) / 4 * 4),
          first(item * per_item * L::kWidth),
          count(groups_left(per_item)),
          draws(p.key, first) {
        free_ = kLanes == 1 ? Rows<V>{static_cast<V*>(p.workspace) + item, p.num_chains} : Rows<V>{static_cast<V*>(scratch), 1};
        work = take(count * p.energy.num_components);
        x = take(count * dim);
        grad = take(count * dim);
    }

    Rows<V> work, x, grad;

    EBM_HD Rows<V> take(int64_t size) {
        const Rows<V> rows = free_;
        free_ = free_.from(size);
        return rows;
    }

    EBM_HD void load_rows(const void* from, Rows<V> to) const {
        for (int g = 0; g < count; ++g) {
            for (int64_t e = 0; e < dim; ++e) {
                C lanes[L::kWidth];
                for (int lane = 0; lane < L::kWidth; ++lane) lanes[lane] = static_cast<const C*>(from)[chain_of(g, lane) * dim + e];
                to[g * dim + e] = load<V>(lanes);
            }
        }
    }

    EBM_HD void store_rows(Rows<V> from, void* to) const {
        for (int g = 0; g < count; ++g) {
            for (int64_t e = 0; e < dim; ++e) {
                C lanes[L::kWidth];
                store(lanes, from[g * dim + e]);
                for (int lane = 0; lane < L::kWidth && is_chain(g, lane); ++lane)
                    static_cast<C*>(to)[chain_of(g, lane) * dim + e] = lanes[lane];
            }
        }
    }

    // E and ∇E at the end.
    EBM_HD void store_state() const {
        store_rows(x, p.x);
        if (p.grad) store_rows(grad, p.grad);
        for (int g = 0; g < count; ++g) {
            C lanes[L::kWidth];
            store(lanes, energy[g].value());
            for (int lane = 0; lane < L::kWidth && is_chain(g, lane); ++lane) static_cast<C*>(p.energies)[chain_of(g, lane)] = lanes[lane];
        }
    }

    template <bool kEnergy, bool kGrad>
    EBM_HD void evaluate_at(Rows<V> at, Rows<V> slope, LaneSum<V>* value) const {
        evaluate<C, kEnergy, kGrad>(p.energy, count, at, slope, work, value);
    }

    EBM_HD bool is_chain(int g, int lane) const { return first + g * L::kWidth + lane < p.num_chains; }
    // Lanes that the last group has too many run the last chain once more, and nobody reads them.
    EBM_HD int64_t chain_of(int g, int lane) const { return is_chain(g, lane) ? first + g * L::kWidth + lane : p.num_chains - 1; }

private:
    EBM_HD int groups_left(int most) const {
        const int64_t left = (p.num_chains - first + L::kWidth - 1) / L::kWidth;
        return left < most ? static_cast<int>(left) : most;
    }

    Rows<V> free_;
};

template <class C>
struct Scales {
    const C *drift, *noise;
    C step_size;

    EBM_HD explicit Scales(const DynamicsParams& p)
        : drift(static_cast<const C*>(p.drift)), noise(static_cast<const C*>(p.noise)), step_size(static_cast<C>(p.step_size)) {}
};

// Metropolis' rule for proposed states of a Groups, and what is reported of it.
template <class C>
class Metropolis {
    using V = typename ChainLanes<C>::V;

public:
    LaneSum<V> proposed[kMostGroups];  // E

    EBM_HD explicit Metropolis(Groups<C>& groups) : groups_(groups) {}

    EBM_HD void draw(int64_t step) { groups_.draws.uniforms(step, groups_.p.acceptance_stream, groups_.count, uniforms_); }

    // The log ratio is E - E' + ½ (before - after). Adopts the proposal y and its gradient where it is accepted.
    template <bool kGrad>
    EBM_HD void judge(int g, const LaneSum<V>& before, const LaneSum<V>& after, Rows<V> y, Rows<V> slope) {
        const V log_ratio = groups_.energy[g].minus(proposed[g]) + before.minus(after) * C(0.5);
        const V is_finite = log_ratio - log_ratio == C(0) ? V{} + C(1) : V{};
        const V certain = log_ratio < C(0) ? exp_of(log_ratio) : V{} + C(1);
        const V ratio = is_finite > C(0) ? certain : V{};
        const V taken = uniforms_[g] < ratio ? V{} + C(1) : V{};
        is_accepted_[g] = taken;
        acceptance_[g].add(ratio);
        finite_[g].add(is_finite);
        groups_.energy[g].choose(taken, proposed[g]);
        const int64_t begin = g * groups_.dim;
        for (int64_t e = begin; e < begin + groups_.dim; ++e) {
            groups_.x[e] = taken > C(0) ? y[e] : groups_.x[e];
            if (kGrad) groups_.grad[e] = taken > C(0) ? slope[e] : groups_.grad[e];
        }
    }

    EBM_HD void store_report() const {
        const DynamicsParams& p = groups_.p;
        constexpr int kWidth = ChainLanes<C>::kWidth;
        for (int g = 0; g < groups_.count; ++g) {
            C taken[kWidth];
            double acceptance[kWidth], finite[kWidth];
            store(taken, is_accepted_[g]);
            acceptance_[g].store_doubles(acceptance);
            finite_[g].store_doubles(finite);
            for (int lane = 0; lane < kWidth && groups_.is_chain(g, lane); ++lane) {
                const int64_t chain = groups_.chain_of(g, lane);
                p.is_accepted[chain] = taken[lane] > C(0) ? 1 : 0;
                p.acceptance[chain] = acceptance[lane];
                p.num_diverged[chain] = p.num_steps - static_cast<int64_t>(finite[lane]);
            }
        }
    }

private:
    Groups<C>& groups_;
    V uniforms_[kMostGroups], is_accepted_[kMostGroups] = {};
    LaneSum<V> acceptance_[kMostGroups], finite_[kMostGroups];
};

// x' = clamp(x - step_size · clip(∇E) + noise_std · z), as LangevinSink has it.
template <class C, bool kBounded>
struct LangevinDynamics {
    using V = typename ChainLanes<C>::V;
    DynamicsParams p;
    int per_item;

    EBM_HD void run(int64_t item, void* scratch) const {
        Groups<C> groups(p, item, per_item, scratch);
        const int64_t dim = groups.dim, padded = groups.padded;
        const Rows<V> z = groups.take(groups.count * padded), x = groups.x, grad = groups.grad;
        LangevinStepParams step{};
        step.step_size = p.step_size;
        step.noise_std = p.noise_std;
        step.clip_grad = p.clip_grad;
        step.clamp_min = p.clamp_min;
        step.clamp_max = p.clamp_max;
        const LangevinSink<C, kBounded, true> sink(step);
        for (int64_t i = 0; p.noise_std == 0.0 && i < groups.count * padded; ++i) z[i] = V{};
        groups.load_rows(p.x, x);
        for (int64_t s = 0; s < p.num_steps; ++s) {
            if (p.noise_std != 0.0) groups.draws.normals(s, p.proposal_stream, groups.count, dim, padded, z);
            groups.template evaluate_at<false, true>(x, grad, groups.energy);
            for (int g = 0; g < groups.count; ++g) {
                for (int64_t e = 0; e < dim; ++e) {
                    V& at = x[g * dim + e];
                    at = sink.template update<V>(at, grad[g * dim + e], z[g * padded + e], C(1));
                }
            }
        }
        groups.template evaluate_at<true, true>(x, grad, groups.energy);
        groups.store_state();
    }
};

// y = x - drift ∇E + noise z. The way back needs z' = ½ noise (∇E + ∇E') - z, so that |z'|² - |z|² is a sum of s (s - 2z).
template <class C>
struct MalaDynamics {
    using V = typename ChainLanes<C>::V;
    DynamicsParams p;
    int per_item;

    EBM_HD void run(int64_t item, void* scratch) const {
        Groups<C> groups(p, item, per_item, scratch);
        const int64_t dim = groups.dim, padded = groups.padded;
        const Rows<V> z = groups.take(groups.count * padded), y = groups.take(groups.count * dim), slope = groups.take(groups.count * dim);
        const Rows<V> x = groups.x, grad = groups.grad;
        const Scales<C> scales(p);
        Metropolis<C> metropolis(groups);
        groups.load_rows(p.x, x);
        groups.template evaluate_at<true, true>(x, grad, groups.energy);
        for (int64_t s = 0; s < p.num_steps; ++s) {
            groups.draws.normals(s, p.proposal_stream, groups.count, dim, padded, z);
            metropolis.draw(s);
            for (int g = 0; g < groups.count; ++g) {
                for (int64_t e = 0; e < dim; ++e) {
                    const int64_t i = g * dim + e;
                    y[i] = (x[i] - grad[i] * scales.drift[e]) + z[g * padded + e] * scales.noise[e];
                }
            }
            groups.template evaluate_at<true, true>(y, slope, metropolis.proposed);
            for (int g = 0; g < groups.count; ++g) {
                LaneSum<V> excess;
                for (int64_t e = 0; e < dim; ++e) {
                    const int64_t i = g * dim + e;
                    const V shift = (grad[i] + slope[i]) * (scales.noise[e] * C(0.5));
                    excess.add(shift * (shift - z[g * padded + e] * C(2)));
                }
                metropolis.template judge<true>(g, LaneSum<V>(), excess, y, slope);
            }
        }
        groups.store_state();
        metropolis.store_report();
    }
};

// y = x + noise z.
template <class C>
struct RandomWalkDynamics {
    using V = typename ChainLanes<C>::V;
    DynamicsParams p;
    int per_item;

    EBM_HD void run(int64_t item, void* scratch) const {
        Groups<C> groups(p, item, per_item, scratch);
        const int64_t dim = groups.dim, padded = groups.padded;
        const Rows<V> z = groups.take(groups.count * padded), y = groups.take(groups.count * dim), x = groups.x;
        const Scales<C> scales(p);
        Metropolis<C> metropolis(groups);
        groups.load_rows(p.x, x);
        groups.template evaluate_at<true, false>(x, y, groups.energy);
        for (int64_t s = 0; s < p.num_steps; ++s) {
            groups.draws.normals(s, p.proposal_stream, groups.count, dim, padded, z);
            metropolis.draw(s);
            for (int g = 0; g < groups.count; ++g) {
                for (int64_t e = 0; e < dim; ++e) y[g * dim + e] = x[g * dim + e] + z[g * padded + e] * scales.noise[e];
            }
            groups.template evaluate_at<true, false>(y, y, metropolis.proposed);
            for (int g = 0; g < groups.count; ++g) metropolis.template judge<false>(g, LaneSum<V>(), LaneSum<V>(), y, y);
        }
        groups.store_state();
        metropolis.store_report();
    }
};

// Leapfrog in momenta z = M^{-1/2} p, which start as normals; noise is sqrt(M⁻¹).
template <class C>
struct HmcDynamics {
    using V = typename ChainLanes<C>::V;
    DynamicsParams p;
    int per_item;

    EBM_HD void run(int64_t item, void* scratch) const {
        Groups<C> groups(p, item, per_item, scratch);
        const int64_t dim = groups.dim, padded = groups.padded;
        const Rows<V> z = groups.take(groups.count * padded), y = groups.take(groups.count * dim), slope = groups.take(groups.count * dim);
        const Rows<V> x = groups.x, grad = groups.grad;
        const Scales<C> scales(p);
        Metropolis<C> metropolis(groups);
        V step_sizes[kMostGroups], jitters[kMostGroups];
        for (int g = 0; g < groups.count; ++g) step_sizes[g] = V{} + scales.step_size;
        groups.load_rows(p.x, x);
        groups.template evaluate_at<true, true>(x, grad, groups.energy);
        for (int64_t s = 0; s < p.num_steps; ++s) {
            groups.draws.normals(s, p.proposal_stream, groups.count, dim, padded, z);
            metropolis.draw(s);
            if (p.jitter != 0.0) {
                groups.draws.uniforms(s, p.jitter_stream, groups.count, jitters);
                for (int g = 0; g < groups.count; ++g)
                    step_sizes[g] = ((jitters[g] * C(2) - C(1)) * static_cast<C>(p.jitter) + C(1)) * scales.step_size;
            }
            LaneSum<V> before[kMostGroups];
            for (int g = 0; g < groups.count; ++g) {
                const V step = step_sizes[g], half = step * C(0.5);
                for (int64_t e = 0; e < dim; ++e) {
                    const int64_t i = g * dim + e;
                    const V start = z[g * padded + e], moved = start - grad[i] * scales.noise[e] * half;
                    before[g].add(start * start);
                    z[g * padded + e] = moved;
                    y[i] = x[i] + moved * scales.noise[e] * step;
                }
            }
            for (int64_t k = 1; k < p.num_leapfrog; ++k) {
                groups.template evaluate_at<false, true>(y, slope, metropolis.proposed);
                for (int g = 0; g < groups.count; ++g) {
                    const V step = step_sizes[g];
                    for (int64_t e = 0; e < dim; ++e) {
                        const int64_t i = g * dim + e;
                        const V moved = z[g * padded + e] - slope[i] * scales.noise[e] * step;
                        z[g * padded + e] = moved;
                        y[i] = y[i] + moved * scales.noise[e] * step;
                    }
                }
            }
            groups.template evaluate_at<true, true>(y, slope, metropolis.proposed);
            for (int g = 0; g < groups.count; ++g) {
                const V half = step_sizes[g] * C(0.5);
                LaneSum<V> after;
                for (int64_t e = 0; e < dim; ++e) {
                    const V end = z[g * padded + e] - slope[g * dim + e] * scales.noise[e] * half;
                    after.add(end * end);
                }
                metropolis.template judge<true>(g, before[g], after, y, slope);
            }
        }
        groups.store_state();
        metropolis.store_report();
    }
};

// BAOAB: half a kick, half a drift, the momentum's own process, half a drift, half a kick. drift is step_size / 2 · M⁻¹.
template <class C>
struct KineticLangevinDynamics {
    using V = typename ChainLanes<C>::V;
    DynamicsParams p;
    int per_item;

    EBM_HD void run(int64_t item, void* scratch) const {
        Groups<C> groups(p, item, per_item, scratch);
        const int64_t dim = groups.dim, padded = groups.padded;
        const Rows<V> z = groups.take(groups.count * padded), momentum = groups.take(groups.count * dim), x = groups.x, grad = groups.grad;
        const Scales<C> scales(p);
        const C half = scales.step_size * C(0.5), decay = static_cast<C>(p.decay);
        groups.load_rows(p.x, x);
        groups.load_rows(p.momentum, momentum);
        groups.template evaluate_at<true, true>(x, grad, groups.energy);
        for (int64_t s = 0; s < p.num_steps; ++s) {
            groups.draws.normals(s, p.proposal_stream, groups.count, dim, padded, z);
            for (int g = 0; g < groups.count; ++g) {
                for (int64_t e = 0; e < dim; ++e) {
                    const int64_t i = g * dim + e;
                    const V kicked = momentum[i] - grad[i] * half;
                    const V drawn = kicked * decay + z[g * padded + e] * scales.noise[e];
                    x[i] = (x[i] + kicked * scales.drift[e]) + drawn * scales.drift[e];
                    momentum[i] = drawn;
                }
            }
            if (s + 1 < p.num_steps) {
                groups.template evaluate_at<false, true>(x, grad, groups.energy);
            } else {
                groups.template evaluate_at<true, true>(x, grad, groups.energy);
            }
            for (int64_t i = 0; i < groups.count * dim; ++i) momentum[i] = momentum[i] - grad[i] * half;
        }
        groups.store_state();
        groups.store_rows(momentum, p.momentum);
    }
};

#undef EBM_CALL

}  // namespace
EBM_END
