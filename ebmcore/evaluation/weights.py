"""What importance weights say of ln Z: the estimate, its error bar by the bootstrap (Efron 1979), and their effective sample size."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.types import Key

MIN_EFFECTIVE_SAMPLES = 10.0
_NUM_RESAMPLES = 1000
_DRAWS_AT_ONCE = 2**22


class AISResult(NamedTuple):
    """An estimate of ln Z.

    Attributes:
        log_z: ln of the mean weight. The mean weight is unbiased for Z, so that log_z is too low on average, if anything; of `reverse_ais`
            minus ln of the mean weight, which is unbiased for 1/Z, so that log_z is too high on average.
        standard_error: of log_z, the standard deviation over 1000 bootstrap resamples of the chains; NaN for one chain. It knows only of the
            weights seen: it is to be believed where effective_sample_size is in the tens or more.
        effective_sample_size: (Σ w)² / Σ w².
        log_weights: (num_chains,) float64, ln w of each chain, whose mean weight estimates Z; of `reverse_ais` 1/Z.
        interval: the 2.5 % and 97.5 % quantiles of log_z over the resamples.
        betas: (num_temperatures + 1,) float64, those gone through.
        acceptance_prob: (num_temperatures - 1,) float64, the mean acceptance probability of the moves at each β in between; None of an RBM's
            own moves, which are never rejected.
        x: (num_chains, *event), the chains at the end: weighted by exp(log_weights), they are draws from exp(-E) (of `reverse_ais` from the base).
    """

    log_z: float
    standard_error: float
    effective_sample_size: float
    log_weights: Tensor
    interval: tuple[float, float]
    betas: Tensor
    acceptance_prob: Tensor | None
    x: Tensor


def log_z_of_weights(
    log_weights: Tensor, *, key: Key, betas: Tensor, acceptance_prob: Tensor | None, x: Tensor, is_reverse: bool = False, stacklevel: int
) -> AISResult:
    """What the weights of chains, given by their logs, say of ln Z. `key` is that of the bootstrap's draws.

    Raises:
        ValueError: all weights are 0.

    Warns:
        RuntimeWarning: the effective sample size is below 10.
    """
    caller, sign, bias = ("reverse_ais", -1.0, "high") if is_reverse else ("ais", 1.0, "low")
    largest = log_weights.max()
    if largest == -math.inf:
        raise ValueError(f"{caller}: weights must not all be 0: the energy or the base is +inf at the start of all {len(log_weights)} chains")
    weights = (log_weights - largest).exp()
    estimate = float(largest + weights.mean().log())
    size = float(weights.sum() ** 2 / weights.square().sum())
    error, interval = math.nan, (math.nan, math.nan)
    if len(weights) > 1:
        resampled = sign * (float(largest) + _resampled_means(weights, key).log())
        error = float(resampled.std()) if bool(resampled.isfinite().all()) else math.inf
        low, high = resampled.sort().values[[round(0.025 * _NUM_RESAMPLES), round(0.975 * _NUM_RESAMPLES) - 1]].tolist()
        interval = (low, high)
    if size < MIN_EFFECTIVE_SAMPLES <= len(weights):
        warnings.warn(
            f"{caller}: the effective sample size is {size:.1f} of {len(weights)} chains: log_z is too {bias} and its error bar too small; take "
            "more betas",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
    return AISResult(sign * estimate, error, size, log_weights, interval, betas, acceptance_prob, x)


def _resampled_means(weights: Tensor, key: Key) -> Tensor:
    """Means of `_NUM_RESAMPLES` draws of all weights with replacement."""
    n = len(weights)
    means = []
    for rows in torch.arange(_NUM_RESAMPLES).split(max(1, _DRAWS_AT_ONCE // n)):
        words = ops.philox((len(rows), n), key=Key(key.seed, key.step, int(rows[0])), stream=ops.Stream.DATA, device=weights.device)
        means.append(weights[words.long() * n >> 32].mean(1))
    return torch.cat(means)
