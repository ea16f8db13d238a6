"""E and ∇E in one evaluation: exactness, modes, and energies that are not energies."""

from __future__ import annotations

import math

import pytest
import torch

from ebmcore.gradients import check_state, energy_and_grad
from support.targets import Counting, Gaussian, Network, quadratic

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def test_values():
    energy = Counting(Gaussian([[2.0, 0.5], [0.5, 1.0]], [1.0, -1.0]))
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    value, grad = energy_and_grad(energy, x)
    y = x - energy.energy.mean
    torch.testing.assert_close(value, 0.5 * torch.einsum("ni,ij,nj->n", y, energy.energy.precision, y))
    torch.testing.assert_close(grad, y @ energy.energy.precision)
    assert energy.count == 1
    assert not value.requires_grad
    assert not grad.requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(device, dtype):
    x = torch.ones(4, 3, dtype=dtype, device=device)
    value, grad = energy_and_grad(quadratic, x)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    assert (value.device, grad.device) == (x.device, x.device)
    assert (value.shape, grad.shape) == ((4,), (4, 3))


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3, 4, 2), (0, 3)])
def test_shapes(shape):
    value, grad = energy_and_grad(lambda x: 0.5 * x.reshape(len(x), math.prod(shape[1:])).square().sum(1), torch.ones(shape))
    assert value.shape == shape[:1]
    assert torch.equal(grad, torch.ones(shape))


def test_modes():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = energy_and_grad(quadratic, x)
    with torch.no_grad():
        assert all(map(torch.equal, energy_and_grad(quadratic, x), expected))
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        value, grad = energy_and_grad(quadratic, x)
        inference_x = x.clone()
        assert all(map(torch.equal, energy_and_grad(quadratic, inference_x), expected))
        assert torch.is_inference_mode_enabled()
    assert all(map(torch.equal, (value, grad), expected))
    assert not grad.is_inference()
    assert all(map(torch.equal, energy_and_grad(quadratic, inference_x), expected))


def test_autocast_is_the_energys_own():
    seen = []

    def energy(x):
        y = x @ torch.eye(3)
        seen.append(y.dtype)
        return y.square().sum(1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, grad = energy_and_grad(energy, torch.ones(4, 3))
    assert seen == [torch.bfloat16]
    assert (value.dtype, grad.dtype) == (torch.float32, torch.float32)


def test_what_the_caller_owns_is_untouched(untouched_generator):
    network = Network().train()
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    network.first.bias.grad = None
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    graph = (x * 2).exp()
    before = graph.detach().clone()
    energy_and_grad(network, graph)
    assert network.training
    assert network.norm.training
    assert network.first.bias.grad is None
    assert all(bool((p.grad == 7.0).all()) for p in network.parameters() if p.grad is not None)
    assert all(p.requires_grad for p in network.parameters())
    assert x.grad is None
    assert torch.equal(graph.detach(), before)
    graph.sum().backward()  # the graph still stands
    assert x.grad is not None


@pytest.mark.parametrize(
    ("energy", "error", "message"),
    [
        (lambda x: x.square().sum(1, keepdim=True), ValueError, r"must return shape \(4,\) for x of shape \(4, 3\), got \(4, 1\)"),
        (lambda x: x.square().sum(), ValueError, r"got \(\)"),
        (lambda x: x.square().sum().reshape(1), ValueError, r"got \(1,\)"),
        (lambda x: x.square().sum(1) + x.square().sum(1, keepdim=True), ValueError, r"got \(4, 4\)"),
        (lambda x: x.square(), ValueError, r"got \(4, 3\)"),
        (lambda x: x.square().sum(0), ValueError, r"got \(3,\)"),
        (lambda x: x.square().sum(1).detach(), ValueError, "must depend on x"),
        (lambda x: torch.zeros(4), ValueError, "must depend on x"),
        (lambda x: torch.zeros(4, requires_grad=True) * 2, ValueError, "must depend on x"),
        (lambda x: x.square().sum(1).long(), TypeError, "floating-point tensor.*int64"),
        (lambda x: x.square().sum(1) > 0, TypeError, "floating-point tensor.*bool"),
        (lambda x: x.square().sum(1).to(torch.complex64), TypeError, "floating-point tensor.*complex64"),
        (lambda x: x.square().sum(1).tolist(), TypeError, "floating-point tensor.*list"),
        (lambda x: (x.square().sum(1), None), TypeError, "floating-point tensor.*tuple"),
        (lambda x: None, TypeError, "floating-point tensor.*NoneType"),
        (lambda x: 0.0, TypeError, "floating-point tensor.*float"),
        (lambda x: x.square().sum(1).to("meta"), ValueError, "must return a tensor on cpu, where x is, got meta"),
    ],
)
def test_bad_energies(energy, error, message):
    with pytest.raises(error, match=f"^energy: .*{message}"):
        energy_and_grad(energy, torch.ones(4, 3))


def test_energies_that_write_to_x():
    """torch itself refuses to write to a leaf; without grad mode only the version counter tells."""

    def quietly(x):
        with torch.no_grad():
            x.mul_(2)
        return x.square().sum(1)

    with pytest.raises(ValueError, match="energy: must not modify x in place"):
        energy_and_grad(quietly, torch.ones(4, 3))
    with pytest.raises(RuntimeError, match="in-place"):
        energy_and_grad(lambda x: x.mul_(2).square().sum(1), torch.ones(4, 3))


def test_energies_that_raise():
    class Mine(Exception):
        pass

    def energy(x):
        raise Mine

    with pytest.raises(Mine):
        energy_and_grad(energy, torch.ones(4, 3))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_data_dependent_control_flow():
    def energy(x):
        return x.square().sum(1) if x[0, 0].item() > 0 else x.sum(1)

    assert torch.equal(energy_and_grad(energy, torch.ones(4, 3))[1], torch.full((4, 3), 2.0))
    assert torch.equal(energy_and_grad(energy, -torch.ones(4, 3))[1], torch.ones(4, 3))


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.zeros(2, 3, dtype=torch.int32), TypeError),
        (torch.zeros(2, 3, dtype=torch.bool), TypeError),
        (torch.zeros(2, 3, dtype=torch.complex64), TypeError),
        (torch.zeros(2, 3).to(torch.float8_e5m2), TypeError),
        (torch.eye(3).to_sparse(), TypeError),
        (torch.nested.nested_tensor([torch.zeros(3), torch.zeros(3)], layout=torch.jagged), TypeError),
        ([[0.0]], TypeError),
        (None, TypeError),
        (torch.tensor(0.0), ValueError),
        (torch.zeros(3, 0), ValueError),
    ],
    ids=str,
)
def test_check_state(x, error):
    with pytest.raises(error, match=r"^here: x must "):
        check_state(x, "here")


def test_check_state_passes():
    for shape in ((0, 3), (4,), (4, 1, 2)):
        for dtype in DTYPES:
            check_state(torch.zeros(shape, dtype=dtype), "here")
