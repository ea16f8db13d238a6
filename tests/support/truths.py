"""The project's exact reference numbers, which lie beside the checkout in shared/truths and may be absent."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "truths"


def truth(name: str) -> Any:
    """The content of `name`.json; the test is skipped where there is none."""
    if not (FOLDER / f"{name}.json").is_file():
        pytest.skip(f"no truths at hand: there is no {name}.json in ../shared/truths beside the checkout")
    return _load(name)


def truth_arrays(name: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of `name`.npz; the test is skipped where there is none."""
    if not (FOLDER / f"{name}.npz").is_file():
        pytest.skip(f"no truths at hand: there is no {name}.npz in ../shared/truths beside the checkout")
    return _load_arrays(name)


@functools.cache
def _load_arrays(name: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


@functools.cache
def _load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())
