"""The two ways from a Python array to a pointer: DLPack's C exchange API, and the attributes of tensors that lack it."""

import math

import pytest
import torch

from ebmcore import Key, ops
from ebmcore._native import core

INF = math.inf


class OlderTensor:
    """What a torch tensor offered before the exchange API."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> object:
        return getattr(self.tensor, name)


def step(wrap, x, grad, key):
    out = torch.empty_like(x)
    core.langevin_step(wrap(out), wrap(x), wrap(grad), wrap(key), 0.1, 0.3, INF, INF, -INF, INF, None, 1)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4)])
def test_both_ways_reach_the_same_memory(dtype, shape):
    x, grad = (ops.normal(shape, key=Key(1), stream=s).to(dtype) for s in (8, 9))
    key = Key(2, step=3).tensor
    by_attributes, by_exchange = step(OlderTensor, x, grad, key), step(lambda t: t, x, grad, key)
    assert torch.equal(by_attributes, by_exchange)
    assert torch.equal(by_exchange, ops.langevin_step(x, grad, step_size=0.1, noise_std=0.3, key=Key(2, step=3)))


@pytest.mark.parametrize("wrap", [OlderTensor, lambda t: t], ids=["attributes", "exchange"])
def test_bad_tensors_are_named(wrap):
    x, key = torch.zeros(4, 6), Key(0).tensor
    with pytest.raises(ValueError, match="langevin_step: x must be contiguous"):
        step(wrap, x.T, x.T, key)
    with pytest.raises(TypeError, match="langevin_step: x has a dtype"):
        step(wrap, x.int(), x.int(), key)
    with pytest.raises(TypeError, match="langevin_step: grad must have the dtype of x"):
        step(wrap, x, x.double(), key)
    with pytest.raises(ValueError, match="langevin_step: grad must have the shape of x"):
        step(wrap, x, x[:2], key)
    with pytest.raises(TypeError, match="langevin_step: key must be int64"):
        step(wrap, x, x, key.double())
    with pytest.raises(ValueError, match=r"langevin_step: key must hold \[seed, step, first_chain\], got 2"):
        step(wrap, x, x, key[:2])
    with pytest.raises((ValueError, RuntimeError), match=r"must be on the CPU or a CUDA device|meta"):  # the exchange API has words of its own
        step(wrap, x.to("meta"), x.to("meta"), key)
    with pytest.raises(ValueError, match="0-d"):
        step(wrap, torch.zeros(()), torch.zeros(()), key)


@pytest.mark.parametrize("value", [None, 3.0, [1.0, 2.0], "x"])
def test_things_that_are_no_tensors(value):
    x = torch.zeros(4, 6)
    with pytest.raises(TypeError, match=r"langevin_step: x must be a torch.Tensor"):
        core.langevin_step(x, value, x, Key(0).tensor, 0.1, 0.3, INF, INF, -INF, INF, None, 1)
