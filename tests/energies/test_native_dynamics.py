"""Native chains of energies by formula: the torch path's numbers, one set of bits whatever runs them, the right law, nothing hidden."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmcore import HMC, MALA, DivergenceError, KineticLangevin, Langevin, RandomWalkMetropolis, ops
from ebmcore._native import core
from ebmcore.energies import Banana, DoubleWell, Funnel, Gaussian, GaussianMixture, Ring, Rosenbrock
from ebmcore.gradients import energy_and_grad
from ebmcore.types import Key
from support.planes import assert_plane_law
from support.statistics import assert_gaussian
from support.targets import assert_same_bits

FULL = torch.eye(11, dtype=torch.float64) + 0.2
MEANS = [[-1.5, 0.0, 0.5], [1.5, 1.0, 0.0]]
ENERGIES = {
    "gaussian diagonal": Gaussian([1.0, -2.0, 0.5], covariance=[4.0, 0.25, 1.0]),
    "gaussian full": Gaussian(torch.linspace(-1, 1, 11), precision=FULL),
    "mixture": GaussianMixture([1.0, 0.5, 2.0], [[-3.0, 0.0], [3.0, 1.0], [0.0, 4.0]], std=[0.5, 1.0, 0.75]),
    "mixture diagonal": GaussianMixture([1.0, 2.0], MEANS, std=[[1.0, 0.5, 0.7], [0.8, 0.9, 1.1]]),
    "double well": DoubleWell(2.0, 1.0, dim=5),
    "rosenbrock": Rosenbrock(0.5, 5.0, dim=4),
    "funnel": Funnel(6),
    "ring": Ring(),
    "banana": Banana(),
}
SAMPLERS: dict[str, Any] = {
    "langevin": Langevin(0.003),
    "langevin without noise": Langevin(0.003, noise_std=0.0),
    "langevin bounded": Langevin(0.003, clip_grad=0.5, clamp=(-1.0, 1.0)),
    "mala": MALA(0.02),
    "hmc": HMC(0.1, 5),
    "hmc of one step": HMC(0.1, 1),
    "hmc jittered": HMC(0.1, 5, jitter=0.3),
    "kinetic langevin": KineticLangevin(0.05, 1.0, temperature=0.7),
    "random walk": RandomWalkMetropolis(0.2),
}
KEY = Key(3, 4, 5)


def _start(energy: Any, n: int = 37, dtype: torch.dtype = torch.float64) -> Tensor:
    return (0.5 * ops.normal((n, energy.dim), key=Key(1), dtype=torch.float64)).to(dtype)


def _tensors(*results: Any) -> list[Tensor]:
    return [value for result in results for value in result if isinstance(value, Tensor)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("energy", ENERGIES)
def test_native_chains_are_the_torch_chains(energy: str, sampler: str, dtype: torch.dtype, cpu_target: str) -> None:
    model, kernel = ENERGIES[energy], SAMPLERS[sampler]
    x = _start(model, dtype=dtype)
    kernels = [kernel]
    if not isinstance(kernel, Langevin):
        kernels.append(dataclasses.replace(kernel, inverse_mass=torch.linspace(0.5, 1.5, model.dim, dtype=dtype)))
    for each in kernels:
        state = each.init(model, x, seed=KEY)
        native, native_info = each.advance(model, state, 6)
        plain, plain_info = each.advance(lambda y: model(y), state, 6)
        # In float32 one decision at the edge may go the other way: then a chain is elsewhere.
        is_same = native_info.is_accepted == plain_info.is_accepted if hasattr(native_info, "is_accepted") else torch.ones(37, dtype=torch.bool)
        assert is_same.float().mean() > (0.999 if dtype == torch.float64 else 0.9)
        tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-3}
        pairs = list(zip(_tensors(native, native_info), _tensors(plain, plain_info), strict=True))
        assert len(pairs) >= 4
        for a, b in pairs:
            assert a.dtype == b.dtype
            torch.testing.assert_close(a[is_same].double(), b[is_same].double(), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("energy", ENERGIES)
def test_energy_and_gradient_near_and_far(energy: str, dtype: torch.dtype, cpu_target: str) -> None:
    """A step that goes nowhere reports E and ∇E where it is; far from all modes, too, where every part of a mixture underflows."""
    model = ENERGIES[energy]
    for scale in (1.0, 6.0, 60.0) if energy != "funnel" else (1.0, 6.0):
        x = _start(model, 30, dtype) * scale
        value, grad = energy_and_grad(model, x)
        run = model.native_dynamics("langevin", x.clone(), None, KEY.tensor, 1, step_size=1e-30, noise_std=0.0)
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        torch.testing.assert_close(run.energy, value, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(run.grad, grad, rtol=tolerance, atol=tolerance * max(1.0, float(grad.abs().mean())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("energy", ENERGIES)
def test_bits_depend_on_nothing_but_the_chain(energy: str, sampler: str, dtype: torch.dtype) -> None:
    """Instruction sets, splits of the batch and of the steps, another number of chains in a call."""
    model, kernel = ENERGIES[energy], SAMPLERS[sampler]
    start = kernel.init(model, _start(model, 53, dtype), seed=KEY)
    whole, _ = kernel.advance(model, start, 10)
    before = ops.info()["cpu_target"]
    try:
        for target in ops.info()["cpu_targets"]:
            core.set_cpu_target(target)
            parts, _ = kernel.advance(model, kernel.advance(model, start, 6)[0], 4)
            for a, b in zip(_tensors(parts), _tensors(whole), strict=True):
                assert_same_bits(a, b, f"6 + 4 steps on {target}")
            state = start
            for _ in range(10):
                state, _ = kernel.step(model, state)
            for a, b in zip(_tensors(state), _tensors(whole), strict=True):
                assert_same_bits(a, b, f"10 steps on {target}")
            for begin, end in ((0, 1), (1, 20), (20, 53)):
                rows = type(start)(*(v[begin:end] if isinstance(v, Tensor) and v.dim() else v for v in start))
                part, _ = kernel.advance(model, rows._replace(key=start.key.shard(begin)), 10)
                for a, b in zip(_tensors(part), _tensors(whole), strict=True):
                    assert_same_bits(a, b[begin:end] if b.dim() else b, f"rows {begin} to {end} on {target}")
    finally:
        core.set_cpu_target(before)


@pytest.mark.parametrize("num_chains", [1, 16, 300])
def test_bits_do_not_depend_on_threads(num_chains: int, num_threads: int) -> None:
    model = ENERGIES["double well"]
    x = _start(model, num_chains, torch.float32)
    end = HMC(0.1, 5)(model, x, 3000, seed=KEY)
    torch.set_num_threads(1)
    assert_same_bits(end, HMC(0.1, 5)(model, x, 3000, seed=KEY))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 8, 13, 40, 100, 1000])
def test_noise_is_that_of_the_ops(dim: int, dtype: torch.dtype, cpu_target: str) -> None:
    """At its mean a Gaussian has no gradient: the first step is noise alone. Chain and step numbers beyond 2**32 are theirs, too."""
    model = Gaussian(torch.zeros(dim), precision=torch.ones(dim))
    for key in (KEY, Key(2**63 + 5, 2**40 + 7, 2**33 - 20)):
        for n in (1, 7, 40, 150):
            x = torch.zeros(n, dim, dtype=dtype)
            end = Langevin(0.1, noise_std=0.3)(model, x, 1, seed=key)
            assert_same_bits(end, ops.normal((n, dim), key=key, stream=ops.Stream.PROPOSAL, dtype=dtype) * 0.3, f"{n} chains, {key}")


@pytest.mark.parametrize("sampler", [MALA(0.15), HMC(0.3, 4, jitter=0.2), RandomWalkMetropolis(0.7)], ids=["mala", "hmc", "random walk"])
@pytest.mark.parametrize("name", ["mixture", "ring", "banana", "double well", "funnel", "rosenbrock"])
def test_law_is_left_as_it_is(name: str, sampler: Any) -> None:
    model = {"double well": DoubleWell(3.0, 1.0, dim=2), "rosenbrock": Rosenbrock(0.5, 5.0), "funnel": Funnel(2, 0.6)}.get(name) or ENERGIES[name]
    end, info = sampler.advance(model, sampler.init(model, model.sample(40_000, key=Key(8)), seed=9), 10)
    assert 0.05 < float(info.acceptance_prob.mean()) < 0.999
    assert_plane_law(model, end.x, what=name)


def test_kinetic_langevin_has_the_law_of_a_gaussian() -> None:
    """BAOAB samples x of a Gaussian exactly, at any stable step size."""
    precision = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    model = Gaussian([1.0, -1.0], precision=precision)
    x = model.sample(20_000, key=Key(1), dtype=torch.float64)
    end = KineticLangevin(0.6, 1.0)(model, x, 40, seed=2)
    assert_gaussian(end, model.mean, torch.linalg.inv(precision), what="x after 40 steps")


@pytest.mark.parametrize("sampler", [MALA(1e30), HMC(1e30, 3), RandomWalkMetropolis(1e30)], ids=["mala", "hmc", "random walk"])
def test_proposals_that_are_not_finite_are_rejected_and_counted(sampler: Any) -> None:
    model = DoubleWell(2.0, 1.0)
    state = sampler.init(model, torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), seed=0)
    end, info = sampler.advance(model, state, 7)
    assert torch.equal(end.x, state.x)
    assert info.num_diverged.tolist() == [7] * 20
    assert info.is_diverged.all()
    assert not info.is_accepted.any()
    assert not info.acceptance_prob.any()


def test_one_bad_chain_leaves_the_others_alone() -> None:
    model, sampler = ENERGIES["funnel"], HMC(0.2, 3)
    state = sampler.init(model, _start(model, 20), seed=0)
    x = state.x.clone()
    x[3, 0] = -800.0  # exp(800) is infinite
    end, info = sampler.advance(model, state._replace(x=x), 5)
    good, _ = sampler.advance(model, state, 5)
    others = torch.arange(20) != 3
    assert_same_bits(end.x[others], good.x[others])
    assert info.num_diverged.tolist() == [5 * (i == 3) for i in range(20)]


@pytest.mark.parametrize("sampler", [Langevin(100.0), KineticLangevin(100.0, 1.0)], ids=["langevin", "kinetic langevin"])
@pytest.mark.parametrize("energy", ENERGIES)
def test_unadjusted_chains_that_diverge_raise(energy: str, sampler: Any) -> None:
    model = ENERGIES[energy]
    with pytest.raises(DivergenceError):
        sampler(model, 1e3 * _start(model, 5, torch.float32), 10_000, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("energy", ENERGIES)
def test_what_is_not_finite_stays_so(energy: str, value: float) -> None:
    model = ENERGIES[energy]
    for element in range(model.dim):
        x = _start(model, 20)
        x[3, element] = value
        run = model.native_dynamics("langevin", x, None, KEY.tensor, 3, step_size=0.01, noise_std=0.1)
        is_finite = x.isfinite().all(1) & run.energy.isfinite() & run.grad.isfinite().all(1)
        assert is_finite.tolist() == [i != 3 for i in range(20)]


class Doubled(DoubleWell):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_what_is_not_native_is_left_to_torch() -> None:
    full = GaussianMixture([1.0], [[0.0, 0.0]], covariances=[[[1.0, 0.5], [0.5, 1.0]]])
    x = torch.ones(4, 2)
    for model, kernel, states in [
        (full, "mala", x),
        (Doubled(), "mala", x),
        (DoubleWell(), "a new one", x),
        (DoubleWell(), "mala", x.bfloat16()),
        (DoubleWell(), "mala", x[:0]),
        (DoubleWell(), "mala", torch.ones(2, 20_000)),
        (Gaussian(torch.zeros(300), precision=torch.eye(300)), "mala", torch.ones(2, 300)),
    ]:
        assert model.native_dynamics(kernel, states, None, KEY.tensor, 3, step_size=0.1) is None
    assert torch.equal(x, torch.ones(4, 2))
    assert MALA(0.1)(full, x, 5, seed=0).shape == (4, 2)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Ring: x must have shape \(num_chains, \*event\) with 2 elements an event, got \(4, 3\)"):
        Ring().native_dynamics("mala", torch.zeros(4, 3), None, KEY.tensor, 1, step_size=0.1)


def test_constants_are_read_at_every_call() -> None:
    model = Gaussian([0.0, 0.0], precision=[1.0, 1.0])
    first = MALA(0.1)(model, torch.zeros(8, 2), 5, seed=0)
    model.precision.mul_(4.0)
    assert not torch.equal(MALA(0.1)(model, torch.zeros(8, 2), 5, seed=0), first)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("energy", ENERGIES)
def test_cuda_has_the_numbers_of_the_cpu(energy: str, sampler: str, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available() or ops.cuda_problem():
        pytest.skip("no CUDA device that torch and ebmcore can use")
    model, kernel = ENERGIES[energy], SAMPLERS[sampler]
    x = _start(model, 1000, dtype)
    expected, got = kernel(model, x, 5, seed=3), kernel(model, x.cuda(), 5, seed=3).cpu()
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    is_near = ((got - expected).abs() <= tolerance * (1 + expected.abs())).all(1)
    assert is_near.float().mean() > 0.99  # a decision at the edge may go the other way
