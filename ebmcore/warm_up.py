"""Adaptation of a sampler's one tuning parameter in warm-up, and in warm-up only."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor

from ebmcore.types import EnergyFn, Key, bounded_int

_PARAMETERS = ("step_size", "path_length", "num_flips")  # the larger, the fewer proposals are accepted


def warm_up(
    sampler: Any, energy: EnergyFn, x: Tensor, num_steps: int, *, target_acceptance: float = 0.574, seed: int | Key | None = None
) -> tuple[Any, Tensor]:
    """Run chains from x and tune the sampler on the way to a mean acceptance probability.

    The step_size, path_length or num_flips of the sampler follows a stochastic approximation on the log scale with gains (step + 1)^-0.6
    (Robbins & Monro 1951; Andrieu & Thoms 2008). The result is the average over the last half of the steps; it is frozen, as every sampler is.
    0.574 is the best acceptance rate of locally balanced proposals in high dimension (Sun et al. 2022, arXiv 2209.08183).

    Args:
        sampler: one with such a parameter that accepts or rejects; it stays as it is.
        energy: (num_chains, *event) -> (num_chains,).
        x: (num_chains, *event), not modified.
        num_steps: >= 1.
        target_acceptance: in (0, 1).
        seed: as `sampler.init`.

    Returns:
        the tuned sampler, and the chains after warm-up.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """
    num_steps = bounded_int(num_steps, "num_steps", "warm_up", low=1)
    if not isinstance(target_acceptance, float) or not 0.0 < target_acceptance < 1.0:
        raise ValueError(f"warm_up: target_acceptance must be in (0, 1), got {target_acceptance!r}")
    name = next((name for name in _PARAMETERS if isinstance(getattr(sampler, name, None), int | float)), None)
    if name is None or getattr(sampler, "metropolis", True) is False:
        raise TypeError(f"warm_up: sampler must accept or reject and have one of {', '.join(_PARAMETERS)}, got {sampler!r}")
    is_count = isinstance(getattr(sampler, name), int) and name != "step_size"
    highest = math.log(x[:1].numel()) if is_count and len(x) else math.inf
    log_value = math.log(getattr(sampler, name))
    state = sampler.init(energy, x, seed=seed)
    last_half = []
    for step in range(num_steps):
        tuned = dataclasses.replace(sampler, **{name: _rounded(log_value, is_count)})
        state, info = tuned.step(energy, state)
        if not hasattr(info, "acceptance_prob"):
            raise TypeError(f"warm_up: sampler must report acceptance_prob, got {sampler!r}")
        if len(x):
            log_value += (step + 1) ** -0.6 * (float(info.acceptance_prob.mean()) - target_acceptance)
        log_value = min(max(log_value, 0.0), highest) if is_count else log_value
        if 2 * step >= num_steps - 1:
            last_half.append(log_value)
    return dataclasses.replace(sampler, **{name: _rounded(sum(last_half) / len(last_half), is_count)}), state.x


def _rounded(log_value: float, is_count: bool) -> float:
    return max(1, round(math.exp(log_value))) if is_count else math.exp(log_value)
