"""Adaptation in warm-up: it reaches the target, returns frozen samplers, and refuses what has nothing to adapt."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ebmcore
from ebmcore import DiscreteLangevin, Gibbs, GibbsWithGradients, Key, Langevin, PathAuxiliary, RandomFlipMetropolis, ops, warm_up
from support.targets import assert_same_bits


def field(x: Tensor) -> Tensor:
    """Independent sites: at infinite step all flips are as likely, and few proposals are accepted."""
    return (x.flatten(1) * torch.linspace(-2.0, 2.5, x[:1].numel())).sum(1)


def coupled(x: Tensor) -> Tensor:
    """Sites that agree with their neighbours, so that many changes at once are seldom taken."""
    y = 2 * x - 1
    return -0.8 * (y[:, 1:] * y[:, :-1]).sum(1)


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
    for bad in (0, -1, 1.5, True):
        with pytest.raises((TypeError, ValueError), match="warm_up: num_steps"):
            warm_up(DiscreteLangevin(1.0), field, X, bad)
    for bad in (0.0, 1.0, -0.5, math.nan, "0.5", 1):
        with pytest.raises(ValueError, match=r"warm_up: target_acceptance must be in \(0, 1\)"):
            warm_up(DiscreteLangevin(1.0), field, X, 10, target_acceptance=bad)
