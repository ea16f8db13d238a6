"""Locally informed proposals on discrete spaces, and their acceptance by Metropolis and Hastings, each in one pass over a row.

All of them start from the differences d = E(x) - E(x with one site changed): (num_chains, num_sites) where a site has one other value,
(num_chains, num_sites, num_categories) with -inf at the present value otherwise. Arithmetic is in the log domain: differences of 1e4 are
as good as any, a difference of -inf is never proposed.

Flips (Gibbs with gradients: Grathwohl et al. 2021, arXiv 2102.04509; balancing functions: Zanella 2020, arXiv 1711.07424) draw changes
with probability ∝ g(exp d); discrete Langevin (Zhang, Liu & Liu 2022, arXiv 2206.09914) draws all sites anew, each by itself.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore import _native
from ebmcore.ops.ising import BALANCING
from ebmcore.ops.random import Stream, philox, uniform
from ebmcore.ops.registration import is_plain, key_tensor, number, register, require_device
from ebmcore.types import Key, bounded_int


class Verdict(NamedTuple):
    """What became of proposals; each (num_chains,).

    Attributes:
        is_accepted: bool.
        acceptance_prob: float64; 0 where the proposal diverged.
        is_diverged: bool, the new energy is not finite or a new difference is NaN or +inf. Such a proposal is rejected.
    """

    is_accepted: Tensor
    acceptance_prob: Tensor
    is_diverged: Tensor


def _num_categories(differences: Tensor) -> int:
    return differences.shape[2] if differences.dim() == 3 else 1


def _workspace(differences: Tensor, with_replacement: bool) -> Tensor | None:
    if differences.device.type == "cpu":  # scratch belongs to the threads
        return None
    size = _native.core.flip_scratch_bytes(differences[:1].numel(), differences.element_size(), with_replacement)
    return torch.empty(len(differences) * size, dtype=torch.uint8, device=differences.device)


def _new_verdict(log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(log_q, dtype=torch.bool), torch.empty_like(log_q), torch.empty_like(log_q, dtype=torch.bool)


def _propose_flips(differences: Tensor, key: Tensor, num_flips: int, with_replacement: bool, balancing: int, stream: int) -> tuple[Tensor, Tensor]:
    index, log_q = _propose_flips_fake(differences, key, num_flips, with_replacement, balancing, stream)
    d = differences.contiguous()
    _native.core.propose_flips(
        index, log_q, d, key, _num_categories(d), num_flips, with_replacement, balancing, _workspace(d, with_replacement), stream
    )
    return index, log_q


def _propose_flips_fake(differences: Tensor, key: Tensor, num_flips: int, *_: Any) -> tuple[Tensor, Tensor]:
    n, device = differences.shape[0], differences.device
    return torch.empty((n, num_flips), dtype=torch.int64, device=device), torch.empty(n, dtype=torch.float64, device=device)


def _accept_flips(
    energy: Tensor,
    differences: Tensor,
    new_energy: Tensor,
    new_differences: Tensor,
    back: Tensor,
    log_q: Tensor,
    key: Tensor,
    with_replacement: bool,
    balancing: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    accepted, prob, diverged = _new_verdict(log_q)
    workspace = _workspace(differences, with_replacement)
    arguments = (new_energy.contiguous(), new_differences.contiguous(), back.contiguous(), log_q.contiguous(), key, _num_categories(differences))
    _native.core.accept_flips(energy, differences, *arguments, with_replacement, balancing, accepted, diverged, prob, workspace, stream)
    torch.autograd.graph.increment_version((energy, differences))
    return accepted, prob, diverged


def _propose_langevin(differences: Tensor, tokens: Tensor | None, key: Tensor, penalty: float, stream: int) -> tuple[Tensor, Tensor]:
    proposed, log_q = _propose_langevin_fake(differences, tokens)
    d, tokens = differences.contiguous(), None if tokens is None else tokens.contiguous()
    _native.core.propose_langevin(proposed, log_q, d, tokens, key, _num_categories(d), penalty, stream)
    return proposed, log_q


def _propose_langevin_fake(differences: Tensor, tokens: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.bool if tokens is None else tokens.dtype
    return differences.new_empty(differences.shape[:2], dtype=dtype), differences.new_empty(differences.shape[0], dtype=torch.float64)


def _accept_langevin(
    energy: Tensor,
    differences: Tensor,
    new_energy: Tensor,
    new_differences: Tensor,
    proposed: Tensor,
    log_q: Tensor,
    tokens: Tensor | None,
    key: Tensor,
    penalty: float,
    metropolis: bool,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    accepted, prob, diverged = _new_verdict(log_q)
    tokens = None if tokens is None else tokens.contiguous()
    arguments = (new_energy.contiguous(), new_differences.contiguous(), proposed.contiguous(), tokens, log_q.contiguous(), key)
    count = _num_categories(differences)
    _native.core.accept_langevin(energy, differences, *arguments, count, penalty, metropolis, accepted, diverged, prob, stream)
    torch.autograd.graph.increment_version((energy, differences))
    return accepted, prob, diverged


def _verdict_fake(energy: Tensor, differences: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    n = differences.shape[0]
    flag = differences.new_empty(n, dtype=torch.bool)
    return flag, differences.new_empty(n, dtype=torch.float64), torch.empty_like(flag)


_BEFORE_AFTER = "Tensor(a!) energy, Tensor(b!) differences, Tensor new_energy, Tensor new_differences"
_propose_flips_op = register(
    "propose_flips(Tensor differences, Tensor key, int num_flips, bool with_replacement, int balancing, int stream) -> (Tensor, Tensor)",
    _propose_flips,
    _propose_flips_fake,
)
_accept_flips_op = register(
    f"accept_flips_({_BEFORE_AFTER}, Tensor back, Tensor log_q, Tensor key, bool with_replacement, int balancing, int stream)"
    " -> (Tensor, Tensor, Tensor)",
    _accept_flips,
    _verdict_fake,
)
_propose_langevin_op = register(
    "propose_langevin(Tensor differences, Tensor? tokens, Tensor key, float penalty, int stream) -> (Tensor, Tensor)",
    _propose_langevin,
    _propose_langevin_fake,
)
_accept_langevin_op = register(
    f"accept_langevin_({_BEFORE_AFTER}, Tensor proposed, Tensor log_q, Tensor? tokens, Tensor key, float penalty, bool metropolis, int stream)"
    " -> (Tensor, Tensor, Tensor)",
    _accept_langevin,
    _verdict_fake,
)


def propose_flips(
    differences: Tensor,
    *,
    key: Key | Tensor,
    num_flips: int = 1,
    balancing: str = "sqrt",
    with_replacement: bool = True,
    stream: int = Stream.PROPOSAL,
) -> tuple[Tensor, Tensor]:
    """Draw changes of single sites with probability ∝ g(exp(differences)).

    Args:
        differences: (num_chains, num_sites) or (num_chains, num_sites, num_categories), float32 or float64.
        key: seed, step and first chain of the draws.
        num_flips: draws of a chain.
        balancing: g, one of "sqrt", "barker", "min", "max".
        with_replacement: all draws from the same law; False: each from the law over the sites that were not drawn before, in order.
        stream: what the draws are for (`Stream`).

    Returns:
        index: (num_chains, num_flips) int64, into the flattened changes of a chain: the site, or site · num_categories + value.
        log_q: (num_chains,) float64, log-probability of all draws of a chain in this order. +inf where two draws give one site different
            values, a proposal to be rejected; NaN, with index 0, where there is no law: a difference is NaN or +inf, or too few exceed -inf.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """
    caller = "propose_flips"
    _check_differences(differences, "differences", caller)
    count = bounded_int(num_flips, "num_flips", caller, low=1)
    if not with_replacement and count > differences.shape[1]:
        raise ValueError(f"{caller}: num_flips must be at most the {differences.shape[1]} sites without replacement, got {count}")
    require_device(differences.device, caller)
    tensor = key_tensor(key, differences.device, caller)
    arguments = (count, bool(with_replacement), balancing_number(balancing, caller), bounded_int(stream, "stream", caller, high=256))
    function = _propose_flips if is_plain(differences, tensor, tensor) else _propose_flips_op
    result: tuple[Tensor, Tensor] = function(differences, tensor, *arguments)
    return result


def accept_flips_(
    energy: Tensor,
    differences: Tensor,
    new_energy: Tensor,
    new_differences: Tensor,
    back: Tensor,
    log_q: Tensor,
    *,
    key: Key | Tensor,
    balancing: str = "sqrt",
    with_replacement: bool = True,
    stream: int = Stream.ACCEPTANCE,
) -> Verdict:
    """Accept what `propose_flips` drew with probability min(1, exp(E - E') q(x | x') / q(x' | x)).

    Args:
        energy, differences: at x, of one dtype; overwritten where a chain accepts.
        new_energy, new_differences: at x', shaped and typed alike.
        back: (num_chains, num_flips) int64, the changes that lead from x' back to x, in the order of the draws.
        log_q: (num_chains,), of `propose_flips`.
        key, balancing, with_replacement: as `propose_flips` was given.
        stream: what the uniforms are for.

    Raises:
        TypeError, ValueError: for arguments that are not as above. Nothing was written then.
    """
    caller = "accept_flips_"
    _check_before_after(energy, differences, new_energy, new_differences, log_q, caller)
    if not isinstance(back, Tensor) or back.dtype != torch.int64 or back.dim() != 2 or len(back) != len(differences) or back.device != energy.device:
        raise ValueError(f"{caller}: back must be int64 of shape ({len(differences)}, num_flips) beside energy, got {_described(back)}")
    tensor = key_tensor(key, energy.device, caller)
    arguments = (bool(with_replacement), balancing_number(balancing, caller), bounded_int(stream, "stream", caller, high=256))
    function = _accept_flips if is_plain(energy, differences, new_differences) else _accept_flips_op
    return Verdict(*function(energy, differences, new_energy, new_differences, back, log_q, tensor, *arguments))


def propose_langevin(
    differences: Tensor, *, key: Key | Tensor, step_size: float, tokens: Tensor | None = None, stream: int = Stream.PROPOSAL
) -> tuple[Tensor, Tensor]:
    """Draw every site anew, each by itself, with probability ∝ exp(d / 2 - |change|² / (2 · step_size)), ∝ 1 for its present value.

    The squared change is 1 where a site has one other value (probability of a change sigmoid(d / 2 - 1 / (2 · step_size))), and 2 between
    one-hot rows. Probabilities are right to 2⁻³² in float32 and 2⁻⁵² in float64, and to that relative to themselves near 0 and 1.

    Args:
        differences: (num_chains, num_sites) or (num_chains, num_sites, num_categories), float32 or float64.
        key: seed, step and first chain of the draws.
        step_size: > 0.
        tokens: (num_chains, num_sites), uint8 or int64, the present values; only with num_categories.
        stream: what the draws are for.

    Returns:
        proposed: (num_chains, num_sites): bool, whether a site changes; with `tokens` the new ones, typed alike.
        log_q: (num_chains,) float64, log-probability of all of them together; NaN where a difference is NaN or +inf.

    Raises:
        TypeError, ValueError: for arguments that are not as above.
    """
    caller = "propose_langevin"
    _check_differences(differences, "differences", caller)
    _check_tokens(tokens, differences, "tokens", caller)
    require_device(differences.device, caller)
    tensor = key_tensor(key, differences.device, caller)
    arguments = (_penalty(step_size, differences, caller), bounded_int(stream, "stream", caller, high=256))
    function = _propose_langevin if is_plain(differences, tensor, tensor) else _propose_langevin_op
    result: tuple[Tensor, Tensor] = function(differences, tokens, tensor, *arguments)
    return result


def accept_langevin_(
    energy: Tensor,
    differences: Tensor,
    new_energy: Tensor,
    new_differences: Tensor,
    proposed: Tensor,
    log_q: Tensor,
    *,
    key: Key | Tensor,
    step_size: float,
    tokens: Tensor | None = None,
    metropolis: bool = True,
    stream: int = Stream.ACCEPTANCE,
) -> Verdict:
    """Accept what `propose_langevin` drew; without `metropolis` always, unless it is not finite. Arguments as there and in `accept_flips_`."""
    caller = "accept_langevin_"
    _check_before_after(energy, differences, new_energy, new_differences, log_q, caller)
    _check_tokens(tokens, differences, "tokens", caller)
    dtype = torch.bool if tokens is None else tokens.dtype
    if not isinstance(proposed, Tensor) or proposed.dtype != dtype or proposed.shape != differences.shape[:2] or proposed.device != energy.device:
        raise ValueError(f"{caller}: proposed must be {dtype} of shape {tuple(differences.shape[:2])} beside energy, got {_described(proposed)}")
    tensor = key_tensor(key, energy.device, caller)
    arguments = (_penalty(step_size, differences, caller), bool(metropolis), bounded_int(stream, "stream", caller, high=256))
    function = _accept_langevin if is_plain(energy, differences, new_differences) else _accept_langevin_op
    return Verdict(*function(energy, differences, new_energy, new_differences, proposed, log_q, tokens, tensor, *arguments))


def balancing_number(balancing: Any, caller: str) -> int:
    if balancing not in BALANCING:
        raise ValueError(f"{caller}: balancing must be one of {', '.join(BALANCING)}, got {balancing!r}")
    return BALANCING.index(balancing)


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}" if isinstance(value, Tensor) else type(value).__name__


def _check_differences(differences: Any, name: str, caller: str) -> None:
    if not isinstance(differences, Tensor):
        raise TypeError(f"{caller}: {name} must be a torch.Tensor, got {type(differences).__name__}")
    if differences.dtype not in (torch.float32, torch.float64) or differences.layout != torch.strided:
        raise TypeError(f"{caller}: {name} must be dense float32 or float64, got {differences.dtype} ({differences.layout})")
    if differences.dim() not in (2, 3) or differences.shape[1] == 0 or (differences.dim() == 3 and differences.shape[2] < 2):
        shapes = "(num_chains, num_sites) or (num_chains, num_sites, num_categories >= 2) with at least one site"
        raise ValueError(f"{caller}: {name} must have shape {shapes}, got {tuple(differences.shape)}")


def _check_before_after(energy: Any, differences: Any, new_energy: Any, new_differences: Any, log_q: Any, caller: str) -> None:
    _check_differences(differences, "differences", caller)
    n, dtype, device = len(differences), differences.dtype, differences.device
    require_device(device, caller)
    for name, value, wanted in (("energy", energy, (n,)), ("new_energy", new_energy, (n,)), ("new_differences", new_differences, differences.shape)):
        if not isinstance(value, Tensor) or value.dtype != dtype or value.shape != wanted or value.device != device:
            raise ValueError(f"{caller}: {name} must be {dtype} of shape {tuple(wanted)} on {device}, got {_described(value)}")
    if not isinstance(log_q, Tensor) or log_q.dtype != torch.float64 or log_q.shape != (n,) or log_q.device != device:
        raise ValueError(f"{caller}: log_q must be float64 of shape ({n},) on {device}, got {_described(log_q)}")
    for name, value in (("energy", energy), ("differences", differences)):
        if not value.is_contiguous():
            raise ValueError(f"{caller}: {name} is written in place and must be contiguous, got strides {value.stride()}")
        if value.requires_grad:
            raise ValueError(f"{caller}: {name} is written in place, without a graph, and must not require grad")


def _check_tokens(tokens: Any, differences: Tensor, name: str, caller: str) -> None:
    if differences.dim() == 2:
        if tokens is not None:
            raise ValueError(f"{caller}: {name} must be None where differences have no axis of categories, got {_described(tokens)}")
        return
    shape = tuple(differences.shape[:2])
    if (
        not isinstance(tokens, Tensor)
        or tokens.dtype not in (torch.uint8, torch.int64)
        or tokens.shape != shape
        or tokens.device != differences.device
    ):
        raise ValueError(f"{caller}: {name} must be uint8 or int64 of shape {shape} beside differences, got {_described(tokens)}")


def _penalty(step_size: Any, differences: Tensor, caller: str) -> float:
    inverse = 1.0 / number(step_size, "step_size", caller, low=0.0, strict=True)
    return inverse if differences.dim() == 3 else 0.5 * inverse


def _log_weights(differences: Tensor, balancing: str) -> Tensor:
    """ln g(exp d), flat and in float64; -inf wherever d is."""
    d = differences.double().flatten(1)
    log_weights = {"sqrt": 0.5 * d, "barker": -torch.nn.functional.softplus(-d), "min": d.clamp(max=0.0), "max": d.clamp(min=0.0)}[balancing]
    return torch.where(d == -math.inf, d, log_weights)


def _log_law(log_weights: Tensor) -> Tensor:
    """Log-probabilities; NaN in rows without a law."""
    is_proper = (log_weights < math.inf).all(1) & (log_weights > -math.inf).any(1)
    return torch.where(is_proper[:, None], log_weights.log_softmax(1), math.nan)


def _without_site(log_weights: Tensor, index: Tensor, num_categories: int) -> Tensor:
    site = torch.arange(log_weights.shape[1], device=index.device) // num_categories
    return log_weights.masked_fill(site == index[:, None] // num_categories, -math.inf)


def propose_flips_reference(
    differences: Tensor,
    *,
    key: Key | Tensor,
    num_flips: int = 1,
    balancing: str = "sqrt",
    with_replacement: bool = True,
    stream: int = Stream.PROPOSAL,
) -> tuple[Tensor, Tensor]:
    """`propose_flips` in plain torch with the same uniforms; the same draws but where one falls within 1e-6 of a boundary."""
    count = _num_categories(differences)
    log_weights = _log_weights(differences, balancing)
    size = log_weights.shape[1]
    order = torch.cat([torch.arange(lane, size, 16, device=differences.device) for lane in range(min(16, size))])
    u = uniform((len(differences), num_flips), key=key, stream=stream, dtype=torch.float64, device=differences.device)
    index, log_q = torch.empty_like(u, dtype=torch.int64), torch.zeros_like(u[:, 0])
    for j in range(num_flips):
        law = _log_law(log_weights)
        sums = law.exp()[:, order].cumsum(1)
        place = torch.searchsorted(sums, u[:, j : j + 1] * sums[:, -1:], right=True).clamp(max=size - 1)
        index[:, j] = torch.where(law[:, 0].isnan(), 0, order[place[:, 0]])
        log_q = log_q + law.gather(1, index[:, j : j + 1])[:, 0]
        if not with_replacement:
            log_weights = _without_site(log_weights, index[:, j], count)
    if with_replacement and count > 1:
        sites = index // count
        conflict = ((sites[:, :, None] == sites[:, None, :]) & (index[:, :, None] != index[:, None, :])).any(2).any(1)
        log_q = torch.where(conflict & ~log_q.isnan(), math.inf, log_q)
    return index, log_q


def _judge(log_ratio: Tensor, is_proper: Tensor, key: Key | Tensor, stream: int) -> Verdict:
    is_diverged = ~is_proper | log_ratio.isnan()
    prob = torch.where(is_diverged, 0.0, log_ratio.clamp(max=0.0).exp())
    u = uniform((len(prob), 1), key=key, stream=stream, dtype=torch.float64, device=prob.device)[:, 0]
    return Verdict(u < prob, prob, is_diverged)


def accept_flips_reference(
    energy: Tensor,
    differences: Tensor,
    new_energy: Tensor,
    new_differences: Tensor,
    back: Tensor,
    log_q: Tensor,
    *,
    key: Key | Tensor,
    balancing: str = "sqrt",
    with_replacement: bool = True,
    stream: int = Stream.ACCEPTANCE,
) -> tuple[Tensor, Tensor, Verdict]:
    """`accept_flips_` in plain torch; returns what it leaves in energy and differences, and the verdict."""
    log_weights = _log_weights(new_differences, balancing)
    log_q_back = torch.zeros_like(log_q)
    for index in reversed(back.unbind(1)):
        log_q_back = log_q_back + _log_law(log_weights).gather(1, index[:, None])[:, 0]
        if not with_replacement:
            log_weights = _without_site(log_weights, index, _num_categories(differences))
    log_ratio = (energy.double() - new_energy.double()) + (log_q_back - log_q)
    verdict = _judge(log_ratio, new_energy.isfinite() & ~log_q_back.isnan(), key, stream)
    return *_settled(verdict.is_accepted, energy, differences, new_energy, new_differences), verdict


def _settled(is_accepted: Tensor, energy: Tensor, differences: Tensor, new_energy: Tensor, new_differences: Tensor) -> tuple[Tensor, Tensor]:
    rows = is_accepted.reshape(-1, *[1] * (differences.dim() - 1))
    return torch.where(is_accepted, new_energy, energy), torch.where(rows, new_differences, differences)


def _log_site_laws(differences: Tensor, tokens: Tensor | None, step_size: float) -> Tensor:
    """Log-probabilities of the values of each site, (num_chains, num_sites, num_categories); of two values: stay, change."""
    d = differences.double()
    d = torch.where(d < math.inf, d, math.nan)
    if tokens is None:
        return torch.stack([torch.zeros_like(d), d / 2 - 0.5 / step_size], 2).log_softmax(2)
    return (d / 2 - 1.0 / step_size).scatter(2, tokens.long()[..., None], 0.0).log_softmax(2)


def propose_langevin_reference(
    differences: Tensor, *, key: Key | Tensor, step_size: float, tokens: Tensor | None = None, stream: int = Stream.PROPOSAL
) -> tuple[Tensor, Tensor]:
    """`propose_langevin` in plain torch with the same uniforms; the same draws but where one falls within 1e-6 of a boundary."""
    law = _log_site_laws(differences, tokens, step_size)
    shape, device = law.shape[:2], law.device
    if tokens is None:
        if differences.dtype == torch.float32:
            u = (philox(shape, key=key, stream=stream, device=device).double() + 0.5) * 2.0**-32
        else:
            u = uniform(shape, key=key, stream=stream, dtype=torch.float64, device=device)
        is_likely = law[..., 1] > law[..., 0]
        proposed = is_likely != (u < law.exp().amin(2))
        index = proposed.long()
    else:
        u = uniform(shape, key=key, stream=stream, dtype=torch.float64, device=device)
        sums = law.exp().cumsum(2)
        index = torch.searchsorted(sums, u[..., None] * sums[..., -1:], right=True)[..., 0].clamp(max=law.shape[2] - 1)
        index = torch.where(law[..., 0].isnan(), tokens.long(), index)
        proposed = index.to(tokens.dtype)
    return proposed, law.gather(2, index[..., None])[..., 0].sum(1)


def accept_langevin_reference(
    energy: Tensor,
    differences: Tensor,
    new_energy: Tensor,
    new_differences: Tensor,
    proposed: Tensor,
    log_q: Tensor,
    *,
    key: Key | Tensor,
    step_size: float,
    tokens: Tensor | None = None,
    metropolis: bool = True,
    stream: int = Stream.ACCEPTANCE,
) -> tuple[Tensor, Tensor, Verdict]:
    """`accept_langevin_` in plain torch; returns what it leaves in energy and differences, and the verdict."""
    law = _log_site_laws(new_differences, None if tokens is None else proposed, step_size)
    index = proposed.long() if tokens is None else tokens.long()
    log_q_back = law.gather(2, index[..., None])[..., 0].sum(1)
    log_ratio = (energy.double() - new_energy.double()) + (log_q_back - log_q)
    if not metropolis:
        log_ratio = torch.zeros_like(log_ratio).masked_fill(log_ratio.isnan(), math.nan)
    verdict = _judge(log_ratio, new_energy.isfinite() & ~log_q_back.isnan(), key, stream)
    return *_settled(verdict.is_accepted, energy, differences, new_energy, new_differences), verdict
