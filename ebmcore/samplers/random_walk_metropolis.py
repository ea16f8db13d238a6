"""Random-walk Metropolis (Metropolis, Rosenbluth, Rosenbluth, Teller & Teller 1953), with Gaussian steps."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from ebmcore import ops
from ebmcore.continuous_sampler import ContinuousState, Metric, MetropolisSampler, Proposal
from ebmcore.gradients import evaluate
from ebmcore.ops.registration import number
from ebmcore.types import EnergyFn


@dataclasses.dataclass(frozen=True, eq=False)
class RandomWalkMetropolis(MetropolisSampler):
    """x' = x + step_size · sqrt(M⁻¹) ξ, accepted or not: targets exp(-E) exactly. One energy a step and no gradient.

    Best tuned to accept 0.234 of its proposals in many dimensions (Roberts, Gelman & Gilks 1997, Ann. Appl. Probab. 7, 110-120): see `warm_up`.

    Args:
        step_size: > 0, the standard deviation of a step.
        inverse_mass: the diagonal of M⁻¹, positive, of the event's shape: best the variances of the target. Ones by default.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    step_size: float
    inverse_mass: Tensor | None = None

    target_acceptance: ClassVar[float] = 0.234
    _kernel: ClassVar[str] = "random_walk"
    _uses_grad: ClassVar[bool] = False

    def __post_init__(self) -> None:
        number(self.step_size, "step_size", "RandomWalkMetropolis", low=0.0, strict=True)
        self._own_inverse_mass()

    def _propose(self, energy: EnergyFn, state: ContinuousState, key: Tensor, metric: Metric | None) -> Proposal:
        x = state.x
        noise = ops.normal(x.shape, key=key, stream=ops.Stream.PROPOSAL, dtype=x.dtype, device=x.device)
        noise.mul_(self.step_size)
        new_x = (noise if metric is None else noise.mul_(metric.scale)).add_(x)
        return Proposal(new_x, evaluate(energy, new_x), None)
