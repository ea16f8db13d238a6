"""Networks that give a score, (n, *event) -> (n, *event), by themselves: not as the gradient of an energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from ebmcore.perceptron import Perceptron, perceptron_from
from ebmcore.types import bounded_int, bounded_ints

Activation = Callable[[], nn.Module]
"""A module without parameters, anew for each layer: `nn.SiLU`, `nn.GELU`, `nn.Softplus`."""


class ScoreMLP(nn.Module):
    """s(x) = W_{k+1} a(W_k ... a(W_1 x + b_1) ... + b_k) + b_{k+1}: a free vector field, its Jacobian not symmetric in general.

    Args:
        num_inputs: size of one chain's event, which is flattened on the way in and restored on the way out.
        hidden: widths of the hidden layers.
        activation: called once for each layer. A smooth one: score matching differentiates it.

    Raises:
        TypeError, ValueError: for sizes that are not ints of at least 1.
    """

    def __init__(self, num_inputs: int, hidden: Sequence[int] = (128, 128), activation: Activation = nn.SiLU) -> None:
        super().__init__()
        widths = (bounded_int(num_inputs, "num_inputs", "ScoreMLP", low=1), *bounded_ints(hidden, "hidden", "ScoreMLP", low=1))
        self.num_inputs = widths[0]
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [nn.Linear(width, next_width), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], self.num_inputs))

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, *event) with num_inputs elements in each event. Returns the field, shaped as x."""
        if x.dim() < 1 or x.shape[1:].numel() != self.num_inputs:
            raise ValueError(f"ScoreMLP: x must have shape (n, *event) with {self.num_inputs} elements an event, got {tuple(x.shape)}")
        field: Tensor = self.layers(x.reshape(len(x), self.num_inputs))
        return field.reshape(x.shape)

    def as_perceptron(self) -> Perceptron | None:
        """What `trace` and the losses take formulas from; None where a subclass computes something else."""
        return perceptron_from(self, self.layers, is_energy=False) if type(self).forward is ScoreMLP.forward else None
