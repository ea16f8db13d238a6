"""Ising models on any graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore import ops
from ebmcore.discrete import NativeRun, scaled_copy
from ebmcore.graph import Graph, lattice_shape
from ebmcore.ops.ising import IsingModel
from ebmcore.types import Alphabet

_MAX_EXPONENT = 60.0  # of a float32 weight: e^60 times 2^31 sites is a float
_SITES_PER_SLICE = 3e8  # site updates of one native call, a fraction of a second: Ctrl-C is heard in between


class Ising(nn.Module):
    """E(s) = -Σ_edges J_ij s_i s_j - Σ_i h_i s_i = -½ sᵀJs - hᵀs, s_i in {-1, +1}, each edge once. Chains run natively.

    Parameters `coupling` and `field` train as usual; samplers read them at each call. Native chains work on their values as multiples of
    a power of two, 2^-30 of the largest possible local field.

    Args:
        edges: (num_edges, 2) integers in any order; or a `Graph`.
        coupling: J, one number for all edges or (num_edges,) in the order of `edges`.
        field: h, one number for all sites or (num_sites,).
        num_sites: default 1 + the largest site of an edge.
        event_shape: of a state, default (num_sites,).

    States are (num_chains, *event_shape), int8 at best; other signed dtypes are converted and handed back as they came.

    Raises:
        TypeError, ValueError: bad edges (self loops, repetitions, out of range), parameters of another shape, NaN or infinity.
    """

    def __init__(
        self,
        edges: Any,
        coupling: float | Tensor,
        field: float | Tensor = 0.0,
        num_sites: int | None = None,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        graph = edges if isinstance(edges, Graph) else Graph.from_edges(edges, num_sites)
        if isinstance(coupling, Tensor) and coupling.dim() == 1 and graph.given_order is not None and len(coupling) == graph.num_edges:
            coupling = coupling[graph.given_order.to(coupling.device)]
        self._graph: Graph | None = graph
        self._lattice: tuple[tuple[int, ...], bool] = ((), False)
        self._set_up(graph.num_sites, graph.num_edges, coupling, field, event_shape)

    def _set_up(self, num_sites: int, num_edges: int, coupling: Any, field: Any, event_shape: Sequence[int] | None) -> None:
        self.alphabet = Alphabet("spin")
        self.num_sites = num_sites
        self.event_shape = (num_sites,) if event_shape is None else tuple(event_shape)
        if math.prod(self.event_shape) != num_sites:
            raise ValueError(f"Ising: event_shape must have {num_sites} sites, got {self.event_shape}")
        self._torus: tuple[int, ...] = ()
        self.coupling = _parameter(coupling, num_edges, "coupling")
        self.field = _parameter(field, num_sites, "field")
        if self.field.dtype != self.coupling.dtype:
            self.field = nn.Parameter(self.field.detach().to(self.coupling.dtype))

    @classmethod
    def lattice(cls, shape: Sequence[int], coupling: float | Tensor, field: float | Tensor = 0.0, periodic: bool = True) -> Ising:
        """Nearest neighbours on a square, cubic, ... lattice, wrapped around if `periodic`; states have the lattice's shape.

        One coupling and one field on a torus of even sides, in up to three dimensions, need no neighbour lists for Gibbs sweeps: one
        byte a site is all they take. Per-edge couplings are in the order of `Graph.lattice(shape, periodic).edges`.

        Raises:
            ValueError: a side below 3 if periodic, below 2 otherwise.
        """
        shape = lattice_shape(shape, periodic)
        ising = cls.__new__(cls)
        nn.Module.__init__(ising)
        num_sites = math.prod(shape)
        num_edges = num_sites * len(shape) if periodic else sum(num_sites // side * (side - 1) for side in shape)
        ising._graph = None
        ising._lattice = (shape, periodic)
        ising._set_up(num_sites, num_edges, coupling, field, shape)
        if periodic and len(shape) <= 3 and all(side % 2 == 0 for side in shape):
            ising._torus = shape
        return ising

    @classmethod
    def from_matrix(cls, coupling: Tensor, field: float | Tensor = 0.0) -> Ising:
        """J as a symmetric (num_sites, num_sites) matrix, dense or sparse, with a zero diagonal; its non-zero entries are the edges.

        Raises:
            ValueError: not square, not symmetric, a non-zero diagonal, NaN or infinity.
        """
        if not isinstance(coupling, Tensor) or coupling.dim() != 2 or coupling.shape[0] != coupling.shape[1]:
            raise ValueError(f"Ising.from_matrix: coupling must be a square matrix, got {getattr(coupling, 'shape', type(coupling).__name__)}")
        matrix = coupling.detach()
        if matrix.layout == torch.strided:
            rows, columns = matrix.nonzero(as_tuple=True)
            values = matrix[rows, columns]
        else:
            matrix = matrix.to_sparse_coo().coalesce()
            (rows, columns), values = matrix.indices(), matrix.values()
            rows, columns, values = rows[values != 0], columns[values != 0], values[values != 0]
        if not bool(values.isfinite().all()):
            k = int((~values.isfinite()).nonzero()[0])
            raise ValueError(f"Ising.from_matrix: coupling must be finite, got {values[k].item()} at ({int(rows[k])}, {int(columns[k])})")
        if bool((rows == columns).any()):
            raise ValueError(f"Ising.from_matrix: coupling must have a zero diagonal, got an entry at {int(rows[rows == columns][0])}")
        codes, place = (columns * len(matrix) + rows).sort()
        if not (torch.equal(codes, rows * len(matrix) + columns) and torch.equal(values[place], values)):
            raise ValueError("Ising.from_matrix: coupling must be symmetric, got a matrix that differs from its transpose")
        is_upper = rows < columns
        edges = torch.stack((rows[is_upper], columns[is_upper]), 1)
        return cls(edges, values[is_upper], field, num_sites=len(coupling))

    @classmethod
    def complete(cls, num_sites: int, coupling: float | Tensor = 0.0, field: float | Tensor = 0.0) -> Ising:
        """Every pair of sites, to learn from data: per-edge couplings in the order of `Graph.complete(num_sites).edges`."""
        graph = Graph.complete(num_sites)
        if not isinstance(coupling, Tensor):
            coupling = torch.full((graph.num_edges,), float(coupling))
        if not isinstance(field, Tensor):
            field = torch.full((num_sites,), float(field))
        return cls(graph, coupling, field)

    @property
    def graph(self) -> Graph:
        if self._graph is None:
            self._graph = Graph.lattice(*self._lattice)
        return self._graph

    def matrix(self) -> Tensor:
        """J, (num_sites, num_sites), dense and differentiable in `coupling`."""
        first, second = self.graph.on("edges", self.coupling.device).T
        values = self.coupling.expand(self.graph.num_edges) if self.coupling.dim() == 0 else self.coupling
        upper = values.new_zeros(self.num_sites, self.num_sites).index_put((first, second), values)
        return upper + upper.T

    def forward(self, x: Tensor) -> Tensor:
        """x: spins (num_chains, *event_shape), or numbers in their place. Returns the energies, (num_chains,)."""
        self._check_shape(x, "Ising")
        if x.dtype == torch.int8 and not torch.is_grad_enabled() and x.is_contiguous() and type(x) is Tensor:
            model, _ = self._model(x.device, with_lists=not self._torus or x.device.type != "cpu")
            return ops.ising_energy(x, model).to(self.coupling.dtype)
        s = x.flatten(1).to(self.coupling.dtype if not x.is_floating_point() else torch.promote_types(x.dtype, self.coupling.dtype))
        field = -s.sum(1) * self.field if self.field.dim() == 0 else -(s @ self.field.to(s.dtype))
        if self.coupling.dim() == 1 and 8 * self.graph.num_edges > self.num_sites**2:
            return field - 0.5 * (s @ self.matrix().to(s.dtype) * s).sum(1)
        first, second = self.graph.on("edges", x.device).T
        products = s[:, first] * s[:, second]
        return field - (products.sum(1) * self.coupling if self.coupling.dim() == 0 else products @ self.coupling.to(s.dtype))

    def local_fields(self, x: Tensor) -> Tensor:
        """f_i = h_i + Σ_j J_ij s_j, (num_chains, num_sites), differentiable in the parameters."""
        self._check_shape(x, "Ising.local_fields")
        s = x.flatten(1).to(self.coupling.dtype)
        if self.coupling.dim() == 1 and 8 * self.graph.num_edges > self.num_sites**2:
            return s @ self.matrix() + self.field
        first, second = self.graph.on("edges", x.device).T
        sums = torch.zeros_like(s).index_add(1, first, s[:, second] * self.coupling).index_add(1, second, s[:, first] * self.coupling)
        return sums + self.field

    def conditional_logits(self, x: Tensor) -> Tensor:
        """log p(s_i = +1 | rest) - log p(s_i = -1 | rest) = 2 f_i, (num_chains, num_sites), differentiable in the parameters."""
        return 2 * self.local_fields(x)

    def energy_and_differences(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """E, and E(s) - E(s with site i flipped) = -2 s_i f_i, exact. states: int8 (num_chains, *event_shape)."""
        model, _ = self._model(states.device)
        energies, fields = ops.ising_fields(states, model)
        dtype = self.coupling.dtype
        return energies.to(dtype), (fields * states.flatten(1)).to(torch.float64).mul_(-2 * model.unit).to(dtype)

    def scaled(self, factor: float) -> Ising:
        """The model of factor · E at the present values of the parameters, detached, on the same graph: at temperature 1 / factor."""
        model: Ising = scaled_copy(self, factor)
        return model

    def native_chain(self, kernel: str, states: Tensor, key: Tensor, num_steps: int, **options: Any) -> NativeRun | None:
        """num_steps of `kernel` on int8 states, in place; None for what has no native chain."""
        self._check_shape(states, f"Ising ({kernel})")
        if kernel == "gibbs":
            return self._gibbs(states, key, num_steps, options["scan"])
        if kernel == "swendsen_wang":
            fields = self.field.expand(self.num_sites) if bool(self.field.any()) else None
            edges, couplings = self.graph.on("edges", states.device), self.coupling
            return NativeRun(None, None, ops.swendsen_wang_(states, edges, couplings, fields, key=key, num_steps=num_steps))
        if kernel not in ("gwg", "metropolis") or options.get("num_flips", 1) != 1 or states.numel() == 0 or num_steps == 0:
            return None
        model, bound = self._model(states.device)
        if kernel == "gwg" and not bound <= _MAX_EXPONENT:
            return None
        runs = []
        for step_key, count in _slices(key, num_steps, len(states) * 8):
            if kernel == "gwg":
                runs.append(ops.ising_gwg_(states, model, key=step_key, num_steps=count, balancing=options["balancing"]))
            else:
                runs.append(ops.ising_metropolis_(states, model, key=step_key, num_steps=count))
        sums, flips = (torch.stack([run[i] for run in runs]).sum(0) for i in (1, 2))
        return NativeRun(runs[-1].is_accepted, sums / num_steps, flips)

    def _gibbs(self, states: Tensor, key: Tensor, num_steps: int, scan: str) -> NativeRun:
        is_checkerboard = scan == "checkerboard"
        if is_checkerboard and self._graph is None and self._lattice[1] and not all(side % 2 == 0 for side in self.event_shape):
            raise ValueError(f"gibbs: scan='checkerboard' must have even sides on a torus, got {self.event_shape}")
        # In lanes of sites where chains are few and rows long; the same bits as in lanes of chains.
        is_torus = is_checkerboard and bool(self._torus) and states.device.type == "cpu" and self._has_one_of_each
        is_torus = is_torus and self.event_shape[-1] >= 128 and len(states) <= 16
        model, _ = self._model(states.device, with_lists=not is_torus)
        order, colour_offsets = None, None
        if is_checkerboard and not is_torus:
            order, colour_offsets = self.graph.on("order", states.device), self.graph.on("colour_offsets", states.device)
        num_flips = torch.zeros(len(states), dtype=torch.int64, device=states.device)
        for step_key, count in _slices(key, num_steps, states.numel() if scan != "random" else len(states)):
            ops.ising_gibbs_(
                states,
                model,
                key=step_key,
                num_steps=count,
                order=order,
                colour_offsets=colour_offsets,
                is_random=scan == "random",
                num_flips=num_flips,
            )
        return NativeRun(None, None, num_flips)

    @property
    def _has_one_of_each(self) -> bool:
        return self.coupling.dim() == 0 and self.field.dim() == 0

    def _model(self, device: torch.device, with_lists: bool = True) -> tuple[IsingModel, float]:
        """Parameters as integers, and the largest |field| that a site can have."""
        with torch.no_grad():
            coupling, field = self.coupling.detach().double(), self.field.detach().double()
            torus = self._torus if not with_lists and self._has_one_of_each else ()
            if coupling.dim() == 0:
                degree = 2 * len(self.event_shape) if torus else self.graph.max_degree
                size = coupling.abs() * degree + field.abs().max()
            else:
                entries = coupling[self.graph.on("edge_ids", device)]
                first, second = self.graph.on("edges", device).T
                size = torch.zeros(self.num_sites, dtype=torch.float64, device=device)
                size = (size.index_add(0, first, coupling.abs()).index_add(0, second, coupling.abs()) + field.abs()).max()
            bound = float(size)
            if not math.isfinite(bound):
                raise ValueError("Ising: coupling and field must be finite, got NaN or infinity")
            unit = math.ldexp(1.0, math.frexp(bound)[1] - 30)
            model = IsingModel(
                None if torus else self.graph.on("offsets", device),
                None if torus else self.graph.on("neighbours", device),
                (coupling if coupling.dim() == 0 else entries).div(unit).round().to(torch.int32).reshape(-1),
                field.div(unit).round().to(torch.int32).reshape(-1),
                torch.tensor([unit], dtype=torch.float64, device=device),
                degree if coupling.dim() == 0 else self.graph.max_degree,
                torus,
            )
        return model, bound

    def _check_shape(self, x: Tensor, caller: str) -> None:
        if x.shape[1:] != self.event_shape:
            raise ValueError(f"{caller}: x must have shape (num_chains, {', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}")

    def extra_repr(self) -> str:
        return f"event_shape={self.event_shape}, coupling={tuple(self.coupling.shape)}, field={tuple(self.field.shape)}"


def _parameter(value: Any, size: int, name: str) -> nn.Parameter:
    tensor = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(float(value))
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"Ising: {name} must be float32 or float64, got {tensor.dtype}")
    if tensor.shape not in ((), (size,)):
        raise ValueError(f"Ising: {name} must be a number or have shape ({size},), got {tuple(tensor.shape)}")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"Ising: {name} must be finite, got NaN or infinity")
    return nn.Parameter(tensor)


def _slices(key: Tensor, num_steps: int, work_per_step: int) -> Any:
    """(key, number of steps) of successive native calls."""
    count = max(1, int(_SITES_PER_SLICE / max(work_per_step, 1)))
    for begin in range(0, num_steps, count):
        step_key = key
        if begin:
            step_key = key.clone()
            step_key[1] += begin
        yield step_key, min(count, num_steps - begin)
