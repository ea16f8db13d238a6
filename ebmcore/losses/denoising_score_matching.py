"""Denoising score matching: one noise level (Vincent 2011, section 4) or many (Song & Ermon 2019, "NCSN", eq. 5-6).

No second derivative in x. What is learned is the score of the data *blurred by the noise*, not of the data.
Left out: learned or likelihood weights of the levels, and continuous time.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.losses.batch import check_batch, finite_mean
from ebmcore.ops import Stream
from ebmcore.trace.linearization import linearize, outside_inference_mode
from ebmcore.types import Key

_CALLER = "denoising_score_matching"


@outside_inference_mode
def denoising_score_matching(
    model: Callable[..., Any] | Any,
    x: Tensor,
    noise_std: float | Sequence[float] | Tensor,
    *,
    noise: Tensor | None = None,
    key: Key | None = None,
) -> Tensor:
    """mean ½ |s(x + σε) + ε/σ|², ε ~ N(0, 1): at its minimum s is the score of the data convolved with N(0, σ²).

    A small σ blurs little, but the noise of the gradients grows as 1/σ²: it wants many updates or rows.

    With many levels each row of x draws one of them, uniformly, the model is called with it, and the square is weighted by σ²:
    mean ½ |σ s(x + σε, σ) + ε|². All levels then weigh alike where |s| ~ 1/σ.

    Args:
        model: the score s as a function (n, *event) -> (n, *event); or an energy (n, *event) -> (n,), of which s = -∇E; or anything with
            `log_prob`. With many levels it takes (x, sigma), sigma (n,) in x's dtype, and is a score function or an energy.
        x: (n, *event), float32 or float64.
        noise_std: σ > 0: a number for one level, a sequence or a 1-D tensor for many, such as a geometric ladder.
        noise: ε, shape and dtype of x, instead of draws.
        key: of the noise (stream NOISE) and of the rows' levels (stream LEVEL). None draws a seed from torch's default generator.

    Returns:
        A scalar in x's dtype, attached to the graph of the parameters.

    Raises:
        TypeError, ValueError: an argument is not as above, or the model returns neither energies nor scores.
        DivergenceError: the loss is NaN or infinite at some rows of x; `chains` are these (reads from the device).
    """
    check_batch(x, "x", _CALLER)
    levels = _levels(noise_std, x)
    if noise is None or isinstance(levels, Tensor):
        draws = Key.from_seed(key)
    if noise is None:
        noise = ops.normal(x.shape, key=draws, stream=Stream.NOISE, dtype=x.dtype, device=x.device)
    elif not isinstance(noise, Tensor) or noise.dtype != x.dtype or noise.shape != x.shape or noise.device != x.device:
        got = f"{noise.dtype} {tuple(noise.shape)} on {noise.device}" if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"{_CALLER}: noise must be {x.dtype} {tuple(x.shape)} on {x.device} as x, got {got}")
    if isinstance(levels, Tensor):
        uniform = ops.uniform((len(x),), key=draws, stream=Stream.LEVEL, dtype=torch.float64, device=x.device)
        sigma = levels[(uniform * len(levels)).long()]
        column = sigma.reshape(-1, *[1] * (x.dim() - 1))
        residual = column * _score(lambda y: model(y, sigma), x + column * noise) + noise
    else:
        residual = _score(model, x + levels * noise) + noise / levels
    return finite_mean(0.5 * residual.reshape(len(x), -1).square().sum(1), _CALLER)


def _score(model: Any, x: Tensor) -> Tensor:
    linear = linearize(model, x, _CALLER)
    return -linear.field if linear.is_energy else linear.field


def _levels(noise_std: Any, x: Tensor) -> float | Tensor:
    """One level as a float, many as a tensor (num_levels,) like x."""
    if isinstance(noise_std, Tensor):
        noise_std = noise_std.tolist()
    is_ladder = isinstance(noise_std, Sequence)
    values = list(noise_std) if is_ladder else [noise_std]
    if any(isinstance(value, bool) or not isinstance(value, numbers.Real) for value in values):
        raise TypeError(f"{_CALLER}: noise_std must be a number, or numbers in a sequence or a 1-D tensor, got {noise_std!r}")
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"{_CALLER}: noise_std must be finite and > 0, got {noise_std!r}")
    return torch.tensor(values, dtype=x.dtype, device=x.device) if is_ladder else float(values[0])
