"""E and ∇E of native energies in one native pass, as `gradients.energy_and_grad` asks for them."""

from __future__ import annotations

import pytest
import torch

from ebmcore import Langevin, energies, ops
from ebmcore.gradients import energy_and_grad
from ebmcore.ops.dynamics import fuses_multiply_add
from support.targets import assert_same_bits


def well_and_normal() -> torch.nn.Module:
    return energies.product(energies.DoubleWell(), energies.negate(energies.Gaussian([0.0] * 3, precision=[0.1] * 3), 0.5))


ENERGIES = {
    "gaussian": lambda: energies.Gaussian([1.0, 0.0, -1.0], precision=[1.0, 2.0, 3.0]),
    "full": lambda: energies.Gaussian([1.0, 0.0, -1.0], precision=torch.eye(3) + 0.2),
    "mixture": lambda: energies.GaussianMixture([0.3, 0.7], [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], std=0.7),
    "double well": lambda: energies.DoubleWell(),
    "rosenbrock": lambda: energies.Rosenbrock(),
    "funnel": lambda: energies.Funnel(3),
    "sum": well_and_normal,
}


def torch_only(energy):
    return lambda x: energy(x)


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 16, 37])
def test_values_and_gradients(device, cpu_target, name, dtype, n):
    energy = ENERGIES[name]().to(device)
    dim = 2 if name == "rosenbrock" else 3
    x = ops.normal((n, dim), key=torch.tensor([5, 0, 0], device=device), dtype=dtype, device=device)
    before = x.clone()
    own = energy.energy_and_grad(x)
    assert own is not None
    value, grad = energy_and_grad(torch_only(energy.double()), x.double())
    tolerance = {"atol": 1e-12, "rtol": 1e-11} if dtype == torch.float64 else {"atol": 2e-4, "rtol": 2e-5}
    torch.testing.assert_close(own[0].double(), value, **tolerance)
    torch.testing.assert_close(own[1].double(), grad, **tolerance)
    assert (own[0].dtype, own[1].dtype) == (dtype, dtype)
    assert_same_bits(x, before)
    for mine, asked in zip(own, energy_and_grad(energy, x), strict=True):
        assert_same_bits(mine, asked)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_networks(cpu_target, n):
    energy = energies.MLP(6, hidden=(20, 9))
    x = torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(n)).transpose(1, 2)  # not contiguous
    own = energy.energy_and_grad(x)
    assert (own is not None) == fuses_multiply_add(x.device)
    value, grad = energy_and_grad(energy, x)
    expected = energy_and_grad(torch_only(energy), x)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(grad, expected[1], atol=1e-6, rtol=1e-5)
    assert grad.shape == x.shape
    assert all(p.grad is None for p in energy.parameters())


def test_what_is_left_to_autograd():
    small, x = energies.MLP(6, hidden=(20,)), torch.zeros(4, 6)
    assert energies.MLP(6, hidden=(300, 300)).energy_and_grad(x) is None
    assert small.energy_and_grad(x.double()) is None
    assert small.energy_and_grad(x.bfloat16()) is None
    assert small.energy_and_grad(x[:0]) is None
    assert energies.product(small, lambda y: y.square().sum(1)).energy_and_grad(x) is None
    seen = []
    hook = small.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    energy_and_grad(small, x)
    assert seen == [4]
    hook.remove()


def test_chains_start_with_the_energies_that_native_steps_go_on_with():
    energy = energies.DoubleWell()
    x = ops.normal((50, 4), key=torch.tensor([1, 0, 0]))
    state = Langevin(0.01).init(energy, x, seed=0)
    run = energy.native_dynamics("langevin", x.clone(), None, state.key.tensor, 1, step_size=1e-30, noise_std=0.0)
    assert_same_bits(run.energy, state.energy)
    assert_same_bits(run.grad, state.grad)
