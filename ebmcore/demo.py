"""The main job: train a convolutional energy on small images by persistent contrastive divergence, and see what it has learned.

The energy is of images with Gaussian noise of std NOISE_LEVEL on every pixel: p(y) ∝ exp(-E(y) / TEMPERATURE), y = x + noise. That
density is smooth over NOISE_LEVEL, so that Langevin steps are large and chains get from pure noise to any class within some hundred
of them (Saremi & Hyvärinen 2019, "Neural empirical Bayes": walk, then jump). One formula takes the noise off a sample in the end:
E[x | y] = y - NOISE_LEVEL² ∇E(y) / TEMPERATURE (Robbins 1956; Miyasawa 1961). Noise also hides that a grey value is one of 17 or 256.
"""

from __future__ import annotations

import importlib.util
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.energies import ConvNet
from ebmcore.gradients import energy_and_grad
from ebmcore.losses import contrastive_divergence
from ebmcore.samplers import Langevin
from ebmcore.training import CheckpointError, ReplayBuffer, fit, load_checkpoint
from ebmcore.types import EnergyFn, Key

NOISE_LEVEL, TEMPERATURE = 0.1, 0.05
STEP_SIZE = 0.3 * NOISE_LEVEL**2 / TEMPERATURE  # the stiffest direction, across the noise, has curvature TEMPERATURE / NOISE_LEVEL²
CLAMP = (-0.5, 1.5)  # five noise levels around the pixels' range: chains do not get there, but on a box exp(-E) has an integral
SAMPLER = Langevin(step_size=STEP_SIZE, temperature=TEMPERATURE, clamp=CLAMP)
BATCH_SIZE, STEPS_PER_ITERATION, NUM_ITERATIONS = 64, 10, 2400
NUM_HELD_OUT, NUM_SAMPLES = 500, 500
# Half the mean age of a chain in the buffer: 10 steps per draw, and 1 draw in 20 starts it afresh. Chains much older than any in the
# buffer were never corrected by the training: after 400 steps there are too many ones and too few eights.
NUM_STEPS = 100


def load_images(path: str | os.PathLike[str] | None, seed: int) -> tuple[Tensor, Tensor]:
    """Images for training and images held out, each (n, channels, height, width) float32 in [0, 1].

    Args:
        path: None for scikit-learn's 1797 digits of 8 x 8, or an .npz with `x_train` and `x_test`, or `x` alone, uint8 of shape
            (n, height, width) or (n, height, width, channels). At most 500 are held out: of x_test, else of x, then for good.
        seed: which of them.

    Raises:
        OSError, ValueError: the file is not there, is no .npz, or holds something else.
    """
    if path is None:
        from sklearn.datasets import load_digits

        pool = test = torch.from_numpy(load_digits().images / 16).float()[:, None]
    else:
        try:
            with zipfile.ZipFile(path):  # np.load would take a foreign file for a pickle
                file = np.load(path, allow_pickle=False)
            with file:
                arrays = {name: file[name] for name in ("x_train", "x_test", "x") if name in file}
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"load_images: {path} must be a whole .npz file of images, got: {error}") from error
        name = "x_train" if "x_train" in arrays else "x"
        if name not in arrays:
            raise ValueError(f"load_images: {path} must hold x_train and x_test, or x, got neither")
        pool = _as_images(arrays[name], name)
        test = _as_images(arrays["x_test"], "x_test") if "x_test" in arrays else pool
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    num_held_out = min(NUM_HELD_OUT, len(test) // 3)
    train = pool[order[num_held_out:]] if test is pool else pool
    if len(train) < BATCH_SIZE or num_held_out < 2 or train.shape[1:] != test.shape[1:]:
        raise ValueError(f"load_images: {path} must hold at least 100 images of one shape, got {tuple(pool.shape)} and {tuple(test.shape)}")
    return train, test[order[:num_held_out]]


def _as_images(array: np.ndarray[Any, Any], name: str) -> Tensor:
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(f"load_images: {name} must be uint8 (n, height, width) or (n, height, width, channels), got {array.dtype} {array.shape}")
    x = torch.from_numpy(array).float() / 255
    return x[:, None] if x.dim() == 3 else x.movedim(-1, 1).contiguous()


@dataclass
class Stopwatch:
    """A sampler that adds up the seconds it takes."""

    sampler: Langevin
    seconds: float = 0.0

    @property
    def effective_temperature(self) -> float:
        return self.sampler.effective_temperature

    def __call__(self, energy: EnergyFn, x: Tensor, num_steps: int, *, seed: int | Key | None = None) -> Tensor:
        start = _clock(x.device)
        x = self.sampler(energy, x, num_steps, seed=seed)
        self.seconds += _clock(x.device) - start
        return x


@dataclass
class Lines:
    """A line of progress now and then, where there is no tqdm to show a bar."""

    num_iterations: int

    def add_scalar(self, tag: str, value: float, iteration: int) -> None:
        if tag == "energy_gap" and iteration % max(10, self.num_iterations // 100 * 10) == 0:
            print(f"  iteration {iteration} of {self.num_iterations}: mean E(samples) - mean E(data) = {value:.4f}", flush=True)


@dataclass(frozen=True)
class Training:
    energy: torch.nn.Module  # with the averaged parameters
    seconds: float
    sampling_seconds: float


@contextmanager
def few_threads(image_shape: Sequence[int]) -> Iterator[None]:
    """One torch thread for images below 16 x 16, as many as before afterwards.

    A step at 8 x 8 takes 2.4 ms on one core and 1.5 ms on two, but 10 ms and more on two that something else uses as well.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if torch.Size(image_shape[1:]).numel() < 256 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    data: Tensor,
    checkpoint: Path,
    *,
    num_iterations: int = NUM_ITERATIONS,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
) -> Training:
    """Fit a ConvNet to `data` (n, *image_shape). The run's state goes to `checkpoint`, for `resume` and `load_energy`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        energy = ConvNet(tuple(data.shape[1:])).to(device)
    optimizer = torch.optim.Adam(energy.parameters(), lr=6e-3, betas=(0.5, 0.999))

    def rate(iteration: int) -> float:  # warm-up, then constant, then down to 2 % over the second half: the energy comes to rest
        return min((iteration + 1) / 50, 1.0, max(0.02, 2 - 2 * iteration / num_iterations))

    has_tqdm = importlib.util.find_spec("tqdm") is not None
    sampler = Stopwatch(SAMPLER)
    start = _clock(device)
    result = fit(
        energy,
        data,
        loss=contrastive_divergence,
        sampler=sampler,  # type: ignore[arg-type]  # fit calls it and no more
        buffer=ReplayBuffer(2000, data.shape[1:], reinit_prob=0.05, device=device, seed=seed),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, rate),
        num_iterations=num_iterations,
        num_steps=STEPS_PER_ITERATION,
        batch_size=BATCH_SIZE,
        ema_decay=0.995,
        data_noise_std=NOISE_LEVEL,
        seed=seed,
        progress=has_tqdm,
        writer=None if has_tqdm else Lines(num_iterations),
        checkpoint=checkpoint,
        checkpoint_every=200,
        resume=resume,
    )
    assert result.ema is not None
    return Training(result.ema.requires_grad_(False), _clock(device) - start, sampler.seconds)


def load_energy(checkpoint: str | os.PathLike[str], device: str = "cpu") -> tuple[ConvNet, tuple[int, ...]]:
    """The averaged energy that `train` left in `checkpoint`, and the shape of its images. Raises CheckpointError, OSError."""
    objects = load_checkpoint(checkpoint).get("objects", {})
    try:
        image_shape = tuple(objects["buffer"]["values"].shape[1:])
        with torch.device("meta"):  # no parameters to draw only to overwrite them
            energy = ConvNet(image_shape)
        parameters = {name.removeprefix("module."): tensor for name, tensor in objects["average"].items() if name.startswith("module.")}
        energy.load_state_dict(parameters, assign=True)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"load_energy: {checkpoint} must be of `ebmcore train`: {error}") from error
    return energy.to(device).eval().requires_grad_(False), image_shape


def draw(energy: EnergyFn, num_chains: int, image_shape: Sequence[int], *, num_steps: int = NUM_STEPS, seed: int, device: str = "cpu") -> Tensor:
    """Fresh chains from uniform noise, run for num_steps, then freed of the noise: (num_chains, *image_shape) in [0, 1]."""
    key = Key(seed)
    x = ops.uniform((num_chains, *image_shape), key=key, stream=ops.Stream.INIT, device=device)
    return denoise(energy, SAMPLER(energy, x, num_steps, seed=key))


def denoise(energy: EnergyFn, y: Tensor) -> Tensor:
    """E[x | y] = y - NOISE_LEVEL² ∇E(y) / TEMPERATURE, cut to the pixels' range."""
    return (y - NOISE_LEVEL**2 / TEMPERATURE * energy_and_grad(energy, y)[1]).clamp(0, 1)


def two_sample_accuracy(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """Shares of the samples, and of the real images, whose nearest other image is of their own kind (Lopez-Paz & Oquab 2017).

    Their mean is the leave-one-out accuracy of a 1-nearest-neighbour classifier: 0.5 where the two cannot be told apart, 1 where they
    always can. Real ones far below 0.5 sit next to samples more often than next to each other: a sign of too few modes, or of copies.
    """
    from sklearn.neighbors import NearestNeighbors

    both = torch.cat((samples, real)).flatten(1).cpu().numpy()
    nearest = NearestNeighbors(n_neighbors=1).fit(both).kneighbors(return_distance=False)[:, 0]
    n = len(samples)
    return float((nearest[:n] < n).mean()), float((nearest[n:] >= n).mean())


def distance_to(images: Tensor, train: Tensor) -> float:
    """Median Euclidean distance to the nearest training image: what a copy would make 0."""
    return float(torch.cdist(images.flatten(1), train.flatten(1).to(images.device)).amin(1).median())


def shuffle_pixels(images: Tensor, seed: int) -> Tensor:
    """Each image with its own pixels in an order of its own."""
    order = ops.uniform(tuple(images.flatten(1).shape), key=Key(seed), device=images.device).argsort(1)
    return images.flatten(1).gather(1, order).view_as(images)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that an image inside has the lower energy of two, from the energies of both sets."""
    from sklearn.metrics import roc_auc_score

    is_inside = [1] * len(inside) + [0] * len(outside)
    return float(roc_auc_score(is_inside, -torch.cat((inside, outside)).double().cpu().numpy()))


def plain_langevin(energy: EnergyFn, x: Tensor, num_steps: int) -> Tensor:
    """SAMPLER as one writes it in plain PyTorch."""
    noise_std = (2 * STEP_SIZE * TEMPERATURE) ** 0.5
    for _ in range(num_steps):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(energy(x).sum(), x)
        x = (x.detach() - STEP_SIZE * grad + noise_std * torch.randn_like(x)).clamp(*CLAMP)
    return x


def time_loops(energy: EnergyFn, image_shape: Sequence[int], device: str, num_repeats: int = 15) -> dict[str, float]:
    """Median seconds of one step of BATCH_SIZE chains, ours and plain, and of its parts; all interleaved, after a warm-up."""
    key = Key(0).to(device)
    x = ops.uniform((BATCH_SIZE, *image_shape), key=key, device=device)
    grad = energy_and_grad(energy, x)[1]
    step, noise_std = STEP_SIZE, (2 * STEP_SIZE * TEMPERATURE) ** 0.5
    jobs: dict[str, Callable[[], Any]] = {
        "ours": lambda: SAMPLER(energy, x, STEPS_PER_ITERATION, seed=0),
        "plain": lambda: plain_langevin(energy, x, STEPS_PER_ITERATION),
        "our update": lambda: [ops.langevin_step(x, grad, step_size=step, noise_std=noise_std, key=key, clamp=CLAMP) for _ in range(10)],
        "plain update": lambda: [(x - step * grad + noise_std * torch.randn_like(x)).clamp(*CLAMP) for _ in range(10)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(-2, num_repeats):
        for name, job in jobs.items():
            start = _clock(device)
            job()
            if repeat >= 0:
                seconds[name].append(_clock(device) - start)
    return {name: median(values) / 10 for name, values in seconds.items()}


def save_grid(path: Path, panels: Mapping[str, Tensor]) -> None:
    """One square of images (n, channels, height, width) in [0, 1] per title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(panels), 6.4), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        side = max(1, int(len(images) ** 0.5))
        framed = torch.nn.functional.pad(images[: side * (len(images) // side)].cpu(), (1, 1, 1, 1), value=0.35)
        picture = (
            framed.reshape(-1, side, *framed.shape[1:]).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        )  # (rows * height, columns * width, channels)
        axes.imshow(picture.expand(*picture.shape[:2], 3).numpy(), interpolation="nearest")
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def save_histograms(path: Path, energies: Mapping[str, Tensor]) -> None:
    """Energies (n,) per name, in common bins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    together = torch.cat(list(energies.values()))
    bins = torch.linspace(float(together.min()), float(together.max()), 80).tolist()
    for name, values in energies.items():
        axes.hist(values.cpu().numpy(), bins=bins, alpha=0.6, label=name)
    axes.set(xlabel=f"energy E (temperature {TEMPERATURE})", ylabel="images", title="Low energy is likely: p ∝ exp(-E / T)")
    axes.legend()
    figure.savefig(path, dpi=110)


def run(out: Path, *, data: Path | None = None, num_iterations: int = NUM_ITERATIONS, seed: int = 0, device: str = "cpu") -> None:
    """Train, sample, judge; write samples.png, energies.png and checkpoint.ebm to `out`, and print the figures."""
    begin = time.perf_counter()
    for name in ("matplotlib.figure", "sklearn.neighbors"):  # now, not after the training
        importlib.import_module(name)
    train_set, held_out = load_images(data, seed)
    image_shape = tuple(train_set.shape[1:])
    out.mkdir(parents=True, exist_ok=True)
    with few_threads(image_shape):
        _run(out, train_set, held_out.to(device), num_iterations, seed, device)
    print(f"{'in all':47}{time.perf_counter() - begin:.0f} s")


def _run(out: Path, train_set: Tensor, held_out: Tensor, num_iterations: int, seed: int, device: str) -> None:
    image_shape = tuple(train_set.shape[1:])
    print(f"{len(train_set)} images of {image_shape} to train on, {len(held_out)} held out; {device}, {torch.get_num_threads()} thread(s)")
    print(f"training: {num_iterations} iterations of {STEPS_PER_ITERATION} Langevin steps of {BATCH_SIZE} chains", flush=True)
    training = train(train_set, out / "checkpoint.ebm", num_iterations=num_iterations, seed=seed, device=device)
    energy = training.energy

    print(f"sampling: {NUM_SAMPLES} fresh chains from uniform noise, {NUM_STEPS} steps, noise taken off", flush=True)
    samples = draw(energy, NUM_SAMPLES, image_shape, num_steps=NUM_STEPS, seed=seed + 1, device=device)
    noise = ops.uniform(tuple(held_out.shape), key=Key(seed + 2), device=device)
    groups = {"held-out digits": held_out, "samples": samples, "pixel-shuffled digits": shuffle_pixels(held_out, seed + 3), "uniform noise": noise}
    with torch.no_grad():
        energies = {name: energy(images) for name, images in groups.items()}
    real, _, shuffled, uniform = energies.values()
    save_grid(out / "samples.png", {"samples of the trained energy": samples[:144], "real digits, held out": held_out[:144]})
    save_histograms(out / "energies.png", energies)

    of_samples, of_real = two_sample_accuracy(samples, held_out)
    far_samples, far_held_out = (distance_to(images, train_set) for images in (samples, held_out))
    seconds = time_loops(energy, image_shape, device)
    ratio = seconds["plain"] / seconds["ours"]
    ours, plain, our_update, plain_update = (f"{1e3 * value:.3f} ms" for value in seconds.values())
    figures = {
        "1-nearest-neighbour accuracy": f"{(of_samples + of_real) / 2:.3f}  (0.5 is perfect; samples {of_samples:.3f}, held-out {of_real:.3f})",
        "AUROC of -E, held-out against pixel-shuffled": f"{auroc(real, shuffled):.4f}",
        "AUROC of -E, held-out against uniform noise": f"{auroc(real, uniform):.4f}",
        "median distance to the nearest training image": f"samples {far_samples:.3f}, held-out {far_held_out:.3f}",
        "sampling within the training": f"{training.sampling_seconds:.1f} s of {training.seconds:.1f} s",
        "the same by a plain PyTorch loop": f"{training.sampling_seconds * ratio:.1f} s, at the ratio {ratio:.2f} of the two below",
        f"one step of {BATCH_SIZE} chains": f"{ours} ours, {plain} plain (medians of 15 interleaved runs of 10 steps)",
        "of these the update": f"{our_update} ours, {plain_update} plain; the rest is the network",
        "files": f"samples.png, energies.png and checkpoint.ebm in {out}",
    }
    print("\n".join(["", *(f"{name:47}{text}" for name, text in figures.items())]))


def _clock(device: torch.device | str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
