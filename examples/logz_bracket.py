"""log Z between two bounds: annealed importance sampling from below, reverse annealed importance sampling from above, the exact value between.

Chains that start in a normal distribution and end in the model estimate Z without bias (Neal 2001), chains that start at exact draws of the
model and end in the normal estimate 1/Z without bias (Grosse, Ghahramani & Adams 2015). The logarithms are therefore too low and too high on
average, and close in on log Z as temperatures are added; one temperature is plain importance sampling. The energies:

    ring      in two dimensions, log Z in closed form
    wells     twelve double wells, so 4096 modes, log Z known to 1e-13
    network   a random perceptron on top of ½|x|² in two dimensions, log Z by quadrature, draws by rejection
    funnel    in ten dimensions (Neal 2003): the chains from the normal never find its neck, and their error bar does not know it. Only the
              gap to the other bound tells.

    python examples/logz_bracket.py --out bracket.png
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebmcore import HMC, MALA, Key, ops
from ebmcore.energies import DoubleWell, Funnel, Gaussian, Ring
from ebmcore.evaluation import AISResult, ais, exact_log_z, reverse_ais
from ebmcore.types import EnergyFn


class Problem(NamedTuple):
    """An energy with its exact log Z and exact draws (num, key) -> (num, dim), and how it is annealed from `base`."""

    energy: EnergyFn
    log_z: float
    draw: Callable[[int, Key], Tensor]
    base: Gaussian
    sampler: Any
    power: float = 1.0  # β_k = (k / K)^power: where energies change fast near β = 0, more temperatures lie there


class Perceptron(nn.Module):
    """½|x|² + f(x), f a sum of hyperbolic tangents, so that |f| is at most the sum of its weights."""

    def __init__(self, num_hidden: int, seed: int) -> None:
        super().__init__()
        w, b, v = ops.normal((3, num_hidden, 2), key=Key(seed), dtype=torch.float64).unbind()
        self.register_buffer("w", 2 * w)
        self.register_buffer("b", 2 * b[:, 0])
        self.register_buffer("v", v[:, 0] * (4 / v[:, 0].abs().sum()))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(1) + torch.tanh(x @ self.w.T.to(x) + self.b.to(x)) @ self.v.to(x)

    def draw(self, num: int, key: Key) -> Tensor:
        """By rejection: a standard normal x is kept with probability exp(-f(x) - max |f|)."""
        kept, count = [], 0
        while count < num:
            x = ops.normal((4096, 2), key=key, dtype=torch.float64)
            u = ops.uniform((4096,), key=key, stream=ops.Stream.ACCEPTANCE, dtype=torch.float64)
            log_ratio = 0.5 * x.square().sum(1) - self(x) - self.v.abs().sum()
            kept.append(x[u.log() < log_ratio])
            count, key = count + len(kept[-1]), key.advance()
        return torch.cat(kept)[:num].float()


def normal(dim: int, std: float) -> Gaussian:
    return Gaussian(torch.zeros(dim), covariance=torch.full((dim,), std**2))


def problems(seed: int) -> dict[str, Problem]:
    ring, wells, funnel, network = Ring(3.0, 0.1), DoubleWell(4.0, 1.0, dim=12), Funnel(10), Perceptron(32, seed)

    def exact(energy: Any) -> dict[str, Any]:
        return {"energy": energy, "log_z": energy.log_z, "draw": lambda num, key: energy.sample(num, key=key)}

    bounds = (-math.inf, math.inf)
    return {
        # Steps shrink as the wall of the ring grows: of the order of its width squared.
        "ring": Problem(**exact(ring), base=normal(2, 2.0), sampler=lambda beta: MALA(0.5 / (1 + 99 * beta))),
        "wells": Problem(**exact(wells), base=normal(12, 1.0), sampler=MALA(0.02)),
        "network": Problem(network, exact_log_z(network, (2,), bounds=bounds), network.draw, normal(2, 1.0), MALA(0.2)),
        "funnel": Problem(**exact(funnel), base=normal(10, 3.0), sampler=HMC(0.3, 5, jitter=0.9), power=4.0),
    }


def bracket(problem: Problem, num_chains: int, num_temperatures: int, seed: int) -> tuple[AISResult, AISResult]:
    """The estimates from below and from above."""
    energy, _, draw, base, sampler, power = problem
    betas = [(k / num_temperatures) ** power for k in range(num_temperatures + 1)]
    key = Key(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*effective sample size", RuntimeWarning)  # it is in the table
        low = ais(energy, base, sampler, num_chains=num_chains, betas=betas, seed=key)
        high = reverse_ais(energy, base, sampler, draw(num_chains, Key(seed + 1)), betas=betas, seed=Key(seed + 2))
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("logz_bracket.png"))
    parser.add_argument("--temperatures", type=int, nargs="+", default=[1, 3, 10, 30, 100, 300, 1000])
    parser.add_argument("--chains", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    results: dict[str, list[tuple[AISResult, AISResult]]] = {}
    chosen = problems(args.seed)
    print(f"estimates minus log Z ± bootstrap error (effective sample size of {args.chains} chains)")
    for name, problem in chosen.items():
        print(f"{name}: log Z = {problem.log_z:.6f}\n  temperatures           AIS, from below        reverse AIS, from above   seconds")
        results[name] = []
        for num_temperatures in args.temperatures:
            begin = time.perf_counter()
            pair = bracket(problem, args.chains, num_temperatures, args.seed)
            results[name].append(pair)
            columns = (f"{r.log_z - problem.log_z:+9.4f} ± {r.standard_error:.4f} ({r.effective_sample_size:6.1f})" for r in pair)
            print(f"  {num_temperatures:12}  {'  '.join(columns)}  {time.perf_counter() - begin:8.2f}", flush=True)
        low, high = results[name][-1]
        inside = low.interval[0] <= problem.log_z <= high.interval[1]
        print(f"  bracket [{low.interval[0]:.4f}, {high.interval[1]:.4f}]: log Z is {'inside' if inside else 'outside'}")
    draw_picture(args.out, args.temperatures, results, chosen)
    print(f"picture: {args.out}")


def draw_picture(path: Path, temperatures: list[int], results: dict[str, list[tuple[AISResult, AISResult]]], chosen: dict[str, Problem]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4), layout="constrained")
    for axes, (name, pairs) in zip(figure.subplots(1, len(results)), results.items(), strict=True):
        for column, (label, colour) in enumerate((("AIS", "tab:blue"), ("reverse AIS", "tab:red"))):
            estimates = [pair[column] for pair in pairs]
            centre = [r.log_z - chosen[name].log_z for r in estimates]
            sides = [[r.log_z - r.interval[0] for r in estimates], [r.interval[1] - r.log_z for r in estimates]]
            sides = [[max(0.0, side) if math.isfinite(side) else 0.0 for side in row] for row in sides]
            axes.errorbar(temperatures, centre, sides, marker="o", capsize=3, color=colour, label=f"{label}, 95 % of bootstrap")
            means = [(1 - 2 * column) * float(r.log_weights.mean()) - chosen[name].log_z for r in estimates]
            axes.plot(temperatures, means, "--", color=colour, label=f"{label}, mean log weight")
        axes.axhline(0.0, color="black", linewidth=0.8)
        axes.set(title=name, xscale="log", xlabel="temperatures")
        if max(abs(value) for value in axes.get_ylim()) > 1:
            axes.set_yscale("symlog", linthresh=0.1)
    figure.axes[0].set_ylabel("estimate of log Z, minus log Z")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
