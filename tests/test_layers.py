"""The floors of the house: imports and includes point down, siblings do not know each other, doors are narrow."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# room -> rooms it may import. A package is one room; the files of samplers and energies are siblings and may not import one another.
PYTHON = {
    "types": set(),
    "_native": {"_core", "_cuda"},
    "gradients": {"types"},
    "ops": {"types", "_native", "ops"},
    "graph": {"types"},
    "discrete": {"types", "gradients"},
    "discrete_sampler": {"types", "gradients", "discrete", "ops"},
    "continuous_sampler": {"types", "gradients", "ops"},
    "samplers": {"types", "gradients", "discrete", "discrete_sampler", "continuous_sampler", "ops"},
    "warm_up": {"types"},
    "perceptron": {"ops"},
    "trace": {"types", "gradients", "ops", "perceptron", "trace"},
    "networks": {"types", "perceptron"},
    "losses": {"types", "gradients", "discrete", "ops", "trace", "losses"},
    "analytic_energy": {"types", "ops"},
    "energies": {"types", "gradients", "graph", "discrete", "ops", "perceptron", "analytic_energy"},
    "evaluation": {"types", "gradients", "discrete", "ops", "evaluation"},
    "sampling": {"types", "ops"},
    "testing": {"types", "gradients"},
    "training": {"types", "ops", "training"},
    "demo": None,  # None: sees everything
    "cli": None,
    "__main__": {"cli"},
    "bench": None,
}

CSRC = {
    "core": {"core"},
    "ops": {"ops"},
    "energies": {"core", "ops", "energies"},
    "kernels": {"core", "ops", "energies", "kernels"},
    "backends": {"core", "ops", "kernels", "backends"},
    "bindings": {"ops", "backends", "bindings"},
}
FORBIDDEN = {
    "core": r"cuda_runtime|pybind11|torch|<(vector|string|thread|memory|algorithm|functional|map)>",
    "ops": r"<(?!cstdint>)",
    "energies": r"cuda_runtime|pybind11|torch|<(vector|string|thread|memory|algorithm|functional|map)>",
    "kernels": r"cuda_runtime|pybind11|torch|<(vector|string|thread|memory|algorithm|functional|map)>",
    "backends": r"pybind11|Python\.h|torch/",
    "bindings": r"cuda_runtime|torch/",
}


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "ebmcore"}


def python_files() -> list[Path]:
    return sorted([*(ROOT / "ebmcore").rglob("*.py"), *(ROOT / "bench").rglob("*.py")])


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "bench" if parts[0] == "bench" else parts[1]


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_python_imports_point_down(path: Path) -> None:
    room = room_of(path)
    modules = imported_modules(path)
    if room == "__init__":
        return
    assert room in PYTHON, f"{path}: the room {room} is not in the table of this test"
    allowed = PYTHON[room]
    if allowed is not None:
        is_face = path.name == "__init__.py"
        for module in modules:
            target = module.split(".")[1] if "." in module else "ebmcore"
            assert target in allowed or (is_face and target == room), f"{path} imports {module}"


@pytest.mark.parametrize("path", [p for p in python_files() if p.name == "__init__.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_faces_define_nothing(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(path.read_text().splitlines()) <= 100


def test_compiled_modules_have_one_importer() -> None:
    importers = {p.name for p in python_files() if re.search(r"import (_core|_cuda)\b|ebmcore\._(core|cuda)", p.read_text())}
    assert importers == {"_native.py"}


def test_only_ops_know_native() -> None:
    for path in python_files():
        if room_of(path) not in ("ops", "_native", "bench"):
            assert not any("_native" in module for module in imported_modules(path)), path


def test_there_is_no_drawer() -> None:
    assert not [p for p in python_files() if p.stem in ("utils", "helpers", "common", "misc")]


def native_files() -> list[Path]:
    return sorted(p for p in (ROOT / "csrc").rglob("*.*") if p.suffix in (".h", ".cpp", ".cu"))


@pytest.mark.parametrize("path", native_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_includes_point_down(path: Path) -> None:
    room = path.relative_to(ROOT / "csrc").parts[0]
    text = path.read_text()
    for include in re.findall(r'#include "([^"]+)"', text):
        target = (path.parent / include).resolve().relative_to(ROOT / "csrc").parts[0]
        assert target in CSRC[room], f"{path} includes {include}"
        if room == "bindings" and target == "backends":
            assert Path(include).name in ("dispatch.h", "thread_pool.h"), f"{path} includes {include}"
    includes = "\n".join(line for line in text.splitlines() if line.startswith("#include"))
    found = re.search(FORBIDDEN[room], includes)
    assert not found or (path.name == "cuda_launch.h" and "cuda_runtime" in found.group()), f"{path}: {found}"


def test_backends_do_not_know_each_other() -> None:
    backends = ROOT / "csrc" / "backends"
    assert "cuda" not in re.sub(r"//.*", "", (backends / "cpu_launch.h").read_text()).lower()
    assert "cpu" not in re.sub(r"//.*", "", (backends / "cuda_launch.h").read_text()).lower()
