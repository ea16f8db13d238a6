"""Independent double wells."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmcore.analytic_energy import AnalyticEnergy, Draws, LineLaw
from ebmcore.ops.dynamics import NativeEnergy
from ebmcore.ops.registration import number
from ebmcore.types import Key, bounded_int


class DoubleWell(AnalyticEnergy):
    """E(x) = Σ_i height · (x_i² - b²)²: 2^dim wells at ±b, with barriers of height · b⁴ between neighbours.

    Args:
        height: > 0.
        b: > 0.
        dim: elements of an event; without it any number goes, but log_z and sample.

    log_z is dim times that of one element, by quadrature to 1e-13.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    def __init__(self, height: float = 2.0, b: float = 1.0, dim: int | None = None) -> None:
        self_dim = None if dim is None else bounded_int(dim, "dim", "DoubleWell", low=1)
        super().__init__(self_dim)
        self.height = number(height, "height", "DoubleWell", low=0.0, strict=True)
        self.b = number(b, "b", "DoubleWell", low=0.0, strict=True)

    @property
    def log_z(self) -> float:
        """dim · ln ∫ exp(-height (t² - b²)²) dt."""
        return self._require_dim("log_z") * (self._law.log_z + math.log(2.0))

    def sample(self, num: int, *, key: Key | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`num` independent draws, (num, dim), on the key's device."""
        u = Draws(num, key, "DoubleWell").uniform(self._require_dim("sample")) * 2 - 1
        return (self._law.quantile(u.abs()) * u.sign()).to(dtype)

    @property
    def _law(self) -> LineLaw:
        """Of |x_i|; what is left out weighs e⁻⁵⁰ of what is not."""
        reach = math.sqrt(50.0 / self.height)
        low, high = math.sqrt(max(0.0, self.b**2 - reach)), math.sqrt(self.b**2 + reach)
        return LineLaw(lambda t: self.height * (t.square() - self.b**2).square(), low, high)

    def _energy(self, x: Tensor) -> Tensor:
        return self.height * (x.square() - self.b**2).square().sum(1)

    def _native(self, x: Tensor) -> NativeEnergy | None:
        return NativeEnergy("double_well", x.new_tensor([self.height, self.b**2]))
