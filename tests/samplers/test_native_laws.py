"""The laws of test_metropolis_laws.py, test_kinetic_langevin.py and test_langevin_laws.py for chains that run natively, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ebmcore import HMC, MALA, KineticLangevin, Langevin, RandomWalkMetropolis
from ebmcore.energies import DoubleWell, Gaussian, GaussianMixture, LoweredEnergy, lower, product
from ebmcore.gradients import energy_and_grad
from ebmcore.ops.dynamics import fuses_multiply_add
from support.metropolis import TARGETS, check_acceptance, check_one_step, mala_acceptance, normals, walk_law
from support.statistics import assert_gaussian
from support.truths import truth

pytestmark = pytest.mark.usefixtures("cpu_target")


def perceptron(*layers: nn.Module) -> LoweredEnergy:
    """An energy of one number."""
    return lower(nn.Sequential(*layers))


def linear(weight: float, bias: float = 0.0) -> nn.Linear:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.fill_(bias)
    return layer


ONE_DIMENSION = {"gauss1": Gaussian([0.0], precision=[1.0]), "mix2": GaussianMixture([0.6, 0.4], [[-1.5], [1.5]], std=1.0)}
# Sums of native energies; perceptrons are float32.
IN_FLOAT32 = {
    "quartic": product(DoubleWell(0.25), perceptron(linear(0.25, -0.25))),
    "logistic": product(perceptron(linear(1.0), nn.Softplus(), linear(2.0)), perceptron(linear(-1.0))),
}


def standard(dim: int) -> Gaussian:
    return Gaussian(torch.zeros(dim), precision=torch.ones(dim))


@pytest.mark.parametrize("row", range(6))
def test_mala_acceptance(row):
    law = truth("continuous")["mala_accept"][row]
    check_acceptance(MALA(law["h"]), standard(law["d"]), law["d"], law["acceptance"], seed=110 + row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mala_acceptance_in_a_thousand_dimensions(dtype):
    check_acceptance(MALA(0.1), standard(1000), 1000, mala_acceptance(1000, 0.1), seed=120, dtype=dtype)


@pytest.mark.parametrize("row", range(6))
def test_hmc_acceptance(row):
    law = truth("continuous")["hmc_accept"][row]
    check_acceptance(HMC(law["eps"], law["L"]), standard(law["d"]), law["d"], law["acceptance"], seed=130 + row)


@pytest.mark.parametrize("row", range(2))
def test_hmc_acceptance_of_unequal_scales(row):
    """As it is, and stretched with M⁻¹ after it."""
    law = truth("continuous")["hmc_accept_aniso"][row]
    precisions = torch.tensor(law["precisions"], dtype=torch.float64)
    for stretch in (torch.ones_like(precisions), torch.linspace(0.5, 3.0, len(precisions), dtype=torch.float64)):
        stretched = precisions / stretch.square()
        energy = Gaussian(torch.zeros(len(precisions)), precision=stretched)
        sampler = HMC(law["eps"], law["L"], stretch.square())
        check_acceptance(sampler, energy, len(precisions), law["acceptance"], seed=140 + row, scale=stretched.rsqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_step(dtype):
    """Every row of the truths, in float64 those whose target is a native energy then, and a random walk."""
    energies = ONE_DIMENSION | (IN_FLOAT32 if dtype == torch.float32 else {})
    x = torch.linspace(-2, 2, 9, dtype=dtype)[:, None]
    for target, energy in energies.items():
        excess = energy(x) - TARGETS[target](x)  # a constant
        torch.testing.assert_close(excess, excess.mean().expand(len(x)), atol=1e-5, rtol=0)
        assert energy.native_parts(x) is not None or not fuses_multiply_add(x.device)
    num = 0
    for kind, rows in (("mala", truth("continuous")["mala_onestep"]), ("hmc", truth("continuous")["hmc_onestep"])):
        for i, law in enumerate(rows):
            if law["target"] in energies:
                sampler = MALA(law["h"]) if kind == "mala" else HMC(law["eps"], law["L"])
                check_one_step(sampler, energies[law["target"]], law, 150 + i, dtype)
                num += 1
    assert num == (10 if dtype == torch.float32 else 3)
    for target, energy in ONE_DIMENSION.items():
        check_one_step(RandomWalkMetropolis(2.0), energy, walk_law(target, -0.5, 2.0), 160, dtype)


@pytest.mark.parametrize("row", range(4))
def test_stationary_law_of_baoab(row):
    case = truth("continuous")["kinetic"][row]
    law = case["schemes"]["BAOAB"]
    covariance = torch.tensor([[law["var_x"], law["cov_xp"]], [law["cov_xp"], law["var_p"]]], dtype=torch.float64)
    energy = Gaussian([0.0], precision=[case["w2"]])
    sampler = KineticLangevin(case["dt"], case["gamma"])
    z = normals(40_000, 2, 170 + row) @ torch.linalg.cholesky(covariance).T
    x, momentum = z[:, :1].contiguous(), z[:, 1:].contiguous()
    value, grad = energy_and_grad(energy, x)
    state = sampler.init(energy, x, seed=180 + row)._replace(energy=value, grad=grad, momentum=momentum)
    state, _ = sampler.advance(energy, state, 10)
    assert_gaussian(torch.cat([state.x, state.momentum], 1), torch.zeros(2), covariance, what=f"{sampler}, w² = {case['w2']}")


@pytest.mark.parametrize("index", range(3))
def test_unadjusted_langevin_after_n_steps(index):
    row = truth("continuous")["gaussian"][index]
    energy = Gaussian(row["mu"], precision=row["precision"])
    law = row["ula"][0]
    sampler = Langevin(law["h"])
    state = sampler.init(energy, torch.tensor(row["x0"], dtype=torch.float64).repeat(40_000, 1), seed=190 + index)
    done = 0
    for after in law["finite"]:
        state, _ = sampler.advance(energy, state, after["n"] - done)
        done = after["n"]
        mean, covariance = (torch.tensor(after[name], dtype=torch.float64) for name in ("mean", "cov"))
        assert_gaussian(state.x, mean, covariance, what=f"d = {row['d']}, n = {done}")
