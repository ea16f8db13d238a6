"""Which couplings made these samples? Ising models learned by persistent contrastive divergence, with Gibbs and with Gibbs-with-Gradients.

The learning experiment of Grathwohl et al. 2021 (arXiv 2102.04509, section 6): samples of a 10 x 10 torus and of a random graph, a model that
couples every pair of sites, an l1 penalty, and few steps of the persistent chains per update. What counts is the root mean square error of
J against the work spent: one evaluation of the energy for each site that Gibbs visits, a forward and a backward, two, for each step of
Gibbs-with-Gradients. (Native chains pay neither: both update a few fields. The count is what a torch energy would cost.)

    python examples/inverse_ising.py --out inverse_ising.png
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ebmcore
from ebmcore.energies import Ising
from ebmcore.samplers import Gibbs, GibbsWithGradients

SAMPLERS: dict[str, tuple[Any, int]] = {"Gibbs": (Gibbs(scan="random"), 1), "Gibbs-with-Gradients": (GibbsWithGradients(), 2)}


def random_graph(num_sites: int, num_edges: int, seed: int) -> Ising:
    """Erdős-Rényi: distinct pairs of sites, couplings uniform on ±[0.2, 0.5]."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.triu_indices(num_sites, num_sites, 1).T
    edges = pairs[torch.randperm(len(pairs), generator=generator)[:num_edges]]
    size, sign = (torch.rand(num_edges, generator=generator) for _ in range(2))
    return Ising(edges, torch.where(sign < 0.5, -1.0, 1.0) * (0.2 + 0.3 * size), num_sites=num_sites)


def learn(data: Tensor, truth: Tensor, sampler: Any, num_steps: int, args: argparse.Namespace) -> list[float]:
    """RMSE of J after each update; truth is (num_sites, num_sites)."""
    energy = Ising.complete(data.shape[1])
    energy.field.requires_grad_(False)
    optimizer = torch.optim.Adam([energy.coupling], lr=args.lr)
    first, second = energy.graph.edges.T
    data_pairs = (data.T @ data / len(data))[first, second]
    key = ebmcore.Key(args.seed + 1)
    x = torch.where(ebmcore.ops.uniform((args.chains, data.shape[1]), key=key, stream=ebmcore.ops.Stream.INIT) < 0.5, -1, 1).to(torch.int8)
    errors = []
    for _ in range(args.iterations):
        x = sampler(energy, x, num_steps, seed=key)
        key = key.advance(num_steps)
        s = x.float()
        # E is linear in J: the gradient of -log p is a difference of correlations.
        energy.coupling.grad = (s.T @ s / len(s))[first, second] - data_pairs + args.l1 * energy.coupling.detach().sign()
        optimizer.step()
        errors.append(ebmcore.evaluation.rmse(energy.coupling, truth[first, second]))
    return errors


def report(steps: list[int], curves: dict[str, list[float]]) -> None:
    """The evaluations at which Gibbs-with-Gradients reaches what Gibbs has reached, read off the straight lines of the picture."""
    (gibbs, gibbs_cost), (gwg, gwg_cost) = ((curves[label], SAMPLERS[label][1]) for label in SAMPLERS)
    for k, error in zip(steps, gibbs, strict=True):
        at = next((i for i, other in enumerate(gwg) if other <= error), None)
        if at is None:
            text = f"more than {gwg_cost * steps[-1]}"
        elif at == 0:
            text = f"{gwg_cost * steps[0]} or fewer"
        else:
            part = math.log(gwg[at - 1] / error) / math.log(gwg[at - 1] / gwg[at])
            text = f"{gwg_cost * steps[at - 1] * (steps[at] / steps[at - 1]) ** part:.1f}"
        print(f"RMSE {error:.5f}: Gibbs {gibbs_cost * k} evaluations per update, Gibbs-with-Gradients {text}")


def draw(path: Path, steps: list[int], curves: dict[str, dict[str, list[float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, (name, of_samplers) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for label, errors in of_samplers.items():
            axes.loglog([SAMPLERS[label][1] * k for k in steps], errors, "o-", label=label)
        axes.set(xlabel="energy evaluations per update", ylabel="RMSE of J", title=name)
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("inverse_ising.png"))
    parser.add_argument("--side", type=int, default=10, help="of the torus; the random graph has as many sites, and degree 4 in the mean")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5, 10, 25, 50, 100], help="of the chains in each update")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--l1", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    num_sites = args.side**2
    torus = Ising.lattice((args.side, args.side), coupling=0.25)
    models = {f"{args.side} x {args.side} torus, J = 0.25": torus, "random graph, degree 4": random_graph(num_sites, 2 * num_sites, args.seed)}
    begin = time.perf_counter()
    curves: dict[str, dict[str, list[float]]] = {}
    for name, model in models.items():
        data = Gibbs()(model, torch.ones(args.samples, *model.event_shape, dtype=torch.int8), 1000, seed=args.seed).flatten(1).float()
        truth = model.matrix().detach()
        zero = float(model.matrix().detach().square().sum() / (num_sites * (num_sites - 1))) ** 0.5
        print(f"\n{name}: {args.samples} samples; RMSE of J = 0: {zero:.5f}")
        print(f"{'steps per update':>17} {'sampler':>21} {'evaluations per update':>23} {'RMSE of J':>10}")
        curves[name] = {}
        for label, (sampler, cost) in SAMPLERS.items():
            for num_steps in args.steps:
                error = learn(data, truth, sampler, num_steps, args)[-1]
                curves[name].setdefault(label, []).append(error)
                print(f"{num_steps:17} {label:>21} {cost * num_steps:23} {error:10.5f}", flush=True)
        report(args.steps, curves[name])
    draw(args.out, args.steps, curves)
    print(f"\npicture: {args.out}; all in all {time.perf_counter() - begin:.0f} s on {torch.get_num_threads()} thread(s)")


if __name__ == "__main__":
    main()
