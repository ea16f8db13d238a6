"""The error bar: the bootstrap against the delta method, and how often its interval holds the truth."""

from __future__ import annotations

import math

import pytest
import torch

from ebmcore import Key, ops
from ebmcore.evaluation import weights
from ebmcore.evaluation.weights import log_z_of_weights
from support.statistics import assert_count

NOTHING = {"betas": torch.zeros(2), "acceptance_prob": None, "x": torch.zeros(0), "stacklevel": 2}


def test_against_the_delta_method():
    log_weights = ops.normal((500, 1), key=Key(1), dtype=torch.float64)[:, 0] * 0.3
    w = log_weights.exp()
    result = log_z_of_weights(log_weights, key=Key(2), **NOTHING)
    error = float(w.std() / w.mean()) / math.sqrt(500)
    assert result.log_z == pytest.approx(math.log(float(w.mean())), abs=1e-12)
    assert result.standard_error == pytest.approx(error, rel=0.1)
    assert result.interval == pytest.approx((result.log_z - 1.96 * error, result.log_z + 1.96 * error), abs=0.2 * error)
    assert result.effective_sample_size == pytest.approx(float(w.sum() ** 2 / w.square().sum()))
    reverse = log_z_of_weights(log_weights, key=Key(2), is_reverse=True, **NOTHING)
    assert (reverse.log_z, reverse.standard_error) == (-result.log_z, pytest.approx(result.standard_error))
    assert reverse.interval == pytest.approx((-result.interval[1], -result.interval[0]), abs=0.05 * error)


def test_how_often_the_interval_holds_the_truth():
    """Log-normal weights of E w = 1; the percentile interval of 100 of them is known to fall a little short of 95 %."""
    draws = 0.5 * ops.normal((400, 100), key=Key(3), dtype=torch.float64) - 0.125
    intervals = [log_z_of_weights(row, key=Key(k), **NOTHING).interval for k, row in enumerate(draws.unbind())]
    assert_count(sum(low < 0 < high for low, high in intervals), 400, 0.94, what="intervals that hold the truth")


def test_draws_of_the_bootstrap(monkeypatch):
    """Each weight is drawn as often as any other, and blocks of resamples change nothing."""
    w = torch.zeros(7, dtype=torch.float64)
    for k in range(7):
        w.zero_()
        w[k] = 7.0
        means = weights._resampled_means(w, Key(5))
        assert means.shape == (1000,)
        assert abs(float(means.mean()) - 1) < 5.45 * math.sqrt(6 / 7000)  # 7000 draws, each with probability 1/7
    monkeypatch.setattr(weights, "_DRAWS_AT_ONCE", 50)
    assert torch.equal(weights._resampled_means(w, Key(5)), means)


def test_few_weights():
    single = log_z_of_weights(torch.tensor([1.0], dtype=torch.float64), key=Key(0), **NOTHING)
    assert single.log_z == 1
    assert all(map(math.isnan, (single.standard_error, *single.interval)))
    far_apart = torch.tensor([0.0, -2000.0], dtype=torch.float64)
    assert log_z_of_weights(far_apart, key=Key(0), **NOTHING).standard_error == math.inf
    huge = log_z_of_weights(far_apart + 1e6, key=Key(0), **NOTHING)
    assert huge.log_z == pytest.approx(1e6 - math.log(2))
