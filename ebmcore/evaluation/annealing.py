"""Annealed importance sampling of any energy, in either direction: Neal, "Annealed importance sampling", Statistics and Computing 11, 2001.

x_0 ~ p_0; for k = 1, ..., K: ln w += (β_k - β_{k-1}) (E_0(x) - E_1(x)), then x moves by a kernel that leaves p_{β_k} invariant, along the geometric
path p_β ∝ p_0^(1-β) p_1^β. E w = Z_1 / Z_0. From x_0 ~ p_1 and with β falling from 1 to 0 it is Z_0 / Z_1, and both together bracket ln Z_1 (Grosse,
Ghahramani & Adams 2015, arXiv 1511.02543). Betas by constant conditional effective sample size: Zhou, Johansen & Aston 2016, section 3.2.

Left out: resampling, other paths.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.evaluation.geometric_path import GeometricPath, Parts
from ebmcore.evaluation.weights import AISResult, log_z_of_weights
from ebmcore.gradients import as_energy
from ebmcore.ops.registration import number
from ebmcore.types import DivergenceError, EnergyFn, Key, bounded_int

_MANY_MOVES = 1000  # in which a chain that moves at all has moved
_SMALLEST_STEP = 1e-7  # of adaptive betas
_BISECTIONS = 34


class AISState(NamedTuple):
    """Chains between two temperatures.

    Attributes:
        chains: the sampler's state: `chains.x` (num_chains, *event), `chains.key` of the next draws.
        parts: the base's and the target's energies there, and what the sampler needs of their gradients or differences.
        log_weights: (num_chains,) float64.
        betas: (num_temperatures done + 1,) float64, from 0 upwards, or from 1 downwards in reverse.
        acceptance_prob: float64, means over the chains, one for each β at which they moved.
    """

    chains: Any
    parts: Parts
    log_weights: Tensor
    betas: Tensor
    acceptance_prob: Tensor

    @property
    def is_reverse(self) -> bool:
        return bool(self.betas[0] == 1)

    @property
    def is_done(self) -> bool:
        return bool(self.betas[-1] == (0 if self.is_reverse else 1))


@dataclasses.dataclass(frozen=True, eq=False)
class AnnealedImportanceSampling:
    """Annealed importance sampling in pieces: `init`, `advance` as often as is liked, `result`. `ais` and `reverse_ais` do it in one call.

    A state goes on to the same bits wherever the run was cut, also in another process. Each temperature costs num_steps steps of the sampler,
    which for MALA or GibbsWithGradients is one forward and one backward of the energy and of the base; where only β changes, nothing is evaluated.

    Args:
        base: p_0. Either `log_prob(x)` and `sample((num_chains,))`, as torch.distributions and flows have them, whose Z is 1; or an energy with
            `log_z` (a number) and `sample(num_chains, key=key)`. A flow's draws come from torch's generator, seeded for the call and put back.
        sampler: one that leaves its target invariant, or a function of β that returns one: steps that suit the base are too long for the target.
        betas: 0 = β_0 < β_1 < ... < β_K = 1, or K for equal steps; by default 1000.
        conditional_ess: in (0, 1), instead of betas: each step is as long as keeps the conditional effective sample size, over the number of
            chains, at this. The betas then depend on the chains, which biases log_z by a little that vanishes with their number: for weights
            that are unbiased again, give the betas of one result to a second run.
        num_steps: of the sampler at each β.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    base: Any
    sampler: Any
    betas: int | Sequence[float] | Tensor | None = None
    conditional_ess: float | None = None
    num_steps: int = 1

    def __post_init__(self) -> None:
        if self.conditional_ess is None:
            object.__setattr__(self, "betas", schedule(1000 if self.betas is None else self.betas))
        elif self.betas is not None:
            raise ValueError("ais: give betas or conditional_ess, not both")
        elif not 0 < number(self.conditional_ess, "conditional_ess", "ais") < 1:
            raise ValueError(f"ais: conditional_ess must be in (0, 1), got {self.conditional_ess!r}")
        bounded_int(self.num_steps, "num_steps", "ais", low=1)
        has_density = hasattr(self.base, "log_prob") or (callable(self.base) and hasattr(self.base, "log_z"))
        if not has_density or not callable(getattr(self.base, "sample", None)):
            raise TypeError(f"ais: base must have log_prob and sample, or be an energy with log_z and sample, got {type(self.base).__name__}")
        if not callable(self.sampler) or getattr(self.sampler, "metropolis", True) is False:
            raise TypeError(f"ais: sampler must leave its target invariant, or be a function of beta, got {self.sampler!r}")

    @property
    def num_temperatures(self) -> int | None:
        """K; None of adaptive betas."""
        return len(self.betas) - 1 if isinstance(self.betas, tuple) else None

    @torch.inference_mode(False)
    @torch.no_grad()
    def init(self, energy: EnergyFn, num_chains: int, *, seed: int | Key | None = None) -> AISState:
        """Chains drawn from the base, evaluated once.

        Args:
            energy: (num_chains, *event) -> (num_chains,), or anything with `log_prob`. +inf is allowed: such chains have weight 0.
            num_chains: at least 1.
            seed: an int, a `Key` to go on with its draws, or None to draw one from torch's generator.

        Raises:
            TypeError, ValueError: the arguments, or what the base returns, is not as above.
            DivergenceError: the base's energy is not finite at its own draws.
        """
        num_chains = bounded_int(num_chains, "num_chains", "ais", low=1)
        key = Key.from_seed(seed)
        return self._start(energy, self._draw(num_chains, key), key.advance(), 0.0)

    @torch.inference_mode(False)
    @torch.no_grad()
    def init_reverse(self, energy: EnergyFn, x: Tensor, *, seed: int | Key | None = None) -> AISState:
        """Chains at exact draws x (num_chains, *event) from exp(-energy), to go from β = 1 to 0. Otherwise as `init`."""
        if not isinstance(x, Tensor) or x.dim() < 2 or len(x) == 0:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"reverse_ais: x must be a torch.Tensor of shape (num_chains >= 1, *event), got {got}")
        return self._start(energy, x, Key.from_seed(seed, x.device), 1.0)

    @torch.inference_mode(False)
    @torch.no_grad()
    def advance(self, energy: EnergyFn, state: AISState, num_temperatures: int) -> AISState:
        """The next `num_temperatures` temperatures, or as many as there are left; `state` stays as it is.

        Raises:
            TypeError: the sampler does not leave its target invariant.
            DivergenceError: a weight became NaN or infinite; `chains` are these.
            RuntimeError: adaptive betas would need more than 1e7 temperatures.
        """
        num_temperatures = bounded_int(num_temperatures, "num_temperatures", "ais", low=0)
        path = GeometricPath(self._base_energy(), as_energy(energy, "ais"))
        chains, parts, log_weights, done, moved = state
        beta, end = float(done[-1]), 0.0 if state.is_reverse else 1.0
        betas: list[float] = []
        probs: list[Tensor] = []
        while beta != end and len(betas) < num_temperatures:
            gain = parts.base_energy.double() - parts.energy.double()
            last, beta = beta, self._next(beta, end, len(done) + len(betas), gain, log_weights)
            log_weights = _weighted(log_weights, (beta - last) * gain, parts, beta)
            betas.append(beta)
            if beta != end:  # a move at the end would change no weight
                path.beta = beta
                chains, parts, prob = self._move(path, chains, parts)
                probs.append(prob)
        done = torch.cat((done, torch.tensor(betas, dtype=torch.float64)))
        return AISState(chains, parts, log_weights, done, torch.cat((moved, torch.stack(probs).cpu())) if probs else moved)

    def result(self, state: AISState) -> AISResult:
        """What a run that went through all temperatures says of ln Z.

        Raises:
            ValueError: it did not, or all weights are 0.

        Warns:
            RuntimeWarning: the effective sample size is below 10, or in 1000 moves or more no proposal was accepted.
        """
        return self._result(state, stacklevel=4)

    def _result(self, state: AISState, stacklevel: int) -> AISResult:
        if not state.is_done:
            raise ValueError(f"ais: state must have gone through all betas, got one at beta = {float(state.betas[-1]):.6g}; advance it")
        if len(state.acceptance_prob) * self.num_steps >= _MANY_MOVES and not bool(state.acceptance_prob.any()):
            message = f"ais: no proposal of {self.sampler!r} was accepted at {len(state.acceptance_prob)} betas; propose smaller changes"
            warnings.warn(message, RuntimeWarning, stacklevel=stacklevel - 1)
        log_z_base = 0.0 if hasattr(self.base, "log_prob") else number(self.base.log_z, "base.log_z", "ais")
        is_reverse = state.is_reverse
        return log_z_of_weights(
            state.log_weights - log_z_base if is_reverse else state.log_weights + log_z_base,
            key=state.chains.key,
            betas=state.betas,
            acceptance_prob=state.acceptance_prob,
            x=state.chains.x,
            is_reverse=is_reverse,
            stacklevel=stacklevel,
        )

    def _base_energy(self) -> EnergyFn:
        return as_energy(self.base)

    def _draw(self, num_chains: int, key: Key) -> Tensor:
        if "key" in inspect.signature(self.base.sample).parameters:
            x = self.base.sample(num_chains, key=key)
        else:
            seed = int(ops.philox((1, 1), key=key, stream=ops.Stream.INIT).long())
            devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
            with torch.random.fork_rng(devices):
                torch.default_generator.manual_seed(seed)
                if devices:
                    torch.cuda.manual_seed_all(seed)
                x = self.base.sample((num_chains,))
        if not isinstance(x, Tensor) or x.dim() < 2 or len(x) != num_chains:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"ais: base.sample must return a torch.Tensor of shape ({num_chains}, *event), got {got}")
        return x

    def _start(self, energy: EnergyFn, x: Tensor, key: Key, beta: float) -> AISState:
        path = GeometricPath(self._base_energy(), as_energy(energy, "ais"), beta)
        chains = self._sampler_at(beta).init(path, x, seed=key.to(x.device))
        assert path.last is not None
        log_weights = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        nothing = torch.zeros(0, dtype=torch.float64)
        return AISState(chains, path.last[1], log_weights, torch.tensor([beta], dtype=torch.float64), nothing)

    def _sampler_at(self, beta: float) -> Any:
        return self.sampler if hasattr(self.sampler, "advance") else self.sampler(beta)

    def _move(self, path: GeometricPath, chains: Any, parts: Parts) -> tuple[Any, Parts, Tensor]:
        """Steps at path.beta, the parts at their end, and the mean acceptance probability."""
        sampler = self._sampler_at(path.beta)
        value, slope = path.mixed(parts)
        carried = {"energy": value.to(chains.energy.dtype)}
        if slope is not None:
            carried["differences" if hasattr(chains, "differences") else "grad"] = slope
        chains = chains._replace(**carried)
        prob = torch.zeros((), dtype=torch.float64, device=chains.x.device)
        for _ in range(self.num_steps):
            before = chains.x
            chains, info = sampler.step(path, chains)
            if not hasattr(info, "acceptance_prob"):
                raise TypeError(f"ais: sampler must leave its target invariant, as samplers that accept or reject do, got {sampler!r}")
            parts = _parts_after(path, chains, before, parts)
            prob = prob + info.acceptance_prob.mean(dtype=torch.float64)
        return chains, parts, prob / self.num_steps

    def _next(self, beta: float, end: float, index: int, gain: Tensor, log_weights: Tensor) -> float:
        """The β that follows."""
        if self.conditional_ess is None:
            assert isinstance(self.betas, tuple)
            return float(self.betas[index if end == 1 else -1 - index])
        is_alive = log_weights.isfinite() & gain.isfinite()
        log_w, rise = log_weights[is_alive].log_softmax(0), gain[is_alive]

        def is_short(step: float) -> bool:
            log_ess = 2 * (log_w + step * rise).logsumexp(0) - (log_w + 2 * step * rise).logsumexp(0)
            return float(log_ess) >= math.log(self.conditional_ess or 1.0)

        if not len(rise) or is_short(end - beta):
            return end
        low, high = 0.0, 1.0  # of the way to the end
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if is_short(middle * (end - beta)) else (low, middle)
        if low * abs(end - beta) < _SMALLEST_STEP:
            raise RuntimeError(
                f"ais: adaptive betas need steps below {_SMALLEST_STEP:g} at beta = {beta:.6g}: E_0 - E_1 of the chains has the standard deviation "
                f"{float(rise.std()):.3g}; take a base nearer to the energy, or a lower conditional_ess"
            )
        return beta + low * (end - beta)


def schedule(betas: Any) -> tuple[float, ...]:
    """The betas of an int or of numbers from 0 to 1, checked."""
    if isinstance(betas, int):
        num_steps = bounded_int(betas, "betas", "ais", low=1)
        return tuple(k / num_steps for k in range(num_steps + 1))
    if not isinstance(betas, Sequence | Tensor) or isinstance(betas, str):
        raise TypeError(f"ais: betas must be an int or numbers from 0 to 1, got {type(betas).__name__}")
    values = tuple(float(beta) for beta in betas)
    if len(values) < 2 or values[0] != 0 or values[-1] != 1:
        shown = f"{values[0]} ... {values[-1]}" if values else "none"
        raise ValueError(f"ais: betas must start at 0 and end at 1, got {shown}")
    for k in range(1, len(values)):
        if not values[k] > values[k - 1]:
            raise ValueError(f"ais: betas must rise, got {values[k]} after {values[k - 1]} at index {k}")
    return values


def _weighted(log_weights: Tensor, change: Tensor, parts: Parts, beta: float) -> Tensor:
    """log_weights + change, of which -inf is no error."""
    total = log_weights + change
    if math.isfinite(float(total.sum())):
        return total
    is_bad = total.isnan() | (total == math.inf)
    if bool(is_bad.any()):
        chains = is_bad.nonzero().flatten().tolist()
        k = chains[0]
        raise DivergenceError(
            f"ais: the weight is infinite or NaN in {len(chains)} of {len(total)} chains {chains[:8]} (first 8 shown) at beta = {beta:.6g}: the "
            f"energies of chain {k} are {float(parts.base_energy[k])} of the base and {float(parts.energy[k])} of the target",
            chains=chains,
            step=-1,
            last_energies=parts.energy[is_bad].tolist(),
        )
    return total


def _parts_after(path: GeometricPath, chains: Any, before: Tensor, parts: Parts) -> Parts:
    """The parts at chains.x: those of the path's last call where the chain is there, the old ones where it stayed, or evaluated anew."""
    assert path.last is not None
    proposed, new = path.last
    has_moved = (chains.x.to(proposed.dtype) == proposed).flatten(1).all(1)
    has_stayed = (chains.x == before).flatten(1).all(1)
    if not bool((has_moved | has_stayed).all()):
        return path.parts_of(chains)

    def pick(new: Tensor | None, old: Tensor | None) -> Tensor | None:
        if new is None or old is None:
            return None
        return torch.where(has_stayed.reshape(-1, *[1] * (old.dim() - 1)), old, new)

    return Parts(*map(pick, new, parts))  # type: ignore[arg-type]
