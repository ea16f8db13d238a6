"""The ground floor: what an energy is, the random key, and what samplers hand around.

Imports nothing else of the package.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

EnergyFn = Callable[[Tensor], Tensor]
"""(num_chains, *event) -> (num_chains,); low energy is likely, p(x) ∝ exp(-E(x) / T)."""

STATE_DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
"""Of continuous states; the two short ones are computed in float32."""

SEED_BITS, STEP_BITS, CHAIN_BITS = 64, 48, 40


class Alphabet(NamedTuple):
    """What a site of a discrete state can be.

    Attributes:
        kind: "binary": 0 or 1; "spin": -1 or +1; "token": 0, ..., num_categories - 1.
        num_categories: number of values.
    """

    kind: Literal["binary", "spin", "token"]
    num_categories: int = 2


class DivergenceError(RuntimeError):
    """A chain left the finite numbers: its state, energy or gradient is NaN or infinite.

    Attributes:
        chains: indices of the chains, ascending.
        step: the step, counted from the start of the call, whose result was the first not to be finite; -1 for the starting point.
        last_energies: the last finite energy of each of those chains (NaN where there was none).
    """

    def __init__(self, message: str, *, chains: list[int], step: int, last_energies: list[float]) -> None:
        super().__init__(message)
        self.chains = chains
        self.step = step
        self.last_energies = last_energies


def bounded_int(value: Any, name: str, caller: str, low: int = 0, high: int | None = None) -> int:
    """`value` as an int with low <= value < high; NumPy integers pass, bools, floats, strings and tensors do not."""
    if isinstance(value, bool) or not isinstance(value, int | numbers.Integral):
        raise TypeError(f"{caller}: {name} must be {_range_text(low, high)}, got {value!r}")
    number = int(value)
    if number < low or (high is not None and number >= high):
        raise ValueError(f"{caller}: {name} must be {_range_text(low, high)}, got {number}")
    return number


def bounded_ints(values: Any, name: str, caller: str, low: int = 0) -> tuple[int, ...]:
    """A sequence of ints, each as `bounded_int` has it."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"{caller}: {name} must be a sequence of ints, got {values!r}")
    return tuple(bounded_int(value, name, caller, low) for value in values)


def _range_text(low: int, high: int | None) -> str:
    if high is None:
        return f"an int >= {low}"
    return f"an int in [{low}, {high if high < 2**16 else f'2**{high.bit_length() - 1}'})"


class Key:
    """All the random state there is: the draws of step `step`, for chains numbered from `first_chain`, under `seed`.

    Noise is a pure function of (seed, step, chain, element, stream): see csrc/core/philox.h. The three numbers travel as
    one int64 tensor `key.tensor` = [seed, step, first_chain] (the seed's 64 bits as they are), so that compiled graphs do
    not specialise on them and captured CUDA graphs read them afresh at each replay.

    Args:
        seed: 0 <= seed < 2**64.
        step: 0 <= step < 2**48, the next step to be drawn.
        first_chain: 0 <= first_chain < 2**40, the number of row 0; a shard that owns rows [k, k + n) uses k.

    Raises:
        TypeError, ValueError: for anything but an integer in its range.
    """

    __slots__ = ("tensor",)

    def __init__(self, seed: int, step: int = 0, first_chain: int = 0) -> None:
        seed = bounded_int(seed, "seed", "Key", high=2**SEED_BITS)
        step = bounded_int(step, "step", "Key", high=2**STEP_BITS)
        first_chain = bounded_int(first_chain, "first_chain", "Key", high=2**CHAIN_BITS)
        signed_seed = seed - 2**64 if seed >= 2**63 else seed
        self.tensor = torch.tensor([signed_seed, step, first_chain], dtype=torch.int64)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Key:
        """The key that `tensor`, an int64 tensor [seed, step, first_chain], holds. Not copied and not read."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Key.from_tensor: tensor must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype != torch.int64 or tensor.shape != (3,):
            raise ValueError(f"Key.from_tensor: tensor must be int64 of shape (3,), got {tensor.dtype} of shape {tuple(tensor.shape)}")
        key = cls.__new__(cls)
        key.tensor = tensor
        return key

    @classmethod
    def from_seed(cls, seed: int | Key | None, device: torch.device | str | None = None) -> Key:
        """The key of a `seed=` argument: a Key goes on where it stands, None draws a seed from torch's default generator."""
        if isinstance(seed, Key):
            return seed.to(device)
        if seed is None:
            seed = int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)) % 2**64
        return cls(seed).to(device)

    @property
    def seed(self) -> int:
        return int(self.tensor[0]) % 2**64

    @property
    def step(self) -> int:
        return int(self.tensor[1])

    @property
    def first_chain(self) -> int:
        return int(self.tensor[2])

    def advance(self, num_steps: int = 1) -> Key:
        """The key `num_steps` steps on, 0 <= num_steps < 2**48."""
        num_steps = bounded_int(num_steps, "num_steps", "Key.advance", high=2**STEP_BITS)
        tensor = self.tensor.clone()
        tensor[1] += num_steps
        return Key.from_tensor(tensor)

    def steps(self, num_steps: int) -> Tensor:
        """The keys of the next `num_steps` steps, (num_steps, 3), without a host sync."""
        if num_steps == 1:
            return self.tensor[None]
        keys = self.tensor.repeat(num_steps, 1)
        keys[:, 1] += torch.arange(num_steps, dtype=torch.int64, device=keys.device)
        return keys

    def shard(self, first_chain: int) -> Key:
        """The same key for rows that start `first_chain` chains further on."""
        return Key(self.seed, self.step, self.first_chain + first_chain).to(self.tensor.device)

    def to(self, device: torch.device | str | None) -> Key:
        """The same key on `device` (None: where it is)."""
        if device is None or self.tensor.device == torch.device(device):
            return self
        return Key.from_tensor(self.tensor.to(device))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and bool(torch.equal(self.tensor.cpu(), other.tensor.cpu()))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Key(seed={self.seed}, step={self.step}, first_chain={self.first_chain})"


@runtime_checkable
class State(Protocol):
    """What the next step needs: the chains, E and, where the sampler uses it, ∇E at them, and the key of the next draw."""

    @property
    def x(self) -> Tensor: ...  # (num_chains, *event)
    @property
    def energy(self) -> Tensor: ...  # (num_chains,)
    @property
    def key(self) -> Key: ...


@runtime_checkable
class Info(Protocol):
    """What diagnostics want and the next step does not."""

    @property
    def is_diverged(self) -> Tensor: ...  # (num_chains,) bool


StateT = TypeVar("StateT")
InfoT_co = TypeVar("InfoT_co", covariant=True)


class Sampler(Protocol[StateT, InfoT_co]):
    """A transition kernel: hyperparameters only, no energy and no state, so one object serves every model, rank and thread."""

    def init(self, energy: EnergyFn, x: Tensor, *, seed: int | Key | None = None) -> StateT: ...
    def step(self, energy: EnergyFn, state: StateT) -> tuple[StateT, InfoT_co]: ...
    def advance(self, energy: EnergyFn, state: StateT, num_steps: int) -> tuple[StateT, InfoT_co]: ...
    def __call__(self, energy: EnergyFn, x: Tensor, num_steps: int, *, seed: int | Key | None = None) -> Tensor: ...
