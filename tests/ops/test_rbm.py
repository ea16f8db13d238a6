"""The fused draws and sums of a layer."""

from __future__ import annotations

import math

import pytest
import torch

from ebmcore import Key, ops
from ebmcore._native import core
from support.statistics import assert_counts
from support.targets import assert_same_bits

KEY = Key(11, 5, 3)


def logits_like(num_chains: int, num_units: int, scale: float = 6.0) -> tuple[torch.Tensor, torch.Tensor]:
    x = ops.normal((num_chains, num_units), key=Key(1)) * scale
    return x, ops.normal((1, num_units), key=Key(2))[0]


def test_draws_are_comparisons_of_words_with_the_odds(device):
    """Word for word: the rarer outcome comes up where (w + 1/2) / 2^32 lies below its probability, to a rounding of it."""
    x, bias = logits_like(4000, 250)
    out = ops.sigmoid_bernoulli(x.to(device), bias.to(device), key=KEY, scale=1.5, stream=9).cpu()
    words = ops.philox(x.shape, key=KEY, stream=9).to(torch.int64).double()
    z = x.double() * 1.5 + bias.double()
    share = (words + 0.5) * 2.0**-32 / torch.sigmoid(-z.abs())
    expected = (share < 1) != (z > 0)
    assert set(out.unique().tolist()) == {0.0, 1.0}
    assert (out.bool() == expected)[(share - 1).abs() > 1e-5].all()
    rare = (share < 1) & (z.abs() > 8)
    assert rare.sum() > 5, "outcomes of probability below 1e-3 have to be among them"


def test_frequencies():
    x = torch.tensor([-6.0, -1.0, 0.0, 0.5, 3.0])
    n = 100_000
    ones = ops.sigmoid_bernoulli(x.expand(n, -1), key=KEY).sum(0)
    for value, count in zip(x.double(), ones.double(), strict=True):
        p = torch.sigmoid(value)
        assert_counts(torch.stack((n - count, count)), torch.stack((1 - p, p)), what=f"logit {value}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certainties_and_nan(dtype, device):
    values = torch.tensor([math.inf, -math.inf, 1e4, -1e4, 100.0, -100.0, math.nan], dtype=dtype, device=device)
    for width in (7, 70):  # in whole vectors, and in what is over
        out = ops.sigmoid_bernoulli(values.repeat(width // 7).expand(500, -1), key=KEY).cpu()[:, :7]
        assert torch.equal(out[:, :6], torch.tensor([1.0, 0, 1, 0, 1, 0], dtype=dtype).expand(500, -1))
        assert out[:, 6].isnan().all()


def test_float64_draws_by_sigmoid():
    x = ops.normal((300, 40), key=Key(1), dtype=torch.float64) * 3
    out = ops.sigmoid_bernoulli(x, key=KEY, scale=0.5)
    assert_same_bits(out, ops.sigmoid_bernoulli_reference(x, key=KEY, scale=0.5))
    assert abs(float((out - torch.sigmoid(x / 2)).mean())) < 5.5 * 0.5 / math.sqrt(x.numel())


@pytest.mark.parametrize("num_units", [1, 15, 16, 25, 100, 500, 1025])
def test_bits_are_those_of_every_instruction_set_and_batch(num_units, cpu_target):
    x, bias = logits_like(37, num_units)
    chosen = ops.sigmoid_bernoulli(x, bias, key=KEY), ops.softplus_sum(x, bias, scale=0.7)
    core.set_cpu_target("baseline")
    assert_same_bits(chosen[0], ops.sigmoid_bernoulli(x, bias, key=KEY), cpu_target)
    assert_same_bits(chosen[1], ops.softplus_sum(x, bias, scale=0.7), cpu_target)
    core.set_cpu_target(cpu_target)
    halves = (x[:20], KEY), (x[20:], KEY.shard(20))
    assert_same_bits(torch.cat([ops.sigmoid_bernoulli(part, bias, key=key) for part, key in halves]), chosen[0])
    assert_same_bits(torch.cat([ops.softplus_sum(part, bias, scale=0.7) for part, _ in halves]), chosen[1])


def test_bits_are_those_of_any_number_of_threads(num_threads):
    x, bias = logits_like(400, 500)
    chosen = ops.sigmoid_bernoulli(x, bias, key=KEY), ops.softplus_sum(x, bias)
    torch.set_num_threads(1)
    assert_same_bits(chosen[0], ops.sigmoid_bernoulli(x, bias, key=KEY))
    assert_same_bits(chosen[1], ops.softplus_sum(x, bias))


def test_layouts_and_streams():
    x, bias = logits_like(64, 30)
    assert_same_bits(ops.sigmoid_bernoulli(x.T.contiguous().T, bias, key=KEY), ops.sigmoid_bernoulli(x, bias, key=KEY))
    assert not torch.equal(ops.sigmoid_bernoulli(x / 10, key=KEY, stream=1), ops.sigmoid_bernoulli(x / 10, key=KEY, stream=8))
    assert ops.sigmoid_bernoulli(x[:0], bias, key=KEY).shape == (0, 30)
    assert ops.softplus_sum(x[:0], bias).shape == (0,)


@pytest.mark.parametrize("num_units", [1, 17, 500, 9000])
def test_softplus_sum(num_units, device):
    x, bias = logits_like(50, num_units, scale=20.0)
    for scale in (1.0, 0.25, -1.0):
        ours = ops.softplus_sum(x.to(device), bias.to(device), scale=scale)
        assert ours.dtype == torch.float64
        expected = torch.logaddexp(x * scale + bias, torch.zeros(())).double().sum(1)  # in the float32 that the arguments are rounded to
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-7, atol=1.5e-7 * num_units)
        torch.testing.assert_close(ops.softplus_sum_reference(x, bias, scale=scale), expected, rtol=2e-6, atol=1e-4)


def test_softplus_sum_at_the_ends():
    """Exactly x or 0 far out, ln 2 at 0, and no number out of a NaN."""
    x = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [math.inf, 0.0], [-math.inf, 0.0], [math.nan, 0.0]])
    ours = ops.softplus_sum(x)
    expected = torch.tensor([1e4 + math.log(2), math.log(2), math.inf, math.log(2), math.nan], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_opcheck():
    x, bias = logits_like(5, 9)
    torch.library.opcheck(torch.ops.ebmcore.sigmoid_bernoulli.default, (x, bias, KEY.tensor, 1.0, 1))
    torch.library.opcheck(torch.ops.ebmcore.softplus_sum.default, (x, bias, 1.0))


X = torch.zeros(4, 6)


@pytest.mark.parametrize("op", [lambda *a, **k: ops.sigmoid_bernoulli(*a, key=KEY, **k), ops.softplus_sum], ids=["sigmoid_bernoulli", "softplus_sum"])
@pytest.mark.parametrize(
    ("error", "match", "arguments", "scale"),
    [
        (TypeError, r"logits must be a float32 or float64 tensor, got list", ([0.0],), 1.0),
        (TypeError, r"logits must be a float32 or float64 tensor, got torch.int64", (X.long(),), 1.0),
        (TypeError, r"logits must be a float32 or float64 tensor, got torch.float16", (X.half(),), 1.0),
        (ValueError, r"logits must have shape \(num_chains, num_units\) with at least one unit, got \(4, 0\)", (X[:, :0],), 1.0),
        (ValueError, r"logits must have shape .*, got \(4, 2, 3\)", (X.reshape(4, 2, 3),), 1.0),
        (TypeError, r"bias must be None or a torch.float32 tensor, got torch.float64", (X, X[0].double()), 1.0),
        (TypeError, r"bias must be None or a torch.float32 tensor, got 0.5", (X, 0.5), 1.0),
        (ValueError, r"bias must have shape \(6,\), got \(4,\)", (X, X[:, 0]), 1.0),
        (ValueError, r"scale must be a finite number, got nan", (X,), math.nan),
        (TypeError, r"scale must be a number, got '1'", (X,), "1"),
    ],
)
def test_bad_input(op, error, match, arguments, scale):
    with pytest.raises(error, match=match):
        op(*arguments, scale=scale)


def test_bad_key_and_stream():
    with pytest.raises(TypeError, match=r"sigmoid_bernoulli: key must be an ebmcore\.Key"):
        ops.sigmoid_bernoulli(X, key=1)
    with pytest.raises(ValueError, match=r"sigmoid_bernoulli: stream must be an int in \[0, 256\), got 256"):
        ops.sigmoid_bernoulli(X, key=KEY, stream=256)
