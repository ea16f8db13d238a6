"""Streaming diagnostics against the same formulas on kept draws, the reference R-hat, and a chain of known autocorrelation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ebmcore import MALA, Key, ops, sample
from ebmcore.evaluation import StreamingDiagnostics
from support.targets import quadratic
from support.truths import truth, truth_arrays


def streamed(x: Tensor, batch_size: int) -> StreamingDiagnostics:
    stream = StreamingDiagnostics(batch_size)
    for draw in x.unbind():
        stream.update(draw)
    return stream


@pytest.mark.parametrize("name", ["iid", "ar0.9", "shifted", "cauchy", "oddlen"])
def test_reference_rhat(name):
    x = torch.tensor(truth_arrays("metrics")[f"chain_{name}"]).T
    expected = truth("metrics")["mcmc"]["values"][name]["rhat_identity"]
    assert float(streamed(x, 10).rhat) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8])
def test_formulas_on_kept_draws(dtype):
    x = (ops.normal((105, 4 * 6), key=Key(1)).reshape(105, 4, 2, 3) * 20 + 10).to(dtype)
    stream, y = streamed(x, 10), x.double()
    torch.testing.assert_close(stream.mean, y.mean((0, 1)))
    batches = y[:100].reshape(10, 10, 4, 2, 3).mean(1).flatten(0, 1)
    torch.testing.assert_close(stream.mcse, (batches.var(0) * 10 / (105 * 4)).sqrt())
    variance = y.var(0).mean(0) * (104 / 105) + y.mean(0).var(0)
    torch.testing.assert_close(stream.variance, variance)
    torch.testing.assert_close(stream.ess, variance / stream.mcse.square())
    torch.testing.assert_close(streamed(y + 1e6, 10).mcse, stream.mcse, rtol=1e-6, atol=0)


def test_known_autocorrelation():
    """AR(1) of coefficient 0.9 has (1 - 0.9) / (1 + 0.9) effective draws for each; batches of 500 see 98 % of the correlation."""
    noise = ops.normal((5000, 100), key=Key(2), dtype=torch.float64)
    x = noise.clone()
    for k in range(1, 5000):
        x[k] = 0.9 * x[k - 1] + math.sqrt(1 - 0.81) * noise[k]
    stream = streamed(x, 500)
    assert float(stream.ess) == pytest.approx(500_000 * 0.1 / 1.9, rel=0.25)  # 999 degrees of freedom: 5.45 standard errors
    assert abs(float(stream.mean)) < 5.45 * float(stream.mcse)


def test_as_record():
    x = ops.normal((8, 3), key=Key(1))
    stream = StreamingDiagnostics(5)
    sample(MALA(0.5), quadratic, x, 40, seed=1, record=stream.record)
    kept = sample(MALA(0.5), quadratic, x, 40, seed=1).x
    assert stream.num_draws == 40
    torch.testing.assert_close(stream.mean, kept.double().mean((0, 1)))


def test_too_little():
    stream = StreamingDiagnostics(3)
    with pytest.raises(ValueError, match="update must have been called 1 times or more, got 0"):
        _ = stream.mean
    stream.update(torch.ones(1, 2))
    with pytest.raises(ValueError, match="update must have been called 2 times or more, got 1"):
        _ = stream.variance
    stream.update(torch.ones(1, 2))
    assert stream.rhat.isnan().all()
    assert stream.mcse.isnan().all()
    assert stream.ess.isnan().all()
    assert (stream.variance == 0).all()
    stream.update(torch.full((1, 2), math.nan))
    assert stream.mean.isnan().all()


def test_bad_input():
    stream = StreamingDiagnostics(3)
    for shape in ((), (0, 2)):
        with pytest.raises(ValueError, match=r"x must have shape \(num_chains >= 1, \*event\)"):
            stream.update(torch.zeros(shape))
    stream.update(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"x must have shape \(4, 2\) as before, got \(4, 3\)"):
        stream.update(torch.zeros(4, 3))
    with pytest.raises(TypeError, match=r"x must be a real torch.Tensor, got list"):
        stream.update([0.0])
    with pytest.raises(ValueError, match="StreamingDiagnostics: batch_size must be an int >= 1, got 0"):
        StreamingDiagnostics(0)
