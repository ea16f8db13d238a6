"""Metropolis sampling with a uniformly drawn change of a uniformly drawn site."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.discrete_sampler import Chains, DiscreteSampler, Report, index_of, value_of
from ebmcore.gradients import evaluate
from ebmcore.types import Alphabet, EnergyFn


@dataclasses.dataclass(frozen=True)
class RandomFlipMetropolis(DiscreteSampler):
    """A uniform site, a uniform other value, accepted with probability min(1, exp(E - E')) (Metropolis et al. 1953). Targets exp(-E) exactly.

    One forward of the energy a step, no gradient.
    """

    _kernel: ClassVar[str | None] = "metropolis"

    def _move(self, energy: EnergyFn, chains: Chains, alphabet: Alphabet, key: Tensor) -> tuple[Chains, Report]:
        states, value, _ = chains
        sites = states.flatten(1)
        n, num_sites = sites.shape
        u = ops.uniform((n, 2), key=key, stream=ops.Stream.PROPOSAL, dtype=torch.float64, device=sites.device)
        site = (u[:, :1] * num_sites).long().clamp(max=num_sites - 1)
        old = sites.gather(1, site)
        present = index_of(old, alphabet)
        other = (u[:, 1:] * (alphabet.num_categories - 1)).long().clamp(max=alphabet.num_categories - 2)
        sites.scatter_(1, site, value_of(other + (other >= present), alphabet, sites.dtype))
        new_value = evaluate(energy, states)
        is_diverged = ~new_value.isfinite()
        prob = torch.where(is_diverged, 0.0, (value.double() - new_value.double()).clamp(max=0.0).exp())
        decider = ops.uniform((n, 1), key=key, stream=ops.Stream.ACCEPTANCE, dtype=torch.float64, device=sites.device)
        is_accepted = decider[:, 0] < prob
        sites.scatter_(1, site, torch.where(is_accepted[:, None], sites.gather(1, site), old))
        value = torch.where(is_accepted, new_value.to(value.dtype), value)
        return Chains(states, value, None), Report(is_accepted, prob, is_accepted.long(), is_diverged)
