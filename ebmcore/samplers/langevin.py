"""Unadjusted Langevin dynamics with step and noise decoupled, as EBM training uses it.

x' = clamp(x - step_size · clip(∇E(x)) + noise_std · ξ). Presets: JEM (Grathwohl et al. 2020, arXiv 1912.03263), IGEBM (Du & Mordatch
2019, arXiv 1903.08689), short-run MCMC (Nijkamp et al. 2019, arXiv 1904.09770). Not implemented: preconditioning, adaptation, the
Metropolis correction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.continuous_sampler import check_precision, energy_dtype, finite_rows, no_perceptron, own, raise_if_diverged, run_unadjusted
from ebmcore.gradients import check_state, energy_and_grad
from ebmcore.ops.langevin import StepArguments, bounds, step_arguments, step_into
from ebmcore.ops.registration import number
from ebmcore.types import STEP_BITS, DivergenceError, EnergyFn, Key, bounded_int

Schedule = Callable[[int], float]

_CHECK_EVERY = 32  # steps between two looks for divergence: one host sync each
_ADVICE = "Lower step_size, clip the gradient, clamp the state, or choose on_divergence."
_POLICIES = ("raise", "freeze", "restart")
_PRESETS: dict[str, dict[str, Any]] = {
    "jem": {"step_size": 1.0, "noise_std": 0.01},
    "igebm": {"step_size": 10.0, "noise_std": 0.005, "noise_first": True, "clip_grad": 0.01, "clamp": (0.0, 1.0)},
    "short_run": {"step_size": 1.0, "noise_std": 0.01},
}


class LangevinState(NamedTuple):
    """Chains between two steps.

    Attributes:
        x: (num_chains, *event).
        energy: (num_chains,), E(x); with noise_first the energy of the noisy point that the last gradient was taken at.
        grad: ∇E(x), shaped as x; None with noise_first.
        key: of the next step's noise.
        step: steps since `init`, the argument of schedules.
        is_diverged: (num_chains,) bool, chains frozen or restarted since `init`.
        start: (x, energy, grad) at `init`, kept for on_divergence="restart" only.
    """

    x: Tensor
    energy: Tensor
    grad: Tensor | None
    key: Key
    step: int
    is_diverged: Tensor
    start: tuple[Tensor, Tensor, Tensor | None] | None


class LangevinInfo(NamedTuple):
    """Of the steps of one call: is_diverged (num_chains,) bool; num_restarts (num_chains,) int64."""

    is_diverged: Tensor
    num_restarts: Tensor


@dataclasses.dataclass(frozen=True)
class Langevin:
    """Unadjusted Langevin dynamics: one energy evaluation and one fused native update a step.

    Targets exp(-E/T) with T = noise_std² / (2 · step_size), exactly only as step_size -> 0; clipping and clamping change the target.

    Args:
        step_size: > 0, or a schedule: a callable of the step since `init`.
        noise_std: >= 0, or a schedule; by default sqrt(2 · step_size · temperature). 0 descends.
        temperature: > 0; only without noise_std.
        clip_grad: components of the gradient are cut to [-clip_grad, clip_grad].
        clip_grad_norm: the gradient of a chain is scaled down to this Euclidean norm (before clip_grad).
        clamp: (low, high) of the state after each step.
        noise_first: add the noise before the gradient is taken, as IGEBM does, instead of with it.
        on_divergence: what happens to a chain whose state, energy or gradient is no longer finite. "raise": DivergenceError, found
            at the latest 32 steps on, of native chains at the end of the call. "freeze": it stays at its last finite state. "restart": it
            goes back to where `init` found it.
        precision: "bf16": matrix products of an energy that is a perceptron (`energies.MLP`, `lower`) are made of numbers rounded to bfloat16,
            with sums, states and all else in float32. ∇E is then a few thousandths of its size off. Bits are those of one processor.
        row_space: of an energy that is a perceptron, whose first layer is narrower than x, move x in the row space of the first weights step by
            step, and add the noise of the other directions, in which ∇E is zero, once a call: the law of x after each call is as without, but
            bits depend on how steps are split into calls. The basis is made once for each value of the weights, by a QR factorisation, for which
            784 x 256 weights take 5 ms.

    `precision`, on a CPU, and `row_space` are for native chains of float32 numbers: no schedules, no noise_first, no clip_grad_norm, no
    on_divergence but "raise"; row_space also refuses clip_grad and clamp, which are not the same in every direction.

    Raises:
        TypeError, ValueError: for arguments that are not as above; in a call, for an energy without what precision or row_space needs.
    """

    step_size: float | Schedule
    noise_std: float | Schedule | None = None
    temperature: float = 1.0
    clip_grad: float | None = None
    clip_grad_norm: float | None = None
    clamp: tuple[float, float] | None = None
    noise_first: bool = False
    on_divergence: str = "raise"
    precision: str | None = None
    row_space: bool = False

    def __post_init__(self) -> None:
        if not callable(self.step_size):
            number(self.step_size, "step_size", "Langevin", low=0.0, strict=True)
        if self.noise_std is not None and not callable(self.noise_std):
            number(self.noise_std, "noise_std", "Langevin", low=0.0)
        number(self.temperature, "temperature", "Langevin", low=0.0, strict=True)
        if self.noise_std is not None and self.temperature != 1.0:
            raise ValueError("Langevin: give noise_std or temperature, not both: noise_std already sets the temperature")
        for name in ("clip_grad", "clip_grad_norm"):
            if getattr(self, name) is not None:
                number(getattr(self, name), name, "Langevin", low=0.0, strict=True)
        bounds(self.clamp, "Langevin")
        if self.on_divergence not in _POLICIES:
            raise ValueError(f"Langevin: on_divergence must be one of {', '.join(_POLICIES)}, got {self.on_divergence!r}")
        check_precision(self.precision, "Langevin")
        if not isinstance(self.row_space, bool):
            raise TypeError(f"Langevin: row_space must be a bool, got {self.row_space!r}")
        if self._needs_native:
            if not self._may_be_native:
                raise ValueError(f"Langevin: precision and row_space take no schedule, noise_first, clip_grad_norm or on_divergence, got {self}")
            if self.row_space and (self.clip_grad is not None or self.clamp is not None):
                raise ValueError(f"Langevin: row_space takes no clip_grad and no clamp, got clip_grad={self.clip_grad}, clamp={self.clamp}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Langevin:
        """The sampler of a paper's released code: "jem", "igebm" (CIFAR-10) or "short_run". `changes` replace single settings."""
        if name not in _PRESETS:
            raise ValueError(f"Langevin.preset: name must be one of {', '.join(_PRESETS)}, got {name!r}")
        return cls(**(_PRESETS[name] | changes))

    @property
    def effective_temperature(self) -> float:
        """noise_std² / (2 · step_size), the temperature that is really simulated; of schedules at step 0."""
        step_size, noise_std = self._scales(0)
        return noise_std**2 / (2 * step_size)

    @property
    def _needs_native(self) -> bool:
        return self.precision is not None or self.row_space

    @property
    def _may_be_native(self) -> bool:
        has_schedule = callable(self.step_size) or callable(self.noise_std)
        return not (has_schedule or self.noise_first) and self.clip_grad_norm is None and self.on_divergence == "raise"

    @torch.inference_mode(False)
    def init(self, energy: EnergyFn, x: Tensor, *, seed: int | Key | None = None) -> LangevinState:
        """Chains at x, evaluated once. x is copied.

        Args:
            energy: (num_chains, *event) -> (num_chains,).
            x: (num_chains, *event), floating.
            seed: 0 <= seed < 2**64; a Key to go on with its noise; None draws a seed from torch's default generator.

        Raises:
            DivergenceError: the energy or gradient at x is not finite.
        """
        check_state(x, "Langevin.init")
        x = own(x)
        key = Key.from_seed(0 if seed is None and len(x) == 0 else seed, x.device)
        value, grad = _evaluate(energy, x)
        raise_if_diverged("Langevin", _ADVICE, [value], [grad.sum()], x, grad, first_step=0)
        carried = None if self.noise_first else grad
        start = (x, value, carried) if self.on_divergence == "restart" else None
        return LangevinState(x, value, carried, key, 0, torch.zeros(len(x), dtype=torch.bool, device=x.device), start)

    def step(self, energy: EnergyFn, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        """One step; `state` stays as it is."""
        return self.advance(energy, state, 1)

    @torch.inference_mode(False)
    def advance(self, energy: EnergyFn, state: LangevinState, num_steps: int) -> tuple[LangevinState, LangevinInfo]:
        """`num_steps` steps, to the same bits as that many calls of `step`. One energy evaluation each."""
        num_steps = bounded_int(num_steps, "num_steps", "Langevin.advance", high=2**STEP_BITS)
        num_restarts = torch.zeros(len(state.x), dtype=torch.int64, device=state.x.device)
        if num_steps == 0 or len(state.x) == 0:
            return state, LangevinInfo(torch.zeros_like(state.is_diverged), num_restarts)
        if self.on_divergence == "raise":
            run = self._run_natively(energy, state.x, state.energy, state.key, num_steps)
            x, value, grad = run or self._run(energy, state.x.clone(), state.energy, state.grad, state.key, state.step, num_steps)
            is_diverged = torch.zeros_like(state.is_diverged)
            total = state.is_diverged
        else:
            x, value, grad, is_diverged, num_restarts = self._run_guarded(energy, state, num_steps)
            total = state.is_diverged | is_diverged
        return LangevinState(x, value, grad, state.key.advance(num_steps), state.step + num_steps, total, state.start), LangevinInfo(
            is_diverged, num_restarts
        )

    @torch.inference_mode(False)
    def __call__(self, energy: EnergyFn, x: Tensor, num_steps: int, *, seed: int | Key | None = None) -> Tensor:
        """Final states of `num_steps` steps from x, the same as init and advance give. Arguments and errors as `init`.

        Exactly `num_steps` energy evaluations, one fewer than init and advance: the last state's is not needed. With on_divergence
        "freeze" or "restart" it is, to know whether the last step held.
        """
        check_state(x, "Langevin")
        num_steps = bounded_int(num_steps, "num_steps", "Langevin", high=2**STEP_BITS)
        if num_steps == 0 or len(x) == 0:
            return own(x)
        if self.on_divergence != "raise":
            return self.advance(energy, self.init(energy, x, seed=seed), num_steps)[0].x
        key = Key.from_seed(seed, x.device)
        run = self._run_natively(energy, x, None, key, num_steps)
        if run is not None:
            return run[0]
        x = own(x)
        if self.noise_first:
            return self._run(energy, x, None, None, key, 0, num_steps)[0]
        value, grad = energy_and_grad(energy, x)
        return self._run(energy, x, value, grad, key, 0, num_steps, evaluate_last=False)[0]

    def _scales(self, step: int) -> tuple[float, float]:
        step_size = number(self.step_size(step), "step_size(step)", "Langevin", low=0.0, strict=True) if callable(self.step_size) else self.step_size
        if self.noise_std is None:
            return step_size, math.sqrt(2.0 * step_size * self.temperature)
        return step_size, number(self.noise_std(step), "noise_std(step)", "Langevin", low=0.0) if callable(self.noise_std) else self.noise_std

    def _arguments(self, step: int) -> tuple[float, StepArguments]:
        """noise_std, and the arguments of the step's op."""
        step_size, noise_std = self._scales(step)
        of_op = 0.0 if self.noise_first else noise_std
        return noise_std, step_arguments("Langevin", step_size, of_op, self.clip_grad, self.clip_grad_norm, self.clamp)

    def _schedule(self) -> Callable[[int], tuple[float, StepArguments]]:
        if callable(self.step_size) or callable(self.noise_std):
            return self._arguments
        constant = self._arguments(0)
        return lambda step: constant

    def _move(
        self,
        energy: EnergyFn,
        x: Tensor,
        grad: Tensor | None,
        key: Tensor,
        noise_std: float,
        arguments: StepArguments,
        out: Tensor | None,
        evaluate: bool = True,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The new state, and its energy and gradient; with noise_first those of the noisy point before it."""
        if self.noise_first:
            noise = ops.normal(x.shape, key=key, stream=ops.Stream.PROPOSAL, dtype=energy_dtype(x), device=x.device)
            x = (x + noise * noise_std).to(x.dtype)
            value, grad = energy_and_grad(energy, x)
            return step_into(out, x, grad, key, arguments), value, grad
        assert grad is not None
        x = step_into(out, x, grad, key, arguments)
        return (x, *energy_and_grad(energy, x)) if evaluate else (x, None, None)

    def _run_natively(self, energy: EnergyFn, x: Tensor, value: Tensor | None, key: Key, num_steps: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Steps from x, which stays as it is, if the energy can take them itself. value is None at a start that is not evaluated."""
        if not self._may_be_native:
            return None
        step_size, noise_std = self._scales(0)
        options: dict[str, Any] = {"step_size": step_size, "noise_std": noise_std, "clip_grad": self.clip_grad, "clamp": self.clamp}
        if self._needs_native:
            options |= {"precision": self.precision, "row_space": self.row_space}
        start = x.new_full((len(x),), math.nan, dtype=energy_dtype(x)) if value is None else value
        try:
            run = run_unadjusted(energy, "langevin", x, None, start, key, num_steps, options, "Langevin", _ADVICE)
        except DivergenceError:
            if value is None:
                self.init(energy, x, seed=key)
            raise
        if run is None and self._needs_native:
            raise no_perceptron(energy, x, "precision and row_space need", "Langevin")
        return None if run is None else (run[0], run[2], run[3])

    def _run(
        self,
        energy: EnergyFn,
        x: Tensor,
        value: Tensor | None,
        grad: Tensor | None,
        key: Key,
        first: int,
        num_steps: int,
        evaluate_last: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Steps in the buffer x, which is ours. value is None at a start that is not evaluated."""
        schedule = self._schedule()
        before = torch.full((len(x),), math.nan, dtype=energy_dtype(x), device=x.device) if value is None else value
        for begin in range(0, num_steps, _CHECK_EVERY):
            count = min(_CHECK_EVERY, num_steps - begin)
            keys = (key.advance(begin) if begin else key).steps(count).unbind()
            values = [before]
            grad_sums = [before.new_zeros(()) if grad is None else grad.sum()]
            for i, step_key in enumerate(keys):
                evaluate = evaluate_last or begin + i < num_steps - 1
                x, new, grad = self._move(energy, x, grad, step_key, *schedule(first + begin + i), x, evaluate)
                if new is not None and grad is not None:
                    values.append(new)
                    grad_sums.append(grad.sum())
            is_end = begin + count == num_steps
            raise_if_diverged(
                "Langevin",
                _ADVICE,
                values,
                grad_sums,
                x if is_end else None,
                grad,
                first_step=begin,
                num_steps=count,
                is_start_known=begin > 0 or value is not None,
            )
            before = values[-1]
        return x, before, None if self.noise_first else grad

    def _run_guarded(self, energy: EnergyFn, state: LangevinState, num_steps: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """Steps that put every diverged chain back to a finite state at once."""
        x, value, grad = state.x, state.energy, state.grad
        diverged = torch.zeros_like(state.is_diverged)
        restarts = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        schedule = self._schedule()
        for i in range(num_steps):
            key = state.key.advance(i).tensor
            new_x, new_value, new_grad = self._move(energy, x, grad, key, *schedule(state.step + i), None)
            assert new_value is not None
            bad = ~(finite_rows(new_x) & new_value.isfinite())
            if new_grad is not None:
                bad = bad | ~finite_rows(new_grad)
            diverged = diverged | bad
            if self.on_divergence == "freeze":
                bad = diverged | state.is_diverged
                back_x, back_value, back_grad = x, value, grad
            else:
                assert state.start is not None
                restarts = restarts + bad
                back_x, back_value, back_grad = state.start
            rows = bad.reshape(-1, *[1] * (x.dim() - 1))
            x = torch.where(rows, back_x, new_x)
            value = torch.where(bad, back_value, new_value)
            grad = None if new_grad is None or back_grad is None else torch.where(rows, back_grad, new_grad)
        return x, value, grad, diverged, restarts


def _evaluate(energy: EnergyFn, x: Tensor) -> tuple[Tensor, Tensor]:
    if len(x) == 0:
        return torch.zeros(0, dtype=energy_dtype(x), device=x.device), torch.zeros_like(x)
    return energy_and_grad(energy, x)
