"""Energies of integer tokens from energies of one-hot rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ebmcore.types import Alphabet, EnergyFn, bounded_int


class OneHot(nn.Module):
    """E(x) = energy(one-hot rows of x) for tokens x. Samplers take its gradient in the one-hot rows; the caller never sees them.

    Args:
        energy: (num_chains, *event, num_categories) -> (num_chains,), defined for any floating input so that it has a gradient.
        num_categories: number of values of a site, at least 2.
        dtype: of the one-hot rows.
    """

    def __init__(self, energy: EnergyFn, num_categories: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.alphabet = Alphabet("token", bounded_int(num_categories, "num_categories", "OneHot", low=2, high=2**31))
        self.of_one_hot = energy
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """x: integer tokens (num_chains, *event). Returns the energies, (num_chains,)."""
        if x.is_floating_point():
            raise TypeError(f"OneHot: x must be integer tokens, got {x.dtype}")
        return self.of_one_hot(nn.functional.one_hot(x.long(), self.alphabet.num_categories).to(self.dtype))
