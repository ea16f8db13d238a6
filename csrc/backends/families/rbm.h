// Restricted Boltzmann machines.
#include "../../kernels/rbm_chains.h"
#include "../launch.h"

EBM_BEGIN
namespace {

template <class Body>
Status run_rows(const Body& body, int64_t row, const Place& place) {
    return for_each_chain(body, body.p.num_chains, 1 + 16384 / row, 0, nullptr, place);
}

// A group of chains, one in each lane, at a time.
template <class Body>
Status run_groups(const Body& body, const Place& place) {
    const auto& p = body.p;
    return for_each_chain(body, (p.num_chains + kLanes - 1) / kLanes, 1 + 16384 / (p.num_visible * p.num_hidden * p.num_steps),
                          kLanes * rbm_scratch_bytes(p.num_visible, p.num_hidden), p.workspace, place);
}

}  // namespace

Status sigmoid_bernoulli(const SigmoidBernoulliParams& p) {
    SigmoidBernoulliSink sink{p.out, p.logits, p.bias, p.dim, p.scale};
#if defined(__CUDACC__)
    return for_each_block<float>(DrawWord{}, sink, p.key, p.num_chains, p.dim, 0, p.stream, p.place);
#else
    return for_each_chain(SigmoidBernoulliBody{sink, p.key, p.stream}, p.num_chains, 1 + 16384 / p.dim, 0, nullptr, p.place);
#endif
}

Status softplus_sum(const SoftplusSumParams& p) { return run_rows(SoftplusSumBody{p}, p.dim, p.place); }

Status rbm_gibbs(const RbmGibbsParams& p) { return run_groups(RbmGibbsBody{p}, p.place); }

Status rbm_gwg_chains(const RbmGwgChainsParams& p) { return run_groups(RbmGwgChainsBody{p}, p.place); }

Status rbm_gwg(const RbmGwgParams& p) { return run_rows(RbmGwgBody{p}, p.num_visible + p.num_hidden, p.place); }

EBM_END
