"""Models whose scores are written out by hand, with parameters, as energies and as score functions; and the truths that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from support.truths import truth, truth_arrays

Model = Callable[[Tensor], Tensor]
FORMS = ("energy", "score", "score_by_autograd")


class GaussianModel(nn.Module):
    """E = ½ (x - mu)ᵀ P (x - mu), P not symmetrised: only its symmetric part counts."""

    def __init__(self, P: Tensor, mu: Tensor) -> None:
        super().__init__()
        self.P, self.mu = nn.Parameter(P.clone()), nn.Parameter(mu.clone())

    def energy(self, x: Tensor) -> Tensor:
        y = x - self.mu
        return 0.5 * ((y @ self.P) * y).sum(1)

    def score(self, x: Tensor) -> Tensor:
        return -0.5 * (x - self.mu) @ (self.P + self.P.T)


class PerceptronModel(nn.Module):
    """E = w3 · softplus(W2 tanh(W1 x + b1) + b2) + ½ k |x|²."""

    def __init__(self, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor, w3: Tensor, k: Tensor) -> None:
        super().__init__()
        for name, value in {"W1": W1, "b1": b1, "W2": W2, "b2": b2, "w3": w3, "k": k}.items():
            self.register_parameter(name, nn.Parameter(value.clone()))

    def energy(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ self.W1.T + self.b1)
        return softplus(hidden @ self.W2.T + self.b2) @ self.w3 + 0.5 * self.k * x.square().sum(1)

    def score(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ self.W1.T + self.b1)
        back = (self.w3 * torch.sigmoid(hidden @ self.W2.T + self.b2)) @ self.W2
        return -(((1 - hidden.square()) * back) @ self.W1 + self.k * x)


def form(model: Any, name: str) -> Model:
    """The model in one of the forms that losses take."""
    if name != "score_by_autograd":
        return getattr(model, name)

    def score(x: Tensor) -> Tensor:
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        return -torch.autograd.grad(model.energy(leaf).sum(), leaf, create_graph=True)[0]

    return score


def truth_cases() -> list[dict[str, Any]]:
    """The models of truths/score_trace with their numbers, "model" and "arrays" (of x, probes, noise and gradients) in each."""
    cases, arrays = truth("score_trace"), truth_arrays("score_trace")
    result = []
    for case, kind, names in [
        *((case, GaussianModel, ("P", "mu")) for case in cases["gaussian"]),
        *((case, PerceptronModel, ("W1", "b1", "W2", "b2", "w3", "k")) for case in cases["mlp"]),
    ]:
        prefix = case["name"] + "__"
        own = {name.removeprefix(prefix): torch.tensor(value).double() for name, value in arrays.items() if name.startswith(prefix)}
        result.append({**case, "model": kind(**{name: own[name] for name in names}), "arrays": own})
    return result


def small_model(num_inputs: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> PerceptronModel:
    shapes: Sequence[tuple[int, ...]] = ((5, num_inputs), (5,), (4, 5), (4,), (4,))
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return PerceptronModel(*draws, torch.tensor(0.25, dtype=dtype))


def data(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
