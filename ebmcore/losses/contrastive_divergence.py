"""Contrastive divergence from given negatives (Hinton 2002; persistent: Tieleman 2008; energy L2: Du & Mordatch 2019, algorithm 1).

Whether it is CD or PCD is decided by where x_model comes from: chains started at the data, or chains that live on.
Left out: the gradient that flows through the sampler (Du et al. 2021, "Improved contrastive divergence").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmcore.types import DivergenceError, EnergyFn


def contrastive_divergence(energy: EnergyFn, x_data: Tensor, x_model: Tensor, *, energy_l2: float = 0.0) -> Tensor:
    """mean E(x_data) - mean E(x_model) + energy_l2 · (mean E(x_data)² + mean E(x_model)²).

    With x_model ~ p its gradient in the parameters is, in expectation and without the L2 term, that of the mean
    -log p(x_data) at temperature 1 (Hinton 2002). With chains of finite length it is biased by what they have
    not forgotten: of their start at the data (CD), or of earlier parameters (PCD). Its value is no likelihood.

    Both batches go through `energy` in one call, data first, so that both means are of the same function: a batch norm in
    train mode sees one batch, and not the difference of the two taken out by normalising each by itself.

    Args:
        energy: (num_chains, *event) -> (num_chains,), in the train/eval mode that the caller set.
        x_data: (num_data, *event), dtype and device of x_model.
        x_model: (num_model, *event). Detached: no gradient flows into the sampler.
        energy_l2: weight of the L2 term, finite and at least 0; it keeps the energies near 0, whose offset the rest ignores.

    Returns:
        A scalar, float64 for float64 energies and float32 otherwise, attached to the graph of the parameters.

    Raises:
        TypeError: x_data or x_model is no tensor, their dtypes differ, or the energies are not a floating tensor.
        ValueError: events or devices differ, a batch is empty, the energies have another shape, or energy_l2 is out of range.
        DivergenceError: an energy is NaN or infinite; `chains` are the rows of x_model where it is (reads from the device).
    """
    _check_batches(x_data, x_model)
    if not (math.isfinite(energy_l2) and energy_l2 >= 0):
        raise ValueError(f"contrastive_divergence: energy_l2 must be finite and >= 0, got {energy_l2}")
    num_data, num_model = len(x_data), len(x_model)
    value = energy(torch.cat((x_data, x_model.detach())))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"contrastive_divergence: energy must return a floating-point tensor, got {got}")
    if value.shape != (num_data + num_model,):
        raise ValueError(f"contrastive_divergence: energy must return shape ({num_data + num_model},), got {tuple(value.shape)}")
    is_finite = value.detach().isfinite()
    if not is_finite.all():
        rows = (~is_finite).nonzero().flatten().tolist()
        data_rows, chains = [r for r in rows if r < num_data], [r - num_data for r in rows if r >= num_data]
        where = f"{len(data_rows)} rows of x_data {data_rows[:8]} and {len(chains)} of x_model {chains[:8]}"
        message = f"contrastive_divergence: energy must be finite, got NaN or infinity at {where} (first 8 shown)"
        raise DivergenceError(message, chains=chains, step=-1, last_energies=[math.nan] * len(chains))
    if value.dtype != torch.float64:
        value = value.float()  # a mean of bfloat16 energies keeps 3 digits
    data, model = value[:num_data], value[num_data:]
    loss = data.mean() - model.mean()
    return loss + energy_l2 * (data.square().mean() + model.square().mean()) if energy_l2 else loss


def _check_batches(x_data: Tensor, x_model: Tensor) -> None:
    for name, x in (("x_data", x_data), ("x_model", x_model)):
        if not isinstance(x, Tensor):
            raise TypeError(f"contrastive_divergence: {name} must be a torch.Tensor, got {type(x).__name__}")
        if x.dim() < 1 or len(x) == 0:
            raise ValueError(f"contrastive_divergence: {name} must have shape (n, *event) with n >= 1, got {tuple(x.shape)}")
    if x_model.shape[1:] != x_data.shape[1:]:
        raise ValueError(f"contrastive_divergence: x_model must have events {tuple(x_data.shape[1:])}, got {tuple(x_model.shape[1:])}")
    if x_model.dtype != x_data.dtype:
        raise TypeError(f"contrastive_divergence: x_model must be {x_data.dtype} as x_data, got {x_model.dtype}")
    if x_model.device != x_data.device:
        raise ValueError(f"contrastive_divergence: x_model must be on {x_data.device}, where x_data is, got {x_model.device}")
