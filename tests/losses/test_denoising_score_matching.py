"""Denoising score matching, of one level and of many, against the truths, by hand, and in expectation over its noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmcore import Key
from ebmcore.losses import denoising_score_matching
from support.score_models import FORMS, GaussianModel, data, form, small_model, truth_cases
from support.statistics import assert_counts


@pytest.mark.parametrize("as_form", FORMS)
@pytest.mark.parametrize("number", range(4))
def test_values_and_gradients(number: int, as_form: str) -> None:
    case = truth_cases()[number]
    model, arrays, sigma = case["model"], case["arrays"], case["sigma"]
    loss = denoising_score_matching(form(model, as_form), arrays["X"], sigma, noise=arrays["eps"])
    assert float(loss.detach()) == pytest.approx(case["dsm_for_saved_eps" if number < 2 else "dsm"], rel=1e-9)
    if number < 2:  # by hand: r = -P y + eps / σ at y = x + σ eps - mu
        y = arrays["X"] + sigma * arrays["eps"] - arrays["mu"]
        residual = arrays["eps"] / sigma - y @ arrays["P"]
        grad = -residual.T @ y / len(y)
        by_hand = [0.5 * (grad + grad.T), arrays["P"] @ residual.mean(0)]
    else:
        by_hand = [arrays[f"grad_dsm_{name}"] for name, _ in model.named_parameters()]
    for expected, grad in zip(by_hand, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def moments(model: GaussianModel, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean and variance over eps of ½ |a + B eps|² at each row, a = -P (x - mu), B = 1 / σ - σ P: normal, so in closed form."""
    with torch.no_grad():
        a = -(x - model.mu) @ model.P
        B = torch.eye(x.shape[1], dtype=x.dtype) / sigma - sigma * model.P
        mean = 0.5 * a.square().sum(1) + 0.5 * B.square().sum()
        return mean, (a @ B).square().sum(1) + 0.5 * (B @ B).square().sum()


@pytest.mark.parametrize("number", range(2))
def test_expectation_over_the_noise(number: int) -> None:
    """Within 5.45 standard errors (once in 2e7), which are exact, of the truth."""
    case = truth_cases()[number]
    model, x = case["model"], case["arrays"]["X"]
    mean, variance = moments(model, x, case["sigma"])
    assert float(mean.mean()) == pytest.approx(case["dsm_expected_over_eps"], rel=1e-12)
    num_copies = 20_000
    with torch.no_grad():
        loss = denoising_score_matching(model.score, x.repeat(num_copies, 1), case["sigma"], key=Key(3))
    error = math.sqrt(float(variance.mean()) / (num_copies * len(x)))
    assert abs(float(loss) - case["dsm_expected_over_eps"]) < 5.45 * error
    assert error < 0.002 * case["dsm_expected_over_eps"]


def test_expectation_over_the_levels() -> None:
    """Levels are uniform and weighted by σ²: within 5.45 exact standard errors (once in 2e7) of the closed form."""
    case = truth_cases()[0]
    model, x, levels = case["model"], case["arrays"]["X"], [1.0, 0.5, 0.25]
    pairs = [moments(model, x, sigma) for sigma in levels]
    means = torch.stack([sigma**2 * mean for sigma, (mean, _) in zip(levels, pairs, strict=True)])
    squares = torch.stack([sigma**4 * variance for sigma, (_, variance) in zip(levels, pairs, strict=True)]) + means.square()
    variance = squares.mean(0) - means.mean(0).square()  # of a row, its level being random
    num_copies = 20_000
    with torch.no_grad():
        loss = denoising_score_matching(lambda x, sigma: model.score(x), x.repeat(num_copies, 1), levels, key=Key(3))
    error = math.sqrt(float(variance.mean()) / (num_copies * len(x)))
    assert abs(float(loss) - float(means.mean())) < 5.45 * error
    assert error < 0.002 * float(means.mean())


def test_levels_are_uniform_and_each_row_is_blurred_by_its_own() -> None:
    levels, seen = [4.0, 2.0, 1.0, 0.5, 0.25], {}

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        seen["x"], seen["sigma"] = x.detach(), sigma
        return -x / sigma[:, None] ** 2

    noise = data(10_000, 2)
    loss = denoising_score_matching(score, torch.zeros(10_000, 2, dtype=torch.float64), levels, noise=noise, key=Key(1))
    sigma = seen["sigma"]
    assert sigma.dtype == torch.float64
    counts = torch.tensor([int((sigma == level).sum()) for level in levels])
    assert int(counts.sum()) == 10_000
    assert_counts(counts, torch.full((5,), 0.2), what="noise levels")
    assert torch.equal(seen["x"], sigma[:, None] * noise)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-24)  # the score of data at 0, blurred: σ s + eps = 0
    halves = [denoising_score_matching(score, torch.ones(k, 2).double(), levels, key=Key(1).shard(s)) for s, k in ((0, 600), (600, 400))]
    whole = denoising_score_matching(score, torch.ones(1000, 2).double(), levels, key=Key(1))
    torch.testing.assert_close(0.6 * halves[0] + 0.4 * halves[1], whole, rtol=1e-13, atol=0)


@pytest.mark.parametrize("as_form", FORMS)
def test_many_levels_by_hand(as_form: str) -> None:
    """A ladder of one rung is the single level times σ²; and a model that knows σ has its parameters' gradient from every rung."""
    model, x, noise = small_model(), data(4, 3), data(4, 3, seed=2)
    f = form(model, as_form)
    for ladder in ([0.5], torch.tensor([0.5])):
        loss = denoising_score_matching(lambda x, sigma: f(x), x, ladder, noise=noise)
        torch.testing.assert_close(loss, 0.25 * denoising_score_matching(f, x, 0.5, noise=noise), rtol=1e-13, atol=0)
    seen: list[Tensor] = []

    def conditional(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        value = f(x)
        return value / sigma.reshape(-1, *[1] * (value.dim() - 1))

    loss = denoising_score_matching(conditional, x, (2.0, 1.0, 0.5), noise=noise, key=Key(4))
    sigma = seen[-1]
    assert len(sigma.unique()) > 1
    grads = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    residual = [sigma[i] * form(model, "score")(x[i : i + 1] + sigma[i] * noise[i : i + 1]) / sigma[i] + noise[i] for i in range(4)]
    by_hand = 0.5 * torch.cat(residual).square().sum(1).mean()
    torch.testing.assert_close(loss, by_hand, rtol=1e-13, atol=0)
    torch.testing.assert_close(grads, torch.autograd.grad(by_hand, list(model.parameters()), materialize_grads=True), rtol=1e-12, atol=1e-13)


def test_numbers_of_all_kinds_are_one_level() -> None:
    model, x, noise = small_model().energy, data(4, 3), data(4, 3, seed=2)
    expected = denoising_score_matching(model, x, 1.0, noise=noise)
    for one in (1, torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64)):
        assert torch.equal(denoising_score_matching(model, x, one, noise=noise), expected)


def test_given_noise_draws_nothing() -> None:
    state = torch.get_rng_state()
    denoising_score_matching(small_model().energy, data(4, 3), 0.5, noise=data(4, 3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("error", "match", "noise_std", "noise"),
    [
        (ValueError, "noise_std must be finite and > 0, got 0.0", 0.0, None),
        (ValueError, "noise_std must be finite and > 0, got -1", -1, None),
        (ValueError, "noise_std must be finite and > 0, got nan", math.nan, None),
        (ValueError, r"noise_std must be finite and > 0, got \[1.0, inf\]", [1.0, math.inf], None),
        (ValueError, r"noise_std must be finite and > 0, got \[\]", [], None),
        (TypeError, "noise_std must be a number, .* got True", True, None),
        (TypeError, "noise_std must be a number, .* got '1'", "1", None),
        (TypeError, "noise_std must be a number, .* got None", None, None),
        (TypeError, r"noise_std must be a number, .* got \[\[1.0\]\]", torch.ones(1, 1), None),
        (ValueError, r"noise must be torch.float64 \(4, 3\) on cpu as x, got torch.float64 \(4, 2\) on cpu", 1.0, data(4, 2)),
        (ValueError, r"noise must be torch.float64 \(4, 3\) on cpu as x, got torch.float32 \(4, 3\) on cpu", 1.0, torch.zeros(4, 3)),
        (ValueError, r"noise must be torch.float64 \(4, 3\) on cpu as x, got float", 1.0, 0.5),
    ],
)
def test_refusals(error: type[Exception], match: str, noise_std: Any, noise: Any) -> None:
    with pytest.raises(error, match="denoising_score_matching: " + match):
        denoising_score_matching(small_model().energy, data(4, 3), noise_std, noise=noise)
