"""Networks that give a score, (n, *event) -> (n, *event), by themselves: not as the gradient of an energy.

Left out of the net for images: RefineNet's cascades and dilated convolutions (Song & Ermon 2019), attention (Ho et al. 2020), dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
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


class ScoreConvNet(nn.Module):
    """s(x, σ) of images with Gaussian noise of standard deviation σ, for any σ > 0: one net for all noise levels.

    s(x, σ) = -x / τ² + (data_std / (σ τ)) · F(x / τ, ln σ), τ² = σ² + data_std²: the score of noisy pixels of standard deviation data_std plus
    what the net F makes of it. Inputs and targets of F are then of order 1 at every σ (Karras et al. 2022, arXiv 2206.00364, table 1, EDM).
    For small σ the second term is F / σ: the output divided by σ of Song & Ermon 2020 (arXiv 2006.09011, technique 3).

    F is a small U-Net (Ronneberger et al. 2015): residual blocks of two 3 x 3 convolutions at each scale, halving and doubling in between,
    the two ways joined by sums. In front of each convolution of a block stands a conditional instance norm with the channels' means
    put back (Song & Ermon 2019, arXiv 1907.05600, appendix A.1), whose scales and shifts are functions of ln σ instead of a row of a table for
    each level. A fresh net has F = 0.

    Args:
        image_shape: (num_channels, height, width), the sides multiples of 2^(number of scales - 1), more than one pixel left at the last.
        channels: of each scale, the finest first.
        num_blocks: residual blocks of each scale on the way down, and again on the way up but for the last scale; an int for the same everywhere.
        data_std: root mean square of the clean pixels, > 0; that of the pixels of MNIST in [0, 1] is 0.33.
        activation: called once for each layer. A smooth one.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 28, 28),
        channels: Sequence[int] = (32, 64, 128),
        num_blocks: int | Sequence[int] = 1,
        data_std: float = 0.5,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        self.image_shape = bounded_ints(image_shape, "image_shape", "ScoreConvNet", low=1)
        widths = bounded_ints(channels, "channels", "ScoreConvNet", low=1)
        if not widths:
            raise ValueError("ScoreConvNet: channels must name at least one scale, got ()")
        if isinstance(num_blocks, Sequence):
            blocks = bounded_ints(num_blocks, "num_blocks", "ScoreConvNet")
        else:
            blocks = (bounded_int(num_blocks, "num_blocks", "ScoreConvNet"),) * len(widths)
        if len(blocks) != len(widths):
            raise ValueError(f"ScoreConvNet: num_blocks must be an int or one for each of the {len(widths)} scales, got {blocks}")
        factor = 2 ** (len(widths) - 1)
        sides = self.image_shape[1:]
        if len(self.image_shape) != 3 or any(side % factor for side in sides) or sides[0] * sides[1] <= factor**2:
            wanted = f"(num_channels, height, width) with sides that are multiples of {factor} and more than {factor}"
            raise ValueError(f"ScoreConvNet: image_shape must be {wanted} for {len(widths)} scales, got {self.image_shape}")
        if isinstance(data_std, bool) or not isinstance(data_std, int | float):
            raise TypeError(f"ScoreConvNet: data_std must be a number > 0, got {data_std!r}")
        if not 0 < data_std < float("inf"):
            raise ValueError(f"ScoreConvNet: data_std must be a number > 0, got {data_std}")
        self.data_std = float(data_std)
        depth = self.image_shape[0]
        self.level = _LevelFeatures(activation)
        self.first = nn.Conv2d(depth, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_blocks(width, count, activation) for width, count in zip(widths, blocks, strict=True))
        self.up = nn.ModuleList(_blocks(width, count, activation) for width, count in zip(widths[:-1], blocks[:-1], strict=True))
        self.halvings = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(widths))
        self.doublings = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairwise(widths))
        self.last_norm = _ConditionalInstanceNorm(widths[0])
        self.last_activation = activation()
        self.last = nn.Conv2d(widths[0], depth, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x: (n, *image_shape); sigma: (n,), positive, which is not checked. Returns the score, shaped as x."""
        if x.dim() != 4 or x.shape[1:] != self.image_shape:
            raise ValueError(f"ScoreConvNet: x must have shape (n, {', '.join(map(str, self.image_shape))}), got {tuple(x.shape)}")
        if not isinstance(sigma, Tensor) or sigma.shape != x.shape[:1]:
            got = tuple(sigma.shape) if isinstance(sigma, Tensor) else repr(sigma)
            raise ValueError(f"ScoreConvNet: sigma must be a tensor of shape ({len(x)},), got {got}")
        level = self.level(sigma)
        sigma = sigma[:, None, None, None]
        tau = (sigma.square() + self.data_std**2).sqrt()
        h = self.first(x / tau)
        kept = []
        for i, blocks in enumerate(self.down):
            h = self.halvings[i - 1](h) if i else h
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, level)
            kept.append(h)
        for i in reversed(range(len(self.up))):
            h = kept[i] + self.doublings[i](h)
            for block in self.up[i]:  # type: ignore[attr-defined]
                h = block(h, level)
        h = self.last(self.last_activation(self.last_norm(h, level)))
        score: Tensor = h * (self.data_std / (sigma * tau)) - x / tau.square()
        return score


_NUM_FEATURES = 64
_EPSILON = 1e-5  # added to variances


class _LevelFeatures(nn.Module):
    """ln σ and waves of it, through two layers: (n,) -> (n, 64)."""

    frequencies: Tensor

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.arange(1, 9) / 2.0)
        self.layers = nn.Sequential(nn.Linear(17, _NUM_FEATURES), activation(), nn.Linear(_NUM_FEATURES, _NUM_FEATURES), activation())

    def forward(self, sigma: Tensor) -> Tensor:
        level = sigma.log()[:, None]
        waves = level * self.frequencies
        features: Tensor = self.layers(torch.cat((level / 3, waves.sin(), waves.cos()), 1))
        return features


class _ConditionalInstanceNorm(nn.Module):
    """(1 + γ) · (h - μ) / s + β + α · (μ - m) / v: μ and s of each channel over places, m and v of the μ over channels; γ, β, α functions of σ."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.affine = nn.Linear(_NUM_FEATURES, 3 * num_channels)
        with torch.no_grad():
            self.affine.weight *= 0.1
            self.affine.bias.zero_()

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        gamma, beta, alpha = self.affine(level)[:, :, None, None].chunk(3, 1)
        means = h.mean((2, 3), keepdim=True)
        deviations = means - means.mean(1, keepdim=True)
        shift = beta + alpha * deviations * (deviations.square().mean(1, keepdim=True) + _EPSILON).rsqrt()
        centred = h - means
        normed: Tensor = centred * ((1 + gamma) * (centred.square().mean((2, 3), keepdim=True) + _EPSILON).rsqrt()) + shift
        return normed


class _Block(nn.Module):
    """h + conv(a(norm(conv(a(norm(h)))))), as wide as it is."""

    def __init__(self, num_channels: int, activation: Activation) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_ConditionalInstanceNorm(num_channels) for _ in range(2))
        self.activations = nn.ModuleList(activation() for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(num_channels, num_channels, 3, padding=1) for _ in range(2))

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        change = h
        for norm, activation, convolution in zip(self.norms, self.activations, self.convolutions, strict=True):
            change = convolution(activation(norm(change, level)))
        return h + change


def _blocks(num_channels: int, count: int, activation: Activation) -> nn.ModuleList:
    return nn.ModuleList(_Block(num_channels, activation) for _ in range(count))
