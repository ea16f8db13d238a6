"""`ebmcore bench CASE`: check the result, then time it beside its rivals. A wrong result is not timed."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Container, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from ebmcore.bench.cases import ais, chains, gibbs, gwg, hmc, langevin, mlp, noise, potts, proposal, rbm, trace
from ebmcore.bench.draws import efficiency, ess_of_a_step
from ebmcore.bench.memory import peak_bytes
from ebmcore.bench.timing import COPY_BYTES, Case, CheckError, LeftOutError, NamedProblem, Part, Problem, Run, copy_run, num_input_sets, time_in_turns
from ebmcore.ops import info

CASES = {each.CASE.name: each.CASE for each in (langevin, noise, chains, hmc, mlp, gibbs, gwg, potts, proposal, rbm, trace, ais)}

DIM = 3072  # an image of 3 x 32 x 32


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
            only=args.only,
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
    ours = [row for result in report["results"] for row in result["rows"] if row["kind"] == "ours"]
    return 0 if all(row["status"].startswith(("ok", "left out")) for row in ours) else 1


def run(
    case: Case,
    *,
    sizes: Sequence[int] | None = None,
    dim: int | None = None,
    only: Sequence[str] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    rounds: int = 30,
    with_compile: bool = True,
) -> dict[str, Any]:
    """Check `case` at every size or problem, then time it at each and print tables on the way.

    `sizes` and `dim` are of cases that take any size, `only` names problems of the others.

    Returns:
        All that was measured and on what, as JSON takes it.

    Raises:
        CheckError: ours is wrong somewhere; nothing was timed.
        ValueError: a dtype, a problem or sizes that the case does not have, or a device that cannot be used here.
    """
    if dtype not in case.dtypes:
        raise ValueError(f"bench: dtype must be one of {', '.join(case.dtypes)} for {case.name}, got {dtype!r}")
    place = _usable(device)
    problems = _problems(case, sizes, dim, only, getattr(torch, dtype), place)
    facts = _machine(place)
    settings: dict[str, Any] = {"dtype": dtype, "device": place.type, "threads": torch.get_num_threads(), "rounds": rounds}
    settings["dim"] = None if case.problems else dim or DIM
    report: dict[str, Any] = {
        "case": case.name,
        "machine": facts,
        "versions": _versions(),
        "unit": case.unit,
        "settings": settings,
        "checks": [],
        "results": [],
    }
    where = f"{facts['gpu']}" if place.type == "cuda" else f"{facts['cpu']}, {facts['cpu_target']}, {torch.get_num_threads()} thread(s)"
    print(f"{case.name}: {case.summary}\n{dtype} on {where}; torch {torch.__version__}, ebmcore {info()['version']}")
    print(f"load average {facts['load']:.1f} on {facts['cores']} cores, this process included: other work on the machine is in the numbers")
    for problem in problems:
        report["checks"].append({"problem": problem.name, "passed": case.check(case.make_inputs(problem, 1))})
    print(f"checked: {report['checks'][0]['passed']}", flush=True)
    for problem in problems:
        result = _time(case, problem, rounds, with_compile)
        report["results"].append(result)
        print(f"\n{_table(result, case.unit)}", flush=True)
    notes = {row.label: row.note for problem in problems for row in case.rows_of(problem) if row.note}
    print("\n" + "\n".join(f"{label}: {note}" for label, note in notes.items()))
    return report


def _problems(
    case: Case, sizes: Sequence[int] | None, dim: int | None, only: Sequence[str] | None, dtype: torch.dtype, device: torch.device
) -> Sequence[Problem | NamedProblem]:
    if not case.problems:
        if only is not None:
            raise ValueError(f"bench: --only must not be given for {case.name}, which takes --sizes and --dim")
        return [Problem(size, dim or DIM, dtype, device) for size in sizes or (10**5, 10**6, 10**7)]
    if sizes is not None or dim is not None:
        raise ValueError(f"bench: --sizes and --dim must not be given for {case.name}, which has problems of its own: --only")
    names = [problem.name for problem in case.problems]
    for name in only or ():
        if name not in names:
            raise ValueError(f"bench: --only must name problems of {case.name}, {', '.join(names)}; got {name!r}")
    return [dataclasses.replace(each, dtype=dtype, device=device) for each in case.problems if only is None or each.name in only]


def _time(case: Case, problem: Problem | NamedProblem, rounds: int, with_compile: bool) -> dict[str, Any]:
    torch.compiler.reset()  # other sizes' graphs are done with, and a function may have only a few
    num_sets = num_input_sets(case, problem)
    inputs = case.make_inputs(problem, num_sets)
    runs: dict[str, Run] = {}
    shares: dict[str, float] = {}
    status: dict[str, str] = {}
    peaks: dict[str, int] = {}
    case_rows = case.rows_of(problem)
    for row in case_rows:
        if row.kind == "compiled" and not with_compile:
            status[row.label] = "left out (--no-compile)"
            continue
        try:
            part = row.setup(inputs)
            runs[row.label], shares[row.label], _ = part if isinstance(part, Part) else Part(part, 1.0)
            runs[row.label](0)
            if case.with_memory:
                peaks[row.label] = peak_bytes(partial(runs[row.label], 0), problem.device)
            status[row.label] = "ok"
        except ImportError as error:
            status[row.label] = f"not installed: {error}"
        except LeftOutError as error:
            status[row.label] = f"left out: {error}"
        except Exception as error:  # a rival's failure is a result, not ours
            status[row.label] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if status[row.label] != "ok":
            runs.pop(row.label, None)
    if problem.device.type == "cuda":
        runs["copy"] = copy_run(problem.device)
    samples = time_in_turns(runs, num_sets=num_sets, rounds=rounds, device=problem.device)
    samples = {label: [seconds / shares.get(label, 1.0) for seconds in values] for label, values in samples.items()}
    medians = {label: statistics.median(values) for label, values in samples.items()}
    copy_gbps = 2 * COPY_BYTES / medians["copy"] / 1e9 if "copy" in medians else None
    ess = _ess_of_steps(case, problem, medians)
    rows = []
    for row in case_rows:
        entry: dict[str, Any] = {"label": row.label, "group": row.group, "kind": row.kind, "note": row.note, "status": status[row.label]}
        if row.label in medians:
            n, seconds = problem.num_units, medians[row.label]
            rivals = {r.label: (r.kind, medians[r.label]) for r in case_rows if r.group == row.group and r.label in medians}
            eager = [s for kind, s in rivals.values() if kind == "eager"]
            tuned = [s for kind, s in rivals.values() if kind in ("tuned", "compiled")]
            gbps = case.arrays * problem.dtype.itemsize * n / seconds / 1e9
            entry |= {
                "ns_per_unit": seconds / n * 1e9,
                "quartiles_ns": [q / n * 1e9 for q in _quartiles(samples[row.label])],
                "times_eager": min(eager) / seconds if eager else None,
                "times_best_tuned": min(tuned) / seconds if tuned else None,
                "gb_per_s": gbps or None,
                "percent_of_copy": 100 * gbps / copy_gbps if gbps and copy_gbps else None,
                "peak_bytes": peaks.get(row.label),
            }
            if row.label in ess:
                entry |= efficiency(ess[row.label], row.evaluations, seconds / n)
        rows.append(entry)
    copied = {"input_sets": num_sets, "copy_gb_per_s": copy_gbps if case.arrays else None}
    return {"problem": problem.name, "num_units": problem.num_units, **copied, "rows": rows}


def _ess_of_steps(case: Case, problem: Problem | NamedProblem, labels: Container[str]) -> dict[str, float]:
    """The effective sample size of a chain step of these rows, where the problem has draws to judge."""
    result: dict[str, float] = {}
    if not isinstance(problem, NamedProblem) or problem.judged is None:
        return result
    spec, num_steps = problem.judged
    inputs = case.make_inputs(dataclasses.replace(problem, spec=spec), 1)
    for row in case.rows_of(problem):
        if row.label in labels:
            try:
                step = cast(Part, row.setup(inputs)).step
                assert step is not None
                result[row.label] = ess_of_a_step(step, inputs.x, num_steps)
            except ImportError as error:
                print(f"no effective sample sizes: {error}")
                break
            except Exception as error:  # a rival's; the times stand
                print(f"{row.label}: no effective sample size: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return result


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _table(result: dict[str, Any], unit: str) -> str:
    """The rows of one problem as a Markdown table that also reads well as text."""
    header = [result["problem"], f"ns/{unit}", "quartiles", "× eager", "× best tuned"]
    if any(row.get("gb_per_s") for row in result["rows"]):
        header.append("GB/s")
    if result["copy_gb_per_s"]:
        header.append(f"% of copy ({result['copy_gb_per_s']:.0f} GB/s)")
    if any(row.get("peak_bytes") is not None for row in result["rows"]):
        header.append("peak MiB")
    if any("ess_per_step" in row for row in result["rows"]):
        header += ["ESS/s", "ESS/1000 evaluations"]
    lines = [header]
    for row in result["rows"]:
        if row["status"] != "ok":
            lines.append([row["label"], row["status"], *[""] * (len(header) - 2)])
            continue
        low, high = row["quartiles_ns"]
        ratios = [_figure(ratio, 2) if ratio else "" for ratio in (row["times_eager"], row["times_best_tuned"])]
        cells = [row["label"], _figure(row["ns_per_unit"], 3), f"{_figure(low, 3)} to {_figure(high, 3)}", *ratios]
        cells += [f"{row['gb_per_s']:.1f}"] if row["gb_per_s"] else []
        cells += [f"{row['percent_of_copy']:.0f}"] if row["percent_of_copy"] else []
        cells += [f"{row['peak_bytes'] / 2**20:.2f}"] if row["peak_bytes"] is not None else []
        cells += [f"{row['ess_per_second']:,.0f}", f"{row['ess_per_1000_evaluations']:.2f}"] if "ess_per_step" in row else []
        lines.append(cells + [""] * (len(header) - len(cells)))
    widths = [max(len(line[i]) for line in lines if i != 1 or len(line[2])) for i in range(len(header))]
    text = ["| " + " | ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]) + " |" for line in lines]
    text.insert(1, "| " + " | ".join(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]) + " |")
    return "\n".join(text)


def _figure(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value < 100 else f"{value:,.0f}"


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
    for name in ("torchebm", "ebmkit", "triton", "dwave-samplers", "thrml", "blackjax", "jax"):
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
    parser.add_argument("--sizes", type=_sizes, metavar="N,N", help="numbers of elements (default: 1e5,1e6,1e7)")
    parser.add_argument("--dim", type=_count, metavar="N", help="elements of a chain (default: 3072, an image of 3 x 32 x 32)")
    named = "; ".join(f"{case.name}: {', '.join(p.name for p in case.problems)}" for case in CASES.values() if case.problems)
    parser.add_argument("--only", type=_names, metavar="A,B", help=f"problems, of cases that have their own ({named})")
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


def _names(text: str) -> list[str]:
    return text.split(",")


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
