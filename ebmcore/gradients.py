"""E(x) and ∇E(x) in one forward and one input-gradient backward: the only place that calls autograd for a sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebmcore.types import STATE_DTYPES, EnergyFn


def check_state(x: Tensor, caller: str) -> None:
    """Raise unless x can be the state of continuous chains: floating, dense, (num_chains, *event) with at least one element a chain."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{caller}: x must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in STATE_DTYPES:
        raise TypeError(f"{caller}: x must be float32, float64, bfloat16 or float16, got {x.dtype}")
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(f"{caller}: x must be a dense tensor, got layout {x.layout}")
    if x.dim() < 1:
        raise ValueError(f"{caller}: x must have shape (num_chains, *event), got a 0-d tensor")
    if 0 in x.shape[1:]:
        raise ValueError(f"{caller}: x must have at least one element in each chain, got {tuple(x.shape)}")


def as_energy(model: Any, caller: str = "as_energy") -> Callable[..., Tensor]:
    """The energy -log p(x) of anything with a `log_prob` (a torch.distributions object, a flow), summed over what log_prob leaves of the event.

    Further arguments of the energy go to log_prob. Any other callable is returned as it is. `caller` is named by the error.

    Raises:
        TypeError: neither.
    """
    if hasattr(model, "log_prob"):

        def energy(x: Tensor, *given: Any) -> Tensor:
            log_p: Tensor = model.log_prob(x, *given)
            return -log_p.flatten(1).sum(1) if log_p.dim() > 1 else -log_p

        return energy
    if not callable(model):
        raise TypeError(f"{caller}: model must be callable or have log_prob, got {type(model).__name__}")
    return model  # type: ignore[no-any-return]


def energy_and_grad(energy: EnergyFn, x: Tensor) -> tuple[Tensor, Tensor]:
    """Energies and their gradient in x, one evaluation.

    Works under no_grad and inference_mode; the graph of x, the parameters' .grad and torch's modes are as before. An energy whose class has a
    method `energy_and_grad` is asked for both by it, and autograd is called only if it returns None.

    Args:
        energy: (num_chains, *event) -> (num_chains,). It runs in the train/eval mode and autocast that the caller set.
        x: (num_chains, *event), floating. `energy` sees a tensor that shares x's memory and must not write to it.

    Returns:
        energies (num_chains,), float64 where x or they are and float32 otherwise, and the gradient, shaped and typed as x.

    Raises:
        TypeError: the energies are not a floating tensor.
        ValueError: they have another shape or device, do not depend on x, or x was written to.
    """
    if torch.is_inference_mode_enabled() or x.is_inference():
        with torch.inference_mode(False):
            return energy_and_grad(energy, x.clone())
    if not torch.is_grad_enabled():
        with torch.enable_grad():
            return energy_and_grad(energy, x)
    own = getattr(type(energy), "energy_and_grad", None)
    if own is not None:
        both: tuple[Tensor, Tensor] | None = own(energy, x.detach())
        if both is not None:
            return both
    leaf = x.detach().requires_grad_()
    version = leaf._version
    value = energy(leaf)
    _check_energies(value, x)
    if leaf._version != version:
        raise ValueError("energy: must not modify x in place")
    grad = None
    if value.requires_grad:  # the gradient of value.sum(), without its two kernels
        (grad,) = torch.autograd.grad(value, leaf, torch.ones_like(value), allow_unused=True)
    if grad is None:
        raise ValueError("energy: must depend on x, but its gradient in x is None (detached, or x unused)")
    return _carried(value, x), grad


def evaluate(energy: EnergyFn, x: Tensor) -> Tensor:
    """Energies alone, without a graph. Arguments, result and errors as `energy_and_grad`; x may also be of integers."""
    if torch.is_inference_mode_enabled() or x.is_inference():
        with torch.inference_mode(False):
            return evaluate(energy, x.clone())
    with torch.no_grad():
        version = x._version
        value = energy(x)
    _check_energies(value, x)
    if x._version != version:
        raise ValueError("energy: must not modify x in place")
    return _carried(value, x)


def _carried(value: Tensor, x: Tensor) -> Tensor:
    """`value` in the dtype that energies are carried in."""
    value = value.detach()
    is_double = x.dtype == torch.float64 or value.dtype == torch.float64
    return value.to(torch.float64 if is_double else torch.float32)


def _check_energies(value: Tensor, x: Tensor) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"energy: must return a floating-point tensor of shape ({x.shape[0]},), got {got}")
    if value.shape != x.shape[:1]:
        raise ValueError(f"energy: must return shape ({x.shape[0]},) for x of shape {tuple(x.shape)}, got {tuple(value.shape)}")
    if value.device != x.device:
        raise ValueError(f"energy: must return a tensor on {x.device}, where x is, got {value.device}")
