"""The linker's view: one object per instruction set shares nothing with the others, and the modules export their entry point alone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import ebmcore._native

ROOT = Path(__file__).resolve().parents[1]


def nm(*arguments: str) -> list[str]:
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    return subprocess.run(["nm", *arguments], capture_output=True, text=True, check=True).stdout.splitlines()


def test_objects_of_instruction_sets_share_no_symbol() -> None:
    objects = [p for p in ROOT.glob("build/*/CMakeFiles/cpu_*.dir/families/*.cpp.o") if p.stat().st_size]
    if not objects:
        pytest.skip("no build folder beside the sources: the package was installed from elsewhere")
    ops = set(re.findall(r"^EBM_OP\((\w+),", (ROOT / "csrc/ops/ops.def").read_text(), re.MULTILINE))
    for path in objects:
        lines = [line.split(maxsplit=2)[-2:] for line in nm("-C", str(path))]
        # A weak symbol (W, V, u) of two objects would be merged into either one, whatever its instruction set.
        assert not [line for line in lines if line[0] in "WVu"], path
        target = path.parents[1].name.removeprefix("cpu_").removesuffix(".dir")
        names = {re.sub(r"\(.*", "", name) for kind, name in lines if kind in "TDBR"}
        assert names <= {f"ebm::{target}::{op}" for op in ops | {"table"}}, path


def test_modules_export_only_their_entry_point() -> None:
    folder = Path(ebmcore._native.core.__file__).parent
    for name in ("_core", "_cuda"):
        for path in folder.glob(f"{name}.*.so"):
            exported = [line.split()[-1] for line in nm("-D", "--defined-only", str(path))]
            assert exported == [f"PyInit_{name}"], path


def test_modules_need_no_torch_no_openmp_no_driver() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    folder = Path(ebmcore._native.core.__file__).parent
    for path in [*folder.glob("_core.*.so"), *folder.glob("_cuda.*.so")]:
        dynamic = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
        needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
        assert not [lib for lib in needed if lib.startswith(("libtorch", "libc10", "libgomp", "libomp", "libiomp", "libcuda", "libcudart"))], path
