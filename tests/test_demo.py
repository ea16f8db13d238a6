"""The demo's data, figures and files. Its training is cut short here: what it learns in full length is printed, not asserted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the extra 'demo' is not installed")
pytest.importorskip("sklearn", reason="the extra 'demo' is not installed")

from ebmcore import demo
from ebmcore.energies import ConvNet
from ebmcore.training import CheckpointError, save_checkpoint
from ebmcore.types import Key


def images(n: int, seed: int = 0, shape: tuple[int, ...] = (8, 8)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def quadratic(x: torch.Tensor) -> torch.Tensor:
    return x.square().flatten(1).sum(1)


def test_digits_are_split_without_overlap() -> None:
    train, held_out = demo.load_images(None, seed=0)
    assert train.shape == (1297, 1, 8, 8)
    assert held_out.shape == (500, 1, 8, 8)
    assert train.dtype == torch.float32
    assert (train.min(), train.max()) == (0, 1)
    assert torch.cdist(held_out.flatten(1), train.flatten(1)).min() > 0
    again, other = demo.load_images(None, seed=0)[1], demo.load_images(None, seed=1)[1]
    assert torch.equal(held_out, again)
    assert not torch.equal(held_out, other)


def test_files_of_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", x_train=images(100), x_test=images(60, seed=1), y_train=np.zeros(100))
    train, held_out = demo.load_images(tmp_path / "mnist.npz", seed=0)
    assert (train.shape, held_out.shape) == ((100, 1, 8, 8), (20, 1, 8, 8))
    assert torch.equal(train[:, 0], torch.from_numpy(images(100)).float() / 255)
    np.savez(tmp_path / "colour.npz", x=images(120, shape=(9, 10, 3)))
    train, held_out = demo.load_images(tmp_path / "colour.npz", seed=0)
    assert (train.shape, held_out.shape) == ((80, 3, 9, 10), (40, 3, 9, 10))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": images(100)}, "must hold x_train and x_test, or x, got neither"),
        ({"x": images(100).astype(np.float32)}, r"x must be uint8 \(n, height, width\) .* got float32 \(100, 8, 8\)"),
        ({"x": images(100)[:, 0]}, r"x must be uint8 .* got uint8 \(100, 8\)"),
        ({"x": images(30)}, r"must hold at least 100 images of one shape, got \(30, 1, 8, 8\)"),
        ({"x_train": images(100), "x_test": images(90, shape=(9, 8))}, r"of one shape, got \(100, 1, 8, 8\) and \(90, 1, 9, 8\)"),
        (None, "must be a whole .npz file of images"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, arrays: dict[str, Any] | None, message: str) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(b"not a zip") if arrays is None else np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        demo.load_images(path, seed=0)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", x=images(200))
    (tmp_path / "part.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:5000])
    with pytest.raises(ValueError, match="must be a whole"):
        demo.load_images(tmp_path / "part.npz", seed=0)
    with pytest.raises(FileNotFoundError):
        demo.load_images(tmp_path / "none.npz", seed=0)


def test_two_sample_accuracy_on_a_line() -> None:
    samples = torch.tensor([[0.0], [1.0], [10.0], [21.5]])
    real = torch.tensor([[10.4], [20.0], [21.0], [40.0]])
    # 0 and 1 have each other; 10 has 10.4, 21.5 has 21. 20 has 21, 10.4 has 10, 21 has 21.5, 40 has 21.5.
    assert demo.two_sample_accuracy(samples, real) == (0.5, 0.25)
    assert demo.two_sample_accuracy(samples, samples.clone())[1] <= 0.5, "copies of the real ones"


def test_auroc_is_the_probability_of_the_lower_energy() -> None:
    inside, outside = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0])
    assert demo.auroc(inside, outside) == pytest.approx(5 / 6)


def test_shuffled_images_keep_their_pixels() -> None:
    x = torch.arange(128.0).view(2, 1, 8, 8)
    y = demo.shuffle_pixels(x, seed=0)
    assert torch.equal(y.flatten(1).sort(1).values, x.flatten(1))
    assert not torch.equal(y[0], y[1] - 64), "one order for all images"


def test_denoise_is_the_posterior_mean_of_a_gaussian() -> None:
    # x ~ N(0, 1) and noise: y ~ N(0, 1 + s²), E = T y² / (2 (1 + s²)), and E[x | y] = y / (1 + s²).
    y = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = 1 + demo.NOISE_LEVEL**2
    torch.testing.assert_close(demo.denoise(lambda x: demo.TEMPERATURE / (2 * variance) * quadratic(x), y), y / variance)


def test_plain_loop_samples_the_same_law() -> None:
    # 6400 values of each, both of variance T / (2 - 2 step) = 0.0266 around 0 and so within the clamp; their sample variances differ
    # by more than 6 standard errors with a probability of 2e-9.
    x = torch.zeros(100, 1, 8, 8)
    torch.manual_seed(0)
    ours, plain = demo.SAMPLER(quadratic, x, 60, seed=0), demo.plain_langevin(quadratic, x, 60)
    expected = demo.TEMPERATURE / (2 - 2 * demo.STEP_SIZE)
    for values in (ours, plain):
        assert abs(float(values.double().var()) / expected - 1) < 6 * (2 / 6400) ** 0.5


def test_draw_is_a_function_of_seed_and_chain(device: str) -> None:
    samples = demo.draw(quadratic, 6, (1, 8, 8), num_steps=3, seed=5, device=device)
    assert samples.shape == (6, 1, 8, 8)
    assert samples.device.type == device
    assert torch.equal(samples[:2], demo.draw(quadratic, 2, (1, 8, 8), num_steps=3, seed=5, device=device))
    assert not torch.equal(samples[:2], demo.draw(quadratic, 2, (1, 8, 8), num_steps=3, seed=6, device=device))


def test_run_leaves_files_and_prints_figures(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "NUM_STEPS", 2)
    threads = torch.get_num_threads()
    demo.run(tmp_path / "deep" / "out", num_iterations=3, seed=1, device=device)
    assert torch.get_num_threads() == threads
    out = capsys.readouterr().out
    for name in ("samples.png", "energies.png"):
        assert (tmp_path / "deep" / "out" / name).read_bytes().startswith(b"\x89PNG"), name
    for pattern in (
        r"1-nearest-neighbour accuracy.* [01]\.\d{3} ",
        r"pixel-shuffled +\d\.\d{4}",
        r"uniform noise +\d\.\d{4}",
        r"plain PyTorch loop +\d+\.\d s",
    ):
        assert re.search(pattern, out), out


@pytest.mark.usefixtures("untouched_generator")
def test_training_resumes_to_the_same_energy(device: str, tmp_path: Path) -> None:
    data = demo.load_images(None, seed=0)[0]
    whole = demo.train(data, tmp_path / "whole", num_iterations=4, seed=3, device=device).energy
    loaded, image_shape = demo.load_energy(tmp_path / "whole", device)
    again = demo.train(data, tmp_path / "whole", num_iterations=4, seed=3, device=device, resume=True).energy
    assert image_shape == (1, 8, 8)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for first, second, third in zip(whole.parameters(), loaded.parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def test_load_energy_refuses_other_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other", {"objects": {"average": ConvNet((1, 8, 8)).state_dict()}})
    with pytest.raises(CheckpointError, match="must be of `ebmcore train`"):
        demo.load_energy(tmp_path / "other")


def test_lines_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    lines = demo.Lines(1000)
    for iteration in range(0, 1000, 10):
        lines.add_scalar("loss", 1.0, iteration)
        lines.add_scalar("energy_gap", 0.5, iteration)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 10
    assert out[3] == "  iteration 300 of 1000: mean E(samples) - mean E(data) = 0.5000"


def test_stopwatch_changes_nothing() -> None:
    watch, x = demo.Stopwatch(demo.SAMPLER), torch.zeros(2, 1, 8, 8)
    assert torch.equal(watch(quadratic, x, 3, seed=Key(1)), demo.SAMPLER(quadratic, x, 3, seed=Key(1)))
    assert watch.seconds > 0
