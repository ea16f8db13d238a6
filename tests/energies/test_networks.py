"""MLP and ConvNet: shapes, smoothness, independence of the chains, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ebmcore.energies import MLP, ConvNet
from ebmcore.gradients import energy_and_grad

IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 28, 20), (2, 8, 33), (1, 9, 64)]


@pytest.mark.parametrize("image_shape", IMAGES)
def test_conv_net_takes_any_small_image(image_shape: tuple[int, ...], device: str) -> None:
    torch.manual_seed(0)
    energy = ConvNet(image_shape).to(device)
    x = torch.randn(5, *image_shape, device=device)
    value, grad = energy_and_grad(energy, x)
    assert value.shape == (5,)
    assert grad.shape == x.shape
    assert (grad.abs().sum(0) > 0).all(), "a pixel that the energy does not see"


@pytest.mark.parametrize(("size", "num_convolutions"), [(8, 2), (16, 2), (28, 3), (32, 3), (64, 4)])
def test_default_channels_halve_down_to_four(size: int, num_convolutions: int) -> None:
    energy = ConvNet((1, size, size))
    convolutions = [layer for layer in energy.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128, 256][:num_convolutions]
    features = next(layer.in_features for layer in energy.modules() if isinstance(layer, nn.Linear))
    assert features <= convolutions[-1].out_channels * 16


@pytest.mark.parametrize("event", [(), (1,), (6,), (2, 3), (1, 2, 3)])
def test_mlp_flattens_events(event: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    energy = MLP(torch.Size(event).numel(), hidden=(16, 8))
    x = torch.randn(4, *event)
    value, grad = energy_and_grad(energy, x)
    assert value.shape == (4,)
    assert grad.shape == x.shape
    torch.testing.assert_close(value, energy(x.reshape(4, -1)).detach())


def test_mlp_is_the_formula() -> None:
    torch.manual_seed(0)
    energy = MLP(3, hidden=(5, 4), activation=nn.Tanh).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    first, second, last = (layer for layer in energy.modules() if isinstance(layer, nn.Linear))
    expected = torch.tanh(torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias) @ last.weight[0] + last.bias
    torch.testing.assert_close(energy(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("energy", [MLP(64), ConvNet((1, 8, 8))], ids=["MLP", "ConvNet"])
def test_chains_do_not_see_each_other_and_the_energy_is_smooth(energy: nn.Module) -> None:
    energy.double()
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(energy(x)[2:3], energy(x[2:3]), rtol=1e-12, atol=1e-12)
    assert energy(x[:0]).shape == (0,)
    assert torch.autograd.gradcheck(lambda y: energy(y).sum(), x[:1].requires_grad_())
    (grad,) = torch.autograd.grad(energy(y := x[:1].clone().requires_grad_()).sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), y)
    assert second.abs().max() > 0, "a piecewise linear energy"


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ValueError, lambda: MLP(0), "MLP: num_inputs must be an int >= 1, got 0"),
        (TypeError, lambda: MLP(2.0), "MLP: num_inputs must be an int >= 1, got 2.0"),  # type: ignore[arg-type]
        (TypeError, lambda: MLP(True), "MLP: num_inputs must be an int >= 1, got True"),
        (TypeError, lambda: MLP(2, hidden=64), "MLP: hidden must be a sequence of ints, got 64"),  # type: ignore[arg-type]
        (ValueError, lambda: MLP(2, hidden=(64, -1)), "MLP: hidden must be an int >= 1, got -1"),
        (ValueError, lambda: MLP(2)(torch.zeros(3, 4)), r"MLP: x must have shape \(num_chains, \*event\) with 2 elements an event, got \(3, 4\)"),
        (ValueError, lambda: MLP(2)(torch.zeros(())), r"MLP: x must have shape .* got \(\)"),
        (ValueError, lambda: ConvNet((1, 7, 8)), r"ConvNet: image_shape must be .* sides of at least 8, got \(1, 7, 8\)"),
        (ValueError, lambda: ConvNet((28, 28)), r"ConvNet: image_shape must be .* got \(28, 28\)"),
        (ValueError, lambda: ConvNet((0, 8, 8)), "ConvNet: image_shape must be an int >= 1, got 0"),
        (TypeError, lambda: ConvNet(28), "ConvNet: image_shape must be a sequence of ints, got 28"),  # type: ignore[arg-type]
        (TypeError, lambda: ConvNet(channels=(32, "64")), "ConvNet: channels must be an int >= 1, got '64'"),  # type: ignore[arg-type]
        (ValueError, lambda: ConvNet(hidden=0), "ConvNet: hidden must be an int >= 1, got 0"),
        (ValueError, lambda: ConvNet()(torch.zeros(2, 28, 28)), r"ConvNet: x must have shape \(num_chains, 1, 28, 28\), got \(2, 28, 28\)"),
        (ValueError, lambda: ConvNet()(torch.zeros(2, 3, 28, 28)), r"ConvNet: x must have shape .* got \(2, 3, 28, 28\)"),
    ],
)
def test_errors_name_function_argument_wanted_and_got(error: type[Exception], make: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
