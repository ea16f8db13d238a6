"""AIS against exact moments of its weights and exact ln Z."""

from __future__ import annotations

import math

import pytest
import torch

from ebmcore import Key
from ebmcore.energies import BernoulliRBM, GaussianRBM
from ebmcore.evaluation import ais
from support.statistics import assert_mean
from support.targets import assert_same_bits
from support.truths import truth, truth_arrays


def rbm_of(weight, visible_bias, hidden_bias, dtype=torch.float32):
    weight = torch.as_tensor(weight, dtype=dtype)
    rbm = BernoulliRBM(*weight.shape).to(dtype)
    with torch.no_grad():
        rbm.weight.copy_(weight)
        rbm.visible_bias.copy_(torch.as_tensor(visible_bias))
        rbm.hidden_bias.copy_(torch.as_tensor(hidden_bias))
    return rbm


@pytest.mark.parametrize(("index", "dtype"), [(0, torch.float32), (1, torch.float32), (0, torch.float64)])
def test_moments_of_the_log_weights(index, dtype):
    """Mean, variance and mean weight for K steps of β, all of them known exactly."""
    numbers = truth("rbm")["small"][index]
    rbm = rbm_of(numbers["W"], numbers["b"], numbers["c"], dtype)
    base = torch.tensor(numbers["base_visible_bias"])
    for wanted in numbers["ais"][:3]:
        n, num_steps = 20_000, wanted["K"]
        result = ais(rbm, num_chains=n, betas=num_steps, base_visible_bias=base, seed=num_steps)
        assert result.log_weights.dtype == torch.float64
        mean, variance = wanted["E_log_w_plus_lnZbase"], wanted["var_log_w"]
        assert_mean(result.log_weights, mean, math.sqrt(variance), what=f"log weight, K = {num_steps}")
        assert_mean((result.log_weights - mean).square(), variance, what=f"variance of the log weight, K = {num_steps}")
        spread = math.sqrt(wanted["rel_var_w"])
        assert_mean((result.log_weights - numbers["lnZ"]).exp(), 1.0, spread, what=f"weight over Z, K = {num_steps}")
        assert abs(result.log_z - numbers["lnZ"]) < 5.5 * spread / math.sqrt(n)
        assert result.standard_error == pytest.approx(spread / math.sqrt(n), rel=0.1)
        assert result.effective_sample_size == pytest.approx(n / (1 + wanted["rel_var_w"]), rel=0.05)


@pytest.mark.parametrize("index", [0, 1])
def test_log_z_within_its_own_error_bar(index, device):
    numbers, arrays = truth("rbm")["bernoulli"][index], truth_arrays("rbm")
    name = numbers["name"]
    rbm = rbm_of(arrays[f"{name}__W"], arrays[f"{name}__b"], arrays[f"{name}__c"]).to(device)
    result = ais(rbm, num_chains=200, betas=500, seed=1)
    assert abs(result.log_z - numbers["lnZ"]) < 3 * result.standard_error
    assert result.standard_error < 0.05


def test_the_base_alone():
    """Without weights and hidden biases, at its own visible biases, every weight is Z: the hidden units count as 2^H."""
    rbm = rbm_of(torch.zeros(4, 7), [0.5, -1.0, 2.0, 0.0], torch.zeros(7))
    result = ais(rbm, num_chains=20, betas=3, base_visible_bias=rbm.visible_bias, seed=1)
    expected = torch.log1p(rbm.visible_bias.detach().double().exp()).sum() + 7 * math.log(2)
    torch.testing.assert_close(result.log_weights, expected.expand(20), rtol=1e-6, atol=1e-6)
    assert result.standard_error < 1e-6
    assert result.effective_sample_size == pytest.approx(20)


def test_schedules_and_seeds():
    rbm = rbm_of(torch.eye(4), torch.zeros(4), torch.zeros(4))
    by_number = ais(rbm, num_chains=30, betas=4, seed=3)
    for betas in ([0, 0.25, 0.5, 0.75, 1], torch.linspace(0, 1, 5, dtype=torch.float64), (0.0, 0.25, 0.5, 0.75, 1.0)):
        assert_same_bits(ais(rbm, num_chains=30, betas=betas, seed=3).log_weights, by_number.log_weights)
    assert_same_bits(ais(rbm, num_chains=30, betas=4, seed=Key(3)).log_weights, by_number.log_weights)
    assert not torch.equal(ais(rbm, num_chains=30, betas=4, seed=4).log_weights, by_number.log_weights)
    assert math.isnan(ais(rbm, num_chains=1, betas=4, seed=3).standard_error)


def test_few_effective_samples_are_warned_of():
    rbm = rbm_of(torch.full((20, 20), 2.0), torch.full((20,), -19.0), torch.full((20,), -19.0))
    with pytest.warns(RuntimeWarning, match=r"ais: the effective sample size is \d.\d of 100 chains"):
        ais(rbm, betas=2, seed=1)


RBM = BernoulliRBM(3, 2)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "energy must be an energies.BernoulliRBM, got GaussianRBM", {"energy": GaussianRBM(3, 2)}),
        (TypeError, "energy must be an energies.BernoulliRBM, got function", {"energy": lambda x: x}),
        (ValueError, "num_chains must be an int >= 1, got 0", {"num_chains": 0}),
        (ValueError, "betas must be an int >= 1, got 0", {"betas": 0}),
        (TypeError, "betas must be an int or numbers from 0 to 1, got float", {"betas": 0.5}),
        (ValueError, r"betas must start at 0 and end at 1, got 0.0 ... 0.9", {"betas": [0, 0.9]}),
        (ValueError, r"betas must start at 0 and end at 1, got 0.1 ... 1.0", {"betas": [0.1, 1]}),
        (ValueError, "betas must start at 0 and end at 1, got none", {"betas": []}),
        (ValueError, "betas must rise, got 0.5 after 0.5 at index 2", {"betas": [0, 0.5, 0.5, 1]}),
        (ValueError, "betas must rise, got nan after 0.0 at index 1", {"betas": [0, math.nan, 1]}),
        (ValueError, r"base_visible_bias must be finite, of shape \(3,\), got shape \(2,\)", {"base_visible_bias": torch.zeros(2)}),
        (ValueError, r"base_visible_bias must be finite", {"base_visible_bias": torch.full((3,), math.inf)}),
        (TypeError, r"base_visible_bias must be None or a torch.Tensor, got float", {"base_visible_bias": 0.0}),
    ],
)
def test_bad_input(error, match, arguments):
    with pytest.raises(error, match="ais: " + match):
        ais(**{"energy": RBM, "seed": 1} | arguments)


def test_parameters_that_are_not_finite():
    rbm = BernoulliRBM(3, 2)
    with torch.no_grad():
        rbm.hidden_bias[1] = math.nan
    with pytest.raises(ValueError, match="ais: energy must have finite parameters, got NaN or infinity in hidden_bias"):
        ais(rbm, seed=1)
