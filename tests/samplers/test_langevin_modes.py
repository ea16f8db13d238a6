"""Langevin's precision "bf16" and row_space, on perceptrons."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ebmcore import DivergenceError, Key, KineticLangevin, Langevin, ops, perceptron
from ebmcore._native import core
from ebmcore.energies import MLP, DoubleWell, lower
from ebmcore.gradients import energy_and_grad
from ebmcore.ops.dynamics import bfloat16_products, fuses_multiply_add
from support.targets import assert_same_bits, network

Z = 5.45  # standard errors, passed once in 2e7
EMULATED, AVX512_BF16, AMX = 0, 1, 2


def states(n: int, *event: int) -> Tensor:
    return ops.normal((n, *event), key=Key(1))


@pytest.fixture(params=[EMULATED, AVX512_BF16, AMX], ids=["emulated", "avx512_bf16", "amx"])
def products(request, monkeypatch, cpu_target):
    if request.param > bfloat16_products() or not fuses_multiply_add(torch.device("cpu")):
        pytest.skip("not on this processor, or not with this instruction set")
    monkeypatch.setattr(perceptron, "bfloat16_products", lambda: request.param)
    return request.param


def small_integers(module: nn.Sequential) -> nn.Sequential:
    """Weights -1, 0 and 1, biases -2 to 2: every product and sum of a few hundred of them is exact in bfloat16 and float32."""
    for i, p in enumerate(module.parameters()):
        low, high = (-1, 2) if p.dim() == 2 else (-2, 3)
        p.data = torch.randint(low, high, p.shape, generator=torch.Generator().manual_seed(i)).float()
    return module


@pytest.mark.parametrize("widths", [(4, 1), (5, 7, 1), (33, 40, 1), (70, 16, 17, 1), (32, 65, 3, 1)])
@pytest.mark.parametrize("n", [1, 3, 17, 70])
def test_bfloat16_products_of_small_integers_are_exact(products, widths, n):
    module = small_integers(network(widths, activation=nn.ReLU()))
    x = torch.randint(-1, 2, (n, widths[0]), generator=torch.Generator().manual_seed(n)).float()
    langevin = Langevin(1.0, noise_std=0.0, precision="bf16")
    state = langevin.init(lower(module), x, seed=0)
    double = small_integers(network(widths, activation=nn.ReLU())).double()
    value, grad = energy_and_grad(lambda y: double(y).squeeze(1), x.double())
    assert float(value.abs().max()) < 2**24
    assert_same_bits(langevin(lower(module), x, 1, seed=0), (x.double() - grad).float())
    end, _ = langevin.advance(lower(module), state, 1)
    value, grad = energy_and_grad(lambda y: double(y).squeeze(1), end.x.double())
    if float(end.x.abs().max()) <= 256:
        assert_same_bits(end.energy, value.float())
        assert_same_bits(end.grad, grad.float())


def test_products_round_to_bfloat16_and_nothing_else_does(products):
    """1 + 2^-8 is halfway between two bfloat16 numbers and goes to the even one, 1; x, biases, the output layer and sums keep theirs."""
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    just_above = 1 + 2.0**-8
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(just_above)
    x = torch.tensor([[3 * 2.0**-10 + 1]])
    end, _ = Langevin(1.0, noise_std=0.0, precision="bf16").advance(lower(module), Langevin(1.0).init(lower(module), torch.zeros(1, 1)), 1)
    assert float(end.x) == -1.0  # ∇E = bf16(output weight) · bf16(weight)
    assert float(end.energy) == just_above * (just_above - 1) + just_above
    assert float(Langevin(2.0**-12, noise_std=0.0, precision="bf16")(lower(module), x, 1)) == float(x) - 2.0**-12


@pytest.mark.parametrize("widths", [(784, 256, 256, 1), (2, 128, 128, 1)])
def test_gradients_in_bfloat16_are_a_few_thousandths_off(products, widths):
    energy = lower(network(widths))
    x = states(40, widths[0])
    end, _ = Langevin(1e-9, noise_std=0.0, precision="bf16").advance(energy, Langevin(1e-9).init(energy, x), 1)
    value, grad = energy_and_grad(energy.double(), end.x.double())
    assert 1e-4 < float((end.grad - grad).norm() / grad.norm()) < 1e-2
    assert float((end.energy - value).abs().max()) < 1e-2


def test_bits_in_bfloat16_know_no_batch_and_no_thread(products, num_threads):
    energy = lower(network((9, 40, 21, 1)))
    x = states(150, 9)
    langevin = Langevin(0.02, precision="bf16")
    state = langevin.init(energy, x, seed=3)
    whole, _ = langevin.advance(energy, state, 5)
    core.set_num_threads(1)
    parts = [langevin(energy, x[a:b], 5, seed=Key(3).shard(a)) for a, b in ((0, 1), (1, 18), (18, 150))]
    assert_same_bits(torch.cat(parts), whole.x)
    for _ in range(5):
        state, _ = langevin.step(energy, state)
    assert_same_bits(state.x, whole.x)
    assert_same_bits(state.grad, whole.grad)


class Bowl(nn.Module):
    """E = Σ_i softplus(8 (x_i - 1)) / 2 + softplus(-8 (x_i + 1)) / 2 of two elements, as a perceptron: convex, with walls of slope 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(8 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
            self.first.bias.fill_(-8.0)
            self.last.weight.fill_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.softplus(self.first(x))).squeeze(1)


def test_law_in_bfloat16(products):
    """Variance and fourth moment of a law that quadrature knows, one marginal with 8192 chains. The step's own bias is below 1 %."""
    num_chains = 4096
    x = Langevin(0.004, precision="bf16")(lower(Bowl()), torch.zeros(num_chains, 2), 2000, seed=4).double()
    grid = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    energies = (nn.functional.softplus(8 * (grid - 1)) + nn.functional.softplus(-8 * (grid + 1))) / 2
    density = (-energies).exp() / (-energies).exp().sum()
    for power in (2, 4):
        exact, spread = float(density @ grid**power), float(density @ grid ** (2 * power))
        error = math.sqrt((spread - exact**2) / (2 * num_chains))
        assert abs(float((x**power).mean()) - exact) < Z * error + 0.02 * exact


def test_chains_in_bfloat16_stay_beside_those_in_float32(products):
    """Under the same noise in a convex energy."""
    energy, x = lower(Bowl()), states(64, 2)
    ends = [Langevin(0.01, precision=precision)(energy, x, 300, seed=7) for precision in ("bf16", None)]
    assert 0 < float((ends[0] - ends[1]).abs().max()) < 0.05


def test_kinetic_langevin_in_bfloat16(products):
    """Under the same noise in a convex energy it stays beside float32, and single steps have the bits of long runs."""
    energy, x = lower(Bowl()), states(64, 2)
    rounded, exact = (KineticLangevin(0.1, friction=1.0, precision=precision) for precision in ("bf16", None))
    state = rounded.init(energy, x, seed=7)
    end, _ = rounded.advance(energy, state, 100)
    assert 0 < float((end.x - exact(energy, x, 100, seed=7)).abs().max()) < 0.1
    for _ in range(100):
        state, _ = rounded.step(energy, state)
    assert_same_bits(state.x, end.x)
    assert_same_bits(state.momentum, end.momentum)
    with pytest.raises(ValueError, match="KineticLangevin: precision needs the energy to be a perceptron"):
        rounded(DoubleWell(), x, 2)
    with pytest.raises(ValueError, match=r"KineticLangevin: precision must be None or"):
        KineticLangevin(0.1, friction=1.0, precision="fp16")


def replay(module: nn.Sequential, x: Tensor, num_steps: int, step_size: float, noise_std: float, key: Key) -> Tensor:
    """Plain Langevin steps in float64 with the noise that row_space draws: of the row space step by step, of the rest a K-th of it a step."""
    weight = module[0].weight.detach()
    basis = torch.linalg.qr(weight.t())[0]
    of_rest = ops.normal(x.shape, key=key, stream=ops.Stream.COMPLEMENT).double()
    basis, y = basis.double(), x.double()
    of_rest = (of_rest - of_rest @ basis @ basis.t()) / math.sqrt(num_steps)
    double = nn.Sequential(*(nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in module)).double()
    double.load_state_dict(module.state_dict())
    for k in range(num_steps):
        of_rows = ops.normal((len(x), basis.shape[1]), key=key.advance(k), stream=ops.Stream.PROPOSAL).double()
        grad = energy_and_grad(lambda z: double(z).squeeze(1), y)[1]
        y = y - step_size * grad + noise_std * (of_rows @ basis.t() + of_rest)
    return y


@pytest.mark.parametrize("widths", [(30, 7, 1), (784, 40, 12, 1), (6, 1), (5, 4, 30, 1)])
@pytest.mark.parametrize("num_steps", [1, 9])
def test_row_space_is_plain_langevin_under_other_noise(widths, num_steps):
    module = network(widths)
    x, key = states(37, widths[0]), Key(11, step=2, first_chain=5)
    langevin = Langevin(0.05, noise_std=0.3, row_space=True)
    end, _ = langevin.advance(lower(module), langevin.init(lower(module), x, seed=key), num_steps)
    torch.testing.assert_close(end.x.double(), replay(module, x, num_steps, 0.05, 0.3, key), atol=2e-5, rtol=1e-5)
    value, grad = energy_and_grad(lower(module), end.x)
    torch.testing.assert_close(end.grad, grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(end.energy, value, atol=1e-5, rtol=1e-5)
    assert end.key.step == key.step + num_steps


def test_noise_that_row_space_adds_is_that_of_all_steps():
    """Directions that the energy does not see: x moves by N(0, num_steps · noise_std²) there, whatever the split into calls."""
    module = network((40, 3, 1))
    basis = torch.linalg.qr(module[0].weight.detach().t(), mode="complete")[0][:, 3:]
    langevin = Langevin(0.05, noise_std=0.3, row_space=True)
    state = langevin.init(lower(module), torch.zeros(2000, 40), seed=1)
    for count in (7, 1, 12):
        state, _ = langevin.advance(lower(module), state, count)
    moved = (state.x @ basis).double() / (0.3 * math.sqrt(20))
    n = moved.numel()
    assert abs(float(moved.mean())) < Z / math.sqrt(n)
    assert abs(float(moved.square().mean()) - 1) < Z * math.sqrt(2 / n)
    correlation = moved.t() @ moved / len(moved) - torch.eye(37)
    assert float(correlation.abs().max()) < 7 * math.sqrt(2 / len(moved))  # 703 of them: odds 2e-9


def test_row_space_of_a_wide_first_layer_is_all_there_is():
    module = network((6, 9, 1))
    plain, mode = (Langevin(0.05, row_space=on)(lower(module), states(5, 6), 4, seed=1) for on in (False, True))
    assert_same_bits(mode, plain)


def test_row_space_follows_the_weights():
    module, x = network((30, 7, 1)), states(5, 30)
    energy, langevin = lower(module), Langevin(0.05, row_space=True)
    before = langevin(energy, x, 4, seed=1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    energy(x).sum().backward()
    optimizer.step()
    fresh = network((30, 7, 1))
    fresh.load_state_dict(module.state_dict())
    after = langevin(energy, x, 4, seed=1)
    assert_same_bits(after, langevin(lower(fresh), x, 4, seed=1))
    assert not torch.equal(before, after)


def test_row_space_of_events_with_shape_and_in_bfloat16(products):
    energy = MLP(24, hidden=(5, 8))
    x = states(6, 2, 3, 4)
    for precision in (None, "bf16"):
        langevin = Langevin(0.05, row_space=True, precision=precision)
        end, _ = langevin.advance(energy, langevin.init(energy, x, seed=2), 5)
        flat = langevin(energy, x.flatten(1), 5, seed=2)
        assert end.x.shape == end.grad.shape == x.shape
        assert_same_bits(end.x.flatten(1), flat)
    assert float((end.x - Langevin(0.05, row_space=True)(energy, x, 5, seed=2)).abs().max()) < 1e-2


@pytest.mark.parametrize("mode", [{"precision": "bf16"}, {"row_space": True}])
def test_chains_that_diverge_are_found(mode):
    with pytest.raises(DivergenceError, match="Langevin"):
        Langevin(0.1, noise_std=1e38, **mode)(lower(network((30, 7, 1))), states(4, 30), 40)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ({"precision": "fp16"}, "precision must be None or"),
        ({"precision": 16}, "precision must be None or"),
        ({"row_space": 1}, "row_space must be a bool"),
        ({"precision": "bf16", "noise_first": True}, "take no schedule"),
        ({"precision": "bf16", "clip_grad_norm": 1.0}, "take no schedule"),
        ({"row_space": True, "on_divergence": "freeze"}, "take no schedule"),
        ({"row_space": True, "noise_std": lambda step: 0.1}, "take no schedule"),
        ({"row_space": True, "clamp": (0.0, 1.0)}, "row_space takes no clip_grad and no clamp"),
        ({"row_space": True, "clip_grad": 1.0}, "row_space takes no clip_grad and no clamp"),
    ],
)
def test_settings_that_do_not_go_together(mode, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Langevin(0.1, **mode)


@pytest.mark.parametrize("mode", [{"precision": "bf16"}, {"row_space": True}])
@pytest.mark.parametrize(
    ("energy", "dtype"),
    [(DoubleWell(), torch.float32), (lambda x: x.square().sum(1), torch.float32), (lower(network((4, 1))).double(), torch.float64)],
)
def test_energies_without_such_chains_are_refused(mode, energy, dtype):
    x = torch.zeros(3, 4, dtype=dtype)
    with pytest.raises(ValueError, match="need the energy to be a perceptron"):
        Langevin(0.1, **mode)(energy, x, 2)
    assert not x.any()
