"""Kinetic (underdamped) Langevin dynamics by the BAOAB splitting (Leimkuhler & Matthews 2013, Appl. Math. Res. Express 2013(1), 34-56)."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.continuous_sampler import (
    Metric,
    Preconditioned,
    check_chains,
    check_precision,
    check_start,
    no_perceptron,
    own,
    raise_if_diverged,
    run_unadjusted,
)
from ebmcore.gradients import energy_and_grad
from ebmcore.ops.registration import number
from ebmcore.types import STEP_BITS, EnergyFn, Key, bounded_int

_ADVICE = "Lower step_size: BAOAB is stable below 2 / sqrt(largest eigenvalue of M⁻¹ ∇²E)."
_CHECK_EVERY = 32  # steps between two looks for divergence: one host sync each


class KineticLangevinState(NamedTuple):
    """Chains between two steps.

    Attributes:
        x: (num_chains, *event), float32 or float64.
        energy: (num_chains,), E(x).
        grad: ∇E(x), shaped as x.
        momentum: p, shaped as x.
        key: of the next step's noise.
    """

    x: Tensor
    energy: Tensor
    grad: Tensor
    momentum: Tensor
    key: Key


class KineticLangevinInfo(NamedTuple):
    """Of the steps of one call: is_diverged (num_chains,) bool, all False, for a chain that diverges raises."""

    is_diverged: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class KineticLangevin(Preconditioned):
    """dx = M⁻¹p dt, dp = -∇E dt - γ p dt + sqrt(2γTM) dW, unadjusted, in steps BAOAB: one energy evaluation each.

    Targets exp(-(E(x) + ½ pᵀM⁻¹p) / T), exactly only as step_size -> 0; for Gaussian targets x has the exact law at every stable step_size,
    and otherwise an error of step_size² that falls to step_size⁴ as friction grows.

    Args:
        step_size: > 0, time a step.
        friction: γ > 0. The square root of the target's smallest curvature, in units of M, is a good start.
        inverse_mass: the diagonal of M⁻¹, positive, of the event's shape: best the variances of the target. Ones by default.
        temperature: T > 0.
        precision: "bf16", as of `Langevin`: products of a perceptron in bfloat16, natively, on a CPU.

    Raises:
        TypeError, ValueError: for arguments that are not as above; in a call, for an energy without what precision needs.
    """

    step_size: float
    friction: float
    inverse_mass: Tensor | None = None
    temperature: float = 1.0
    precision: str | None = None

    def __post_init__(self) -> None:
        for name in ("step_size", "friction", "temperature"):
            number(getattr(self, name), name, "KineticLangevin", low=0.0, strict=True)
        self._own_inverse_mass()
        check_precision(self.precision, "KineticLangevin")

    @torch.inference_mode(False)
    def init(self, energy: EnergyFn, x: Tensor, *, seed: int | Key | None = None) -> KineticLangevinState:
        """Chains at x with momenta from N(0, T M), evaluated once. x is copied.

        Args:
            energy: (num_chains, *event) -> (num_chains,).
            x: (num_chains, *event), float32 or float64.
            seed: 0 <= seed < 2**64; a Key to go on with its noise; None draws a seed from torch's default generator.

        Raises:
            TypeError, ValueError: x is not as above, or inverse_mass has not the shape of its event.
            DivergenceError: the energy or gradient at x is not finite.
        """
        return self._start(energy, x, seed, "KineticLangevin.init")

    def step(self, energy: EnergyFn, state: KineticLangevinState) -> tuple[KineticLangevinState, KineticLangevinInfo]:
        """One step; `state` stays as it is."""
        return self.advance(energy, state, 1)

    @torch.inference_mode(False)
    def advance(self, energy: EnergyFn, state: KineticLangevinState, num_steps: int) -> tuple[KineticLangevinState, KineticLangevinInfo]:
        """`num_steps` steps, to the same bits as that many calls of `step`. One energy evaluation each.

        Raises:
            DivergenceError: x, the energy or its gradient is no longer finite; found at the latest 32 steps on.
        """
        num_steps = bounded_int(num_steps, "num_steps", "KineticLangevin.advance", high=2**STEP_BITS)
        info = KineticLangevinInfo(torch.zeros(len(state.x), dtype=torch.bool, device=state.x.device))
        if num_steps == 0 or len(state.x) == 0:
            return state, info
        metric = self._metric(state.x)
        options = self._native_options(metric)
        if self.precision is None:  # what energies need to know only then
            del options["precision"]
        start = state.x, state.momentum, state.energy, state.key
        run = run_unadjusted(energy, "kinetic_langevin", *start, num_steps, options, "KineticLangevin", _ADVICE)
        if run is None and self.precision is not None:
            raise no_perceptron(energy, state.x, "precision needs", "KineticLangevin")
        if run is None:
            return self._run(energy, state, num_steps, metric), info
        x, momentum, value, grad = run
        assert momentum is not None
        return KineticLangevinState(x, value, grad, momentum, state.key.advance(num_steps)), info

    @torch.inference_mode(False)
    def __call__(self, energy: EnergyFn, x: Tensor, num_steps: int, *, seed: int | Key | None = None) -> Tensor:
        """Final states of `num_steps` steps from x, the same as init and advance give. Arguments and errors as `init`."""
        num_steps = bounded_int(num_steps, "num_steps", "KineticLangevin", high=2**STEP_BITS)
        if num_steps == 0:
            check_chains(x, "KineticLangevin")
            return own(x)
        return self.advance(energy, self._start(energy, x, seed, "KineticLangevin"), num_steps)[0].x

    def _start(self, energy: EnergyFn, x: Tensor, seed: int | Key | None, caller: str) -> KineticLangevinState:
        check_chains(x, caller)
        metric = self._metric(x)
        x = own(x)
        key = Key.from_seed(0 if seed is None and len(x) == 0 else seed, x.device)
        if len(x) == 0:
            return KineticLangevinState(x, x.new_zeros(0), torch.zeros_like(x), torch.zeros_like(x), key)
        value, grad = energy_and_grad(energy, x)
        check_start(value, grad, x, caller)
        momentum = ops.normal(x.shape, key=key, stream=ops.Stream.MOMENTUM, dtype=x.dtype, device=x.device) * math.sqrt(self.temperature)
        return KineticLangevinState(x, value, grad, momentum if metric is None else momentum / metric.scale, key)

    def _run(self, energy: EnergyFn, state: KineticLangevinState, num_steps: int, metric: Metric | None) -> KineticLangevinState:
        x, value, grad, momentum, key = state
        half = 0.5 * self.step_size
        decay = math.exp(-self.friction * self.step_size)
        noise_std = math.sqrt(-math.expm1(-2 * self.friction * self.step_size) * self.temperature)
        drift = half if metric is None else half * metric.inverse_mass
        for begin in range(0, num_steps, _CHECK_EVERY):
            count = min(_CHECK_EVERY, num_steps - begin)
            values, grad_sums = [value], [grad.sum()]
            for step_key in key.advance(begin).steps(count).unbind():
                momentum = momentum - half * grad
                x = x + drift * momentum
                noise = ops.normal(x.shape, key=step_key, stream=ops.Stream.PROPOSAL, dtype=x.dtype, device=x.device) * noise_std
                momentum = decay * momentum + (noise if metric is None else noise / metric.scale)
                x = x + drift * momentum
                value, grad = energy_and_grad(energy, x)
                momentum = momentum - half * grad
                values.append(value)
                grad_sums.append(grad.sum())
            raise_if_diverged("KineticLangevin", _ADVICE, values, grad_sums, x, grad, first_step=begin, num_steps=count)
        return KineticLangevinState(x, value, grad, momentum, key.advance(num_steps))
