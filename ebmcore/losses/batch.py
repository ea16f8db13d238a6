"""What the losses of continuous data ask of a batch, and their mean over it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmcore.gradients import check_state
from ebmcore.types import DivergenceError


def check_batch(x: Tensor, name: str, caller: str) -> None:
    """Raise unless x is float32 or float64 of shape (n, *event) with n >= 1 and at least one element an event."""
    if isinstance(x, Tensor) and x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{caller}: {name} must be float32 or float64, got {x.dtype}")
    check_state(x, caller)
    if len(x) == 0:
        raise ValueError(f"{caller}: {name} must have at least one row, got shape {tuple(x.shape)}")


def finite_mean(values: Tensor, caller: str) -> Tensor:
    """The mean of the loss's values at the rows, (n,).

    Raises:
        DivergenceError: one is NaN or infinite; `chains` are the rows where (reads from the device).
    """
    is_finite = values.detach().isfinite()
    if not bool(is_finite.all()):
        chains = (~is_finite).nonzero().flatten().tolist()
        message = f"{caller}: the loss must be finite, got NaN or infinity in {len(chains)} chains {chains[:8]} (first 8 shown)"
        raise DivergenceError(message, chains=chains, step=-1, last_energies=[math.nan] * len(chains))
    return values.mean()
