"""Native ops on torch tensors and NumPy arrays, one function each, with its plain-torch twin `<op>_reference`."""

from ebmcore._native import cuda_problem, info, version
from ebmcore.ops.langevin import langevin_step, langevin_step_, langevin_step_reference
from ebmcore.ops.random import Stream, bernoulli, normal, philox, rademacher, uniform
from ebmcore.ops.rbm import sigmoid_bernoulli, sigmoid_bernoulli_reference, softplus_sum, softplus_sum_reference
from ebmcore.ops.threads import get_num_threads, set_num_threads

__all__ = [
    "Stream",
    "bernoulli",
    "cuda_problem",
    "get_num_threads",
    "info",
    "langevin_step",
    "langevin_step_",
    "langevin_step_reference",
    "normal",
    "philox",
    "rademacher",
    "set_num_threads",
    "sigmoid_bernoulli",
    "sigmoid_bernoulli_reference",
    "softplus_sum",
    "softplus_sum_reference",
    "uniform",
    "version",
]
