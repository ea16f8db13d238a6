"""Parallel tempering: exact transition matrices and mode weights, the swap written out, evaluations, ladders, and what it refuses."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from ebmcore import (
    HMC,
    MALA,
    DiscreteLangevin,
    DivergenceError,
    Gibbs,
    GibbsWithGradients,
    Key,
    KineticLangevin,
    Langevin,
    ParallelTempering,
    PathAuxiliary,
    RandomFlipMetropolis,
    RandomWalkMetropolis,
    SwendsenWang,
    ops,
    sample,
    warm_up,
)
from ebmcore.continuous_sampler import ContinuousState, MetropolisInfo
from ebmcore.energies import Gaussian, GaussianMixture, Ising, Potts, product, temper
from ebmcore.evaluation import exact_distribution
from ebmcore.samplers.parallel_tempering import _equalised
from ebmcore.testing import count_evaluations
from ebmcore.training import load_checkpoint, save_checkpoint
from ebmcore.types import Alphabet
from support.discrete import all_states, state_numbers, torch_energy
from support.statistics import assert_count, assert_counts, assert_gaussian, assert_mean
from support.targets import Spoiled, assert_same_bits, quartic
from support.truths import truth, truth_arrays

KEY = Key(3, 4, 5)


class Evaluated:
    """Spins by evaluation alone: an energy without chains of its own."""

    alphabet = Alphabet("spin")

    def __init__(self, energy: Ising) -> None:
        self.energy = energy

    def __call__(self, x: Tensor) -> Tensor:
        return self.energy(x)


def ising(case: dict[str, list[float]], dtype: torch.dtype = torch.float64) -> Ising:
    return Ising.from_matrix(torch.tensor(case["J"], dtype=dtype), torch.tensor(case["h"], dtype=dtype))


def all_spins(num_sites: int) -> Tensor:
    """State k has 2 (k // 2^i % 2) - 1 at site i."""
    return (2 * (torch.arange(2**num_sites)[:, None] // 2 ** torch.arange(num_sites) % 2) - 1).to(torch.int8)


def numbers(x: Tensor) -> Tensor:
    return ((x.long() + 1) // 2 * 2 ** torch.arange(x.shape[-1])).sum(-1)


# Exact laws


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("is_native", [True, False])
def test_transitions_of_two_temperatures(is_native, num_steps):
    """Sweeps of both replicas and a swap, against the enumerated matrix of the joint states."""
    case = truth("transitions")["extras"]["replica_exchange_2level"]
    energy = ising(case) if is_native else Evaluated(ising(case))
    sampler = ParallelTempering(Gibbs(), [1 / beta for beta in case["betas"]])
    n = 4096
    spins = all_spins(3)
    joint = torch.arange(64).repeat_interleave(n)
    x = torch.stack((spins[joint % 8], spins[joint // 8]), 1)
    state, info = sampler.advance(energy, sampler.init_replicas(energy, x, seed=Key(7)), num_steps)
    end = numbers(state.replicas.x.reshape(-1, 2, 3))
    assert_same_bits(state.x, state.replicas.x[::2])
    matrix = torch.linalg.matrix_power(torch.tensor(truth_arrays("transitions")["PT__P"]), num_steps)
    for k in range(64):
        ends = (end[:, 0] + 8 * end[:, 1])[k * n : (k + 1) * n]
        assert_counts(torch.bincount(ends, minlength=64), matrix[k], what=f"replica exchange from joint state {k}")
    assert bool((info.num_swaps <= num_steps).all())


def gibbs_matrix(f: np.ndarray) -> np.ndarray:
    """A raster sweep over two spins with log-probabilities f[number]."""
    p = np.eye(4)
    for site in (0, 1):
        one = np.zeros((4, 4))
        for k in range(4):
            up, down = k | (1 << site), k & ~(1 << site)
            one[k, up] = 1 / (1 + np.exp(f[down] - f[up]))
            one[k, down] = 1 - one[k, up]
        p = p @ one
    return p


def test_even_and_odd_pairs_in_turn():
    """Three temperatures: pair (0, 1) in even steps, pair (1, 2) in odd ones; `steps_per_swap` sweeps before each. Written out in NumPy."""
    energy, temperatures = Ising([(0, 1)], torch.tensor([0.9], dtype=torch.float64), torch.tensor([0.5, -0.2], dtype=torch.float64)), (1.0, 2.0, 5.0)
    spins, n = all_spins(2), 4096
    f = -energy(spins).detach().numpy()
    states = list(itertools.product(range(4), repeat=3))  # (coldest, middle, hottest)
    moves = np.zeros((64, 64))
    sweeps = [np.linalg.matrix_power(gibbs_matrix(f / t), 2) for t in temperatures]
    for (i, a), (j, b) in itertools.product(enumerate(states), repeat=2):
        moves[i, j] = math.prod(sweeps[r][a[r], b[r]] for r in range(3))
    swaps = []
    for pair in (0, 1):
        swap = np.zeros((64, 64))
        for i, a in enumerate(states):
            b = list(a)
            b[pair], b[pair + 1] = a[pair + 1], a[pair]
            accept = min(1.0, math.exp((1 / temperatures[pair] - 1 / temperatures[pair + 1]) * (f[a[pair + 1]] - f[a[pair]])))
            swap[i, states.index(tuple(b))] += accept
            swap[i, i] += 1 - accept
        swaps.append(swap)
    x = spins[torch.tensor(states)].repeat_interleave(n, 0)
    sampler = ParallelTempering(Gibbs(), temperatures, steps_per_swap=2)
    for first in (0, 1):
        matrix = torch.tensor(moves @ swaps[first] @ moves @ swaps[1 - first])
        state, _ = sampler.advance(energy, sampler.init_replicas(energy, x, seed=Key(8, first)), 2)
        end = numbers(state.replicas.x.reshape(-1, 3, 2)) @ torch.tensor([16, 4, 1])
        for k in range(64):
            counts = torch.bincount(end[k * n : (k + 1) * n], minlength=64)
            assert_counts(counts, matrix[k], what=f"steps {first}, {first + 1} from {states[k]}")


def modes(x: Tensor, num_first: int) -> Tensor:
    """Counts of (sign of the first cluster, sign of the second), - before 0 before +."""
    x = x.double()
    first, second = x[:, :num_first].sum(1).sign() + 1, x[:, num_first:].sum(1).sign() + 1
    return torch.bincount((3 * first + second).long(), minlength=9)


def mode_weights(level: dict[str, dict[str, float]]) -> Tensor:
    names = [f"A{a}B{b}" for a, b in itertools.product("-0+", repeat=2)]
    return torch.tensor([level["modes"].get(name, 0.0) for name in names], dtype=torch.float64)


@pytest.mark.parametrize("case", [0, 1])
def test_bimodal_models_keep_their_law(case):
    """From exact draws at every temperature: all joint mode weights stay, and pairs are exchanged as often as they should be.

    With 20,000 chains a swap probability that is off by 0.03 shows.
    """
    model = truth("bimodal")["cases"][case]
    energy, betas = ising(model), model["params"]["betas"]
    spins, n = all_spins(16), 20_000
    with torch.no_grad():
        values = energy(spins)
    generator = torch.Generator().manual_seed(case)
    x = torch.stack([spins[torch.multinomial((-beta * values).softmax(0), n, replacement=True, generator=generator)] for beta in betas], 1)
    sampler = ParallelTempering(Gibbs(), [1 / beta for beta in betas])
    state = sampler.init_replicas(energy, x, seed=Key(9))
    for step in range(3):
        state, info = sampler.step(energy, state)
        for pair, probability in enumerate(model["swap_acceptance_between_neighbours"]):
            assert_mean(info.swap_acceptance_prob[:, pair], probability, what=f"step {step}: swap probability of pair {pair}")
            if pair % 2 == step % 2:
                assert_count(int(info.num_swaps[:, pair].sum()), n, probability, what=f"step {step}: swaps of pair {pair}")
            else:
                assert not bool(info.num_swaps[:, pair].any())
    replicas = state.replicas.x.reshape(n, len(betas), 16)
    for r, level in enumerate(model["ladder"]):
        assert_counts(modes(replicas[:, r], model["params"]["nA"]), mode_weights(level), what=f"modes at beta {level['beta']}")


@pytest.mark.parametrize("case", [0, 1])
def test_bimodal_models_are_crossed(case):
    """All chains start in one mode, which single-site Gibbs needs millions of sweeps to leave; after 300 steps each mode has its weight."""
    model = truth("bimodal")["cases"][case]
    energy, num_first = ising(model, torch.float32), model["params"]["nA"]
    x = torch.full((4000, 16), -1, dtype=torch.int8)
    x[:, num_first:] = -1 if case == 0 else 1  # the clusters of the second case repel each other
    sampler = ParallelTempering(Gibbs(), [1 / beta for beta in model["params"]["betas"]])
    state, info = sampler.advance(energy, sampler.init(energy, x, seed=Key(10)), 300)
    assert_counts(modes(state.x, num_first), mode_weights(model["ladder"][0]), what="modes")
    assert float(info.num_round_trips.double().mean()) > 10
    stuck = modes(Gibbs()(energy.scaled(model["params"]["betas"][0]), x, 300, seed=10), num_first)
    assert int(stuck.max()) == int(stuck[0 if case == 0 else 2]) > 3900


# The swap, and what is carried


def swapped_by_hand(x: Tensor, value: Tensor, temperatures: tuple[float, ...], u: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """One attempt at x (num_chains, num_temperatures, *event), chain by chain; and the hottest flags' permutation."""
    x, order = x.clone(), torch.arange(len(temperatures)).repeat(len(x), 1)
    for i, r in itertools.product(range(len(x)), range(step % 2, len(temperatures) - 1, 2)):
        log_ratio = (1 / temperatures[r] - 1 / temperatures[r + 1]) * float(value[i, r] - value[i, r + 1])
        if math.log(float(u[i, r])) < log_ratio:
            x[i, [r, r + 1]] = x[i, [r + 1, r]]
            order[i, [r, r + 1]] = order[i, [r + 1, r]]
    return x, order


def test_steps_by_hand():
    """Rows are base chains of E / T of their own, with the draws of row i · num_temperatures + r; swaps take everything along."""
    temperatures, base = (1.0, 1.7, 2.9), Langevin(0.02)
    betas = torch.tensor([1 / t for t in temperatures], dtype=torch.float64).repeat(20)
    x = ops.normal((20, 3, 4), key=Key(1), dtype=torch.float64)
    sampler = ParallelTempering(base, temperatures, steps_per_swap=3)
    state = sampler.init_replicas(quartic, x, seed=KEY)
    flags = torch.tensor([False, False, True]).repeat(20, 1)
    trips, num_swaps = torch.zeros(20, dtype=torch.int64), 0
    for step in range(4, 10):
        row_key = Key(3, 3 * step, 15)
        moved = base(lambda y: quartic(y) * betas, x.flatten(0, 1), 3, seed=row_key).reshape(x.shape)
        u = ops.uniform((20, 2), key=Key(3, step, 5), stream=ops.Stream.SWAP, dtype=torch.float64)
        x, order = swapped_by_hand(moved, quartic(moved.flatten(0, 1)).reshape(20, 3), temperatures, u, step)
        flags = flags.gather(1, order)
        new_trips = flags[:, 0].long()
        flags[:, 0], flags[:, 2] = False, True
        state, info = sampler.step(quartic, state)
        torch.testing.assert_close(state.replicas.x.reshape(x.shape), x, rtol=1e-12, atol=1e-12)
        assert torch.equal(state.has_been_hottest, flags)
        assert torch.equal(info.num_round_trips, new_trips)
        assert torch.equal(info.num_swaps, (order[:, :-1] > order[:, 1:]).long())
        trips, num_swaps = trips + new_trips, num_swaps + int(info.num_swaps.sum())
    assert num_swaps > 20
    again, total = sampler.advance(quartic, sampler.init_replicas(quartic, ops.normal((20, 3, 4), key=Key(1), dtype=torch.float64), seed=KEY), 6)
    assert torch.equal(total.num_round_trips, trips)
    assert int(total.num_swaps.sum()) == num_swaps
    assert_same_bits(again.x, state.x)


def test_carried_values_are_those_of_the_states():
    """After many swaps the energies, gradients and differences that are carried are still those at the states, over T."""
    temperatures = (0.5, 1.0, 1.3)
    betas = torch.tensor([2.0, 1.0, 1 / 1.3], dtype=torch.float64).repeat(30)
    sampler = ParallelTempering(Langevin(0.01), temperatures)
    x = ops.normal((30, 4), key=Key(2), dtype=torch.float64)
    state, info = sampler.advance(quartic, sampler.init(quartic, x, seed=KEY), 50)
    assert int(info.num_swaps.sum()) > 100
    y = state.replicas.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(quartic(y).sum(), y)
    torch.testing.assert_close(state.replicas.energy, quartic(state.replicas.x) * betas)
    torch.testing.assert_close(state.replicas.grad, grad * betas[:, None])
    torch.testing.assert_close(state.energy, quartic(state.x))

    def pairs(x: Tensor) -> Tensor:
        return 1.5 * (x[:, 1:] * x[:, :-1]).sum(1) - x.sum(1)

    bits = ops.bernoulli((30, 5), 0.5, key=Key(3), dtype=torch.float64)
    sampler = ParallelTempering(GibbsWithGradients(), temperatures)
    state, info = sampler.advance(pairs, sampler.init(pairs, bits, seed=KEY), 50)
    y = state.replicas.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(pairs(y).sum(), y)
    torch.testing.assert_close(state.replicas.differences, (2 * y.detach() - 1) * grad * betas[:, None])
    torch.testing.assert_close(state.replicas.energy, pairs(state.replicas.x) * betas)
    assert 0.05 < float(info.acceptance_prob.mean()) < 1
    assert info.acceptance_prob.shape == info.is_accepted.shape == (30, 3)


@pytest.mark.parametrize("base", [Gibbs(), Gibbs("random"), GibbsWithGradients(), RandomFlipMetropolis(), DiscreteLangevin(0.5)], ids=repr)
def test_discrete_bases_keep_the_law(base):
    """Replicas that start at exact draws end in exact draws, at every temperature, natively and by evaluation."""
    energy, temperatures = Ising.lattice((2, 3), 0.4, 0.2, periodic=False).double(), (1.0, 2.0, 4.0)
    states = all_spins(6).reshape(-1, 2, 3)
    laws = [(-energy(states).detach() / t).softmax(0) for t in temperatures]
    torch.testing.assert_close(laws[0], exact_distribution(energy, (2, 3)))
    generator = torch.Generator().manual_seed(1)
    x = torch.stack([states[torch.multinomial(law, 20_000, replacement=True, generator=generator)] for law in laws], 1)
    energies = [energy] if base in (GibbsWithGradients(), DiscreteLangevin(0.5)) else [energy, Evaluated(energy)]
    for each in energies:
        sampler = ParallelTempering(base, temperatures)
        state, _ = sampler.advance(each, sampler.init_replicas(each, x, seed=Key(11)), 5)
        ends = numbers(state.replicas.x.reshape(-1, 3, 6))
        for r, law in enumerate(laws):
            assert_counts(torch.bincount(ends[:, r], minlength=64), law, what=f"{base} of {type(each).__name__} at {temperatures[r]}")


@pytest.mark.parametrize("base", [Gibbs(), Gibbs("random"), GibbsWithGradients(), PathAuxiliary(2)], ids=repr)
def test_tokens_by_evaluation_keep_the_law(base):
    """Gibbs brings two candidates for each replica's row to the energy, which have its temperature both."""
    energy, temperatures, states = torch_energy("C1"), (1.0, 3.0), all_states("C1").to(torch.uint8)
    laws = [(-energy(states).double() / t).softmax(0) for t in temperatures]
    generator = torch.Generator().manual_seed(1)
    x = torch.stack([states[torch.multinomial(law, 20_000, replacement=True, generator=generator)] for law in laws], 1)
    sampler = ParallelTempering(base, temperatures)
    state, _ = sampler.advance(energy, sampler.init_replicas(energy, x, seed=Key(11)), 5)
    ends = state_numbers(state.replicas.x.long(), 3).reshape(-1, 2)
    for r, law in enumerate(laws):
        assert_counts(torch.bincount(ends[:, r], minlength=27), law, what=f"{base} at {temperatures[r]}")


@pytest.mark.parametrize("scale_steps", [False, True])
@pytest.mark.parametrize("base", [MALA(0.5), HMC(0.5, 3, jitter=0.2), RandomWalkMetropolis(1.0)], ids=repr)
def test_continuous_bases_keep_the_law(base, scale_steps):
    """Replicas of a Gaussian that start at exact draws, of covariance C T, end there; with the swaps that E ~ T χ²/2 makes."""
    covariance, mean = torch.tensor([[1.0, 0.4], [0.4, 0.8]], dtype=torch.float64), torch.tensor([0.3, -1.0], dtype=torch.float64)
    energy, temperatures, n = Gaussian(mean, covariance=covariance), (1.0, 2.5, 6.0), 20_000
    noise = energy.sample(3 * n, key=Key(4), dtype=torch.float64).reshape(n, 3, 2) - mean
    x = mean + noise * torch.tensor(temperatures, dtype=torch.float64).sqrt()[:, None]
    sampler = ParallelTempering(base, temperatures, scale_steps=scale_steps)
    state, info = sampler.advance(energy, sampler.init_replicas(energy, x, seed=Key(12)), 4)
    for r, t in enumerate(temperatures):
        assert_gaussian(sampler.x_of(state)[:, r], mean, covariance * t, what=f"{base} at {t}")
    assert 0.2 < float(info.swap_acceptance_prob.mean()) < 0.9
    means = info.acceptance_prob.mean(0)
    assert bool((means.diff() > 0.01).all()) is not scale_steps, "in units of √T a Gaussian's proposals are accepted alike"
    # In two dimensions E is exponential with mean T, and a swap is accepted with probability 2 T0 / (T0 + T1).
    one = sampler.step(energy, sampler.init_replicas(energy, x, seed=Key(13)))[1]
    for pair in (0, 1):
        low, high = temperatures[pair : pair + 2]
        assert_mean(one.swap_acceptance_prob[:, pair], 2 * low / (low + high), what=f"swap probability of pair {pair}")


CONTINUOUS = [Langevin(0.02), MALA(0.3), HMC(0.3, 3, jitter=0.2), KineticLangevin(0.1, 1.0), RandomWalkMetropolis(0.7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("base", CONTINUOUS, ids=repr)
def test_native_replicas_are_those_of_torch(base, dtype, cpu_target, monkeypatch):
    """One native call for all replicas, with a factor for each: nothing else is evaluated, and the numbers are those of autograd."""
    mixture = GaussianMixture([1.0, 2.0], [[-1.5, 0.0, 0.5], [1.5, 1.0, 0.0]], std=0.7)
    energy = product(mixture, temper(Gaussian([0.0, 0.0, 0.0], precision=[1.0, 0.5, 2.0]), 2.0))
    sampler = ParallelTempering(base, (0.8, 1.7, 3.0), steps_per_swap=2)
    start = sampler.init(energy, ops.normal((23, 3), key=Key(1), dtype=torch.float64).to(dtype), seed=KEY)
    plain, plain_info = sampler.advance(lambda x: energy(x), start, 4)

    def refuse(x):
        raise AssertionError("evaluated beside the native chains")

    monkeypatch.setattr(mixture, "_energy", refuse)
    state, info = sampler.advance(energy, start, 4)
    assert int(info.num_swaps.sum()) > 10
    is_same = (info.num_swaps == plain_info.num_swaps).all(1) & ((info.acceptance_prob - plain_info.acceptance_prob).abs() < 1e-3).all(1)
    assert float(is_same.float().mean()) > (0.999 if dtype == torch.float64 else 0.8)  # in float32 a decision at the edge may go the other way
    rows = is_same.repeat_interleave(3)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-3}
    for name, value in state.replicas._asdict().items():
        if isinstance(value, Tensor):
            other = getattr(plain.replicas, name)
            assert value.dtype == other.dtype
            torch.testing.assert_close(value[rows], other[rows], **tolerance, msg=name)
    for a, b in zip(info, plain_info, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a[is_same].double(), b[is_same].double(), **tolerance)
    first, _ = sampler.advance(energy, start, 1)
    steps = sampler.advance(energy, first, 2)[0]
    assert_same_bits(sampler.step(energy, steps)[0].replicas.x, state.replicas.x)


def test_native_replicas_do_not_depend_on_the_batch():
    energy, sampler = GaussianMixture([1.0, 1.0], [[-1.5, 0.0], [1.5, 1.0]], std=0.5), ParallelTempering(HMC(0.2, 3), (1.0, 2.0, 4.0))
    x = ops.normal((40, 2), key=Key(1))
    whole = sampler(energy, x, 12, seed=KEY)
    for begin, end in ((0, 1), (1, 23), (23, 40)):
        assert_same_bits(sampler(energy, x[begin:end], 12, seed=KEY.shard(begin)), whole[begin:end])


def test_native_replicas_where_that_cannot_be():
    """Scaled steps, single steps that would evaluate a costly energy twice, and energies of which a part is torch's own."""
    energy, x = Gaussian([0.0, 0.0], precision=[1.0, 4.0]), ops.normal((9, 2), key=Key(1), dtype=torch.float64)
    scaled = ParallelTempering(MALA(0.3), (1.0, 2.0), scale_steps=True)
    assert_same_bits(scaled(energy, x, 6, seed=KEY), scaled(lambda y: energy(y), x, 6, seed=KEY))
    many, wide = GaussianMixture([1.0] * 500, ops.normal((500, 600), key=Key(3)), std=1.0), ops.normal((4, 600), key=Key(2))
    for base, steps_per_swap, is_native in ((MALA(1e-3), 1, False), (MALA(1e-3), 2, True), (HMC(1e-2, 2), 1, True)):
        counted, sampler = count_evaluations(many), ParallelTempering(base, (1.0, 2.0), steps_per_swap=steps_per_swap)
        counted.native_parts = many.native_parts
        counted_start = sampler.init(counted, wide, seed=KEY)
        sampler.advance(counted, counted_start, 3)
        assert counted.num_evaluations == (1 if is_native else 4)
    mixed, sampler = product(energy, quartic), ParallelTempering(MALA(0.3), (1.0, 2.0))
    assert_same_bits(sampler(mixed, x, 6, seed=KEY), sampler(lambda y: mixed(y), x, 6, seed=KEY))


def test_scaled_steps_by_hand():
    """Langevin dynamics at T with steps T / T_0 as long: x' = x - h T/T_0 · ∇E/T + √(2 h T/T_0) ξ. The coldest are as without."""
    temperatures, h = (0.5, 1.0, 4.0), 0.01
    t = torch.tensor(temperatures, dtype=torch.float64)[:, None]
    x = ops.normal((20, 3, 4), key=Key(1), dtype=torch.float64)
    sampler = ParallelTempering(Langevin(h), temperatures, scale_steps=True)
    state = sampler.init_replicas(quartic, x, seed=KEY)
    torch.testing.assert_close(sampler.x_of(state), x)
    grad = 4 * x * (x.square() - 1)
    noise = ops.normal((60, 4), key=Key(3, 4, 15), stream=ops.Stream.PROPOSAL, dtype=torch.float64).reshape(20, 3, 4)
    moved = x - h / 0.5 * grad + (2 * h * t / 0.5).sqrt() * noise
    u = ops.uniform((20, 2), key=KEY, stream=ops.Stream.SWAP, dtype=torch.float64)
    expected, _ = swapped_by_hand(moved, quartic(moved.flatten(0, 1)).reshape(20, 3), temperatures, u, 4)
    state, info = sampler.step(quartic, state)
    torch.testing.assert_close(sampler.x_of(state), expected)
    assert int(info.num_swaps.sum()) > 5
    state, _ = sampler.advance(quartic, state, 30)
    y = sampler.x_of(state).flatten(0, 1).requires_grad_()
    (grad,) = torch.autograd.grad(quartic(y).sum(), y)
    rows = t.flatten().repeat(20)
    torch.testing.assert_close(state.replicas.energy, quartic(y).detach() / rows)
    torch.testing.assert_close(state.replicas.grad, grad / (rows * 0.5).sqrt()[:, None])
    torch.testing.assert_close(state.x, sampler.x_of(state)[:, 0])
    tuned, state = sampler.adapt_ladder(quartic, x[:, 0], 8, seed=KEY)
    same, _ = sampler.advance(quartic, sampler.init(quartic, x[:, 0], seed=KEY), 8)
    assert tuned.temperatures[1] != 1.0
    torch.testing.assert_close(tuned.x_of(state), sampler.x_of(same))
    torch.testing.assert_close(state.energy, quartic(tuned.x_of(state)[:, 0]))


class Still:
    """A base whose states share their tensors: nothing moves, but for the grad, which is no contiguous tensor."""

    def init(self, energy, x, *, seed=None):
        x = x.contiguous()
        return ContinuousState(x, energy(x), x.t().contiguous().t(), seed)

    def advance(self, energy, state, num_steps):
        rows = len(state.x)
        info = MetropolisInfo(torch.zeros(rows, dtype=torch.bool), torch.ones(rows, dtype=torch.bool), torch.ones(rows), torch.zeros(rows))
        return state._replace(key=state.key.advance(num_steps)), info


def test_states_that_share_tensors_stay_as_they_are():
    sampler = ParallelTempering(Still(), (1.0, 1.5, 2.0))
    x = ops.normal((30, 3, 4), key=Key(2), dtype=torch.float64)
    start = sampler.init_replicas(quartic, x, seed=KEY)
    kept = [value.clone() for value in (*start, *start.replicas) if isinstance(value, Tensor)]
    first, info = sampler.step(quartic, start)
    assert int(info.num_swaps.sum()) > 10
    second, _ = sampler.advance(quartic, start, 3)
    for a, b in zip((value for value in (*start, *start.replicas) if isinstance(value, Tensor)), kept, strict=True):
        assert_same_bits(a, b)
    again, _ = sampler.advance(quartic, first, 2)
    assert_same_bits(again.replicas.x, second.replicas.x)
    torch.testing.assert_close(second.replicas.x.reshape(30, 3, 4).sum(1), x.sum(1))
    torch.testing.assert_close(second.replicas.energy, quartic(second.replicas.x) / torch.tensor([1.0, 1.5, 2.0]).double().repeat(30))


def test_momenta_travel_with_their_replicas():
    """Each replica has a momentum of its own, which follows it from temperature to temperature."""
    sampler = ParallelTempering(KineticLangevin(1e-9, 1e-9), (1.0, 1.5, 2.0))
    x = ops.normal((30, 3, 4), key=Key(2), dtype=torch.float64)
    start = sampler.init_replicas(quartic, x, seed=KEY)
    state, info = sampler.advance(quartic, start, 6)
    assert int(info.num_swaps.sum()) > 30
    before = torch.cat((start.replicas.x, start.replicas.momentum), 1).reshape(30, 3, 8)
    after = torch.cat((state.replicas.x, state.replicas.momentum), 1).reshape(30, 3, 8)
    distances = (after[:, :, None] - before[:, None]).abs().amax(-1)
    assert bool((distances.amin(-1) < 1e-3).all())
    assert not bool((distances.diagonal(dim1=1, dim2=2) < 1e-3).all())


def test_clusters_and_potts_run_natively():
    asked = []

    class Watched(Potts):
        def native_chain(self, kernel, states, key, num_steps, **options):
            asked.append((len(states), float(self.coupling.detach()), key.tolist()))
            return super().native_chain(kernel, states, key, num_steps, **options)

    energy = Watched.lattice((3, 3), 3, 0.8)
    x = torch.zeros(5, 3, 3, dtype=torch.uint8)
    for base in (SwendsenWang(), Gibbs(), GibbsWithGradients()):
        asked.clear()
        sampler = ParallelTempering(base, (1.0, 4.0), steps_per_swap=2)
        out = sampler(energy, x, 1, seed=Key(3, 4, 5))
        assert out.dtype == torch.uint8
        assert [(n, c) for n, c, _ in asked] == [(5, pytest.approx(0.8)), (5, pytest.approx(0.2))]
        assert [key for *_, key in asked] == [[3, 8, 5], [3, 8, 5 + 2**32]]
    assert float(energy.coupling.detach()) == pytest.approx(0.8)
    assert energy.coupling.requires_grad


def test_one_call_for_all_replicas():
    bits = ops.bernoulli((7, 5), 0.5, key=Key(1))
    for base, x, calls, gradients in (
        (Langevin(0.01), ops.normal((7, 5), key=Key(1)), 1, 1),
        (GibbsWithGradients(), bits, 1, 1),
        (RandomFlipMetropolis(), bits, 1, 0),
        (Gibbs("random"), bits, 1, 0),
        (Gibbs(), bits, 5, 0),
        (MALA(0.01), ops.normal((7, 5), key=Key(1)), 1, 1),
        (HMC(0.01, 3), ops.normal((7, 5), key=Key(1)), 3, 3),
        (RandomWalkMetropolis(0.1), ops.normal((7, 5), key=Key(1)), 1, 0),
    ):
        energy = count_evaluations(quartic)
        sampler = ParallelTempering(base, (1.0, 2.0, 3.0, 4.0))
        state = sampler.init(energy, x, seed=KEY)
        at_start = min(gradients, 1)
        assert (energy.num_evaluations, energy.num_gradients, energy.num_rows) == (1, at_start, 28), base
        sampler.advance(energy, state, 10)
        assert (energy.num_evaluations, energy.num_gradients) == (1 + 10 * calls, at_start + 10 * gradients), base
        assert energy.num_rows == 28 * (1 + 10 * calls), base


def test_checkpoints(tmp_path):
    """60 + 40 steps through a file are 100, to the bit."""
    sampler = ParallelTempering(GibbsWithGradients(), (1.0, 1.4, 2.0))
    x = ops.bernoulli((6, 5), 0.5, key=Key(1))
    start = sampler.init(quartic, x, seed=KEY)
    whole, _ = sampler.advance(quartic, start, 100)
    half, _ = sampler.advance(quartic, start, 60)
    fields = {name: value for name, value in half.replicas._asdict().items() if isinstance(value, Tensor)}
    save_checkpoint(tmp_path / "x", {"key": half.key.tensor, "row_key": half.replicas.key.tensor, "hottest": half.has_been_hottest, **fields})
    read = load_checkpoint(tmp_path / "x")
    replicas = half.replicas._replace(key=Key.from_tensor(read["row_key"]), **{name: read[name] for name in fields})
    resumed = half._replace(x=replicas.x[::3], key=Key.from_tensor(read["key"]), replicas=replicas, has_been_hottest=read["hottest"])
    end, _ = sampler.advance(quartic, resumed, 40)
    for name in ("x", "energy", "has_been_hottest"):
        assert_same_bits(getattr(end, name).to(torch.float64), getattr(whole, name).to(torch.float64))
    assert end.key == whole.key == KEY.advance(100)


def test_traces_and_modes_of_torch():
    sampler = ParallelTempering(Langevin(0.01), (1.0, 2.0))
    x = ops.normal((6, 5), key=Key(1))
    trace = sample(sampler, quartic, x, 10, thinning=2, seed=KEY)
    assert trace.x.shape == (5, 6, 5)
    assert trace.info.swap_acceptance_prob.shape == (5, 6, 1)
    with torch.inference_mode():
        inside = x.clone()
        assert_same_bits(sampler(quartic, inside, 10, seed=KEY), trace.x[-1])
    with torch.no_grad():
        assert_same_bits(sampler(quartic, x, 10, seed=KEY), trace.x[-1])
    out = sampler(quartic, x.clone().requires_grad_(), 10, seed=KEY)
    assert not out.requires_grad


# Ladders


def test_the_ladder_is_adapted_to_equal_rejection():
    """From acceptances that differ by more than 0.5 to ones that agree to 0.05; the ends stay, and so does the sampler."""
    energy = Ising.lattice((4, 4), 0.6).double()
    x = ops.rademacher((200, 4, 4), key=Key(1)).to(torch.int8)
    sampler = ParallelTempering(Gibbs(), (1.0, 1.1, 1.2, 1.3, 8.0))
    before = sampler.advance(energy, sampler.init(energy, x, seed=1), 100)[1].swap_acceptance_prob.mean(0)
    tuned, state = sampler.adapt_ladder(energy, x, 500, seed=Key(2))
    assert (tuned.temperatures[0], tuned.temperatures[-1], len(tuned.temperatures)) == (1.0, 8.0, 5)
    assert (tuned.sampler, tuned.steps_per_swap) == (sampler.sampler, sampler.steps_per_swap)
    assert sampler.temperatures == (1.0, 1.1, 1.2, 1.3, 8.0)
    after = tuned.advance(energy, state, 200)[1].swap_acceptance_prob.mean(0)
    assert float(before.max() - before.min()) > 0.5
    assert float(after.max() - after.min()) < 0.05
    assert state.key == Key(2, 500)
    again, other = sampler.adapt_ladder(energy, x, 500, seed=Key(2))
    assert again == tuned
    assert_same_bits(other.replicas.x, state.replicas.x)


def test_warm_up_adapts_the_ladder():
    energy, x = Ising.lattice((4, 4), 0.6), torch.ones(20, 4, 4, dtype=torch.int8)
    sampler = ParallelTempering(Gibbs(), (1.0, 1.1, 8.0))
    tuned, end = warm_up(sampler, energy, x, 40, seed=Key(2))
    expected, state = sampler.adapt_ladder(energy, x, 40, seed=Key(2))
    assert tuned == expected != sampler
    assert_same_bits(end, state.x)
    with pytest.raises(TypeError, match="warm_up: target_acceptance and adapt_inverse_mass must be left out where a ladder adapts"):
        warm_up(sampler, energy, x, 40, target_acceptance=0.3)


def test_equal_shares_of_the_barrier():
    """Rejections in proportion to log T make the geometric ladder; one that a single pair has puts all temperatures in between."""
    assert _equalised((1.0, 2.0, 16.0), (0.1, 0.3)) == pytest.approx((1.0, 4.0, 16.0))
    assert _equalised((1.0, 16.0, 32.0, 64.0), (0.9, 0.0, 0.0)) == pytest.approx((1.0, 16 ** (1 / 3), 16 ** (2 / 3), 64.0))


def test_no_barrier_leaves_a_ladder():
    """Where nothing is ever rejected the temperatures still ascend, evenly in log T."""
    flat = Ising([(0, 1)], 0.0)
    tuned, _ = ParallelTempering(Gibbs(), (1.0, 1.5, 2.0, 16.0)).adapt_ladder(flat, torch.ones(9, 2, dtype=torch.int8), 20, seed=1)
    assert tuned.temperatures[0] == 1.0
    assert all(b > a for a, b in itertools.pairwise(tuned.temperatures))
    with pytest.raises(ValueError, match=r"ParallelTempering.adapt_ladder: num_steps must be an int in \[8, 2\*\*48\), got 7"):
        tuned.adapt_ladder(flat, torch.ones(9, 2, dtype=torch.int8), 7)


def test_a_ladder_with_a_gap_is_reported():
    energy = Ising.lattice((6, 6), 2.0)
    x = torch.ones(20, 6, 6, dtype=torch.int8)
    sampler = ParallelTempering(Gibbs(), (1.0, 1.001, 50.0))
    with pytest.warns(RuntimeWarning, match="no chain changed places between temperatures 1.001 and 50 in 1000 steps, mean acceptance probability"):
        sampler(energy, x, 1000, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler(energy, x, 300, seed=1)


@pytest.mark.parametrize(
    ("temperatures", "error", "match"),
    [
        ((1.0,), ValueError, r"temperatures must be two or more, got \(1.0,\)"),
        ((), ValueError, "temperatures must be two or more"),
        ((2.0, 1.0), ValueError, "temperatures must ascend, got 1 after 2 at index 1"),
        ((1.0, 3.0, 2.0), ValueError, "temperatures must ascend, got 2 after 3 at index 2"),
        ((1.0, 2.0, 2.0), ValueError, "temperatures must ascend, got 2 after 2 at index 2"),
        ((0.0, 1.0), ValueError, r"temperatures\[0\] must be a finite number > 0, got 0"),
        ((-1.0, 1.0), ValueError, r"temperatures\[0\] must be a finite number > 0, got -1"),
        ((1.0, math.inf), ValueError, r"temperatures\[1\] must be a finite number > 0, got inf"),
        ((1.0, math.nan), ValueError, r"temperatures\[1\] must be a finite number > 0, got nan"),
        ((1.0, "2"), TypeError, r"temperatures\[1\] must be a number"),
        ((1.0, True), TypeError, r"temperatures\[1\] must be a number"),
        (1.0, TypeError, "temperatures must be a sequence of numbers, got 1.0"),
        ("12", TypeError, "temperatures must be a sequence of numbers"),
        (None, TypeError, "temperatures must be a sequence of numbers"),
    ],
)
def test_bad_ladders(temperatures, error, match):
    with pytest.raises(error, match=f"ParallelTempering: {match}"):
        ParallelTempering(Gibbs(), temperatures)


def test_other_bad_arguments():
    from ebmcore import AnnealedLangevin

    good = ParallelTempering(Gibbs(), torch.tensor([1.0, 2.0]))
    assert good == ParallelTempering(Gibbs(), np.array([1.0, 2.0])) == ParallelTempering(Gibbs(), [1, 2])
    for sampler in (3, None, Gibbs, quartic):
        with pytest.raises(TypeError, match="ParallelTempering: sampler must be a sampler with init and advance"):
            ParallelTempering(sampler, (1.0, 2.0))
    for sampler in (good, AnnealedLangevin((1.0, 0.5), 10, 1e-3)):
        with pytest.raises(TypeError, match="ParallelTempering: sampler must sample one energy at one temperature"):
            ParallelTempering(sampler, (1.0, 2.0))
    for sampler in (Langevin(0.1, temperature=2.0), Langevin(0.1, noise_std=0.1)):
        with pytest.raises(ValueError, match="ParallelTempering: sampler must be at temperature 1"):
            ParallelTempering(sampler, (1.0, 2.0))
    for bad in (0, -1, 1.5, True):
        with pytest.raises((TypeError, ValueError), match="ParallelTempering: steps_per_swap must be an int >= 1"):
            ParallelTempering(Gibbs(), (1.0, 2.0), bad)
    with pytest.raises(TypeError, match="ParallelTempering: scale_steps must be a bool, got 1"):
        ParallelTempering(Gibbs(), (1.0, 2.0), scale_steps=1)
    with pytest.raises(ValueError, match="ParallelTempering: scale_steps must be False where the sampler clamps x"):
        ParallelTempering(Langevin(0.1, clamp=(0, 1)), (1.0, 2.0), scale_steps=True)
    with pytest.raises(ValueError, match=r"ParallelTempering: scale_steps must be False for discrete states, got x of torch.int8"):
        ParallelTempering(Gibbs(), (1.0, 2.0), scale_steps=True)(Ising([(0, 1)], 1.0), torch.ones(3, 2, dtype=torch.int8), 1)
    with pytest.raises(ValueError, match="0 or 1 at every site"):
        ParallelTempering(Gibbs(), (1.0, 2.0), scale_steps=True)(quartic, torch.ones(3, 2), 1)
    x = torch.zeros(3, 4)
    for bad in (-1, 2.0, True, "3", 2**48):
        with pytest.raises((TypeError, ValueError), match="ParallelTempering: num_steps"):
            good(quartic, x, bad)
        with pytest.raises((TypeError, ValueError), match=r"ParallelTempering.advance: num_steps"):
            good.advance(quartic, good.init(quartic, x, seed=1), bad)
    with pytest.raises(TypeError, match=r"ParallelTempering.init: x must be a torch.Tensor, got list"):
        good.init(quartic, [[0, 1]])
    with pytest.raises(ValueError, match=r"ParallelTempering.init: x must have shape"):
        good.init(quartic, torch.tensor(1.0))
    for shape in ((3, 4), (3,), (3, 3, 4)):
        with pytest.raises(ValueError, match=r"ParallelTempering.init_replicas: x must have shape \(num_chains, 2, \*event\)"):
            good.init_replicas(quartic, torch.zeros(shape))
    with pytest.raises(ValueError, match="0 or 1 at every site"):
        good(quartic, torch.full((3, 4), 0.5), 1)


def test_energies_that_are_none():
    sampler, x = ParallelTempering(Langevin(0.01), (1.0, 2.0)), torch.zeros(3, 4)
    for energy, error, match in (
        (lambda x: x, ValueError, r"energy: must return shape \(6,\)"),
        (lambda x: x.sum(1, keepdim=True), ValueError, r"energy: must return shape \(6,\)"),
        (lambda x: x.sum(1).long(), TypeError, "energy: must return a floating-point tensor"),
        (lambda x: 1.0, TypeError, "energy: must return a floating-point tensor"),
        (lambda x: x.detach().sum(1), ValueError, "energy: must depend on x"),
    ):
        with pytest.raises(error, match=match):
            sampler(energy, x, 1)


def test_divergence_names_chains():
    x = ops.normal((6, 4), key=Key(1), dtype=torch.float64)
    sampler = ParallelTempering(Langevin(0.01), (1.0, 2.0, 3.0), steps_per_swap=2)
    with pytest.raises(DivergenceError, match=r"ParallelTempering: in chains \[1\], where row = 3 · chain \+ temperature: Langevin") as caught:
        sampler.init(Spoiled(0, [3, 5]), x, seed=1)
    assert (caught.value.chains, caught.value.step) == ([1], -1)
    with pytest.raises(DivergenceError) as caught:
        sampler(Spoiled(4, [0, 17]), x, 3, seed=1)
    assert (caught.value.chains, caught.value.step) == ([0, 5], 3)
    assert len(caught.value.last_energies) == 2


def test_walls_are_seen_by_the_replicas_that_meet_them():
    """Proposals of infinite energy are rejected and reported by chain."""

    def energy(x: Tensor) -> Tensor:
        return torch.where(x.sum(1) > 1, torch.inf, 0.0 * x.sum(1))

    sampler = ParallelTempering(RandomFlipMetropolis(), (1.0, 2.0))
    state, info = sampler.advance(energy, sampler.init(energy, torch.zeros(50, 3), seed=1), 20)
    assert bool((state.replicas.x.sum(1) <= 1).all())
    assert bool(info.swap_acceptance_prob.isfinite().all())
    # The cold replicas cannot reach the wall in a step, and of the hot ones two flips in three do.
    x = torch.zeros(600, 2, 3)
    x[:, 1, 0] = 1
    _, info = sampler.step(energy, sampler.init_replicas(energy, x, seed=2))
    assert info.is_diverged.shape == (600,)
    assert_count(int(info.is_diverged.sum()), 600, 2 / 3, what="walls met")
    with pytest.raises(DivergenceError):
        sampler(energy, torch.ones(2, 3), 1)
