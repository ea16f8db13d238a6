"""Neal's funnel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmcore.analytic_energy import AnalyticEnergy, Draws
from ebmcore.ops.dynamics import NativeEnergy
from ebmcore.ops.registration import number
from ebmcore.types import Key, bounded_int


class Funnel(AnalyticEnergy):
    """v = x_0 ~ N(0, scale²), x_i ~ N(0, e^v) given v (Neal 2003, section 8): E(x) = v²/(2 scale²) + ½ e⁻ᵛ Σ_{i>0} x_i² + ½ (dim - 1) v.

    log_z = ln scale + (dim/2) ln 2π.

    Args:
        dim: at least 2.
        scale: > 0.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    dim: int

    def __init__(self, dim: int = 10, scale: float = 3.0) -> None:
        super().__init__(bounded_int(dim, "dim", "Funnel", low=2))
        self.scale = number(scale, "scale", "Funnel", low=0.0, strict=True)

    @property
    def log_z(self) -> float:
        """ln scale + (dim/2) ln 2π."""
        return math.log(self.scale) + 0.5 * self.dim * math.log(2 * math.pi)

    def sample(self, num: int, *, key: Key | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`num` independent draws, (num, dim), on the key's device."""
        z = Draws(num, key, "Funnel").normal(self.dim)
        v = z[:, :1] * self.scale
        return torch.cat((v, z[:, 1:] * (0.5 * v).exp()), 1).to(dtype)

    def _energy(self, x: Tensor) -> Tensor:
        v = x[:, 0]
        return 0.5 * (v / self.scale).square() + 0.5 * (-v).exp() * x[:, 1:].square().sum(1) + 0.5 * (self.dim - 1) * v

    def _native(self, x: Tensor) -> NativeEnergy | None:
        return NativeEnergy("funnel", x.new_tensor([self.scale**-2]))
