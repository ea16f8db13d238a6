"""Exact and estimated score matching against the truths, and its minimiser on a Gaussian."""

from __future__ import annotations

import pytest
import torch

from ebmcore import Key
from ebmcore.losses import score_matching, sliced_score_matching
from support.score_models import FORMS, GaussianModel, data, form, small_model, truth_cases


@pytest.mark.parametrize("as_form", FORMS)
@pytest.mark.parametrize("number", range(4))
def test_values_and_gradients(number: int, as_form: str) -> None:
    case = truth_cases()[number]
    model, arrays = case["model"], case["arrays"]
    loss = score_matching(form(model, as_form), arrays["X"])
    assert float(loss.detach()) == pytest.approx(case["esm"], rel=1e-9)
    grads = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))
    names = {"P": "grad_P_autograd_of_half_quadratic", "mu": "grad_mu"}
    for name, grad in grads.items():
        expected = arrays[names.get(name, f"grad_esm_{name}")]
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("as_form", ["energy", "score"])
@pytest.mark.parametrize("number", range(2))
def test_minimiser_is_the_sample_mean_and_covariance(number: int, as_form: str) -> None:
    case = truth_cases()[number]
    x = case["arrays"]["X"]
    covariance = torch.cov(x.T, correction=0)
    model = GaussianModel(torch.linalg.inv(covariance), x.mean(0))
    loss = score_matching(form(model, as_form), x)
    assert float(loss.detach()) == pytest.approx(case["esm_minimum_value"], rel=1e-9)
    for grad in torch.autograd.grad(loss, list(model.parameters())):
        assert float(grad.abs().max()) < 1e-9 * float(torch.linalg.inv(covariance).square().sum())


@pytest.mark.parametrize("as_form", ["energy", "score"])
def test_all_signs_together_give_the_exact_trace(as_form: str) -> None:
    """The mean of vᵀ∇s v over all 2^3 vectors of signs is tr ∇s, so that the estimated loss is the exact one."""
    model, x = form(small_model(), as_form), data(4, 3)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    probes = signs[:, None].expand(8, 4, 3)
    torch.testing.assert_close(score_matching(model, x, trace="hutchinson", probe=probes), score_matching(model, x), rtol=1e-13, atol=0)


def test_the_estimated_one_is_sliced_score_matching() -> None:
    model, x = small_model().energy, data(4, 3)
    for probe in ("rademacher", "gaussian", "sphere", "orthogonal"):
        options = {"num_probes": 3, "probe": probe, "key": Key(7)}
        losses = score_matching(model, x, trace="hutchinson", **options), sliced_score_matching(model, x, **options)
        torch.testing.assert_close(*losses, rtol=1e-14, atol=0)


def test_the_exact_one_draws_nothing() -> None:
    state = torch.get_rng_state()
    score_matching(small_model().energy, data(4, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_refusals() -> None:
    energy, x = small_model().energy, data(4, 3)
    with pytest.raises(ValueError, match="score_matching: trace must be 'exact' or 'hutchinson', got 'hutch'"):
        score_matching(energy, x, trace="hutch")
    with pytest.raises(ValueError, match="score_matching: num_probes must be an int >= 1, got 0"):
        score_matching(energy, x, trace="hutchinson", num_probes=0)
