"""log Z of continuous energies in one to three dimensions, by adaptive products of Gauss-Legendre rules.

The integral over a box is taken as that over its 2^d halves; what the whole box alone gives shows the error, and boxes where that is large are
halved again. Infinite sides come from (-1, 1) by x = t / (1 - t²), half-infinite ones by x = low + (1 + t) / (1 - t).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmcore.gradients import evaluate
from ebmcore.types import EnergyFn

_NUM_NODES = 8  # of the rule, in each dimension
_FIRST_BOXES = {1: 64, 2: 16, 3: 4}  # along each side
_POINTS_AT_ONCE = 2**18

Bounds = Sequence[tuple[float, float]]


def log_integral(energy: EnergyFn, shape: Sequence[int], bounds: Bounds, *, place: Tensor, tolerance: float, max_points: int, caller: str) -> float:
    """log ∫ exp(-E) with a relative error of the integral of about `tolerance`.

    Args:
        energy: (num_points, *shape) -> (num_points,); +inf is a point of density 0.
        bounds: (low, high) of each of the dimensions, row-major in `shape`.
        place: a tensor in whose dtype and on whose device the energy sees points.
        max_points: evaluations allowed.

    Raises:
        ValueError: an energy is NaN or -inf, or all are +inf.
        RuntimeError: `max_points` do not do.
    """
    dim, device = len(bounds), place.device
    nodes, weights = (torch.tensor(values, device=device) for values in np.polynomial.legendre.leggauss(_NUM_NODES))
    nodes, log_weights = _product(nodes, dim), _product(weights, dim).log().sum(1)
    corners = _product(torch.tensor([-0.5, 0.5], dtype=torch.float64, device=device), dim)

    def log_integrals(centres: Tensor, half: float) -> Tensor:
        """Over the boxes around `centres` (num_boxes, dim) of t, with sides 2 · half."""
        parts = []
        for part in centres.split(max(1, _POINTS_AT_ONCE // len(nodes))):
            x, log_slope = _points((part[:, None] + half * nodes).flatten(0, 1), bounds)
            value = evaluate(energy, x.to(place.dtype).reshape(-1, *shape)).double()
            is_bad = value.isnan() | (value == -math.inf)
            if bool(is_bad.any()):
                k = int(is_bad.nonzero()[0])
                raise ValueError(f"{caller}: energy must not be NaN or -inf, got {value[k].item()} at {x[k].tolist()}")
            parts.append(((log_slope - value).reshape(len(part), -1) + log_weights).logsumexp(1))
        return torch.cat(parts) + dim * math.log(half)

    count = _FIRST_BOXES[dim]
    centres = _product((torch.arange(count, dtype=torch.float64, device=device) * 2 + 1) / count - 1, dim)
    half = 1.0 / count
    whole = log_integrals(centres, half)
    num_points = len(centres) * len(nodes)
    settled, settled_error = -math.inf, 0.0  # ln of the integral over the boxes that are left alone, and their error over the total
    while True:
        num_points += len(centres) * len(corners) * len(nodes)
        if num_points > max_points:
            raise RuntimeError(f"{caller}: {max_points} points do not reach a relative error of {tolerance:g}; narrow the bounds, or allow more")
        parts = (centres[:, None] + half * corners).flatten(0, 1)
        half /= 2
        of_parts = log_integrals(parts, half)
        halved = of_parts.reshape(len(centres), -1).logsumexp(1)
        total = float(np.logaddexp(settled, float(halved.logsumexp(0))))
        if total == -math.inf:
            raise ValueError(f"{caller}: energy must be finite somewhere within the bounds, got +inf at all of {num_points} points")
        error = ((halved - total).exp() - (whole - total).exp()).abs()
        if settled_error + float(error.sum()) <= tolerance:
            return total
        is_open = error > (tolerance - settled_error) / 2 / len(centres)  # each round may leave half of what is left of the tolerance
        settled = float(np.logaddexp(settled, float(halved[~is_open].logsumexp(0))))
        settled_error += float(error[~is_open].sum())
        rows = is_open.repeat_interleave(len(corners))
        centres, whole = parts[rows], of_parts[rows]


def check_bounds(bounds: Any, dim: int, caller: str) -> Bounds:
    """`bounds` as a pair for each of `dim` dimensions, from one pair for all or a sequence of pairs; either side may be infinite."""
    if not 1 <= dim <= 3:
        raise ValueError(f"{caller}: with bounds, event_shape must have 1 to 3 elements, got {dim}")
    try:
        pairs = np.asarray(bounds, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{caller}: bounds must be (low, high), or one such pair for each dimension, got {bounds!r}") from None
    if pairs.shape not in ((2,), (dim, 2)):
        raise ValueError(f"{caller}: bounds must be (low, high), or {dim} such pairs, got shape {pairs.shape}")
    pairs = np.broadcast_to(pairs, (dim, 2))
    if not bool((pairs[:, 0] < pairs[:, 1]).all()):
        raise ValueError(f"{caller}: bounds must have low < high, got {bounds!r}")
    return [(float(low), float(high)) for low, high in pairs]


def _product(values: Tensor, dim: int) -> Tensor:
    """All `dim`-tuples of values, (len(values)^dim, dim)."""
    return torch.cartesian_prod(*itertools.repeat(values, dim)).reshape(-1, dim)


def _points(t: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """The points x within the bounds that t in (-1, 1)^dim stands for, and ln |dx/dt| (num_points,)."""
    columns, log_slope = [], torch.zeros_like(t[:, 0])
    for u, (low, high) in zip(t.unbind(1), bounds, strict=True):
        if math.isfinite(low) and math.isfinite(high):
            x, slope = low + (high - low) * (1 + u) / 2, torch.full_like(u, (high - low) / 2)
        elif math.isfinite(low):
            x, slope = low + (1 + u) / (1 - u), 2 / (1 - u).square()
        elif math.isfinite(high):
            x, slope = high - (1 - u) / (1 + u), 2 / (1 + u).square()
        else:
            x, slope = u / (1 - u * u), (1 + u * u) / (1 - u * u).square()
        columns.append(x)
        log_slope = log_slope + slope.log()
    return torch.stack(columns, 1), log_slope
