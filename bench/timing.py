"""What a benchmark case is made of, and how its rows are timed: in turns, in one process, over rotating inputs."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Run = Callable[[int], object]  # one call, on the i-th input set

MIN_SAMPLE_SECONDS = 2e-2  # a sample of a short row is as many calls as take this long: the first after another row runs cold
MAX_ROW_SECONDS = 15.0  # a row that has taken this long gets no more samples than three
MAX_SETS = 1024
COPY_BYTES = 2**29  # of the device-to-device copy that CUDA rows are held against


_CPU = torch.device("cpu")


class CheckError(Exception):
    """The result that was to be timed is wrong."""


class LeftOutError(Exception):
    """A row that does not do the problem at hand; the message says why."""


class Part(NamedTuple):
    """A call and what else is known of it.

    Attributes:
        share: what part of the problem it does: its time is scaled.
        step: chains (num_chains, dim) one step on, as the call makes them; its argument may be overwritten. Of rows whose draws are judged.
    """

    run: Run
    share: float
    step: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class NamedProblem:
    """One of the problems that a case brings along.

    Attributes:
        num_units: what the case counts (its `unit`) in one call.
        spec: what `make_inputs` of the case needs to know.
        rows: where they are not the case's.
        judged: spec of the same with as many chains as draws are judged of, and the steps of each; None: draws are not judged.
    """

    name: str
    num_units: int
    spec: Any
    dtype: torch.dtype = torch.float32
    device: torch.device = _CPU
    rows: tuple[Row, ...] = ()
    judged: tuple[Any, int] | None = None


@dataclass(frozen=True)
class Problem:
    """About `size` elements of `dtype` on `device`, in chains of `dim` (one chain if there are fewer)."""

    size: int
    dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def shape(self) -> tuple[int, int]:
        dim = min(self.dim, self.size)
        return self.size // dim, dim

    @property
    def num_units(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def name(self) -> str:
        return f"{self.num_units:.0e} elements".replace("e+0", "e")


@dataclass(frozen=True)
class Row:
    """One way to do the job.

    Attributes:
        kind: "ours", "eager" (as users write it), "tuned" (the best that stock torch offers), "compiled", "rival".
        setup: the case's inputs -> one call on the i-th input set. An ImportError or LeftOutError in it leaves the row out, with that reason.
        note: what the call includes beyond the job.
        group: rows are compared within their group.
        evaluations: of the energy or its gradient in a chain step, both at one point counted as one; 0 where draws are not judged.
    """

    label: str
    kind: str
    setup: Callable[[Any], Run | Part]
    note: str = ""
    group: str = ""
    evaluations: int = 0


@dataclass(frozen=True)
class Case:
    """A benchmark.

    Attributes:
        make_inputs: (problem, num_sets) -> what the rows' setup and `check` take.
        check: raises CheckError unless ours is right on the first input set, which it leaves as it is; returns what was shown.
        arrays: arrays of num_units that are read or written at least once; 0 where bytes are not the point.
        input_arrays: those of them that belong to an input set.
        unit: what times are divided by.
        problems: what is to be timed; without them it is so many elements, as --sizes and --dim say.
        with_memory: whether the peak of a call's tensors is of interest too.
    """

    name: str
    summary: str
    rows: tuple[Row, ...]
    make_inputs: Callable[[Any, int], Any]
    check: Callable[[Any], str]
    dtypes: tuple[str, ...] = ("float32",)
    arrays: int = 0
    input_arrays: int = 0
    unit: str = "element"
    problems: tuple[NamedProblem, ...] = ()
    with_memory: bool = False

    def rows_of(self, problem: Problem | NamedProblem) -> tuple[Row, ...]:
        return problem.rows or self.rows if isinstance(problem, NamedProblem) else self.rows


def l2_bytes(device: torch.device) -> int:
    """Size of the second-level cache (of one core on a CPU; 1 MiB where the machine does not say)."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text()
    except OSError:
        return 2**20
    match = re.fullmatch(r"(\d+)([KM]?)\s*", text)
    return int(match[1]) * {"": 1, "K": 2**10, "M": 2**20}[match[2]] if match else 2**20


def num_input_sets(case: Case, problem: Problem | NamedProblem) -> int:
    """How many input sets together are four times the second-level cache; at least two where there are inputs at all."""
    size = case.input_arrays * problem.num_units * problem.dtype.itemsize
    return min(max(2, -(-4 * l2_bytes(problem.device) // size)), MAX_SETS) if size else 1


def time_in_turns(runs: Mapping[str, Run], *, num_sets: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per call of each row, one sample a round. The order of the rows changes from round to round: none has a fixed predecessor."""
    clock = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    calls = {label: _warm_up(run, num_sets, clock) for label, run in runs.items()}
    samples: dict[str, list[float]] = {label: [] for label in runs}
    order, shuffler = list(runs), random.Random(0)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for label in order:
            if len(samples[label]) < 3 or sum(samples[label]) * calls[label] < MAX_ROW_SECONDS:
                samples[label].append(clock(runs[label], calls[label], num_sets) / calls[label])
    return samples


def copy_run(device: torch.device) -> Run:
    """A device-to-device copy of COPY_BYTES, each read and written once."""
    source = torch.ones(COPY_BYTES // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return lambda i: target.copy_(source)


def _warm_up(run: Run, num_sets: int, clock: Callable[[Run, int, int], float]) -> int:
    """Calls a sample, doubled until they take long enough; compiles and allocates on the way."""
    calls = 1
    while clock(run, calls, num_sets) < MIN_SAMPLE_SECONDS:
        calls *= 2
    return calls


def _cpu_seconds(run: Run, calls: int, num_sets: int) -> float:
    begin = time.perf_counter()
    for i in range(calls):
        run(i % num_sets)
    return time.perf_counter() - begin


def _cuda_seconds(run: Run, calls: int, num_sets: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for i in range(calls):
        run(i % num_sets)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
