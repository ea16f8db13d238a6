"""Whole chains of continuous samplers on native energies: what `native_dynamics` of the energies by formula calls."""

from __future__ import annotations

import math
import platform
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmcore import _native
from ebmcore.ops.langevin import bounds
from ebmcore.ops.random import Stream
from ebmcore.ops.registration import require_device


class NativeEnergy(NamedTuple):
    """What native code needs to know of an energy.

    Attributes:
        kind: its name in csrc/ops/energies.def.
        constants: as they are written at its functor in csrc/energies, in the chains' dtype, on their device; of a "perceptron" the tuple
            (weights, biases, activations, their parameters, sign, copies of the hidden layers' weights: transposed, `panels`, `panels` of the
            transposed ones, `bfloat16_tiles`, those of the transposed ones, each a sequence or empty, and `bfloat16_products()`).
        num_components: of sums; else 0.
    """

    kind: str
    constants: Any
    num_components: int = 0


class DynamicsRun(NamedTuple):
    """What became of some steps.

    Attributes:
        energy: (num_chains,), E(x) after the last step, in the dtype of x.
        grad: ∇E(x) there, shaped as x; None for "random_walk".
        is_accepted: (num_chains,) bool, the proposal of the last step; this and what follows None for kernels that do not reject.
        acceptance_prob: (num_chains,) float64, mean over the steps.
        num_diverged: (num_chains,) int64, proposals that were not finite and hence rejected; of a kernel that does not reject, if there is
            one, steps whose result was not finite.
    """

    energy: Tensor
    grad: Tensor | None
    is_accepted: Tensor | None
    acceptance_prob: Tensor | None
    num_diverged: Tensor | None


def fuses_multiply_add(device: torch.device) -> bool:
    """Whether native code there has the operation that products of perceptrons are made of: all but x86-64 processors of before 2013."""
    return device.type != "cpu" or _native.core.cpu_target() != "baseline" or platform.machine().lower() not in ("x86_64", "amd64")


def bfloat16_products() -> int:
    """How products in bfloat16 are made on this processor: 0 by float32 products, which gains nothing; 1 by AVX-512 BF16; 2 by AMX."""
    products: int = _native.core.bfloat16_products()
    return products


def panels(matrix: Tensor) -> Tensor:
    """A copy (num_panels, num_columns, 12): panels of 12 rows, the last filled up with zeros."""
    padded = F.pad(matrix, (0, 0, 0, -len(matrix) % 12))
    return padded.reshape(-1, 12, matrix.shape[1]).mT.contiguous()


def bfloat16_tiles(matrix: Tensor) -> Tensor:
    """A copy in bfloat16 as csrc/energies/bfloat16_products.h wants it: tiles of 16 x 32, row by row, an even number of rows of them."""
    num_rows, num_columns = matrix.shape
    padded = F.pad(matrix, (0, -num_columns % 32, 0, -num_rows % 32)).bfloat16()
    return padded.reshape(len(padded) // 16, 16, -1, 32).transpose(1, 2).contiguous()


def run_dynamics(
    kernel: str,
    energy: NativeEnergy,
    x: Tensor,
    momentum: Tensor | None,
    key: Tensor,
    num_steps: int,
    *,
    step_size: float,
    inverse_mass: Tensor | None = None,
    noise_std: float = 0.0,
    clip_grad: float | None = None,
    clamp: tuple[float, float] | None = None,
    num_leapfrog: int = 1,
    jitter: float = 0.0,
    friction: float = 0.0,
    temperature: float = 1.0,
    precision: str | None = None,
    row_space: bool = False,
) -> DynamicsRun | None:
    """Steps in place; the draws are those of `ops.normal` (stream PROPOSAL) and `ops.uniform` (ACCEPTANCE, JITTER) in the dtype of x.

    Args:
        kernel: "langevin" (step_size, noise_std, clip_grad, clamp), "mala" (step_size, inverse_mass), "hmc" (step_size, num_leapfrog,
            inverse_mass, jitter), "kinetic_langevin" (step_size, friction, inverse_mass, temperature) or "random_walk" (step_size,
            inverse_mass). For any other, and for a precision or row_space that the energy has not seen to, the result is None.
        x: (num_chains, *event), float32 or float64, contiguous, changed in place; at least one chain.
        momentum: as x; "kinetic_langevin" only.
        key: int64 [seed, step, first_chain] of the first step, where x is.
        num_steps: at least 1.
        inverse_mass: contiguous, in the dtype of x, of the event's size; None for ones.
    """
    if kernel not in ("langevin", "mala", "hmc", "kinetic_langevin", "random_walk") or precision is not None or row_space:
        return None
    require_device(x.device, kernel)
    num_chains = len(x)
    dim = x.numel() // num_chains
    drift: Tensor | None = None
    noise: Tensor | None = None
    metric = x.new_ones(dim, dtype=torch.float64) if inverse_mass is None else inverse_mass.double()
    if kernel == "mala":
        drift, noise = metric * step_size, (metric * (2 * step_size)).sqrt_()
    elif kernel == "random_walk":
        noise = metric.sqrt() * step_size
    elif kernel == "hmc":
        noise = metric.sqrt()
    elif kernel == "kinetic_langevin":
        drift = metric * (0.5 * step_size)
        noise = metric.rsqrt() * math.sqrt(-math.expm1(-2 * friction * step_size) * temperature)
    value = x.new_empty(num_chains)
    grad = None if kernel == "random_walk" else torch.empty_like(x)
    is_adjusted = kernel in ("mala", "hmc", "random_walk")
    is_accepted = torch.empty(num_chains, dtype=torch.bool, device=x.device) if is_adjusted else None
    acceptance = torch.empty(num_chains, dtype=torch.float64, device=x.device) if is_adjusted else None
    num_diverged = torch.empty(num_chains, dtype=torch.int64, device=x.device) if is_adjusted else None
    workspace = x.new_empty(num_chains * _native.core.dynamics_scratch(dim, energy.num_components)) if x.is_cuda else None
    _native.core.dynamics(
        kernel,
        *energy,
        x,
        momentum,
        value,
        grad,
        is_accepted,
        acceptance,
        num_diverged,
        None if drift is None else drift.to(x.dtype),
        None if noise is None else noise.to(x.dtype),
        key,
        num_steps,
        num_leapfrog,
        step_size,
        noise_std,
        math.inf if clip_grad is None else clip_grad,
        *bounds(clamp, kernel),
        math.exp(-friction * step_size),
        jitter,
        int(Stream.PROPOSAL),
        int(Stream.ACCEPTANCE),
        int(Stream.JITTER),
        workspace,
    )
    return DynamicsRun(value, grad, is_accepted, None if acceptance is None else acceptance.div_(num_steps), num_diverged)
