"""How many threads a native CPU op may use. No result depends on it."""

from __future__ import annotations

from ebmcore import _native


def get_num_threads() -> int:
    """Threads that a native CPU op may use; torch.get_num_threads() unless it was set."""
    return int(_native.core.get_num_threads())


def set_num_threads(num_threads: int | None) -> None:
    """Use at most `num_threads` threads in native CPU ops; None follows torch again.

    They are borrowed from torch's pool, which never runs more than torch.get_num_threads() at a time.

    Raises:
        TypeError, ValueError: for anything but None or an int > 0.
    """
    if num_threads is None:
        _native.core.set_num_threads(0)
        return
    if isinstance(num_threads, bool) or not isinstance(num_threads, int):
        raise TypeError(f"set_num_threads: num_threads must be an int or None, got {num_threads!r}")
    if not 0 < num_threads < 2**15:
        raise ValueError(f"set_num_threads: num_threads must be in [1, 32767], got {num_threads}")
    _native.core.set_num_threads(num_threads)
