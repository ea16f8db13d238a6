"""A normal law bent along a parabola."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmcore.analytic_energy import AnalyticEnergy, Draws
from ebmcore.ops.dynamics import NativeEnergy
from ebmcore.ops.registration import number
from ebmcore.types import Key


class Banana(AnalyticEnergy):
    """E(x, y) = x² / (2 scale²) + (y - curvature · x²)² / (2 width²); log_z = ln(2π scale width) (after Haario, Saksman & Tamminen 1999).

    Args:
        scale, width: > 0, standard deviations along and across.
        curvature: finite.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    def __init__(self, scale: float = 2.0, curvature: float = 0.25, width: float = 0.5) -> None:
        super().__init__(2)
        self.scale = number(scale, "scale", "Banana", low=0.0, strict=True)
        self.curvature = number(curvature, "curvature", "Banana")
        self.width = number(width, "width", "Banana", low=0.0, strict=True)

    @property
    def log_z(self) -> float:
        """ln(2π scale width)."""
        return math.log(2 * math.pi * self.scale * self.width)

    def sample(self, num: int, *, key: Key | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`num` independent draws, (num, 2), on the key's device."""
        z = Draws(num, key, "Banana").normal(2)
        x = z[:, 0] * self.scale
        return torch.stack((x, self.curvature * x.square() + z[:, 1] * self.width), 1).to(dtype)

    def _energy(self, x: Tensor) -> Tensor:
        bent = x[:, 1] - self.curvature * x[:, 0].square()
        return 0.5 * (x[:, 0] / self.scale).square() + 0.5 * (bent / self.width).square()

    def _native(self, x: Tensor) -> NativeEnergy | None:
        return NativeEnergy("banana", x.new_tensor([self.scale**-2, self.curvature, self.width**-2]))
