"""Fixtures for every test: the devices, the instruction sets, thread counts, torch's generator, fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ebmcore import ops
from ebmcore._native import core


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA device that both torch and ebmcore can use")


def _skip_without(device: str) -> None:
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("torch finds no CUDA device")
        if problem := ops.cuda_problem():
            pytest.skip(problem)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Every kind of device, by name."""
    _skip_without(request.param)
    return str(request.param)


@pytest.fixture(params=core.cpu_targets())
def cpu_target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this build and this machine have; it is in force during the test."""
    before = core.cpu_target()
    core.set_cpu_target(request.param)
    yield str(request.param)
    core.set_cpu_target(before)


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """The thread counts of torch and of ebmcore may be changed by the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    ops.set_num_threads(None)


@pytest.fixture(params=[1, 2, 5])
def num_threads(request: pytest.FixtureRequest, keep_threads: None) -> int:
    """1, 2 and 5 threads of torch's pool, which native ops borrow; in force during the test."""
    torch.set_num_threads(request.param)
    return int(request.param)


@pytest.fixture(params=["whole chains", "products"])
def rbm_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which the chains of an RBM are run, whatever its size."""
    monkeypatch.setattr("ebmcore.ops.rbm.MAX_NATIVE_WEIGHTS", 2**60 if request.param == "whole chains" else 0)
    return str(request.param)


@pytest.fixture
def untouched_generator() -> Iterator[None]:
    """Fails the test if it moved torch's default generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "torch's default generator was used"


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_python(script, *arguments, timeout=..., check=True, **environment): the script in a fresh interpreter, outside the checkout."""

    def run(script: str, *arguments: str, timeout: float = 120, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or result.returncode == 0, result.stderr
        return result

    return run
