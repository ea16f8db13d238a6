"""Distances of estimated parameters and moments from the truth."""

from __future__ import annotations

from torch import Tensor


def rmse(estimate: Tensor, truth: Tensor) -> float:
    """Root of the mean of (estimate - truth)² over all entries, in float64. Its natural logarithm is the "log RMSE" of papers.

    Both triangles and the diagonal count where matrices come in: hand in the entries that are meant.

    Raises:
        ValueError: the shapes differ, or there is no entry.
    """
    if estimate.shape != truth.shape or estimate.numel() == 0:
        raise ValueError(f"rmse: estimate must have the shape {tuple(truth.shape)} of truth, not empty, got {tuple(estimate.shape)}")
    return float((estimate.detach().double() - truth.detach().double()).square().mean().sqrt())
