"""The fused step against its formula, its NaN rules, and its life as a torch op. Bit-for-bit comparisons are in tests/test_equality.py."""

from __future__ import annotations

import math
import os
import shutil
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ebmcore import Key, ops
from support.targets import assert_same_bits

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KEY = Key(12, step=3, first_chain=4)
PLAIN: dict[str, Any] = {"step_size": 0.1, "noise_std": 0.3, "key": KEY}
BOUNDED: dict[str, Any] = PLAIN | {"clip_grad": 1.5, "clip_grad_norm": 4.0, "clamp": (-1.0, 1.25)}


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x.to(dtype), (2 * grad).to(dtype)


def by_hand(
    x: Tensor, grad: Tensor, *, step_size, noise_std, key, clip_grad=None, clip_grad_norm=None, clamp=None, stream=ops.Stream.PROPOSAL
) -> np.ndarray:
    """The formula of the docstring in float64 NumPy: norm, then components, then the step, then the bounds."""
    y, g = x.double().numpy().copy(), grad.double().numpy().copy()
    if clip_grad_norm is not None:
        for chain in range(len(g)):
            norm = math.sqrt(float((g[chain] ** 2).sum()))
            g[chain] *= min(1.0, clip_grad_norm / norm) if norm else 1.0
    if clip_grad is not None:
        g = np.minimum(np.maximum(g, -clip_grad), clip_grad)
    z = ops.normal(tuple(x.shape), key=key, stream=stream, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    y = y - step_size * g + noise_std * z.double().numpy()
    return y if clamp is None else np.minimum(np.maximum(y, clamp[0]), clamp[1])


SETTINGS = [
    {},
    {"noise_std": 0.0},
    {"clip_grad": 0.5},
    {"clip_grad_norm": 2.0},
    {"clip_grad_norm": 1e6},
    {"clip_grad": 0.5, "clip_grad_norm": 2.0},
    {"clamp": (-0.25, 0.75)},
    {"clamp": (-math.inf, 0.75)},
    {"clamp": (0.0, math.inf)},
    {"clip_grad": 0.5, "clip_grad_norm": 2.0, "clamp": (-0.25, 0.75)},
    {"stream": ops.Stream.USER},
]


@pytest.mark.parametrize("shape", [(6, 3), (3, 100), (2, 3, 5, 7), (9,), (2, 20_000)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_formula(cpu_target, shape, dtype):
    x, grad = inputs(shape, dtype)
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]  # of the rounding to dtype
    for setting in SETTINGS:
        arguments = PLAIN | setting
        result = ops.langevin_step(x, grad, **arguments)
        assert result.dtype == dtype
        np.testing.assert_allclose(result.double().numpy(), by_hand(x, grad, **arguments), rtol=tolerance, atol=tolerance, err_msg=str(setting))


def test_norm_is_cut_before_components():
    """The gradient (3, 4, 0.1), cut to norm 1 and then to 0.7 a component."""
    grad = torch.tensor([[3.0, 4.0, 0.1]], dtype=torch.float64)
    step = ops.langevin_step(torch.zeros_like(grad), grad, step_size=1.0, noise_std=0.0, key=KEY, clip_grad=0.7, clip_grad_norm=1.0)
    norm = math.sqrt(25.01)
    torch.testing.assert_close(-step, torch.tensor([[3 / norm, 0.7, 0.1 / norm]], dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_beyond_float32(scale):
    """Squares are added up in float64."""
    grad = torch.full((2, 100), scale)
    step = ops.langevin_step(torch.zeros_like(grad), grad, step_size=1.0, noise_std=0.0, key=KEY, clip_grad_norm=min(10 * scale, 1.0))
    torch.testing.assert_close(-step, torch.full((2, 100), min(scale, 0.1)))


def test_norm_of_zero():
    grad = torch.zeros(2, 5)
    assert torch.equal(ops.langevin_step(grad, grad, step_size=1.0, noise_std=0.0, key=KEY, clip_grad_norm=1.0), grad)


BOUNDS = [{"clip_grad": 1.0}, {"clip_grad_norm": 1.0}, {"clamp": (-1.0, 1.0)}, {"clip_grad": 1.0, "clip_grad_norm": 1.0, "clamp": (-1.0, 1.0)}]


@pytest.mark.parametrize("step", [ops.langevin_step, ops.langevin_step_reference], ids=["native", "reference"])
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_nan(device, dtype, noise_std, step):
    """Neither clipping nor the clamp makes a number of a NaN, nor of an infinite gradient; other elements and chains are as without."""
    x, grad = (t.to(device) for t in inputs((4, 37), dtype))
    for bounds in ({}, *BOUNDS):
        arguments = PLAIN | bounds | {"noise_std": noise_std}
        clean = step(x, grad, **arguments)
        for value in (math.nan, math.inf, -math.inf):
            for row, column in ((1, 5), (1, 36)):
                bad_x, bad_grad = x.clone(), grad.clone()
                bad_x[row, column] = math.nan
                bad_grad[row, column] = value
                spoiled = torch.zeros_like(x, dtype=torch.bool)
                spoiled[row, column] = True
                result = step(bad_x, grad, **arguments)
                assert torch.equal(result.isnan(), spoiled)
                assert torch.equal(result[~spoiled], clean[~spoiled])
                if not bounds and math.isinf(value):
                    assert step(x, bad_grad, **arguments)[row, column].item() == -value
                    continue
                if "clip_grad_norm" in bounds:
                    spoiled[row] = True
                result = step(x, bad_grad, **arguments)
                assert torch.equal(result.isnan(), spoiled), f"{bounds} {value}"
                assert torch.equal(result[~spoiled], clean[~spoiled])


@pytest.mark.parametrize("arguments", [PLAIN, BOUNDED], ids=["plain", "bounded"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_untouched(device, dtype, arguments, untouched_generator):
    x, grad = (t.to(device) for t in inputs((5, 33), dtype))
    before = x.clone(), grad.clone(), KEY.tensor.clone(), x._version, grad._version, KEY.tensor._version
    result = ops.langevin_step(x, grad, **arguments)
    again = ops.langevin_step(x, grad, **arguments)
    assert_same_bits(again, result)
    assert_same_bits(x, before[0])
    assert_same_bits(grad, before[1])
    assert torch.equal(KEY.tensor, before[2])
    assert (x._version, grad._version, KEY.tensor._version) == before[3:]
    assert result.data_ptr() not in (x.data_ptr(), grad.data_ptr())
    assert result.is_contiguous()


def test_keys_and_streams_make_the_noise():
    x, grad = inputs((5, 33))
    results = [
        ops.langevin_step(x, grad, step_size=0.1, noise_std=0.3, key=key, stream=stream)
        for key in (KEY, KEY.advance(), KEY.shard(1), Key(13, 3, 4))
        for stream in (0, 1, 255)
    ]
    for i, result in enumerate(results):
        assert all(not torch.equal(result, other) for other in results[:i])
    assert_same_bits(ops.langevin_step(x, grad, step_size=0.1, noise_std=0.3, key=KEY.tensor), results[1])  # PROPOSAL, 1, is the default


def test_no_noise_depends_on_no_key():
    x, grad = inputs((5, 33))
    assert_same_bits(*(ops.langevin_step(x, grad, step_size=0.1, noise_std=0.0, key=Key(seed)) for seed in (1, 2)))


def test_zero_chains(device):
    for shape in ((0, 5), (0,), (0, 3, 4)):
        x = torch.empty(shape, device=device)
        for arguments in (PLAIN, BOUNDED):
            assert ops.langevin_step(x, x, **arguments).shape == shape
            assert ops.langevin_step_(x, x, **arguments) is x
            assert ops.langevin_step_reference(x, x, **PLAIN).shape == shape


@pytest.mark.skipif(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8 * 2**30, reason="needs 8 GiB of free memory")
def test_more_than_2_31_elements():
    x = torch.zeros((2**15 + 1, 2**16), dtype=torch.bfloat16)
    x[0, 5], x[-2, -1], x[-1, -1] = 1.0, 2.0, 3.0
    ops.langevin_step_(x, x, step_size=0.5, noise_std=0.0, key=KEY)
    assert (x[0, 5].item(), x[-2, -1].item(), x[-1, -1].item()) == (0.5, 1.0, 1.5)
    assert int(x[-1].count_nonzero() + x[0].count_nonzero() + x[2**14].count_nonzero()) == 2


# torch


def test_in_place_steps_bump_the_version():
    """A step inside a graph that still needs the old value must raise, not give a wrong gradient."""
    w = torch.ones(4, 3, requires_grad=True)
    for write in (
        lambda z: ops.langevin_step_(z, torch.ones(4, 3), **PLAIN),
        lambda z: ops.langevin_step(z, torch.ones(4, 3), out=z, **PLAIN),
        lambda z: ops.langevin_step(torch.zeros(4, 3), torch.ones(4, 3), out=z, **PLAIN),
        lambda z: ops.langevin_step_(z.t(), torch.ones(3, 4), **PLAIN),  # written through a copy
    ):
        z = (w * 2).exp()  # its backward reads z
        with pytest.raises(ValueError, match="must not require grad"):
            write(z)
        version = z._version
        with torch.no_grad():
            write(z)
        assert z._version == version + 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


def test_leaves_are_not_written_in_place():
    leaf = torch.zeros(4, 3, requires_grad=True)
    with pytest.raises(ValueError, match="must not require grad"):
        ops.langevin_step_(leaf, torch.ones(4, 3), **PLAIN)
    assert not leaf.any()


def test_gradients_are_not_dropped():
    """Results that are written into a tensor have no graph; where one was asked for, that is an error, as in torch."""
    x, grad = torch.zeros(4, 3), torch.ones(4, 3, requires_grad=True)
    leaf = torch.zeros(4, 3, requires_grad=True)
    with pytest.raises((ValueError, RuntimeError), match="grad"):
        ops.langevin_step_(x, grad, **PLAIN)
    with pytest.raises((ValueError, RuntimeError), match="grad"):
        ops.langevin_step(leaf, torch.ones(4, 3), out=x, **PLAIN)
    assert not x.any()


@pytest.mark.parametrize("setting", [{}, {"noise_std": 0.0}, {"clip_grad": 0.5}, {"clip_grad_norm": 1.0}, {"clamp": (-0.5, 0.5)}], ids=str)
def test_gradcheck(setting):
    x, grad = (t.requires_grad_() for t in inputs((3, 4), torch.float64))
    assert torch.autograd.gradcheck(lambda x, grad: ops.langevin_step(x, grad, **PLAIN | setting), (x, grad))
    assert torch.autograd.gradgradcheck(lambda x, grad: ops.langevin_step(x, grad, **PLAIN | setting), (x, grad))


def test_the_differentiable_step_has_the_same_bits():
    x, grad = inputs((5, 33))
    arguments = PLAIN | {"clip_grad": 1.5, "clamp": (-1.0, 1.25)}
    expected = ops.langevin_step(x, grad, **arguments)
    result = ops.langevin_step(x.clone().requires_grad_(), grad, **arguments)
    assert result.requires_grad
    assert_same_bits(result.detach(), expected)
    with torch.no_grad():
        assert not ops.langevin_step(x.clone().requires_grad_(), grad, **arguments).requires_grad


def test_modes():
    x, grad = inputs((5, 33))
    expected = ops.langevin_step(x, grad, **BOUNDED)
    with torch.no_grad():
        assert_same_bits(ops.langevin_step(x, grad, **BOUNDED), expected)
    with torch.inference_mode():
        assert_same_bits(ops.langevin_step(x, grad, **BOUNDED), expected)
        mine = x.clone()
        assert mine.is_inference()
        assert_same_bits(ops.langevin_step_(mine, grad, **BOUNDED), expected)
        normal = ops.normal((2, 3), key=KEY)
    assert_same_bits(ops.langevin_step(mine, grad, **BOUNDED), ops.langevin_step(expected, grad, **BOUNDED))
    assert_same_bits(normal, ops.normal((2, 3), key=KEY))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(ops.langevin_step(x, grad, **BOUNDED), expected)


def test_fake_tensors():
    with FakeTensorMode():
        x = torch.empty(5, 3, 7, dtype=torch.bfloat16)
        key = torch.zeros(3, dtype=torch.int64)
        result = ops.langevin_step(x, x, step_size=0.1, noise_std=0.3, key=key, clip_grad_norm=1.0)
        assert (result.shape, result.dtype, result.device.type) == (x.shape, x.dtype, "cpu")
        transposed = ops.langevin_step(x.transpose(1, 2), x.transpose(1, 2), step_size=0.1, noise_std=0.3, key=key)
        assert transposed.is_contiguous()
        draw = ops.normal((4, 5), key=key, dtype=torch.float64)
        assert (draw.shape, draw.dtype) == ((4, 5), torch.float64)


OPCHECKS = {
    name: (getattr(torch.ops.ebmcore, name).default, ((4, 6), KEY.tensor, 1, 0, 2**31, dtype))
    for name, dtype in (
        ("philox", torch.uint32),
        ("uniform", torch.float32),
        ("normal", torch.float64),
        ("rademacher", torch.float32),
        ("bernoulli", torch.float32),
    )
}
SCALARS = (0.1, 0.3, math.inf, 4.0, -1.0, 1.0, 1)
OPCHECKS["langevin_step"] = (torch.ops.ebmcore.langevin_step.default, (*inputs((4, 6)), KEY.tensor, *SCALARS))
OPCHECKS["langevin_step_into"] = (torch.ops.ebmcore.langevin_step_into.default, (torch.empty(4, 6), *inputs((4, 6)), KEY.tensor, *SCALARS))
OPCHECKS["langevin_step_"] = (torch.ops.ebmcore.langevin_step_.default, (*inputs((4, 6)), KEY.tensor, *SCALARS))
OPCHECKS["langevin_step, strided"] = (
    torch.ops.ebmcore.langevin_step.default,
    (inputs((6, 4))[0].t(), inputs((6, 4))[1].t(), KEY.tensor, *SCALARS),
)


@pytest.mark.parametrize("name", OPCHECKS)
def test_opcheck(name):
    op, arguments = OPCHECKS[name]
    torch.library.opcheck(op, arguments)


def chain(x: Tensor, grad: Tensor, key: Tensor) -> Tensor:
    for _ in range(2):
        x = ops.langevin_step(x, grad, step_size=0.1, noise_std=0.3, key=key, clip_grad_norm=4.0)
        key = key + torch.tensor([0, 1, 0])
    y = torch.zeros_like(x)
    ops.langevin_step(x, grad, step_size=0.1, noise_std=0.3, key=key, out=y)
    y = y * 2
    ops.langevin_step_(y, grad, step_size=0.1, noise_std=0.3, key=key, clamp=(-1.0, 1.0))
    return y + ops.normal(y.shape, key=key) + ops.uniform(y.shape, key=key) * ops.bernoulli(y.shape, 0.5, key=key)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own, about torch.jit
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(backend):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    compiled = torch.compile(chain, fullgraph=True, backend=backend, dynamic=False)
    x, grad = inputs((4, 6))
    for key in (KEY.tensor, KEY.advance(5).tensor):  # the second key must not be frozen into the graph
        assert_same_bits(compiled(x, grad, key), chain(x, grad, key))


def test_compile_with_a_key_object():
    def step(x, grad, key):
        return ops.langevin_step(x, grad, step_size=0.1, noise_std=0.3, key=key)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x, grad = inputs((4, 6))
    for key in (Key(1), Key(2)):
        assert_same_bits(compiled(x, grad, key), step(x, grad, key))


def test_compile_with_dynamic_shapes():
    compiled = torch.compile(
        lambda x, key: ops.langevin_step(x, x, step_size=0.1, noise_std=0.3, key=key), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for rows in (3, 7, 12):
        x, _ = inputs((rows, 5))
        assert_same_bits(compiled(x, KEY.tensor), ops.langevin_step(x, x, **PLAIN))


def test_vmap_is_refused():
    x, grad = inputs((4, 3, 5))
    with pytest.raises(RuntimeError, match=r"langevin_step: torch.func.vmap is not supported"):
        torch.func.vmap(lambda x, grad: ops.langevin_step(x, grad, **PLAIN))(x, grad)
    with pytest.raises(RuntimeError, match=r"langevin_step_: torch.func.vmap is not supported"):
        torch.func.vmap(lambda x, grad: ops.langevin_step_(x, grad, **PLAIN))(x, grad)
    with pytest.raises(RuntimeError, match=r"normal: torch.func.vmap is not supported"):
        torch.func.vmap(lambda key: ops.normal((2, 3), key=key))(KEY.steps(4))


def test_several_python_threads():
    """The GIL is released in the kernel; each thread gets what it gets alone."""
    jobs = [inputs((37, 1000 + i), seed=i) for i in range(4)]
    expected = [ops.langevin_step(x, grad, **BOUNDED) for x, grad in jobs]
    results: list[list[Tensor]] = [[] for _ in jobs]

    def work(i: int) -> None:
        for _ in range(20):
            results[i].append(ops.langevin_step(*jobs[i], **BOUNDED))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, alone in enumerate(expected):
        assert len(results[i]) == 20
        assert all(torch.equal(result, alone) for result in results[i])


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_agrees_with_the_cpu(device, dtype):
    """To the stated tolerance: 1e-14 in float64, 1e-6 in float32, one rounding in 16 bits."""
    if device == "cpu":
        pytest.skip("compares CUDA with the CPU")
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    for shape in ((40, 3), (5, 784), (2, 16385)):
        x, grad = inputs(shape, dtype)
        for setting in SETTINGS:
            here = ops.langevin_step(x, grad, **PLAIN | setting)
            there = ops.langevin_step(x.to(device), grad.to(device), **PLAIN | setting).cpu()
            torch.testing.assert_close(there, here, rtol=tolerance, atol=tolerance)
