"""Small neural energies: a perceptron for vectors and a convolutional net for images.

Both use a smooth activation and no batch norm. The chains follow ∇E, and with ReLU that is piecewise constant: it says nothing
about curvature, and losses that differentiate it once more (score matching) see zero. Batch norm would make the energy of one chain
depend on the others in its batch, so that no p(x) ∝ exp(-E(x)) belongs to it.
Left out: residual blocks and spectral norm (Du & Mordatch 2019), which energies for larger images want.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ebmcore.ops.dynamics import DynamicsRun, NativeChains, NativeEnergy
from ebmcore.perceptron import Perceptron, perceptron_from, perceptron_of
from ebmcore.types import bounded_int, bounded_ints

Activation = Callable[[], nn.Module]
"""A module without parameters, anew for each layer: `nn.SiLU`, `nn.GELU`, `nn.Softplus`."""


class MLP(NativeChains, nn.Module):
    """E(x) = w · a(W_k ... a(W_1 x + b_1) ... + b_k) + c.

    Args:
        num_inputs: size of one chain's event, which is flattened.
        hidden: widths of the hidden layers.
        activation: called once for each layer.

    Raises:
        TypeError, ValueError: for sizes that are not ints of at least 1.
    """

    def __init__(self, num_inputs: int, hidden: Sequence[int] = (128, 128), activation: Activation = nn.SiLU) -> None:
        super().__init__()
        widths = (bounded_int(num_inputs, "num_inputs", "MLP", low=1), *bounded_ints(hidden, "hidden", "MLP", low=1))
        self.num_inputs = widths[0]
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [nn.Linear(width, next_width), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (num_chains, *event) with num_inputs elements in each event. Returns the energies, (num_chains,)."""
        if x.dim() < 1 or x.shape[1:].numel() != self.num_inputs:
            raise ValueError(f"MLP: x must have shape (num_chains, *event) with {self.num_inputs} elements an event, got {tuple(x.shape)}")
        energies: Tensor = self.layers(x.flatten(1) if x.dim() > 1 else x[:, None]).squeeze(1)
        return energies

    def as_perceptron(self) -> Perceptron | None:
        """What `trace` and the losses take formulas from; None where a subclass computes something else."""
        return perceptron_from(self, self.layers, is_energy=True) if type(self).forward is MLP.forward else None

    def native_parts(self, x: Tensor, num_evaluations: int = 1) -> tuple[NativeEnergy] | None:
        """As `Perceptron.native_parts`; None where a subclass or a hook computes something else."""
        perceptron = perceptron_of(self)
        return None if perceptron is None else perceptron.native_parts(x, num_evaluations)

    def native_dynamics(self, kernel: str, x: Tensor, momentum: Tensor | None, key: Tensor, num_steps: int, **options: Any) -> DynamicsRun | None:
        """Whole chains by `Perceptron.native_dynamics`; None, and nothing done, where a subclass or a hook computes something else."""
        perceptron = perceptron_of(self)
        return None if perceptron is None else perceptron.native_dynamics(kernel, x, momentum, key, num_steps, **options)


class ConvNet(nn.Module):
    """Convolutions that halve an image down to 4 x 4 or less, then one hidden layer on all that is left.

    Halving is a 4 x 4 kernel of stride 2: a stride that divides the kernel reaches every pixel equally often, so that ∇E has no
    checkerboard in it, which chains would draw. Once the map is 4 x 4, kernels are 3 x 3 of stride 1. There is no pooling over places:
    where a stroke stands is part of what makes a digit.

    Args:
        image_shape: (num_channels, height, width), the sides at least 8.
        channels: of each convolution; None for 32, 64, ... with as many as it takes to come to 4 x 4, and at least two.
        hidden: width of the layer behind the convolutions.
        activation: called once for each layer.

    Raises:
        TypeError, ValueError: for sizes that are not ints in their range.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 28, 28),
        channels: Sequence[int] | None = None,
        hidden: int = 128,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        self.image_shape = bounded_ints(image_shape, "image_shape", "ConvNet", low=1)
        if len(self.image_shape) != 3 or min(self.image_shape[1:]) < 8:
            raise ValueError(f"ConvNet: image_shape must be (num_channels, height, width) with sides of at least 8, got {self.image_shape}")
        depth, height, width = self.image_shape
        if channels is None:
            num_halvings = next(k for k in range(1, 64) if max(height, width) >> k <= 4)
            channels = [32 * 2**i for i in range(max(2, num_halvings))]
        layers: list[nn.Module] = []
        for next_depth in bounded_ints(channels, "channels", "ConvNet", low=1):
            if max(height, width) > 4 and min(height, width) > 1:
                layers += [nn.Conv2d(depth, next_depth, kernel_size=4, stride=2, padding=1), activation()]
                height, width = height // 2, width // 2
            else:
                layers += [nn.Conv2d(depth, next_depth, kernel_size=3, padding=1), activation()]
            depth = next_depth
        num_features, hidden = depth * height * width, bounded_int(hidden, "hidden", "ConvNet", low=1)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(num_features, hidden), activation(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (num_chains, *image_shape). Returns the energies, (num_chains,)."""
        if x.dim() != 4 or x.shape[1:] != self.image_shape:
            raise ValueError(f"ConvNet: x must have shape (num_chains, {', '.join(map(str, self.image_shape))}), got {tuple(x.shape)}")
        energies: Tensor = self.layers(x).squeeze(1)
        return energies
