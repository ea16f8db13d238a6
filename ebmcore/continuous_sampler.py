"""What the samplers of continuous states share: the way from the user's x to chains and back, native chains where an energy has them,
Metropolis' rule, the loop over steps, and what is reported of them. A sampler adds its proposal.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import warnings
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.gradients import check_state, energy_and_grad, evaluate
from ebmcore.ops.dynamics import DynamicsRun
from ebmcore.ops.metropolis import Tally
from ebmcore.types import STEP_BITS, DivergenceError, EnergyFn, Key, bounded_int

_KEYS_AT_ONCE = 1024
_MANY_STEPS = 1000  # in which a chain that moves at all has moved
_FEW_ELEMENTS = 8  # whose sum torch takes seven times as long for as for adding up columns
_COARSE_FLOAT32 = 2.0**20  # from here on float32 numbers are 1/8 and more apart


class ContinuousState(NamedTuple):
    """Chains between two steps.

    Attributes:
        x: (num_chains, *event), float32 or float64.
        energy: (num_chains,), E(x).
        grad: ∇E(x), shaped as x; None where the sampler does not use it.
        key: of the next step's draws.
    """

    x: Tensor
    energy: Tensor
    grad: Tensor | None
    key: Key


class MetropolisInfo(NamedTuple):
    """Of the steps of one call.

    Attributes:
        is_diverged: (num_chains,) bool, a proposal or its energy or gradient was not finite; such a proposal is rejected.
        is_accepted: (num_chains,) bool, the proposal of the last step.
        acceptance_prob: (num_chains,), its mean over the steps.
        num_diverged: (num_chains,) int64, proposals that were not finite.
    """

    is_diverged: Tensor
    is_accepted: Tensor
    acceptance_prob: Tensor
    num_diverged: Tensor


class Proposal(NamedTuple):
    """Where chains may go.

    Attributes:
        x: (num_chains, *event).
        energy: (num_chains,), E there.
        grad: ∇E there, shaped as x, where the sampler uses it.
        log_correction: (num_chains,) float64, log ratio of acceptance beyond E(x) - E(x'); None: the proposal is symmetric.
        langevin_step_size: of a Langevin step with the sampler's metric, whose correction Metropolis' rule makes itself; else None.
    """

    x: Tensor
    energy: Tensor
    grad: Tensor | None
    log_correction: Tensor | None = None
    langevin_step_size: float | None = None


class Metric(NamedTuple):
    """The diagonal of M⁻¹ for a run, (1, *event) in the chains' dtype, and its square root."""

    inverse_mass: Tensor
    scale: Tensor


class Preconditioned:
    """A frozen dataclass with a field `inverse_mass` that two equal tensors make equal."""

    inverse_mass: Tensor | None

    def _own_inverse_mass(self) -> None:
        """Check the field and put a copy in its place, so that the caller's tensor may change."""
        value, name = self.inverse_mass, type(self).__name__
        if value is None:
            return
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
            got = value.dtype if isinstance(value, Tensor) else repr(value)
            raise TypeError(f"{name}: inverse_mass must be a float32 or float64 tensor of the event's shape, got {got}")
        value = value.detach().clone(memory_format=torch.contiguous_format)
        if not bool(((value.float() > 0) & value.float().isfinite()).all()):  # in the shortest dtype that it is used in
            raise ValueError(f"{name}: inverse_mass must be positive and finite, got {value}")
        object.__setattr__(self, "inverse_mass", value)

    def _metric(self, x: Tensor) -> Metric | None:
        if self.inverse_mass is None:
            return None
        if self.inverse_mass.shape != x.shape[1:]:
            name = type(self).__name__
            raise ValueError(f"{name}: inverse_mass must have the event's shape {tuple(x.shape[1:])}, got {tuple(self.inverse_mass.shape)}")
        inverse_mass = self.inverse_mass.to(x.device)
        return Metric(inverse_mass.to(x.dtype)[None], inverse_mass.double().sqrt().to(x.dtype)[None])

    def _native_options(self, metric: Metric | None) -> dict[str, Any]:
        """The fields of the sampler, as `native_dynamics` takes them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return fields | {"inverse_mass": None if metric is None else metric.inverse_mass[0]}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in dataclasses.fields(self))  # type: ignore[arg-type]
        return all(a.equal(b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


class MetropolisSampler(Preconditioned, abc.ABC):
    """A kernel that proposes and accepts by Metropolis' rule: hyperparameters in a frozen dataclass, and `_propose`.

    Class attributes:
        target_acceptance: the mean acceptance probability that `warm_up` tunes to.
        _kernel: what energies with `native_dynamics` call it.
        _uses_grad: whether a step needs ∇E.
    """

    target_acceptance: ClassVar[float]
    _kernel: ClassVar[str]
    _uses_grad: ClassVar[bool] = True

    @abc.abstractmethod
    def _propose(self, energy: EnergyFn, state: ContinuousState, key: Tensor, metric: Metric | None) -> Proposal:
        """Where each chain would go with the draws of `key`. Nothing of `state` is written to."""

    @torch.inference_mode(False)
    def init(self, energy: EnergyFn, x: Tensor, *, seed: int | Key | None = None) -> ContinuousState:
        """Chains at x, evaluated once. x is copied.

        Args:
            energy: (num_chains, *event) -> (num_chains,); +inf where a chain must not go.
            x: (num_chains, *event), float32 or float64. Energies are carried in float64 where x or they are.
            seed: 0 <= seed < 2**64; a Key to go on with its draws; None draws a seed from torch's default generator.

        Raises:
            TypeError, ValueError: x is not as above, or inverse_mass has not the shape of its event.
            DivergenceError: the energy or gradient at x is not finite.
        """
        return self._start(energy, x, seed, f"{type(self).__name__}.init")

    def step(self, energy: EnergyFn, state: ContinuousState) -> tuple[ContinuousState, MetropolisInfo]:
        """One step; `state` stays as it is."""
        return self.advance(energy, state, 1)

    @torch.inference_mode(False)
    def advance(self, energy: EnergyFn, state: ContinuousState, num_steps: int) -> tuple[ContinuousState, MetropolisInfo]:
        """`num_steps` steps, to the same bits as that many calls of `step`. Warns if in 1000 steps or more no chain moved."""
        num_steps = bounded_int(num_steps, "num_steps", f"{type(self).__name__}.advance", high=2**STEP_BITS)
        if num_steps == 0 or len(state.x) == 0:
            nothing = torch.zeros_like(state.energy)
            return state, MetropolisInfo(nothing.bool(), nothing.bool(), nothing, nothing.long())
        metric = self._metric(state.x)
        native = run_natively(energy, self._kernel, state.x, None, state.key, num_steps, self._native_options(metric))
        if native is None:
            end, info = self._run(energy, state, num_steps, metric)
        else:
            x, _, run = native
            assert run.is_accepted is not None
            assert run.acceptance_prob is not None
            assert run.num_diverged is not None
            value, grad = run.energy.to(state.energy.dtype), run.grad
            if self._uses_grad and grad is None:
                value, grad = energy_and_grad(energy, x)
            end = ContinuousState(x, value, grad, state.key.advance(num_steps))
            info = MetropolisInfo(run.num_diverged > 0, run.is_accepted, run.acceptance_prob.to(value.dtype), run.num_diverged)
        self._warn_if_stuck(state.x, end.x, info.acceptance_prob, info.num_diverged, num_steps)
        return end, info

    @torch.inference_mode(False)
    def __call__(self, energy: EnergyFn, x: Tensor, num_steps: int, *, seed: int | Key | None = None) -> Tensor:
        """Final states of `num_steps` steps from x, the same as init and advance give. Arguments and errors as `init`.

        Native chains evaluate nothing beside their steps: not even E at the start.
        """
        caller = type(self).__name__
        num_steps = bounded_int(num_steps, "num_steps", caller, high=2**STEP_BITS)
        check_chains(x, caller)
        if num_steps == 0 or len(x) == 0:
            return own(x)
        key = Key.from_seed(seed, x.device)
        native = run_natively(energy, self._kernel, x, None, key, num_steps, self._native_options(self._metric(x)))
        if native is None:
            return self.advance(energy, self._start(energy, x, key, caller), num_steps)[0].x
        end, _, run = native
        assert run.acceptance_prob is not None
        assert run.num_diverged is not None
        if bool((run.num_diverged == num_steps).any()):  # as of a chain that started where the energy or its gradient is not finite
            self._start(energy, x, key, caller)
        self._warn_if_coarse(run.energy)
        self._warn_if_stuck(x, end, run.acceptance_prob, run.num_diverged, num_steps)
        return end

    def _warn_if_coarse(self, value: Tensor) -> None:
        largest = float(value.abs().max()) if value.dtype == torch.float32 else 0.0
        if largest >= _COARSE_FLOAT32:
            warnings.warn(
                f"{self!r}: float32 energies of {largest:.3g} are {2.0 ** (math.frexp(largest)[1] - 24):g} apart, too coarse for differences of 1: "
                "return float64 energies, or subtract a constant from them",
                RuntimeWarning,
                stacklevel=5,
            )

    def _warn_if_stuck(self, start: Tensor, end: Tensor, acceptance_prob: Tensor, num_diverged: Tensor, num_steps: int) -> None:
        if num_steps >= _MANY_STEPS and torch.equal(start, end):
            warnings.warn(
                f"{self!r}: no chain moved in {num_steps} steps, mean acceptance probability {float(acceptance_prob.mean()):.3g}; "
                f"{int(num_diverged.sum())} proposals were not finite. Lower step_size, or let warm_up choose it",
                RuntimeWarning,
                stacklevel=4,
            )

    def _start(self, energy: EnergyFn, x: Tensor, seed: int | Key | None, caller: str) -> ContinuousState:
        check_chains(x, caller)
        self._metric(x)
        x = own(x)
        if len(x) == 0:
            key = Key.from_seed(0 if seed is None else seed, x.device)
            return ContinuousState(x, x.new_zeros(0), torch.zeros_like(x) if self._uses_grad else None, key)
        key = Key.from_seed(seed, x.device)
        value, grad = energy_and_grad(energy, x) if self._uses_grad else (evaluate(energy, x), None)
        check_start(value, grad, x, caller)
        self._warn_if_coarse(value)
        return ContinuousState(x, value, grad, key)

    def _run(self, energy: EnergyFn, state: ContinuousState, num_steps: int, metric: Metric | None) -> tuple[ContinuousState, MetropolisInfo]:
        x, value, grad, key = state
        x, value, grad = own(x), own(value), None if grad is None else own(grad)  # written in place
        tally = Tally.zeros(value)
        inverse_mass = None if metric is None else metric.inverse_mass
        for begin in range(0, num_steps, _KEYS_AT_ONCE):
            for step_key in (key.advance(begin) if begin else key).steps(min(_KEYS_AT_ONCE, num_steps - begin)).unbind():
                new = self._propose(energy, ContinuousState(x, value, grad, key), step_key, metric)
                new_value = new.energy
                if new_value.dtype != value.dtype:
                    value, new_value = value.double(), new_value.double()
                ops.metropolis_accept_(
                    x,
                    value,
                    None if new.grad is None else grad,
                    new.x,
                    new_value,
                    new.grad,
                    tally,
                    key=step_key,
                    log_correction=new.log_correction,
                    langevin_step_size=new.langevin_step_size,
                    inverse_mass=inverse_mass,
                )
        prob = (tally.prob_sum / num_steps).to(value.dtype)
        info = MetropolisInfo(tally.num_diverged > 0, tally.is_accepted, prob, tally.num_diverged)
        return ContinuousState(x, value, grad, key.advance(num_steps)), info


def run_natively(
    energy: EnergyFn, kernel: str, x: Tensor, momentum: Tensor | None, key: Key, num_steps: int, options: dict[str, Any]
) -> tuple[Tensor, Tensor | None, DynamicsRun] | None:
    """Native steps from x and momentum, which stay as they are: both after the steps, and the report; None if the energy has no such steps.

    An energy has them by a method native_dynamics(kernel, x, momentum, key, num_steps, **options) -> DynamicsRun | None. It takes the steps in
    x and momentum (None but for "kinetic_langevin"), contiguous float32 or float64 tensors that belong to the call; key is the int64 tensor
    [seed, step, first_chain] of the first step, and the options are the sampler's fields. None: it cannot, and has done nothing.
    """
    native_dynamics = getattr(energy, "native_dynamics", None)
    if native_dynamics is None or x.dtype not in (torch.float32, torch.float64):
        return None
    x, momentum = own(x), None if momentum is None else own(momentum)
    with torch.no_grad():
        run: DynamicsRun | None = native_dynamics(kernel, x, momentum, key.tensor, num_steps, **options)
    return None if run is None else (x, momentum, run)


def run_unadjusted(
    energy: EnergyFn,
    kernel: str,
    x: Tensor,
    momentum: Tensor | None,
    value: Tensor,
    key: Key,
    num_steps: int,
    options: dict[str, Any],
    caller: str,
    advice: str,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor] | None:
    """Native steps of chains that are not accepted or rejected: x, momentum, energy and gradient after them; None if there are none.

    Raises:
        DivergenceError: x, the energy or its gradient is no longer finite. The step is found by halving: what is not finite stays so.
    """

    def attempt(count: int) -> tuple[Tensor, Tensor | None, DynamicsRun, Tensor] | None:
        result = run_natively(energy, kernel, x, momentum, key, count, options)
        if result is None:
            return None
        end, _, report = result
        is_finite = finite_rows(end) & report.energy.isfinite()
        if report.grad is not None:
            is_finite = is_finite & finite_rows(report.grad)
        if report.num_diverged is not None:
            is_finite = is_finite & (report.num_diverged == 0)
        return *result, is_finite

    whole = attempt(num_steps)
    if whole is None:
        return None
    end, end_momentum, report, is_finite = whole
    if not bool(is_finite.all()):
        last, low, high = value, 0, num_steps
        while high - low > 1:
            middle = (low + high) // 2
            part = attempt(middle)
            assert part is not None
            if bool(part[3].all()):
                low, last = middle, part[2].energy
            else:
                high, is_finite = middle, part[3]
        raise divergence(~is_finite, last, high - 1, caller, advice)
    if report.grad is None:
        return end, end_momentum, *energy_and_grad(energy, end)
    return end, end_momentum, report.energy.to(value.dtype), report.grad


def check_precision(precision: Any, caller: str) -> None:
    """Raise unless it is one that native chains of perceptrons have."""
    if precision not in (None, "bf16"):
        raise ValueError(f'{caller}: precision must be None or "bf16", got {precision!r}')


def no_perceptron(energy: EnergyFn, x: Tensor, modes: str, caller: str) -> ValueError:
    """What to raise where `modes` need native chains of a perceptron, and there are none."""
    return ValueError(
        f"{caller}: {modes} the energy to be a perceptron with native chains (energies.MLP, lower), x to be float32, for precision on a CPU, "
        f"and fused multiply-adds, got {type(energy).__name__} and {x.dtype} on {x.device}"
    )


def check_chains(x: Tensor, caller: str) -> None:
    """Raise unless x can be the state of chains that are accepted or rejected: as `check_state`, and float32 or float64."""
    check_state(x, caller)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{caller}: x must be float32 or float64, got {x.dtype}")


def check_start(value: Tensor, grad: Tensor | None, x: Tensor, caller: str) -> None:
    """Raise unless all is finite at the start of chains."""
    is_finite = value.isfinite() & finite_rows(x)
    if grad is not None:
        is_finite = is_finite & finite_rows(grad)
    if not bool(is_finite.all()):
        raise divergence(~is_finite, torch.full_like(value, math.nan), -1, caller, "Start the chains where they are finite.")


def own(x: Tensor) -> Tensor:
    """A contiguous copy of x without graph, usable in autograd even where x was made in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        return x.detach().clone(memory_format=torch.contiguous_format)


def energy_dtype(x: Tensor) -> torch.dtype:
    """In which the energies at x are carried at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def finite_rows(x: Tensor) -> Tensor:
    """Which chains are finite, (num_chains,) bool."""
    return x.abs().reshape(len(x), -1).amax(1) < math.inf  # a fifteenth of what isfinite().all(1) costs


def row_sums(x: Tensor) -> Tensor:
    """Sums over each chain, (num_chains,) float64, the same for any number of chains or threads: torch alone splits the sum of a single row."""
    rows = x.reshape(len(x), -1)
    if rows.shape[1] <= _FEW_ELEMENTS:
        return functools.reduce(torch.add, rows.double().unbind(1))
    return rows.sum(1, dtype=torch.float64) if len(rows) > 1 else rows.expand(2, -1).sum(1, dtype=torch.float64)[:1]


def divergence(chains: Tensor, last: Tensor, step: int, caller: str, advice: str) -> DivergenceError:
    """The error of `chains` (num_chains,) bool that step `step` (-1: the start) took out of the finite numbers from energies `last`."""
    indices = chains.nonzero().flatten().tolist()
    last_energies = last[chains].tolist()
    where = "the starting point is" if step < 0 else f"the result of step {step} is"
    shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
    return DivergenceError(
        f"{caller}: {where} not finite (x, energy or gradient) in {len(indices)} of {len(chains)} chains ({shown}; last finite energies "
        f"{', '.join(f'{e:.6g}' for e in last_energies[:8])}). {advice}",
        chains=indices,
        step=step,
        last_energies=last_energies,
    )


def raise_if_diverged(
    caller: str,
    advice: str,
    values: list[Tensor],
    grad_sums: list[Tensor],
    x: Tensor | None,
    grad: Tensor | None,
    *,
    first_step: int,
    num_steps: int = 0,
    is_start_known: bool = True,
) -> None:
    """Look at the energies before and after each of some steps, at the sums of the gradients there, and at x after them.

    One host sync if all is well: a finite sum has finite terms. Only if it is not finite are the terms looked at one by one.
    """
    energies = torch.stack(values)
    sums = torch.stack(grad_sums)
    total = energies[0 if is_start_known else 1 :].sum() + sums.sum()
    if x is not None:
        total = total + x.sum(dtype=energy_dtype(x))
    if math.isfinite(total.item()):
        return
    bad = ~energies.isfinite()
    if not is_start_known:
        bad[0] = False
    is_bad_sum = (~sums.isfinite()).tolist()
    index, last = len(values) - 1, energies[-1]
    if bool(bad.any()):
        index = int(bad.any(1).nonzero()[0])
        chains, last = bad[index], energies[max(index - 1, 0)]
    elif x is not None and not bool(finite_rows(x).all()):
        index, chains = num_steps, ~finite_rows(x)
    else:
        chains = torch.zeros_like(bad[0]) if grad is None or not is_bad_sum[-1] else ~finite_rows(grad)
        is_bad_sum = []
    if not bool(chains.any()):
        return
    # x is NaN a step after the gradient was, and then the energy: the sums tell that the gradient came first.
    if 0 < index <= len(is_bad_sum) and is_bad_sum[index - 1]:
        index, last = index - 1, energies[index - 1]
    if index == 0:
        last = torch.full_like(last, math.nan)
    raise divergence(chains, last, first_step + index - 1, caller, advice)
