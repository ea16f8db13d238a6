"""Quadrature against closed forms, and its refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ebmcore.energies import Banana, DoubleWell, Funnel, GaussianMixture, Ring
from ebmcore.evaluation import exact_log_z
from support.truths import truth

EVERYWHERE = (-math.inf, math.inf)


TARGETS = {
    "gmm2d": lambda p: GaussianMixture(p["weights"], p["means"], std=p["stds"]),
    "ring": lambda p: Ring(p["r"], p["s"]),
    "banana": lambda p: Banana(p["a"], p["b"], p["c"]),
    "dblwell2d": lambda p: lambda x: (x[:, 0] ** 2 - 1) ** 2 / p["T"] + x[:, 1] ** 2 / 2,
    "funnel": lambda p: Funnel(p["d"]),
}


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("bounds", [EVERYWHERE, (-40.0, 40.0)])
def test_targets(index, bounds):
    case = truth("ais_targets")["targets"][index]
    if case["name"] == "funnel" and bounds != EVERYWHERE:
        pytest.skip("its tails reach further")
    assert exact_log_z(TARGETS[case["name"]](case["params"]), (2,), bounds=bounds) == pytest.approx(case["lnZ"], abs=1e-9)


def test_log_z_of_the_room():
    energy = DoubleWell(dim=1)
    assert exact_log_z(energy, (1,), bounds=EVERYWHERE) == pytest.approx(energy.log_z, abs=1e-10)


def test_three_dimensions():
    def energy(x: Tensor) -> Tensor:
        return (x.flatten(1) - 1).square() @ torch.tensor([0.5, 2.0, 0.125], dtype=torch.float64)

    assert exact_log_z(energy, (3, 1), bounds=(-15.0, 15.0)) == pytest.approx(1.5 * math.log(2 * math.pi), abs=1e-9)
    assert exact_log_z(energy, (3,), bounds=EVERYWHERE, tolerance=1e-3) == pytest.approx(1.5 * math.log(2 * math.pi), abs=1e-3)


def test_sides():
    """Half-infinite, finite and different ones, in the order of the event."""
    assert exact_log_z(lambda x: x[:, 0], (1,), bounds=(2.0, math.inf)) == pytest.approx(-2, abs=1e-10)
    assert exact_log_z(lambda x: -2 * x[:, 0], (1,), bounds=(-math.inf, 0.0)) == pytest.approx(-math.log(2), abs=1e-10)
    assert exact_log_z(lambda x: 0 * x[:, 0], (1,), bounds=(-1, 4)) == pytest.approx(math.log(5), abs=1e-12)
    value = exact_log_z(lambda x: x[:, 0] + 0 * x[:, 1], (2,), bounds=[(0.0, math.inf), (0.0, 3.0)])
    assert value == pytest.approx(math.log(3), abs=1e-10)


def test_walls_and_small_scales():
    inside = exact_log_z(lambda x: torch.where(x[:, 0] > 0.3, 0.0, math.inf), (1,), bounds=(-1.0, 1.0), tolerance=1e-8)
    assert inside == pytest.approx(math.log(0.7), abs=1e-7)
    small = exact_log_z(lambda x: 0.5 * (x[:, 0] / 1e-3).square(), (1,), bounds=EVERYWHERE)
    assert small == pytest.approx(0.5 * math.log(2 * math.pi * 1e-6), abs=1e-10)
    assert exact_log_z(lambda x: 0.5 * x[:, 0].square() + 1e6, (1,), bounds=EVERYWHERE) == pytest.approx(0.5 * math.log(2 * math.pi) - 1e6, abs=1e-8)


def test_parameters_of_float32():
    class Normal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.precision = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return 0.5 * x.square() @ self.precision

    energy = Normal()
    assert exact_log_z(energy, (2,), bounds=EVERYWHERE) == pytest.approx(math.log(2 * math.pi), abs=1e-5)
    assert energy.precision.grad is None


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "with bounds, event_shape must have 1 to 3 elements, got 4", {"event_shape": (2, 2)}),
        (ValueError, r"bounds must have low < high, got \(1.0, 0.0\)", {"bounds": (1.0, 0.0)}),
        (ValueError, r"bounds must have low < high, got \(0.0, nan\)", {"bounds": (0.0, math.nan)}),
        (ValueError, r"bounds must be \(low, high\), or 2 such pairs, got shape \(3, 2\)", {"bounds": [(0, 1)] * 3}),
        (TypeError, r"bounds must be \(low, high\), or one such pair for each dimension, got 'wide'", {"bounds": "wide"}),
        (ValueError, "tolerance must be a finite number > 0, got 0.0", {"tolerance": 0.0}),
        (ValueError, r"energy must not be NaN or -inf, got nan at \[", {"energy": lambda x: x.sum(1) * math.nan}),
        (ValueError, r"energy must not be NaN or -inf, got -inf at \[", {"energy": lambda x: x.sum(1) * 0 - math.inf}),
        (ValueError, r"energy must be finite somewhere within the bounds, got \+inf at all of", {"energy": lambda x: x.sum(1) * 0 + math.inf}),
        (RuntimeError, "20000 points do not reach a relative error of 1e-10", {"max_states": 20_000}),
        (RuntimeError, "points do not reach a relative error of 1e-10", {"energy": lambda x: 0 * x[:, 0], "bounds": EVERYWHERE}),
    ],
)
def test_bad_input(error, match, arguments):
    settings = {"energy": lambda x: x.square().sum(1), "event_shape": (2,), "bounds": (-3.0, 3.0)} | arguments
    with pytest.raises(error, match="exact_log_z: .*" + match):
        exact_log_z(settings.pop("energy"), settings.pop("event_shape"), **settings)
