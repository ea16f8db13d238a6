"""Metropolis' rule: the decisions and rows of its plain-torch twin on every instruction set, for any batch, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmcore import Key, ops
from ebmcore._native import core
from support.targets import assert_same_bits

KEY = Key(3, 2**40 + 7, 2**33 - 20)
KINDS = ["symmetric", "no gradients", "corrected", "langevin", "langevin with a metric"]


def normal(shape: tuple[int, ...], stream: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return ops.normal(shape, key=Key(9), stream=stream, dtype=torch.float64).to(dtype)


def problem(kind: str, n: int, event: tuple[int, ...], dtype: torch.dtype, energy_dtype: torch.dtype) -> tuple[list[Any], dict[str, Any]]:
    x, grad, step, change = (normal((n, *event), s, dtype) for s in (20, 21, 22, 23))
    energy, new_energy = (normal((n,), s, energy_dtype) for s in (24, 25))
    tensors = [x, energy, grad, x + 0.1 * step, new_energy, grad + 0.1 * change]
    options: dict[str, Any] = {}
    if kind == "no gradients":
        tensors[2] = tensors[5] = None
    elif kind == "corrected":
        options["log_correction"] = normal((n,), 26)
    elif kind.startswith("langevin"):
        options["langevin_step_size"] = 0.05
        if kind.endswith("metric"):
            options["inverse_mass"] = normal((1, *event), 27, dtype).abs() + 0.5
    return tensors, options


def tally(n: int) -> ops.Tally:
    return ops.Tally(torch.zeros(n, dtype=torch.bool), normal((n,), 28), torch.arange(n))


def run(tensors: list[Any], options: dict[str, Any], key: Key = KEY) -> list[Tensor]:
    """What the op leaves in x, energy, grad and the tally."""
    x, energy, grad = (None if t is None else t.clone() for t in tensors[:3])
    result = tally(len(x))
    ops.metropolis_accept_(x, energy, grad, *tensors[3:], result, key=key, **options)
    return [t for t in (x, energy, grad, *result) if t is not None]


@pytest.mark.parametrize(("dtype", "energy_dtype"), [(torch.float32, torch.float32), (torch.float32, torch.float64), (torch.float64, torch.float64)])
@pytest.mark.parametrize("kind", KINDS)
def test_rule_is_that_of_the_twin(kind: str, dtype: torch.dtype, energy_dtype: torch.dtype, cpu_target: str) -> None:
    for n, event in ((1, (3,)), (7, ()), (300, (2, 5)), (33, (16,)), (50, (784,)), (9, (35,))):
        tensors, options = problem(kind, n, event, dtype, energy_dtype)
        x, energy, grad, report = ops.metropolis_accept_reference(*tensors, tally(n), key=KEY, **options)
        expected = [t for t in (x, energy, grad, *report) if t is not None]
        got = run(tensors, options)
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 if a is got[-2] else 0)
        if n >= 33:
            assert 0 < int(got[-3].sum()) < n


def test_decisions_by_hand() -> None:
    """Written out chain by chain: exp(E - E' + c) against the uniform, and a gradient that is carried along."""
    (x, energy, grad, new_x, new_energy, new_grad), _ = problem("symmetric", 40, (2,), torch.float64, torch.float64)
    correction = normal((40,), 26)
    end, end_energy, end_grad, is_accepted, prob_sum, _ = run([x, energy, grad, new_x, new_energy, new_grad], {"log_correction": correction})
    u = ops.uniform((40,), key=KEY, stream=ops.Stream.ACCEPTANCE, dtype=torch.float64)
    for i in range(40):
        prob = min(1.0, math.exp(float(energy[i] - new_energy[i] + correction[i])))
        assert float(prob_sum[i]) == pytest.approx(float(tally(40).prob_sum[i]) + prob, abs=1e-12)
        taken = float(u[i]) < prob
        assert bool(is_accepted[i]) == taken
        rows = (new_x, new_energy, new_grad) if taken else (x, energy, grad)
        for a, b in zip((end, end_energy, end_grad), rows, strict=True):
            assert_same_bits(a[i], b[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step_size", [0.01, 1.0, 30.0])
def test_correction_is_that_of_the_densities(step_size: float, dtype: torch.dtype) -> None:
    """Against log N(x; x' - h M⁻¹ g', 2h M⁻¹) - log N(x'; x - h M⁻¹ g, 2h M⁻¹)."""
    x, grad, xi, new_grad = (normal((60, 5), s, dtype) for s in (20, 21, 22, 23))
    mass = torch.linspace(0.5, 2.0, 5, dtype=dtype)
    new_x = x - step_size * mass * grad + (2 * step_size * mass).sqrt() * xi

    def log_density(to: Tensor, at: Tensor, slope: Tensor) -> Tensor:
        law = torch.distributions.Normal((at - step_size * mass * slope).double(), (2 * step_size * mass.double()).sqrt())
        return law.log_prob(to.double()).sum(1)

    energy = normal((60,), 24)
    correction = log_density(x, new_x, new_grad) - log_density(new_x, x, grad)
    new_energy = energy + correction + normal((60,), 25).abs()  # log ratios of order 1
    tensors = [x, energy, grad, new_x, new_energy, new_grad]
    *_, prob_sum, _ = run(tensors, {"langevin_step_size": step_size, "inverse_mass": mass})
    expected = (energy - new_energy + correction).clamp(max=0).exp()
    torch.testing.assert_close(prob_sum - tally(60).prob_sum, expected, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-3 * (1 + step_size))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_rejected_and_counted(kind: str, cpu_target: str) -> None:
    n = 24
    tensors, options = problem(kind, n, (17,), torch.float64, torch.float64)
    x, energy, _, new_x, new_energy, new_grad = tensors
    for chain, value in ((3, math.nan), (5, math.inf), (7, -math.inf)):
        new_x[chain, chain % 17] = value
    for chain, value in ((9, math.nan), (11, math.inf), (13, -math.inf)):
        new_energy[chain] = value
    bad = {3, 5, 7, 9, 11, 13}
    if kind == "corrected":
        options["log_correction"][15] = math.nan
        bad.add(15)
    if kind.startswith("langevin"):
        new_grad[15, 16] = math.inf
        bad.add(15)
    end, end_energy, *_, is_accepted, prob_sum, num_diverged = run(tensors, options)
    rows = [i in bad for i in range(n)]
    assert ((num_diverged - torch.arange(n)) == 1).tolist() == rows
    assert not is_accepted[rows].any()
    assert_same_bits(prob_sum[rows], tally(n).prob_sum[rows])
    assert_same_bits(end[rows], x[rows])
    assert_same_bits(end_energy[rows], energy[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_depend_on_nothing_but_the_chain(kind: str, dtype: torch.dtype) -> None:
    tensors, options = problem(kind, 53, (37,), dtype, dtype)
    whole, before = run(tensors, options), ops.info()["cpu_target"]
    try:
        for target in ops.info()["cpu_targets"]:
            core.set_cpu_target(target)
            for begin, end in ((0, 53), (0, 1), (1, 20), (20, 53)):
                rows = [None if t is None else t[begin:end] for t in tensors]
                own = {name: v[begin:end] if name == "log_correction" else v for name, v in options.items()}
                x, energy, grad = (None if t is None else t.clone() for t in rows[:3])
                part = ops.Tally(*(t[begin:end].clone() for t in tally(53)))
                ops.metropolis_accept_(x, energy, grad, *rows[3:], part, key=KEY.shard(begin), **own)
                for a, b in zip((t for t in (x, energy, grad, *part) if t is not None), whole, strict=True):
                    assert_same_bits(a, b[begin:end], f"rows {begin} to {end} on {target}")
    finally:
        core.set_cpu_target(before)


def test_bits_do_not_depend_on_threads(num_threads: int) -> None:
    tensors, options = problem("langevin", 3000, (64,), torch.float32, torch.float32)
    end = run(tensors, options)
    torch.set_num_threads(1)
    for a, b in zip(end, run(tensors, options), strict=True):
        assert_same_bits(a, b)


def test_versions_are_counted() -> None:
    """So that autograd notices what was written to."""
    tensors, _ = problem("symmetric", 4, (3,), torch.float32, torch.float32)
    result = tally(4)
    before = [t._version for t in (*tensors[:3], *result)]
    ops.metropolis_accept_(*tensors, result, key=KEY)
    assert [t._version for t in (*tensors[:3], *result)] == [v + 1 for v in before]


def test_proposals_of_other_layouts() -> None:
    tensors, options = problem("langevin with a metric", 6, (4,), torch.float32, torch.float32)
    wide = [t.t().contiguous().t() if t.dim() == 2 else t.repeat_interleave(2)[::2] for t in tensors[3:]]
    assert not any(t.is_contiguous() for t in wide)
    for a, b in zip(run(tensors[:3] + wide, options), run(tensors, options), strict=True):
        assert_same_bits(a, b)


def test_bad_arguments() -> None:
    (x, energy, grad, new_x, new_energy, new_grad), _ = problem("symmetric", 5, (3,), torch.float32, torch.float32)
    good = [x, energy, grad, new_x, new_energy, new_grad]
    before = [t.clone() for t in good]

    def refused(error: type[Exception], match: str, changes: dict[int, Any], **options: Any) -> None:
        arguments = [changes.get(i, t) for i, t in enumerate(good)]
        with pytest.raises(error, match=f"metropolis_accept_?: {match}"):
            ops.metropolis_accept_(*arguments, options.pop("tally", tally(5)), key=options.pop("key", KEY), **options)

    refused(TypeError, "x must be float32 or float64", {0: x.bfloat16()})
    refused(ValueError, "x must be contiguous", {0: x.t().contiguous().t()})
    refused(ValueError, "x is written in place", {0: x.clone().requires_grad_()})
    refused(TypeError, "energies must be float32 or float64", {1: energy.half()})
    refused(ValueError, "energies", {1: energy[:4]})
    refused(TypeError, "new_energies", {4: new_energy.double()})
    refused(ValueError, "new_x", {3: new_x[:4]})
    refused(TypeError, "new_x", {3: new_x.double()})
    refused(ValueError, "grad", {2: grad[:, :2].contiguous()})
    refused(TypeError, "new_grad", {5: None})
    refused(TypeError, "log_corrections", {}, log_correction=torch.zeros(5))
    refused(ValueError, "log_corrections", {}, log_correction=torch.zeros(4, dtype=torch.float64))
    refused(ValueError, "inverse_mass", {}, langevin_step_size=0.1, inverse_mass=torch.ones(4))
    refused(ValueError, "langevin_step_size must be a finite number > 0, got 0.0", {}, langevin_step_size=0.0)
    refused(ValueError, "a Langevin step needs gradients", {2: None, 5: None}, langevin_step_size=0.1)
    refused(ValueError, "a Langevin step needs", {}, langevin_step_size=0.1, log_correction=torch.zeros(5, dtype=torch.float64))
    refused(ValueError, "is_accepted", {}, tally=tally(4))
    refused(TypeError, "key must be", {}, key=3)
    for a, b in zip(good, before, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str) -> None:
    (x, energy, grad, *new), options = problem(kind, 4, (3,), torch.float32, torch.float32)
    given = [options.get(name) for name in ("log_correction", "inverse_mass")]
    arguments = (x, energy, grad, *tally(4), *new, *given, KEY.tensor, options.get("langevin_step_size", 0.0), 2)
    torch.library.opcheck(torch.ops.ebmcore.metropolis_accept_.default, arguments)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_has_the_numbers_of_the_cpu(kind: str, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available() or ops.cuda_problem():
        pytest.skip("no CUDA device that torch and ebmcore can use")
    for n, event in ((1000, (10,)), (50, (784,))):
        tensors, options = problem(kind, n, event, dtype, dtype)
        there = [None if t is None else t.cuda() for t in tensors]
        report = ops.Tally(*(t.cuda() for t in tally(n)))
        on_card = {name: v.cuda() if isinstance(v, Tensor) else v for name, v in options.items()}
        ops.metropolis_accept_(*there, report, key=KEY, **on_card)
        for a, b in zip([t for t in (*there[:3], *report) if t is not None], run(tensors, options), strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-12 if b.dtype == torch.float64 else 0)
