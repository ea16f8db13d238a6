"""What has to agree to the last bit: instruction sets, thread counts, batch splits, interrupted runs, ranks, layouts, the plain-torch twin.

Nothing here has a tolerance. Expected values come from the baseline instruction set on one thread, or from a call cut otherwise.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ebmcore import Key, Langevin, ops, sample
from ebmcore._native import core
from ebmcore.samplers.langevin import LangevinState
from support.targets import assert_same_bits, quartic

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Tails of every length behind whole tiles of 4, 8 and 16 lanes, several chains in a tile, one chain over several threads, an image.
SHAPES = [(40, dim) for dim in (1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 784)]
SHAPES += [(5, 8191), (5, 8192), (5, 8193), (3, 16385), (1, 10**6), (1000, 2), (70_000,), (6, 3, 16, 17)]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"step_size": 0.1, "noise_std": 0.3},
    "bounded": {"step_size": 0.1, "noise_std": 0.3, "clip_grad": 1.5, "clip_grad_norm": 7.0, "clamp": (-1.0, 1.25)},
    "no noise": {"step_size": 0.1, "noise_std": 0.0},
    "bounded, no noise": {"step_size": 0.1, "noise_std": 0.0, "clip_grad": 1.5, "clip_grad_norm": 7.0, "clamp": (-1.0, 1.25)},
}
KEY = Key(0x0123456789ABCDEF, step=2**33 + 5, first_chain=2**32 - 3)


@functools.cache
def inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x.to(dtype), (3 * grad).to(dtype)


@functools.cache
def expected_step(shape: tuple[int, ...], dtype: torch.dtype, setting: str) -> Tensor:
    target, threads = core.cpu_target(), torch.get_num_threads()
    core.set_cpu_target("baseline")
    torch.set_num_threads(1)
    try:
        return ops.langevin_step(*inputs(shape, dtype), key=KEY, **SETTINGS[setting])
    finally:
        core.set_cpu_target(target)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_and_threads(cpu_target, num_threads, dtype, setting):
    for shape in SHAPES:
        assert_same_bits(ops.langevin_step(*inputs(shape, dtype), key=KEY, **SETTINGS[setting]), expected_step(shape, dtype, setting), f"{shape}")


@functools.cache
def expected_draw(name: str, shape: tuple[int, ...], **arguments: Any) -> Tensor:
    before = core.cpu_target()
    core.set_cpu_target("baseline")
    try:
        return draw(name, shape, **arguments)
    finally:
        core.set_cpu_target(before)


def draw(name: str, shape: tuple[int, ...], **arguments: Any) -> Tensor:
    extra = (0.3,) if name == "bernoulli" else ()
    return getattr(ops, name)(shape, *extra, key=KEY, stream=3, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("philox", {})] + [(n, {"dtype": d}) for n in ("uniform", "normal", "rademacher", "bernoulli") for d in (torch.float32, torch.float64)],
)
def test_draws_on_instruction_sets_and_threads(cpu_target, num_threads, name, arguments):
    for shape in SHAPES:
        assert_same_bits(draw(name, shape, **arguments), expected_draw(name, shape, **arguments), f"{shape}")


NATIVE_POOL = """
import hashlib, sys, torch, ebmcore
from ebmcore import ops
assert ebmcore.info()["thread_pool"] == "native"
for threads in (1, 2, 5):
    ops.set_num_threads(threads)
    digest = hashlib.sha256()
    for shape in ((1, 1_000_000), (40, 8193), (100_000, 2)):
        x = ops.normal(shape, key=ebmcore.Key(1))
        x = ops.langevin_step(x, x, step_size=0.1, noise_std=0.3, key=ebmcore.Key(2), clip_grad_norm=3.0, clamp=(-1.0, 1.0))
        digest.update(x.numpy().tobytes())
    print(digest.hexdigest())
"""


def test_native_pool(run_python, keep_threads):
    torch.set_num_threads(1)
    digest = hashlib.sha256()
    for shape in ((1, 1_000_000), (40, 8193), (100_000, 2)):
        x = ops.normal(shape, key=Key(1))
        x = ops.langevin_step(x, x, step_size=0.1, noise_std=0.3, key=Key(2), clip_grad_norm=3.0, clamp=(-1.0, 1.0))
        digest.update(x.numpy().tobytes())
    assert run_python(NATIVE_POOL, EBMCORE_POOL="native").stdout.split() == [digest.hexdigest()] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 3, 64, 784, 8193])
def test_four_batches_of_16(device, dim, dtype):
    x, grad = (t.to(device) for t in inputs((64, dim), dtype))
    for setting in SETTINGS.values():
        whole = ops.langevin_step(x, grad, key=KEY, **setting)
        parts = [ops.langevin_step(x[i : i + 16], grad[i : i + 16], key=KEY.shard(i), **setting) for i in range(0, 64, 16)]
        assert_same_bits(torch.cat(parts), whole, f"dim {dim}")


@pytest.mark.parametrize("dim", [1, 3, 64, 784])
def test_first_rows_of_a_larger_batch(device, dim):
    x, grad = (t.to(device) for t in inputs((1000, dim), torch.float32))
    whole = ops.langevin_step(x, grad, key=KEY, **SETTINGS["bounded"])
    assert_same_bits(ops.langevin_step(x[:100], grad[:100], key=KEY, **SETTINGS["bounded"]), whole[:100])
    for name in ("philox", "uniform", "normal", "rademacher", "bernoulli"):
        assert_same_bits(draw(name, (100, dim)), draw(name, (1000, dim))[:100], name)


SAMPLERS = {
    "default": Langevin(0.01),
    "schedule": Langevin(lambda step: 0.01 / (1 + step), noise_std=lambda step: 0.1 / (1 + step) ** 0.5),
    "bounded": Langevin(0.01, clip_grad=1.0, clip_grad_norm=2.0, clamp=(-2.0, 2.0)),
    "noise first": Langevin(0.01, noise_std=0.1, noise_first=True, clip_grad=0.5),
    "freeze": Langevin(0.01, on_divergence="freeze"),
    "restart": Langevin(0.01, on_divergence="restart"),
    "restart, noise first": Langevin(0.01, noise_first=True, on_divergence="restart"),
}
samplers = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def assert_same_state(actual: LangevinState, expected: LangevinState) -> None:
    assert_same_bits(actual.x, expected.x, "x")
    assert actual.step == expected.step
    assert actual.key == expected.key
    assert torch.equal(actual.is_diverged, expected.is_diverged)
    torch.testing.assert_close(actual.energy, expected.energy, rtol=0, atol=0, equal_nan=True)
    assert (actual.grad is None) == (expected.grad is None)
    if actual.grad is not None:
        assert_same_bits(actual.grad, expected.grad, "grad")


@samplers
@pytest.mark.parametrize("dtype", DTYPES)
def test_advance_step_and_call(device, sampler, dtype):
    x = inputs((64, 5), dtype)[0].to(device)
    start = sampler.init(quartic, x, seed=KEY)
    by_step = start
    for _ in range(100):
        by_step, _ = sampler.step(quartic, by_step)
    at_once, _ = sampler.advance(quartic, start, 100)
    assert_same_state(at_once, by_step)
    assert_same_bits(sampler(quartic, x, 100, seed=KEY), at_once.x)
    assert_same_bits(sample(sampler, quartic, x, 60, num_warmup=40, thinning=7, seed=KEY).state.x, at_once.x)


@samplers
def test_60_and_40_steps_through_a_file(device, sampler):
    x = inputs((64, 5), torch.float32)[0].to(device)
    start = sampler.init(quartic, x, seed=KEY)
    uninterrupted, _ = sampler.advance(quartic, start, 100)
    state, _ = sampler.advance(quartic, start, 60)
    file = io.BytesIO()
    torch.save(state._asdict() | {"key": state.key.tensor}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    state = LangevinState(**loaded | {"key": Key.from_tensor(loaded["key"])})
    assert_same_state(sampler.advance(quartic, state, 40)[0], uninterrupted)


@samplers
def test_sampler_in_four_batches(device, sampler):
    x = inputs((64, 5), torch.float32)[0].to(device)
    whole = sampler(quartic, x, 50, seed=KEY)
    parts = [sampler(quartic, x[i : i + 16], 50, seed=KEY.shard(i)) for i in range(0, 64, 16)]
    assert_same_bits(torch.cat(parts), whole)


RANK = """
import sys, torch
import torch.distributed as dist
from ebmcore import Key, Langevin
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
x = torch.load(f"{folder}/x.pt", weights_only=True)
mine = x.chunk(2)[rank]
energy = lambda x: (x.flatten(1).square() - 1).square().sum(1)
x = Langevin(0.01, clip_grad_norm=2.0)(energy, mine, 50, seed=Key(9).shard(32 * rank))
parts = [torch.empty_like(x) for _ in range(2)]
dist.all_gather(parts, x)
if rank == 0:
    torch.save(torch.cat(parts), f"{folder}/result.pt")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_ranks(tmp_path: Path):
    x = inputs((64, 5), torch.float32)[0]
    torch.save(x, tmp_path / "x.pt")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    assert_same_bits(result, Langevin(0.01, clip_grad_norm=2.0)(quartic, x, 50, seed=9))


@pytest.mark.parametrize("dtype", DTYPES)
def test_flush_denormal(cpu_target, dtype):
    """Subnormal states, gradients, noise and scalars, with the calling thread told to flush them."""
    tiny = torch.finfo(dtype).smallest_normal
    x, grad = ((t.double() * tiny / 8).to(dtype) for t in inputs((7, 1001), dtype))
    quiet = {"step_size": 0.5, "noise_std": 0.0}
    settings = [quiet, quiet | {"noise_std": tiny / 8}, SETTINGS["bounded"]]
    if dtype != torch.float64:  # Python itself takes a flushed float for 0, and the step refuses it
        settings += [quiet | {"clip_grad": tiny / 16}, quiet | {"clamp": (0.0, tiny / 16)}]

    def results() -> list[Tensor]:
        return [ops.langevin_step(x, grad, key=KEY, **setting) for setting in settings] + [ops.normal((7, 1001), key=KEY)]

    plain = results()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        flushed = results()
        still_on = float(torch.tensor([1e-310], dtype=torch.float64) * 1.0) == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert still_on, "the caller's own setting was changed"
    for actual, expected, setting in zip(flushed, plain, [*settings, "draws"], strict=True):
        assert_same_bits(actual, expected, f"{setting}")
    assert bool(((plain[0] != 0) & (plain[0].abs() < tiny)).any()), "the inputs were meant to give subnormal results"


COMBINATIONS = [
    {"noise_std": noise_std, "clip_grad": clip, "clamp": clamp}
    for noise_std, clip, clamp in itertools.product([0.0, 0.3], [None, 1.5], [None, (-1.0, 1.25), (-math.inf, 0.5)])
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 3), (5, 784), (2, 3, 17, 5), (300,)])
def test_the_reference_twin(device, cpu_target, shape, dtype):
    x, grad = (t.to(device) for t in inputs(shape, dtype))
    for arguments in COMBINATIONS:
        native = ops.langevin_step(x, grad, step_size=0.1, key=KEY, **arguments)
        assert_same_bits(native, ops.langevin_step_reference(x, grad, step_size=0.1, key=KEY, **arguments), f"{arguments}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_twin_at_zeros(dtype):
    """Signed zeros pass through every combination alike."""
    x = torch.tensor([[0.0, -0.0, 0.0, -0.0, 1.0]], dtype=dtype)
    grad = torch.tensor([[0.0, 0.0, -0.0, -0.0, -0.0]], dtype=dtype)
    for arguments in COMBINATIONS:
        native = ops.langevin_step(x, grad, step_size=0.1, key=KEY, **arguments)
        assert_same_bits(native, ops.langevin_step_reference(x, grad, step_size=0.1, key=KEY, **arguments), f"{arguments}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 3), (5, 784), (3, 16385)])
def test_the_reference_twin_with_clip_grad_norm(cpu_target, shape, dtype):
    """The twin adds up the squares in another order: the double norm may differ in its last bits, the float32 scale by one ulp."""
    x, grad = inputs(shape, dtype)
    for arguments in COMBINATIONS:
        arguments = arguments | {"step_size": 0.1, "key": KEY, "clip_grad_norm": 7.0}
        native, twin = ops.langevin_step(x, grad, **arguments), ops.langevin_step_reference(x, grad, **arguments)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(native, twin, rtol=2 * eps, atol=2 * eps)
        assert dtype == torch.float64 or float((native != twin).double().mean()) < 1e-3  # double and float32 scales nearly always round alike


LAYOUTS = {
    "transposed": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every other row": lambda t: torch.stack((t, t), dim=1).flatten(0, 1)[::2],
    "every other column": lambda t: torch.stack((t, t), dim=-1).flatten(-2)[..., ::2],
    "offset": lambda t: torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(device, layout, dtype):
    x, grad = (t.to(device) for t in inputs((4, 3, 6, 5), dtype))
    strided_x, strided_grad = LAYOUTS[layout](x), LAYOUTS[layout](grad)
    assert torch.equal(strided_x, x)
    for setting in SETTINGS.values():
        expected = ops.langevin_step(x, grad, key=KEY, **setting)
        assert_same_bits(ops.langevin_step(strided_x, grad, key=KEY, **setting), expected)
        assert_same_bits(ops.langevin_step(x, strided_grad, key=KEY, **setting), expected)
        assert_same_bits(ops.langevin_step(strided_x, strided_grad, key=KEY, **setting), expected)
        out = LAYOUTS[layout](torch.full_like(x, 7.0))
        assert ops.langevin_step(strided_x, strided_grad, key=KEY, out=out, **setting) is out
        assert_same_bits(out, expected)
        in_place = LAYOUTS[layout](x.clone())
        strides = in_place.stride()
        assert ops.langevin_step_(in_place, strided_grad, key=KEY, **setting) is in_place
        assert in_place.stride() == strides
        assert_same_bits(in_place, expected)
        assert torch.equal(strided_x, x)


def test_expanded_tensors_are_read_and_never_written(device):
    row = inputs((1, 10), torch.float32)[0].to(device)
    one = row[:, :1].clone()
    for x, grad in ((row.expand(6, 10), one.expand(6, 10)), (row.repeat(6, 1), one.expand(6, 10)), (row.expand(6, 10), row.repeat(6, 1))):
        expected = ops.langevin_step(x.contiguous(), grad.contiguous(), key=KEY, **SETTINGS["bounded"])
        before = x.clone(), grad.clone()
        assert_same_bits(ops.langevin_step(x, grad, key=KEY, **SETTINGS["bounded"]), expected)
        assert torch.equal(x, before[0])
        assert torch.equal(grad, before[1])
    with pytest.raises(ValueError, match="must not be expanded"):
        ops.langevin_step_(row.expand(6, 10), row.repeat(6, 1), key=KEY, **SETTINGS["plain"])
    with pytest.raises(ValueError, match="must not be expanded"):
        ops.langevin_step(row.repeat(6, 1), row.repeat(6, 1), key=KEY, out=row.expand(6, 10), **SETTINGS["plain"])


def test_out(device):
    x, grad = (t.to(device) for t in inputs((5, 33), torch.float32))
    expected = ops.langevin_step(x, grad, key=KEY, **SETTINGS["bounded"])
    out = torch.empty_like(x)
    assert ops.langevin_step(x, grad, key=KEY, out=out, **SETTINGS["bounded"]) is out
    assert_same_bits(out, expected)
    itself = x.clone()
    assert ops.langevin_step(itself, grad, key=KEY, out=itself, **SETTINGS["bounded"]) is itself
    assert_same_bits(itself, expected)
    view = x.clone()
    ops.langevin_step(view, grad, key=KEY, out=view.view(5, 33), **SETTINGS["bounded"])  # x itself under another name
    assert_same_bits(view, expected)
    gradient_is_x = x.clone()
    ops.langevin_step_(gradient_is_x, gradient_is_x, key=KEY, **SETTINGS["bounded"])
    assert_same_bits(gradient_is_x, ops.langevin_step(x, x.clone(), key=KEY, **SETTINGS["bounded"]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_numpy(dtype):
    x, grad = (t.numpy() for t in inputs((6, 5, 7), torch.from_numpy(np.empty(0, dtype)).dtype))
    for setting in SETTINGS.values():
        expected = ops.langevin_step(torch.from_numpy(x), torch.from_numpy(grad), key=KEY, **setting).numpy()

        def check(actual: Any, expected: Any = expected) -> None:
            assert isinstance(actual, np.ndarray)
            assert actual.dtype == dtype
            assert actual.tobytes() == expected.tobytes()

        check(ops.langevin_step(x, grad, key=KEY, **setting))
        check(ops.langevin_step(x.copy(order="F"), grad.copy(order="F"), key=KEY, **setting))
        check(ops.langevin_step(x[:, ::-1].copy()[:, ::-1], grad[::-1].copy()[::-1], key=KEY, **setting))
        out = np.empty_like(x)
        assert ops.langevin_step(x, grad, key=KEY, out=out, **setting) is out
        check(out)
        reversed_out = np.empty_like(x)[:, ::-1]
        assert ops.langevin_step(x, grad, key=KEY, out=reversed_out, **setting) is reversed_out
        check(reversed_out)
        for start in (x.copy(), x.copy(order="F"), x[:, :, ::-1].copy()[:, :, ::-1]):
            assert ops.langevin_step_(start, grad, key=KEY, **setting) is start
            check(start)
        read_only = x.copy()
        read_only.flags.writeable = False
        check(ops.langevin_step(read_only, grad, key=KEY, **setting))
        with pytest.raises(ValueError, match="writeable"):
            ops.langevin_step_(read_only, grad, key=KEY, **setting)


def test_keys_as_tensors(device):
    """A row of many keys is a key; a column is refused, not misread."""
    x, grad = (t.to(device) for t in inputs((5, 33), torch.float32))
    expected = ops.langevin_step(x, grad, key=KEY.advance(), **SETTINGS["plain"])
    assert_same_bits(ops.langevin_step(x, grad, key=KEY.steps(2)[1], **SETTINGS["plain"]), expected)
    column = torch.stack([KEY.tensor, KEY.advance().tensor], dim=1)[:, 1]
    with pytest.raises(ValueError, match="key must be contiguous"):
        ops.langevin_step(x, grad, key=column, **SETTINGS["plain"])
    with pytest.raises(ValueError, match="key must be contiguous"):
        ops.normal((3, 5), key=column)


HALVES = [torch.float16, torch.bfloat16]


def every_value(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def assert_same_half(actual: Tensor, expected: Tensor) -> None:
    """The same bits, but that a NaN may be any NaN."""
    assert torch.equal(actual.isnan(), expected.isnan())
    assert_same_bits(actual.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_value_round_trips(cpu_target, dtype):
    x = every_value(dtype).reshape(64, 1024)
    for width in (1024, 1021, 3):  # whole vectors, and elements one by one
        y = x[:, :width]
        zero = torch.zeros_like(y)
        result = ops.langevin_step(y, zero, step_size=1.0, noise_std=0.0, key=KEY)
        assert_same_half(result, y.float().to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_to_16_bits(cpu_target, dtype):
    """All 65536 values, shifted by signed powers of two and three times such: ties, subnormals, overflow, and everything between."""
    x = every_value(dtype)
    info = torch.finfo(dtype)
    lowest, highest = math.frexp(info.smallest_normal * info.eps)[1] - 1, math.frexp(info.max)[1] - 1
    powers = torch.tensor([2.0**e for e in range(lowest, highest + 1)], dtype=torch.float64)
    if dtype == torch.bfloat16:
        powers = powers[::6]
    shifts = torch.cat((powers, -powers, 1.5 * powers, -1.5 * powers)).to(dtype)
    grad = shifts[:, None].expand(-1, len(x)).contiguous()
    y = x.expand(len(shifts), -1).contiguous()
    for step_size in (1.0, 0.5, 0.25):
        expected = (y.float() - grad.float() * step_size).to(dtype)
        assert_same_half(ops.langevin_step(y, grad, step_size=step_size, noise_std=0.0, key=KEY), expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_arbitrary_float32_to_16_bits(cpu_target, dtype):
    """-step_size is any float32 at all: the boundaries of the format, their neighbours, ties, and random bits."""
    info = torch.finfo(dtype)
    marks = [info.max, info.max * (1 + info.eps / 4), info.smallest_normal, info.smallest_normal * info.eps, info.smallest_normal * info.eps / 2, 1.0]
    marks += [1 + info.eps / 2, 1 + 1.5 * info.eps, info.smallest_normal * (1 - info.eps / 2)]
    floats = torch.tensor(marks, dtype=torch.float32)
    floats = torch.cat((floats, floats.nextafter(torch.tensor(0.0)), floats.nextafter(torch.tensor(math.inf))))
    random_bits = torch.randint(1, 0x7F7FFFFF, (1500,), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    floats = torch.cat((floats, random_bits.view(torch.float32)))
    floats = floats[(floats > 0) & floats.isfinite()]
    one = torch.ones((1, 19), dtype=dtype)  # a vector and a rest
    for value in floats.tolist():
        result = ops.langevin_step(torch.zeros_like(one), one, step_size=value, noise_std=0.0, key=KEY)
        assert_same_bits(result, torch.full((1, 19), -value, dtype=torch.float32).to(dtype), f"{value}")
