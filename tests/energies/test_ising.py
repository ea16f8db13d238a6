"""Ising models: energies by hand, exact laws of their native chains, bad input."""

import itertools
import math

import pytest
import torch
from torch import Tensor

import ebmcore
from ebmcore import Key
from ebmcore.energies import Ising
from support.statistics import assert_count, assert_counts, assert_mean
from support.truths import truth, truth_arrays

NUM_CHAINS = 100_000
EDGES = [[2, 0], [1, 2], [3, 1]]


def all_states(num_sites: int) -> Tensor:
    """(2^n, n) int8; site i is bit i of the index."""
    index = torch.arange(2**num_sites)[:, None]
    return ((index >> torch.arange(num_sites) & 1) * 2 - 1).to(torch.int8)


def index_of(x: Tensor) -> Tensor:
    return ((x.flatten(1) + 1) // 2).long() @ (2 ** torch.arange(x[0].numel()))


def test_two_spins_by_hand() -> None:
    """Each bond counts once: E = -J s s' - h (s + s')."""
    energy = Ising([[0, 1]], 0.75, field=0.25)
    x = torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.int8)
    expected = torch.tensor([-0.75 - 0.5, 0.75, -0.75 + 0.5])
    assert torch.equal(energy(x), expected)
    with torch.no_grad():
        assert torch.equal(energy(x), expected)


def test_couplings_follow_the_order_in_which_edges_were_given() -> None:
    energy = Ising(EDGES, torch.tensor([1.0, 2.0, 4.0]), field=torch.tensor([0.5, 0.0, 0.0, 0.0]))
    matrix = torch.zeros(4, 4)
    matrix[0, 2], matrix[1, 2], matrix[1, 3] = 1.0, 2.0, 4.0
    assert torch.equal(energy.matrix(), matrix + matrix.T)
    assert torch.equal(Ising.from_matrix(matrix + matrix.T).matrix(), matrix + matrix.T)
    with torch.sparse.check_sparse_tensor_invariants():
        assert torch.equal(Ising.from_matrix((matrix + matrix.T).to_sparse_coo()).matrix(), matrix + matrix.T)


@pytest.mark.parametrize(
    "energy",
    [
        Ising(EDGES, torch.tensor([1.0, -2.0, 0.5]).double(), field=torch.linspace(-1, 1, 4).double()),
        Ising.lattice((3, 3), torch.tensor(0.4).double(), field=torch.tensor(0.1).double()),
        Ising.complete(5, torch.linspace(-1, 1, 10).double(), torch.linspace(-1, 1, 5).double()),
    ],
    ids=["graph", "lattice", "complete"],
)
def test_energy_differences_conditionals_and_gradients_agree(energy: Ising) -> None:
    n = energy.num_sites
    x = all_states(n).reshape(-1, *energy.event_shape)
    s = x.flatten(1).double()
    matrix, field = energy.matrix().detach(), energy.field.detach()
    expected = -0.5 * (s @ matrix * s).sum(1) - (s * field).sum(1)
    torch.testing.assert_close(energy(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(energy(x.double()), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(energy(x), expected, rtol=0, atol=n * n * 2.0**-28)
    value, differences = energy.energy_and_differences(x)
    torch.testing.assert_close(value, expected, rtol=0, atol=n * n * 2.0**-28)
    for i in range(n):
        flipped = x.flatten(1).clone()
        flipped[:, i] *= -1
        change = expected - expected[index_of(flipped)]
        torch.testing.assert_close(differences[:, i], change, rtol=0, atol=n * 2.0**-26)
        torch.testing.assert_close(energy.conditional_logits(x)[:, i], -change * s[:, i], rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *_: energy(x[:20]), tuple(energy.parameters()))
    assert torch.autograd.gradcheck(lambda *_: energy.conditional_logits(x[:20]), tuple(energy.parameters()))


def model_of(name: str) -> Ising:
    params = truth("transitions")["models"][name]["params"]
    return Ising.from_matrix(torch.tensor(params["J"]), torch.tensor(params["h"]))


KERNELS = [
    ("B1", "gibbs_raster", ebmcore.Gibbs("raster")),
    ("B1", "gibbs_random", ebmcore.Gibbs("random")),
    ("B1", "mh_random", ebmcore.RandomFlipMetropolis()),
    ("B1", "gwg_exact", ebmcore.GibbsWithGradients()),
    ("B1", "gwg_exact_barker", ebmcore.GibbsWithGradients(balancing="barker")),
    ("B3", "gibbs_raster", ebmcore.Gibbs("raster")),
    ("B3", "gibbs_random", ebmcore.Gibbs("random")),
    ("B3", "gibbs_block_even_odd", ebmcore.Gibbs("checkerboard")),
    ("B3", "mh_random", ebmcore.RandomFlipMetropolis()),
]


@pytest.mark.parametrize(("model", "kernel", "sampler"), KERNELS, ids=[f"{m}-{k}" for m, k, _ in KERNELS])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_transition_rows(model: str, kernel: str, sampler: ebmcore.Gibbs, num_steps: int, cpu_target: str) -> None:
    energy, matrix = model_of(model), torch.from_numpy(truth_arrays("transitions")[f"{model}__P__{kernel}"])
    rows = torch.linalg.matrix_power(matrix, num_steps)
    states = all_states(4)
    start = states.repeat_interleave(NUM_CHAINS, 0)
    end = index_of(sampler(energy, start, num_steps, seed=num_steps)).reshape(len(states), NUM_CHAINS)
    for k in range(len(states)):
        assert_counts(end[k].bincount(minlength=len(states)), rows[k].clamp(min=0), what=f"{kernel}, {num_steps} steps from state {k}")


@pytest.mark.parametrize("balancing", ["min", "max"])
def test_other_balancing_functions(balancing: str) -> None:
    energy = model_of("B1")
    states = all_states(4)
    values = energy(states.double()).detach()
    g = {"min": lambda d: d.exp().clamp(max=1), "max": lambda d: d.exp().clamp(min=1)}[balancing]
    weights = torch.zeros(16, 16, dtype=torch.float64)
    for k, i in itertools.product(range(16), range(4)):
        weights[k, k ^ 1 << i] = g(values[k] - values[k ^ 1 << i])
    proposal = weights / weights.sum(1, keepdim=True)
    ratio = ((values[:, None] - values[None]).exp() * proposal.T / proposal).nan_to_num(0).clamp(max=1)
    matrix = proposal * ratio
    matrix += torch.diag(1 - matrix.sum(1))
    x = states.repeat_interleave(NUM_CHAINS, 0)
    end = index_of(ebmcore.GibbsWithGradients(balancing=balancing)(energy, x, 1, seed=4)).reshape(16, -1)
    for k in range(16):
        assert_counts(end[k].bincount(minlength=16), matrix[k], what=f"{balancing} from {k}")


CASES_2D = [(8, "0.2", 40), (8, "0.3", 120), (8, "0.4", 800), (32, "0.2", 40), (32, "0.3", 140), (128, "0.2", 40), (128, "0.3", 160)]


@pytest.mark.parametrize(("side", "beta", "num_sweeps"), CASES_2D)
def test_square_lattice(side: int, beta: str, num_sweeps: int) -> None:
    """Energy, its variance, |m| and m² of independent chains after the sweeps that monotone coupling says suffice (ising_burnin.json)."""
    exact = next(case for case in truth("ising2d")["finite"] if case["Lx"] == side and case["beta"] == beta)
    num_chains = {8: 60_000, 32: 2_000, 128: 128}[side]
    energy = Ising.lattice((side, side), float(beta))
    x = torch.ones(num_chains, side, side, dtype=torch.int8)
    x = ebmcore.Gibbs("checkerboard")(energy, x, num_sweeps, seed=side)
    with torch.no_grad():
        per_coupling = energy(x).double() / float(beta)
    std = math.sqrt(exact["var_energy_total"])
    assert_mean(per_coupling, exact["energy_per_spin"] * side**2, std, what="energy")
    if side == 8:
        # Var(E): the fourth moment of the energy is estimated from the draws themselves, of which there are enough.
        assert_mean((per_coupling - exact["energy_per_spin"] * 64).square(), exact["var_energy_total"], what="variance of the energy")
        m = x.flatten(1).sum(1).double() / 64
        assert_mean(m.abs(), exact["abs_m"], what="|m|")
        assert_mean(m.square(), exact["m2"], what="m²")
        observed = torch.tensor([float((m * 64 == value).sum()) for value in exact["M_values"]])
        assert_counts(observed, torch.tensor(exact["P_of_M"], dtype=torch.float64), what="magnetisation")


@pytest.mark.parametrize(("side", "beta"), [(8, "0.4406868"), (8, "0.5"), (32, "0.4406868"), (32, "0.5"), (128, "0.4406868"), (128, "0.5")])
def test_square_lattice_at_and_below_the_transition(side: int, beta: str) -> None:
    """Where single sites are slow, clusters are not (tens of steps at 128²; Swendsen & Wang 1987)."""
    exact = next(case for case in truth("ising2d")["finite"] if case["Lx"] == side and case["beta"] == beta)
    num_chains = {8: 20_000, 32: 1_000, 128: 50}[side]
    energy = Ising.lattice((side, side), float(beta))
    x = ebmcore.SwendsenWang()(energy, torch.ones(num_chains, side, side, dtype=torch.int8), {8: 60, 32: 100, 128: 150}[side], seed=side)
    with torch.no_grad():
        per_coupling = energy(x).double() / float(beta)
    assert_mean(per_coupling, exact["energy_per_spin"] * side**2, math.sqrt(exact["var_energy_total"]), what="energy")
    if side == 8:
        assert_mean(x.flatten(1).sum(1).double().abs() / 64, exact["abs_m"], what="|m|")


@pytest.mark.parametrize("sampler", [ebmcore.Gibbs(), ebmcore.Gibbs("checkerboard"), ebmcore.GibbsWithGradients()], ids=["raster", "colours", "gwg"])
@pytest.mark.parametrize("case", [0, 1])
def test_random_graphs(sampler: ebmcore.Gibbs, case: int) -> None:
    """Means and pair correlations after chains that start far from equilibrium; the law is exact, so 16 sites are enough."""
    exact = truth("er_ising")["cases"][case]
    matrix = torch.tensor(exact["J"]) * exact["beta"]
    energy = Ising.from_matrix(matrix, torch.tensor(exact["h"]) * exact["beta"])
    num_chains, num_steps = 20_000, 600 if isinstance(sampler, ebmcore.GibbsWithGradients) else 200
    start = 2 * torch.bernoulli(torch.full((num_chains, 16), 0.5), generator=torch.Generator().manual_seed(1)).to(torch.int8) - 1
    x = sampler(energy, start, num_steps, seed=2).double()
    for i in range(16):
        mean = exact["mean"][i]
        assert_count(int((x[:, i] == 1).sum()), num_chains, (1 + mean) / 2, what=f"mean of {i}")
        for j in range(i):
            assert_count(int((x[:, i] == x[:, j]).sum()), num_chains, (1 + exact["pair"][i][j]) / 2, what=f"pair {i} {j}")
    with torch.no_grad():
        energies = energy(x.to(torch.int8)).double() / exact["beta"]
    assert_mean(energies, exact["mean_energy"], math.sqrt(exact["var_energy"]), what="energy")


def test_states_come_back_as_they_came() -> None:
    energy = Ising.lattice((4, 4), 0.4)
    for dtype in (torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64):
        x = torch.ones(3, 4, 4, dtype=dtype)
        y = ebmcore.Gibbs()(energy, x, 5, seed=0)
        assert y.dtype == dtype
        assert y.shape == x.shape
        assert torch.equal(x, torch.ones_like(x))
        assert torch.equal(y.to(torch.int8), ebmcore.Gibbs()(energy, x.to(torch.int8), 5, seed=0))


def test_steps_are_advance_and_info_counts() -> None:
    energy = Ising.lattice((4, 4), 0.4)
    for sampler in (ebmcore.Gibbs("checkerboard"), ebmcore.Gibbs("random"), ebmcore.GibbsWithGradients(), ebmcore.RandomFlipMetropolis()):
        state = sampler.init(energy, torch.ones(50, 4, 4, dtype=torch.int8), seed=Key(3))
        at_once, info = sampler.advance(energy, state, 30)
        flips, stepped = 0, state
        for _ in range(30):
            before = stepped
            stepped, one = sampler.step(energy, stepped)
            assert torch.equal(one.num_flips, (stepped.x != before.x).flatten(1).sum(1))
            flips = flips + one.num_flips
        assert torch.equal(stepped.x, at_once.x)
        assert torch.equal(stepped.energy, at_once.energy)
        assert torch.equal(info.num_flips, flips)
        assert int(info.num_flips.sum()) > 0
        assert torch.equal(info.energy_change, at_once.energy - state.energy)
        with torch.no_grad():
            assert torch.equal(at_once.energy, energy(at_once.x))


def test_parameters_are_read_at_each_call() -> None:
    energy = Ising.lattice((4, 4), 0.0, field=0.0)
    x = torch.ones(100, 4, 4, dtype=torch.int8)
    with torch.no_grad():
        energy.field.fill_(30.0)
        assert bool((ebmcore.Gibbs()(energy, x, 2, seed=0) == 1).all())
        energy.field.data.neg_()
        assert bool((ebmcore.Gibbs()(energy, x, 2, seed=0) == -1).all())
        energy.field.fill_(math.nan)
        with pytest.raises(ValueError, match="must be finite"):
            ebmcore.Gibbs()(energy, x, 2, seed=0)


def test_large_differences_take_the_general_path() -> None:
    """Beyond what float32 weights hold, log-domain proposals: the chain goes downhill and stays there."""
    energy = Ising(torch.zeros(0, 2, dtype=torch.int64), 0.0, field=5000.0, num_sites=6)
    x = ebmcore.GibbsWithGradients()(energy, -torch.ones(10, 6, dtype=torch.int8), 12, seed=0)
    down = (x == -1).sum(1)
    # From the bottom a flip uphill is proposed and refused with certainty.
    assert torch.equal(down, torch.zeros_like(down))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ising([[0, 0]], 1.0), "different sites"),
        (lambda: Ising([[0, 1], [1, 0]], 1.0), "once each"),
        (lambda: Ising([[0, 1]], math.nan), "coupling must be finite"),
        (lambda: Ising([[0, 1]], 1.0, field=torch.tensor([0.0, math.inf])), "field must be finite"),
        (lambda: Ising([[0, 1]], torch.ones(3)), r"coupling must be a number or have shape \(1,\), got \(3,\)"),
        (lambda: Ising([[0, 1]], 1.0, field=torch.ones(3)), r"field must be a number or have shape \(2,\)"),
        (lambda: Ising.lattice((2, 4), 1.0), "periodic"),
        (lambda: Ising.lattice((1,), 1.0, periodic=False), "open"),
        (lambda: Ising.from_matrix(torch.ones(2, 3)), "square"),
        (lambda: Ising.from_matrix(torch.eye(3)), "zero diagonal, got an entry at 0"),
        (lambda: Ising.from_matrix(torch.tensor([[0.0, 1.0], [2.0, 0.0]])), "symmetric"),
        (lambda: Ising.from_matrix(torch.tensor([[0.0, math.nan], [math.nan, 0.0]])), r"finite, got nan at \(0, 1\)"),
        (lambda: Ising([[0, 1]], 1.0, event_shape=(3,)), "event_shape must have 2 sites"),
    ],
)
def test_bad_models(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_bad_states() -> None:
    energy = Ising.lattice((5, 4), 0.1)
    x = torch.ones(2, 5, 4, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"even sides on a torus, got \(5, 4\)"):
        ebmcore.Gibbs("checkerboard")(energy, x, 1)
    with pytest.raises(ValueError, match=r"must have shape \(num_chains, 5, 4\)"):
        ebmcore.Gibbs()(energy, x[:, :4], 1)
    x[1, 2, 3] = 0
    with pytest.raises(ValueError, match=r"-1 or \+1 at every site, got 0 at index \(1, 2, 3\)"):
        ebmcore.Gibbs()(energy, x, 1)
    with pytest.raises(TypeError, match="signed"):
        ebmcore.Gibbs()(energy, x.to(torch.uint8), 1)
