"""Draws of the plane against the law exp(-E) / Z."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.statistics import assert_counts

_CELLS, _NODES = 20, 24  # in each direction; nodes of the quadrature in a cell


def assert_plane_law(energy: Any, draws: Tensor, *, what: str) -> None:
    """A chi-square of independent draws (n, 2) over 20 x 20 cells, whose probabilities are integrals of exp(-E), and all that lies outside."""
    draws = draws.double()
    low, high = draws.quantile(0.01, dim=0), draws.quantile(0.99, dim=0)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(_NODES))
    axes = [low[i] + (high[i] - low[i]) / _CELLS * (torch.arange(_CELLS)[:, None] + (nodes + 1) / 2).flatten() for i in range(2)]
    density = (-energy(torch.cartesian_prod(*axes)) - energy.log_z).exp().reshape(_CELLS, _NODES, _CELLS, _NODES)
    inside = torch.einsum("iajb,a,b->ij", density, weights / 2, weights / 2) * ((high - low) / _CELLS).prod()
    place = ((draws - low) / (high - low) * _CELLS).floor().long()
    is_inside = ((place >= 0) & (place < _CELLS)).all(1)
    counts = torch.bincount((place[:, 0] * _CELLS + place[:, 1])[is_inside], minlength=_CELLS**2)
    assert 0.9 < float(inside.sum()) < 1, what
    assert_counts(torch.cat((counts, (~is_inside).sum()[None])), torch.cat((inside.flatten(), 1 - inside.sum()[None])), what=what)
