"""Counter-based noise: Philox4x32-10 words, uniforms, normals, signs and bits.

Every draw is a pure function of (seed, step, chain, element, stream); csrc/core/philox.h has the layout. Row i of a result belongs to
chain `key.first_chain + i`, so it does not change with the number of rows, of threads, the instruction set or (words, and all that
follows from them without rounding) the device.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor

from ebmcore import _native
from ebmcore.ops.registration import key_tensor, number, register, require_device
from ebmcore.types import Key, bounded_int

MAX_BLOCKS = 2**32  # of a chain: the counter's first word


class Stream(enum.IntEnum):
    """What a draw is for. Draws of different streams never meet. Numbers are part of the noise contract: add, never renumber."""

    USER = 0
    PROPOSAL = 1
    ACCEPTANCE = 2
    PROBE = 3
    INIT = 4
    BUFFER = 5
    DATA = 6
    TIE = 7  # the low bits of a draw whose high bits did not decide
    HIDDEN = 8  # units that are no part of the state
    NOISE = 9  # perturbations of data
    LEVEL = 10  # noise levels of rows
    JITTER = 11  # lengths of trajectories
    SWAP = 12  # exchanges between temperatures
    MOMENTUM = 13  # of chains that start
    COMPLEMENT = 14  # noise in directions that an energy does not see


_ELEMENTS_PER_BLOCK = {
    "philox": (4, 4),
    "uniform": (4, 2),
    "normal": (4, 2),
    "rademacher": (128, 128),
    "bernoulli": (4, 4),
}  # (float32, float64)


def _define(kind: str):  # type: ignore[no-untyped-def]
    def implementation(shape: list[int], key: Tensor, stream: int, first_block: int, threshold: int, dtype: torch.dtype) -> Tensor:
        out = torch.empty(shape, dtype=dtype, device=key.device)
        extra = (threshold,) if kind == "bernoulli" else ()
        getattr(_native.core, kind)(out, key, stream, first_block, *extra)
        return out

    def fake(shape: list[int], key: Tensor, stream: int, first_block: int, threshold: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=key.device)

    return register(
        f"{kind}(SymInt[] shape, Tensor key, int stream, int first_block, int threshold, ScalarType dtype) -> Tensor", implementation, fake
    )


_OPS = {kind: _define(kind) for kind in _ELEMENTS_PER_BLOCK}


def _draw(
    kind: str,
    shape: Sequence[int],
    key: Key | Tensor,
    stream: int,
    first_block: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
    threshold: int = 0,
) -> Tensor:
    if not isinstance(shape, Sequence) or len(shape) < 1 or any(not isinstance(n, int | torch.SymInt) or n < 0 for n in shape):
        raise ValueError(f"{kind}: shape must be (num_chains, *event) of ints >= 0, got {shape!r}")
    if dtype not in (torch.float32, torch.float64) and kind != "philox":
        raise TypeError(f"{kind}: dtype must be torch.float32 or torch.float64, got {dtype}")
    stream = bounded_int(stream, "stream", kind, high=256)
    first_block = bounded_int(first_block, "first_block", kind)
    event = 1
    for n in shape[1:]:
        event *= n
    per_block = _ELEMENTS_PER_BLOCK[kind][dtype == torch.float64]
    if first_block + -(-event // per_block) > MAX_BLOCKS:
        raise ValueError(f"{kind}: a chain has 2**32 blocks of {per_block} elements, got first_block={first_block} and {event} elements")
    tensor = key.tensor if isinstance(key, Key) else key
    target = torch.device(device) if device is not None else tensor.device if isinstance(tensor, Tensor) else torch.device("cpu")
    tensor = key_tensor(key, target, kind)
    require_device(target, kind)
    result: Tensor = _OPS[kind](list(shape), tensor, stream, first_block, threshold, dtype)
    return result


def philox(
    shape: Sequence[int], *, key: Key | Tensor, stream: int = Stream.USER, first_block: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Random 32-bit words, uint32 of shape `shape` = (num_chains, *event); word i of a chain is word i mod 4 of block i // 4.

    Args:
        key: seed, step and first chain.
        stream: what the words are for, 0 to 255.
        first_block: the block of element 0.
        device: where; the key's device by default.

    Raises:
        TypeError, ValueError: for anything else than the above, or more than 2**32 blocks in a chain.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    return _draw("philox", shape, key, stream, first_block, torch.uint32, device)


def uniform(
    shape: Sequence[int],
    *,
    key: Key | Tensor,
    stream: int = Stream.USER,
    first_block: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform on the midpoints (k + 1/2) / 2**23 (float64: 2**52), never 0 and never 1. Arguments and errors as `philox`."""
    return _draw("uniform", shape, key, stream, first_block, dtype, device)


def normal(
    shape: Sequence[int],
    *,
    key: Key | Tensor,
    stream: int = Stream.USER,
    first_block: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normals by Box & Muller (1958), radius from all 32 bits of a word (float64: 53), so |z| < 6.8 (8.6). As `philox`."""
    return _draw("normal", shape, key, stream, first_block, dtype, device)


def rademacher(
    shape: Sequence[int],
    *,
    key: Key | Tensor,
    stream: int = Stream.USER,
    first_block: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """+1 or -1 with probability 1/2 each, one bit an element (bit set: -1), the same in float32 and float64. As `philox`."""
    return _draw("rademacher", shape, key, stream, first_block, dtype, device)


def bernoulli(
    shape: Sequence[int],
    probability: float,
    *,
    key: Key | Tensor,
    stream: int = Stream.USER,
    first_block: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """1 with `probability` (rounded to a multiple of 2**-32; 0 and 1 are exact), else 0. As `philox`."""
    p = number(probability, "probability", "bernoulli", low=0.0)
    if p > 1.0:
        raise ValueError(f"bernoulli: probability must be in [0, 1], got {p!r}")
    draws = _draw("bernoulli", shape, key, stream, first_block, dtype, device, threshold=min(round(p * 2**32), 2**32 - 1))
    return torch.ones_like(draws) if p == 1.0 else draws
