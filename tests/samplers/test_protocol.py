"""What every sampler has in common. A new sampler adds a line to SAMPLERS; the rest follows."""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import ebmcore
from ebmcore import Key, ops, sample
from ebmcore.testing import count_evaluations
from ebmcore.types import Info, State
from support.discrete import FreeSpins
from support.targets import assert_same_bits, quartic


class Case(NamedTuple):
    sampler: Any
    energy: Any  # (num_chains, *event) -> (num_chains,), each chain's arithmetic its own
    x: Tensor
    evaluations_per_step: int = 1
    evaluations_at_start: int = 1


class Pairs:
    """Neighbours on a line that attract or repel, and a field; of bits in any dtype, or of tokens through `energies.OneHot`."""

    def __call__(self, x: Tensor) -> Tensor:
        y = x.flatten(1)
        y = y if y.is_floating_point() else y.double()
        value = 0.3 * y[:, 0]
        for i in range(1, y.shape[1]):
            value = value + (0.9 - 0.4 * i) * y[:, i - 1] * y[:, i] - 0.1 * i * y[:, i]
        return value


def wells_of_level(x: Tensor, sigma: Any = 1.0) -> Tensor:
    """Double wells that grow steeper from level to level."""
    return quartic(x) / (0.1 + sigma)


X = ops.normal((64, 5), key=Key(1), dtype=torch.float64)
BITS = ops.bernoulli((64, 5), 0.5, key=Key(2), dtype=torch.float64)
TOKENS = ops.philox((64, 5), key=Key(3)).long() % 3
OF_TOKENS = ebmcore.energies.OneHot(Pairs(), 3, torch.float64)
ISING = ebmcore.energies.Ising.lattice((4, 4), 0.3)
with torch.random.fork_rng(devices=[]):
    RBM = ebmcore.energies.BernoulliRBM(5, 4).double()
WELLS = ebmcore.energies.DoubleWell()
SPINS = ops.rademacher((64, 4, 4), key=Key(4)).to(torch.int8)
SAMPLERS = {
    "langevin": Case(ebmcore.Langevin(0.01), quartic, X),
    "langevin, noise first": Case(ebmcore.Langevin(0.01, noise_first=True), quartic, X),
    "langevin, freeze": Case(ebmcore.Langevin(0.01, on_divergence="freeze"), quartic, X),
    "langevin, restart": Case(ebmcore.Langevin(0.01, on_divergence="restart"), quartic, X),
    "mala": Case(ebmcore.MALA(0.05), quartic, X),
    "mala, preconditioned": Case(ebmcore.MALA(0.05, torch.linspace(0.5, 1.5, 5)), quartic, X),
    "hmc": Case(ebmcore.HMC(0.1, 3), quartic, X, 3),
    "hmc, preconditioned and jittered": Case(ebmcore.HMC(0.1, 4, torch.linspace(0.5, 1.5, 5), 0.3), quartic, X, 4),
    "kinetic langevin": Case(ebmcore.KineticLangevin(0.1, 1.0), quartic, X),
    "kinetic langevin, preconditioned": Case(ebmcore.KineticLangevin(0.1, 1.0, torch.linspace(0.5, 1.5, 5), 0.5), quartic, X),
    "random walk": Case(ebmcore.RandomWalkMetropolis(0.3), quartic, X),
    "random walk, preconditioned": Case(ebmcore.RandomWalkMetropolis(0.3, torch.linspace(0.5, 1.5, 5)), quartic, X),
    "langevin, native": Case(ebmcore.Langevin(0.01, clamp=(-2.0, 2.0)), WELLS, X),
    "mala, native": Case(ebmcore.MALA(0.05), WELLS, X),
    "hmc, native": Case(ebmcore.HMC(0.1, 4, torch.linspace(0.5, 1.5, 5), 0.3), WELLS, X, 4),
    "kinetic langevin, native": Case(ebmcore.KineticLangevin(0.1, 1.0), WELLS, X),
    "random walk, native": Case(ebmcore.RandomWalkMetropolis(0.3), WELLS, X),
    "annealed langevin": Case(ebmcore.AnnealedLangevin((1.0, 0.5, 0.25, 0.1), 10, 2e-4, denoise=True), wells_of_level, X, evaluations_at_start=2),
    "gibbs": Case(ebmcore.Gibbs(), Pairs(), BITS, 5),
    "gibbs, random": Case(ebmcore.Gibbs("random"), OF_TOKENS, TOKENS),
    "gibbs, checkerboard": Case(ebmcore.Gibbs("checkerboard"), ISING, SPINS),
    "metropolis": Case(ebmcore.RandomFlipMetropolis(), Pairs(), BITS.bool()),
    "gwg": Case(ebmcore.GibbsWithGradients(), Pairs(), BITS),
    "gwg, several flips": Case(ebmcore.GibbsWithGradients(num_flips=3, balancing="barker"), OF_TOKENS, TOKENS.to(torch.uint8)),
    "gwg, native": Case(ebmcore.GibbsWithGradients(), ISING, SPINS),
    "gwg, native with several flips": Case(ebmcore.GibbsWithGradients(num_flips=2), ISING, SPINS),
    "discrete langevin": Case(ebmcore.DiscreteLangevin(0.5), Pairs(), BITS.to(torch.int32)),
    "discrete langevin, unadjusted": Case(ebmcore.DiscreteLangevin(0.5, metropolis=False), OF_TOKENS, TOKENS),
    "discrete langevin of spins": Case(ebmcore.DiscreteLangevin(0.5), ISING, SPINS),
    "paths": Case(ebmcore.PathAuxiliary(3), OF_TOKENS, TOKENS),
    "block gibbs": Case(ebmcore.BlockGibbs(), RBM, BITS),
    "parallel tempering": Case(ebmcore.ParallelTempering(ebmcore.Gibbs(), (1.0, 2.0, 5.0)), Pairs(), BITS, 5),
    "parallel tempering, by gradients": Case(ebmcore.ParallelTempering(ebmcore.GibbsWithGradients(), (1.0, 1.5), 3), OF_TOKENS, TOKENS, 3),
    "parallel tempering, continuous": Case(ebmcore.ParallelTempering(ebmcore.Langevin(0.01), (0.5, 0.7, 1.0, 1.5)), quartic, X),
    "parallel tempering of mala": Case(ebmcore.ParallelTempering(ebmcore.MALA(0.05), (1.0, 2.0, 4.0)), quartic, X),
    "parallel tempering of hmc": Case(ebmcore.ParallelTempering(ebmcore.HMC(0.1, 3, jitter=0.1), (0.7, 2.0), 2, True), quartic, X, 6),
    "parallel tempering, native": Case(ebmcore.ParallelTempering(ebmcore.Gibbs("checkerboard"), (1.0, 2.0, 5.0)), ISING, SPINS),
    "swendsen-wang": Case(ebmcore.SwendsenWang(), FreeSpins(), SPINS),
}
KEY = Key(3, 4, 5)
cases = pytest.mark.parametrize("case", SAMPLERS.values(), ids=SAMPLERS)


def test_none_is_forgotten():
    """Every sampler that ebmcore hands out is in the list."""
    public = {
        value for value in vars(ebmcore).values() if inspect.isclass(value) and all(hasattr(value, name) for name in ("init", "step", "advance"))
    }
    assert public == {type(case.sampler) for case in SAMPLERS.values()}


@cases
def test_names_and_signatures(case):
    sampler = type(case.sampler)
    assert list(inspect.signature(sampler.init).parameters) == ["self", "energy", "x", "seed"]
    assert list(inspect.signature(sampler.step).parameters) == ["self", "energy", "state"]
    assert list(inspect.signature(sampler.advance).parameters) == ["self", "energy", "state", "num_steps"]
    assert list(inspect.signature(sampler.__call__).parameters) == ["self", "energy", "x", "num_steps", "seed"]
    for method in (sampler.init, sampler.__call__):
        seed = inspect.signature(method).parameters["seed"]
        assert (seed.kind, seed.default) == (inspect.Parameter.KEYWORD_ONLY, None)
    assert sampler.__doc__


@cases
def test_states_and_infos(case):
    state = case.sampler.init(case.energy, case.x, seed=KEY)
    assert isinstance(state, State)
    assert state.key == KEY
    assert_same_bits(state.x, case.x)
    torch.testing.assert_close(state.energy, case.energy(case.x), check_dtype=False)
    state, info = case.sampler.step(case.energy, state)
    assert isinstance(state, State)
    assert isinstance(info, Info)
    assert state.key == KEY.advance()
    assert state.x.shape == case.x.shape
    assert state.energy.shape == info.is_diverged.shape == (len(case.x),)
    assert info.is_diverged.dtype == torch.bool


@cases
def test_hyperparameters_only(case):
    """Frozen values: no energy, no state; equal ones do equal things."""
    with pytest.raises(AttributeError):
        case.sampler.anything = 1
    twin = copy.deepcopy(case.sampler)
    assert twin == case.sampler
    assert_same_bits(twin(case.energy, case.x, 5, seed=KEY), case.sampler(case.energy, case.x, 5, seed=KEY))


@cases
def test_the_same_state_gives_the_same_result(case):
    state = case.sampler.init(case.energy, case.x, seed=KEY)
    before = state.x.clone(), state.key.tensor.clone()
    results = [case.sampler.step(case.energy, state)[0].x for _ in range(2)]
    assert_same_bits(results[0], results[1])
    assert_same_bits(state.x, before[0])
    assert torch.equal(state.key.tensor, before[1])


@cases
def test_x_is_never_modified(case):
    before, version = case.x.clone(), case.x._version
    case.sampler(case.energy, case.x, 5, seed=KEY)
    case.sampler.advance(case.energy, case.sampler.init(case.energy, case.x, seed=KEY), 5)
    assert_same_bits(case.x, before)
    assert case.x._version == version


@cases
def test_advance_is_n_steps_is_a_call_is_sample(case):
    start = case.sampler.init(case.energy, case.x, seed=KEY)
    state = start
    for _ in range(37):
        state, _ = case.sampler.step(case.energy, state)
    assert_same_bits(case.sampler.advance(case.energy, start, 37)[0].x, state.x)
    assert_same_bits(case.sampler(case.energy, case.x, 37, seed=KEY), state.x)
    assert_same_bits(sample(case.sampler, case.energy, case.x, 30, num_warmup=7, seed=KEY).x[-1], state.x)
    assert case.sampler.advance(case.energy, start, 0)[0].key == KEY


@cases
def test_split_batches(case):
    whole = case.sampler(case.energy, case.x, 10, seed=KEY)
    parts = [case.sampler(case.energy, case.x[i : i + 16], 10, seed=KEY.shard(i)) for i in range(0, 64, 16)]
    assert_same_bits(torch.cat(parts), whole)


@cases
def test_one_evaluation_per_step(case):
    if hasattr(case.energy, "native_chain"):
        pytest.skip("its chains run natively, or from differences that it works out itself")
    energy = count_evaluations(case.energy)
    state = case.sampler.init(energy, case.x, seed=KEY)
    assert energy.num_evaluations == case.evaluations_at_start
    case.sampler.advance(energy, state, 25)
    assert energy.num_evaluations == case.evaluations_at_start + 25 * case.evaluations_per_step


@cases
def test_the_global_generator_is_left_alone(case, untouched_generator):
    case.sampler(case.energy, case.x, 3, seed=1)


@cases
def test_no_chains(case, untouched_generator):
    assert case.sampler(case.energy, case.x[:0], 3).shape == (0, *case.x.shape[1:])
