"""Potts models: the energy by hand and by enumeration, native chains against transition matrices and exact marginals."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from ebmcore import Key
from ebmcore._native import core
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
    return torch.cartesian_prod(*[torch.arange(q)] * num_sites)


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
    assert model.coupling.grad is not None
    assert torch.equal(model.coupling.grad, model.coupling.grad.T)


def c1() -> tuple[Potts, Any]:
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
            assert torch.equal(result.is_accepted, (states != x).any(1))
            assert torch.equal(result.num_flips, result.is_accepted.long())
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
    n = 10_000
    if math.prod(shape) * math.log(q) < math.log(3**9 + 1):
        x = exact_starts(Potts(model.graph, q, case["J"], torch.tensor(case["h"])), n).reshape(n, *shape)
        log_z = (-model.double()(all_states(9, q).reshape(-1, 3, 3))).detach().logsumexp(0)
        model.float()
        assert float(log_z) == pytest.approx(case["lnZ"], abs=1e-6)
    else:
        x, _ = run(model, "swendsen_wang", torch.randint(q, (n, *shape), generator=torch.Generator().manual_seed(2)), 40, seed=5)
    options = {"scan": "raster"} if kernel == "gibbs" else GWG
    x, _ = run(model, kernel, x, 10 if kernel == "gibbs" else 30, seed=6, **options)
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


MODELS = {
    "lattice q=2": lambda: Potts.lattice((4, 6), 2, 0.7),
    "lattice q=3": lambda: Potts.lattice((6, 4), 3, 1.1, torch.linspace(-1, 1, 3)),
    "lattice q=20": lambda: Potts.lattice((4, 4), 20, 2.0, torch.linspace(-1, 1, 20)),
    "edges": lambda: random_sparse(40, 5, 1),
    "table": lambda: random_sparse(30, 4, 2),
    "table q=33": lambda: random_sparse(20, 33, 2),
    "tables": lambda: random_sparse(40, 3, 3),
    "dense": lambda: random_dense(9, 21, 0.1),
    "many sites": lambda: Potts.lattice((4, 76), 3, 1.0),
    "strong": lambda: Potts.lattice((4, 4), 3, 7.0, torch.tensor([0.0, 14.0, -17.0])),
}
ALL_KERNELS = {
    "gibbs raster": ("gibbs", {"scan": "raster"}),
    "gibbs random": ("gibbs", {"scan": "random"}),
    "gibbs checkerboard": ("gibbs", {"scan": "checkerboard"}),
    "metropolis": ("metropolis", {}),
    "gwg": ("gwg", GWG),
    "gwg barker": ("gwg", {"num_flips": 1, "balancing": "barker"}),
    "swendsen_wang": ("swendsen_wang", {}),
}


def model_for(name: str, kernel: str) -> Potts:
    model = MODELS[name]()
    if kernel == "swendsen_wang":
        if model.coupling.dim() > 1:
            pytest.skip("clusters are for couplings of equal values")
        model.coupling.data.abs_()
    if kernel == "gwg barker" and name == "strong":
        pytest.skip("weights of strong fields overflow")
    return model


def chains(model: Potts, name: str, x: torch.Tensor, num_steps: int, key: Key) -> torch.Tensor:
    kernel, options = ALL_KERNELS[name]
    states = x.clone()
    assert model.native_chain(kernel, states, key.tensor, num_steps, **options) is not None
    return states


@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize("name", MODELS)
def test_equal_bits(name: str, kernel: str, keep_threads: None) -> None:
    """Steps at once or one by one, a batch or its parts, threads, instruction sets."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = model_for(name, kernel)
    n, num_steps, key = 70, 67, Key(2**40 + 1, step=2**32 - 30, first_chain=2**32 - 20)
    x = torch.randint(model.alphabet.num_categories, (n, *model.event_shape), dtype=torch.uint8)
    expected = chains(model, kernel, x, num_steps, key)
    assert not torch.equal(expected, x)
    steps = x
    for k in range(num_steps):
        steps = chains(model, kernel, steps, 1, key.advance(k))
    assert torch.equal(steps, expected)
    halves = chains(model, kernel, chains(model, kernel, x, 40, key), num_steps - 40, key.advance(40))
    assert torch.equal(halves, expected)
    parts = [chains(model, kernel, x[i : i + 9], num_steps, key.shard(i)) for i in range(0, n, 9)]
    assert torch.equal(torch.cat(parts), expected)
    for num_threads in (2, 5):
        torch.set_num_threads(num_threads)
        assert torch.equal(chains(model, kernel, x, num_steps, key), expected)
    before = core.cpu_target()
    for target in core.cpu_targets():
        core.set_cpu_target(target)
        try:
            assert torch.equal(chains(model, kernel, x, num_steps, key), expected), target
        finally:
            core.set_cpu_target(before)


def test_one_seed_in_two_keys() -> None:
    model, x = MODELS["edges"](), torch.zeros(5, 40, dtype=torch.uint8)
    for kernel in ("gibbs raster", "gwg", "metropolis"):
        first = chains(model, kernel, x, 20, Key(3))
        assert not torch.equal(first, chains(model, kernel, x, 20, Key(4)))
        assert not torch.equal(first, chains(model, kernel, x, 20, Key(3, step=1)))
        assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize("name", MODELS)
def test_cuda_gives_the_same_bits(name: str, kernel: str, device: str) -> None:
    model = model_for(name, kernel)
    x = torch.randint(model.alphabet.num_categories, (70, *model.event_shape), dtype=torch.uint8)
    expected = chains(model, kernel, x, 20, Key(5))
    model.to(device)
    options = ALL_KERNELS[kernel]
    states = x.to(device)
    assert model.native_chain(options[0], states, Key(5).to(device).tensor, 20, **options[1]) is not None
    assert torch.equal(states.cpu(), expected)


def test_parameters_are_read_at_every_call() -> None:
    model = Potts.lattice((4, 4), 3, 0.0)
    x = torch.randint(3, (500, 4, 4))
    assert float(model(run(model, "gibbs", x, 20, seed=1, scan="raster")[0]).detach().abs().max()) == 0
    with torch.no_grad():
        model.coupling.fill_(20.0)
    frozen, _ = run(model, "gibbs", torch.zeros(500, 4, 4), 20, seed=1, scan="raster")
    assert int(frozen.sum()) == 0


@pytest.mark.parametrize("kernel", ["gibbs raster", "gibbs random", "metropolis", "swendsen_wang"])
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_couplings(kernel: str, scale: float) -> None:
    """A state of least energy stays; a site at odds with it falls in."""
    model = Potts.lattice((4, 4), 3, scale, torch.tensor([10 * scale, 0.0, 0.0]))
    zeros = torch.zeros(100, 4, 4, dtype=torch.uint8)
    assert torch.equal(chains(model, kernel, zeros, 20, Key(1)), zeros)
    if kernel == "gibbs raster":
        assert torch.equal(chains(model, kernel, torch.randint(3, (100, 4, 4), dtype=torch.uint8), 20, Key(1)), zeros)


def test_gwg_leaves_what_overflows_to_the_general_path() -> None:
    x = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for balancing, limit in (("sqrt", 60), ("barker", 40), ("min", 40), ("max", 40)):
        options = {"num_flips": 1, "balancing": balancing}
        assert Potts.lattice((4, 4), 3, limit / 4).native_chain("gwg", x, Key(1).tensor, 2, **options) is not None
        assert Potts.lattice((4, 4), 3, limit / 4 + 1).native_chain("gwg", x, Key(1).tensor, 2, **options) is None
    assert Potts.lattice((4, 4), 3, 1.0).native_chain("gwg", x, Key(1).tensor, 2, num_flips=2, balancing="sqrt") is None
    assert Potts.lattice((4, 4), 3, 1.0).native_chain("path_auxiliary", x, Key(1).tensor, 2) is None


def test_no_steps_and_no_chains() -> None:
    model = MODELS["edges"]()
    for kernel in ALL_KERNELS:
        if kernel != "swendsen_wang":
            x = torch.randint(5, (4, 40), dtype=torch.uint8)
            assert torch.equal(chains(model, kernel, x, 0, Key(1)), x)
            assert chains(model, kernel, x[:0], 3, Key(1)).shape == (0, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([(0, 1)], 1, 1.0), "num_categories must be an int in"),
        (([(0, 1)], 257, 1.0), "num_categories must be an int in"),
        (([(0, 0)], 3, 1.0), "different sites"),
        (([(0, 1), (1, 0)], 3, 1.0), "once"),
        (([(0, 5)], 3, 1.0, None, 3), "must join sites"),
        (([(0, 1)], 3, math.nan), "coupling must be finite"),
        (([(0, 1)], 3, [math.inf]), "coupling must be finite"),
        (([(0, 1)], 3, 1.0, [0.0, math.nan, 0.0]), "field must be finite"),
        (([(0, 1)], 3, [1.0, 2.0]), "coupling must be a number or have shape"),
        (([(0, 1)], 3, torch.zeros(3, 4)), "coupling must be a number or have shape"),
        (([(0, 1)], 3, 1.0, [0.0, 0.0]), "field must have shape"),
        (([(0, 1)], 2, [[0.0, 1.0], [2.0, 0.0]]), "must be symmetric"),
        (([(0, 1)], 256, 1.0, None, 2**23), r"below 2\*\*31"),
    ],
)
def test_bad_models(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Potts(*arguments[:4], num_sites=arguments[4] if len(arguments) > 4 else None)


def test_bad_lattices_and_dense_tensors() -> None:
    for shape, periodic in (((1, 4), True), ((2, 4), True), ((1, 4), False)):
        with pytest.raises(ValueError, match="shape must be an int >="):
            Potts.lattice(shape, 3, 1.0, periodic=periodic)
    good = torch.zeros(3, 3, 2, 2)
    for index, message in (((1, 1, 0, 0), r"coupling\[i, i\] must be 0"), ((0, 1, 0, 1), "must be symmetric")):
        bad = good.clone()
        bad[index] = 1.0
        with pytest.raises(ValueError, match=message):
            Potts.dense(bad)
    bad = good.clone()
    bad[0, 1], bad[1, 0] = math.nan, math.nan
    with pytest.raises(ValueError, match="coupling must be finite"):
        Potts.dense(bad)
    with pytest.raises(ValueError, match="must have shape"):
        Potts.dense(torch.zeros(3, 2, 2, 2))


def test_bad_calls_leave_the_states_alone() -> None:
    model = Potts.lattice((3, 4), 3, 1.0)
    x = torch.ones(2, 3, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="even sides"):
        model.native_chain("gibbs", x, Key(1).tensor, 3, scan="checkerboard")
    with pytest.raises(ValueError, match="x must have shape"):
        model(torch.zeros(2, 12, dtype=torch.uint8))
    with pytest.raises(TypeError, match="integer tokens"):
        model(torch.zeros(2, 3, 4))
    negative = Potts.lattice((3, 4), 3, -1.0)
    with pytest.raises(ValueError, match="couplings of tokens at least 0"):
        negative.native_chain("swendsen_wang", x, Key(1).tensor, 3)
    table = Potts.lattice((3, 4), 3, torch.eye(3))
    with pytest.raises(ValueError, match="got tables"):
        table.native_chain("swendsen_wang", x, Key(1).tensor, 3)
    with torch.no_grad():
        model.coupling.fill_(math.nan)
    for kernel, options in ALL_KERNELS.values():
        with pytest.raises(ValueError, match=r"even sides|finite"):
            model.native_chain(kernel, x, Key(1).tensor, 3, **options)
    assert bool((x == 1).all())
