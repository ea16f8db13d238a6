// Whole chains of continuous samplers on native energies.
#include "../../kernels/dynamics.h"
#include "../launch.h"

EBM_BEGIN
namespace {

constexpr int64_t kScratchAim = 16384;  // bytes: as many groups of chains at once as fit, for one hides the latency of the others

// Groups of chains that read weights together: two from the nearest caches, more of them from further away.
inline int64_t groups_of_network(const PerceptronParams& p) {
    constexpr int64_t kNear = 1 << 20;  // bytes
    int64_t bytes = 0;
    for (int l = 0; l < p.num_hidden_layers; ++l) bytes += p.widths[l] * p.widths[l + 1] * (p.tiles[l] ? 2 : 4);
    return bytes <= kNear ? 2 : 4;
}

template <class C, template <class> class Body>
Status run_chains_of(const DynamicsParams& p) {
    using L = ChainLanes<C>;
    const int64_t numbers = dynamics_scratch(p.dim, p.num_components, p.num_parts);
    const int64_t row = numbers * static_cast<int64_t>(sizeof(typename L::V));
    const int64_t num_groups = (p.num_chains + L::kWidth - 1) / L::kWidth, fit = kScratchAim / row;
    int64_t per_item = fit < 1 ? 1 : fit < kMostGroups ? fit : kMostGroups;
    int64_t num_terms = 0;
    for (int k = 0; k < p.num_parts; ++k) num_terms += p.parts[k].num_components + 1;
#if !defined(__CUDACC__)
    for (int k = 0; k < p.num_parts; ++k) {  // of several networks, the last one's number of groups
        if (p.parts[k].kind != EnergyKind::perceptron) continue;
        const int64_t share = (num_groups + get_num_threads() - 1) / get_num_threads(), most = groups_of_network(p.parts[k].perceptron);
        per_item = share < most ? share : most;
    }
#endif
    if (num_groups < per_item) per_item = num_groups;
    const int64_t steps = p.num_steps * (p.num_leapfrog > 1 ? p.num_leapfrog : 1) + 1;  // and the evaluation at the start
    const int64_t work = per_item * steps * (p.dim * num_terms * 10 + 20);              // ns, about
    return for_each_chain(Body<C>{p, static_cast<int>(per_item)}, (num_groups + per_item - 1) / per_item, 1 + 50000 / work,
                          kLanes == 1 ? 0 : per_item * row, nullptr, p.place);
}

template <template <class> class Body>
Status run_dynamics(const DynamicsParams& p) {
    return p.dtype == Dtype::float64 ? run_chains_of<double, Body>(p) : run_chains_of<float, Body>(p);
}

template <class C>
using FreeLangevin = LangevinDynamics<C, false>;
template <class C>
using BoundedLangevin = LangevinDynamics<C, true>;

}  // namespace

Status langevin_dynamics(const DynamicsParams& p) {
    constexpr double inf = __builtin_inf();
    const bool is_bounded = p.clip_grad < inf || p.clamp_min > -inf || p.clamp_max < inf;
    return is_bounded ? run_dynamics<BoundedLangevin>(p) : run_dynamics<FreeLangevin>(p);
}

Status mala_dynamics(const DynamicsParams& p) { return run_dynamics<MalaDynamics>(p); }

Status hmc_dynamics(const DynamicsParams& p) { return run_dynamics<HmcDynamics>(p); }

Status kinetic_langevin_dynamics(const DynamicsParams& p) { return run_dynamics<KineticLangevinDynamics>(p); }

Status random_walk_dynamics(const DynamicsParams& p) { return run_dynamics<RandomWalkDynamics>(p); }

EBM_END
