"""Checkpoints that are whole or not there: written beside the old file and moved over it, read only if the checksum holds.

A file is  magic (8 bytes) | version (u32) | length of the payload (u64) | SHA-256 of the payload (32) | payload (`torch.save`),
little-endian.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_MAGIC, _VERSION = b"EBMCKPT\n", 1
_HEADER = struct.Struct("<8sIQ32s")


class CheckpointError(RuntimeError):
    """A file that is no whole checkpoint of this version, or whose contents do not fit what they are loaded into."""


class Stateful(Protocol):
    """Modules, optimizers, schedulers, averaged models, buffers."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Any, /) -> Any: ...


def save_checkpoint(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> None:
    """Replace `path` by `payload` in one step: a kill or a full disk on the way leaves the old file as it was.

    What a kill leaves behind is at most `.<name>.<pid>.tmp` in the same folder.

    Args:
        path: its folder exists and has room for both files.
        payload: what `torch.load(weights_only=True)` can read: tensors, numbers, strings, None, and lists and dicts of them.

    Raises:
        TypeError: the payload holds something else.
        OSError: the file could not be written.
    """
    stream = io.BytesIO()
    torch.save(dict(payload), stream)
    body = stream.getbuffer()
    try:
        torch.load(io.BytesIO(body), map_location="meta", weights_only=True)
    except Exception as error:
        raise TypeError(f"save_checkpoint: payload must be loadable with weights_only=True, got {error}") from error
    path = Path(os.path.realpath(path))  # a link stays a link
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(part, "wb") as file:
            file.write(_HEADER.pack(_MAGIC, _VERSION, len(body), hashlib.sha256(body).digest()))
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name is on disk when its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The payload of `path`, on the CPU. No code in the file is run.

    Raises:
        CheckpointError: the file is empty, foreign, truncated, damaged, or of a newer version.
        OSError: it is not there or not readable.
    """
    blob = Path(path).read_bytes()
    if not blob:
        raise CheckpointError(f"load_checkpoint: {path} is empty")
    if blob[: len(_MAGIC)] != _MAGIC[: len(blob)]:
        raise CheckpointError(f"load_checkpoint: {path} is no ebmcore checkpoint (it starts with {blob[:8]!r})")
    if len(blob) < _HEADER.size:
        raise CheckpointError(f"load_checkpoint: {path} is truncated: {len(blob)} bytes, the header alone has {_HEADER.size}")
    _, version, length, digest = _HEADER.unpack_from(blob)
    if version != _VERSION:
        raise CheckpointError(f"load_checkpoint: {path} has format version {version}, this ebmcore reads {_VERSION}")
    body = memoryview(blob)[_HEADER.size :]
    if len(body) != length:
        reason = "truncated" if len(body) < length else "too long"
        raise CheckpointError(f"load_checkpoint: {path} is {reason}: payload of {len(body)} bytes, the header says {length}")
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError(f"load_checkpoint: {path} is damaged: its SHA-256 is not the one in the header")
    try:
        payload = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"load_checkpoint: {path} is whole, but this torch {torch.__version__} cannot read it: {error}") from error
    if not isinstance(payload, dict):
        raise CheckpointError(f"load_checkpoint: {path} must hold a dict, got {type(payload).__name__}")
    return payload


class Checkpoint:
    """The states of named objects, and plain values beside them, in one file.

        checkpoint = Checkpoint("run.ckpt", energy=energy, optimizer=optimizer, buffer=buffer)
        checkpoint.save(iteration=100, key=key.tensor)
        values = checkpoint.load()               # {"iteration": 100, "key": ...}; the objects are as they were

    Args:
        path: the file; its folder exists.
        objects: whatever has state_dict and load_state_dict.
    """

    def __init__(self, path: str | os.PathLike[str], **objects: Stateful) -> None:
        self.path = Path(path)
        self.objects = objects

    def save(self, **values: Any) -> None:
        """Write the objects' states and `values` (see `save_checkpoint`)."""
        save_checkpoint(self.path, {"objects": {name: each.state_dict() for name, each in self.objects.items()}, "values": values})

    def load(self, **expected: Any) -> dict[str, Any]:
        """Restore all objects or, raising CheckpointError, none of them. Returns the values; those named in `expected` must be equal."""
        payload = load_checkpoint(self.path)
        states, values = payload.get("objects"), payload.get("values")
        if not isinstance(states, dict) or not isinstance(values, dict):
            raise CheckpointError(f"Checkpoint.load: {self.path} must hold objects and values, got {sorted(payload)}")
        if states.keys() != self.objects.keys():
            raise CheckpointError(f"Checkpoint.load: {self.path} must hold {sorted(self.objects)}, got {sorted(states)}")
        for name, wanted in expected.items():
            if name not in values or values[name] != wanted:
                raise CheckpointError(f"Checkpoint.load: {self.path}: {name} must be {wanted}, got {values.get(name)}")
        for name, each in self.objects.items():
            if isinstance(each, nn.Module):
                self._check_module(name, each.state_dict(), states[name])
        before = {name: copy.deepcopy(each.state_dict()) for name, each in self.objects.items()}
        try:
            for name, each in self.objects.items():
                each.load_state_dict(states[name])
        except BaseException as error:
            for name, each in self.objects.items():
                each.load_state_dict(before[name])
            if isinstance(error, Exception):
                raise CheckpointError(f"Checkpoint.load: {self.path} does not fit: {error}") from error
            raise
        return values

    def _check_module(self, name: str, mine: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """load_state_dict would cast another dtype silently."""
        if state.keys() != mine.keys():
            raise CheckpointError(f"Checkpoint.load: {self.path}: {name} must have {sorted(mine)}, got {sorted(state)}")
        for part, tensor in mine.items():
            got = state[part]
            if isinstance(tensor, Tensor) and (not isinstance(got, Tensor) or got.shape != tensor.shape or got.dtype != tensor.dtype):
                got = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
                raise CheckpointError(f"Checkpoint.load: {self.path}: {name}.{part} must be {tensor.dtype} {tuple(tensor.shape)}, got {got}")
