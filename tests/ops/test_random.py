"""Draws from words: exact maps first, then accuracy, then the laws on many draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ebmcore import Key, ops
from support.statistics import assert_count, assert_counts, assert_law, assert_mean
from support.targets import assert_same_bits
from support.truths import truth

F32, F64 = torch.float32, torch.float64
SHAPES = [(1, 2**20), (1000, 7), (300, 129), (5,), (3, 4, 5, 7)]
# Blocks of Key(0, step) with an extreme word, found by search: (step, block, word in the block).
ZERO_WORD = (55, 6401689, 0)
FULL_WORDS = [(1, 4742985, 1), (115, 9363127, 2), (207, 15705585, 2)]


def words32(shape, key, stream=0, **where) -> np.ndarray:
    return ops.philox(shape, key=key, stream=stream, **where).cpu().view(torch.int32).numpy().view(np.uint32)


def words64(shape, key, stream=0, **where) -> np.ndarray:
    """The 64-bit words that the float64 draws of `shape` are made of: two in a block."""
    rows, dim = shape[0], math.prod(shape[1:])
    words = words32((rows, 4 * -(-dim // 2)), key, stream, **where).reshape(rows, -1, 2).astype(np.uint64)
    return (words[..., 0] | words[..., 1] << np.uint64(32))[:, :dim].reshape(shape)


def even(shape) -> tuple[int, ...]:
    """(num_chains, dim), the dim rounded up so that normals come in pairs."""
    dim = math.prod(shape[1:])
    return shape[0], dim + dim % 2


def normals_from(radius_words: np.ndarray, angle_words: np.ndarray, bits: int) -> np.ndarray:
    """Box & Muller in long double; float64 radii come from the 52 high bits."""
    ld = np.longdouble
    u = (radius_words.astype(ld) + ld(0.5)) / ld(2) ** 32 if bits == 32 else ((radius_words >> np.uint64(12)).astype(ld) + ld(0.5)) / ld(2) ** 52
    r, turn = np.sqrt(-2 * np.log(u)), angle_words.astype(ld) / ld(2) ** bits * 8 * np.arctan(ld(1))
    return np.stack((r * np.cos(turn), r * np.sin(turn)), axis=-1)


@pytest.mark.parametrize("shape", SHAPES)
def test_uniform_bits(device, shape):
    key = Key(1, 2, 3)
    u = ops.uniform(shape, key=key, stream=9, device=device).cpu().numpy()
    expected = ((words32(shape, key, 9) >> 9).astype(np.float64) + 0.5) * 2.0**-23
    assert u.dtype == np.float32
    assert np.array_equal(u.astype(np.float64), expected)  # midpoints of 2^23 intervals are exact in float32
    u = ops.uniform(shape, key=key, stream=9, dtype=F64, device=device).cpu().numpy()
    assert np.array_equal(u, ((words64(shape, key, 9) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def test_uniform_map_of_the_truths():
    """The map itself, at the words where other maps give 0 or 1."""
    for row in truth("philox")["uniform_maps"]:
        assert ((int(row["word"], 16) >> 9) + 0.5) * 2.0**-23 == row["open_23bit_float32"]


def test_extreme_words(device, cpu_target):
    """Word 0 and word 2^32 - 1, of which any 2^32 words hold one each: never 0, never 1, never infinite."""
    step, block, place = ZERO_WORD
    key = Key(0, step)
    assert words32((1, 4), key, first_block=block, device=device)[0, place] == 0
    u = ops.uniform((1, 4), key=key, first_block=block, device=device)[0, place].item()
    assert u == 2.0**-24
    z = ops.normal((1, 4), key=key, first_block=block, device=device)[0].double().cpu()
    assert math.hypot(z[0], z[1]) == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)  # the largest radius there is, 6.764
    assert ops.bernoulli((1, 4), 2.0**-32, key=key, first_block=block, device=device)[0, place].item() == 1.0
    for step, block, place in FULL_WORDS:
        key = Key(0, step)
        assert words32((1, 4), key, first_block=block, device=device)[0, place] == 2**32 - 1
        assert ops.uniform((1, 4), key=key, first_block=block, device=device)[0, place].item() == 1 - 2.0**-24
        assert ops.bernoulli((1, 4), 1 - 2.0**-32, key=key, first_block=block, device=device)[0, place].item() == 0.0
        z = ops.normal((1, 4), key=key, first_block=block, device=device)
        assert bool(z.isfinite().all())
        if place == 2:
            assert z[0, 2:].abs().max().item() == 0.0  # the smallest radius


def test_box_muller_of_the_truths(device, cpu_target):
    expected = torch.tensor(truth("philox")["box_muller_key42"], dtype=F64)
    z = ops.normal((1, 64), key=Key(42), device=device)[0].double().cpu()
    assert float((z - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("seed", range(2))
def test_normal_accuracy_float32(seed):
    """4 million draws against long double.

    The radius word is rounded to 24 bits before the logarithm, by at most 2^-25 of itself; that moves the radius r by at most
    2^-25 / r, the only error that grows as r gets small. What remains is a handful of roundings and the polynomials (3e-8 of the
    value): 2.1e-7 of r at worst as measured over 3e7 draws, 8.3e-7 in all.
    """
    key = Key(seed)
    w = words32((2**20, 2), key)  # one pair a chain: word 0 the radius, word 1 the angle
    z = ops.normal((2**20, 2), key=key).numpy()
    w = np.concatenate((w, words32((1, 2**21), key, stream=1).reshape(-1, 2)))
    z = np.concatenate((z, ops.normal((1, 2**21), key=key, stream=1).numpy().reshape(-1, 2)))
    exact = normals_from(w[:, 0], w[:, 1], 32)
    error = np.abs(z - exact).max(axis=1)
    r = np.hypot(exact[:, 0], exact[:, 1])
    assert float((error - 2.0**-25 / r - 2.5e-7 * r).max()) < 0
    assert float(error[r > 0.5].max()) < 1e-6


@pytest.mark.parametrize("seed", range(2))
def test_normal_accuracy_float64(seed):
    shape = (1, 2**20)
    w = words64(shape, Key(seed)).reshape(-1, 2)
    z = ops.normal(shape, key=Key(seed), dtype=F64).numpy().reshape(-1, 2)
    assert float(np.abs(z - normals_from(w[:, 0], w[:, 1], 64)).max()) < 1e-14


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_normals_take_their_own_words(device, shape, dtype):
    """Element e of a chain comes from pair e // 2 of that chain's words, in every shape."""
    key, bits = Key(5, 6, 7), 32 if dtype == F32 else 64
    w = (words32 if dtype == F32 else words64)(even(shape), key, 8).reshape(shape[0], -1, 2)
    exact = normals_from(w[..., 0], w[..., 1], bits).reshape(shape[0], -1)[:, : math.prod(shape[1:])].reshape(shape)
    z = ops.normal(shape, key=key, stream=8, dtype=dtype, device=device).cpu().numpy()
    assert float(np.abs(z - exact).max()) < (1e-3 if dtype == F32 else 1e-14)  # 2^-25 / r, above: which word, not how exactly


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", [(1, 2**20), (1000, 7), (300, 129), (40, 128), (5,), (3, 31), (3, 32), (3, 33)])
def test_rademacher_bits(device, shape, dtype):
    rows, dim = shape[0], math.prod(shape[1:])
    w = words32((rows, -(-dim // 32)), Key(1, 2, 3), 4)
    bits = np.unpackbits(w.view(np.uint8).reshape(rows, -1), axis=1, bitorder="little")[:, :dim]
    signs = ops.rademacher(shape, key=Key(1, 2, 3), stream=4, dtype=dtype, device=device)
    assert signs.dtype == dtype
    assert np.array_equal(signs.cpu().numpy(), (1.0 - 2.0 * bits).reshape(shape))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", [0.3, 0.5, 1e-3, 1 - 2.0**-32, 2.0**-32])
def test_bernoulli_bits(device, shape, p, dtype):
    draws = ops.bernoulli(shape, p, key=Key(1, 2, 3), stream=4, dtype=dtype, device=device)
    assert draws.dtype == dtype
    assert np.array_equal(draws.cpu().numpy(), (words32(shape, Key(1, 2, 3), 4) < round(p * 2**32)).astype(float))


@pytest.mark.parametrize("p", [0, 0.0, 1, 1.0])
def test_bernoulli_of_certainties(device, p):
    assert bool((ops.bernoulli((64, 1000), p, key=Key(1), device=device) == p).all())
    step, block, _ = FULL_WORDS[0]
    assert bool((ops.bernoulli((1, 4), p, key=Key(0, step), first_block=block, device=device) == p).all())


@pytest.mark.parametrize("kind", ["philox", "uniform", "normal", "rademacher", "bernoulli"])
def test_first_block(kind):
    """Draws that start at a block are the rest of draws that start at 0."""
    extra, size = ((0.3,), 4) if kind == "bernoulli" else ((), 128 if kind == "rademacher" else 4)
    whole = getattr(ops, kind)((3, 20 * size), *extra, key=Key(1))
    assert_same_bits(getattr(ops, kind)((3, 13 * size), *extra, key=Key(1), first_block=7), whole[:, 7 * size :])


@pytest.mark.parametrize("kind", ["philox", "uniform", "normal", "rademacher", "bernoulli"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (2, 0, 5)])
def test_empty_shapes(device, kind, shape):
    extra = (0.3,) if kind == "bernoulli" else ()
    assert getattr(ops, kind)(shape, *extra, key=Key(1), device=device).shape == shape


# Laws. Each assertion fails by chance once in 2e7 new seeds. n = 2^24 = 1.7e7 draws show a shift of a mean by 0.002 standard deviations.
N = 2**24


@pytest.fixture(scope="module")
def normals() -> Tensor:
    return ops.normal((4, N // 4), key=Key(20))


@pytest.fixture(scope="module")
def uniforms() -> Tensor:
    return ops.uniform((4, N // 4), key=Key(21))


def test_normal_moments(normals):
    double_factorial = [1, 1, 3, 15, 105, 945, 10395, 135135, 2027025]  # E z^2k
    z = normals.double()
    power = torch.ones_like(z)
    for k in range(1, 9):
        power *= z
        mean = 0.0 if k % 2 else float(double_factorial[k // 2])
        assert_mean(power, mean, math.sqrt(double_factorial[k] - mean**2), what=f"E z^{k}")


@pytest.mark.parametrize("dtype", [F32, F64])
def test_normal_law(dtype):
    assert_law(torch.special.ndtr(ops.normal((1000, 1000), key=Key(22), dtype=dtype).double()), what="normal")


def test_normal_bins(normals):
    """1000 bins of equal probability: sees a relative error of about 0.5 % in one of them."""
    bins = (torch.special.ndtr(normals.double()) * 1000).long().flatten()
    assert_counts(torch.bincount(bins, minlength=1000), torch.full((1000,), 1e-3), what="normal bins")


def test_normal_tails():
    """A radius of 24 bits ends at 5.8; ours reaches 6.7."""
    counts = {4.0: 0, 5.0: 0}
    largest = 0.0
    for step in range(8):
        z = ops.normal((4, 2**21), key=Key(23, step)).abs_()
        largest = max(largest, float(z.max()))
        for bound in counts:
            counts[bound] += int((z > bound).sum())
    for bound, count in counts.items():
        assert_count(count, 2**26, math.erfc(bound / math.sqrt(2)), what=f"|z| > {bound}")
    assert 5.2 < largest < 6.77


def test_normal_pairs_are_independent(normals):
    """What Box-Muller could spoil: the two of a pair, their squares, and neighbours up to 8 apart."""
    z = normals[:1].double()
    for lag in range(1, 9):
        assert_mean(z[:, lag:] * z[:, :-lag], 0.0, 1.0, what=f"lag {lag}")
        assert_mean((z[:, lag:].square() - 1) * (z[:, :-lag].square() - 1), 0.0, 2.0, what=f"squares at lag {lag}")
    pairs = z.view(-1, 2)
    assert_law(-torch.expm1(-pairs.square().sum(1) / 2), what="radius")
    assert_law(torch.atan2(pairs[:, 0], pairs[:, 1]) / (2 * math.pi) + 0.5, what="angle")


@pytest.mark.parametrize(
    "other",
    [Key(30, 1, 0), Key(30, 0, 1), Key(31, 0, 0), Key(30, 2**32, 0), Key(30, 0, 2**32), Key(30 + 2**32, 0, 0)],
    ids=["next step", "next chain", "next seed", "step + 2^32", "chain + 2^32", "seed + 2^32"],
)
def test_neighbours_are_independent(other):
    """Noise of neighbouring steps, chains and seeds (torchebm's `seed + i` fails this: it is the same noise, shifted)."""
    a, b = (ops.normal((1, 2**20), key=key)[0].double() for key in (Key(30), other))
    for shift in range(-2, 3):
        assert_mean(a * b.roll(shift), 0.0, 1.0, what=f"shift {shift}")


def test_streams_are_independent():
    draws = [ops.normal((1, 2**20), key=Key(32), stream=stream)[0].double() for stream in ops.Stream]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert_mean(a * b, 0.0, 1.0, what="two streams")


def test_uniform_bins(uniforms):
    """1000 bins, whose exact probabilities follow from the 2^23 values that there are."""
    values = (torch.arange(2**23, dtype=F64) + 0.5) * 2.0**-23
    probabilities = torch.bincount((values * 1000).long()) / 2**23
    assert_counts(torch.bincount((uniforms.double() * 1000).long().flatten(), minlength=1000), probabilities, what="uniform bins")


@pytest.mark.parametrize("dtype", [F32, F64])
def test_uniform_law(dtype):
    u = ops.uniform((1000, 1000), key=Key(24), dtype=dtype)
    assert_law(u, what="uniform")
    assert_mean(u, 0.5, math.sqrt(1 / 12), what="mean")
    assert_mean((u.double() - 0.5).square(), 1 / 12, math.sqrt(1 / 180), what="variance")


def test_uniform_neighbours(uniforms):
    u = (uniforms.double() - 0.5) * math.sqrt(12)
    for lag in (1, 2, 3, 4, 8, 16, 128):
        assert_mean(u[:, lag:] * u[:, :-lag], 0.0, 1.0, what=f"lag {lag}")
    pairs = (uniforms.view(-1, 2) * 32).long()
    assert_counts(torch.bincount(pairs[:, 0] * 32 + pairs[:, 1], minlength=1024), torch.full((1024,), 1 / 1024), what="pairs in 32 x 32 boxes")


def test_rademacher_law():
    signs = ops.rademacher((8, 2**21), key=Key(25)).double()
    assert_mean(signs, 0.0, 1.0, what="mean")
    for lag in (1, 2, 31, 32, 33, 127, 128):
        assert_mean(signs[:, lag:] * signs[:, :-lag], 0.0, 1.0, what=f"lag {lag}")


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_bernoulli_law(p):
    assert_count(int(ops.bernoulli((4, 2**20), p, key=Key(26)).sum()), 2**22, p, what=f"p = {p}")


DRAWS = [ops.philox, ops.uniform, ops.normal, ops.rademacher, lambda *a, **k: ops.bernoulli(*a[:1], 0.5, *a[1:], **k)]
draws = pytest.mark.parametrize("draw", DRAWS, ids=["philox", "uniform", "normal", "rademacher", "bernoulli"])


@draws
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": 3}, ValueError, "shape must be"),
        ({"shape": ()}, ValueError, "shape must be"),
        ({"shape": (-1, 3)}, ValueError, "shape must be"),
        ({"shape": (2.0, 3)}, (TypeError, ValueError), "shape"),
        ({"shape": ("a", 3)}, (TypeError, ValueError), "shape must be"),
        ({"key": 5}, TypeError, "key must be"),
        ({"key": None}, TypeError, "key must be"),
        ({"key": torch.zeros(3)}, TypeError, "key must be"),
        ({"key": torch.zeros(2, dtype=torch.int64)}, TypeError, "key must be"),
        ({"stream": 256}, ValueError, "stream must be"),
        ({"stream": -1}, ValueError, "stream must be"),
        ({"stream": 0.5}, (TypeError, ValueError), "stream must be"),
        ({"stream": "PROBE"}, (TypeError, ValueError), "stream must be"),
        ({"first_block": -1}, ValueError, "first_block"),
        ({"first_block": 2**32}, ValueError, "blocks"),
        ({"first_block": 1.5}, (TypeError, ValueError), "first_block"),
        ({"shape": (1, 2**42)}, ValueError, "blocks"),
        ({"device": "meta"}, (RuntimeError, ValueError), "meta"),
    ],
)
def test_bad_arguments(draw, arguments, error, message):
    arguments = {"shape": (2, 3), "key": Key(1)} | arguments
    shape = arguments.pop("shape")
    with pytest.raises(error, match=message):
        draw(shape, **arguments)


@pytest.mark.parametrize("draw", [ops.uniform, ops.normal, ops.rademacher])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.uint32, torch.complex64])
def test_bad_dtypes(draw, dtype):
    with pytest.raises(TypeError, match="dtype must be"):
        draw((2, 3), key=Key(1), dtype=dtype)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf])
def test_bad_probabilities(p):
    with pytest.raises(ValueError, match="probability must be"):
        ops.bernoulli((2, 3), p, key=Key(1))


@pytest.mark.parametrize("p", ["0.5", None, True, torch.tensor(0.5)])
def test_probabilities_of_wrong_types(p):
    with pytest.raises(TypeError, match="probability must be"):
        ops.bernoulli((2, 3), p, key=Key(1))


def test_global_generator(untouched_generator):
    for draw in DRAWS:
        draw((4, 5), key=Key(1))


@pytest.mark.cuda
@pytest.mark.parametrize("shape", SHAPES)
def test_cuda_agrees_with_the_cpu(device, shape):
    """Words, and what follows from them without rounding, are tested bit for bit above. Normals: 1e-6 and 1e-14, the stated tolerance."""
    if device == "cpu":
        pytest.skip("compares CUDA with the CPU")
    for dtype, tolerance in ((F32, 1e-6), (F64, 1e-14)):
        a, b = (ops.normal(shape, key=Key(33), dtype=dtype, device=where).cpu() for where in ("cpu", device))
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 2**32, 2**63])
def test_bits_are_balanced_from_the_first_word_on(seed):
    """Seeds with few bits set need no warming up: each of the 32 bits is one half of the time, from the first step of the first chains on."""
    words = words32((256, 64), Key(seed)).astype(np.uint32)
    ones = (words[..., None] >> np.arange(32, dtype=np.uint32) & 1).reshape(-1, 32).sum(0)
    for bit in range(32):
        assert_count(int(ones[bit]), words.size, 0.5, what=f"bit {bit} of seed {seed}")
