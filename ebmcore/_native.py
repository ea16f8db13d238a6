"""The only importer of the compiled modules: `_core` (CPU ops and all bindings) and `_cuda` (CUDA ops, loaded on first use)."""

from __future__ import annotations

import os
from typing import Any

try:
    from ebmcore import _core
except ImportError as error:  # pragma: no cover - a broken installation
    raise ImportError(
        "ebmcore: the compiled module ebmcore._core is missing. In a source checkout run `pip install -e .` first; a plain `pip install .` is "
        "hidden by the checkout's own ebmcore/ folder while Python starts in it."
    ) from error

core: Any = _core  # Any: the ops are handed tensors, which the stub calls objects

version: str = core.__version__

_cuda_problem: str | None = None


def _choose_cpu_target() -> None:
    name = os.environ.get("EBMCORE_TARGET")
    if name:
        if name not in core.cpu_targets():
            raise ImportError(f"EBMCORE_TARGET must be one of {', '.join(core.cpu_targets())} on this machine and build, got {name!r}")
        core.set_cpu_target(name)


_choose_cpu_target()


def cuda_problem() -> str:
    """Why CUDA ops cannot run here; empty if they can. Loads the CUDA module."""
    global _cuda_problem
    if _cuda_problem is None:
        try:
            from ebmcore import _cuda
        except ImportError as error:
            _cuda_problem = f"ebmcore was built without CUDA ({error}); rebuild with EBMCORE_CUDA=ON and nvcc"
        else:
            core.set_cuda_table(_cuda.table())
            _cuda_problem = _cuda.problem()
    return _cuda_problem


def require_device(device_type: str, caller: str) -> None:
    """Raise unless the ops can run on that type of device; CUDA's table is loaded here."""
    if device_type != "cuda":
        raise RuntimeError(f"{caller}: tensors must be on the CPU or a CUDA device, got {device_type!r}")
    if problem := cuda_problem():
        raise RuntimeError(f"{caller}: CUDA tensors cannot be used: {problem}")


def info() -> dict[str, Any]:
    """Version, CPU instruction sets, CUDA, threads."""
    return {
        "version": version,
        "cpu_targets": core.cpu_targets(),
        "cpu_target": core.cpu_target(),
        "bfloat16_products": ("emulated", "avx512_bf16", "amx")[core.bfloat16_products()],
        "cuda_built": not cuda_problem().startswith("ebmcore was built without CUDA"),
        "cuda_problem": cuda_problem(),
        "num_threads": core.get_num_threads(),
        "thread_pool": core.thread_pool(),
    }
