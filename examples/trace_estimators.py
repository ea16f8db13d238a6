"""How many matrix-vector products does a trace cost? Hutchinson's estimator, Hutch++ and XTrace on four spectra.

tr A of symmetric matrices with eigenvalues that are flat (from 3 down to 1), fall as 1/i² or 0.7^i, or fall off a step (a tenth of them 1, the
others 1/1000), in random bases: the test matrices of Epperly, Tropp & Webber 2024 (arXiv 2301.07825, section 4). The estimators see A only through
f(x) = x @ A, whose Jacobian it is, and every chain of the batch is one repetition. The one-probe variances are known for three of the probe laws
(A symmetric, |A| the Frobenius norm): Rademacher 2 (|A|² - Σ a_ii²), Gaussian 2 |A|², sphere 2d/(d + 2) (|A|² - (tr A)²/d).

On the flat spectrum, that of a well-conditioned Jacobian, Rademacher probes are all one needs. Where the spectrum decays, Hutch++ and XTrace find
the large part of the matrix and are better by orders of magnitude. Every estimator also says how sure it is: the second table has the rms of the
standard errors that it reports over that of its true errors (1 where it is honest), and how often the truth lay within two of them.

    python examples/trace_estimators.py --out trace_estimators.png
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore import Key, trace

Estimator = Callable[[Callable[[Tensor], Tensor], Tensor, int, Key], Any]

LAWS = ("rademacher", "gaussian", "sphere", "orthogonal")
ESTIMATORS: dict[str, Estimator] = {
    **{f"Hutchinson, {law}": lambda f, x, m, key, law=law: trace.hutchinson(f, x, m, law, key=key) for law in LAWS},  # type: ignore[misc]
    "Hutch++": lambda f, x, m, key: trace.hutch_plus_plus(f, x, m, key=key),
    "XTrace": lambda f, x, m, key: trace.xtrace(f, x, m, key=key),
}


class Point(NamedTuple):
    """Relative rms error of an estimator with its standard error, the rms of those that it reports, and how often the truth is within two of them."""

    rms: float
    rms_error: float
    reported: float
    coverage: float


def spectra(d: int) -> dict[str, Tensor]:
    i = torch.arange(1, d + 1, dtype=torch.float64)
    return {"flat": 3 - 2 * (i - 1) / (d - 1), "1/i²": i**-2, "exponential": 0.7**i, "step": torch.where(i <= d // 10, 1.0, 1e-3)}


def symmetric_matrix(eigenvalues: Tensor, generator: torch.Generator) -> Tensor:
    d = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator)).Q
    return (basis * eigenvalues) @ basis.T


def exact_rms(matrix: Tensor) -> dict[str, float]:
    """Relative rms errors of Hutchinson's estimator with one probe, which fall as 1/√(number of probes)."""
    d, square, total = len(matrix), matrix.square().sum(), matrix.trace()
    variances = (2 * (square - matrix.diagonal().square().sum()), 2 * square, 2 * d / (d + 2) * (square - total**2 / d))
    return {f"Hutchinson, {law}": float(variance.sqrt() / total) for law, variance in zip(LAWS, variances, strict=False)}


def measure(estimator: Estimator, matrix: Tensor, num_products: int, num_repetitions: int, key: Key) -> Point:
    x = torch.zeros(num_repetitions, len(matrix), dtype=matrix.dtype)
    estimate = estimator(lambda x: x @ matrix, x, num_products, key)
    assert estimate.num_products == num_products
    total = matrix.trace()
    errors, reported = estimate.value / total - 1, estimate.standard_error / total
    squares = errors.square()
    rms = float(squares.mean().sqrt())
    rms_error = float(squares.std() / math.sqrt(num_repetitions)) / (2 * rms)  # of a square root
    is_covered = errors.abs() <= 2 * reported + 1e-13  # rounding, where an estimate is exact
    return Point(rms, rms_error, float(reported.square().mean().sqrt()), float(is_covered.double().mean()))


def report(curves: dict[str, dict[int, Point]], exact: dict[str, float]) -> list[float]:
    """Prints both tables; returns how many standard errors the rms errors are from the exact ones, where those are known."""
    rows = next(iter(curves.values()))
    print(f"{'products':>8}" + "".join(f"{label:>24}" for label in curves))
    for m in rows:
        print(f"{m:8}" + "".join(f"{f'{points[m].rms:.3e} ± {points[m].rms_error:.0e}':>24}" for points in curves.values()))
    for m in rows:
        texts = [f"{points[m].reported / points[m].rms:.2f} ({points[m].coverage:.1%})" for points in curves.values()]
        print(f"{m:8}" + "".join(f"{text:>24}" for text in texts), flush=True)
    return [(points[m].rms - exact[label] / math.sqrt(m)) / points[m].rms_error for label, points in curves.items() if label in exact for m in rows]


def draw(path: Path, curves: dict[str, dict[str, dict[int, Point]]], exact: dict[str, dict[str, float]]) -> None:
    """Points with bars of two standard errors; lines are the exact variances, dashes connect the points where there are none."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    styles = dict(zip(ESTIMATORS, (("C0", "o", 9), ("C1", "s", 5), ("C2", "^", 5), ("C4", "D", 5), ("C3", "v", 6), ("black", "*", 7)), strict=True))
    for axes, (name, of_estimators) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        ticks: list[int] = []
        for label, points in of_estimators.items():
            shown = {m: point for m, point in points.items() if point.rms > 1e-14}
            colour, marker, size = styles[label]
            rms, bars = [point.rms for point in shown.values()], [2 * point.rms_error for point in shown.values()]
            face = "none" if marker == "o" else colour
            axes.errorbar(list(shown), rms, bars, c=colour, marker=marker, markersize=size, markerfacecolor=face, linestyle="none", label=label)
            is_known = label in exact[name]
            line = [exact[name][label] / math.sqrt(m) for m in shown] if is_known else rms
            axes.plot(list(shown), line, color=colour, linewidth=1, linestyle="solid" if is_known else "dashed")
            ticks += [m for m in shown if not ticks or m >= 1.4 * ticks[-1]]
        axes.set(xscale="log", yscale="log", xlabel="matrix–vector products", ylabel="relative rms error of tr A", title=f"{name} spectrum")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=9, title="solid: exact variances", title_fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("trace_estimators.png"))
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--products", type=int, nargs="+", default=[6, 12, 18, 24, 30, 36, 48, 60, 84, 120], help="multiples of 6, at most --dim")
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    begin = time.perf_counter()
    curves: dict[str, dict[str, dict[int, Point]]] = {}
    exact: dict[str, dict[str, float]] = {}
    deviations: list[float] = []
    generator = torch.Generator().manual_seed(args.seed)
    key = Key(args.seed + 1)
    for name, eigenvalues in spectra(args.dim).items():
        matrix = symmetric_matrix(eigenvalues, generator)
        exact[name], curves[name] = exact_rms(matrix), {label: {} for label in ESTIMATORS}
        for label, estimator in ESTIMATORS.items():
            for m in args.products:
                curves[name][label][m] = measure(estimator, matrix, m, args.repetitions, key)
                key = key.advance(m)
        print(
            f"\n{name} spectrum: {args.dim} x {args.dim}, tr A = {float(matrix.trace()):.6g}; {args.repetitions} repetitions. Relative rms errors, then"
        )
        print("the rms of the reported standard errors over that of the errors, and how often the truth was within two of those reported")
        deviations += report(curves[name], exact[name])
    print(f"\nHutchinson against the exact variances: {len(deviations)} rms errors, the furthest {max(map(abs, deviations)):.1f} standard errors off")
    draw(args.out, curves, exact)
    print(f"picture: {args.out}; all in all {time.perf_counter() - begin:.0f} s on {torch.get_num_threads()} thread(s)")


if __name__ == "__main__":
    main()
