"""The benchmark's contract: it checks before it times, reports what it measured on what, and hides no failure."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ebmcore.bench import run, timing
from ebmcore.bench.cases import langevin, noise
from ebmcore.types import Key

Capture = pytest.CaptureFixture[str]
SMALL = ["--sizes", "7,2e3", "--dim", "1000", "--rounds", "2", "--no-compile"]


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SAMPLE_SECONDS", 1e-5)
    monkeypatch.setattr(timing, "MAX_SETS", 3)
    monkeypatch.setattr(timing, "COPY_BYTES", 2**20)


def without_rivals(monkeypatch: pytest.MonkeyPatch, *others: timing.Row) -> None:
    """Only ours and torch's own rows of the Langevin case, and `others`."""
    rows = tuple(row for row in langevin.CASE.rows if row.kind in ("ours", "eager", "tuned"))
    monkeypatch.setitem(run.CASES, "langevin", dataclasses.replace(langevin.CASE, rows=rows + others))


def rows_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in report["results"][-1]["rows"]}


@pytest.mark.parametrize("dtype", langevin.CASE.dtypes)
def test_langevin_report(device: str, dtype: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, keep_threads: None) -> None:
    without_rivals(monkeypatch)
    torch.set_num_threads(2)
    file = tmp_path / "report.json"
    assert run.main(["langevin", *SMALL, "--threads", "1", "--device", device, "--dtype", dtype, "--json", str(file)]) == 0
    assert torch.get_num_threads() == 2
    report = json.loads(file.read_text())
    assert [check["problem"] for check in report["checks"]] == ["7e0 elements", "2e3 elements"]
    assert report["settings"] == {"dtype": dtype, "device": device, "threads": 1, "dim": 1000, "rounds": 2}
    assert report["versions"]["torch"] == torch.__version__
    assert report["machine"]["cpu_target"] in ("baseline", "avx2", "avx512")
    assert ("gpu" in report["machine"]) == (device == "cuda")
    for row in rows_of(report).values():
        assert row["status"] == "ok"
        assert 0 < row["quartiles_ns"][0] <= row["ns_per_unit"] <= row["quartiles_ns"][1]
        assert row["gb_per_s"] == pytest.approx(3 * getattr(torch, dtype).itemsize / row["ns_per_unit"])
        assert (row["percent_of_copy"] is not None) == (device == "cuda")
    assert rows_of(report)["torch eager"]["times_eager"] == 1.0
    assert rows_of(report)["torch in place"]["times_best_tuned"] == 1.0
    out = capsys.readouterr().out
    assert "langevin_step_reference" in out
    assert out.count("| ebmcore langevin_step_ ") == 2


@pytest.mark.parametrize("dtype", noise.CASE.dtypes)
def test_noise_report(device: str, dtype: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert run.main(["noise", *SMALL, "--device", device, "--dtype", dtype, "--json", str(file)]) == 0
    rows = rows_of(json.loads(file.read_text()))
    assert {row["group"] for row in rows.values()} == {"normal", "uniform", "signs"}
    assert all(rows[label]["times_eager"] == 1.0 for label in ("torch.randn", "torch.rand", "torch.randint"))


def test_wrong_result_is_not_timed(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one_bit(x: torch.Tensor, grad: torch.Tensor, **arguments: Any) -> torch.Tensor:
        result = reference(x, grad, **arguments)
        result.flatten()[-1:].view(torch.int32).bitwise_xor_(1)
        return result

    reference = langevin.langevin_step_reference
    monkeypatch.setattr(langevin, "langevin_step_reference", off_by_one_bit)
    monkeypatch.setattr(run, "time_in_turns", lambda *_, **__: pytest.fail("timed"))
    file = tmp_path / "report.json"
    assert run.main(["langevin", *SMALL, "--json", str(file)]) == 1
    assert not file.exists()
    error = capsys.readouterr().err
    assert "WRONG RESULT, nothing was timed: langevin_step differs from langevin_step_reference in 1 of 7 elements" in error


def test_wrong_noise_is_not_timed(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "KEY", Key(2024))
    monkeypatch.setattr(noise, "philox", lambda shape, key: torch.zeros(shape, dtype=torch.uint32))
    assert run.main(["noise", *SMALL]) == 1
    assert "uniform is off by" in capsys.readouterr().err


def test_nan_is_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(langevin, "langevin_step", lambda x, grad, **_: torch.full_like(x, torch.nan))
    problem = timing.Problem(7, 1000, torch.float32, torch.device("cpu"))
    with pytest.raises(timing.CheckError, match="nan, wanted"):
        langevin.check(langevin.make_inputs(problem, 1))


def test_the_check_leaves_its_inputs_alone(device: str) -> None:
    problem = timing.Problem(2000, 1000, torch.float32, torch.device(device))
    inputs = langevin.make_inputs(problem, 1)
    before = inputs.x[0].clone(), inputs.grad[0].clone()
    langevin.check(inputs)
    torch.testing.assert_close((inputs.x[0], inputs.grad[0]), before, rtol=0, atol=0)


def test_failing_and_missing_rivals_are_reported(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(inputs: langevin.Inputs) -> timing.Run:
        raise ModuleNotFoundError("No module named 'rival'", name="rival")

    def broken(inputs: langevin.Inputs) -> timing.Run:
        return lambda i: 1 // 0

    without_rivals(monkeypatch, timing.Row("missing", "rival", missing), timing.Row("broken", "compiled", broken))
    file = tmp_path / "report.json"
    arguments = ["langevin", "--sizes", "100", "--rounds", "1", "--json", str(file)]
    assert run.main(arguments) == 0
    rows = rows_of(json.loads(file.read_text()))
    assert rows["missing"]["status"] == "not installed: No module named 'rival'"
    assert rows["broken"]["status"].startswith("failed: ZeroDivisionError: ")
    out = capsys.readouterr().out
    assert rows["missing"]["status"] in out
    assert rows["broken"]["status"] in out
    without_rivals(monkeypatch, timing.Row("ours, broken", "ours", broken))
    assert run.main(arguments) == 1


def counting_case(runs: dict[str, int]) -> timing.Case:
    """Two problems of 40 and 400 units. One row does all of one in a call, one a tenth of it; one does the first only."""

    def setup(label: str, share: float) -> Any:
        def one_call(inputs: timing.NamedProblem) -> timing.Part:
            if label == "small only" and inputs.spec != "small":
                raise timing.LeftOutError("too large")

            def call(i: int) -> None:
                runs[label] = runs.get(label, 0) + 1

            return timing.Part(call, share)

        return one_call

    kinds = {"whole": "ours", "tenth": "eager", "small only": "tuned"}
    rows = tuple(timing.Row(label, kind, setup(label, 0.1 if label == "tenth" else 1.0)) for label, kind in kinds.items())
    problems = tuple(timing.NamedProblem(name, units, spec) for name, units, spec in (("A", 40, "small"), ("B", 400, "large")))
    return timing.Case("named", "a case with problems of its own", rows, lambda problem, _: problem, lambda _: "fine", unit="turn", problems=problems)


def test_named_problems_and_shares(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: dict[str, int] = {}
    monkeypatch.setitem(run.CASES, "langevin", counting_case(runs))  # under a name that argparse knows

    def clock(call: timing.Run, calls: int, num_sets: int) -> float:
        for _ in range(calls):
            call(0)
        return 1e-3 * calls

    monkeypatch.setattr(timing, "_cpu_seconds", clock)
    file = tmp_path / "report.json"
    assert run.main(["langevin", "--rounds", "2", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert [result["problem"] for result in report["results"]] == ["A", "B"]
    assert report["unit"] == "turn"
    first, second = ({row["label"]: row for row in result["rows"]} for result in report["results"])
    assert first["whole"]["ns_per_unit"] == pytest.approx(1e6 / 40)
    assert first["tenth"]["ns_per_unit"] == pytest.approx(1e7 / 40)
    assert first["whole"]["times_eager"] == pytest.approx(10)
    assert first["whole"]["times_best_tuned"] == pytest.approx(1)
    assert first["whole"]["gb_per_s"] is None
    assert second["small only"]["status"] == "left out: too large"
    assert second["whole"]["times_best_tuned"] is None
    out = capsys.readouterr().out
    assert "ns/turn" in out
    assert "GB/s" not in out
    before = dict(runs)
    assert run.main(["langevin", "--only", "A", "--rounds", "1"]) == 0
    assert runs["small only"] > before["small only"]
    assert "| B " not in capsys.readouterr().out
    for arguments, message in ((["--sizes", "10"], "--sizes and --dim must not be given"), (["--only", "A,C"], "problems of named, A, B; got 'C'")):
        assert run.main(["langevin", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_slow_rows_get_three_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MAX_ROW_SECONDS", 10.0)
    seconds = {"slow": 6.0, "fast": 0.1}
    monkeypatch.setattr(timing, "_cpu_seconds", lambda call, calls, num_sets: calls * call(0))
    runs: dict[str, timing.Run] = {label: (lambda i, label=label: seconds[label]) for label in seconds}  # type: ignore[misc]
    samples = timing.time_in_turns(runs, num_sets=1, rounds=20, device=torch.device("cpu"))
    assert [len(samples[label]) for label in ("slow", "fast")] == [3, 20]


def test_no_compile_leaves_the_compiled_rows_out(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    without_rivals(monkeypatch, timing.Row("compiled", "compiled", lambda inputs: pytest.fail("set up")))
    assert run.main(["langevin", *SMALL]) == 0
    assert "left out (--no-compile)" in capsys.readouterr().out


def test_inputs_rotate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    samples = timing.time_in_turns({"a": seen.append, "b": lambda i: None}, num_sets=3, rounds=4, device=torch.device("cpu"))
    assert set(seen) == {0, 1, 2}
    assert [len(values) for values in samples.values()] == [4, 4]


def test_input_sets_are_larger_than_the_second_level_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MAX_SETS", 10**9)
    device = torch.device("cpu")
    for size in (10**4, 10**6, 10**8):
        problem = timing.Problem(size, 1000, torch.float32, device)
        num_sets = timing.num_input_sets(langevin.CASE, problem)
        assert num_sets >= 2
        assert num_sets * 2 * 4 * problem.num_units >= 4 * timing.l2_bytes(device)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "CASE"),
        (["gibberish"], "invalid choice: 'gibberish'"),
        (["langevin", "--sizes", "1e5,x"], "must be an integer of at least 1 (1e6 is one), got 'x'"),
        (["langevin", "--sizes", "0"], "got '0'"),
        (["langevin", "--rounds", "1.5"], "got '1.5'"),
        (["langevin", "--threads", "inf"], "got 'inf'"),
        (["langevin", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_arguments_that_cannot_be_read(arguments: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        run.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["noise", "--only", "10x10"], "--only must not be given for noise, which takes --sizes and --dim"),
        (["noise", "--dtype", "bfloat16"], "dtype must be one of float32, float64 for noise, got 'bfloat16'"),
        (["langevin", "--device", "nowhere"], "device must be one that this torch can use, got 'nowhere'"),
        (["langevin", "--device", "meta"], "device must be cpu or cuda, got 'meta'"),
        (["langevin", *SMALL, "--json", "/nowhere/report.json"], "No such file or directory"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: list[str], message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    without_rivals(monkeypatch)
    assert run.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"ebmcore bench {arguments[0]}: error: ")
    assert message in error
    assert error.count("\n") == 1
