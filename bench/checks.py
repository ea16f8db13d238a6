"""Checks of samplers before they are timed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ebmcore.bench.timing import CheckError
from ebmcore.discrete import alphabet_of
from ebmcore.evaluation import exact_distribution

NUM_CHAINS, NUM_BINS, MIN_P = 20_000, 30, 1e-7


def check_stationarity(sampler: Any, energy: Any, event_shape: Sequence[int], num_steps: int) -> str:
    """Raises CheckError unless `sampler` keeps exp(-energy), by chi-square over bins of states that are about equally likely."""
    probabilities = exact_distribution(energy, event_shape)
    device, q = probabilities.device, alphabet_of(energy).num_categories
    generator = torch.Generator(device).manual_seed(0)
    states = torch.multinomial(probabilities, NUM_CHAINS, replacement=True, generator=generator)
    num_sites = int(torch.tensor(event_shape).prod())
    powers = q ** torch.arange(num_sites, device=device)
    values = states[:, None] // powers % q
    is_spin = alphabet_of(energy).kind == "spin"
    x = (2 * values - 1 if is_spin else values).to(torch.int8 if is_spin else torch.uint8).reshape(-1, *event_shape)
    x = sampler(energy, x, num_steps, seed=1).flatten(1).long()
    values = (x + 1) // 2 if is_spin else x
    order = probabilities.argsort()
    bins = torch.empty_like(order)
    bins[order] = (probabilities[order].cumsum(0) * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    expected = torch.zeros(NUM_BINS, dtype=torch.float64, device=device).index_add(0, bins, probabilities) * NUM_CHAINS
    counts = bins[(values * powers).sum(1)].bincount(minlength=NUM_BINS).double()
    is_used = expected > 0
    statistic = ((counts - expected)[is_used].square() / expected[is_used]).sum()
    p = float(torch.special.gammaincc((is_used.sum().double() - 1) / 2, statistic / 2))
    if not p >= MIN_P:
        raise CheckError(f"{sampler} does not keep exp(-E) on {tuple(event_shape)}: chi-square {float(statistic):.0f}, p = {p:.1g}")
    return f"exact draws of {num_sites} sites stay exact over {num_steps} steps (p = {p:.2g})"


def check_carried_energies(sampler: Any, energy: Any, x: Tensor, num_steps: int) -> str:
    """Raises CheckError unless a run's energies and flips are those of its states, and x is as it was."""
    before = x.clone()
    state, info = sampler.advance(energy, sampler.init(energy, x, seed=1), num_steps)
    value = copy.deepcopy(energy).double()(state.x).detach()  # float32 sums of 1e6 terms are off by more than the chains
    error = float(((state.energy - value).abs() / (1 + value.abs())).max())
    if not error < 1e-5:
        raise CheckError(f"the energies of {tuple(x.shape)} that {sampler} carries are off by {error:.2g} of their size")
    num_changed = (state.x != before).flatten(1).sum(1)
    if not bool(((num_changed <= info.num_flips) & (info.num_flips > 0)).all()):
        raise CheckError(f"{sampler} reports {info.num_flips.tolist()} flips where {num_changed.tolist()} sites have changed")
    if not torch.equal(x, before):
        raise CheckError(f"{sampler} changed its argument x")
    return "carried energies are those of the states"


def check_native_chains(sampler: Any, energy: Any, x: Tensor, num_steps: int) -> str:
    """Raises CheckError unless native chains of `energy` go where the same steps on its torch formula go, in float64, and x is as it was."""
    start = x.double()
    before = start.clone()
    state = sampler.init(energy, start, seed=1)
    native, _ = sampler.advance(energy, state, num_steps)
    plain, _ = sampler.advance(lambda y: energy(y), state, num_steps)
    error = float(((native.x - plain.x).abs() / (1 + plain.x.abs())).max())
    if not error < 1e-8:
        raise CheckError(f"native chains of {type(energy).__name__} {tuple(x.shape)} are {error:.2g} away from {sampler} on its formula")
    if not torch.equal(start, before):
        raise CheckError(f"{sampler} changed its argument x")
    return f"{num_steps} steps of native chains end where those on the torch formula do (to {error:.1g}, float64)"
