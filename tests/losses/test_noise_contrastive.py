"""Noise-contrastive estimation by hand, its optimum, and log Z of a Gaussian energy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from ebmcore.losses import noise_contrastive
from ebmcore.types import DivergenceError
from support.score_models import data, small_model
from support.targets import Counting, assert_same_bits, quadratic

NOISE = MultivariateNormal(torch.tensor([0.5, -0.5]).double(), 2.0 * torch.eye(2).double())


class FreeGaussian(nn.Module):
    """E = ½ xᵀ P x - hᵀ x + c, normalised at c = log Z."""

    def __init__(self) -> None:
        super().__init__()
        self.P, self.h = nn.Parameter(torch.zeros(2, 2).double()), nn.Parameter(torch.zeros(2).double())
        self.c = nn.Parameter(torch.zeros(()).double())

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x @ self.P) * x).sum(1) - x @ self.h + self.c

    def log_z(self) -> float:
        """Of E - c."""
        P, h = 0.5 * (self.P + self.P.T).detach(), self.h.detach()
        return math.log(2 * math.pi) - 0.5 * float(torch.logdet(P)) + 0.5 * float(h @ torch.linalg.solve(P, h))


def test_value_and_gradient_by_hand() -> None:
    slope = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    x_data, x_noise = [0.5, -1.0], [2.0, 0.0, 1.0]
    log_noise = {0.5: -0.3, -1.0: -1.2, 2.0: -0.7, 0.0: 0.1, 1.0: -2.0}
    total, grad = 0.0, 0.0
    for x in x_data:  # -log h, h = 1 / (1 + ν p_noise / p_model), and its derivative in the energy, 1 - h
        h = 1 / (1 + 1.5 * math.exp(log_noise[x]) / math.exp(-1.5 * x))
        total, grad = total - math.log(h) / 2, grad + (1 - h) * x / 2
    for x in x_noise:
        h = 1 / (1 + 1.5 * math.exp(log_noise[x]) / math.exp(-1.5 * x))
        total, grad = total - 1.5 * math.log(1 - h) / 3, grad - 1.5 * h * x / 3
    columns = [torch.tensor(x, dtype=torch.float64)[:, None] for x in (x_data, x_noise)]
    loss = noise_contrastive(lambda x: slope * x[:, 0], *columns, lambda x: torch.tensor([log_noise[v] for v in x[:, 0].tolist()], dtype=x.dtype))
    assert float(loss.detach()) == pytest.approx(total, rel=1e-12)
    assert float(torch.autograd.grad(loss, slope)[0]) == pytest.approx(grad, rel=1e-12)


def test_a_model_that_is_the_noise_learns_nothing_more() -> None:
    x_data, x_noise = data(50, 2), data(50, 2, seed=2)
    assert float(noise_contrastive(NOISE, x_data, x_noise, NOISE)) == pytest.approx(2 * math.log(2), rel=1e-12)
    nu = 4.0
    expected = math.log(1 + nu) + nu * math.log(1 + 1 / nu)
    assert float(noise_contrastive(NOISE, x_data, x_noise.repeat(4, 1), NOISE)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_noise", [20_000, 60_000])
def test_learns_the_gaussian_and_its_log_z(num_noise: int) -> None:
    """From a flat energy. The standard errors over seeds are at most 0.0055 of c - log Z, 0.027 of the covariance, 0.011 of the mean: the
    bounds are 5.45 of them and more (once in 2e7). A wrong sign ends at a negative P, a forgotten ν at c off by log 3."""
    mean, covariance = torch.tensor([1.0, -1.0]).double(), torch.tensor([[1.0, 0.5], [0.5, 1.5]]).double()
    x_data = mean + data(20_000, 2) @ torch.linalg.cholesky(covariance).T
    x_noise = NOISE.mean + data(num_noise, 2, seed=2) @ NOISE.scale_tril.T
    energy = FreeGaussian()
    optimizer = torch.optim.LBFGS(energy.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> float:
        optimizer.zero_grad()
        loss = noise_contrastive(energy, x_data, x_noise, NOISE)
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    assert float(energy.c.detach()) == pytest.approx(energy.log_z(), abs=0.03)
    learned = torch.linalg.inv(0.5 * (energy.P + energy.P.T).detach())
    torch.testing.assert_close(learned, covariance, rtol=0, atol=0.15)
    torch.testing.assert_close(learned @ energy.h.detach(), mean, rtol=0, atol=0.06)
    assert bool((torch.linalg.eigvalsh(learned) > 0).all()), "the energy must rise away from the data"


def test_gradcheck() -> None:
    model = small_model(2)
    x_data, x_noise = data(4, 2), data(6, 2, seed=2)

    def loss(*values: Tensor) -> Tensor:
        for name, value in zip(("W1", "b1", "W2", "b2", "w3", "k"), values, strict=True):
            if name in model._parameters:
                delattr(model, name)
            setattr(model, name, value)
        return noise_contrastive(model.energy, x_data, x_noise, NOISE)

    assert torch.autograd.gradcheck(loss, tuple(p.detach().clone().requires_grad_() for p in model.parameters()))


def test_events_of_any_shape_and_float32() -> None:
    noise, x_data, x_noise = Normal(0.0, 2.0), data(5, 12), data(7, 12, seed=2)
    flat = noise_contrastive(quadratic, x_data, x_noise, noise)
    images = noise_contrastive(quadratic, x_data.reshape(5, 2, 3, 2), x_noise.reshape(7, 2, 3, 2), noise)
    torch.testing.assert_close(images, flat, rtol=1e-14, atol=0)
    single = noise_contrastive(quadratic, x_data.float(), x_noise.float(), noise)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), flat, rtol=1e-5, atol=1e-6)


def test_extreme_ratios_stay_finite() -> None:
    shift = torch.tensor(0.0, requires_grad=True)
    loss = noise_contrastive(lambda x: 1e4 * x[:, 0] + shift, torch.ones(3, 1), -torch.ones(3, 1), lambda x: torch.zeros(len(x)))
    assert float(loss.detach()) == pytest.approx(2e4)
    assert float(torch.autograd.grad(loss, shift)[0]) == pytest.approx(0.0)  # all on the wrong side: 1 - 1


def test_low_precision_energies_are_summed_in_float32() -> None:
    x_data, x_noise = torch.tensor([[1.25]]), torch.tensor([[40.0]])  # the noise is told at once
    loss = noise_contrastive(lambda x: x[:, 0].bfloat16(), x_data, x_noise, lambda x: torch.full((len(x),), -1.25 - 2**-9))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(math.log1p(math.exp(-(2**-9))), rel=1e-6)


def test_one_call_and_nothing_else_touched() -> None:
    """No gradient flows into the noise: neither into its draws nor into its density."""
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    x_data, draws = data(4, 2), data(4, 2, seed=2)
    before, state = x_data.clone(), torch.get_rng_state()
    energy = Counting(lambda x: weight * quadratic(x))
    noise_contrastive(energy, x_data, scale * draws, Normal(torch.zeros(2).double(), scale)).backward()
    assert energy.count == 1
    assert scale.grad is None
    assert weight.grad is not None
    assert_same_bits(x_data, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("where", ["energy", "noise"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_raises(where: str, value: float) -> None:
    def spoiled(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] == 7, value, -quadratic(x))

    x_data, x_noise = data(3, 2), data(4, 2, seed=2)
    x_data[1, 0] = x_noise[0, 0] = x_noise[2, 0] = 7.0
    functions: list[Any] = [spoiled, NOISE] if where == "energy" else [quadratic, spoiled]
    with pytest.raises(DivergenceError, match=r"at 1 rows of x_data \[1\] and 2 of x_noise \[0, 2\]") as caught:
        noise_contrastive(functions[0], x_data, x_noise, functions[1])
    assert caught.value.chains == [1, 3, 5]


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("error", "match", "energy", "x_data", "x_noise", "noise"),
    [
        (ValueError, r"energy must return shape \(8,\), got \(8, 2\); a score function", lambda x: -x, X, X, quadratic),
        (ValueError, r"energy must return shape \(8,\), got \(8, 1\)", lambda x: x[:, :1], X, X, quadratic),
        (ValueError, r"noise must return shape \(8,\), got \(\)", quadratic, X, X, lambda x: x.sum()),
        (TypeError, "energy must return a floating-point tensor, got torch.int64", lambda x: x[:, 0].long(), X, X, quadratic),
        (TypeError, "noise must return a floating-point tensor, got float", quadratic, X, X, lambda x: 1.0),
        (ValueError, r"x_noise must have events \(2,\) as x_data, got \(3,\)", quadratic, X, torch.zeros(4, 3), quadratic),
        (ValueError, "x_noise must have dtype torch.float32 as x_data, got torch.float64", quadratic, X, X.double(), quadratic),
        (ValueError, "x_noise must have device cpu as x_data, got meta", quadratic, X, X.to("meta"), quadratic),
        (ValueError, r"x_noise must have at least one row, got shape \(0, 2\)", quadratic, X, X[:0], quadratic),
        (TypeError, "x_data must be float32 or float64, got torch.int64", quadratic, X.long(), X, quadratic),
    ],
)
def test_bad_input(error: type[Exception], match: str, energy: Any, x_data: Any, x_noise: Any, noise: Any) -> None:
    with pytest.raises(error, match="noise_contrastive: " + match):
        noise_contrastive(energy, x_data, x_noise, noise)
