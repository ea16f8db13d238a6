"""Persistent chains that outlive a batch (Tieleman 2008), some of them restarted at each draw (Du & Mordatch 2019).

A draw is a pure function of the buffer's key: one Philox block per slot ranks the slot and decides on its restart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.types import DivergenceError, Key, bounded_int

Init = Callable[[tuple[int, ...], Key], Tensor]
"""(shape, key) -> fresh chains of that shape; row i should depend on (key, i) only."""


class ReplayBuffer:
    """`capacity` chains on one device.

        slots, x0 = buffer.draw(64)             # distinct slots, uniformly among all of them
        buffer.put(slots, sampler(energy, x0, 60))

    A call that raises changes nothing. Draws do not read from the device, except with `labels`; `put` reads one flag.

    Args:
        capacity: number of slots.
        event_shape: shape of one chain.
        reinit_prob: each drawn chain starts afresh, independently, with this probability (exact to 2^-53).
        low, high: fresh chains are uniform on [low, high] in each element.
        init: fresh chains instead of the uniform ones. Called with (capacity, *event_shape) once and (n, *event_shape) per draw.
        dtype: of the chains handed out and taken back.
        storage: None keeps them as they are. "uint8" keeps the nearest (ties to even) of 256 evenly spaced levels from low to
            high, an error of at most (high - low) / 510 at each `put`; what is over half a level outside is refused.
        num_classes: slot i belongs to class i % num_classes for ever (`labels`), for conditional chains. A multiple of it is a good capacity.
        device: of the chains (default: torch's).
        seed: int, Key or None (drawn from torch's default generator). `key` goes one step on with each draw.

    Attributes:
        labels: (capacity,) int64 class of each slot, or None.
        key: of the next draw.
        num_reinit: 0-d int64 on the device, chains that the last draw started afresh.

    Raises:
        TypeError, ValueError: for arguments out of their range.
        DivergenceError: from `put`, for a NaN or infinite x; `chains` are the rows.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        capacity: int,
        event_shape: Sequence[int],
        *,
        reinit_prob: float = 0.05,
        low: float = 0.0,
        high: float = 1.0,
        init: Init | None = None,
        dtype: torch.dtype = torch.float32,
        storage: Literal["uint8"] | None = None,
        num_classes: int | None = None,
        device: torch.device | str | None = None,
        seed: int | Key | None = None,
    ) -> None:
        self.capacity = bounded_int(capacity, "capacity", "ReplayBuffer", low=1)
        self.event_shape = tuple(bounded_int(size, "event_shape", "ReplayBuffer", low=1) for size in event_shape)
        if not 0 <= reinit_prob <= 1:
            raise ValueError(f"ReplayBuffer: reinit_prob must be in [0, 1], got {reinit_prob}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"ReplayBuffer: low and high must be finite with low < high, got {low} and {high}")
        if storage not in (None, "uint8"):
            raise ValueError(f"ReplayBuffer: storage must be None or 'uint8', got {storage!r}")
        if not dtype.is_floating_point and (init is None or storage is not None):
            raise TypeError(f"ReplayBuffer: dtype must be floating unless init is given and storage is not, got {dtype}")
        if num_classes is not None and bounded_int(num_classes, "num_classes", "ReplayBuffer", low=1) > self.capacity:
            raise ValueError(f"ReplayBuffer: num_classes must be at most capacity {capacity}, got {num_classes}")
        self.reinit_prob, self.low, self.high, self.init, self.dtype, self.num_classes = reinit_prob, low, high, init, dtype, num_classes

        self.device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
        self._levels = torch.linspace(low, high, 256, dtype=dtype, device=self.device) if storage else None
        if self._levels is not None and self._encode(self._levels).tolist() != [*range(256)]:
            raise ValueError(f"ReplayBuffer: low and high must leave 256 levels apart in {dtype}, got {low} and {high}")
        self.labels = None if num_classes is None else torch.arange(self.capacity, device=self.device) % num_classes
        key = Key.from_seed(seed, self.device)
        fresh = self._fresh(self.capacity, key)
        self._check_values(fresh, self.capacity, "init")
        self._values = self._stored(self._encode(fresh)).clone()
        self.key = key.advance()  # or the first draw would start its fresh chains where slots 0, 1, ... already are
        self.num_reinit = torch.zeros((), dtype=torch.int64, device=self.device)

    def __len__(self) -> int:
        return self.capacity

    @property
    def values(self) -> Tensor:
        """All chains, (capacity, *event), a copy."""
        return self._decode(self._values).clone()

    @torch.no_grad()
    def draw(self, n: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distinct slots, every choice equally likely, and where their chains go on.

        Args:
            n: 1 <= n <= capacity.
            labels: (n,) int64, the class of each chain (reads from the device); None draws among all slots alike.

        Returns:
            slots (n,) int64 and x0 (n, *event), a copy. The buffer itself keeps a chain that starts afresh until `put`.
        """
        if bounded_int(n, "n", "ReplayBuffer.draw", low=1) > self.capacity:
            raise ValueError(f"ReplayBuffer.draw: n must be at most capacity {self.capacity}, got {n}")
        u = ops.uniform((self.capacity, 2), key=self.key, stream=ops.Stream.BUFFER, dtype=torch.float64, device=self.device)
        slots = u[:, 0].topk(n, largest=False).indices if labels is None else self._slots_of(labels, n, u[:, 0])
        is_fresh = u[slots, 1] < self.reinit_prob
        fresh = self._fresh(n, self.key)
        x0 = torch.where(is_fresh.view(n, *(1 for _ in self.event_shape)), fresh, self._decode(self._values[slots]))
        self.key, self.num_reinit = self.key.advance(), is_fresh.sum()
        return slots, x0

    @torch.no_grad()
    def put(self, slots: Tensor, x: Tensor) -> None:
        """Write x (n, *event) to `slots` (n,) int64: in range, and each at most once."""
        n = slots.numel() if isinstance(slots, Tensor) else 0
        self._check_kind(slots, torch.int64, (n,), "put: slots")
        self._check_kind(x, self.dtype, (n, *self.event_shape), "put: x")
        level = self._encode(x)
        ordered = slots.sort().values
        is_in_range, is_repeated = (slots >= 0) & (slots < self.capacity), ordered[1:] == ordered[:-1]
        if not (is_in_range.all() & ~is_repeated.any() & self._is_storable(x, level).all()):  # one read of the device
            if not is_in_range.all():
                raise ValueError(f"ReplayBuffer.put: slots must be in [0, {self.capacity}), got {slots[~is_in_range][0]}")
            if is_repeated.any():
                raise ValueError(f"ReplayBuffer.put: slots must be distinct, got {ordered[1:][is_repeated][0]} more than once")
            self._check_values(x, n, "put")
        self._values.index_copy_(0, slots, self._stored(level))

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next draw depends on."""
        state = {"values": self._values, "labels": self.labels, "levels": self._levels, "key": self.key.tensor}
        return {name: None if tensor is None else tensor.clone() for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, to the same bits. ValueError, and nothing changed, unless this buffer was made like the one it is of."""
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise ValueError(f"ReplayBuffer.load_state_dict: state must have the keys {sorted(mine)}, got {sorted(state)}")
        for name, tensor in mine.items():
            if _kind(state[name]) != _kind(tensor):
                raise ValueError(f"ReplayBuffer.load_state_dict: {name} must be {_kind(tensor)}, got {_kind(state[name])}")
        for name in ("labels", "levels"):
            if mine[name] is not None and not torch.equal(mine[name], state[name].to(self.device)):
                raise ValueError(f"ReplayBuffer.load_state_dict: {name} must be those of this buffer, got others")
        if not state["values"].isfinite().all():
            raise ValueError("ReplayBuffer.load_state_dict: values must be finite, got NaN or infinity")
        self._values.copy_(state["values"])
        self.key = Key.from_tensor(state["key"].to(self.device, copy=True))

    def _fresh(self, n: int, key: Key) -> Tensor:
        shape = (n, *self.event_shape)
        if self.init is not None:
            x = self.init(shape, key)
            self._check_kind(x, self.dtype, shape, "init: x")
            return x
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        u = ops.uniform(shape, key=key, stream=ops.Stream.INIT, dtype=wide, device=self.device)
        return (self.low + (self.high - self.low) * u).to(self.dtype)

    def _slots_of(self, labels: Tensor, n: int, rank: Tensor) -> Tensor:
        if self.labels is None or self.num_classes is None:
            raise ValueError("ReplayBuffer.draw: labels need a buffer with num_classes, got one without")
        self._check_kind(labels, torch.int64, (n,), "draw: labels")
        if not (is_known := (labels >= 0) & (labels < self.num_classes)).all():
            raise ValueError(f"ReplayBuffer.draw: labels must be in [0, {self.num_classes}), got {labels[~is_known][0]}")
        asked, owned = (one_class.bincount(minlength=self.num_classes) for one_class in (labels, self.labels))
        if (is_short := asked > owned).any():
            label = int(is_short.nonzero()[0])
            raise ValueError(f"ReplayBuffer.draw: labels must name class {label} at most {owned[label]} times, got {asked[label]}")
        # Slots in random order, then grouped by class, of which the rows of that class take the last ones.
        by_rank = rank.argsort(stable=True)
        grouped = by_rank[self.labels[by_rank].argsort(stable=True)]
        rows = labels.argsort(stable=True)
        skipped = (owned - asked).cumsum(0)[labels[rows]]
        slots = torch.empty_like(labels)
        slots[rows] = grouped[torch.arange(n, device=self.device) + skipped]
        return slots

    def _encode(self, x: Tensor) -> Tensor:
        """The level of x, not yet cut to 0..255; x itself without levels."""
        if self._levels is None:
            return x
        wide = x.to(torch.float64)
        return ((wide - self.low) * (255 / (self.high - self.low))).round()

    def _stored(self, level: Tensor) -> Tensor:
        return level if self._levels is None else level.to(torch.uint8)

    def _decode(self, stored: Tensor) -> Tensor:
        return stored if self._levels is None else self._levels[stored.long()]

    def _is_storable(self, x: Tensor, level: Tensor) -> Tensor:
        return x.isfinite() if self._levels is None else (level >= 0) & (level <= 255)  # false for NaN

    def _check_kind(self, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> None:
        if not isinstance(x, Tensor) or x.dtype != dtype:
            raise TypeError(f"ReplayBuffer.{name} must be a {dtype} tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if x.shape != shape or x.device != self.device:
            raise ValueError(f"ReplayBuffer.{name} must have shape {shape} on {self.device}, got {tuple(x.shape)} on {x.device}")

    def _check_values(self, x: Tensor, n: int, caller: str) -> None:
        is_bad = (~x.isfinite()).reshape(n, -1).any(dim=1)
        if is_bad.any():
            rows = is_bad.nonzero().flatten().tolist()
            message = f"ReplayBuffer.{caller}: x must be finite, got NaN or infinity in {len(rows)} rows {rows[:8]} (first 8 shown)"
            raise DivergenceError(message, chains=rows, step=-1, last_energies=[math.nan] * len(rows))
        if not self._is_storable(x, self._encode(x)).all():
            got = f"[{x.min().item()}, {x.max().item()}]"
            raise ValueError(f"ReplayBuffer.{caller}: x must be in [{self.low}, {self.high}] for storage='uint8', got values in {got}")


def _kind(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
