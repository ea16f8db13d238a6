"""tr J of a function's Jacobian, or of an energy's Hessian, for every chain: exact, or estimated from products with random vectors.

Hutchinson (1990); Hutch++: Meyer, Musco, Musco & Woodruff (2021, arXiv 2010.09649); XTrace: Epperly, Tropp & Webber (2024, arXiv 2301.07825).
On flat spectra Hutchinson's Rademacher probes are the best of them, on decaying ones the other two by far: they find the large part of the matrix
and estimate only the rest. Inside score matching, which can pay for a few products, that is Hutchinson with Rademacher probes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore.ops.registration import number
from ebmcore.trace.linearization import Linearization, linearize, outside_inference_mode
from ebmcore.trace.probes import ProbeLaw, Probes, flattened
from ebmcore.types import Key, bounded_int

_MIN_PROBES = 16  # before a standard error is believed: two Rademacher probes in two dimensions agree half of the time


class TraceEstimate(NamedTuple):
    """Traces, one a chain.

    Attributes:
        value: (num_chains,), in the dtype of x; attached to the graph where parameters or x want gradients.
        standard_error: (num_chains,), of value given f and x; 0 if it is exact, None if there was one probe. Detached.
        num_products: products with the Jacobian that were made for each chain; 0 where a formula needs none.
    """

    value: Tensor
    standard_error: Tensor | None
    num_products: int


@outside_inference_mode
def exact(f: Any, x: Tensor) -> TraceEstimate:
    """tr J exactly.

    Perceptrons (`energies.MLP`, `networks.ScoreMLP`, an nn.Sequential of Linear and elementwise activations) go by a formula: with one or two hidden
    layers of a function it costs less than one Hutchinson probe. Any other f costs a product for each element of an event.

    Args:
        f: (num_chains, *event) -> (num_chains, *event), whose Jacobian is meant, or an energy (num_chains, *event) -> (num_chains,), whose
            Hessian; or anything with log_prob, for the Hessian of -log p. Of x with shape (num_chains,) it is a function. Each chain's output must
            depend on that chain alone.
        x: (num_chains, *event), float32 or float64.

    Raises:
        TypeError: x is no float32 or float64 tensor, or f returns none.
        ValueError: f returns another shape or device, or does not depend on x.
        DivergenceError: f or a product is NaN or infinite; `chains` says where (reads from the device).
    """
    return _exact(linearize(f, x, "exact"), x)


@outside_inference_mode
def hutchinson(
    f: Any,
    x: Tensor,
    num_probes: int = 1,
    probe: ProbeLaw | Tensor = "rademacher",
    *,
    key: Key | None = None,
    tolerance: float | None = None,
    max_num_probes: int = 4096,
) -> TraceEstimate:
    """The mean of vᵀJv over random v (Hutchinson 1990), unbiased. Arguments f and x, and errors, as `exact`.

    Args:
        num_probes: at least 1; at most the dimension for "orthogonal", with as many as it is exact.
        probe: "rademacher", "gaussian", "sphere", "orthogonal" (see `draw_probes`), or vectors (num_probes, num_chains, *event) of one's own.
        key: probe p is drawn at its step + p, so the next call's key is key.advance(num_probes). None: fresh probes at every call, from a seed that
            torch's default generator gives.
        tolerance: > 0; at least 16 probes, and then twice as many again and again until the chain's standard error is below it. A chain's value then
            depends on its own probes alone, and is biased by its stopping rule, by less than its standard error.
        max_num_probes: where that ends, with a warning if a chain is not there yet.
    """
    linear = linearize(f, x, "hutchinson")
    return _hutchinson(linear, x, num_probes, probe, key=key, tolerance=tolerance, max_num_probes=max_num_probes)


@outside_inference_mode
def hutch_plus_plus(f: Any, x: Tensor, num_products: int, *, probe: ProbeLaw = "rademacher", key: Key | None = None) -> TraceEstimate:
    """Hutch++ (Meyer et al. 2021, algorithm 1): tr QᵀJQ over the range Q of J times a third of the probes, and Hutchinson for what is left.

    Unbiased. Arguments f and x, and errors, as `exact`; key as `hutchinson`. Gradients take Q as given, which leaves them unbiased.

    Args:
        num_products: at least 3; a third (rounded down) finds the range, a third goes through it, the others estimate the rest. At most three
            times the dimension.
        probe: law of all probes, as `hutchinson`.
    """
    num_products = bounded_int(num_products, "num_products", "hutch_plus_plus", low=3)
    linear = linearize(f, x, "hutch_plus_plus")
    d, size = x.shape[1:].numel(), num_products // 3
    if size > d:
        raise ValueError(f"hutch_plus_plus: num_products must be at most {3 * d + 2}, thrice the dimension, got {num_products}; `exact` costs {d}")
    num_rest = num_products - 2 * size
    probes = Probes(x, size + num_rest, probe, key, "hutch_plus_plus")
    return _hutch_plus_plus(linear, probes.vectors(0, size), probes.vectors(size))


@outside_inference_mode
def xtrace(f: Any, x: Tensor, num_products: int, *, probe: ProbeLaw = "sphere", key: Key | None = None) -> TraceEstimate:
    """XTrace (Epperly, Tropp & Webber 2024, section 2.3): each probe estimates what is left by the range that the others have found.

    Unbiased. The standard error is the paper's estimate (section 2.4), which takes the probes' estimates for independent: it was seen at 0.4 to 0.9
    of the true one, lowest on flat spectra and where a step in the spectrum is about to be found. A Jacobian of rank below num_products / 2 is found
    whole: its trace is exact. For evaluation: no gradient flows. Arguments f and x, and errors, as `exact`; key as `hutchinson`.

    Args:
        num_products: even, from 4 to twice the dimension: half as many probes, each with two products.
        probe: "sphere" and "gaussian" probes are scaled to what is expected of them in the space that is left (the paper's improvement).
    """
    num_products = bounded_int(num_products, "num_products", "xtrace", low=4)
    with torch.no_grad():
        linear = linearize(f, x, "xtrace")
        d = x.shape[1:].numel()
        if num_products % 2 or num_products > 2 * d:
            raise ValueError(f"xtrace: num_products must be even and at most {2 * d}, twice the dimension, got {num_products}; `exact` costs {d}")
        probes = Probes(x, num_products // 2, probe, key, "xtrace")
        return _xtrace(linear, probes.vectors(), is_rotation_invariant=probe in ("sphere", "gaussian"))


@outside_inference_mode
def function_value_and_trace(f: Any, x: Tensor, method: str = "hutchinson", **options: Any) -> tuple[Tensor, TraceEstimate]:
    """The field and the trace of its Jacobian from one forward pass: f(x) and tr ∂f/∂x; of an energy ∇E(x) and tr ∇²E(x).

    Args:
        f, x: as `exact`.
        method: "exact" or "hutchinson".
        options: of that function.

    Returns:
        The field, shaped as x, and a TraceEstimate; both attached to the graph where parameters or x want gradients.
    """
    methods: dict[str, Callable[..., TraceEstimate]] = {"exact": _exact, "hutchinson": _hutchinson}
    if method not in methods:
        raise ValueError(f"function_value_and_trace: method must be one of {', '.join(methods)}, got {method!r}")
    linear = linearize(f, x, "function_value_and_trace")
    estimate = methods[method](linear, x, **options)  # first: the field may come out of the same pass
    return linear.field, estimate


def _exact(linear: Linearization, x: Tensor) -> TraceEstimate:
    value = linear.trace()
    return TraceEstimate(value, torch.zeros_like(value), linear.num_products_of_trace)


def _hutchinson(
    linear: Linearization,
    x: Tensor,
    num_probes: int = 1,
    probe: ProbeLaw | Tensor = "rademacher",
    *,
    key: Key | None = None,
    tolerance: float | None = None,
    max_num_probes: int = 4096,
) -> TraceEstimate:
    if tolerance is None:
        probes = Probes(x, num_probes, probe, key, "hutchinson")
        return TraceEstimate(*_mean_and_error(linear.quadratic_forms(probes), probes), probes.num_probes)
    number(tolerance, "tolerance", "hutchinson", low=0.0, strict=True)
    max_num_probes = bounded_int(max_num_probes, "max_num_probes", "hutchinson", low=_MIN_PROBES)
    if isinstance(probe, Tensor) or probe == "orthogonal":
        raise ValueError("hutchinson: probe must be rademacher, gaussian or sphere with a tolerance: orthogonal or given ones cannot be added to")
    key = Key.from_seed(key, x.device)
    count = min(max(_MIN_PROBES, bounded_int(num_probes, "num_probes", "hutchinson", low=1)), max_num_probes)
    forms = linear.quadratic_forms(Probes(x, count, probe, key, "hutchinson"))
    value, error = _mean_and_error(forms, None)
    assert error is not None
    is_open = error > tolerance
    while bool(is_open.any()):
        if count >= max_num_probes:
            message = f"hutchinson: the standard error is above tolerance={tolerance:g} in {int(is_open.sum())} chains after {count} probes"
            warnings.warn(f"{message}, the largest is {float(error.max()):.3g}", RuntimeWarning, stacklevel=4)
            break
        total = min(2 * count, max_num_probes)
        forms = torch.cat((forms, linear.quadratic_forms(Probes(x, total, probe, key, "hutchinson"), count)))
        count = total
        new_value, new_error = _mean_and_error(forms, None)
        assert new_error is not None
        value, error = torch.where(is_open, new_value, value), torch.where(is_open, new_error, error)
        is_open = error > tolerance
    return TraceEstimate(value, error, count)


def _mean_and_error(forms: Tensor, probes: Probes | None) -> tuple[Tensor, Tensor | None]:
    """Of (num_probes, num_chains). The squares of orthogonal vectors sum to the trace: they are draws without replacement from d."""
    count = len(forms)
    if count == 1:
        return forms[0], None
    error = _standard_error(forms.detach())
    if probes is not None and probes.law == "orthogonal":
        error = error * math.sqrt(1 - count / probes.dimension)
    return forms.mean(0), error


def _standard_error(draws: Tensor) -> Tensor:
    """Of the means over the first axis."""
    return (draws - draws.mean(0)).square().sum(0).div(len(draws) * (len(draws) - 1)).sqrt()


def _columns(v: Tensor) -> Tensor:
    """(num_vectors, num_chains, *event) -> (num_chains, dimension, num_vectors)."""
    return flattened(v, 2).permute(1, 2, 0)


def _times(linear: Linearization, columns: Tensor, like: Tensor) -> Tensor:
    """The Jacobian, or its transpose, times the columns of every chain's matrix."""
    v = columns.permute(2, 0, 1).reshape(columns.shape[2], *like.shape[1:])
    return _columns(linear.products(v))


def _hutch_plus_plus(linear: Linearization, range_probes: Tensor, rest_probes: Tensor) -> TraceEstimate:
    with torch.no_grad():
        q = torch.linalg.qr(_columns(linear.products(range_probes).detach()))[0]
        rest = _columns(rest_probes)
        rest = rest - q @ (q.mT @ rest)
    products = _times(linear, torch.cat((q, rest), 2), rest_probes)
    size = q.shape[2]
    forms = (rest * products[:, :, size:]).sum(1)
    value = linear.checked((q * products[:, :, :size]).sum((1, 2)) + forms.mean(1))
    num_rest = forms.shape[1]
    error = _standard_error(forms.detach().T) if num_rest > 1 else None
    return TraceEstimate(value, error, 2 * size + num_rest)


def _xtrace(linear: Linearization, probes: Tensor, *, is_rotation_invariant: bool) -> TraceEstimate:
    """With Y = JΩ = QR, s_i the unit vector along column i of R⁻ᵀ: Q(I - s_i s_iᵀ) spans the columns of Y but the i-th."""
    omega = _columns(probes)
    d, m = omega.shape[1:]
    y = _columns(linear.products(probes))
    linear.checked(y.sum((1, 2)))
    q, r = torch.linalg.qr(y)
    z = _times(linear, q, probes)
    diagonal = r.diagonal(dim1=1, dim2=2).abs()
    is_deficient = diagonal.amin(1) <= d * torch.finfo(y.dtype).eps * diagonal.amax(1)
    eye = torch.eye(m, dtype=y.dtype, device=y.device)
    r_safe = torch.where(is_deficient[:, None, None], eye, r)
    s = torch.linalg.solve_triangular(r_safe.mT, eye.expand(len(y), m, m), upper=False)
    s = s / s.norm(dim=1, keepdim=True)
    h, w, t = q.mT @ z, q.mT @ omega, z.mT @ omega
    # What of ω_i is outside the range of the others: μ_i = ω_i - Q w_i + α_i Q s_i, with α_i = s_iᵀ w_i.
    alpha = (s * w).sum(1)
    move = alpha[:, None] * s - w
    through = alpha * (s * r_safe).sum(1) + ((t - h.mT @ w + alpha[:, None] * (h.mT @ s)) * move).sum(1)  # μᵀJμ
    scale = (d - m + 1) / (omega.square().sum(1) - w.square().sum(1) + alpha.square()) if is_rotation_invariant else 1.0
    trace_of_range = h.diagonal(dim1=1, dim2=2).sum(1)
    estimates = trace_of_range[:, None] - (s * (h @ s)).sum(1) + scale * through
    # A range that fewer vectors span is whole without the i-th: nothing is left to estimate.
    value = torch.where(is_deficient, trace_of_range, estimates.mean(1))
    error = torch.where(is_deficient, torch.zeros_like(value), _standard_error(estimates.T))
    return TraceEstimate(linear.checked(value), error, 2 * m)
