"""The random key: what it takes, how it moves, what it refuses."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch

from ebmcore import DivergenceError, Key, ops
from ebmcore.types import Info, State


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_numbers_come_back(seed):
    key = Key(seed, 2**48 - 1, 2**40 - 1)
    assert (key.seed, key.step, key.first_chain) == (seed, 2**48 - 1, 2**40 - 1)
    assert key.tensor.dtype == torch.int64
    assert key.tensor.tolist() == [seed - 2**64 if seed >= 2**63 else seed, 2**48 - 1, 2**40 - 1]
    assert eval(repr(key)) == key


@pytest.mark.parametrize("number", [np.int64(5), np.uint64(5), np.uint8(5)])
def test_numpy_integers(number):
    assert Key(number, number, number) == Key(5, 5, 5)
    assert Key(np.uint64(2**64 - 1)).seed == 2**64 - 1


WRONG_TYPES = [1.0, "1", None, True, False, np.float64(1), torch.tensor(1), [1], 1j, np.bool_(True), np.array(1.5), np.array([1])]
FIELDS = {"seed": 64, "step": 48, "first_chain": 40}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", WRONG_TYPES, ids=repr)
def test_wrong_types(name, value):
    with pytest.raises(TypeError, match=rf"^Key: {name} must be an int .*2\*\*{FIELDS[name]}.*, got "):
        Key(**{"seed": 0, name: value})


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_ranges(name):
    for value in (-1, 2 ** FIELDS[name], 10**30):
        with pytest.raises(ValueError, match=rf"^Key: {name} must be an int .*2\*\*{FIELDS[name]}.*, got {value}$"):
            Key(**{"seed": 0, name: value})


def test_moves():
    key = Key(2**64 - 1, 2**32 - 2, 7)
    assert key.advance() == Key(2**64 - 1, 2**32 - 1, 7)
    assert key.advance(5) == Key(2**64 - 1, 2**32 + 3, 7)
    assert key.advance(0) == key
    assert key.shard(2**33) == Key(2**64 - 1, 2**32 - 2, 2**33 + 7)
    assert key == Key(2**64 - 1, 2**32 - 2, 7)  # none of them moved key itself
    steps = key.steps(4)
    assert [Key.from_tensor(row) for row in steps] == [key.advance(i) for i in range(4)]
    assert key.steps(0).shape == (0, 3)
    assert key.to("cpu") is key
    assert key.to(None) is key


def test_shards_stay_in_range():
    for offset in (-1, 2**40):
        with pytest.raises(ValueError, match="first_chain"):
            Key(1).shard(offset)


@pytest.mark.parametrize("num_steps", [2**48, -1, 2**63 - 1])
def test_steps_stay_in_range(num_steps):
    """Beyond 2^48 steps the noise of step 0 would come again, before 0 that of 2^48 - 1."""
    with pytest.raises(ValueError, match="step"):
        Key(1).advance(num_steps)


@pytest.mark.parametrize("num_steps", [1.5, "1", None, True])
def test_advance_by_wrong_types(num_steps):
    with pytest.raises(TypeError, match="num_steps"):
        Key(1).advance(num_steps)


def test_chains_stay_in_range():
    """Row 1 of first_chain = 2^40 - 1 would be chain 2^40, whose top bit is the counter's step bit 32."""
    with pytest.raises(ValueError, match="chain"):
        ops.philox((2, 4), key=Key(1, 0, 2**40 - 1))
    assert not torch.equal(ops.philox((1, 4), key=Key(1, 0, 2**40 - 1)), ops.philox((1, 4), key=Key(1)))


def test_equality():
    assert Key(1, 2, 3) == Key(1, 2, 3)
    assert Key(1, 2, 3) != Key(1, 2, 4)
    assert Key(1) != 1
    with pytest.raises(TypeError):
        hash(Key(1))


def test_copies_and_files():
    key = Key(2**64 - 5, 6, 7)
    assert copy.deepcopy(key) == key
    assert pickle.loads(pickle.dumps(key)) == key
    file = io.BytesIO()
    torch.save(key.tensor, file)
    file.seek(0)
    assert Key.from_tensor(torch.load(file, weights_only=True)) == key


def test_from_tensor():
    tensor = Key(1, 2, 3).tensor
    assert Key.from_tensor(tensor).tensor is tensor
    for bad in (torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)):
        with pytest.raises(ValueError, match="must be int64 of shape"):
            Key.from_tensor(bad)
    for other in ([1, 2, 3], None, np.zeros(3, np.int64)):
        with pytest.raises(TypeError, match="tensor must be"):
            Key.from_tensor(other)


def test_from_seed(untouched_generator):
    key = Key(1, 2, 3)
    assert Key.from_seed(key) is key
    assert Key.from_seed(5) == Key(5)
    for bad in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            Key.from_seed(bad)
    for bad in (1.5, "1", True, torch.tensor(1)):
        with pytest.raises(TypeError, match="seed"):
            Key.from_seed(bad)


def test_no_seed_is_governed_by_manual_seed():
    before = torch.get_rng_state()
    try:
        torch.manual_seed(3)
        keys = [Key.from_seed(None) for _ in range(3)]
        torch.manual_seed(3)
        assert [Key.from_seed(None) for _ in range(3)] == keys
        assert len({key.seed for key in keys}) == 3
        torch.manual_seed(3)
        torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)
        state = torch.get_rng_state()
        torch.manual_seed(3)
        Key.from_seed(None)
        assert torch.equal(torch.get_rng_state(), state)  # one draw, no more
    finally:
        torch.set_rng_state(before)


def test_divergence_error():
    error = DivergenceError("text", chains=[1], step=2, last_energies=[3.0])
    assert isinstance(error, RuntimeError)
    assert (str(error), error.chains, error.step, error.last_energies) == ("text", [1], 2, [3.0])


def test_protocols_are_checked_at_run_time():
    assert not isinstance(object(), State)
    assert not isinstance(object(), Info)
