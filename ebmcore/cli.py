"""The command line: `ebmcore`, or `python -m ebmcore`. Names are strings here and nowhere else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ebmcore.training import CheckpointError
from ebmcore.types import DivergenceError

COMMANDS = {
    "demo": "train an energy on handwritten digits, draw from it, and judge both (this also runs without a command)",
    "train": "train an energy on images and leave a checkpoint; --resume goes on with it",
    "sample": "draw images from a checkpoint, as a picture or as an .npz file",
    "bench": "time the native ops against PyTorch: `ebmcore bench --help`",
    "info": "the version, what was built, and what is used here",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, or 1 after one line on stderr; argparse leaves with 2 for arguments it cannot read."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        print("ebmcore: samplers for energy-based models in PyTorch\n")
        print("\n".join(f"  ebmcore {name:8}{text}" for name, text in COMMANDS.items()), end="\n\n", flush=True)
    if argv[:1] == ["bench"]:
        from ebmcore.bench.run import main as bench

        return int(bench(argv[1:]) or 0)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["demo", *argv]
    args = _parser().parse_args(argv)

    try:
        {"demo": _demo, "train": _train, "sample": _sample, "info": _info}[args.command](args)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("matplotlib", "sklearn"):
            raise
        return _fail(args.command, f"{(error.name or '').split('.')[0]} is not installed: pip install 'ebmcore[demo]'")
    except KeyboardInterrupt:
        print(f"ebmcore {args.command}: interrupted; `ebmcore train --resume` goes on from the last checkpoint in --out", file=sys.stderr)
        return 130
    except (OSError, ValueError, CheckpointError, DivergenceError) as error:
        return _fail(args.command, str(error))
    return 0


def _fail(command: str, message: str) -> int:
    print(f"ebmcore {command}: error: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("ebmcore", description="Samplers for energy-based models in PyTorch. Without a command: the demo.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    each = {name: commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}
    for name, default in (("demo", "ebmcore-demo"), ("train", "ebmcore-train")):
        each[name].add_argument("--out", type=Path, default=Path(default), metavar="FOLDER", help=f"where the files go (default: {default})")
        each[name].add_argument(
            "--data", type=Path, metavar="FILE.npz", help="x_train and x_test, or x: uint8 images (default: scikit-learn's digits)"
        )
        each[name].add_argument("--iterations", type=_count, metavar="N", help="updates of the energy (default: 2400)")
    each["train"].add_argument("--resume", action="store_true", help="go on with the checkpoint in --out")
    each["sample"].add_argument("checkpoint", type=Path, help="a file that train or the demo wrote")
    each["sample"].add_argument("--num", type=_count, default=64, metavar="N", help="number of images (default: 64)")
    each["sample"].add_argument("--steps", type=_count, metavar="N", help="Langevin steps from uniform noise (default: 100)")
    each["sample"].add_argument("--out", type=_picture_or_array, default=Path("samples.png"), metavar="FILE", help="a .png or .npz (samples.png)")
    for name in ("demo", "train", "sample"):
        each[name].add_argument("--seed", type=_seed, default=0, metavar="N", help="the same seed gives the same files (default: 0)")
        each[name].add_argument("--device", type=_device, default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    return parser


def _given(**arguments: Any) -> Mapping[str, Any]:
    """Those that were given; the demo knows the others' defaults."""
    return {name: value for name, value in arguments.items() if value is not None}


def _demo(args: argparse.Namespace) -> None:
    from ebmcore import demo

    demo.run(args.out, data=args.data, seed=args.seed, device=args.device, **_given(num_iterations=args.iterations))


def _train(args: argparse.Namespace) -> None:
    from ebmcore import demo

    images, _ = demo.load_images(args.data, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "checkpoint.ebm"
    given = _given(num_iterations=args.iterations)
    with demo.few_threads(images.shape[1:]):
        training = demo.train(images, file, seed=args.seed, device=args.device, resume=args.resume, **given)
    print(f"{file}: trained for {training.seconds:.0f} s, {training.sampling_seconds:.0f} s of it sampling; now: ebmcore sample {file}")


def _sample(args: argparse.Namespace) -> None:
    import numpy as np

    from ebmcore import demo

    energy, image_shape = demo.load_energy(args.checkpoint, args.device)
    with demo.few_threads(image_shape):
        samples = demo.draw(energy, args.num, image_shape, seed=args.seed, device=args.device, **_given(num_steps=args.steps)).cpu()
    if args.out.suffix == ".npz":
        np.savez(args.out, x=samples.numpy())
    else:
        demo.save_grid(args.out, {"samples": samples})
    print(f"{args.out}: {args.num} samples of shape {image_shape}")


def _info(args: argparse.Namespace) -> None:
    import ebmcore

    facts = ebmcore.info()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def _device(text: str) -> str:
    import torch

    try:
        torch.empty(1, device=text).cpu()
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise argparse.ArgumentTypeError(f"must be a device that this torch can use, got {text!r}: {reason}") from None
    return text


def _picture_or_array(text: str) -> Path:
    if Path(text).suffix not in (".png", ".npz"):
        raise argparse.ArgumentTypeError(f"must end in .png or .npz, got {text!r}")
    return Path(text)
