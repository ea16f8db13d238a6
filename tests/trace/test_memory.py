"""Many probes need hardly more memory than one where they go through formulas. Counted by torch's allocator, so the same at every run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ebmcore import Key, ops, trace
from ebmcore.bench.memory import peak_bytes
from ebmcore.energies import MLP
from ebmcore.networks import ScoreMLP

KEY = Key(3)


def peak(f: Callable[..., object], x: torch.Tensor, num_probes: int) -> int:
    """Most bytes of tensors at once, x among them and the weights not."""

    def call() -> object:
        with torch.no_grad():
            return trace.function_value_and_trace(f, x, "hutchinson", num_probes=num_probes, key=KEY)

    return x.nbytes + peak_bytes(call, x.device)


@pytest.mark.parametrize("kind", [ScoreMLP, MLP])
def test_sixteen_probes_need_little_more_memory_than_one(kind: type[nn.Module], device: str) -> None:
    torch.manual_seed(0)
    net, x = kind(784, hidden=(512, 512)).to(device), torch.randn(64, 784, device=device)  # type: ignore[call-arg]
    one = peak(net, x, 1)
    assert one > 2 * x.nbytes  # x and the field
    assert peak(net, x, 16) <= 1.3 * one
    assert peak(lambda y: net(y), x, 16) > 3 * one  # autograd, which is not told the formulas


def test_exact_traces_need_no_jacobian(device: str) -> None:
    torch.manual_seed(0)
    net, x = ScoreMLP(784, hidden=(512, 512)).to(device), torch.randn(64, 784, device=device)

    def call() -> object:
        with torch.no_grad():
            return trace.function_value_and_trace(net, x, "exact")

    assert x.nbytes + peak_bytes(call, x.device) <= 1.3 * peak(net, x, 1)


def test_fused_dot_products_store_no_probes(device: str) -> None:
    u = torch.randn(16, 64, 784, device=device)
    assert peak_bytes(lambda: ops.probe_dot(u, key=KEY), u.device) < 0.01 * u.nbytes
