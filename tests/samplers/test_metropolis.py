"""MALA, HMC and random-walk Metropolis step by step: against densities worked out by hand, and the leapfrog integrator against truths."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.distributions import Normal

from ebmcore import HMC, MALA, Key, RandomWalkMetropolis, ops
from ebmcore.gradients import energy_and_grad
from ebmcore.samplers.hmc import leapfrog
from support.targets import Counting, quadratic
from support.truths import truth

KEY = Key(5, step=6, first_chain=7)
MASSES = [None, torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)]
masses = pytest.mark.parametrize("inverse_mass", MASSES, ids=["unit mass", "inverse mass"])


def bent(x):
    """Couples the coordinates, with a gradient that is not linear."""
    return (x[:, 0] ** 4 / 4 + (x[:, 1] - x[:, 0] ** 2).square() + torch.cosh(x[:, 2] - x[:, 1])) / 2


def bent_grad(x):
    return energy_and_grad(bent, x)[1]


def quartic1(x):
    return (x**4 / 4 - x**2 / 2 + x / 4).sum(1)


def start(num=500, dtype=torch.float64):
    return ops.normal((num, 3), key=Key(1), dtype=torch.float64).to(dtype)


def noise(x, key=KEY):
    return ops.normal(tuple(x.shape), key=key, stream=ops.Stream.PROPOSAL, dtype=x.dtype)


def check_step(sampler, x, new_x, log_ratio, energy=bent):
    """A step from x against the proposal and the log ratio that it should have."""
    state = sampler.init(energy, x, seed=KEY)
    state, info = sampler.step(energy, state)
    u = ops.uniform((len(x),), key=KEY, stream=ops.Stream.ACCEPTANCE, dtype=x.dtype)
    torch.testing.assert_close(info.acceptance_prob, log_ratio.clamp(max=0).exp(), rtol=1e-9, atol=1e-12)
    assert torch.equal(info.is_accepted, u.log() < log_ratio)
    assert 0 < int(info.is_accepted.sum()) < len(x)
    torch.testing.assert_close(state.x, torch.where(info.is_accepted[:, None], new_x, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state.energy, energy(state.x), rtol=1e-12, atol=1e-12)
    if state.grad is not None:
        torch.testing.assert_close(state.grad, energy_and_grad(energy, state.x)[1], rtol=1e-11, atol=1e-11)
    assert not bool(info.is_diverged.any())


@masses
def test_mala(inverse_mass):
    h, x = 0.3, start()
    m = torch.ones(3, dtype=torch.float64) if inverse_mass is None else inverse_mass

    def forward(x):
        return Normal(x - h * m * bent_grad(x), (2 * h * m).sqrt())

    new = x - h * m * bent_grad(x) + (2 * h * m).sqrt() * noise(x)
    log_ratio = bent(x) - bent(new) + forward(new).log_prob(x).sum(1) - forward(x).log_prob(new).sum(1)
    check_step(MALA(h, inverse_mass), x, new, log_ratio)


@masses
@pytest.mark.parametrize("jitter", [0.0, 0.4])
def test_hmc(inverse_mass, jitter):
    """Kick, drift, kick in the textbook's order, with H before and after."""
    x = start()
    m = torch.ones(3, dtype=torch.float64) if inverse_mass is None else inverse_mass
    u = ops.uniform((len(x),), key=KEY, stream=ops.Stream.JITTER, dtype=torch.float64)[:, None]
    eps = 0.3 * (1 + jitter * (2 * u - 1))
    p = noise(x) / m.sqrt()
    before = bent(x) + (p * m * p).sum(1) / 2
    new = x
    for _ in range(4):
        p = p - eps / 2 * bent_grad(new)
        new = new + eps * m * p
        p = p - eps / 2 * bent_grad(new)
    after = bent(new) + (p * m * p).sum(1) / 2
    check_step(HMC(0.3, 4, inverse_mass, jitter), x, new, before - after)


@masses
def test_random_walk(inverse_mass):
    x = start()
    new = x + 0.8 * (1.0 if inverse_mass is None else inverse_mass.sqrt()) * noise(x)
    check_step(RandomWalkMetropolis(0.8, inverse_mass), x, new, bent(x) - bent(new))


@pytest.mark.parametrize(
    ("sampler", "per_step"),
    [(MALA(0.1), 1), (HMC(0.1, 1), 1), (HMC(0.1, 7), 7), (RandomWalkMetropolis(0.1), 1)],
    ids=["mala", "hmc 1", "hmc 7", "walk"],
)
def test_evaluations(sampler, per_step):
    """One forward at the start and one a proposal (a leapfrog step), each with one backward but for the random walk."""
    backwards = []

    def energy(x):
        if x.requires_grad:
            x.register_hook(lambda grad: backwards.append(1))
        return bent(x)

    counted = Counting(energy)
    state = sampler.init(counted, start(), seed=1)
    for _ in range(3):
        state, _ = sampler.step(counted, state)
    sampler.advance(counted, state, 5)
    assert counted.count == 1 + 8 * per_step
    assert len(backwards) == (0 if isinstance(sampler, RandomWalkMetropolis) else counted.count)
    before = counted.count
    sampler(counted, start(), 10, seed=1)
    assert counted.count == before + 1 + 10 * per_step


# The leapfrog integrator


def integrate(energy, x, p, eps, num, inverse_mass=None):
    x, p = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) if not torch.is_tensor(v) else v for v in (x, p))
    value, grad = energy_and_grad(energy, x)
    return (value, *leapfrog(energy, x, p, grad, eps, num, inverse_mass))


@pytest.mark.parametrize("row", range(6))
def test_leapfrog_trajectories(row):
    """Against 50 digits."""
    law = truth("continuous")["leapfrog"][row]
    energy = {"quartic": quartic1, "gauss1": quadratic}[law["target"]]
    before, x, p, after, grad = integrate(energy, law["x0"], law["p0"], law["eps"], law["L"])
    assert float(x) == pytest.approx(law["xL"], abs=1e-14)
    assert float(p) == pytest.approx(law["pL"], abs=1e-14)
    assert float(after + p**2 / 2 - before) - law["p0"] ** 2 / 2 == pytest.approx(law["dH"], abs=1e-14)
    torch.testing.assert_close(grad, energy_and_grad(energy, x)[1])


def test_leapfrog_is_reversible():
    x, p = start(), noise(start())
    _, new_x, new_p, _, _ = integrate(bent, x, p, 0.1, 25, MASSES[1])
    _, back_x, back_p, _, _ = integrate(bent, new_x, -new_p, 0.1, 25, MASSES[1])
    assert float((new_x - x).abs().max()) > 1.0
    torch.testing.assert_close(back_x, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(-back_p, p, rtol=0, atol=1e-10)


def test_leapfrog_is_of_second_order():
    """Half the step, a quarter of the error, of x (against the exact rotation) and of the energy (truths)."""
    errors = []
    for num in (8, 16, 32, 64):
        _, x, _, _, _ = integrate(quadratic, 0.75, -1.25, 2.0 / num, num)
        exact = 0.75 * math.cos(2.0) - 1.25 * math.sin(2.0)
        errors.append(abs(float(x) - exact))
    for coarse, fine in itertools.pairwise(errors):
        assert 3.9 < coarse / fine < 4.1
    losses = {law["eps"]: law["dH"] for law in truth("continuous")["leapfrog"] if law["target"] == "quartic"}
    assert 3.5 < losses[0.25] / losses[0.125] < 5 > losses[0.125] / losses[0.0625] > 3.5


@masses
def test_leapfrog_keeps_volume(inverse_mass):
    """The determinant of its Jacobian, by central differences, is 1."""
    z = torch.tensor([[0.4, -0.3, 0.8, 1.1, -0.6, 0.5]], dtype=torch.float64)
    shifts = 1e-5 * torch.cat([torch.eye(6), -torch.eye(6)]).double()
    points = z + shifts
    _, x, p, _, _ = integrate(bent, points[:, :3], points[:, 3:], 0.3, 5, inverse_mass)
    ends = torch.cat([x, p], 1)
    jacobian = (ends[:6] - ends[6:]) / 2e-5
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-7)
    assert float((jacobian - torch.eye(6)).abs().max()) > 1.0
