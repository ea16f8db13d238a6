// Ising models: Gibbs sweeps, Metropolis, Gibbs with Gradients, energies.
#include "../../kernels/ising.h"

#include "../../kernels/ising_lanes.h"
#include "../launch.h"

EBM_BEGIN
namespace {

constexpr int64_t kGrainWork = 20000;  // site updates that are worth a thread

int64_t grain_of(int64_t work_per_chain) { return work_per_chain > kGrainWork ? 1 : 1 + kGrainWork / (work_per_chain + 1); }

#if !defined(__CUDACC__)

struct Groups {
    const IsingGibbsParams& p;
    EBM_HD void run(int64_t group, void* scratch) const { IsingGibbsChains(p, group * kBytes, scratch).run(); }
};

Status gibbs_chains(const IsingGibbsParams& p) {
    int64_t groups = (p.num_chains + kBytes - 1) / kBytes;
    return for_each_chain(Groups{p}, groups, grain_of(p.model.num_sites * p.num_steps * 8),
                          IsingGibbsChains::scratch_bytes(p.model.num_sites), nullptr, p.place);
}

// A range of rows of one torus, in one colour's half sweep; step -1 splits the rows in halves, step -2 joins them again.
struct TorusRows {
    const IsingTorus& torus;
    int64_t step;
    int colour;
    int64_t row_bytes;
    int64_t flips;
    bool is_out_of_memory;

    static void range(int64_t begin, int64_t end, void* context) {
        TorusRows& job = *static_cast<TorusRows*>(context);
        int8_t* buffer = static_cast<int8_t*>(std::malloc(static_cast<size_t>(job.row_bytes + 3 * kBytes)));
        if (!buffer) {
            __atomic_store_n(&job.is_out_of_memory, true, __ATOMIC_RELAXED);
            return;
        }
        if (job.step == -1) job.torus.split<true>(begin, end, buffer);
        if (job.step == -2) job.torus.split<false>(begin, end, buffer);
        if (job.step >= 0) __atomic_fetch_add(&job.flips, job.torus.half_sweep(job.step, job.colour, begin, end, buffer), __ATOMIC_RELAXED);
        std::free(buffer);
    }
};

Status gibbs_torus(const IsingGibbsParams& p) {
    int64_t row_bytes = p.sides[p.num_dims - 1];
    for (int64_t chain = 0; chain < p.num_chains; ++chain) {
        IsingTorus torus(p, chain);
        TorusRows job{torus, -1, 0, row_bytes, 0, false};
        auto run = [&](int64_t step, int colour) {
            job.step = step;
            job.colour = colour;
            parallel_for(torus.num_rows(), grain_of(row_bytes), TorusRows::range, &job);
        };
        run(-1, 0);
        for (int64_t t = 0; t < p.num_steps && !job.is_out_of_memory; ++t) {
            run(t, 0);
            run(t, 1);
        }
        run(-2, 0);
        if (job.is_out_of_memory) return "out of memory for a row";
        if (p.num_flips) p.num_flips[chain] += job.flips;
    }
    return nullptr;
}

#endif

}  // namespace

Status ising_gibbs(const IsingGibbsParams& p) {
#if !defined(__CUDACC__)
    DefaultFloatingPoint guard;
    if (p.num_dims > 0) return gibbs_torus(p);
    // Few chains of many sites would leave most lanes, and their memory, unused.
    bool is_wide = p.num_chains * 8 >= kBytes || p.model.num_sites <= 65536;
    if (p.scan == Scan::raster && is_wide) return gibbs_chains(p);
#endif
    return for_each_chain(IsingGibbs{p}, p.num_chains, grain_of(p.num_steps * (p.scan == Scan::raster ? p.model.num_sites : 1)), 0, nullptr,
                          p.place);
}

Status ising_metropolis(const IsingChainParams& p) {
    return for_each_chain(IsingMetropolis{p}, p.num_chains, grain_of(p.num_steps), 0, nullptr, p.place);
}

Status ising_gwg(const IsingChainParams& p) {
    return for_each_chain(IsingGwg{p}, p.num_chains, grain_of(p.num_steps * 8 + p.model.num_sites), ising_gwg_scratch_bytes(p.model),
                          p.workspace, p.place);
}

Status ising_energy(const IsingEnergyParams& p) {
    if (p.num_dims > 0) return for_each_chain(IsingTorusEnergy{p}, p.num_chains, grain_of(p.model.num_sites), 0, nullptr, p.place);
    return for_each_chain(IsingEnergy{p}, p.num_chains, grain_of(p.model.num_sites), 0, nullptr, p.place);
}

EBM_END
