"""One definition of the root of the mean squared error."""

import math

import pytest
import torch

from ebmcore.evaluation import rmse


def test_by_hand() -> None:
    assert rmse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0])) == math.sqrt(4.5)
    matrix = torch.tensor([[0.0, 3.0], [3.0, 0.0]])
    assert rmse(matrix, torch.zeros(2, 2)) == math.sqrt(4.5)
    assert rmse(torch.tensor(1e8) + torch.tensor([1.0]), torch.tensor([1e8], dtype=torch.float64)) < 8


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"rmse: estimate must have the shape \(2,\) of truth, not empty, got \(3,\)"):
        rmse(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="not empty"):
        rmse(torch.zeros(0), torch.zeros(0))
