"""Noise-contrastive estimation (Gutmann & Hyvärinen 2010; 2012, section 2.2): logistic regression of data against noise with a known density.

The energy is learned with its constant: exp(-E) comes out normalised, without an integral and without a chain.
Left out: noise that is learned along the way (Gao et al. 2020), and the ranking objective for conditional models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebmcore.gradients import as_energy
from ebmcore.losses.batch import check_batch
from ebmcore.types import DivergenceError, EnergyFn

_CALLER = "noise_contrastive"


def noise_contrastive(energy: EnergyFn | Any, x_data: Tensor, x_noise: Tensor, noise: Callable[[Tensor], Tensor] | Any) -> Tensor:
    """mean over x_data of -log h + ν · mean over x_noise of -log(1 - h), h = sigmoid(-E(x) - log p_noise(x) - log ν).

    h is the probability that x is of the data, of which there is one for ν = len(x_noise) / len(x_data) of noise. In expectation the
    minimum over all E is at exp(-E) = p_data where p_noise > 0. So E wants a free constant, and it learns log Z: of E = f + c with c its
    constant, log Z of f is c. A noise far from the data separates too well and teaches little: fit it to the data.

    Both batches go through `energy` in one call, data first.

    Args:
        energy: (n, *event) -> (n,), or anything with `log_prob`. Not a score function: it has no constant.
        x_data: (num_data, *event), float32 or float64.
        x_noise: (num_noise, *event), draws from the noise, dtype and device of x_data. Detached.
        noise: what x_noise is drawn from: anything with `log_prob`, or its log density (n, *event) -> (n,), normalised. No gradient flows
            into it.

    Returns:
        A scalar, float64 for float64 energies and float32 otherwise, attached to the graph of the parameters. 2 log 2 = 1.386 for ν = 1 and
        h = ½, where nothing is told apart.

    Raises:
        TypeError, ValueError: an argument is not as above, or energies or log densities have another shape.
        DivergenceError: E or log p_noise is NaN or infinite, such as at data where the noise has no density; `chains` are the rows where,
            of x_data and x_noise one after the other (reads from the device).
    """
    check_batch(x_data, "x_data", _CALLER)
    check_batch(x_noise, "x_noise", _CALLER)
    for what, want, got in (
        ("events", tuple(x_data.shape[1:]), tuple(x_noise.shape[1:])),
        ("dtype", x_data.dtype, x_noise.dtype),
        ("device", x_data.device, x_noise.device),
    ):
        if want != got:
            raise ValueError(f"{_CALLER}: x_noise must have {what} {want} as x_data, got {got}")
    x = torch.cat((x_data, x_noise.detach()))
    energies = _checked("energy", as_energy(energy, _CALLER)(x), x)
    with torch.no_grad():
        log_noise = -_checked("noise", as_energy(noise)(x), x) if hasattr(noise, "log_prob") else _checked("noise", noise(x), x)
    _check_finite(energies, log_noise, len(x_data))
    if energies.dtype != torch.float64:
        energies = energies.float()  # a sum of bfloat16 energies and log densities keeps 3 digits
    ratio = len(x_noise) / len(x_data)
    logits = -energies - log_noise.to(energies.dtype) - math.log(ratio)
    return softplus(-logits[: len(x_data)]).mean() + ratio * softplus(logits[len(x_data) :]).mean()


def _checked(name: str, value: Any, x: Tensor) -> Tensor:
    """`value` as energies or log densities: floating, (n,)."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{_CALLER}: {name} must return a floating-point tensor, got {got}")
    if value.shape != x.shape[:1]:
        hint = "; a score function does not fix the density, so that noise and data cannot be told apart by it" if value.shape == x.shape else ""
        raise ValueError(f"{_CALLER}: {name} must return shape ({len(x)},), got {tuple(value.shape)}{hint}")
    return value


def _check_finite(energies: Tensor, log_noise: Tensor, num_data: int) -> None:
    is_finite = energies.detach().isfinite() & log_noise.isfinite()
    if not bool(is_finite.all()):
        rows = (~is_finite).nonzero().flatten().tolist()
        data, drawn = [r for r in rows if r < num_data], [r - num_data for r in rows if r >= num_data]
        where = f"{len(data)} rows of x_data {data[:8]} and {len(drawn)} of x_noise {drawn[:8]}"
        message = f"{_CALLER}: energies and log densities must be finite, got NaN or infinity at {where} (first 8 shown)"
        raise DivergenceError(message, chains=rows, step=-1, last_energies=[math.nan] * len(rows))
