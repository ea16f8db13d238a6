"""Statistical assertions whose false-alarm rate is known: a right program fails one of them about once in 2e7 runs with new seeds.

Seeds are fixed, so a suite that passes passes for ever. If a change of the noise by design turns one red, look at the p-values of 20
other seeds before believing either side; never widen a bound. Only independent draws with a known law go in: no autocorrelation, no
estimated variance but where said.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmcore.testing import counts_p_value

ALPHA = 5e-8  # per assertion; two-sided this is 5.45 standard errors


def detectable_shift(std: float, n: int) -> float:
    """The shift of a mean that `assert_mean` of n draws misses once in a thousand times: (5.45 + 3.09) standard errors."""
    return 8.54 * std / math.sqrt(n)


def assert_mean(values: Tensor, mean: float, std: float | None = None, *, what: str) -> None:
    """The mean of independent draws. Without the exact `std` it is estimated, which needs 10,000 draws."""
    values = values.detach().double().flatten()
    assert std is not None or len(values) >= 10_000
    error = (float(values.std()) if std is None else std) / math.sqrt(len(values))
    _judge(_normal_tail((float(values.mean()) - mean) / error), f"{what}: mean {float(values.mean()):.6g} for {mean:.6g}, standard error {error:.2g}")


def assert_count(count: int, n: int, probability: float, *, what: str) -> None:
    """A binomial count, by its exact tail (doubled), summed from the term of the count outwards."""
    below = count < n * probability

    def log_pmf(k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(probability) + (n - k) * math.log1p(-probability)

    odds = probability / (1 - probability)
    term, total, k = math.exp(log_pmf(count)), 0.0, count
    while 0 <= k <= n and term > 1e-12 * total:
        total += term
        term *= k / (n - k + 1) / odds if below else (n - k) / (k + 1) * odds
        k += -1 if below else 1
    _judge(min(1.0, 2 * total), f"{what}: {count} of {n} for {n * probability:.6g}")


def assert_counts(counts: Tensor, probabilities: Tensor, *, what: str) -> None:
    """Pearson's chi-square of observed counts; cells that expect fewer than 50 are merged, and impossible ones must be empty."""
    assert float(counts.flatten()[probabilities.flatten() <= 0].sum()) == 0, f"{what}: an impossible outcome came up"
    _judge(counts_p_value(counts, probabilities), f"{what}: chi-square of {int(counts.sum())} counts")


def assert_law(cdf_values: Tensor, *, what: str) -> None:
    """Draws put through their exact distribution function: uniform on [0, 1], by the bound of Dvoretzky, Kiefer, Wolfowitz and Massart."""
    u = cdf_values.detach().double().flatten().sort().values
    n = len(u)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max(float((steps[1:] - u).max()), float((u - steps[:-1]).max()))
    _judge(min(1.0, 2 * math.exp(-2 * n * distance**2)), f"{what}: largest distance of the distribution functions {distance:.3g}")


def assert_gaussian(x: Tensor, mean: Tensor, covariance: Tensor, *, what: str) -> None:
    """Independent draws x (n, d) of N(mean, covariance): their mean, and each entry of their second moments.

    After whitening by the known law, n · |mean|² is chi-square with d degrees of freedom, n · (a diagonal entry) with n, and an
    off-diagonal entry is normal with variance 1 / n. The smallest p-value counts, times their number.
    """
    x, mean, covariance = x.detach().double().cpu(), mean.double(), covariance.double()
    n, d = x.shape
    assert n >= 10_000, "off-diagonal entries are normal in their far tail only from about there on"
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (x - mean).T, upper=False)
    second = white @ white.T / n
    tails = {"mean": _chi_square_tail(n * float(white.mean(1).square().sum()), d)}
    for i in range(d):
        upper = _chi_square_tail(n * float(second[i, i]), n)
        lower = float(torch.special.gammainc(torch.tensor(n / 2, dtype=torch.float64), n * second[i, i] / 2))
        tails[f"second moment {i}{i}"] = 2 * min(upper, lower)
        for j in range(i):
            tails[f"second moment {i}{j}"] = _normal_tail(float(second[i, j]) * math.sqrt(n))
    worst = min(tails, key=lambda name: tails[name])
    _judge(tails[worst] * len(tails), f"{what}: {worst}")


def _normal_tail(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def _chi_square_tail(statistic: float, degrees: int) -> float:
    return float(torch.special.gammaincc(torch.tensor(degrees / 2, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64)))


def _judge(p: float, what: str) -> None:
    assert p >= ALPHA, f"{what}: p = {p:.3g}; a right program does this once in {1 / ALPHA:.0e} runs"
