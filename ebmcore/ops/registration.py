"""How a native op becomes a torch op: schema, implementation, fake, vmap, and the checks that every op shares.

`Library.define/impl` costs a quarter of `custom_op` per call. What it leaves to us: version counters of written tensors.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ebmcore import _native
from ebmcore.types import Key

_library = torch.library.Library("ebmcore", "DEF")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any], vmap: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Define `ebmcore::<schema>` for CPU and CUDA tensors and return the callable op.

    vmap: a rule as of torch.library.register_vmap, but for its first argument, what it is to call; None refuses vmap.
    """
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_contiguous_strides))
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    torch.library.register_fake(f"ebmcore::{name}", fake, lib=_library)
    op: Callable[..., Any] = getattr(torch.ops.ebmcore, name).default

    torch.library.register_vmap(f"ebmcore::{name}", _rule(name, vmap, op), lib=_library)
    return op


def _rule(name: str, vmap: Callable[..., Any] | None, callee: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"ebmcore.ops.{name}: torch.func.vmap is not supported: rows would share their noise. The first axis is already the batch."
        )

    return functools.partial(vmap, callee) if vmap else refuse


def differentiate(
    name: str,
    implementation: Callable[..., Any],
    num_tensors: int,
    *,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    jvp: Callable[..., Any],
    vmap: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """The registered op `name`, differentiable by the rules of an autograd.Function, whose first one or two arguments are its tensors.

    Compiled graphs hold the op. Elsewhere an autograd.Function calls it: it costs half as much, has forward mode and goes with torch.func.
    """
    torch.library.register_autograd(f"ebmcore::{name}", backward, setup_context=setup_context, lib=_library)
    op = getattr(torch.ops.ebmcore, name).default
    last = num_tensors - 1

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*arguments)
        a, b = arguments[0], arguments[last]
        if not is_plain(a, b, b):
            return function.apply(*arguments)
        needs_graph = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
        return (apply if needs_graph or forward_ad._current_level >= 0 else implementation)(*arguments)

    def forward(*arguments: Any) -> Any:
        return (implementation if is_plain(arguments[0], arguments[last], arguments[last]) else op)(*arguments)

    rules = {"forward": forward, "setup_context": setup_context, "backward": backward, "jvp": jvp, "vmap": _rule(name, vmap, call)}
    function: Any = type(name, (torch.autograd.Function,), {rule: staticmethod(value) for rule, value in rules.items()})
    apply = super(torch.autograd.Function, function).apply  # without the binding of default arguments, which costs more than the rest
    return call


_num_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", None)
_functorch_level = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)


def is_plain(a: Tensor, b: Tensor, c: Tensor) -> bool:
    """Whether an op on these may call its implementation at once: nothing traces, transforms or intercepts it. Dispatch costs 4 µs."""
    if _num_dispatch_modes is None or _functorch_level is None or torch.compiler.is_compiling():
        return False
    is_tensor = type(a) is Tensor and type(b) is Tensor and type(c) is Tensor
    return is_tensor and _num_dispatch_modes() == 0 and _functorch_level() is None


def key_tensor(key: Key | Tensor, device: torch.device, caller: str) -> Tensor:
    """The int64 [seed, step, first_chain] of `key`, on `device`."""
    tensor = key.tensor if type(key) is Key else key
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or tensor.shape != (3,):
        got = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)
        raise TypeError(f"{caller}: key must be an ebmcore.Key or an int64 tensor [seed, step, first_chain], got {got}")
    if tensor.device != device:
        tensor = tensor.to(device)
    return tensor


def number(value: Any, name: str, caller: str, *, low: float = -math.inf, strict: bool = False, finite: bool = True) -> float:
    """`value` as a float, at least `low` (above it if `strict`)."""
    if type(value) is float and low < value < math.inf:  # what nearly all calls bring
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{caller}: {name} must be a number, got {value!r}")
    x = float(value)
    if math.isnan(x) or (finite and math.isinf(x)) or x < low or (strict and x == low):
        wanted = "a finite number" if low == -math.inf else f"a finite number {'>' if strict else '>='} {low:g}"
        raise ValueError(f"{caller}: {name} must be {wanted}, got {x!r}")
    return x


def require_device(device: torch.device, caller: str) -> None:
    """Raise unless the ops can run on `device`."""
    if device.type != "cpu":
        _native.require_device(device.type, caller)
