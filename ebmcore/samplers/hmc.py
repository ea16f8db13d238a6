"""Hamiltonian Monte Carlo (Duane, Kennedy, Pendleton & Roweth 1987; Neal 2011, arXiv 1206.1901). Not implemented: NUTS, partial refreshment."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from ebmcore import ops
from ebmcore.continuous_sampler import ContinuousState, Metric, MetropolisSampler, Proposal, row_sums
from ebmcore.gradients import energy_and_grad
from ebmcore.ops.registration import number
from ebmcore.types import EnergyFn, bounded_int


@dataclasses.dataclass(frozen=True, eq=False)
class HMC(MetropolisSampler):
    """Fresh momenta p ~ N(0, M), `num_leapfrog` leapfrog steps, accepted or not: targets exp(-E) exactly.

    One energy evaluation a leapfrog step. Best tuned to accept 0.651 of its trajectories (Beskos, Pillai, Roberts, Sanz-Serna & Stuart 2013,
    Bernoulli 19(5A), 1501-1534): see `warm_up`. Near-Gaussian targets have closed orbits, on which acceptance rises and falls with
    step_size · num_leapfrog unless it is jittered.

    Args:
        step_size: > 0, of a leapfrog step.
        num_leapfrog: >= 1.
        inverse_mass: the diagonal of M⁻¹, positive, of the event's shape: best the variances of the target. Ones by default.
        jitter: in [0, 1]; each trajectory of each chain has steps of step_size · (1 + jitter · (2u - 1)), u uniform.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    step_size: float
    num_leapfrog: int
    inverse_mass: Tensor | None = None
    jitter: float = 0.0

    target_acceptance: ClassVar[float] = 0.651
    _kernel: ClassVar[str] = "hmc"

    def __post_init__(self) -> None:
        number(self.step_size, "step_size", "HMC", low=0.0, strict=True)
        object.__setattr__(self, "num_leapfrog", bounded_int(self.num_leapfrog, "num_leapfrog", "HMC", low=1))
        if number(self.jitter, "jitter", "HMC", low=0.0) > 1.0:
            raise ValueError(f"HMC: jitter must be in [0, 1], got {self.jitter!r}")
        self._own_inverse_mass()

    def _propose(self, energy: EnergyFn, state: ContinuousState, key: Tensor, metric: Metric | None) -> Proposal:
        x, _, grad, _ = state
        assert grad is not None
        momentum = ops.normal(x.shape, key=key, stream=ops.Stream.PROPOSAL, dtype=x.dtype, device=x.device)
        step_size: float | Tensor = self.step_size
        if self.jitter > 0.0:
            u = ops.uniform(x.shape[:1], key=key, stream=ops.Stream.JITTER, dtype=x.dtype, device=x.device)
            step_size = (self.step_size * (1.0 + self.jitter * (2.0 * u - 1.0))).reshape(-1, *[1] * (x.dim() - 1))
        if metric is None:
            inverse_mass = None
        else:
            inverse_mass, momentum = metric.inverse_mass, momentum / metric.scale
        new_x, new_momentum, value, new_grad = leapfrog(energy, x, momentum, grad, step_size, self.num_leapfrog, inverse_mass)
        loss = (momentum - new_momentum).mul_(momentum + new_momentum)  # of kinetic energy, p² - p'² without its cancellation
        return Proposal(new_x, value, new_grad, 0.5 * row_sums(loss if inverse_mass is None else loss.mul_(inverse_mass)))


def leapfrog(
    energy: EnergyFn,
    x: Tensor,
    momentum: Tensor,
    grad: Tensor,
    step_size: float | Tensor,
    num_leapfrog: int,
    inverse_mass: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hamiltonian dynamics of E(x) + ½ pᵀ M⁻¹ p by half kick, drift, half kick: volume-preserving, reversible, of second order.

    Args:
        energy: (num_chains, *event) -> (num_chains,), evaluated once a step.
        x, momentum, grad: (num_chains, *event), grad = ∇E(x).
        step_size: a number, or a tensor that broadcasts to x.
        num_leapfrog: steps, >= 1.
        inverse_mass: the diagonal of M⁻¹, broadcasting to x; ones by default.

    Returns:
        x, momentum, E(x) and ∇E(x) after the steps.
    """
    half = 0.5 * step_size
    momentum = (grad * -half).add_(momentum)  # a fresh tensor costs more than its arithmetic
    for i in range(num_leapfrog):
        x = (momentum * step_size if inverse_mass is None else (momentum * inverse_mass).mul_(step_size)).add_(x)
        value, grad = energy_and_grad(energy, x)
        momentum = (grad * (-step_size if i < num_leapfrog - 1 else -half)).add_(momentum)
    return x, momentum, value, grad
