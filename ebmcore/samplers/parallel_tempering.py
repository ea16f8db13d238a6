"""Parallel tempering (replica exchange): copies of a chain at a ladder of temperatures, moved by any sampler, that change places.

Swendsen & Wang 1986 (Phys. Rev. Lett. 57, 2607); Geyer 1991. Pairs of neighbours are tried in turn, the even ones and the odd ones, and the
ladder is adapted to equal rejection: Syed, Bouchard-Côté, Deligiannidis & Doucet 2022 (JRSS B 84, 321; arXiv 1905.02939), algorithms 1, 2
and 4. Left out: paths other than the powers of one density.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.discrete import NativeRun, energy_and_differences
from ebmcore.ops.dynamics import DynamicsRun, run_dynamics
from ebmcore.ops.registration import number
from ebmcore.ops.swaps import SwapTally
from ebmcore.types import STEP_BITS, DivergenceError, EnergyFn, Key, bounded_int

_MANY_STEPS = 1000  # in which neighbours that change places at all have done so
_CHAINS_OF_A_TEMPERATURE = 2**32  # of native runs: chain c at temperature r draws as chain c + r · 2^32
_COSTLY = 2**18  # numbers that an evaluation of a chain touches from which on to carry it pays: native steps begin with one more
_LEAST_REJECTION = 1e-3  # of a pair, so that the barrier grows from each temperature to the next


class ParallelTemperingState(NamedTuple):
    """Chains between two steps.

    Attributes:
        x: (num_chains, *event), at temperatures[0].
        energy: (num_chains,), E(x).
        key: of the next step's draws.
        replicas: the state of `sampler` with num_chains · num_temperatures rows: row i · num_temperatures + r is chain i at temperatures[r],
            its energy, gradient and differences divided by that temperature. With scale_steps its unit of x is √(T / temperatures[0]).
        has_been_hottest: (num_chains, num_temperatures) bool, the replica that is now at this temperature has been at the hottest one
            since it was last at the coldest.
    """

    x: Tensor
    energy: Tensor
    key: Key
    replicas: Any
    has_been_hottest: Tensor


class ParallelTemperingInfo(NamedTuple):
    """Of the steps of one call. r counts temperatures from the coldest; pair r is of the temperatures r and r + 1.

    Attributes:
        is_diverged: (num_chains,) bool, of any replica as `sampler` reports it.
        is_accepted: (num_chains, num_temperatures) bool, as `sampler` reports it of the last step; true if it does not reject.
        acceptance_prob: (num_chains, num_temperatures), mean of what `sampler` reports; 1 if it does not reject.
        swap_acceptance_prob: (num_chains, num_temperatures - 1) float64, mean over the steps of the probability that the pair would change
            places, whether it was its turn or not.
        num_swaps: (num_chains, num_temperatures - 1) int64.
        num_round_trips: (num_chains,) int64, replicas that came back to the coldest temperature from the hottest one.
    """

    is_diverged: Tensor
    is_accepted: Tensor
    acceptance_prob: Tensor
    swap_acceptance_prob: Tensor
    num_swaps: Tensor
    num_round_trips: Tensor


@dataclasses.dataclass(frozen=True)
class ParallelTempering:
    """Parallel tempering over `sampler`, targets exp(-E / temperatures[0]) as exactly as `sampler` does.

    A step is `steps_per_swap` steps of all replicas in one batch, one call of the energy for all of them each time, and then one attempt to
    swap neighbours i, i + 1 with probability min(1, exp((1/T_i - 1/T_{i+1}) (E_i - E_{i+1}))): the pairs with i even in even steps, with i
    odd in odd ones; the only pair of two temperatures in every step.

    A call starts all replicas at x and returns those at temperatures[0]; started at exact draws of the target it therefore does not stay
    there from the first step on. Native chains run natively between two swaps, those of real x only without
    scale_steps, and single steps on wide networks not, for native steps of real x begin with one evaluation more.

    Args:
        sampler: any sampler at temperature 1 that takes one energy: not `AnnealedLangevin`, not `ParallelTempering`.
        temperatures: two or more finite numbers > 0, ascending; temperatures[0] is the target's, 1 for exp(-E).
        steps_per_swap: steps of `sampler` between two attempts.
        scale_steps: `sampler` moves the replicas at temperature T in units of √(T / temperatures[0]), in which a Gaussian is as wide at every
            temperature: what suits the coldest then suits the hottest. Only for real x; not for laws of a fixed width, such as within walls.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    sampler: Any
    temperatures: Sequence[float]
    steps_per_swap: int = 1
    scale_steps: bool = False

    def __post_init__(self) -> None:
        if any(not callable(getattr(self.sampler, name, None)) for name in ("init", "advance")) or isinstance(self.sampler, type):
            raise TypeError(f"ParallelTempering: sampler must be a sampler with init and advance, got {self.sampler!r}")
        if hasattr(self.sampler, "temperatures") or hasattr(self.sampler, "noise_levels"):
            raise TypeError(f"ParallelTempering: sampler must sample one energy at one temperature, got {self.sampler!r}")
        own = getattr(self.sampler, "effective_temperature", getattr(self.sampler, "temperature", 1.0))
        if not math.isclose(own, 1.0, rel_tol=1e-6):
            raise ValueError(
                f"ParallelTempering: sampler must be at temperature 1, which the ladder divides, got temperature {own:g} of {self.sampler!r}"
            )
        object.__setattr__(self, "temperatures", _ladder(self.temperatures))
        bounded_int(self.steps_per_swap, "steps_per_swap", "ParallelTempering", low=1)
        if not isinstance(self.scale_steps, bool):
            raise TypeError(f"ParallelTempering: scale_steps must be a bool, got {self.scale_steps!r}")
        if self.scale_steps and getattr(self.sampler, "clamp", None) is not None:
            raise ValueError(f"ParallelTempering: scale_steps must be False where the sampler clamps x, got {self.sampler!r}")

    def init(self, energy: EnergyFn, x: Tensor, *, seed: int | Key | None = None) -> ParallelTemperingState:
        """All replicas at x, evaluated in one call. x is copied. Arguments and errors as `sampler.init`.

        Raises:
            DivergenceError: as `sampler.init`; `chains` are rows of x.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"ParallelTempering.init: x must be a torch.Tensor, got {type(x).__name__}")
        if x.dim() == 0:
            raise ValueError("ParallelTempering.init: x must have shape (num_chains, *event), got a 0-d tensor")
        return self.init_replicas(energy, x[:, None].expand(-1, len(self.temperatures), *x.shape[1:]), seed=seed)

    @torch.inference_mode(False)
    def init_replicas(self, energy: EnergyFn, x: Tensor, *, seed: int | Key | None = None) -> ParallelTemperingState:
        """As `init` from replicas x (num_chains, num_temperatures, *event), each where it is to start."""
        num_temperatures = len(self.temperatures)
        if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != num_temperatures:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"ParallelTempering.init_replicas: x must have shape (num_chains, {num_temperatures}, *event), got {got}")
        if self.scale_steps and (hasattr(energy, "alphabet") or not x.is_floating_point()):
            raise ValueError(f"ParallelTempering: scale_steps must be False for discrete states, got x of {x.dtype}")
        n = len(x)
        rows, units = x.detach().flatten(0, 1), None
        if self.scale_steps:
            units = _units(self.temperatures, x)
            rows = rows / _of_rows(units, n, rows)
        key = Key.from_seed(0 if seed is None and n == 0 else seed, x.device)
        factors = torch.tensor([1, self.steps_per_swap, num_temperatures], device=key.tensor.device)
        with _chains_of_rows(num_temperatures, 0):
            tempered = _tempered(energy, n, self.temperatures, units)
            replicas = self.sampler.init(tempered, rows, seed=Key.from_tensor(key.tensor * factors))
        has_been_hottest = torch.zeros(n, num_temperatures, dtype=torch.bool, device=x.device)
        has_been_hottest[:, -1] = True
        return self._state(replicas, has_been_hottest, key)

    def step(self, energy: EnergyFn, state: ParallelTemperingState) -> tuple[ParallelTemperingState, ParallelTemperingInfo]:
        """One step; `state` stays as it is."""
        return self.advance(energy, state, 1)

    @torch.inference_mode(False)
    def advance(self, energy: EnergyFn, state: ParallelTemperingState, num_steps: int) -> tuple[ParallelTemperingState, ParallelTemperingInfo]:
        """`num_steps` steps, to the same bits as that many calls of `step`. Warns if in 1000 steps or more a pair never changed places."""
        num_steps = bounded_int(num_steps, "num_steps", "ParallelTempering.advance", high=2**STEP_BITS)
        n, num_temperatures = state.has_been_hottest.shape
        device, replicas = state.x.device, state.replicas
        units = _units(self.temperatures, state.x) if self.scale_steps else None
        tempered = _tempered(energy, n, self.temperatures, units)
        is_diverged = torch.zeros(n, dtype=torch.bool, device=device)
        is_accepted = torch.ones_like(state.has_been_hottest)
        acceptance = torch.zeros(n, num_temperatures, dtype=torch.float64, device=device)
        swaps = _Swaps(self.temperatures, units, state.energy, state.has_been_hottest)
        for i in range(num_steps if n else 0):
            with _chains_of_rows(num_temperatures, i * self.steps_per_swap):
                moved, info = self.sampler.advance(tempered, replicas, self.steps_per_swap)
            is_diverged |= info.is_diverged.reshape(n, -1).any(1)
            is_accepted = getattr(info, "is_accepted", is_accepted).reshape(n, -1)
            acceptance += getattr(info, "acceptance_prob", torch.ones_like(acceptance)).reshape(n, -1)
            replicas = swaps.attempt(replicas, moved, state.key.advance(i))
        count = max(num_steps, 1)
        has_been_hottest, prob_sum, num_swaps, num_round_trips = swaps.tally
        self._warn_if_stuck(num_swaps, prob_sum / count, num_steps)
        info = ParallelTemperingInfo(
            is_diverged, is_accepted, (acceptance / count).to(state.energy.dtype), prob_sum / count, num_swaps, num_round_trips
        )
        if num_steps == 0:
            return state, info
        return self._state(replicas, has_been_hottest, state.key.advance(num_steps)), info

    def __call__(self, energy: EnergyFn, x: Tensor, num_steps: int, *, seed: int | Key | None = None) -> Tensor:
        """The chains at temperatures[0] after `num_steps` steps from x, the same as init and advance give. Arguments and errors as `init`."""
        num_steps = bounded_int(num_steps, "num_steps", "ParallelTempering", high=2**STEP_BITS)
        state = self.init(energy, x, seed=seed)
        return self.advance(energy, state, num_steps)[0].x.clone(memory_format=torch.contiguous_format)

    def x_of(self, state: ParallelTemperingState) -> Tensor:
        """The replicas of `state`, (num_chains, num_temperatures, *event): [:, r] are the chains at temperatures[r]."""
        x: Tensor = state.replicas.x
        if self.scale_steps:
            x = x * _of_rows(_units(self.temperatures, x), len(state.x), x)
        return x.reshape(*state.has_been_hottest.shape, *x.shape[1:])

    @torch.inference_mode(False)
    def adapt_ladder(
        self, energy: EnergyFn, x: Tensor, num_steps: int, *, seed: int | Key | None = None
    ) -> tuple[ParallelTempering, ParallelTemperingState]:
        """Run chains from x and move the temperatures between the first and the last until all pairs reject swaps as often.

        Equal rejection makes round trips most frequent. Rounds of 8, 16, 32, ... steps each measure the rejections r_i of the pairs, and put
        the next round's temperatures where the barrier Σ_{j<i} r_j, interpolated linearly in log T, is an equal share of its total.

        Args:
            energy, x, seed: as `init`.
            num_steps: of all rounds together, >= 8.

        Returns:
            the sampler with the new ladder, and a state of it to go on from.
        """
        num_steps = bounded_int(num_steps, "num_steps", "ParallelTempering.adapt_ladder", low=8, high=2**STEP_BITS)
        tuned, state = self, self.init(energy, x, seed=seed)
        done, length = 0, 8
        while done < num_steps:
            length = length if num_steps - done >= 3 * length else num_steps - done
            state, info = tuned.advance(energy, state, length)
            done, length = done + length, 2 * length
            if len(x):
                rejection = (1 - info.swap_acceptance_prob.mean(0)).clamp(min=_LEAST_REJECTION)
                before, tuned = tuned, dataclasses.replace(tuned, temperatures=_equalised(tuned.temperatures, rejection.tolist()))
                state = tuned.init_replicas(energy, before.x_of(state), seed=state.key)._replace(has_been_hottest=state.has_been_hottest)
        return tuned, state

    def _state(self, replicas: Any, has_been_hottest: Tensor, key: Key) -> ParallelTemperingState:
        n, num_temperatures = has_been_hottest.shape
        x = replicas.x.reshape(n, num_temperatures, *replicas.x.shape[1:])[:, 0]
        scaled = replicas.energy.reshape(n, num_temperatures)[:, 0]
        return ParallelTemperingState(x, scaled / _betas(self.temperatures, scaled)[0], key, replicas, has_been_hottest)

    def _warn_if_stuck(self, num_swaps: Tensor, prob: Tensor, num_steps: int) -> None:
        if num_steps < _MANY_STEPS or len(num_swaps) == 0 or bool((total := num_swaps.sum(0)).all()):
            return
        pair = int((total == 0).nonzero()[0])
        low, high = self.temperatures[pair], self.temperatures[pair + 1]
        warnings.warn(
            f"ParallelTempering: no chain changed places between temperatures {low:g} and {high:g} in {num_steps} steps, mean acceptance "
            f"probability {float(prob[:, pair].mean()):.3g}; put more temperatures in between",
            RuntimeWarning,
            stacklevel=3,
        )


class _Tempered:
    """E(x) / T of the replicas' rows. Where it is called on several rows for each of theirs, as Gibbs does, those stand together."""

    def __init__(self, energy: Any, num_chains: int, temperatures: Sequence[float], units: Tensor | None) -> None:
        self.energy, self.num_chains, self.temperatures, self.units = energy, num_chains, temperatures, units
        if hasattr(energy, "alphabet"):
            self.alphabet = energy.alphabet

    def __call__(self, x: Tensor) -> Tensor:
        if self.units is not None:
            x = x * _of_rows(self.units, self.num_chains, x)
        value: Tensor = self.energy(x)
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != x.shape[:1]:
            return value  # the sampler says what is wrong with it
        return value * _of_rows(_betas(self.temperatures, value), self.num_chains, value)

    def energy_and_differences(self, states: Tensor) -> tuple[Tensor, Tensor]:
        value, differences = energy_and_differences(self.energy, states)
        betas = _betas(self.temperatures, differences)
        return value * _of_rows(betas, self.num_chains, value), differences * _of_rows(betas, self.num_chains, differences)


class _TemperedParts(_Tempered):
    """The same of an energy whose native chains take a factor for each row."""

    factors: Tensor | None = None  # of the rows of a run

    def native_dynamics(self, kernel: str, x: Tensor, momentum: Tensor | None, key: Tensor, num_steps: int, **options: Any) -> DynamicsRun | None:
        num_evaluations = num_steps * options.get("num_leapfrog", 1)
        parts = None if self.units is not None else self.energy.native_parts(x, num_evaluations)
        if parts is None or (num_steps == 1 and kernel != "hmc" and x[0].numel() * sum(part.num_components + 1 for part in parts) > _COSTLY):
            return None
        if self.factors is None:
            self.factors = _of_rows(_betas(self.temperatures, x), self.num_chains, x).flatten()
        return run_dynamics(kernel, parts, x, momentum, key, num_steps, factors=self.factors, **options)


class _NativelyTempered(_Tempered):
    """The same of an energy that makes scaled copies of itself with native chains: those of a temperature together."""

    def __init__(self, energy: Any, num_chains: int, temperatures: Sequence[float], units: Tensor | None) -> None:
        super().__init__(energy, num_chains, temperatures, units)
        self.copies = [energy.scaled(1 / t) for t in temperatures]

    def native_chain(self, kernel: str, states: Tensor, key: Tensor, num_steps: int, **options: Any) -> NativeRun | None:
        num_temperatures = len(self.temperatures)
        replicas = states.reshape(self.num_chains, num_temperatures, *states.shape[1:]).transpose(0, 1).contiguous()
        runs = []
        for r, tempered in enumerate(self.copies):
            own_key = torch.stack((key[0], key[1], key[2] // num_temperatures + r * _CHAINS_OF_A_TEMPERATURE))
            run: NativeRun | None = tempered.native_chain(kernel, replicas[r], own_key, num_steps, **options)
            if run is None:
                return None
            runs.append(run)
        states.copy_(replicas.transpose(0, 1).reshape(states.shape))
        return NativeRun._make(None if fields[0] is None else torch.stack(fields, 1).flatten() for fields in zip(*runs, strict=True))


def _tempered(energy: Any, num_chains: int, temperatures: Sequence[float], units: Tensor | None) -> _Tempered:
    if hasattr(energy, "native_chain") and hasattr(energy, "scaled"):
        return _NativelyTempered(energy, num_chains, temperatures, units)
    return (_TemperedParts if hasattr(energy, "native_parts") else _Tempered)(energy, num_chains, temperatures, units)


def _betas(temperatures: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor([1 / t for t in temperatures], dtype=like.dtype, device=like.device)


def _units(temperatures: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor([math.sqrt(t / temperatures[0]) for t in temperatures], dtype=like.dtype, device=like.device)


def _of_rows(values: Tensor, num_chains: int, like: Tensor) -> Tensor:
    """`values` (num_temperatures,) for the rows of `like`, which are several for each replica where those stand together."""
    rows_of_each = len(like) // max(num_chains * len(values), 1)
    return values.repeat_interleave(rows_of_each).repeat(num_chains).reshape(-1, *[1] * (like.dim() - 1))


class _Swaps:
    """Attempts to swap, and what the fields of a sampler's state are in units of."""

    def __init__(self, temperatures: Sequence[float], units: Tensor | None, energy: Tensor, has_been_hottest: Tensor) -> None:
        betas = _betas(temperatures, energy)
        scales = ops.swap_scales(betas)
        self.betas, self.tally = betas.double(), SwapTally.zeros(has_been_hottest)
        self.scales = {"energy": scales, "grad": scales, "differences": scales}
        if units is not None:
            self.scales |= {"grad": ops.swap_scales(betas * units.to(betas.dtype)), "x": ops.swap_scales(1 / units.to(betas.dtype))}

    def attempt(self, before: Any, replicas: Any, key: Key) -> Any:
        """`replicas` after it; written in place but for what they share with the state `before`."""
        shared = {value.untyped_storage().data_ptr() for value in before if isinstance(value, Tensor)}
        rows = {name: value for name, value in replicas._asdict().items() if isinstance(value, Tensor) and value.shape[:1] == replicas.x.shape[:1]}
        for name, value in rows.items():
            if not value.is_contiguous() or value.untyped_storage().data_ptr() in shared:
                rows[name] = value.clone(memory_format=torch.contiguous_format)
        others = [name for name in rows if name != "energy"]
        scales = [self.scales.get(name) for name in ("energy", *others)]
        ops.swap_replicas_(rows["energy"], [rows[name] for name in others], self.tally, betas=self.betas, scales=scales, key=key)
        return replicas._replace(**rows)


@contextmanager
def _chains_of_rows(num_temperatures: int, first_step: int) -> Iterator[None]:
    """A DivergenceError of rows of replicas becomes one of chains."""
    try:
        yield
    except DivergenceError as error:
        energies = dict(zip((row // num_temperatures for row in error.chains), error.last_energies, strict=True))
        step = error.step if error.step < 0 else first_step + error.step
        message = f"ParallelTempering: in chains {list(energies)[:8]}, where row = {num_temperatures} · chain + temperature: {error}"
        raise DivergenceError(message, chains=list(energies), step=step, last_energies=list(energies.values())) from error


def _ladder(temperatures: Any) -> tuple[float, ...]:
    values = temperatures.tolist() if hasattr(temperatures, "tolist") else temperatures
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TypeError(f"ParallelTempering: temperatures must be a sequence of numbers, got {temperatures!r}")
    ladder = tuple(number(t, f"temperatures[{i}]", "ParallelTempering", low=0.0, strict=True) for i, t in enumerate(values))
    if len(ladder) < 2:
        raise ValueError(f"ParallelTempering: temperatures must be two or more, got {ladder}")
    for i in range(1, len(ladder)):
        if ladder[i] <= ladder[i - 1]:
            raise ValueError(f"ParallelTempering: temperatures must ascend, got {ladder[i]:g} after {ladder[i - 1]:g} at index {i}")
    return ladder


def _equalised(temperatures: Sequence[float], rejection: Sequence[float]) -> tuple[float, ...]:
    """The ladder whose pairs would reject equally if the barrier were linear in log T between the temperatures at hand."""
    barrier = [0.0]
    for r in rejection:
        barrier.append(barrier[-1] + r)
    logs, result, j = [math.log(t) for t in temperatures], [temperatures[0]], 0
    for i in range(1, len(temperatures) - 1):
        wanted = barrier[-1] * i / (len(temperatures) - 1)
        while barrier[j + 1] < wanted:
            j += 1
        share = (wanted - barrier[j]) / (barrier[j + 1] - barrier[j])
        result.append(math.exp(logs[j] + share * (logs[j + 1] - logs[j])))
    return (*result, temperatures[-1])
