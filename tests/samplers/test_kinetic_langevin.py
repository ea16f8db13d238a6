"""Kinetic Langevin dynamics: the steps B, A, O, A, B, their exact laws on Gaussian targets, divergence, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ebmcore import DivergenceError, Key, KineticLangevin, ops
from ebmcore.gradients import energy_and_grad
from support.statistics import assert_gaussian
from support.targets import Counting, Gaussian, Spoiled, assert_same_bits, quadratic, quartic
from support.truths import truth

KEY = Key(5, step=6, first_chain=7)
NUM = 40_000


def tensor(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normals(num: int, dim: int, seed: int) -> Tensor:
    return ops.normal((num, dim), key=Key(seed), stream=ops.Stream.INIT, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse_mass", [None, tensor([0.3, 1.0, 2.5])], ids=["unit mass", "inverse mass"])
def test_the_steps(inverse_mass, dtype):
    """Written out by hand from the draws that it says it uses, with the momenta drawn at the start."""
    h, friction, temperature = 0.1, 0.7, 0.6
    sampler = KineticLangevin(h, friction, inverse_mass, temperature)
    x = normals(50, 3, 1).to(dtype)
    m = torch.ones(3, dtype=dtype) if inverse_mass is None else inverse_mass.to(dtype)
    state = sampler.init(quartic, x, seed=KEY)
    p = math.sqrt(temperature) / m.sqrt() * ops.normal((50, 3), key=KEY, stream=ops.Stream.MOMENTUM, dtype=dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(state.momentum, p, **tolerance)
    for k in range(5):
        p = p - h / 2 * energy_and_grad(quartic, x)[1]
        x = x + h / 2 * m * p
        z = ops.normal((50, 3), key=KEY.advance(k), stream=ops.Stream.PROPOSAL, dtype=dtype)
        c = math.exp(-friction * h)
        p = c * p + math.sqrt((1 - c * c) * temperature) / m.sqrt() * z
        x = x + h / 2 * m * p
        p = p - h / 2 * energy_and_grad(quartic, x)[1]
        state, info = sampler.step(quartic, state)
        torch.testing.assert_close(state.x, x, **tolerance)
        torch.testing.assert_close(state.momentum, p, **tolerance)
        torch.testing.assert_close(state.energy, quartic(state.x))
        torch.testing.assert_close(state.grad, energy_and_grad(quartic, state.x)[1], **tolerance)
        assert not bool(info.is_diverged.any())


def move(state, x, momentum, energy):
    value, grad = energy_and_grad(energy, x)
    return state._replace(x=x, momentum=momentum, energy=value, grad=grad)


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_stationary_law(row, temperature):
    """x and p jointly keep the law of BAOAB, in which var x is exact and var p is not; the other six splittings have another."""
    case = truth("continuous")["kinetic"][row]
    law = case["schemes"]["BAOAB"]
    covariance = tensor([[law["var_x"], law["cov_xp"]], [law["cov_xp"], law["var_p"]]]) * temperature
    energy = Gaussian([[case["w2"]]], [0.0])
    sampler = KineticLangevin(case["dt"], case["gamma"], temperature=temperature)
    z = normals(NUM, 2, 10 + row) @ torch.linalg.cholesky(covariance).T
    state = move(sampler.init(energy, z[:, :1], seed=20 + row), z[:, :1], z[:, 1:], energy)
    for num_steps in (1, 9):
        state, _ = sampler.advance(energy, state, num_steps)
        assert_gaussian(torch.cat([state.x, state.momentum], 1), torch.zeros(2), covariance, what=f"{sampler}, w² = {case['w2']}")
    others = [other for name, other in case["schemes"].items() if name != "BAOAB" and other["stable"]]
    assert min(abs(o["var_x"] - law["var_x"]) + abs(o["var_p"] - law["var_p"]) + abs(o["cov_xp"] - law["cov_xp"]) for o in others) > 0.01


@pytest.mark.parametrize("inverse_mass", [1.0, 0.25])
def test_after_n_steps(inverse_mass):
    """From one point: mean Aⁿ z and covariance Σ Aᵏ B Bᵀ Aᵏᵀ of the linear map that a step is on a quadratic energy."""
    h, friction, stiffness, temperature = 0.5, 0.8, 1.7, 0.4
    kick, drift = tensor([[1, 0], [-h / 2 * stiffness, 1]]), tensor([[1, h / 2 * inverse_mass], [0, 1]])
    c = math.exp(-friction * h)
    map_ = kick @ drift @ torch.diag(tensor([1, c])) @ drift @ kick
    noise = kick @ drift @ tensor([0, math.sqrt((1 - c * c) * temperature / inverse_mass)])
    energy = Gaussian([[stiffness]], [0.0])
    sampler = KineticLangevin(h, friction, tensor([inverse_mass]), temperature)
    z = tensor([1.5, -0.7])
    state = sampler.init(energy, torch.full((NUM, 1), 1.5, dtype=torch.float64), seed=30)
    assert_gaussian(state.momentum, torch.zeros(1), tensor([[temperature / inverse_mass]]), what="momenta at the start")
    state = state._replace(momentum=torch.full_like(state.x, -0.7))
    covariance = torch.zeros(2, 2, dtype=torch.float64)
    for n in range(1, 21):
        z, covariance = map_ @ z, map_ @ covariance @ map_.T + torch.outer(noise, noise)
        state, _ = sampler.step(energy, state)
        if n in (2, 5, 20):
            assert_gaussian(torch.cat([state.x, state.momentum], 1), z, covariance, what=f"n = {n}")


def test_stability_limit():
    """The advice in the error: stable below 2 / sqrt(curvature), diverging above."""
    energy, x = Gaussian([[4.0]], [0.0]), normals(10, 1, 40)
    KineticLangevin(0.99, 0.01)(energy, x, 2000, seed=1)
    with pytest.raises(DivergenceError, match=r"KineticLangevin: the result of step \d+ is not finite .* Lower step_size: BAOAB is stable below"):
        KineticLangevin(1.05, 0.01)(energy, x, 4000, seed=1)


def test_one_evaluation_a_step():
    energy = Counting(quartic)
    sampler = KineticLangevin(0.05, 1.0)
    state = sampler.init(energy, normals(6, 3, 1), seed=1)
    sampler.advance(energy, state, 40)
    sampler.step(energy, state)
    assert energy.count == 42
    sampler(energy, normals(6, 3, 1), 40, seed=1)
    assert energy.count == 42 + 41


@pytest.mark.parametrize("step", [0, 5, 31, 32, 40])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_divergence(step, value):
    sampler = KineticLangevin(0.05, 1.0)
    x = normals(6, 3, 1)
    with pytest.raises(DivergenceError, match=rf"step {step} .* in 2 of 6 chains \(1, 4;") as caught:
        sampler(Spoiled(step + 1, [1, 4], value), x, 50, seed=1)
    assert (caught.value.step, caught.value.chains) == (step, [1, 4])
    before = sampler.advance(quadratic, sampler.init(quadratic, x, seed=1), step)[0]
    assert caught.value.last_energies == pytest.approx(before.energy[[1, 4]].tolist())


@pytest.mark.parametrize("spoiled", [Spoiled(0, [2], math.nan), Spoiled(0, [2], None, grad=math.inf)])
def test_a_bad_start(spoiled):
    with pytest.raises(DivergenceError, match=r"KineticLangevin\.init: the starting point is not finite") as caught:
        KineticLangevin(0.1, 1.0).init(spoiled, normals(6, 3, 1), seed=1)
    assert (caught.value.step, caught.value.chains) == (-1, [2])


def test_resuming_needs_the_momentum():
    """100 steps are 60 and 40, momenta and all."""
    sampler, x = KineticLangevin(0.1, 0.5), normals(8, 3, 1)
    state = sampler.init(quartic, x, seed=2)
    whole, _ = sampler.advance(quartic, state, 100)
    part, _ = sampler.advance(quartic, sampler.advance(quartic, state, 60)[0], 40)
    for a, b in zip(whole[:4], part[:4], strict=True):
        assert_same_bits(a, b)
    assert whole.key == part.key


@pytest.mark.parametrize("name", ["step_size", "friction", "temperature"])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, "1", None, True])
def test_bad_settings(name, bad):
    settings = {"step_size": 0.1, "friction": 1.0, name: bad}
    with pytest.raises((TypeError, ValueError), match=f"KineticLangevin: {name} must be a"):
        KineticLangevin(**settings)
