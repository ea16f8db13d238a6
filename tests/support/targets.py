"""Energies for tests, written out by hand, and what tests ask of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Same dtype, shape and bits: -0.0 is not 0.0, and a subnormal is itself even where the thread flushes them."""
    assert actual.dtype == expected.dtype, what
    assert actual.shape == expected.shape, what
    integers = _INTEGERS[actual.element_size()]
    a, b = actual.detach().cpu().contiguous().view(integers), expected.detach().cpu().contiguous().view(integers)
    if not torch.equal(a, b):
        where = (a != b).nonzero()
        first = tuple(where[0].tolist())
        raise AssertionError(
            f"{what}: {len(where)} of {a.numel()} elements differ, first at {first}: {actual[first].item()} != {expected[first].item()}"
        )


def quadratic(x: Tensor) -> Tensor:
    """Standard normal, of any event shape."""
    return 0.5 * x.flatten(1).square().sum(1)


def quartic(x: Tensor) -> Tensor:
    """Separable double wells; each chain's arithmetic is its own, so that batches split to the same bits."""
    return (x.flatten(1).square() - 1).square().sum(1)


class Gaussian:
    """E(x) = ½ (x - mean)ᵀ precision (x - mean); the gradient is given by hand, for speed."""

    def __init__(self, precision: list[list[float]], mean: list[float], dtype: torch.dtype = torch.float64) -> None:
        self.precision, self.mean = torch.tensor(precision, dtype=dtype), torch.tensor(mean, dtype=dtype)

    def __call__(self, x: Tensor) -> Tensor:
        value: Tensor = _Quadratic.apply(x, self.precision, self.mean)
        return value


class _Quadratic(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, precision: Tensor, mean: Tensor) -> Tensor:
        y = x - mean
        grad = y @ precision
        context.save_for_backward(grad)
        return 0.5 * (y * grad).sum(1)

    @staticmethod
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        return context.saved_tensors[0] * grad_output[:, None], None, None


def two_modes(x: Tensor) -> Tensor:
    """Unit normals at -1.5 (weight 0.6) and 1.5 (weight 0.4)."""
    x = x.squeeze(1)
    return x * x / 2 - torch.logaddexp(math.log(0.6) - 1.5 * x, math.log(0.4) + 1.5 * x)


def logistic(x: Tensor) -> Tensor:
    """The logistic distribution."""
    x = x.squeeze(1)
    return 2 * torch.logaddexp(torch.zeros_like(x), x) - x


class Network(nn.Module):
    """A small network with parameters and batch statistics to disturb."""

    def __init__(self, dim: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.first, self.norm, self.second = nn.Linear(dim, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.second(torch.tanh(self.norm(self.first(x)))).squeeze(1)
        return value + x.square().sum(1)


class Counting:
    """An energy that counts its evaluations."""

    def __init__(self, energy: Callable[..., Tensor]) -> None:
        self.energy, self.count = energy, 0

    def __call__(self, *arguments: Tensor) -> Tensor:
        self.count += 1
        return self.energy(*arguments)


class Spoiled:
    """An energy that at evaluation `when` (from 0) returns `value` for the chains `chains`, or has a gradient of `grad` there."""

    def __init__(self, when: int, chains: list[int], value: float | None = math.nan, grad: float | None = None) -> None:
        self.when, self.chains, self.value, self.grad, self.count = when, chains, value, grad, 0

    def __call__(self, x: Tensor) -> Tensor:
        energies = quadratic(x)
        if self.count == self.when:
            rows = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            rows[self.chains] = True
            if self.grad is not None:
                x.register_hook(lambda grad: torch.where(rows.reshape(-1, *[1] * (x.dim() - 1)), self.grad, grad))
            elif self.value is not None:
                energies = energies + torch.where(rows, self.value, 0.0)
        self.count += 1
        return energies


def network(widths: tuple[int, ...], activation: nn.Module | None = None, seed: int = 0) -> nn.Sequential:
    """Linear layers of these widths with activations (SiLU) between them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), activation or nn.SiLU()]
        return nn.Sequential(*layers[:-1])
