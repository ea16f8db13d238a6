"""Sliced score matching (Song et al. 2019, eq. 7-8) and its finite-difference form (Pang et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebmcore.gradients import as_energy
from ebmcore.losses.batch import check_batch, finite_mean
from ebmcore.trace.linearization import linearize, outside_inference_mode
from ebmcore.trace.probes import ProbeLaw, Probes
from ebmcore.types import Key


@outside_inference_mode
def sliced_score_matching(
    model: Callable[[Tensor], Tensor] | Any,
    x: Tensor,
    *,
    num_probes: int = 1,
    probe: ProbeLaw | Tensor = "rademacher",
    variance_reduced: bool = True,
    key: Key | None = None,
) -> Tensor:
    """mean ½ |s|² + vᵀ∇s v over rows and probes; without `variance_reduced` ½ (v·s)² stands for ½ |s|².

    Both have the expectation of `score_matching`, as every law of `probe` has E vvᵀ = 1. The variance-reduced form leaves the noise of
    the first term out and costs nothing more.

    Args:
        model: the score s as a function (n, *event) -> (n, *event); or an energy (n, *event) -> (n,), of which s = -∇E; or anything with
            `log_prob`.
        x: (n, *event), float32 or float64.
        num_probes: probes for each row, at least 1.
        probe: "rademacher", "gaussian", "sphere" (of radius √d) or "orthogonal"; or the probes, (num_probes, n, *event).
        variance_reduced: whether ½ |s|² is exact.
        key: of the probes (stream PROBE). None draws a seed from torch's default generator, so that each call has new probes.

    Returns:
        A scalar in x's dtype, attached to the graph of the parameters.

    Raises:
        TypeError, ValueError: an argument is not as above, or the model returns neither energies nor scores.
        DivergenceError: the loss is NaN or infinite at some rows of x; `chains` are these (reads from the device).

    Warns:
        UserWarning: the Hessian of the energy is exactly zero everywhere, as with ReLU: nothing bends the energy at the data.
    """
    caller = "sliced_score_matching"
    check_batch(x, "x", caller)
    probes = Probes(x, num_probes, probe, key, caller)
    linear = linearize(model, x, caller)
    products = linear.quadratic_forms(probes)
    square = linear.field.reshape(len(x), -1).square().sum(1) if variance_reduced else probes.dot(linear.field).square()
    values = 0.5 * square - products if linear.is_energy else 0.5 * square + products
    return finite_mean(values.mean(0), caller)


def finite_difference_score_matching(
    model: Callable[[Tensor], Tensor] | Any,
    x: Tensor,
    *,
    epsilon: float = 0.1,
    num_probes: int = 1,
    probe: ProbeLaw | Tensor = "rademacher",
    key: Key | None = None,
) -> Tensor:
    """Sliced score matching without a derivative in x, to second order in `epsilon`.

    For an energy, with E₊ = E(x + εv) and E₋ = E(x - εv), the mean of ½ ((E₊ - E₋) / 2ε)² - (E₊ + E₋ - 2E) / ε²: sliced score matching
    without variance reduction. For a score function the mean of ½ |s(x)|² + v·(s(x + εv) - s(x - εv)) / 2ε: the variance-reduced form.
    The 1 + 2 · num_probes points of a row are evaluated in one call.

    The displacement is |εv| = ε√d. Rounding grows as E has it fall: float32 energies carry an error of about 1e-7 · |E| / ε². As only the
    values of E count, energies of ReLU networks bend at their kinks.

    Args:
        model: an energy (n, *event) -> (n,), a score function (n, *event) -> (n, *event), or anything with `log_prob`.
        x: (n, *event), float32 or float64.
        epsilon: ε, finite and > 0, in units of x.
        num_probes, probe, key: as for `sliced_score_matching`.

    Returns:
        A scalar, attached to the graph of the parameters.

    Raises:
        TypeError, ValueError: an argument is not as above, or the model returns neither energies nor scores.
        DivergenceError: the loss is NaN or infinite at some rows of x; `chains` are these (reads from the device).
    """
    caller = "finite_difference_score_matching"
    check_batch(x, "x", caller)
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"{caller}: epsilon must be finite and > 0, got {epsilon}")
    probes = Probes(x, num_probes, probe, key, caller)
    v = probes.vectors()
    points = torch.cat((x[None], x + epsilon * v, x - epsilon * v)).flatten(0, 1)
    value = as_energy(model, caller)(points)
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{caller}: model must return a float32 or float64 tensor, as fewer digits leave nothing of a difference, got {got}")
    if value.shape == points.shape[:1] and x.dim() > 1:
        here, above, below = value.reshape(-1, len(x)).split((1, len(v), len(v)))
        slopes = (above - below) / (2 * epsilon)
        bends = ((above - here) - (here - below)) / epsilon**2
        return finite_mean((0.5 * slopes.square() - bends).mean(0), caller)
    if value.shape == points.shape:
        here, above, below = value.reshape(-1, *x.shape).split((1, len(v), len(v)))
        products = probes.dot((above - below) / (2 * epsilon))
        return finite_mean(0.5 * here[0].reshape(len(x), -1).square().sum(1) + products.mean(0), caller)
    want = f"({len(points)},) or {tuple(points.shape)}"
    raise ValueError(f"{caller}: model must return shape {want} for x of shape {tuple(points.shape)}, got {tuple(value.shape)}")
