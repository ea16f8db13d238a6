"""Adaptation of a sampler's step size, or other one tuning parameter, and of its metric: in warm-up, and in warm-up only."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ebmcore.types import EnergyFn, Key, bounded_int

_PARAMETERS = ("step_size", "path_length", "num_flips")  # the larger, the fewer proposals are accepted
_LOG_LIMIT = math.log(1e30)  # where an energy is flat, every step is accepted
_TARGET_ACCEPTANCE = 0.574  # of locally balanced proposals in high dimension (Sun et al. 2022, arXiv 2209.08183)


def warm_up(
    sampler: Any,
    energy: EnergyFn,
    x: Tensor,
    num_steps: int,
    *,
    target_acceptance: float | None = None,
    adapt_inverse_mass: bool = False,
    seed: int | Key | None = None,
) -> tuple[Any, Tensor]:
    """Run chains from x and tune the sampler on the way to a mean acceptance probability.

    The step_size, path_length or num_flips of the sampler is found by dual averaging of its logarithm (Nesterov 2009; Hoffman & Gelman 2014,
    section 3.2, arXiv 1111.4246). The result is frozen, as every sampler is: nothing adapts afterwards.

    With adapt_inverse_mass the variances of x over all chains and the steps of the second and third quarter, shrunk as Stan shrinks them,
    become the inverse mass before the last quarter, in which the step size is found anew.

    Of `ParallelTempering` it is the ladder that adapts, by its `adapt_ladder`, to pairs that swap equally often; tune the sampler under it first.

    Args:
        sampler: one with such a parameter that accepts or rejects, or with a ladder; it stays as it is.
        energy: (num_chains, *event) -> (num_chains,).
        x: (num_chains, *event), not modified.
        num_steps: >= 1; with adapt_inverse_mass >= 8.
        target_acceptance: in (0, 1); by default the sampler's own, at which it mixes fastest in many dimensions: 0.574 for MALA and discrete
            samplers, 0.651 for HMC, 0.234 for RandomWalkMetropolis.
        adapt_inverse_mass: for samplers with an `inverse_mass`.
        seed: as `sampler.init`.

    Returns:
        the tuned sampler, and the chains after warm-up.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """
    if not isinstance(adapt_inverse_mass, bool):
        raise TypeError(f"warm_up: adapt_inverse_mass must be a bool, got {adapt_inverse_mass!r}")
    num_steps = bounded_int(num_steps, "num_steps", "warm_up", low=8 if adapt_inverse_mass else 1)
    if hasattr(sampler, "adapt_ladder"):
        if adapt_inverse_mass or target_acceptance is not None:
            raise TypeError(f"warm_up: target_acceptance and adapt_inverse_mass must be left out where a ladder adapts, got {sampler!r}")
        tuned, state = sampler.adapt_ladder(energy, x, num_steps, seed=seed)
        return tuned, state.x
    if target_acceptance is None:
        target_acceptance = getattr(sampler, "target_acceptance", _TARGET_ACCEPTANCE)
    if not isinstance(target_acceptance, float) or not 0.0 < target_acceptance < 1.0:
        raise ValueError(f"warm_up: target_acceptance must be in (0, 1), got {target_acceptance!r}")
    name = next((name for name in _PARAMETERS if isinstance(getattr(sampler, name, None), int | float)), None)
    if name is None or getattr(sampler, "metropolis", True) is False:
        raise TypeError(f"warm_up: sampler must accept or reject and have one of {', '.join(_PARAMETERS)}, got {sampler!r}")
    if adapt_inverse_mass and not hasattr(sampler, "inverse_mass"):
        raise TypeError(f"warm_up: sampler must have an inverse_mass to adapt, got {sampler!r}")
    is_count = isinstance(getattr(sampler, name), int) and name != "step_size"
    lowest, highest = (0.0, math.log(max(x[:1].numel(), 1))) if is_count else (-_LOG_LIMIT, _LOG_LIMIT)
    state = sampler.init(energy, x, seed=seed)
    average = _DualAveraging(math.log(getattr(sampler, name)), target_acceptance, lowest, highest)
    variances = _Variances(x[:1])
    first, last = num_steps // 4, 3 * num_steps // 4
    for step in range(num_steps):
        tuned = dataclasses.replace(sampler, **{name: _rounded(average.log_value, is_count)})
        state, info = tuned.step(energy, state)
        if not hasattr(info, "acceptance_prob"):
            raise TypeError(f"warm_up: sampler must report acceptance_prob, got {sampler!r}")
        if len(x) == 0:
            return sampler, state.x
        average.update(float(info.acceptance_prob.mean()))
        if adapt_inverse_mass and first <= step < last:
            variances.update(state.x)
            if step == last - 1:
                sampler = dataclasses.replace(sampler, inverse_mass=variances.shrunk())
                average = _DualAveraging(average.log_average, target_acceptance, lowest, highest)
    return dataclasses.replace(sampler, **{name: _rounded(average.log_average, is_count)}), state.x


class _DualAveraging:
    """Of the logarithm of a parameter in [lowest, highest], with the constants of Hoffman & Gelman: γ = 0.05, t0 = 10, κ = 0.75."""

    def __init__(self, start: float, target: float, lowest: float, highest: float) -> None:
        self.log_value = self.log_average = start
        self.target, self.lowest, self.highest = target, lowest, highest
        self.centre, self.error, self.count = start + math.log(10.0), 0.0, 0

    def update(self, acceptance: float) -> None:
        self.count += 1
        self.error += (self.target - acceptance - self.error) / (self.count + 10)
        self.log_value = min(max(self.centre - math.sqrt(self.count) / 0.05 * self.error, self.lowest), self.highest)
        self.log_average += self.count**-0.75 * (self.log_value - self.log_average)


class _Variances:
    """Of each element over the chains of many steps (Welford 1962; Chan, Golub & LeVeque 1983)."""

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self.mean = torch.zeros(like.shape[1:], dtype=torch.float64, device=like.device)
        self.squares = torch.zeros_like(self.mean)

    def update(self, x: Tensor) -> None:
        x = x.double()
        mean, num = x.mean(0), len(x)
        shift = mean - self.mean
        total = self.count + num
        self.squares += (x - mean).square().sum(0) + shift.square() * (self.count * num / total)
        self.mean += shift * (num / total)
        self.count = total

    def shrunk(self) -> Tensor:
        """Towards 1e-3 with the weight of five draws, as Stan's."""
        return self.count / (self.count + 5) * self.squares / (self.count - 1) + 5e-3 / (self.count + 5)


def _rounded(log_value: float, is_count: bool) -> float:
    return max(1, round(math.exp(log_value))) if is_count else math.exp(log_value)
