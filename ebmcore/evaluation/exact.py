"""log Z, all probabilities and the marginals of a discrete energy, by enumerating its states; log Z of a continuous one by quadrature.

State k has at site i the value number (k // q^i) % q, sites in row-major order of the event, q values a site: site 0 runs fastest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ebmcore.discrete import alphabet_of
from ebmcore.evaluation.quadrature import check_bounds, log_integral
from ebmcore.gradients import evaluate
from ebmcore.ops.registration import number
from ebmcore.types import EnergyFn, bounded_int

_ELEMENTS_AT_ONCE = 2**22


def exact_log_z(
    energy: EnergyFn,
    event_shape: Sequence[int],
    *,
    bounds: tuple[float, float] | Sequence[tuple[float, float]] | None = None,
    tolerance: float | None = None,
    max_states: int = 2**24,
) -> float:
    """log Σ_x exp(-E(x)) over all states of the energy's alphabet; with `bounds`, log ∫ exp(-E(x)) dx between them.

    The energy sees states on the device of its parameters, spins, {0, 1} and points in the dtype of its parameters (float64 if it has none),
    tokens as uint8 (int64 beyond 256 categories). The energies have the accuracy of that dtype, their sums that of float64.

    The quadrature is adaptive, but sees nothing that is much narrower than its first points are apart: 1/250 of the side in one dimension,
    1/60 in two, 1/15 in three. Around an energy of a known place and size, finite bounds are surer than infinite ones.

    Args:
        energy: (num_chains, *event) -> (num_chains,). +inf is a state of probability 0.
        event_shape: of one chain; of 1 to 3 elements with bounds.
        bounds: (low, high) of every element of a continuous event, or such a pair for each, in row-major order; -inf and inf are allowed.
        tolerance: of the quadrature, relative to Z; by default 1e-10, with parameters of float32 1e-5.
        max_states: refuse more states than that, which take 8 bytes each; or points of the quadrature.

    Raises:
        TypeError, ValueError: for arguments that are not as above, too many states, or energies that are NaN or -inf.
        RuntimeError: the quadrature does not reach the tolerance with max_states points.
    """
    if bounds is None:
        return float(_minus_energies(energy, event_shape, max_states, "exact_log_z").logsumexp(0))
    shape = tuple(bounded_int(size, "event_shape", "exact_log_z", low=1) for size in event_shape)
    place = _place(energy)
    if tolerance is None:
        tolerance = 1e-10 if place.dtype == torch.float64 else 1e-5
    return log_integral(
        energy,
        shape,
        check_bounds(bounds, math.prod(shape), "exact_log_z"),
        place=place,
        tolerance=number(tolerance, "tolerance", "exact_log_z", low=0.0, strict=True),
        max_points=bounded_int(max_states, "max_states", "exact_log_z", low=1),
        caller="exact_log_z",
    )


def exact_distribution(energy: EnergyFn, event_shape: Sequence[int], *, max_states: int = 2**24) -> Tensor:
    """The probabilities of all states, (num_states,) float64. State k has the value number (k // q^i) % q at site i.

    Arguments and errors as `exact_log_z`; ValueError also if all energies are +inf.
    """
    return _probabilities(energy, event_shape, max_states, "exact_distribution")


def exact_marginals(energy: EnergyFn, event_shape: Sequence[int], *, max_states: int = 2**24) -> Tensor:
    """The probability of each value at each site, (num_sites, num_categories) float64; spins -1 and +1 are columns 0 and 1.

    Arguments and errors as `exact_distribution`.
    """
    probabilities = _probabilities(energy, event_shape, max_states, "exact_marginals")
    q = alphabet_of(energy).num_categories
    return torch.stack([probabilities.reshape(-1, q, q**site).sum((0, 2)) for site in range(math.prod(event_shape))])


def _probabilities(energy: EnergyFn, event_shape: Sequence[int], max_states: int, caller: str) -> Tensor:
    minus_energies = _minus_energies(energy, event_shape, max_states, caller)
    if not bool(minus_energies.isfinite().any()):
        raise ValueError(f"{caller}: energy must be finite in some state, got +inf in all {len(minus_energies)}")
    return minus_energies.softmax(0)


def _minus_energies(energy: EnergyFn, event_shape: Sequence[int], max_states: int, caller: str) -> Tensor:
    """-E of all states, (num_states,) float64."""
    shape = tuple(bounded_int(size, "event_shape", caller, low=1) for size in event_shape)
    max_states = bounded_int(max_states, "max_states", caller, low=1)
    alphabet, num_sites = alphabet_of(energy), math.prod(shape)
    q = alphabet.num_categories
    if not shape or num_sites * math.log(q) > math.log(max_states) + 1e-9:
        raise ValueError(f"{caller}: event_shape must be of one site or more and of at most {max_states} states, got {shape} with {q}**{num_sites}")
    place = _place(energy)
    dtype = place.dtype if alphabet.kind != "token" else torch.uint8 if q <= 256 else torch.int64
    powers = torch.tensor([q**site for site in range(num_sites)], device=place.device)
    num_states = q**num_sites
    result = torch.empty(num_states, dtype=torch.float64, device=place.device)
    for rows in torch.arange(num_states, device=place.device).split(max(1, _ELEMENTS_AT_ONCE // num_sites)):
        values = rows[:, None] // powers % q
        states = 2 * values - 1 if alphabet.kind == "spin" else values
        result[rows] = -evaluate(energy, states.to(dtype).reshape(-1, *shape)).double()
    is_bad = result.isnan() | (result == math.inf)
    if bool(is_bad.any()):
        k = int(is_bad.nonzero()[0])
        raise ValueError(f"{caller}: energy must not be NaN or -inf, got {-result[k].item()} in state {k}")
    return result


def _place(energy: EnergyFn) -> Tensor:
    """A floating tensor of the energy's, if it has one: states come in its dtype, on its device."""
    tensors = itertools.chain(energy.parameters(), energy.buffers()) if isinstance(energy, nn.Module) else ()
    return next((t for t in tensors if t.is_floating_point()), torch.empty(0, dtype=torch.float64, device="cpu"))
