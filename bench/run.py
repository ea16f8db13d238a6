"""`ebmcore bench CASE`: check the result, then time it beside its rivals. A wrong result is not timed."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ebmcore.bench.cases import langevin, noise
from ebmcore.bench.timing import COPY_BYTES, Case, CheckError, Problem, Run, copy_run, num_input_sets, time_in_turns
from ebmcore.ops import info

CASES = {case.name: case for case in (langevin.CASE, noise.CASE)}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 after a line on stderr; argparse leaves with 2 for arguments it cannot read."""
    args = _parser().parse_args(argv)
    threads = torch.get_num_threads()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        report = run(
            CASES[args.case],
            sizes=args.sizes,
            dim=args.dim,
            dtype=args.dtype,
            device=args.device,
            rounds=args.rounds,
            with_compile=args.compile,
        )
        if args.json is not None:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    except CheckError as error:
        print(f"ebmcore bench {args.case}: WRONG RESULT, nothing was timed: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError, RuntimeError) as error:
        print(f"ebmcore bench {args.case}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
    failed = [row["label"] for size in report["results"] for row in size["rows"] if row["kind"] == "ours" and row["status"] != "ok"]
    return 1 if failed else 0


def run(
    case: Case, *, sizes: Sequence[int], dim: int = 3072, dtype: str = "float32", device: str = "cpu", rounds: int = 30, with_compile: bool = True
) -> dict[str, Any]:
    """Check `case` at every size, then time it at every size and print tables on the way.

    Returns:
        All that was measured and on what, as JSON takes it.

    Raises:
        CheckError: ours is wrong at some size; nothing was timed.
        ValueError: a dtype that the case does not have, or a device that cannot be used here.
    """
    if dtype not in case.dtypes:
        raise ValueError(f"bench: dtype must be one of {', '.join(case.dtypes)} for {case.name}, got {dtype!r}")
    place = _usable(device)
    problems = [Problem(size, dim, getattr(torch, dtype), place) for size in sizes]
    facts = _machine(place)
    report: dict[str, Any] = {
        "case": case.name,
        "machine": facts,
        "versions": _versions(),
        "settings": {"dtype": dtype, "device": place.type, "threads": torch.get_num_threads(), "dim": dim, "rounds": rounds},
        "checks": [],
        "results": [],
    }
    where = f"{facts['gpu']}" if place.type == "cuda" else f"{facts['cpu']}, {facts['cpu_target']}, {torch.get_num_threads()} thread(s)"
    print(f"{case.name}: {case.summary}\n{dtype} on {where}; torch {torch.__version__}, ebmcore {info()['version']}")
    print(f"load average {facts['load']:.1f} on {facts['cores']} cores, this process included: other work on the machine is in the numbers")
    for problem in problems:
        report["checks"].append({"shape": list(problem.shape), "passed": case.check(case.make_inputs(problem, 1))})
    print(f"checked: {report['checks'][0]['passed']}", flush=True)
    for problem in problems:
        result = _time(case, problem, rounds, with_compile)
        report["results"].append(result)
        print(f"\n{_table(result)}", flush=True)
    notes = {row.label: row.note for row in case.rows if row.note}
    print("\n" + "\n".join(f"{label}: {note}" for label, note in notes.items()))
    return report


def _time(case: Case, problem: Problem, rounds: int, with_compile: bool) -> dict[str, Any]:
    torch.compiler.reset()  # other sizes' graphs are done with, and a function may have only a few
    num_sets = num_input_sets(case, problem)
    inputs = case.make_inputs(problem, num_sets)
    runs: dict[str, Run] = {}
    status: dict[str, str] = {}
    for row in case.rows:
        if row.kind == "compiled" and not with_compile:
            status[row.label] = "left out (--no-compile)"
            continue
        try:
            runs[row.label] = row.setup(inputs)
            runs[row.label](0)
            status[row.label] = "ok"
        except ImportError as error:
            status[row.label] = f"not installed: {error}"
        except Exception as error:  # a rival's failure is a result, not ours
            status[row.label] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if status[row.label] != "ok":
            runs.pop(row.label, None)
    if problem.device.type == "cuda":
        runs["copy"] = copy_run(problem.device)
    samples = time_in_turns(runs, num_sets=num_sets, rounds=rounds, device=problem.device)
    medians = {label: statistics.median(values) for label, values in samples.items()}
    copy_gbps = 2 * COPY_BYTES / medians["copy"] / 1e9 if "copy" in medians else None
    rows = []
    for row in case.rows:
        entry: dict[str, Any] = {"label": row.label, "group": row.group, "kind": row.kind, "note": row.note, "status": status[row.label]}
        if row.label in medians:
            n, seconds = problem.num_elements, medians[row.label]
            rivals = {r.label: (r.kind, medians[r.label]) for r in case.rows if r.group == row.group and r.label in medians}
            eager = [s for kind, s in rivals.values() if kind == "eager"]
            tuned = [s for kind, s in rivals.values() if kind in ("tuned", "compiled")]
            gbps = case.arrays * problem.dtype.itemsize * n / seconds / 1e9
            entry |= {
                "ns_per_element": seconds / n * 1e9,
                "quartiles_ns": [q / n * 1e9 for q in _quartiles(samples[row.label])],
                "times_eager": min(eager) / seconds if eager else None,
                "times_best_tuned": min(tuned) / seconds if tuned else None,
                "gb_per_s": gbps,
                "percent_of_copy": 100 * gbps / copy_gbps if copy_gbps else None,
            }
        rows.append(entry)
    return {"num_elements": problem.num_elements, "shape": list(problem.shape), "input_sets": num_sets, "copy_gb_per_s": copy_gbps, "rows": rows}


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _table(result: dict[str, Any]) -> str:
    """The rows of one size as a Markdown table that also reads well as text."""
    header = [f"{result['num_elements']:.0e} elements".replace("e+0", "e"), "ns/element", "quartiles", "× eager", "× best tuned", "GB/s"]
    if result["copy_gb_per_s"]:
        header.append(f"% of copy ({result['copy_gb_per_s']:.0f} GB/s)")
    lines = [header]
    for row in result["rows"]:
        if row["status"] != "ok":
            lines.append([row["label"], row["status"], *[""] * (len(header) - 2)])
            continue
        low, high = row["quartiles_ns"]
        ratios = [f"{ratio:.2f}" if ratio else "" for ratio in (row["times_eager"], row["times_best_tuned"])]
        cells = [row["label"], f"{row['ns_per_element']:.3f}", f"{low:.3f} to {high:.3f}", *ratios, f"{row['gb_per_s']:.1f}"]
        lines.append(cells + ([f"{row['percent_of_copy']:.0f}"] if row["percent_of_copy"] else []))
    widths = [max(len(line[i]) for line in lines if i != 1 or len(line[2])) for i in range(len(header))]
    text = ["| " + " | ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]) + " |" for line in lines]
    text.insert(1, "| " + " | ".join(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]) + " |")
    return "\n".join(text)


def _machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on; nothing that names the machine."""
    facts = info()
    machine: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cpu_target": facts["cpu_target"],
        "thread_pool": facts["thread_pool"],
        "load": os.getloadavg()[0],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["gpu"] = properties.name
        machine["gpu_multiprocessors"] = properties.multi_processor_count
        machine["gpu_capability"] = f"{properties.major}.{properties.minor}"
    return machine


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown CPU")


def _versions() -> dict[str, str]:
    versions = {"ebmcore": info()["version"], "torch": str(torch.__version__), "python": platform.python_version()}
    if torch.version.cuda:
        versions["cuda of torch"] = torch.version.cuda
    for name in ("torchebm", "triton"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _usable(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise ValueError(f"bench: device must be one that this torch can use, got {name!r}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda":
        if problem := info()["cuda_problem"]:
            raise ValueError(f"bench: CUDA cannot be used: {problem}")
        if device.index is not None:
            torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise ValueError(f"bench: device must be cpu or cuda, got {name!r}")
    return device


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("ebmcore bench", description="Check a native op's result, then time it beside PyTorch's ways to do the same.")
    summaries = "; ".join(f"{case.name}: {case.summary}" for case in CASES.values())
    parser.add_argument("case", choices=CASES, metavar="CASE", help=summaries)
    parser.add_argument("--sizes", type=_sizes, default=[10**5, 10**6, 10**7], metavar="N,N", help="numbers of elements (default: 1e5,1e6,1e7)")
    parser.add_argument("--dim", type=_count, default=3072, metavar="N", help="elements of a chain (default: 3072, an image of 3 x 32 x 32)")
    parser.add_argument("--threads", type=_count, metavar="N", help="CPU threads, torch's and ours (default: torch's choice)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    dtypes = list(dict.fromkeys(dtype for case in CASES.values() for dtype in case.dtypes))
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="(default: float32)")
    parser.add_argument("--rounds", type=_count, default=30, metavar="N", help="samples of each row (default: 30)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    return parser


def _sizes(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _count(text: str) -> int:
    try:
        value = float(text)
        if value != int(value) or value < 1:
            raise ValueError
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1 (1e6 is one), got {text!r}") from None
    return int(value)


if __name__ == "__main__":
    sys.exit(main())
