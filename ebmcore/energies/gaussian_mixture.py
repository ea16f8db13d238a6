"""Sums of normal densities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ebmcore.analytic_energy import AnalyticEnergy, Draws, cholesky, constants, positive
from ebmcore.ops.dynamics import NativeEnergy
from ebmcore.types import Key


class GaussianMixture(AnalyticEnergy):
    """E(x) = -ln Σ_k w_k exp(-½ (x - m_k)ᵀ C_k⁻¹ (x - m_k)); log_z = ln Σ_k w_k (2π)^{dim/2} |C_k|^{1/2}.

    The weights are the heights of the modes, not their probabilities: those are `component_probs`, ∝ w_k |C_k|^{1/2}, the same where all
    covariances have one determinant. `from_probs` takes probabilities.

    Args:
        weights: (num_components,), > 0.
        means: (num_components, dim).
        std: standard deviations, > 0: a number, (num_components,), or (num_components, dim) for each element its own.
        covariances: (num_components, dim, dim), symmetric positive definite, instead of std.

    Attributes:
        weights, means: as given, float64.
        component_probs: (num_components,), the probability of each mode.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    weights: Tensor
    means: Tensor
    _factors: Tensor

    def __init__(self, weights: Any, means: Any, *, std: Any = None, covariances: Any = None) -> None:
        name = "GaussianMixture"
        weights = positive(constants(weights, "weights", name, dims=(1,)), "weights", name)
        means = constants(means, "means", name, dims=(2,))
        if len(means) != len(weights):
            raise ValueError(f"{name}: means must have shape ({len(weights)}, dim), got {tuple(means.shape)}")
        if (std is None) == (covariances is None):
            raise ValueError(f"{name}: exactly one of std and covariances must be given, got {std!r} and {covariances!r}")
        if std is not None:
            std = positive(constants(std, "std", name, dims=(0, 1, 2)), "std", name)
            if std.dim() > 0 and std.shape not in (means.shape[:1], means.shape):
                raise ValueError(f"{name}: std must have shape (), {tuple(means.shape[:1])} or {tuple(means.shape)}, got {tuple(std.shape)}")
            factors = (std[:, None] if std.dim() == 1 else std).expand_as(means).clone()
        else:
            covariances = constants(covariances, "covariances", name, dims=(3,))
            if covariances.shape != (*means.shape, means.shape[1]):
                raise ValueError(f"{name}: covariances must have shape {(*means.shape, means.shape[1])}, got {tuple(covariances.shape)}")
            factors = cholesky(covariances, "covariances", name)
        super().__init__(means.shape[1])
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)
        self.register_buffer("_factors", factors)  # of the covariances: (num_components, dim), or lower triangular

    @classmethod
    def from_probs(cls, probs: Any, means: Any, *, std: Any = None, covariances: Any = None) -> GaussianMixture:
        """Σ_k probs_k N(x; m_k, C_k) in the usual sense, up to a factor. `probs` are > 0 and need not sum to 1."""
        mixture = cls(probs, means, std=std, covariances=covariances)
        log_volumes = mixture._log_volumes()
        mixture.weights.mul_((log_volumes.max() - log_volumes).exp()).div_(mixture.weights.sum())
        return mixture

    @property
    def component_probs(self) -> Tensor:
        return torch.softmax(self.weights.log() + self._log_volumes(), 0)

    @property
    def log_z(self) -> float:
        """ln Σ_k w_k (2π)^{dim/2} |C_k|^{1/2}."""
        return float(torch.logsumexp(self.weights.log() + self._log_volumes(), 0))

    def sample(self, num: int, *, key: Key | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`num` independent draws, (num, dim), on the key's device."""
        draws = Draws(num, key, "GaussianMixture")
        z, u = draws.normal(self.means.shape[1]), draws.uniform(1)[:, 0]
        ends = self.component_probs.to(z).cumsum(0)
        k = torch.searchsorted(ends, u * ends[-1], right=True).clamp(max=len(ends) - 1)
        factors = self._factors.to(z)[k]
        offsets = z * factors if factors.dim() == 2 else (factors @ z[:, :, None])[:, :, 0]
        return (self.means.to(z)[k] + offsets).to(dtype)

    def _log_volumes(self) -> Tensor:
        diagonals = self._factors if self._factors.dim() == 2 else self._factors.diagonal(dim1=1, dim2=2)
        return diagonals.log().sum(1) + 0.5 * self.means.shape[1] * math.log(2 * math.pi)

    def _energy(self, x: Tensor) -> Tensor:
        y, factors = x[:, None, :] - self.means.to(x), self._factors.to(x)
        white = y / factors if factors.dim() == 2 else torch.linalg.solve_triangular(factors, y[..., None], upper=False)[..., 0]
        return -torch.logsumexp(self.weights.log().to(x) - 0.5 * white.square().sum(2), 1)

    def _native(self, x: Tensor) -> NativeEnergy | None:
        if self._factors.dim() == 3:
            return None
        constants = torch.cat((self.weights.log(), self.means.flatten(), self._factors.pow(-2).flatten()))
        return NativeEnergy("gaussian_mixture", constants.to(x), len(self.weights))
