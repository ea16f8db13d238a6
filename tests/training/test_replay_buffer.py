from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.training import ReplayBuffer
from ebmcore.types import DivergenceError, Key

ALPHA = 5e-8


def numbered(shape: tuple[int, ...], key: Key) -> Tensor:
    """Row i is full of i."""
    return torch.arange(shape[0], dtype=torch.float32).reshape(-1, *(1 for _ in shape[1:])).expand(shape).contiguous()


def snapshot(buffer: ReplayBuffer) -> dict:
    return buffer.state_dict() | {"count": buffer.num_reinit.clone()}


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] is None and b[name] is None) or torch.equal(a[name], b[name]), name


def binomial_p(count: int, n: int, p: float) -> float:
    """Two-sided exact p-value: twice the smaller tail."""
    log_pmf = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p) for k in range(n + 1)]
    pmf = [math.exp(v) for v in log_pmf]
    return min(1.0, 2 * min(math.fsum(pmf[: count + 1]), math.fsum(pmf[count:])))


def test_draw_gives_distinct_slots_and_their_own_chains(device):
    buffer = ReplayBuffer(50, (2, 3), reinit_prob=0.0, seed=1, device=device)
    values = buffer.values
    for n in (1, 7, 49, 50):
        slots, x0 = buffer.draw(n)
        assert slots.dtype == torch.int64
        assert len(slots.unique()) == n
        assert slots.min() >= 0
        assert slots.max() < 50
        assert torch.equal(x0, values[slots])
        assert buffer.num_reinit.item() == 0
    x0.zero_()  # a copy
    assert torch.equal(buffer.values, values)


def test_put_writes_exactly_the_drawn_slots(device):
    buffer = ReplayBuffer(20, (2,), seed=2, device=device)
    before = buffer.values
    slots, _ = buffer.draw(6)
    x = torch.arange(12.0, device=device).reshape(6, 2) + 100
    buffer.put(slots, x.requires_grad_())
    after = buffer.values
    assert torch.equal(after[slots], x)
    assert not after.requires_grad
    others = torch.ones(20, dtype=torch.bool, device=device)
    others[slots] = False
    assert torch.equal(after[others], before[others])
    assert not (after[slots] == before[slots]).any()  # `values` are copies
    x.data.zero_()
    assert torch.equal(buffer.values, after)


def test_draw_is_the_documented_function_of_the_key(device):
    buffer = ReplayBuffer(30, (3,), reinit_prob=0.5, low=-2.0, high=4.0, seed=Key(3, step=9, first_chain=100), device=device)
    assert torch.equal(buffer.values, -2.0 + 6.0 * ops.uniform((30, 3), key=Key(3, 9, 100), stream=ops.Stream.INIT, device=device))
    key = Key(3, 10, 100)
    assert buffer.key == key
    slots, x0 = buffer.draw(11)
    u = ops.uniform((30, 2), key=key, stream=ops.Stream.BUFFER, dtype=torch.float64, device=device)
    fresh = -2.0 + 6.0 * ops.uniform((11, 3), key=key, stream=ops.Stream.INIT, device=device)
    assert slots.tolist() == sorted(range(30), key=lambda slot: u[slot, 0].item())[:11]
    is_fresh = u[slots, 1] < 0.5
    assert 0 < is_fresh.sum() < 11
    assert torch.equal(x0, torch.where(is_fresh[:, None], fresh, buffer.values[slots]))
    assert buffer.num_reinit.item() == is_fresh.sum().item()
    assert buffer.num_reinit.shape == ()
    assert buffer.key == Key(3, 11, 100)


def test_all_pairs_of_slots_are_equally_likely():
    """Chi-square over the 20 ordered pairs out of 5 slots, 10 000 draws (500 expected in each cell); false alarm 5e-8."""
    buffer = ReplayBuffer(5, (1,), seed=4)
    counts = torch.zeros(5, 5)
    for _ in range(10_000):
        i, j = buffer.draw(2)[0].tolist()
        counts[i, j] += 1
    assert counts.diagonal().sum() == 0
    chi2 = ((counts - 500).square() / 500)[~torch.eye(5, dtype=torch.bool)].sum().item()
    half, x = 19 / 2, chi2 / 2
    assert 1 - torch.special.gammainc(torch.tensor(half, dtype=torch.float64), torch.tensor(x, dtype=torch.float64)).item() > ALPHA


@pytest.mark.parametrize("prob", [0.05, 0.5])
def test_reinit_frequency(prob):
    """Exact binomial test over 40 000 drawn chains; false alarm 5e-8; 0.05 against 0.056 is seen with 99 %."""
    buffer = ReplayBuffer(400, (1,), reinit_prob=prob, init=lambda shape, key: torch.full(shape, float(key.step > 0)), seed=5)
    told = found = 0
    for _ in range(200):
        x0 = buffer.draw(200)[1]  # the stored chains are 0, fresh ones 1
        told, found = told + buffer.num_reinit.item(), found + int(x0.sum())
    assert told == found
    assert binomial_p(found, 40_000, prob) > ALPHA


def test_reinit_is_independent_of_the_slot_and_of_its_rank():
    """The share of fresh chains is the same for first and last rows: 2 x 2 table, each count within 5.45 standard errors."""
    buffer = ReplayBuffer(100, (1,), reinit_prob=0.5, init=lambda shape, key: torch.full(shape, float(key.step > 0)), seed=6)
    x0 = torch.stack([buffer.draw(50)[1].flatten() for _ in range(2000)])
    for part in (x0[:, :25], x0[:, 25:], x0[::2], x0[1::2]):
        assert abs(part.mean().item() - 0.5) < 5.45 * 0.5 / math.sqrt(part.numel())


def test_reinit_never_and_always():
    buffer = ReplayBuffer(64, (1,), reinit_prob=1.0, init=numbered, seed=7)
    slots, x0 = buffer.draw(64)
    assert buffer.num_reinit.item() == 64
    assert torch.equal(x0.flatten(), torch.arange(64.0))
    assert not torch.equal(slots, torch.arange(64))
    buffer.reinit_prob = 0.0
    assert all(torch.equal((pair := buffer.draw(64))[1].flatten(), pair[0].float()) for _ in range(50))


def test_fresh_chains_never_repeat():
    """The first draw's fresh chains are not those that the buffer began with, nor are two draws' the same."""
    buffer = ReplayBuffer(16, (4,), reinit_prob=1.0, seed=8)
    rows = torch.cat([buffer.values, buffer.draw(16)[1], buffer.draw(16)[1]])
    assert len(rows.unique(dim=0)) == 48
    assert rows.min() > 0
    assert rows.max() < 1


def test_classes_keep_their_slots(device):
    buffer = ReplayBuffer(30, (1,), reinit_prob=0.3, num_classes=4, seed=9, device=device)
    owned = torch.arange(30, device=device) % 4
    assert torch.equal(buffer.labels, owned)
    everything = torch.tensor([0] * 8 + [1] * 8 + [2] * 7 + [3] * 7, device=device)
    for labels in ([2, 0, 2, 3, 1, 2], [1] * 8, [3], everything[torch.randperm(30)].tolist()):
        labels = torch.tensor(labels, device=device)
        slots, x0 = buffer.draw(len(labels), labels)
        assert torch.equal(owned[slots], labels)
        assert len(slots.unique()) == len(labels)
        kept = x0 == buffer.values[slots]
        assert (~kept).sum() == buffer.num_reinit
        buffer.put(slots, x0)
        assert torch.equal(buffer.labels, owned)


def test_slots_of_a_class_are_equally_likely():
    """3 of class 1's 5 slots, 5000 draws: each slot is drawn with probability 3/5, |z| < 5.45."""
    buffer = ReplayBuffer(15, (1,), num_classes=3, seed=10)
    counts = torch.zeros(15)
    for _ in range(5000):
        counts[buffer.draw(4, torch.tensor([1, 0, 1, 1]))[0]] += 1
    assert counts[2::3].sum() == 0
    for part, p in ((counts[1::3], 0.6), (counts[0::3], 0.2)):
        assert (part - 5000 * p).abs().max() < 5.45 * math.sqrt(5000 * p * (1 - p))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-3.0, 10.0)])
def test_uint8_round_trip(low, high):
    buffer = ReplayBuffer(1000, (7,), low=low, high=high, storage="uint8", reinit_prob=0.0, seed=11)
    assert buffer.state_dict()["values"].dtype == torch.uint8
    assert buffer.values.dtype == torch.float32
    x = low + (high - low) * torch.rand(1000, 7, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = low, high
    buffer.put(torch.arange(1000), x)
    values = buffer.values
    half = (high - low) / 510
    assert (values - x).abs().max().item() <= half * (1 + 1e-5)
    assert (values - x).abs().max().item() > 0.99 * half
    assert (values[0] == low).all()
    assert (values[1] == high).all()
    buffer.put(torch.arange(1000), values)  # levels are fixed points
    assert torch.equal(buffer.values, values)
    slots, x0 = buffer.draw(20)
    assert torch.equal(x0, values[slots])


def test_uint8_rounds_to_the_nearest_level_and_ties_to_even():
    buffer = ReplayBuffer(6, (), low=0.0, high=255.0, storage="uint8", seed=0)
    buffer.put(torch.arange(6), torch.tensor([0.5, 1.5, 1.49, 254.5, 255.4, -0.4]))
    assert buffer.values.tolist() == [0.0, 2.0, 1.0, 254.0, 255.0, 0.0]
    with pytest.raises(ValueError, match=r"ReplayBuffer.put: x must be in \[0.0, 255.0\] for storage='uint8', got values in \[1.0, 255.75"):
        buffer.put(torch.tensor([0, 1]), torch.tensor([1.0, 255.75]))


def test_state_restores_to_the_same_bits(device):
    def make(seed):
        return ReplayBuffer(40, (3,), reinit_prob=0.4, storage="uint8", num_classes=5, seed=seed, device=device)

    def go_on(buffer):
        seen = []
        for labels in (None, torch.tensor([1, 1, 4, 0], device=device), None):
            slots, x0 = buffer.draw(4, labels)
            buffer.put(slots, 1 - x0)
            seen += [slots, x0, buffer.num_reinit]
        return [*seen, buffer.values]

    buffer, other = make(12), make(13)
    buffer.draw(7)
    state = buffer.state_dict()
    expected = go_on(buffer)  # must not move the state taken before it
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(expected, go_on(other), strict=True))
    again = make(14)
    again.load_state_dict(state)  # and loading it must not have tied it to `other`
    assert all(torch.equal(a, b) for a, b in zip(expected, go_on(again), strict=True))


def test_state_that_does_not_fit_is_refused():
    buffer = ReplayBuffer(8, (2,), num_classes=2, storage="uint8", seed=0)
    before = snapshot(buffer)
    state = buffer.state_dict()
    for bad, match in [
        ({"values": state["values"]}, r"state must have the keys \['key', 'labels', 'levels', 'values'\], got \['values'\]"),
        (state | {"values": state["values"][:7]}, r"values must be torch.uint8 of shape \(8, 2\), got torch.uint8 of shape \(7, 2\)"),
        (state | {"values": state["values"].float()}, r"values must be torch.uint8 of shape \(8, 2\), got torch.float32"),
        (state | {"labels": None}, r"labels must be torch.int64 of shape \(8,\), got NoneType"),
        (state | {"labels": state["labels"].flip(0)}, "labels must be those of this buffer"),
        (state | {"levels": state["levels"] * 2}, "levels must be those of this buffer"),
        (state | {"key": torch.zeros(2, dtype=torch.int64)}, "key must be torch.int64"),
    ]:
        with pytest.raises(ValueError, match="ReplayBuffer.load_state_dict: " + match):
            buffer.load_state_dict(bad)
    plain = ReplayBuffer(2, (), seed=0)
    with pytest.raises(ValueError, match="values must be finite"):
        plain.load_state_dict(plain.state_dict() | {"values": torch.tensor([0.0, math.nan])})
    assert_same(before, snapshot(buffer))


@pytest.mark.parametrize("storage", [None, "uint8"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_put_refuses_non_finite_chains(storage, bad):
    buffer = ReplayBuffer(10, (2,), storage=storage, seed=0)
    before = snapshot(buffer)
    x = torch.full((4, 2), 0.5)
    x[2, 1] = x[3, 0] = bad
    with pytest.raises(DivergenceError, match=r"ReplayBuffer.put: x must be finite, got NaN or infinity in 2 rows \[2, 3\]") as caught:
        buffer.put(torch.tensor([5, 1, 2, 9]), x)
    assert caught.value.chains == [2, 3]
    assert_same(before, snapshot(buffer))


def test_calls_that_raise_change_nothing():
    calls = []

    def init(shape, key):
        calls.append(shape)
        if len(calls) > 1:
            raise OSError("no more")
        return torch.zeros(shape)

    buffer = ReplayBuffer(10, (2,), num_classes=3, init=init, seed=0)
    before = snapshot(buffer)
    slots, x, labels = torch.arange(3), torch.zeros(3, 2), torch.tensor([0, 1, 2])
    for error, match, call in [
        (OSError, "no more", lambda: buffer.draw(3)),
        (ValueError, r"draw: n must be at most capacity 10, got 11", lambda: buffer.draw(11)),
        (ValueError, r"draw: n must be an int >= 1, got 0", lambda: buffer.draw(0)),
        (ValueError, r"draw: n must be an int >= 1, got -1", lambda: buffer.draw(-1)),
        (TypeError, r"draw: n must be an int >= 1, got 2.0", lambda: buffer.draw(2.0)),
        (TypeError, r"draw: n must be an int >= 1, got True", lambda: buffer.draw(True)),
        (TypeError, r"draw: labels must be a torch.int64 tensor, got torch.int32", lambda: buffer.draw(3, labels.int())),
        (TypeError, r"draw: labels must be a torch.int64 tensor, got list", lambda: buffer.draw(3, [0, 1, 2])),
        (ValueError, r"draw: labels must have shape \(2,\) on cpu, got \(3,\) on cpu", lambda: buffer.draw(2, labels)),
        (ValueError, r"draw: labels must be in \[0, 3\), got 3", lambda: buffer.draw(3, labels + 1)),
        (ValueError, r"draw: labels must be in \[0, 3\), got -1", lambda: buffer.draw(3, labels - 1)),
        (ValueError, r"draw: labels must name class 1 at most 3 times, got 4", lambda: buffer.draw(4, torch.ones(4).long())),
        (TypeError, r"put: slots must be a torch.int64 tensor, got torch.int32", lambda: buffer.put(slots.int(), x)),
        (TypeError, r"put: slots must be a torch.int64 tensor, got list", lambda: buffer.put([0, 1, 2], x)),
        (ValueError, r"put: slots must have shape \(3,\) on cpu, got \(3, 1\)", lambda: buffer.put(slots[:, None], x)),
        (ValueError, r"put: slots must have shape \(3,\) on cpu, got \(3,\) on meta", lambda: buffer.put(slots.to("meta"), x)),
        (ValueError, r"put: slots must be distinct, got 0 more than once", lambda: buffer.put(torch.tensor([0, 2, 0]), x)),
        (ValueError, r"put: slots must be in \[0, 10\), got 10", lambda: buffer.put(slots + 8, x)),
        (ValueError, r"put: slots must be in \[0, 10\), got -1", lambda: buffer.put(slots - 1, x)),
        (TypeError, r"put: x must be a torch.float32 tensor, got torch.float64", lambda: buffer.put(slots, x.double())),
        (TypeError, r"put: x must be a torch.float32 tensor, got list", lambda: buffer.put(slots, x.tolist())),
        (ValueError, r"put: x must have shape \(3, 2\) on cpu, got \(3, 3\) on cpu", lambda: buffer.put(slots, torch.zeros(3, 3))),
        (ValueError, r"put: x must have shape \(3, 2\) on cpu, got \(2, 2\) on cpu", lambda: buffer.put(slots, x[:2])),
        (ValueError, r"put: x must have shape \(3, 2\) on cpu, got \(3, 2\) on meta", lambda: buffer.put(slots, x.to("meta"))),
    ]:
        with pytest.raises(error, match=match):
            call()
        assert_same(before, snapshot(buffer))
    with pytest.raises(ValueError, match="draw: labels need a buffer with num_classes"):
        ReplayBuffer(4, (1,), seed=0).draw(1, torch.tensor([0]))


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, r"capacity must be an int >= 1, got 0", {"capacity": 0}),
        (TypeError, r"capacity must be an int >= 1, got 2.5", {"capacity": 2.5}),
        (TypeError, r"capacity must be an int >= 1, got True", {"capacity": True}),
        (ValueError, r"event_shape must be an int >= 1, got 0", {"event_shape": (3, 0)}),
        (ValueError, r"reinit_prob must be in \[0, 1\], got -0.1", {"reinit_prob": -0.1}),
        (ValueError, r"reinit_prob must be in \[0, 1\], got 1.5", {"reinit_prob": 1.5}),
        (ValueError, r"reinit_prob must be in \[0, 1\], got nan", {"reinit_prob": math.nan}),
        (ValueError, r"low and high must be finite with low < high, got 1.0 and 1.0", {"low": 1.0}),
        (ValueError, r"low and high must be finite with low < high, got 0.0 and inf", {"high": math.inf}),
        (ValueError, r"low and high must be finite with low < high, got nan and 1.0", {"low": math.nan}),
        (ValueError, r"low and high must leave 256 levels apart in torch.float32", {"low": 1e9, "high": 1e9 + 1, "storage": "uint8"}),
        (ValueError, r"storage must be None or 'uint8', got 'int4'", {"storage": "int4"}),
        (TypeError, r"dtype must be floating unless init is given", {"dtype": torch.int64}),
        (ValueError, r"num_classes must be at most capacity 4, got 5", {"num_classes": 5}),
        (ValueError, r"num_classes must be an int >= 1, got 0", {"num_classes": 0}),
        (ValueError, r"Key: seed must be an int", {"seed": -1}),
        (ValueError, r"init: x must have shape \(4, 2\) on cpu, got \(4, 1\)", {"init": lambda shape, key: torch.zeros(4, 1)}),
        (TypeError, r"init: x must be a torch.float32 tensor, got torch.float64", {"init": lambda shape, key: torch.zeros(shape).double()}),
        (
            DivergenceError,
            r"init: x must be finite, got NaN or infinity in 4 rows \[0, 1, 2, 3\]",
            {"init": lambda shape, key: torch.full(shape, math.nan)},
        ),
        (ValueError, r"init: x must be in \[0.0, 1.0\]", {"init": lambda shape, key: torch.full(shape, 2.0), "storage": "uint8"}),
    ],
)
def test_bad_arguments(error, match, arguments):
    with pytest.raises(error, match=match):
        ReplayBuffer(**({"capacity": 4, "event_shape": (2,)} | arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    buffer = ReplayBuffer(8, (3,), dtype=dtype, reinit_prob=0.5, seed=0)
    slots, x0 = buffer.draw(5)
    assert x0.dtype == buffer.values.dtype == dtype
    buffer.put(slots, x0)
    spins = ReplayBuffer(8, (3,), dtype=torch.int8, init=lambda shape, key: torch.ones(shape, dtype=torch.int8), seed=0)
    assert spins.draw(2)[1].dtype == torch.int8


def test_global_generator_and_modes():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.inference_mode():
        buffer = ReplayBuffer(8, (3,), seed=0, num_classes=2, reinit_prob=0.5)
        buffer.put(*buffer.draw(4))
    buffer.put(*buffer.draw(4, torch.tensor([0, 1, 1, 0])))  # a buffer made and used in inference mode is an ordinary one
    with torch.no_grad():
        buffer.put(*buffer.draw(4))
    assert not buffer.draw(3)[1].is_inference()
    assert torch.equal(torch.get_rng_state(), before)
    first, second = ReplayBuffer(8, (3,)), ReplayBuffer(8, (3,))  # seed=None: torch.manual_seed governs
    torch.manual_seed(0)
    assert torch.equal(ReplayBuffer(8, (3,)).values, first.values)
    assert not torch.equal(first.values, second.values)
    assert len(first) == 8
