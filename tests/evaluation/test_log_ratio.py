"""Log ratios of probabilities: exact where log p is known, in float64, one call, nothing that is not a number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from ebmcore import Key, ops
from ebmcore.energies import Gaussian, Ising
from ebmcore.evaluation import log_ratio
from ebmcore.testing import count_evaluations
from support.targets import quadratic

X, Y = (ops.normal((50, 2), key=Key(seed), dtype=torch.float64) for seed in (1, 2))


def test_gaussians():
    precision = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    law = MultivariateNormal(torch.ones(2, dtype=torch.float64), precision_matrix=precision)
    expected = law.log_prob(X) - law.log_prob(Y)
    torch.testing.assert_close(log_ratio(law, X, Y), expected)
    energy = count_evaluations(Gaussian([1.0, 1.0], precision=precision))
    torch.testing.assert_close(log_ratio(energy, X, Y), expected)
    assert (energy.num_evaluations, energy.num_gradients, energy.num_rows) == (1, 0, 100)
    torch.testing.assert_close(log_ratio(law, Y, X), -expected)


def test_differences_are_taken_in_float64():
    out = log_ratio(quadratic, X.float(), Y.float())
    assert out.dtype == torch.float64
    assert torch.equal(out, quadratic(Y.float()).double() - quadratic(X.float()).double())


def test_discrete_states_and_modes_of_torch():
    energy = Ising([(0, 1)], 0.7, 0.1)
    x, y = torch.tensor([[1, 1]], dtype=torch.int8), torch.tensor([[-1, 1]], dtype=torch.int8)
    assert float(log_ratio(energy, x, y)) == pytest.approx(2 * 0.7 + 2 * 0.1)
    with torch.inference_mode():
        assert float(log_ratio(energy, x, y)) == pytest.approx(1.6)
    assert not log_ratio(energy, x, y).requires_grad
    assert log_ratio(quadratic, X[:0], Y[:0]).shape == (0,)


def test_infinite_energies():
    def wall(x):
        return torch.where(x[:, 0] > 0, quadratic(x), torch.inf)

    inside, outside = torch.tensor([[1.0]]), torch.tensor([[-1.0]])
    assert float(log_ratio(wall, inside, outside)) == math.inf
    assert float(log_ratio(wall, outside, inside)) == -math.inf
    with pytest.raises(ValueError, match=r"log_ratio: energies must be numbers, one of each pair finite, got inf and inf in row 1"):
        log_ratio(wall, torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [-2.0]]))
    for value in (math.nan, -math.inf):
        with pytest.raises(ValueError, match="log_ratio: energies must be numbers"):
            log_ratio(lambda x, value=value: torch.where(x[:, 0] > 0, quadratic(x), value), inside, outside)


def test_bad_arguments():
    for y in (Y[:3], Y.float(), Y[:, :1], Y[0]):
        with pytest.raises(ValueError, match=r"log_ratio: x and y must be \(num_chains, \*event\) alike"):
            log_ratio(quadratic, X, y)
    with pytest.raises(TypeError, match=r"log_ratio: x and y must be torch.Tensors, got Tensor and ndarray"):
        log_ratio(quadratic, X, np.zeros((50, 2)))
    with pytest.raises(TypeError, match="log_ratio: model must be callable or have log_prob"):
        log_ratio(3, X, Y)
    with pytest.raises(ValueError, match=r"energy: must return shape \(100,\)"):
        log_ratio(lambda x: x, X, Y)
