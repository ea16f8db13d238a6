"""A Potts model of a protein family: direct couplings between alignment columns, learned by persistent contrastive divergence.

E(x) = -Σ_i h_i[x_i] - Σ_{i<j} J_ij[x_i, x_j] of aligned sequences, 21 letters with the gap, as in direct coupling analysis (Weigt et al.
2009; by Monte Carlo: Figliuzzi, Barrat-Charbuau & Weigt 2018). Sequences are weighted by one over the number of those that agree with them
in 80 % of the columns. The model is judged by fresh chains, started at independent columns: do their connected pair frequencies
C_ij(a, b) = f_ij(a, b) - f_i(a) f_j(b) agree with the weighted ones of the alignment?

    python examples/protein_potts.py --data 1atzA.aln --out protein.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

import ebmcore
from ebmcore.energies import Potts
from ebmcore.graph import Graph
from ebmcore.samplers import Gibbs

LETTERS = "-ACDEFGHIKLMNPQRSTVWY"
Q = len(LETTERS)


def load(path: Path) -> Tensor:
    """One aligned sequence a line, '.' and unknown letters as gaps: tokens (num_sequences, num_columns)."""
    lines = [line.strip().upper() for line in path.read_text().splitlines() if line.strip() and not line.startswith(">")]
    if len({len(line) for line in lines}) != 1:
        raise SystemExit(f"{path}: must have lines of one length")
    return torch.tensor([[max(LETTERS.find(letter), 0) for letter in line] for line in lines], dtype=torch.uint8)


def weights_of(x: Tensor, identity: float = 0.8) -> Tensor:
    """Weights of the sequences, summing to 1."""
    rows = one_hot(x)
    neighbours = torch.cat([(part @ rows.T >= identity * x.shape[1]).sum(1) for part in rows.split(1000)])
    weights = 1 / neighbours
    print(f"{len(x)} sequences of {x.shape[1]} columns, {float(weights.sum()):.0f} effective ones at {identity:.0%} identity")
    return weights / weights.sum()


def one_hot(x: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(x.long(), Q).float().flatten(1)


def frequencies(x: Tensor, weights: Tensor | None, edges: Tensor) -> tuple[Tensor, Tensor]:
    """f_i(a), (num_columns, Q), and f_ij(a, b), (num_edges, Q, Q)."""
    rows = one_hot(x)
    weighted = rows / len(x) if weights is None else rows * weights[:, None]
    n = x.shape[1]
    pairs = (weighted.T @ rows).reshape(n, Q, n, Q)
    first, second = edges.T
    return weighted.sum(0).reshape(n, Q), pairs[first, :, second, :]


def connected(single: Tensor, pairs: Tensor, edges: Tensor) -> Tensor:
    first, second = edges.T
    return pairs - single[first][:, :, None] * single[second][:, None, :]


def pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


def independent(single: Tensor, num_chains: int, seed: int) -> Tensor:
    """Sequences whose columns are drawn each by itself."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(single, num_chains, replacement=True, generator=generator).T.contiguous().to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="alignment, one sequence a line")
    parser.add_argument("--out", type=Path, default=Path("protein_potts.png"))
    parser.add_argument("--iterations", type=int, default=1200)
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--sweeps", type=int, default=4, help="Gibbs sweeps of the persistent chains in each iteration")
    parser.add_argument("--lr", type=float, default=0.15, help="falls linearly to 0")
    parser.add_argument("--l2", type=float, default=0.005, help="weight of ½ Σ J²")
    parser.add_argument("--fresh", type=int, default=10_000, help="chains that judge the model")
    parser.add_argument("--fresh-sweeps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    data = load(args.data)
    weights = weights_of(data)
    graph = Graph.complete(data.shape[1])
    data_single, data_pairs = frequencies(data, weights, graph.edges)
    target = connected(data_single, data_pairs, graph.edges)

    field = (data_single + 1e-4).log()
    energy = Potts(graph, Q, torch.zeros(graph.num_edges, Q, Q), field - field.mean(1, keepdim=True))
    optimizer = torch.optim.SGD(energy.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, args.iterations)
    sampler, key = Gibbs(), ebmcore.Key(args.seed)
    chains = independent(data_single, args.chains, args.seed)
    begin = time.perf_counter()
    sampling = 0.0
    for iteration in range(args.iterations):
        start = time.perf_counter()
        chains = sampler(energy, chains, args.sweeps, seed=key)
        key = key.advance(args.sweeps)
        sampling += time.perf_counter() - start
        single, pairs = frequencies(chains, None, graph.edges)
        # E is linear in its parameters: the gradient of -log p is a difference of frequencies.
        energy.field.grad = single - data_single
        energy.coupling.grad = pairs - data_pairs + args.l2 * energy.coupling.detach()
        optimizer.step()
        schedule.step()
        if iteration % 100 == 0 or iteration == args.iterations - 1:
            r = pearson(connected(single, pairs, graph.edges), target)
            seconds = time.perf_counter() - begin
            print(
                f"iteration {iteration:5}  {seconds:5.0f} s ({sampling:.0f} s sampling)  pairs of the persistent chains: Pearson {r:.3f}", flush=True
            )

    print(f"{args.fresh} fresh chains from independent columns:")
    fresh = independent(data_single, args.fresh, args.seed + 1)
    key = ebmcore.Key(args.seed + 1)
    for num_sweeps in (args.fresh_sweeps // 3, args.fresh_sweeps - args.fresh_sweeps // 3):
        fresh = sampler(energy, fresh, num_sweeps, seed=key)
        key = key.advance(num_sweeps)
        single, pairs = frequencies(fresh, None, graph.edges)
        found = connected(single, pairs, graph.edges)
        figures = f"Pearson of C_ij(a, b) {pearson(found, target):.4f}, of f_i(a) {pearson(single, data_single):.4f}"
        print(f"after {key.step:4} sweeps: {figures}  (against the reweighted alignment, which the model was trained on)", flush=True)
    print(f"all in all {time.perf_counter() - begin:.0f} s on {torch.get_num_threads()} thread(s)")
    draw(args.out, energy, target, found, data_single, single)
    print(f"picture: {args.out}")


def contacts(energy: Potts) -> Tensor:
    """Scores of column pairs, (num_columns, num_columns): Frobenius norms of J without the gap, in zero-sum gauge, less the average product."""
    j = energy.coupling.detach()
    j = j - j.mean(1, keepdim=True) - j.mean(2, keepdim=True) + j.mean((1, 2), keepdim=True)
    first, second = energy.graph.edges.T
    score = torch.zeros(energy.graph.num_sites, energy.graph.num_sites)
    score[first, second] = score[second, first] = j[:, 1:, 1:].square().sum((1, 2)).sqrt()
    mean = score.sum(0) / (len(score) - 1)
    return (score - mean[:, None] * mean / mean.mean()).fill_diagonal_(0)


def draw(path: Path, energy: Potts, target: Tensor, found: Tensor, data_single: Tensor, single: Tensor) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.hexbin(target.flatten().numpy(), found.flatten().numpy(), gridsize=120, bins="log", mincnt=1)
    left.axline((0, 0), slope=1, color="k", lw=0.5)
    left.set(xlabel="C_ij(a, b) of the reweighted alignment", ylabel="of fresh samples", title=f"Pearson {pearson(target, found):.3f}")
    middle.plot(data_single.flatten(), single.flatten(), ".", ms=3)
    middle.axline((0, 0), slope=1, color="k", lw=0.5)
    middle.set(xlabel="f_i(a) of the reweighted alignment", ylabel="of fresh samples", title=f"Pearson {pearson(data_single, single):.4f}")
    right.imshow(contacts(energy).clamp(min=0).numpy(), cmap="Greys", origin="lower")
    right.set(xlabel="column", ylabel="column", title="coupling strength (average product corrected)")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
