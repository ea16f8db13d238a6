"""Modes that a chain cannot travel between: MALA and Gibbs alone against parallel tempering over them, with mode weights that are known.

In the plane, eight narrow normals of unequal weight on a ring; on 16 spins, an Ising model of two clusters, whose 65,536 states are enumerated.
All chains start in one mode. The error is the total variation of the mode weights over all chains, at equal numbers of energy evaluations: a step
of parallel tempering with R temperatures counts as R. The noise of so many independent draws is printed beside it.

    python examples/tempering_modes.py --out tempering_modes.png
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

from ebmcore import MALA, Gibbs, Key, ParallelTempering, warm_up
from ebmcore.energies import GaussianMixture, Ising


class Target(NamedTuple):
    """An energy, where chains start, the number of each state's mode, the exact weights of the modes, a sampler and a ladder to begin with."""

    energy: Any
    start: Tensor
    mode_of: Callable[[Tensor], Tensor]
    weights: Tensor
    sampler: Any
    ladder: tuple[float, ...]


class Curve(NamedTuple):
    name: str
    evaluations: list[int]  # energies worked out, for each chain that counts
    errors: list[float]
    x: Tensor


def ring(num_chains: int, seed: int) -> Target:
    """Normals of standard deviation 0.25 on a circle of radius 4, of weights 1 : 2 : ... : 8; the modes are eight sectors."""
    angles = torch.arange(8) * (math.pi / 4)
    means = 4 * torch.stack((angles.cos(), angles.sin()), 1)
    weights = torch.arange(1.0, 9.0) / 36
    energy = GaussianMixture(weights, means, std=0.25)
    start = means[:1].expand(num_chains, 2).contiguous()
    step = warm_up(MALA(0.01), energy, start, 300, seed=seed)[0]
    ladder = tuple(1.45**r for r in range(9))
    return Target(energy, start, lambda x: (torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)).round().long() % 8, weights, step, ladder)


def clusters(num_chains: int, seed: int) -> Target:
    """Two clusters of eight spins, at a temperature where Gibbs sweeps flip one in about a million; the modes are the signs of both."""
    matrix = torch.full((16, 16), 0.09375)
    matrix[:8, :8] = matrix[8:, 8:] = 0.375
    matrix.fill_diagonal_(0.0)
    field = torch.cat((torch.full((8,), 0.0225), torch.zeros(8)))
    energy = Ising.from_matrix(matrix, field)
    states = (2 * (torch.arange(2**16)[:, None] // 2 ** torch.arange(16) % 2) - 1).to(torch.int8)
    with torch.no_grad():
        law = torch.softmax(-energy(states).double(), 0)

    def mode_of(x: Tensor) -> Tensor:
        sums = x.reshape(-1, 2, 8).float().sum(2)
        return 3 * (sums[:, 0].sign() + 1).long() + (sums[:, 1].sign() + 1).long()

    weights = torch.zeros(9, dtype=torch.float64).index_add(0, mode_of(states), law)
    start = torch.full((num_chains, 16), -1, dtype=torch.int8)
    return Target(energy, start, mode_of, weights, Gibbs(), (1.0, 1.5, 2.5, 5.0, 15.0))


TARGETS = {"ring of normals": ring, "two clusters of spins": clusters}


def error_of(target: Target, x: Tensor) -> float:
    """Total variation of the mode weights."""
    counts = torch.bincount(target.mode_of(x), minlength=len(target.weights))
    return 0.5 * float((counts / len(x) - target.weights).abs().sum())


def noise_of(target: Target, num_chains: int) -> float:
    """The mean total variation of as many independent draws."""
    return float((target.weights * (1 - target.weights) / (2 * math.pi * num_chains)).sqrt().sum())


def run(name: str, sampler: Any, target: Target, state: Any, budget: int, cost: int) -> tuple[Curve, list[Any]]:
    """Up to `budget` evaluations, looked at after 1, 2, 4, ... steps; `cost` evaluations a step."""
    evaluations, errors, infos, done = [0], [error_of(target, state.x)], [], 0
    while (count := min(max(done, 1), budget // cost - done)) > 0:
        state, info = sampler.advance(target.energy, state, count)
        done += count
        infos.append((count, info))
        evaluations.append(done * cost)
        errors.append(error_of(target, state.x))
    return Curve(name, evaluations, errors, state.x), infos


def compare(name: str, args: argparse.Namespace) -> tuple[Target, list[Curve]]:
    target = TARGETS[name](args.chains, args.seed)
    begin = time.perf_counter()
    tempering = ParallelTempering(target.sampler, target.ladder, scale_steps=isinstance(target.sampler, MALA))
    tuned, _ = warm_up(tempering, target.energy, target.start, max(8, args.evaluations // len(target.ladder) // 4), seed=args.seed)
    alone = type(target.sampler).__name__
    print(f"\n{name}: {args.chains} chains; {target.sampler}")
    print(f"  ladder, adapted: {', '.join(f'{t:.3g}' for t in tuned.temperatures)}")
    curves = []
    for label, sampler, cost in ((alone, target.sampler, 1), (f"parallel tempering over {alone}", tuned, len(tuned.temperatures))):
        state = sampler.init(target.energy, target.start, seed=Key(args.seed, 10**6))
        curve, infos = run(label, sampler, target, state, args.evaluations, cost)
        curves.append(curve)
        print(f"  {label:>32}: total variation {curve.errors[-1]:.4f} after {curve.evaluations[-1]} evaluations a chain")
    num_steps = sum(count for count, _ in infos)
    swaps = sum(count * info.swap_acceptance_prob.mean(0) for count, info in infos) / num_steps
    trips = sum(float(info.num_round_trips.double().mean()) for _, info in infos)
    print(f"  swaps accepted: {', '.join(f'{s:.2f}' for s in swaps.tolist())}; round trips of a chain: {trips:.1f} in {num_steps} steps")
    print(
        f"  total variation of {args.chains} independent draws: {noise_of(target, args.chains):.4f} on average; {time.perf_counter() - begin:.1f} s"
    )
    return target, curves


def draw(path: Path, results: dict[str, tuple[Target, list[Curve]]], num_chains: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7.2), layout="constrained")
    for row, (name, (target, curves)) in zip(figure.subplots(2, 3), results.items(), strict=True):
        for axes, curve in zip(row, curves, strict=False):
            if curve.x.shape[1] == 2:
                axes.plot(*curve.x.T.numpy(), ".", ms=2, alpha=0.5)
                axes.set(xlim=(-5.5, 5.5), ylim=(-5.5, 5.5), aspect="equal")
            else:
                counts = torch.bincount(target.mode_of(curve.x), minlength=9) / len(curve.x)
                places = torch.arange(9).numpy()
                axes.bar(places - 0.2, counts.numpy(), 0.4, label="chains")
                axes.bar(places + 0.2, target.weights.numpy(), 0.4, label="exact")
                axes.set_xticks(places, ["--", "-0", "-+", "0-", "00", "0+", "+-", "+0", "++"])
                axes.legend()
            axes.set_title(f"{name}: {curve.name}", fontsize=10)
        for curve in curves:
            row[2].loglog([max(e, 1) for e in curve.evaluations], [max(e, 1e-4) for e in curve.errors], "o-", ms=3, label=curve.name)
        row[2].axhline(noise_of(target, num_chains), color="0.5", ls="--", lw=1, label="independent draws")
        row[2].set(xlabel="energy evaluations a chain", ylabel="total variation of the mode weights", title=f"{num_chains} chains")
        row[2].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("tempering_modes.png"))
    parser.add_argument("--chains", type=int, default=2000)
    parser.add_argument("--evaluations", type=int, default=20_000, help="of the energy, a chain; a Gibbs sweep counts as one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    draw(args.out, {name: compare(name, args) for name in TARGETS}, args.chains)
    print(f"\npicture: {args.out}")


if __name__ == "__main__":
    main()
