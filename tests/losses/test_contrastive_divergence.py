from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ebmcore.losses import contrastive_divergence
from ebmcore.types import DivergenceError


def square_norm(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)


def test_values_by_hand():
    x_data, x_model = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [0.0], [1.0], [2.0]])
    # E(data) = 1, 4; E(model) = 9, 0, 1, 4; means 2.5, 3.5; mean squares 8.5, 24.5
    assert contrastive_divergence(square_norm, x_data, x_model).item() == -1.0
    assert contrastive_divergence(square_norm, x_data, x_model, energy_l2=0.25).item() == -1.0 + 0.25 * 33.0


def test_gradient_is_the_difference_of_mean_gradients():
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0)).double()
    x_data, x_model = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)

    def mean_grad(x: Tensor, sign: float, parameter: Tensor) -> Tensor:
        each = [(torch.autograd.grad(e := energy(row[None]).sum(), parameter)[0], e) for row in x]
        return torch.stack([g * (sign + 0.2 * e) for g, e in each]).mean(0)

    grads = torch.autograd.grad(contrastive_divergence(energy, x_data, x_model, energy_l2=0.1), list(energy.parameters()))
    for grad, parameter in zip(grads, energy.parameters(), strict=True):
        torch.testing.assert_close(grad, mean_grad(x_data, 1, parameter) + mean_grad(x_model, -1, parameter), rtol=1e-12, atol=1e-14)


def test_gradient_is_that_of_the_exact_log_likelihood():
    """Two independent bits with P(1) = 1/4 and 1/2: the law of the model is a multiset of 8, so the expectation is exact."""
    weight = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64, requires_grad=True)
    states = torch.tensor([[a, b] for a in (0.0, 1.0) for b in (0.0, 1.0)], dtype=torch.float64)
    x_model = torch.cat([states[:2].repeat(3, 1), states[2:]])
    x_data = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    negative_log_likelihood = (x_data @ weight).mean() + torch.logsumexp(-(states @ weight), 0)
    (expected,) = torch.autograd.grad(negative_log_likelihood, weight)
    (grad,) = torch.autograd.grad(contrastive_divergence(lambda x: x @ weight, x_data, x_model), weight)
    torch.testing.assert_close(grad, expected, rtol=1e-14, atol=1e-15)


def test_nothing_flows_into_the_sampler():
    x_data, x_model = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    contrastive_divergence(square_norm, x_data, x_model * 2).backward()
    assert x_model.grad is None
    assert x_data.grad is not None


def test_one_call_so_that_batch_norm_sees_one_batch():
    energy = nn.Sequential(nn.BatchNorm1d(1, affine=False, momentum=1.0), nn.Flatten(0))
    x_data, x_model = torch.full((4, 1), 3.0), torch.full((4, 1), -3.0)
    loss = contrastive_divergence(energy, x_data, x_model)
    assert loss.item() == pytest.approx(2.0, abs=1e-5)  # normalised by itself each batch would be at 0
    assert energy[0].running_mean.item() == 0.0
    assert energy[0].num_batches_tracked.item() == 1


def test_low_precision_energies_are_averaged_in_float32():
    value = contrastive_divergence(lambda x: x.flatten().bfloat16(), torch.full((1000, 1), 257.0), torch.zeros(3, 1))
    assert value.dtype == torch.float32
    assert value.item() == float(torch.tensor(257.0).bfloat16())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_energies_raise(bad: float):
    energy = lambda x: torch.where(x.flatten() == 7.0, bad, x.flatten())  # noqa: E731
    x = torch.arange(4.0)[:, None]
    with pytest.raises(DivergenceError, match=r"at 0 rows of x_data \[\] and 2 of x_model \[1, 3\]") as caught:
        contrastive_divergence(energy, x, torch.tensor([[0.0], [7.0], [1.0], [7.0]]))
    assert caught.value.chains == [1, 3]
    assert all(map(math.isnan, caught.value.last_energies))
    with pytest.raises(DivergenceError, match=r"at 1 rows of x_data \[0\] and 0 of x_model \[\]"):
        contrastive_divergence(energy, x + 7.0, x)


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("error", "match", "energy", "x_data", "x_model", "energy_l2"),
    [
        (TypeError, r"x_data must be a torch.Tensor, got list", square_norm, [1.0], X, 0.0),
        (TypeError, r"x_model must be a torch.Tensor, got NoneType", square_norm, X, None, 0.0),
        (ValueError, r"x_data must have shape \(n, \*event\) with n >= 1, got \(0, 2\)", square_norm, X[:0], X, 0.0),
        (ValueError, r"x_model must have shape \(n, \*event\) with n >= 1, got \(\)", square_norm, X, X[0, 0], 0.0),
        (ValueError, r"x_model must have events \(2,\), got \(3,\)", square_norm, X, torch.zeros(4, 3), 0.0),
        (TypeError, r"x_model must be torch.float32 as x_data, got torch.float64", square_norm, X, X.double(), 0.0),
        (ValueError, r"x_model must be on cpu, where x_data is, got meta", square_norm, X, X.to("meta"), 0.0),
        (ValueError, r"energy must return shape \(8,\), got \(8, 1\)", lambda x: x[:, :1], X, X, 0.0),
        (ValueError, r"energy must return shape \(8,\), got \(\)", lambda x: x.sum(), X, X, 0.0),
        (TypeError, r"energy must return a floating-point tensor, got torch.int64", lambda x: x[:, 0].long(), X, X, 0.0),
        (TypeError, r"energy must return a floating-point tensor, got float", lambda x: 1.0, X, X, 0.0),
        (ValueError, r"energy_l2 must be finite and >= 0, got -1", square_norm, X, X, -1.0),
        (ValueError, r"energy_l2 must be finite and >= 0, got nan", square_norm, X, X, math.nan),
        (ValueError, r"energy_l2 must be finite and >= 0, got inf", square_norm, X, X, math.inf),
    ],
)
def test_bad_input(error, match, energy, x_data, x_model, energy_l2):
    with pytest.raises(error, match="contrastive_divergence: " + match):
        contrastive_divergence(energy, x_data, x_model, energy_l2=energy_l2)
