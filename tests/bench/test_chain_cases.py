"""Cases of whole continuous chains: what they time is right, rivals written here included, and their check sees a wrong energy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmcore import HMC, Langevin
from ebmcore.bench import run, timing
from ebmcore.bench.cases import chains, hmc
from ebmcore.bench.checks import check_native_chains
from ebmcore.bench.draws import ess_of_a_step
from ebmcore.energies import DoubleWell
from support.statistics import assert_gaussian


def small(spec: Any) -> timing.NamedProblem:
    return timing.NamedProblem("small", 1, spec, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("case", "spec"),
    [(chains.CASE, ("double well", 20, 3)), (chains.CASE, ("mixture", 20, 2)), (hmc.CASE, (20, 3))],
    ids=["double well", "mixture", "hmc"],
)
def test_checks_pass_and_every_row_runs(case: timing.Case, spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case.make_inputs(small(spec), 1)
    before = inputs.x.clone()
    assert case.check(inputs)
    for row in case.rows:
        if row.kind not in ("rival", "compiled"):
            part = row.setup(inputs)
            assert isinstance(part, timing.Part)
            assert part.step is not None
            for result in (part.run(0), part.step(before.clone())):
                assert isinstance(result, Tensor)
                assert result.shape == before.shape
            assert torch.equal(inputs.x, before), row.label


@pytest.mark.parametrize("name", ["double well", "mixture"])
def test_formulas_are_the_energies(name: str) -> None:
    inputs = chains.make_inputs(small((name, 50, 2)), 1)
    x = inputs.x.clone().requires_grad_()
    torch.testing.assert_close(inputs.formula(x), inputs.energy(x), rtol=1e-4, atol=1e-4)
    (grad,) = torch.autograd.grad(inputs.formula(x).sum(), x)
    torch.testing.assert_close(inputs.gradient(x), grad, rtol=1e-4, atol=1e-4)


class Counted:
    """A function, and the rows that it was called with."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.rows = function, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.function(x)


@pytest.mark.parametrize("case", [chains, hmc], ids=["chains", "hmc"])
def test_evaluations_are_those_that_rows_make(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case.make_inputs(small(("double well", 8, 2) if case is chains else (8, 2)), 1)
    if case is chains:
        energy, gradient = Counted(inputs.formula), Counted(inputs.gradient)
        inputs = inputs._replace(formula=energy, gradient=gradient)
    else:
        energy, gradient = Counted(hmc.formula), Counted(hmc._identity)
        monkeypatch.setattr(hmc, "formula", energy)
        monkeypatch.setattr(hmc, "_identity", gradient)
    counts = {}
    for row in case.CASE.rows:
        if row.kind in ("eager", "tuned") or row.label in ("ebmcore, torch energy", "ebmkit"):
            try:
                step = row.setup(inputs).step
            except ImportError:
                continue
            energy.rows = gradient.rows = 0
            step(inputs.x.clone())
            start = 8 if case is hmc and row.kind == "ours" else 0  # HMC evaluates its start once a call
            counts[row.label] = (energy.rows + gradient.rows - start) / 8
            assert counts[row.label] == row.evaluations, row.label
    assert len(counts) >= 3


RIVALS = {"blackjax": ("jax", "blackjax"), "ebmkit": ("ebm.samplers",), "torchebm": ("torchebm",)}


@pytest.mark.parametrize("label", ["ebmcore", "torch eager", "torch tuned", *RIVALS])
def test_one_step_of_langevin_is_the_same_law_in_every_row(label: str) -> None:
    for name in RIVALS.get(label, ()):
        pytest.importorskip(name)
    x = torch.tensor([0.5, -1.3])
    inputs = chains.make_inputs(small(("double well", 20_000, 2)), 1)._replace(x=x.repeat(20_000, 1))
    torch.manual_seed(1)
    part: Any = next(row for row in chains.CASE.rows if row.label == label).setup(inputs)
    mean = x - chains.STEP_SIZE * inputs.gradient(x)
    assert_gaussian(part.step(inputs.x.clone()).double(), mean.double(), 2 * chains.STEP_SIZE * torch.eye(2), what=label)


@pytest.mark.parametrize("label", RIVALS)
def test_rivals_keep_the_law(label: str) -> None:
    for name in RIVALS[label]:
        pytest.importorskip(name)
    inputs = hmc.make_inputs(small((10_000, 2)), 1)
    torch.manual_seed(1)
    part: Any = next(row for row in hmc.CASE.rows if row.label == label).setup(inputs)
    assert_gaussian(part.run(0).double(), torch.zeros(2), torch.eye(2), what=label)
    x = part.step(inputs.x.clone())
    assert_gaussian(x.double(), torch.zeros(2), torch.eye(2), what=label)
    assert not torch.equal(x, part.step(inputs.x.clone()))


def test_ess_of_a_step_is_that_of_an_autoregression() -> None:
    """x' = a x + sqrt(1 - a²) ξ has ESS (1 - a) / (1 + a) a step; of 60,000 steps it is known to 3 %."""
    pytest.importorskip("arviz_stats")
    x = torch.zeros(100, 2)
    state, start = torch.get_rng_state(), x.clone()
    ess = ess_of_a_step(lambda x: x.mul_(0.6).add_(torch.randn_like(x), alpha=0.8), x, 600)
    assert ess == pytest.approx(0.25, rel=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, start)


def test_without_arviz_stats_one_line_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def ess(*_: Any) -> float:
        raise ImportError("needs arviz-stats")

    monkeypatch.setattr(run, "ess_of_a_step", ess)
    monkeypatch.setattr(timing, "MIN_SAMPLE_SECONDS", 1e-5)
    rows = tuple(row for row in hmc.CASE.rows if row.kind in ("ours", "tuned"))
    case = dataclasses.replace(hmc.CASE, rows=rows, problems=(timing.NamedProblem("small", 1000, (5, 2), judged=((5, 2), 8)),))
    assert all(row["status"] == "ok" for row in run.run(case, rounds=1)["results"][0]["rows"])
    out = capsys.readouterr().out
    assert out.count("no effective sample sizes: needs arviz-stats") == 1
    assert "ESS" not in out


def test_report_has_effective_sample_sizes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("arviz_stats")
    monkeypatch.setattr(timing, "MIN_SAMPLE_SECONDS", 1e-5)
    rows = tuple(row for row in hmc.CASE.rows if row.label in ("ebmcore", "torch tuned"))
    broken = timing.Row("broken", "rival", lambda inputs: timing.Part(lambda i: None, 1.0, lambda x: 1 / 0), evaluations=1)
    problem = timing.NamedProblem("small", 1000, (5, 2), judged=((256, 2), 400))
    case = dataclasses.replace(hmc.CASE, rows=(*rows, broken), problems=(problem,))
    report = run.run(case, rounds=1)
    for row in report["results"][0]["rows"][:2]:
        # Trajectories of length 1 turn x by an angle of 1: its autocorrelation is cos(1).
        assert row["ess_per_step"] == pytest.approx((1 - math.cos(1)) / (1 + math.cos(1)), rel=0.1)
        assert row["ess_per_second"] == pytest.approx(row["ess_per_step"] / row["ns_per_unit"] * 1e9)
        assert row["ess_per_1000_evaluations"] == pytest.approx(row["ess_per_step"] * 1000 / (10 if row["label"] == "ebmcore" else 13))
    assert "ess_per_step" not in report["results"][0]["rows"][2]
    out = capsys.readouterr().out
    assert "ESS/s | ESS/1000 evaluations |" in out
    assert "broken: no effective sample size: ZeroDivisionError" in out


def test_hmc_rivals_keep_the_law() -> None:
    torch.manual_seed(0)
    x = torch.randn(20_000, 2, dtype=torch.float64)
    for _ in range(3):
        x = hmc.hmc_step(lambda y: y, x)
    assert_gaussian(x, torch.zeros(2), torch.eye(2), what="hmc_step")


class Wrong(DoubleWell):
    """The native chains of another energy."""

    def _energy(self, x: Tensor) -> Tensor:
        return 1.001 * super()._energy(x)


@pytest.mark.parametrize("sampler", [Langevin(0.01), HMC(0.1, 3)], ids=["langevin", "hmc"])
def test_check_sees_a_wrong_energy(sampler: Any) -> None:
    with pytest.raises(timing.CheckError, match="native chains of Wrong"):
        check_native_chains(sampler, Wrong(), torch.ones(4, 2), 5)
