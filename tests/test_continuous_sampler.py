"""What the continuous samplers share: starts, walls, energies that are not finite or too coarse, metrics, and bad input."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import warnings

import pytest
import torch

from ebmcore import HMC, MALA, DivergenceError, Key, KineticLangevin, RandomWalkMetropolis, ops
from ebmcore.continuous_sampler import row_sums
from ebmcore.gradients import energy_and_grad, evaluate
from support.targets import Counting, Network, Spoiled, assert_same_bits, quadratic, quartic

KEY = Key(5, step=6, first_chain=7)
MASS = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
METROPOLIS = [MALA(0.2), MALA(0.2, MASS), HMC(0.3, 3), HMC(0.3, 3, MASS, 0.5), RandomWalkMetropolis(0.5), RandomWalkMetropolis(0.5, MASS)]
ALL = [*METROPOLIS, KineticLangevin(0.2, 1.0), KineticLangevin(0.2, 1.0, MASS)]
metropolis = pytest.mark.parametrize("sampler", METROPOLIS, ids=lambda s: f"{type(s).__name__}{'' if s.inverse_mass is None else ', metric'}")
every = pytest.mark.parametrize("sampler", ALL, ids=lambda s: f"{type(s).__name__}{'' if s.inverse_mass is None else ', metric'}")


def start(rows: int = 6, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return ops.normal((rows, 3), key=Key(1), dtype=torch.float64).to(dtype)


def name(sampler) -> str:
    return type(sampler).__name__


# Starts


@every
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_start_that_is_not_finite(sampler, value):
    x = start()
    for method in (sampler.init, lambda *a, **k: sampler(*a, 3, **k)):
        with pytest.raises(DivergenceError, match=rf"{name(sampler)}.*: the starting point is not finite .* in 2 of 6 chains \(1, 4;") as caught:
            method(Spoiled(0, [1, 4], value), x, seed=1)
        assert (caught.value.step, caught.value.chains) == (-1, [1, 4])
        assert all(math.isnan(energy) for energy in caught.value.last_energies)
    if not isinstance(sampler, RandomWalkMetropolis):
        with pytest.raises(DivergenceError):
            sampler.init(Spoiled(0, [2], None, grad=value), x, seed=1)
    x[3, 1] = value
    with pytest.raises(DivergenceError) as caught:
        sampler.init(lambda x: torch.tanh(x).sum(1), x, seed=1)
    assert caught.value.chains == [3]


@every
def test_states(sampler):
    x = start(dtype=torch.float32).requires_grad_()
    state = sampler.init(quartic, x, seed=KEY)
    assert_same_bits(state.x, x.detach())
    assert state.x.data_ptr() != x.data_ptr()
    assert not state.x.requires_grad
    assert not state.energy.requires_grad
    assert state.key == KEY
    assert_same_bits(state.energy, evaluate(quartic, x.detach()))
    if isinstance(sampler, RandomWalkMetropolis):
        assert state.grad is None
    else:
        assert_same_bits(state.grad, energy_and_grad(quartic, x.detach())[1])


# Proposals that are not finite


@metropolis
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_proposals_that_are_not_finite_are_rejected_and_counted(sampler, value):
    """At two steps of five, and nothing else changes: the other chains go on as without them."""
    per_step = getattr(sampler, "num_leapfrog", 1)
    state = sampler.init(quadratic, start(), seed=KEY)
    before, _ = sampler.advance(quadratic, state, 2)
    after, info = sampler.advance(Spoiled(3 * per_step - 1, [1, 4], value), state, 3)
    clean, clean_info = sampler.advance(quadratic, state, 3)
    rows = torch.tensor([False, True, False, False, True, False])
    assert torch.equal(info.num_diverged, rows.long())
    assert torch.equal(info.is_diverged, rows)
    assert not bool(info.is_accepted[rows].any())
    for a, b, c in zip(after[:3], before[:3], clean[:3], strict=True):
        if a is not None:
            assert_same_bits(a[rows], b[rows])
            assert_same_bits(a[~rows], c[~rows])
    _, first = sampler.advance(quadratic, state, 2)
    torch.testing.assert_close(info.acceptance_prob[rows], first.acceptance_prob[rows] * 2 / 3)
    torch.testing.assert_close(info.acceptance_prob[~rows], clean_info.acceptance_prob[~rows])


@pytest.mark.parametrize("sampler", [MALA(0.2), HMC(0.3, 1), HMC(0.3, 4)], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_are_rejected_and_counted(sampler, value):
    state = sampler.init(quadratic, start(), seed=KEY)
    end, info = sampler.step(Spoiled(0, [2], None, grad=value), state)
    assert info.num_diverged.tolist() == [0, 0, 1, 0, 0, 0]
    assert_same_bits(end.x[2], state.x[2])
    assert bool(end.grad.isfinite().all())
    assert float(info.acceptance_prob[2]) == 0.0


@metropolis
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_that_overflow_are_rejected(sampler, dtype):
    """Even where the energy is finite at infinity."""
    huge = dataclasses.replace(sampler, step_size=1e300)
    x = start(dtype=dtype) * 1e30

    def energy(x):
        return torch.atan(x).sum(1)

    end, info = huge.advance(energy, huge.init(energy, x, seed=1), 20)
    assert bool(end.x.isfinite().all())
    if dtype == torch.float32:
        assert_same_bits(end.x, x)
        assert info.num_diverged.tolist() == [20] * 6


@metropolis
def test_acceptance_far_beyond_the_range_of_exp(sampler):
    """Log ratios of 1e4 and more, both ways: probabilities of 0 and 1, never NaN."""
    for sign in (1.0, -1.0):

        def energy(x, sign=sign):
            return sign * 1e5 * x.sum(1)

        _, info = sampler.advance(energy, sampler.init(energy, start(50), seed=1), 5)
        assert bool(((info.acceptance_prob >= 0) & (info.acceptance_prob <= 1)).all())
        assert int(info.num_diverged.sum()) == 0


@metropolis
def test_a_chain_that_never_moves_is_warned_of(sampler):
    def pit(x):
        return torch.where((x == 0).all(1), 0.0, torch.inf) + 0.0 * x.sum(1)

    x = torch.zeros(2, 3, dtype=torch.float64)
    state = sampler.init(pit, x, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.advance(pit, state, 999)
    with pytest.warns(RuntimeWarning, match=rf"{name(sampler)}\(.*no chain moved in 1000 steps, .* 0; 2000 proposals were not finite"):
        sampler.advance(pit, state, 1000)
    with pytest.warns(RuntimeWarning, match="no chain moved"):
        sampler(pit, x, 1000, seed=1)


# Large energies


@metropolis
def test_large_energies_in_float32_are_warned_of(sampler):
    x = start(dtype=torch.float32)
    with pytest.warns(RuntimeWarning, match=r"float32 energies of 1e\+08 are 8 apart, too coarse for differences of 1"):
        sampler.init(lambda x: quadratic(x) - 1e8, x, seed=1)
    with pytest.warns(RuntimeWarning, match=r"of 1.05e\+06 are 0.125 apart"):
        sampler(lambda x: 0.0 * quadratic(x) + 2.0**20, x, 1, seed=1)
    for energy in (lambda x: quadratic(x.double()) - 1e8, lambda x: quadratic(x) + 1e6):
        sampler.init(energy, x, seed=1)
    sampler.init(lambda x: quadratic(x) - 1e8, x.double(), seed=1)


@metropolis
def test_large_energies_in_float64_change_nothing(sampler):
    """Energies of 1e8 with differences of 1, from float32 states: the same chains as without the constant, to the energies' 1e-8."""
    x = start(200, dtype=torch.float32)
    small, large = (lambda x: quadratic(x.double())), (lambda x: quadratic(x.double()) + 1e8)
    ends = [sampler.advance(energy, sampler.init(energy, x, seed=KEY), 5) for energy in (small, large)]
    assert ends[1][0].energy.dtype == torch.float64
    torch.testing.assert_close(ends[0][1].acceptance_prob, ends[1][1].acceptance_prob, rtol=1e-6, atol=1e-6)
    assert_same_bits(ends[0][0].x, ends[1][0].x)


# What they leave alone, and where they run


@every
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_a_graph(sampler, guard):
    x = start()
    expected = sampler(quartic, x, 4, seed=KEY)
    with guard():
        y = start()
        state = sampler.init(quartic, y, seed=KEY)
        for _ in range(4):
            state, _ = sampler.step(quartic, state)
        result = sampler(quartic, y, 4, seed=KEY)
    assert_same_bits(result, expected)
    assert_same_bits(state.x, expected)
    assert not result.is_inference()
    after, _ = sampler.advance(quartic, state, 1)
    assert_same_bits(after.x, sampler(quartic, x, 5, seed=KEY))


@every
def test_networks_are_left_alone(sampler):
    network = Network().double().eval()
    network.first.weight.grad = torch.full_like(network.first.weight, 7.0)
    before = copy.deepcopy(network.state_dict())
    sampler(network, start(), 3, seed=1)
    assert not network.training
    assert bool((network.first.weight.grad == 7.0).all())
    assert network.second.weight.grad is None
    for key, value in network.state_dict().items():
        assert_same_bits(value, before[key])


@every
def test_states_go_on_through_a_checkpoint(sampler, tmp_path):
    whole, _ = sampler.advance(quartic, sampler.init(quartic, start(), seed=KEY), 100)
    part, _ = sampler.advance(quartic, sampler.init(quartic, start(), seed=KEY), 60)
    torch.save(part._replace(key=part.key.tensor)._asdict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt")
    state = type(part)(**loaded)._replace(key=Key.from_tensor(loaded["key"]))
    end, _ = sampler.advance(quartic, state, 40)
    for a, b in zip(end, whole, strict=True):
        if isinstance(a, torch.Tensor):
            assert_same_bits(a, b)
    assert end.key == whole.key


@metropolis
def test_long_runs(sampler, monkeypatch):
    """Keys are made for so many steps at once; the draws do not show it."""
    state = sampler.init(quartic, start(), seed=KEY)
    whole, _ = sampler.advance(quartic, state, 20)
    monkeypatch.setattr("ebmcore.continuous_sampler._KEYS_AT_ONCE", 7)
    assert_same_bits(sampler.advance(quartic, state, 20)[0].x, whole.x)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3, 4, 5), (1, 2)])
def test_shapes_and_dtypes(sampler, shape, dtype, device):
    mass = None if sampler.inverse_mass is None else torch.linspace(0.5, 2.0, math.prod(shape[1:])).reshape(shape[1:])
    sampler = dataclasses.replace(sampler, inverse_mass=mass)
    x = ops.normal(shape, key=Key(1), dtype=dtype).to(device)

    def energy(x):
        return quadratic(x) if x.dim() > 1 else 0.5 * x * x

    state, info = sampler.advance(energy, sampler.init(energy, x, seed=1), 5)
    assert (state.x.shape, state.x.dtype, state.x.device) == (x.shape, dtype, x.device)
    assert state.energy.dtype == dtype
    assert info.is_diverged.shape == shape[:1]
    assert not torch.equal(state.x, x)


@every
def test_strides_of_x_do_not_matter(sampler):
    x = start(8)
    assert_same_bits(sampler(quartic, x.T.contiguous().T, 5, seed=KEY), sampler(quartic, x, 5, seed=KEY))


@every
def test_no_chains(sampler, untouched_generator):
    energy = Counting(quartic)
    x = start(0)
    state = sampler.init(energy, x)
    state, info = sampler.advance(energy, state, 5)
    assert state.x.shape == sampler(energy, x, 5).shape == (0, 3)
    assert info.is_diverged.shape == (0,)
    assert energy.count == 0


@every
def test_no_steps(sampler):
    state = sampler.init(quartic, start(), seed=KEY)
    after, info = sampler.advance(quartic, state, 0)
    assert after is state
    assert not bool(info.is_diverged.any())
    x = start()
    result = sampler(Counting(quartic), x, 0)
    assert_same_bits(result, x)
    assert result.data_ptr() != x.data_ptr()


def test_row_sums_do_not_depend_on_rows_or_threads(keep_threads):
    """torch alone splits the sum of one long row among threads."""
    for dim in (1, 3, 8, 1000, 100_001):
        x = ops.normal((3, dim), key=Key(1), dtype=torch.float64)
        results = []
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            results += [row_sums(x), torch.cat([row_sums(row[None]) for row in x])]
        for result in results:
            assert_same_bits(result, results[0])
        torch.testing.assert_close(results[0], x.sum(1))


# Metrics


def test_samplers_are_values():
    mass = MASS.clone()
    sampler = MALA(0.1, mass)
    assert sampler == MALA(0.1, MASS) == copy.deepcopy(sampler) == pickle.loads(pickle.dumps(sampler))
    for other in (MALA(0.1), MALA(0.2, MASS), MALA(0.1, 2 * MASS), MALA(0.1, MASS[:2]), RandomWalkMetropolis(0.1, MASS), 0.1):
        assert sampler != other
    assert MALA(0.1) == MALA(0.1)
    mass.zero_()
    assert sampler == MALA(0.1, MASS)


@pytest.mark.parametrize(
    "make", [lambda m: MALA(0.1, m), lambda m: HMC(0.1, 2, m), lambda m: RandomWalkMetropolis(0.1, m), lambda m: KineticLangevin(0.1, 1.0, m)]
)
def test_bad_metrics(make):
    for bad in (0.0, -1.0, math.nan, math.inf, 1e-60, 1e60):
        with pytest.raises(ValueError, match="inverse_mass must be positive and finite"):
            make(torch.tensor([1.0, bad, 2.0], dtype=torch.float64))
    for bad in (torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.bfloat16), [1.0, 1.0, 1.0], 1.0):
        with pytest.raises(TypeError, match="inverse_mass must be a float32 or float64 tensor of the event's shape"):
            make(bad)
    for bad in (torch.ones(2), torch.ones(()), torch.ones(1, 3), torch.ones(6, 3)):
        sampler = make(bad)
        message = rf"{name(sampler)}: inverse_mass must have the event's shape \(3,\), got "
        for run in (sampler.init, lambda *a, s=sampler, **k: s(*a, 2, **k)):
            with pytest.raises(ValueError, match=message):
                run(quadratic, start(), seed=1)
        state = dataclasses.replace(sampler, inverse_mass=None).init(quadratic, start(), seed=1)
        with pytest.raises(ValueError, match=message):
            sampler.step(quadratic, state)


@every
def test_a_unit_metric_is_no_metric(sampler):
    """In law, and to rounding."""
    with_ones = dataclasses.replace(sampler, inverse_mass=torch.ones(3, dtype=torch.float64))
    without = dataclasses.replace(sampler, inverse_mass=None)
    torch.testing.assert_close(with_ones(quartic, start(), 10, seed=KEY), without(quartic, start(), 10, seed=KEY), rtol=1e-9, atol=1e-9)


# Bad input


@pytest.mark.parametrize("kind", [MALA, RandomWalkMetropolis, lambda h: HMC(h, 2)])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, "0.1", None, True, torch.tensor(0.1)])
def test_bad_step_sizes(kind, bad):
    with pytest.raises((TypeError, ValueError), match=r"(MALA|HMC|RandomWalkMetropolis): step_size must be a"):
        kind(bad)


def test_bad_settings_of_hmc():
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"HMC: num_leapfrog must be an int >= 1, got {bad}"):
            HMC(0.1, bad)
    for bad in (1.0, "3", None, True):
        with pytest.raises(TypeError, match="HMC: num_leapfrog must be an int >= 1"):
            HMC(0.1, bad)
    for bad in (-0.1, 1.1, math.nan, math.inf, "0.1", True):
        with pytest.raises((TypeError, ValueError), match="HMC: jitter must be"):
            HMC(0.1, 3, jitter=bad)


@every
def test_bad_calls(sampler):
    state = sampler.init(quadratic, start(), seed=1)
    for bad in (-1, 1.5, True, "3", 2**48):
        for run in (lambda n: sampler.advance(quadratic, state, n), lambda n: sampler(quadratic, start(), n)):
            with pytest.raises((TypeError, ValueError), match=rf"{name(sampler)}.*: num_steps must be an int in"):
                run(bad)
    for bad, error in (
        (torch.zeros(2, 3, dtype=torch.int64), TypeError),
        (torch.zeros(2, 3, dtype=torch.bfloat16), TypeError),
        (torch.zeros(2, 3, dtype=torch.float16), TypeError),
        (torch.tensor(1.0), ValueError),
        (torch.zeros(2, 0), ValueError),
        ([[1.0, 2.0, 3.0]], TypeError),
    ):
        for run in (sampler.init, lambda *a, **k: sampler(*a, 2, **k), lambda *a, **k: sampler(*a, 0, **k)):
            with pytest.raises(error, match=rf"{name(sampler)}.*: x must"):
                run(quadratic, bad, seed=1)
    for energy, error in ((lambda x: x, ValueError), (lambda x: 1.0, TypeError), (lambda x: x.sum(1)[:-1], ValueError)):
        with pytest.raises(error, match="energy: must return"):
            sampler.init(energy, start(), seed=1)
