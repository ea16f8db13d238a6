"""Energies by formula: values, gradients, log Z and exact draws against what is written out here, quadrature and the truths."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ebmcore import Key
from ebmcore.analytic_energy import LineLaw
from ebmcore.energies import Banana, DoubleWell, Funnel, Gaussian, GaussianMixture, Ring, Rosenbrock
from ebmcore.gradients import energy_and_grad
from support.planes import assert_plane_law
from support.statistics import assert_gaussian
from support.targets import assert_same_bits
from support.truths import truth

Array = np.ndarray[Any, Any]
DENSE = [[2.0, 0.5], [0.5, 1.0]]
MIXTURE = {"weights": [1.0, 0.5, 2.0], "means": [[-3.0, 0.0], [3.0, 1.0], [0.0, 4.0]]}
COVARIANCES = [[[1.0, 0.5], [0.5, 0.5]], [[0.3, 0.0], [0.0, 2.0]], [[1.0, -0.9], [-0.9, 1.0]]]


class Known(NamedTuple):
    """An energy of the plane, its formula in NumPy on (n, 2), and a box (low, high for both axes) outside of which there is next to nothing."""

    make: Callable[[], Any]
    formula: Callable[[Array, Array], Array]
    box: tuple[float, float, float, float]


def _mixture(stds: list[list[float]]) -> Callable[[Array, Array], Array]:
    def energy(x: Array, y: Array) -> Array:
        parts = zip(MIXTURE["weights"], MIXTURE["means"], stds, strict=True)
        total = sum(w * np.exp(-0.5 * ((x - m[0]) / s[0]) ** 2 - 0.5 * ((y - m[1]) / s[1]) ** 2) for w, m, s in parts)
        return np.asarray(-np.log(total))

    return energy


def _full_mixture(x: Array, y: Array) -> Array:
    total = np.zeros_like(x)
    for w, m, c in zip(MIXTURE["weights"], MIXTURE["means"], COVARIANCES, strict=True):
        d = np.stack([x - m[0], y - m[1]], -1)
        total += w * np.exp(-0.5 * np.einsum("...i,ij,...j", d, np.linalg.inv(np.array(c)), d))
    return np.asarray(-np.log(total))


ISOTROPIC = [[0.5, 0.5], [1.0, 1.0], [0.75, 0.75]]
DIAGONAL = [[0.5, 1.5], [1.0, 0.3], [0.75, 0.75]]
KNOWN = {
    "gaussian diagonal": Known(
        lambda: Gaussian([1.0, -2.0], covariance=[4.0, 0.25]), lambda x, y: 0.5 * ((x - 1) ** 2 / 4 + (y + 2) ** 2 / 0.25), (-19, 21, -7, 3)
    ),
    "gaussian full": Known(
        lambda: Gaussian([1.0, -2.0], precision=DENSE),
        lambda x, y: 0.5 * (2 * (x - 1) ** 2 + (x - 1) * (y + 2) + (y + 2) ** 2),
        (-8, 10, -14, 10),
    ),
    "mixture": Known(lambda: GaussianMixture(**MIXTURE, std=[0.5, 1.0, 0.75]), _mixture(ISOTROPIC), (-8, 13, -9, 12)),
    "mixture diagonal": Known(lambda: GaussianMixture(**MIXTURE, std=DIAGONAL), _mixture(DIAGONAL), (-8, 13, -15, 15)),
    "mixture full": Known(lambda: GaussianMixture(**MIXTURE, covariances=COVARIANCES), _full_mixture, (-14, 12, -14, 14)),
    "double well": Known(lambda: DoubleWell(3.0, 1.5, dim=2), lambda x, y: 3 * (x**2 - 2.25) ** 2 + 3 * (y**2 - 2.25) ** 2, (-2.6, 2.6, -2.6, 2.6)),
    "rosenbrock": Known(lambda: Rosenbrock(0.5, 5.0), lambda x, y: (0.5 - x) ** 2 + 5 * (y - x * x) ** 2, (-6, 7, -4, 51)),
    "funnel": Known(lambda: Funnel(2, 0.6), lambda x, y: x * x / 0.72 + 0.5 * y * y * np.exp(-x) + 0.5 * x, (-4.8, 4.8, -60, 60)),
    "ring": Known(lambda: Ring(2.0, 0.3), lambda x, y: (np.hypot(x, y) - 2) ** 2 / 0.18, (-5, 5, -5, 5)),
    "banana": Known(lambda: Banana(1.0, 0.5, 0.7), lambda x, y: x * x / 2 + (y - x * x / 2) ** 2 / 0.98, (-8, 8, -6, 38)),
}


def _points(n: int = 200) -> Tensor:
    return 2 * torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", KNOWN)
def test_energy_is_its_formula(name: str) -> None:
    energy, x = KNOWN[name].make(), _points()
    expected = torch.from_numpy(KNOWN[name].formula(x[:, 0].numpy(), x[:, 1].numpy()))
    torch.testing.assert_close(energy(x), expected, rtol=1e-12, atol=1e-12)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 2e-6)):
        y = x.to(dtype)
        value = energy(y)
        assert value.dtype == torch.float32
        exact = energy(y.double())
        torch.testing.assert_close(value.double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()) / 10)


@pytest.mark.parametrize("name", KNOWN)
def test_gradient_exists_twice(name: str) -> None:
    energy, x = KNOWN[name].make(), _points(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: energy(y).sum(), x)
    assert torch.autograd.gradgradcheck(lambda y: energy(y).sum(), x)


@pytest.mark.parametrize("name", KNOWN)
def test_log_z_is_the_integral(name: str) -> None:
    energy = KNOWN[name].make()
    a, b, c, d = KNOWN[name].box
    n = 2001
    x, y = torch.linspace(a, b, n, dtype=torch.float64), torch.linspace(c, d, n, dtype=torch.float64)
    total = sum(float((-energy(torch.cartesian_prod(part, y))).exp().sum()) for part in x.split(500))
    assert energy.log_z == pytest.approx(math.log(total * float(x[1] - x[0]) * float(y[1] - y[0])), abs=1e-6)


@pytest.mark.parametrize("name", KNOWN)
def test_draws_have_the_law(name: str) -> None:
    energy = KNOWN[name].make()
    draws = energy.sample(200_000, key=Key(3), dtype=torch.float64)
    assert draws.shape == (200_000, 2)
    assert_plane_law(energy, draws, what=name)


def test_quantiles_along_a_line() -> None:
    law = LineLaw(lambda t: 0.5 * t.square() + 3.0, -9.0, 9.0)
    assert law.log_z == pytest.approx(0.5 * math.log(2 * math.pi) - 3.0, abs=1e-13)
    u = torch.linspace(1e-6, 1 - 1e-6, 10_001, dtype=torch.float64)
    torch.testing.assert_close(law.quantile(u), torch.special.ndtri(u), rtol=1e-9, atol=1e-11)


def test_draws_of_many_elements() -> None:
    d = 5
    factor = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    covariance, mean = factor @ factor.T + 0.1 * torch.eye(d, dtype=torch.float64), torch.arange(d, dtype=torch.float64)
    for energy in (Gaussian(mean, covariance=covariance), Gaussian(mean, precision=torch.linalg.inv(covariance))):
        assert_gaussian(energy.sample(20_000, key=Key(4), dtype=torch.float64), mean, covariance, what="full")
        assert energy.log_z == pytest.approx(0.5 * d * math.log(2 * math.pi) + 0.5 * float(torch.logdet(covariance)), abs=1e-10)
    mixture = GaussianMixture([2.0], mean[None], covariances=covariance[None])
    assert_gaussian(mixture.sample(20_000, key=Key(4), dtype=torch.float64), mean, covariance, what="mixture of one")
    funnel = Funnel(4, 2.0).sample(20_000, key=Key(5), dtype=torch.float64)
    white = torch.cat((funnel[:, :1] / 2, funnel[:, 1:] * (-0.5 * funnel[:, :1]).exp()), 1)
    assert_gaussian(white, torch.zeros(4), torch.eye(4), what="funnel")


def test_truths() -> None:
    seen = set()
    for target in truth("ais_targets")["targets"]:
        p = target["params"]
        seen.add(target["name"])
        if target["name"] == "gmm2d":
            energy: Any = GaussianMixture(p["weights"], p["means"], std=p["stds"])
            assert energy.component_probs.tolist() == pytest.approx(target["component_probs"], abs=1e-12)
        elif target["name"] == "ring":
            energy = Ring(p["r"], p["s"])
        elif target["name"] == "banana":
            energy = Banana(p["a"], p["b"], p["c"])
        elif target["name"] == "funnel":
            energy = Funnel(p["d"], 3.0)
        else:
            energy = DoubleWell(1 / p["T"], 1.0, dim=1)
            assert energy.log_z + 0.5 * math.log(2 * math.pi) == pytest.approx(target["lnZ"], abs=1e-11)
            continue
        assert energy.log_z == pytest.approx(target["lnZ"], abs=1e-11)
    assert seen == {"gmm2d", "ring", "banana", "dblwell2d", "funnel"}


@pytest.mark.parametrize(("height", "b"), [(1e-3, 0.1), (2.0, 1.0), (1e10, 2.0), (0.5, 1e3)])
def test_double_well_of_any_shape(height: float, b: float) -> None:
    """Against the closed form with Bessel functions, and, where the wells are narrow, against Laplace's."""
    energy = DoubleWell(height, b, dim=3)
    if height * b**4 > 1e6:
        assert energy.log_z / 3 == pytest.approx(math.log(2 * math.sqrt(2 * math.pi / (8 * height * b * b))), abs=1e-5)
    else:
        special = pytest.importorskip("scipy.special")
        z = height * b**4 / 2
        expected = math.log(math.pi * b / 2 * (special.ive(-0.25, z) + special.ive(0.25, z)))
        assert energy.log_z / 3 == pytest.approx(expected, abs=1e-11)
    draws = energy.sample(1000, key=Key(0), dtype=torch.float64)
    assert draws.isfinite().all()
    assert (draws > 0).any()
    assert (draws < 0).any()


def test_weights_are_heights_and_probs_are_probabilities() -> None:
    means = [[0.0, 0.0], [9.0, 9.0]]
    assert GaussianMixture([1.0, 1.0], means, std=[1.0, 2.0]).component_probs.tolist() == pytest.approx([0.2, 0.8])
    for kwargs in ({"std": [1.0, 2.0]}, {"covariances": torch.eye(2) * torch.tensor([1.0, 4.0])[:, None, None]}):
        mixture = GaussianMixture.from_probs([0.3, 0.7], means, **kwargs)
        assert mixture.component_probs.tolist() == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize("energy", [DoubleWell(), Gaussian(torch.zeros(6), precision=torch.ones(6)), Rosenbrock(dim=6), Funnel(6)])
def test_any_event_shape(energy: Any) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    value, grad = energy_and_grad(energy, x)
    for event in [(2, 3), (1, 6), (3, 1, 2)]:
        other, other_grad = energy_and_grad(energy, x.reshape(4, *event))
        assert torch.equal(other, value)
        assert torch.equal(other_grad.flatten(1), grad)
    assert energy(x[:0]).shape == (0,)
    assert DoubleWell()(x[:, 0]).shape == (4,)


def test_ring_is_flat_at_its_centre() -> None:
    value, grad = energy_and_grad(Ring(2.0, 0.5), torch.zeros(1, 2))
    assert value.item() == 8.0
    assert torch.equal(grad, torch.zeros(1, 2))


@pytest.mark.parametrize("name", KNOWN)
def test_draws_do_not_depend_on_the_batch(name: str, untouched_generator: None) -> None:
    energy, key = KNOWN[name].make(), Key(7, first_chain=5)
    whole = energy.sample(10, key=key)
    assert whole.dtype == torch.float32
    assert_same_bits(torch.cat((energy.sample(4, key=key), energy.sample(6, key=key.shard(4)))), whole, name)


@pytest.mark.parametrize("name", KNOWN)
def test_copies_and_files(name: str) -> None:
    energy, x = KNOWN[name].make(), _points(3)
    for other in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        assert_same_bits(other(x), energy(x), name)
        assert other.log_z == energy.log_z
    assert not list(energy.parameters())


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ValueError, lambda: Gaussian([0.0]), "Gaussian: exactly one of precision and covariance must be given"),
        (ValueError, lambda: Gaussian([0.0], precision=[1.0, 2.0]), r"Gaussian: precision must have shape \(1,\) or \(1, 1\), got \(2,\)"),
        (ValueError, lambda: Gaussian([0.0], precision=[0.0]), r"Gaussian: precision must be > 0, got \[0.0\]"),
        (ValueError, lambda: Gaussian([0.0, 0.0], covariance=[[1.0, 2.0], [2.0, 1.0]]), "Gaussian: covariance must be positive definite"),
        (ValueError, lambda: Gaussian([0.0, 0.0], covariance=[[1.0, 0.5], [0.4, 1.0]]), "Gaussian: covariance must be symmetric"),
        (ValueError, lambda: Gaussian([math.nan], precision=[1.0]), r"Gaussian: mean must be finite, got \[nan\]"),
        (TypeError, lambda: Gaussian("x", precision=[1.0]), "Gaussian: mean must be a tensor or numbers, got 'x'"),
        (ValueError, lambda: Gaussian([], precision=[]), "Gaussian: mean must have 1 axes and not be empty"),
        (ValueError, lambda: GaussianMixture([1.0, -1.0], [[0.0], [1.0]], std=1.0), "GaussianMixture: weights must be > 0"),
        (ValueError, lambda: GaussianMixture([1.0, math.inf], [[0.0], [1.0]], std=1.0), "GaussianMixture: weights must be finite"),
        (ValueError, lambda: GaussianMixture([1.0], [[0.0], [1.0]], std=1.0), r"GaussianMixture: means must have shape \(1, dim\), got \(2, 1\)"),
        (ValueError, lambda: GaussianMixture([1.0], [[0.0]]), "GaussianMixture: exactly one of std and covariances"),
        (ValueError, lambda: GaussianMixture([1.0], [[0.0]], std=[0.0]), "GaussianMixture: std must be > 0"),
        (ValueError, lambda: GaussianMixture([1.0], [[0.0, 1.0]], std=[1.0, 1.0]), r"GaussianMixture: std must have shape \(\), \(1,\) or \(1, 2\)"),
        (ValueError, lambda: DoubleWell(0.0), "DoubleWell: height must be a finite number > 0, got 0.0"),
        (TypeError, lambda: DoubleWell(dim=2.0), "DoubleWell: dim must be an int >= 1, got 2.0"),  # type: ignore[arg-type]
        (ValueError, lambda: DoubleWell().log_z, "DoubleWell.log_z: needs the number of elements of an event: give dim, got None"),
        (ValueError, lambda: Rosenbrock(dim=3).log_z, "Rosenbrock.log_z: is known for dim = 2 only, got dim = 3"),
        (ValueError, lambda: Rosenbrock(dim=1), "Rosenbrock: dim must be an int >= 2, got 1"),
        (ValueError, lambda: Funnel(1), "Funnel: dim must be an int >= 2, got 1"),
        (ValueError, lambda: Ring(-1.0), "Ring: radius must be a finite number >= 0, got -1.0"),
        (ValueError, lambda: Banana(width=0.0), "Banana: width must be a finite number > 0, got 0.0"),
        (ValueError, lambda: Ring()(torch.zeros(3, 3)), r"Ring: x must have shape \(num_chains, \*event\) with 2 elements an event, got \(3, 3\)"),
        (TypeError, lambda: Ring()(torch.zeros(3, 2).long()), "Ring: x must be a floating-point tensor, got torch.int64"),
        (ValueError, lambda: DoubleWell()(torch.zeros(3, 0)), "DoubleWell: x must have shape .* at least one element"),
        (ValueError, lambda: Ring().sample(-1, key=Key(0)), "Ring.sample: num must be an int >= 0, got -1"),
        (TypeError, lambda: Ring().sample(2, key=0), "Ring.sample: key must be an ebmcore.Key"),  # type: ignore[arg-type]
    ],
)
def test_errors_name_function_argument_wanted_and_got(error: type[Exception], make: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
