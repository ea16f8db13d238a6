"""Diagnostics of chains whose draws are not kept: R-hat of Gelman & Rubin (1992), and effective sample size and Monte Carlo standard error by
replicated batch means (Argon & Andradóttir 2006; Vats & Knudson, "Revisiting the Gelman-Rubin diagnostic", Statistical Science 36, 2021).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ebmcore.types import bounded_int


class StreamingDiagnostics:
    """Means, variances and what they are worth, on the device of the chains, in memory of five states however long they run.

        stream = StreamingDiagnostics(batch_size=100)
        ebmcore.sample(sampler, energy, x, 10_000, record=stream.record)
        stream.mean, stream.mcse, stream.ess, stream.rhat

    Where the draws fit, `ess` and `rhat` of all of them say more: they see tails, trends and spreads that differ.

    Args:
        batch_size: draws of a batch. Means of batches must be nearly independent: some ten times the autocorrelation time.

    Attributes:
        num_draws: of each chain, so far.
        mean, variance: over all draws (*event); the variance is Gelman and Rubin's, of the law that the chains would agree on.
        rhat: as `rhat(x, method="identity")`; NaN for one chain.
        mcse: standard error of the mean, which counts how far chains disagree; NaN before there are two batches.
        ess: variance / mcse²; NaN before there are two batches.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = bounded_int(batch_size, "batch_size", "StreamingDiagnostics", low=1)
        self.num_draws = 0

    @torch.no_grad()
    @torch.inference_mode(False)
    def update(self, x: Tensor) -> None:
        """One more draw of each chain, (num_chains, *event) of any real dtype.

        Raises:
            TypeError, ValueError: x is no such tensor, or not like those before.
        """
        if not isinstance(x, Tensor) or x.is_complex():
            raise TypeError(f"StreamingDiagnostics: x must be a real torch.Tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
        if self.num_draws == 0:
            if x.dim() < 1 or len(x) < 1:
                raise ValueError(f"StreamingDiagnostics: x must have shape (num_chains >= 1, *event), got {tuple(x.shape)}")
            self._mean = torch.zeros(x.shape, dtype=torch.float64, device=x.device)  # of each chain
            self._squares, self._batch = torch.zeros_like(self._mean), torch.zeros_like(self._mean)
            self._batch_mean, self._batch_squares = torch.zeros_like(self._mean[0]), torch.zeros_like(self._mean[0])  # over chains and batches
        elif x.shape != self._mean.shape:
            raise ValueError(f"StreamingDiagnostics: x must have shape {tuple(self._mean.shape)} as before, got {tuple(x.shape)}")
        self.num_draws += 1
        change = x - self._mean  # Welford 1962
        self._mean += change / self.num_draws
        self._squares += change * (x - self._mean)
        self._batch += x
        if self.num_draws % self.batch_size == 0:
            values = self._batch / self.batch_size
            before, num_chains = (self.num_draws // self.batch_size - 1) * len(x), len(x)
            total = before + num_chains
            change = values.mean(0) - self._batch_mean  # Chan, Golub & LeVeque 1979
            self._batch_mean += change * (num_chains / total)
            self._batch_squares += (values - values.mean(0)).square().sum(0) + change.square() * (before * num_chains / total)
            self._batch.zero_()

    def record(self, state: Any, info: Any) -> None:
        """`update` with state.x, as `sample` takes it; nothing is kept."""
        self.update(state.x)

    @property
    def mean(self) -> Tensor:
        return self._so_far(1).mean(0)

    @property
    def variance(self) -> Tensor:
        within = self._so_far(2)
        between = self._mean.var(0) if len(self._mean) > 1 else torch.zeros_like(within)
        return within * (1 - 1 / self.num_draws) + between

    @property
    def rhat(self) -> Tensor:
        within = self._so_far(2)
        return (self.variance / within).sqrt() if len(self._mean) > 1 else torch.full_like(within, math.nan)

    @property
    def mcse(self) -> Tensor:
        self._so_far(1)
        num_batches = self.num_draws // self.batch_size * len(self._mean)
        if num_batches < 2:
            return torch.full_like(self._batch_mean, math.nan)
        return (self._batch_squares / (num_batches - 1) * (self.batch_size / (self.num_draws * len(self._mean)))).sqrt()

    @property
    def ess(self) -> Tensor:
        return self.variance / self.mcse.square()

    def _so_far(self, num_draws: int) -> Tensor:
        """The means of the chains (num_draws = 1), or the mean of their variances (2)."""
        if self.num_draws < num_draws:
            raise ValueError(f"StreamingDiagnostics: update must have been called {num_draws} times or more, got {self.num_draws}")
        return self._mean if num_draws == 1 else (self._squares / (self.num_draws - 1)).mean(0)
