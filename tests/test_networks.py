"""ScoreMLP and ScoreConvNet: the formulas, shapes, independence of the chains, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ebmcore import Key, trace
from ebmcore.networks import ScoreConvNet, ScoreMLP


@pytest.mark.parametrize("event", [(), (1,), (6,), (2, 3), (1, 2, 3)])
def test_score_mlp_keeps_the_events_shape(event: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    score = ScoreMLP(torch.Size(event).numel(), hidden=(16, 8))
    x = torch.randn(4, *event)
    assert score(x).shape == x.shape
    assert torch.equal(score(x).flatten(), score(x.reshape(4, -1)).flatten())
    assert score(x[:0]).shape == (0, *event)


def test_score_mlp_is_the_formula() -> None:
    torch.manual_seed(0)
    score = ScoreMLP(3, hidden=(5, 4), activation=nn.Tanh).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    first, second, last = (layer for layer in score.modules() if isinstance(layer, nn.Linear))
    expected = torch.tanh(torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(score(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(score(x)[2:3], score(x[2:3]), rtol=1e-12, atol=1e-12)


def test_score_mlp_is_no_gradient_of_anything() -> None:
    torch.manual_seed(0)
    score = ScoreMLP(3, hidden=(5,)).double()
    jacobian = torch.autograd.functional.jacobian(lambda y: score(y[None])[0], torch.zeros(3, dtype=torch.float64))
    assert (jacobian - jacobian.T).abs().max() > 0.01
    assert torch.autograd.gradcheck(score, torch.randn(2, 3, dtype=torch.float64, requires_grad=True))


def test_score_mlp_gives_its_formulas_to_trace() -> None:
    torch.manual_seed(0)
    score = ScoreMLP(3, hidden=(5, 4)).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(trace.exact(score, x).value, trace.exact(lambda y: score(y), x).value, rtol=1e-12, atol=1e-12)

    class Twice(ScoreMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    assert score.as_perceptron() is not None
    assert Twice(3).as_perceptron() is None


def conv_net(image_shape: tuple[int, ...] = (1, 8, 8), channels: tuple[int, ...] = (4, 6), **options: Any) -> ScoreConvNet:
    """A net whose last layer is not zero, as after some training."""
    torch.manual_seed(0)
    score = ScoreConvNet(image_shape, channels, **options)
    nn.init.normal_(score.last.weight, std=0.1)
    return score


@pytest.mark.parametrize(
    ("image_shape", "channels", "num_blocks"),
    [
        ((1, 28, 28), (16, 32, 64), 1),
        ((1, 8, 8), (4, 6), 1),
        ((3, 32, 32), (4, 5, 6, 7), (0, 1, 0, 2)),
        ((2, 12, 20), (3,), 2),
        ((1, 2, 4), (4, 6), 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conv_net_takes_images(
    device: str, image_shape: tuple[int, ...], channels: tuple[int, ...], num_blocks: int | tuple[int, ...], dtype: torch.dtype
) -> None:
    score = conv_net(image_shape, channels, num_blocks=num_blocks).to(device, dtype)
    x = torch.randn(5, *image_shape, device=device, dtype=dtype, requires_grad=True)
    sigma = torch.linspace(0.01, 5, 5, device=device, dtype=dtype)
    value = score(x, sigma)
    assert (value.shape, value.dtype) == (x.shape, dtype)
    value.square().sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(0) > 0).all(), "a pixel that the net does not see"
    unused = [name for name, p in score.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in unused if not name.endswith(".bias")], "a bias in front of a norm does nothing, all else does"
    assert score(x[:0], sigma[:0]).shape == (0, *image_shape)


def test_a_fresh_conv_net_is_the_score_of_noisy_pixels() -> None:
    score = ScoreConvNet((1, 8, 8), (4,), data_std=0.3).double()
    x, sigma = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0.01, 1.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(score(x, sigma), -x / (sigma.square() + 0.09)[:, None, None, None], rtol=1e-12, atol=1e-12)


def test_conv_net_is_the_formula() -> None:
    """s = data_std / (σ τ) · F(x / τ, σ) - x / τ² around an F whose scales are joined by a sum."""
    score = conv_net(channels=(4, 6), num_blocks=0, data_std=0.3).double()
    x, sigma = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0.01, 1.0, 5.0], dtype=torch.float64)
    tau = (sigma.square() + 0.09).sqrt()[:, None, None, None]
    fine = score.first(x / tau)
    h = fine + score.doublings[0](score.halvings[0](fine))
    field = score.last(nn.functional.silu(score.last_norm(h, score.level(sigma))))
    expected = 0.3 / (sigma[:, None, None, None] * tau) * field - x / tau.square()
    torch.testing.assert_close(score(x, sigma), expected, rtol=1e-12, atol=1e-12)


def test_blocks_add_to_what_they_get() -> None:
    score = conv_net(num_blocks=(2, 1)).double()
    level, h = score.level(torch.ones(2, dtype=torch.float64)), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    assert [len(blocks) for blocks in (*score.down, *score.up)] == [2, 1, 2]  # type: ignore[arg-type]
    block = score.down[0][1]  # type: ignore[index]
    first, second = block.convolutions
    change = second(nn.functional.silu(block.norms[1](first(nn.functional.silu(block.norms[0](h, level))), level)))
    torch.testing.assert_close(block(h, level), h + change, rtol=1e-12, atol=1e-12)


def test_images_do_not_see_each_other_and_the_field_is_smooth() -> None:
    score = conv_net().double()
    x, sigma = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.linspace(0.1, 2, 6, dtype=torch.float64)
    torch.testing.assert_close(score(x, sigma)[2:3], score(x[2:3], sigma[2:3]), rtol=1e-10, atol=1e-10)
    score.eval()
    torch.testing.assert_close(score(x, sigma), score.train()(x, sigma), rtol=0, atol=0)
    small = conv_net((1, 4, 4)).double()
    for each in small.modules():
        if isinstance(each, nn.Linear) and each.out_features % 3 == 0:
            nn.init.normal_(each.weight, std=0.3)
    y, level = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(small, (y, level))
    assert trace.hutchinson(lambda z: small(z, level.detach()), y.detach(), num_probes=4, key=Key(1)).value.shape == (2,)


def test_each_level_has_its_own_field() -> None:
    """σ reaches the net by the norms, and not only by the factors outside of it: F itself depends on it."""
    score = conv_net().double()
    x, sigma = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0.1, 2.0], dtype=torch.float64)
    tau = (sigma.square() + 0.25).sqrt()[:, None, None, None]
    same = x[:1] * tau  # the same x / tau for both
    inner = (score(same, sigma) + same / tau.square()) * sigma[:, None, None, None] * tau / 0.5
    assert (inner[0] - inner[1]).abs().max() > 1e-3


def test_the_means_that_an_instance_norm_takes_out_are_put_back() -> None:
    """An image and the same one brighter differ behind the first norm by the means alone."""
    score = conv_net((1, 8, 8), (4,)).double()
    x, sigma = torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    norm, level = score.last_norm, score.level(sigma)
    h = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    gamma, beta, alpha = norm.affine(level)[0].chunk(3)
    mean = h.mean((2, 3))[0]
    shift = beta + alpha * (mean - mean.mean()) / (mean.var(correction=0) + 1e-5).sqrt()
    deviation = (h - h.mean((2, 3), keepdim=True)) / (h.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = (1 + gamma)[:, None, None] * deviation + shift[:, None, None]
    torch.testing.assert_close(norm(h, level), expected, rtol=1e-10, atol=1e-10)
    assert score(x, sigma).shape == x.shape


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ValueError, lambda: ScoreMLP(0), "ScoreMLP: num_inputs must be an int >= 1, got 0"),
        (TypeError, lambda: ScoreMLP(2.0), r"ScoreMLP: num_inputs must be an int >= 1, got 2\.0"),  # type: ignore[arg-type]
        (TypeError, lambda: ScoreMLP(2, hidden=64), "ScoreMLP: hidden must be a sequence of ints, got 64"),  # type: ignore[arg-type]
        (TypeError, lambda: ScoreMLP(2, hidden="64"), "ScoreMLP: hidden must be a sequence of ints, got '64'"),  # type: ignore[arg-type]
        (ValueError, lambda: ScoreMLP(2, hidden=(64, -1)), "ScoreMLP: hidden must be an int >= 1, got -1"),
        (ValueError, lambda: ScoreMLP(2)(torch.zeros(3, 4)), r"ScoreMLP: x must have shape \(n, \*event\) with 2 elements an event, got \(3, 4\)"),
        (ValueError, lambda: ScoreMLP(1)(torch.zeros(())), r"ScoreMLP: x must have shape .* got \(\)"),
        (ValueError, lambda: ScoreConvNet((1, 30, 28)), r"image_shape must be .* multiples of 4 and more than 4 for 3 scales, got \(1, 30, 28\)"),
        (ValueError, lambda: ScoreConvNet((1, 4, 4)), r"image_shape must be .* got \(1, 4, 4\)"),
        (ValueError, lambda: ScoreConvNet((28, 28)), r"image_shape must be .* got \(28, 28\)"),
        (ValueError, lambda: ScoreConvNet((0, 28, 28)), "ScoreConvNet: image_shape must be an int >= 1, got 0"),
        (ValueError, lambda: ScoreConvNet(channels=()), r"ScoreConvNet: channels must name at least one scale, got \(\)"),
        (TypeError, lambda: ScoreConvNet(channels=32), "ScoreConvNet: channels must be a sequence of ints, got 32"),  # type: ignore[arg-type]
        (ValueError, lambda: ScoreConvNet(num_blocks=-1), "ScoreConvNet: num_blocks must be an int >= 0, got -1"),
        (
            ValueError,
            lambda: ScoreConvNet(num_blocks=(1, 1)),
            r"ScoreConvNet: num_blocks must be an int or one for each of the 3 scales, got \(1, 1\)",
        ),
        (ValueError, lambda: ScoreConvNet(data_std=0), "ScoreConvNet: data_std must be a number > 0, got 0"),
        (ValueError, lambda: ScoreConvNet(data_std=float("nan")), "ScoreConvNet: data_std must be a number > 0, got nan"),
        (TypeError, lambda: ScoreConvNet(data_std="1"), "ScoreConvNet: data_std must be a number > 0, got '1'"),  # type: ignore[arg-type]
        (ValueError, lambda: conv_net()(torch.zeros(2, 8, 8), torch.ones(2)), r"x must have shape \(n, 1, 8, 8\), got \(2, 8, 8\)"),
        (ValueError, lambda: conv_net()(torch.zeros(2, 1, 8, 8), torch.ones(3)), r"sigma must be a tensor of shape \(2,\), got \(3,\)"),
        (ValueError, lambda: conv_net()(torch.zeros(2, 1, 8, 8), 1.0), r"sigma must be a tensor of shape \(2,\), got 1\.0"),
    ],
)
def test_errors_name_function_argument_wanted_and_got(error: type[Exception], make: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
