"""Swendsen and Wang's clusters against transition matrices made by going through all sets of bonds."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch

from ebmcore import Key, ops
from ebmcore.graph import Graph
from tests.support.statistics import assert_counts

GRAPHS = {"2x3": Graph.lattice((2, 3), periodic=False), "triangle and tail": Graph.from_edges([(0, 1), (1, 2), (0, 2), (2, 3)], 5)}


def clusters_of(num_sites: int, bonds: list[tuple[int, int]]) -> list[list[int]]:
    label = list(range(num_sites))
    for a, b in bonds:
        old, new = label[a], label[b]
        label = [new if value == old else value for value in label]
    return [[i for i in range(num_sites) if label[i] == value] for value in sorted(set(label))]


@functools.cache
def model(name: str, is_spin: bool, has_fields: bool) -> tuple[list[float], torch.Tensor]:
    """Couplings and fields; fields (num_sites,) of spins, (num_sites, 3) of tokens."""
    graph = GRAPHS[name]
    if is_spin:
        h = torch.linspace(-0.8, 1.0, graph.num_sites, dtype=torch.float64)
        return [0.4, -0.7, 0.9, -0.2, 0.0, 0.5, 0.3][: graph.num_edges], h * has_fields
    h = torch.linspace(-0.8, 1.0, 3 * graph.num_sites, dtype=torch.float64).reshape(-1, 3).sin()
    return [0.4, 0.7, 0.0, 0.2, 1.1, 0.5, 0.3][: graph.num_edges], h * has_fields


@functools.cache
def transition_matrix(name: str, is_spin: bool, has_fields: bool) -> np.ndarray:  # type: ignore[type-arg]
    """P, states in the order of itertools.product; that it leaves exp(-E) invariant is checked here."""
    couplings, h = model(name, is_spin, has_fields)
    fields = torch.stack((-h, h), 1).numpy() if is_spin else h.numpy()
    n, edges, values = GRAPHS[name].num_sites, GRAPHS[name].edges.tolist(), fields.shape[1]
    states = list(itertools.product(range(values), repeat=n))
    place = {state: k for k, state in enumerate(states)}
    matrix, energies = np.zeros((len(states), len(states))), np.zeros(len(states))
    for k, state in enumerate(states):
        agree = [state[a] == state[b] for a, b in edges]
        sign = [1 if same else -1 for same in agree] if is_spin else [int(same) for same in agree]
        energies[k] = -sum(j * s for j, s in zip(couplings, sign, strict=True)) - sum(fields[i, state[i]] for i in range(n))
        open_edges = [e for e in range(len(edges)) if couplings[e] * sign[e] > 0]
        for chosen in itertools.product((0, 1), repeat=len(open_edges)):
            weight = 1.0
            for e, is_laid in zip(open_edges, chosen, strict=True):
                p = 1 - math.exp(-abs(couplings[e]) * (2 if is_spin else 1))
                weight *= p if is_laid else 1 - p
            ends = {state: weight}
            for cluster in clusters_of(n, [edges[e] for e, is_laid in zip(open_edges, chosen, strict=True) if is_laid]):
                fresh: dict[tuple[int, ...], float] = {}
                for end, probability in ends.items():
                    options = []
                    for value in range(values):
                        there = list(end)
                        for i in cluster:
                            there[i] = (state[i] if value else 1 - state[i]) if is_spin else value
                        options.append((tuple(there), math.exp(sum(fields[i, there[i]] for i in cluster))))
                    total = sum(w for _, w in options)
                    for there_, w in options:
                        fresh[there_] = fresh.get(there_, 0.0) + probability * w / total
                ends = fresh
            for end, probability in ends.items():
                matrix[k, place[end]] += probability
    target = np.exp(-energies) / np.exp(-energies).sum()
    np.testing.assert_allclose(target @ matrix, target, atol=1e-14)
    return matrix


def check_rows(matrix: np.ndarray, states: torch.Tensor, call) -> None:  # type: ignore[no-untyped-def,type-arg]
    n, q = 100_000, int(states.max()) + 1
    powers = q ** torch.arange(states.shape[1] - 1, -1, -1)
    for num_steps, start in ((1, 0), (1, len(states) // 3), (3, len(states) // 2)):
        end = call(states[start].expand(n, -1).contiguous(), num_steps)
        row = torch.from_numpy(np.linalg.matrix_power(matrix, num_steps)[start])
        assert_counts(torch.bincount(end.long() @ powers, minlength=len(states)), row, what=f"{num_steps} steps from {start}")


CASES = [("2x3", True), ("triangle and tail", True), ("triangle and tail", False)]


@pytest.mark.parametrize(("name", "has_fields"), CASES)
def test_spins_with_couplings_of_any_sign(name: str, has_fields: bool, cpu_target: str) -> None:
    graph = GRAPHS[name]
    couplings, h = model(name, True, has_fields)

    def call(bits: torch.Tensor, num_steps: int) -> torch.Tensor:
        spins = (2 * bits - 1).to(torch.int8)
        before = spins.clone()
        fields = h if has_fields else None
        num_flips = ops.swendsen_wang_(spins, graph.edges, torch.tensor(couplings), fields, key=Key(num_steps), num_steps=num_steps)
        if num_steps == 1:
            assert torch.equal(num_flips, (spins != before).sum(1))
        return (spins + 1) // 2

    check_rows(transition_matrix(name, True, has_fields), torch.cartesian_prod(*[torch.arange(2)] * graph.num_sites), call)


@pytest.mark.parametrize(("name", "has_fields"), CASES)
def test_tokens(name: str, has_fields: bool, cpu_target: str) -> None:
    graph = GRAPHS[name]
    couplings, h = model(name, False, has_fields)

    def call(tokens: torch.Tensor, num_steps: int) -> torch.Tensor:
        x = tokens.to(torch.uint8)
        fields = h if has_fields else None
        ops.swendsen_wang_(x, graph.edges, torch.tensor(couplings), fields, key=Key(num_steps), num_steps=num_steps, num_categories=3)
        return x

    check_rows(transition_matrix(name, False, has_fields), torch.cartesian_prod(*[torch.arange(3)] * graph.num_sites), call)


def test_one_coupling_for_all_edges() -> None:
    graph, spins = GRAPHS["2x3"], torch.ones(50, 6, dtype=torch.int8)
    same = spins.clone()
    ops.swendsen_wang_(spins, graph.edges, torch.tensor(0.3), None, key=Key(1), num_steps=5)
    ops.swendsen_wang_(same, graph.edges, torch.full((graph.num_edges,), 0.3), None, key=Key(1), num_steps=5)
    assert torch.equal(spins, same)


def test_no_edges_and_large_fields() -> None:
    edges = torch.empty(0, 2, dtype=torch.int64)
    spins = torch.ones(200, 3, dtype=torch.int8)
    fields = torch.tensor([1e4, -1e4, 0.0])
    ops.swendsen_wang_(spins, edges, torch.tensor(1.0), fields, key=Key(1), num_steps=1)
    assert bool((spins[:, 0] == 1).all())
    assert bool((spins[:, 1] == -1).all())
    assert 50 < int((spins[:, 2] == 1).sum()) < 150
    tokens = torch.zeros(200, 3, dtype=torch.uint8)
    ops.swendsen_wang_(tokens, edges, torch.tensor(1.0), torch.tensor([[0.0, 1e4, 0.0]] * 3), key=Key(1), num_steps=1, num_categories=3)
    assert bool((tokens == 1).all())


@pytest.mark.parametrize(("dtype", "coupling", "field"), [(torch.int8, math.nan, 0.0), (torch.int8, 1.0, math.inf), (torch.uint8, -1.0, 0.0)])
def test_bad_numbers(dtype: torch.dtype, coupling: float, field: float) -> None:
    x = torch.ones(4, 2, dtype=dtype)
    fields = torch.full((2,) if dtype == torch.int8 else (2, 2), field)
    with pytest.raises(ValueError, match="swendsen_wang_: couplings and fields must be finite"):
        ops.swendsen_wang_(x, torch.tensor([[0, 1]]), torch.tensor(coupling), fields, key=Key(1), num_steps=1)
    assert bool((x == 1).all())


def test_wrong_dtypes_and_sizes() -> None:
    edges, one = torch.tensor([[0, 1]]), torch.tensor(1.0)
    with pytest.raises(TypeError, match="int8 spins or uint8 tokens"):
        ops.swendsen_wang_(torch.ones(4, 2), edges, one, None, key=Key(1), num_steps=1)
    with pytest.raises(ValueError, match="bond_probs"):
        ops.swendsen_wang_(torch.ones(4, 2, dtype=torch.int8), edges, torch.ones(3), None, key=Key(1), num_steps=1)
    with pytest.raises(ValueError, match="fields"):
        ops.swendsen_wang_(torch.ones(4, 2, dtype=torch.int8), edges, one, torch.ones(3), key=Key(1), num_steps=1)


def test_opcheck() -> None:
    rest = (Key(1).tensor, torch.tensor([[0, 1]]), torch.tensor([0.5], dtype=torch.float64), None, 2, 3)
    torch.library.opcheck(torch.ops.ebmcore.swendsen_wang.default, (torch.ones(4, 2, dtype=torch.int8), *rest))
