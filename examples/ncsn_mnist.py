"""A noise-conditional score network on MNIST: denoising score matching at many noise levels, samples by annealed Langevin dynamics.

The levels, the weights σ² of the loss, instance norms that know σ and the sampler are from Song & Ermon 2019 (arXiv 1907.05600); the largest
level as wide as the data, the output divided by σ, the averaged weights and the last denoising step from Song & Ermon 2020 (arXiv 2006.09011);
inputs and targets of order 1 at every σ from Karras et al. 2022 (arXiv 2206.00364).

Prints the leave-one-out 1-NN accuracy of as many generated as held-out images (Lopez-Paz & Oquab 2017, arXiv 1610.06545): 0.5 where they cannot
be told apart, 1 where each has its own kind as neighbour; and the same of training images in the place of the generated ones.

    python examples/ncsn_mnist.py --data mnist.npz --threads 2
    python examples/ncsn_mnist.py --data mnist.npz --device cuda --channels 64 128 256 --num-blocks 2 --iterations 60000 --batch-size 128
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ebmcore
from ebmcore import AnnealedLangevin, Key, ops
from ebmcore.losses import denoising_score_matching
from ebmcore.networks import ScoreConvNet

WARM_UP = 200  # iterations until the learning rate is there
AT_ONCE = 100  # images sampled together: they stay in the cache


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train NCSN on MNIST and sample.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="npz file with x_train and x_test, (n, 28, 28) uint8")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64], help="of each scale")
    parser.add_argument("--num-blocks", type=int, nargs="+", default=[1, 1, 2], help="residual blocks of each scale; one number for all")
    parser.add_argument("--sigma-max", type=float, default=3.0, help="of pixels in [0, 1]; MNIST's widest direction has a standard deviation of 2.3")
    parser.add_argument("--sigma-min", type=float, default=0.05)
    parser.add_argument("--levels", type=int, default=40, help="from sigma-max to sigma-min, geometric")
    parser.add_argument("--iterations", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="Adam; falls to 0 in a straight line")
    parser.add_argument("--ema-decay", type=float, default=0.999, help="of the averaged weights, which sample")
    parser.add_argument("--steps-per-level", type=int, default=6)
    parser.add_argument("--step-size", type=float, default=0.3, help="of x + α s + sqrt(2α) z at a level σ, in units of σ²")
    parser.add_argument("--images", type=int, default=1000, help="generated, and as many held out to compare with")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("ncsn_mnist.png"))
    parser.add_argument("--weights", type=Path, help="file for the averaged weights: read if it is there, in place of training, else written")
    return parser.parse_args(arguments)


def train(net: ScoreConvNet, images: Tensor, levels: Tensor, args: argparse.Namespace) -> AveragedModel:
    """The average of the weights on the way."""
    optimizer = torch.optim.Adam(net.parameters(), lr=args.learning_rate, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / WARM_UP) * (1 - i / args.iterations))
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
    generator = torch.Generator().manual_seed(args.seed)
    recent = math.nan
    started = time.perf_counter()
    for i in range(args.iterations):
        rows = torch.randint(len(images), (args.batch_size,), generator=generator)
        x = images[rows].to(args.device).float() / 255
        loss = denoising_score_matching(net, x, levels, key=Key(args.seed, i))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        average.update_parameters(net)
        recent = loss.item() if i == 0 else 0.99 * recent + 0.01 * loss.item()
        if (i + 1) % 500 == 0:
            print(f"{i + 1:6d} of {args.iterations} iterations, {time.perf_counter() - started:5.0f} s: loss {recent:.2f}", flush=True)
    return average


def generate(net: torch.nn.Module, levels: Tensor, args: argparse.Namespace) -> np.ndarray:
    """(images, 28, 28) uint8."""
    step_size = args.step_size * float(levels[-1]) ** 2
    sampler = AnnealedLangevin(levels, args.steps_per_level, step_size, convention="code", denoise=True)
    key, parts = Key(args.seed + 1), []
    for begin in range(0, args.images, AT_ONCE):
        shape = (min(AT_ONCE, args.images - begin), 1, 28, 28)
        start = sampler.noise_levels[0] * ops.normal(shape, key=key.shard(begin), stream=ops.Stream.INIT, device=args.device)
        parts.append(sampler(net, start, seed=key.shard(begin)))
    return to_bytes(torch.cat(parts))


def to_bytes(x: Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().byte().squeeze(1).cpu().numpy()


def nearest_neighbour_accuracy(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Of images (n, 28, 28) of two sources, the shares of a and of b whose nearest other image by Euclidean distance is of their own source."""
    from sklearn.neighbors import NearestNeighbors

    x = np.concatenate((a, b)).reshape(len(a) + len(b), -1).astype(np.float32)
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(x).kneighbors(return_distance=False)[:, 0]
    own = (neighbours < len(a)) == (np.arange(len(x)) < len(a))
    return float(own[: len(a)].mean()), float(own[len(a) :].mean())


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
        ebmcore.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started, cpu_started = time.perf_counter(), time.process_time()
    with np.load(args.data) as file:
        train_images, test_images = file["x_train"], file["x_test"]
    images = torch.from_numpy(train_images)[:, None]
    data_std = float((images[:10_000].float() / 255).square().mean().sqrt())
    num_blocks = args.num_blocks[0] if len(args.num_blocks) == 1 else args.num_blocks
    net: torch.nn.Module = ScoreConvNet((1, 28, 28), args.channels, num_blocks, data_std).to(args.device)
    levels = torch.from_numpy(np.geomspace(args.sigma_max, args.sigma_min, args.levels)).to(args.device, torch.float32)
    size = f"{sum(p.numel() for p in net.parameters()):,} parameters, {args.levels} levels from {args.sigma_max:g} to {args.sigma_min:g}"
    print(f"ebmcore {ebmcore.__version__}, {size}, {torch.get_num_threads()} threads, {args.device}")
    if args.weights is not None and args.weights.exists():
        net.load_state_dict(torch.load(args.weights, map_location=args.device))
    else:
        net = train(net, images, levels, args).module
        if args.weights is not None:
            torch.save(net.state_dict(), args.weights)
    trained = time.perf_counter()
    samples = generate(net, levels, args)
    sampled = time.perf_counter()

    rng = np.random.default_rng(args.seed)
    held_out = test_images[rng.permutation(len(test_images))[: len(samples)]]
    known = train_images[rng.permutation(len(train_images))[: len(samples)]]
    for name, source in (("generated", samples), ("training", known)):
        of_source, of_test = nearest_neighbour_accuracy(source, held_out)
        parts = f"({of_source:.3f} of the {name}, {of_test:.3f} of the held-out ones)"
        print(f"1-NN accuracy of {len(source)} {name} and {len(held_out)} held-out images: {(of_source + of_test) / 2:.3f} {parts}")
    draw(args.out, {"samples": samples, "held-out images": held_out})
    spent = f"{trained - started:.0f} s of training, {sampled - trained:.0f} s of sampling, {time.perf_counter() - sampled:.0f} s of evaluation"
    print(f"{spent}; {time.perf_counter() - started:.0f} s in all, {time.process_time() - cpu_started:.0f} s of CPU time; picture: {args.out}")


def draw(path: Path, panels: dict[str, np.ndarray]) -> None:
    """Each panel a grid of the first 100 images."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(6.5 * len(panels), 6.8))
    for axis, (title, images) in zip(axes, panels.items(), strict=True):
        grid = np.zeros((100, 30, 30), dtype=np.uint8)
        grid[: len(images), 1:29, 1:29] = images[:100]
        axis.imshow(grid.reshape(10, 10, 30, 30).swapaxes(1, 2).reshape(300, 300), cmap="gray", vmin=0, vmax=255)
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
