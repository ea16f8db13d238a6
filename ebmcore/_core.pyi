"""
Native CPU ops of ebmcore, and the doors to the CUDA ones. Private: use ebmcore.ops.
"""

from __future__ import annotations
import typing
import typing_extensions

__all__: list[str] = [
    "NORM_SEGMENT",
    "accept_flips",
    "accept_langevin",
    "bernoulli",
    "cpu_target",
    "cpu_targets",
    "flip_scratch_bytes",
    "get_num_threads",
    "langevin_step",
    "normal",
    "philox",
    "propose_flips",
    "propose_langevin",
    "rademacher",
    "set_cpu_target",
    "set_cuda_table",
    "set_num_threads",
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
def bernoulli(
    out: typing.Any,
    key: typing.Any,
    stream: typing.SupportsInt | typing.SupportsIndex,
    first_block: typing.SupportsInt | typing.SupportsIndex,
    threshold: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cpu_target() -> str: ...
def cpu_targets() -> list[str]: ...
def flip_scratch_bytes(
    num_changes: typing.SupportsInt | typing.SupportsIndex, element_size: typing.SupportsInt | typing.SupportsIndex, with_replacement: bool
) -> int: ...
def get_num_threads() -> int: ...
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
def set_cpu_target(name: str) -> None: ...
def set_cuda_table(table: typing_extensions.CapsuleType) -> None: ...
def set_num_threads(num_threads: typing.SupportsInt | typing.SupportsIndex) -> None: ...
def thread_pool() -> str: ...
def uniform(
    out: typing.Any, key: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex, first_block: typing.SupportsInt | typing.SupportsIndex
) -> None: ...

NORM_SEGMENT: int = 8192
__version__: str = "0.1.0"
