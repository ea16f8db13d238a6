"""`sample`: warm-up, thinning and recording around any sampler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore.types import EnergyFn, Key, Sampler, bounded_int

_ARVIZ_NAMES = {"acceptance_prob": "acceptance_rate", "is_diverged": "diverging"}


class Trace(NamedTuple):
    """What `sample` kept.

    Attributes:
        x: (num_kept, num_chains, *event), or what `record` returned, stacked if it returned tensors and a list otherwise.
        state: after the last step; `sampler.advance(energy, trace.state, n)` goes on from it.
        info: the sampler's Info with a leading axis num_kept: of the steps between two kept states.
    """

    x: Any
    state: Any
    info: Any

    def to_arviz(self) -> Any:
        """An ArviZ DataTree (the extra "diagnostics"), for its summaries and plots.

        `posterior` holds x as (chain, draw, *event) under "x", or what `record` returned: under "x" if that was tensors (num_chains, ...), under
        its own names if it was dicts of them. `sample_stats` holds what the sampler's Info says of every chain at every draw, with ArviZ's own
        names where it has some ("acceptance_rate", "diverging"). Everything is copied to the CPU.

        Raises:
            ImportError: arviz-base is not installed.
            TypeError: `record` returned something else.
        """
        try:
            from arviz_base import from_dict
        except ImportError as error:
            raise ImportError("Trace.to_arviz: needs arviz-base (pip install ebmcore[diagnostics])") from error
        if isinstance(self.x, Tensor):
            draws = {"x": self.x}
        elif self.x and all(isinstance(item, dict) for item in self.x):
            draws = {name: torch.stack([item[name] for item in self.x]) for name in self.x[0]}
        else:
            raise TypeError("Trace.to_arviz: x must be a tensor or a list of dicts of tensors; let record return one of these")
        if any(value.dim() < 2 for value in draws.values()):
            raise TypeError("Trace.to_arviz: x must be of shape (num_kept, num_chains, ...); let record keep the axis of the chains")
        leading = next(iter(draws.values())).shape[:2]
        info = {} if self.info is None else self.info._asdict()
        stats = {_ARVIZ_NAMES.get(name, name): value for name, value in info.items() if isinstance(value, Tensor) and value.shape[:2] == leading}
        groups = {"posterior": draws, "sample_stats": stats} if stats else {"posterior": draws}
        arrays = {group: {name: value.detach().cpu().transpose(0, 1).numpy() for name, value in each.items()} for group, each in groups.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found chain dimension to be longer than draw dimension")  # as it often is
            return from_dict(arrays)


def sample(
    sampler: Sampler[Any, Any],
    energy: EnergyFn,
    x: Tensor,
    num_steps: int,
    *,
    num_warmup: int = 0,
    thinning: int = 1,
    seed: int | Key | None = None,
    record: Callable[[Any, Any], Any] | None = None,
    progress: bool = False,
) -> Trace:
    """Run chains from x and keep every `thinning`-th state of `num_steps` steps that follow `num_warmup` dropped ones.

    Args:
        sampler: any sampler; the trace targets what it targets.
        energy: (num_chains, *event) -> (num_chains,).
        x: (num_chains, *event), not modified.
        num_steps: steps after warm-up; num_kept = num_steps // thinning states are kept.
        num_warmup: steps before.
        thinning: steps between two kept states, at most num_steps.
        seed: as `sampler.init`.
        record: (state, info) -> what to keep, instead of state.x.
        progress: show a bar (needs tqdm).

    Ctrl-C stops between two energy evaluations. The KeyboardInterrupt then carries what was done so far as `.trace`, its state good to go
    on from.

    Raises:
        TypeError, ValueError: for counts that are not as above.
        MemoryError: the kept states do not fit; thin more, or record less.
    """
    num_steps = bounded_int(num_steps, "num_steps", "sample")
    num_warmup = bounded_int(num_warmup, "num_warmup", "sample")
    thinning = bounded_int(thinning, "thinning", "sample", low=1)
    if thinning > max(num_steps, 1):
        raise ValueError(f"sample: thinning must be at most num_steps={num_steps}, got {thinning}: nothing would be kept")
    state = sampler.init(energy, x, seed=seed)
    num_kept = num_steps // thinning
    kept: Any = []
    if record is None:
        try:
            kept = torch.empty((num_kept, *state.x.shape), dtype=state.x.dtype, device=state.x.device)
        except RuntimeError as error:
            size = num_kept * state.x.numel() * state.x.element_size()
            raise MemoryError(f"sample: {num_kept} states need {size:.3g} bytes; raise thinning or pass record=") from error
    infos: list[Any] = []
    num_done = 0
    try:
        with _progress_bar(num_warmup + num_steps, progress) as update:
            for count in _slices(num_warmup, 100):
                state, _ = sampler.advance(energy, state, count)
                update(count)
            for i in range(num_kept):
                new_state, info = sampler.advance(energy, state, thinning)
                infos.append(info)
                if record is None:
                    kept[i] = new_state.x
                else:
                    kept.append(record(new_state, info))
                state, num_done = new_state, i + 1  # together: an interrupt finds as many kept states as the state has been through
                update(thinning)
            rest = num_steps - num_kept * thinning
            state, _ = sampler.advance(energy, state, rest)
            update(rest)
    except KeyboardInterrupt as interrupt:
        interrupt.trace = _trace(kept[:num_done], state, infos[:num_done])  # type: ignore[attr-defined]
        raise
    return _trace(kept, state, infos)


def _trace(kept: Any, state: Any, infos: list[Any]) -> Trace:
    if isinstance(kept, list) and kept and all(isinstance(item, Tensor) for item in kept):
        kept = torch.stack(kept)
    info = type(infos[0])(*map(torch.stack, zip(*infos, strict=True))) if infos else None
    return Trace(kept, state, info)


def _slices(total: int, size: int) -> Iterator[int]:
    for begin in range(0, total, size):
        yield min(size, total - begin)


@contextmanager
def _progress_bar(total: int, wanted: bool) -> Iterator[Callable[[int], Any]]:
    if not wanted:
        yield lambda _: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        warnings.warn("sample: progress=True needs tqdm (pip install tqdm)", stacklevel=4)
        yield lambda _: None
        return
    with tqdm(total=total, unit="step") as bar:
        yield bar.update
