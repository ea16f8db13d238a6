"""Pseudo-likelihood against conditional probabilities written out in Python, gradcheck, and its refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebmcore.energies import OneHot
from ebmcore.losses import pseudo_likelihood
from ebmcore.types import Alphabet, DivergenceError

VALUES: dict[str, list[int]] = {"binary": [0, 1], "spin": [-1, 1], "token": [0, 1, 2]}


class Network(nn.Module):
    """An energy with no structure to use; tokens go in as numbers."""

    def __init__(self, kind: Any, num_sites: int) -> None:
        super().__init__()
        self.alphabet = Alphabet(kind, len(VALUES[kind]))
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(num_sites, 4, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).to(self.weight.dtype) @ self.weight).tanh().sum(1)


class Conditional(Network):
    """The same, with the logits of each site given the others, computed one by one."""

    def conditional_logits(self, x: Tensor) -> Tensor:
        n, num_sites = len(x), x[0].numel()
        logits = torch.stack([-self(self.with_value(x, i, v)) for i in range(num_sites) for v in VALUES[self.alphabet.kind]], 1)
        logits = logits.reshape(n, num_sites, -1)
        return logits if self.alphabet.kind == "token" else logits[..., 1] - logits[..., 0]

    def with_value(self, x: Tensor, site: int, value: int) -> Tensor:
        changed = x.clone()
        changed.flatten(1)[:, site] = value
        return changed


def draw(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.tensor(VALUES[kind])[torch.randint(len(VALUES[kind]), shape, generator=generator)].to(dtype)


def by_hand(energy: Network, x: Tensor) -> float:
    total = 0.0
    with torch.no_grad():
        for row in x:
            for site in range(row.numel()):
                scores = {}
                for value in VALUES[energy.alphabet.kind]:
                    changed = row.clone()
                    changed.flatten()[site] = value
                    scores[value] = math.exp(-float(energy(changed[None])))
                total -= math.log(scores[int(row.flatten()[site])] / math.fsum(scores.values()))
    return total / len(x)


@pytest.mark.parametrize("model", [Network, Conditional])
@pytest.mark.parametrize("batch_size", [4096, 7])
@pytest.mark.parametrize(("kind", "dtype"), [("binary", torch.float64), ("binary", torch.bool), ("spin", torch.int8), ("token", torch.uint8)])
def test_value_and_gradient(kind: str, dtype: torch.dtype, batch_size: int, model: type[Network]) -> None:
    energy, x = model(kind, 6), draw(kind, (5, 2, 3), dtype)
    before = x.clone()
    value = pseudo_likelihood(energy, x, batch_size=batch_size)
    assert value.dtype == torch.float64
    assert float(value.detach()) == pytest.approx(by_hand(energy, x), rel=1e-12)
    assert torch.equal(x, before)

    def loss(weight: Tensor) -> Tensor:
        energy.weight = weight  # type: ignore[assignment]
        return pseudo_likelihood(energy, x, batch_size=batch_size)

    weight = energy.weight.detach().clone().requires_grad_()
    del energy.weight
    assert torch.autograd.gradcheck(loss, (weight,))


def test_one_hot_energies_and_float32() -> None:
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(4, 3))
    energy = OneHot(lambda rows: -(rows * table).sum((1, 2)), num_categories=3)
    x = draw("token", (10, 4), torch.int64)
    value = pseudo_likelihood(energy, x, batch_size=5)
    expected = -table.log_softmax(1)[torch.arange(4), x].sum(1).mean()
    torch.testing.assert_close(value, expected)
    (gradient,), (wanted,) = torch.autograd.grad(value, table), torch.autograd.grad(expected, table)
    torch.testing.assert_close(gradient, wanted)


def test_certain_sites_cost_nothing_and_impossible_ones_raise() -> None:
    def first_two_equal(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] == x[:, 1], 0.0, math.inf)

    fine = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert float(pseudo_likelihood(first_two_equal, fine)) == pytest.approx(math.log(2))
    with pytest.raises(DivergenceError, match="pseudo_likelihood: log p must be finite") as error:
        pseudo_likelihood(first_two_equal, torch.cat((fine, torch.tensor([[1.0, 0.0, 1.0]]))))
    assert error.value.chains == [2]


def test_refusals() -> None:
    def energy(x: Tensor) -> Tensor:
        return x.sum(1)

    with pytest.raises(ValueError, match=r"pseudo_likelihood: x must be 0 or 1 at every site, got 2.0 at index \(0, 1\)"):
        pseudo_likelihood(energy, torch.tensor([[0.0, 2.0]]))
    with pytest.raises(ValueError, match="at least one chain"):
        pseudo_likelihood(energy, torch.zeros(0, 3))
    with pytest.raises(ValueError, match="batch_size must be an int >= 1, got 0"):
        pseudo_likelihood(energy, torch.zeros(2, 3), batch_size=0)
    with pytest.raises(TypeError, match="energy must return a floating-point tensor"):
        pseudo_likelihood(energy, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"energy must return shape \(2,\), got \(2, 3\)"):
        pseudo_likelihood(lambda x: x, torch.zeros(2, 3))
