// Chains of Potts models.
#include "../../kernels/potts.h"
#include "../launch.h"

EBM_BEGIN
namespace {

// About 50 µs of work for a thread.
int64_t potts_grain(const PottsParams& p, int64_t updates_per_step, int64_t ns_per_update) {
    int64_t ns = p.num_steps * updates_per_step * ns_per_update;
    return 1 + 50000 / (ns > 0 ? ns : 1);
}

template <bool kTable, int kRow>
Status gibbs_of(const PottsParams& p) {
    constexpr int64_t group = PottsGibbs<kTable, kRow>::kGroup;
    int64_t grain = potts_grain(p, group * (p.scan == Scan::random ? 1 : p.num_sites), 20);
    return for_each_chain(PottsGibbs<kTable, kRow>{{p}}, (p.num_chains + group - 1) / group, grain, 0, nullptr, p.place);
}

template <bool kTable, int kRow>
Status metropolis_of(const PottsParams& p) {
    return for_each_chain(PottsMetropolis<kTable, kRow>{{p}}, p.num_chains, potts_grain(p, 1, 50), 0, nullptr, p.place);
}

template <bool kTable, int kRow>
Status gwg_of(const PottsParams& p) {
    int64_t scratch = potts_gwg_scratch_bytes(p.num_sites, p.num_categories, p.max_degree);
    return for_each_chain(PottsGwg<kTable, kRow>(p), p.num_chains, potts_grain(p, 1, 200), scratch, p.workspace, p.place);
}

}  // namespace

Status potts_gibbs(const PottsParams& p) {
    if (p.num_categories <= 4) return p.is_table ? gibbs_of<true, 4>(p) : gibbs_of<false, 4>(p);
    if constexpr (kLanes > 1) {  // rows in registers
        if (p.num_categories <= 16) return p.is_table ? gibbs_of<true, 16>(p) : gibbs_of<false, 16>(p);
        if (p.num_categories <= 32) return p.is_table ? gibbs_of<true, 32>(p) : gibbs_of<false, 32>(p);
    }
    return p.is_table ? gibbs_of<true, kMaxCategories>(p) : gibbs_of<false, kMaxCategories>(p);
}

Status potts_metropolis(const PottsParams& p) { return p.is_table ? metropolis_of<true, 4>(p) : metropolis_of<false, 4>(p); }

Status potts_gwg(const PottsParams& p) {
    if (p.num_categories <= 4) return p.is_table ? gwg_of<true, 4>(p) : gwg_of<false, 4>(p);
    if constexpr (kLanes > 1) {  // rows in registers
        if (p.num_categories <= 16) return p.is_table ? gwg_of<true, 16>(p) : gwg_of<false, 16>(p);
        if (p.num_categories <= 32) return p.is_table ? gwg_of<true, 32>(p) : gwg_of<false, 32>(p);
    }
    return p.is_table ? gwg_of<true, kMaxCategories>(p) : gwg_of<false, kMaxCategories>(p);
}

EBM_END
