"""Stand-in."""

from __future__ import annotations

import torch
from torch import Tensor

from ebmcore.ops.random import Stream, normal, rademacher


def probes(shape, *, key, probe="rademacher", dtype=torch.float32, device=None):  # type: ignore[no-untyped-def]
    draw = rademacher if probe == "rademacher" else normal
    return torch.stack([draw(shape[1:], key=key.advance(p), stream=Stream.PROBE, dtype=dtype, device=device) for p in range(shape[0])])


def probe_dot(u: Tensor, *, key, probe="rademacher"):  # type: ignore[no-untyped-def]
    v = probes(u.shape, key=key, probe=probe, dtype=u.dtype, device=u.device)
    return (u * v).flatten(2).sum(2) if u.dim() > 2 else u * v
