"""Which sampler gets a funnel, a ring and a banana right? Six of them at equal numbers of energy evaluations, against exact draws.

Many chains start at one place, run, and end. Each target has two functions of x that are independent and uniform on (0, 1) if the ends are draws of
the target (Rosenblatt 1952): of the funnel the rank of its log-variance v and of |x_1, ..., x_9| given v, of the ring those of the radius and of the
angle, of the banana those of the place along and across. The error is the larger of their two Kolmogorov distances from uniform; a sampler is called
wrong if independent draws were as far off once in 10,000 times. The squared maximum mean discrepancy from exact draws stands beside it. The
effective sample size is of the second half of the run, of the coordinate with the smallest, and knows nothing of bias.

Samplers that accept or reject are tuned by `warm_up` to the acceptance that is best in many dimensions; unadjusted ones take the tuned step of their
adjusted relative (MALA's, HMC's), halved until no chain diverges. Parallel tempering is over the tuned MALA. Needs the extra "diagnostics".

    python examples/funnel_and_ring.py --out funnel_and_ring.png
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.special import gammainc, ndtr

from ebmcore import HMC, MALA, DivergenceError, Key, KineticLangevin, Langevin, ParallelTempering, RandomWalkMetropolis, sample, warm_up
from ebmcore.energies import Banana, Funnel, Ring
from ebmcore.evaluation import ess, mmd
from ebmcore.testing import count_evaluations

LADDER, FALSE_ALARM = (1.0, 1.5, 2.5, 4.5), 1e-4
KEPT, ESS_CHAINS, MMD_CHAINS = 200, 200, 1000  # states of a chain, and chains, that the figures are worked out of


class Target(NamedTuple):
    """An energy with exact draws, where chains start, two functions of x that are uniform, and the density of the plane that the picture shows."""

    energy: Any
    start: Tensor  # (dim,)
    ranks: Callable[[Tensor], tuple[Tensor, Tensor]]
    first_rank: str
    density: Callable[[Tensor, Tensor], Tensor]
    limits: tuple[float, float, float, float]
    plane: Callable[[Tensor], Tensor] = lambda x: x  # (n, dim) -> (n, 2)


class Result(NamedTuple):
    name: str
    ends: Tensor
    ranks: Tensor  # (2, n), sorted
    error: float
    is_right: bool


def normal_density(z: Tensor) -> Tensor:
    return (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)


def funnel() -> Target:
    return Target(
        Funnel(10),
        torch.zeros(10),
        lambda x: (ndtr(x[:, 0] / 3), gammainc(torch.tensor(4.5).double(), 0.5 * (-x[:, 0]).exp() * x[:, 1:].square().sum(1))),
        "v",
        # Of asinh(x_1) and v: on a scale of x_1 one would not see the neck.
        lambda a, v: normal_density(v / 3) * normal_density(a.sinh() * (-0.5 * v).exp()) * (-0.5 * v).exp() * a.cosh(),
        (-6, 6, -9, 9),
        lambda x: torch.stack((x[:, 1].asinh(), x[:, 0]), 1),
    )


def ring(radius: float = 4.0, width: float = 0.1) -> Target:
    def ranks(x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x.norm(dim=1) - radius) / width
        return ndtr(z) - width / radius * normal_density(z), torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) + 0.5

    start, limits = torch.tensor([radius, 0.0]), (-radius - 1, radius + 1, -radius - 1, radius + 1)
    return Target(Ring(radius, width), start, ranks, "the radius", lambda x, y: normal_density((torch.hypot(x, y) - radius) / width), limits)


def banana(scale: float = 4.0, curvature: float = 0.25, width: float = 0.2) -> Target:
    def ranks(x: Tensor) -> tuple[Tensor, Tensor]:
        return ndtr(x[:, 0] / scale), ndtr((x[:, 1] - curvature * x[:, 0].square()) / width)

    def density(x: Tensor, y: Tensor) -> Tensor:
        return normal_density(x / scale) * normal_density((y - curvature * x.square()) / width)

    return Target(Banana(scale, curvature, width), torch.zeros(2), ranks, "the place along", density, (-12, 12, -2, 26))


TARGETS = {"funnel": funnel, "ring": ring, "banana": banana}


def kolmogorov(ranks: Tensor) -> tuple[float, float]:
    """The larger distance of the distributions of (2, n) sorted ranks from uniform, and how likely two of n draws are to be so far off (n large)."""
    n, i = ranks.shape[1], torch.arange(ranks.shape[1])
    distance = float(torch.maximum((i + 1) / n - ranks, ranks - i / n).max())
    tail = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * n * distance**2) for k in range(1, 101))
    return distance, 1 - (1 - min(tail, 1.0)) ** 2


def evaluations_a_step(sampler: Any, target: Target) -> int:
    """Rows that the energy is called with, a chain and step, without native chains."""
    counted = count_evaluations(target.energy)
    state = sampler.init(counted, target.start[None], seed=0)
    before = counted.num_rows
    sampler.step(counted, state)
    return counted.num_rows - before


def tuned(target: Target, start: Tensor, args: argparse.Namespace) -> tuple[Any, ...]:
    """The samplers; tuning takes each that adapts a tenth of the evaluations, on top."""
    budget = args.evaluations // 10
    walk, mala, hmc = (
        warm_up(sampler, target.energy, start, max(8, budget // evaluations_a_step(sampler, target)), seed=args.seed)[0]
        for sampler in (RandomWalkMetropolis(0.1), MALA(0.01), HMC(0.1, 30, jitter=0.9))
    )
    tempering = warm_up(ParallelTempering(mala, LADDER), target.energy, start, max(8, budget // len(LADDER)), seed=args.seed)[0]
    return Langevin(mala.step_size), KineticLangevin(hmc.step_size, friction=0.3), walk, mala, tempering, hmc


def run(sampler: Any, target: Target, start: Tensor, args: argparse.Namespace) -> tuple[Any, Tensor, int]:
    """The sampler at the step that no chain diverged with, the states kept of the second half, (num_kept, num_chains, dim), and the halvings."""
    half = max(1, args.evaluations // evaluations_a_step(sampler, target) // 2)
    for halvings in range(40):
        with contextlib.suppress(DivergenceError):
            trace = sample(sampler, target.energy, start, half, num_warmup=half, thinning=max(1, half // KEPT), seed=args.seed)
            return sampler, trace.x, halvings
        sampler = dataclasses.replace(sampler, step_size=sampler.step_size / 2)
    raise RuntimeError(f"funnel_and_ring: {type(sampler).__name__} diverges at every step size")


def compare(name: str, args: argparse.Namespace) -> tuple[Target, list[Result]]:
    target, n = TARGETS[name](), args.chains
    start = target.start.expand(n, -1).contiguous()
    exact, others = (target.energy.sample(n, key=Key(args.seed, 1000 + i)) for i in range(2))
    print(f"\n{name}: {n} chains, {args.evaluations} evaluations each             Kolmogorov     MMD²      ESS per 1000 evaluations  seconds")
    results: list[Result] = []
    for sampler in (None, *tuned(target, start, args)):
        label, ends, step, rest = "exact draws", others, "", ""
        if sampler is not None:
            begin, label = time.perf_counter(), type(sampler).__name__
            sampler, kept, halvings = run(sampler, target, start, args)
            seconds, ends = time.perf_counter() - begin, kept[-1]
            efficiency = float(ess(kept[:, :ESS_CHAINS]).min()) / (min(n, ESS_CHAINS) * args.evaluations / 2) * 1000
            step = f"step {getattr(sampler, 'sampler', sampler).step_size:.2g}" + (f", halved {halvings} times" if halvings else "")
            rest = f"{efficiency:25.3f}  {seconds:7.1f}"
        ranks = torch.stack(target.ranks(ends.double())).sort(1).values
        error, p_value = kolmogorov(ranks)
        results.append(Result(label, ends, ranks, error, p_value >= FALSE_ALARM))
        figures = f"{error:6.3f} {'' if results[-1].is_right else 'wrong':5}  {mmd(ends[:MMD_CHAINS], exact[:MMD_CHAINS]):8.5f}"
        print(f"  {label:>26} {step:>26} {figures}  {rest}".rstrip(), flush=True)
    return target, results


def draw(path: Path, results: dict[str, tuple[Target, list[Result]]]) -> None:
    from matplotlib.figure import Figure

    columns, figure = len(results["ring"][1]) + 1, Figure(figsize=(17.6, 8), layout="constrained")
    for row, (name, (target, rows)) in zip(figure.subplots(len(results), columns), results.items(), strict=True):
        y, x = torch.meshgrid(torch.linspace(*target.limits[2:], 300), torch.linspace(*target.limits[:2], 300), indexing="ij")
        density = target.density(x, y).numpy()
        for axes, result in zip(row, rows, strict=False):
            axes.imshow(density, origin="lower", extent=target.limits, cmap="Blues", aspect="auto", vmax=0.8 * density.max())
            axes.plot(*target.plane(result.ends[:1500]).T.numpy(), ".", ms=1.5, alpha=0.6, color="0.15" if result.is_right else "tab:red")
            axes.set(xlim=target.limits[:2], ylim=target.limits[2:], xticks=[], yticks=[], box_aspect=1)
            axes.set_title(f"{result.name}\n{result.error:.3f}{'' if result.is_right else ', wrong'}", fontsize=9)
            excess = (torch.arange(len(result.ends)) + 0.5) / len(result.ends) - result.ranks[0]
            row[-1].plot(result.ranks[0].numpy(), excess.numpy(), lw=1.2, color=None if row[-1].lines else "0.15", label=result.name)
        row[0].set_ylabel(name)
        row[-1].set(xlabel="rank", xticks=[0, 0.5, 1], box_aspect=1)
        row[-1].set_title(f"excess of draws below\na rank of {target.first_rank}", fontsize=9)
        row[-1].yaxis.tick_right()
    figure.legend(*row[-1].get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("funnel_and_ring.png"))
    parser.add_argument("--chains", type=int, default=4000)
    parser.add_argument("--evaluations", type=int, default=20_000, help="of the energy, a chain; a tenth as many on top to tune")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {name: compare(name, args) for name in TARGETS}
    for name, (_, rows) in results.items():
        print(f"\nright on the {name}: {', '.join(row.name for row in rows[1:] if row.is_right) or 'none'}", end="")
    draw(args.out, results)
    print(f"\npicture: {args.out}")


if __name__ == "__main__":
    main()
