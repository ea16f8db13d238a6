"""The compiled module in its process: instruction sets, threads, fork, import."""

from __future__ import annotations

import hashlib

import pytest
import torch

import ebmcore
from ebmcore import Key, ops
from ebmcore._native import core

TARGET = """
import hashlib, sys
import ebmcore
from ebmcore import ops
print(ebmcore.info()["cpu_target"], hashlib.sha256(ops.normal((64, 8193), key=ebmcore.Key(1)).numpy().tobytes()).hexdigest())
"""


def test_info():
    info = ebmcore.info()
    assert info["version"] == ebmcore.__version__
    assert info["cpu_target"] in info["cpu_targets"]
    assert info["cpu_targets"][0] == "baseline"
    assert info["num_threads"] == torch.get_num_threads() == ebmcore.get_num_threads()
    assert info["thread_pool"] in ("torch", "native")
    assert isinstance(info["cuda_built"], bool)
    assert isinstance(info["cuda_problem"], str)
    assert info["cuda_built"] or info["cuda_problem"]


@pytest.mark.parametrize("target", core.cpu_targets()[:-1])
def test_a_lower_target(run_python, target):
    name, digest = run_python(TARGET, EBMCORE_TARGET=target).stdout.split()
    assert name == target
    assert digest == hashlib.sha256(ops.normal((64, 8193), key=Key(1)).numpy().tobytes()).hexdigest()


def test_an_unknown_target(run_python):
    result = run_python(TARGET, EBMCORE_TARGET="avx1024", check=False)
    assert result.returncode != 0
    names = ", ".join(core.cpu_targets())
    assert f"ImportError: EBMCORE_TARGET must be one of {names} on this machine and build, got 'avx1024'" in result.stderr


def test_unknown_targets_change_nothing():
    before = core.cpu_target()
    for name in ("", "sse9", "AVX2"):
        with pytest.raises(ValueError, match="set_cpu_target"):
            core.set_cpu_target(name)
    assert core.cpu_target() == before


def test_num_threads(keep_threads):
    torch.set_num_threads(2)
    assert ops.get_num_threads() == 2
    ops.set_num_threads(5)
    assert (ops.get_num_threads(), torch.get_num_threads()) == (5, 2)
    torch.set_num_threads(1)
    assert ops.get_num_threads() == 5
    ops.set_num_threads(None)
    assert ops.get_num_threads() == 1


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (2**15, ValueError), (1.0, TypeError), ("2", TypeError), (True, TypeError)]
)
def test_bad_num_threads(keep_threads, value, error):
    before = ops.get_num_threads()
    with pytest.raises(error, match="set_num_threads: num_threads must be"):
        ops.set_num_threads(value)
    assert ops.get_num_threads() == before


IMPORT = """
import random, sys
import torch
def look():
    return (
        torch.get_rng_state().tolist(), random.getstate(), torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.get_num_threads(),
        torch.is_grad_enabled(), torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), torch.cuda.is_initialized(),
    )
before, modules = look(), set(sys.modules)
import ebmcore
assert look() == before
heavy = {"ebmcore._cuda", "matplotlib", "sklearn", "tqdm", "ebmcore.demo", "ebmcore.cli"} & (set(sys.modules) - modules)
assert not heavy, heavy
"""


def test_import_has_no_side_effects(run_python):
    """Nor does it load CUDA: a process that forks after the import could not use it in its children."""
    run_python(IMPORT)


# The child uses no torch op of more than one thread: torch's own pool hangs there.
FORK = """
import hashlib, os, select, sys
import torch
import ebmcore
from ebmcore import Key, Langevin, ops

def work():
    x = ops.normal((1, 1_000_000), key=Key(1))
    x = ops.langevin_step(x, x, step_size=0.1, noise_std=0.3, key=Key(2), clip_grad_norm=3.0)
    y = Langevin(0.01)(lambda y: 0.5 * y.square().sum(1), x[:, :300].reshape(100, 3), 20, seed=5)
    return hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()

torch.set_num_threads(2)
ops.set_num_threads(2)
expected = work()
before = ebmcore.info()["thread_pool"]
for _ in range(2):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, f"{work()} {ebmcore.info()['thread_pool']}".encode())
        os._exit(0)
    ready, _, _ = select.select([reader], [], [], 30)
    if not ready:
        os.kill(child, 9)
        sys.exit("the child hangs")
    digest, pool = os.read(reader, 1000).decode().split()
    os.waitpid(child, 0)
    assert digest == expected, "the child's noise differs"
    assert pool == "native", pool
assert work() == expected
assert ebmcore.info()["thread_pool"] == before
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("pool", ["torch", "native"])
def test_fork_after_use(run_python, pool):
    """A child has none of its parent's threads and must not wait for them."""
    run_python(FORK, EBMCORE_POOL=pool)


THREADS = """
import threading
from ebmcore import Key, ops
ops.set_num_threads(3)
expected = ops.normal((3, 300_000), key=Key(1)).numpy().tobytes()
wrong = []
def work():
    for _ in range(10):
        if ops.normal((3, 300_000), key=Key(1)).numpy().tobytes() != expected:
            wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not wrong
"""


@pytest.mark.parametrize("pool", ["torch", "native"])
def test_python_threads_share_a_pool(run_python, pool):
    """And the interpreter shuts down while the pool's threads sleep."""
    run_python(THREADS, EBMCORE_POOL=pool, timeout=60)
