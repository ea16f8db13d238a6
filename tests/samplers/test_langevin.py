"""The Langevin sampler: evaluations counted, schedules, divergence, what it must leave alone, and what it refuses."""

from __future__ import annotations

import copy
import math
import pickle
import threading

import numpy as np
import pytest
import torch

from ebmcore import DivergenceError, Key, Langevin, ops
from support.targets import Counting, Network, Spoiled, assert_same_bits, quadratic, quartic

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KEY = Key(5, step=6, first_chain=7)
POLICIES = ["raise", "freeze", "restart"]


def start(rows: int = 6, dim: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return ops.normal((rows, dim), key=Key(1), dtype=torch.float64).to(dtype)


# Evaluations


@pytest.mark.parametrize("noise_first", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_one_evaluation_a_step(policy, noise_first):
    sampler = Langevin(0.01, noise_first=noise_first, on_divergence=policy)
    energy = Counting(quadratic)

    def evaluations(call) -> int:
        before = energy.count
        call()
        return energy.count - before

    state = sampler.init(energy, start(), seed=1)
    assert energy.count == 1
    assert evaluations(lambda: sampler.step(energy, state)) == 1
    for n in (0, 1, 2, 31, 32, 33, 100):
        assert evaluations(lambda n=n: sampler.advance(energy, state, n)) == n
        expected = 0 if n == 0 else n if policy == "raise" else n + 1
        assert evaluations(lambda n=n: sampler(energy, start(), n, seed=1)) == expected


# The steps themselves


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_noise(dtype):
    """noise_std = sqrt(2 · step_size · temperature), drawn from step `key.step + k`."""
    for temperature in (1.0, 0.25):
        x = start(dtype=dtype)
        state = Langevin(0.02, temperature=temperature).init(quadratic, x, seed=KEY)
        for k in range(5):
            z = ops.normal(tuple(x.shape), key=KEY.advance(k), stream=ops.Stream.PROPOSAL, dtype=dtype)
            x = x - 0.02 * x + math.sqrt(2 * 0.02 * temperature) * z
            state, _ = Langevin(0.02, temperature=temperature).step(quadratic, state)
            torch.testing.assert_close(state.x, x, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=1e-6 if dtype == torch.float32 else 1e-13)
            torch.testing.assert_close(state.energy, quadratic(state.x))
            torch.testing.assert_close(state.grad, state.x)


def test_schedules_count_from_init():
    steps = []

    def step_size(step):
        steps.append(step)
        return 0.1 / (1 + step)

    sampler = Langevin(step_size, noise_std=lambda step: 0.2 / (1 + step))
    x = start()
    state = sampler.init(quadratic, x, seed=KEY)
    for count in (3, 0, 1, 40):
        state, _ = sampler.advance(quadratic, state, count)
    assert steps == list(range(44))
    assert state.step == 44
    for k in range(44):
        z = ops.normal(tuple(x.shape), key=KEY.advance(k), stream=ops.Stream.PROPOSAL, dtype=torch.float64)
        x = x - 0.1 / (1 + k) * x + 0.2 / (1 + k) * z
    torch.testing.assert_close(state.x, x, rtol=1e-12, atol=1e-12)


def test_the_default_noise_follows_a_scheduled_step():
    x = start()
    state, _ = Langevin(lambda step: 0.1 * 2.0**-step).advance(quadratic, Langevin(0.1).init(quadratic, x, seed=KEY), 3)
    for k in range(3):
        h = 0.1 * 2.0**-k
        x = x - h * x + math.sqrt(2 * h) * ops.normal(tuple(x.shape), key=KEY.advance(k), stream=ops.Stream.PROPOSAL, dtype=torch.float64)
    torch.testing.assert_close(state.x, x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_schedules_are_checked_at_each_step(bad):
    state = Langevin(0.1).init(quadratic, start(), seed=1)
    with pytest.raises(ValueError, match=r"step_size\(step\) must be"):
        Langevin(lambda step: 0.1 if step < 3 else bad).advance(quadratic, state, 5)
    if bad != 0.0:
        with pytest.raises(ValueError, match=r"noise_std\(step\) must be"):
            Langevin(0.1, noise_std=lambda step: 0.1 if step < 3 else bad).advance(quadratic, state, 5)
    with pytest.raises(TypeError, match=r"step_size\(step\) must be"):
        Langevin(lambda step: "0.1").step(quadratic, state)


def test_effective_temperature():
    assert Langevin(0.1).effective_temperature == pytest.approx(1.0)
    assert Langevin(0.1, temperature=0.3).effective_temperature == pytest.approx(0.3)
    assert Langevin(10.0, noise_std=0.005).effective_temperature == pytest.approx(1.25e-6)
    assert Langevin(0.1, noise_std=0.0).effective_temperature == 0.0
    assert Langevin(lambda step: 0.5 / (1 + step), noise_std=lambda step: 2.0).effective_temperature == pytest.approx(4.0)


def test_without_noise_it_descends():
    x = start()
    torch.testing.assert_close(Langevin(0.1, noise_std=0.0)(quadratic, x, 20, seed=1), x * 0.9**20)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(device, dtype):
    x = start(dtype=dtype).to(device)
    state = Langevin(0.01).init(quadratic, x, seed=1)
    state, _ = Langevin(0.01).advance(quadratic, state, 5)
    assert (state.x.dtype, state.grad.dtype) == (dtype, dtype)
    assert state.energy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert Langevin(0.01)(quadratic, x, 5, seed=1).dtype == dtype
    assert Langevin(0.01, noise_first=True)(quadratic, x, 5, seed=1).dtype == dtype
    assert state.x.device == x.device


def test_float64_noise_has_53_bits():
    x = torch.zeros(4, 1000, dtype=torch.float64)
    moved = Langevin(0.5, noise_std=1.0)(lambda x: 0.0 * x.sum(1), x, 1, seed=1)
    assert float((moved != moved.float().double()).double().mean()) > 0.99


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3, 4, 5), (1, 1)])
def test_event_shapes(shape):
    x = torch.zeros(shape)
    assert Langevin(0.1)(quadratic if len(shape) > 1 else lambda x: 0.5 * x * x, x, 3, seed=1).shape == shape


@pytest.mark.parametrize("policy", POLICIES)
def test_zero_chains(policy, untouched_generator):
    sampler = Langevin(0.1, on_divergence=policy)
    energy = Counting(quadratic)
    for shape in ((0, 3), (0, 2, 2)):
        x = torch.empty(shape)
        assert sampler(energy, x, 5).shape == shape
        state = sampler.init(energy, x)
        state, info = sampler.advance(energy, state, 5)
        assert state.x.shape == shape
        assert state.energy.shape == info.is_diverged.shape == (0,)


# What the caller owns


@pytest.mark.parametrize("policy", POLICIES)
def test_the_callers_things_are_untouched(policy, untouched_generator):
    network = Network()
    network.norm.eval()  # a mixture of modes, to be found again
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    network.first.bias.grad = None
    x = start(dtype=torch.float32).requires_grad_()
    x.grad = torch.full_like(x, 3.0)
    before, version = x.detach().clone(), x._version
    parameters = copy.deepcopy(network.state_dict())
    sampler = Langevin(0.01, on_divergence=policy)
    result = sampler(network, x, 40, seed=1)
    state = sampler.init(network, x, seed=1)
    sampler.advance(network, state, 40)
    assert_same_bits(x.detach(), before)
    assert x._version == version
    assert x.requires_grad
    assert bool((x.grad == 3.0).all())
    assert not result.requires_grad
    assert result.grad_fn is None
    assert network.training
    assert not network.norm.training
    assert network.first.bias.grad is None
    assert all(bool((p.grad == 7.0).all()) for p in network.parameters() if p.grad is not None)
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in network.state_dict().items())


def test_a_graph_behind_x_stays_whole():
    w = torch.ones(6, 3, requires_grad=True)
    x = (w * 2).exp()
    Langevin(0.01)(quadratic, x, 5, seed=1)
    x.sum().backward()
    torch.testing.assert_close(w.grad, 2 * (w * 2).exp().detach())


def test_x_that_is_a_parameter_of_the_energy():
    w = torch.nn.Parameter(start(dtype=torch.float32))
    before = w.detach().clone()
    result = Langevin(0.1)(lambda x: (x - w).square().sum(1), w, 10, seed=1)
    assert_same_bits(w.detach(), before)
    assert_same_bits(result, Langevin(0.1)(lambda x: (x - before).square().sum(1), before, 10, seed=1))


def test_strided_and_expanded_states():
    x = start()
    expected = Langevin(0.01)(quadratic, x, 10, seed=1)
    strided = x.t().contiguous().t()
    assert_same_bits(Langevin(0.01)(quadratic, strided, 10, seed=1), expected)
    row = x[:1].expand(6, 3)
    assert_same_bits(Langevin(0.01)(quadratic, row, 10, seed=1), Langevin(0.01)(quadratic, row.contiguous(), 10, seed=1))
    assert_same_bits(row[0], x[0])


def test_steps_are_pure():
    for sampler in (Langevin(0.01), Langevin(0.01, on_divergence="freeze"), Langevin(0.01, noise_first=True)):
        state = sampler.init(quartic, start(), seed=KEY)
        before = copy.deepcopy(state)
        first, second = (sampler.advance(quartic, state, 7)[0] for _ in range(2))
        assert_same_bits(first.x, second.x)
        for name in ("x", "energy", "is_diverged"):
            assert_same_bits(getattr(state, name), getattr(before, name))
        assert (state.key, state.step) == (before.key, before.step)


def test_zero_steps_give_a_copy(untouched_generator):
    x = start()
    energy = Counting(quadratic)
    for policy in POLICIES:
        result = Langevin(0.01, on_divergence=policy)(energy, x, 0)
        assert_same_bits(result, x)
        assert result.data_ptr() != x.data_ptr()
    assert energy.count == 0


# Randomness


def test_seeds():
    x = start()
    results = [Langevin(0.1)(quadratic, x, 5, seed=seed) for seed in (0, 1, 2**64 - 1, Key(0, 1), Key(0, 0, 1))]
    for i, result in enumerate(results):
        assert all(not torch.equal(result, other) for other in results[:i])
    assert_same_bits(Langevin(0.1)(quadratic, x, 5, seed=np.uint64(2**64 - 1)), results[2])
    assert_same_bits(Langevin(0.1)(quadratic, x, 5, seed=Key(0)), results[0])
    assert_same_bits(Langevin(0.1)(quadratic, x, 5, seed=0), results[0])  # a second call with a seed repeats the first


def test_a_state_goes_on_where_it_stands():
    x = start()
    state = Langevin(0.1).init(quadratic, x, seed=3)
    state, _ = Langevin(0.1).advance(quadratic, state, 5)
    assert state.key == Key(3, 5)
    assert_same_bits(Langevin(0.1)(quadratic, state.x, 5, seed=state.key), Langevin(0.1)(quadratic, x, 10, seed=3))


def test_no_seed_is_governed_by_manual_seed():
    x = start()
    before = torch.get_rng_state()
    try:
        torch.manual_seed(8)
        first, second = Langevin(0.1)(quadratic, x, 5), Langevin(0.1)(quadratic, x, 5)
        torch.manual_seed(8)
        state = Langevin(0.1).init(quadratic, x)
        assert_same_bits(Langevin(0.1).advance(quadratic, state, 5)[0].x, first)
        assert not torch.equal(first, second)
    finally:
        torch.set_rng_state(before)


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**64, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError), (torch.tensor(1), TypeError)]
)
def test_bad_seeds(seed, error):
    for run in (Langevin(0.1).init, lambda *a, **k: Langevin(0.1)(*a, 3, **k)):
        with pytest.raises(error, match="seed must be"):
            run(quadratic, start(), seed=seed)


def test_more_than_2_32_steps():
    """The step's high bits are drawn from, through a step of 2^32 and through a long run's counter."""
    low, high = (Langevin(0.1)(quadratic, start(), 4, seed=Key(1, step)) for step in (2**32 - 2, 2**33 - 2))
    assert not torch.equal(low, high)
    halfway = Langevin(0.1)(quadratic, start(), 2, seed=Key(1, 2**32 - 2))
    assert_same_bits(Langevin(0.1)(quadratic, halfway, 2, seed=Key(1, 2**32)), low)


# Divergence


def diverge(sampler, energy, x, num_steps) -> DivergenceError:
    with pytest.raises(DivergenceError) as caught:
        sampler(energy, x, num_steps, seed=KEY)
    return caught.value


@pytest.mark.parametrize("noise_first", [False, True])
@pytest.mark.parametrize("step", [0, 1, 5, 31, 32, 33, 63, 64, 99])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_raise_names_chains_step_and_energies(device, step, value, noise_first):
    """Steps count from the start of the call, whatever came before it."""
    sampler = Langevin(0.01, noise_first=noise_first)
    state, _ = sampler.advance(quadratic, sampler.init(quadratic, start().to(device), seed=KEY), 10)
    before = copy.deepcopy(state)
    last = sampler.advance(quadratic, state, step)[0].energy
    with pytest.raises(DivergenceError, match=rf"step {step} .* in 2 of 6 chains \(1, 4;") as caught:
        sampler.advance(Spoiled(step, [1, 4], value), state, 100)
    assert caught.value.chains == [1, 4]
    assert caught.value.step == step
    assert caught.value.last_energies == last[[1, 4]].tolist()
    assert_same_bits(state.x, before.x)
    assert state.key == before.key


@pytest.mark.parametrize("noise_first", [False, True])
@pytest.mark.parametrize("step", [0, 5, 31, 32, 99])
@pytest.mark.parametrize("grad", [math.nan, math.inf])
def test_raise_on_gradients(step, grad, noise_first):
    """The energy is still finite where its gradient is not: that step is the first whose result is not finite."""
    sampler = Langevin(0.01, noise_first=noise_first)
    state = sampler.init(quadratic, start(), seed=KEY)
    last = sampler.advance(quadratic, state, step + 1)[0].energy
    with pytest.raises(DivergenceError) as caught:
        sampler.advance(Spoiled(step, [2], None, grad=grad), state, 100)
    assert caught.value.chains == [2]
    assert caught.value.step == step
    assert caught.value.last_energies == last[[2]].tolist()


def test_advance_and_steps_raise_alike():
    for make in (lambda: Spoiled(7, [3], math.nan), lambda: Spoiled(7, [3], None, grad=math.nan)):
        sampler = Langevin(0.01)
        state = sampler.init(quadratic, start(), seed=KEY)
        with pytest.raises(DivergenceError) as at_once:
            sampler.advance(make(), state, 20)
        energy, step = make(), 0
        with pytest.raises(DivergenceError) as by_step:  # noqa: PT012
            while True:
                state, _ = sampler.step(energy, state)
                step += 1
        assert (at_once.value.step, at_once.value.chains) == (step, by_step.value.chains)
        assert at_once.value.last_energies == by_step.value.last_energies


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_start_that_is_not_finite(policy, value):
    """Whatever the policy: there is no finite state to go back to."""
    sampler = Langevin(0.01, on_divergence=policy)
    for energy in (Spoiled(0, [2], value), Spoiled(0, [2], None, grad=value)):
        for run in (sampler.init, lambda *a, **k: sampler(*a, 5, **k)):
            energy.count = 0
            with pytest.raises(DivergenceError, match="the starting point is not finite") as caught:
                run(energy, start(), seed=1)
            assert (caught.value.chains, caught.value.step) == ([2], -1)
            assert len(caught.value.last_energies) == 1
            assert math.isnan(caught.value.last_energies[0])
    x = start()
    x[2, 1] = value
    with pytest.raises(DivergenceError) as caught:
        sampler.init(quadratic, x, seed=1)
    assert (caught.value.chains, caught.value.step) == ([2], -1)


def test_a_call_raises_at_the_same_step():
    """Evaluation 0 of a call is its starting point, evaluation j + 1 the result of step j."""
    for step in (0, 5, 40, 98):
        error = diverge(Langevin(0.01), Spoiled(step + 1, [1]), start(), 100)
        assert (error.step, error.chains) == (step, [1])


def test_a_call_that_begins_with_noise():
    """With noise_first the starting point is never evaluated: there is no last finite energy to name at step 0."""
    error = diverge(Langevin(0.01, noise_first=True), Spoiled(0, [1, 2]), start(), 40)
    assert (error.step, error.chains) == (0, [1, 2])
    assert all(math.isnan(energy) for energy in error.last_energies)
    error = diverge(Langevin(0.01, noise_first=True), Spoiled(3, [1]), start(), 40)
    assert (error.step, error.chains) == (3, [1])
    assert error.last_energies[0] > 0


def test_a_state_that_is_not_finite_at_the_end_of_a_call():
    """The last state of a call is not evaluated, but looked at."""
    error = diverge(Langevin(1e308, noise_std=0.0), lambda x: (1e10 * x).square().sum(1), start(), 1)
    assert error.step == 0


def test_a_step_size_beyond_stability():
    """2 / (largest curvature) is the limit; energies grow without bound and are never replaced."""
    error = diverge(Langevin(3.0), quadratic, start(dtype=torch.float32), 1000)
    assert 0 < len(error.chains) == len(error.last_energies)
    assert all(math.isfinite(energy) for energy in error.last_energies)
    assert 30 < error.step < 200


def test_a_gradient_that_the_energy_hides():
    """|x|^½ has a finite value and an infinite slope at 0."""
    x = start()
    x[3, 1] = 0.0
    with pytest.raises(DivergenceError) as caught:
        Langevin(0.01).init(lambda x: x.abs().sqrt().sum(1), x, seed=1)
    assert (caught.value.chains, caught.value.step) == ([3], -1)


def test_energies_that_overflow_their_sum():
    """Finite energies whose sum is not finite are no divergence."""
    x = torch.full((6, 3), 1.0, dtype=torch.float32)
    result = Langevin(1e-6)(lambda x: quadratic(x) * 1e-3 + 3e38, x, 40, seed=1)
    assert bool(result.isfinite().all())


@pytest.mark.parametrize("noise_first", [False, True])
@pytest.mark.parametrize("spoil", ["energy", "gradient"])
@pytest.mark.parametrize("step", [0, 5, 40])
def test_freeze(device, step, spoil, noise_first):
    """The chain stays at its last finite state, the result of the step before; the others go on as if nothing had been."""
    sampler = Langevin(0.01, on_divergence="freeze", noise_first=noise_first)
    state = sampler.init(quadratic, start().to(device), seed=KEY)
    before, _ = sampler.advance(quadratic, state, step)
    clean, _ = sampler.advance(quadratic, state, 50)
    energy = Spoiled(step, [1, 4], None, grad=math.nan) if spoil == "gradient" else Spoiled(step, [1, 4])
    frozen, info = sampler.advance(energy, state, 50)
    stopped = torch.tensor([False, True, False, False, True, False], device=device)
    assert torch.equal(info.is_diverged, stopped)
    assert torch.equal(frozen.is_diverged, stopped)
    assert_same_bits(frozen.x[stopped], before.x[stopped])
    assert_same_bits(frozen.energy[stopped], before.energy[stopped])
    assert_same_bits(frozen.x[~stopped], clean.x[~stopped])
    assert int(info.num_restarts.sum()) == 0
    later, info = sampler.advance(quadratic, frozen, 10)  # a clean energy does not wake it up
    assert_same_bits(later.x[stopped], before.x[stopped])
    assert torch.equal(later.is_diverged, stopped)
    assert not torch.equal(later.x[~stopped], frozen.x[~stopped])


@pytest.mark.parametrize("noise_first", [False, True])
@pytest.mark.parametrize("step", [0, 5, 40])
def test_restart(device, step, noise_first):
    """The chain goes back to its start, and on from there with the noise of the steps that follow."""
    sampler = Langevin(0.01, on_divergence="restart", noise_first=noise_first)
    x = start().to(device)
    state = sampler.init(quadratic, x, seed=KEY)
    clean, _ = sampler.advance(quadratic, state, 50)
    restarted, info = sampler.advance(Spoiled(step, [1, 4]), state, 50)
    again = sampler.init(quadratic, x, seed=KEY.advance(step + 1))
    expected, _ = sampler.advance(quadratic, again, 50 - step - 1)
    rows = torch.tensor([False, True, False, False, True, False], device=device)
    assert_same_bits(restarted.x[rows], expected.x[rows])
    assert_same_bits(restarted.x[~rows], clean.x[~rows])
    assert torch.equal(info.is_diverged, rows)
    assert torch.equal(info.num_restarts, rows.long())
    assert torch.equal(restarted.is_diverged, rows)


@pytest.mark.parametrize("policy", ["freeze", "restart"])
def test_guarded_steps_one_by_one(policy):
    """advance(n) and n × step agree when chains diverge on the way, and so does the sum of what they report."""

    def walled(x):
        """Infinite beyond 1: chains run into it again and again."""
        return torch.where(x.abs().amax(1) < 1, quadratic(x), math.inf)

    sampler = Langevin(0.1, on_divergence=policy)
    state = sampler.init(walled, start() * 0.1, seed=KEY)
    at_once, info = sampler.advance(walled, state, 60)
    restarts, diverged = torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.bool)
    for _ in range(60):
        state, each = sampler.step(walled, state)
        restarts += each.num_restarts
        diverged |= each.is_diverged
    assert_same_bits(state.x, at_once.x)
    assert_same_bits(state.energy, at_once.energy)
    assert_same_bits(state.grad, at_once.grad)
    assert torch.equal(state.is_diverged, at_once.is_diverged)
    assert torch.equal(restarts, info.num_restarts)
    assert torch.equal(diverged, info.is_diverged)
    assert bool(diverged.any())
    assert bool((restarts > 1).any()) == (policy == "restart")
    assert bool((at_once.x.abs() < 1).all())
    assert_same_bits(sampler(walled, start() * 0.1, 60, seed=KEY), at_once.x)


def test_a_chain_that_never_recovers_is_counted():
    energy = Counting(quadratic)

    def always(x):
        values = energy(x)
        return torch.where((torch.arange(6) == 2) & (energy.count > 1), math.nan, values)

    x = start()
    sampler = Langevin(0.01, on_divergence="restart")
    state, info = sampler.advance(always, sampler.init(always, x, seed=1), 20)
    assert info.num_restarts.tolist() == [0, 0, 20, 0, 0, 0]
    assert_same_bits(state.x[2], x[2])


def test_clean_runs_report_nothing():
    for policy in POLICIES:
        sampler = Langevin(0.01, on_divergence=policy)
        state, info = sampler.advance(quadratic, sampler.init(quadratic, start(), seed=1), 40)
        assert not info.is_diverged.any()
        assert not info.num_restarts.any()
        assert not state.is_diverged.any()


# Energies


@pytest.mark.parametrize(
    ("energy", "error"),
    [
        (lambda x: x.square().sum(1, keepdim=True), ValueError),
        (lambda x: x.square().sum(), ValueError),
        (lambda x: x.square().sum(1).detach(), ValueError),
        (lambda x: torch.zeros(6), ValueError),
        (lambda x: x.square().sum(1).long(), TypeError),
        (lambda x: None, TypeError),
        (lambda x: x.square().sum(1).to("meta"), ValueError),
    ],
)
def test_bad_energies(energy, error):
    for sampler in (Langevin(0.1), Langevin(0.1, noise_first=True), Langevin(0.1, on_divergence="freeze")):
        with pytest.raises(error, match=r"^energy: must "):
            sampler.init(energy, start(), seed=1)
        with pytest.raises(error, match=r"^energy: must "):
            sampler(energy, start(), 3, seed=1)
        state = sampler.init(quadratic, start(), seed=1)
        with pytest.raises(error, match=r"^energy: must "):
            sampler.step(energy, state)


def test_energies_that_write_to_x():
    def quietly(x):
        with torch.no_grad():
            x.zero_()
        return x.square().sum(1)

    def behind_its_back(x):
        x.data.mul_(0.5)
        return x.square().sum(1)

    x = start()
    before = x.clone()
    for energy, error in ((quietly, ValueError), (lambda x: x.mul_(2).square().sum(1), RuntimeError)):
        for sampler in (Langevin(0.1), Langevin(0.1, noise_first=True), Langevin(0.1, on_divergence="restart")):
            with pytest.raises(error):
                sampler(energy, x, 3, seed=1)
            state = sampler.init(quadratic, x, seed=1)
            with pytest.raises(error):
                sampler.advance(energy, state, 3)
            assert_same_bits(state.x, before)
    Langevin(0.1)(behind_its_back, x, 3, seed=1)  # cannot be seen; the caller's x is safe all the same
    assert_same_bits(x, before)


@pytest.mark.parametrize("policy", POLICIES)
def test_energies_that_raise_mid_run(policy):
    class Mine(Exception):
        pass

    energy = Counting(quadratic)

    def faulty(x):
        if energy.count == 20:
            raise Mine("as it was")
        return energy(x)

    sampler = Langevin(0.01, on_divergence=policy)
    x = start()
    state = sampler.init(quadratic, x, seed=1)
    before = copy.deepcopy(state)
    with pytest.raises(Mine, match=r"^as it was$"):
        sampler.advance(faulty, state, 50)
    assert_same_bits(state.x, before.x)
    energy.count = 100
    assert_same_bits(sampler.advance(faulty, state, 50)[0].x, sampler.advance(quadratic, state, 50)[0].x)


def test_energies_with_data_dependent_control_flow():
    def energy(x):
        return quadratic(x) if x.sum().item() > 0 else quartic(x)

    assert Langevin(0.01)(energy, start(), 20, seed=1).shape == (6, 3)


def test_energies_that_are_modules():
    network = Network().eval()
    expected = Langevin(0.01)(network.forward, start(dtype=torch.float32), 10, seed=1)
    assert_same_bits(Langevin(0.01)(network, start(dtype=torch.float32), 10, seed=1), expected)


# Modes and threads


def test_no_grad_and_inference_mode():
    x = start()
    expected = Langevin(0.01)(quartic, x, 40, seed=1)
    with torch.no_grad():
        assert_same_bits(Langevin(0.01)(quartic, x, 40, seed=1), expected)
    for policy in POLICIES:
        sampler = Langevin(0.01, on_divergence=policy)
        with torch.inference_mode():
            inside = sampler(quartic, x, 40, seed=1)
            made_inside = x.clone()
            assert_same_bits(sampler(quartic, made_inside, 40, seed=1), expected)
            state, _ = sampler.advance(quartic, sampler.init(quartic, x, seed=1), 15)
        assert_same_bits(inside, expected)
        assert_same_bits(sampler(quartic, made_inside, 40, seed=1), expected)
        assert_same_bits(sampler.advance(quartic, state, 25)[0].x, expected)  # goes on outside


def test_results_of_inference_mode_can_be_trained_on():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for policy in POLICIES:
        sampler = Langevin(0.01, on_divergence=policy)
        with torch.inference_mode():
            results = [sampler(quartic, start(), 3, seed=1), sampler.advance(quartic, sampler.init(quartic, start(), seed=1), 3)[0].x]
        for x in results:
            (x * w).square().sum().backward()  # an inference tensor cannot be saved for this


def test_autocast():
    """The energy runs as the caller's autocast has it; the step stays in the dtype of the state."""
    seen = set()
    weight = torch.eye(3)

    def energy(x):
        y = x @ weight
        seen.add(y.dtype)
        return y.square().sum(1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = Langevin(0.01)(energy, start(dtype=torch.float32), 5, seed=1)
    assert seen == {torch.bfloat16}
    assert result.dtype == torch.float32
    assert float((result != result.bfloat16().float()).double().mean()) > 0.9


def test_one_sampler_in_several_threads():
    sampler = Langevin(0.01)
    starts = [start() + i for i in range(4)]
    expected = [sampler(quartic, x, 200, seed=i) for i, x in enumerate(starts)]
    results = [None] * 4

    def work(i):
        results[i] = sampler(quartic, starts[i], 200, seed=i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, alone in zip(results, expected, strict=True):
        assert_same_bits(result, alone)


def test_mixed_devices(device):
    if device == "cpu":
        pytest.skip("needs a second device")
    key = Key(3)
    result = Langevin(0.01)(quadratic, start().to(device), 5, seed=key)  # a key on the CPU follows the chains
    torch.testing.assert_close(result.cpu(), Langevin(0.01)(quadratic, start(), 5, seed=key), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="energy: must return a tensor on cuda"):
        Langevin(0.01)(lambda x: quadratic(x).cpu(), start().to(device), 5, seed=1)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *(({"step_size": v}, ValueError, "step_size must be") for v in (0, 0.0, -0.1, math.nan, math.inf)),
        *(({"step_size": v}, TypeError, "step_size must be") for v in ("0.1", None, True, torch.tensor(0.1), [0.1])),
        *(({"noise_std": v}, ValueError, "noise_std must be") for v in (-0.1, math.nan, math.inf)),
        *(({"noise_std": v}, TypeError, "noise_std must be") for v in ("0.1", True, torch.tensor(0.1))),
        *(({"temperature": v}, ValueError, "temperature must be") for v in (0.0, -1.0, math.nan, math.inf)),
        *(({"temperature": v}, TypeError, "temperature must be") for v in ("1", None, True)),
        ({"temperature": 2.0, "noise_std": 0.1}, ValueError, "noise_std or temperature, not both"),
        *(({name: v}, ValueError, f"{name} must be") for name in ("clip_grad", "clip_grad_norm") for v in (0.0, -1.0, math.nan, math.inf)),
        *(({name: v}, TypeError, f"{name} must be") for name in ("clip_grad", "clip_grad_norm") for v in ("1", True)),
        *(({"clamp": v}, ValueError, "clamp") for v in ((1.0, 0.0), (0.0, 0.0), (math.nan, 1.0))),
        *(({"clamp": v}, TypeError, "clamp") for v in (1.0, (0.0,), (0.0, 1.0, 2.0), ("0", "1"), (None, 1.0))),
        *(({"on_divergence": v}, ValueError, "on_divergence must be one of raise, freeze, restart") for v in ("ignore", None, "RAISE")),
        ({"num_steps": 5}, TypeError, "num_steps"),
    ],
    ids=repr,
)
def test_bad_hyperparameters(arguments, error, message):
    with pytest.raises(error, match=message):
        Langevin(**{"step_size": 0.1} | arguments)


@pytest.mark.parametrize(
    ("num_steps", "error"),
    [
        (-1, ValueError),
        (2**63, ValueError),
        (2**48, ValueError),
        (1.0, TypeError),
        (True, TypeError),
        ("3", TypeError),
        (None, TypeError),
        (torch.tensor(3.0), TypeError),
    ],
    ids=repr,
)
def test_bad_num_steps(num_steps, error):
    state = Langevin(0.1).init(quadratic, start(), seed=1)
    for run in (lambda: Langevin(0.1)(quadratic, start(), num_steps, seed=1), lambda: Langevin(0.1).advance(quadratic, state, num_steps)):
        with pytest.raises(error, match=r"^Langevin(\.advance)?: num_steps must be an int"):
            run()


def test_numpy_num_steps():
    assert_same_bits(Langevin(0.1)(quadratic, start(), np.int64(3), seed=1), Langevin(0.1)(quadratic, start(), 3, seed=1))


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), TypeError),
        (torch.zeros(2, 3, dtype=torch.bool), TypeError),
        (torch.zeros(2, 3, dtype=torch.complex64), TypeError),
        (torch.eye(3).to_sparse(), TypeError),
        (np.zeros((2, 3)), TypeError),
        ([[0.0]], TypeError),
        (torch.tensor(0.0), ValueError),
        (torch.zeros(4, 0), ValueError),
    ],
    ids=str,
)
def test_bad_states(x, error, untouched_generator):
    for run in (Langevin(0.1).init, lambda *a: Langevin(0.1)(*a, 3)):
        with pytest.raises(error, match=r"^Langevin(\.init)?: x must "):
            run(quadratic, x)


def test_samplers_are_values():
    sampler = Langevin(0.1, clamp=(0.0, 1.0))
    assert sampler == Langevin(0.1, clamp=(0.0, 1.0))
    assert hash(sampler) == hash(Langevin(0.1, clamp=(0.0, 1.0)))
    assert pickle.loads(pickle.dumps(sampler)) == sampler
    with pytest.raises(AttributeError):
        sampler.step_size = 0.2
