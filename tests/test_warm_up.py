"""Adaptation in warm-up: it reaches the target, returns frozen samplers, and refuses what has nothing to adapt."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import ebmcore
from ebmcore import (
    HMC,
    MALA,
    DiscreteLangevin,
    Gibbs,
    GibbsWithGradients,
    Key,
    KineticLangevin,
    Langevin,
    PathAuxiliary,
    RandomFlipMetropolis,
    RandomWalkMetropolis,
    ops,
    warm_up,
)
from support.targets import assert_same_bits


def field(x: Tensor) -> Tensor:
    """Independent sites: at infinite step all flips are as likely, and few proposals are accepted."""
    return (x.flatten(1) * torch.linspace(-2.0, 2.5, x[:1].numel())).sum(1)


def stretched(x: Tensor) -> Tensor:
    """Independent normals with standard deviations from 0.1 to 10."""
    return 0.5 * (x / DEVIATIONS).square().sum(1)


def coupled(x: Tensor) -> Tensor:
    """Sites that agree with their neighbours, so that many changes at once are seldom taken."""
    y = 2 * x - 1
    return -0.8 * (y[:, 1:] * y[:, :-1]).sum(1)


DEVIATIONS = torch.logspace(-1, 1, 10, dtype=torch.float64)
X = ops.bernoulli((500, 60), 0.5, key=Key(1))


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [(DiscreteLangevin(0.01), 0.03), (DiscreteLangevin(5.0), 0.03), (PathAuxiliary(40), 0.1), (GibbsWithGradients(40), 0.1)],
)
def test_the_target_is_reached(sampler, tolerance):
    """From far off on either side. Counts can be off by half of one."""
    tuned, x = warm_up(sampler, coupled, X, 200, seed=1)
    assert type(tuned) is type(sampler)
    assert tuned != sampler
    _, info = tuned.advance(coupled, tuned.init(coupled, x, seed=2), 50)
    assert abs(float(info.acceptance_prob.mean()) - 0.574) < tolerance


@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("sampler", "target"), [(MALA(0.01), 0.574), (HMC(0.1, 5, jitter=0.5), 0.651), (RandomWalkMetropolis(0.1), 0.234)])
def test_the_target_of_continuous_samplers_is_reached(sampler, target, factor):
    """Their own, from steps that are far too short or too long. HMC jittered: otherwise orbits that close make its acceptance rise and fall."""
    sampler = dataclasses.replace(sampler, step_size=factor * sampler.step_size)
    z = ops.normal((200, 10), key=Key(2), stream=ops.Stream.INIT, dtype=torch.float64)
    tuned, x = warm_up(sampler, stretched, z * DEVIATIONS, 300, seed=1)
    assert tuned == dataclasses.replace(sampler, step_size=tuned.step_size)
    _, info = tuned.advance(stretched, tuned.init(stretched, x, seed=2), 50)
    assert abs(float(info.acceptance_prob.mean()) - target) < 0.03


def test_dual_averaging_against_the_paper():
    """Its recursion (Hoffman & Gelman 2014, algorithm 5) written out, fed with the acceptance that each step size had."""
    x = ops.normal((50, 10), key=Key(3), dtype=torch.float64)
    for num_steps in (1, 2, 7):
        tuned, _ = warm_up(MALA(0.1), stretched, x, num_steps, target_acceptance=0.7, seed=4)
        mu, mean_error, log_step, log_average = math.log(10 * 0.1), 0.0, math.log(0.1), 0.0
        state = MALA(0.1).init(stretched, x, seed=4)
        for m in range(1, num_steps + 1):
            state, info = MALA(math.exp(log_step)).step(stretched, state)
            mean_error = (1 - 1 / (m + 10)) * mean_error + (0.7 - float(info.acceptance_prob.mean())) / (m + 10)
            log_step = mu - math.sqrt(m) / 0.05 * mean_error
            log_average = m**-0.75 * log_step + (1 - m**-0.75) * log_average
        assert tuned.step_size == pytest.approx(math.exp(log_average), rel=1e-9)


@pytest.mark.parametrize("sampler", [MALA(0.01), HMC(0.1, 5, jitter=0.5), RandomWalkMetropolis(0.1)], ids=lambda s: type(s).__name__)
def test_the_metric_is_found(sampler):
    """Of 400 chains in equilibrium: variances to a fifth of themselves, and the target's acceptance with them."""
    z = ops.normal((400, 10), key=Key(2), stream=ops.Stream.INIT, dtype=torch.float64)
    tuned, x = warm_up(sampler, stretched, z * DEVIATIONS, 400, adapt_inverse_mass=True, seed=1)
    assert sampler.inverse_mass is None
    ratio = tuned.inverse_mass / DEVIATIONS**2
    assert 0.8 < float(ratio.min()) < float(ratio.max()) < 1.25
    assert tuned == dataclasses.replace(sampler, step_size=tuned.step_size, inverse_mass=tuned.inverse_mass)
    _, info = tuned.advance(stretched, tuned.init(stretched, x, seed=2), 50)
    assert abs(float(info.acceptance_prob.mean()) - sampler.target_acceptance) < 0.05
    plain, _ = warm_up(sampler, stretched, z * DEVIATIONS, 400, seed=1)
    assert tuned.step_size > 2 * plain.step_size * float(DEVIATIONS.min())  # in units of the narrowest direction


def test_the_variances_are_those_of_the_steps():
    """Of all chains in the second and third quarter, pooled and shrunk towards 1e-3 with the weight of five."""
    x = ops.normal((7, 3), key=Key(5), dtype=torch.float64) + 100.0

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (x - 100.0).square().sum(1)

    seen: list[Tensor] = []

    class Recording(MALA):
        def step(self, energy, state):
            state, info = super().step(energy, state)
            seen.append(state.x)
            return state, info

    tuned, _ = warm_up(Recording(0.1), energy, x, 12, adapt_inverse_mass=True, seed=6)
    used = torch.cat(seen[3:9])
    n = len(used)
    torch.testing.assert_close(tuned.inverse_mass, used.var(0) * n / (n + 5) + 1e-3 * 5 / (n + 5), rtol=1e-10, atol=0)


def test_a_flat_energy():
    """Every step is accepted: the step size ends at a finite limit."""
    tuned, x = warm_up(MALA(0.1), lambda x: 0.0 * x.sum(1), torch.zeros(3, 2), 2000, seed=1)
    assert 1e20 < tuned.step_size <= 1.001e30
    assert bool(x.isfinite().all())


def test_another_target():
    tuned, x = warm_up(DiscreteLangevin(1.0), coupled, X, 200, target_acceptance=0.8, seed=1)
    _, info = tuned.advance(coupled, tuned.init(coupled, x, seed=2), 50)
    assert abs(float(info.acceptance_prob.mean()) - 0.8) < 0.03


def test_it_is_reproducible_and_changes_nothing(untouched_generator):
    sampler = DiscreteLangevin(0.1)
    before = X.clone()
    (a, x), (b, y) = (warm_up(sampler, coupled, X, 20, seed=Key(3)) for _ in range(2))
    assert a == b
    assert_same_bits(x, y)
    assert sampler == DiscreteLangevin(0.1)
    assert_same_bits(X, before)
    with pytest.raises(AttributeError):
        a.step_size = 1.0


def test_counts_stay_counts():
    for sampler, name in ((PathAuxiliary(2), "path_length"), (GibbsWithGradients(2), "num_flips")):
        tuned, _ = warm_up(sampler, lambda x: 0.0 * x.sum(1), X[:, :5], 60, seed=1)
        assert getattr(tuned, name) == 5  # every proposal is accepted, and there are no more sites
        assert isinstance(getattr(tuned, name), int)
        tuned, _ = warm_up(sampler, lambda x: 30.0 * ((x[:, :5].sum(1) - 1).abs()), torch.eye(5), 60, seed=1)
        assert getattr(tuned, name) >= 1


def test_what_it_refuses():
    for sampler in (Gibbs(), RandomFlipMetropolis(), DiscreteLangevin(1.0, metropolis=False), ebmcore.SwendsenWang()):
        with pytest.raises(TypeError, match="warm_up: sampler must accept or reject and have one of step_size, path_length, num_flips"):
            warm_up(sampler, field, X, 10)
    with pytest.raises(TypeError, match="warm_up: sampler must report acceptance_prob"):
        warm_up(Langevin(0.1), field, X, 10)
    with pytest.raises(TypeError, match="warm_up: sampler must report acceptance_prob"):
        warm_up(KineticLangevin(0.1, 1.0), field, X, 10)
    with pytest.raises(TypeError, match="warm_up: sampler must have an inverse_mass"):
        warm_up(DiscreteLangevin(0.1), field, X, 10, adapt_inverse_mass=True)
    with pytest.raises(TypeError, match="warm_up: adapt_inverse_mass must be a bool"):
        warm_up(MALA(0.1), field, X, 10, adapt_inverse_mass=1)
    with pytest.raises(ValueError, match="warm_up: num_steps must be an int >= 8, got 7"):
        warm_up(MALA(0.1), field, X, 7, adapt_inverse_mass=True)
    for bad in (0, -1, 1.5, True):
        with pytest.raises((TypeError, ValueError), match="warm_up: num_steps"):
            warm_up(DiscreteLangevin(1.0), field, X, bad)
    for bad in (0.0, 1.0, -0.5, math.nan, "0.5", 1):
        with pytest.raises(ValueError, match=r"warm_up: target_acceptance must be in \(0, 1\)"):
            warm_up(DiscreteLangevin(1.0), field, X, 10, target_acceptance=bad)
