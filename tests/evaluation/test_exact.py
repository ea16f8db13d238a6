"""Enumeration against the project's exact reference numbers, against sums written out in Python, and its refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ebmcore.energies import OneHot
from ebmcore.evaluation import exact_distribution, exact_log_z, exact_marginals
from ebmcore.types import Alphabet
from support.truths import FOLDER, truth


class Pairwise(nn.Module):
    """E(s) = -(½ sᵀJs + hᵀs), of spins."""

    alphabet = Alphabet("spin")

    def __init__(self, coupling: Tensor, field: Tensor) -> None:
        super().__init__()
        self.coupling, self.field = nn.Parameter(coupling), nn.Parameter(field)

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(1).to(self.field.dtype)
        return -(0.5 * (s @ self.coupling * s).sum(1) + s @ self.field)


@pytest.mark.parametrize("index", range(2))
def test_random_ising_graphs(index: int) -> None:
    case = truth("er_ising")["cases"][index]
    with np.load(FOLDER / "er_ising.npz") as arrays:
        name = next(key.removesuffix("__J") for key in arrays.files if key.endswith(f"D{case['D']}_beta{case['beta']}__J"))
        coupling, field, mean = (torch.from_numpy(arrays[f"{name}__{part}"]) for part in ("J", "h", "mean"))
    energy = Pairwise(case["beta"] * coupling, case["beta"] * field)
    assert exact_log_z(energy, (len(field),)) == pytest.approx(case["lnZ"], abs=1e-10)
    marginals = exact_marginals(energy, (2, len(field) // 2))
    torch.testing.assert_close(marginals @ torch.tensor([-1.0, 1.0], dtype=torch.float64), mean, rtol=0, atol=1e-10)


def test_potts() -> None:
    case = next(case for case in truth("potts")["cases"] if case["q"] ** (case["Lx"] * case["Ly"]) < 10**6)
    q, width, height = case["q"], case["Lx"], case["Ly"]
    field = torch.tensor(case["h"], dtype=torch.float64).reshape(-1, q)

    class Potts:
        alphabet = Alphabet("token", q)

        def __call__(self, x: Tensor) -> Tensor:
            bonds = ((x == x.roll(1, 1)).sum((1, 2)) + (x == x.roll(1, 2)).sum((1, 2))).double()
            return -(case["J"] * bonds + field[torch.arange(width * height), x.flatten(1).long()].sum(1))

    assert exact_log_z(Potts(), (height, width)) == pytest.approx(case["lnZ"], abs=1e-10)
    torch.testing.assert_close(exact_marginals(Potts(), (height, width)), torch.tensor(case["marginals"], dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["binary", "spin", "token"])
def test_order_and_values_of_the_states(kind: str) -> None:
    alphabet = Alphabet(kind, 3 if kind == "token" else 2)  # type: ignore[arg-type]
    values = {"binary": (0, 1), "spin": (-1, 1), "token": (0, 1, 2)}[kind]
    weights = torch.tensor([0.25, -1.0, 2.0, 0.5], dtype=torch.float64)

    class Linear:
        def __call__(self, x: Tensor) -> Tensor:
            assert x.shape[1:] == (2, 2)
            assert x.dtype == (torch.uint8 if kind == "token" else torch.float64)
            return -(x.flatten(1).double() @ weights)

    energy = Linear()
    energy.alphabet = alphabet  # type: ignore[attr-defined]
    states = [s[::-1] for s in itertools.product(values, repeat=4)]  # the first site runs fastest
    scores = [math.exp(sum(w * v for w, v in zip(weights.tolist(), s, strict=True))) for s in states]
    total = math.fsum(scores)
    assert exact_log_z(energy, (2, 2)) == pytest.approx(math.log(total), abs=1e-13)
    expected = torch.tensor(scores, dtype=torch.float64) / total
    torch.testing.assert_close(exact_distribution(energy, (2, 2)), expected, rtol=1e-12, atol=0)
    marginals = [[math.fsum(p for s, p in zip(states, scores, strict=True) if s[i] == v) / total for v in values] for i in range(4)]
    torch.testing.assert_close(exact_marginals(energy, (2, 2)), torch.tensor(marginals, dtype=torch.float64), rtol=1e-12, atol=0)


def test_chunks_and_float32_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0))
    whole = exact_distribution(network, (9,))
    monkeypatch.setattr("ebmcore.evaluation.exact._ELEMENTS_AT_ONCE", 9 * 100)
    torch.testing.assert_close(exact_distribution(network, (9,)), whole, rtol=1e-5, atol=0)
    tokens = OneHot(lambda rows: -rows[:, :, 1].sum(1), num_categories=3)
    assert exact_log_z(tokens, (4,)) == pytest.approx(4 * math.log(2 + math.e), abs=1e-6)


def test_forbidden_states() -> None:
    def exactly_one(x: Tensor) -> Tensor:
        return torch.where(x.sum(1) == 1, 0.0, math.inf)

    assert exact_log_z(exactly_one, (5,)) == pytest.approx(math.log(5))
    torch.testing.assert_close(exact_marginals(exactly_one, (5,))[:, 1], torch.full((5,), 0.2, dtype=torch.float64))
    assert exact_log_z(lambda x: torch.full((len(x),), math.inf), (2,)) == -math.inf
    with pytest.raises(ValueError, match="exact_marginals: energy must be finite in some state"):
        exact_marginals(lambda x: torch.full((len(x),), math.inf), (2,))


def test_refusals() -> None:
    def ones(x: Tensor) -> Tensor:
        return x.sum(1)

    with pytest.raises(ValueError, match=r"exact_log_z: event_shape must be .* at most 16777216 states, got \(5, 5\) with 2\*\*25"):
        exact_log_z(ones, (5, 5))
    with pytest.raises(ValueError, match="at most 8 states"):
        exact_distribution(ones, (4,), max_states=8)
    assert exact_log_z(ones, (3,), max_states=8) == pytest.approx(3 * math.log(1 + math.exp(-1)))
    for shape in ((), (0,), (2, -1)):
        with pytest.raises(ValueError, match="event_shape"):
            exact_marginals(ones, shape)
    with pytest.raises(ValueError, match="must not be NaN or -inf, got nan in state 2"):
        exact_log_z(lambda x: torch.where(x[:, 1] == 1, math.nan, 0.0), (2,))
    with pytest.raises(ValueError, match="got -inf in state 3"):
        exact_log_z(lambda x: torch.where(x.sum(1) == 2, -math.inf, 0.0), (2,))
    with pytest.raises(ValueError, match=r"energy: must return shape"):
        exact_log_z(lambda x: x, (2,))
