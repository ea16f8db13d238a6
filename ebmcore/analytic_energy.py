"""What energies with a formula share: the check of x, exact draws along a line, and what they hand to native chains."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebmcore import ops
from ebmcore.ops.dynamics import NativeChains, NativeEnergy
from ebmcore.ops.registration import key_tensor
from ebmcore.types import Key, bounded_int

_STREAM = int(ops.Stream.INIT)
_CELLS, _NODES = 1024, 12  # of a LineLaw
MAX_NATIVE_DIM = 2**14  # elements of a chain: those of a lane's width of chains stay in a core's cache


class AnalyticEnergy(NativeChains, nn.Module):
    """E(x) by formula on (num_chains, *event) with `dim` elements an event: no parameters, all constants in float64.

    Native chains have constants rounded to the dtype of x, and sums over elements in float64.

    Attributes:
        dim: elements of an event; None: any number.
        log_z: ln ∫ exp(-E(x)) dx, exact.
    """

    def __init__(self, dim: int | None) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """x: (num_chains, *event), floating. Returns the energies, (num_chains,): float64 for float64, otherwise computed in float32."""
        name = type(self).__name__
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{name}: x must be a floating-point tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
        self._check_shape(x)
        flat = x.flatten(1) if x.dim() > 1 else x[:, None]
        return self._energy(flat if x.dtype == torch.float64 else flat.float())

    @property
    @abc.abstractmethod
    def log_z(self) -> float:
        """ln ∫ exp(-E(x)) dx."""

    @abc.abstractmethod
    def _energy(self, x: Tensor) -> Tensor:
        """The energies, (num_chains,), of (num_chains, dim) float32 or float64, in its dtype."""

    def native_parts(self, x: Tensor, num_evaluations: int = 1) -> tuple[NativeEnergy] | None:
        """The formula; None for more than `MAX_NATIVE_DIM` elements, where native code has none, and where a subclass computes something else."""
        if type(self).forward is not AnalyticEnergy.forward or x.dtype not in (torch.float32, torch.float64) or len(x) == 0:
            return None
        self._check_shape(x)
        part = self._native(x) if x.numel() <= MAX_NATIVE_DIM * len(x) else None
        return None if part is None else (part,)

    def _native(self, x: Tensor) -> NativeEnergy | None:
        """The energy as native code knows it, in the dtype of x and where it is; None if it does not."""
        return None

    def _check_shape(self, x: Tensor) -> None:
        if x.dim() < 1 or 0 in x.shape[1:] or self.dim not in (None, x.shape[1:].numel()):
            wanted = "at least one element" if self.dim is None else f"{self.dim} elements"
            raise ValueError(f"{type(self).__name__}: x must have shape (num_chains, *event) with {wanted} an event, got {tuple(x.shape)}")

    def _require_dim(self, caller: str) -> int:
        if self.dim is None:
            raise ValueError(f"{type(self).__name__}.{caller}: needs the number of elements of an event: give dim, got None")
        return self.dim


class Draws:
    """The draws of `sample(num, key=key)`, float64, on the key's device: normals from block 0 on, uniforms behind them; stream INIT."""

    def __init__(self, num: int, key: Key | Tensor, caller: str) -> None:
        self._num = bounded_int(num, "num", f"{caller}.sample")
        device = (key.tensor if isinstance(key, Key) else key).device if isinstance(key, Key | Tensor) else torch.device("cpu")
        self._key = key_tensor(key, device, f"{caller}.sample")
        self._first_block = 0

    def normal(self, dim: int) -> Tensor:
        """(num, dim) standard normals."""
        return self._draw(ops.normal, dim)

    def uniform(self, dim: int) -> Tensor:
        """(num, dim), in (0, 1)."""
        return self._draw(ops.uniform, dim)

    def _draw(self, op: Callable[..., Tensor], dim: int) -> Tensor:
        values = op((self._num, dim), key=self._key, stream=_STREAM, first_block=self._first_block, dtype=torch.float64)
        self._first_block += -(-dim // 2)
        return values


class LineLaw:
    """The law ∝ exp(-energy) on [low, high], by Gauss-Legendre quadrature in cells: smooth energies to about 1e-14.

    Args:
        energy: (n,) float64 -> (n,).
        low, high: what lies outside must not matter.
    """

    def __init__(self, energy: Callable[[Tensor], Tensor], low: float, high: float) -> None:
        nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(_NODES))
        self._nodes, self._weights = (nodes + 1) / 2, weights / 2
        self._edges = torch.linspace(low, high, _CELLS + 1, dtype=torch.float64)
        self._width = (high - low) / _CELLS
        values = energy((self._edges[:-1, None] + self._nodes * self._width).flatten())
        self._shift = float(values.min())
        self._energy = energy
        self._masses = (values - self._shift).neg().exp().reshape(_CELLS, _NODES) @ self._weights * self._width
        self.log_z = float(self._masses.sum().log()) - self._shift

    def quantile(self, u: Tensor) -> Tensor:
        """The points below which lie the shares u of the law, float64, shaped as u."""
        targets = u.flatten().cpu() * self._masses.sum()
        ends = self._masses.cumsum(0)
        cell = torch.searchsorted(ends, targets).clamp(max=_CELLS - 1)
        left, rest = self._edges[cell], targets - (ends - self._masses)[cell]
        part = self._width * rest / self._masses[cell]
        for _ in range(5):  # Newton; in a cell the density is nearly a line
            mass = self._density((left[:, None] + part[:, None] * self._nodes).flatten()).reshape(-1, _NODES) @ self._weights * part
            part = (part - (mass - rest) / self._density(left + part)).clamp(0.0, self._width)
        return (left + part).reshape(u.shape).to(u.device)

    def _density(self, x: Tensor) -> Tensor:
        return (self._energy(x) - self._shift).neg().exp()


def constants(value: Any, name: str, caller: str, *, dims: tuple[int, ...]) -> Tensor:
    """A float64 copy of a tensor, or (nested) sequence, or number, finite, with as many axes as one of `dims`."""
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{caller}: {name} must be a tensor or numbers, got {value!r}") from None
    if tensor.dim() not in dims or tensor.numel() == 0:
        raise ValueError(f"{caller}: {name} must have {' or '.join(map(str, dims))} axes and not be empty, got shape {tuple(tensor.shape)}")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{caller}: {name} must be finite, got {tensor.tolist()}")
    return tensor


def positive(tensor: Tensor, name: str, caller: str) -> Tensor:
    """`tensor`, all of which must be > 0."""
    if not bool((tensor > 0).all()):
        raise ValueError(f"{caller}: {name} must be > 0, got {tensor.tolist()}")
    return tensor


def cholesky(matrix: Tensor, name: str, caller: str) -> Tensor:
    """The lower factor of symmetric positive definite matrices (..., dim, dim)."""
    if matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"{caller}: {name} must be square, got shape {tuple(matrix.shape)}")
    scale = matrix.abs().amax((-2, -1), keepdim=True)
    if bool(((matrix - matrix.mT).abs() > 1e-6 * scale).any()):
        raise ValueError(f"{caller}: {name} must be symmetric")
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool(info.any()):
        raise ValueError(f"{caller}: {name} must be positive definite")
    return factor
