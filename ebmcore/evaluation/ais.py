"""Annealed importance sampling: ln Z of a model by chains that move from a distribution with known ln Z to it (Neal 2001), for restricted
Boltzmann machines as in Salakhutdinov & Murray, "On the quantitative analysis of deep belief networks", ICML 2008, section 4.

Left out: other energies and paths, adaptive schedules, and the reverse chains that bound ln Z from above.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebmcore import ops
from ebmcore.types import Key, bounded_int

MIN_EFFECTIVE_SAMPLES = 10.0


class AISResult(NamedTuple):
    """An estimate of ln Z.

    Attributes:
        log_z: ln of the mean weight. The mean weight is unbiased for Z, so that log_z is too low on average, if anything.
        standard_error: of log_z, from the spread of the weights (delta method); NaN for one chain. It knows only of the weights seen: it is
            to be believed where effective_sample_size is in the tens or more.
        effective_sample_size: (Σ w)² / Σ w².
        log_weights: (num_chains,) float64, ln w of each chain with ln Z of the base distribution added.
    """

    log_z: float
    standard_error: float
    effective_sample_size: float
    log_weights: Tensor


def log_z_of_weights(log_weights: Tensor) -> AISResult:
    """What importance weights, given by their logs, say of ln Z."""
    log_weights = log_weights.double()
    largest = log_weights.max()
    weights = (log_weights - largest).exp()
    mean = weights.mean()
    error = float(weights.std() / mean) / math.sqrt(len(weights)) if len(weights) > 1 else math.nan
    return AISResult(float(largest + mean.log()), error, float(weights.sum() ** 2 / weights.square().sum()), log_weights)


@torch.no_grad()
def ais(
    energy: Any,
    *,
    num_chains: int = 100,
    betas: int | Sequence[float] | Tensor = 1000,
    base_visible_bias: Tensor | None = None,
    seed: int | Key | None = None,
    progress: bool = False,
) -> AISResult:
    """ln Z of a Bernoulli RBM with its error bar, by annealed importance sampling.

    Chains start in independent visible units of log-odds a₀ and uniform hidden ones, whose Z is known, and take one block Gibbs step at each
    β of the schedule; between them lie p_β(v, h) ∝ exp(-(1 - β) E₀(v) - β E(v, h)), E₀(v) = -a₀ᵀv. A step costs two matrix products; hidden
    units are summed out of the weights. The mean log-likelihood of data is then `-rbm(data).mean() - log_z`, with the same error.

    Args:
        energy: an `energies.BernoulliRBM`.
        num_chains: at least 1; more make the error bar smaller, and surer.
        betas: the schedule 0 = β_0 < β_1 < ... < β_K = 1, or K for one with equal steps. More of them make the weights more equal.
        base_visible_bias: a₀ (num_visible,), finite; None for 0. The log-odds of the training data's pixels make a better start.
        seed: an int, a `Key` whose next K + 1 steps are drawn, or None to draw one from torch's generator.
        progress: show a bar (needs tqdm).

    Raises:
        TypeError: `energy` is no Bernoulli RBM, or an argument has the wrong type.
        ValueError: a parameter or base_visible_bias is not finite or has another shape, or betas do not rise from 0 to 1.

    Warns:
        RuntimeWarning: the effective sample size is below 10: log_z is too low and the error bar too small.
    """
    weight, visible_bias, hidden_bias = _parameters(energy)
    num_chains = bounded_int(num_chains, "num_chains", "ais", low=1)
    schedule = _schedule(betas)
    base = _base(base_visible_bias, visible_bias)
    keys = Key.from_seed(seed, weight.device).steps(len(schedule)).unbind()
    hidden_stream, visible_stream = ops.Stream.HIDDEN, ops.Stream.PROPOSAL
    visible = ops.sigmoid_bernoulli(base.expand(num_chains, -1), key=keys[0], stream=visible_stream)
    log_weights = torch.zeros(num_chains, dtype=torch.float64, device=weight.device)
    bias_gain = visible_bias - base
    for k in _with_progress(range(1, len(schedule)), progress):
        before, beta = schedule[k - 1], schedule[k]
        inputs = visible @ weight
        bias = beta * hidden_bias
        gain = ops.softplus_sum(inputs, bias, scale=beta) - ops.softplus_sum(inputs, before * hidden_bias, scale=before)
        log_weights += (beta - before) * (visible @ bias_gain).double() + gain
        if k < len(schedule) - 1:  # a move at β = 1 would change no weight
            hidden = ops.sigmoid_bernoulli(inputs, bias, key=keys[k], scale=beta, stream=hidden_stream)
            visible_of = torch.lerp(base, visible_bias, beta)
            visible = ops.sigmoid_bernoulli(hidden @ weight.T, visible_of, key=keys[k], scale=beta, stream=visible_stream)
    log_z_base = float(softplus(base.double(), threshold=40).sum()) + len(hidden_bias) * math.log(2)
    result = log_z_of_weights(log_weights + log_z_base)
    if result.effective_sample_size < MIN_EFFECTIVE_SAMPLES and num_chains >= MIN_EFFECTIVE_SAMPLES:
        warnings.warn(
            f"ais: the effective sample size is {result.effective_sample_size:.1f} of {num_chains} chains: log_z is too low and its error bar too "
            "small; take more betas",
            RuntimeWarning,
            stacklevel=3,  # no_grad's wrapper lies between
        )
    return result


def _parameters(energy: Any) -> tuple[Tensor, Tensor, Tensor]:
    names = ("weight", "visible_bias", "hidden_bias")
    is_binary = getattr(getattr(energy, "alphabet", None), "kind", None) == "binary"
    if not is_binary or not all(isinstance(getattr(energy, name, None), Tensor) for name in names):
        raise TypeError(f"ais: energy must be an energies.BernoulliRBM, got {type(energy).__name__}")
    parameters = [getattr(energy, name).detach() for name in names]
    for name, parameter in zip(names, parameters, strict=True):
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"ais: energy must have finite parameters, got NaN or infinity in {name}")
    return parameters[0], parameters[1], parameters[2]


def _schedule(betas: int | Sequence[float] | Tensor) -> list[float]:
    if isinstance(betas, int):
        num_steps = bounded_int(betas, "betas", "ais", low=1)
        return [k / num_steps for k in range(num_steps + 1)]
    if not isinstance(betas, Sequence | Tensor) or isinstance(betas, str):
        raise TypeError(f"ais: betas must be an int or numbers from 0 to 1, got {type(betas).__name__}")
    schedule = [float(beta) for beta in betas]
    if len(schedule) < 2 or schedule[0] != 0 or schedule[-1] != 1:
        shown = f"{schedule[0]} ... {schedule[-1]}" if schedule else "none"
        raise ValueError(f"ais: betas must start at 0 and end at 1, got {shown}")
    for k in range(1, len(schedule)):
        if not schedule[k] > schedule[k - 1]:
            raise ValueError(f"ais: betas must rise, got {schedule[k]} after {schedule[k - 1]} at index {k}")
    return schedule


def _base(bias: Tensor | None, like: Tensor) -> Tensor:
    if bias is None:
        return torch.zeros_like(like)
    if not isinstance(bias, Tensor):
        raise TypeError(f"ais: base_visible_bias must be None or a torch.Tensor, got {type(bias).__name__}")
    if bias.shape != like.shape or not bool(bias.isfinite().all()):
        raise ValueError(f"ais: base_visible_bias must be finite, of shape {tuple(like.shape)}, got shape {tuple(bias.shape)}")
    return bias.detach().to(like)


def _with_progress(steps: range, wanted: bool) -> Iterable[int]:
    if not wanted:
        return steps
    try:
        from tqdm.auto import tqdm
    except ImportError:
        warnings.warn("ais: progress=True needs tqdm (pip install tqdm)", stacklevel=4)
        return steps
    bar: Iterable[int] = tqdm(steps, unit="beta")
    return bar
