"""Annealed Langevin dynamics down a ladder of noise levels (Song & Ermon 2019, arXiv 1907.05600, algorithm 1).

The paper's step is x + α/2 · s(x, σ_i) + sqrt(α) · z, its released code's x + α · s(x, σ_i) + sqrt(2α) · z, both with α = step_size · σ_i² / σ_L²:
one number for step_size means twice the step in the code. `convention` says whose number it is.
The last, noiseless step x + σ_L² · s(x, σ_L), the mean of the data given x, is from Song & Ermon 2020 (arXiv 2006.09011, section 3.3 and
algorithm 2 of its appendix). Left out: the consistent sampling of Jolicoeur-Martineau et al. 2020, predictor-corrector samplers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore.gradients import check_state, energy_and_grad
from ebmcore.ops.langevin import StepArguments, step_arguments, step_into
from ebmcore.ops.registration import number
from ebmcore.types import STEP_BITS, DivergenceError, Key, bounded_int

ConditionalModel = Callable[..., Tensor]
"""(x, sigma) -> score (num_chains, *event), or energy (num_chains,) where the event has at least one axis; sigma (num_chains,)."""

_CHECK_EVERY = 32  # steps between two looks for divergence: one host sync each
_DRIFT = {"paper": 0.5, "code": 1.0}


class AnnealedLangevinState(NamedTuple):
    """Chains between two steps.

    Attributes:
        x: (num_chains, *event).
        energy: (num_chains,), E(x, σ) at the level of the next step (after the last step: of the last level); NaN for a score function.
        score: as x, -∇E or the function's value, at the same level.
        key: of the next step's noise.
        step: steps since `init`: the place on the ladder.
        is_energy: whether the model is an energy.
    """

    x: Tensor
    energy: Tensor
    score: Tensor
    key: Key
    step: int
    is_energy: bool


class AnnealedLangevinInfo(NamedTuple):
    """Of the steps of one call: is_diverged (num_chains,) bool, always False: divergence raises."""

    is_diverged: Tensor


@dataclasses.dataclass(frozen=True)
class AnnealedLangevin:
    """Langevin dynamics on p(x; σ) for one noise level σ after the other, the largest first; one evaluation of the model a step.

    Targets p(x; σ_L), the data smoothed by the smallest level, only as steps_per_level -> ∞ and step_size -> 0.

    The model is called with x (num_chains, *event) and sigma (num_chains,), of x's dtype, and returns the score, shaped as x, or an energy,
    (num_chains,), whose score is -∇E. A function of chains without event axes, x (num_chains,), is a score.

    Args:
        noise_levels: standard deviations, > 0 and falling, for instance `numpy.geomspace(1, 0.01, 10)`.
        steps_per_level: >= 1.
        step_size: > 0, α at the last level; at level σ it is step_size · σ² / σ_L². The drift is stable below step_size = 4 σ_L² ("paper") or
            2 σ_L² ("code").
        convention: "paper": α/2 and sqrt(α), or "code": α and sqrt(2α). The same dynamics, to the bit, if the code's step_size is half the paper's.
        denoise: end with one more step, without noise, x + σ_L² · s(x, σ_L).

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    noise_levels: Sequence[float]
    steps_per_level: int
    step_size: float
    convention: str = "paper"
    denoise: bool = False

    def __post_init__(self) -> None:
        levels = _levels(self.noise_levels)
        object.__setattr__(self, "noise_levels", levels)
        object.__setattr__(self, "steps_per_level", bounded_int(self.steps_per_level, "steps_per_level", "AnnealedLangevin", low=1))
        number(self.step_size, "step_size", "AnnealedLangevin", low=0.0, strict=True)
        if self.convention not in _DRIFT:
            raise ValueError(f"AnnealedLangevin: convention must be one of {', '.join(_DRIFT)}, got {self.convention!r}")
        if not isinstance(self.denoise, bool):
            raise TypeError(f"AnnealedLangevin: denoise must be a bool, got {self.denoise!r}")
        bounded_int(self.num_steps, "len(noise_levels) * steps_per_level", "AnnealedLangevin", high=2**STEP_BITS)

    @property
    def num_steps(self) -> int:
        """Of the whole ladder."""
        return len(self.noise_levels) * self.steps_per_level + self.denoise

    @torch.inference_mode(False)
    def init(self, energy: ConditionalModel, x: Tensor, *, seed: int | Key | None = None) -> AnnealedLangevinState:
        """Chains at x, evaluated at the first level: once, an energy twice (first to see that it is one). x is copied.

        Args:
            energy: the model: (x, sigma) -> (num_chains, *event), a score, or (num_chains,), an energy.
            x: (num_chains, *event), float32 or float64. Noise as wide as the first level, for instance.
            seed: 0 <= seed < 2**64; a Key to go on with its noise; None draws a seed from torch's default generator.

        Raises:
            TypeError, ValueError: for an x that is not as above, or a model that returns something else.
            DivergenceError: the score or energy at x is not finite.
        """
        x = _own(x, "AnnealedLangevin.init")
        if len(x) == 0:
            return AnnealedLangevinState(x, _no_energies(x), torch.zeros_like(x), Key.from_seed(0 if seed is None else seed, x.device), 0, False)
        key = Key.from_seed(seed, x.device)
        score, value = _first_evaluation(energy, x, self._level(0))
        is_energy = value is not None
        value = _no_energies(x) if value is None else value
        _raise_if_diverged([_finite_chains(x, score, value if is_energy else None)], [value], first_step=-1)
        return AnnealedLangevinState(x, value, score, key, 0, is_energy)

    def step(self, energy: ConditionalModel, state: AnnealedLangevinState) -> tuple[AnnealedLangevinState, AnnealedLangevinInfo]:
        """The next step of the ladder; `state` stays as it is. Raises ValueError at the ladder's end."""
        return self.advance(energy, state, 1)

    @torch.inference_mode(False)
    def advance(self, energy: ConditionalModel, state: AnnealedLangevinState, num_steps: int) -> tuple[AnnealedLangevinState, AnnealedLangevinInfo]:
        """The next `num_steps` steps, to the same bits as that many calls of `step`. One evaluation each.

        Raises:
            ValueError: the ladder has fewer steps left.
            DivergenceError: x, the score or the energy is no longer finite; found at the latest 32 steps on.
        """
        num_steps = self._within_ladder(num_steps, "AnnealedLangevin.advance", state.step)
        if num_steps and len(state.x):
            x, value, score = self._run(energy, state.x.clone(), state.energy, state.score, state.key, state.step, num_steps, state.is_energy)
            state = AnnealedLangevinState(x, value, score, state.key.advance(num_steps), state.step + num_steps, state.is_energy)
        return state, AnnealedLangevinInfo(torch.zeros(len(state.x), dtype=torch.bool, device=state.x.device))

    @torch.inference_mode(False)
    def __call__(self, energy: ConditionalModel, x: Tensor, num_steps: int | None = None, *, seed: int | Key | None = None) -> Tensor:
        """Final states of the first `num_steps` steps of the ladder (None: of all), the same as init and advance give.

        Arguments and errors as these. Exactly `num_steps` evaluations (an energy's first one twice): the last state's is not needed.
        """
        num_steps = self._within_ladder(self.num_steps if num_steps is None else num_steps, "AnnealedLangevin", 0)
        if num_steps == 0 or len(x) == 0:
            return _own(x, "AnnealedLangevin")
        state = self.init(energy, x, seed=seed)
        return self._run(energy, state.x, state.energy, state.score, state.key, 0, num_steps, state.is_energy, evaluate_last=False)[0]

    def _within_ladder(self, num_steps: Any, caller: str, done: int) -> int:
        wanted = bounded_int(num_steps, "num_steps", caller)
        if wanted > self.num_steps - done:
            raise ValueError(
                f"{caller}: num_steps must be at most {self.num_steps - done}, the rest of a ladder of {self.num_steps} steps, got {wanted}"
            )
        return wanted

    def _level(self, step: int) -> float:
        return self.noise_levels[min(step // self.steps_per_level, len(self.noise_levels) - 1)]

    def _arguments(self, step: int) -> StepArguments:
        """Of the step's op."""
        if step == len(self.noise_levels) * self.steps_per_level:
            return step_arguments("AnnealedLangevin", self.noise_levels[-1] ** 2, 0.0, None, None, None)
        alpha = self.step_size * (self._level(step) / self.noise_levels[-1]) ** 2
        drift = _DRIFT[self.convention] * alpha
        return step_arguments("AnnealedLangevin", drift, math.sqrt(2.0 * drift), None, None, None)

    def _run(
        self,
        model: ConditionalModel,
        x: Tensor,
        value: Tensor,
        score: Tensor,
        key: Key,
        first: int,
        num_steps: int,
        is_energy: bool,
        evaluate_last: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Steps in the buffer x, which is ours."""
        for begin in range(0, num_steps, _CHECK_EVERY):
            keys = (key.advance(begin) if begin else key).steps(min(_CHECK_EVERY, num_steps - begin)).unbind()
            values, finite = [value], []
            for i, step_key in enumerate(keys, start=begin):
                x = step_into(x, x, -score, step_key, self._arguments(first + i))
                energies = None
                if evaluate_last or i < num_steps - 1:
                    score, energies = _evaluate(model, x, self._level(first + i + 1), is_energy)
                value = value if energies is None else energies
                values.append(value)
                finite.append(_finite_chains(x, score, energies))
            _raise_if_diverged(finite, values, first_step=begin)
        return x, value, score


def _levels(noise_levels: Any) -> tuple[float, ...]:
    values = noise_levels.tolist() if hasattr(noise_levels, "tolist") else noise_levels
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"AnnealedLangevin: noise_levels must be a sequence of numbers, got {noise_levels!r}")
    levels = tuple(number(level, "noise_levels[...]", "AnnealedLangevin", low=0.0, strict=True) for level in values)
    if not levels or any(low >= high for high, low in pairwise(levels)):
        raise ValueError(f"AnnealedLangevin: noise_levels must be one or more numbers, each smaller than the one before, got {levels}")
    return levels


def _own(x: Tensor, caller: str) -> Tensor:
    """A contiguous copy of x without graph, usable in autograd even where x was made in inference mode."""
    check_state(x, caller)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{caller}: x must be float32 or float64 (the steps of the last levels are below the digits of shorter ones), got {x.dtype}")
    with torch.no_grad():
        return x.detach().clone(memory_format=torch.contiguous_format)


def _no_energies(x: Tensor) -> Tensor:
    return torch.full((len(x),), math.nan, dtype=x.dtype, device=x.device)


def _first_evaluation(model: ConditionalModel, x: Tensor, level: float) -> tuple[Tensor, Tensor | None]:
    """Score and, if the model is an energy, the energies. Without a graph first: that of a score network is large, and for nothing."""
    is_energy = False

    def spy(y: Tensor, sigma: Tensor) -> Tensor:
        nonlocal is_energy
        value = model(y, sigma)
        is_energy = isinstance(value, Tensor) and value.shape == y.shape[:1] and y.dim() > 1
        return torch.zeros_like(y) if is_energy else value

    score, _ = _evaluate(spy, x, level, is_energy=False)
    return _evaluate(model, x, level, is_energy=True) if is_energy else (score, None)


def _evaluate(model: ConditionalModel, x: Tensor, level: float, is_energy: bool) -> tuple[Tensor, Tensor | None]:
    sigma = torch.full((len(x),), level, dtype=x.dtype, device=x.device)
    if is_energy:
        value, grad = energy_and_grad(lambda y: model(y, sigma), x)
        return -grad, value
    with torch.no_grad():
        version = x._version
        score = model(x, sigma)
    if not isinstance(score, Tensor) or not score.is_floating_point():
        got = score.dtype if isinstance(score, Tensor) else type(score).__name__
        raise TypeError(f"AnnealedLangevin: model must return a floating-point tensor, got {got}")
    if score.shape != x.shape:
        wanted = f"{tuple(x.shape)} (a score)" + (f" or ({len(x)},) (an energy)" if x.dim() > 1 else "")
        raise ValueError(f"AnnealedLangevin: model must return shape {wanted} for x of shape {tuple(x.shape)}, got {tuple(score.shape)}")
    if score.device != x.device:
        raise ValueError(f"AnnealedLangevin: model must return a tensor on {x.device}, where x is, got {score.device}")
    if x._version != version:
        raise ValueError("AnnealedLangevin: model must not modify x in place")
    return score.to(x.dtype), None


def _finite_chains(x: Tensor, score: Tensor, energies: Tensor | None) -> Tensor:
    is_finite = (x.isfinite() & score.isfinite()).reshape(len(x), -1).all(1)
    return is_finite if energies is None else is_finite & energies.isfinite()


def _raise_if_diverged(finite: list[Tensor], values: list[Tensor], *, first_step: int) -> None:
    """Look at which chains were finite after each of some steps, from `first_step` on; `values` are the energies before and after each."""
    all_finite = torch.stack(finite)
    if bool(all_finite.all()):
        return
    index = int((~all_finite).any(1).nonzero()[0])
    chains = (~all_finite[index]).nonzero().flatten()
    last_energies = [e if math.isfinite(e) else math.nan for e in values[index][chains].tolist()]
    indices, step = chains.tolist(), first_step + index
    where = "the starting point is" if step < 0 else f"the result of step {step} is"
    shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
    raise DivergenceError(
        f"AnnealedLangevin: {where} not finite (x, score or energy) in {len(indices)} of {all_finite.shape[1]} chains ({shown}). Lower step_size.",
        chains=indices,
        step=step,
        last_energies=last_energies,
    )
