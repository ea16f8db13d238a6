"""Compositions against closed forms: of Gaussians, of enumerated discrete models, of torch.distributions; and what they refuse."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

from ebmcore import HMC, MALA, Gibbs, GibbsWithGradients, Key, Langevin, ParallelTempering, SwendsenWang, ops
from ebmcore.discrete import energy_and_differences
from ebmcore.energies import BernoulliRBM, Gaussian, Ising, OneHot, Potts, condition, mixture, negate, non_negative, product, temper
from ebmcore.evaluation import exact_distribution
from ebmcore.gradients import energy_and_grad, evaluate
from ebmcore.testing import count_evaluations, transition_matrix
from support.statistics import assert_counts, assert_gaussian
from support.targets import Network, assert_same_bits, quadratic, quartic

A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)  # precisions
B = torch.tensor([[1.0, -0.3], [-0.3, 3.0]], dtype=torch.float64)
MEAN_A, MEAN_B = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([-0.5, 2.0], dtype=torch.float64)
NATIVE = Gaussian(MEAN_A, precision=A)
MODEL = MultivariateNormal(MEAN_B, precision_matrix=B)
X = ops.normal((50, 2), key=Key(1), dtype=torch.float64)


def spins(num_sites: int) -> Tensor:
    return (2 * (torch.arange(2**num_sites)[:, None] // 2 ** torch.arange(num_sites) % 2) - 1).to(torch.int8)


# Laws of Gaussians


@pytest.mark.parametrize("sampler", [MALA(0.2), HMC(0.3, 4)], ids=repr)
def test_a_product_of_an_energy_and_a_distribution_is_sampled_jointly(sampler):
    """Of Gaussians it is the Gaussian whose precisions add: from exact draws of that, MALA and HMC stay there."""
    precision = A + B
    mean = torch.linalg.solve(precision, A @ MEAN_A + B @ MEAN_B)
    parts = [count_evaluations(NATIVE), count_evaluations(lambda x: -MODEL.log_prob(x))]
    energy = product(*parts)
    x = MultivariateNormal(mean, precision_matrix=precision).sample((20_000,))
    out = sampler(energy, x, 5, seed=Key(2))
    assert_gaussian(out, mean, torch.linalg.inv(precision), what=f"product, {sampler}")
    assert len({(part.num_evaluations, part.num_gradients) for part in parts}) == 1
    assert parts[0].num_evaluations == 1 + 5 * getattr(sampler, "num_leapfrog", 1)
    assert_same_bits(sampler(product(NATIVE, MODEL), x[:100], 5, seed=Key(2)), out[:100])


def test_products_temperatures_and_negations_of_gaussians():
    """2 E_a + E_b / 2 - E_c of Gaussians is quadratic: the precision and the mean are those of the sums."""
    c = Independent(Normal(torch.tensor([0.2, -0.1], dtype=torch.float64), 2.0), 1)
    energy = product(temper(NATIVE, 0.5), temper(MODEL, 2.0), negate(c), negate(NATIVE, 0.25))
    precision = 1.75 * A + B / 2 - torch.eye(2, dtype=torch.float64) / 4
    linear = 1.75 * A @ MEAN_A + B @ MEAN_B / 2 - torch.tensor([0.2, -0.1], dtype=torch.float64) / 4
    expected = 0.5 * ((X @ precision) * X).sum(1) - X @ linear
    value, grad = energy_and_grad(energy, X)
    torch.testing.assert_close(value - value[0], expected - expected[0])
    torch.testing.assert_close(grad, X @ precision - linear)
    torch.testing.assert_close(energy(X), 1.75 * NATIVE(X) - MODEL.log_prob(X) / 2 + c.log_prob(X))


def test_mixtures_are_normalised_where_their_parts_are():
    """Weights count for densities: of log_prob as it is, of an energy with its log Z given."""
    weights = (3.0, 1.0)
    energy = mixture(weights, [NATIVE, MODEL], log_z=[NATIVE.log_z, 0.0])
    own = MultivariateNormal(MEAN_A, precision_matrix=A)
    expected = torch.logsumexp(torch.stack((own.log_prob(X) + math.log(0.75), MODEL.log_prob(X) + math.log(0.25))), 0)
    torch.testing.assert_close(energy(X), -expected)
    unnormalised = mixture(weights, [NATIVE, MODEL])
    torch.testing.assert_close(unnormalised(X), -torch.logsumexp(torch.stack((-NATIVE(X) + math.log(0.75), MODEL.log_prob(X) + math.log(0.25))), 0))
    posterior = torch.softmax(torch.stack((own.log_prob(X) + math.log(0.75), MODEL.log_prob(X) + math.log(0.25))), 0)
    grad = posterior[0, :, None] * ((X - MEAN_A) @ A) + posterior[1, :, None] * ((X - MEAN_B) @ B)
    torch.testing.assert_close(energy_and_grad(energy, X)[1], grad)


def test_mixtures_far_out_and_walls():
    """No overflow where all parts are unlikely, and a part of density 0 leaves the rest."""
    far = mixture((1.0, 1.0), [quadratic, lambda x: quadratic(x - 1.0)])
    x = torch.tensor([[1e8, 1e8], [200.0, 200.0]])
    assert bool(far(x).isfinite().all())
    wall = mixture((1.0, 1.0), [quadratic, lambda x: torch.where(x[:, 0] > 0, quadratic(x), torch.inf)])
    torch.testing.assert_close(wall(torch.tensor([[-1.0], [1.0]])), torch.tensor([0.5 + math.log(2.0), 0.5]))


def test_mixture_of_gaussians_is_sampled():
    """MALA from exact draws of both components stays at the mixture: the law of x through its exact distribution function."""
    energy = mixture((0.3, 0.7), [Normal(-1.0, 0.6), Normal(1.5, 0.8)])
    component = torch.where(ops.uniform((20_000, 1), key=Key(1)) < 0.3, 0, 1)
    means, stds = torch.tensor([-1.0, 1.5]), torch.tensor([0.6, 0.8])
    x = means[component] + stds[component] * ops.normal((20_000, 1), key=Key(2))
    out = MALA(0.3)(energy, x, 5, seed=Key(3))
    cells = torch.linspace(-2.0, 3.0, 21)
    cdf = 0.3 * Normal(-1.0, 0.6).cdf(cells) + 0.7 * Normal(1.5, 0.8).cdf(cells)
    probabilities = torch.cat((cdf, torch.ones(1))) - torch.cat((torch.zeros(1), cdf))
    assert_counts(torch.bincount(torch.bucketize(out[:, 0], cells), minlength=22), probabilities, what="mixture")


def test_conditions():
    """E(x | y) of a joint Gaussian; a y for each chain follows it into replicas and candidates."""
    joint = MultivariateNormal(torch.zeros(3, dtype=torch.float64), precision_matrix=torch.eye(3, dtype=torch.float64) + 0.2)

    def energy(x: Tensor, y: Tensor) -> Tensor:
        return -joint.log_prob(torch.cat((x, y.to(x.dtype).reshape(-1, 1)), 1))

    y = torch.linspace(-2, 2, 50, dtype=torch.float64)
    torch.testing.assert_close(condition(energy, y)(X), energy(X, y))
    torch.testing.assert_close(condition(energy, 1.5)(X), energy(X, torch.full((50,), 1.5)))
    torch.testing.assert_close(condition(energy, torch.tensor([1.5]))(X), energy(X, torch.full((50,), 1.5)))
    torch.testing.assert_close(condition(energy, y)(X.repeat_interleave(3, 0)), energy(X, y).repeat_interleave(3))
    tempering = ParallelTempering(Langevin(0.01), (1.0, 2.0))
    whole = tempering(condition(energy, y), X, 5, seed=Key(4))
    assert_same_bits(tempering(condition(energy, y[10:20]), X[10:20], 5, seed=Key(4, first_chain=10)), whole[10:20])

    class Flow:
        def log_prob(self, x, y):
            return -energy(x, y)

    torch.testing.assert_close(condition(Flow(), y)(X), energy(X, y))
    with pytest.raises(ValueError, match="condition: the rows of x must be a multiple of the 50 of y, got 7"):
        condition(energy, y)(X[:7])
    with pytest.raises(ValueError, match="condition: y must have one row or more"):
        condition(energy, y[:0])


# Free functions


def test_maps_of_free_functions():
    f = torch.linspace(-5.0, 5.0, 11, dtype=torch.float64)[:, None]
    f = f[f[:, 0] != 0]
    for map, g in (("square", torch.square), ("exp", torch.exp), ("abs", torch.abs), ("softplus", nn.functional.softplus)):
        energy = non_negative(lambda x: x[:, 0], map)
        torch.testing.assert_close(energy(f), -g(f[:, 0]).log())
        value, grad = energy_and_grad(energy, f)
        torch.testing.assert_close(grad, torch.autograd.functional.jacobian(lambda x, g=g: -g(x[:, 0]).log().sum(), f))
        assert value.dtype == torch.float64
    assert_same_bits(non_negative(lambda x: x[:, 0])(f), non_negative(lambda x: x[:, 0], "softplus")(f))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_are_finite_wherever_the_function_is(dtype):
    f = torch.tensor([0.0, -0.0, 1e-40, -1e-30, 1e30, -1e30, -200.0, 200.0, -37.0, -36.9], dtype=dtype)[:, None]
    for map in ("square", "exp", "abs", "softplus"):
        value, grad = energy_and_grad(non_negative(lambda x: x[:, 0], map), f)
        assert bool(value.isfinite().all()), map
        assert bool(grad.isfinite().all()), map
    soft = non_negative(lambda x: x[:, 0])(f)
    assert float(soft[6]) == 200.0  # log(1 + e^f) = e^f there
    assert float(soft[5]) == float(-f[5, 0])
    torch.testing.assert_close(soft[8:].double(), -torch.log1p(f[8:, 0].double().exp()).log(), rtol=1e-6, atol=0)


# Discrete energies


def tanh_bits(x: Tensor) -> Tensor:
    return torch.tanh(x @ torch.linspace(-1.0, 2.0, x.shape[1], dtype=x.dtype)) + 0.3 * x[:, 0]


def test_discrete_compositions_have_exact_differences():
    """Where their parts have them: E(x) - E(x with a site changed), each written out."""
    states = spins(4).reshape(-1, 2, 2)
    first, second = Ising.lattice((2, 2), 0.7, 0.3, periodic=False).double(), Ising.lattice((2, 2), -0.4, 0.1, periodic=False).double()
    cases = {
        "product": product(first, second),
        "negation": product(temper(first, 0.5), negate(second, 0.8)),
        "mixture": mixture((1.0, 2.0), [first, second]),
        "nested": temper(mixture((1.0, 2.0), [first, product(second, first)]), 1.5),
    }
    for name, energy in cases.items():
        assert energy.alphabet == first.alphabet
        value, differences = energy_and_differences(energy, states)
        torch.testing.assert_close(value, energy(states), msg=name)
        for site in range(4):
            changed = states.flatten(1).clone()
            changed[:, site] *= -1
            torch.testing.assert_close(differences[:, site], (energy(states) - energy(changed.reshape(states.shape))), msg=name)
    q = 3
    tokens = torch.tensor(list(itertools.product(range(q), repeat=3)))
    potts = Potts([(0, 1), (1, 2)], q, torch.tensor([0.5, -0.8], dtype=torch.float64))
    linear = OneHot(lambda o: (o * torch.linspace(-1, 1, q, dtype=torch.float64)).flatten(1).sum(1), q, torch.float64)  # first order is exact
    for name, energy in {"sum": product(potts, negate(linear)), "mixture": mixture((1.0, 1.0), [potts, linear])}.items():
        value, differences = energy_and_differences(energy, tokens.to(torch.uint8))
        torch.testing.assert_close(value, energy(tokens.to(torch.uint8)), msg=name)
        for site, c in itertools.product(range(3), range(q)):
            changed = tokens.clone()
            changed[:, site] = c
            expected = torch.where(tokens[:, site] == c, -torch.inf, energy(tokens) - energy(changed))
            torch.testing.assert_close(differences[:, site, c], expected, msg=name)


@pytest.mark.parametrize("sampler", [Gibbs(), GibbsWithGradients()], ids=repr)
def test_a_network_an_rbm_and_a_distribution_together(sampler):
    """Bits under a product of a torch energy, an RBM and a Bernoulli law: from exact draws, counts stay at the enumerated law."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rbm = BernoulliRBM(4, 3).double()
    nn.init.normal_(rbm.weight, generator=torch.Generator().manual_seed(1))
    law = Independent(Bernoulli(probs=torch.tensor([0.2, 0.5, 0.7, 0.4], dtype=torch.float64)), 1)
    parts = [count_evaluations(tanh_bits), count_evaluations(rbm), count_evaluations(lambda x: -law.log_prob(x))]
    energy = product(*parts)
    states = (torch.arange(16)[:, None] // 2 ** torch.arange(4) % 2).double()
    probabilities = exact_distribution(product(tanh_bits, rbm, law), (4,))
    torch.testing.assert_close(probabilities, torch.softmax((-tanh_bits(states) - rbm(states).detach() + law.log_prob(states)), 0))
    x = states[torch.multinomial(probabilities, 20_000, replacement=True, generator=torch.Generator().manual_seed(2))]
    for part in parts:
        part.num_evaluations = 0
    out = sampler(energy, x, 5, seed=Key(5))
    assert_counts(torch.bincount((out @ torch.tensor([1.0, 2, 4, 8], dtype=torch.float64)).long(), minlength=16), probabilities, what=f"{sampler}")
    assert {part.num_evaluations for part in parts} == {1 + 5 * (4 if isinstance(sampler, Gibbs) else 1)}


def test_tempered_ising_models_stay_native():
    energy = Ising.lattice((4, 4), 0.4, 0.1)
    x = ops.rademacher((20, 4, 4), key=Key(1)).to(torch.int8)
    cold, hot = temper(energy, 0.5), Ising.lattice((4, 4), 0.8, 0.2)
    for sampler in (Gibbs("checkerboard"), GibbsWithGradients(), SwendsenWang()):
        target = hot if not isinstance(sampler, SwendsenWang) else Ising.lattice((4, 4), 0.8, 0.2)
        assert_same_bits(sampler(cold, x, 5, seed=Key(2)), sampler(target, x, 5, seed=Key(2)))
        assert_same_bits(sampler(temper(cold, 2.0), x, 5, seed=Key(2)), sampler(energy, x, 5, seed=Key(2)))
    with torch.no_grad():
        energy.coupling.mul_(0.5)  # live
    assert_same_bits(Gibbs()(cold, x, 5, seed=Key(2)), Gibbs()(Ising.lattice((4, 4), 0.4, 0.2), x, 5, seed=Key(2)))
    tempering = ParallelTempering(Gibbs("checkerboard"), (1.0, 2.0))
    assert tempering(cold, x, 5, seed=Key(2)).shape == x.shape


def test_transitions_of_a_mixture_of_ising_models():
    """Raster Gibbs on one spin at a time by evaluation: one site's conditional law, exactly."""
    first, second = Ising([(0, 1)], 1.2, 0.4).double(), Ising([(0, 1)], -0.9, -0.2).double()
    energy = mixture((1.0, 3.0), [first, second])
    states = spins(2)
    p = torch.softmax(-energy(states).detach(), 0)
    torch.testing.assert_close(exact_distribution(energy, (2,)), p)
    counts = transition_matrix(Gibbs("random"), energy, states, num_chains=20_000, seed=1)
    for k in range(4):
        row = torch.zeros(4, dtype=torch.float64)
        for site in (0, 1):
            other = k ^ (1 << site)
            row[other] += 0.5 * p[other] / (p[k] + p[other])
            row[k] += 0.5 * p[k] / (p[k] + p[other])
        assert_counts(counts[k], row, what=f"from state {k}")


# Modules


def test_parts_train_move_and_are_copied_with_the_whole():
    network = Network(2)
    energy = product(network, mixture((1.0, 1.0), [MODEL, non_negative(network)]), negate(quartic))
    names = {id(p) for p in energy.parameters()}
    assert names == {id(p) for p in network.parameters()}
    energy.eval()
    assert not network.training
    twin = copy.deepcopy(energy).double()
    assert next(network.parameters()).dtype == torch.float32
    assert next(twin.parameters()).dtype == torch.float64
    value = energy.double()(X)
    value.sum().backward()
    assert all(p.grad is not None for p in network.first.parameters())
    picklable = product(network, MODEL)
    torch.testing.assert_close(pickle.loads(pickle.dumps(picklable))(X), picklable(X))
    assert "negate" in repr(energy)
    MALA(0.01)(energy, X, 3, seed=1)
    assert evaluate(product(*[quadratic] * 3), X.float()).dtype == torch.float32


def test_what_they_refuse():
    for call, error, match in (
        (lambda: product(), ValueError, r"product: there must be one energy or more, got \(\)"),
        (lambda: product(quartic, 3), TypeError, "product: model must be callable or have log_prob, got int"),
        (lambda: temper(quartic, 0.0), ValueError, "temper: temperature must be a finite number > 0, got 0.0"),
        (lambda: temper(quartic, -1), ValueError, "temper: temperature"),
        (lambda: temper(quartic, math.inf), ValueError, "temper: temperature"),
        (lambda: temper(quartic, "1"), TypeError, "temper: temperature must be a number"),
        (lambda: temper("x", 1.0), TypeError, "temper: model"),
        (lambda: negate(quartic, 0.0), ValueError, "negate: weight must be a finite number > 0, got 0.0"),
        (lambda: negate(quartic, math.nan), ValueError, "negate: weight"),
        (lambda: mixture((1.0,), [quartic, quartic]), ValueError, r"mixture: weights must be 2 numbers, one for each energy, got \(1.0,\)"),
        (lambda: mixture(1.0, [quartic]), ValueError, "mixture: weights must be 1 numbers"),
        (lambda: mixture((1.0, 0.0), [quartic, quartic]), ValueError, r"mixture: weights\[1\] must be a finite number > 0, got 0.0"),
        (lambda: mixture((1.0, math.inf), [quartic, quartic]), ValueError, r"mixture: weights\[1\] must be a finite number > 0, got inf"),
        (lambda: mixture((1.0, 1.0), [quartic, quartic], [0.0, math.nan]), ValueError, r"mixture: log_z\[1\] must be a finite number, got nan"),
        (lambda: mixture((1.0,), [quartic], (1.0, 2.0)), ValueError, "mixture: log_z must be 1 numbers"),
        (lambda: mixture((), []), ValueError, r"mixture: there must be one energy or more, got \[\]"),
        (lambda: mixture((1.0,), quartic), ValueError, "mixture: there must be one energy or more"),
        (lambda: non_negative(quartic, "cube"), ValueError, "non_negative: map must be one of square, exp, abs, softplus, got 'cube'"),
        (lambda: non_negative(3), TypeError, "non_negative: model must be callable"),
        (lambda: condition(3, 1), TypeError, "condition: model must be callable"),
        (lambda: product(Ising([(0, 1)], 1.0), Potts([(0, 1)], 3, 1.0)), ValueError, "product: all energies must be of one alphabet"),
        (lambda: product(quartic, lambda x: x)(X), ValueError, r"product: a part must return a floating tensor of shape \(50,\)"),
        (lambda: mixture((1.0,), [lambda x: x.sum(1, keepdim=True)])(X), ValueError, "mixture: a part must return a floating tensor"),
        (lambda: temper(lambda x: x.sum(1).long(), 2.0)(X), ValueError, "temper: a part must return a floating tensor"),
        (lambda: non_negative(lambda x: 1.0)(X), ValueError, r"non_negative: a part must return a floating tensor of shape \(50,\).*got float"),
    ):
        with pytest.raises(error, match=match):
            call()
    mixed = product(Ising([(0, 1)], 1.0), lambda x: x.float().sum(1))
    x = torch.ones(3, 2, dtype=torch.int8)
    assert Gibbs()(mixed, x, 2, seed=1).shape == (3, 2)
    with pytest.raises(TypeError, match="product: each energy must have an alphabet where one is of spin states"):
        GibbsWithGradients()(mixed, x, 2, seed=1)
