"""Undirected graphs of pairwise models: edges, neighbour lists, and colours that can be updated at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmcore.types import bounded_int

MAX_SITES = 2**31


class Graph:
    """Sites 0, ..., num_sites - 1 and undirected edges between different ones, each once. Tensors live on the CPU; `on` moves copies.

    Attributes:
        num_sites: number of sites.
        edges: (num_edges, 2) int64, edges[k, 0] < edges[k, 1], sorted.
        offsets, neighbours, edge_ids: the neighbours of site i are neighbours[offsets[i]:offsets[i + 1]], ascending, reached over those
            edges; int64 (num_sites + 1,), int32 and int64 (2 · num_edges,).
        is_oriented: (2 · num_edges,) bool, the neighbour is the higher end of the edge.
        order: (num_sites,) int32, the sites colour by colour, ascending within a colour.
        colour_offsets: (num_colours + 1,) int64 into `order`. No edge joins sites of one colour.
    """

    def __init__(self, edges: np.ndarray[Any, Any], num_sites: int, shape: tuple[int, ...] | None = None) -> None:
        self._edges, self.num_sites, self._shape = edges, num_sites, shape

    @classmethod
    def from_edges(cls, edges: Any, num_sites: int | None = None) -> Graph:
        """The graph of (num_edges, 2) integers, in any order and direction.

        Raises:
            TypeError, ValueError: not integers of that shape, out of range, a self loop, or an edge given twice.
        """
        array = np.asarray(edges.cpu() if isinstance(edges, Tensor) else edges)
        if array.size == 0:
            array = np.zeros((0, 2), dtype=np.int64)
        if array.dtype.kind not in "iu":
            raise TypeError(f"Graph: edges must be integers, got {array.dtype}")
        if array.ndim != 2 or array.shape[1] != 2:
            raise ValueError(f"Graph: edges must have shape (num_edges, 2), got {array.shape}")
        array = array.astype(np.int64)
        if num_sites is None:
            num_sites = int(array.max()) + 1 if len(array) else 1
        num_sites = bounded_int(num_sites, "num_sites", "Graph", low=1, high=MAX_SITES)
        if (is_bad := ((array < 0) | (array >= num_sites)).any(1)).any():
            raise ValueError(f"Graph: edges must join sites in [0, {num_sites}), got {array[is_bad][0].tolist()} at index {int(is_bad.argmax())}")
        if (is_bad := array[:, 0] == array[:, 1]).any():
            raise ValueError(f"Graph: edges must join different sites, got {array[is_bad][0].tolist()} at index {int(is_bad.argmax())}")
        array.sort(axis=1)
        codes = array[:, 0] * num_sites + array[:, 1]
        place = np.argsort(codes, kind="stable")
        if (is_repeated := codes[place][1:] == codes[place][:-1]).any():
            raise ValueError(f"Graph: edges must be given once each, got {array[place][1:][is_repeated][0].tolist()} twice")
        graph = cls(array[place], num_sites)
        graph.given_order = torch.from_numpy(place)
        return graph

    given_order: Tensor | None = None
    """Where each sorted edge was in the list given to `from_edges`."""

    @classmethod
    def lattice(cls, shape: Sequence[int], periodic: bool = True) -> Graph:
        """The square, cubic, ... lattice of `shape`, sites in row-major order, wrapped around if `periodic`.

        Raises:
            ValueError: a side below 3 if periodic (its two neighbours would be one site), below 2 otherwise.
        """
        shape = lattice_shape(shape, periodic)
        sites = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
        ends = []
        for axis in range(len(shape)):
            here, there = sites, np.roll(sites, -1, axis)
            if not periodic:
                here, there = (np.delete(part, -1, axis) for part in (here, there))
            ends.append(np.stack((here.ravel(), there.ravel()), axis=1))
        edges = np.sort(np.concatenate(ends), axis=1)
        is_two_coloured = not periodic or all(side % 2 == 0 for side in shape)
        place = np.lexsort((edges[:, 1], edges[:, 0]))
        return cls(edges[place], sites.size, shape if is_two_coloured else None)

    @classmethod
    def complete(cls, num_sites: int) -> Graph:
        """Every pair of sites."""
        first, second = np.triu_indices(bounded_int(num_sites, "num_sites", "Graph", low=1, high=2**16), 1)
        return cls(np.stack((first, second), axis=1).astype(np.int64), num_sites)

    @property
    def num_edges(self) -> int:
        return len(self._edges)

    @functools.cached_property
    def edges(self) -> Tensor:
        return torch.from_numpy(self._edges)

    @functools.cached_property
    def _adjacency(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second = self._edges[:, 0], self._edges[:, 1]
        here, there = np.concatenate((first, second)), np.concatenate((second, first))
        place = np.lexsort((there, here))
        offsets = np.zeros(self.num_sites + 1, dtype=np.int64)
        np.cumsum(np.bincount(here, minlength=self.num_sites), out=offsets[1:])
        edge_ids = np.tile(np.arange(len(first), dtype=np.int64), 2)[place]
        parts = (offsets, there[place].astype(np.int32), edge_ids, place < len(first))
        return tuple(torch.from_numpy(part) for part in parts)  # type: ignore[return-value]

    @property
    def offsets(self) -> Tensor:
        return self._adjacency[0]

    @property
    def neighbours(self) -> Tensor:
        return self._adjacency[1]

    @property
    def edge_ids(self) -> Tensor:
        return self._adjacency[2]

    @property
    def is_oriented(self) -> Tensor:
        return self._adjacency[3]

    @functools.cached_property
    def reverse(self) -> Tensor:
        """(2 · num_edges,) int32: where in `neighbours` the same edge stands for its other end."""
        pairs = np.argsort(self.edge_ids.numpy(), kind="stable").reshape(-1, 2)
        reverse = np.empty(2 * self.num_edges, dtype=np.int32)
        reverse[pairs] = pairs[:, ::-1]
        return torch.from_numpy(reverse)

    @property
    def max_degree(self) -> int:
        return int(self.offsets.diff().max())

    @functools.cached_property
    def _colouring(self) -> tuple[Tensor, Tensor]:
        if self._shape is not None:
            colours = np.indices(self._shape).sum(0).ravel() % 2
        else:  # greedy, sites by falling degree (Welsh & Powell 1967)
            offsets, neighbours = self.offsets.tolist(), self.neighbours.tolist()
            colour_of = [-1] * self.num_sites
            for site in sorted(range(self.num_sites), key=lambda i: offsets[i] - offsets[i + 1]):
                taken = {colour_of[j] for j in neighbours[offsets[site] : offsets[site + 1]]}
                colour = 0
                while colour in taken:
                    colour += 1
                colour_of[site] = colour
            colours = np.array(colour_of)
        sizes = np.bincount(colours)
        return torch.from_numpy(np.argsort(colours, kind="stable").astype(np.int32)), torch.from_numpy(np.concatenate(([0], np.cumsum(sizes))))

    @property
    def order(self) -> Tensor:
        return self._colouring[0]

    @property
    def colour_offsets(self) -> Tensor:
        return self._colouring[1]

    def on(self, name: str, device: torch.device) -> Tensor:
        """The attribute `name` on `device`, copied there once."""
        tensor: Tensor = getattr(self, name)
        if tensor.device == device:
            return tensor
        cache: dict[tuple[str, torch.device], Tensor] = self.__dict__.setdefault("_copies", {})
        if (name, device) not in cache:
            cache[name, device] = tensor.to(device)
        return cache[name, device]


def lattice_shape(shape: Sequence[int], periodic: bool) -> tuple[int, ...]:
    """`shape` as a tuple of sides that a lattice can have."""
    if isinstance(shape, int) or len(shape) < 1:
        raise ValueError(f"lattice: shape must be a sequence of sides, got {shape!r}")
    low = 3 if periodic else 2
    sides = tuple(bounded_int(side, "shape", f"lattice ({'periodic' if periodic else 'open'})", low=low) for side in shape)
    if math.prod(sides) >= MAX_SITES:
        raise ValueError(f"lattice: shape must have fewer than 2**31 sites, got {sides}")
    return sides
