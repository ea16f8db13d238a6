"""Edges, neighbour lists and colours against their definitions."""

import itertools

import numpy as np
import pytest
import torch

from ebmcore.graph import Graph


def adjacency(graph: Graph) -> set[tuple[int, int]]:
    return {(i, int(j)) for i in range(graph.num_sites) for j in graph.neighbours[graph.offsets[i] : graph.offsets[i + 1]]}


@pytest.mark.parametrize(("shape", "periodic"), [((4,), True), ((3, 4), True), ((2, 3), False), ((3, 4, 5), True), ((2, 2, 2), False)])
def test_lattice_joins_sites_one_apart(shape: tuple[int, ...], periodic: bool) -> None:
    graph = Graph.lattice(shape, periodic)
    places = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), 1)
    apart = np.abs(places[:, None] - places[None])
    if periodic:
        apart = np.minimum(apart, np.array(shape) - apart)
    expected = {(int(i), int(j)) for i, j in np.argwhere(apart.sum(-1) == 1)}
    assert adjacency(graph) == expected
    assert len(graph.edges) * 2 == len(expected)


@pytest.mark.parametrize("graph", [Graph.lattice((4, 6)), Graph.lattice((3, 5)), Graph.lattice((3, 4), False), Graph.complete(5)])
def test_neighbour_lists_and_colours_are_those_of_the_edges(graph: Graph) -> None:
    for i in range(graph.num_sites):
        row = slice(int(graph.offsets[i]), int(graph.offsets[i + 1]))
        assert torch.equal(graph.neighbours[row], graph.neighbours[row].sort().values)
        for j, edge, is_up in zip(graph.neighbours[row].tolist(), graph.edge_ids[row].tolist(), graph.is_oriented[row].tolist(), strict=True):
            assert graph.edges[edge].tolist() == sorted((i, j))
            assert is_up == (j > i)
    colour = torch.empty(graph.num_sites, dtype=torch.int64)
    bounds = graph.colour_offsets.tolist()
    for c, (begin, end) in enumerate(itertools.pairwise(bounds)):
        members = graph.order[begin:end].long()
        assert torch.equal(members, members.sort().values)
        colour[members] = c
    assert sorted(graph.order.tolist()) == list(range(graph.num_sites))
    assert bool((colour[graph.edges[:, 0]] != colour[graph.edges[:, 1]]).all())


def test_even_tori_have_two_colours_and_odd_ones_more() -> None:
    assert len(Graph.lattice((4, 6)).colour_offsets) == 3
    assert len(Graph.lattice((3, 4)).colour_offsets) > 3
    assert len(Graph.complete(5).colour_offsets) == 6


def test_edges_come_in_any_order_and_direction() -> None:
    graph = Graph.from_edges([[3, 1], [0, 1], [2, 3]])
    assert graph.num_sites == 4
    assert graph.edges.tolist() == [[0, 1], [1, 3], [2, 3]]
    assert graph.given_order is not None
    assert graph.given_order.tolist() == [1, 0, 2]
    assert Graph.from_edges(torch.zeros(0, 2, dtype=torch.int32), 3).max_degree == 0


@pytest.mark.parametrize(
    ("edges", "num_sites", "message"),
    [
        ([[0, 1], [1, 1]], None, r"different sites, got \[1, 1\] at index 1"),
        ([[0, 1], [1, 0]], None, r"once each, got \[0, 1\] twice"),
        ([[0, 3]], 3, r"in \[0, 3\), got \[0, 3\] at index 0"),
        ([[0, -1]], 3, r"in \[0, 3\)"),
        ([0, 1], 3, r"shape \(num_edges, 2\)"),
    ],
)
def test_bad_edges(edges: list[list[int]], num_sites: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph.from_edges(edges, num_sites)


def test_bad_kinds() -> None:
    with pytest.raises(TypeError, match="integers"):
        Graph.from_edges([[0.0, 1.0]])
    for shape in ((2, 4), (1, 4)):
        with pytest.raises(ValueError, match="periodic"):
            Graph.lattice(shape)
    with pytest.raises(ValueError, match="open"):
        Graph.lattice((1, 4), periodic=False)
    with pytest.raises(ValueError, match="sequence"):
        Graph.lattice(4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fewer than"):
        Graph.lattice((2**16, 2**16))
