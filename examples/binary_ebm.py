"""A deep energy of binary images: a small residual network, trained by persistent contrastive divergence with Gibbs-with-Gradients.

Each step costs one forward and one backward of the network. log Z comes from annealed importance sampling (Neal 2001) between independent
pixels, whose log Z is known, and the network, with Gibbs-with-Gradients as transitions; the mean of -E - log Z over held-out images is the
test log-likelihood. The estimate of log Z is low in expectation of the log, that of the likelihood high: more temperatures, less so.

    python examples/binary_ebm.py --out digits.png                       # scikit-learn's digits, 8 x 8
    python examples/binary_ebm.py --data mnist.npz --out mnist.png       # x_train, x_test: uint8 (n, 28, 28)
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent

from ebmcore import Key, ReplayBuffer, ops
from ebmcore.evaluation import ais
from ebmcore.losses import contrastive_divergence
from ebmcore.samplers import GibbsWithGradients
from ebmcore.training import fit
from ebmcore.types import EnergyFn


class Residual(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, stride, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        self.skip = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        return self.skip(h) + self.second(nn.functional.silu(self.first(nn.functional.silu(h))))


class Network(nn.Module):
    """E(x) = base(x) + f(x) of x (n, 1, height, width) in {0, 1}: independent pixels as in the data, and what a ResNet adds to them."""

    def __init__(self, mean: Tensor, channels: int) -> None:
        super().__init__()
        self.register_buffer("logits", torch.logit(mean.clamp(0.01, 0.99)))
        self.body = nn.Sequential(nn.Conv2d(1, channels, 3, 1, 1), Residual(channels, 2), Residual(channels, 2), nn.SiLU())
        self.head = nn.Linear(channels, 1)
        nn.init.zeros_(self.head.weight)

    def base(self, x: Tensor) -> Tensor:
        return -(x * self.logits).flatten(1).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.head(self.body(x).sum((2, 3))).squeeze(1)


def load(path: Path | None, seed: int) -> tuple[Tensor, Tensor]:
    """Binarised images to train on and held out, (n, 1, height, width) float32 in {0, 1}."""
    if path is not None:
        with np.load(path) as file:
            train, test = (torch.from_numpy(file[name]) > 127 for name in ("x_train", "x_test"))
        return train.float()[:, None], test.float()[:2000, None]
    from sklearn.datasets import load_digits

    x = (torch.from_numpy(load_digits().images) > 7).float()[:, None]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[300:]], x[order[:300]]


def independent(mean: Tensor, num_chains: int, key: Key) -> Tensor:
    """Images whose pixels are drawn each by itself, with these means."""
    return (ops.uniform((num_chains, *mean.shape), key=key, stream=ops.Stream.INIT) < mean).float()


def log_likelihood(energy: EnergyFn, x: Tensor, log_z: float) -> float:
    with torch.no_grad():
        return -float(torch.cat([energy(part) for part in x.split(500)]).double().mean()) - log_z


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help=".npz with x_train and x_test (default: scikit-learn's digits)")
    parser.add_argument("--out", type=Path, default=Path("binary_ebm.png"))
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="of the chains in each iteration")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ais-chains", type=int, default=100)
    parser.add_argument("--temperatures", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    train, test = load(args.data, args.seed)
    mean = train.mean(0)
    energy = Network(mean, args.channels)
    print(
        f"{len(train)} images of {tuple(train.shape[2:])} to train on, {len(test)} held out; {sum(p.numel() for p in energy.parameters())} parameters"
    )
    floor = log_likelihood(energy, test, float(nn.functional.softplus(energy.logits).sum()))
    buffer = ReplayBuffer(
        max(1000, args.batch_size), mean.shape, reinit_prob=0.0, init=lambda shape, key: independent(mean, shape[0], key), seed=args.seed
    )
    begin = time.perf_counter()
    result = fit(
        energy,
        train,
        loss=lambda energy, x, x_model: contrastive_divergence(energy, x, x_model, energy_l2=0.0),
        sampler=GibbsWithGradients(),
        buffer=buffer,
        optimizer=torch.optim.Adam(energy.parameters(), lr=args.lr, betas=(0.9, 0.999)),
        num_iterations=args.iterations,
        num_steps=args.steps,
        batch_size=args.batch_size,
        ema_decay=0.99,
        max_grad_norm=10.0,
        seed=args.seed,
        log_every=max(1, args.iterations // 10),
    )
    for row in result.history:
        print(f"iteration {row['iteration']:6.0f}  energy gap {row['energy_gap']:8.3f}")
    print(f"training {time.perf_counter() - begin:.0f} s on {torch.get_num_threads()} thread(s)", flush=True)

    begin = time.perf_counter()
    base = Independent(Bernoulli(logits=energy.logits), energy.logits.dim())
    z = ais(result.ema, base, GibbsWithGradients(), num_chains=args.ais_chains, betas=args.temperatures, seed=args.seed)
    size = f"effective sample size {z.effective_sample_size:.0f} of {args.ais_chains}, {args.temperatures} temperatures"
    print(f"AIS: log Z = {z.log_z:.2f} ± {z.standard_error:.2f} ({size}, {time.perf_counter() - begin:.0f} s)")
    held_out, training = (log_likelihood(result.ema, x, z.log_z) for x in (test, train[:2000]))
    print(f"log-likelihood per image: held out {held_out:.2f}, training {training:.2f}; independent pixels, held out {floor:.2f}")
    draw(args.out, {"annealed samples": z.x, "persistent chains": buffer.values, "held-out images": test})
    print(f"picture: {args.out}")


def draw(path: Path, panels: dict[str, Tensor]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.7), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        framed = nn.functional.pad(images[:64, 0], (1, 1, 1, 1), value=0.5)
        side = math.isqrt(len(framed))
        height, width = framed.shape[1:]
        grid = framed[: side * side].reshape(side, side, height, width).transpose(1, 2).reshape(side * height, side * width)
        axes.imshow(grid.numpy(), cmap="gray")
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
