"""Metropolis' rule for proposals of continuous states: log ratio, decision, and the accepted rows, in one pass.

Metropolis, Rosenbluth, Rosenbluth, Teller & Teller 1953; Hastings 1970; the correction of Langevin proposals: Roberts & Tweedie 1996.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ebmcore import _native
from ebmcore.ops.random import Stream, uniform
from ebmcore.ops.registration import is_plain, key_tensor, number, register, require_device
from ebmcore.types import Key, bounded_int


class Tally(NamedTuple):
    """What became of proposals, added up over steps.

    Attributes:
        is_accepted: (num_chains,) bool, the last one.
        prob_sum: (num_chains,) float64, sum of the acceptance probabilities.
        num_diverged: (num_chains,) int64, proposals that were not finite.
    """

    is_accepted: Tensor
    prob_sum: Tensor
    num_diverged: Tensor

    @classmethod
    def zeros(cls, like: Tensor) -> Tally:
        """Nothing yet, for chains as many as `like` is long, where it is."""
        n, device = len(like), like.device
        return cls(
            torch.zeros(n, dtype=torch.bool, device=device),
            torch.zeros(n, dtype=torch.float64, device=device),
            torch.zeros(n, dtype=torch.int64, device=device),
        )


def _launch(
    x: Tensor,
    energy: Tensor,
    grad: Tensor | None,
    is_accepted: Tensor,
    prob_sum: Tensor,
    num_diverged: Tensor,
    new_x: Tensor,
    new_energy: Tensor,
    new_grad: Tensor | None,
    log_correction: Tensor | None,
    inverse_mass: Tensor | None,
    key: Tensor,
    step_size: float,
    stream: int,
) -> None:
    new_grad, log_correction, inverse_mass = (None if t is None else t.contiguous() for t in (new_grad, log_correction, inverse_mass))
    _native.core.metropolis_accept(
        x,
        energy,
        grad,
        new_x.contiguous(),
        new_energy.contiguous(),
        new_grad,
        log_correction,
        step_size,
        inverse_mass,
        key,
        is_accepted,
        prob_sum,
        num_diverged,
        stream,
    )
    written = (x, energy, is_accepted, prob_sum, num_diverged)
    torch.autograd.graph.increment_version(written if grad is None else (*written, grad))


_op = register(
    "metropolis_accept_(Tensor(a!) x, Tensor(b!) energy, Tensor(c!)? grad, Tensor(d!) is_accepted, Tensor(e!) prob_sum, Tensor(f!) num_diverged, "
    "Tensor new_x, Tensor new_energy, Tensor? new_grad, Tensor? log_correction, Tensor? inverse_mass, Tensor key, float step_size, int stream) -> ()",
    _launch,
    lambda *_: None,
)


def metropolis_accept_(
    x: Tensor,
    energy: Tensor,
    grad: Tensor | None,
    new_x: Tensor,
    new_energy: Tensor,
    new_grad: Tensor | None,
    tally: Tally,
    *,
    key: Key | Tensor,
    log_correction: Tensor | None = None,
    langevin_step_size: float | None = None,
    inverse_mass: Tensor | None = None,
    stream: int = Stream.ACCEPTANCE,
) -> None:
    """Go to new_x with probability min(1, exp(E - E' + log_correction)), chain by chain: x, energy, grad and the tally are written.

    A proposal that is not finite is rejected and counted: new_x where it is infinite or NaN, or a log ratio that is. The arithmetic is in
    float64, but for the terms of a Langevin step's correction, which are in the dtype of x and summed in float64.

    Args:
        x, new_x: (num_chains, *event), float32 or float64.
        energy, new_energy: (num_chains,), float32 or float64, E there.
        grad, new_grad: ∇E there, as x; None: not carried.
        tally: `is_accepted` is written, the others are added to.
        key: seed, step and first chain; the draws are those of `ops.uniform` of shape (num_chains,) in the dtype of x.
        log_correction: (num_chains,) float64, log q(x | x') - log q(x' | x); None for 0.
        langevin_step_size: h of x' = x - h M⁻¹ ∇E(x) + sqrt(2h M⁻¹) ξ, of which the rule makes the correction itself.
        inverse_mass: the diagonal of M⁻¹ there, of the event's size in any shape but (), in the dtype of x; None for ones.
        stream: what the draws are for (`Stream`).

    Raises:
        TypeError, ValueError: for arguments that are not as above, and where x, energy or grad is not contiguous. Nothing was written then.
        RuntimeError: for CUDA tensors where CUDA cannot run.
    """
    caller = "metropolis_accept_"
    require_device(x.device, caller)
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{caller}: x is written in place, without a graph, so it must not require grad")
    step_size = 0.0 if langevin_step_size is None else number(langevin_step_size, "langevin_step_size", caller, low=0.0, strict=True)
    tensor = key_tensor(key, x.device, caller)
    function: Callable[..., None] = _launch if is_plain(x, new_x, new_energy) else _op
    arguments = (new_x, new_energy, new_grad, log_correction, inverse_mass, tensor, step_size, bounded_int(stream, "stream", caller, high=256))
    function(x, energy, grad, *tally, *arguments)


def metropolis_accept_reference(
    x: Tensor,
    energy: Tensor,
    grad: Tensor | None,
    new_x: Tensor,
    new_energy: Tensor,
    new_grad: Tensor | None,
    tally: Tally,
    *,
    key: Key | Tensor,
    log_correction: Tensor | None = None,
    langevin_step_size: float | None = None,
    inverse_mass: Tensor | None = None,
    stream: int = Stream.ACCEPTANCE,
) -> tuple[Tensor, Tensor, Tensor | None, Tally]:
    """`metropolis_accept_` in plain torch; returns what it leaves in x, energy, grad and the tally."""
    log_ratio = energy.double() - new_energy.double()
    if langevin_step_size is not None:
        assert grad is not None
        assert new_grad is not None
        # log q(x | x') - log q(x' | x) = ½ (g + g') · (x' - x - ½ h M⁻¹ (g' - g))
        change = new_grad - grad if inverse_mass is None else (new_grad - grad) * inverse_mass.reshape(x.shape[1:])
        terms = (new_x - x - (0.5 * langevin_step_size) * change) * (grad + new_grad)
        log_ratio = log_ratio + 0.5 * terms.double().reshape(len(x), -1).sum(1)
    elif log_correction is not None:
        log_ratio = log_ratio + log_correction
    is_finite = log_ratio.isfinite() & new_x.isfinite().reshape(len(x), -1).all(1)
    prob = torch.where(is_finite, log_ratio.clamp(max=0.0).exp(), 0.0)
    is_accepted = uniform(energy.shape, key=key, stream=stream, dtype=x.dtype, device=x.device) < prob
    rows = is_accepted.reshape(-1, *[1] * (x.dim() - 1))
    return (
        torch.where(rows, new_x, x),
        torch.where(is_accepted, new_energy, energy),
        None if grad is None or new_grad is None else torch.where(rows, new_grad, grad),
        Tally(is_accepted, tally.prob_sum + prob, tally.num_diverged + ~is_finite),
    )
