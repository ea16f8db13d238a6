"""Discrete Langevin: all sites drawn anew at once, each by itself, from the differences of the energy (Zhang, Liu & Liu 2022, arXiv
2206.09914)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.discrete import energy_and_differences
from ebmcore.discrete_sampler import Chains, DiscreteSampler, Report, flipped
from ebmcore.ops.registration import number
from ebmcore.types import Alphabet, EnergyFn


@dataclasses.dataclass(frozen=True)
class DiscreteLangevin(DiscreteSampler):
    """DMALA, which targets exp(-E) exactly, or DULA, which does as step_size -> 0.

    A site changes with probability ∝ exp(d / 2 - |change|² / (2 · step_size)) beside 1 for staying, d = E(x) - E(x with the change). The
    squared change is 1 where a site has two values ({0, 1}; of spins too, counted as such) and 2, between one-hot rows, for tokens. One
    forward and one backward of the energy a step.

    Args:
        step_size: > 0.
        metropolis: accept by Metropolis and Hastings; False: always, unless the energy or a difference there is not finite.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """

    step_size: float
    metropolis: bool = True

    _uses_differences: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number(self.step_size, "step_size", "DiscreteLangevin", low=0.0, strict=True)
        if not isinstance(self.metropolis, bool):
            raise TypeError(f"DiscreteLangevin: metropolis must be a bool, got {self.metropolis!r}")

    def _move(self, energy: EnergyFn, chains: Chains, alphabet: Alphabet, key: Tensor) -> tuple[Chains, Report]:
        states, value, differences = chains
        assert differences is not None
        tokens = states.flatten(1) if differences.dim() == 3 else None
        proposed, log_q = ops.propose_langevin(differences, key=key, step_size=self.step_size, tokens=tokens)
        new = torch.where(proposed.reshape(states.shape), flipped(states, alphabet), states) if tokens is None else proposed.reshape(states.shape)
        new_value, new_differences = energy_and_differences(energy, new)
        verdict = ops.accept_langevin_(
            value,
            differences,
            new_value.to(value.dtype),
            new_differences,
            proposed,
            log_q,
            key=key,
            step_size=self.step_size,
            tokens=tokens,
            metropolis=self.metropolis,
        )
        num_flips = (proposed if tokens is None else proposed != tokens).sum(1) * verdict.is_accepted
        states = torch.where(verdict.is_accepted.reshape(-1, *[1] * (states.dim() - 1)), new, states)
        return Chains(states, value, differences), Report(verdict.is_accepted, verdict.acceptance_prob, num_flips, verdict.is_diverged)
