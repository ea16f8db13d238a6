"""The discrete samplers beside their laws: evaluations counted, native chains, what may not be proposed, reports, and what they refuse."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch

from ebmcore import DiscreteLangevin, DivergenceError, Gibbs, GibbsWithGradients, Key, PathAuxiliary, RandomFlipMetropolis, SwendsenWang, ops
from ebmcore._native import core
from ebmcore.energies import Ising, OneHot
from ebmcore.types import Alphabet
from support.discrete import Exact, FreeSpins, all_states, exact_energy, torch_energy
from support.targets import Counting, Network, assert_same_bits

KEY = Key(5, step=6, first_chain=7)
DULA = DiscreteLangevin(0.5, metropolis=False)
BY_GRADIENT = [
    GibbsWithGradients(),
    GibbsWithGradients(num_flips=2),
    DiscreteLangevin(0.5),
    DiscreteLangevin(0.5, metropolis=False),
    PathAuxiliary(2),
]
BY_EVALUATION = [Gibbs(), Gibbs("random"), RandomFlipMetropolis()]
ALL = BY_GRADIENT + BY_EVALUATION
REJECTING = [s for s in ALL if s != DULA and not isinstance(s, Gibbs)]
samplers = pytest.mark.parametrize("sampler", ALL, ids=repr)


def bits(rows: int = 40, sites: int = 6, seed: int = 1) -> torch.Tensor:
    return ops.bernoulli((rows, sites), 0.5, key=Key(seed))


def field(x: torch.Tensor) -> torch.Tensor:
    """Independent sites with fields of both signs."""
    x = x.flatten(1)
    return (x * torch.linspace(-1.5, 2.0, x.shape[1], dtype=x.dtype)).sum(1)


class Backward(torch.autograd.Function):
    """The identity, counting its backward passes."""

    count = 0

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, grad):
        Backward.count += 1
        return grad


# Evaluations (defect 13 of the peers: E and its gradient worked out several times a proposal)


@pytest.mark.parametrize("sampler", BY_GRADIENT, ids=repr)
def test_one_forward_and_one_backward_a_proposal(sampler):
    energy = Counting(lambda x: field(Backward.apply(x)))
    Backward.count = 0
    state = sampler.init(energy, bits(), seed=1)
    assert (energy.count, Backward.count) == (1, 1)
    sampler.advance(energy, state, 7)
    assert (energy.count, Backward.count) == (8, 8)
    sampler(energy, bits(), 7, seed=1)
    assert (energy.count, Backward.count) == (16, 16)


def test_one_forward_and_one_backward_a_proposal_of_tokens():
    of_one_hot = Counting(lambda x: Backward.apply(x).square().flatten(1)[:, 1:].sum(1))
    energy = OneHot(of_one_hot, 3)
    for sampler in BY_GRADIENT:
        of_one_hot.count = Backward.count = 0
        sampler(energy, torch.zeros(5, 4, dtype=torch.int64), 7, seed=1)
        assert (of_one_hot.count, Backward.count) == (8, 8), sampler


def test_evaluations_without_gradients():
    def energy_of(x):
        assert not torch.is_grad_enabled()
        return field(x)

    for sampler, calls in ((RandomFlipMetropolis(), 1), (Gibbs("random"), 1), (Gibbs(), 6)):
        energy = Counting(energy_of)
        sampler(energy, bits(), 5, seed=1)
        assert energy.count == 1 + 5 * calls, sampler
    rows = []
    tokens = OneHot(lambda x: rows.append(len(x)) or x.flatten(1)[:, 0], 4)
    Gibbs()(tokens, torch.zeros(7, 3, dtype=torch.uint8), 1, seed=1)
    assert rows == [7, 21, 21, 21]  # the values that a site does not have, for all chains at once


# Native chains


def test_native_chains_are_used_where_there_are_some():
    x = ops.rademacher((6, 3, 4), key=Key(1)).to(torch.int8)
    asked = {
        Gibbs("random"): ("gibbs", {"scan": "random"}),
        GibbsWithGradients(2, "barker"): ("gwg", {"num_flips": 2, "balancing": "barker"}),
        RandomFlipMetropolis(): ("metropolis", {}),
        SwendsenWang(): ("swendsen_wang", {}),
    }
    for sampler, (kernel, options) in asked.items():
        energy = FreeSpins((kernel,))
        out = sampler(energy, x, 5, seed=KEY)
        assert energy.asked == [(kernel, 5, options)]
        assert energy.num_evaluations == 0, "a call needs no energies"
        state = sampler.init(energy, x, seed=KEY)
        state, info = sampler.advance(energy, state, 5)
        assert energy.num_evaluations == 2
        assert_same_bits(state.x, out)
        assert state.differences is None
        assert bool(info.is_accepted.all())
        assert bool((info.acceptance_prob == 1).all())
        assert bool((info.num_flips > 0).all())


def test_energies_may_turn_a_native_chain_down():
    """The general path takes over, with one evaluation a step and nothing twice but the start."""
    plain = exact_energy("B1", "spin")
    x = 2 * all_states("B1") - 1
    for sampler in (GibbsWithGradients(num_flips=2), RandomFlipMetropolis()):
        energy = exact_energy("B1", "spin")
        energy.native_chain = lambda *_, **__: None
        expected = sampler(plain, x, 6, seed=KEY)
        assert_same_bits(sampler(energy, x, 6, seed=KEY), expected)
        assert energy.num_evaluations == 7
        state = sampler.init(energy, x, seed=KEY)
        for _ in range(6):
            state, _ = sampler.step(energy, state)
        assert_same_bits(state.x, expected)


def test_what_needs_clusters_or_colours():
    with pytest.raises(TypeError, match="SwendsenWang: energy must be an Ising or Potts model that has clusters, got Exact"):
        SwendsenWang().init(exact_energy("B1", "spin"), 2 * all_states("B1") - 1)
    with pytest.raises(TypeError, match="SwendsenWang: energy must be"):
        SwendsenWang()(field, bits(), 1)
    for call in (lambda s: s.init(field, bits()), lambda s: s(field, bits(), 1)):
        with pytest.raises(ValueError, match="Gibbs: scan='checkerboard' needs an energy with a graph to colour, got function"):
            call(Gibbs("checkerboard"))


# The same bits however the work is cut


@samplers
def test_instruction_sets_and_threads(sampler, keep_threads):
    """Image events, 300 sites: rows longer than a chunk, ends of rows; tokens too."""
    tokens = exact_energy("C2")
    cases = [(field, bits(9, 300).reshape(9, 3, 10, 10)), (tokens, all_states("C2"))]
    before = core.cpu_target()
    results = []
    try:
        for target in core.cpu_targets():
            core.set_cpu_target(target)
            for num_threads in (1, 3):
                torch.set_num_threads(num_threads)
                results.append([sampler(energy, x, 3, seed=KEY) for energy, x in cases])
    finally:
        core.set_cpu_target(before)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert_same_bits(a, b)


@samplers
def test_a_batch_of_one(sampler):
    """Defect 18: what works for one chain works for many, and the other way round."""
    energy = exact_energy("C1")
    x = all_states("C1")
    whole = sampler(energy, x, 4, seed=KEY)
    for i in range(len(x)):
        assert_same_bits(sampler(energy, x[i : i + 1], 4, seed=KEY.shard(i)), whole[i : i + 1])


@samplers
def test_dtypes_and_layouts(sampler):
    expected = sampler(field, bits(), 5, seed=KEY)
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16):
        out = sampler(field, bits().to(dtype), 5, seed=KEY)
        assert out.dtype == dtype
        assert_same_bits(out.float(), expected)
    assert sampler(field, bits().double(), 5, seed=KEY).dtype == torch.float64
    strided = bits().t().contiguous().t()
    assert_same_bits(sampler(field, strided, 5, seed=KEY), expected)
    expanded = bits(1).expand(40, 6)
    assert_same_bits(sampler(field, expanded, 5, seed=KEY), sampler(field, expanded.clone(), 5, seed=KEY))
    image = bits().reshape(40, 2, 3)
    assert_same_bits(sampler(field, image, 5, seed=KEY).flatten(1), expected)


@samplers
def test_many_tokens(sampler):
    """300 categories: 16 times more changes than sites, in int64."""
    energy = OneHot(lambda x: -(x.flatten(2) * torch.linspace(0, 3, 300)).sum(2).sum(1), 300)
    x = torch.tensor([[0, 299, 7], [255, 256, 1]])
    out = sampler(energy, x, 20, seed=KEY)
    assert out.dtype == torch.int64
    assert bool(((out >= 0) & (out < 300)).all())
    assert not torch.equal(out, x)


# Extreme differences (defects 16 and 17: overflow of exp, logarithms of p + 1e-10)


@pytest.mark.parametrize("scale", [1e3, 1e4, 1e30])
@pytest.mark.parametrize("sampler", [*BY_GRADIENT[:4], PathAuxiliary(1), *BY_EVALUATION], ids=repr)
def test_steep_energies_are_descended(sampler, scale):
    def energy(x):
        return scale * (x.flatten(1) * torch.tensor([1.0, -1.0, 1.0, -1.0])).sum(1)

    x = bits(64, 4)
    state, info = sampler.advance(energy, sampler.init(energy, x, seed=KEY), 60)
    assert bool(torch.isfinite(state.energy).all())
    assert not bool(info.is_diverged.any())
    if sampler not in (PathAuxiliary(1), GibbsWithGradients(num_flips=2)):
        assert torch.equal(state.x, torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(64, 4))
    assert bool((state.energy <= energy(x)).all())


def test_detailed_balance_at_extreme_parameters():
    """Two sites, one nearly frozen at odds of e^40: every chain follows the exact law of the other, and none is stuck at NaN."""

    def energy(x):
        return 40.0 * x[:, 0] + 0.5 * x[:, 1]

    x = torch.zeros(20_000, 2)
    for sampler in (DiscreteLangevin(5.0), GibbsWithGradients(), RandomFlipMetropolis(), Gibbs()):
        out = sampler(energy, x, 30, seed=3)
        assert float(out[:, 0].sum()) == 0
        p = 1 / (1 + math.exp(0.5))
        assert abs(float(out[:, 1].mean()) - p) < 5.5 * math.sqrt(p * (1 - p) / len(x))


# Walls and NaN


class Wall:
    """Independent sites, but chains whose first two sites are both 1 have the energy `value`, and a gradient of `grad` there."""

    def __init__(self, value: float, grad: float | None = None) -> None:
        self.value, self.grad = value, grad

    def __call__(self, x):
        value = field(x)
        is_bad = (x[:, 0] == 1) & (x[:, 1] == 1)
        if self.grad is not None:
            if x.requires_grad:
                x.register_hook(lambda grad: torch.where(is_bad[:, None], self.grad, grad))
            return value
        return torch.where(is_bad, self.value, value)


@pytest.mark.parametrize("wall", [Wall(math.inf), Wall(math.nan), Wall(-math.inf)], ids=["inf", "nan", "-inf"])
@samplers
def test_what_is_not_finite_is_rejected_and_counted(sampler, wall):
    x = bits(200, 4)
    x[:, 0] = 0
    state, info = sampler.advance(wall, sampler.init(wall, x, seed=KEY), 40)
    assert not bool(((state.x[:, 0] == 1) & (state.x[:, 1] == 1)).any())
    assert bool(state.energy.isfinite().all())
    assert bool(info.is_diverged.any())
    assert bool((info.num_flips > 0).all())
    if sampler in REJECTING:
        last = sampler.step(wall, state)[1]
        assert not bool((last.is_diverged & last.is_accepted).any())
        assert bool((last.acceptance_prob[last.is_diverged] == 0).all())


@pytest.mark.parametrize("grad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampler", BY_GRADIENT, ids=repr)
def test_gradients_that_are_not_finite(sampler, grad):
    if sampler == DULA and grad < 0:
        pytest.skip("differences of -inf are walls: the others reject a way to them that has no way back")
    wall = Wall(0.0, grad)
    x = bits(200, 4)
    x[:, 0] = 0
    state, info = sampler.advance(wall, sampler.init(wall, x, seed=KEY), 40)
    assert not bool(((state.x[:, 0] == 1) & (state.x[:, 1] == 1)).any())
    assert bool(info.is_diverged.any())
    assert bool((state.differences < math.inf).all())


@samplers
def test_starting_points_that_are_not_finite(sampler):
    x = bits(5, 4)
    x[:, 0] = 0
    x[3, :2] = 1
    for wall in (Wall(math.inf), Wall(math.nan)):
        with pytest.raises(
            DivergenceError, match=rf"{type(sampler).__name__}.init: the energy of the starting point is not finite in 1 of 5"
        ) as error:
            sampler.init(wall, x)
        assert error.value.chains == [3]
        with pytest.raises(DivergenceError):
            sampler(wall, x, 3)
    if sampler in BY_GRADIENT:
        with pytest.raises(DivergenceError) as error:
            sampler.init(Wall(0.0, math.nan), x)
        assert error.value.chains == [3]


# Reports (defect 12: diagnostics that never move)


@samplers
def test_info(sampler):
    x = bits(300)
    start = sampler.init(field, x, seed=KEY)
    state, info = sampler.step(field, start)
    changed = (state.x != x).sum(1)
    assert torch.equal(info.num_flips, changed)
    torch.testing.assert_close(info.energy_change, field(state.x) - field(x))
    torch.testing.assert_close(state.energy, field(state.x))
    assert info.num_flips.dtype == torch.int64
    assert {info.is_diverged.dtype, info.is_accepted.dtype} == {torch.bool}
    assert float(info.num_flips.double().mean()) > 0
    if sampler in REJECTING:
        assert bool((changed[~info.is_accepted] == 0).all())
        assert 0 < float(info.acceptance_prob.mean()) < 1
        rate = float(info.is_accepted.double().mean())
        assert abs(rate - float(info.acceptance_prob.mean())) < 5.5 * 0.5 / math.sqrt(len(x))
    else:
        assert bool(info.is_accepted.all())
        assert bool((info.acceptance_prob == 1).all())
    many, total = sampler.advance(field, start, 10)
    flips, probs, now = 0, 0.0, start
    for _ in range(10):
        now, one = sampler.step(field, now)
        flips, probs = flips + one.num_flips, probs + one.acceptance_prob.double()
    assert torch.equal(total.num_flips, flips)
    torch.testing.assert_close(total.acceptance_prob.double(), probs / 10, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(total.energy_change, many.energy - start.energy)


def test_stuck_chains_are_reported_once():
    def energy(x):
        return torch.where(x.sum(1) == 0, 0.0, 1e6) + 0.0 * x.sum(1)

    x = torch.zeros(5, 8)
    for sampler in (RandomFlipMetropolis(), GibbsWithGradients()):
        with pytest.warns(RuntimeWarning, match="no chain moved in 1000 steps, mean acceptance probability 0") as caught:
            sampler(energy, x, 1000, seed=1)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sampler(energy, x, 999, seed=1)
            sampler(field, bits(), 1000, seed=1)
            Gibbs("random")(energy, x, 1000, seed=1)


# What they leave alone


@samplers
def test_the_energy_and_x_are_left_as_they_were(sampler):
    network = Network(6)
    before = copy.deepcopy(network.state_dict())
    x = bits().requires_grad_()
    network.eval()
    with torch.inference_mode():
        sampler(network, bits(), 3, seed=1)
    with torch.no_grad():
        sampler(network, bits(), 3, seed=1)
    out = sampler(network, x, 3, seed=1)
    assert not out.requires_grad
    assert x.grad is None
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    with torch.inference_mode():
        inside = bits()
    assert_same_bits(sampler(network, inside, 3, seed=1), out)
    assert pickle.loads(pickle.dumps(sampler)) == sampler


@samplers
def test_an_energy_that_raises(sampler):
    """The exception passes through, and the state can be gone on from."""
    calls = []

    def energy(x):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of order")
        return field(x)

    state = sampler.init(energy, bits(), seed=KEY)
    before = copy.deepcopy(state)
    with pytest.raises(RuntimeError, match="out of order"):
        sampler.advance(energy, state, 10)
    assert_same_bits(state.x, before.x)
    assert_same_bits(state.energy, before.energy)
    assert_same_bits(sampler.advance(energy, state, 4)[0].x, sampler(field, bits(), 4, seed=KEY))


# What they refuse


@samplers
def test_states_outside_the_alphabet(sampler):
    x = bits(4, 3)
    x[2, 1] = 2
    with pytest.raises(ValueError, match=r"x must be 0 or 1 at every site, got 2.0 at index \(2, 1\)"):
        sampler(field, x, 1)
    x[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"got nan at index \(2, 1\)"):
        sampler.init(field, x)
    tokens = torch.zeros(4, 3, dtype=torch.int64)
    tokens[1, 2] = 3
    energy = OneHot(lambda o: o.flatten(1)[:, 0], 3)
    with pytest.raises(ValueError, match=r"x must be a token in \[0, 3\) at every site, got 3 at index \(1, 2\)"):
        sampler(energy, tokens, 1)
    with pytest.raises(ValueError, match="got -1"):
        sampler(energy, tokens - 1, 1)
    with pytest.raises(TypeError, match="x must be integer tokens"):
        sampler(energy, tokens.float(), 1)
    spins = Ising.lattice((2, 2), 0.1, periodic=False)
    with pytest.raises(ValueError, match=r"x must be -1 or \+1 at every site, got 0"):
        sampler(spins, torch.zeros(4, 2, 2, dtype=torch.int8), 1)
    with pytest.raises(TypeError, match="signed dtype"):
        sampler(spins, torch.ones(4, 2, 2, dtype=torch.bool), 1)


@samplers
def test_shapes_and_types(sampler):
    name = type(sampler).__name__
    for bad, error in (
        (np.zeros((3, 2)), TypeError),
        ([[0, 1]], TypeError),
        (torch.zeros(3, 2, dtype=torch.complex64), TypeError),
        (torch.zeros(3, 2).to_sparse(), TypeError),
        (torch.tensor(0.0), ValueError),
        (torch.zeros(3), ValueError),
        (torch.zeros(3, 0), ValueError),
    ):
        with pytest.raises(error, match=f"{name}: x must"):
            sampler(field, bad, 1)
        with pytest.raises(error, match=f"{name}.init: x must"):
            sampler.init(field, bad)
    for bad in (-1, 2.0, True, "3", 2**48):
        with pytest.raises((TypeError, ValueError), match=f"{name}: num_steps"):
            sampler(field, bits(), bad)
        with pytest.raises((TypeError, ValueError), match=f"{name}.advance: num_steps"):
            sampler.advance(field, sampler.init(field, bits(), seed=1), bad)
    out = sampler(field, bits(), 0, seed=1)
    assert_same_bits(out, bits())


@samplers
def test_energies_that_are_none(sampler):
    for energy, error, match in (
        (lambda x: x, ValueError, r"energy: must return shape \(40,\)"),
        (lambda x: x.sum(1, keepdim=True), ValueError, r"energy: must return shape"),
        (lambda x: x.sum(), ValueError, r"energy: must return shape"),
        (lambda x: x.sum(1).long(), TypeError, "energy: must return a floating-point tensor"),
        (lambda x: x.mul_(1).sum(1) if not x.requires_grad else x.sum(1, keepdim=True), ValueError, "energy: must"),
    ):
        with pytest.raises(error, match=match):
            sampler(energy, bits(), 1)
    if sampler in BY_GRADIENT:
        with pytest.raises(ValueError, match="energy: must depend on x"):
            sampler(lambda x: x.detach().sum(1), bits(), 1)

        class Tokens:
            alphabet = Alphabet("token", 3)

            def __call__(self, x):
                return x.sum(1).float()

        with pytest.raises(TypeError, match="wrap it in"):
            sampler(Tokens(), torch.zeros(4, 3, dtype=torch.int64), 1)


def test_arguments():
    for call, error, match in (
        (lambda: Gibbs("chequerboard"), ValueError, "Gibbs: scan must be one of raster, random, checkerboard, got 'chequerboard'"),
        (lambda: GibbsWithGradients(0), ValueError, "GibbsWithGradients: num_flips must be an int >= 1, got 0"),
        (lambda: GibbsWithGradients(1.0), TypeError, "GibbsWithGradients: num_flips"),
        (lambda: GibbsWithGradients(True), TypeError, "GibbsWithGradients: num_flips"),
        (lambda: GibbsWithGradients(balancing="square"), ValueError, "GibbsWithGradients: balancing must be one of sqrt, barker, min, max"),
        (lambda: DiscreteLangevin(0.0), ValueError, "DiscreteLangevin: step_size must be a finite number > 0, got 0.0"),
        (lambda: DiscreteLangevin(-1.0), ValueError, "DiscreteLangevin: step_size"),
        (lambda: DiscreteLangevin(math.nan), ValueError, "DiscreteLangevin: step_size"),
        (lambda: DiscreteLangevin(math.inf), ValueError, "DiscreteLangevin: step_size"),
        (lambda: DiscreteLangevin("1"), TypeError, "DiscreteLangevin: step_size"),
        (lambda: DiscreteLangevin(1.0, metropolis=1), TypeError, "DiscreteLangevin: metropolis must be a bool"),
        (lambda: PathAuxiliary(0), ValueError, "PathAuxiliary: path_length must be an int >= 1, got 0"),
        (lambda: PathAuxiliary(2, balancing=None), ValueError, "PathAuxiliary: balancing"),
        (lambda: PathAuxiliary(7)(field, bits(), 1), ValueError, "PathAuxiliary: path_length must be at most the 6 sites of x, got 7"),
        (lambda: PathAuxiliary(7).init(field, bits()), ValueError, "PathAuxiliary: path_length must be at most the 6 sites of x, got 7"),
    ):
        with pytest.raises(error, match=match):
            call()


def test_exact_differences_are_exact():
    """What the oracle of these tests says, by hand."""
    energy = exact_energy("B2", dtype=torch.float64)
    states = all_states("B2")
    value, d = energy.energy_and_differences(states)
    plain = torch_energy("B2", torch.float64)
    flipped = states.clone()
    flipped[:, 2] = 1 - flipped[:, 2]
    torch.testing.assert_close(d[:, 2], plain(states) - plain(flipped))
    assert isinstance(energy, Exact)
    torch.testing.assert_close(value, plain(states))
