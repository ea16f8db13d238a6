"""Potts models: the energy by hand and by enumeration, native chains against transition matrices and exact marginals."""

import itertools
import math

import numpy as np
import pytest
import torch

from ebmcore import Key
from ebmcore.discrete import NativeRun
from ebmcore.energies import Potts
from tests.support.statistics import assert_counts, assert_mean
from tests.support.truths import FOLDER, truth

KERNELS = {
    "gibbs_raster": ("gibbs", {"scan": "raster"}),
    "gibbs_random": ("gibbs", {"scan": "random"}),
    "mh_random": ("metropolis", {}),
    "gwg_exact": ("gwg", {"num_flips": 1, "balancing": "sqrt"}),
}
GWG = {"num_flips": 1, "balancing": "sqrt"}


def run(model: Potts, kernel: str, x: torch.Tensor, num_steps: int, seed: int, **options: object) -> tuple[torch.Tensor, NativeRun]:
    states = x.to(torch.uint8)
    result = model.native_chain(kernel, states, Key(seed).tensor, num_steps, **options)
    assert result is not None
    return states, result


def random_dense(num_sites: int, q: int, scale: float = 0.5, seed: int = 0, dtype: torch.dtype = torch.float32) -> Potts:
    generator = torch.Generator().manual_seed(seed)
    j = torch.randn(num_sites, num_sites, q, q, generator=generator, dtype=dtype) * scale
    j = j + j.permute(1, 0, 3, 2)
    j[range(num_sites), range(num_sites)] = 0
    return Potts.dense(j, torch.randn(num_sites, q, generator=generator, dtype=dtype))


def random_sparse(num_sites: int, q: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Potts:
    """A ring with chords, a hub and a site without neighbours; coupling of the given number of dimensions."""
    generator = torch.Generator().manual_seed(seed)
    edges = [(i, (i + 1) % (num_sites - 1)) for i in range(num_sites - 1)] + [(0, i) for i in range(3, num_sites - 2, 2)]
    shapes = {0: (), 1: (len(edges),), 2: (q, q), 3: (len(edges), q, q)}
    coupling = torch.randn(shapes[dim], generator=generator, dtype=dtype) * 0.5
    if dim == 2:
        coupling = coupling + coupling.T
    return Potts(edges, q, coupling, torch.randn(num_sites, q, generator=generator, dtype=dtype), num_sites=num_sites)


def all_states(num_sites: int, q: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(q), repeat=num_sites)))


def test_energy_of_two_sites_by_hand() -> None:
    x = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    field = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
    assert Potts([(0, 1)], 2, 3.0)(x).tolist() == [-3, 0, 0, -3]
    assert Potts([(0, 1)], 2, 3.0, field)(x).tolist() == [-5.5, -0.75, -1.0, -2.25]
    assert Potts([(1, 0)], 2, [3.0], field)(x).tolist() == [-5.5, -0.75, -1.0, -2.25]
    assert Potts([(0, 1)], 2, [[1.0, 2.0], [2.0, 4.0]])(x).tolist() == [-1, -2, -2, -4]
    assert Potts([(0, 1)], 2, [[[1.0, 2.0], [3.0, 4.0]]])(x).tolist() == [-1, -2, -3, -4]
    assert Potts([(1, 0)], 2, [[[1.0, 2.0], [3.0, 4.0]]])(x).tolist() == [-1, -3, -2, -4]


def test_energy_of_edges_in_any_order() -> None:
    edges = torch.tensor([(4, 2), (0, 1), (3, 0), (1, 4)])
    tables = torch.randn(4, 3, 3)
    x = all_states(5, 3)
    expected = -sum(tables[k, x[:, a], x[:, b]] for k, (a, b) in enumerate(edges.tolist()))
    torch.testing.assert_close(Potts(edges, 3, tables)(x), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_tokens_of_every_integer_dtype(dtype: torch.dtype) -> None:
    model, x = random_dense(5, 4), torch.randint(4, (7, 5))
    assert torch.equal(model(x.to(dtype)), model(x))
    assert torch.equal(model.conditional_logits(x.to(dtype)), model.conditional_logits(x))


@pytest.mark.parametrize("model", [random_sparse(7, 3, dim, dtype=torch.float64) for dim in range(4)] + [random_dense(5, 3, dtype=torch.float64)])
def test_differences_and_conditionals_by_enumeration(model: Potts) -> None:
    x = torch.randint(3, (20, *model.event_shape))
    energy, differences = model.energy_and_differences(x.to(torch.uint8))
    torch.testing.assert_close(energy, model(x))
    logits = model.conditional_logits(x)
    for i in range(x.shape[1]):
        for c in range(3):
            changed = x.clone()
            changed[:, i] = c
            is_same = x[:, i] == c
            assert torch.equal(differences[:, i, c] == -math.inf, is_same)
            torch.testing.assert_close(differences[~is_same, i, c], (model(x) - model(changed))[~is_same])
            own = logits[:, i].gather(1, x[:, i, None])[:, 0]
            torch.testing.assert_close(logits[:, i, c] - own, model(x) - model(changed))


@pytest.mark.parametrize("dim", range(4))
def test_gradients_of_the_parameters(dim: int) -> None:
    model = random_sparse(6, 3, dim, dtype=torch.float64)
    x = torch.randint(3, (4, 6))
    for function in (Potts.forward, Potts.conditional_logits):

        def of_parameters(coupling: torch.Tensor, field: torch.Tensor, function=function) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return torch.func.functional_call(_Wrapped(model, function), {"model.coupling": coupling, "model.field": field}, (x,))  # type: ignore[no-any-return]

        torch.autograd.gradcheck(of_parameters, (model.coupling.detach().clone().requires_grad_(), model.field.detach().clone().requires_grad_()))


class _Wrapped(torch.nn.Module):
    def __init__(self, model: Potts, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.model, x)


def test_gradient_of_a_shared_table_keeps_it_symmetric() -> None:
    model = random_sparse(6, 3, 2)
    model(torch.randint(3, (9, 6))).sum().backward()
    assert model.coupling.grad is not None and torch.equal(model.coupling.grad, model.coupling.grad.T)


def c1() -> tuple[Potts, "np.lib.npyio.NpzFile"]:  # type: ignore[name-defined]
    truth("transitions")
    arrays = np.load(FOLDER / "transitions.npz")
    return Potts.dense(torch.from_numpy(arrays["C1__param_A"]), torch.from_numpy(arrays["C1__param_h"])), arrays


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_steps", [1, 5])
def test_rows_of_the_transition_matrix(kernel: str, num_steps: int, cpu_target: str) -> None:
    model, arrays = c1()
    matrix = np.linalg.matrix_power(arrays[f"C1__P__{kernel}"], num_steps)
    q, sites, n = 3, model.graph.num_sites, 100_000
    powers = q ** torch.arange(sites)
    for start in (0, 7 * q ** (sites - 2) // 3):
        x = (start // powers % q).expand(n, -1)
        name, options = KERNELS[kernel]
        states, result = run(model, name, x, num_steps, seed=start + num_steps, **options)
        counts = torch.bincount(states.long() @ powers, minlength=q**sites)
        assert_counts(counts, torch.from_numpy(matrix[start]), what=f"{kernel} from {start}")
        if num_steps == 1 and result.is_accepted is not None:
            assert torch.equal(result.is_accepted, (states != x).any(1)) and torch.equal(result.num_flips, result.is_accepted.long())
            probability = float(1 - matrix[start, start])
            assert_mean(result.acceptance_prob.clone(), probability, what="acceptance")


@pytest.mark.parametrize("balancing", ["sqrt", "barker", "min", "max"])
@pytest.mark.parametrize("model", [random_dense(3, 3), random_sparse(5, 2, 1), random_dense(2, 9)], ids=["dense", "binary", "nine"])
def test_gwg_proposals_of_every_balancing_function(balancing: str, model: Potts) -> None:
    q, sites, n = model.alphabet.num_categories, model.graph.num_sites, 200_000
    states = all_states(sites, q)
    start = len(states) // 3
    place = {tuple(s): k for k, s in enumerate(states.tolist())}
    with torch.no_grad():
        energy, differences = model.double().energy_and_differences(states.to(torch.uint8))
    model.float()
    g = {
        "sqrt": lambda d: (d / 2).exp(),
        "barker": torch.sigmoid,
        "min": lambda d: d.clamp(max=0).exp(),
        "max": lambda d: torch.where(d == -math.inf, 0.0, d.clamp(min=0).exp()),
    }[balancing]
    weights = g(differences)
    z = weights.sum((1, 2))
    row = torch.zeros(len(states), dtype=torch.float64)
    for i, c in itertools.product(range(sites), range(q)):
        there = states[start].clone()
        there[i] = c
        k = place[tuple(there.tolist())]
        if k != start:
            back = weights[k, i, states[start, i]] / z[k]
            forth = weights[start, i, c] / z[start]
            row[k] = forth * min(1.0, float((energy[start] - energy[k]).exp() * back / forth))
    row[start] = 1 - row.sum()
    end, _ = run(model, "gwg", states[start].expand(n, -1), 1, seed=3, num_flips=1, balancing=balancing)
    code = end.long() @ q ** torch.arange(sites).flip(0)
    assert_counts(torch.bincount(code, minlength=len(states)), row, what=balancing)


def exact_starts(model: Potts, n: int) -> torch.Tensor:
    """n independent exact draws of a model of few states."""
    states = all_states(model.graph.num_sites, model.alphabet.num_categories)
    energies = model.double()(states).detach()
    model.float()
    cdf = (-energies).softmax(0).cumsum(0)
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return states[torch.searchsorted(cdf, uniform).clamp(max=len(states) - 1)].to(torch.uint8)


@pytest.mark.parametrize("index", range(9))
@pytest.mark.parametrize("kernel", ["gibbs", "gwg"])
def test_marginals_and_bonds_of_lattices(index: int, kernel: str) -> None:
    case = truth("potts")["cases"][index]
    shape, q = (case["Ly"], case["Lx"]), case["q"]
    model = Potts.lattice(shape, q, case["J"], torch.tensor(case["h"]))
    n = 20_000
    if math.prod(shape) * math.log(q) < math.log(3**9 + 1):
        x = exact_starts(Potts(model.graph, q, case["J"], torch.tensor(case["h"])), n).reshape(n, *shape)
        log_z = (-model.double()(all_states(9, q).reshape(-1, 3, 3))).detach().logsumexp(0)
        model.float()
        assert float(log_z) == pytest.approx(case["lnZ"], abs=1e-6)
    else:
        x, _ = run(model, "swendsen_wang", torch.randint(q, (n, *shape), generator=torch.Generator().manual_seed(2)), 60, seed=5)
    options = {"scan": "raster"} if kernel == "gibbs" else GWG
    x, _ = run(model, kernel, x, 20 if kernel == "gibbs" else 40, seed=6, **options)
    for i, marginal in enumerate(case["marginals"]):
        assert_counts(torch.bincount(x.flatten(1)[:, i].long(), minlength=q), torch.tensor(marginal, dtype=torch.float64), what=f"site {i}")
    bonds = -Potts(model.graph, q, 1.0)(x.flatten(1)).detach()
    assert_mean(bonds, case["mean_bonds"], math.sqrt(case["var_bonds"]), what="bonds")


@pytest.mark.parametrize("kernel", ["gibbs", "gwg"])
def test_marginals_of_the_dense_model(kernel: str) -> None:
    case = truth("potts")["dense"]
    model = Potts.dense(torch.tensor(case["A"]), torch.tensor(case["h"]))
    assert model.alphabet.num_categories == 4
    n = 50_000
    x, _ = run(model, kernel, exact_starts(model, n), 10, seed=4, **({"scan": "random"} if kernel == "gibbs" else GWG))
    for i, marginal in enumerate(case["marginals"]):
        assert_counts(torch.bincount(x[:, i].long(), minlength=4), torch.tensor(marginal, dtype=torch.float64), what=f"site {i}")
