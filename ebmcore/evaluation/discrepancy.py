"""Distances between samples, and between samples and an energy: maximum mean discrepancy (Gretton, Borgwardt, Rasch, Schölkopf & Smola, "A
kernel two-sample test", JMLR 2012) and kernel Stein discrepancy (Liu, Lee & Jordan, ICML 2016; Gorham & Mackey, ICML 2017).

Kernels are summed in float64 over blocks of pairs, so that memory does not grow with the square of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from ebmcore.gradients import as_energy, check_state, energy_and_grad
from ebmcore.ops.registration import number
from ebmcore.types import DivergenceError

_PAIRS_AT_ONCE = 2**20
_MEDIAN_ROWS = 1000  # that the median of the distances is taken of


@torch.no_grad()
def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None, biased: bool = False) -> float:
    """Squared maximum mean discrepancy, mean k(x, x') + mean k(y, y') - 2 mean k(x, y), with k = exp(-|x - y|² / (2 · bandwidth²)).

    Args:
        x, y: samples (num_samples, *event), at least 2 each, floating or not.
        bandwidth: > 0; by default the median distance between samples (of the first 1000 of each), as Gretton et al. have it.
        biased: count each sample's k(x, x) = 1 with itself (lemma 6, eq. 5: never negative) instead of leaving it out (eq. 3: unbiased).

    Raises:
        TypeError, ValueError: an argument is not as above, or a sample is not finite; without a bandwidth also if the median distance is 0.
    """
    a, b = _rows(x, "x", "mmd"), _rows(y, "y", "mmd")
    if x.shape[1:] != y.shape[1:] or x.device != y.device:
        raise ValueError(f"mmd: y must be like x, of events {tuple(x.shape[1:])} on {x.device}, got {tuple(y.shape[1:])} on {y.device}")
    if bandwidth is None:
        pooled = torch.cat((a[:_MEDIAN_ROWS], b[:_MEDIAN_ROWS]))
        bandwidth = float(torch.nn.functional.pdist(pooled).median())
        if bandwidth == 0:
            raise ValueError("mmd: bandwidth must be given where the median distance between samples is 0")
    scale = -0.5 / number(bandwidth, "bandwidth", "mmd", low=0.0, strict=True) ** 2

    def kernel_sum(a: Tensor, b: Tensor) -> float:
        return sum(float((_squared_distances(part, b) * scale).exp().sum()) for part in a.split(_block(b)))

    n, m = len(a), len(b)
    within = [kernel_sum(a, a) / n**2, kernel_sum(b, b) / m**2] if biased else [(kernel_sum(c, c) - len(c)) / (len(c) * (len(c) - 1)) for c in (a, b)]
    return sum(within) - 2 * kernel_sum(a, b) / (n * m)


@torch.inference_mode(False)
def ksd(
    energy: Callable[[Tensor], Tensor] | Any,
    x: Tensor,
    *,
    kernel: Literal["imq", "rbf"] = "imq",
    bandwidth: float = 1.0,
    biased: bool = False,
) -> float:
    """Squared kernel Stein discrepancy between samples and exp(-E), whose normaliser is not needed.

    The mean over pairs of s·s' k + s·∇_y k + s'·∇_x k + tr ∇_x ∇_y k, s = -∇E(x), s' = -∇E(y). One evaluation of the energy and its gradient.

    Args:
        energy: (num_samples, *event) -> (num_samples,), or anything with `log_prob`.
        x: samples (num_samples, *event), at least 2, floating.
        kernel: "imq": (bandwidth² + |x - y|²)^-½, which sees tails that escape (Gorham & Mackey); "rbf": exp(-|x - y|² / (2 · bandwidth²)).
        bandwidth: > 0.
        biased: count pairs of a sample with itself (V-statistic, never negative) instead of leaving them out (U-statistic, unbiased).

    Raises:
        TypeError, ValueError: an argument is not as above, or a sample is not finite.
        DivergenceError: a gradient is not finite at some rows of x; `chains` are these.
    """
    check_state(x, "ksd")
    rows = _rows(x, "x", "ksd")
    if kernel not in ("imq", "rbf"):
        raise ValueError(f"ksd: kernel must be 'imq' or 'rbf', got {kernel!r}")
    bandwidth = number(bandwidth, "bandwidth", "ksd", low=0.0, strict=True)
    value, grad = energy_and_grad(as_energy(energy, "ksd"), x.detach())
    scores = -grad.flatten(1).double()
    is_bad = ~scores.isfinite().all(1)
    if bool(is_bad.any()):
        chains = is_bad.nonzero().flatten().tolist()
        message = f"ksd: the gradient of the energy is not finite in {len(chains)} of {len(x)} rows {chains[:8]} (first 8 shown)"
        raise DivergenceError(message, chains=chains, step=-1, last_energies=value[is_bad].tolist())
    with torch.no_grad():
        total = sum(float(values.sum()) for values in _stein_kernel(rows, scores, kernel, bandwidth**2))
        n = len(rows)
        if biased:
            return total / n**2
        # On the diagonal r = 0, and the terms with a first derivative of k vanish.
        k, trace = (1.0, rows.shape[1] / bandwidth**2) if kernel == "rbf" else (1 / bandwidth, rows.shape[1] / bandwidth**3)
        return (total - float(scores.square().sum()) * k - n * trace) / (n * (n - 1))


def _stein_kernel(x: Tensor, s: Tensor, kernel: str, c: float) -> Iterator[Tensor]:
    """The Stein kernel of all pairs, in blocks of rows; c is bandwidth².

    With k = f(r²), r = x - y: ∇_y k = -2 f' r, ∇_x k = 2 f' r and tr ∇_x ∇_y k = -2 d f' - 4 r² f''.
    """
    sx = (s * x).sum(1)
    for part, score, own in zip(*(t.split(_block(x)) for t in (x, s, sx)), strict=True):
        r2 = _squared_distances(part, x)
        if kernel == "rbf":  # f = exp(-r²/2c)
            f = (r2 * (-0.5 / c)).exp()
            first, second = f * (-0.5 / c), f * (0.25 / c**2)
        else:  # f = (c + r²)^-½
            f = (c + r2).rsqrt()
            first, second = f**3 * -0.5, f**5 * 0.75
        across = own[:, None] - score @ x.T - part @ s.T + sx  # (s - s')·r
        yield score @ s.T * f - 2 * first * across - 2 * x.shape[1] * first - 4 * r2 * second


def _rows(x: Tensor, name: str, caller: str) -> Tensor:
    """The samples as (num_samples, dim), float64."""
    if not isinstance(x, Tensor) or x.is_complex():
        raise TypeError(f"{caller}: {name} must be a real torch.Tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
    if x.dim() < 1 or x.shape[0] < 2 or 0 in x.shape:
        raise ValueError(f"{caller}: {name} must have shape (num_samples >= 2, *event), got {tuple(x.shape)}")
    rows = x.detach().double().reshape(len(x), -1)
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{caller}: {name} must be finite, got NaN or infinity in {int((~rows.isfinite().all(1)).sum())} of {len(x)} samples")
    return rows


def _block(columns: Tensor) -> int:
    return max(1, _PAIRS_AT_ONCE // len(columns))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(len(a), len(b)); by differences: the products of torch's default cancel."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
