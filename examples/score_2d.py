"""Which vector field does each score matching loss learn? A ring of 8 Gaussians in the plane, and a Gaussian in 10 dimensions.

Energies, whose field -∇E is conservative, and free fields learn by each loss. What counts is the Fisher divergence ½ E|s - ∇ log p|² on fresh draws
against the time of an update. Its Monte Carlo limit is that of the maximum-likelihood fit of the true family to the same data (the Gaussian's mean
and covariance; the mixture's weights, means and covariances, by EM from the true ones): no regular estimator of that family is better asymptotically.
Quadratic energies and linear fields are of the family, networks are not. Denoising learns the score of data blurred by its noise, whose divergence
from that of the data is printed too.

    python examples/score_2d.py --out score_2d.png
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from ebmcore import Key, losses
from ebmcore.energies import MLP
from ebmcore.networks import ScoreMLP

LOSSES: dict[str, Any] = {
    "exact": lambda model, x, key, noise, args: losses.score_matching(model, x),
    "sliced": lambda model, x, key, noise, args: losses.sliced_score_matching(model, x, key=key),
    "finite differences": lambda model, x, key, noise, args: losses.finite_difference_score_matching(model, x, epsilon=0.03, key=key),
    "denoising": lambda model, x, key, noise, args: losses.denoising_score_matching(model, x, args.noise_std, key=key),
    "noise-contrastive": lambda model, x, key, noise, args: losses.noise_contrastive(model, x, noise.sample((len(x),)), noise),
}


class Quadratic(nn.Module):
    """E = ½ |A (x - m)|² + c."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.A, self.m = nn.Parameter(torch.eye(num_inputs)), nn.Parameter(torch.zeros(num_inputs))
        self.c = nn.Parameter(torch.tensor(0.5 * num_inputs * math.log(2 * math.pi)))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x - self.m) @ self.A.T).square().sum(1) + self.c


COLOURS = dict(zip(LOSSES, ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple"), strict=True))
MARKERS = {"energy network": "o", "free network": "s", "quadratic energy": "^", "linear field": "D"}
SETTINGS = {"mixture": (3000, 1e-2), "gaussian": (1500, 3e-3)}  # updates, and the highest learning rate of networks
MODELS: dict[str, dict[str, Any]] = {
    "mixture": {"energy network": MLP, "free network": ScoreMLP},
    "gaussian": {"quadratic energy": Quadratic, "linear field": lambda n: ScoreMLP(n, hidden=()), "energy network": MLP, "free network": ScoreMLP},
}


class Row(NamedTuple):
    model: str
    loss: str
    divergence: float
    milliseconds: float
    network: Any


def density(target: str, noise_std: float = 0.0) -> Any:
    """The target, blurred by normal noise."""
    if target == "mixture":
        angle = torch.arange(8) * (math.pi / 4)
        means = 2 * torch.stack((angle.cos(), angle.sin()), 1)
        return MixtureSameFamily(Categorical(torch.ones(8)), MultivariateNormal(means, (0.3**2 + noise_std**2) * torch.eye(2)))
    axes = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(0)))[0]
    factor = axes * (torch.logspace(math.log10(0.25), math.log10(4), 10) + noise_std**2).sqrt()
    return MultivariateNormal(torch.arange(10) / 10, factor @ factor.T)


def fitted(target: str, x: Tensor) -> Any:
    """The maximum-likelihood fit of the target's family."""
    if target == "gaussian":
        return MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    fit = GaussianMixture(8, means_init=density(target).component_distribution.mean.numpy(), tol=1e-7, random_state=0).fit(x.numpy())
    weights, means, covariances = (torch.as_tensor(value, dtype=x.dtype) for value in (fit.weights_, fit.means_, fit.covariances_))
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))


def field(model: Any, x: Tensor) -> Tensor:
    """The score at x: of a density, of an energy (-∇E), or of a field, which is one."""
    x = x.detach().requires_grad_()
    is_density = hasattr(model, "log_prob")
    value = model.log_prob(x) if is_density else model(x)
    return value.detach() if value.dim() == 2 else torch.autograd.grad(value.sum() if is_density else -value.sum(), x)[0]


def fisher_divergence(s: Tensor, truth: Tensor) -> tuple[float, float]:
    """½ E|s - truth|² and its standard error."""
    each = 0.5 * (s - truth).square().sum(1)
    return float(each.mean()), float(each.std()) / math.sqrt(len(each))


def train(model: nn.Module, loss: Any, x: Tensor, noise: Any, updates: int, lr: float, args: Any) -> float:
    """Returns the median milliseconds of an update, of the processor's time: other work on the machine does not count."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=updates, pct_start=0.1, cycle_momentum=False)
    times = []
    for i in range(updates):
        begin = time.process_time()
        optimizer.zero_grad()
        loss(model, x[torch.randint(len(x), (args.batch_size,))], Key(args.seed, i), noise, args).backward()
        optimizer.step()
        times.append(1e3 * (time.process_time() - begin))
        schedule.step()
    return statistics.median(times)


def compare(target: str, args: argparse.Namespace) -> tuple[list[Row], float]:
    """Prints the table of a target. Returns its rows and the Monte Carlo limit."""
    torch.manual_seed(args.seed)
    p, (updates, lr) = density(target), SETTINGS[target]
    x, fresh, updates = p.sample((args.samples,)), p.sample((20_000,)), args.updates or updates
    truth, noise = field(p, fresh), Independent(Normal(x.mean(0), x.std(0)), 1)
    limit, blurred = (fisher_divergence(field(q, fresh), truth)[0] for q in (fitted(target, x), density(target, args.noise_std)))
    print(f"\n{target}: {args.samples} samples, {updates} updates with {args.batch_size}; s = 0 has {fisher_divergence(0 * truth, truth)[0]:.3f}")
    print(f"Monte Carlo limit, the maximum-likelihood fit: {limit:.5f}; of the score blurred by σ = {args.noise_std}, for denoising: {blurred:.5f}")
    print(f"{'model':>16} {'loss':>18} {'Fisher divergence':>19} {'over the limit':>15} {'cosine':>7} {'ms per update':>14}")
    rows = []
    for kind, build in MODELS[target].items():
        for name, loss in LOSSES.items():
            if name == "noise-contrastive" and "energy" not in kind:
                continue  # a field has no density to be told from the noise by
            torch.manual_seed(args.seed)
            model = build(x.shape[1])
            milliseconds, s = train(model, loss, x, noise, updates, lr if "network" in kind else 2e-2, args), field(model, fresh)
            value, error = fisher_divergence(s, truth)
            cosine = torch.cosine_similarity(s.flatten(), truth.flatten(), 0)
            print(f"{kind:>16} {name:>18} {value:10.5f} ± {error:.5f} {value / limit:15.1f} {cosine:7.4f} {milliseconds:14.2f}", flush=True)
            rows.append(Row(kind, name, value, milliseconds, model))
    return rows, limit


def draw(path: Path, results: dict[str, tuple[list[Row], float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 5.9), layout="constrained")
    axes = figure.subplots(2, 6)
    for place, target in ((axes[1, 0], "mixture"), (axes[1, 5], "gaussian")):
        chart(place, target, *results[target]) if target in results else place.set_axis_off()
    figure.colorbar(arrows(axes[0, 0], "data and true score", density("mixture")), ax=axes[0, 5], label="|s - ∇ log p|", extend="both")
    axes[0, 0].plot(*density("mixture").sample((500,)).T.numpy(), ".", ms=2)
    for place, row in zip((*axes[0, 1:], *axes[1, 1:5]), results.get("mixture", ((), 0))[0], strict=False):
        arrows(place, f"{row.loss}: {row.divergence:.3f}", row.network)
        place.title.set_color(COLOURS[row.loss])
        place.set_ylabel(row.model if row.loss == "exact" else "")
    figure.savefig(path, dpi=130)


def arrows(axes: Any, title: str, model: Any) -> Any:
    """The field in arrows as long as √|s|, above its error where 99.7 % of the data are."""
    side, p = torch.linspace(-2.9, 2.9, 117), density("mixture")
    points = torch.cartesian_prod(side, side)
    error, log_p = (field(model, points) - field(p, points)).norm(dim=1), p.log_prob(points)
    error = torch.where(log_p > log_p.max() - 6, error.clamp(min=1e-9), math.nan)
    picture = axes.pcolormesh(*2 * [side.numpy()], error.reshape(117, 117).T.numpy(), norm="log", vmin=0.05, vmax=5, cmap="YlOrRd", rasterized=True)
    points = torch.cartesian_prod(side[2::7], side[2::7])
    s = field(model, points)
    axes.quiver(*points.T.numpy(), *(s / s.norm(dim=1, keepdim=True).sqrt()).T.numpy(), scale=60, width=0.005, pivot="mid", color="0.2")
    axes.set(title=title, xticks=[], yticks=[], aspect="equal")
    return picture


def chart(axes: Any, title: str, rows: list[Row], limit: float) -> None:
    for row in rows:
        label = row.model if row.loss == "exact" else None
        axes.loglog(row.milliseconds, row.divergence, MARKERS[row.model], color=COLOURS[row.loss], mfc="none", label=label)
    axes.axhline(limit, color="0.5", ls="--", lw=1, label="Monte Carlo limit")
    axes.set(title=title, xlabel="ms per update", ylabel="Fisher divergence", xlim=(0.2, 60))
    axes.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("score_2d.png"))
    parser.add_argument("--target", choices=(*MODELS, "both"), default="both")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--updates", type=int, help="default: 3000 for the mixture, 1500 for the Gaussian")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--noise-std", type=float, default=0.1, help="of denoising")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    draw(args.out, {target: compare(target, args) for target in MODELS if args.target in (target, "both")})
    print(f"\npicture: {args.out}; all in all {time.perf_counter() - begin:.0f} s on {args.threads} thread(s)")


if __name__ == "__main__":
    main()
