"""Block Gibbs sampling of restricted Boltzmann machines: all hidden units given the visible ones, then all visible ones given the hidden.

Geman & Geman 1984; Hinton 2002. Started at data and run for k steps it gives the negatives of CD-k; with the state kept from one update of
the parameters to the next, those of persistent contrastive divergence (Tieleman 2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmcore.discrete import BINARY, DiscreteInfo, DiscreteState, NativeRun, check_states, encode, start_energy
from ebmcore.gradients import check_state
from ebmcore.types import STEP_BITS, Key, bounded_int


@dataclass(frozen=True)
class BlockGibbs:
    """One step: h ~ p(h | v), then v ~ p(v | h). The state holds v alone, whose energy is the free energy.

    Leaves exp(-F(v)) invariant exactly, F(v) = -ln Σ_h exp(-E(v, h)).

    `energy` is a `BernoulliRBM`, a `GaussianRBM` or any callable that has their methods `sample_hidden(visible, *, key)` and
    `sample_visible(hidden, *, key)`, which draw from streams of their own; visible units are of {0, 1} if it has an attribute `alphabet`,
    and real otherwise.
    """

    @torch.inference_mode(False)
    def init(self, energy: Any, x: Tensor, *, seed: int | Key | None = None) -> DiscreteState:
        """The state at visible units x, (num_chains, num_visible), and their free energies.

        Args:
            seed: an int, a `Key` that goes on where it stands, or None to draw one from torch's generator.

        Raises:
            TypeError: `energy` cannot be sampled in blocks, or x is no tensor of the kind that its visible units are.
            ValueError: x has another shape, or a unit outside {0, 1}, named with its index.
            DivergenceError: a free energy is not finite.
        """
        visible = _own(energy, x)
        if len(x) == 0:
            return DiscreteState(visible.to(x.dtype), torch.zeros(0, device=x.device), Key.from_seed(0 if seed is None else seed, x.device))
        return DiscreteState(visible.to(x.dtype), start_energy(energy, visible, "BlockGibbs"), Key.from_seed(seed, x.device))

    def step(self, energy: Any, state: DiscreteState) -> tuple[DiscreteState, DiscreteInfo]:
        """One step from `state`; the same state gives the same result."""
        return self.advance(energy, state, 1)

    @torch.inference_mode(False)
    def advance(self, energy: Any, state: DiscreteState, num_steps: int) -> tuple[DiscreteState, DiscreteInfo]:
        """`num_steps` steps, with the bits of that many calls of `step`; the free energy is evaluated once, at the end."""
        num_steps = bounded_int(num_steps, "num_steps", "BlockGibbs.advance", high=2**STEP_BITS)
        _check_energy(energy)
        num_flips = torch.zeros(len(state.x), dtype=torch.int64, device=state.x.device)
        visible, value = state.x, state.energy
        if num_steps > 0 and len(visible) > 0:
            visible = _encoded(energy, visible)
            visible, num_flips = _run(energy, visible, state.key, num_steps, count_flips=True)
            value = start_energy(energy, visible, "BlockGibbs")
        always = torch.ones(len(num_flips), dtype=torch.bool, device=num_flips.device)
        info = DiscreteInfo(~always, always, always.to(value.dtype), num_flips, value - state.energy)
        return DiscreteState(visible.to(state.x.dtype), value, state.key.advance(num_steps)), info

    @torch.inference_mode(False)
    def __call__(self, energy: Any, x: Tensor, num_steps: int, *, seed: int | Key | None = None) -> Tensor:
        """Visible units after `num_steps` steps from x, the same as init and advance give; no energy is evaluated. Errors as `init`."""
        num_steps = bounded_int(num_steps, "num_steps", "BlockGibbs", high=2**STEP_BITS)
        visible = _own(energy, x)
        if num_steps > 0 and len(x) > 0:
            visible, _ = _run(energy, visible, Key.from_seed(seed, x.device), num_steps, count_flips=False)
        return visible.to(x.dtype)


def _run(energy: Any, visible: Tensor, key: Key, num_steps: int, *, count_flips: bool) -> tuple[Tensor, Tensor]:
    """Steps from `visible`, which is ours, and the visible units that changed in them."""
    if hasattr(energy, "native_chain"):
        native: NativeRun | None = energy.native_chain("block_gibbs", visible, key.tensor, num_steps, count_flips=count_flips)
        if native is not None:
            return visible, native.num_flips
    num_flips = torch.zeros(len(visible), dtype=torch.int64, device=visible.device)
    for step_key in key.steps(num_steps).unbind():
        before = visible
        visible = energy.sample_visible(energy.sample_hidden(before, key=step_key), key=step_key)
        if count_flips:
            num_flips += (visible != before).sum(1)
    return visible, num_flips


def _check_energy(energy: Any) -> None:
    if not (hasattr(energy, "sample_hidden") and hasattr(energy, "sample_visible")):
        name = type(energy).__name__
        raise TypeError(f"BlockGibbs: energy must have sample_hidden and sample_visible, as energies.BernoulliRBM has, got {name}")


def _encoded(energy: Any, x: Tensor) -> Tensor:
    """A copy of x in the dtype in which the layers are computed, that of the energy's parameters."""
    dtype = next((p.dtype for p in energy.parameters()), None) if isinstance(energy, torch.nn.Module) else None
    if dtype is None:
        return encode(x, BINARY)
    with torch.no_grad():
        return x.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def _own(energy: Any, x: Tensor) -> Tensor:
    _check_energy(energy)
    if hasattr(energy, "alphabet"):
        check_states(x, energy.alphabet, "BlockGibbs")
    else:
        check_state(x, "BlockGibbs")
    wanted = getattr(energy, "num_visible", x.shape[-1])
    if x.dim() != 2 or x.shape[1] != wanted:
        raise ValueError(f"BlockGibbs: x must have shape (num_chains, {wanted}), got {tuple(x.shape)}")
    return _encoded(energy, x)
