"""The examples run from the command line, print figures and write a picture. What the figures are worth is for longer runs to say."""

from __future__ import annotations

import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ebmcore
from support.truths import truth

pytest.importorskip("matplotlib", reason="the extra 'demo' is not installed")
pytest.importorskip("sklearn", reason="the extra 'demo' is not installed")

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
EXAMPLES = {
    "ising_phase_transition": "--sides 4 8 --chains 8 --sweeps 5 --kept 2 --threads 1",
    "inverse_ising": "--side 4 --samples 50 --steps 1 3 --iterations 5 --chains 10 --threads 1",
    "compose": "--updates 3 --chains 50 --steps 8 --threads 1",
    "binary_ebm": "--iterations 3 --batch-size 16 --steps 2 --channels 4 --ais-chains 5 --temperatures 3 --threads 1",
    "protein_potts": "--data 1atzA.aln --iterations 3 --chains 20 --sweeps 1 --fresh 50 --fresh-sweeps 3 --threads 1",
    "tempering_modes": "--chains 40 --evaluations 200 --threads 1",
    "funnel_and_ring": "--chains 60 --evaluations 400 --threads 1",
    "tabular_mlp": "--splits 2 --updates 3 --ais-chains 10 --temperatures 5 --threads 1",
    "trace_estimators": "--dim 24 --products 6 12 --repetitions 400 --threads 1",
    "score_2d": "--samples 500 --updates 3 --batch-size 32 --threads 1",
    "ncsn_mnist": "--data images.npz --channels 4 8 --num-blocks 1 --levels 3 --iterations 3 --batch-size 4 --steps-per-level 1 --images 20",
    "logz_bracket": "--temperatures 1 4 --chains 20 --threads 1",
    "rbm_mnist": "--data images.npz --epochs 1 --num-hidden 100 --ais-chains 3 --ais-betas 5",
}
FIGURES = {
    "ising_phase_transition": r"0\.4407 +-1\.\d+ ± \d\.\d+ +-1\.41421",
    "inverse_ising": r"RMSE 0\.\d+: Gibbs 3 evaluations per update",
    "compose": r"ring · crescent: total variation 0\.\d+, of as many independent draws 0\.\d+; 14 calls of each part",
    "binary_ebm": r"AIS: log Z = \d+\.\d+ ± \d\.\d+",
    "tempering_modes": r"parallel tempering over Gibbs: total variation 0\.\d+ after 200 evaluations",
    "funnel_and_ring": r"ParallelTempering +step \d.*\n +HMC +step \d\.\d+ +0\.\d+ (wrong|     ) +-?0\.\d{5} +\d+\.\d{3}",
    "tabular_mlp": r"MLP, contrastive divergence +0\.\d{4} ± 0\.\d{4} +[+-]0\.\d{4} ± ",
    "trace_estimators": r"24 rms errors, the furthest [0-4]\.\d standard errors off",
    "score_2d": r"free network +denoising +\d+\.\d+ ± \d\.\d+",
    "ncsn_mnist": r"1-NN accuracy of 20 generated and 20 held-out images: [01]\.\d+",
    "logz_bracket": r"funnel: log Z = 10\.287998",
    "rbm_mnist": r"ln Z \d+\.\d+ ± ",
    "protein_potts": r"after +3 sweeps: Pearson of C_ij\(a, b\) -?0\.\d+, of f_i\(a\) 0\.\d+",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, tmp_path: Path) -> None:
    arguments = EXAMPLES[name].split()
    if "images.npz" in arguments:
        images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
        np.savez(tmp_path / "images.npz", x_train=images, x_test=images[:100])
    elif "--data" in arguments:
        file = DATA / arguments[1]
        if not file.is_file():
            pytest.skip(f"no data at hand: there is no {file.name} in ../shared/data beside the checkout")
        arguments[1] = str(file)
    script, picture = ROOT / "examples" / f"{name}.py", tmp_path / "picture.png"
    command = [sys.executable, "-W", "error", str(script), *arguments, "--out", str(picture)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(FIGURES[name], result.stdout), result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def load(name: str) -> Any:
    specification = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    return example


@pytest.mark.parametrize("name", ["funnel", "ring", "banana"])
def test_ranks_of_exact_draws_are_uniform_and_independent(name: str) -> None:
    """p-values below 1e-6 come up once in a million seeds."""
    example = load("funnel_and_ring")
    # The narrower the ring, the less its curvature matters; its draws are slow.
    target, num = (example.ring(1.0, 0.1), 10_000) if name == "ring" else (example.TARGETS[name](), 100_000)
    first, second = target.ranks(target.energy.sample(num, key=ebmcore.Key(1), dtype=torch.float64))
    # Of two independent uniform ranks the remainder of first + second is uniform, too, and independent of each.
    for pair in ((first, second), (first, (first + second) % 1)):
        distance, p_value = example.kolmogorov(torch.stack(pair).sort(1).values)
        assert p_value > 1e-6, (distance, p_value)
        assert example.kolmogorov(torch.stack(pair).sort(1).values ** 1.1)[1] < 1e-6


def test_energies_of_finite_lattices_are_the_exact_ones() -> None:
    example = load("ising_phase_transition")
    for case in truth("ising2d")["finite"]:
        if (case["Lx"], case["Ly"]) == (8, 8) and case["beta"] in ("0.2", "0.4"):
            point = example.measure(8, float(case["beta"]), num_chains=10_000, num_sweeps=20, num_kept=1, seed=3)
            error = math.sqrt(case["var_energy_total"] / 10_000) / 64
            assert abs(point.energy - case["energy_per_spin"]) < 5.45 * error
            assert point.energy_error == pytest.approx(error, rel=0.05)
    for case in truth("ising2d")["onsager"]:
        assert example.exact_energy(float(case["beta"])) == pytest.approx(case["energy_per_spin"], abs=1e-6)
        assert example.exact_magnetisation(float(case["beta"])) == pytest.approx(case["spontaneous_magnetisation"], abs=1e-6)


def test_all_examples_are_tested_and_short() -> None:
    files = {path.stem: path for path in (ROOT / "examples").glob("*.py")}
    assert files.keys() == EXAMPLES.keys()
    for path in files.values():
        assert len(path.read_text().splitlines()) < 200, path
