"""Gibbs sampling: sites are drawn anew from their law given all others."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.discrete_sampler import Chains, DiscreteSampler, Report, index_of, value_of
from ebmcore.gradients import evaluate
from ebmcore.types import Alphabet, EnergyFn

_SCANS = ("raster", "random", "checkerboard")


@dataclasses.dataclass(frozen=True)
class Gibbs(DiscreteSampler):
    """Gibbs sampling (heat bath), targets exp(-E) exactly and never rejects (Geman & Geman 1984, IEEE PAMI 6, 721).

    Native for the energies that can; of any other energy each site takes one call on the num_categories - 1 other values of every chain,
    which is num_sites calls a sweep.

    Args:
        scan: what a step is: "raster", a sweep over all sites in order; "random", one site, drawn uniformly for each chain; "checkerboard",
            a sweep colour by colour over the energy's graph, all sites of a colour at once.

    Raises:
        ValueError: for another scan; by `init` and a call, for "checkerboard" where the energy has no graph to colour.
    """

    scan: str = "raster"

    _kernel: ClassVar[str | None] = "gibbs"
    _rejects: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.scan not in _SCANS:
            raise ValueError(f"Gibbs: scan must be one of {', '.join(_SCANS)}, got {self.scan!r}")

    def _native_options(self) -> dict[str, Any]:
        return {"scan": self.scan}

    def _check_general(self, energy: EnergyFn, x: Tensor) -> None:
        if self.scan == "checkerboard":
            raise ValueError(f"Gibbs: scan='checkerboard' needs an energy with a graph to colour, got {type(energy).__name__}; take 'raster'")

    def _move(self, energy: EnergyFn, chains: Chains, alphabet: Alphabet, key: Tensor) -> tuple[Chains, Report]:
        self._check_general(energy, chains.states)
        n, num_sites = len(chains.states), chains.states[:1].numel()
        is_random = self.scan == "random"
        u = ops.uniform((n, 2 if is_random else num_sites), key=key, stream=ops.Stream.PROPOSAL, dtype=torch.float64, device=chains.states.device)
        value = chains.energy
        num_flips = torch.zeros_like(value, dtype=torch.int64)
        is_diverged = torch.zeros_like(value, dtype=torch.bool)
        for i in range(1 if is_random else num_sites):
            site = (u[:, :1] * num_sites).long().clamp(max=num_sites - 1) if is_random else torch.full_like(num_flips, i)[:, None]
            value, is_changed, is_bad = _draw_site(energy, chains.states, value, alphabet, site, u[:, -1] if is_random else u[:, i])
            num_flips += is_changed
            is_diverged |= is_bad
        always = torch.ones_like(is_diverged)
        return Chains(chains.states, value, None), Report(always, always.double(), num_flips, is_diverged)


def _draw_site(energy: EnergyFn, states: Tensor, value: Tensor, alphabet: Alphabet, site: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw `site` (num_chains, 1) of states, in place: E, whether it changed, and whether an energy was not finite (never chosen)."""
    sites = states.flatten(1)
    present = index_of(sites.gather(1, site), alphabet)
    others = torch.arange(alphabet.num_categories - 1, device=sites.device)
    others = others + (others >= present)
    candidates = sites[:, None].repeat(1, alphabet.num_categories - 1, 1)
    candidates.scatter_(2, site[:, None].expand(-1, others.shape[1], -1), value_of(others, alphabet, sites.dtype)[..., None])
    new = evaluate(energy, candidates.reshape(-1, *states.shape[1:])).reshape(len(sites), -1).to(value.dtype)
    energies = value.new_empty(len(sites), alphabet.num_categories).scatter_(1, others, new).scatter_(1, present, value[:, None])
    is_finite = energies.isfinite()
    lowest = energies.masked_fill(~is_finite, math.inf).amin(1, keepdim=True)
    sums = (lowest - energies).double().exp().masked_fill(~is_finite, 0.0).cumsum(1)
    chosen = (sums <= u[:, None] * sums[:, -1:]).sum(1, keepdim=True)
    sites.scatter_(1, site, value_of(chosen, alphabet, sites.dtype))
    return energies.gather(1, chosen)[:, 0], (chosen != present)[:, 0], ~is_finite.all(1)
