"""The fused Langevin step: noise, drift, clipping and clamp in one pass over the state.

x' = clamp(x - step_size · clip(∇E(x)) + noise_std · ξ), ξ ~ N(0, I) (Rossky, Doll & Friedman 1978; Welling & Teh 2011 with its own
scaling). The gradient comes in as an argument: the step does not know the energy.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from ebmcore import _native
from ebmcore.ops.random import MAX_BLOCKS, Stream, normal
from ebmcore.ops.registration import is_plain, key_tensor, number, register, require_device
from ebmcore.types import STATE_DTYPES, Key, bounded_int

Array = TypeVar("Array", Tensor, "np.ndarray[Any, Any]")

_ARGUMENTS = (
    "Tensor grad, Tensor key, float step_size, float noise_std, float clip_grad, float clip_grad_norm, float clamp_min, float clamp_max, int stream"
)


def _launch(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    key: Tensor,
    step_size: float,
    noise_std: float,
    clip_grad: float,
    clip_grad_norm: float,
    clamp_min: float,
    clamp_max: float,
    stream: int,
) -> None:
    x = x.contiguous()
    target = out if out.is_contiguous() else torch.empty_like(x)
    workspace = None
    if clip_grad_norm < math.inf:
        segments = -(-x[:1].numel() // _native.core.NORM_SEGMENT)
        workspace = torch.empty(len(x) * (segments + 1), dtype=torch.float64, device=x.device)
    _native.core.langevin_step(
        target, x, grad.contiguous(), key, step_size, noise_std, clip_grad, clip_grad_norm, clamp_min, clamp_max, workspace, stream
    )
    if target is out:
        torch.autograd.graph.increment_version(out)
    else:
        out.copy_(target)


def _functional(x: Tensor, *arguments: Any) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(out, x, *arguments)
    return out


def _into(out: Tensor, x: Tensor, *arguments: Any) -> None:
    _launch(out, x, *arguments)


def _in_place(x: Tensor, *arguments: Any) -> None:
    _launch(x, x, *arguments)


_langevin_step = register(
    f"langevin_step(Tensor x, {_ARGUMENTS}) -> Tensor", _functional, lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format)
)
_langevin_step_into = register(f"langevin_step_into(Tensor(a!) out, Tensor x, {_ARGUMENTS}) -> ()", _into, lambda *_: None)
_langevin_step_ = register(f"langevin_step_(Tensor(a!) x, {_ARGUMENTS}) -> ()", _in_place, lambda *_: None)


def _check_state(x: Any, name: str, caller: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{caller}: {name} must be a torch.Tensor or a numpy.ndarray, got {type(x).__name__}")
    if x.dtype not in STATE_DTYPES or x.layout != torch.strided:
        raise TypeError(f"{caller}: {name} must be dense float32, float64, bfloat16 or float16, got {x.dtype} ({x.layout})")
    if x.dim() < 1 or (x.numel() == 0 and 0 in x.shape[1:]):
        raise ValueError(f"{caller}: {name} must have shape (num_chains, *event) with a non-empty event, got {tuple(x.shape)}")
    if x.numel() > 2 * MAX_BLOCKS and x[:1].numel() > 2 * MAX_BLOCKS:
        raise ValueError(f"{caller}: a chain must have at most {2 * MAX_BLOCKS} elements, got {x[:1].numel()}")


def _check_like(value: Any, x: Tensor, name: str, caller: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{caller}: {name} must be a torch.Tensor, as x is, got {type(value).__name__}")
    if value.shape != x.shape:
        raise ValueError(f"{caller}: {name} must have shape {tuple(x.shape)}, got {tuple(value.shape)}")
    if value.dtype != x.dtype:
        raise TypeError(f"{caller}: {name} must have dtype {x.dtype}, got {value.dtype}")
    if value.device != x.device:
        raise ValueError(f"{caller}: {name} must be on {x.device}, got {value.device}")


def _check_writable(tensor: Tensor, name: str, caller: str, *inputs: Tensor) -> None:
    for each in (tensor, *inputs):
        if each.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{caller}: {name} is written in place, without a graph, so it and the inputs must not require grad")
    if not tensor.is_contiguous() and any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ValueError(f"{caller}: {name} is written in place and must not be expanded, got strides {tensor.stride()}")


StepArguments = tuple[float, float, float, float, float, float, int]
"""(step_size, noise_std, clip_grad, clip_grad_norm, clamp_min, clamp_max, stream) with infinities for what is not wanted."""


def step_arguments(
    caller: str, step_size: Any, noise_std: Any, clip_grad: Any, clip_grad_norm: Any, clamp: Any, stream: Any = Stream.PROPOSAL
) -> StepArguments:
    """The scalar arguments of a step, checked once for many steps."""
    step_size = number(step_size, "step_size", caller, low=0.0, strict=True)
    noise_std = number(noise_std, "noise_std", caller, low=0.0)
    clip_grad = math.inf if clip_grad is None else number(clip_grad, "clip_grad", caller, low=0.0, strict=True)
    clip_grad_norm = math.inf if clip_grad_norm is None else number(clip_grad_norm, "clip_grad_norm", caller, low=0.0, strict=True)
    clamp_min, clamp_max = bounds(clamp, caller)
    return step_size, noise_std, clip_grad, clip_grad_norm, clamp_min, clamp_max, bounded_int(stream, "stream", caller, high=256)


def step_into(out: Tensor | None, x: Tensor, grad: Tensor, key: Tensor, arguments: StepArguments) -> Tensor:
    """`langevin_step` without its checks, for callers that own x and grad: tensors of one dtype, shape and device."""
    if is_plain(x, grad, key):
        out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
        _launch(out, x, grad, key, *arguments)
        return out
    if out is None:
        result: Tensor = _langevin_step(x, grad, key, *arguments)
        return result
    if out is x:
        _langevin_step_(x, grad, key, *arguments)
    else:
        _langevin_step_into(out, x, grad, key, *arguments)
    return out


def bounds(clamp: Any, caller: str) -> tuple[float, float]:
    """The two ends of a `clamp` argument: (low, high), or None for no clamp."""
    if clamp is None:
        return -math.inf, math.inf
    if not isinstance(clamp, tuple | list) or len(clamp) != 2:
        raise TypeError(f"{caller}: clamp must be None or (low, high), got {clamp!r}")
    low = number(clamp[0], "clamp[0]", caller, finite=False)
    high = number(clamp[1], "clamp[1]", caller, finite=False)
    if low >= high:
        raise ValueError(f"{caller}: clamp must have low < high, got {clamp!r}")
    return low, high


def _prepare(caller: str, x: Tensor, grad: Tensor, key: Key | Tensor) -> Tensor:
    _check_state(x, "x", caller)
    _check_like(grad, x, "grad", caller)
    device = x.device
    require_device(device, caller)
    return key_tensor(key, device, caller)


@overload
def langevin_step(
    x: Tensor,
    grad: Tensor,
    *,
    step_size: float,
    noise_std: float,
    key: Key | Tensor,
    clip_grad: float | None = ...,
    clip_grad_norm: float | None = ...,
    clamp: tuple[float, float] | None = ...,
    out: Tensor | None = ...,
    stream: int = ...,
) -> Tensor: ...
@overload
def langevin_step(
    x: np.ndarray[Any, Any],
    grad: np.ndarray[Any, Any],
    *,
    step_size: float,
    noise_std: float,
    key: Key | Tensor,
    clip_grad: float | None = ...,
    clip_grad_norm: float | None = ...,
    clamp: tuple[float, float] | None = ...,
    out: np.ndarray[Any, Any] | None = ...,
    stream: int = ...,
) -> np.ndarray[Any, Any]: ...
def langevin_step(
    x: Any,
    grad: Any,
    *,
    step_size: float,
    noise_std: float,
    key: Key | Tensor,
    clip_grad: float | None = None,
    clip_grad_norm: float | None = None,
    clamp: tuple[float, float] | None = None,
    out: Any = None,
    stream: int = Stream.PROPOSAL,
) -> Any:
    """One Langevin step, x' = clamp(x - step_size · clip(grad) + noise_std · ξ), in one pass.

    With noise_std = sqrt(2 · step_size · T) and grad = ∇E(x) the chain targets exp(-E/T), exactly only as step_size -> 0.

    Args:
        x: (num_chains, *event), float32, float64, bfloat16 or float16, any strides, CPU or CUDA; or a NumPy array.
            bfloat16 and float16 are computed in float32 and rounded once.
        grad: gradient of the energy, shaped and typed as x.
        step_size: > 0.
        noise_std: >= 0; nothing is drawn for 0.
        key: seed, step and first chain of the noise; the same key gives the same noise.
        clip_grad: every component of grad is cut to [-clip_grad, clip_grad].
        clip_grad_norm: grad of a chain is scaled down to this Euclidean norm, before clip_grad.
        clamp: (low, high) of the result.
        out: written and returned; may be x itself, else must not overlap x or grad.
        stream: what the noise is for (`Stream`); two samplers under one seed can be kept apart by it.

    Returns:
        x', shaped and typed as x (`out` if given). If x or grad requires grad, it is computed by the differentiable
        `langevin_step_reference`, to the same bits but for clip_grad_norm's last one.

    A NaN in x or grad, or an infinite gradient under clipping or clamp, gives NaN; it is never replaced by a number.

    Raises:
        TypeError, ValueError: for arguments that are not as above. Nothing was written then.
        RuntimeError: for CUDA tensors where CUDA cannot run.
    """
    if isinstance(x, np.ndarray):
        return _numpy_step(x, grad, out, step_size, noise_std, key, clip_grad, clip_grad_norm, clamp, stream)
    tensor = _prepare("langevin_step", x, grad, key)
    arguments = step_arguments("langevin_step", step_size, noise_std, clip_grad, clip_grad_norm, clamp, stream)
    if out is not None:
        _check_like(out, x, "out", "langevin_step")
        _check_writable(out, "out", "langevin_step", x, grad)
    elif torch.is_grad_enabled() and (x.requires_grad or grad.requires_grad):
        return langevin_step_reference(
            x,
            grad,
            step_size=step_size,
            noise_std=noise_std,
            key=key,
            clip_grad=clip_grad,
            clip_grad_norm=clip_grad_norm,
            clamp=clamp,
            stream=stream,
        )
    return step_into(out, x, grad, tensor, arguments)


def langevin_step_(
    x: Array,
    grad: Array,
    *,
    step_size: float,
    noise_std: float,
    key: Key | Tensor,
    clip_grad: float | None = None,
    clip_grad_norm: float | None = None,
    clamp: tuple[float, float] | None = None,
    stream: int = Stream.PROPOSAL,
) -> Array:
    """`langevin_step` that writes into x, and returns x."""
    if isinstance(x, np.ndarray):
        _numpy_step(x, grad, x, step_size, noise_std, key, clip_grad, clip_grad_norm, clamp, stream)
        return x
    tensor = _prepare("langevin_step_", x, grad, key)
    _check_writable(x, "x", "langevin_step_", grad)
    return step_into(x, x, grad, tensor, step_arguments("langevin_step_", step_size, noise_std, clip_grad, clip_grad_norm, clamp, stream))


def _numpy_step(
    x: Any, grad: Any, out: Any, step_size: Any, noise_std: Any, key: Any, clip_grad: Any, clip_grad_norm: Any, clamp: Any, stream: Any
) -> Any:
    for name, array in (("x", x), ("grad", grad), ("out", out)):
        if not isinstance(array, np.ndarray) and not (name == "out" and array is None):
            raise TypeError(f"langevin_step: {name} must be a numpy.ndarray, as x is, got {type(array).__name__}")
    if out is not None and not out.flags.writeable:
        raise ValueError("langevin_step: out must be a writeable array")
    result = langevin_step(
        _from_numpy(x),
        _from_numpy(grad),
        step_size=step_size,
        noise_std=noise_std,
        key=key,
        clip_grad=clip_grad,
        clip_grad_norm=clip_grad_norm,
        clamp=clamp,
        out=None if out is None or any(s < 0 for s in out.strides) else torch.from_numpy(out),
        stream=stream,
    ).numpy()
    if out is None:
        return result
    if any(s < 0 for s in out.strides):
        out[...] = result
    return out


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    if any(s < 0 for s in array.strides) or not array.flags.writeable:  # torch has no negative strides and warns of read-only memory
        array = array.copy()
    return torch.from_numpy(array)


def langevin_step_reference(
    x: Tensor,
    grad: Tensor,
    *,
    step_size: float,
    noise_std: float,
    key: Key | Tensor,
    clip_grad: float | None = None,
    clip_grad_norm: float | None = None,
    clamp: tuple[float, float] | None = None,
    stream: int = Stream.PROPOSAL,
) -> Tensor:
    """`langevin_step` in plain torch with the same noise; differentiable in x and grad."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    y, g = x.to(compute), grad.to(compute)
    if clip_grad_norm is not None:
        norm = g.double().flatten(1).square().sum(1).sqrt()
        scale = torch.where(norm > clip_grad_norm, clip_grad_norm / norm, 1.0) + (norm - norm)
        g = g * scale.to(compute).reshape(-1, *[1] * (x.dim() - 1))
    if clip_grad is not None:
        g = g.clamp(-clip_grad, clip_grad) + (g - g)
    elif clamp is not None and any(map(math.isfinite, clamp)):
        g = g + (g - g)
    y = y - g * step_size
    if noise_std != 0.0:
        y = y + normal(x.shape, key=key, stream=stream, dtype=compute, device=x.device) * noise_std
    if clamp is not None:
        y = y.clamp(*clamp)
    return y.to(x.dtype)
