"""A Bernoulli RBM of 784 visible and 500 hidden units on binarised MNIST, by persistent contrastive divergence (Tieleman 2008).

Prints ln Z by annealed importance sampling with its error bar (Salakhutdinov & Murray 2008) and the mean log-likelihood of training and test
images, and draws filters and samples. `--stop-after` and `--resume` cut a run in two with the same figures.

    python examples/rbm_mnist.py --data mnist.npz
    python examples/rbm_mnist.py --data mnist.npz --binarise sample --epochs 100   # as in most published figures
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import ebmcore
from ebmcore import BlockGibbs, Key, ReplayBuffer, ops
from ebmcore.energies import BernoulliRBM
from ebmcore.evaluation import ais
from ebmcore.losses import contrastive_divergence
from ebmcore.training import fit

BATCH_SIZE = 100


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an RBM on binarised MNIST.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="npz file with x_train and x_test, (n, 28, 28) uint8")
    parser.add_argument("--binarise", choices=("threshold", "sample"), default="threshold", help="pixels > 127, or 1 with probability x / 255, once")
    parser.add_argument("--num-hidden", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=0.05, help="falls to 0 in a straight line")
    parser.add_argument("--chains", type=int, default=100, help="persistent chains; at least a batch of 100")
    parser.add_argument("--gibbs-steps", type=int, default=1, help="between two updates")
    parser.add_argument("--ais-chains", type=int, default=200)
    parser.add_argument("--ais-betas", type=int, default=14_500, help="dense towards 1, as in Salakhutdinov & Murray")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("rbm_mnist.png"))
    parser.add_argument("--checkpoint", type=Path, default=Path("rbm_mnist.ckpt"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--stop-after", type=int, help="epochs after which to stop and leave the checkpoint")
    return parser.parse_args(arguments)


def binarise(images: np.ndarray, how: str, seed: Key) -> Tensor:
    pixels = torch.from_numpy(images.reshape(len(images), -1))
    if how == "threshold":
        return (pixels > 127).float()
    return (ops.uniform(pixels.shape, key=seed, stream=ops.Stream.DATA) < pixels.float() / 255).float()


def schedule(num_steps: int) -> Tensor:
    """A 29th of the steps up to 0.5, 8 up to 0.9, 20 up to 1."""
    knots, betas = np.array([0.0, 1, 9, 29]) / 29 * num_steps, [0.0, 0.5, 0.9, 1.0]
    return torch.from_numpy(np.interp(np.arange(num_steps + 1), knots, betas))


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    with np.load(args.data) as file:
        train = binarise(file["x_train"], args.binarise, Key(args.seed))
        test = binarise(file["x_test"], args.binarise, Key(args.seed, first_chain=len(train)))
    torch.manual_seed(args.seed)
    rbm = BernoulliRBM.from_data(train, args.num_hidden)
    base = rbm.visible_bias.detach().clone()

    def fresh(shape: tuple[int, ...], key: Key) -> Tensor:
        return ops.sigmoid_bernoulli(base.expand(shape), key=key, stream=ops.Stream.INIT)

    per_epoch = len(train) // BATCH_SIZE
    num_iterations = args.epochs * per_epoch
    buffer = ReplayBuffer(args.chains, (train.shape[1],), reinit_prob=0.0, init=fresh, seed=args.seed)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=args.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda iteration: max(0.0, 1 - iteration / num_iterations))
    started, cpu_started = time.perf_counter(), time.process_time()
    fit(
        rbm,
        train,
        loss=contrastive_divergence,
        sampler=BlockGibbs(),
        buffer=buffer,
        optimizer=optimizer,
        scheduler=scheduler,
        num_iterations=num_iterations if args.stop_after is None else args.stop_after * per_epoch,
        num_steps=args.gibbs_steps,
        batch_size=BATCH_SIZE,
        seed=args.seed,
        progress=True,
        log_every=per_epoch,
        checkpoint=args.checkpoint,
        checkpoint_every=per_epoch,
        resume=args.resume,
    )
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    print(f"ebmcore {ebmcore.__version__}, MNIST by {args.binarise}: {seconds:.0f} s of training, {cpu_seconds:.0f} s of CPU time")
    if args.stop_after is not None:
        return

    result = ais(rbm, num_chains=args.ais_chains, betas=schedule(args.ais_betas), base_visible_bias=base, seed=args.seed, progress=True)
    size = f"effective sample size {result.effective_sample_size:.0f} of {args.ais_chains}"
    print(f"ln Z {result.log_z:.3f} ± {result.standard_error:.3f} ({size})")
    with torch.no_grad():
        for name, images in (("test", test), ("training", train)):
            print(f"mean {name} log-likelihood {-rbm(images).double().mean() - result.log_z:.3f} ± {result.standard_error:.3f} nats an image")
        visible = BlockGibbs()(rbm, buffer.values[:100], 1000, seed=args.seed + 1)
        samples = torch.sigmoid(rbm.visible_logits(rbm.sample_hidden(visible, key=Key(args.seed + 2))))
        strongest = rbm.weight.norm(dim=0).argsort(descending=True)[:100]
        draw(args.out, {"filters": rbm.weight[:, strongest].T, "samples, p(v | h)": samples, "training images": train[:100]})
    print(f"picture: {args.out}")


def draw(path: Path, panels: dict[str, Tensor]) -> None:
    """Each panel a grid of 10 by 10 images."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 5.3))
    for axis, (title, images) in zip(axes, panels.items(), strict=True):
        grid = torch.nn.functional.pad(images.reshape(-1, 28, 28), (1, 1, 1, 1)).reshape(10, -1, 30, 30).transpose(1, 2).reshape(300, -1)
        bound = float(grid.abs().max()) / 2 if grid.min() < 0 else None
        axis.imshow(grid.numpy(), cmap="gray", vmin=None if bound is None else -bound, vmax=bound)
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
