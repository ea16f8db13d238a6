"""Probes of trace estimators, and their products with what is in memory: vᵀu and v · g with v made in registers, never stored.

E[v vᵀ] = I, so E[vᵀ A v] = tr A (Hutchinson 1989; Rademacher signs have the least variance of independent entries for symmetric A).
Element e of probe p of chain i is the draw of (seed, step + p, first_chain + i, e, stream PROBE): a batch may be split, and more probes
go on where fewer ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ebmcore import _native
from ebmcore.ops.random import MAX_BLOCKS, Stream, normal, rademacher
from ebmcore.ops.registration import differentiate, is_plain, key_tensor, register, require_device
from ebmcore.types import Key

PROBE_LAWS = ("rademacher", "gaussian")


def _probes_impl(shape: list[int], key: Tensor, is_gaussian: bool, dtype: torch.dtype) -> Tensor:
    out = torch.empty(shape, dtype=dtype, device=key.device)
    _native.core.probes(out, key, shape[1], is_gaussian, int(Stream.PROBE))
    return out


def _probe_dot_impl(u: Tensor, key: Tensor, is_gaussian: bool) -> Tensor:
    out = torch.empty(u.shape[:2], dtype=u.dtype, device=u.device)
    is_shared = u.shape[0] > 1 and u.stride(0) == 0
    _native.core.probe_dot(out, (u[0] if is_shared else u).contiguous(), is_shared, key, is_gaussian, int(Stream.PROBE))
    return out


def _probe_scale_impl(g: Tensor, key: Tensor, shape: Sequence[int], is_gaussian: bool) -> Tensor:
    out = torch.empty(shape, dtype=g.dtype, device=g.device)
    _native.core.probe_scale(out, g.contiguous(), key, is_gaussian, int(Stream.PROBE))
    return out


_probes = register(
    "probes(SymInt[] shape, Tensor key, bool is_gaussian, ScalarType dtype) -> Tensor",
    _probes_impl,
    lambda shape, key, is_gaussian, dtype: torch.empty(shape, dtype=dtype, device=key.device),
)
register(
    "probe_dot(Tensor u, Tensor key, bool is_gaussian) -> Tensor",
    _probe_dot_impl,
    lambda u, key, is_gaussian: torch.empty(u.shape[:2], dtype=u.dtype, device=u.device),
)
register(
    "probe_scale(Tensor g, Tensor key, SymInt[] shape, bool is_gaussian) -> Tensor",
    _probe_scale_impl,
    lambda g, key, shape, is_gaussian: torch.empty(shape, dtype=g.dtype, device=g.device),
)


def _keep_dot(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, key, ctx.is_gaussian = inputs
    ctx.shape = u.shape
    ctx.save_for_backward(key)
    ctx.save_for_forward(key)


def _keep_scale(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, key, ctx.shape, ctx.is_gaussian = inputs
    ctx.save_for_backward(key)
    ctx.save_for_forward(key)


_probe_dot: Callable[..., Any] = differentiate(
    "probe_dot",
    _probe_dot_impl,
    2,
    setup_context=_keep_dot,
    backward=lambda ctx, grad: (_probe_scale(grad, *ctx.saved_tensors, ctx.shape, ctx.is_gaussian), None, None),
    jvp=lambda ctx, tangent, *_: _probe_dot(tangent, *ctx.saved_tensors, ctx.is_gaussian),
)
_probe_scale: Callable[..., Any] = differentiate(
    "probe_scale",
    _probe_scale_impl,
    2,
    setup_context=_keep_scale,
    backward=lambda ctx, grad: (_probe_dot(grad, *ctx.saved_tensors, ctx.is_gaussian), None, None, None),
    jvp=lambda ctx, tangent, *_: _probe_scale(tangent, *ctx.saved_tensors, ctx.shape, ctx.is_gaussian),
)


def _check_law(probe: Any, caller: str) -> bool:
    if probe not in PROBE_LAWS:
        raise ValueError(f"{caller}: probe must be one of {', '.join(map(repr, PROBE_LAWS))}, got {probe!r}")
    return bool(probe == "gaussian")


def _check_shape(shape: Any, name: str, caller: str) -> None:
    if not isinstance(shape, torch.Size) and not (
        isinstance(shape, Sequence) and all(isinstance(n, int | torch.SymInt) and not isinstance(n, bool) and n >= 0 for n in shape)
    ):
        raise ValueError(f"{caller}: {name} must be (num_probes, num_chains, *event) of ints >= 0, got {shape!r}")
    if len(shape) < 2 or 0 in shape[2:]:
        raise ValueError(f"{caller}: {name} must be (num_probes, num_chains, *event) with a non-empty event, got {tuple(shape)}")
    if math.prod(shape[2:]) > 2 * MAX_BLOCKS:
        raise ValueError(f"{caller}: a chain must have at most {2 * MAX_BLOCKS} elements, got {math.prod(shape[2:])}")


def _check_tensor(value: Any, name: str, caller: str) -> None:
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{caller}: {name} must be a float32 or float64 tensor, got {got}")
    require_device(value.device, caller)


def probes(
    shape: Sequence[int],
    *,
    key: Key | Tensor,
    probe: str = "rademacher",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Independent probes of mean 0 and covariance I.

    Args:
        shape: (num_probes, num_chains, *event).
        key: seed, step and first chain; probe p has the values of `rademacher` or `normal` at `key.advance(p)`, stream PROBE.
        probe: "rademacher" (signs) or "gaussian" (standard normals).
        dtype: float32 or float64. Signs are the same in both.
        device: where; the key's device by default.

    Returns:
        A tensor of that shape.

    Raises:
        TypeError, ValueError: for anything else than the above.
    """
    is_gaussian = _check_law(probe, "probes")
    _check_shape(shape, "shape", "probes")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"probes: dtype must be torch.float32 or torch.float64, got {dtype}")
    tensor = key.tensor if isinstance(key, Key) else key
    target = torch.device(device) if device is not None else tensor.device if isinstance(tensor, Tensor) else torch.device("cpu")
    require_device(target, "probes")
    return draw_vectors(shape, key_tensor(key, target, "probes"), is_gaussian, dtype)


def draw_vectors(shape: Sequence[int], key: Tensor, is_gaussian: bool, dtype: torch.dtype) -> Tensor:
    """`probes` without its checks, for callers that own all of them."""
    op = _probes_impl if is_plain(key, key, key) else _probes
    result: Tensor = op(list(shape), key, is_gaussian, dtype)
    return result


def probe_dot(u: Tensor, *, key: Key | Tensor, probe: str = "rademacher") -> Tensor:
    """Σ_e v_e u_e for every probe v of every chain; v is made in registers, never stored. Differentiable in u, to any order.

    The order of the sum is fixed: 32 running sums over segments of 4,096 elements, whose sums are added up in float64. It does not depend
    on instruction set, threads or batch.

    Args:
        u: (num_probes, num_chains, *event), float32 or float64. Where all probes share one, expanded over the first dimension, it is not
            copied.
        key, probe: of the probes, as for `probes`.

    Returns:
        (num_probes, num_chains) in the dtype of u.

    Raises:
        TypeError, ValueError: for anything else than the above.
    """
    is_gaussian = _check_law(probe, "probe_dot")
    _check_tensor(u, "u", "probe_dot")
    _check_shape(u.shape, "u", "probe_dot")
    return dot_with_vectors(u, key_tensor(key, u.device, "probe_dot"), is_gaussian)


def dot_with_vectors(u: Tensor, key: Tensor, is_gaussian: bool) -> Tensor:
    """`probe_dot` without its checks, for callers that own all of them."""
    result: Tensor = _probe_dot(u, key, is_gaussian)
    return result


def probe_scale(g: Tensor, shape: Sequence[int], *, key: Key | Tensor, probe: str = "rademacher") -> Tensor:
    """v · g for every probe v of every chain: the adjoint of `probe_dot`. Differentiable in g, to any order.

    Args:
        g: (num_probes, num_chains), float32 or float64.
        shape: of the probes, (num_probes, num_chains, *event).
        key, probe: of the probes, as for `probes`.

    Returns:
        A tensor of that shape, in the dtype of g.

    Raises:
        TypeError, ValueError: for anything else than the above.
    """
    is_gaussian = _check_law(probe, "probe_scale")
    _check_tensor(g, "g", "probe_scale")
    _check_shape(shape, "shape", "probe_scale")
    if g.shape != tuple(shape[:2]):
        raise ValueError(f"probe_scale: g must have shape {tuple(shape[:2])}, got {tuple(g.shape)}")
    result: Tensor = _probe_scale(g, key_tensor(key, g.device, "probe_scale"), list(shape), is_gaussian)
    return result


def probes_reference(
    shape: Sequence[int],
    *,
    key: Key | Tensor,
    probe: str = "rademacher",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """`probes` as single draws."""
    draw = normal if probe == "gaussian" else rademacher
    keys = (key if isinstance(key, Key) else Key.from_tensor(key)).steps(shape[0]).unbind()
    draws = [draw(shape[1:], key=each, stream=Stream.PROBE, dtype=dtype, device=device) for each in keys]
    return torch.stack(draws) if draws else torch.empty(tuple(shape), dtype=dtype, device=device)


def probe_dot_reference(u: Tensor, *, key: Key | Tensor, probe: str = "rademacher") -> Tensor:
    """`probe_dot` in plain torch, with the probes in memory."""
    return (probes_reference(u.shape, key=key, probe=probe, dtype=u.dtype, device=u.device) * u).reshape(*u.shape[:2], -1).sum(2)


def probe_scale_reference(g: Tensor, shape: Sequence[int], *, key: Key | Tensor, probe: str = "rademacher") -> Tensor:
    """`probe_scale` in plain torch."""
    scale = g.reshape(*g.shape, *[1] * (len(shape) - 2))
    return probes_reference(shape, key=key, probe=probe, dtype=g.dtype, device=g.device) * scale
