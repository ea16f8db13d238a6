"""MMD and KSD against the reference numbers, against their definitions by autograd, and their refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ebmcore import DivergenceError, Key, ops
from ebmcore.evaluation import discrepancy, ksd, mmd
from support.targets import Counting, Gaussian, quartic
from support.truths import truth, truth_arrays


def samples() -> tuple[Tensor, Tensor]:
    arrays = truth_arrays("metrics")
    return torch.tensor(arrays["mmd_X"]), torch.tensor(arrays["mmd_Y"])


@pytest.mark.parametrize("index", range(3))
def test_mmd(index):
    case = truth("metrics")["mmd"][index]
    x, y = samples()
    for dtype in (torch.float64, torch.float32):  # the points are the same in both
        assert mmd(x.to(dtype), y.to(dtype), bandwidth=case["bandwidth"]) == pytest.approx(case["mmd2_unbiased"], abs=1e-14)
        assert mmd(x.to(dtype), y.to(dtype), bandwidth=case["bandwidth"], biased=True) == pytest.approx(case["mmd2_biased"], abs=1e-14)


def test_mmd_of_the_population():
    """Mean of the unbiased estimate over independent pairs of samples: the closed form."""
    case = truth("metrics")["mmd"][1]
    z = ops.normal((2, 400, 50, 3), key=Key(1), dtype=torch.float64)
    values = torch.tensor([mmd(x, 0.3 + 1.2 * y, bandwidth=1.0) for x, y in zip(*z, strict=True)])
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - case["population_mmd2_N0I_vs_N03_144I"]) < 5.45 * error < 0.01


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_ksd(kernel):
    truths = truth("metrics")["ksd"]
    case = next(case for case in truths["values"] if case["kernel"] == kernel)
    target = Gaussian(truths["A"], truths["mu"])
    x = samples()[0][: truths["n"]]
    assert ksd(target, x, kernel=kernel) == pytest.approx(case["U_stat"], abs=1e-14)
    assert ksd(target, x, kernel=kernel, biased=True) == pytest.approx(case["V_stat"], abs=1e-14)
    normal = MultivariateNormal(target.mean, precision_matrix=target.precision)
    assert ksd(normal, x, kernel=kernel) == pytest.approx(case["U_stat"], abs=1e-12)


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_ksd_by_its_definition(kernel):
    """With derivatives of the kernel by autograd, at another bandwidth."""
    x, bandwidth = ops.normal((6, 2, 2), key=Key(1), dtype=torch.float64), 1.7

    def k(x: Tensor, y: Tensor) -> Tensor:
        r2 = (x - y).square().sum()
        return (-r2 / (2 * bandwidth**2)).exp() if kernel == "rbf" else (bandwidth**2 + r2).rsqrt()

    score = torch.func.grad(lambda x: -quartic(x[None]).sum())
    total = off = 0.0
    for i, a in enumerate(x):
        for j, b in enumerate(x):
            s, t = score(a).flatten(), score(b).flatten()
            by_x, by_y = (torch.func.grad(k, argnums=n)(a, b).flatten() for n in (0, 1))
            mixed = torch.func.jacfwd(torch.func.grad(k, argnums=0), argnums=1)(a, b).reshape(4, 4).trace()
            u = float(s @ t * k(a, b) + s @ by_y + t @ by_x + mixed)
            total, off = total + u, off + u * (i != j)
    assert ksd(quartic, x, kernel=kernel, bandwidth=bandwidth, biased=True) == pytest.approx(total / 36, rel=1e-12)
    assert ksd(quartic, x, kernel=kernel, bandwidth=bandwidth) == pytest.approx(off / 30, rel=1e-12)


def test_ksd_is_zero_on_average_for_exact_draws():
    target = Gaussian([[1.5, 0.25], [0.25, 1.0]], [0.25, -0.5])
    z = ops.normal((400, 30, 2), key=Key(1), dtype=torch.float64)
    x = target.mean + z @ torch.linalg.inv(torch.linalg.cholesky(target.precision))
    for scale, is_zero in ((1.0, True), (1.3, False)):
        values = torch.tensor([ksd(target, target.mean + scale * (part - target.mean)) for part in x])
        error = float(values.std()) / math.sqrt(len(values))
        assert (abs(float(values.mean())) < 5.45 * error) == is_zero


def test_blocks_and_evaluations(monkeypatch):
    x, y = ops.normal((2, 50, 3), key=Key(1), dtype=torch.float64)
    energy = Counting(quartic)
    before = mmd(x, y), ksd(energy, x), ksd(energy, x, kernel="rbf", biased=True)
    assert energy.count == 2
    monkeypatch.setattr(discrepancy, "_PAIRS_AT_ONCE", 70)
    assert (mmd(x, y), ksd(quartic, x), ksd(quartic, x, kernel="rbf", biased=True)) == pytest.approx(before, rel=1e-12)


def test_bandwidth_by_default():
    """The median of all distances."""
    x, y = ops.normal((2, 10, 3), key=Key(1), dtype=torch.float64)
    pooled = torch.cat((x, y))
    distances = sorted(float((a - b).norm()) for i, a in enumerate(pooled) for b in pooled[:i])
    assert mmd(x, y) == pytest.approx(mmd(x, y, bandwidth=distances[(len(distances) - 1) // 2]), rel=1e-12)


def test_events_modes_and_integers():
    x = ops.philox((20, 2, 2), key=Key(1)).long() % 3
    assert mmd(x, x[:10], bandwidth=1.0) == mmd(x.flatten(1).double(), x[:10].flatten(1).double(), bandwidth=1.0)
    y = ops.normal((20, 2, 2), key=Key(2))
    with torch.inference_mode():
        inside = ksd(quartic, y.clone())
    assert inside == ksd(quartic, y)


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, r"mmd: x must have shape \(num_samples >= 2, \*event\), got \(1, 2\)", lambda: mmd(X[:1], X)),
        (ValueError, r"mmd: y must be like x, of events \(2,\) on cpu, got \(3,\) on cpu", lambda: mmd(X, torch.zeros(3, 3))),
        (ValueError, "mmd: y must be finite, got NaN or infinity in 1 of 3 samples", lambda: mmd(X, X.index_fill(0, torch.tensor([1]), math.nan))),
        (ValueError, "mmd: bandwidth must be a finite number > 0, got 0.0", lambda: mmd(X, X, bandwidth=0.0)),
        (ValueError, "mmd: bandwidth must be given where the median distance between samples is 0", lambda: mmd(X, X)),
        (TypeError, "mmd: x must be a real torch.Tensor, got list", lambda: mmd([1.0], X)),
        (ValueError, "ksd: kernel must be 'imq' or 'rbf', got 'linear'", lambda: ksd(quartic, X, kernel="linear")),
        (ValueError, "ksd: bandwidth must be a finite number > 0, got -1.0", lambda: ksd(quartic, X, bandwidth=-1.0)),
        (ValueError, r"ksd: x must have shape \(num_samples >= 2, \*event\), got \(1, 2\)", lambda: ksd(quartic, X[:1])),
        (TypeError, "ksd: x must be float32, float64", lambda: ksd(quartic, X.long())),
        (TypeError, "ksd: model must be callable or have log_prob", lambda: ksd(None, X)),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_gradients_that_are_not_finite():
    with pytest.raises(DivergenceError, match=r"ksd: the gradient of the energy is not finite in 1 of 3 rows \[1\]") as error:
        ksd(lambda x: x.sqrt().sum(1), torch.tensor([[1.0], [0.0], [2.0]]))
    assert error.value.chains == [1]
