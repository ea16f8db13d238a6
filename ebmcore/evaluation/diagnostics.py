"""Convergence of chains by ArviZ (the extra "diagnostics"): rank-normalised R-hat, effective sample size, Monte Carlo standard error.

Vehtari, Gelman, Simpson, Carpenter & Bürkner, "Rank-normalization, folding, and localization", Bayesian Analysis 16, 2021. All three take
what `sample` keeps, (num_kept, num_chains, *event), and judge each element of the event by itself, in float64 on the CPU.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

_TAILS = (0.05, 0.95)


def ess(x: Tensor, *, method: Literal["bulk", "tail", "mean", "sd", "median"] = "bulk") -> Tensor:
    """Effective sample size: how many independent draws would do as well as these (section 4 of the paper).

    Args:
        x: (num_kept, num_chains, *event) of any real dtype, num_kept >= 4, as `Trace.x`.
        method: of what: of the bulk (rank-normalised), of the 5 % and 95 % quantiles (the smaller of the two), of the mean, of the standard
            deviation, or of the median.

    Returns:
        (*event), float64. num_kept · num_chains where nothing varies, NaN where x holds one.

    Raises:
        TypeError, ValueError: x or the method is not as above.
        ImportError: arviz-stats is not installed.
    """
    return _diagnose("ess", x, method, ("bulk", "tail", "mean", "sd", "median"), **({"prob": _TAILS} if method == "tail" else {}))


def rhat(x: Tensor, *, method: Literal["rank", "split", "identity"] = "rank") -> Tensor:
    """R-hat: the spread of all chains over that within chains, 1 where they agree. Below 1.01 is the usual demand.

    Args:
        x: as `ess`.
        method: "rank": of rank-normalised half chains, or of the folded ones if that is larger (the paper's); "split": of half chains;
            "identity": of whole chains.

    Returns:
        (*event), float64. NaN where nothing varies, where x holds NaN, and for one chain alone.

    Raises:
        As `ess`.
    """
    return _diagnose("rhat", x, method, ("rank", "split", "identity"))


def mcse(x: Tensor, *, method: Literal["mean", "sd", "median"] = "mean") -> Tensor:
    """Monte Carlo standard error of the mean, the standard deviation or the median over all draws.

    Returns:
        (*event), float64, in the units of x; 0 where nothing varies, NaN where x holds one.

    Args and Raises:
        As `ess`.
    """
    return _diagnose("mcse", x, method, ("mean", "sd", "median"))


def _diagnose(name: str, x: Tensor, method: str, methods: tuple[str, ...], **options: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.is_complex():
        raise TypeError(f"{name}: x must be a real torch.Tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
    if x.dim() < 2 or x.shape[0] < 4 or x.shape[1] < 1:
        raise ValueError(f"{name}: x must have shape (num_kept >= 4, num_chains >= 1, *event), got {tuple(x.shape)}")
    if method not in methods:
        raise ValueError(f"{name}: method must be one of {', '.join(methods)}, got {method!r}")
    try:
        array_stats = importlib.import_module("arviz_stats.base").array_stats
    except ImportError as error:
        raise ImportError(f"{name}: needs arviz-stats (pip install ebmcore[diagnostics])") from error
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN is the answer where nothing varies
        value = getattr(array_stats, name)(x.detach().cpu().double().numpy(), chain_axis=1, draw_axis=0, method=method, **options)
    return torch.as_tensor(np.asarray(value), dtype=torch.float64)
