"""Replica exchange: attempts written out, the plain-torch twin on every instruction set, any batch and any dtype, and what it refuses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmcore import Key, ops
from ebmcore._native import core
from support.targets import assert_same_bits

LADDERS = [(1.0, 1.5), (1.0, 1.5, 2.2), (0.7, 1.0, 1.6, 2.5, 4.0, 9.0)]


def problem(n: int, temperatures: tuple[float, ...], dtype: torch.dtype) -> tuple[Tensor, list[Tensor], ops.SwapTally, dict[str, Any]]:
    """Energies of order T, a gradient in their units, one row tensor of each dtype, and a tally that is not empty."""
    num_temperatures = len(temperatures)
    rows = n * num_temperatures
    betas = torch.tensor([1 / t for t in temperatures], dtype=dtype)
    energy = ops.normal((rows,), key=Key(1), dtype=torch.float64).to(dtype)
    fields = [ops.normal((rows, 2, 9), key=Key(2), dtype=torch.float64).to(dtype), ops.normal((rows, 3), key=Key(3)).half()]
    fields += [(20 * ops.normal((rows, 5), key=Key(4))).to(each) for each in (torch.int8, torch.int64, torch.bfloat16, torch.float32)]
    fields.append(ops.bernoulli((rows,), 0.5, key=Key(5)).bool())
    scales = ops.swap_scales(betas)
    flags = ops.bernoulli((n, num_temperatures), 0.4, key=Key(6)).bool()
    flags[:, -1] = True
    pairs = ops.uniform((n, num_temperatures - 1), key=Key(7), dtype=torch.float64)
    tally = ops.SwapTally(flags, pairs, (10 * pairs).long(), torch.arange(n))
    return energy, fields, tally, {"betas": betas.double(), "scales": [scales, scales, ops.swap_scales(betas.sqrt()), *[None] * 5]}


def run(energy: Tensor, fields: list[Tensor], tally: ops.SwapTally, options: dict[str, Any], key: Key) -> list[Tensor]:
    """What the op leaves in copies of its arguments."""
    energy, fields, tally = energy.clone(), [field.clone() for field in fields], ops.SwapTally(*(t.clone() for t in tally))
    ops.swap_replicas_(energy, fields, tally, key=key, **options)
    return [energy, *fields, *tally]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperatures", LADDERS, ids=len)
def test_attempts_are_those_of_the_twin(temperatures: tuple[float, ...], dtype: torch.dtype, cpu_target: str) -> None:
    for n, step in itertools.product((1, 40), (0, 1, 2**40 + 6)):
        key = Key(3, step, 2**33 - 20)
        energy, fields, tally, options = problem(n, temperatures, dtype)
        expected = ops.swap_replicas_reference(energy, fields, tally, key=key, **options)
        got = run(energy, fields, tally, options, key)
        prob_at = 1 + len(fields) + 1
        for i, (a, b) in enumerate(zip(got, (expected[0], *expected[1], *expected[2]), strict=True)):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13 if i == prob_at else 0)
        if n == 40:
            assert 0 < int((got[prob_at + 1] - tally.num_swaps).sum()) < 40 * len(temperatures)


@pytest.mark.parametrize("temperatures", LADDERS, ids=len)
@pytest.mark.parametrize("step", [4, 5])
def test_attempts_written_out(temperatures: tuple[float, ...], step: int) -> None:
    """Pair by pair: what is carried is β E; who goes where; who has been hottest; round trips."""
    n, size = 60, len(temperatures)
    energies = 3 * ops.normal((n, size), key=Key(1), dtype=torch.float64)
    betas = torch.tensor([1 / t for t in temperatures], dtype=torch.float64)
    names = torch.arange(n * size)
    flags = ops.bernoulli((n, size), 0.5, key=Key(6)).bool()
    flags[:, -1] = True
    tally = ops.SwapTally.zeros(flags)
    carried, rows = (betas * energies).flatten(), names.clone()
    ops.swap_replicas_(carried, [rows], tally, betas=betas, scales=[ops.swap_scales(betas), None], key=Key(3, step, 5))
    u = ops.uniform((n, size - 1), key=Key(3, step, 5), stream=ops.Stream.SWAP, dtype=torch.float64)
    num_swaps = 0
    for i in range(n):
        order, hottest = list(range(size)), flags[i].tolist()
        for r in range(size - 1):
            prob = min(1.0, math.exp(float((betas[r] - betas[r + 1]) * (energies[i, r] - energies[i, r + 1]))))
            assert float(tally.prob_sum[i, r]) == pytest.approx(prob, abs=1e-12)
            is_swapped = (size == 2 or r % 2 == step % 2) and float(u[i, r]) < prob
            assert int(tally.num_swaps[i, r]) == is_swapped
            num_swaps += is_swapped
            if is_swapped:
                order[r], order[r + 1] = order[r + 1], order[r]
                hottest[r], hottest[r + 1] = hottest[r + 1], hottest[r]
        assert rows[i * size : (i + 1) * size].tolist() == [i * size + source for source in order]
        torch.testing.assert_close(carried[i * size : (i + 1) * size], betas * energies[i, order], rtol=1e-14, atol=0)
        assert int(tally.num_round_trips[i]) == hottest[0]
        assert tally.has_been_hottest[i].tolist() == [False, *hottest[1:-1], True]
    assert num_swaps > 20


@pytest.mark.parametrize("temperatures", LADDERS, ids=len)
def test_bits_depend_on_nothing_but_the_chain(temperatures: tuple[float, ...]) -> None:
    energy, fields, tally, options = problem(53, temperatures, torch.float32)
    size, key, before = len(temperatures), Key(3, 4, 5), ops.info()["cpu_target"]
    whole = run(energy, fields, tally, options, key)
    try:
        for target in ops.info()["cpu_targets"]:
            core.set_cpu_target(target)
            for begin, end in ((0, 53), (0, 1), (1, 20), (20, 53)):
                rows = slice(begin * size, end * size)
                own = ops.SwapTally(*(t[begin:end] for t in tally))
                part = run(energy[rows], [field[rows] for field in fields], own, options, key.shard(begin))
                for i, (a, b) in enumerate(zip(part, whole, strict=True)):
                    assert_same_bits(a, b[rows] if i <= len(fields) else b[begin:end], f"chains {begin} to {end} on {target}")
    finally:
        core.set_cpu_target(before)


def test_bits_do_not_depend_on_threads(num_threads: int) -> None:
    energy, fields, tally, options = problem(3000, LADDERS[2], torch.float32)
    end = run(energy, fields, tally, options, Key(1))
    torch.set_num_threads(1)
    for a, b in zip(end, run(energy, fields, tally, options, Key(1)), strict=True):
        assert_same_bits(a, b)


def test_infinite_energies() -> None:
    """A wall goes to the hotter side, two walls (whose difference is NaN) stay, and say so."""
    betas = torch.tensor([1.0, 0.5], dtype=torch.float64)
    energy = torch.tensor([math.inf, 1.0, 1.0, math.inf, math.inf, math.inf])
    tally = ops.SwapTally.zeros(torch.tensor([[False, True]] * 3))
    ops.swap_replicas_(energy, [], tally, betas=betas, scales=[ops.swap_scales(betas.float())], key=Key(1))
    assert energy.tolist() == [2.0, math.inf, 1.0, math.inf, math.inf, math.inf]
    assert tally.num_swaps.flatten().tolist() == [1, 0, 0]
    assert tally.prob_sum[:2].flatten().tolist() == [1.0, 0.0]
    assert tally.prob_sum[2].isnan().all()


def test_versions_are_counted() -> None:
    energy, fields, tally, options = problem(4, LADDERS[1], torch.float32)
    written = (energy, *fields, *tally)
    before = [t._version for t in written]
    ops.swap_replicas_(energy, fields, tally, key=Key(1), **options)
    assert [t._version for t in written] == [v + 1 for v in before]


def test_bad_arguments() -> None:
    energy, fields, tally, options = problem(4, LADDERS[1], torch.float32)
    kept = [t.clone() for t in (energy, *fields, *tally)]

    def refused(error: type[Exception], match: str, *, energy: Any = energy, fields: Any = fields, tally: Any = tally, **changes: Any) -> None:
        with pytest.raises(error, match=f"swap_replicas_?: {match}"):
            ops.swap_replicas_(energy, fields, tally, **{"key": Key(1), **options, **changes})

    refused(TypeError, "energy must be float32 or float64", energy=energy.half())
    refused(TypeError, "energy must be float32 or float64, one number a row", energy=energy[:, None].expand(-1, 2).contiguous())
    refused(ValueError, "a tensor of rows must have one for each replica", fields=[field[:-1] for field in fields])
    refused(ValueError, "a tensor of rows must be contiguous", fields=[fields[0].transpose(1, 2), *fields[1:]])
    refused(ValueError, "scales must be 8, one for energy and each of fields, got 7", scales=options["scales"][:-1])
    refused(TypeError, "scales", scales=[options["scales"][0].float(), *options["scales"][1:]])
    refused(ValueError, "scales", scales=[options["scales"][0][:1], *options["scales"][1:]])
    refused(TypeError, "a tensor of rows with scales has a dtype", scales=[*options["scales"][:-1], options["scales"][0]])
    refused(ValueError, "betas", betas=options["betas"][:2])
    refused(TypeError, "betas", betas=options["betas"].float())
    refused(ValueError, "there must be 1 to 8 tensors of rows", fields=[*fields, fields[0]], scales=[*options["scales"], None])
    refused(TypeError, "has_been_hottest must be bool", tally=tally._replace(has_been_hottest=tally.has_been_hottest.float()))
    refused(ValueError, "there must be two temperatures", tally=tally._replace(has_been_hottest=tally.has_been_hottest[:, :1].contiguous()))
    refused(TypeError, "num_swaps", tally=tally._replace(num_swaps=tally.num_swaps.int()))
    refused(TypeError, "key must be", key=3)
    for a, b in zip((energy, *fields, *tally), kept, strict=True):
        assert_same_bits(a, b)


def test_opcheck() -> None:
    energy, fields, tally, options = problem(4, LADDERS[1], torch.float32)
    arguments = (energy, fields, *tally, options["scales"], options["betas"], Key(1).tensor, 12)
    torch.library.opcheck(torch.ops.ebmcore.swap_replicas_.default, arguments)


@pytest.mark.cuda
@pytest.mark.parametrize("temperatures", LADDERS, ids=len)
def test_cuda_has_the_numbers_of_the_cpu(temperatures: tuple[float, ...]) -> None:
    if not torch.cuda.is_available() or ops.cuda_problem():
        pytest.skip("no CUDA device that torch and ebmcore can use")
    energy, fields, tally, options = problem(1000, temperatures, torch.float32)
    there = [t.cuda() for t in (energy, *fields, *tally)]
    on_card = {"betas": options["betas"].cuda(), "scales": [None if s is None else s.cuda() for s in options["scales"]]}
    ops.swap_replicas_(there[0], there[1:-4], ops.SwapTally(*there[-4:]), key=Key(1), **on_card)
    for a, b in zip(there, run(energy, fields, tally, options, Key(1)), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-12 if b.dtype == torch.float64 else 0)
