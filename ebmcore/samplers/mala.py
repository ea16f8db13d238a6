"""The Metropolis-adjusted Langevin algorithm (Besag 1994; Roberts & Tweedie 1996, Bernoulli 2(4), 341-363)."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.continuous_sampler import ContinuousState, Metric, MetropolisSampler, Proposal
from ebmcore.gradients import energy_and_grad
from ebmcore.ops.langevin import step_arguments, step_into
from ebmcore.ops.registration import number
from ebmcore.types import EnergyFn


@dataclasses.dataclass(frozen=True, eq=False)
class MALA(MetropolisSampler):
    """A Langevin step, x' = x - h M⁻¹ ∇E(x) + sqrt(2h M⁻¹) ξ, accepted or not: targets exp(-E) exactly. One energy evaluation a step.

    Best tuned to accept 0.574 of its proposals (Roberts & Rosenthal 1998, J. R. Statist. Soc. B 60, 255-268): see `warm_up`.

    Args:
        step_size: h > 0.
        inverse_mass: the diagonal of M⁻¹, positive, of the event's shape: best the variances of the target. Ones by default.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    step_size: float
    inverse_mass: Tensor | None = None

    target_acceptance: ClassVar[float] = 0.574
    _kernel: ClassVar[str] = "mala"

    def __post_init__(self) -> None:
        number(self.step_size, "step_size", "MALA", low=0.0, strict=True)
        self._own_inverse_mass()

    def _propose(self, energy: EnergyFn, state: ContinuousState, key: Tensor, metric: Metric | None) -> Proposal:
        x, _, grad, _ = state
        assert grad is not None
        h, noise_std = self.step_size, math.sqrt(2 * self.step_size)
        if metric is None:
            new_x = step_into(None, x, grad, key, step_arguments("MALA", h, noise_std, None, None, None))
        else:
            noise = ops.normal(x.shape, key=key, stream=ops.Stream.PROPOSAL, dtype=x.dtype, device=x.device)
            drift = (grad * metric.inverse_mass).mul_(h)  # what is ours is written over: a fresh tensor costs more than its arithmetic
            new_x = torch.sub(x, drift, out=drift).add_(noise.mul_(metric.scale).mul_(noise_std))
        value, new_grad = energy_and_grad(energy, new_x)
        return Proposal(new_x, value, new_grad, langevin_step_size=h)
