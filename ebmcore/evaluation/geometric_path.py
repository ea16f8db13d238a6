"""The geometric path between two energies, p_β ∝ p_0^(1-β) p_1^β, whose parts are evaluated once however often β changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore.discrete import alphabet_of, encode, energy_and_differences
from ebmcore.gradients import energy_and_grad, evaluate
from ebmcore.types import EnergyFn


class Parts(NamedTuple):
    """Both ends of a path at some states.

    Attributes:
        base_energy, energy: E_0 and E_1, (num_chains,).
        base_slope, slope: their gradients, or their differences (see `DiscreteState`), or None where neither was asked for.
    """

    base_energy: Tensor
    energy: Tensor
    base_slope: Tensor | None
    slope: Tensor | None


class GeometricPath:
    """The energy E_β(x) = (1 - β) E_0(x) + β E_1(x).

    A call evaluates each part once, and `gradients.energy_and_grad` and `discrete.energy_and_differences` do so in the parts' own ways. `last`
    keeps what the last of them found, and at which states, so that β can change without another one.

    Args:
        base: E_0, (num_chains, *event) -> (num_chains,).
        energy: E_1, likewise, of the same alphabet if it has one.
        beta: in [0, 1]; may be set later, too.

    Raises:
        ValueError: the alphabets differ.
    """

    def __init__(self, base: EnergyFn, energy: EnergyFn, beta: float = 0.0) -> None:
        if alphabet_of(base) != alphabet_of(energy):
            raise ValueError(f"GeometricPath: base must have the alphabet of energy, {alphabet_of(energy)}, got {alphabet_of(base)}")
        if hasattr(energy, "alphabet"):
            self.alphabet = alphabet_of(energy)
        self.base, self.energy, self.beta = base, energy, beta
        self.last: tuple[Tensor, Parts] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        base, energy = self.base(x), self.energy(x)
        self._keep(x, Parts(base.detach(), energy.detach(), None, None))
        return self._mix(base, energy)

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `gradients.energy_and_grad` asks of energies: one forward and one backward of each part, and no graph of their mixture."""
        (base, base_grad), (energy, grad) = energy_and_grad(self.base, x), energy_and_grad(self.energy, x)
        value, slope = self._keep(x, Parts(base, energy, base_grad, grad))
        assert slope is not None
        return value, slope

    def energy_and_differences(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """What `discrete.energy_and_differences` asks of energies: of the parts, each in its own way, one evaluation of each."""
        base, energy = energy_and_differences(self.base, states), energy_and_differences(self.energy, states)
        value, differences = self._keep(states, Parts(base[0], energy[0], base[1], energy[1]))
        assert differences is not None
        return value, differences

    def mixed(self, parts: Parts) -> tuple[Tensor, Tensor | None]:
        """E_β of parts, and its gradient or differences where they have them."""
        slope = None if parts.base_slope is None or parts.slope is None else self._mix(parts.base_slope, parts.slope)
        return self._mix(parts.base_energy, parts.energy), slope

    def parts_of(self, chains: Any) -> Parts:
        """The parts at the states of a sampler, evaluated anew, with what the sampler carries of them."""
        if getattr(chains, "grad", None) is not None:
            energy_and_grad(self, chains.x)
        elif getattr(chains, "differences", None) is not None:
            self.energy_and_differences(encode(chains.x, alphabet_of(self)))
        else:
            evaluate(self, chains.x)
        assert self.last is not None
        return self.last[1]

    def _mix(self, base: Tensor, energy: Tensor) -> Tensor:
        if self.beta in (0.0, 1.0):  # where the other one may be infinite
            return energy if self.beta else base
        return torch.add((1 - self.beta) * base, energy, alpha=self.beta)

    def _keep(self, x: Tensor, parts: Parts) -> tuple[Tensor, Tensor | None]:
        self.last = x.detach().clone(), parts  # a copy: samplers may write to theirs
        return self.mixed(parts)
