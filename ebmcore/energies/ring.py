"""A ring in the plane."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmcore.analytic_energy import AnalyticEnergy, Draws, LineLaw
from ebmcore.ops.dynamics import NativeEnergy
from ebmcore.ops.registration import number
from ebmcore.types import Key


class Ring(AnalyticEnergy):
    """E(x) = (|x| - radius)² / (2 width²) on the plane; ∇E(0) = 0.

    log_z = ln 2π(w² e^{-r²/2w²} + r w √(π/2) (1 + erf(r / w√2))) with r = radius, w = width.

    Args:
        radius: >= 0.
        width: > 0.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    def __init__(self, radius: float = 3.0, width: float = 0.25) -> None:
        super().__init__(2)
        self.radius = number(radius, "radius", "Ring", low=0.0)
        self.width = number(width, "width", "Ring", low=0.0, strict=True)

    @property
    def log_z(self) -> float:
        """As in the class's docstring."""
        t, w = self.radius / (self.width * math.sqrt(2)), self.width
        return math.log(2 * math.pi * (w * w * math.exp(-t * t) + self.radius * w * math.sqrt(math.pi / 2) * (1 + math.erf(t))))

    def sample(self, num: int, *, key: Key | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`num` independent draws, (num, 2), on the key's device."""
        u = Draws(num, key, "Ring").uniform(2)
        r, angle = self._law.quantile(u[:, 0]), 2 * math.pi * u[:, 1]
        return torch.stack((r * angle.cos(), r * angle.sin()), 1).to(dtype)

    @property
    def _law(self) -> LineLaw:
        """Of |x|; what is left out weighs e⁻⁵⁰ of what is not."""
        low, high = max(0.0, self.radius - 10 * self.width), self.radius + 10 * self.width
        return LineLaw(lambda r: 0.5 * ((r - self.radius) / self.width).square() - r.log(), low, high)

    def _energy(self, x: Tensor) -> Tensor:
        r: Tensor = torch.linalg.vector_norm(x, dim=1)
        return 0.5 * ((r - self.radius) / self.width).square()

    def _native(self, x: Tensor) -> NativeEnergy | None:
        return NativeEnergy("ring", x.new_tensor([self.radius, self.width**-2]))
