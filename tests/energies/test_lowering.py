"""`lower`, and native chains of perceptrons, against the user's own module."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ebmcore
from ebmcore import HMC, MALA, Key, Langevin, ops
from ebmcore._native import core
from ebmcore.energies import MLP, lower
from ebmcore.gradients import energy_and_grad
from support.targets import assert_same_bits, network

KEY = Key(5, step=3, first_chain=2)
ACTIVATIONS = [nn.SiLU(), nn.ReLU(), nn.Tanh(), nn.Softplus(), nn.Sigmoid(), nn.GELU(), nn.ELU(1.3), nn.LeakyReLU(0.1)]


class Functional(nn.Module):
    """Layers, functions of torch, and the shapes that people write."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 9), nn.Linear(9, 5, bias=False), nn.Linear(5, 1)
        self.sign = sign

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x.view(x.size(0), -1)), 0.2)
        out: Tensor = self.last(self.second(h).tanh()).squeeze(-1)
        return out if self.sign > 0 else -out


class Residual(Functional):
    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.first(x))
        return self.last(F.silu(self.second(h)) + h[:, :5]).squeeze(-1)


class Branching(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class TwoInputs(Functional):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x)


def hooked(module: nn.Sequential) -> nn.Sequential:
    module[0].register_forward_hook(lambda *_: None)
    return module


def states(n: int, dim: int, device: str = "cpu") -> Tensor:
    return ops.normal((n, dim), key=Key(1), device=device)


def run(energy: nn.Module, x: Tensor, num_steps: int = 1, kernel: str = "langevin", key: Key = KEY, **options: float) -> tuple[Tensor, object]:
    y = x.clone()
    options = {"step_size": 0.02, "noise_std": 0.1} | options if kernel == "langevin" else options
    return y, energy.native_dynamics(kernel, y, None, key.to(x.device).tensor, num_steps, **options)  # type: ignore[operator]


@pytest.mark.parametrize(
    "module",
    [
        network((12, 8, 1)),
        network((12, 1)),
        nn.Sequential(nn.Flatten(), *network((12, 8, 5, 1), nn.GELU())),
        nn.Sequential(network((12, 8, 5, 1)), nn.Identity()),
        Functional(),
        Functional(sign=-1.0),
    ],
)
def test_energies_and_chains_are_those_of_the_module(module):
    energy = lower(module)
    x = states(7, 12)
    expected = module(x).reshape(7)
    assert torch.equal(energy(x), expected)
    assert list(energy.parameters()) == list(module.parameters())
    y, native = run(energy, x)
    assert native is not None
    _, grad = energy_and_grad(energy, x)
    noise = ops.normal(x.shape, key=KEY, stream=ops.Stream.PROPOSAL)
    torch.testing.assert_close(y, x - 0.02 * grad + 0.1 * noise, rtol=0, atol=1e-6)
    value, grad = energy_and_grad(energy, y)
    torch.testing.assert_close(native.energy, value, rtol=0, atol=2e-6)
    torch.testing.assert_close(native.grad, grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("widths", [(3, 40, 1), (50, 37, 61, 12, 1), (7, 1)])
@pytest.mark.parametrize("n", [1, 33, 64])
def test_every_activation_against_float64(device, widths, activation, n):
    module = network(widths, activation).to(device)
    x = 3 * states(n, widths[0], device)
    y, native = run(lower(module), x, 2)
    value, grad = energy_and_grad(lower(network(widths, activation).to(device).double()), y.double())
    scale = 1 + value.abs().max()
    torch.testing.assert_close(native.energy.double(), value, rtol=0, atol=2e-6 * float(scale))
    torch.testing.assert_close(native.grad.double(), grad, rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)), "wanted a linear layer or an activation, got LayerNorm at 1"),
        (nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2)), "wanted one output, got 2"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), "wanted an activation, got the linear layer 1"),
        (nn.Sequential(nn.SiLU(), nn.Linear(4, 1)), "wanted a linear layer, got the activation 0"),
        (nn.Sequential(nn.Linear(3, 4), nn.SiLU()), "wanted a linear layer, got the end"),
        (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Linear(4, 1)), "got Dropout at 1"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 1)), "must be|wanted"),
        (hooked(network((3, 4, 1))), "wanted no hooks, got a hook at 0"),
        (Residual(), "got add|got getitem|layers one after another"),
        (Branching(), "one that torch.fx can trace, got TraceError"),
        (TwoInputs(), "wanted one input"),
    ],
)
def test_what_is_no_perceptron_is_refused(module, message):
    with pytest.raises(ValueError, match=f"lower: .*({message})"):
        lower(module)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"lower: module must be an nn\.Module, got function"):
        lower(lambda x: x.sum(1))  # type: ignore[arg-type]


def test_an_optimiser_step_is_seen_at_once():
    module = network((6, 16, 1))
    energy, x = lower(module), states(5, 6)
    before, _ = run(energy, x)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    energy(x).sum().backward()
    optimizer.step()
    after, _ = run(energy, x)
    assert not torch.equal(before, after)
    assert_same_bits(after, run(lower(module), x)[0])
    module[0].weight = nn.Parameter(module[0].weight.detach() * 2)
    assert_same_bits(run(energy, x)[0], run(lower(module), x)[0])


def test_what_native_chains_cannot_do_is_left_to_torch():
    x = states(4, 6)
    later = lower(network((6, 16, 1)))
    hooked(later.module)
    deep = network((6, *[4] * 9, 1))
    strided = network((6, 16, 1))
    strided[0].weight = nn.Parameter(torch.randn(6, 16).t())
    for energy in (later, lower(deep), lower(strided), lower(network((6, 16, 1), nn.GELU(approximate="tanh")))):
        y, native = run(energy, x)
        assert native is None
        assert torch.equal(y, x)
        assert Langevin(0.01)(energy, x, 3, seed=1).shape == x.shape
    energy = lower(network((6, 16, 1)).double())
    assert run(energy, x.double())[1] is None
    assert run(lower(network((6, 16, 1))), x, kernel="gibbs", step_size=1.0)[1] is None


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(), nn.ELU()], ids=lambda a: type(a).__name__)
def test_bits_are_those_of_every_processor_with_fused_operations(cpu_target, num_threads, activation):
    energy, x = lower(network((19, 45, 30, 1), activation)), states(75, 19)
    y, native = run(energy, x, 5)
    if cpu_target == "baseline":
        assert native is None
        return
    core.set_cpu_target("avx2")
    torch.set_num_threads(1)
    z, reference = run(energy, x, 5)
    assert_same_bits(y, z)
    assert_same_bits(native.energy, reference.energy)
    assert_same_bits(native.grad, reference.grad)


@pytest.mark.parametrize("sampler", [Langevin(0.02), Langevin(0.02, clip_grad=0.05, clamp=(-1.0, 1.0)), MALA(0.1), HMC(0.1, 3)])
def test_batches_split_and_steps_go_on(device, sampler):
    energy, x = MLP(11, (24, 40)).to(device), states(50, 11, device)
    key = KEY.to(device)
    whole = sampler(energy, x, 6, seed=key)
    parts = [sampler(energy, x[i : i + 10], 6, seed=key.shard(i)) for i in range(0, 50, 10)]
    assert_same_bits(torch.cat(parts), whole)
    state = sampler.init(energy, x, seed=key)
    for _ in range(6):
        state, _ = sampler.step(energy, state)
    assert_same_bits(state.x, whole)


@pytest.mark.parametrize("widths", [(130, 257, 140, 1), (260, 260, 1), (12, 6000, 1)])
def test_copies_of_many_weights_have_their_bits(cpu_target, num_threads, widths):
    """Long chains read panels of them, single steps the weights themselves."""
    energy, x = lower(network(widths)), states(75, widths[0])
    if cpu_target == "baseline":
        pytest.skip("has no native chains of perceptrons")
    langevin = Langevin(0.05)
    state = langevin.init(energy, x, seed=KEY)
    whole, _ = langevin.advance(energy, state, 4)
    for _ in range(4):
        state, _ = langevin.step(energy, state)
    assert_same_bits(state.x, whole.x)
    assert_same_bits(state.grad, whole.grad)
    assert_same_bits(state.energy, whole.energy)


@pytest.mark.parametrize("widths", [(2, 128, 128, 1), (37, 3, 1), (5, 41, 18, 1)])
def test_a_few_chains_have_the_bits_of_many(widths):
    energy, x = lower(network(widths, nn.Tanh())), states(9, widths[0])
    for sampler in (Langevin(0.02), MALA(0.2)):
        whole = sampler(energy, x, 4, seed=KEY)
        for n in (1, 2, 3):
            parts = [sampler(energy, x[i : i + n], 4, seed=KEY.shard(i)) for i in range(0, 9, n)]
            assert_same_bits(torch.cat(parts)[:9], whole)
    some, many = run(energy, x[:1], 3), run(energy, x, 3)
    assert_same_bits(some[1].energy, many[1].energy[:1])
    assert_same_bits(some[1].grad, many[1].grad[:1])


def test_samplers_run_lowered_energies_natively(monkeypatch):
    energy, x = lower(network((11, 24, 1))), states(6, 11)
    calls = []
    monkeypatch.setattr(energy.module, "forward", lambda x: calls.append(1))
    Langevin(0.02)(energy, x, 50, seed=1)
    assert not calls


def test_subclasses_that_compute_something_else_are_left_alone():
    class Shifted(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.square().sum(1)

    energy, x = Shifted(4, (8,)), states(3, 4)
    assert energy.native_dynamics("langevin", x.clone(), None, KEY.tensor, 1, step_size=0.1, noise_std=0.1) is None
    torch.testing.assert_close(Langevin(0.1, noise_std=0.0)(energy, x, 1, seed=1), x - 0.1 * energy_and_grad(energy, x)[1], rtol=0, atol=1e-6)


def test_lower_is_on_the_top_floor():
    assert ebmcore.lower is lower
