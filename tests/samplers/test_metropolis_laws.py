"""MALA, HMC and random-walk Metropolis against exact laws: acceptance in closed form, moments of one step by quadrature, invariance.

Chains are independent draws, and an assertion fails by chance once in 2e7 new seeds. With 100,000 draws an acceptance of 0.9 that is
off by 0.008 is seen.
"""

from __future__ import annotations

import math

import pytest
import torch

from ebmcore import HMC, MALA, Key, RandomWalkMetropolis, ops
from support.metropolis import TARGETS, check_acceptance, check_one_step, mala_acceptance, normals, walk_law
from support.statistics import assert_gaussian, assert_law, assert_mean
from support.targets import Gaussian, quadratic
from support.truths import truth


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", range(6))
def test_one_step_of_mala(row, dtype):
    law = truth("continuous")["mala_onestep"][row]
    check_one_step(MALA(law["h"]), TARGETS[law["target"]], law, 60 + row, dtype)


@pytest.mark.parametrize("row", range(4))
def test_one_step_of_hmc(row):
    law = truth("continuous")["hmc_onestep"][row]
    check_one_step(HMC(law["eps"], law["L"]), TARGETS[law["target"]], law, 70 + row)


@pytest.mark.parametrize(("target", "x0", "step_size"), [("quartic", 1.0, 0.8), ("mix2", -0.5, 2.0), ("logistic", 2.0, 5.0), ("gauss1", 1.0, 2.0)])
def test_one_step_of_a_random_walk(target, x0, step_size):
    check_one_step(RandomWalkMetropolis(step_size), TARGETS[target], walk_law(target, x0, step_size), 80)


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
