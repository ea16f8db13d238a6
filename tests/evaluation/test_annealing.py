"""Annealed importance sampling of any energy: exact moments of its weights with exact moves, exact ln Z, its costs, and its refusals."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal

from ebmcore import HMC, MALA, DivergenceError, GibbsWithGradients, Key, KineticLangevin, Langevin, RandomWalkMetropolis, ops
from ebmcore.continuous_sampler import ContinuousState, MetropolisInfo
from ebmcore.energies import Banana, BernoulliRBM, Funnel, Gaussian, GaussianMixture, Ising, Ring
from ebmcore.evaluation import AnnealedImportanceSampling, GeometricPath, ais, exact_log_z, reverse_ais
from ebmcore.gradients import energy_and_grad
from ebmcore.samplers import DiscreteLangevin, Gibbs, RandomFlipMetropolis
from ebmcore.types import Alphabet
from support.statistics import assert_mean
from support.targets import Counting, assert_same_bits, quartic
from support.truths import truth

LOG_2PI = math.log(2 * math.pi)


class StandardNormal:
    """½ |x|² in float64, with exact draws."""

    def __init__(self, dim: int) -> None:
        self.dim, self.log_z = dim, dim / 2 * LOG_2PI

    def __call__(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(1)

    def sample(self, num: int, *, key: Key) -> Tensor:
        return ops.normal((num, self.dim), key=key, dtype=torch.float64)


class Bridge:
    """From N(0, 1) to N(m, s²) in each of d elements: all of the path p_β is Gaussian."""

    def __init__(self, d: int, m: float, s: float) -> None:
        self.d, self.m, self.s, self.base = d, m, s, StandardNormal(d)
        self.log_z = d / 2 * LOG_2PI + d * math.log(s)

    def __call__(self, x: Tensor) -> Tensor:
        return ((x - self.m).square() / (2 * self.s**2)).sum(1)

    def law(self, beta: float) -> tuple[float, float]:
        """The mean and the precision of each element at β."""
        precision = 1 - beta + beta / self.s**2
        return beta * self.m / self.s**2 / precision, precision

    def log_z_at(self, beta: float) -> float:
        mean, precision = self.law(beta)
        return self.d / 2 * (LOG_2PI - math.log(precision) - beta * self.m**2 / self.s**2 + precision * mean**2)

    def relative_variance(self, betas: list[float]) -> float:
        """Var(w) / E(w)² if all moves are exact: the factors of w are then independent."""
        total = 0.0
        for last, beta in itertools.pairwise(betas):
            total += self.log_z_at(2 * beta - last) + self.log_z_at(last) - 2 * self.log_z_at(beta)
        return math.expm1(total)

    def exact(self, beta: float) -> ExactMoves:
        return ExactMoves(*self.law(beta))


class ExactMoves:
    """Independent draws from the law at one β."""

    def __init__(self, mean: float, precision: float) -> None:
        self.mean, self.std = mean, precision**-0.5

    def init(self, energy: Any, x: Tensor, *, seed: Key) -> ContinuousState:
        return ContinuousState(x, *energy_and_grad(energy, x), seed)

    def advance(self, energy: Any, state: ContinuousState, num_steps: int) -> None:
        raise AssertionError

    def step(self, energy: Any, state: ContinuousState) -> tuple[ContinuousState, MetropolisInfo]:
        x = self.mean + self.std * ops.normal(state.x.shape, key=state.key, dtype=state.x.dtype)
        always = torch.ones(len(x), dtype=torch.bool)
        info = MetropolisInfo(~always, always, always.double(), 0 * always.long())
        return ContinuousState(x, *energy_and_grad(energy, x), state.key.advance()), info

    def __call__(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("index", range(3))
def test_moments_on_the_gaussian_ladder(index):
    """Exact moves: mean and variance of ln w are those of the reference, the mean weight is Z, forwards and in reverse 1/Z."""
    case = truth("ais_targets")["gaussian_bridge"][index]
    numbers, n = case["params"], 20_000
    bridge, num_temperatures = Bridge(numbers["d"], numbers["m"], numbers["s"]), numbers["K"]
    result = ais(bridge, bridge.base, bridge.exact, num_chains=n, betas=num_temperatures, seed=1)
    log_w = result.log_weights - bridge.base.log_z
    assert result.log_weights.dtype == torch.float64
    assert_mean(log_w, case["E_log_w"], math.sqrt(case["var_log_w"]), what="log weight")
    assert_mean((log_w - case["E_log_w"]).square(), case["var_log_w"], what="variance of the log weight")
    betas = [k / num_temperatures for k in range(num_temperatures + 1)]
    assert result.betas.tolist() == betas
    assert bridge.log_z - bridge.base.log_z == pytest.approx(case["lnZ_ratio"])
    spread = math.sqrt(bridge.relative_variance(betas))
    assert_mean((result.log_weights - bridge.log_z).exp(), 1.0, spread, what="weight over Z")
    assert result.standard_error == pytest.approx(spread / math.sqrt(n), rel=0.15)
    assert result.effective_sample_size == pytest.approx(n / (1 + spread**2), rel=0.1)
    x = bridge.m + bridge.s * ops.normal((n, bridge.d), key=Key(2), dtype=torch.float64)
    back = reverse_ais(bridge, bridge.base, bridge.exact, x, betas=num_temperatures, seed=3)
    assert back.betas.tolist() == betas[::-1]
    spread = math.sqrt(bridge.relative_variance(betas[::-1]))
    assert_mean((back.log_weights + bridge.log_z).exp(), 1.0, spread, what="reverse weight times Z")
    assert back.standard_error == pytest.approx(spread / math.sqrt(n), rel=0.15)
    assert abs(back.log_z - bridge.log_z) < 5.45 * back.standard_error


@pytest.mark.parametrize("sampler", [MALA(0.2), HMC(0.3, 3), RandomWalkMetropolis(0.7)], ids=lambda sampler: type(sampler).__name__)
def test_the_bracket(sampler):
    """ln w is below ln Z on average, in reverse above, by more than chance; both agree within their bars."""
    bridge, n = Bridge(2, 1.0, 0.5), 2000
    x = bridge.m + bridge.s * ops.normal((n, 2), key=Key(2), dtype=torch.float64)
    low = ais(bridge, bridge.base, sampler, num_chains=n, betas=60, seed=1)
    high = reverse_ais(bridge, bridge.base, sampler, x, betas=60, seed=2)
    for result in (low, high):
        assert abs(result.log_z - bridge.log_z) < 4 * result.standard_error < 0.2
        assert result.interval[0] < result.log_z < result.interval[1]
        assert 0.3 < float(result.acceptance_prob.mean()) < 1.0
        assert result.acceptance_prob.shape == (59,)
    for log_weights, truth_of in ((low.log_weights, bridge.log_z), (high.log_weights, -bridge.log_z)):
        assert float(log_weights.mean()) < truth_of - 5.45 * float(log_weights.std()) / math.sqrt(n)


TARGETS = {
    "gmm2d": lambda p: GaussianMixture(p["weights"], p["means"], std=p["stds"]),
    "ring": lambda p: Ring(p["r"], p["s"]),
    "banana": lambda p: Banana(p["a"], p["b"], p["c"]),
    "dblwell2d": lambda p: lambda x: (x[:, 0] ** 2 - 1) ** 2 / p["T"] + x[:, 1] ** 2 / 2,
    "funnel": lambda p: Funnel(p["d"]),
}
STEPS = {"ring": 0.02, "dblwell2d": 0.05, "funnel": 0.1}


@pytest.mark.parametrize("index", range(6))
def test_targets_within_the_error_bars(index):
    case = truth("ais_targets")["targets"][index]
    energy = TARGETS[case["name"]](case["params"])
    dim = case["params"].get("d", 2)
    base = Gaussian(torch.zeros(dim), covariance=torch.full((dim,), 16.0))
    result = ais(energy, base, lambda beta: MALA(STEPS.get(case["name"], 0.1) / max(beta, 0.05)), num_chains=1000, betas=200, seed=0)
    assert abs(result.log_z - case["lnZ"]) < 3 * result.standard_error
    assert result.standard_error < 0.1


def test_the_bracket_of_a_funnel():
    """In ten dimensions the neck is out of reach: what the chains from the base have seen is too little, and only the bracket tells."""
    case = truth("ais_targets")["targets"][6]
    energy = Funnel(10)
    base = Gaussian(torch.zeros(10), covariance=torch.full((10,), 9.0))
    settings = {"sampler": HMC(0.3, 5, jitter=0.9), "betas": [(k / 100) ** 4 for k in range(101)]}
    low = ais(energy, base, num_chains=500, seed=0, **settings)
    high = reverse_ais(energy, base, x=energy.sample(500, key=Key(1)), seed=0, **settings)
    assert low.log_z + 4 * low.standard_error < case["lnZ"] < high.log_z + 4 * high.standard_error
    assert float(low.log_weights.mean()) < case["lnZ"] < -float(high.log_weights.mean())


class Bits:
    """Neighbours that attract or repel, and fields, of {0, 1}."""

    def __call__(self, x: Tensor) -> Tensor:
        y = x.flatten(1)
        return (y * torch.linspace(-1, 1, y.shape[1])).sum(1) - 1.5 * (y[:, 1:] * y[:, :-1]).sum(1)


class FreeSpins:
    """E = 0 of -1 and +1."""

    alphabet, log_z = Alphabet("spin"), 9 * math.log(2)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x))

    def energy_and_differences(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return self(states), torch.zeros(len(states), 9)

    def sample(self, num: int, *, key: Key) -> Tensor:
        return ops.rademacher((num, 3, 3), key=key).to(torch.int8)


@pytest.mark.parametrize("sampler", [GibbsWithGradients(), DiscreteLangevin(0.5), RandomFlipMetropolis(), Gibbs()], ids=lambda s: type(s).__name__)
def test_bits(sampler):
    energy = Bits()
    base = Independent(Bernoulli(torch.full((6,), 0.6), validate_args=False), 1)
    result = ais(energy, base, sampler, num_chains=2000, betas=20, seed=0)
    assert abs(result.log_z - exact_log_z(energy, (6,))) < 3 * result.standard_error < 0.1
    assert result.x.shape == (2000, 6)


def test_spins():
    energy = Ising.lattice((3, 3), coupling=0.3, field=0.2)
    result = ais(energy, FreeSpins(), GibbsWithGradients(), num_chains=2000, betas=20, seed=0)
    assert abs(result.log_z - exact_log_z(energy, (3, 3))) < 3 * result.standard_error < 0.2
    assert result.x.dtype == torch.int8


@pytest.mark.parametrize("sampler", [MALA(1.0), HMC(0.7, 2), RandomWalkMetropolis(1.0)], ids=lambda sampler: type(sampler).__name__)
def test_what_is_carried(sampler):
    """After moves of which many are rejected: both parts, E_β and its gradient are those of the states, and moved chains start from them."""
    bridge = Bridge(3, 1.0, 0.5)
    annealing = AnnealedImportanceSampling(bridge.base, sampler, [0, 0.1, 0.3, 0.6, 0.8, 1])
    state = annealing.init(bridge, 200, seed=0)
    for beta in (0.0, 0.1, 0.3, 0.6, 0.8):
        x, parts = state.chains.x, state.parts
        torch.testing.assert_close(parts.base_energy, bridge.base(x))
        torch.testing.assert_close(parts.energy, bridge(x))
        value, grad = energy_and_grad(lambda x, beta=beta: (1 - beta) * bridge.base(x) + beta * bridge(x), x)
        torch.testing.assert_close(state.chains.energy, value)
        if state.chains.grad is not None:
            torch.testing.assert_close(state.chains.grad, grad)
            torch.testing.assert_close(parts.base_slope, x)
            torch.testing.assert_close(parts.slope, (x - 1) / 0.25)
        before, state = state, annealing.advance(bridge, state, 1)
        gain = parts.base_energy - parts.energy
        torch.testing.assert_close(state.log_weights - before.log_weights, gain * float(state.betas[-1] - beta))
        if beta < 0.8:
            has_moved = (state.chains.x != x).any(1)
            assert 0 < int(has_moved.sum()) < 200
    assert_same_bits(state.chains.x, before.chains.x)


def test_what_is_carried_of_bits():
    energy, base = Bits(), Independent(Bernoulli(torch.full((6,), 0.6), validate_args=False), 1)
    for sampler in (GibbsWithGradients(), Gibbs(), RandomFlipMetropolis()):
        annealing = AnnealedImportanceSampling(base, sampler, 4)
        state = annealing.advance(energy, annealing.init(energy, 200, seed=0), 2)
        x = state.chains.x
        torch.testing.assert_close(state.parts.base_energy, -base.log_prob(x))
        torch.testing.assert_close(state.parts.energy, energy(x))
        torch.testing.assert_close(state.chains.energy, (energy(x) - base.log_prob(x)) / 2)
        if isinstance(sampler, GibbsWithGradients):
            flipped = x[:, None] + torch.diag_embed(1 - 2 * x)
            differences = energy(x)[:, None] - torch.stack([energy(flipped[:, k]) for k in range(6)], 1)
            torch.testing.assert_close(state.parts.slope, differences)


class Evaluated:
    """An energy that counts its forward and its backward passes."""

    def __init__(self, energy: Any) -> None:
        self.energy, self.forward, self.backward = energy, 0, 0
        self.__dict__.update({name: getattr(energy, name) for name in ("log_z", "sample") if hasattr(energy, name)})

    def __call__(self, x: Tensor) -> Tensor:
        self.forward += 1
        value = self.energy(x)
        if value.requires_grad:
            value.register_hook(self._count)
        return value

    def _count(self, grad: Tensor) -> None:
        self.backward += 1


@pytest.mark.parametrize(
    ("sampler", "num_steps", "per_temperature", "backward"),
    [(MALA(0.2), 1, 1, 1), (MALA(0.2), 3, 3, 1), (HMC(0.2, 4), 1, 4, 1), (RandomWalkMetropolis(0.5), 1, 1, 0)],
)
@pytest.mark.parametrize("is_reverse", [False, True])
def test_one_evaluation_a_temperature(sampler, num_steps, per_temperature, backward, is_reverse):
    """Of the energy and of the base, forward and backward: the first at the start, none where only β changes."""
    bridge = Bridge(3, 1.0, 0.5)
    energy, base = Evaluated(bridge), Evaluated(bridge.base)
    options = {"betas": 20, "num_steps": num_steps, "seed": 0}
    if is_reverse:
        reverse_ais(energy, base, sampler, torch.ones(8, 3, dtype=torch.float64), **options)
    else:
        ais(energy, base, sampler, num_chains=8, **options)
    wanted = 1 + 19 * per_temperature
    for each in (energy, base):
        assert (each.forward, each.backward) == (wanted, backward * wanted)


def test_one_evaluation_a_temperature_of_bits():
    energy = Evaluated(Bits())
    ais(energy, Bernoulli(torch.full((6,), 0.6), validate_args=False), GibbsWithGradients(), num_chains=50, betas=20, seed=0)
    assert (energy.forward, energy.backward) == (20, 20)


def test_adaptive_betas():
    """Every step keeps the conditional effective sample size, and costs no evaluation beyond the move."""
    bridge = Bridge(10, 0.5, 0.5)
    energy = Counting(bridge)
    result = ais(energy, bridge.base, MALA(0.1), num_chains=1000, conditional_ess=0.9, seed=0)
    assert energy.count == len(result.betas) - 1
    assert abs(result.log_z - bridge.log_z) < 3 * result.standard_error < 0.6
    betas = result.betas
    assert (betas[0], betas[-1]) == (0, 1)
    assert bool((betas.diff() > 0).all())
    # The first step by the definition: N (Σ w u)² / Σ w u² with equal weights.
    x = bridge.base.sample(1000, key=Key(0))
    gain = bridge.base(x) - bridge(x)
    u = (float(betas[1]) * gain).exp()
    assert float(u.sum() ** 2 / (1000 * u.square().sum())) == pytest.approx(0.9, abs=1e-6)
    finer = ais(bridge, bridge.base, MALA(0.1), num_chains=1000, conditional_ess=0.99, seed=0)
    assert len(finer.betas) > 2 * len(betas)
    again = ais(bridge, bridge.base, MALA(0.1), num_chains=1000, betas=betas, seed=0)
    assert_same_bits(again.log_weights, result.log_weights)
    x = 0.5 + 0.5 * ops.normal((1000, 10), key=Key(2), dtype=torch.float64)
    back = reverse_ais(bridge, bridge.base, MALA(0.1), x, conditional_ess=0.9, seed=0)
    assert bool((back.betas.diff() < 0).all())
    assert abs(back.log_z - bridge.log_z) < 3 * back.standard_error


def test_ends_that_are_the_same():
    """E_1 = E_0: one adaptive step, and every weight is Z."""
    base = StandardNormal(2)
    result = ais(base, base, MALA(0.5), num_chains=20, conditional_ess=0.5, seed=0)
    assert result.betas.tolist() == [0, 1]
    assert_same_bits(result.log_weights, torch.full((20,), base.log_z, dtype=torch.float64))
    assert result.effective_sample_size == pytest.approx(20)
    assert result.standard_error < 1e-12


@pytest.mark.parametrize("settings", [{"betas": 30}, {"conditional_ess": 0.98}], ids=["given betas", "adaptive betas"])
@pytest.mark.parametrize("sampler", [MALA(0.2), HMC(0.2, 2)])
def test_pieces_give_the_same_bits(settings, sampler):
    bridge = Bridge(3, 1.0, 0.5)
    whole = ais(bridge, bridge.base, sampler, num_chains=8, seed=5, **settings)
    annealing = AnnealedImportanceSampling(bridge.base, sampler, **settings)
    state = annealing.init(bridge, 8, seed=5)
    for num_temperatures in (0, 1, 4, 7):
        state = annealing.advance(bridge, state, num_temperatures)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    state = torch.load(file, weights_only=False)
    with pytest.raises(ValueError, match="ais: state must have gone through all betas"):
        annealing.result(state)
    before = state.log_weights.clone(), state.chains.x.clone()
    state, cut = annealing.advance(bridge, state, 10**6), state
    assert_same_bits(cut.log_weights, before[0])
    assert_same_bits(cut.chains.x, before[1])
    assert state.is_done
    assert annealing.advance(bridge, state, 5).betas.equal(state.betas)
    result = annealing.result(state)
    for name in ("log_weights", "betas", "acceptance_prob", "x"):
        assert_same_bits(getattr(result, name), getattr(whole, name), name)
    assert (result.log_z, result.standard_error, result.interval) == (whole.log_z, whole.standard_error, whole.interval)


def test_interrupted():
    """Ctrl-C hands over a state from which the run goes on to the bits of an uninterrupted one."""
    bridge = Bridge(3, 1.0, 0.5)

    class Interrupting(Counting):
        def __call__(self, x: Tensor) -> Tensor:
            if self.count == 25:
                raise KeyboardInterrupt
            return super().__call__(x)

    with pytest.raises(KeyboardInterrupt) as interrupt:
        ais(Interrupting(bridge), bridge.base, MALA(0.2), num_chains=8, betas=60, seed=5)
    state = interrupt.value.state
    assert 10 <= len(state.betas) <= 25
    annealing = AnnealedImportanceSampling(bridge.base, MALA(0.2), 60)
    result = annealing.result(annealing.advance(bridge, state, 60))
    assert_same_bits(result.log_weights, ais(bridge, bridge.base, MALA(0.2), num_chains=8, betas=60, seed=5).log_weights)


def test_split_batches():
    bridge, annealing = Bridge(3, 1.0, 0.5), AnnealedImportanceSampling(StandardNormal(3), MALA(0.2), 20)
    whole, *parts = (
        annealing.advance(bridge, annealing.init(bridge, n, seed=Key(3).shard(first)), 20).log_weights for n, first in ((32, 0), (8, 0), (24, 8))
    )
    assert_same_bits(torch.cat(parts), whole)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_modes_of_torch(context):
    bridge = Bridge(3, 1.0, 0.5)
    expected = ais(bridge, bridge.base, MALA(0.2), num_chains=8, betas=10, seed=0)
    with context():
        result = ais(bridge, bridge.base, MALA(0.2), num_chains=8, betas=10, seed=0)
    assert_same_bits(result.log_weights, expected.log_weights)


def test_distributions_as_base(untouched_generator):
    """Their draws come from the key: the same for one seed, other ones for another, and torch's generator stays where it was."""
    base = Independent(Normal(torch.zeros(3), 2 * torch.ones(3)), 1)
    first, again, other = (ais(quartic, base, MALA(0.05), num_chains=8, betas=50, seed=seed) for seed in (1, 1, 2))
    assert_same_bits(first.log_weights, again.log_weights)
    assert not torch.equal(first.log_weights, other.log_weights)
    annealing = AnnealedImportanceSampling(base, MALA(0.05), 50)
    assert not bool((annealing.init(quartic, 20, seed=1).chains.x == annealing.init(quartic, 20, seed=2).chains.x).any())
    assert first.x.dtype == torch.float32
    unsummed = ais(quartic, Normal(torch.zeros(3), 2 * torch.ones(3)), MALA(0.05), num_chains=8, betas=50, seed=1)
    torch.testing.assert_close(unsummed.log_weights, first.log_weights, rtol=1e-4, atol=1e-4)


def test_parameters_keep_their_gradients():
    model = torch.nn.Linear(3, 1)
    ais(lambda x: model(x)[:, 0] + x.square().sum(1), StandardNormal3(), MALA(0.1), num_chains=4, betas=3, seed=0)
    assert all(p.grad is None for p in model.parameters())


class StandardNormal3(StandardNormal):
    def __init__(self) -> None:
        super().__init__(3)

    def sample(self, num: int, *, key: Key) -> Tensor:
        return super().sample(num, key=key).float()


def test_walls():
    """Where the energy is +inf the weight is 0: Z of a normal cut to [-1, 1]."""

    def energy(x: Tensor) -> Tensor:
        return torch.where(x.abs() < 1, 0.5 * x.square(), math.inf).sum(1)

    for settings in ({"betas": 10}, {"conditional_ess": 0.9}):
        result = ais(energy, StandardNormal(1), MALA(0.1), num_chains=1000, seed=0, **settings)
        inside = int((result.log_weights > -math.inf).sum())
        assert result.log_weights.isfinite().sum() == inside == round(result.effective_sample_size)
        assert result.log_z == pytest.approx(0.5 * LOG_2PI + math.log(inside / 1000))
        assert abs(result.log_z - 0.5 * LOG_2PI - math.log(math.erf(0.5**0.5))) < 3 * result.standard_error
    with pytest.raises(ValueError, match="ais: weights must not all be 0"):
        ais(lambda x: torch.where(x > 100, 0.0, math.inf).sum(1) + 0 * x.sum(1), StandardNormal(1), MALA(0.1), num_chains=10, betas=3, seed=0)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_infinite_weights(value):
    def energy(x: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x)) == 3, value, 0.5 * x.square().sum(1))

    with pytest.raises(DivergenceError, match=r"ais: the weight is infinite or NaN in 1 of 10 chains \[3\]") as error:
        ais(energy, StandardNormal(2), MALA(0.1), num_chains=10, betas=3, seed=0)
    assert error.value.chains == [3]


def test_base_that_is_infinite_at_its_own_draws():
    base = StandardNormal(2)
    base_energy = type("Base", (), {"log_z": 0.0, "sample": base.sample, "__call__": lambda self, x: torch.where(x > 0, math.inf, 0 * x).sum(1)})()
    with pytest.raises(DivergenceError, match=r"MALA\.init"):
        ais(base, base_energy, MALA(0.1), num_chains=10, betas=3, seed=0)


def test_few_effective_samples_are_warned_of():
    bridge = Bridge(20, 3.0, 0.3)
    with pytest.warns(RuntimeWarning, match=r"^ais: the effective sample size is .* log_z is too low") as warned:
        ais(bridge, bridge.base, MALA(0.01), num_chains=100, betas=3, seed=0)
    assert warned[0].filename == __file__
    with pytest.warns(RuntimeWarning, match=r"^reverse_ais: the effective sample size is .* log_z is too high") as warned:
        reverse_ais(bridge, bridge.base, MALA(0.01), 3 + 0.3 * ops.normal((100, 20), key=Key(0), dtype=torch.float64), betas=3, seed=0)
    assert warned[0].filename == __file__


def test_moves_that_are_all_rejected_are_warned_of():
    base = StandardNormal(2)
    with pytest.warns(RuntimeWarning, match=r"ais: no proposal of MALA\(step_size=1000000") as warned:
        ais(base, base, MALA(1e6), num_chains=5, betas=1002, seed=0)
    assert warned[0].filename == __file__


def test_progress(capsys):
    bridge = Bridge(2, 1.0, 0.5)
    for settings in ({"betas": 25}, {"conditional_ess": 0.9}):
        ais(bridge, bridge.base, MALA(0.2), num_chains=8, seed=0, progress=True, **settings)
    assert "25/25" in capsys.readouterr().err


NORMAL, ENERGY = StandardNormal(2), quartic


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "base must have log_prob and sample, or be an energy with log_z and sample, got function", {"base": quartic}),
        (TypeError, "base must have log_prob and sample, .* got BernoulliRBM", {"base": BernoulliRBM(2, 2)}),
        (TypeError, "base must have log_prob and sample, .* got NoneType", {"base": None}),
        (TypeError, "sampler must leave its target invariant, or be a function of beta, got None", {"sampler": None}),
        (TypeError, "sampler must leave its target invariant, as samplers that accept or reject do, got Langevin", {"sampler": Langevin(0.1)}),
        (TypeError, "sampler must leave its target invariant, as .* got KineticLangevin", {"sampler": KineticLangevin(0.1, 1.0)}),
        (TypeError, "sampler must leave its target invariant.*metropolis=False", {"sampler": DiscreteLangevin(0.1, metropolis=False)}),
        (ValueError, "num_chains must be an int >= 1, got 0", {"num_chains": 0}),
        (ValueError, "num_steps must be an int >= 1, got 0", {"num_steps": 0}),
        (ValueError, r"betas must start at 0 and end at 1, got 0.0 ... 0.9", {"betas": [0, 0.9]}),
        (ValueError, r"betas must start at 0 and end at 1, got 1.0 ... 0.0", {"betas": [1, 0]}),
        (ValueError, "betas must rise, got 0.5 after 0.5 at index 2", {"betas": [0, 0.5, 0.5, 1]}),
        (ValueError, "give betas or conditional_ess, not both", {"betas": 10, "conditional_ess": 0.9}),
        (ValueError, r"conditional_ess must be in \(0, 1\), got 1.0", {"betas": None, "conditional_ess": 1.0}),
        (TypeError, "conditional_ess must be a number, got 'high'", {"betas": None, "conditional_ess": "high"}),
        (ValueError, "give base or base_visible_bias, not both", {"base_visible_bias": torch.zeros(2)}),
        (ValueError, "conditional_ess and num_steps need a base and a sampler", {"base": None, "sampler": None, "num_steps": 2}),
    ],
)
def test_bad_input(error, match, arguments):
    with pytest.raises(error, match="ais: " + match):
        ais(**{"energy": ENERGY, "base": NORMAL, "sampler": MALA(0.1), "num_chains": 4, "betas": 3, "seed": 1} | arguments)


def test_bad_draws():
    class Flat(StandardNormal):
        def sample(self, num: int, *, key: Key) -> Tensor:
            return torch.zeros(num)

    with pytest.raises(ValueError, match=r"ais: base.sample must return a torch.Tensor of shape \(4, \*event\), got \(4,\)"):
        ais(quartic, Flat(2), MALA(0.1), num_chains=4, betas=3, seed=0)
    for x in (torch.zeros(0, 2), torch.zeros(3), None):
        with pytest.raises(ValueError, match=r"reverse_ais: x must be a torch.Tensor of shape"):
            reverse_ais(quartic, NORMAL, MALA(0.1), x, betas=3, seed=0)


def test_ends_too_far_apart_for_adaptive_betas():
    def energy(x: Tensor) -> Tensor:
        return 1e9 * x.square().sum(1)

    with pytest.raises(RuntimeError, match=r"ais: adaptive betas need steps below 1e-07 at beta = 0"):
        ais(energy, NORMAL, MALA(0.1), num_chains=50, conditional_ess=0.99, seed=0)


class TestGeometricPath:
    def test_value_and_gradient(self):
        path = GeometricPath(NORMAL, quartic, 0.3)
        x = ops.normal((7, 2), key=Key(1), dtype=torch.float64)
        value, grad = energy_and_grad(path, x)
        expected, expected_grad = energy_and_grad(lambda x: 0.7 * NORMAL(x) + 0.3 * quartic(x), x)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(grad, expected_grad)
        torch.testing.assert_close(path(x), expected)
        leaf = x.clone().requires_grad_()
        (path(leaf) * torch.arange(7.0)).sum().backward()
        torch.testing.assert_close(leaf.grad, expected_grad * torch.arange(7.0)[:, None])

    def test_ends(self):
        x = torch.ones(2, 1)
        nowhere = lambda x: torch.full((len(x),), math.inf)  # noqa: E731
        assert GeometricPath(NORMAL, nowhere, 0.0)(x).isfinite().all()
        assert GeometricPath(nowhere, NORMAL, 1.0)(x).isfinite().all()
        assert (GeometricPath(NORMAL, nowhere, 0.5)(x) == math.inf).all()

    def test_what_is_kept_is_a_copy(self):
        """Samplers may write to their states after a call."""
        path, x = GeometricPath(NORMAL, quartic, 0.5), torch.ones(2, 2)
        path(x)
        x.zero_()
        kept, parts = path.last
        assert (kept == 1).all()
        assert (parts.base_energy == 1).all()

    def test_alphabets(self):
        with pytest.raises(ValueError, match="GeometricPath: base must have the alphabet of energy"):
            GeometricPath(quartic, Ising.lattice((3, 3), 0.1))

    def test_a_metropolis_sampler_runs_on_it(self):
        """It is an energy like any other: half-way between two normals of precision 1 and 4 lies one of 2.5."""
        path = GeometricPath(NORMAL, lambda x: 2 * x.square().sum(1), 0.5)
        x = MALA(0.2)(path, ops.normal((10_000, 2), key=Key(1), dtype=torch.float64), 50, seed=2)
        assert_mean(x.square(), 0.4, 0.4 * 2**0.5, what="variance half-way")
