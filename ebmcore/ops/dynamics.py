"""Whole chains of continuous samplers on native energies: what `native_dynamics` of energies by formula, networks and sums calls."""

from __future__ import annotations

import abc
import math
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmcore import _native
from ebmcore.ops.langevin import bounds
from ebmcore.ops.random import Stream
from ebmcore.ops.registration import require_device

MAX_PARTS = _native.core.MAX_PARTS  # of a native energy


_WIDE = 2**16  # weights of a network, whose single evaluations are faster as products of torch


class NativeEnergy(NamedTuple):
    """What native code needs to know of an energy, or of a part of a sum of them.

    Attributes:
        kind: its name in csrc/ops/energies.def.
        constants: as they are written at its functor in csrc/energies, in the chains' dtype, on their device; of a "perceptron" the tuple
            (weights, biases, activations, their parameters, sign, copies of the hidden layers' weights: transposed, `panels`, `panels` of the
            transposed ones, `bfloat16_tiles`, those of the transposed ones, each a sequence or empty, and `bfloat16_products()`).
        num_components: of sums; else 0.
        weight: E is multiplied by it.
    """

    kind: str
    constants: Any
    num_components: int = 0
    weight: float = 1.0


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


class NativeChains(abc.ABC):
    """An energy whose chains run natively where it is a sum of what native code knows."""

    @abc.abstractmethod
    def native_parts(self, x: Tensor, num_evaluations: int = 1) -> Sequence[NativeEnergy] | None:
        """What E is the sum of at x, in its dtype and where it is; None if native code does not know it, or not for this x.

        num_evaluations: about how many of a chain's it is for; copies of weights can pay when they are many.
        """

    def native_dynamics(self, kernel: str, x: Tensor, momentum: Tensor | None, key: Tensor, num_steps: int, **options: Any) -> DynamicsRun | None:
        """`num_steps` steps in place, natively, as `run_dynamics` describes them; None, and nothing done, where that cannot be."""
        parts = self.native_parts(x, num_steps * options.get("num_leapfrog", 1)) if num_steps > 0 else None
        return run_dynamics(kernel, parts, x, momentum, key, num_steps, **options)

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """What `gradients.energy_and_grad` asks of energies: in one native pass; None where autograd is the way, as for wide networks."""
        parts = self.native_parts(x) if x.dtype in (torch.float32, torch.float64) else None
        if parts is None or any(_is_for_autograd(part, x) for part in parts):
            return None
        x = x.clone(memory_format=torch.contiguous_format)  # native chains write to theirs
        run = run_dynamics("langevin", parts, x, None, torch.zeros(3, dtype=torch.int64, device=x.device), 0, step_size=0.0)
        return None if run is None or run.grad is None else (run.energy, run.grad)


def _is_for_autograd(part: NativeEnergy, x: Tensor) -> bool:
    return part.kind == "perceptron" and (x.is_cuda or sum(weight.numel() for weight in part.constants[0]) > _WIDE)


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
    parts: Sequence[NativeEnergy] | None,
    x: Tensor,
    momentum: Tensor | None,
    key: Tensor,
    num_steps: int,
    *,
    factors: Tensor | None = None,
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
    """Steps in place on E = factor · Σ weight_k E_k.

    The draws are those of `ops.normal` (stream PROPOSAL) and `ops.uniform` (ACCEPTANCE, JITTER) in the dtype of x.

    Args:
        kernel: "langevin" (step_size, noise_std, clip_grad, clamp), "mala" (step_size, inverse_mass), "hmc" (step_size, num_leapfrog,
            inverse_mass, jitter), "kinetic_langevin" (step_size, friction, inverse_mass, temperature) or "random_walk" (step_size,
            inverse_mass). For any other, and for a precision or row_space that the energy has not seen to, the result is None.
        parts: what E is the sum of; for None, and for more than `MAX_PARTS`, the result is None.
        x: (num_chains, *event), float32 or float64, contiguous, changed in place; at least one chain, else the result is None.
        momentum: as x; "kinetic_langevin" only.
        key: int64 [seed, step, first_chain] of the first step, where x is.
        num_steps: 0 evaluates alone.
        factors: (num_chains,), contiguous, in the dtype of x, by which E of each chain is multiplied; None for ones.
        inverse_mass: contiguous, in the dtype of x, of the event's size; None for ones.
    """
    if kernel not in ("langevin", "mala", "hmc", "kinetic_langevin", "random_walk") or precision is not None or row_space:
        return None
    if parts is None or len(parts) > MAX_PARTS or len(x) == 0:
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
    num_components = max(part.num_components for part in parts)
    workspace = x.new_empty(num_chains * _native.core.dynamics_scratch(dim, num_components, len(parts))) if x.is_cuda else None
    _native.core.dynamics(
        kernel,
        tuple(parts),
        factors,
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
    return DynamicsRun(value, grad, is_accepted, None if acceptance is None else acceptance.div_(max(num_steps, 1)), num_diverged)
