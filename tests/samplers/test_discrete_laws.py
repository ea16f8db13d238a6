"""Laws of the discrete samplers: rows of P and of P^5 against enumerated transition matrices, for every kernel and kind of energy."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ebmcore import DiscreteLangevin, Gibbs, GibbsWithGradients, PathAuxiliary, RandomFlipMetropolis
from ebmcore.discrete import alphabet_of, encode, energy_and_differences
from support.discrete import all_states, assert_transitions, exact_energy, matrix, torch_energy

BINARY, TOKENS = ("B1", "B2"), ("C1", "C2")
TAYLOR = {
    "gibbs_raster": Gibbs(),
    "gibbs_random": Gibbs("random"),
    "mh_random": RandomFlipMetropolis(),
    "gwg_taylor": GibbsWithGradients(),
    "dmala_taylor_a0.2": DiscreteLangevin(0.2),
    "dmala_taylor_a0.5": DiscreteLangevin(0.5),
    "dmala_taylor_a2.0": DiscreteLangevin(2.0),
    "dula_taylor_a0.5": DiscreteLangevin(0.5, metropolis=False),
}
EXACT = {
    "gwg_exact": GibbsWithGradients(),
    "dmala_exact_a0.5": DiscreteLangevin(0.5),
    "dula_exact_a0.2": DiscreteLangevin(0.2, metropolis=False),
    "dula_exact_a2.0": DiscreteLangevin(2.0, metropolis=False),
}


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("kernel", TAYLOR)
@pytest.mark.parametrize("model", BINARY + TOKENS)
def test_torch_energies(model, kernel, num_steps):
    assert_transitions(TAYLOR[kernel], torch_energy(model), all_states(model), matrix(model, kernel), num_steps, seed=11, what=f"{model} {kernel}")


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize(("model", "kind"), [("B2", "binary"), ("B1", "spin"), ("C2", "token")])
def test_exact_differences(model, kind, kernel, num_steps):
    energy = exact_energy(model, kind)
    assert_transitions(EXACT[kernel], energy, all_states(model), matrix(model, kernel), num_steps, seed=12, what=f"{model} {kind} {kernel}")


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("model", BINARY)
def test_barker(model, num_steps):
    sampler = GibbsWithGradients(balancing="barker")
    assert_transitions(sampler, exact_energy(model), all_states(model), matrix(model, "gwg_exact_barker"), num_steps, seed=13, what=f"{model} barker")


@pytest.mark.parametrize("kernel", ["gibbs_raster", "gibbs_random", "mh_random"])
def test_spins_by_evaluation(kernel):
    assert_transitions(TAYLOR[kernel], exact_energy("B3", "spin"), all_states("B3"), matrix("B3", kernel), 1, seed=14, what=f"B3 spins {kernel}")


def enumerated(energy, states: Tensor, num_draws: int, *, balancing: str = "sqrt", with_replacement: bool) -> tuple[Tensor, Tensor]:
    """Transition matrix and target of a proposal of several changes: all sequences of draws, written out."""
    alphabet = alphabet_of(energy)
    q = alphabet.num_categories
    value, d = energy_and_differences(energy, encode(states, alphabet))
    value, d = value.double(), d.double()
    rows = [tuple(row) for row in states.tolist()]
    number = {row: k for k, row in enumerate(rows)}
    g = {"sqrt": lambda t: math.sqrt(t), "barker": lambda t: t / (1 + t), "min": lambda t: min(1, t), "max": lambda t: max(1, t)}[balancing]

    def weights(k: int) -> dict[tuple[int, int], float]:
        """Of every change (site, new value) of state k."""
        changes = [(i, c) for i, c in itertools.product(range(len(rows[k])), range(q)) if c != rows[k][i]]
        return {(i, c): g(math.exp(float(d[k, i] if d.dim() == 2 else d[k, i, c]))) for i, c in changes}

    def prob(k: int, sequence: list[tuple[int, int]]) -> float:
        left, product = weights(k), 1.0
        for site, c in sequence:
            product *= left[site, c] / math.fsum(left.values())
            if not with_replacement:
                left = {change: w for change, w in left.items() if change[0] != site}
        return product

    p = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for k, row in enumerate(rows):
        for sequence in itertools.product(weights(k), repeat=num_draws):
            if not with_replacement and len({site for site, _ in sequence}) < num_draws:
                continue
            forward = prob(k, list(sequence))
            new = list(row)
            for site, c in sequence:
                new[site] = c
            if any(new[site] != c for site, c in sequence):
                p[k, k] += forward
                continue
            back = [(site, row[site]) for site, _ in sequence]
            to = number[tuple(new)]
            ratio = math.exp(float(value[k] - value[to])) * prob(to, back if with_replacement else back[::-1]) / forward
            p[k, to] += forward * min(1.0, ratio)
            p[k, k] += forward * (1 - min(1.0, ratio))
    return p, torch.softmax(-value, 0)


CASES = [
    (GibbsWithGradients(num_flips=2), {"num_draws": 2, "with_replacement": True}),
    (GibbsWithGradients(num_flips=3, balancing="barker"), {"num_draws": 3, "balancing": "barker", "with_replacement": True}),
    (GibbsWithGradients(balancing="min"), {"num_draws": 1, "balancing": "min", "with_replacement": True}),
    (GibbsWithGradients(balancing="max"), {"num_draws": 1, "balancing": "max", "with_replacement": True}),
    (PathAuxiliary(1), {"num_draws": 1, "with_replacement": False}),
    (PathAuxiliary(2), {"num_draws": 2, "with_replacement": False}),
    (PathAuxiliary(3, balancing="barker"), {"num_draws": 3, "balancing": "barker", "with_replacement": False}),
]


@pytest.mark.parametrize(("sampler", "law"), CASES, ids=lambda value: repr(value) if not isinstance(value, dict) else "")
@pytest.mark.parametrize("model", ["B2", "C2"])
def test_several_changes(model, sampler, law):
    """Rows sum to 1, detailed balance holds to rounding, and the sampler follows the matrix."""
    states = all_states(model)
    transitions, target = enumerated(torch_energy(model, torch.float64), states, **law)
    torch.testing.assert_close(transitions.sum(1), torch.ones(len(states), dtype=torch.float64), rtol=0, atol=1e-12)
    flow = target[:, None] * transitions
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-14)
    for num_steps in (1, 5):
        assert_transitions(sampler, torch_energy(model), states, transitions, num_steps, seed=15, what=f"{model} {sampler}")


def test_paths_of_spins():
    states = all_states("B1")
    transitions, _ = enumerated(torch_energy("B1", torch.float64), states, num_draws=2, with_replacement=False)
    assert_transitions(PathAuxiliary(2), exact_energy("B1", "spin"), states, transitions, 5, seed=16, what="B1 spins")
