"""The words: Philox4x32-10 in the layout that csrc/core/philox.h promises for ever, against Random123's answers and a plain-Python twin."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch

from ebmcore import Key, Langevin, ops
from support.truths import truth

MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def pack(*, seed: int, block: int = 0, step: int = 0, chain: int = 0, stream: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(counter, key), by the table in csrc/core/philox.h."""
    return (block, step & MASK, chain & MASK, stream | chain >> 32 << 8 | step >> 32 << 16), (seed & MASK, seed >> 32)


def unpack(counter: tuple[int, ...], key: tuple[int, ...]) -> dict[str, int]:
    """What to ask `words` for, so that it is drawn from this counter and key."""
    c0, c1, c2, c3 = counter
    return {"seed": key[0] | key[1] << 32, "block": c0, "step": c1 | c3 >> 16 << 32, "chain": c2 | (c3 >> 8 & 255) << 32, "stream": c3 & 255}


def words(count: int, *, seed: int, block: int = 0, step: int = 0, chain: int = 0, stream: int = 0, device: str = "cpu") -> np.ndarray:
    drawn = ops.philox((1, count), key=Key(seed, step, chain), stream=stream, first_block=block, device=device)
    return drawn.cpu().view(torch.int32).numpy().view(np.uint32)[0]


def hexadecimal(numbers: list[str] | str) -> tuple[int, ...]:
    return tuple(int(n, 16) for n in (numbers.split() if isinstance(numbers, str) else numbers))


# Random123 1.14, tests/kat_vectors.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(device, counter, key, answer):
    counter, key, answer = map(hexadecimal, (counter, key, answer))
    assert tuple(philox4x32(counter, key)) == answer
    assert tuple(words(4, **unpack(counter, key), device=device).tolist()) == answer


def test_random_vectors(cpu_target):
    for vector in truth("philox")["random_vectors"]:
        counter, key, answer = (hexadecimal(vector[name]) for name in ("ctr", "key", "out"))
        assert tuple(words(4, **unpack(counter, key)).tolist()) == answer, vector


@pytest.mark.parametrize("index", range(6))
def test_streams(device, index):
    """Counters that count up in c0, c1 with (c2, c3) fixed: 2^20 words, and 4096 across the carry from c0 into c1."""
    stream = truth("philox")["streams"][index]
    place = unpack((0, 0, stream["subsequence"] & MASK, stream["subsequence"] >> 32), (0, 0)) | {"seed": stream["seed"]}
    drawn = words(2**20, **place, device=device)
    assert tuple(drawn[:16].tolist()) == hexadecimal(stream["first16"])
    assert hashlib.sha256(drawn.astype("<u4").tobytes()).hexdigest() == stream["sha256_first_2pow20_words_le"]
    low = words(2048, **place | {"block": 2**32 - 512}, device=device)
    high = words(2048, **place | {"step": place["step"] + 1}, device=device)
    digest = hashlib.sha256(np.concatenate((low, high)).astype("<u4").tobytes()).hexdigest()
    assert digest == stream["sha256_4096_words_from_block_2pow32_minus_512"]


def test_every_bit_of_the_layout(device, cpu_target):
    """Each bit of seed, block, step, chain and stream sits where the table says, in short chains (queued blocks) and long ones (tiles)."""
    fields = {"seed": 64, "block": 32, "step": 48, "chain": 40, "stream": 8}
    base = {"seed": 0x0F1E2D3C4B5A6978, "block": 0x89, "step": 0x1234, "chain": 0x56, "stream": 0x2A}
    for name, bits in fields.items():
        for bit in range(bits):
            place = base | {name: base[name] ^ 1 << bit}
            for blocks in (1, 49) if place["block"] + 49 <= 2**32 else (1,):
                drawn = words(4 * blocks, **place, device=device)
                for b in (0, blocks - 1):
                    assert drawn[4 * b : 4 * b + 4].tolist() == philox4x32(*pack(**place | {"block": place["block"] + b})), (place, b)


@pytest.mark.parametrize("dim", [1, 3, 4, 17, 300])
def test_random_places(device, cpu_target, dim):
    """Rows are chains from first_chain on, also across 2^32 chains; a row takes its words from the front of its blocks."""
    source = random.Random(dim)
    for _ in range(20):
        seed, step, stream = source.getrandbits(64), source.getrandbits(48), source.getrandbits(8)
        first = source.choice([source.getrandbits(39), 2**32 - 3])
        drawn = ops.philox((7, dim), key=Key(seed, step, first), stream=stream, device=device).cpu().view(torch.int32).numpy().view(np.uint32)
        for row in range(7):
            counters = [pack(seed=seed, block=b, step=step, chain=first + row, stream=stream) for b in range(-(-dim // 4))]
            assert drawn[row].tolist() == [word for counter in counters for word in philox4x32(*counter)][:dim]


@pytest.mark.parametrize("step", [2**32 - 1, 2**32, 2**47 + 12345, 2**48 - 1])
def test_steps_beyond_32_bits(step):
    assert words(4, seed=3, step=step).tolist() == philox4x32(*pack(seed=3, step=step))
    assert words(4, seed=3, step=step).tolist() != words(4, seed=3, step=step & MASK).tolist() or step <= MASK


def test_no_counter_is_used_twice():
    """Under one key Philox is a bijection of counters: as many different blocks of words as counters means that no counter came twice."""
    blocks = []
    for first_chain in (0, 2**32):
        for step in (*range(6), 2**32, 2**32 + 1):
            for stream in (*ops.Stream, 255):
                drawn = ops.philox((500, 12), key=Key(11, step, first_chain), stream=stream)
                blocks.append(drawn.view(torch.int32).numpy().reshape(-1, 4))
    drawn = np.concatenate(blocks).view(np.uint64)
    assert len(np.unique(drawn[:, 0] ^ (drawn[:, 1] * np.uint64(0x9E3779B97F4A7C15)))) == len(drawn) == 2 * 8 * (len(ops.Stream) + 1) * 1500


def test_a_sampler_draws_each_step_and_chain_from_its_own_counter():
    """On a flat energy the chains are sums of the draws: step k of chain i is normal(step k, chain first + i), stream PROPOSAL, nothing else."""
    key = Key(7, step=2**32 - 2, first_chain=2**32 - 2)
    x = torch.zeros((5, 6), dtype=torch.float64)
    state = Langevin(1.0, noise_std=1.0).init(lambda x: 0.0 * x.sum(1), x, seed=key)
    for k in range(5):
        before = state.x
        state, _ = Langevin(1.0, noise_std=1.0).step(lambda x: 0.0 * x.sum(1), state)
        expected = ops.normal((5, 6), key=Key(7, 2**32 - 2 + k, 2**32 - 2), stream=ops.Stream.PROPOSAL, dtype=torch.float64)
        assert torch.equal(state.x, before + expected)
    assert state.key == Key(7, 2**32 + 3, 2**32 - 2)


def test_streams_keep_their_numbers():
    assert {stream.name: int(stream) for stream in ops.Stream} == {
        "USER": 0,
        "PROPOSAL": 1,
        "ACCEPTANCE": 2,
        "PROBE": 3,
        "INIT": 4,
        "BUFFER": 5,
        "DATA": 6,
        "TIE": 7,
        "HIDDEN": 8,
        "NOISE": 9,
        "LEVEL": 10,
        "JITTER": 11,
        "SWAP": 12,
        "MOMENTUM": 13,
        "COMPLEMENT": 14,
    }
