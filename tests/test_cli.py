"""The command line: exit codes, one line for each failure, files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra 'demo' is not installed")
pytest.importorskip("sklearn", reason="the extra 'demo' is not installed")

from ebmcore import cli, demo

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    assert cli.main(["train", "--iterations", "2", "--out", str(folder)]) == 0
    return folder / "checkpoint.ebm"


def test_train_resumes(checkpoint: Path, capsys: Capture) -> None:
    assert cli.main(["train", "--iterations", "2", "--resume", "--out", str(checkpoint.parent)]) == 0
    assert f"ebmcore sample {checkpoint}" in capsys.readouterr().out
    assert cli.main(["train", "--iterations", "2", "--resume", "--seed", "1", "--out", str(checkpoint.parent)]) == 1
    assert "seed must be" in capsys.readouterr().err


def test_sample_writes_arrays_and_pictures(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["sample", str(checkpoint), "--num", "5", "--steps", "2", "--seed", "7", "--out"]
    assert cli.main([*arguments, str(tmp_path / "a.npz")]) == 0
    assert cli.main([*arguments, str(tmp_path / "b.npz")]) == 0
    assert cli.main([*arguments, str(tmp_path / "c.png")]) == 0
    first, second = (np.load(tmp_path / name)["x"] for name in ("a.npz", "b.npz"))
    assert first.shape == (5, 1, 8, 8)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, second)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def one_line(capsys: Capture) -> str:
    err = capsys.readouterr().err.strip()
    assert "\n" not in err, err
    return err


def test_failures_are_one_line_and_exit_code_1(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    truncated, foreign = tmp_path / "truncated.ebm", tmp_path / "foreign.ebm"
    truncated.write_bytes(checkpoint.read_bytes()[:1000])
    foreign.write_bytes(b"something else entirely")
    for path, message in ((truncated, "is truncated"), (foreign, "is no ebmcore checkpoint"), (tmp_path / "none", "No such file")):
        assert cli.main(["sample", str(path), "--out", str(tmp_path / "s.npz")]) == 1
        error = one_line(capsys)
        assert error.startswith("ebmcore sample: error: ")
        assert message in error
    assert cli.main(["train", "--data", str(foreign), "--out", str(tmp_path)]) == 1
    assert "must be a whole .npz file" in one_line(capsys)
    assert cli.main(["sample", str(checkpoint), "--num", "2", "--steps", "1", "--out", str(tmp_path / "no" / "s.npz")]) == 1
    assert "No such file" in one_line(capsys)
    assert not (tmp_path / "s.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "x", "--num", "0"], "must be an integer of at least 1, got '0'"),
        (["sample", "x", "--out", "s.jpg"], "must end in .png or .npz, got 's.jpg'"),
        (["sample", "x", "--device", "abacus"], "must be a device that this torch can use, got 'abacus'"),
        (["--seed", "-1"], "must be an integer from 0 to"),
        (["train", "--iterations", "ten"], "must be an integer of at least 1, got 'ten'"),
        (["sing"], "invalid choice: 'sing'"),
    ],
)
def test_wrong_arguments_are_exit_code_2(arguments: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert cli.main(["train", "--out", str(tmp_path)]) == 1
    assert one_line(capsys) == "ebmcore train: error: sklearn is not installed: pip install 'ebmcore[demo]'"


def test_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", interrupt)
    assert cli.main(["train", "--out", str(tmp_path)]) == 130
    assert one_line(capsys).startswith("ebmcore train: interrupted; ")


def test_without_arguments_it_says_what_it_can_do_and_runs_the_demo(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    calls: list[tuple[Path, dict[str, object]]] = []
    monkeypatch.setattr(demo, "run", lambda out, **options: calls.append((out, options)))
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"ebmcore {name}" in out for name in ("train", "sample", "bench", "info"))
    assert cli.main(["--out", "there", "--iterations", "5"]) == 0
    assert [path.name for path, _ in calls] == ["ebmcore-demo", "there"]
    assert "num_iterations" not in calls[0][1]
    assert calls[1][1]["num_iterations"] == 5


def test_info_and_the_module_entry() -> None:
    done = subprocess.run([sys.executable, "-m", "ebmcore", "info"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "version" in done.stdout
    done = subprocess.run([sys.executable, "-m", "ebmcore", "sample", "no-such-file"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ebmcore sample: error: ")
