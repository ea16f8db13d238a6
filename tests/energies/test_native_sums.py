"""Native chains of sums: products, tempered and negated energies have the torch path's numbers, one set of bits, and the product's law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebmcore import HMC, MALA, KineticLangevin, Langevin, RandomWalkMetropolis, lower, ops
from ebmcore._native import core
from ebmcore.energies import MLP, DoubleWell, Funnel, Gaussian, GaussianMixture, Ring, negate, product, temper
from ebmcore.gradients import energy_and_grad
from ebmcore.ops.dynamics import fuses_multiply_add
from ebmcore.types import Key
from support.statistics import assert_gaussian
from support.targets import assert_same_bits

KEY = Key(3, 4, 5)
PRECISION = torch.eye(3, dtype=torch.float64) + 0.3
WIDE = Gaussian([1.0, -1.0, 0.5], precision=PRECISION)
NARROW = Gaussian([-0.5, 0.0, 0.5], precision=[2.0, 1.0, 4.0])
MIXTURE = GaussianMixture([1.0, 2.0], [[-1.5, 0.0, 0.5], [1.5, 1.0, 0.0]], std=0.7)
SUMS: dict[str, nn.Module] = {
    "product": product(WIDE, MIXTURE),
    "one part": product(NARROW),
    "tempered": temper(MIXTURE, 2.5),
    "negated": product(NARROW, negate(WIDE, 0.2)),
    "nested": product(temper(product(WIDE, temper(DoubleWell(2.0, 1.0, dim=3), 3.0)), 0.8), product(Funnel(3), MIXTURE)),
}
SAMPLERS: dict[str, Any] = {
    "langevin": Langevin(0.003),
    "langevin bounded": Langevin(0.003, clip_grad=0.5, clamp=(-1.0, 1.0)),
    "mala": MALA(0.05, torch.tensor([0.5, 1.0, 1.5])),
    "hmc": HMC(0.1, 5, jitter=0.3),
    "kinetic langevin": KineticLangevin(0.05, 1.0),
    "random walk": RandomWalkMetropolis(0.2),
}


def start(num_chains: int = 37, dtype: torch.dtype = torch.float64, dim: int = 3) -> Tensor:
    return (0.5 * ops.normal((num_chains, dim), key=Key(1), dtype=torch.float64)).to(dtype)


def tensors(*results: Any) -> list[Tensor]:
    return [value for result in results for value in result if isinstance(value, Tensor)]


def in_torch(energy: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: energy(x)


def natively(energy: Any, x: Tensor, kernel: str = "langevin", num_steps: int = 1) -> Any:
    return energy.native_dynamics(kernel, x, None, KEY.tensor, num_steps, step_size=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("energy", SUMS)
def test_native_chains_are_the_torch_chains(energy: str, sampler: str, dtype: torch.dtype, cpu_target: str) -> None:
    model, kernel = SUMS[energy], SAMPLERS[sampler]
    x = start(dtype=dtype)
    assert natively(model, x.clone()) is not None
    state = kernel.init(model, x, seed=KEY)
    native, plain = kernel.advance(model, state, 6), kernel.advance(in_torch(model), state, 6)
    # In float32 one decision at the edge may go the other way: then a chain is elsewhere.
    is_same = native[1].is_accepted == plain[1].is_accepted if hasattr(native[1], "is_accepted") else torch.ones(37, dtype=torch.bool)
    assert is_same.float().mean() > (0.999 if dtype == torch.float64 else 0.9)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-3}
    for a, b in zip(tensors(*native), tensors(*plain), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a[is_same].double(), b[is_same].double(), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("energy", ["negated", "nested"])
def test_bits_depend_on_nothing_but_the_chain(energy: str, sampler: str, dtype: torch.dtype) -> None:
    """Instruction sets, splits of the batch and of the steps, another number of chains in a call."""
    model, kernel = SUMS[energy], SAMPLERS[sampler]
    begin = kernel.init(model, start(53, dtype), seed=KEY)
    whole, _ = kernel.advance(model, begin, 10)
    before = ops.info()["cpu_target"]
    try:
        for target in ops.info()["cpu_targets"]:
            core.set_cpu_target(target)
            state = kernel.advance(model, begin, 6)[0]
            for _ in range(4):
                state, _ = kernel.step(model, state)
            for a, b in zip(tensors(state), tensors(whole), strict=True):
                assert_same_bits(a, b, f"6 + 4 steps on {target}")
            for low, high in ((0, 1), (1, 20), (20, 53)):
                rows = type(begin)(*(v[low:high] if isinstance(v, Tensor) and v.dim() else v for v in begin))
                part, _ = kernel.advance(model, rows._replace(key=begin.key.shard(low)), 10)
                for a, b in zip(tensors(part), tensors(whole), strict=True):
                    assert_same_bits(a, b[low:high] if b.dim() else b, f"rows {low} to {high} on {target}")
    finally:
        core.set_cpu_target(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_of_gaussians_is_the_gaussian(dtype: torch.dtype, cpu_target: str) -> None:
    """Precisions add; means are weighted by them. E is that Gaussian's but for a constant, and so is the law of its chains."""
    precision = PRECISION + 0.5 * NARROW.precision.diag()
    mean = torch.linalg.solve(precision, PRECISION @ WIDE.mean + 0.5 * NARROW.precision * NARROW.mean)
    model, exact = product(WIDE, temper(NARROW, 2.0)), Gaussian(mean, precision=precision)
    x = start(dtype=dtype)
    a, b = natively(model, x.clone()), natively(exact, x.clone())
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=tolerance)
    constant = a.energy[0] - b.energy[0]
    torch.testing.assert_close(a.energy, b.energy + constant, rtol=tolerance, atol=tolerance)
    end = HMC(0.3, 4)(model, exact.sample(20_000, key=Key(2), dtype=dtype), 5, seed=3)
    assert_gaussian(end, mean, torch.linalg.inv(precision), what="x after 5 steps")


@pytest.mark.skipif(not fuses_multiply_add(torch.device("cpu")), reason="native perceptrons need fused multiply-adds")
@pytest.mark.parametrize("num_chains", [1, 3, 4, 37, 300])
def test_products_of_perceptrons(num_chains: int) -> None:
    torch.manual_seed(0)
    network, other = MLP(3, (20, 16), nn.Tanh), nn.Sequential(nn.Linear(3, 24), nn.SiLU(), nn.Linear(24, 1))
    model = product(network, temper(lower(other), 0.5), Gaussian(torch.zeros(3), precision=torch.ones(3)))
    x = start(num_chains, torch.float32)
    value, grad = energy_and_grad(model, x)
    run = natively(model, x.clone())
    torch.testing.assert_close(run.energy, value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run.grad, grad, rtol=1e-5, atol=1e-5)
    sampler = HMC(0.1, 3)
    end, info = sampler.advance(model, sampler.init(model, x, seed=KEY), 20)
    plain, plain_info = sampler.advance(in_torch(model), sampler.init(model, x, seed=KEY), 20)
    is_same = (info.acceptance_prob - plain_info.acceptance_prob).abs() < 1e-4
    assert is_same.float().mean() > 0.95
    torch.testing.assert_close(end.x[is_same], plain.x[is_same], rtol=1e-3, atol=1e-3)
    whole = sampler(model, start(300, torch.float32), 20, seed=KEY)
    assert_same_bits(end.x, whole[:num_chains])
    assert natively(model, x.double()) is None  # a network of float32


@pytest.mark.skipif(not fuses_multiply_add(torch.device("cpu")), reason="native perceptrons need fused multiply-adds")
def test_products_of_wide_perceptrons() -> None:
    """Of which many steps copy the weights, and single ones do not: to the same bits."""
    torch.manual_seed(0)
    model = product(MLP(300, (256,)), Gaussian(torch.zeros(300), precision=torch.ones(300)))
    sampler = MALA(0.01)
    state = start_state = sampler.init(model, start(70, torch.float32, 300), seed=KEY)
    for _ in range(6):
        state, _ = sampler.step(model, state)
    whole, info = sampler.advance(model, start_state, 6)
    assert_same_bits(whole.x, state.x)
    plain, plain_info = sampler.advance(in_torch(model), start_state, 6)
    is_same = (info.acceptance_prob - plain_info.acceptance_prob).abs() < 1e-3
    assert is_same.float().mean() > 0.9
    torch.testing.assert_close(whole.x[is_same], plain.x[is_same], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    x = start(20)
    x[3, 1] = value
    run = SUMS["nested"].native_dynamics("langevin", x, None, KEY.tensor, 3, step_size=0.01, noise_std=0.1)  # type: ignore[operator]
    is_finite = x.isfinite().all(1) & run.energy.isfinite() & run.grad.isfinite().all(1)
    assert is_finite.tolist() == [i != 3 for i in range(20)]


def test_parameters_of_parts_are_read_at_every_call() -> None:
    part = Gaussian([0.0, 0.0], precision=[1.0, 1.0])
    model = product(part, Ring())
    first = MALA(0.1)(model, torch.ones(8, 2), 5, seed=0)
    part.precision.mul_(4.0)
    assert not torch.equal(MALA(0.1)(model, torch.ones(8, 2), 5, seed=0), first)


class Doubled(DoubleWell):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Density(Gaussian):
    def log_prob(self, x: Tensor) -> Tensor:
        return -self(x) - self.log_z


def hooked(where: str) -> nn.Module:
    model = product(DoubleWell(dim=2), Ring())
    (model if where == "sum" else model.parts[0]).register_forward_hook(lambda module, arguments, value: 2 * value)  # type: ignore[index, union-attr]
    return model


def test_what_is_not_native_is_left_to_torch() -> None:
    plain, x = DoubleWell(dim=2), 0.5 * torch.ones(4, 2)
    assert natively(product(*[plain] * 4), x.clone()) is not None
    for model in [
        product(*[plain] * 5),
        product(product(plain, plain), temper(product(*[plain] * 3), 2.0)),
        product(plain, lambda x: x.square().sum(1)),
        product(plain, Doubled(dim=2)),
        temper(Density([0.0, 0.0], precision=[1.0, 1.0]), 2.0),
        product(plain, torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)),
        hooked("sum"),
        hooked("part"),
    ]:
        assert natively(model, x) is None
        assert_same_bits(MALA(0.1)(model, x, 5, seed=0), MALA(0.1)(in_torch(model), x, 5, seed=0))
    assert natively(product(plain), x, "a new one") is None
    assert natively(product(plain), x, num_steps=0) is None
    assert natively(product(plain), x[:0]) is None
    assert natively(product(plain), x.bfloat16()) is None
    assert torch.equal(x, 0.5 * torch.ones(4, 2))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Ring: x must have shape \(num_chains, \*event\) with 2 elements an event, got \(4, 3\)"):
        natively(product(DoubleWell(), Ring()), torch.zeros(4, 3))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("energy", SUMS)
def test_cuda_has_the_numbers_of_the_cpu(energy: str, sampler: str, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available() or ops.cuda_problem():
        pytest.skip("no CUDA device that torch and ebmcore can use")
    model, kernel, x = SUMS[energy], SAMPLERS[sampler], start(1000, dtype)
    expected, got = kernel(model, x, 5, seed=3), kernel(model, x.cuda(), 5, seed=3).cpu()
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    is_near = ((got - expected).abs() <= tolerance * (1 + expected.abs())).all(1)
    assert is_near.float().mean() > 0.99  # a decision at the edge may go the other way
