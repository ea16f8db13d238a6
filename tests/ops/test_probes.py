"""Probes and their products, against single draws and sums written out."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ebmcore import Key, ops
from ebmcore._native import core
from support.statistics import assert_mean
from support.targets import assert_same_bits

KEY = Key(11, step=5, first_chain=3)
F32, F64 = torch.float32, torch.float64
LAWS = ["rademacher", "gaussian"]
# Of one block, of many short rows, of whole rounds, of one part of a round, of several segments.
SHAPES = [(3, 5, 1), (2, 40, 2), (4, 3), (3, 7, 2, 3, 5), (2, 3, 64), (1, 37, 784), (2, 3, 4096), (1, 2, 10007)]


def like(shape: tuple[int, ...], dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", SHAPES)
def test_probes_are_draws_of_stream_probe(device, shape, dtype, law):
    """Probe p has the values of the single draw at key.advance(p), bit for bit; on a card to the rounding of its own draws."""
    v = ops.probes(shape, key=KEY, probe=law, dtype=dtype, device=device)
    draw = ops.normal if law == "gaussian" else ops.rademacher
    assert v.shape == shape
    for p in range(shape[0]):
        assert_same_bits(v[p], draw(shape[1:], key=KEY.advance(p), stream=ops.Stream.PROBE, dtype=dtype, device=device))
    assert_same_bits(v, ops.probes_reference(shape, key=KEY, probe=law, dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_whole_numbers_are_exact(device, shape, dtype):
    u = (like(shape, dtype) * 10).round().to(device)
    v = ops.probes_reference(shape, key=KEY, dtype=dtype, device=device)
    assert torch.equal(ops.probe_dot(u, key=KEY), (u * v).reshape(*shape[:2], -1).sum(2))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-6), (F64, 1e-15)])
@pytest.mark.parametrize("shape", SHAPES)
def test_dot_against_float64(device, shape, dtype, tolerance, law):
    u = like(shape, dtype).to(device)
    v = ops.probes(shape, key=KEY, probe=law, dtype=dtype, device=device).double()
    terms = (v * u.double()).reshape(*shape[:2], -1)
    result = ops.probe_dot(u, key=KEY, probe=law)
    assert (result.shape, result.dtype) == (shape[:2], dtype)
    assert ((result.double() - terms.sum(2)).abs() <= tolerance * terms.abs().sum(2)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dim", [1, 33, 784, 10007])
def test_order_of_the_sum(cpu_target, dim, law, dtype):
    """32 running sums in segments of 4096, folded 16 + 16, then neighbours, pairs, quads, halves; the segments in float64."""
    u = like((1, 1, dim)).numpy().astype(dtype)[0, 0]
    v = ops.probes((1, 1, dim), key=KEY, probe=law, dtype=torch.from_numpy(u).dtype).numpy()[0, 0]
    total = np.float64(0)
    for begin in range(0, dim, 4096):
        terms = (v * u)[begin : begin + 4096]
        sums = np.zeros(32, dtype)
        for row in np.pad(terms, (0, -len(terms) % 32)).reshape(-1, 32):
            sums = sums + row
        while len(sums) > 1:
            sums = sums[:16] + sums[16:] if len(sums) == 32 else sums[::2] + sums[1::2]
        total += np.float64(sums[0])
    result = ops.probe_dot(torch.from_numpy(u)[None, None], key=KEY, probe=law)
    assert result.numpy()[0, 0] == total.astype(dtype)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", SHAPES)
def test_scale_is_the_product(device, shape, dtype, law):
    g = like(shape[:2], dtype).to(device)
    result = ops.probe_scale(g, shape, key=KEY, probe=law)
    assert_same_bits(result, ops.probe_scale_reference(g, shape, key=KEY, probe=law))


def results(shape: tuple[int, ...], dtype: torch.dtype, law: str) -> tuple[Tensor, Tensor, Tensor]:
    return (
        ops.probes(shape, key=KEY, probe=law, dtype=dtype),
        ops.probe_dot(like(shape, dtype), key=KEY, probe=law),
        ops.probe_scale(like(shape[:2], dtype), shape, key=KEY, probe=law),
    )


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_bits_are_those_of_every_instruction_set(cpu_target, dtype, law):
    for shape in SHAPES:
        chosen = results(shape, dtype, law)
        core.set_cpu_target("baseline")
        for ours, baseline in zip(chosen, results(shape, dtype, law), strict=True):
            assert_same_bits(ours, baseline, f"{cpu_target} {shape}")
        core.set_cpu_target(cpu_target)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_bits_are_those_of_any_number_of_threads(num_threads, dtype, law):
    for shape in ((3, 5000, 2), (2, 200, 784), (1, 3, 40_000)):
        chosen = results(shape, dtype, law)
        torch.set_num_threads(1)
        for ours, alone in zip(chosen, results(shape, dtype, law), strict=True):
            assert_same_bits(ours, alone, f"{shape}")
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dim", [1, 3, 64, 784, 8193])
def test_batches_split_and_probes_go_on(device, dim, law):
    shape = (4, 24, dim)
    u, g = like(shape).to(device), like(shape[:2]).to(device)
    v, dot, scaled = (
        ops.probes(shape, key=KEY, probe=law, device=device),
        ops.probe_dot(u, key=KEY, probe=law),
        ops.probe_scale(g, shape, key=KEY, probe=law),
    )
    for i in (0, 6, 23):
        part, key = slice(i, i + 6), KEY.shard(i)
        assert_same_bits(ops.probes(v[:, part].shape, key=key, probe=law, device=device), v[:, part])
        assert_same_bits(ops.probe_dot(u[:, part], key=key, probe=law), dot[:, part])
        assert_same_bits(ops.probe_scale(g[:, part], v[:, part].shape, key=key, probe=law), scaled[:, part])
    for p in (1, 3):
        assert_same_bits(ops.probes((p, 24, dim), key=KEY, probe=law, device=device), v[:p])
        assert_same_bits(ops.probe_dot(u[p:], key=KEY.advance(p), probe=law), dot[p:])


@pytest.mark.parametrize("law", LAWS)
def test_events_are_flat(law):
    u = like((2, 3, 4, 5, 6))
    assert_same_bits(ops.probe_dot(u, key=KEY, probe=law), ops.probe_dot(u.reshape(2, 3, 120), key=KEY, probe=law))


@pytest.mark.parametrize("law", LAWS)
def test_layouts_and_shared_vectors(device, law):
    u = like((3, 5, 40)).to(device)
    expected = ops.probe_dot(u, key=KEY, probe=law)
    assert_same_bits(ops.probe_dot(u.transpose(0, 2).contiguous().transpose(0, 2), key=KEY, probe=law), expected)
    assert_same_bits(ops.probe_dot(u[:1].expand(3, 5, 40), key=KEY, probe=law), ops.probe_dot(u[:1].repeat(3, 1, 1), key=KEY, probe=law))
    g = like((5, 3)).to(device)
    assert_same_bits(ops.probe_scale(g.T, u.shape, key=KEY, probe=law), ops.probe_scale(g.T.contiguous(), u.shape, key=KEY, probe=law))


def test_nothing_and_nan(device):
    assert ops.probes((2, 0, 3), key=KEY, device=device).shape == (2, 0, 3)
    assert ops.probe_dot(torch.empty(0, 5, 3, device=device), key=KEY).shape == (0, 5)
    assert ops.probe_scale(torch.empty(2, 0, device=device), (2, 0, 3), key=KEY).shape == (2, 0, 3)
    u = torch.ones(1, 3, 100, device=device)
    u[0, 1, 7], u[0, 2, 99] = math.nan, math.inf
    result = ops.probe_dot(u, key=KEY)[0].tolist()
    assert math.isfinite(result[0])
    assert math.isnan(result[1])
    assert math.isinf(result[2])


def test_inputs_and_the_generator_are_untouched(untouched_generator):
    u, g = like((2, 3, 40)), like((2, 3))
    before = u.clone(), g.clone(), u._version, g._version
    ops.probe_dot(u, key=KEY)
    ops.probe_scale(g, u.shape, key=KEY)
    ops.probes(u.shape, key=KEY)
    assert torch.equal(u, before[0])
    assert torch.equal(g, before[1])
    assert (u._version, g._version) == before[2:]


@pytest.mark.parametrize("law", LAWS)
def test_covariance_is_the_identity(law):
    """tr A from vᵀ A v for a full A, and products of different probes, elements and chains."""
    v = ops.probes((200, 50, 24), key=Key(77), probe=law, dtype=F64)
    a = like((24, 24), F64)
    assert_mean(torch.einsum("pni,ij,pnj->pn", v, a, v), float(a.trace()), what="trace")
    for other, what in ((v.roll(1, 0), "probes"), (v.roll(1, 1), "chains"), (v.roll(1, 2), "elements")):
        assert_mean((v * other), 0.0, what=what)


# torch


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, about torch.jit, at the first forward-mode derivative
@pytest.mark.parametrize("law", LAWS)
def test_gradcheck(law):
    u, g = (like(shape, F64).requires_grad_() for shape in ((2, 3, 2, 5), (2, 3)))

    def dot(u):
        return ops.probe_dot(u, key=KEY, probe=law)

    def scale(g):
        return ops.probe_scale(g, (2, 3, 2, 5), key=KEY, probe=law)

    for f, x in ((dot, u), (scale, g)):
        assert torch.autograd.gradcheck(f, x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda x, f=f: f(x**2), x)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_backward_is_the_adjoint(device, dtype, law):
    shape = (3, 4, 50)
    u, g = like(shape, dtype).to(device).requires_grad_(), like(shape[:2], dtype).to(device).requires_grad_()
    dot, scaled = ops.probe_dot(u, key=KEY, probe=law), ops.probe_scale(g, shape, key=KEY, probe=law)
    assert_same_bits(dot, ops.probe_dot(u.detach(), key=KEY, probe=law))
    assert_same_bits(torch.autograd.grad(dot, u, g)[0], scaled)
    assert_same_bits(torch.autograd.grad(scaled, g, u)[0], dot)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, about torch.jit, at the first forward-mode derivative
def test_function_transforms():
    u = like((2, 3, 40))
    v = ops.probes(u.shape, key=KEY)
    assert torch.equal(torch.func.grad(lambda u: ops.probe_dot(u, key=KEY).sum())(u), v)
    assert_same_bits(torch.func.jvp(lambda u: ops.probe_dot(u, key=KEY), (u,), (2 * u,))[1], ops.probe_dot(2 * u, key=KEY))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(u, 2 * u)
        tangent = torch.autograd.forward_ad.unpack_dual(ops.probe_dot(dual, key=KEY)).tangent
        assert tangent is not None
        assert_same_bits(tangent, ops.probe_dot(2 * u, key=KEY))


def test_vmap_is_refused():
    u, g = like((5, 2, 3, 4)), like((5, 2, 3))
    with pytest.raises(RuntimeError, match=r"probe_dot: torch.func.vmap is not supported"):
        torch.func.vmap(lambda u: ops.probe_dot(u, key=KEY))(u)
    with pytest.raises(RuntimeError, match=r"probe_scale: torch.func.vmap is not supported"):
        torch.func.vmap(lambda g: ops.probe_scale(g, (2, 3, 4), key=KEY))(g)
    with pytest.raises(RuntimeError, match=r"probes: torch.func.vmap is not supported"):
        torch.func.vmap(lambda key: ops.probes((2, 3, 4), key=key))(KEY.steps(4))


def test_fake_tensors():
    with FakeTensorMode():
        key = torch.zeros(3, dtype=torch.int64)
        assert ops.probes((2, 3, 4), key=key, dtype=F64).dtype == F64
        u = torch.empty(2, 3, 4, 5, dtype=F64)
        assert (ops.probe_dot(u, key=key).shape, ops.probe_dot(u, key=key).dtype) == ((2, 3), F64)
        assert ops.probe_scale(u[:, :, 0, 0], u.shape, key=key).shape == u.shape


OPCHECKS = {
    "probes": ((2, 3, 4), KEY.tensor, False, F32),
    "probe_dot": (like((2, 3, 4)).requires_grad_(), KEY.tensor, True),
    "probe_dot, strided": (like((4, 3, 2)).permute(2, 1, 0), KEY.tensor, False),
    "probe_scale": (like((2, 3)).requires_grad_(), KEY.tensor, (2, 3, 4), False),
}


@pytest.mark.parametrize("name", OPCHECKS)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.ebmcore, name.split(",")[0]).default, OPCHECKS[name])


def estimate(u: Tensor, key: Tensor) -> Tensor:
    v = ops.probes(u.shape, key=key)
    return ops.probe_dot(u * u, key=key) + (v * ops.probe_scale(u[:, :, 0], u.shape, key=key)).sum(2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own, about torch.jit
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(backend):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    compiled = torch.compile(estimate, fullgraph=True, backend=backend, dynamic=False)
    for key in (KEY.tensor, KEY.advance(5).tensor):  # the second key must not be frozen into the graph
        inputs = [like((2, 3, 32)).requires_grad_() for _ in range(2)]
        outputs = compiled(inputs[0], key), estimate(inputs[1], key)
        torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(*(torch.autograd.grad(o.sum(), x)[0] for o, x in zip(outputs, inputs, strict=True)))


U, G = torch.zeros(2, 3, 4), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, r"probes: probe must be one of 'rademacher', 'gaussian', got 'sphere'", lambda: ops.probes((2, 3, 4), key=KEY, probe="sphere")),
        (ValueError, r"probe_dot: probe must be one of", lambda: ops.probe_dot(U, key=KEY, probe=U)),
        (ValueError, r"probes: shape must be \(num_probes, num_chains, \*event\) of ints >= 0, got \(2, -3\)", lambda: ops.probes((2, -3), key=KEY)),
        (ValueError, r"probes: shape must be .* with a non-empty event, got \(2, 3, 0\)", lambda: ops.probes((2, 3, 0), key=KEY)),
        (ValueError, r"probes: shape must be .*, got \(2,\)", lambda: ops.probes((2,), key=KEY)),
        (ValueError, r"probes: shape must be .*, got 7", lambda: ops.probes(7, key=KEY)),
        (ValueError, r"probes: a chain must have at most", lambda: ops.probes((1, 1, 2**40), key=KEY)),
        (
            TypeError,
            r"probes: dtype must be torch.float32 or torch.float64, got torch.float16",
            lambda: ops.probes((2, 3), key=KEY, dtype=torch.half),
        ),
        (TypeError, r"probe_dot: u must be a float32 or float64 tensor, got torch.bfloat16", lambda: ops.probe_dot(U.bfloat16(), key=KEY)),
        (TypeError, r"probe_dot: u must be a float32 or float64 tensor, got list", lambda: ops.probe_dot([1.0], key=KEY)),
        (ValueError, r"probe_dot: u must be \(num_probes, num_chains, \*event\).*, got \(2,\)", lambda: ops.probe_dot(U[:, 0, 0], key=KEY)),
        (ValueError, r"probe_dot: u must be .*, got \(2, 3, 0\)", lambda: ops.probe_dot(U[..., :0], key=KEY)),
        (ValueError, r"probe_scale: g must have shape \(2, 3\), got \(3, 2\)", lambda: ops.probe_scale(G.T, (2, 3, 4), key=KEY)),
        (TypeError, r"probe_scale: g must be a float32 or float64 tensor, got torch.int64", lambda: ops.probe_scale(G.long(), (2, 3, 4), key=KEY)),
        (ValueError, r"probe_scale: shape must be", lambda: ops.probe_scale(G, (2, 3, 4.0), key=KEY)),
        (TypeError, r"probe_dot: key must be an ebmcore\.Key", lambda: ops.probe_dot(U, key=1)),
        (ValueError, r"probe_dot: key must have step \+ num_probes <= 2\*\*48", lambda: ops.probe_dot(U, key=Key(0, step=2**48 - 1))),
        (ValueError, r"probes: key must have first_chain >= 0", lambda: ops.probes((2, 3, 4), key=Key(0, 0, 2**40 - 2))),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F32, F64])
def test_cuda_agrees_with_the_cpu(device, dtype):
    """Signs in bits, and with them their sums; normals to 1e-14 in float64 and 1e-6 in float32."""
    if device == "cpu":
        pytest.skip("compares CUDA with the CPU")
    tolerance = 1e-14 if dtype == F64 else 1e-6
    for shape in SHAPES:
        u = like(shape, dtype)
        assert_same_bits(ops.probes(shape, key=KEY, dtype=dtype, device=device).cpu(), ops.probes(shape, key=KEY, dtype=dtype))
        assert_same_bits(ops.probe_dot(u.to(device), key=KEY).cpu(), ops.probe_dot(u, key=KEY))
        here, there = (ops.probes(shape, key=KEY, probe="gaussian", dtype=dtype, device=where).cpu() for where in ("cpu", device))
        torch.testing.assert_close(there, here, rtol=0, atol=tolerance)
