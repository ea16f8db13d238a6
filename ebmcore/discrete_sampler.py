"""What the samplers of discrete states share: the way from the user's x to chains and back, native chains where an energy has them, the
loop over steps, and what is reported of them. A sampler adds the one step.
"""

from __future__ import annotations

import abc
import warnings
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.discrete import (
    DiscreteInfo,
    DiscreteState,
    NativeRun,
    alphabet_of,
    check_start,
    check_states,
    decode,
    encode,
    energy_and_differences,
    start_energy,
)
from ebmcore.gradients import evaluate
from ebmcore.types import STEP_BITS, Alphabet, EnergyFn, Key, bounded_int

_KEYS_AT_ONCE = 1024
_MANY_STEPS = 1000  # in which a chain that moves at all has moved


class Chains(NamedTuple):
    """States in the making: they belong to the call, and a step may write to them.

    Attributes:
        states: (num_chains, *event), encoded.
        energy: (num_chains,).
        differences: as `DiscreteState`, where the sampler uses them.
    """

    states: Tensor
    energy: Tensor
    differences: Tensor | None


class Report(NamedTuple):
    """Of one step; each (num_chains,)."""

    is_accepted: Tensor
    acceptance_prob: Tensor
    num_flips: Tensor
    is_diverged: Tensor


class DiscreteSampler(abc.ABC):
    """A kernel on discrete states: hyperparameters in a frozen dataclass, and `_move`.

    Class attributes:
        _kernel: what energies with `native_chain` call it; None: it has no native chains.
        _uses_differences: whether a step needs the differences of the energy, not E alone.
        _rejects: whether proposals can be rejected.
    """

    _kernel: ClassVar[str | None] = None
    _uses_differences: ClassVar[bool] = False
    _rejects: ClassVar[bool] = True

    @abc.abstractmethod
    def _move(self, energy: EnergyFn, chains: Chains, alphabet: Alphabet, key: Tensor) -> tuple[Chains, Report]:
        """One step by evaluating the energy."""

    def _native_options(self) -> dict[str, Any]:
        return {}

    def _check_general(self, energy: EnergyFn, x: Tensor) -> None:
        """Raise unless the chains can run by evaluating the energy."""
        return

    def init(self, energy: EnergyFn, x: Tensor, *, seed: int | Key | None = None) -> DiscreteState:
        """Chains at x, evaluated once. x is copied.

        Args:
            energy: (num_chains, *event) -> (num_chains,), of {0, 1} unless its attribute `alphabet` says otherwise.
            x: (num_chains, *event) in the energy's alphabet: 0 and 1 in any dtype, -1 and +1 in a signed one, tokens in an integer one.
            seed: 0 <= seed < 2**64; a Key to go on with its draws; None draws a seed from torch's default generator.

        Raises:
            TypeError, ValueError: x is not of the energy's alphabet, or the energy is nothing that this sampler can do.
            DivergenceError: the energy or a difference at x is not finite.
        """
        return self._start(energy, x, seed, f"{type(self).__name__}.init")

    def step(self, energy: EnergyFn, state: DiscreteState) -> tuple[DiscreteState, DiscreteInfo]:
        """One step; `state` stays as it is."""
        return self.advance(energy, state, 1)

    @torch.inference_mode(False)
    def advance(self, energy: EnergyFn, state: DiscreteState, num_steps: int) -> tuple[DiscreteState, DiscreteInfo]:
        """`num_steps` steps, to the same bits as that many calls of `step`. Warns if in 1000 steps or more no proposal was accepted."""
        num_steps = bounded_int(num_steps, "num_steps", f"{type(self).__name__}.advance", high=2**STEP_BITS)
        if num_steps == 0 or len(state.x) == 0:
            nothing = torch.zeros_like(state.energy)
            return state, DiscreteInfo(nothing.bool(), nothing.bool(), nothing, nothing.long(), nothing)
        alphabet = alphabet_of(energy)
        states = encode(state.x, alphabet)
        run = None
        if state.differences is None:  # otherwise it is known that the energy has no native chains for this sampler
            run = self._run_natively(energy, states, state.key, num_steps)
        if run is None:
            chains, info = self._run(energy, Chains(states, *self._own(energy, state, states)), alphabet, state.key, num_steps)
        else:
            chains = Chains(states, evaluate(energy, states).to(state.energy.dtype), None)
            always = torch.ones_like(run.num_flips, dtype=torch.bool) if run.is_accepted is None else run.is_accepted
            prob = torch.ones_like(chains.energy) if run.acceptance_prob is None else run.acceptance_prob.to(chains.energy.dtype)
            info = DiscreteInfo(torch.zeros_like(always), always, prob, run.num_flips, chains.energy - state.energy)
        self._warn_if_stuck(info.num_flips, info.acceptance_prob, num_steps)
        return DiscreteState(decode(chains.states, state.x), chains.energy, state.key.advance(num_steps), chains.differences), info

    @torch.inference_mode(False)
    def __call__(self, energy: EnergyFn, x: Tensor, num_steps: int, *, seed: int | Key | None = None) -> Tensor:
        """Final states of `num_steps` steps from x, the same as init and advance give. Arguments and errors as `init`.

        Native chains evaluate nothing beside their steps: not even E at the start.
        """
        caller = type(self).__name__
        num_steps = bounded_int(num_steps, "num_steps", caller, high=2**STEP_BITS)
        alphabet = alphabet_of(energy)
        check_states(x, alphabet, caller)
        if num_steps == 0 or len(x) == 0:
            return x.detach().clone(memory_format=torch.contiguous_format)
        states = encode(x, alphabet)
        key = Key.from_seed(seed, x.device)
        run = self._run_natively(energy, states, key, num_steps)
        if run is None:
            return self.advance(energy, self._start(energy, x, key, caller, is_native=False), num_steps)[0].x
        if run.acceptance_prob is not None:
            self._warn_if_stuck(run.num_flips, run.acceptance_prob, num_steps)
        return decode(states, x)

    @torch.inference_mode(False)
    def _start(self, energy: EnergyFn, x: Tensor, seed: int | Key | None, caller: str, is_native: bool | None = None) -> DiscreteState:
        alphabet = alphabet_of(energy)
        check_states(x, alphabet, caller)
        states = encode(x, alphabet)
        if len(x) == 0:
            key = Key.from_seed(0 if seed is None else seed, x.device)
            return DiscreteState(decode(states, x), torch.zeros(0, device=x.device), key)
        key = Key.from_seed(seed, x.device)
        if is_native is None:  # if the energy then turns this sampler down, the first step makes up for it
            is_native = self._kernel is not None and hasattr(energy, "native_chain")
        if not is_native:
            self._check_general(energy, states)
        if is_native or not self._uses_differences:
            return DiscreteState(decode(states, x), start_energy(energy, states, caller), key)
        value, differences = energy_and_differences(energy, states)
        value = value.to(differences.dtype)
        # A NaN or +inf among the differences makes the energy of its chain one that no step can start from.
        check_start(torch.where((differences < torch.inf).flatten(1).all(1), value, torch.nan), caller)
        return DiscreteState(decode(states, x), value, key, differences)

    def _run_natively(self, energy: EnergyFn, states: Tensor, key: Key, num_steps: int) -> NativeRun | None:
        """Steps of `states` in place, if the energy can take them itself; None, and nothing done, if it cannot."""
        native_chain = getattr(energy, "native_chain", None)
        if self._kernel is None or native_chain is None:
            return None
        with torch.no_grad():
            run: NativeRun | None = native_chain(self._kernel, states, key.tensor, num_steps, **self._native_options())
        return run

    def _own(self, energy: EnergyFn, state: DiscreteState, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Energies and differences of `state` that the call may write to."""
        if not self._uses_differences:
            return state.energy.clone(), None
        if state.differences is None:  # the energy has native chains, but not for this sampler
            value, differences = energy_and_differences(energy, states)
            return value.to(differences.dtype), differences
        return state.energy.clone(), state.differences.clone(memory_format=torch.contiguous_format)

    def _run(self, energy: EnergyFn, chains: Chains, alphabet: Alphabet, key: Key, num_steps: int) -> tuple[Chains, DiscreteInfo]:
        start = chains.energy.clone()
        is_diverged = torch.zeros_like(start, dtype=torch.bool)
        is_accepted = is_diverged
        prob = torch.zeros_like(start, dtype=torch.float64)
        num_flips = torch.zeros_like(start, dtype=torch.int64)
        for begin in range(0, num_steps, _KEYS_AT_ONCE):
            for step_key in (key.advance(begin) if begin else key).steps(min(_KEYS_AT_ONCE, num_steps - begin)).unbind():
                chains, report = self._move(energy, chains, alphabet, step_key)
                is_diverged = is_diverged | report.is_diverged
                is_accepted = report.is_accepted
                prob += report.acceptance_prob
                num_flips += report.num_flips
        return chains, DiscreteInfo(is_diverged, is_accepted, (prob / num_steps).to(start.dtype), num_flips, chains.energy - start)

    def _warn_if_stuck(self, num_flips: Tensor, acceptance_prob: Tensor, num_steps: int) -> None:
        if self._rejects and num_steps >= _MANY_STEPS and not bool(num_flips.any()):
            rate = float(acceptance_prob.mean())
            warnings.warn(
                f"{self!r}: no chain moved in {num_steps} steps, mean acceptance probability {rate:.3g}; propose smaller changes",
                RuntimeWarning,
                stacklevel=3,
            )


def flip_sites(
    energy: EnergyFn, chains: Chains, alphabet: Alphabet, key: Tensor, *, num_flips: int, balancing: str, with_replacement: bool
) -> tuple[Chains, Report]:
    """Propose `num_flips` changes ∝ g(exp differences) and accept them or not: one evaluation."""
    states, value, differences = chains
    assert differences is not None
    settings: dict[str, Any] = {"key": key, "balancing": balancing, "with_replacement": with_replacement}
    index, log_q = ops.propose_flips(differences, num_flips=num_flips, **settings)
    sites = states.flatten(1)
    if differences.dim() == 2:
        site = back = index
        old = sites.gather(1, site)
        new = flipped(old, alphabet)
    else:
        site = index // alphabet.num_categories
        old = sites.gather(1, site)
        new = (index - site * alphabet.num_categories).to(states.dtype)
        back = site * alphabet.num_categories + old.long()
    sites.scatter_(1, site, new)
    new_value, new_differences = energy_and_differences(energy, states)
    verdict = ops.accept_flips_(value, differences, new_value.to(value.dtype), new_differences, back, log_q, **settings)
    sites.scatter_(1, site, torch.where(verdict.is_accepted[:, None], new, old))
    count = verdict.is_accepted.long()
    if num_flips > 1:
        count = count * (1 + (site.sort(1).values.diff() != 0).sum(1))
    return chains, Report(verdict.is_accepted, verdict.acceptance_prob, count, verdict.is_diverged)


def flipped(values: Tensor, alphabet: Alphabet) -> Tensor:
    """The other values of sites that have two."""
    return -values if alphabet.kind == "spin" else 1 - values


def value_of(index: Tensor, alphabet: Alphabet, dtype: torch.dtype) -> Tensor:
    """The values of sites from their numbers 0, ..., num_categories - 1."""
    return (2 * index - 1 if alphabet.kind == "spin" else index).to(dtype)


def index_of(values: Tensor, alphabet: Alphabet) -> Tensor:
    """The numbers of values, 0, ..., num_categories - 1."""
    return (values > 0).long() if alphabet.kind == "spin" else values.long()
