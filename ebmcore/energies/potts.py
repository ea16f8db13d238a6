"""The Potts model on any graph: lattices, sparse graphs, and dense models of proteins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore import ops
from ebmcore.discrete import NativeRun, scaled_copy
from ebmcore.graph import Graph
from ebmcore.types import Alphabet, bounded_int

MAX_CATEGORIES = 256
MAX_FIELD = 2.0**126
# Of the largest field of a site, for which weights g(e^d), |d| <= 2 · field, and sums of them keep within float32.
_MAX_FIELDS = {"sqrt": 60.0, "barker": 40.0, "min": 40.0, "max": 40.0}


class Potts(nn.Module):
    """E(x) = -Σ_i h_i[x_i] - Σ_{i<j} J_ij[x_i, x_j] over the edges of a graph, each counted once; x_i in 0, ..., q - 1.

    Chains of Gibbs, RandomFlipMetropolis, GibbsWithGradients and SwendsenWang run natively and read the parameters at every call.

    Args:
        edges: (num_edges, 2) integers, in any order and direction, or a Graph.
        num_categories: q, from 2 to 256.
        coupling: J: one number (J where x_i == x_j, else 0); (num_edges,) such numbers; one symmetric (q, q) table; or (num_edges, q, q)
            tables, of edge (a, b) as given [x_a, x_b].
        field: h: None, (q,) or (num_sites, q).
        num_sites: by default one more than the largest in `edges`.

    Attributes:
        coupling, field: parameters, `coupling` in the order and direction of `graph.edges`. A (q, q) table acts by its symmetric part.
        alphabet: tokens.
        event_shape: of a state: (num_sites,), or the lattice's shape.

    Raises:
        TypeError, ValueError: for other shapes, NaN or infinite numbers, or a graph that is none (`Graph.from_edges`).

    Source: Potts, "Some generalized order-disorder transformations", 1952.
    """

    coupling: nn.Parameter
    field: nn.Parameter | None

    def __init__(self, edges: Any, num_categories: int, coupling: Any, field: Any = None, *, num_sites: int | None = None) -> None:
        super().__init__()
        q = bounded_int(num_categories, "num_categories", "Potts", low=2, high=MAX_CATEGORIES + 1)
        graph = edges if isinstance(edges, Graph) else Graph.from_edges(edges, num_sites)
        if graph.num_sites * q >= 2**31:
            raise ValueError(f"Potts: num_sites * num_categories must be below 2**31, got {graph.num_sites} * {q}")
        self.graph = graph
        self.alphabet = Alphabet("token", q)
        self.event_shape: tuple[int, ...] = (graph.num_sites,)
        j, h = _floating(coupling, "coupling"), None if field is None else _floating(field, "field")
        dtype = j.dtype if h is None else torch.promote_types(j.dtype, h.dtype)
        shapes: tuple[tuple[int, ...], ...] = ((), (graph.num_edges,), (q, q), (graph.num_edges, q, q))
        if tuple(j.shape) not in shapes:
            raise ValueError(f"Potts: coupling must be a number or have shape {shapes[1]}, {shapes[2]} or {shapes[3]}, got {tuple(j.shape)}")
        if h is not None and tuple(h.shape) not in ((q,), (graph.num_sites, q)):
            raise ValueError(f"Potts: field must have shape ({q},) or ({graph.num_sites}, {q}), got {tuple(h.shape)}")
        if j.dim() == 2 and not torch.equal(j, j.T):
            raise ValueError("Potts: a coupling table of all edges must be symmetric, as edges have no direction")
        if j.dim() in (1, 3) and not isinstance(edges, Graph) and graph.given_order is not None:
            given = torch.as_tensor(edges)[graph.given_order.to(torch.as_tensor(edges).device)]
            j = j[graph.given_order.to(j.device)]
            if j.dim() == 3:
                j = torch.where((given[:, 0] > given[:, 1]).to(j.device)[:, None, None], j.mT, j)
        for name, value in (("coupling", j), ("field", h)):
            if value is not None and not bool(value.isfinite().all()):
                raise ValueError(f"Potts: {name} must be finite, got {value[~value.isfinite()][0].item()}")
        self.coupling = nn.Parameter(j.to(dtype).clone())
        self.field = None if h is None else nn.Parameter(h.to(dtype).clone())

    @classmethod
    def lattice(cls, shape: Sequence[int], num_categories: int, coupling: Any, field: Any = None, periodic: bool = True) -> Potts:
        """On the square, cubic, ... lattice; states have its shape. A field may also have shape (*shape, num_categories).

        Raises:
            ValueError: a side below 3 if periodic, below 2 otherwise; and as above.
        """
        graph = Graph.lattice(shape, periodic)
        if field is not None:
            field = _floating(field, "field")
            if field.shape[:-1] == tuple(shape):
                field = field.reshape(graph.num_sites, -1)
        model = cls(graph, num_categories, coupling, field)
        model.event_shape = tuple(shape)
        return model

    @classmethod
    def dense(cls, coupling: Any, field: Any = None) -> Potts:
        """Every site coupled with every other: coupling (num_sites, num_sites, q, q), field (num_sites, q).

        Raises:
            ValueError: coupling[i, j, a, b] differs from coupling[j, i, b, a], or coupling[i, i] from 0; and as above.
        """
        j = _floating(coupling, "coupling")
        if j.dim() != 4 or j.shape[0] != j.shape[1] or j.shape[2] != j.shape[3]:
            raise ValueError(f"Potts.dense: coupling must have shape (num_sites, num_sites, q, q), got {tuple(j.shape)}")
        if bool(j.diagonal().any()):
            raise ValueError("Potts.dense: coupling[i, i] must be 0")
        if not torch.equal(j.nan_to_num(), j.permute(1, 0, 3, 2).nan_to_num()):
            raise ValueError("Potts.dense: coupling must be symmetric, coupling[i, j, a, b] == coupling[j, i, b, a]")
        graph = Graph.complete(len(j))
        first, second = graph.edges.to(j.device).unbind(1)
        return cls(graph, j.shape[2], j[first, second], field)

    def forward(self, x: Tensor) -> Tensor:
        """x: integer tokens (num_chains, *event_shape). Returns the energies, (num_chains,)."""
        tokens = self._tokens(x, "forward")
        first, second = self.graph.on("edges", x.device).unbind(1)
        a, b = tokens.index_select(1, first), tokens.index_select(1, second)
        if self.coupling.dim() == 0:
            pairs = (a == b).sum(1) * self.coupling
        elif self.coupling.dim() == 1:
            pairs = (a == b).to(self.coupling.dtype) @ self.coupling
        else:
            places = a.long().mul_(self.alphabet.num_categories).add_(b)
            if self.coupling.dim() == 3:
                places.add_(torch.arange(len(first), device=x.device) * self.alphabet.num_categories**2)
            pairs = self._symmetric().flatten().index_select(0, places.flatten()).view_as(places).sum(1)
        return -pairs - self._own_fields(tokens).sum(1)

    def conditional_logits(self, x: Tensor) -> Tensor:
        """log p(x_i = c | the other sites) + a constant of (chain, i): (num_chains, num_sites, num_categories), differentiable."""
        tokens = self._tokens(x, "conditional_logits").long()
        n, q, sites = len(tokens), self.alphabet.num_categories, self.graph.num_sites
        offsets, values = self.graph.on("offsets", x.device), tokens[:, self.graph.on("neighbours", x.device)]
        if self.coupling.dim() < 2:
            places = values + q * torch.repeat_interleave(torch.arange(sites, device=x.device), offsets.diff())
            gains = self.coupling if self.coupling.dim() == 0 else self.coupling[self.graph.on("edge_ids", x.device)]
            fields = torch.zeros(n, sites * q, dtype=self.coupling.dtype, device=x.device).scatter_add(1, places, gains.expand_as(places))
        else:
            num_entries = values.shape[1]
            places, rows = values, self._symmetric()
            if self.coupling.dim() == 3:
                places, rows = values + q * torch.arange(num_entries, device=x.device), self._entry_tables(rows).flatten(0, 1)
            starts = (offsets[:-1] + num_entries * torch.arange(n, device=x.device)[:, None]).flatten()
            fields = nn.functional.embedding_bag(places.flatten(), rows, starts, mode="sum")
        fields = fields.reshape(n, sites, q)
        return fields if self.field is None else fields + self.field

    def energy_and_differences(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (num_chains,), and E(x) - E(x with one site changed), (num_chains, num_sites, num_categories), -inf at the present value."""
        fields = self.conditional_logits(states)
        tokens = states.flatten(1).long()
        present = fields.gather(2, tokens[..., None])
        energies = -0.5 * (present[..., 0] + self._own_fields(tokens)).sum(1)
        return energies, (fields - present).scatter_(2, tokens[..., None], -math.inf)

    def scaled(self, factor: float) -> Potts:
        """The model of factor · E at the present values of the parameters, detached, on the same graph: at temperature 1 / factor."""
        model: Potts = scaled_copy(self, factor)
        return model

    def native_chain(self, kernel: str, states: Tensor, key: Tensor, num_steps: int, **options: Any) -> NativeRun | None:
        """`num_steps` steps of `kernel` from `key`, in `states`; None for what has no native kernel."""
        if kernel == "gibbs":
            scan = options["scan"]
            if scan == "checkerboard" and len(self.event_shape) > 1 and len(self.graph.colour_offsets) != 3:
                raise ValueError(f"Gibbs: a checkerboard on a torus needs even sides, got {self.event_shape}")
            order = self.graph.on("order", states.device) if scan == "checkerboard" else None
            tables, _ = self._integers(states.device)
            *_, num_flips = ops.potts_chain_("gibbs", states, tables, key=key, num_steps=num_steps, scan=scan, order=order)
            return NativeRun(None, None, num_flips)
        if kernel == "metropolis":
            tables, _ = self._integers(states.device)
            return NativeRun(*ops.potts_chain_("metropolis", states, tables, key=key, num_steps=num_steps))
        if kernel == "gwg" and options["num_flips"] == 1:
            tables, largest = self._integers(states.device)
            if largest > _MAX_FIELDS[options["balancing"]]:
                return None
            return NativeRun(*ops.potts_chain_("gwg", states, tables, key=key, num_steps=num_steps, balancing=options["balancing"]))
        if kernel == "swendsen_wang":
            if self.coupling.dim() > 1:
                raise ValueError(f"SwendsenWang: coupling must be a number or one for each edge, got tables {tuple(self.coupling.shape)}")
            fields = None if self.field is None else self.field.expand(self.graph.num_sites, -1)
            edges, q = self.graph.on("edges", states.device), self.alphabet.num_categories
            num_flips = ops.swendsen_wang_(states, edges, self.coupling, fields, key=key, num_steps=num_steps, num_categories=q)
            return NativeRun(None, None, num_flips)
        return None

    def _tokens(self, x: Tensor, caller: str) -> Tensor:
        """x as (num_chains, num_sites)."""
        if x.is_floating_point():
            raise TypeError(f"Potts.{caller}: x must be integer tokens, got {x.dtype}")
        if x.shape[1:] != self.event_shape:
            raise ValueError(f"Potts.{caller}: x must have shape (num_chains, {', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}")
        return x.flatten(1)

    def _own_fields(self, tokens: Tensor) -> Tensor:
        """h_i[x_i], (num_chains, num_sites); zeros (num_chains, 1) without a field."""
        if self.field is None:
            return torch.zeros(len(tokens), 1, dtype=self.coupling.dtype, device=tokens.device)
        if self.field.dim() == 1:
            return self.field[tokens.long()]
        return self.field.flatten()[tokens + self.alphabet.num_categories * torch.arange(self.graph.num_sites, device=tokens.device)]

    def _symmetric(self) -> Tensor:
        return 0.5 * (self.coupling + self.coupling.T) if self.coupling.dim() == 2 else self.coupling

    def _entry_tables(self, tables: Tensor) -> Tensor:
        """Tables of edges as those of the neighbours of every site in turn, [x_neighbour, x_site]."""
        edge_ids = self.graph.on("edge_ids", tables.device)
        places = edge_ids + self.graph.on("is_oriented", tables.device) * len(tables)
        return torch.cat((tables, tables.mT)).index_select(0, places)

    @torch.no_grad()
    def _integers(self, device: torch.device) -> tuple[ops.PottsTables, float]:
        """The parameters as the native kernels take them, and the largest field that a site can have."""
        if self.coupling.device != device:
            raise ValueError(f"Potts: x must be on {self.coupling.device}, where the parameters are, got {device}")
        graph, q, coupling = self.graph, self.alphabet.num_categories, self._symmetric().detach()
        strengths = coupling.abs() if coupling.dim() < 2 else coupling.abs().amax((-2, -1))
        strengths = strengths.double().expand(graph.num_edges)
        edges = graph.on("edges", device)
        bounds = torch.zeros(graph.num_sites, dtype=torch.float64, device=device)
        bounds.index_add_(0, edges[:, 0], strengths).index_add_(0, edges[:, 1], strengths)
        if self.field is not None:
            bounds += self.field.abs().amax(-1)
        bound = bounds.max()
        largest = float(bound)
        if not largest < MAX_FIELD:
            raise ValueError(f"Potts: coupling and field must be finite and a site's below {MAX_FIELD:.0e} in sum, got {largest}")
        exponent = torch.frexp(bound).exponent.clamp(min=-60) - 29
        unit = torch.ldexp(torch.ones_like(bound), exponent).reshape(1)
        scale = (1 / unit).to(coupling.dtype)
        numbers = (coupling * scale).round().to(torch.int32)
        if coupling.dim() == 1:
            numbers = numbers[graph.on("edge_ids", device)]
        elif coupling.dim() == 3:
            numbers = self._entry_tables(numbers)
        fields = torch.zeros(graph.num_sites * q + 16, dtype=torch.int32, device=device)
        if self.field is not None:
            fields[:-16].view(-1, q)[:] = (self.field * scale).round()
        tables = ops.PottsTables(
            graph.on("offsets", device),
            graph.on("neighbours", device),
            nn.functional.pad(numbers.flatten(), (0, 16)),
            0 if coupling.dim() in (0, 2) else 1 if coupling.dim() == 1 else q * q,
            coupling.dim() >= 2,
            largest <= 40.0,
            graph.on("reverse", device) if coupling.dim() == 3 else None,
            fields,
            q,
            unit,
            graph.max_degree,
        )
        return tables, largest


def _floating(value: Any, name: str) -> Tensor:
    tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"Potts: {name} must be real numbers, got {tensor.dtype}")
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.get_default_dtype())
    return tensor
