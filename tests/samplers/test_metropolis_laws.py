"""MALA, HMC and random-walk Metropolis against exact laws: acceptance in closed form, moments of one step by quadrature, invariance.

Chains are independent draws, and an assertion fails by chance once in 2e7 new seeds. With 100,000 draws an acceptance of 0.9 that is
off by 0.008 is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from scipy.special import betainc
from torch import Tensor

from ebmcore import HMC, MALA, Key, RandomWalkMetropolis, ops
from support.statistics import assert_count, assert_gaussian, assert_law, assert_mean
from support.targets import Gaussian, logistic, quadratic, two_modes
from support.truths import truth

TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "quartic": lambda x: (x**4 / 4 - x**2 / 2 + x / 4).sum(1),
    "gauss1": quadratic,
    "logistic": logistic,
    "mix2": two_modes,
}


def normals(num: int, dim: int, seed: int, first: int = 0) -> Tensor:
    return ops.normal((num, dim), key=Key(seed).shard(first), stream=ops.Stream.INIT, dtype=torch.float64)


def one_step(sampler, energy, x: Tensor, seed: int | Key):
    return sampler.step(energy, sampler.init(energy, x, seed=seed))


def stationary_acceptance(sampler, energy, dim: int, scale: Tensor | float, seed: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Acceptance probabilities and outcomes of one step from exact draws of independent normals, in blocks that fit into memory."""
    num = 100_000 if dim <= 10 else 40_000 if dim <= 100 else 10_000
    block = min(num, 2_000_000 // dim)
    for first in range(0, num, block):
        x = (normals(block, dim, seed, first) * scale).to(dtype)
        _, info = one_step(sampler, energy, x, Key(seed + 1).shard(first))
        yield info.acceptance_prob, info.is_accepted


def check_acceptance(sampler, energy, dim: int, expected: float, seed: int, scale: Tensor | float = 1.0, dtype: torch.dtype = torch.float64) -> None:
    probs, outcomes = (torch.cat(parts) for parts in zip(*stationary_acceptance(sampler, energy, dim, scale, seed, dtype), strict=True))
    assert_mean(probs, expected, what=f"{sampler}, d = {dim}: acceptance probability")
    assert_count(int(outcomes.sum()), len(outcomes), expected, what=f"{sampler}, d = {dim}: accepted")


def mala_acceptance(dim: int, h: float) -> float:
    """Of N(0, I) in equilibrium: 2 P(|x'| < |x|), as the log ratio of acceptance is h/4 (|x|² - |x'|²). The quadratic form x'² - x² of the
    Gaussian pair has two eigenvalues for each coordinate, so that it is a ratio of two chi-squares."""
    correlation, variance = 1 - h, (1 - h) ** 2 + 2 * h  # of x' and x, and of x'
    trace, product = variance - 1, correlation**2 - variance
    root = math.sqrt(trace**2 - 4 * product)
    high, low = (trace + root) / 2, (root - trace) / 2
    return 2 * float(betainc(dim / 2, dim / 2, low / (low + high)))


@pytest.mark.parametrize("row", range(6))
def test_mala_acceptance(row):
    law = truth("continuous")["mala_accept"][row]
    assert mala_acceptance(law["d"], law["h"]) == pytest.approx(law["acceptance"], abs=1e-12)
    check_acceptance(MALA(law["h"]), quadratic, law["d"], law["acceptance"], seed=10 + row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mala_acceptance_in_a_thousand_dimensions(dtype):
    check_acceptance(MALA(0.1), quadratic, 1000, mala_acceptance(1000, 0.1), seed=20, dtype=dtype)


@pytest.mark.parametrize("row", range(6))
def test_hmc_acceptance(row):
    law = truth("continuous")["hmc_accept"][row]
    check_acceptance(HMC(law["eps"], law["L"]), quadratic, law["d"], law["acceptance"], seed=30 + row)


@pytest.mark.parametrize("row", range(2))
@pytest.mark.parametrize("is_preconditioned", [False, True])
def test_hmc_acceptance_of_unequal_scales(row, is_preconditioned):
    """The same law where x is stretched and M⁻¹ follows."""
    law = truth("continuous")["hmc_accept_aniso"][row]
    precisions = torch.tensor(law["precisions"], dtype=torch.float64)
    stretch = torch.linspace(0.5, 3.0, len(precisions), dtype=torch.float64) if is_preconditioned else torch.ones_like(precisions)
    sampler = HMC(law["eps"], law["L"], stretch.square())
    precisions = precisions / stretch.square()
    energy = Gaussian(precisions.diag().tolist(), [0.0] * len(precisions))
    check_acceptance(sampler, energy, len(precisions), law["acceptance"], seed=40 + row, scale=precisions.rsqrt())


def test_mala_and_random_walk_acceptance_with_a_metric():
    """Where M⁻¹ is the target's covariance all is as for N(0, I), for which random-walk Metropolis accepts 2/π atan(2 / step) in d = 1."""
    variances = torch.tensor([0.1, 2.0, 30.0, 0.5], dtype=torch.float64)
    energy = Gaussian((1 / variances).diag().tolist(), [0.0] * 4)
    check_acceptance(MALA(0.4, variances), energy, 4, mala_acceptance(4, 0.4), seed=50, scale=variances.sqrt())
    for step_size in (0.5, 2.4):
        expected = 2 / math.pi * math.atan(2 / step_size)
        energy = Gaussian([[0.25]], [0.0])
        check_acceptance(RandomWalkMetropolis(step_size, torch.tensor([4.0])), energy, 1, expected, seed=52, scale=2.0)
        check_acceptance(RandomWalkMetropolis(step_size), quadratic, 1, expected, seed=54)


def check_one_step(sampler, law: dict, seed: int, dtype: torch.dtype = torch.float64) -> None:
    num = 200_000
    state, info = one_step(sampler, TARGETS[law["target"]], torch.full((num, 1), law["x0"], dtype=dtype), seed)
    what = f"{sampler}, {law['target']} from {law['x0']}"
    assert_mean(info.acceptance_prob, law["mean_accept"], what=f"{what}: acceptance")
    assert_mean(state.x, law["E_x1"], what=f"{what}: E x")
    assert_mean(state.x.square(), law["E_x1sq"], what=f"{what}: E x²")
    if "P_x1_gt_0" in law:
        assert_count(int((state.x > 0).sum()), num, law["P_x1_gt_0"], what=f"{what}: P(x > 0)")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", range(6))
def test_one_step_of_mala(row, dtype):
    law = truth("continuous")["mala_onestep"][row]
    check_one_step(MALA(law["h"]), law, 60 + row, dtype)


@pytest.mark.parametrize("row", range(4))
def test_one_step_of_hmc(row):
    law = truth("continuous")["hmc_onestep"][row]
    check_one_step(HMC(law["eps"], law["L"]), law, 70 + row)


def walk_law(target: str, x0: float, step_size: float) -> dict:
    """Moments of one step of random-walk Metropolis, by quadrature over its proposal (trapezoid, exact to 1e-10 for a smooth integrand)."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    new = (x0 + step_size * z)[:, None]
    energy = TARGETS[target]
    accept = weight * (energy(torch.full((1, 1), x0, dtype=torch.float64)) - energy(new)).clamp(max=0.0).exp()
    rate, moments = float(accept.sum()), [float((accept * new[:, 0] ** k).sum()) for k in (1, 2)]
    above = float(accept[new[:, 0] > 0].sum()) + (x0 > 0) * (1 - rate)
    return {
        "target": target,
        "x0": x0,
        "mean_accept": rate,
        "E_x1": moments[0] + (1 - rate) * x0,
        "E_x1sq": moments[1] + (1 - rate) * x0**2,
        "P_x1_gt_0": above,
    }


@pytest.mark.parametrize(("target", "x0", "step_size"), [("quartic", 1.0, 0.8), ("mix2", -0.5, 2.0), ("logistic", 2.0, 5.0)])
def test_one_step_of_a_random_walk(target, x0, step_size):
    check_one_step(RandomWalkMetropolis(step_size), walk_law(target, x0, step_size), 80)


KERNELS = {
    "mala": MALA(0.3),
    "mala, preconditioned": MALA(0.3, torch.tensor([0.4, 1.5])),
    "hmc": HMC(0.4, 3),
    "hmc, preconditioned": HMC(0.4, 3, torch.tensor([0.4, 1.5])),
    "hmc, jittered": HMC(0.5, 4, jitter=1.0),
    "hmc, all": HMC(0.5, 4, torch.tensor([0.4, 1.5]), 0.3),
    "random walk": RandomWalkMetropolis(0.7),
    "random walk, preconditioned": RandomWalkMetropolis(0.7, torch.tensor([0.4, 1.5])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", KERNELS.values(), ids=KERNELS)
def test_the_target_is_invariant(sampler, dtype):
    """Exact draws of a correlated Gaussian stay so over ten steps of which some are rejected."""
    row = truth("continuous")["gaussian"][0]
    precision, mean = torch.tensor(row["precision"], dtype=torch.float64), torch.tensor(row["mu"], dtype=torch.float64)
    covariance = precision.inverse()
    x = (normals(100_000, 2, 90) @ torch.linalg.cholesky(covariance).T + mean).to(dtype)
    energy = Gaussian(row["precision"], row["mu"], dtype)
    state, info = sampler.advance(energy, sampler.init(energy, x, seed=91), 10)
    assert 0.3 < float(info.acceptance_prob.mean()) < 0.99
    assert_gaussian(state.x, mean, covariance, what=str(sampler))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sampler", [MALA(0.6), HMC(0.8, 3, jitter=0.5), RandomWalkMetropolis(2.0)], ids=["mala", "hmc", "random walk"])
def test_targets_of_one_dimension_are_invariant(sampler, target):
    """Exact draws, by inverting the distribution function on a fine grid, keep that function and the four moments of the truths."""
    energy, law = TARGETS[target], truth("continuous")["targets"][target]
    grid = torch.linspace(-40, 40, 800_001, dtype=torch.float64)
    cdf = torch.cumulative_trapezoid((-energy(grid[:, None]) - law["lnZ"]).exp(), grid)
    assert float(cdf[-1]) == pytest.approx(1.0, abs=1e-6)
    u = ops.uniform((100_000, 1), key=Key(95), stream=ops.Stream.INIT, dtype=torch.float64)
    x = grid[torch.searchsorted(cdf, u).clamp(max=len(cdf) - 1)]
    state, info = sampler.advance(energy, sampler.init(energy, x, seed=96), 10)
    assert 0.2 < float(info.acceptance_prob.mean()) < 0.99
    assert_law(cdf[torch.searchsorted(grid, state.x).clamp(1, len(cdf)) - 1], what=f"{sampler}, {target}")
    for k, moment in enumerate(law["moments"], 1):
        assert_mean(state.x**k, moment, what=f"{sampler}, {target}: E x^{k}")


@pytest.mark.parametrize("sampler", [MALA(0.3), HMC(0.4, 3, torch.tensor([0.7]), 0.2), RandomWalkMetropolis(1.5)], ids=["mala", "hmc", "random walk"])
def test_walls_cut_the_law_off(sampler):
    """Half a normal: +inf on the other side, whose gradient is NaN or not. Chains that start in equilibrium stay in it."""

    def energy(x):
        value = 0.5 * x.square().sum(1)
        return torch.where((x > 0).all(1), value, torch.inf)

    x = normals(100_000, 1, 97).abs()
    state, info = sampler.advance(energy, sampler.init(energy, x, seed=98), 10)
    assert bool((state.x > 0).all())
    assert int(info.num_diverged.sum()) > 10_000
    assert_law(torch.erf(state.x / math.sqrt(2)), what=str(sampler))
