"""
CUDA ops of ebmcore. Private: use ebmcore.ops.
"""

from __future__ import annotations
import typing_extensions

__all__: list[str] = ["problem", "table"]

def problem() -> str:
    """
    Why no kernel can run here; empty if one can.
    """

def table() -> typing_extensions.CapsuleType: ...
