"""Cluster updates of Ising and Potts models."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from ebmcore.discrete_sampler import Chains, DiscreteSampler, Report
from ebmcore.types import Alphabet, EnergyFn


@dataclasses.dataclass(frozen=True)
class SwendsenWang(DiscreteSampler):
    """Swendsen-Wang cluster updates, targets exp(-E) exactly and never rejects (Swendsen & Wang 1987, Phys. Rev. Lett. 58, 86).

    Only for energies that have such chains themselves: `energies.Ising` and `energies.Potts` whose couplings allow it.

    Raises:
        TypeError: by `init` and a call, for any other energy.
        ValueError: by the energy, for couplings that it cannot cluster.
    """

    _kernel: ClassVar[str | None] = "swendsen_wang"
    _rejects: ClassVar[bool] = False

    def _check_general(self, energy: EnergyFn, x: Tensor) -> None:
        raise TypeError(f"SwendsenWang: energy must be an Ising or Potts model that has clusters, got {type(energy).__name__}")

    def _move(self, energy: EnergyFn, chains: Chains, alphabet: Alphabet, key: Tensor) -> tuple[Chains, Report]:
        self._check_general(energy, chains.states)
        raise AssertionError
