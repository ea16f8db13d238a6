"""Proposals on discrete spaces and their acceptance: against plain torch, to the bit however the work is cut, at the edges, and as torch ops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ebmcore import Key, ops
from ebmcore._native import core
from ebmcore.ops.ising import BALANCING
from support.statistics import assert_count, assert_counts
from support.targets import assert_same_bits

KEY = Key(0x0123456789ABCDEF, step=2**33 + 5, first_chain=2**32 - 3)
DTYPES = [torch.float32, torch.float64]
# Ends of rows of every kind around 16 lanes and chunks of 256, tokens that do not fill a lane, more draws than sites.
SHAPES = [(40, 1), (40, 5), (30, 16), (30, 17), (9, 255), (9, 256), (9, 257), (20, 784), (3, 5000), (30, 7, 3), (20, 50, 20), (5, 3, 700)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NAN = math.nan
INF = math.inf


class Case:
    """Differences, tokens where sites have some, and energies, before and after."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 3.0, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(7)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

        self.tokens = self.new_tokens = None
        self.d, self.new_d = scale * normal(*shape), scale * normal(*shape)
        self.energy, self.new_energy = normal(shape[0]), normal(shape[0])
        if len(shape) == 3:
            self.tokens, self.new_tokens = (torch.randint(0, min(shape[2], 256), shape[:2], generator=generator).to(torch.uint8) for _ in range(2))
            self.d.scatter_(2, self.tokens.long()[..., None], -INF)
            self.new_d.scatter_(2, self.new_tokens.long()[..., None], -INF)
        for name, value in vars(self).items():
            setattr(self, name, None if value is None else value.to(device))

    def rows(self, begin: int, end: int) -> Case:
        part = object.__new__(Case)
        vars(part).update({name: None if value is None else value[begin:end].clone() for name, value in vars(self).items()})
        return part

    def flips(self, key: Key = KEY, num_flips: int = 3, **settings: Any) -> dict[str, Tensor]:
        """What a proposal and a verdict give; the way back is any other set of changes."""
        num_flips = min(num_flips, self.d.shape[1])
        index, log_q = ops.propose_flips(self.d, key=key, num_flips=num_flips, **settings)
        back, _ = ops.propose_flips(self.new_d, key=key, num_flips=num_flips, stream=ops.Stream.USER, **settings | {"with_replacement": False})
        energy, d = self.energy.clone(), self.d.clone()
        verdict = ops.accept_flips_(energy, d, self.new_energy, self.new_d, back, log_q, key=key, **settings)
        return {"index": index, "log_q": log_q, "back": back, "energy": energy, "d": d} | verdict._asdict()

    def langevin(self, key: Key = KEY, **settings: Any) -> dict[str, Tensor]:
        proposed, log_q = ops.propose_langevin(self.d, key=key, step_size=0.7, tokens=self.tokens)
        energy, d = self.energy.clone(), self.d.clone()
        new_d = self.new_d if self.tokens is None else self.new_d.clone().scatter_(2, proposed.long()[..., None], -INF)
        verdict = ops.accept_langevin_(energy, d, self.new_energy, new_d, proposed, log_q, key=key, step_size=0.7, tokens=self.tokens, **settings)
        return {"proposed": proposed, "log_q": log_q, "energy": energy, "d": d, "new_d": new_d} | verdict._asdict()


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


# Against plain torch


@shapes
@dtypes
@pytest.mark.parametrize(("balancing", "with_replacement"), list(itertools.product(BALANCING, [True, False])))
def test_flips_against_the_reference(shape, dtype, balancing, with_replacement):
    settings = {"balancing": balancing, "with_replacement": with_replacement}
    case = Case(shape, dtype)
    out = case.flips(**settings)
    index, log_q = ops.propose_flips_reference(case.d, key=KEY, num_flips=out["index"].shape[1], **settings)
    assert torch.equal(out["index"], index)
    close(out["log_q"], log_q, dtype)
    arguments = (case.energy, case.d, case.new_energy, case.new_d, out["back"], out["log_q"])
    energy, d, verdict = ops.accept_flips_reference(*arguments, key=KEY, **settings)
    assert_same_bits(out["energy"], energy)
    assert_same_bits(out["d"], d)
    assert torch.equal(out["is_accepted"], verdict.is_accepted)
    assert torch.equal(out["is_diverged"], verdict.is_diverged)
    close(out["acceptance_prob"], verdict.acceptance_prob, dtype)


@shapes
@dtypes
@pytest.mark.parametrize("metropolis", [True, False])
def test_langevin_against_the_reference(shape, dtype, metropolis):
    case = Case(shape, dtype, scale=1.0)
    out = case.langevin(metropolis=metropolis)
    proposed, log_q = ops.propose_langevin_reference(case.d, key=KEY, step_size=0.7, tokens=case.tokens)
    assert torch.equal(out["proposed"], proposed)
    close(out["log_q"], log_q, dtype)
    arguments = (case.energy, case.d, case.new_energy, out["new_d"], out["proposed"], out["log_q"])
    energy, d, verdict = ops.accept_langevin_reference(*arguments, key=KEY, step_size=0.7, tokens=case.tokens, metropolis=metropolis)
    assert_same_bits(out["energy"], energy)
    assert_same_bits(out["d"], d)
    assert torch.equal(out["is_accepted"], verdict.is_accepted)
    close(out["acceptance_prob"], verdict.acceptance_prob, dtype)
    assert metropolis or bool(out["is_accepted"].all())


# The same bits however the work is cut


def assert_all_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert_same_bits(actual[name], value, name)


@shapes
@dtypes
def test_instruction_sets_threads_and_batches(shape, dtype, cpu_target, keep_threads):
    case = Case(shape, dtype)
    jobs = [lambda c, k, b=b, r=r: c.flips(k, balancing=b, with_replacement=r) for b in BALANCING for r in (True, False)]
    jobs.append(lambda c, k: c.langevin(k))
    for job in jobs:
        core.set_cpu_target("baseline")
        torch.set_num_threads(1)
        expected = job(case, KEY)
        core.set_cpu_target(cpu_target)
        assert_all_same(job(case, KEY), expected)
        torch.set_num_threads(3)
        assert_all_same(job(case, KEY), expected)
        middle = shape[0] // 3
        parts = [job(case.rows(0, middle), KEY), job(case.rows(middle, shape[0]), KEY.shard(middle))]
        assert_all_same({name: torch.cat([part[name] for part in parts]) for name in expected}, expected)


def test_layouts():
    d = Case((30, 17), torch.float32).d
    expected = ops.propose_flips(d, key=KEY)
    assert_same_bits(ops.propose_flips(d.t().contiguous().t(), key=KEY)[0], expected[0])
    assert_same_bits(ops.propose_flips(d[:1].expand(30, 17), key=KEY)[1], ops.propose_flips(d[:1].repeat(30, 1), key=KEY)[1])
    assert_same_bits(ops.propose_flips(d, key=KEY.tensor)[0], expected[0])


# Laws


@pytest.mark.parametrize("shape", [(3,), (40,), (300,), (13, 3)], ids=str)
@pytest.mark.parametrize("balancing", BALANCING)
def test_frequencies_of_flips(shape, balancing):
    d = torch.linspace(-4, 3, math.prod(shape)).reshape(1, *shape)
    d.view(-1)[1::7] = -INF
    law = ops.propose_flips_reference  # its probabilities: of each single change
    index, _ = ops.propose_flips(d.expand(400, *shape).contiguous(), key=Key(1), num_flips=200, balancing=balancing)
    weights = torch.exp(d.double()).flatten()
    weights = {"sqrt": weights.sqrt(), "barker": weights / (1 + weights), "min": weights.clamp(max=1), "max": weights.clamp(min=1)}[balancing]
    weights[d.flatten() == -INF] = 0
    assert_counts(torch.bincount(index.flatten(), minlength=len(weights)), weights, what=f"{balancing} {shape}")
    one, log_q = law(d, key=Key(1), balancing=balancing)
    torch.testing.assert_close(log_q, (weights / weights.sum()).log()[one[0]])


def test_frequencies_among_a_million():
    """10^6 changes of weight 10^-6 beside one of weight 1: the small ones come up as often as they should, everywhere."""
    d = torch.full((4, 1_000_001), 2 * math.log(1e-6))
    d[:, 123_456] = 0.0
    index, _ = ops.propose_flips(d, key=Key(2), num_flips=20_000)
    is_large = index == 123_456
    assert_count(int(is_large.sum()), index.numel(), 0.5, what="the large one")
    small = index[~is_large]
    assert_counts(torch.bincount(small // 10_000, minlength=101)[:100], torch.full((100,), 0.01), what="where the small ones are")
    assert_counts(torch.bincount(small % 16, minlength=16), torch.full((16,), 1 / 16), what="lanes of the small ones")


def test_draws_without_replacement():
    """Pairs come up as often as two draws from what is left give them, also where the first is e^5000 times likelier than the rest."""
    d = torch.tensor([[1e4, 0.0, 1.0, 2.0]])
    index, log_q = ops.propose_flips(d.expand(40_000, 4).contiguous(), key=Key(3), num_flips=2, with_replacement=False)
    assert bool((index[:, 0] == 0).all())
    weights = torch.exp(d[0, 1:].double() / 2)
    assert_counts(torch.bincount(index[:, 1] - 1, minlength=3), weights, what="the second of two")
    torch.testing.assert_close(log_q, (weights / weights.sum()).log()[index[:, 1] - 1], rtol=1e-6, atol=1e-6)
    every = ops.propose_flips(torch.zeros(50, 9), key=KEY, num_flips=9, with_replacement=False)
    assert torch.equal(every[0].sort(1).values, torch.arange(9).expand(50, 9))
    torch.testing.assert_close(every[1], torch.full((50,), -math.lgamma(10), dtype=torch.float64), rtol=1e-6, atol=0)
    tokens = torch.zeros(200, 4, 3)
    index, _ = ops.propose_flips(tokens, key=KEY, num_flips=4, with_replacement=False)
    assert torch.equal((index // 3).sort(1).values, torch.arange(4).expand(200, 4))


def test_draws_are_the_documented_uniforms():
    """Draw j of a chain is element j of its float64 uniforms: among two equal changes it tells which."""
    index, _ = ops.propose_flips(torch.zeros(500, 2), key=KEY, num_flips=5)
    assert torch.equal(index, (ops.uniform((500, 5), key=KEY, stream=ops.Stream.PROPOSAL, dtype=torch.float64) >= 0.5).long())


@dtypes
def test_frequencies_of_discrete_langevin(dtype):
    """Probabilities from 1e-7 to 1 - 1e-7, each by an exact binomial count."""
    probs = torch.tensor([1e-7, 1e-5, 1e-3, 0.2, 0.5, 0.9, 1 - 1e-3, 1 - 1e-5, 1 - 1e-7], dtype=torch.float64)
    z = torch.log(probs / (1 - probs))
    d = (2 * (z + 0.5 / 0.7)).to(dtype)
    changes = torch.zeros(9, dtype=torch.int64)
    for i in range(10):
        changes += ops.propose_langevin(d.expand(40_000, 9).contiguous(), key=Key(4, step=i), step_size=0.7)[0].sum(0)
    for count, p in zip(changes.tolist(), probs.tolist(), strict=True):
        assert_count(count, 400_000, p, what=f"probability {p}")


def test_frequencies_of_tokens():
    d = torch.tensor([[[-INF, 1.0, -2.0, 4.0], [0.5, 3.0, -INF, -INF]]])
    tokens = torch.tensor([[0, 2]])
    proposed, log_q = ops.propose_langevin(
        d.expand(50_000, 2, 4).contiguous(), key=Key(5), step_size=2.0, tokens=tokens.expand(50_000, 2).contiguous()
    )
    weights = torch.exp(d[0].double() / 2 - 0.5)
    weights[0, 0] = weights[1, 2] = 1.0
    law = weights / weights.sum(1, keepdim=True)
    for site in range(2):
        assert_counts(torch.bincount(proposed[:, site], minlength=4), law[site], what=f"site {site}")
    expected = law.log()[0, proposed[:, 0]] + law.log()[1, proposed[:, 1]]
    torch.testing.assert_close(log_q, expected, rtol=1e-5, atol=1e-6)


# The edges


@dtypes
@pytest.mark.parametrize("balancing", BALANCING)
def test_differences_of_any_size(dtype, balancing):
    for scale in (1e4, 1e30):
        d = torch.tensor([[1.0, -1.0, 0.5, -INF]], dtype=dtype) * scale
        index, log_q = ops.propose_flips(d.expand(500, 4).contiguous(), key=KEY, balancing=balancing)
        best = {"min": {0, 2}}.get(balancing, {0, 2} if balancing == "barker" else {0})
        assert set(index.flatten().tolist()) == best
        close(log_q, torch.full((500,), -math.log(len(best)), dtype=torch.float64), dtype)
        low = ops.propose_flips(-d.clamp(min=-scale), key=KEY, balancing=balancing)
        assert bool(low[1].isfinite().all())


@dtypes
def test_langevin_differences_of_any_size(dtype):
    for scale in (1e4, 1e30):
        d = torch.tensor([[scale, -scale, scale, -INF]], dtype=dtype).repeat(500, 1)
        proposed, log_q = ops.propose_langevin(d, key=KEY, step_size=0.1)
        assert torch.equal(proposed, torch.tensor([True, False, True, False]).expand(500, 4))
        assert bool((log_q == 0).all())
        back = torch.tensor([[-scale, scale, -scale, 0.0]], dtype=dtype).repeat(500, 1)
        energy, new = torch.zeros(500, dtype=dtype), torch.full((500,), -2 * scale, dtype=dtype)
        verdict = ops.accept_langevin_(energy, d, new, back, proposed, log_q, key=KEY, step_size=0.1)
        assert not bool(verdict.is_diverged.any())
        assert bool(verdict.acceptance_prob.isfinite().all())


@pytest.mark.parametrize("spoiled", [[0.0, NAN, 1.0], [0.0, INF, 1.0], [-INF, -INF, -INF]], ids=str)
@pytest.mark.parametrize("balancing", BALANCING)
def test_rows_without_a_law(spoiled, balancing):
    """NaN comes out as NaN, is rejected and counted, and leaves the other rows alone."""
    d = torch.tensor([[0.0, 1.0, 2.0], spoiled, [2.0, 1.0, 0.0]])
    index, log_q = ops.propose_flips(d, key=KEY, balancing=balancing)
    assert int(index[1]) == 0
    assert log_q.isnan().tolist() == [False, True, False]
    good = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    for before, after, log_prob in ((good.clone(), d, torch.zeros(3).double()), (d.clone(), good, log_q)):
        energy = torch.zeros(3)
        verdict = ops.accept_flips_(energy, before, torch.full((3,), -50.0), after, torch.zeros(3, 1).long(), log_prob, key=KEY, balancing=balancing)
        assert verdict.is_diverged.tolist() == [False, True, False]
        assert verdict.is_accepted.tolist() == [True, False, True]
        assert verdict.acceptance_prob.tolist()[1] == 0
        assert energy.tolist() == [-50, 0, -50]


@pytest.mark.parametrize("spoiled", [NAN, INF])
def test_langevin_rows_without_a_law(spoiled):
    d = torch.zeros(3, 5)
    d[1, 2] = spoiled
    proposed, log_q = ops.propose_langevin(d, key=KEY, step_size=1.0)
    assert log_q.isnan().tolist() == [False, True, False]
    tokens = torch.zeros(3, 5, dtype=torch.int64)
    of_tokens = torch.zeros(3, 5, 2)
    of_tokens[..., 0] = -INF
    of_tokens[1, 2, 1] = spoiled
    values, log_q = ops.propose_langevin(of_tokens, key=KEY, step_size=1.0, tokens=tokens)
    assert log_q.isnan().tolist() == [False, True, False]
    assert int(values[1, 2]) == 0
    for metropolis in (True, False):
        good = torch.zeros(3, 5)
        verdict = ops.accept_langevin_(
            torch.zeros(3), good, torch.full((3,), -50.0), d, proposed, torch.zeros(3).double(), key=KEY, step_size=1.0, metropolis=metropolis
        )
        assert verdict.is_diverged.tolist() == [False, True, False]
        assert verdict.is_accepted.tolist() == [True, False, True]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_energies_that_are_not_finite(value):
    case = Case((40, 5), torch.float32)
    case.new_energy[7] = value
    for out in (case.flips(), case.langevin(), case.langevin(metropolis=False)):
        assert out["is_diverged"].nonzero().tolist() == [[7]]
        assert not bool(out["is_accepted"][7])
        assert float(out["acceptance_prob"][7]) == 0
        assert_same_bits(out["d"][7], case.d[7])


def test_conflicts():
    """Two draws that give a site different values: rejected, not counted as diverged."""
    d = torch.full((3000, 1, 3), 0.0)
    d[..., 0] = -INF
    index, log_q = ops.propose_flips(d, key=KEY, num_flips=2)
    conflict = index[:, 0] != index[:, 1]
    assert 0.4 < float(conflict.double().mean()) < 0.6
    assert torch.equal(log_q == INF, conflict)
    torch.testing.assert_close(log_q[~conflict], torch.full_like(log_q[~conflict], -2 * math.log(2)))
    verdict = ops.accept_flips_(torch.zeros(3000), d.clone(), torch.full((3000,), -1e30), d.roll(1, 2), index * 0, log_q, key=KEY)
    assert torch.equal(verdict.is_accepted, ~conflict)
    assert not bool(verdict.is_diverged.any())


def test_only_accepted_rows_are_written():
    case = Case((200, 33), torch.float32)
    out = case.flips()
    accepted = out["is_accepted"]
    assert 0 < int(accepted.sum()) < 200
    assert_same_bits(out["d"], torch.where(accepted[:, None], case.new_d, case.d))
    assert_same_bits(out["energy"], torch.where(accepted, case.new_energy, case.energy))
    versions = case.energy._version, case.d._version
    ops.accept_flips_(case.energy, case.d, case.new_energy, case.new_d, out["back"], out["log_q"], key=KEY)
    assert (case.energy._version, case.d._version) > versions


def test_no_chains():
    index, log_q = ops.propose_flips(torch.zeros(0, 5), key=KEY, num_flips=2)
    assert (index.shape, log_q.shape) == ((0, 2), (0,))
    proposed, log_q = ops.propose_langevin(torch.zeros(0, 5, 3), key=KEY, step_size=1.0, tokens=torch.zeros(0, 5, dtype=torch.uint8))
    verdict = ops.accept_langevin_(
        torch.zeros(0), torch.zeros(0, 5, 3), torch.zeros(0), torch.zeros(0, 5, 3), proposed, log_q, key=KEY, step_size=1.0, tokens=proposed
    )
    assert verdict.is_accepted.shape == (0,)


# What they refuse


def test_bad_arguments():
    d, e, n = torch.zeros(4, 3), torch.zeros(4), torch.zeros(4).double()
    index, tokens = torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 3, dtype=torch.uint8)
    of_tokens = torch.zeros(4, 3, 2)

    def propose(x=d, **arguments):
        return ops.propose_flips(x, **{"key": KEY} | arguments)

    def accept(**changes):
        values = {"energy": e, "differences": d, "new_energy": e, "new_differences": d, "back": index, "log_q": n, "key": KEY} | changes
        return ops.accept_flips_(*[values.pop(name) for name in list(values)[:6]], **values)

    def langevin(x=d, **arguments):
        return ops.propose_langevin(x, **{"key": KEY, "step_size": 1.0} | arguments)

    for call, error, match in (
        (lambda: propose([[1.0]]), TypeError, "propose_flips: differences must be a torch.Tensor, got list"),
        (lambda: propose(d.half()), TypeError, "differences must be dense float32 or float64, got torch.float16"),
        (lambda: propose(d.to_sparse()), TypeError, "differences must be dense"),
        (lambda: propose(torch.zeros(4)), ValueError, r"differences must have shape .* got \(4,\)"),
        (lambda: propose(torch.zeros(4, 0)), ValueError, r"with at least one site, got \(4, 0\)"),
        (lambda: propose(torch.zeros(4, 3, 1)), ValueError, r"num_categories >= 2\)"),
        (lambda: propose(num_flips=0), ValueError, "num_flips must be an int >= 1, got 0"),
        (lambda: propose(num_flips=1.0), TypeError, "num_flips"),
        (lambda: propose(num_flips=4, with_replacement=False), ValueError, "num_flips must be at most the 3 sites without replacement, got 4"),
        (lambda: propose(balancing="root"), ValueError, "balancing must be one of sqrt, barker, min, max, got 'root'"),
        (lambda: propose(stream=256), ValueError, "stream"),
        (lambda: propose(key=3), TypeError, "key must be"),
        (lambda: propose(d.to("meta")), RuntimeError, "propose_flips: tensors must be on the CPU or a CUDA device, got 'meta'"),
        (lambda: propose(key=Key(1, first_chain=2**40 - 2)), ValueError, "first_chain"),
        (lambda: accept(energy=e.double()), ValueError, r"accept_flips_: energy must be torch.float32 of shape \(4,\) on cpu, got torch.float64"),
        (lambda: accept(new_energy=torch.zeros(3)), ValueError, r"new_energy must be torch.float32 of shape \(4,\)"),
        (lambda: accept(new_differences=of_tokens), ValueError, r"new_differences must be torch.float32 of shape \(4, 3\)"),
        (lambda: accept(back=index.int()), ValueError, r"back must be int64 of shape \(4, num_flips\)"),
        (lambda: accept(back=index[:, 0]), ValueError, "back must be int64"),
        (lambda: accept(log_q=n.float()), ValueError, r"log_q must be float64 of shape \(4,\)"),
        (lambda: accept(differences=torch.zeros(3, 4).t()), ValueError, "differences is written in place and must be contiguous"),
        (lambda: accept(energy=torch.zeros(4, requires_grad=True)), ValueError, "energy is written in place, without a graph"),
        (lambda: langevin(step_size=0.0), ValueError, "propose_langevin: step_size must be a finite number > 0"),
        (lambda: langevin(step_size=NAN), ValueError, "step_size"),
        (lambda: langevin(tokens=tokens), ValueError, "tokens must be None where differences have no axis of categories"),
        (lambda: langevin(of_tokens), ValueError, r"tokens must be uint8 or int64 of shape \(4, 3\) beside differences, got NoneType"),
        (lambda: langevin(of_tokens, tokens=tokens.int()), ValueError, "tokens must be uint8 or int64"),
        (
            lambda: ops.accept_langevin_(e, d, e, d, tokens, n, key=KEY, step_size=1.0),
            ValueError,
            r"accept_langevin_: proposed must be torch.bool of shape \(4, 3\)",
        ),
    ):
        with pytest.raises(error, match=match):
            call()
    assert not bool(d.any())
    assert not bool(e.any())


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
@pytest.mark.parametrize("with_replacement", [True, False])
def test_changes_that_do_not_exist(bad, with_replacement):
    """Foreign memory is not read, and the proposal counts as diverged."""
    back = torch.tensor([[0], [bad], [2]])
    before, after, log_q = torch.zeros(3, 3), torch.ones(3, 3), torch.zeros(3).double()
    verdict = ops.accept_flips_(torch.zeros(3), before, torch.full((3,), -50.0), after, back, log_q, key=KEY, with_replacement=with_replacement)
    assert verdict.is_diverged.tolist() == [False, True, False]
    assert before.sum(1).tolist() == [3, 0, 3]
    tokens = torch.tensor([[0], [bad], [2]])
    zeros = torch.zeros(3, 1, 3)
    verdict = ops.accept_langevin_(
        torch.zeros(3), zeros.clone(), torch.full((3,), -50.0), zeros, tokens * 0, log_q, key=KEY, step_size=1.0, tokens=tokens
    )
    assert verdict.is_diverged.tolist() == [False, True, False]


# As torch ops


_SMALL = Case((4, 6), torch.float32)
_TOKENS = Case((4, 6, 3), torch.float64)
_PROPOSED = ops.propose_langevin(_SMALL.d, key=KEY, step_size=1.0)
_NEW = (_SMALL.energy, _SMALL.d, _SMALL.new_energy, _SMALL.new_d)
OPCHECKS = {
    "propose_flips": (_SMALL.d, KEY.tensor, 2, True, 0, 1),
    "accept_flips_": (*_NEW, torch.zeros(4, 2).long(), torch.zeros(4).double(), KEY.tensor, False, 1, 2),
    "propose_langevin": (_TOKENS.d, _TOKENS.tokens, KEY.tensor, 0.5, 1),
    "accept_langevin_": (*_NEW, *_PROPOSED, None, KEY.tensor, 0.5, True, 2),
}


@pytest.mark.parametrize("name", OPCHECKS)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.ebmcore, name).default, OPCHECKS[name])


def test_fake_tensors():
    with FakeTensorMode():
        key = torch.zeros(3, dtype=torch.int64)
        index, log_q = ops.propose_flips(torch.empty(5, 7), key=key, num_flips=2)
        assert (index.shape, index.dtype, log_q.shape, log_q.dtype) == ((5, 2), torch.int64, (5,), torch.float64)
        tokens = torch.empty(5, 7, dtype=torch.uint8)
        proposed, _ = ops.propose_langevin(torch.empty(5, 7, 3), key=key, step_size=1.0, tokens=tokens)
        assert (proposed.shape, proposed.dtype) == ((5, 7), torch.uint8)


def test_compile():
    def step(d, energy, new_d, key):
        index, log_q = ops.propose_flips(d, key=key, num_flips=2)
        energy, d = energy.clone(), d.clone()
        verdict = ops.accept_flips_(energy, d, energy - 1, new_d, index, log_q, key=key)
        return d, energy, verdict.acceptance_prob

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for key in (KEY.tensor, KEY.advance(5).tensor):
        for a, b in zip(compiled(_SMALL.d, _SMALL.energy, _SMALL.new_d, key), step(_SMALL.d, _SMALL.energy, _SMALL.new_d, key), strict=True):
            assert_same_bits(a, b)


@pytest.mark.cuda
@shapes
@dtypes
def test_cuda_agrees_with_the_cpu(device, shape, dtype):
    """The same draws and verdicts; log-probabilities to the bit but for float32's log_q of langevin, to 1e-6."""
    if device == "cpu":
        pytest.skip("compares CUDA with the CPU")
    here, there = Case(shape, dtype), Case(shape, dtype, device=device)
    for job in (lambda c: c.flips(), lambda c: c.flips(balancing="barker", with_replacement=False), lambda c: c.langevin()):
        expected, actual = job(here), job(there)
        for name, value in expected.items():
            torch.testing.assert_close(actual[name].cpu(), value, rtol=1e-6, atol=1e-6)
