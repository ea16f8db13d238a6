"""The normal law, with independent elements or any covariance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ebmcore.analytic_energy import AnalyticEnergy, Draws, cholesky, constants, positive
from ebmcore.ops.dynamics import NativeEnergy
from ebmcore.types import Key

MAX_NATIVE_FULL = 256  # elements of full precision; beyond, torch's matrix products are faster than whole chains


class Gaussian(AnalyticEnergy):
    """E(x) = ½ (x - mean)ᵀ precision (x - mean); log_z = (dim/2) ln 2π - ½ ln |precision|.

    Args:
        mean: (dim,).
        precision, covariance: one of them, (dim,) for a diagonal, all > 0, or (dim, dim), symmetric positive definite.

    Attributes:
        mean, precision: as given, float64.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    mean: Tensor
    precision: Tensor
    _factor: Tensor

    def __init__(self, mean: Any, *, precision: Any = None, covariance: Any = None) -> None:
        mean = constants(mean, "mean", "Gaussian", dims=(1,))
        if (precision is None) == (covariance is None):
            raise ValueError(f"Gaussian: exactly one of precision and covariance must be given, got {precision!r} and {covariance!r}")
        name = "covariance" if precision is None else "precision"
        given = constants(covariance if precision is None else precision, name, "Gaussian", dims=(1, 2))
        if given.shape[-1] != len(mean) or given.shape[0] != len(mean):
            raise ValueError(f"Gaussian: {name} must have shape ({len(mean)},) or ({len(mean)}, {len(mean)}), got {tuple(given.shape)}")
        super().__init__(len(mean))
        if given.dim() == 1:
            positive(given, name, "Gaussian")
            precision = given if covariance is None else 1 / given
            factor = precision.rsqrt()
        else:
            lower = cholesky(given, name, "Gaussian")
            inverse = torch.cholesky_inverse(lower)
            precision = given if covariance is None else (inverse + inverse.T) / 2
            factor = lower if precision is not given else torch.linalg.cholesky((inverse + inverse.T) / 2)
        self.register_buffer("mean", mean)
        self.register_buffer("precision", precision)
        self.register_buffer("_factor", factor)  # of the covariance: (dim,), or lower triangular

    @property
    def log_z(self) -> float:
        """(dim/2) ln 2π - ½ ln |precision|."""
        diagonal = self._factor if self._factor.dim() == 1 else self._factor.diagonal()
        return 0.5 * len(self.mean) * math.log(2 * math.pi) + float(diagonal.double().log().sum())

    def sample(self, num: int, *, key: Key | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`num` independent draws, (num, dim), on the key's device."""
        z = Draws(num, key, "Gaussian").normal(len(self.mean))
        factor = self._factor.to(z)
        return (self.mean.to(z) + (z * factor if factor.dim() == 1 else z @ factor.T)).to(dtype)

    def _energy(self, x: Tensor) -> Tensor:
        y, precision = x - self.mean.to(x), self.precision.to(x)
        return 0.5 * (y * (y * precision if precision.dim() == 1 else y @ precision)).sum(1)

    def _native(self, x: Tensor) -> NativeEnergy | None:
        if self.precision.dim() == 1:
            return NativeEnergy("gaussian_diagonal", torch.cat((self.mean, self.precision)).to(x))
        if len(self.mean) > MAX_NATIVE_FULL:
            return None
        fill = -len(self.mean) % 8  # rows of whole tiles
        return NativeEnergy("gaussian_full", torch.cat((pad(self.mean, (0, fill)), pad(self.precision, (0, fill)).flatten())).to(x))
