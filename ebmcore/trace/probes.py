"""Random vectors v with E[v vᵀ] = I, of which E[vᵀA v] = tr A.

Their variances differ (Epperly, Tropp & Webber 2024, section 2; A symmetrised, |A| the Frobenius norm, d dimensions): Rademacher 2 (|A|² - Σ a_ii²),
Gaussian 2 |A|², sphere 2d/(d + 2) (|A|² - (tr A)²/d).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ebmcore.ops.probes import dot_with_vectors, draw_vectors
from ebmcore.types import Key, bounded_int

ProbeLaw = Literal["rademacher", "gaussian", "sphere", "orthogonal"]
LAWS = ("rademacher", "gaussian", "sphere", "orthogonal")


class Probes:
    """Probes for the rows of x: vectors (num_probes, num_chains, *event), made when they are asked for.

    Probe p of chain i is a function of (seed, step + p, first_chain + i) of the key: the same for any split of the batch, and the first ones of
    more probes. Attributes: law (None for given vectors), num_probes, dimension.
    """

    def __init__(self, x: Tensor, num_probes: int, probe: ProbeLaw | Tensor, key: Key | None, caller: str) -> None:
        self._x = x
        self.dimension = x.shape[1:].numel()
        self._vectors: Tensor | None = None
        self.law: str | None = None
        if isinstance(probe, Tensor):
            if probe.dim() != x.dim() + 1 or probe.shape[1:] != x.shape or len(probe) == 0:
                raise ValueError(f"{caller}: probe must have shape (num_probes, *{tuple(x.shape)}) with num_probes >= 1, got {tuple(probe.shape)}")
            if probe.dtype != x.dtype or probe.device != x.device:
                raise TypeError(f"{caller}: probe must be {x.dtype} on {x.device} as x, got {probe.dtype} on {probe.device}")
            self._vectors, self.num_probes = probe, len(probe)
            return
        if probe not in LAWS:
            raise ValueError(f"{caller}: probe must be one of {', '.join(LAWS)} or a tensor, got {probe!r}")
        self.law = probe
        self.num_probes = bounded_int(num_probes, "num_probes", caller, low=1)
        if probe == "orthogonal" and self.num_probes > self.dimension:
            raise ValueError(f"{caller}: num_probes must be at most {self.dimension}, the dimension, for orthogonal probes, got {num_probes}")
        first = Key.from_seed(key, x.device)
        self._keys = first.steps(self.num_probes).unbind() if self.num_probes > 1 else (first.tensor,)

    def vectors(self, begin: int = 0, end: int | None = None) -> Tensor:
        """Probes begin, ..., end - 1."""
        end = self.num_probes if end is None else min(end, self.num_probes)
        if self._vectors is not None:
            return self._vectors[begin:end]
        if self.law in ("rademacher", "gaussian"):
            return self._draw(self.law, begin, end)
        if self.law == "sphere":
            v = self._draw("gaussian", begin, end)
            length = flattened(v, 2).norm(dim=2)
            scale: Tensor = math.sqrt(self.dimension) / length
            return v * scale.reshape(*length.shape, *[1] * (v.dim() - 2))
        self._vectors = _orthogonal(self._draw("gaussian", 0, self.num_probes))
        return self._vectors[begin:end]

    def dot(self, u: Tensor, begin: int = 0) -> Tensor:
        """v · u over the event for the probes from `begin` on: u (num_probes, num_chains, *event), one for each, or (num_chains, *event) for all."""
        if u.dim() == self._x.dim():
            u = u.expand(self.num_probes - begin, *u.shape)
        if self.law in ("rademacher", "gaussian"):
            return dot_with_vectors(u, self._keys[begin], self.law == "gaussian")
        return flattened(u * self.vectors(begin, begin + len(u)), 2).sum(2)

    def _draw(self, law: str, begin: int, end: int) -> Tensor:
        return draw_vectors((end - begin, *self._x.shape), self._keys[begin], law == "gaussian", self._x.dtype)


def flattened(x: Tensor, dim: int) -> Tensor:
    """The event, all dimensions from `dim` on, in one; also if it has none."""
    return x.flatten(dim) if x.dim() > dim else x[..., None]


def draw_probes(x: Tensor, num_probes: int, probe: ProbeLaw = "rademacher", *, key: Key | None = None) -> Tensor:
    """Probes (num_probes, num_chains, *event) for the rows of x, as the estimators draw them under the same key.

    Args:
        x: (num_chains, *event), float32 or float64; of which only shape, dtype and device matter.
        num_probes: at least 1; at most the dimension for "orthogonal".
        probe: "rademacher" (±1), "gaussian", "sphere" (uniform of length √d) or "orthogonal" (the same, at right angles to one another).
        key: probe p is drawn at its step + p, so the next call's key is key.advance(num_probes); None draws a seed from torch's default generator.

    Raises:
        TypeError, ValueError: for anything else than the above.
    """
    return Probes(x, num_probes, probe, key, "draw_probes").vectors()


def _orthogonal(gaussian: Tensor) -> Tensor:
    """The frames of QR with a positive diagonal, hence Haar distributed, each vector of length √d."""
    columns = flattened(gaussian, 2).permute(1, 2, 0)
    q, r = torch.linalg.qr(columns)
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None] * math.sqrt(columns.shape[1])
    vectors: Tensor = q.permute(2, 0, 1).reshape(gaussian.shape)
    return vectors
