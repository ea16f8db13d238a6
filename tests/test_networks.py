"""ScoreMLP and ScoreConvNet: the formulas, shapes, independence of the chains, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ebmcore import trace
from ebmcore.networks import ScoreMLP


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
