"""A perceptron as the density of a table's rows: outliers by their energy, and log-likelihoods by annealed importance sampling.

Scikit-learn's breast-cancer data, 30 features of 357 benign and 212 malignant tumours. Models see two thirds of the benign rows, whitened by these
rows' mean and covariance; the rest and all malignant rows are held out, and the area under the ROC curve says how well -log p(x) tells these two
apart. An `energies.MLP` learns by persistent contrastive divergence, whose chains run natively, and by denoising score matching; beside it stand
the Gaussian of the same mean and covariance, and a kernel density whose bandwidth is cross-validated. Log-likelihoods are of a held-out benign row's
standardised features, in nats. A network's log Z lies between annealed importance sampling, from below, and the reverse, from above if long chains
end in draws of the model. Splits share rows: their spread says what a split does, and not what new patients would.

    python examples/tabular_mlp.py --out tabular.png
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ebmcore import HMC, Key, KineticLangevin, losses, warm_up
from ebmcore.energies import MLP, Gaussian
from ebmcore.evaluation import ais, reverse_ais

try:
    from sklearn.datasets import load_breast_cancer
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KernelDensity
except ImportError as error:
    raise SystemExit(f"tabular_mlp: needs scikit-learn (pip install ebmcore[demo]): {error}") from error

NUM_CHAINS, STEPS_PER_UPDATE, NOISE_STD = 256, 20, 0.5


class Split(NamedTuple):
    """Whitened rows, (n, 30), and what whitening adds to the log-density of a standardised row."""

    train: Tensor
    inliers: Tensor
    outliers: Tensor
    log_det: float


class Model(NamedTuple):
    """-log p - log Z, log Z, and how far apart its two bounds are."""

    energy: Callable[[Tensor], Tensor]
    log_z: float = 0.0
    gap: float = 0.0


class Row(NamedTuple):
    auroc: float
    log_likelihood: float
    training: float  # log-likelihood of a training row
    gap: float
    seconds: float
    energies: tuple[Tensor, Tensor]  # of held-out rows, benign and malignant, normalised


def split(seed: int) -> Split:
    x, y = (torch.from_numpy(array) for array in load_breast_cancer(return_X_y=True))
    benign = x[y == 1][torch.randperm(int(y.sum()), generator=torch.Generator().manual_seed(seed))]
    train, held_out = benign.tensor_split([len(benign) * 2 // 3])
    mean, std = train.mean(0), train.std(0)
    factor = torch.linalg.cholesky(torch.cov(((train - mean) / std).T))

    def white(rows: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor, ((rows - mean) / std).T, upper=False).T.float().contiguous()

    return Split(white(train), white(held_out), white(x[y == 0]), -float(factor.diagonal().log().sum()))


def gaussian(data: Split, args: argparse.Namespace, seed: int) -> Model:
    """Of the training rows' mean and covariance, which are 0 and 1 here."""
    return Model(lambda x: 0.5 * x.square().sum(1), 0.5 * data.train.shape[1] * math.log(2 * math.pi))


def kernel_density(data: Split, args: argparse.Namespace, seed: int) -> Model:
    search = GridSearchCV(KernelDensity(), {"bandwidth": [0.3 * 1.2**i for i in range(12)]}, cv=5).fit(data.train.numpy())
    return Model(lambda x: torch.from_numpy(-search.best_estimator_.score_samples(x.numpy())))


def trained(data: Split, args: argparse.Namespace, seed: int, loss: Callable[[MLP, Tensor, int], Tensor]) -> MLP:
    torch.manual_seed(seed)
    network = MLP(data.train.shape[1], hidden=(64, 64))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.3, betas=(0.5, 0.99))
    for update in range(args.updates):
        rows = data.train[torch.randint(len(data.train), (128,))]
        optimizer.zero_grad()
        loss(network, rows, update).backward()
        optimizer.step()
    return network.requires_grad_(False)


def with_log_z(network: MLP, data: Split, args: argparse.Namespace, seed: int) -> Model:
    """log Z halfway between its bounds, from a normal a little wider than the training rows."""
    dim = data.train.shape[1]
    base, hmc = Gaussian(torch.zeros(dim), covariance=torch.full((dim,), 2.0)), HMC(0.2, 5, jitter=0.5)
    tuned, x = warm_up(hmc, network, data.train[torch.arange(args.ais_chains) % len(data.train)], 100, seed=seed)
    x = tuned(network, x, 10 * args.temperatures, seed=Key(seed, 1000))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*effective sample size", RuntimeWarning)  # the gap says it
        low = ais(network, base, hmc, num_chains=args.ais_chains, betas=args.temperatures, seed=seed).log_z
        high = reverse_ais(network, base, hmc, x, betas=args.temperatures, seed=Key(seed, 2 * 10**6)).log_z
    return Model(network, 0.5 * (low + high), high - low)


def contrastive_divergence(data: Split, args: argparse.Namespace, seed: int) -> Model:
    sampler, chains = KineticLangevin(0.3, friction=1.0), torch.randn(NUM_CHAINS, data.train.shape[1])

    def loss(network: MLP, x: Tensor, update: int) -> Tensor:
        nonlocal chains
        chains = sampler(network, chains, STEPS_PER_UPDATE, seed=Key(seed, update * STEPS_PER_UPDATE))
        return losses.contrastive_divergence(network, x, chains, energy_l2=1e-3)

    return with_log_z(trained(data, args, seed, loss), data, args, seed)


def score_matching(data: Split, args: argparse.Namespace, seed: int) -> Model:
    def loss(network: MLP, x: Tensor, update: int) -> Tensor:
        return losses.denoising_score_matching(network, x, NOISE_STD, key=Key(seed, update))

    return with_log_z(trained(data, args, seed, loss), data, args, seed)


MODELS: dict[str, Callable[[Split, argparse.Namespace, int], Model]] = {
    "Gaussian": gaussian,
    "kernel density": kernel_density,
    "MLP, contrastive divergence": contrastive_divergence,
    "MLP, denoising": score_matching,
}


def judge(name: str, data: Split, args: argparse.Namespace, seed: int) -> Row:
    begin = time.perf_counter()
    energy, log_z, gap = MODELS[name](data, args, seed)
    seconds = time.perf_counter() - begin
    train, inliers, outliers = (energy(rows).double() + log_z - data.log_det for rows in (data.train, data.inliers, data.outliers))
    auroc = float(roc_auc_score([0] * len(inliers) + [1] * len(outliers), torch.cat((inliers, outliers)).numpy()))
    return Row(auroc, -float(inliers.mean()), -float(train.mean()), gap, seconds, (inliers, outliers))


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def draw(path: Path, results: dict[str, list[Row]]) -> None:
    from matplotlib.figure import Figure

    figure, edges = Figure(figsize=(15, 4), layout="constrained"), (10 * torch.linspace(-1.5, 6.0, 45).sinh()).numpy()
    panels = figure.subplots(1, 3)
    for axes, name in zip(panels, ("Gaussian", "MLP, contrastive divergence"), strict=False):
        axes.hist([values.numpy() for values in results[name][0].energies], edges, histtype="stepfilled", alpha=0.6, label=["benign", "malignant"])
        axes.set_xscale("asinh", linear_width=10)
        axes.set_xticks([-10, 0, 10, 100, 1000], ["-10", "0", "10", "100", "1000"])
        axes.set(title=f"{name}: held-out rows, AUROC {results[name][0].auroc:.3f}", xlabel="-log p(x), nats")
        axes.legend()
    for (name, rows), marker in zip(results.items(), "sDo^", strict=True):
        panels[2].plot([row.log_likelihood for row in rows], [row.auroc for row in rows], marker, alpha=0.8, label=name)
    panels[2].set(title=f"{len(rows)} splits", xlabel="log-likelihood of a held-out benign row, nats", ylabel="AUROC")
    panels[2].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("tabular_mlp.png"))
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--ais-chains", type=int, default=200)
    parser.add_argument("--temperatures", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data, results = [split(args.seed + i) for i in range(args.splits)], {}
    print(f"{args.splits} splits of {len(data[0].train)} benign rows to train on, {len(data[0].inliers)} held out, {len(data[0].outliers)} malignant")
    print(f"{'':28}   AUROC            minus the Gaussian's   log-likelihood  of training rows  log Z bounds apart  seconds a split")
    for name in MODELS:
        rows = results[name] = [judge(name, each, args, args.seed + i) for i, each in enumerate(data)]
        gains = [row.auroc - first.auroc for row, first in zip(rows, results["Gaussian"], strict=True)]
        auroc, gain, likelihood = map(mean_and_error, ([row.auroc for row in rows], gains, [row.log_likelihood for row in rows]))
        training, gap, seconds = (statistics.mean(values) for values in zip(*(row[2:5] for row in rows), strict=True))
        columns = f"{auroc[0]:.4f} ± {auroc[1]:.4f}  {gain[0]:+.4f} ± {gain[1]:.4f}      {likelihood[0]:7.2f} ± {likelihood[1]:.2f}"
        print(f"{name:>28}   {columns}  {training:16.2f}  {gap:18.2f}  {seconds:15.1f}", flush=True)
    draw(args.out, results)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
