"""
Native CPU ops of ebmcore, and the doors to the CUDA ones. Private: use ebmcore.ops.
"""

from __future__ import annotations
import collections.abc
import typing
import typing_extensions

__all__: list[str] = [
    "MAX_DERIVATIVE",
    "NORM_SEGMENT",
    "RBM_CHUNK",
    "RBM_RECORD",
    "RBM_TILE",
    "accept_flips",
    "accept_langevin",
    "activation_derivatives",
    "activation_derivatives_dot",
    "activation_tangents",
    "bernoulli",
    "bfloat16_products",
    "cpu_target",
    "cpu_targets",
    "dynamics",
    "dynamics_scratch",
    "flip_scratch_bytes",
    "get_num_threads",
    "ising_energy",
    "ising_gibbs",
    "ising_gwg",
    "ising_gwg_scratch",
    "ising_metropolis",
    "langevin_step",
    "normal",
    "philox",
    "potts_gibbs",
    "potts_gwg",
    "potts_gwg_scratch",
    "potts_metropolis",
    "probe_dot",
    "probe_scale",
    "probes",
    "propose_flips",
    "propose_langevin",
    "rademacher",
    "rbm_gibbs",
    "rbm_gwg",
    "rbm_gwg_chains",
    "rbm_scratch",
    "set_cpu_target",
    "set_cuda_table",
    "set_num_threads",
    "sigmoid_bernoulli",
    "softplus_sum",
    "swendsen_wang",
    "thread_pool",
    "uniform",
]

def accept_flips(
    energy: typing.Any,
    differences: typing.Any,
    new_energy: typing.Any,
    new_differences: typing.Any,
    back: typing.Any,
    log_q: typing.Any,
    key: typing.Any,
    num_categories: typing.SupportsInt | typing.SupportsIndex,
    with_replacement: bool,
    balancing: typing.SupportsInt | typing.SupportsIndex,
    is_accepted: typing.Any,
    is_diverged: typing.Any,
    acceptance_prob: typing.Any,
    workspace: typing.Any,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def accept_langevin(
    energy: typing.Any,
    differences: typing.Any,
    new_energy: typing.Any,
    new_differences: typing.Any,
    proposed: typing.Any,
    tokens: typing.Any,
    log_q: typing.Any,
    key: typing.Any,
    num_categories: typing.SupportsInt | typing.SupportsIndex,
    penalty: typing.SupportsFloat | typing.SupportsIndex,
    metropolis: bool,
    is_accepted: typing.Any,
    is_diverged: typing.Any,
    acceptance_prob: typing.Any,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def activation_derivatives(
    out: typing.Any,
    x: typing.Any,
    activation: typing.SupportsInt | typing.SupportsIndex,
    first: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def activation_derivatives_dot(
    out: typing.Any,
    x: typing.Any,
    weights: typing.Any,
    activation: typing.SupportsInt | typing.SupportsIndex,
    first: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def activation_tangents(
    rows: typing.Any,
    slopes: typing.Any,
    bias: typing.Any,
    num_chains: typing.SupportsInt | typing.SupportsIndex,
    activation: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def bernoulli(
    out: typing.Any,
    key: typing.Any,
    stream: typing.SupportsInt | typing.SupportsIndex,
    first_block: typing.SupportsInt | typing.SupportsIndex,
    threshold: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def bfloat16_products() -> int:
    """
    0: emulated, 1: AVX-512 BF16, 2: AMX; of the instruction set that is chosen.
    """

def cpu_target() -> str: ...
def cpu_targets() -> list[str]: ...
def dynamics(
    kernel: str,
    kind: str,
    constants: typing.Any,
    num_components: typing.SupportsInt | typing.SupportsIndex,
    x: typing.Any,
    momentum: typing.Any,
    energies: typing.Any,
    grad: typing.Any,
    is_accepted: typing.Any,
    acceptance: typing.Any,
    num_diverged: typing.Any,
    drift: typing.Any,
    noise: typing.Any,
    key: typing.Any,
    num_steps: typing.SupportsInt | typing.SupportsIndex,
    num_leapfrog: typing.SupportsInt | typing.SupportsIndex,
    step_size: typing.SupportsFloat | typing.SupportsIndex,
    noise_std: typing.SupportsFloat | typing.SupportsIndex,
    clip_grad: typing.SupportsFloat | typing.SupportsIndex,
    clamp_min: typing.SupportsFloat | typing.SupportsIndex,
    clamp_max: typing.SupportsFloat | typing.SupportsIndex,
    decay: typing.SupportsFloat | typing.SupportsIndex,
    jitter: typing.SupportsFloat | typing.SupportsIndex,
    proposal_stream: typing.SupportsInt | typing.SupportsIndex,
    acceptance_stream: typing.SupportsInt | typing.SupportsIndex,
    jitter_stream: typing.SupportsInt | typing.SupportsIndex,
    workspace: typing.Any,
) -> None: ...
def dynamics_scratch(dim: typing.SupportsInt | typing.SupportsIndex, num_components: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Numbers of scratch of a chain.
    """

def flip_scratch_bytes(
    num_changes: typing.SupportsInt | typing.SupportsIndex, element_size: typing.SupportsInt | typing.SupportsIndex, with_replacement: bool
) -> int: ...
def get_num_threads() -> int: ...
def ising_energy(
    spins: typing.Any,
    model: tuple[typing.Any, typing.Any, typing.Any, typing.Any, typing.Any, typing.SupportsInt | typing.SupportsIndex],
    sides: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    energies: typing.Any,
    fields: typing.Any,
) -> None: ...
def ising_gibbs(
    spins: typing.Any,
    key: typing.Any,
    model: tuple[typing.Any, typing.Any, typing.Any, typing.Any, typing.Any, typing.SupportsInt | typing.SupportsIndex],
    order: typing.Any,
    colour_offsets: typing.Any,
    sides: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    num_steps: typing.SupportsInt | typing.SupportsIndex,
    is_random: bool,
    num_flips: typing.Any,
) -> None: ...
def ising_gwg(
    spins: typing.Any,
    key: typing.Any,
    model: tuple[typing.Any, typing.Any, typing.Any, typing.Any, typing.Any, typing.SupportsInt | typing.SupportsIndex],
    num_steps: typing.SupportsInt | typing.SupportsIndex,
    balancing: typing.SupportsInt | typing.SupportsIndex,
    is_accepted: typing.Any,
    acceptance_sums: typing.Any,
    num_flips: typing.Any,
    workspace: typing.Any,
) -> None: ...
def ising_gwg_scratch(num_sites: typing.SupportsInt | typing.SupportsIndex, max_degree: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Bytes of scratch of a chain.
    """

def ising_metropolis(
    spins: typing.Any,
    key: typing.Any,
    model: tuple[typing.Any, typing.Any, typing.Any, typing.Any, typing.Any, typing.SupportsInt | typing.SupportsIndex],
    num_steps: typing.SupportsInt | typing.SupportsIndex,
    balancing: typing.SupportsInt | typing.SupportsIndex,
    is_accepted: typing.Any,
    acceptance_sums: typing.Any,
    num_flips: typing.Any,
    workspace: typing.Any,
) -> None: ...
def langevin_step(
    out: typing.Any,
    x: typing.Any,
    grad: typing.Any,
    key: typing.Any,
    step_size: typing.SupportsFloat | typing.SupportsIndex,
    noise_std: typing.SupportsFloat | typing.SupportsIndex,
    clip_grad: typing.SupportsFloat | typing.SupportsIndex,
    clip_grad_norm: typing.SupportsFloat | typing.SupportsIndex,
    clamp_min: typing.SupportsFloat | typing.SupportsIndex,
    clamp_max: typing.SupportsFloat | typing.SupportsIndex,
    workspace: typing.Any,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def normal(
    out: typing.Any, key: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex, first_block: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def philox(
    out: typing.Any, key: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex, first_block: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def potts_gibbs(
    states: typing.Any,
    key: typing.Any,
    offsets: typing.Any,
    neighbours: typing.Any,
    couplings: typing.Any,
    coupling_stride: typing.SupportsInt | typing.SupportsIndex,
    is_table: bool,
    is_bounded: bool,
    reverse: typing.Any,
    fields: typing.Any,
    num_categories: typing.SupportsInt | typing.SupportsIndex,
    unit: typing.Any,
    order: typing.Any,
    scan: typing.SupportsInt | typing.SupportsIndex,
    balancing: typing.SupportsInt | typing.SupportsIndex,
    max_degree: typing.SupportsInt | typing.SupportsIndex,
    num_steps: typing.SupportsInt | typing.SupportsIndex,
    is_accepted: typing.Any,
    acceptance_prob: typing.Any,
    num_flips: typing.Any,
    workspace: typing.Any,
) -> None: ...
def potts_gwg(
    states: typing.Any,
    key: typing.Any,
    offsets: typing.Any,
    neighbours: typing.Any,
    couplings: typing.Any,
    coupling_stride: typing.SupportsInt | typing.SupportsIndex,
    is_table: bool,
    is_bounded: bool,
    reverse: typing.Any,
    fields: typing.Any,
    num_categories: typing.SupportsInt | typing.SupportsIndex,
    unit: typing.Any,
    order: typing.Any,
    scan: typing.SupportsInt | typing.SupportsIndex,
    balancing: typing.SupportsInt | typing.SupportsIndex,
    max_degree: typing.SupportsInt | typing.SupportsIndex,
    num_steps: typing.SupportsInt | typing.SupportsIndex,
    is_accepted: typing.Any,
    acceptance_prob: typing.Any,
    num_flips: typing.Any,
    workspace: typing.Any,
) -> None: ...
def potts_gwg_scratch(
    num_sites: typing.SupportsInt | typing.SupportsIndex,
    num_categories: typing.SupportsInt | typing.SupportsIndex,
    max_degree: typing.SupportsInt | typing.SupportsIndex,
) -> int: ...
def potts_metropolis(
    states: typing.Any,
    key: typing.Any,
    offsets: typing.Any,
    neighbours: typing.Any,
    couplings: typing.Any,
    coupling_stride: typing.SupportsInt | typing.SupportsIndex,
    is_table: bool,
    is_bounded: bool,
    reverse: typing.Any,
    fields: typing.Any,
    num_categories: typing.SupportsInt | typing.SupportsIndex,
    unit: typing.Any,
    order: typing.Any,
    scan: typing.SupportsInt | typing.SupportsIndex,
    balancing: typing.SupportsInt | typing.SupportsIndex,
    max_degree: typing.SupportsInt | typing.SupportsIndex,
    num_steps: typing.SupportsInt | typing.SupportsIndex,
    is_accepted: typing.Any,
    acceptance_prob: typing.Any,
    num_flips: typing.Any,
    workspace: typing.Any,
) -> None: ...
def probe_dot(
    out: typing.Any, u: typing.Any, is_shared: bool, key: typing.Any, is_gaussian: bool, stream: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def probe_scale(out: typing.Any, g: typing.Any, key: typing.Any, is_gaussian: bool, stream: typing.SupportsInt | typing.SupportsIndex) -> None: ...
def probes(
    out: typing.Any,
    key: typing.Any,
    num_chains: typing.SupportsInt | typing.SupportsIndex,
    is_gaussian: bool,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def propose_flips(
    index: typing.Any,
    log_q: typing.Any,
    differences: typing.Any,
    key: typing.Any,
    num_categories: typing.SupportsInt | typing.SupportsIndex,
    num_draws: typing.SupportsInt | typing.SupportsIndex,
    with_replacement: bool,
    balancing: typing.SupportsInt | typing.SupportsIndex,
    workspace: typing.Any,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def propose_langevin(
    proposed: typing.Any,
    log_q: typing.Any,
    differences: typing.Any,
    tokens: typing.Any,
    key: typing.Any,
    num_categories: typing.SupportsInt | typing.SupportsIndex,
    penalty: typing.SupportsFloat | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def rademacher(
    out: typing.Any, key: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex, first_block: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def rbm_gibbs(
    states: typing.Any,
    num_flips: typing.Any,
    weight: typing.Any,
    transposed: typing.Any,
    visible_bias: typing.Any,
    hidden_bias: typing.Any,
    key: typing.Any,
    num_hidden: typing.SupportsInt | typing.SupportsIndex,
    num_steps: typing.SupportsInt | typing.SupportsIndex,
    hidden_stream: typing.SupportsInt | typing.SupportsIndex,
    visible_stream: typing.SupportsInt | typing.SupportsIndex,
    workspace: typing.Any,
) -> None: ...
def rbm_gwg(
    states: typing.Any,
    inputs: typing.Any,
    means: typing.Any,
    pulls: typing.Any,
    balanced: typing.Any,
    records: typing.Any,
    weight: typing.Any,
    visible_bias: typing.Any,
    key: typing.Any,
    step: typing.SupportsInt | typing.SupportsIndex,
    num_steps: typing.SupportsInt | typing.SupportsIndex,
    unit: typing.SupportsFloat | typing.SupportsIndex,
    balancing: typing.SupportsInt | typing.SupportsIndex,
    proposal_stream: typing.SupportsInt | typing.SupportsIndex,
    acceptance_stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def rbm_gwg_chains(
    states: typing.Any,
    inputs: typing.Any,
    weight: typing.Any,
    transposed: typing.Any,
    visible_bias: typing.Any,
    key: typing.Any,
    is_accepted: typing.Any,
    acceptance: typing.Any,
    num_flips: typing.Any,
    num_steps: typing.SupportsInt | typing.SupportsIndex,
    unit: typing.SupportsFloat | typing.SupportsIndex,
    balancing: typing.SupportsInt | typing.SupportsIndex,
    proposal_stream: typing.SupportsInt | typing.SupportsIndex,
    acceptance_stream: typing.SupportsInt | typing.SupportsIndex,
    workspace: typing.Any,
) -> None: ...
def rbm_scratch(num_visible: typing.SupportsInt | typing.SupportsIndex, num_hidden: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Bytes of scratch of a chain.
    """

def set_cpu_target(name: str) -> None: ...
def set_cuda_table(table: typing_extensions.CapsuleType) -> None: ...
def set_num_threads(num_threads: typing.SupportsInt | typing.SupportsIndex) -> None: ...
def sigmoid_bernoulli(
    out: typing.Any,
    logits: typing.Any,
    bias: typing.Any,
    key: typing.Any,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def softplus_sum(out: typing.Any, logits: typing.Any, bias: typing.Any, scale: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
def swendsen_wang(
    states: typing.Any,
    key: typing.Any,
    edges: typing.Any,
    bond_probs: typing.Any,
    fields: typing.Any,
    num_categories: typing.SupportsInt | typing.SupportsIndex,
    num_steps: typing.SupportsInt | typing.SupportsIndex,
    num_flips: typing.Any,
    workspace: typing.Any,
    scratch_bytes: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def thread_pool() -> str: ...
def uniform(
    out: typing.Any, key: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex, first_block: typing.SupportsInt | typing.SupportsIndex
) -> None: ...

MAX_DERIVATIVE: int = 4
NORM_SEGMENT: int = 8192
RBM_CHUNK: int = 16
RBM_RECORD: int = 32
RBM_TILE: int = 8
__version__: str = "0.1.0"
