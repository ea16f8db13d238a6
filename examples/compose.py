"""Energies put together: two learnt energy networks and a learnt flow, as products, a mixture and a negation, sampled jointly.

The networks learn a ring and two bars by exact score matching, the flow (affine couplings with a log_prob, nothing of ebmcore) a crescent by
maximum likelihood. Nothing is trained for the compositions. Each is sampled by parallel tempering over MALA with one call of every part a step,
and the samples are compared with the composition's own density, which in the plane a grid normalises: the total variation over 16 x 16 cells,
beside that of as many independent draws.

    python examples/compose.py --out compose.png
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ebmcore import MALA, Key, ParallelTempering, losses, warm_up
from ebmcore.energies import MLP, mixture, negate, product
from ebmcore.testing import count_evaluations

SIDE, CELLS, POINTS = 4.5, 16, 16  # of the square [-SIDE, SIDE]²: cells a side, grid points a side of a cell
LADDER = tuple(1.6**r for r in range(7))


def ring(n: int) -> Tensor:
    angle, radius = 2 * math.pi * torch.rand(n), 2 + 0.25 * torch.randn(n)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), 1)


def bars(n: int) -> Tensor:
    return torch.stack((1.4 * (2 * torch.randint(2, (n,)) - 1) + 0.3 * torch.randn(n), 1.2 * torch.randn(n)), 1)


def crescent(n: int) -> Tensor:
    z = torch.randn(n, 2)
    return torch.stack((1.2 * z[:, 0], 0.5 * z[:, 0] ** 2 - 1.2 + 0.35 * z[:, 1]), 1)


class Flow(nn.Module):
    """Affine couplings (Dinh, Sohl-Dickstein & Bengio 2017) between the two coordinates in turn."""

    def __init__(self, num_layers: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 2)) for _ in range(num_layers))

    def log_prob(self, x: Tensor) -> Tensor:
        log_det = torch.zeros_like(x[:, 0])
        for i, layer in enumerate(self.layers):
            kept, moved = x[:, i % 2, None], x[:, 1 - i % 2, None]
            shift, log_scale = layer(kept).chunk(2, 1)
            moved = (moved - shift) * (-2 * torch.tanh(log_scale)).exp()
            log_det = log_det - 2 * torch.tanh(log_scale)[:, 0]
            x = torch.cat((kept, moved) if i % 2 == 0 else (moved, kept), 1)
        log_p: Tensor = Independent(Normal(torch.zeros(2), 1.0), 1).log_prob(x) + log_det
        return log_p


def train(model: nn.Module, loss: Callable[[Tensor], Tensor], data: Callable[[int], Tensor], updates: int, what: str) -> Any:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=updates, pct_start=0.1)
    begin, recent = time.perf_counter(), []
    for _ in range(updates):
        optimizer.zero_grad()
        value = loss(data(512))
        value.backward()
        optimizer.step()
        schedule.step()
        recent = [*recent[-99:], float(value.detach())]
    print(f"{what}: loss {sum(recent) / len(recent):.3f} after {updates} updates, {time.perf_counter() - begin:.1f} s")
    return model.requires_grad_(False)


def grid() -> Tensor:
    """The centres of small squares, (CELLS · POINTS)² of them, row by row."""
    side = CELLS * POINTS
    axis = (torch.arange(side) + 0.5) * (2 * SIDE / side) - SIDE
    return torch.cartesian_prod(axis, axis)


def density(energy: Any) -> tuple[Tensor, float]:
    """exp(-E) / Z at the grid, (side, side) float64, and log Z, in the square."""
    with torch.no_grad():
        values = -torch.cat([energy(x) for x in grid().split(2**15)]).double()
    side, log_z = CELLS * POINTS, float(values.logsumexp(0)) + 2 * math.log(2 * SIDE / (CELLS * POINTS))
    return (values - log_z).exp().reshape(side, side), log_z


def cells_of(density: Tensor) -> Tensor:
    return density.reshape(CELLS, POINTS, CELLS, POINTS).sum((1, 3)).flatten() * (2 * SIDE / (CELLS * POINTS)) ** 2


def sample(energy: Any, args: argparse.Namespace) -> Tensor:
    """Chains that start anywhere, at a step size found in warm-up."""
    start = 2 * torch.randn(args.chains, 2, generator=torch.Generator().manual_seed(args.seed))
    mala, start = warm_up(MALA(0.05), energy, start, args.steps // 2, seed=args.seed)
    return ParallelTempering(mala, LADDER, scale_steps=True)(energy, start, args.steps, seed=Key(args.seed, args.steps))


def judge(name: str, energy: Any, parts: list[Any], args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    before = [part.num_evaluations for part in parts]
    x = sample(energy, args)
    calls = {part.num_evaluations - count for part, count in zip(parts, before, strict=True)} - {0}
    exact, _ = density(energy)
    probabilities = cells_of(exact)
    place = ((x + SIDE) / (2 * SIDE) * CELLS).long().clamp(0, CELLS - 1)
    counts = torch.bincount(place[:, 0] * CELLS + place[:, 1], minlength=CELLS**2) / len(x)
    fresh = torch.bincount(torch.multinomial(probabilities, len(x), replacement=True), minlength=CELLS**2) / len(x)
    distance, noise = (0.5 * float((c - probabilities).abs().sum()) for c in (counts, fresh))
    print(f"{name:>28}: total variation {distance:.3f}, of as many independent draws {noise:.3f}; {', '.join(map(str, calls))} calls of each part")
    return x, exact


def draw(path: Path, pictures: dict[str, tuple[Tensor | None, Tensor]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    for axes, (name, (x, exact)) in zip(figure.subplots(2, 4).flat, pictures.items(), strict=False):
        extent = (-SIDE, SIDE, -SIDE, SIDE)
        axes.imshow(exact.T.numpy(), origin="lower", extent=extent, cmap="Blues", vmax=float(exact.max()) * 0.8)
        if x is not None:
            axes.plot(*x[:1000].T.numpy(), ".", ms=1.5, color="tab:red")
        axes.set(title=name, xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("compose.png"))
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    prior = Independent(Normal(torch.zeros(2), 3.0), 1)  # holds the networks together far from their data
    learnt = []
    for data in (ring, bars):
        network = product(MLP(2), prior)
        learnt.append(train(network, lambda x, e=network: losses.score_matching(e, x), data, args.updates, f"{data.__name__}, score matching"))
    flow = Flow()
    train(flow, lambda x: -flow.log_prob(x).mean(), crescent, args.updates, "crescent, maximum likelihood of the flow")
    parts = [count_evaluations(part) for part in (*learnt, lambda x: -flow.log_prob(x))]
    log_z = [density(part)[1] for part in parts]
    compositions = {
        "ring · bars": product(parts[0], parts[1]),
        "ring · crescent": product(parts[0], parts[2]),
        "(ring + bars + crescent) / 3": mixture([1.0, 1.0, 1.0], parts, log_z),
        "ring · (bars + crescent) / 2": product(parts[0], mixture([1.0, 1.0], parts[1:], log_z[1:])),
        "ring / bars^0.3": product(parts[0], negate(parts[1], 0.3)),
    }
    pictures: dict[str, tuple[Tensor | None, Tensor]] = {
        name: (None, density(part)[0]) for name, part in zip(("ring", "bars", "crescent (flow)"), parts, strict=True)
    }
    for name, energy in compositions.items():
        pictures[name] = judge(name, energy, parts, args)
    draw(args.out, pictures)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
