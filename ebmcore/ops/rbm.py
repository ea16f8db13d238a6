"""Restricted Boltzmann machines: Bernoulli draws of a layer, the layer's part of the free energy, and Gibbs-with-Gradients chains.

Of large machines the matrix products between them are torch's; chains of small ones are native from the first step to the last.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ebmcore import _native
from ebmcore.ops.proposals import balancing_number
from ebmcore.ops.random import MAX_BLOCKS, Stream, uniform
from ebmcore.ops.registration import is_plain, key_tensor, number, register, require_device
from ebmcore.types import Key, bounded_int

MAX_NATIVE_WEIGHTS = 8192  # beyond so many weights torch's products repay what they cost between steps
_TILED_BIAS = -3e38  # of units that are no units


def _sigmoid_bernoulli_impl(logits: Tensor, bias: Tensor, key: Tensor, scale: float, stream: int) -> Tensor:
    if logits.dtype == torch.float64:
        return sigmoid_bernoulli_reference(logits, bias, key=key, scale=scale, stream=stream)
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _native.core.sigmoid_bernoulli(out, logits.contiguous(), bias, key, scale, stream)
    return out


def _softplus_sum_impl(logits: Tensor, bias: Tensor, scale: float) -> Tensor:
    if logits.dtype == torch.float64:
        return softplus_sum_reference(logits, bias, scale=scale)
    out = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
    _native.core.softplus_sum(out, logits.contiguous(), bias, scale)
    return out


_sigmoid_bernoulli = register(
    "sigmoid_bernoulli(Tensor logits, Tensor bias, Tensor key, float scale, int stream) -> Tensor",
    _sigmoid_bernoulli_impl,
    lambda logits, *_: torch.empty_like(logits, memory_format=torch.contiguous_format),
)
_softplus_sum = register(
    "softplus_sum(Tensor logits, Tensor bias, float scale) -> Tensor",
    _softplus_sum_impl,
    lambda logits, *_: torch.empty(logits.shape[0], dtype=torch.float64, device=logits.device),
)


def _prepare(logits: Tensor, bias: Tensor | None, scale: float, caller: str) -> tuple[Tensor, float]:
    """The bias, made where there is none, and the scale."""
    if not isinstance(logits, Tensor) or logits.dtype not in (torch.float32, torch.float64):
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"{caller}: logits must be a float32 or float64 tensor, got {got}")
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"{caller}: logits must have shape (num_chains, num_units) with at least one unit, got {tuple(logits.shape)}")
    if bias is None:
        bias = logits.new_zeros(logits.shape[1])
    elif not isinstance(bias, Tensor) or bias.dtype != logits.dtype:
        raise TypeError(f"{caller}: bias must be None or a {logits.dtype} tensor, got {bias.dtype if isinstance(bias, Tensor) else bias!r}")
    elif bias.shape != logits.shape[1:]:
        raise ValueError(f"{caller}: bias must have shape {tuple(logits.shape[1:])}, got {tuple(bias.shape)}")
    elif bias.device != logits.device:
        raise ValueError(f"{caller}: bias must be on {logits.device}, got {bias.device}")
    require_device(logits.device, caller)
    return bias.detach().contiguous(), number(scale, "scale", caller)


@torch.no_grad()
def sigmoid_bernoulli(logits: Tensor, bias: Tensor | None = None, *, key: Key | Tensor, scale: float = 1.0, stream: int = Stream.PROPOSAL) -> Tensor:
    """1 with probability sigmoid(scale · logits + bias), else 0, in one pass; no gradient flows through it.

    float32 compares 32 random bits with the odds of the rarer outcome: both probabilities are right to a multiple of 2**-32 (and 0 below
    2**-33), also where sigmoid itself rounds to 1. float64 compares 52 bits with sigmoid. A NaN gives NaN.

    Args:
        logits: (num_chains, num_units), float32 or float64.
        bias: (num_units,), dtype and device of logits; None for 0.
        key: seed, step and first chain. Unit e of chain i draws as element e of `uniform`, so no other draw of this stream may share it.
        scale: of the logits, finite; an inverse temperature.
        stream: what the draw is for, 0 to 255.

    Returns:
        0 and 1 in the dtype of logits, shaped as they are.

    Raises:
        TypeError, ValueError: for anything else than the above.
    """
    bias, scale = _prepare(logits, bias, scale, "sigmoid_bernoulli")
    if logits.shape[1] > 2 * MAX_BLOCKS:
        raise ValueError(f"sigmoid_bernoulli: a chain must have at most {2 * MAX_BLOCKS} units, got {logits.shape[1]}")
    stream = bounded_int(stream, "stream", "sigmoid_bernoulli", high=256)
    return draw_layer(logits, bias, key_tensor(key, logits.device, "sigmoid_bernoulli"), scale, stream)


def draw_layer(logits: Tensor, bias: Tensor, key: Tensor, scale: float, stream: int) -> Tensor:
    """`sigmoid_bernoulli` without its checks, for callers that own all of them."""
    op = _sigmoid_bernoulli_impl if is_plain(logits, bias, key) else _sigmoid_bernoulli
    result: Tensor = op(logits, bias, key, scale, stream)
    return result


def sigmoid_bernoulli_reference(
    logits: Tensor, bias: Tensor | None = None, *, key: Key | Tensor, scale: float = 1.0, stream: int = Stream.PROPOSAL
) -> Tensor:
    """`sigmoid_bernoulli` in plain torch, with its law but not its draws in float32."""
    x = logits * scale + (0.0 if bias is None else bias)
    u = uniform(x.shape, key=key, stream=stream, dtype=x.dtype, device=x.device)
    return torch.where(x.isnan(), x, (u < torch.sigmoid(-x.abs())).to(x.dtype).sub((x > 0).to(x.dtype)).abs())


@torch.no_grad()
def softplus_sum(logits: Tensor, bias: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
    """Σ ln(1 + exp(scale · logits + bias)) over the units of each chain, summed in float64: minus a layer's part of the free energy.

    Args:
        logits: (num_chains, num_units), float32 or float64.
        bias: (num_units,), dtype and device of logits; None for 0.
        scale: of the logits, finite; an inverse temperature.

    Returns:
        (num_chains,) float64, for float32 logits right to about 1e-7 a unit. No gradient flows through it.

    Raises:
        TypeError, ValueError: for anything else than the above.
    """
    bias, scale = _prepare(logits, bias, scale, "softplus_sum")
    op = _softplus_sum_impl if is_plain(logits, bias, logits) else _softplus_sum
    result: Tensor = op(logits, bias, scale)
    return result


def softplus_sum_reference(logits: Tensor, bias: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
    """`softplus_sum` in plain torch."""
    x = logits.double() * scale + (0.0 if bias is None else bias.double())
    return torch.logaddexp(x, x.new_zeros(())).sum(1)


def block_gibbs_chain(
    states: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, key: Tensor, num_steps: int, count_flips: bool
) -> Tensor:
    """Steps of block Gibbs on a Bernoulli RBM's visible units, written into `states`. Arguments as `rbm_gwg_chain`.

    Returns:
        (num_chains,) int64: visible units that changed, summed over the steps; maybe 0 unless `count_flips`.
    """
    if weight.numel() <= MAX_NATIVE_WEIGHTS:
        return _native_block_gibbs(states, weight, visible_bias, hidden_bias, key, num_steps)
    num_flips = torch.zeros(len(states), dtype=torch.float64, device=states.device)
    hidden_logits, hidden = states.new_empty(len(states), len(hidden_bias)), states.new_empty(len(states), len(hidden_bias))
    visible_logits, present, following = torch.empty_like(states), states, torch.empty_like(states)
    transposed, draw = weight.t(), _native.core.sigmoid_bernoulli
    visible_bias, hidden_bias = visible_bias.contiguous(), hidden_bias.contiguous()
    hidden_stream, visible_stream = int(Stream.HIDDEN), int(Stream.PROPOSAL)
    for step_key in Key.from_tensor(key).steps(num_steps).unbind():
        torch.mm(present, weight, out=hidden_logits)
        draw(hidden, hidden_logits, hidden_bias, step_key, 1.0, hidden_stream)
        torch.mm(hidden, transposed, out=visible_logits)
        draw(following, visible_logits, visible_bias, step_key, 1.0, visible_stream)
        if count_flips:
            num_flips += torch.sub(following, present, out=visible_logits).abs_().sum(1)
        present, following = following, present
    if present is not states:
        states.copy_(present)
    return num_flips.long()


def _native_block_gibbs(states: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, key: Tensor, num_steps: int) -> Tensor:
    num_flips = torch.empty(len(states), dtype=torch.int64, device=states.device)
    _native.core.rbm_gibbs(
        states,
        num_flips,
        _tiled(weight),
        _tiled(weight.t()),
        _tiled(visible_bias, _TILED_BIAS),
        _tiled(hidden_bias, _TILED_BIAS),
        key,
        len(hidden_bias),
        num_steps,
        int(Stream.HIDDEN),
        int(Stream.PROPOSAL),
        _workspace(states, weight),
    )
    return num_flips


def _tiled(units: Tensor, fill: float = 0.0) -> Tensor:
    return pad(units, (0, -units.shape[-1] % _native.core.RBM_TILE), value=fill).contiguous()


def _workspace(states: Tensor, weight: Tensor) -> Tensor | None:
    if not states.is_cuda:
        return None
    return torch.empty(len(states) * _native.core.rbm_scratch(*weight.shape), dtype=torch.uint8, device=states.device)


def rbm_gwg_chain(
    states: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, key: Tensor, num_steps: int, balancing: str
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Steps of Gibbs-with-Gradients on a Bernoulli RBM's visible units, written into `states`.

    Differences are taken to first order (Grathwohl et al. 2021); the chain leaves exp(-F) invariant with the weights rounded to 2**-30 of
    the largest input that a hidden unit can get.

    Args:
        states: (num_chains, num_visible) of 0 and 1, float32, contiguous.
        weight, visible_bias, hidden_bias: of the RBM, float32.
        key: int64 [seed, step, first_chain] of the first step, where the states are.
        num_steps: at least 1.
        balancing: one of `proposals.BALANCING`.

    Returns:
        is_accepted (num_chains,) bool of the last step, acceptance_prob (num_chains,) mean over the steps, num_flips (num_chains,) int64;
        or None, with nothing written, if a parameter is not finite.
    """
    num_chains, num_visible = states.shape
    # A product in float64 of whole numbers below 2**53 is exact in any order of the additions.
    exact, exact_bias = weight.double(), hidden_bias.double()
    largest = float((exact.abs().sum(0) + exact_bias.abs()).max() + visible_bias.double().abs().max() * 0)
    if not math.isfinite(largest):
        return None
    scale = 2.0 ** (30 - max(math.frexp(largest)[1], -90))  # largest · scale <= 2**30
    constants: tuple[Any, ...] = (num_steps, 1.0 / scale, balancing_number(balancing, "rbm_gwg"), int(Stream.PROPOSAL), int(Stream.ACCEPTANCE))
    if weight.numel() <= MAX_NATIVE_WEIGHTS:
        weight_units = (exact * scale).round_()
        inputs = torch.addmm((exact_bias * scale).round_(), states.double(), weight_units).to(torch.int32)
        is_accepted = torch.empty(num_chains, dtype=torch.bool, device=states.device)
        acceptance = torch.empty(num_chains, dtype=torch.float64, device=states.device)
        num_flips = torch.empty(num_chains, dtype=torch.int64, device=states.device)
        transposed, bias = _tiled(weight.t()), _tiled(visible_bias, _TILED_BIAS)
        arguments = (states, inputs, weight_units.to(torch.int32), transposed, bias, key, is_accepted, acceptance, num_flips)
        _native.core.rbm_gwg_chains(*arguments, *constants, _workspace(states, weight))
        return is_accepted, (acceptance / num_steps).to(states.dtype), num_flips
    chunk = _native.core.RBM_CHUNK
    pad_visible, pad_hidden = -num_visible % chunk, -len(hidden_bias) % chunk
    weight_units = pad((exact * scale).round_(), (0, pad_hidden, 0, pad_visible))
    padded = pad(states, (0, pad_visible))
    inputs = torch.addmm(pad((exact_bias * scale).round_(), (0, pad_hidden)), padded.double(), weight_units).to(torch.int32)
    weight_units = weight_units.to(torch.int32)
    transposed = pad(weight.T, (0, pad_visible, 0, pad_hidden)).contiguous()
    bias = pad(visible_bias, (0, pad_visible), value=_TILED_BIAS)
    means, pulls = padded.new_empty(inputs.shape), torch.empty_like(padded)
    balanced = padded.new_empty(num_chains, 2, padded.shape[1])
    records = torch.zeros(num_chains, _native.core.RBM_RECORD, dtype=torch.float64, device=states.device)
    arguments = (padded, inputs, means, pulls, balanced, records, weight_units, bias, key)
    for step in range(-1, num_steps + 1):
        if step >= 0:
            torch.mm(means, transposed, out=pulls)
        _native.core.rbm_gwg(*arguments, step, *constants)
    states.copy_(padded[:, :num_visible])
    return records[:, 0] > 0, (records[:, 1] / num_steps).to(states.dtype), records[:, 2].long()
