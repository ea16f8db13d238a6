"""Path auxiliary proposals: several sites at once, along a path whose every step is informed by the differences at its start.

Sites i_1, ..., i_L are drawn one after another without replacement with probability ∝ w_i, the sum over the other values c of
g(exp d_ic), and the new value of a site ∝ g(exp d_ic). From x' the way back visits the sites in reverse order with the weights at x', so
that each path is balanced by itself:

    A = min(1, exp(E(x) - E(x')) Π_l [g(exp d'(i_l, x)) / (W' - Σ_{m>l} w'_m)] / Π_l [g(exp d(i_l, x')) / (W - Σ_{m<l} w_m)]).

(Sun, Dai, Xia & Ramamurthy 2022, "Path auxiliary proposal for MCMC in discrete space", ICLR; the fast version, whose differences are
those of the path's ends.)
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from ebmcore.discrete_sampler import Chains, DiscreteSampler, Report, flip_sites
from ebmcore.ops.proposals import balancing_number
from ebmcore.types import Alphabet, EnergyFn, bounded_int


@dataclasses.dataclass(frozen=True)
class PathAuxiliary(DiscreteSampler):
    """Path auxiliary sampler, targets exp(-E) exactly: every accepted step changes exactly `path_length` sites.

    With an even path_length on two values the number of ones keeps its parity: such chains are not irreducible by themselves. One forward
    and one backward of the energy a step, and path_length passes over the differences each way.

    Args:
        path_length: sites of a path, at most those of a state.
        balancing: g, "sqrt", "barker", "min" or "max".

    Raises:
        TypeError, ValueError: for arguments that are not as above; by `init`, if a state has fewer than path_length sites.
    """

    path_length: int
    balancing: str = "sqrt"

    _uses_differences: ClassVar[bool] = True

    def __post_init__(self) -> None:
        bounded_int(self.path_length, "path_length", "PathAuxiliary", low=1)
        balancing_number(self.balancing, "PathAuxiliary")

    def _check_general(self, energy: EnergyFn, x: Tensor) -> None:
        num_sites = x[:1].numel()
        if self.path_length > num_sites:
            raise ValueError(f"PathAuxiliary: path_length must be at most the {num_sites} sites of x, got {self.path_length}")

    def _move(self, energy: EnergyFn, chains: Chains, alphabet: Alphabet, key: Tensor) -> tuple[Chains, Report]:
        return flip_sites(energy, chains, alphabet, key, num_flips=self.path_length, balancing=self.balancing, with_replacement=False)
