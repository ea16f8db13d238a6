"""Sliced score matching, by products and by finite differences, against the truths; means, and orders of convergence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebmcore import Key
from ebmcore.losses import finite_difference_score_matching, score_matching, sliced_score_matching
from support.score_models import FORMS, GaussianModel, data, form, small_model, truth_cases
from support.targets import Counting


def gaussian_gradients(arrays: dict[str, Tensor], v: Tensor, variance_reduced: bool) -> dict[str, Tensor]:
    """By hand, with y = x - mu: ½ |Py|² - vᵀPv, or ½ (vᵀPy)² - vᵀPv. v: (n, num_probes, d)."""
    P, y = arrays["P"], arrays["X"] - arrays["mu"]
    num_terms = v.shape[0] * v.shape[1]
    curvature = torch.einsum("npi,npj->ij", v, v) / num_terms
    if variance_reduced:
        grad, grad_mu = P @ y.T @ y / len(y), -P @ P @ y.mean(0)
    else:
        projected = torch.einsum("npi,ij,nj->np", v, P, y)
        grad = torch.einsum("np,npi,nj->ij", projected, v, y) / num_terms
        grad_mu = -torch.einsum("np,npi,ij->j", projected, v, P) / num_terms
    return {"P": 0.5 * (grad + grad.T) - curvature, "mu": grad_mu}


@pytest.mark.parametrize("as_form", FORMS)
@pytest.mark.parametrize("variance_reduced", [False, True])
@pytest.mark.parametrize(("number", "law"), [(0, "rademacher"), (0, "gauss"), (1, "rademacher"), (1, "gauss"), (2, ""), (3, "")])
def test_values_and_gradients(number: int, law: str, variance_reduced: bool, as_form: str) -> None:
    case = truth_cases()[number]
    model, arrays = case["model"], case["arrays"]
    name = "ssm_vr" if variance_reduced else "ssm"
    v = arrays[f"V_{law}" if law else "V"]
    loss = sliced_score_matching(form(model, as_form), arrays["X"], probe=v.transpose(0, 1).contiguous(), variance_reduced=variance_reduced)
    assert float(loss.detach()) == pytest.approx(case[f"{name}_{law}" if law else name], rel=1e-9)
    by_hand = gaussian_gradients(arrays, v, variance_reduced) if law else {k: arrays[f"grad_{name}_{k}"] for k, _ in model.named_parameters()}
    grads = torch.autograd.grad(loss, list(model.parameters()))
    for expected, grad in zip(by_hand.values(), grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("as_form", ["energy", "score"])
def test_both_forms_have_the_mean_of_score_matching(as_form: str) -> None:
    """Exactly: the mean over all 2^3 vectors of signs, of the loss and of its gradient."""
    model, x = small_model(), data(4, 3)
    f, parameters = form(model, as_form), list(model.parameters())
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    exact = score_matching(f, x)
    expected = torch.autograd.grad(exact, parameters, materialize_grads=True)
    for variance_reduced in (False, True):
        loss = sliced_score_matching(f, x, probe=signs[:, None].expand(8, 4, 3), variance_reduced=variance_reduced)
        torch.testing.assert_close(loss, exact, rtol=1e-13, atol=0)
        grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
        torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-13)


def test_variance_reduction_reduces_the_variance() -> None:
    """On a Gaussian with P = 1 at x = mu + (1, ..., 1): vᵀPv = d is exact for signs, ½ |s|² = d/2 too, and ½ (v·s)² is not."""
    d = 8
    model = GaussianModel(torch.eye(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64))
    x = torch.ones(100, d, dtype=torch.float64)
    assert float(sliced_score_matching(model.energy, x, key=Key(0)).detach()) == pytest.approx(d / 2 - d, rel=1e-14)
    assert float(sliced_score_matching(model.energy, x, key=Key(0), variance_reduced=False).detach()) != pytest.approx(d / 2 - d, rel=1e-3)


@pytest.mark.parametrize("as_form", ["energy", "score"])
def test_finite_differences_converge_in_the_second_order(as_form: str) -> None:
    """Energies to the sliced loss, score functions to the variance-reduced one, in value and gradient; with the probes of the same key."""
    model, x = small_model(), data(6, 3)
    f, parameters = form(model, as_form), list(model.parameters())
    options: dict[str, Any] = {"num_probes": 3, "probe": "gaussian", "key": Key(11)}

    def value_and_grads(loss: Tensor) -> Tensor:
        return torch.cat([loss.detach()[None], *(g.flatten() for g in torch.autograd.grad(loss, parameters, materialize_grads=True))])

    limit = value_and_grads(sliced_score_matching(f, x, variance_reduced=as_form == "score", **options))
    errors = [value_and_grads(finite_difference_score_matching(f, x, epsilon=e, **options)) - limit for e in (0.02, 0.01, 0.005)]
    for coarse, fine in pairwise(errors):
        torch.testing.assert_close(coarse, 4 * fine, rtol=0.02, atol=0.02 * float(coarse.abs().max()))
    assert float(errors[2].abs().max()) < 1e-2
    assert float(errors[0][0].abs()) > 1e-6


def test_finite_differences_are_exact_for_quadratic_energies_and_ask_once() -> None:
    model, x = GaussianModel(data(3, 3), data(3)), data(6, 3)
    energy = Counting(model.energy)
    loss = finite_difference_score_matching(energy, x, epsilon=0.5, num_probes=2, key=Key(3))
    assert energy.count == 1
    torch.testing.assert_close(loss, sliced_score_matching(model.energy, x, num_probes=2, variance_reduced=False, key=Key(3)), rtol=1e-12, atol=0)


def test_finite_differences_see_the_kinks_of_relu() -> None:
    """E = |x - 1|, of which s' is 0 where it exists: at x = 1 the second difference is 2 / ε, the first 0."""
    loss = finite_difference_score_matching(lambda x: (x - 1).abs().sum(1), torch.ones(5, 1), epsilon=0.25, key=Key(0))
    assert float(loss) == pytest.approx(-2 / 0.25)


def test_a_batch_norm_sees_one_batch() -> None:
    energy = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 1), nn.Flatten(0)).double()
    finite_difference_score_matching(energy, data(4, 2), num_probes=3, key=Key(0))
    assert int(energy[0].num_batches_tracked) == 1


PROBE = torch.ones(2, 4, 3, dtype=torch.float64)


@pytest.mark.parametrize("loss", [sliced_score_matching, finite_difference_score_matching])
@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ValueError, "num_probes must be an int >= 1, got 0", {"num_probes": 0}),
        (TypeError, "num_probes must be an int >= 1, got 1.5", {"num_probes": 1.5}),
        (ValueError, "probe must be .*, got 'uniform'", {"probe": "uniform"}),
        (ValueError, r"probe must have shape \(num_probes, \*\(4, 3\)\).*, got \(4, 3\)", {"probe": PROBE[0]}),
        (ValueError, r"probe must have shape \(num_probes, \*\(4, 3\)\).*, got \(2, 3, 3\)", {"probe": PROBE[:, :3]}),
        (ValueError, r"probe must have shape \(num_probes, \*\(4, 3\)\).*, got \(0, 4, 3\)", {"probe": PROBE[:0]}),
    ],
)
def test_bad_probes(loss: Any, error: type[Exception], match: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"{loss.__name__}: {match}"):
        loss(small_model().energy, data(4, 3), **options)


def test_finite_differences_of_few_digits_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must return a float32 or float64 tensor, .*, got torch.bfloat16"):
        finite_difference_score_matching(lambda x: x.sum(1).bfloat16(), data(4, 3))


@pytest.mark.parametrize("epsilon", [0.0, -0.1, float("nan"), float("inf")])
def test_bad_epsilon(epsilon: float) -> None:
    with pytest.raises(ValueError, match="finite_difference_score_matching: epsilon must be finite and > 0, got"):
        finite_difference_score_matching(small_model().energy, data(4, 3), epsilon=epsilon)
