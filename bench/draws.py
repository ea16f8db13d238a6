"""How good the draws of a row are: the effective sample size of its chains, of a chain step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ebmcore.evaluation import ess


def ess_of_a_step(step: Callable[[Tensor], Tensor], x: Tensor, num_steps: int) -> float:
    """Effective sample size (rank-normalised, of the coordinate with the smallest) of `num_steps` steps of all chains, over their number.

    A quarter as many steps before are dropped. torch's random state is the same before and after.

    Args:
        step: chains one step on; its argument may be overwritten.
        x: (num_chains, dim), left as it is.

    Raises:
        ImportError: arviz-stats is not installed.
    """
    kept = []
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(1)  # 0 would be what `make_inputs` draws starts with: momenta equal to them
        x = x.clone()
        for i in range(num_steps // 4 + num_steps):
            x = step(x)
            if i >= num_steps // 4:
                kept.append(x.clone())
    draws = torch.stack(kept)
    return float(ess(draws).min()) / draws.shape[:2].numel()


def efficiency(ess_of_a_step: float, evaluations: int, seconds_of_a_step: float) -> Mapping[str, float]:
    """What the report says of a row."""
    return {
        "ess_per_step": ess_of_a_step,
        "ess_per_second": ess_of_a_step / seconds_of_a_step,
        "ess_per_1000_evaluations": 1000 * ess_of_a_step / evaluations,
    }
