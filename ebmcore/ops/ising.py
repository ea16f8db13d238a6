"""Ising chains: Gibbs sweeps, random-site Metropolis, Gibbs with Gradients, and energies, many steps in one call.

E(s) = -Σ_edges J s s' - Σ h s for spins s of -1 and +1. Couplings and fields come as integers times `unit`, so that the field of a site
is a function of the state alone, whatever the order of the sum: chains do not drift, and one call of n steps has the bits of n calls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore import _native
from ebmcore.ops.random import Stream, philox
from ebmcore.ops.registration import key_tensor, register, require_device
from ebmcore.types import STEP_BITS, Key, bounded_int

BALANCING = ("sqrt", "barker", "min", "max")


class IsingModel(NamedTuple):
    """Neighbour lists and integer parameters, all on the device of the chains.

    Attributes:
        offsets, neighbours: int64 (num_sites + 1,) and int32: the neighbours of site i, ascending; None with sides.
        couplings: int32, one per entry of neighbours, or one for all.
        field: int32, one per site, or one for all.
        unit: float64 (1,): a coupling of 1 is an energy of `unit`.
        max_degree: the most neighbours of a site.
        sides: of a torus with even sides, whose neighbours need no lists, in at most three dimensions; (): lists.

    No site's |h| + Σ|J| may reach 2**31.
    """

    offsets: Tensor | None
    neighbours: Tensor | None
    couplings: Tensor
    field: Tensor
    unit: Tensor
    max_degree: int
    sides: tuple[int, ...] = ()


class IsingRun(NamedTuple):
    """Of each chain: whether the last step accepted (bool), the sum of acceptance probabilities (float64), accepted flips (int64)."""

    is_accepted: Tensor
    acceptance_sums: Tensor
    num_flips: Tensor


_MODEL = "Tensor? offsets, Tensor? neighbours, Tensor couplings, Tensor field, Tensor unit, int max_degree"


def _gibbs(
    spins: Tensor,
    num_flips: Tensor | None,
    key: Tensor,
    offsets: Tensor | None,
    neighbours: Tensor | None,
    couplings: Tensor,
    field: Tensor,
    unit: Tensor,
    max_degree: int,
    sides: list[int],
    order: Tensor | None,
    colour_offsets: Tensor | None,
    num_steps: int,
    is_random: bool,
) -> None:
    model = (offsets, neighbours, couplings, field, unit, max_degree)
    _native.core.ising_gibbs(spins, key, model, order, colour_offsets, list(sides), num_steps, is_random, num_flips)
    torch.autograd.graph.increment_version(spins)


def _chain(kind: str):  # type: ignore[no-untyped-def]
    def implementation(
        spins: Tensor,
        key: Tensor,
        offsets: Tensor,
        neighbours: Tensor,
        couplings: Tensor,
        field: Tensor,
        unit: Tensor,
        max_degree: int,
        num_steps: int,
        balancing: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        run = fake(spins)
        model = (offsets, neighbours, couplings, field, unit, max_degree)
        workspace = None
        if spins.device.type != "cpu" and kind == "ising_gwg":
            size = len(spins) * _native.core.ising_gwg_scratch(spins[0].numel(), max_degree)
            workspace = torch.empty(size, dtype=torch.uint8, device=spins.device)
        getattr(_native.core, kind)(spins, key, model, num_steps, balancing, *run, workspace)
        torch.autograd.graph.increment_version(spins)
        return run

    def fake(spins: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        dtypes = (torch.bool, torch.float64, torch.int64)
        return tuple(torch.zeros(len(spins), dtype=dtype, device=spins.device) for dtype in dtypes)  # type: ignore[return-value]

    return register(f"{kind}(Tensor(a!) spins, Tensor key, {_MODEL}, int num_steps, int balancing) -> (Tensor, Tensor, Tensor)", implementation, fake)


def _energy(
    spins: Tensor,
    offsets: Tensor | None,
    neighbours: Tensor | None,
    couplings: Tensor,
    field: Tensor,
    unit: Tensor,
    max_degree: int,
    sides: list[int],
    with_fields: bool,
) -> tuple[Tensor, Tensor]:
    energies, fields = _fake_energy(spins, offsets, neighbours, couplings, field, unit, max_degree, sides, with_fields)
    model = (offsets, neighbours, couplings, field, unit, max_degree)
    _native.core.ising_energy(spins, model, list(sides), energies, fields if with_fields else None)
    return energies, fields


def _fake_energy(spins: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    energies = torch.empty(len(spins), dtype=torch.float64, device=spins.device)
    return energies, torch.empty((len(spins), spins[:1].numel()) if arguments[-1] else (0,), dtype=torch.int32, device=spins.device)


_ising_gibbs = register(
    f"ising_gibbs(Tensor(a!) spins, Tensor(b!)? num_flips, Tensor key, {_MODEL}, int[] sides, Tensor? order, Tensor? colour_offsets, "
    "int num_steps, bool is_random) -> ()",
    _gibbs,
    lambda *_: None,
)
_ising_metropolis = _chain("ising_metropolis")
_ising_gwg = _chain("ising_gwg")
_ising_energy = register(f"ising_energy(Tensor spins, {_MODEL}, int[] sides, bool with_fields) -> (Tensor, Tensor)", _energy, _fake_energy)


def _check(spins: Tensor, caller: str) -> None:
    if not isinstance(spins, Tensor) or spins.dtype != torch.int8 or not spins.is_contiguous() or spins.dim() < 2:
        got = f"{spins.dtype} {tuple(spins.shape)}" if isinstance(spins, Tensor) else type(spins).__name__
        raise TypeError(f"{caller}: spins must be a contiguous int8 tensor (num_chains, *event), got {got}")
    require_device(spins.device, caller)


def ising_gibbs_(
    spins: Tensor,
    model: IsingModel,
    *,
    key: Key | Tensor,
    num_steps: int,
    order: Tensor | None = None,
    colour_offsets: Tensor | None = None,
    is_random: bool = False,
    num_flips: Tensor | None = None,
) -> Tensor:
    """Gibbs sampling, in place: p(s_i = 1 | rest) = σ(2 f_i), f_i = h_i + Σ_j J_ij s_j (Geman & Geman 1984), exact to 2^-31.

    Args:
        spins: (num_chains, *event) int8 of -1 and +1, modified. Other values are not looked for.
        model: integer parameters. With `sides` a sweep takes the sites whose coordinates have an even sum, then the others.
        key: of the first step; step t uses key.step + t.
        num_steps: sweeps, or with `is_random` updates of one site drawn uniformly.
        order: (num_sites,) int32, the sites as a sweep takes them; None: 0, 1, 2, ...
        colour_offsets: int64, ascending from 0 to num_sites: no two sites of `order` between two of them are neighbours. Saves time.
        num_flips: (num_chains,) int64, the number of sites that changed is added to it.

    Returns:
        spins.

    Raises:
        TypeError, ValueError: for arguments that are not as above. Nothing was written then.
    """
    _check(spins, "ising_gibbs_")
    num_steps = bounded_int(num_steps, "num_steps", "ising_gibbs_", high=2**STEP_BITS)
    tensor = key_tensor(key, spins.device, "ising_gibbs_")
    _ising_gibbs(spins, num_flips, tensor, *model[:6], list(model.sides), order, colour_offsets, num_steps, is_random)
    return spins


def ising_metropolis_(spins: Tensor, model: IsingModel, *, key: Key | Tensor, num_steps: int) -> IsingRun:
    """Metropolis (1953), in place: flips one site drawn uniformly with probability min(1, exp(E(s) - E(s'))). Arguments as `ising_gibbs_`."""
    _check(spins, "ising_metropolis_")
    num_steps = bounded_int(num_steps, "num_steps", "ising_metropolis_", high=2**STEP_BITS)
    return IsingRun(*_ising_metropolis(spins, key_tensor(key, spins.device, "ising_metropolis_"), *model[:6], num_steps, 0))


def ising_gwg_(spins: Tensor, model: IsingModel, *, key: Key | Tensor, num_steps: int, balancing: str = "sqrt") -> IsingRun:
    """Gibbs with Gradients on exact differences, in place (Grathwohl et al. 2021, arXiv 2102.04509; Zanella 2020 for `balancing`).

    A step proposes the flip of site i with probability g(e^{d_i}) / Z, d_i = E(s) - E(s with i flipped), and accepts it with
    min(1, Z / Z'). Fields and weights are updated where a flip touches them, in a sum tree of fan-out 16: after O(num_sites) at the
    start of a call a step costs O(degree · log16 num_sites).

    Args:
        balancing: g, "sqrt", "barker" t / (1 + t), "min" or "max".
        others as `ising_gibbs_`. No |d_i| may reach 160: weights are float32.
    """
    _check(spins, "ising_gwg_")
    num_steps = bounded_int(num_steps, "num_steps", "ising_gwg_", high=2**STEP_BITS)
    if balancing not in BALANCING:
        raise ValueError(f"ising_gwg_: balancing must be one of {', '.join(BALANCING)}, got {balancing!r}")
    return IsingRun(*_ising_gwg(spins, key_tensor(key, spins.device, "ising_gwg_"), *model[:6], num_steps, BALANCING.index(balancing)))


def ising_energy(spins: Tensor, model: IsingModel) -> Tensor:
    """E(s), (num_chains,) float64, exact for the integer parameters."""
    _check(spins, "ising_energy")
    energies: Tensor = _ising_energy(spins, *model[:6], list(model.sides), False)[0]
    return energies


def ising_fields(spins: Tensor, model: IsingModel) -> tuple[Tensor, Tensor]:
    """E(s), and the integer local fields (num_chains, num_sites) int32; needs neighbour lists."""
    _check(spins, "ising_fields")
    energies, fields = _ising_energy(spins, *model[:6], [], True)
    return energies, fields


def ising_gibbs_reference(spins: Tensor, model: IsingModel, *, key: Key, num_steps: int, order: Tensor | None = None) -> Tensor:
    """The sweeps of `ising_gibbs_` in plain torch, on a copy; the same spins but where a draw is within 1e-7 of its threshold."""
    assert model.offsets is not None
    assert model.neighbours is not None
    states = spins.flatten(1).clone()
    num_sites = states.shape[1]
    order = torch.arange(num_sites) if order is None else order.long()
    for t in range(num_steps):
        step = key.advance(t)
        words = philox((len(states), -(-num_sites // 16) * 4), key=step, stream=Stream.PROPOSAL)
        words = words.view(torch.int32).long() & 0xFFFFFFFF
        ties = philox((len(states), -(-num_sites // 4) * 4), key=step, stream=Stream.TIE).view(torch.int32).long() & 0xFFFFFFFF
        high = torch.stack([words >> 8 * j & 0xFF for j in range(4)], -1).flatten(1)
        for position, site in enumerate(order.tolist()):
            entries = slice(int(model.offsets[site]), int(model.offsets[site + 1]))
            couplings = model.couplings if len(model.couplings) == 1 else model.couplings[entries]
            field = model.field[0 if len(model.field) == 1 else site]
            local = field + (couplings * states[:, model.neighbours[entries].long()]).sum(1)
            threshold = torch.sigmoid(-2 * local.abs().double() * model.unit) * 2**31
            is_rare = (high[:, position] << 24 | ties[:, position] >> 8) < threshold.long() << 1
            states[:, site] = torch.where((local >= 0) ^ is_rare, 1, -1).to(torch.int8)
    return states.reshape(spins.shape)
