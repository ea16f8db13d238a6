"""The public checks: right samplers pass them, wrong ones fail, and they say so of what they cannot judge."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from torch import Tensor

from ebmcore import HMC, MALA, DiscreteLangevin, Gibbs, GibbsWithGradients, Key, Langevin, RandomFlipMetropolis, RandomWalkMetropolis, ops
from ebmcore.energies import Gaussian, Ising, OneHot
from ebmcore.gradients import energy_and_grad
from ebmcore.testing import check_invariance, count_evaluations, counts_p_value, transition_matrix
from ebmcore.types import Alphabet
from support.discrete import all_states, exact_energy, matrix
from support.targets import assert_same_bits, quadratic, quartic

GAUSSIAN = Gaussian([0.5, -1.0, 2.0], covariance=[[1.0, 0.3, 0.0], [0.3, 2.0, -0.5], [0.0, -0.5, 0.7]])
DRAWS = GAUSSIAN.sample(20_000, key=Key(1), dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Careless:
    """Random-walk Metropolis that accepts with probability min(1, r^power) and adds `drift` to what it accepts."""

    power: float = 1.0
    drift: float = 0.0

    def __call__(self, energy, x: Tensor, num_steps: int, *, seed=None) -> Tensor:
        for key in Key.from_seed(seed).steps(num_steps).unbind():
            new = x + ops.normal(x.shape, key=key, dtype=x.dtype) + self.drift
            is_accepted = ops.uniform((len(x),), key=key, stream=2, dtype=x.dtype).log() < self.power * (energy(x) - energy(new))
            x = torch.where(is_accepted[:, None], new, x)
        return x


# Invariance


@pytest.mark.parametrize("sampler", [MALA(0.3), HMC(0.4, 3), RandomWalkMetropolis(0.8), Careless()], ids=repr)
def test_right_samplers_pass(sampler):
    for num_steps in (1, 5):
        assert check_invariance(sampler, GAUSSIAN, DRAWS, num_steps=num_steps, seed=2) > 1e-4


@pytest.mark.parametrize(
    ("sampler", "what"),
    [
        (Langevin(0.3), ""),
        (Careless(power=0.9), "the mean of energy"),
        (Careless(power=1.1), "the mean of energy"),
        (Careless(drift=0.1), "the mean of x"),
    ],
    ids=repr,
)
def test_wrong_samplers_fail(sampler, what):
    """Langevin's variances are wrong by a fifth, powers and drifts by a tenth."""
    with pytest.raises(AssertionError, match=f"check_invariance: .* changes {what}.*after 10 steps of 20000 chains"):
        check_invariance(sampler, GAUSSIAN, DRAWS, num_steps=10, seed=2)


def test_correlations_are_seen():
    """A chain whose coordinates have the right laws one by one, but forget each other."""

    class Shuffling:
        def __call__(self, energy, x, num_steps, *, seed=None):
            return torch.cat((x[:, :1], x[:, 1:].roll(1, 0)), 1)

    independent = Gaussian([0.0] * 3, precision=[1.0] * 3)
    draws = independent.sample(20_000, key=Key(1), dtype=torch.float64)
    assert check_invariance(Shuffling(), independent, draws, seed=2) > 1e-4
    with pytest.raises(AssertionError, match=r"x\[0\] · x\[1\]|energy"):
        check_invariance(Shuffling(), GAUSSIAN, DRAWS, seed=2)


def test_p_values_of_right_samplers_are_no_smaller_than_they_say():
    """Of 200 seeds the smallest is about 1 / 200: a factor of 50 below would be the odds of 1 in 50."""
    energy = Gaussian([0.0], precision=[1.0])
    values = []
    for seed in range(200):
        x = energy.sample(10_000, key=Key(seed), dtype=torch.float64)
        values.append(check_invariance(RandomWalkMetropolis(1.0), energy, x, seed=Key(seed, 1)))
    assert min(values) > 1e-4
    assert sum(p < 0.5 for p in values) < 140


def test_heavy_tails_do_not_upset_it():
    """Of the Cauchy law neither x nor E has moments that a mean could rest on."""

    def cauchy(x: Tensor) -> Tensor:
        return x[:, 0].square().log1p()

    draws = torch.tan(math.pi * (ops.uniform((20_000, 1), key=Key(1), dtype=torch.float64) - 0.5))
    for seed in range(10):
        assert check_invariance(RandomWalkMetropolis(2.0), cauchy, draws, num_steps=3, seed=seed) > 1e-4
    with pytest.raises(AssertionError):
        check_invariance(Careless(power=0.8), cauchy, draws, num_steps=10, seed=1)


def test_discrete_samplers():
    energy = Ising.lattice((2, 3), 0.5, 0.2, periodic=False)
    states = (2 * (torch.arange(64)[:, None] // 2 ** torch.arange(6) % 2) - 1).to(torch.int8).reshape(-1, 2, 3)
    p = torch.softmax(-energy(states).detach(), 0)
    draws = states[torch.multinomial(p, 20_000, replacement=True, generator=torch.Generator().manual_seed(1))]
    for sampler in (Gibbs(), GibbsWithGradients(), RandomFlipMetropolis(), DiscreteLangevin(1.0)):
        assert check_invariance(sampler, energy, draws, num_steps=3, seed=3) > 1e-4
    with pytest.raises(AssertionError, match="DiscreteLangevin"):
        check_invariance(DiscreteLangevin(1.0, metropolis=False), energy, draws, num_steps=3, seed=3)


def test_invariance_refuses_what_it_cannot_judge():
    for bad in (DRAWS[:9999], DRAWS[:, 0], DRAWS.numpy()):
        with pytest.raises(ValueError, match=r"check_invariance: exact_draws must be \(num_chains, \*event\) of 10,000 chains or more"):
            check_invariance(MALA(0.3), GAUSSIAN, bad)
    with pytest.raises(ValueError, match="check_invariance: 1000 chains must move for a p-value, got 0 of 20000"):
        check_invariance(RandomWalkMetropolis(1e6), GAUSSIAN, DRAWS, seed=1)
    for bad in (0, -1, 1.5):
        with pytest.raises((TypeError, ValueError), match="check_invariance: num_steps"):
            check_invariance(MALA(0.3), GAUSSIAN, DRAWS, num_steps=bad)


# Transitions


def test_transition_matrix_counts_where_chains_go():
    """A permutation has one cell a row; states may come in any order and dtype."""

    class Cycle:
        def __call__(self, energy, x, num_steps, *, seed=None):
            return (x + num_steps) % 3

    states = torch.tensor([[2], [0], [1]])
    expected = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert torch.equal(transition_matrix(Cycle(), None, states, num_chains=7), 7 * expected)
    assert torch.equal(transition_matrix(Cycle(), None, states, num_chains=7, num_steps=2), 7 * expected @ expected)
    assert torch.equal(transition_matrix(Cycle(), None, states, num_chains=7, num_steps=3), 7 * torch.eye(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"transition_matrix: states must be all that can be reached, got to \[1\]"):
        transition_matrix(Cycle(), None, states[:2], num_chains=7)
    for bad in (torch.tensor([[1], [1]]), torch.tensor([1, 2]), [[0], [1]]):
        with pytest.raises(ValueError, match="transition_matrix: states must be"):
            transition_matrix(Cycle(), None, bad)
    with pytest.raises(ValueError, match="transition_matrix: num_chains must be an int >= 1"):
        transition_matrix(Cycle(), None, states, num_chains=0)


def test_rows_are_told_apart():
    """Gibbs follows its own matrix and not that of Metropolis."""
    energy, states = exact_energy("B1"), all_states("B1").float()
    counts = transition_matrix(Gibbs("random"), energy, states, num_chains=20_000, seed=1)
    assert bool((counts.sum(1) == 20_000).all())
    right = [counts_p_value(counts[k], matrix("B1", "gibbs_random")[k]) for k in range(16)]
    wrong = [counts_p_value(counts[k], matrix("B1", "mh_random")[k]) for k in range(16)]
    assert min(right) > 1e-5
    assert max(wrong) < 1e-7


def test_p_values_of_counts():
    """Against the closed forms of chi-square with one and two degrees of freedom, and with merged and impossible cells."""
    statistic = 2 * 10.0**2 / 500
    assert counts_p_value(torch.tensor([510, 490]), torch.tensor([0.5, 0.5])) == pytest.approx(math.erfc(math.sqrt(statistic / 2)), rel=1e-12)
    counts = torch.tensor([[600, 300, 100]])
    statistic = 100**2 / 500 + 0.0 + 100**2 / 200
    assert counts_p_value(counts, torch.tensor([[5.0, 3.0, 2.0]])) == pytest.approx(math.exp(-statistic / 2), rel=1e-12)
    merged = counts_p_value(torch.tensor([560, 400, 20, 20]), torch.tensor([0.5, 0.44, 0.03, 0.03]))
    statistic = 60**2 / 500 + 40**2 / 440 + 20**2 / 60
    assert merged == pytest.approx(math.exp(-statistic / 2), rel=1e-5)
    assert counts_p_value(torch.tensor([500, 499, 1]), torch.tensor([0.5, 0.5, 0.0])) == 0.0
    with pytest.raises(ValueError, match="counts_p_value: counts must fill two cells of 50, got 20"):
        counts_p_value(torch.tensor([10, 10]), torch.tensor([0.5, 0.5]))


# Evaluations


def test_evaluations_are_counted_and_change_nothing():
    energy = count_evaluations(quartic)
    x = ops.normal((8, 3), key=Key(1))
    assert_same_bits(energy(x), quartic(x))
    assert (energy.num_evaluations, energy.num_gradients, energy.num_rows) == (1, 0, 8)
    for mine, theirs in zip(energy_and_grad(energy, x), energy_and_grad(quartic, x), strict=True):
        assert_same_bits(mine, theirs)
    assert (energy.num_evaluations, energy.num_gradients, energy.num_rows) == (2, 1, 16)
    assert_same_bits(MALA(0.01)(energy, x, 7, seed=1), MALA(0.01)(quartic, x, 7, seed=1))
    assert (energy.num_evaluations, energy.num_gradients) == (10, 9)
    joint = count_evaluations(lambda x, y: quadratic(x) + y)
    torch.testing.assert_close(joint(x, 2.0), quadratic(x) + 2)
    assert joint.num_evaluations == 1


def test_attributes_pass_through_but_native_chains():
    ising = Ising.lattice((3, 4), 0.3)
    energy = count_evaluations(ising)
    assert energy.alphabet == Alphabet("spin")
    assert energy.coupling is ising.coupling
    assert not hasattr(energy, "native_chain")
    assert not hasattr(energy, "scaled")
    x = ops.rademacher((5, 3, 4), key=Key(1)).to(torch.int8)
    value, differences = energy.energy_and_differences(x)
    assert energy.num_evaluations == 1
    for mine, theirs in zip((value, differences), ising.energy_and_differences(x), strict=True):
        assert_same_bits(mine, theirs)
    RandomFlipMetropolis()(energy, x, 4, seed=1)
    assert energy.num_evaluations == 6
    tokens = count_evaluations(OneHot(lambda o: o.square().flatten(1).sum(1), 3))
    GibbsWithGradients()(tokens, torch.zeros(5, 4, dtype=torch.int64), 7, seed=1)
    assert (tokens.num_evaluations, tokens.num_gradients) == (8, 8)
    twin = copy.deepcopy(count_evaluations(quartic))
    twin(torch.zeros(2, 2))
    assert twin.num_evaluations == 1
    assert pickle.loads(pickle.dumps(energy)).num_evaluations == 6
