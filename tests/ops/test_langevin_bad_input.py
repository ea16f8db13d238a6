"""What the step refuses, with which error, and that nothing was written then."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from ebmcore import Key, ops

GOOD = {"step_size": 0.1, "noise_std": 0.3, "key": Key(1)}
STEPS = {
    "langevin_step": lambda x, grad, **arguments: ops.langevin_step(x, grad, **GOOD | arguments),
    "langevin_step_": lambda x, grad, **arguments: ops.langevin_step_(x, grad, **GOOD | arguments),
    "out": lambda x, grad, **arguments: ops.langevin_step(x, grad, out=x, **GOOD | arguments),
    "numpy": lambda x, grad, **arguments: ops.langevin_step_(x.numpy(), grad.numpy(), **GOOD | arguments),
}
steps = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)


def refused(step, x, grad, error, message, **arguments) -> None:
    before = x.clone()
    with pytest.raises(error, match=message) as caught:
        step(x, grad, **arguments)
    assert str(caught.value).startswith("langevin_step")  # the function's name comes first
    assert torch.equal(x, before)


@steps
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({name: value}, error, f": {name}")
        for name, values in {
            "step_size": {
                ValueError: [0, 0.0, -0.1, math.nan, math.inf, -math.inf],
                TypeError: ["0.1", None, True, torch.tensor(0.1), 1j, [0.1], np.array(0.1)],
            },
            "noise_std": {ValueError: [-0.1, math.nan, math.inf], TypeError: ["0.1", None, True, torch.tensor(0.1)]},
            "clip_grad": {ValueError: [0.0, -1.0, math.nan], TypeError: ["1", True, torch.tensor(1.0)]},
            "clip_grad_norm": {ValueError: [0.0, -1.0, math.nan], TypeError: ["1", True, torch.tensor(1.0)]},
            "clamp": {
                ValueError: [(1.0, 0.0), (0.5, 0.5), (math.nan, 1.0), (0.0, math.nan)],
                TypeError: [1.0, "01", (0.0,), (0.0, 0.5, 1.0), (None, 1.0), ("0", "1")],
            },
            "key": {TypeError: [None, 5, "5", torch.zeros(3), torch.zeros(4, dtype=torch.int64), np.zeros(3, np.int64)]},
            "stream": {ValueError: [256, -1], TypeError: ["USER", 0.5, None]},
        }.items()
        for error, listed in values.items()
        for value in listed
    ],
    ids=repr,
)
def test_arguments(step, arguments, error, message):
    refused(step, torch.zeros(2, 3), torch.ones(2, 3), error, message, **arguments)


@pytest.mark.parametrize("name", ["step_size", "noise_std", "clip_grad", "clip_grad_norm"])
@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.int64(1), 1, Fraction(1, 2)], ids=repr)
def test_any_real_number_will_do(name, value):
    x, grad = torch.zeros(2, 3), torch.ones(2, 3)
    arguments = {"noise_std": 0.3, "step_size": 0.1, "key": Key(1)}
    assert torch.equal(ops.langevin_step(x, grad, **arguments | {name: value}), ops.langevin_step(x, grad, **arguments | {name: float(value)}))


BAD_STATES = {
    "int64": (lambda: torch.zeros(2, 3, dtype=torch.int64), TypeError),
    "bool": (lambda: torch.zeros(2, 3, dtype=torch.bool), TypeError),
    "complex": (lambda: torch.zeros(2, 3, dtype=torch.complex64), TypeError),
    "float8": (lambda: torch.zeros(2, 3).to(torch.float8_e5m2), TypeError),
    "sparse": (lambda: torch.eye(3).to_sparse(), TypeError),
    "0-d": (lambda: torch.tensor(1.0), ValueError),
    "no elements": (lambda: torch.zeros(4, 0), ValueError),
    "no elements in an image": (lambda: torch.zeros(4, 3, 0, 5), ValueError),
    "meta": (lambda: torch.zeros(2, 3, device="meta"), RuntimeError),
    "list": (lambda: [[0.0, 1.0]], TypeError),
    "None": (lambda: None, TypeError),
    "float": (lambda: 0.5, TypeError),
}


@pytest.mark.parametrize("step", [ops.langevin_step, ops.langevin_step_])
@pytest.mark.parametrize("name", BAD_STATES)
def test_states(step, name):
    make, error = BAD_STATES[name]
    x = make()
    with pytest.raises(error, match=r"^langevin_step_?: ") as caught:
        step(x, x, **GOOD)
    assert "x must" in str(caught.value) or "tensors must be on" in str(caught.value)


def test_nested_tensors():
    x = torch.nested.nested_tensor([torch.zeros(3), torch.zeros(3)], layout=torch.jagged)
    with pytest.raises(TypeError, match="langevin_step: x must be"):
        ops.langevin_step(x, x, **GOOD)


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.complex128, np.longdouble, object])
def test_numpy_dtypes(dtype):
    x = np.zeros((2, 3), dtype=dtype)
    with pytest.raises(TypeError):
        ops.langevin_step(x, x, **GOOD)


@pytest.mark.parametrize("name", ["grad", "out"])
def test_companions(name):
    x = torch.zeros(2, 3)

    def call(value):
        arguments = {"grad": torch.ones(2, 3), "out": torch.zeros(2, 3)} | {name: value}
        return ops.langevin_step(x, **GOOD, **arguments)

    with pytest.raises(ValueError, match=rf"^langevin_step: {name} must have shape \(2, 3\), got \(2, 4\)$"):
        call(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=rf"^langevin_step: {name} must have shape \(2, 3\), got \(3,\)$"):
        call(torch.zeros(3))  # no broadcasting
    with pytest.raises(TypeError, match=rf"^langevin_step: {name} must have dtype torch.float32, got torch.float64$"):
        call(torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"^langevin_step: {name} must be on cpu, got meta$"):
        call(torch.zeros(2, 3, device="meta"))
    with pytest.raises(TypeError, match=rf"^langevin_step: {name} must be a torch.Tensor"):
        call(np.zeros((2, 3), np.float32))
    assert not x.any()


def test_torch_and_numpy_do_not_mix():
    with pytest.raises(TypeError, match=r"grad must be a numpy.ndarray"):
        ops.langevin_step(np.zeros((2, 3), np.float32), torch.zeros(2, 3), **GOOD)
    with pytest.raises(TypeError, match=r"out must be a numpy.ndarray"):
        ops.langevin_step(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), out=torch.zeros(2, 3), **GOOD)


def test_mixed_devices(device):
    if device == "cpu":
        pytest.skip("needs a second device")
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="grad must be on cpu, got cuda"):
        ops.langevin_step(x, x.to(device), **GOOD)
    key = Key(1).to(device)  # a key moves to where the chains are
    assert torch.equal(ops.langevin_step(x, x, step_size=0.1, noise_std=0.3, key=key), ops.langevin_step(x, x, **GOOD))


def test_cuda_tensors_without_cuda(monkeypatch):
    """The message of the machine, at the call; CPU tensors keep working."""
    if torch.cuda.is_available() and not ops.cuda_problem():
        pytest.skip("CUDA works here")
    from ebmcore import _native

    with pytest.raises(RuntimeError, match=r"CUDA tensors cannot be used: .+"):
        _native.require_device("cuda", "langevin_step")
    ops.langevin_step(torch.zeros(2, 3), torch.zeros(2, 3), **GOOD)


def test_chains_too_long_for_the_counter():
    x = torch.zeros(1).expand(1, 2**33 + 1)
    with pytest.raises(ValueError, match="a chain must have at most"):
        ops.langevin_step(x, x, **GOOD)
