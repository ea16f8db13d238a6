"""Rosenbrock's valley."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmcore.analytic_energy import AnalyticEnergy, Draws
from ebmcore.ops.dynamics import NativeEnergy
from ebmcore.ops.registration import number
from ebmcore.types import Key, bounded_int


class Rosenbrock(AnalyticEnergy):
    """E(x) = Σ_{i < dim-1} (a - x_i)² + b (x_{i+1} - x_i²)² (Rosenbrock 1960); for dim = 2 log_z = ln(π / √b).

    Args:
        a: finite.
        b: > 0.
        dim: at least 2. Only for dim = 2 are log_z and sample known: x_0 ~ N(a, 1/2), x_1 ~ N(x_0², 1/(2b)).

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    def __init__(self, a: float = 1.0, b: float = 100.0, dim: int = 2) -> None:
        super().__init__(bounded_int(dim, "dim", "Rosenbrock", low=2))
        self.a = number(a, "a", "Rosenbrock")
        self.b = number(b, "b", "Rosenbrock", low=0.0, strict=True)

    @property
    def log_z(self) -> float:
        """ln(π / √b), for dim = 2."""
        self._require_plane("log_z")
        return math.log(math.pi) - 0.5 * math.log(self.b)

    def sample(self, num: int, *, key: Key | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`num` independent draws, (num, 2), on the key's device; for dim = 2."""
        self._require_plane("sample")
        z = Draws(num, key, "Rosenbrock").normal(2)
        first = self.a + z[:, 0] * math.sqrt(0.5)
        return torch.stack((first, first.square() + z[:, 1] * math.sqrt(0.5 / self.b)), 1).to(dtype)

    def _require_plane(self, caller: str) -> None:
        if self.dim != 2:
            raise ValueError(f"Rosenbrock.{caller}: is known for dim = 2 only, got dim = {self.dim}")

    def _energy(self, x: Tensor) -> Tensor:
        return ((self.a - x[:, :-1]).square() + self.b * (x[:, 1:] - x[:, :-1].square()).square()).sum(1)

    def _native(self, x: Tensor) -> NativeEnergy | None:
        return NativeEnergy("rosenbrock", x.new_tensor([self.a, self.b]))
