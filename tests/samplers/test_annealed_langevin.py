"""Annealed Langevin: the law of every step on a Gaussian, the two conventions, the ladder, and what it refuses."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ebmcore import AnnealedLangevin, DivergenceError, Key, ops
from ebmcore.networks import ScoreMLP
from support.statistics import assert_gaussian
from support.targets import Counting, assert_same_bits

LEVELS = (2.0, 0.7, 0.3)
KEY = Key(5, step=6, first_chain=7)
MEAN, STD = torch.tensor([1.5, -0.5], dtype=torch.float64), torch.tensor([0.4, 1.2], dtype=torch.float64)
NUM_CHAINS = 40_000


def score(x: Tensor, sigma: Tensor) -> Tensor:
    """Of N(MEAN, STD² + σ²): that Gaussian's data smoothed by σ."""
    return (MEAN.to(x) - x) / (STD.to(x).square() + sigma[:, None].square())


def energy(x: Tensor, sigma: Tensor) -> Tensor:
    return 0.5 * ((MEAN.to(x) - x).square() / (STD.to(x).square() + sigma[:, None].square())).sum(1)


def start(rows: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return ops.normal((rows, 2), key=Key(1), dtype=torch.float64).to(dtype)


class Recording:
    """A score that writes down which levels it was asked for."""

    def __init__(self) -> None:
        self.levels: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == x.shape[:1]
        assert (sigma.dtype, sigma.device) == (x.dtype, x.device)
        assert len(sigma.unique()) == 1
        self.levels.append(float(sigma[0]))
        return score(x, sigma)


class Spoiled:
    """A score, or an energy, that at evaluation `when` (from 0) is `value` for the chains `chains`."""

    def __init__(self, when: int, chains: list[int], value: float = math.nan, of: Any = score) -> None:
        self.when, self.chains, self.value, self.of, self.count = when, chains, value, of, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        result: Tensor = self.of(x, sigma)
        if self.count == self.when:
            rows = torch.zeros(len(x), dtype=torch.bool)
            rows[self.chains] = True
            result = torch.where(rows.reshape(-1, *[1] * (result.dim() - 1)), self.value, result)
        self.count += 1
        return result


# The law and the steps


@pytest.mark.parametrize("model", [score, energy], ids=["score", "energy"])
@pytest.mark.parametrize(("convention", "scale"), [("paper", 1.0), ("code", 2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_law_on_a_gaussian(device: str, dtype: torch.dtype, convention: str, scale: float, model: Any) -> None:
    """Mean and variance by recursion: m' = m + h (MEAN - m) / v and s' = (1 - h/v)² s + 2h, with v = STD² + σ² and h = α/2 (paper) or α (code)."""
    sampler = AnnealedLangevin(LEVELS, 4, 0.05, convention, denoise=True)
    state = sampler.init(model, torch.full((NUM_CHAINS, 2), 3.0, dtype=dtype, device=device), seed=Key(11))
    mean, variance = torch.full((2,), 3.0, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for level in LEVELS:
        h, v = 0.025 * scale * (level / LEVELS[-1]) ** 2, STD.square() + level**2
        for _ in range(4):
            mean, variance = mean + h * (MEAN - mean) / v, (1 - h / v).square() * variance + 2 * h
        state, _ = sampler.advance(model, state, 4)
        assert_gaussian(state.x, mean, variance.diag(), what=f"{convention}, after level {level}")
    mean, variance = mean + LEVELS[-1] ** 2 * (MEAN - mean) / v, (1 - LEVELS[-1] ** 2 / v).square() * variance
    state, _ = sampler.step(model, state)
    assert_gaussian(state.x, mean, variance.diag(), what=f"{convention}, denoised")


def test_the_smallest_level_is_what_it_targets() -> None:
    """Many steps a level forget the start: N(MEAN, v), v = STD² + σ_L², but for the factor 1 / (1 - h / 2v) of steps that are not small."""
    sampler = AnnealedLangevin((1.0, 0.5), 100, 0.4)
    x = sampler(score, torch.zeros(NUM_CHAINS, 2), seed=3)
    v = STD.square() + 0.25
    assert_gaussian(x, MEAN, (v / (1 - 0.1 / v)).diag(), what="100 steps a level")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step_size", [2e-5, 3.3e-6, 1e-4])
@pytest.mark.parametrize("denoise", [False, True])
def test_the_codes_step_is_twice_the_papers(denoise: bool, step_size: float, dtype: torch.dtype) -> None:
    x, levels = start(dtype=dtype), np.geomspace(1, 0.01, 10)
    paper = AnnealedLangevin(levels, 3, step_size, "paper", denoise)
    code = AnnealedLangevin(levels, 3, step_size / 2, "code", denoise)
    assert_same_bits(paper(score, x, seed=KEY), code(score, x, seed=KEY))
    same_number = AnnealedLangevin(levels, 3, step_size, "code", denoise)
    assert not torch.equal(paper(score, x, seed=KEY), same_number(score, x, seed=KEY))


def test_the_steps_are_the_papers() -> None:
    """Algorithm 1, written out, with the noise of steps key.step + k; then x + σ_L² s."""
    sampler = AnnealedLangevin(LEVELS, 3, 0.02, denoise=True)
    x, k = start(), 0
    for level in LEVELS:
        alpha, sigma = 0.02 * level**2 / LEVELS[-1] ** 2, torch.full((6,), level, dtype=torch.float64)
        for _ in range(3):
            z = ops.normal((6, 2), key=KEY.advance(k), stream=ops.Stream.PROPOSAL, dtype=torch.float64)
            x, k = x + alpha / 2 * score(x, sigma) + math.sqrt(alpha) * z, k + 1
    torch.testing.assert_close(sampler(score, start(), 9, seed=KEY), x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(sampler(score, start(), seed=KEY), x + level**2 * score(x, sigma), rtol=1e-13, atol=1e-13)


def test_an_energy_does_what_its_score_does() -> None:
    sampler = AnnealedLangevin(LEVELS, 3, 0.02)
    torch.testing.assert_close(sampler(energy, start(), seed=KEY), sampler(score, start(), seed=KEY), rtol=1e-13, atol=1e-13)
    state = sampler.init(energy, start(), seed=KEY)
    torch.testing.assert_close(state.energy, energy(start(), torch.full((6,), 2.0)))
    torch.testing.assert_close(state.score, score(start(), torch.full((6,), 2.0)))
    assert sampler.init(score, start(), seed=KEY).energy.isnan().all()


# The ladder


@pytest.mark.parametrize("denoise", [False, True])
def test_levels_in_order_and_one_evaluation_a_step(denoise: bool) -> None:
    sampler = AnnealedLangevin(LEVELS, 2, 0.01, denoise=denoise)
    ladder = [2.0, 2.0, 0.7, 0.7, 0.3, 0.3] + [0.3] * denoise
    assert sampler.num_steps == len(ladder)
    model = Recording()
    sampler(model, start(), seed=1)
    assert model.levels == ladder
    model = Recording()
    state = sampler.init(model, start(), seed=1)
    for _ in ladder:
        state, _ = sampler.step(model, state)
    assert model.levels == [*ladder, 0.3]
    assert state.step == len(ladder)
    counted = Counting(energy)
    sampler(counted, start(), seed=1)
    assert counted.count == len(ladder) + 1, "an energy's first evaluation is done twice"


@pytest.mark.parametrize("denoise", [False, True])
def test_a_call_is_the_whole_ladder(denoise: bool) -> None:
    sampler = AnnealedLangevin(LEVELS, 15, 0.01, denoise=denoise)
    whole = sampler(score, start(), seed=KEY)
    assert_same_bits(sampler(score, start(), 45 + denoise, seed=KEY), whole)
    state = sampler.init(score, start(), seed=KEY)
    for count in (3, 0, 1, 37, 4 + denoise):
        state, _ = sampler.advance(score, state, count)
    assert_same_bits(state.x, whole)
    torch.testing.assert_close(state.score, score(state.x, torch.full((6,), 0.3)))
    with pytest.raises(ValueError, match=r"AnnealedLangevin.advance: num_steps must be at most 0, the rest of a ladder of 4\d steps, got 1"):
        sampler.step(score, state)
    with pytest.raises(ValueError, match=r"AnnealedLangevin: num_steps must be at most 4\d, the rest of a ladder of 4\d steps, got 50"):
        sampler(score, start(), 50)


def test_ladders_of_any_kind_are_tuples_of_floats() -> None:
    expected = AnnealedLangevin((1.0, 0.5), 2, 0.1)
    for levels in ([1, 0.5], np.array([1.0, 0.5]), torch.tensor([1.0, 0.5]), np.array([1.0, 0.5], dtype=np.float32), iter((1.0, 0.5))):
        assert AnnealedLangevin(levels, 2, 0.1) == expected  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(expected)) == expected
    assert hash(expected) == hash(AnnealedLangevin([1, 0.5], 2, 0.1))


# Shapes, and what the caller owns


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3, 4, 5), (1, 1), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == x.shape[:1]
        return -x

    sampler = AnnealedLangevin(LEVELS, 2, 0.01, denoise=True)
    x = torch.full(shape, 0.5, dtype=dtype, device=device)
    result = sampler(model, x, seed=1)
    assert (result.shape, result.dtype, result.device) == (x.shape, x.dtype, x.device)
    state = sampler.init(model, x, seed=1)
    assert_same_bits(state.score, -x)
    assert state.energy.shape == sampler.advance(model, state, 3)[1].is_diverged.shape == x.shape[:1]


def test_the_callers_things_are_untouched(untouched_generator: None) -> None:
    with torch.random.fork_rng(devices=[]):
        network = ScoreMLP(2, hidden=(4,))
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        value: Tensor = network(x) / sigma[:, None]
        return value

    sampler = AnnealedLangevin(LEVELS, 20, 0.01)
    x = start(dtype=torch.float32).requires_grad_()
    before, version = x.detach().clone(), x._version
    for each in (model, lambda x, sigma: model(x, sigma).square().sum(1)):
        result = sampler(each, x, seed=1)
        assert not result.requires_grad
        state = sampler.init(each, x, seed=1)
        score_before, x_before = state.score.clone(), state.x.clone()
        first, second = (sampler.advance(each, state, 7)[0] for _ in range(2))
        assert_same_bits(first.x, second.x)
        assert_same_bits(state.x, x_before)
        assert_same_bits(state.score, score_before)
    assert_same_bits(x.detach(), before)
    assert (x._version, x.grad) == (version, None)
    assert all(bool((p.grad == 7.0).all()) for p in network.parameters() if p.grad is not None)
    with torch.inference_mode():
        assert_same_bits(sampler(model, x, seed=1), sampler(model, before, seed=1))
    strided = before.T.contiguous().T
    assert_same_bits(sampler(model, strided, seed=1), sampler(model, before, seed=1))


def test_a_score_network_builds_no_graph() -> None:
    """Not even at its first evaluation, where it is seen whether the model is an energy."""

    class Watch(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return -x

    AnnealedLangevin(LEVELS, 2, 0.01)(Watch(), start(), seed=1)


# Divergence and bad input


@pytest.mark.parametrize("step", [-1, 0, 3, 31, 32, 40, 58])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite(step: int, value: float) -> None:
    sampler = AnnealedLangevin(LEVELS, 20, 0.001)
    for call in (
        lambda model: sampler(model, start(), seed=1),
        lambda model: sampler.advance(model, sampler.init(model, start(), seed=1), 60),
    ):
        where = "the starting point is" if step < 0 else f"the result of step {step} is"
        message = rf"AnnealedLangevin: {where} not finite \(x, score or energy\) in 2 of 6 chains \(1, 4\)"
        with pytest.raises(DivergenceError, match=message) as caught:
            call(Spoiled(step + 1, [1, 4], value))
        assert (caught.value.chains, caught.value.step) == ([1, 4], step)
        assert all(math.isnan(e) for e in caught.value.last_energies)


def test_an_energy_that_is_not_finite() -> None:
    sampler = AnnealedLangevin(LEVELS, 20, 0.001)
    for value in (math.nan, math.inf):
        with pytest.raises(DivergenceError, match="the result of step 4 is") as caught:
            sampler(Spoiled(6, [3], value, of=energy), start(), seed=KEY)  # evaluation 0 only sees that it is an energy
        state, _ = sampler.advance(energy, sampler.init(energy, start(), seed=KEY), 4)
        assert (caught.value.chains, caught.value.last_energies) == ([3], state.energy[3:4].tolist())


def test_a_state_that_is_not_finite() -> None:
    """The last step's result is not evaluated, and yet looked at."""
    sampler = AnnealedLangevin((1.0,), 3, 1.0)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.where(torch.arange(6)[:, None] == 2, 0.9 * torch.finfo(x.dtype).max, 0.0 * x)

    with pytest.raises(DivergenceError, match="the result of step 2 is") as caught:
        sampler(model, start(), seed=1)
    assert caught.value.chains == [2]


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, ((), 1, 0.1), r"noise_levels must be one or more numbers, each smaller than the one before, got \(\)"),
        (ValueError, ((1.0, 1.0), 1, 0.1), r"noise_levels must be one or more numbers, each smaller than the one before, got \(1.0, 1.0\)"),
        (ValueError, ((0.1, 1.0), 1, 0.1), r"noise_levels must be .* each smaller than the one before, got \(0.1, 1.0\)"),
        (ValueError, ((1.0, 0.0), 1, 0.1), r"noise_levels\[...\] must be a finite number > 0, got 0.0"),
        (ValueError, ((1.0, -0.1), 1, 0.1), r"noise_levels\[...\] must be a finite number > 0, got -0.1"),
        (ValueError, ((math.nan,), 1, 0.1), r"noise_levels\[...\] must be a finite number > 0, got nan"),
        (ValueError, ((math.inf, 1.0), 1, 0.1), r"noise_levels\[...\] must be a finite number > 0, got inf"),
        (TypeError, (("1", "0.1"), 1, 0.1), r"noise_levels\[...\] must be a number, got '1'"),
        (TypeError, (torch.ones(2, 2), 1, 0.1), r"noise_levels\[...\] must be a number, got \[1.0, 1.0\]"),
        (TypeError, (1.0, 1, 0.1), "noise_levels must be a sequence of numbers, got 1.0"),
        (TypeError, (torch.tensor(1.0), 1, 0.1), "noise_levels must be a sequence of numbers, got tensor"),
        (TypeError, ("10", 1, 0.1), "noise_levels must be a sequence of numbers, got '10'"),
        (ValueError, (LEVELS, 0, 0.1), "steps_per_level must be an int >= 1, got 0"),
        (TypeError, (LEVELS, 1.5, 0.1), "steps_per_level must be an int >= 1, got 1.5"),
        (ValueError, (LEVELS, 1, 0.0), "step_size must be a finite number > 0, got 0.0"),
        (ValueError, (LEVELS, 1, -1.0), "step_size must be a finite number > 0, got -1.0"),
        (ValueError, (LEVELS, 1, math.nan), "step_size must be a finite number > 0, got nan"),
        (TypeError, (LEVELS, 1, "0.1"), "step_size must be a number, got '0.1'"),
        (ValueError, (LEVELS, 1, 0.1, "papers"), "convention must be one of paper, code, got 'papers'"),
        (TypeError, (LEVELS, 1, 0.1, "paper", 1), "denoise must be a bool, got 1"),
    ],
)
def test_bad_hyperparameters(error: type[Exception], arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(error, match=f"AnnealedLangevin: {message}"):
        AnnealedLangevin(*arguments)


@pytest.mark.parametrize(
    ("error", "model", "message"),
    [
        (ValueError, lambda x, sigma: x[:, :1], r"model must return shape \(6, 2\) \(a score\) or \(6,\) \(an energy\) .* got \(6, 1\)"),
        (ValueError, lambda x, sigma: x.sum(), r"model must return shape .* got \(\)"),
        (ValueError, lambda x, sigma: x[:3], r"model must return shape .* got \(3, 2\)"),
        (TypeError, lambda x, sigma: x.long(), "model must return a floating-point tensor, got torch.int64"),
        (TypeError, lambda x, sigma: None, "model must return a floating-point tensor, got NoneType"),
        (ValueError, lambda x, sigma: x.to("meta"), "model must return a tensor on cpu, where x is, got meta"),
        (ValueError, lambda x, sigma: x.mul_(2), "model must not modify x in place"),
        (ValueError, lambda x, sigma: sigma, "must depend on x"),
    ],
)
def test_bad_models(error: type[Exception], model: Any, message: str) -> None:
    sampler = AnnealedLangevin(LEVELS, 2, 0.1)
    for call in (lambda: sampler(model, start(), seed=1), lambda: sampler.init(model, start(), seed=1)):
        with pytest.raises(error, match=message):
            call()


def test_bad_states_and_counts() -> None:
    sampler = AnnealedLangevin(LEVELS, 2, 0.1)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(TypeError, match=r"AnnealedLangevin.init: x must be float32 or float64 \(.*\), got torch\."):
            sampler.init(score, start(dtype=dtype))
    with pytest.raises(TypeError, match="x must be float32"):
        sampler(score, torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        sampler(score, [[0.0, 0.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one element"):
        sampler(score, torch.zeros(3, 0))
    with pytest.raises(ValueError, match="num_steps must be an int >= 0, got -1"):
        sampler(score, start(), -1)
    with pytest.raises(TypeError, match=r"num_steps must be an int >= 0, got 1\.0"):
        sampler(score, start(), 1.0)  # type: ignore[arg-type]
    with pytest.raises(DivergenceError, match="the starting point is not finite"):
        sampler(lambda x, sigma: 0.0 * x.nan_to_num(), torch.full((3, 2), math.nan))
