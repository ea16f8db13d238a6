"""Derivatives of activation functions, of several orders in one pass: the building blocks of traces of networks in closed form.

All are polynomials in the logistic function σ: σ' = σ (1 - σ), tanh x = 2 σ(2x) - 1, softplus' = σ, silu = x σ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ebmcore import _native
from ebmcore.ops.registration import differentiate, is_plain, register, require_device
from ebmcore.types import bounded_int

ACTIVATIONS = ("sigmoid", "softplus", "silu", "tanh", "relu")  # in the order of csrc/ops/activations.h


def _is_native(x: Tensor, first: int, count: int) -> bool:
    return x.dtype == torch.float32 and first + count - 1 <= _native.core.MAX_DERIVATIVE


def _derivatives_impl(x: Tensor, activation: str, first: int, count: int) -> Tensor:
    if not _is_native(x, first, count):
        return activation_derivatives_reference(x, activation, first, count)
    out = torch.empty((count, *x.shape), dtype=x.dtype, device=x.device)
    _native.core.activation_derivatives(out, x.contiguous().view(-1), ACTIVATIONS.index(activation), first, count)
    return out


def _dot_impl(x: Tensor, weights: Tensor, activation: str, first: int) -> Tensor:
    if not _is_native(x, first, len(weights)):
        return activation_derivatives_dot_reference(x, weights, activation, first)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    flat = x.contiguous().view(-1)
    _native.core.activation_derivatives_dot(out.view(-1), flat, weights.contiguous(), ACTIVATIONS.index(activation), first)
    return out


def _batch_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _vmap_derivatives(call: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], x: Tensor, *arguments: Any) -> tuple[Tensor, int]:
    return call(_batch_first(x, in_dims[0], info.batch_size), *arguments), 1


def _vmap_dot(call: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], x: Tensor, weights: Tensor, *arguments: Any) -> tuple[Tensor, int]:
    weights = _batch_first(weights, in_dims[1], info.batch_size).transpose(0, 1)
    return call(_batch_first(x, in_dims[0], info.batch_size), weights, *arguments), 0


register(
    "activation_derivatives(Tensor x, str activation, int first, int count) -> Tensor",
    _derivatives_impl,
    lambda x, activation, first, count: torch.empty((count, *x.shape), dtype=x.dtype, device=x.device),
    _vmap_derivatives,
)
register(
    "activation_derivatives_dot(Tensor x, Tensor weights, str activation, int first) -> Tensor",
    _dot_impl,
    lambda x, weights, activation, first: torch.empty_like(x, memory_format=torch.contiguous_format),
    _vmap_dot,
)


def _keep_derivatives(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.activation, ctx.first, ctx.count = inputs
    ctx.save_for_backward(x)
    ctx.save_for_forward(x)


def _derivatives_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _dot(*ctx.saved_tensors, grad, ctx.activation, ctx.first + 1), None, None, None


def _derivatives_jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
    slopes: Tensor = _derivatives(*ctx.saved_tensors, ctx.activation, ctx.first + 1, ctx.count)
    return tangent * slopes


def _keep_dot(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, ctx.activation, ctx.first = inputs
    ctx.save_for_backward(x, weights)
    ctx.save_for_forward(x, weights)


def _dot_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    x, weights = ctx.saved_tensors
    needs_x, needs_weights = ctx.needs_input_grad[:2]
    grad_x = grad * _dot(x, weights, ctx.activation, ctx.first + 1) if needs_x else None
    grad_weights = grad * _derivatives(x, ctx.activation, ctx.first, len(weights)) if needs_weights else None
    return grad_x, grad_weights, None, None


def _dot_jvp(ctx: Any, x_tangent: Tensor | None, weights_tangent: Tensor | None, *_: None) -> Tensor | None:
    x, weights = ctx.saved_tensors
    along_x = None if x_tangent is None else x_tangent * _dot(x, weights, ctx.activation, ctx.first + 1)
    along_weights = None if weights_tangent is None else _dot(x, weights_tangent, ctx.activation, ctx.first)
    return along_weights if along_x is None else along_x if along_weights is None else along_x + along_weights


_derivatives = differentiate(
    "activation_derivatives",
    _derivatives_impl,
    1,
    setup_context=_keep_derivatives,
    backward=_derivatives_backward,
    jvp=_derivatives_jvp,
    vmap=_vmap_derivatives,
)
_dot = differentiate("activation_derivatives_dot", _dot_impl, 2, setup_context=_keep_dot, backward=_dot_backward, jvp=_dot_jvp, vmap=_vmap_dot)


def _check(x: Any, activation: Any, first: Any, caller: str) -> int:
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{caller}: x must be a float32 or float64 tensor, got {got}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{caller}: activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    require_device(x.device, caller)
    return bounded_int(first, "first", caller)


def activation_derivatives(x: Tensor, activation: str, first: int = 0, count: int = 1) -> Tensor:
    """a^(first)(x), ..., a^(first+count-1)(x), element by element and differentiable to any order.

    float32 up to order 4 is one native pass with one exponential, right to about 1e-6 relative to max(|value|, 1); float64 and higher
    orders are `activation_derivatives_reference`. A NaN gives NaN in every order.

    Args:
        x: any shape, float32 or float64.
        activation: "sigmoid", "softplus" (beta 1, no threshold), "silu", "tanh" or "relu" (derivative 0 at 0).
        first: the lowest order, >= 0; 0 is the function itself.
        count: number of orders, >= 1.

    Returns:
        (count, *x.shape), in the dtype of x.

    Raises:
        TypeError, ValueError: for anything else than the above.
    """
    first = _check(x, activation, first, "activation_derivatives")
    result: Tensor = _derivatives(x, activation, first, bounded_int(count, "count", "activation_derivatives", low=1))
    return result


def activation_derivatives_dot(x: Tensor, weights: Tensor, activation: str, first: int = 0) -> Tensor:
    """Σ_k weights_k · a^(first+k)(x), element by element: the adjoint of `activation_derivatives`, differentiable to any order.

    Args:
        x, activation, first: as for `activation_derivatives`.
        weights: (count, *x.shape) with count >= 1, dtype and device of x.

    Returns:
        Shaped and typed as x.

    Raises:
        TypeError, ValueError: for anything else than the above.
    """
    caller = "activation_derivatives_dot"
    first = _check(x, activation, first, caller)
    if not isinstance(weights, Tensor) or weights.dtype != x.dtype:
        raise TypeError(f"{caller}: weights must be a {x.dtype} tensor, got {weights.dtype if isinstance(weights, Tensor) else weights!r}")
    if weights.dim() != x.dim() + 1 or len(weights) == 0 or weights.shape[1:] != x.shape:
        raise ValueError(f"{caller}: weights must have shape (count, {', '.join(map(str, x.shape))}) with count >= 1, got {tuple(weights.shape)}")
    if weights.device != x.device:
        raise ValueError(f"{caller}: weights must be on {x.device}, got {weights.device}")
    result: Tensor = _dot(x, weights, activation, first)
    return result


def _tangents_impl(rows: Tensor, bias: Tensor | None, activation: str, keep_slopes: bool) -> Tensor:
    slopes = rows.new_empty(rows.shape[1:] if keep_slopes else 0)
    if rows.dtype == torch.float32:
        kept = slopes if keep_slopes else None
        _native.core.activation_tangents(rows, kept, bias, rows.shape[1], ACTIVATIONS.index(activation))
    else:
        found = activation_tangents_reference(rows, bias, activation)
        if keep_slopes:
            slopes.copy_(found)
    torch.autograd.graph.increment_version(rows)
    return slopes


_tangents = register(
    "activation_tangents_(Tensor(a!) rows, Tensor? bias, str activation, bool keep_slopes) -> Tensor",
    _tangents_impl,
    lambda rows, bias, activation, keep_slopes: rows.new_empty(rows.shape[1:] if keep_slopes else 0),
)


@torch.no_grad()
def activation_tangents_(rows: Tensor, bias: Tensor | None, activation: str, *, keep_slopes: bool = False) -> Tensor:
    """A hidden layer in forward mode, in place and without gradients: rows[0] becomes a(z) with z = rows[0] + bias, rows[1:] become a'(z) · rows[1:].

    Args:
        rows: (1 + num_tangents, num_chains, width), float32 or float64, contiguous.
        bias: (width,), dtype and device of rows, contiguous; None for 0.
        activation: as for `activation_derivatives`.
        keep_slopes: whether a'(z) is wanted.

    Returns:
        a'(z), (num_chains, width); of no elements unless keep_slopes.

    Raises:
        TypeError, ValueError: for anything else than the above.
    """
    caller = "activation_tangents_"
    _check(rows, activation, 0, caller)
    if rows.dim() != 3 or len(rows) == 0 or not rows.is_contiguous():
        raise ValueError(f"{caller}: rows must be contiguous, (1 + num_tangents, num_chains, width), got {tuple(rows.shape)}")
    if bias is not None:
        if not isinstance(bias, Tensor) or bias.dtype != rows.dtype or bias.device != rows.device:
            got = f"{bias.dtype} on {bias.device}" if isinstance(bias, Tensor) else repr(bias)
            raise TypeError(f"{caller}: bias must be None or {rows.dtype} on {rows.device} as rows, got {got}")
        if bias.shape != rows.shape[2:] or not bias.is_contiguous():
            raise ValueError(f"{caller}: bias must be contiguous, {tuple(rows.shape[2:])}, got {tuple(bias.shape)}")
    return layer_in_forward_mode(rows, bias, activation, keep_slopes)


def layer_in_forward_mode(rows: Tensor, bias: Tensor | None, activation: str, keep_slopes: bool) -> Tensor:
    """`activation_tangents_` without its checks, for callers that own all of them and have gradients off."""
    op = _tangents_impl if is_plain(rows, rows, rows) else _tangents
    result: Tensor = op(rows, bias, activation, keep_slopes)
    return result


def activation_tangents_reference(rows: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """`activation_tangents_` in plain torch, in place, too; returns the slopes."""
    values = activation_derivatives_reference(rows[0] if bias is None else rows[0] + bias, activation, 0, 2)
    rows[0] = values[0]
    rows[1:] *= values[1]
    return values[1]


@functools.lru_cache(maxsize=64)
def _sigmoid_polynomial(order: int) -> tuple[int, ...]:
    """Coefficients of σ^(order) in powers of σ, from σ^0 on: p' = (dp/dσ) · (σ - σ²)."""
    if order == 0:
        return 0, 1
    slopes = [k * c for k, c in enumerate(_sigmoid_polynomial(order - 1))]
    return tuple(a - b for a, b in zip([*slopes, 0], [0, *slopes], strict=True))


def _sigmoid_derivative(x: Tensor, order: int) -> Tensor:
    if order == 0:
        return torch.sigmoid(x)
    s = torch.sigmoid(-x.abs())  # on this side no digits cancel; σ^(order) is even for odd orders and odd for even ones
    value = torch.zeros_like(s)
    for coefficient in reversed(_sigmoid_polynomial(order)):
        value = value * s + coefficient
    return value if order % 2 else torch.where(x > 0, -value, value)


def _reference(x: Tensor, activation: str, order: int) -> Tensor:
    if activation == "sigmoid":
        return _sigmoid_derivative(x, order)
    if activation == "softplus":
        return torch.logaddexp(x, torch.zeros_like(x)) if order == 0 else _sigmoid_derivative(x, order - 1)
    if activation == "silu":
        value = x * _sigmoid_derivative(x, order)
        return value if order == 0 else value + order * _sigmoid_derivative(x, order - 1)
    if activation == "tanh":
        return torch.tanh(x) if order == 0 else 2 ** (order + 1) * _sigmoid_derivative(2 * x, order)
    value = functional.relu(x) if order == 0 else (x > 0).to(x.dtype) if order == 1 else torch.zeros_like(x)
    return torch.where(x.isnan(), x, value)


def activation_derivatives_reference(x: Tensor, activation: str, first: int = 0, count: int = 1) -> Tensor:
    """`activation_derivatives` in plain torch."""
    return torch.stack([_reference(x, activation, order) for order in range(first, first + count)])


def activation_derivatives_dot_reference(x: Tensor, weights: Tensor, activation: str, first: int = 0) -> Tensor:
    """`activation_derivatives_dot` in plain torch."""
    return (weights * activation_derivatives_reference(x, activation, first, len(weights))).sum(0)
