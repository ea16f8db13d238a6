"""Peak memory of a call: bytes of tensors that are alive at once, by torch's own count of allocations, so the same at every run."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.autograd.profiler import profile


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that torch's allocator had given out at once during run(), over what it had given out before. Run it once before: caches fill."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes its start and stop to stderr otherwise
    with profile(profile_memory=True) as record:
        result = run()  # alive until the record is closed, as for a caller who keeps it
    del result
    now = peak = 0
    for event in sorted((e for e in record.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
