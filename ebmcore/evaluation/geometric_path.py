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
    """The energy E_β(x) = (1 - β) E_0(x) + β E_1(x), for samplers: no graph of the parameters is built.

    A call evaluates each part once, with its gradient if the call wants one; samplers of discrete states get differences of the parts' own.
    `last` keeps what the last call found, and at which states, so that β can change without another call.

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
        if torch.is_grad_enabled() and x.requires_grad:
            value: Tensor = _Mixture.apply(x, self)
            return value
        parts = Parts(evaluate(self.base, x), evaluate(self.energy, x), None, None)
        return self._keep(x, parts)[0]

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
        return (1 - self.beta) * base + self.beta * energy

    def _keep(self, x: Tensor, parts: Parts) -> tuple[Tensor, Tensor | None]:
        self.last = x.detach().clone(), parts  # a copy: samplers may write to theirs
        return self.mixed(parts)


class _Mixture(torch.autograd.Function):
    """E_β with a gradient that is there before it is asked for, from one forward and one backward of each part."""

    @staticmethod
    def forward(context: Any, x: Tensor, path: GeometricPath) -> Tensor:
        (base, base_grad), (energy, grad) = energy_and_grad(path.base, x), energy_and_grad(path.energy, x)
        value, slope = path._keep(x, Parts(base, energy, base_grad, grad))
        context.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (slope,) = context.saved_tensors
        return grad_output.reshape(-1, *[1] * (slope.dim() - 1)).to(slope.dtype) * slope, None
