// Proposals on discrete spaces, and their acceptance.
#include "../../kernels/proposals.h"

#include "../launch.h"

EBM_BEGIN
namespace {

// A thread's share of rows: about 16,384 weights.
int64_t row_grain(int64_t num_changes) { return 1 + 16384 / num_changes; }

template <template <bool, class> class Body, class C, class Params>
Status for_each_balanced(const Params& p) {
    int64_t size = p.num_sites * p.num_categories;
    int64_t bytes = flip_scratch_bytes(size, sizeof(C), p.with_replacement);
    if constexpr (kLanes > 1) {
        if (p.balancing == Balancing::sqrt)
            return for_each_chain(Body<true, C>{p}, p.num_chains, row_grain(size), bytes, p.workspace, p.place);
    }
    return for_each_chain(Body<false, C>{p}, p.num_chains, row_grain(size), bytes, p.workspace, p.place);
}

template <class C, class Draw>
Status propose_langevin_with(const ProposeLangevinParams& p, const Draw& draw) {
    int64_t size = p.num_sites * p.num_categories;
    if (p.num_categories > 1) return for_each_chain(ProposeTokens<C>{p}, p.num_chains, row_grain(size), 0, nullptr, p.place);
    LangevinSites<C> sink{static_cast<uint8_t*>(p.proposed), static_cast<const C*>(p.differences), p.num_sites, static_cast<C>(p.penalty)};
    if (Status status = for_each_block<C>(draw, sink, p.key, p.num_chains, p.num_sites, 0, p.stream, p.place)) return status;
    return for_each_chain(JudgeSites<C>{p}, p.num_chains, row_grain(size), 0, nullptr, p.place);
}

}  // namespace

Status propose_flips(const ProposeFlipsParams& p) {
    if (p.dtype == Dtype::float32) return for_each_balanced<ProposeFlips, float>(p);
    return for_each_balanced<ProposeFlips, double>(p);
}

Status accept_flips(const AcceptFlipsParams& p) {
    if (p.dtype == Dtype::float32) return for_each_balanced<AcceptFlips, float>(p);
    return for_each_balanced<AcceptFlips, double>(p);
}

Status propose_langevin(const ProposeLangevinParams& p) {
    DefaultFloatingPoint guard;  // the penalty is converted on this thread
    if (p.dtype == Dtype::float32) return propose_langevin_with<float>(p, DrawWord{});
    return propose_langevin_with<double>(p, DrawUniform{});
}

Status accept_langevin(const AcceptLangevinParams& p) {
    int64_t grain = row_grain(p.num_sites * p.num_categories);
    if (p.dtype == Dtype::float32) return for_each_chain(AcceptLangevin<float>{p}, p.num_chains, grain, 0, nullptr, p.place);
    return for_each_chain(AcceptLangevin<double>{p}, p.num_chains, grain, 0, nullptr, p.place);
}

EBM_END
