"""The trace case: what it times is right, rivals in plain torch included, and its checks see a wrong result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebmcore import Key, trace
from ebmcore.bench import memory, run, timing, torch_traces
from ebmcore.bench.cases import trace as case
from ebmcore.energies import MLP
from ebmcore.networks import ScoreMLP

CPU = torch.device("cpu")
ESTIMATORS = (
    torch_traces.double_backward,
    torch_traces.vjps,
    torch_traces.batched_vjps,
    torch_traces.jvps,
    torch_traces.forward_mode,
)


def model(kind: type[nn.Module], dim: int = 5) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return kind(dim, hidden=(7, 6)).double(), torch.randn(3, dim, dtype=torch.float64)  # type: ignore[call-arg]


def small(problem: timing.NamedProblem, num_chains: int = 3) -> timing.NamedProblem:
    """The same with smaller layers and fewer chains."""
    build, dim, amount, check = problem.spec
    if getattr(build, "keywords", None):
        build = type(build)(build.func, hidden=(9, 8))
    is_low_rank = build is case.low_rank
    spec = (build, 40 if is_low_rank else min(dim, 11), min(amount, 30), check)
    return dataclasses.replace(problem, spec=spec, num_units=24 if is_low_rank else num_chains)


@pytest.mark.parametrize("problem", case.CASE.problems, ids=lambda p: p.name)
def test_checks_pass_and_every_row_runs(problem: timing.NamedProblem) -> None:
    inputs = case.make_inputs(small(problem), 1)
    before = inputs.x.clone()
    assert case.CASE.check(inputs)
    for row in case.CASE.rows_of(problem):
        if row.kind == "compiled":
            continue
        try:
            one_call = row.setup(inputs)
        except (timing.LeftOutError, ImportError):
            continue
        assert callable(one_call)
        one_call(0)
        one_call(1)
    torch.testing.assert_close(inputs.x, before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [ScoreMLP, MLP])
@pytest.mark.parametrize("num_probes", [1, 3])
def test_rivals_estimate_what_ours_does(kind: type[nn.Module], num_probes: int) -> None:
    f, x = model(kind)
    probes = trace.draw_probes(x, num_probes, key=Key(1))
    field, estimate = trace.function_value_and_trace(f, x, "hutchinson", probe=probes)
    for estimator in ESTIMATORS:
        rival_field, rival_estimate = estimator(f, x, probes)
        torch.testing.assert_close((rival_field, rival_estimate), (field, estimate.value), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [ScoreMLP, MLP])
def test_exact_rivals_agree(kind: type[nn.Module]) -> None:
    f, x = model(kind)
    field, estimate = trace.function_value_and_trace(f, x, "exact")
    rivals = [torch_traces.autograd_loop(f, x), torch_traces.jacobians(f, x)]
    if kind is ScoreMLP:
        rivals.append(torch_traces.closed_form(f, x, torch_traces.bilinear_form(f)))
    for rival in rivals:
        torch.testing.assert_close(rival, (field, estimate.value), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("times", [torch_traces.product_loop, torch_traces.product_vmap])
def test_low_rank_rivals_find_a_matrix_of_low_rank_exactly(times: Any) -> None:
    torch.manual_seed(0)
    f = case.low_rank(20).double()
    values = torch.tensor([3.0, -2.0, 1.0] + [0.0] * 17, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64)).Q
    f[0].weight.data = (q * values) @ q.T  # type: ignore[index, union-attr]
    x = torch.zeros(4, 20, dtype=torch.float64)
    inputs = case.Inputs(f, x, 12, case.check_low_rank)
    torch.testing.assert_close(case.torch_hutch_plus_plus(inputs, times), torch.full((4,), 2.0, dtype=torch.float64))
    f[0].weight.data += 1e-9 * torch.eye(20)  # type: ignore[index, union-attr]  # XTrace as the paper has it divides by R
    torch.testing.assert_close(case.torch_xtrace(inputs, times), torch.full((4,), 2.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_updates_of_rivals_are_those_of_ours() -> None:
    for kind in (ScoreMLP, MLP):
        f, x = model(kind)
        probes = trace.draw_probes(x, 2, key=Key(1))
        expected = torch.autograd.grad(case.sliced_score_matching(f, x, probe=probes), list(f.parameters()), allow_unused=True)
        for estimator in (torch_traces.double_backward, torch_traces.jvps, torch_traces.forward_mode):
            grads = torch.autograd.grad(case.torch_loss(estimator, f, x, probes), list(f.parameters()), allow_unused=True)
            for grad, truth in zip(grads, expected, strict=True):
                if grad is not None and truth is not None:
                    torch.testing.assert_close(grad, truth, rtol=1e-9, atol=1e-12)


def off_by(factor: float, function: Any) -> Any:
    def wrong(*arguments: Any, **options: Any) -> Any:
        field, estimate = function(*arguments, **options)
        return field, estimate._replace(value=estimate.value * factor)

    return wrong


def test_checks_see_wrong_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = {problem.name: small(problem) for problem in case.CASE.problems}
    right = trace.function_value_and_trace
    monkeypatch.setattr(trace, "function_value_and_trace", off_by(1.001, right))
    for name, message in (
        ("784-512-512-784 16 probes", "Hutchinson's estimate is off by"),
        ("784-512-512-1 energy exact", "the exact trace is off by"),
    ):
        with pytest.raises(timing.CheckError, match=message):
            case.CASE.check(case.make_inputs(problems[name], 1))
    monkeypatch.setattr(trace, "function_value_and_trace", lambda f, x, *a, **k: (right(f, x, *a, **k)[0] + 1e-3, right(f, x, *a, **k)[1]))
    with pytest.raises(timing.CheckError, match="the field is off by"):
        case.CASE.check(case.make_inputs(problems["2-128-128-2 1 probe"], 1))
    loss = case.sliced_score_matching
    monkeypatch.setattr(case, "sliced_score_matching", lambda f, x, **k: loss(f, x, **k) + 1e-3 * sum(p.square().sum() for p in f.parameters()))
    with pytest.raises(timing.CheckError, match="the loss is off by"):
        case.CASE.check(case.make_inputs(problems["784-512-512-784 update 1"], 1))
    monkeypatch.setattr(trace, "xtrace", lambda *a, **k: trace.hutchinson(a[0], a[1], 15, key=Key(1)))
    with pytest.raises(timing.CheckError, match="XTrace: the mean error"):
        case.CASE.check(case.make_inputs(problems["30 products of 512"], 1))


def test_report_has_peaks_of_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SAMPLE_SECONDS", 1e-5)
    assert run.main(["trace", "--only", "probe and dot 784", "--rounds", "1", "--no-compile"]) == 0
    out = capsys.readouterr().out
    assert "peak MiB" in out
    assert "then the product" in out


def test_peak_of_memory_counts_what_is_alive_at_once() -> None:
    def call() -> Tensor:
        a = torch.ones(1000)  # 4000 bytes
        b = a.double()  # 8000
        del a
        return b + b  # 8000

    assert memory.peak_bytes(call, CPU) == 16_000
