"""The README's Python blocks run as they stand."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_readme_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    """One after another, as a reader would type them."""
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert "torch.Size([4, 64, 2])" in capsys.readouterr().out


def test_readme_paths_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
