"""Derivatives of activation functions, against autograd through torch's own and against extended precision."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ebmcore import ops
from ebmcore._native import core
from ebmcore.ops.activations import ACTIVATIONS
from support.targets import assert_same_bits

F32, F64 = torch.float32, torch.float64
SMOOTH = [name for name in ACTIVATIONS if name != "relu"]
TORCH = {
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "relu": functional.relu,
}


def points(dtype: torch.dtype = F32) -> Tensor:
    """Dense on [-30, 30] and around 0, out to where exp is 0, and beyond."""
    ends = torch.tensor([1e-30, 1e-7, 87.0, 88.0, 89.0, 103.0, 104.0, 745.0, 1e4, 3e38], dtype=F64)
    near = torch.logspace(-12, 0, 3001, dtype=F64)
    return torch.cat((torch.linspace(-30, 30, 60_001, dtype=F64), near, -near, ends, -ends)).to(dtype)


def by_autograd(x: Tensor, activation: str, first: int, count: int) -> Tensor:
    """Orders first, ..., first + count - 1 of torch's function, a backward pass each."""
    x = x.clone().requires_grad_()
    values = [TORCH[activation](x)]
    for _ in range(first + count - 1):
        values.append(torch.autograd.grad(values[-1].sum(), x, create_graph=True)[0] if values[-1].requires_grad else torch.zeros_like(x))
    return torch.stack(values[first:]).detach()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_is_what_autograd_gives(activation):
    x = torch.linspace(-6, 6, 201, dtype=F64)
    torch.testing.assert_close(ops.activation_derivatives_reference(x, activation, 0, 7), by_autograd(x, activation, 0, 7), rtol=1e-10, atol=1e-10)
    wide = points(F64)
    torch.testing.assert_close(ops.activation_derivatives_reference(wide, activation, 0)[0], TORCH[activation](wide), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_is_right_to_a_few_ulp(device, cpu_target, activation):
    x = points()
    ours = ops.activation_derivatives(x.to(device), activation, 0, 5).cpu()
    exact = ops.activation_derivatives_reference(x.double(), activation, 0, 5)
    assert (ours.shape, ours.dtype) == ((5, *x.shape), F32)
    error = (ours.double() - exact).abs() / exact.abs().clamp(min=1)
    for order, bound in enumerate((2.5e-7, 5e-7, 5e-7, 1e-6, 2e-6)):
        assert float(error[order].max()) <= bound, order
    # The function itself also where it is small, and 1 - tanh² where tanh rounds to 1.
    small = exact.abs() > 1e-36
    relative = (ours.double() - exact).abs() / exact.abs().clamp(min=1e-36)
    assert float(relative[0][small[0]].max()) <= 1e-6
    if activation in ("tanh", "sigmoid", "softplus"):
        assert float(relative[1][small[1]].max()) <= 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_ends_and_nan(device, cpu_target, activation, dtype):
    """Order 0 does at infinities what torch does; a NaN stays one in every order; nothing overflows at 1e4."""
    for width in (1, 30):  # one by one, and in whole vectors
        x = torch.tensor([math.inf, -math.inf, math.nan, 1e4, -1e4, 0.0], dtype=dtype, device=device).repeat(width)
        ours = ops.activation_derivatives(x, activation, 0, 5)
        torch.testing.assert_close(ours[0], TORCH[activation](x), equal_nan=True)
        assert ours[:, x.isnan()].isnan().all()
        assert ours[:, x.isfinite()].isfinite().all()
        assert ours[2:, x.abs() == 1e4].eq(0).all()
        torch.testing.assert_close(ours, ops.activation_derivatives_reference(x, activation, 0, 5), equal_nan=True)


def test_derivatives_of_relu_are_whole(device):
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-40, 2.0], device=device)
    assert ops.activation_derivatives(x, "relu", 0, 4).tolist()[1:] == [[0, 0, 0, 1, 1], [0] * 5, [0] * 5]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_any_range_of_orders(device, activation, dtype):
    """Each plane is what it is alone; beyond order 4 as by the reference."""
    x = torch.linspace(-5, 5, 77, dtype=dtype, device=device).reshape(7, 11)
    all_orders = torch.cat([ops.activation_derivatives(x, activation, order) for order in range(5)])
    for first in range(5):
        for count in range(1, 6 - first):
            assert_same_bits(ops.activation_derivatives(x, activation, first, count), all_orders[first : first + count])
    torch.testing.assert_close(
        ops.activation_derivatives(x, activation, 3, 4), ops.activation_derivatives_reference(x, activation, 3, 4), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 3e-6), (F64, 1e-14)])
def test_dot_is_the_sum_of_products(device, activation, dtype, tolerance):
    x = torch.linspace(-5, 5, 77, dtype=dtype, device=device).reshape(7, 11)
    for first, count in ((0, 1), (0, 3), (1, 2), (2, 3), (4, 1), (3, 4)):
        weights = torch.linspace(-1, 1, count * 77, dtype=dtype, device=device).reshape(count, 7, 11)
        expected = (weights * ops.activation_derivatives(x, activation, first, count)).sum(0)
        result = ops.activation_derivatives_dot(x, weights, activation, first)
        assert (result.shape, result.dtype) == (x.shape, dtype)
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def results(x: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    weights = torch.linspace(-1, 1, 3 * x.numel()).reshape(3, *x.shape)
    return ops.activation_derivatives(x, activation, 0, 5), ops.activation_derivatives_dot(x, weights, activation, 1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bits_are_those_of_every_instruction_set_and_place(cpu_target, activation):
    x = points()
    chosen = results(x, activation)
    core.set_cpu_target("baseline")
    for ours, baseline in zip(chosen, results(x, activation), strict=True):
        assert_same_bits(ours, baseline, cpu_target)
    core.set_cpu_target(cpu_target)
    assert_same_bits(ops.activation_derivatives(x[5:50], activation, 0, 5), chosen[0][:, 5:50])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bits_are_those_of_any_number_of_threads(num_threads, activation):
    x = torch.linspace(-10, 10, 300_001)
    chosen = results(x, activation)
    torch.set_num_threads(1)
    for ours, alone in zip(chosen, results(x, activation), strict=True):
        assert_same_bits(ours, alone)


def test_shapes_and_layouts(device):
    x = torch.linspace(-3, 3, 24, device=device).reshape(2, 3, 4)
    expected = ops.activation_derivatives(x, "silu", 0, 3)
    assert_same_bits(ops.activation_derivatives(x.permute(2, 0, 1).contiguous().permute(1, 2, 0), "silu", 0, 3), expected)
    assert ops.activation_derivatives(x[0, 0, 0], "silu", 0, 3).shape == (3,)
    assert ops.activation_derivatives(x[:, :0], "silu", 0, 3).shape == (3, 2, 0, 4)
    assert ops.activation_derivatives_dot(x[:, :0], expected[:, :, :0], "silu").shape == (2, 0, 4)
    assert ops.activation_derivatives_dot(x[0, 0, 0], expected[:, 0, 0, 0], "silu").shape == ()
    strided = expected.transpose(0, 1).contiguous().transpose(0, 1)
    assert_same_bits(ops.activation_derivatives_dot(x, strided, "silu"), ops.activation_derivatives_dot(x, expected, "silu"))


def test_inputs_are_untouched():
    x, weights = torch.linspace(-3, 3, 40), torch.ones(2, 40)
    before = x.clone(), x._version, weights._version
    ops.activation_derivatives(x, "tanh", 0, 2)
    ops.activation_derivatives_dot(x, weights, "tanh", 0)
    assert torch.equal(x, before[0])
    assert (x._version, weights._version) == before[1:]


# torch


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, about torch.jit, at the first forward-mode derivative
@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("first", [0, 1, 3])
def test_gradcheck(activation, first):
    generator = torch.Generator().manual_seed(first)
    x, weights = (torch.randn(shape, generator=generator, dtype=F64, requires_grad=True) for shape in ((2, 3), (2, 2, 3)))

    def derivatives(x):
        return ops.activation_derivatives(x, activation, first, 2)

    def dot(x, weights):
        return ops.activation_derivatives_dot(x, weights, activation, first)

    for f, inputs in ((derivatives, (x,)), (dot, (x, weights))):
        assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_gradients_are_the_next_orders(device, activation):
    x = torch.linspace(-4, 4, 63, device=device).requires_grad_()
    slope = torch.autograd.grad(ops.activation_derivatives(x, activation, 0, 1).sum(), x, create_graph=True)[0]
    planes = ops.activation_derivatives(x.detach(), activation, 0, 3)
    torch.testing.assert_close(slope.detach(), planes[1], rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(slope.sum(), x)[0], planes[2], rtol=0, atol=0)


def test_only_what_is_asked_for_is_differentiated():
    x, weights = torch.linspace(-1, 1, 5), torch.ones(1, 5)
    for needs in ((True, False), (False, True)):
        a, b = x.clone().requires_grad_(needs[0]), weights.clone().requires_grad_(needs[1])
        ops.activation_derivatives_dot(a, b, "silu").sum().backward()
        assert (a.grad is not None, b.grad is not None) == needs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, about torch.jit, at the first forward-mode derivative
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_function_transforms(activation):
    x, weights = torch.linspace(-4, 4, 60).reshape(6, 10), torch.linspace(-1, 1, 120).reshape(2, 6, 10)
    expected = ops.activation_derivatives(x, activation, 0, 3)

    def derivatives(x):
        return ops.activation_derivatives(x, activation, 0, 3)

    def dot(x, weights):
        return ops.activation_derivatives_dot(x, weights, activation, 1)

    for op in (derivatives, lambda x: torch.ops.ebmcore.activation_derivatives(x, activation, 0, 3)):
        assert_same_bits(torch.func.vmap(op)(x).movedim(1, 0), expected)
        assert_same_bits(torch.func.vmap(op, in_dims=1)(x), expected.movedim(2, 0))
    assert_same_bits(torch.func.vmap(dot, in_dims=(0, 1))(x, weights), dot(x, weights))
    assert_same_bits(
        torch.func.vmap(dot, in_dims=(None, 2))(x[0, 0].expand(6), weights), torch.func.vmap(dot)(x[0, 0].expand(10, 6), weights.movedim(2, 0))
    )
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda x: derivatives(x)[1].sum()))(x), expected[2])
    torch.testing.assert_close(torch.func.grad(lambda x: torch.func.vmap(derivatives)(x)[:, 1].sum())(x), expected[2])
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(torch.func.vmap(derivatives)(leaf)[:, 1].sum(), leaf)[0], expected[2])
    torch.testing.assert_close(torch.func.jvp(derivatives, (x,), (x,))[1][:2], x * expected[1:])
    along = torch.func.jvp(dot, (x, weights), (x, weights))[1]
    torch.testing.assert_close(along, x * ops.activation_derivatives_dot(x, weights, activation, 2) + dot(x, weights))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weights, weights)
        assert_same_bits(torch.autograd.forward_ad.unpack_dual(dot(x, dual)).tangent, dot(x, weights))


X, W = torch.linspace(-2, 2, 6).reshape(2, 3), torch.ones(2, 2, 3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_layer_in_forward_mode(device, activation, dtype):
    rows = torch.linspace(-4, 4, 3 * 5 * 70, dtype=dtype).reshape(3, 5, 70)
    for bias in (None, torch.linspace(-1, 1, 70, dtype=dtype)):
        expected = rows.clone()
        slopes = ops.activation_tangents_reference(expected, bias, activation)
        moved = rows.to(device, copy=True)
        version = moved._version
        kept = ops.activation_tangents_(moved, None if bias is None else bias.to(device), activation, keep_slopes=True)
        tolerance = 1e-6 if dtype == F32 else 1e-14
        torch.testing.assert_close(moved.cpu(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(kept.cpu(), slopes, rtol=tolerance, atol=tolerance)
        assert moved._version > version
        again = rows.to(device, copy=True)
        assert ops.activation_tangents_(again, None if bias is None else bias.to(device), activation).numel() == 0
        assert_same_bits(again, moved)
        alone = rows[:1].to(device, copy=True)
        ops.activation_tangents_(alone, None if bias is None else bias.to(device), activation)
        assert_same_bits(alone[0], moved[0])


def test_a_layer_has_the_same_bits_everywhere(cpu_target, num_threads):
    rows = torch.linspace(-9, 9, 3 * 501 * 203).reshape(3, 501, 203)
    bias = torch.linspace(-1, 1, 203)
    chosen, baseline = rows.clone(), rows.clone()
    slopes = ops.activation_tangents_(chosen, bias, "silu", keep_slopes=True)
    planes = ops.activation_derivatives(rows[0] + bias, "silu", 0, 2)
    assert_same_bits(chosen, torch.cat((planes[:1], rows[1:] * planes[1])))
    assert_same_bits(slopes, planes[1])
    core.set_cpu_target("baseline")
    torch.set_num_threads(1)
    ops.activation_tangents_(baseline, bias, "silu")
    assert_same_bits(chosen, baseline)


def test_what_is_no_layer_is_refused():
    rows = torch.zeros(2, 3, 4)
    for arguments, error, message in (
        ((rows[0], None, "silu"), ValueError, r"rows must be contiguous, \(1 \+ num_tangents, num_chains, width\), got \(3, 4\)"),
        ((rows.transpose(1, 2), None, "silu"), ValueError, "rows must be contiguous"),
        ((rows.int(), None, "silu"), TypeError, "x must be a float32 or float64 tensor"),
        ((rows, None, "gelu"), ValueError, "activation must be one of"),
        ((rows, torch.zeros(4).double(), "silu"), TypeError, "bias must be None or torch.float32"),
        ((rows, torch.zeros(3), "silu"), ValueError, r"bias must be contiguous, \(4,\), got \(3,\)"),
    ):
        with pytest.raises(error, match=f"activation_tangents_: {message}"):
            ops.activation_tangents_(*arguments)
    assert not rows.any()


OPCHECKS = {
    "activation_tangents_": (X.clone()[None].repeat(3, 1, 1), None, "silu", True),
    "activation_tangents_, float64": (X.double()[None].repeat(2, 1, 1), X.double()[0].clone(), "tanh", False),
    "activation_derivatives": (X.clone().requires_grad_(), "silu", 0, 3),
    "activation_derivatives, strided": (X.T, "tanh", 1, 2),
    "activation_derivatives, float64": (X.double().requires_grad_(), "softplus", 0, 6),
    "activation_derivatives_dot": (X.clone().requires_grad_(), W.clone().requires_grad_(), "sigmoid", 1),
    "activation_derivatives_dot, strided": (X.T, W.transpose(1, 2), "relu", 0),
}


@pytest.mark.parametrize("name", OPCHECKS)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.ebmcore, name.split(",")[0]).default, OPCHECKS[name])


def curvature(x: Tensor) -> Tensor:
    value, slope = ops.activation_derivatives(x, "silu", 0, 2).unbind()
    return ops.activation_derivatives_dot(slope, value[None], "tanh", 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own, about torch.jit
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(backend):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    compiled = torch.compile(curvature, fullgraph=True, backend=backend, dynamic=False)
    inputs = [X.clone().requires_grad_() for _ in range(2)]
    outputs = compiled(inputs[0]), curvature(inputs[1])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(o.sum(), x)[0] for o, x in zip(outputs, inputs, strict=True)))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, r"activation_derivatives: x must be a float32 or float64 tensor, got list", lambda: ops.activation_derivatives([1.0], "silu")),
        (TypeError, r"x must be a float32 or float64 tensor, got torch.float16", lambda: ops.activation_derivatives(X.half(), "silu")),
        (ValueError, r"activation must be one of 'sigmoid', 'softplus', .*, got 'gelu'", lambda: ops.activation_derivatives(X, "gelu")),
        (ValueError, r"activation_derivatives: first must be an int >= 0, got -1", lambda: ops.activation_derivatives(X, "silu", -1)),
        (ValueError, r"activation_derivatives: count must be an int >= 1, got 0", lambda: ops.activation_derivatives(X, "silu", 0, 0)),
        (TypeError, r"count must be an int >= 1, got 1.0", lambda: ops.activation_derivatives(X, "silu", 0, 1.0)),
        (TypeError, r"activation_derivatives_dot: weights must be a torch.float32 tensor, got torch.float64",
         lambda: ops.activation_derivatives_dot(X, W.double(), "silu")),
        (TypeError, r"weights must be a torch.float32 tensor, got 1", lambda: ops.activation_derivatives_dot(X, 1, "silu")),
        (ValueError, r"weights must have shape \(count, 2, 3\) with count >= 1, got \(2, 3\)", lambda: ops.activation_derivatives_dot(X, X, "silu")),
        (ValueError, r"weights must have shape .*, got \(0, 2, 3\)", lambda: ops.activation_derivatives_dot(X, W[:0], "silu")),
        (ValueError, r"activation_derivatives_dot: first must be an int >= 0, got -1", lambda: ops.activation_derivatives_dot(X, W, "silu", -1)),
    ],
)  # fmt: skip
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()
