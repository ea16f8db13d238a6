"""What holds for every loss that fits a score: truths aside, one table of losses and one of what each must do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from ebmcore import Key
from ebmcore.losses import (
    denoising_score_matching,
    finite_difference_score_matching,
    score_matching,
    sliced_score_matching,
)
from ebmcore.types import DivergenceError
from support.score_models import FORMS, GaussianModel, PerceptronModel, data, form, small_model
from support.targets import assert_same_bits

KEY = Key(0)
LOSSES: dict[str, Callable[..., Tensor]] = {
    "exact": lambda model, x, key=KEY: score_matching(model, x),
    "hutchinson": lambda model, x, key=KEY: score_matching(model, x, trace="hutchinson", num_probes=2, key=key),
    "sliced": lambda model, x, key=KEY: sliced_score_matching(model, x, num_probes=2, variance_reduced=False, key=key),
    "sliced, variance-reduced": lambda model, x, key=KEY: sliced_score_matching(model, x, num_probes=2, probe="gaussian", key=key),
    "finite differences": lambda model, x, key=KEY: finite_difference_score_matching(model, x, num_probes=2, key=key),
    "denoising": lambda model, x, key=KEY: denoising_score_matching(model, x, 0.5, key=key),
}
RANDOM = [name for name in LOSSES if name != "exact"]
DIFFERENTIATING = [name for name in LOSSES if name != "finite differences"]  # the model in x


@pytest.mark.parametrize("as_form", FORMS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_in_the_parameters(name: str, as_form: str) -> None:
    model, x = small_model(), data(4, 3)
    parameters = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def loss(*values: Tensor) -> Tensor:
        other = small_model()
        for parameter, value in zip(dict(other.named_parameters()), values, strict=True):
            delattr(other, parameter)
            setattr(other, parameter, value)
        return LOSSES[name](form(other, as_form), x)

    assert torch.autograd.gradcheck(loss, tuple(parameters))


@pytest.mark.parametrize("as_form", FORMS)
@pytest.mark.parametrize("name", LOSSES)
def test_events_of_any_shape_equal_the_flattened_ones(name: str, as_form: str) -> None:
    model = small_model(num_inputs=12)
    flat, images = data(5, 12), data(5, 12).reshape(5, 2, 3, 2)
    of_flat = form(model, as_form)
    losses = []
    for x, of_shape in ((flat, of_flat), (images, lambda x: (y := of_flat(x.flatten(1))).reshape(x.shape if y.dim() > 1 else y.shape))):
        loss = LOSSES[name](of_shape, x)
        losses.append((loss.detach(), *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)))
    for got, expected in zip(*losses, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_one_element_a_chain_without_an_event(name: str) -> None:
    """x of shape (n,): a function of that shape is a score function."""
    slope = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    flat = LOSSES[name](lambda x: slope * x, data(6))
    torch.testing.assert_close(flat, LOSSES[name](lambda x: slope * x, data(6)[:, None]), rtol=1e-14, atol=0)


@pytest.mark.parametrize("as_form", ["energy", "score"])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_is_float64_rounded(name: str, as_form: str) -> None:
    x = data(50, 3)
    single, double = (small_model(dtype=dtype) for dtype in (torch.float32, torch.float64))
    values = []
    for model, dtype in ((single, torch.float32), (double, torch.float64)):
        # noise of float32 and of float64 is not the same: it is given
        if name == "denoising":
            loss = denoising_score_matching(form(model, as_form), x.to(dtype), 0.3, noise=data(50, 3, seed=2).to(dtype))
        elif name == "sliced, variance-reduced":
            loss = sliced_score_matching(form(model, as_form), x.to(dtype), probe=data(2, 50, 3, seed=2).to(dtype))
        else:
            loss = LOSSES[name](form(model, as_form), x.to(dtype))
        assert loss.dtype == dtype
        assert loss.shape == ()
        values.append([loss, *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)])
    tolerance = 2e-4 if name == "finite differences" else 2e-5
    for got, expected in zip(*values, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("as_form", ["energy", "score"])
@pytest.mark.parametrize("name", RANDOM)
def test_keys(name: str, as_form: str) -> None:
    """A key fixes the draws, no key draws anew, and parts of a batch have the draws that they have in the whole."""
    model, x = form(small_model(), as_form), data(7, 3)
    loss = LOSSES[name]
    assert_same_bits(loss(model, x, Key(5)), loss(model, x, Key(5)))
    assert not torch.equal(loss(model, x, Key(5)), loss(model, x, Key(6)))
    assert not torch.equal(loss(model, x, None), loss(model, x, None))
    torch.manual_seed(3)
    first = loss(model, x, None)
    torch.manual_seed(3)
    assert_same_bits(loss(model, x, None), first)
    parts = 4 * loss(model, x[:4], Key(5)) + 3 * loss(model, x[4:], Key(5).shard(4))
    torch.testing.assert_close(parts / 7, loss(model, x, Key(5)), rtol=1e-13, atol=0)


@pytest.mark.parametrize("as_form", ["energy", "score"])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_else_is_touched(name: str, as_form: str) -> None:
    model, x = small_model(), data(7, 3)
    model.eval()
    before, state = x.clone(), torch.get_rng_state()
    loss = LOSSES[name](form(model, as_form), x, key=Key(5))
    loss.backward(retain_graph=True)
    grads = [p.grad.clone() if p.grad is not None else None for p in model.parameters()]
    LOSSES[name](form(model, as_form), x, key=Key(6))
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_bits(x, before)
    assert x._version == 0
    assert not x.requires_grad
    assert x.grad is None
    assert not model.training


@pytest.mark.parametrize("as_form", ["energy", "score"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_the_value_is_the_same(mode: Any, name: str, as_form: str) -> None:
    model, x = form(small_model(), as_form), data(7, 3)
    with mode():
        value = LOSSES[name](model, x)
    assert not value.requires_grad
    torch.testing.assert_close(value.clone(), LOSSES[name](model, x).detach(), rtol=1e-12, atol=0)


COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
MEAN = torch.tensor([1.5, -2.0], dtype=torch.float64)


@pytest.mark.parametrize("as_form", ["energy", "score"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_sign_is_right(name: str, as_form: str) -> None:
    """From an indefinite start each loss finds the mean and the covariance of 20,000 draws of a Gaussian (denoising: wider by σ² = 0.25).

    The standard errors of the entries over seeds are at most 0.045 (denoising) and 0.025 (the others): the bound is beyond 5.45 of them
    (once in 2e7). A loss whose sign is wrong ends elsewhere altogether, one whose trace is divided by the dimension at twice the covariance.
    """
    x = MEAN + data(20_000, 2) @ torch.linalg.cholesky(COVARIANCE).T
    model = GaussianModel(torch.tensor([[0.3, 0.0], [0.0, -0.5]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> float:
        optimizer.zero_grad()
        loss = LOSSES[name](form(model, as_form), x, key=Key(4))
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    precision = 0.5 * (model.P + model.P.T).detach()
    covariance = COVARIANCE + (0.25 if name == "denoising" else 0.0) * torch.eye(2)
    torch.testing.assert_close(model.mu.detach(), MEAN, rtol=0, atol=0.25)
    torch.testing.assert_close(torch.linalg.inv(precision), covariance, rtol=0, atol=0.25)
    rays = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.7, 0.7], [-0.7, 0.7]], dtype=torch.float64)
    energies = torch.stack([model.energy(MEAN + r * rays).detach() for r in (0.5, 1.0, 2.0, 4.0)])
    assert bool((energies.diff(dim=0) > 0).all()), "the energy must rise away from the data"


def distributions() -> dict[str, tuple[Any, list[Tensor], Callable[[Tensor], Tensor]]]:
    """Name -> a model with log_prob, its parameters, and its energy up to a constant, by hand."""
    loc = torch.tensor([[0.5, -1.0], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([[0.7, 1.5], [1.1, 0.9]], dtype=torch.float64, requires_grad=True)
    factor = torch.tensor([[1.2, 0.0], [0.4, 0.8]], dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([0.2, -0.5], dtype=torch.float64, requires_grad=True)

    def normal(x: Tensor) -> Tensor:
        return (0.5 * ((x - loc[0]) / scale[0]).square()).sum(-1)

    def full(x: Tensor) -> Tensor:
        return 0.5 * torch.linalg.solve_triangular(factor, (x - loc[0]).T, upper=False).square().sum(0)

    def mixture(x: Tensor) -> Tensor:
        squares = (0.5 * ((x[:, None] - loc) / scale).square()).sum(2)
        return -torch.logsumexp(logits - squares - scale.log().sum(1), 1)

    return {
        "Normal, one for each element": (Normal(loc[0], scale[0]), [loc, scale], normal),
        "Independent": (Independent(Normal(loc[0], scale[0]), 1), [loc, scale], normal),
        "MultivariateNormal": (MultivariateNormal(loc[0], scale_tril=factor), [loc, factor], full),
        "MixtureSameFamily": (MixtureSameFamily(Categorical(logits=logits), Independent(Normal(loc, scale), 1)), [loc, scale, logits], mixture),
    }


@pytest.mark.parametrize("which", ["Normal, one for each element", "Independent", "MultivariateNormal", "MixtureSameFamily"])
@pytest.mark.parametrize("name", LOSSES)
def test_anything_with_log_prob_is_the_energy_of_its_density(name: str, which: str) -> None:
    model, parameters, energy = distributions()[which]
    x = data(6, 2)
    losses = [LOSSES[name](f, x) for f in (model, energy)]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-10)
    got, expected = (torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in losses)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def spoil(model: Callable[[Tensor], Tensor], value: float) -> Callable[[Tensor], Tensor]:
    """Not finite in rows where x[:, 0] > 100."""

    def spoiled(x: Tensor) -> Tensor:
        y = model(x)
        factor = torch.where(x[:, 0] > 100, value, 0.0) * x[:, 0]  # times x, so that the gradient is as bad
        return y + factor.reshape(-1, *[1] * (y.dim() - 1))

    return spoiled


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("as_form", ["energy", "score"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_finite_raises_and_names_the_chains(name: str, as_form: str, value: float) -> None:
    x = data(5, 3)
    x[1, 0] = x[4, 0] = 200.0
    caller = {"exact": "score_matching", "hutchinson": "score_matching", "denoising": "denoising_score_matching"}
    caller["finite differences"] = "finite_difference_score_matching"
    with pytest.raises(DivergenceError, match=caller.get(name, "sliced_score_matching")) as caught:
        LOSSES[name](spoil(form(small_model(), as_form), value), x)
    assert caught.value.chains == [1, 4]


@pytest.mark.parametrize("name", LOSSES)
def test_nan_in_x_raises(name: str) -> None:
    x = data(5, 3)
    x[2, 1] = math.nan
    with pytest.raises(DivergenceError) as caught:
        LOSSES[name](small_model().energy, x)
    assert caught.value.chains == [2]


@pytest.mark.parametrize("name", [name for name in DIFFERENTIATING if name != "denoising"])
def test_an_energy_without_curvature_warns(name: str) -> None:
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)).double()
    with pytest.warns(UserWarning, match="second derivative"):
        LOSSES[name](energy, data(5, 3))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("error", "match", "x"),
    [
        (TypeError, "x must be a torch.Tensor, got list", [1.0]),
        (TypeError, "x must be float32 or float64, got torch.int64", torch.zeros(4, 3, dtype=torch.int64)),
        (TypeError, "x must be float32 or float64, got torch.bfloat16", torch.zeros(4, 3, dtype=torch.bfloat16)),
        (ValueError, r"x must have at least one row, got shape \(0, 3\)", torch.zeros(0, 3)),
        (ValueError, r"x must have at least one element in each chain, got \(4, 0\)", torch.zeros(4, 0)),
        (ValueError, r"x must have shape \(num_chains, \*event\), got a 0-d tensor", torch.tensor(1.0)),
    ],
)
def test_bad_x(name: str, error: type[Exception], match: str, x: Any) -> None:
    with pytest.raises(error, match=match):
        LOSSES[name](small_model(dtype=torch.float32).energy, x)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("error", "model"),
    [
        (ValueError, lambda x: x[:, :2]),
        (ValueError, lambda x: x.sum()),
        (ValueError, lambda x: x.sum(1, keepdim=True)),
        (TypeError, lambda x: x.sum(1).tolist()),
        (TypeError, lambda x: x.sum(1).long()),
    ],
)
def test_bad_models(name: str, error: type[Exception], model: Callable[[Tensor], Any]) -> None:
    with pytest.raises(error, match=r"score_matching: .*must return"):
        LOSSES[name](model, data(4, 3))


def test_the_models_of_this_file_are_right() -> None:
    for model in (small_model(), GaussianModel(data(3, 3), data(3))):
        assert isinstance(model, GaussianModel | PerceptronModel)
        torch.testing.assert_close(form(model, "score")(data(4, 3)), form(model, "score_by_autograd")(data(4, 3)))
