"""Replica exchange: one attempt to swap neighbouring temperatures, with all that travels along (Swendsen & Wang 1986; Geyer 1991)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ebmcore import _native
from ebmcore.ops.random import Stream, uniform
from ebmcore.ops.registration import is_plain, key_tensor, register, require_device
from ebmcore.types import Key, bounded_int


class SwapTally(NamedTuple):
    """What became of attempts, added up.

    Attributes:
        has_been_hottest: (num_chains, num_temperatures) bool, the replica that is now at this temperature has been at the hottest one since it
            was last at the coldest; at the hottest always.
        prob_sum: (num_chains, num_temperatures - 1) float64, sum of the probabilities that a pair would change places, its turn or not.
        num_swaps: (num_chains, num_temperatures - 1) int64.
        num_round_trips: (num_chains,) int64, replicas that came to the coldest temperature from the hottest.
    """

    has_been_hottest: Tensor
    prob_sum: Tensor
    num_swaps: Tensor
    num_round_trips: Tensor

    @classmethod
    def zeros(cls, has_been_hottest: Tensor) -> SwapTally:
        """Nothing yet, from a copy of these flags on."""
        flags = has_been_hottest.clone(memory_format=torch.contiguous_format)
        prob_sum = torch.zeros(len(flags), flags.shape[1] - 1, dtype=torch.float64, device=flags.device)
        num_swaps = torch.zeros_like(prob_sum, dtype=torch.int64)
        return cls(flags, prob_sum, num_swaps, torch.zeros_like(num_swaps[:, 0]))


def _launch(
    energy: Tensor,
    fields: Sequence[Tensor],
    has_been_hottest: Tensor,
    prob_sum: Tensor,
    num_swaps: Tensor,
    num_round_trips: Tensor,
    scales: Sequence[Tensor | None],
    betas: Tensor,
    key: Tensor,
    stream: int,
) -> None:
    rows = list(zip((energy, *fields), scales, strict=True))
    _native.core.swap_replicas(rows, betas, has_been_hottest, prob_sum, num_swaps, num_round_trips, key, stream)
    torch.autograd.graph.increment_version((energy, *fields, has_been_hottest, prob_sum, num_swaps, num_round_trips))


_op = register(
    "swap_replicas_(Tensor(a!) energy, Tensor(b!)[] fields, Tensor(c!) has_been_hottest, Tensor(d!) prob_sum, Tensor(e!) num_swaps, "
    "Tensor(f!) num_round_trips, Tensor?[] scales, Tensor betas, Tensor key, int stream) -> ()",
    _launch,
    lambda *_: None,
)


def swap_scales(growth: Tensor) -> Tensor:
    """What rows are multiplied by that change places, where those at temperature r are in units of growth[r].

    Args:
        growth: (num_temperatures,), floating.

    Returns:
        (2, num_temperatures - 1) float64, with quotients in the dtype of `growth`: of what comes to r from r + 1, and to r + 1 from r.
    """
    return torch.stack((growth[:-1] / growth[1:], growth[1:] / growth[:-1])).double()


def swap_replicas_(
    energy: Tensor,
    fields: Sequence[Tensor],
    tally: SwapTally,
    *,
    betas: Tensor,
    scales: Sequence[Tensor | None],
    key: Key | Tensor,
    stream: int = Stream.SWAP,
) -> None:
    """One attempt: energy, fields and the tally are written.

    Neighbours r, r + 1 change places with probability min(1, exp((β_r - β_{r+1}) (E_r - E_{r+1}))), in float64: those with r even in even steps
    of the key, with r odd in odd ones; the only pair of two temperatures in every step. Where that is NaN they stay.

    Args:
        energy: (num_chains · num_temperatures,), float32 or float64: row i · num_temperatures + r is β_r E of chain i's replica there.
        fields: up to seven more tensors of such rows, of any shape and dtype.
        tally: as after earlier attempts.
        betas: (num_temperatures,) float64, two or more.
        scales: `swap_scales` of energy and of each field; None where its rows are not in units that depend on the temperature.
        key: seed, step and first chain; the draws are those of `ops.uniform` of shape (num_chains, num_temperatures - 1) in float64.
        stream: what the draws are for (`Stream`).

    Raises:
        TypeError, ValueError: for arguments that are not as above, and where a tensor is not contiguous. Nothing was written then.
        RuntimeError: for CUDA tensors where CUDA cannot run.
    """
    caller = "swap_replicas_"
    require_device(energy.device, caller)
    if len(scales) != 1 + len(fields):
        raise ValueError(f"{caller}: scales must be {1 + len(fields)}, one for energy and each of fields, got {len(scales)}")
    tensor = key_tensor(key, energy.device, caller)
    function: Callable[..., None] = _launch if is_plain(energy, betas, tally.prob_sum) else _op
    function(energy, fields, *tally, scales, betas, tensor, bounded_int(stream, "stream", caller, high=256))


def swap_replicas_reference(
    energy: Tensor,
    fields: Sequence[Tensor],
    tally: SwapTally,
    *,
    betas: Tensor,
    scales: Sequence[Tensor | None],
    key: Key | Tensor,
    stream: int = Stream.SWAP,
) -> tuple[Tensor, list[Tensor], SwapTally]:
    """`swap_replicas_` in plain torch; returns what it leaves in energy, fields and the tally."""
    n, num_temperatures = tally.has_been_hottest.shape
    device, pairs = energy.device, torch.arange(num_temperatures - 1, device=energy.device)
    values = energy.reshape(n, -1).double() / betas
    log_ratio = betas.diff() * values.diff(dim=1)
    prob = log_ratio.clamp(max=0).exp()
    is_swapped = uniform(log_ratio.shape, key=key, stream=stream, dtype=torch.float64, device=device) < prob
    if num_temperatures > 2:
        is_swapped &= (pairs - key_tensor(key, device, "swap_replicas_reference")[1]) % 2 == 0
    source = torch.arange(num_temperatures, device=device).repeat(n, 1)
    source[:, :-1] += is_swapped
    source[:, 1:] -= is_swapped.long()
    rows = (source + num_temperatures * torch.arange(n, device=device)[:, None]).flatten()
    results = []
    for field, scale in zip((energy, *fields), scales, strict=True):
        moved = field.index_select(0, rows)
        if scale is not None:
            factors = torch.ones(n, num_temperatures, dtype=torch.float64, device=device)
            factors[:, :-1] = torch.where(is_swapped, scale[0], factors[:, :-1])
            factors[:, 1:] = torch.where(is_swapped, scale[1], factors[:, 1:])
            moved = (moved * factors.reshape(-1, *[1] * (field.dim() - 1))).to(field.dtype)
        results.append(moved)
    flags = tally.has_been_hottest.gather(1, source)
    num_round_trips = tally.num_round_trips + flags[:, 0]
    flags[:, 0], flags[:, -1] = False, True
    return results[0], results[1:], SwapTally(flags, tally.prob_sum + prob, tally.num_swaps + is_swapped, num_round_trips)
