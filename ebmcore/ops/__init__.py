"""Native ops on torch tensors and NumPy arrays, one function each, with its plain-torch twin `<op>_reference`."""

from ebmcore._native import cuda_problem, info, version
from ebmcore.ops.activations import (
    activation_derivatives,
    activation_derivatives_dot,
    activation_derivatives_dot_reference,
    activation_derivatives_reference,
    activation_tangents_,
    activation_tangents_reference,
)
from ebmcore.ops.clusters import swendsen_wang_
from ebmcore.ops.ising import IsingModel, ising_energy, ising_fields, ising_gibbs_, ising_gibbs_reference, ising_gwg_, ising_metropolis_
from ebmcore.ops.langevin import langevin_step, langevin_step_, langevin_step_reference
from ebmcore.ops.metropolis import Tally, metropolis_accept_, metropolis_accept_reference
from ebmcore.ops.potts import PottsTables, potts_chain_
from ebmcore.ops.probes import probe_dot, probe_dot_reference, probe_scale, probe_scale_reference, probes, probes_reference
from ebmcore.ops.proposals import (
    Verdict,
    accept_flips_,
    accept_flips_reference,
    accept_langevin_,
    accept_langevin_reference,
    propose_flips,
    propose_flips_reference,
    propose_langevin,
    propose_langevin_reference,
)
from ebmcore.ops.random import Stream, bernoulli, normal, philox, rademacher, uniform
from ebmcore.ops.rbm import sigmoid_bernoulli, sigmoid_bernoulli_reference, softplus_sum, softplus_sum_reference
from ebmcore.ops.swaps import SwapTally, swap_replicas_, swap_replicas_reference, swap_scales
from ebmcore.ops.threads import get_num_threads, set_num_threads

__all__ = [
    "IsingModel",
    "PottsTables",
    "Stream",
    "SwapTally",
    "Tally",
    "Verdict",
    "accept_flips_",
    "accept_flips_reference",
    "accept_langevin_",
    "accept_langevin_reference",
    "activation_derivatives",
    "activation_derivatives_dot",
    "activation_derivatives_dot_reference",
    "activation_derivatives_reference",
    "activation_tangents_",
    "activation_tangents_reference",
    "bernoulli",
    "cuda_problem",
    "get_num_threads",
    "info",
    "ising_energy",
    "ising_fields",
    "ising_gibbs_",
    "ising_gibbs_reference",
    "ising_gwg_",
    "ising_metropolis_",
    "langevin_step",
    "langevin_step_",
    "langevin_step_reference",
    "metropolis_accept_",
    "metropolis_accept_reference",
    "normal",
    "philox",
    "potts_chain_",
    "probe_dot",
    "probe_dot_reference",
    "probe_scale",
    "probe_scale_reference",
    "probes",
    "probes_reference",
    "propose_flips",
    "propose_flips_reference",
    "propose_langevin",
    "propose_langevin_reference",
    "rademacher",
    "set_num_threads",
    "sigmoid_bernoulli",
    "sigmoid_bernoulli_reference",
    "softplus_sum",
    "softplus_sum_reference",
    "swap_replicas_",
    "swap_replicas_reference",
    "swap_scales",
    "swendsen_wang_",
    "uniform",
    "version",
]
