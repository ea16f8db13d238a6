from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from ebmcore.training import Checkpoint, CheckpointError, ReplayBuffer, load_checkpoint, save_checkpoint
from ebmcore.training import checkpoint as module

PAYLOAD = {"x": torch.arange(6, dtype=torch.float64).reshape(2, 3), "step": 2**40, "names": ["a", None], "nested": {"lr": 0.1, 3: True}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run.ckpt", PAYLOAD)
    return tmp_path / "run.ckpt"


def assert_is_payload(path: Path) -> None:
    loaded = load_checkpoint(path)
    assert loaded.keys() == PAYLOAD.keys()
    assert torch.equal(loaded["x"], PAYLOAD["x"])
    assert loaded["x"].dtype == torch.float64
    assert all(loaded[name] == PAYLOAD[name] for name in ("step", "names", "nested"))


def test_round_trip(path):
    assert_is_payload(path)
    assert [p.name for p in path.parent.iterdir()] == ["run.ckpt"]  # nothing is left lying about
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_every_truncation_is_told(path):
    whole = path.read_bytes()
    for length in [*range(70), *range(70, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is truncated" if length else "is empty"):
            load_checkpoint(path)


def test_every_flipped_bit_is_told(path):
    whole = path.read_bytes()
    for position in [*range(52), *range(52, len(whole), 29), len(whole) - 1]:
        for bit in (0, 7):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            reason = "is no ebmcore checkpoint" if position < 8 else "has format version" if position < 12 else "truncated|too long|damaged"
            with pytest.raises(CheckpointError, match=reason):
                load_checkpoint(path)


def test_foreign_files_are_told(path):
    whole = path.read_bytes()
    torch_file = io.BytesIO()
    torch.save(PAYLOAD, torch_file)
    for blob in (torch_file.getvalue(), b"\x89PNG\r\n\x1a\n" + bytes(100), b"E", b"EBM?", bytes(1000), b"MZ"):
        path.write_bytes(blob)
        with pytest.raises(CheckpointError, match="is truncated" if blob == b"E" else "is no ebmcore checkpoint"):
            load_checkpoint(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="is too long"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path.with_name("none"))
    with pytest.raises(IsADirectoryError):
        load_checkpoint(path.parent)


def test_newer_version_is_told(path, monkeypatch):
    monkeypatch.setattr(module, "_VERSION", 2)
    save_checkpoint(path, PAYLOAD)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format version 2, this ebmcore reads 1"):
        load_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_no_code_is_saved_or_run(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with pytest.raises(TypeError, match="payload must be loadable with weights_only=True"):
        save_checkpoint(path, {"bomb": Bomb()})
    assert_is_payload(path)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: None)  # a file from somebody who does not check
    save_checkpoint(path, {"bomb": Bomb()})
    monkeypatch.undo()
    monkeypatch.chdir(path.parent)
    with pytest.raises(CheckpointError, match="cannot read it"):
        load_checkpoint(path)
    assert not Path("exploded").exists()


class FullDisk:
    """A file on a disk with room for `room` bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, block):
        self.file.write(bytes(block)[: self.room])
        if (room := self.room - len(block)) < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room = room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize("room", [0, 20, 52, 400])
def test_full_disk_leaves_the_old_file(path, monkeypatch, room):
    monkeypatch.setattr(module, "open", lambda name, mode: FullDisk(open(name, mode), room), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"new": torch.zeros(1000)})
    assert_is_payload(path)
    assert [p.name for p in path.parent.iterdir()] == ["run.ckpt"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), KeyboardInterrupt()])
def test_failure_before_the_end_leaves_the_old_file(path, monkeypatch, where, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(module.os, where, fail)
    with pytest.raises(type(error)):
        save_checkpoint(path, {"new": 1})
    monkeypatch.undo()
    assert_is_payload(path)
    assert [p.name for p in path.parent.iterdir()] == ["run.ckpt"]


def test_the_bytes_are_on_disk_before_the_name(tmp_path, monkeypatch):
    calls, replace, fsync = [], os.replace, os.fsync

    def note_fsync(descriptor):
        size = os.fstat(descriptor).st_size
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else f"file of {size}")
        fsync(descriptor)

    monkeypatch.setattr(module.os, "fsync", note_fsync)
    monkeypatch.setattr(module.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    save_checkpoint(tmp_path / "run.ckpt", PAYLOAD)
    assert calls == [f"file of {(tmp_path / 'run.ckpt').stat().st_size}", "replace", "folder"]


KILLED = """
import os, signal, sys
from ebmcore.training import checkpoint
where, path = sys.argv[1:]
def die(*args): os.kill(os.getpid(), signal.SIGKILL)
if where == "write":
    class Half:
        def __init__(self, file): self.file = file
        def write(self, block): self.file.write(bytes(block)[: len(block) // 2]); self.file.flush(); die()
        def __enter__(self): return self
        def __exit__(self, *error): pass
    checkpoint.open = lambda name, mode: Half(open(name, mode))
else:
    setattr(os, where, die)
checkpoint.save_checkpoint(path, {"new": 1})
"""


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_kill_during_saving_leaves_the_old_file(path, where):
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), where, str(path)], capture_output=True, timeout=120)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert_is_payload(path)
    assert len(list(path.parent.iterdir())) == 2  # the old file, and what the kill left of the new one
    save_checkpoint(path, {"new": 2})
    assert load_checkpoint(path) == {"new": 2}


def test_links_stay_links(path):
    link = path.with_name("latest")
    link.symlink_to(path.name)
    save_checkpoint(link, {"new": 1})
    assert link.is_symlink()
    assert load_checkpoint(path) == {"new": 1}


def make(width: int = 3, dtype: torch.dtype = torch.float32):
    energy = nn.Linear(width, 1).to(dtype)
    return {"energy": energy, "optimizer": torch.optim.Adam(energy.parameters()), "buffer": ReplayBuffer(4, (width,), seed=0)}


def train(parts) -> None:
    parts["optimizer"].zero_grad()
    parts["energy"](parts["buffer"].draw(2)[1]).sum().backward()
    parts["optimizer"].step()


def bits(parts) -> list[torch.Tensor]:
    adam = [value for slot in parts["optimizer"].state.values() for value in slot.values()]
    return [t.clone() for t in (*parts["energy"].parameters(), *adam, parts["buffer"].values, parts["buffer"].key.tensor)]


def assert_equal(a, b) -> None:
    assert len(a) == len(b)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_objects_go_on_where_they_were(tmp_path):
    parts, other = make(), make()
    train(parts)
    Checkpoint(tmp_path / "run.ckpt", **parts).save(iteration=7)
    train(parts)
    assert Checkpoint(tmp_path / "run.ckpt", **other).load(iteration=7) == {"iteration": 7}
    train(other)
    assert_equal(bits(other), bits(parts))


def test_load_restores_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    source, target = make(), make()
    train(source), train(target), train(target)
    Checkpoint(path, **source).save(iteration=7)
    before = bits(target)
    two_groups = torch.optim.Adam([{"params": [p]} for p in target["energy"].parameters()])
    for parts, expected, match in [
        (target, {"iteration": 8}, "iteration must be 8, got 7"),
        (target, {"seed": 1}, "seed must be 1, got None"),
        ({"energy": target["energy"]}, {}, r"must hold \['energy'\], got \['buffer', 'energy', 'optimizer'\]"),
        (target | {"energy": nn.Linear(4, 1)}, {}, r"energy.weight must be torch.float32 \(1, 4\), got torch.float32 \(1, 3\)"),
        (target | {"energy": nn.Linear(3, 1).double()}, {}, r"energy.weight must be torch.float64 \(1, 3\), got torch.float32"),
        (target | {"energy": nn.Linear(3, 1, bias=False)}, {}, r"energy must have \['weight'\], got \['bias', 'weight'\]"),
        (target | {"optimizer": two_groups}, {}, "does not fit: loaded state dict has a different number of parameter groups"),
        (target | {"buffer": ReplayBuffer(5, (3,), seed=0)}, {}, r"does not fit: ReplayBuffer.load_state_dict: values must be .* \(5, 3\), got"),
    ]:
        with pytest.raises(CheckpointError, match=match):
            Checkpoint(path, **parts).load(**expected)
        assert_equal(bits(target), before)

    monkeypatch.setattr(ReplayBuffer, "load_state_dict", lambda self, state: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Checkpoint(path, energy=target["energy"], optimizer=target["optimizer"], buffer=target["buffer"]).load()
