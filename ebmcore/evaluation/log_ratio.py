"""How much more likely one state is than another, which needs no log Z."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebmcore.gradients import as_energy, evaluate


def log_ratio(energy: Any, x: Tensor, y: Tensor) -> Tensor:
    """log p(x) - log p(y) = E(y) - E(x) of each pair of rows, in one call of the energy.

    Args:
        energy: (num_chains, *event) -> (num_chains,), or anything with log_prob.
        x, y: (num_chains, *event), of the same shape, dtype and device.

    Returns:
        (num_chains,) float64, exact for the energies as they come. -inf where only E(x) is +inf, +inf where only E(y) is.

    Raises:
        TypeError, ValueError: x and y are not as above, or the energies are not a floating tensor of shape (2 num_chains,).
        ValueError: an energy is NaN or -inf, or both of a pair are +inf.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise TypeError(f"log_ratio: x and y must be torch.Tensors, got {type(x).__name__} and {type(y).__name__}")
    if x.dim() == 0 or (x.shape, x.dtype, x.device) != (y.shape, y.dtype, y.device):
        wanted = f"(num_chains, *event) alike, got {x.dtype} {tuple(x.shape)} on {x.device} and {y.dtype} {tuple(y.shape)} on {y.device}"
        raise ValueError(f"log_ratio: x and y must be {wanted}")
    of_x, of_y = evaluate(as_energy(energy, "log_ratio"), torch.cat((x, y)).detach()).double().chunk(2) if len(x) else torch.zeros(2, 0).double()
    is_bad = of_x.isnan() | of_y.isnan() | (of_x == -torch.inf) | (of_y == -torch.inf) | ((of_x == torch.inf) & (of_y == torch.inf))
    if bool(is_bad.any()):
        row = int(is_bad.nonzero()[0])
        raise ValueError(f"log_ratio: energies must be numbers, one of each pair finite, got {of_x[row].item()} and {of_y[row].item()} in row {row}")
    return of_y - of_x
