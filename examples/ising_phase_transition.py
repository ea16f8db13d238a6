"""The phase transition of the two-dimensional Ising model: energy and magnetisation against the inverse temperature, beside the exact curves.

Chains start in the ordered state, which finite lattices leave quickly at every temperature here, and run natively.

    python examples/ising_phase_transition.py --out ising.png
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch

import ebmcore
from ebmcore.energies import Ising
from ebmcore.samplers import Gibbs

CRITICAL = math.log(1 + math.sqrt(2)) / 2


class Point(NamedTuple):
    """Means over chains, with their standard errors."""

    beta: float
    energy: float
    energy_error: float
    magnetisation: float
    magnetisation_error: float


def exact_energy(beta: float) -> float:
    """Energy per spin of the infinite lattice (Onsager 1944)."""
    sinh, cosh, tanh = math.sinh(2 * beta), math.cosh(2 * beta), math.tanh(2 * beta)
    a, b = 1.0, math.sqrt(max(0.0, 1 - (2 * sinh / cosh**2) ** 2))
    if b < 1e-6:
        return -math.sqrt(2)  # at the critical point the integral below diverges, and its factor is 0
    while a - b > 1e-15 * a:  # the arithmetic-geometric mean gives the elliptic integral
        a, b = (a + b) / 2, math.sqrt(a * b)
    return -(1 + 2 / math.pi * (2 * tanh**2 - 1) * math.pi / (2 * a)) / tanh


def exact_magnetisation(beta: float) -> float:
    """|m| of the infinite lattice (Yang 1952)."""
    return (1 - math.sinh(2 * beta) ** -4) ** 0.125 if beta > CRITICAL else 0.0


def measure(side: int, beta: float, num_chains: int, num_sweeps: int, num_kept: int, seed: int) -> Point:
    """num_kept states, num_sweeps apart, of chains that have forgotten their start for ten times as long."""
    energy = Ising.lattice((side, side), coupling=beta)
    start = torch.ones(num_chains, side, side, dtype=torch.int8)

    def figures(state: object, info: object) -> torch.Tensor:
        x = state.x  # type: ignore[attr-defined]
        return torch.stack((state.energy / (beta * side**2), x.flatten(1).float().mean(1).abs()))  # type: ignore[attr-defined]

    trace = ebmcore.sample(
        Gibbs("checkerboard"), energy, start, num_kept * num_sweeps, num_warmup=10 * num_sweeps, thinning=num_sweeps, seed=seed, record=figures
    )
    of_chains = trace.x.mean(0).double()  # (2, num_chains): chains are independent, states of one chain are not
    mean, error = of_chains.mean(1), of_chains.std(1) / math.sqrt(num_chains)
    return Point(beta, float(mean[0]), float(error[0]), float(mean[1]), float(error[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("ising_phase_transition.png"))
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--sweeps", type=int, default=200, help="between two kept states; ten times as many before the first")
    parser.add_argument("--kept", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    betas = [0.2, 0.3, 0.36, 0.4, 0.42, 0.43, CRITICAL, 0.45, 0.46, 0.48, 0.52, 0.6]
    results: dict[int, list[Point]] = {}
    print(f"{'L':>4} {'beta':>7} {'energy per spin':>19} {'exact, L = inf':>15} {'|m|':>17} {'exact, L = inf':>15}")
    for side in args.sides:
        begin = time.perf_counter()
        for i, beta in enumerate(betas):
            p = measure(side, beta, args.chains, args.sweeps, args.kept, args.seed + i)
            results.setdefault(side, []).append(p)
            energy, magnetisation = f"{p.energy:.5f} ± {p.energy_error:.5f}", f"{p.magnetisation:.4f} ± {p.magnetisation_error:.4f}"
            print(f"{side:4} {beta:7.4f} {energy:>19} {exact_energy(beta):15.5f} {magnetisation:>17} {exact_magnetisation(beta):15.4f}", flush=True)
        updates, seconds = len(betas) * args.chains * side**2 * args.sweeps * (args.kept + 10), time.perf_counter() - begin
        threads = torch.get_num_threads()
        print(f"L = {side}: {updates:.2g} spin updates in {seconds:.1f} s, {1e9 * seconds / updates:.2f} ns each, {threads} thread(s)")
    draw(args.out, results)
    print(f"picture: {args.out}")


def draw(path: Path, results: dict[int, list[Point]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    grid = [0.18 + 0.001 * i for i in range(430)]
    left.plot(grid, [exact_energy(b) for b in grid], "k", lw=1, label="exact, infinite lattice")
    right.plot(grid, [exact_magnetisation(b) for b in grid], "k", lw=1, label="exact, infinite lattice")
    for side, points in results.items():
        betas = [p.beta for p in points]
        left.errorbar(betas, [p.energy for p in points], [p.energy_error for p in points], fmt="o", ms=4, label=f"L = {side}")
        right.errorbar(betas, [p.magnetisation for p in points], [p.magnetisation_error for p in points], fmt="o", ms=4, label=f"L = {side}")
    left.set(xlabel="inverse temperature", ylabel="energy per spin")
    right.set(xlabel="inverse temperature", ylabel="|m|")
    left.legend()
    right.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
