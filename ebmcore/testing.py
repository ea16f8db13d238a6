"""Checks to hold a sampler to: its transition matrix, its invariance, its evaluations. The tests of this package use them too.

Statistical checks take independent draws only and fail a right sampler at a stated rate.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ebmcore.gradients import evaluate
from ebmcore.types import EnergyFn, Key, Sampler, bounded_int

MIN_EXPECTED = 50.0  # of a chi-square cell: with fewer, the tail beyond 1e-7 is several times too heavy
_MIN_MOVED = 1000  # chains that a normal tail of a mean needs


def transition_matrix(
    sampler: Sampler[Any, Any], energy: EnergyFn, states: Tensor, *, num_steps: int = 1, num_chains: int = 4096, seed: int | Key | None = None
) -> Tensor:
    """Counts of transitions between discrete states: where chains from each state are after `num_steps` steps.

    Args:
        sampler: any of discrete states.
        energy: (num_chains, *event) -> (num_chains,).
        states: (num_states, *event), all different, as `sampler` takes them, and all that it can reach from them.
        num_steps: of each chain.
        num_chains: from each state. They are independent, so that a row of counts is multinomial.
        seed: as `sampler.init`.

    Returns:
        (num_states, num_states) int64, rows from, columns to; divided by num_chains, an estimate of P^num_steps. `counts_p_value` compares
        a row with one that is known.

    Raises:
        ValueError: states that are not as above, or a chain ended in none of them.
    """
    num_chains = bounded_int(num_chains, "num_chains", "transition_matrix", low=1)
    if not isinstance(states, Tensor) or states.dim() < 2 or len(torch.unique(states, dim=0)) != len(states):
        got = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise ValueError(f"transition_matrix: states must be (num_states, *event), all different, got {got}")
    ends = sampler(energy, states.repeat_interleave(num_chains, 0), num_steps, seed=seed)
    n = len(states)
    _, labels = torch.unique(torch.cat((states, ends)).flatten(1), dim=0, return_inverse=True)
    place = torch.full((int(labels.max()) + 1,), -1, device=labels.device).scatter_(0, labels[:n], torch.arange(n, device=labels.device))
    to = place[labels[n:]]
    if bool((to < 0).any()):
        raise ValueError(f"transition_matrix: states must be all that can be reached, got to {ends[to < 0][0].tolist()}")
    start = torch.arange(n, device=to.device).repeat_interleave(num_chains)
    return torch.bincount(start * n + to, minlength=n * n).reshape(n, n)


def counts_p_value(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's chi-square: how likely independent outcomes with these probabilities are to be counted as far off as `counts`, or further.

    Cells that expect fewer than 50 are merged, so that the p-value holds far out in the tail. An impossible outcome has p-value 0.

    Args:
        counts, probabilities: of the same shape; probabilities >= 0, of any sum.

    Raises:
        ValueError: too few counts for two cells that expect 50.
    """
    counts, probabilities = counts.double().flatten(), probabilities.double().flatten()
    if bool(counts[probabilities <= 0].any()):
        return 0.0
    expected = probabilities / probabilities.sum() * counts.sum()
    order = expected.argsort()
    group = (expected[order].cumsum(0) / MIN_EXPECTED).ceil().long().clamp(min=1) - 1
    small = expected[order] < MIN_EXPECTED
    group = torch.where(small, group, group[small].max() + 1 + torch.arange(len(group)) if bool(small.any()) else torch.arange(len(group)))
    _, group = torch.unique(group, return_inverse=True)
    size = int(group.max()) + 1
    observed = torch.zeros(size, dtype=torch.float64).index_add(0, group, counts[order])
    expected = torch.zeros(size, dtype=torch.float64).index_add(0, group, expected[order])
    if size > 1 and expected[0] < MIN_EXPECTED:  # what the smallest cells came to together
        observed[1] += observed[0]
        expected[1] += expected[0]
        observed, expected = observed[1:], expected[1:]
    if len(expected) < 2:
        raise ValueError(f"counts_p_value: counts must fill two cells of {MIN_EXPECTED:g}, got {int(counts.sum())}")
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), statistic / 2))


def check_invariance(
    sampler: Sampler[Any, Any],
    energy: EnergyFn,
    exact_draws: Tensor,
    *,
    num_steps: int = 1,
    seed: int | Key | None = None,
    false_alarm: float = 5e-8,
) -> float:
    """Whether the sampler leaves its target as it is: exact draws of it have to be exact draws still after some steps.

    Each chain is compared with its own start: bounded functions of each coordinate, of neighbouring pairs of coordinates and of the energy
    must not change on average over the chains. A bias b of the mean change shows if it is above 8.5 / √num_chains of the change's standard
    deviation (false_alarm = 5e-8, missed once in a thousand times).

    Args:
        sampler: one whose next step depends on x alone: of `ParallelTempering` the other temperatures do not start at their own laws.
        energy: (num_chains, *event) -> (num_chains,).
        exact_draws: (num_chains, *event), independent draws of the target, 10,000 or more.
        num_steps: >= 1.
        seed: as `sampler.init`.
        false_alarm: how often a right sampler fails, with draws and seed anew.

    Returns:
        the p-value: of the smallest of all comparisons, times their number.

    Raises:
        AssertionError: the p-value is below false_alarm; says what changed.
        ValueError: fewer than 10,000 draws, or fewer than 1,000 chains moved.
    """
    num_steps = bounded_int(num_steps, "num_steps", "check_invariance", low=1)
    if not isinstance(exact_draws, Tensor) or exact_draws.dim() < 2 or len(exact_draws) < 10_000:
        got = tuple(exact_draws.shape) if isinstance(exact_draws, Tensor) else type(exact_draws).__name__
        raise ValueError(f"check_invariance: exact_draws must be (num_chains, *event) of 10,000 chains or more, got {got}")
    ends = sampler(energy, exact_draws, num_steps, seed=seed)
    num_moved = int((ends != exact_draws).flatten(1).any(1).sum())
    if num_moved < _MIN_MOVED:
        raise ValueError(f"check_invariance: {_MIN_MOVED} chains must move for a p-value, got {num_moved} of {len(ends)}: more draws or steps")
    before, after = (_with_energy(energy, x) for x in (exact_draws, ends))
    centre, scale = before.mean(0), before.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    changes = _functions((after - centre) / scale) - _functions((before - centre) / scale)
    error = changes.std(0) / math.sqrt(len(changes))
    z = torch.where(changes.any(0), changes.mean(0) / error, 0.0)
    worst = int(z.abs().argmax())
    p_value = min(1.0, math.erfc(float(z[worst].abs()) / math.sqrt(2)) * len(z))
    num_sites = before.shape[1] - 1
    names = [f"x[{i}]" for i in range(num_sites)] + ["energy"]
    names = [f"{form} {name}" for form in ("the mean of", "the spread of") for name in names] + [f"x[{i}] · x[{i + 1}]" for i in range(num_sites - 1)]
    if p_value < false_alarm:
        raise AssertionError(
            f"check_invariance: {sampler!r} changes {names[worst]} of its target (z = {float(z[worst]):.3g}, p = {p_value:.3g} after "
            f"{num_steps} steps of {len(ends)} chains); a right sampler does this once in {1 / false_alarm:.0e} times"
        )
    return p_value


def _with_energy(energy: EnergyFn, x: Tensor) -> Tensor:
    """The coordinates and the energy, (num_chains, num_sites + 1)."""
    return torch.cat((x.flatten(1).double(), evaluate(energy, x).double()[:, None]), 1)


def _functions(y: Tensor) -> Tensor:
    """Bounded, so that means of their changes are normal however heavy the tails of y are."""
    odd = torch.tanh(y)
    return torch.cat((odd, torch.exp(-0.5 * y * y), odd[:, :-2] * odd[:, 1:-1]), 1)


class count_evaluations:
    """`energy`, counting how often it is evaluated. The values and their gradients have the bits that they had.

        counted = count_evaluations(energy)
        sampler.advance(counted, state, 10)
        counted.num_evaluations, counted.num_gradients

    It has the attributes of `energy` except native chains, whose evaluations cannot be counted: samplers take their other path.

    Attributes:
        num_evaluations: calls with states or one-hot rows, and calls of energy_and_differences.
        num_gradients: backward passes to the states.
        num_rows: chains in those calls, summed.
    """

    def __init__(self, energy: Any) -> None:
        self.energy = energy
        self.num_evaluations = self.num_gradients = self.num_rows = 0
        if hasattr(energy, "of_one_hot"):
            self.of_one_hot = self._counting(energy.of_one_hot)

    def __call__(self, x: Tensor, *given: Any) -> Tensor:
        value: Tensor = self._counting(self.energy)(x, *given)
        return value

    def __getattr__(self, name: str) -> Any:
        if name in ("energy", "native_chain", "native_dynamics", "native_parts", "scaled"):
            raise AttributeError(name)
        value = getattr(self.energy, name)
        return self._counting(value) if name == "energy_and_differences" else value

    def _counting(self, function: Any) -> Any:
        def counted(x: Tensor, *given: Any) -> Any:
            self.num_evaluations += 1
            self.num_rows += len(x)
            if x.requires_grad:
                x = _Identity.apply(x, self)
            return function(x, *given)

        return counted


class _Identity(torch.autograd.Function):
    """Counts its backward passes."""

    @staticmethod
    def forward(context: Any, x: Tensor, counter: count_evaluations) -> Tensor:
        context.counter = counter
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None]:
        context.counter.num_gradients += 1
        return grad, None
