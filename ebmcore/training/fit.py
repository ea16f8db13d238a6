"""Training against samples: draw chains, sample, compare, write back. One loop; energy, loss and sampler come in as arguments.

All randomness is a function of (seed, iteration) and of the buffer's key, so that a run killed and resumed from its checkpoint
ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ebmcore import ops
from ebmcore.training.checkpoint import Checkpoint
from ebmcore.training.replay_buffer import ReplayBuffer
from ebmcore.types import DivergenceError, EnergyFn, Key, Sampler, bounded_int

Loss = Callable[[EnergyFn, Tensor, Tensor], Tensor]
"""(energy, x_data, x_model) -> scalar, for instance `losses.contrastive_divergence`."""


class Writer(Protocol):
    """TensorBoard's SummaryWriter, or anything else with this method."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> Any: ...


@dataclass(frozen=True)
class FitResult:
    """What a run leaves behind.

    Attributes:
        energy: the trained module, the one that was passed in.
        ema: a copy with the averaged parameters, in eval mode; None without ema_decay.
        optimizer: with its state.
        history: the telemetry, one dict per logged iteration, after a resume from iteration 0 on.
    """

    energy: nn.Module
    ema: nn.Module | None
    optimizer: torch.optim.Optimizer
    history: list[dict[str, float]]


def fit(
    energy: nn.Module,
    data: Tensor,
    *,
    loss: Loss,
    sampler: Sampler[Any, Any],
    buffer: ReplayBuffer | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    num_epochs: int = 10,
    num_iterations: int | None = None,
    num_steps: int = 60,
    batch_size: int = 64,
    ema_decay: float | None = None,
    max_grad_norm: float | None = None,
    data_noise_std: float = 0.0,
    seed: int | Key | None = None,
    progress: bool = False,
    writer: Writer | None = None,
    log_every: int = 10,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> FitResult:
    """Train `energy` in place on `data`, with negatives from `sampler(energy, x0, num_steps, seed=key)`.

    Chains start in the buffer (persistent: Tieleman 2008) or, without one, at the batch of data (CD-k: Hinton 2002). While they
    run, the energy is in eval mode and its parameters need no gradient; then, also after an error or Ctrl-C, both are as before.
    The loss sees the energy in the mode that the caller left it in. An iteration that raises changes neither parameters nor chains.

    Telemetry, at iterations 0, log_every, 2·log_every, ...: `loss`; `energy_gap`, mean E(model) - mean E(data) in eval mode before the
    update; `grad_norm`, before clipping; `num_reinit`, chains that the buffer started afresh; `effective_temperature`, if the sampler
    has one number for it. Between them nothing but the checks for finite numbers is read from the device.

    Args:
        energy: (n, *event) -> (n,). What it draws from torch's own generator (dropout) is not covered by the checkpoint.
        data: (num_data, *event), finite; its batches are moved to the device of the parameters. Reshuffled for each epoch; the
            rows that do not fill a batch sit that epoch out.
        loss: (energy, x_data, x_model) -> scalar.
        sampler: draws from the next num_steps steps of the key, which then moves on by as many.
        buffer: on the device of the parameters, dtype and events as in data.
        optimizer: default Adam(lr=1e-4, betas=(0.0, 0.999)): no momentum, the negatives move with the parameters.
        scheduler: of that optimizer; stepped at each iteration.
        num_epochs, num_iterations: length of the whole run, resumed parts included; num_iterations wins where given.
        ema_decay: in [0, 1), for `torch.optim.swa_utils.AveragedModel`; its first average are the parameters after iteration 0.
        max_grad_norm: > 0, for `torch.nn.utils.clip_grad_norm_`.
        data_noise_std: Gaussian noise added to each batch, finite and >= 0.
        seed: int, Key or None (on resume the checkpoint's, else drawn from torch's default generator).
        progress: show a tqdm bar.
        writer: receives add_scalar(tag, value, iteration).
        checkpoint: file for the whole run, replaced at the end and after each `checkpoint_every` iterations.
        resume: go on from `checkpoint` if the file exists, else begin.

    Raises:
        TypeError, ValueError: for arguments out of their range or at odds with one another.
        DivergenceError: the sampler's, loss's or buffer's, with the iteration in front, or for a NaN or infinite gradient.
        CheckpointError: the file is damaged or of another run; nothing was restored.
    """
    device = _check_data(energy, data, buffer, batch_size)
    _check_settings(ema_decay, max_grad_norm, data_noise_std, checkpoint, checkpoint_every, resume)
    num_steps, log_every = bounded_int(num_steps, "num_steps", "fit", low=1), bounded_int(log_every, "log_every", "fit", low=1)
    if num_iterations is None:
        num_iterations = bounded_int(num_epochs, "num_epochs", "fit", low=1) * (len(data) // batch_size)
    num_iterations = bounded_int(num_iterations, "num_iterations", "fit", low=1)
    if optimizer is None:
        optimizer = torch.optim.Adam(energy.parameters(), lr=1e-4, betas=(0.0, 0.999))
    average = None
    if ema_decay is not None:
        average = AveragedModel(energy, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))

    parts: dict[str, Any] = {"energy": energy, "optimizer": optimizer, "average": average, "buffer": buffer, "scheduler": scheduler}
    file = None if checkpoint is None else Checkpoint(checkpoint, **{name: part for name, part in parts.items() if part is not None})
    run: dict[str, Any] = {"batch_size": batch_size, "num_data": len(data)}
    if seed is not None:
        run["seed"] = Key.from_seed(seed).tensor.tolist()
    start, history = 0, []
    if file is not None and resume and file.path.exists():
        values = file.load(**run)
        start, history, run["seed"], key = values["iteration"], values["history"], values["seed"], Key.from_tensor(values["key"])
    else:
        key = Key.from_seed(seed)
        run["seed"] = key.tensor.tolist()
    key, data_key = key.to(device), Key.from_tensor(torch.tensor(run["seed"]))

    batches: Any = _batches(data, batch_size, data_noise_std, data_key, range(start, num_iterations), device)
    if progress:
        batches = _progress_bar(batches, start, num_iterations)
    for iteration, x in batches:
        try:
            slots, x0 = (None, x) if buffer is None else buffer.draw(batch_size)
            with _sampling(energy):
                x_model = sampler(energy, x0, num_steps, seed=key)
            value = loss(energy, x, x_model)
            optimizer.zero_grad()
            value.backward()
            grad_norm = nn.utils.clip_grad_norm_(energy.parameters(), math.inf if max_grad_norm is None else max_grad_norm)
            if not grad_norm.isfinite():
                raise DivergenceError(f"the gradient of the parameters has norm {grad_norm.item()}", chains=[], step=-1, last_energies=[])
            if buffer is not None and slots is not None:
                buffer.put(slots, x_model)
        except DivergenceError as error:
            error.args = (f"fit: iteration {iteration}: {error}",)
            raise
        if iteration % log_every == 0:
            row = {"loss": value.item(), "energy_gap": _energy_gap(energy, x, x_model), "grad_norm": grad_norm.item()}
            if buffer is not None:
                row["num_reinit"] = float(buffer.num_reinit)
            if isinstance(temperature := getattr(sampler, "effective_temperature", None), (int, float)):
                row["effective_temperature"] = temperature
            history.append({"iteration": iteration, **row})
            for tag, scalar in row.items():
                if writer is not None:
                    writer.add_scalar(tag, scalar, iteration)
            if hasattr(batches, "set_postfix"):
                batches.set_postfix(row, refresh=False)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if average is not None:
            average.update_parameters(energy)
        key = key.advance(num_steps)
        done = iteration + 1
        if file is not None and (done == num_iterations or (checkpoint_every is not None and done % checkpoint_every == 0)):
            file.save(iteration=done, key=key.tensor, history=history, **run)
    return FitResult(energy, None if average is None else average.module.eval(), optimizer, history)


def _batches(data: Tensor, batch_size: int, noise_std: float, key: Key, iterations: range, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Iterations and their batches, each a function of (key, iteration) alone: the order of an epoch has its step, noise its iteration's."""
    per_epoch = len(data) // batch_size
    order = torch.empty(0)
    for iteration in iterations:
        epoch, index = divmod(iteration, per_epoch)
        if index == 0 or iteration == iterations.start:
            u = ops.uniform((len(data),), key=key.advance(epoch), stream=ops.Stream.DATA, dtype=torch.float64)
            order = u.argsort(stable=True).to(data.device)
        x = data.detach()[order[index * batch_size : (index + 1) * batch_size]].to(device)
        if noise_std:
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            noise_key = key.advance(iteration).to(device)
            noise = ops.normal(tuple(x.shape), key=noise_key, stream=ops.Stream.DATA, first_block=1, dtype=dtype)  # block 0 orders the epoch
            x = x + (noise_std * noise).to(x.dtype)
        yield iteration, x


def _progress_bar(batches: Any, start: int, total: int) -> Any:
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        warnings.warn("fit: progress=True shows nothing without tqdm (pip install tqdm)", stacklevel=3)
        return batches
    return tqdm(batches, desc="fit", initial=start, total=total)


@contextmanager
def _sampling(energy: nn.Module) -> Iterator[None]:
    """Eval mode, and no gradients in the parameters, for the time being."""
    modes = [(module, module.training) for module in energy.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in energy.parameters()]
    try:
        energy.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _energy_gap(energy: nn.Module, x_data: Tensor, x_model: Tensor) -> float:
    with _sampling(energy), torch.no_grad():
        return float(energy(x_model).double().mean() - energy(x_data).double().mean())


def _check_data(energy: nn.Module, data: Tensor, buffer: ReplayBuffer | None, batch_size: int) -> torch.device:
    """Raise unless they go together; the device of the parameters."""
    if not isinstance(energy, nn.Module):
        raise TypeError(f"fit: energy must be a torch.nn.Module, got {type(energy).__name__}")
    device = next((parameter.device for parameter in energy.parameters()), None)
    if device is None:
        raise ValueError("fit: energy must have parameters, got none")
    if not isinstance(data, Tensor):
        raise TypeError(f"fit: data must be a torch.Tensor, got {type(data).__name__}")
    if data.dim() < 1 or bounded_int(batch_size, "batch_size", "fit", low=1) > len(data):
        raise ValueError(f"fit: data must have shape (num_data, *event) with num_data >= batch_size {batch_size}, got {tuple(data.shape)}")
    if not data.isfinite().all():
        raise ValueError("fit: data must be finite, got NaN or infinity")
    if buffer is not None:
        wanted, got = (tuple(data.shape[1:]), data.dtype, device), (buffer.event_shape, buffer.dtype, buffer.device)
        if wanted != got:
            raise ValueError(f"fit: buffer must have event shape, dtype and device {wanted}, got {got}")
        if batch_size > len(buffer):
            raise ValueError(f"fit: buffer must hold at least batch_size {batch_size} chains, got {len(buffer)}")
    return device


def _check_settings(
    ema_decay: float | None,
    max_grad_norm: float | None,
    data_noise_std: float,
    checkpoint: str | os.PathLike[str] | None,
    checkpoint_every: int | None,
    resume: bool,
) -> None:
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"fit: ema_decay must be in [0, 1), got {ema_decay}")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"fit: max_grad_norm must be > 0, got {max_grad_norm}")
    if not (math.isfinite(data_noise_std) and data_noise_std >= 0):
        raise ValueError(f"fit: data_noise_std must be finite and >= 0, got {data_noise_std}")
    if checkpoint_every is not None:
        bounded_int(checkpoint_every, "checkpoint_every", "fit", low=1)
    if checkpoint is None and (checkpoint_every is not None or resume):
        raise ValueError("fit: checkpoint must be given for checkpoint_every and resume, got None")
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise ValueError(f"fit: checkpoint must be in a folder that exists, got {checkpoint}")
