"""Energies that take the steps of continuous samplers themselves: what they are asked, and what is made of their answers."""

from __future__ import annotations

import math

import pytest
import torch

from ebmcore import HMC, MALA, DivergenceError, Key, KineticLangevin, Langevin, RandomWalkMetropolis, ops
from ebmcore.ops.dynamics import DynamicsRun
from support.targets import assert_same_bits, quartic

KEY = Key(5, step=6, first_chain=7)
MASS = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def start(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return ops.normal((6, 3), key=Key(1), dtype=torch.float64).to(dtype)


class Native:
    """An energy that takes steps by our samplers' own steps, if `can`, and counts what it is asked; `spoil`: chain -> step whose result is NaN."""

    def __init__(self, energy=quartic, can=True, has_grad=True, spoil=()):
        self.energy, self.can, self.has_grad, self.spoil, self.calls, self.count = energy, can, has_grad, dict(spoil), [], 0

    def __call__(self, x):
        self.count += 1
        return self.energy(x)

    def native_dynamics(self, kernel, x, momentum, key, num_steps, **options):
        self.calls.append((kernel, num_steps, options))
        if not self.can:
            return None
        assert x.is_contiguous()
        assert key.shape == (3,)
        kinds = {"langevin": Langevin, "mala": MALA, "hmc": HMC, "kinetic_langevin": KineticLangevin, "random_walk": RandomWalkMetropolis}
        sampler = kinds[kernel](**options)
        state = sampler.init(self.energy, x, seed=Key.from_tensor(key))
        if momentum is not None:
            state = state._replace(momentum=momentum)
        state, info = sampler.advance(self.energy, state, num_steps)
        x.copy_(state.x)
        if momentum is not None:
            momentum.copy_(state.momentum)
        for chain, step in self.spoil.items():
            if int(key[1]) + num_steps > step:
                x[chain] = math.nan
        rejects = kernel not in ("langevin", "kinetic_langevin")
        return DynamicsRun(
            state.energy,
            state.grad if self.has_grad else None,
            info.is_accepted if rejects else None,
            info.acceptance_prob if rejects else None,
            info.num_diverged if rejects else None,
        )


HOOKED = {
    "langevin": (Langevin(0.05, clip_grad=2.0, clamp=(-2, 2)), {"step_size": 0.05, "noise_std": math.sqrt(0.1), "clip_grad": 2.0, "clamp": (-2, 2)}),
    "mala": (MALA(0.1), {"step_size": 0.1, "inverse_mass": None}),
    "hmc": (HMC(0.1, 3, jitter=0.2), {"step_size": 0.1, "num_leapfrog": 3, "inverse_mass": None, "jitter": 0.2}),
    "kinetic_langevin": (
        KineticLangevin(0.1, 2.0, temperature=0.5),
        {"step_size": 0.1, "friction": 2.0, "inverse_mass": None, "temperature": 0.5},
    ),
    "random_walk": (RandomWalkMetropolis(0.3), {"step_size": 0.3, "inverse_mass": None}),
}
hooked = pytest.mark.parametrize("kernel", HOOKED)


@hooked
def test_native_chains(kernel):
    """One call for all the steps, nothing evaluated beside it, and the results are those of the steps."""
    sampler, options = HOOKED[kernel]
    energy, x = Native(), start()
    start_state = sampler.init(energy, x, seed=KEY)
    before = start_state.x.clone()
    state, info = sampler.advance(energy, start_state, 20)
    assert energy.calls == [(kernel, 20, options)]
    assert energy.count == 1
    plain, plain_info = sampler.advance(quartic, sampler.init(quartic, x, seed=KEY), 20)
    for a, b in zip([*state, *info], [*plain, *plain_info], strict=True):
        if isinstance(a, torch.Tensor):
            assert_same_bits(a, b)
    assert state.key == plain.key
    assert_same_bits(start_state.x, before)
    if kernel != "kinetic_langevin":  # whose momenta at the start are drawn after the energy there is known to be finite
        energy.count = 0
        assert_same_bits(sampler(energy, x, 20, seed=KEY), plain.x)
        assert energy.count == 0


@hooked
def test_native_chains_that_cannot(kernel):
    """Or that only now and then can: None means that nothing was done."""
    sampler, _ = HOOKED[kernel]
    energy = Native(can=False)
    assert_same_bits(sampler(energy, start(), 7, seed=KEY), sampler(quartic, start(), 7, seed=KEY))
    assert len(energy.calls) >= 1
    assert energy.count >= 7


@hooked
def test_native_chains_without_gradients_at_the_end(kernel):
    sampler, _ = HOOKED[kernel]
    state, _ = sampler.advance(Native(has_grad=False), sampler.init(quartic, start(), seed=KEY), 5)
    plain, _ = sampler.advance(quartic, sampler.init(quartic, start(), seed=KEY), 5)
    if plain.grad is not None:
        assert_same_bits(state.grad, plain.grad)


@pytest.mark.parametrize(
    "make", [lambda m: MALA(0.1, m), lambda m: HMC(0.1, 2, m), lambda m: RandomWalkMetropolis(0.1, m), lambda m: KineticLangevin(0.1, 1.0, m)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_chains_get_the_metric_in_their_dtype(make, dtype):
    energy = Native()
    sampler = make(MASS)
    sampler.advance(energy, sampler.init(energy, start(dtype=dtype), seed=1), 2)
    given = energy.calls[0][2]["inverse_mass"]
    assert_same_bits(given, MASS.to(dtype))
    assert given.is_contiguous()


@pytest.mark.parametrize("sampler", [Langevin(0.05), KineticLangevin(0.1, 1.0)], ids=["langevin", "kinetic langevin"])
@pytest.mark.parametrize("step", [0, 1, 17, 49])
def test_native_chains_that_diverge(sampler, step):
    """The first step is found, the chains that it took, and their last finite energies."""
    energy = Native(spoil={1: KEY.step + step, 4: KEY.step + step + 1})
    state = sampler.init(energy, start(), seed=KEY)
    last, _ = sampler.advance(quartic, state, step)
    message = rf"{type(sampler).__name__}: the result of step {step} is not finite .* in 1 of 6 chains \(1;"
    with pytest.raises(DivergenceError, match=message) as caught:
        sampler.advance(energy, state, 50)
    assert (caught.value.step, caught.value.chains) == (step, [1])
    assert caught.value.last_energies == last.energy[[1]].tolist()
    with pytest.raises(DivergenceError, match=message):
        sampler(energy, start(), 50, seed=KEY)


@pytest.mark.parametrize(
    "sampler",
    [
        Langevin(lambda step: 0.05),
        Langevin(0.05, noise_std=lambda step: 0.1),
        Langevin(0.05, clip_grad_norm=1.0),
        Langevin(0.05, noise_first=True),
        Langevin(0.05, on_divergence="freeze"),
        Langevin(0.05, on_divergence="restart"),
    ],
)
def test_langevin_runs_natively_only_what_is_native(sampler):
    energy = Native()
    assert_same_bits(sampler(energy, start(), 5, seed=KEY), sampler(quartic, start(), 5, seed=KEY))
    assert energy.calls == []


def test_short_states_do_not_run_natively():
    energy = Native()
    Langevin(0.05)(energy, start(dtype=torch.bfloat16), 5, seed=1)
    assert energy.calls == []


@hooked
def test_a_bad_start_of_native_chains(kernel):
    """Metropolis' kernels never leave it, which shows; the others end in NaN."""
    sampler, _ = HOOKED[kernel]

    class Bad:
        def __call__(self, x):
            return torch.where(torch.arange(len(x)) == 2, math.nan, 0.0) + quartic(x)

        def native_dynamics(self, kernel, x, momentum, key, num_steps, **options):
            bad = torch.arange(len(x)) == 2
            return DynamicsRun(self(x), torch.zeros_like(x), ~bad, (~bad).double(), bad.long() * num_steps)

    with pytest.raises(DivergenceError, match="the starting point is not finite") as caught:
        sampler(Bad(), start(), 5, seed=1)
    assert (caught.value.step, caught.value.chains) == (-1, [2])


@pytest.mark.parametrize("kernel", ["mala", "hmc", "random_walk"])
def test_warnings_of_native_chains(kernel):
    """As of others: of chains that stand still, and of energies too coarse."""
    sampler, _ = HOOKED[kernel]

    class Still:
        energy = 1.0

        def __call__(self, x):
            return quartic(x) * 0.0 + self.energy

        def native_dynamics(self, kernel, x, momentum, key, num_steps, **options):
            zeros = torch.zeros(len(x))
            return DynamicsRun(self(x), torch.zeros_like(x), zeros.bool(), zeros, zeros.long())

    energy, x = Still(), start(torch.float32)
    sampler(energy, x, 999, seed=1)
    with pytest.warns(RuntimeWarning, match="no chain moved in 1000 steps"):
        sampler(energy, x, 1000, seed=1)
    with pytest.warns(RuntimeWarning, match="no chain moved in 1000 steps"):
        sampler.advance(energy, sampler.init(energy, x, seed=1), 1000)
    energy.energy = 1e8
    with pytest.warns(RuntimeWarning, match="too coarse for differences of 1"):
        sampler(energy, x, 5, seed=1)
