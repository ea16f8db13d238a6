"""Discrete cases: what they time is right, rivals written here included, and their checks see a wrong sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmcore.bench import timing
from ebmcore.bench.cases import gibbs, gwg, potts, proposal
from ebmcore.bench.checks import check_carried_energies, check_stationarity
from ebmcore.energies import Ising, Potts
from ebmcore.samplers import GibbsWithGradients

CPU = torch.device("cpu")


class Steps:
    """A sampler made of a function (x, num_steps) -> x."""

    def __init__(self, steps: Callable[[Tensor, int], Tensor]) -> None:
        self.steps = steps

    def __call__(self, energy: Any, x: Tensor, num_steps: int, *, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return self.steps(x, num_steps).reshape(x.shape)


class Lying(GibbsWithGradients):
    """Adds `changes` to what it reports."""

    def __init__(self, changes: dict[str, float]) -> None:
        super().__init__()
        object.__setattr__(self, "changes", changes)

    def advance(self, *arguments: Any) -> tuple[Any, Any]:
        return tuple(
            part._replace(**{name: getattr(part, name) + by for name, by in self.changes.items() if name in part._fields})  # type: ignore[attr-defined]
            for part in super().advance(*arguments)
        )


def small(case: timing.Case, name: str, spec: Any) -> timing.NamedProblem:
    return timing.NamedProblem(name, 1, spec, torch.float32, CPU)


@pytest.mark.parametrize(
    ("case", "spec"),
    [
        (gibbs.CASE, (50, 16)),
        (gwg.CASE, (gwg.lattice, 6, 100, 40)),
        (gwg.CASE, (gwg.random_graph, 40, 100, 40)),
        (potts.CASE, (5, 3)),
        (potts.CASE, (4, 20)),
        (proposal.CASE, 5),
    ],
)
def test_checks_pass_and_every_row_runs(case: timing.Case, spec: Any) -> None:
    inputs = case.make_inputs(small(case, "small", spec), 1)
    assert case.check(inputs)
    for row in case.rows:
        if row.kind != "rival":
            part = row.setup(inputs)
            (part.run if isinstance(part, timing.Part) else part)(0)


def test_gwg_rivals_keep_the_law() -> None:
    energy, edges, coupling = gwg.random_graph(10)
    neighbours, weights = gwg.neighbour_table(edges, coupling, 10)

    def eager(x: Tensor, num_steps: int) -> Tensor:
        bits = (x.float() + 1) / 2
        for _ in range(num_steps):
            bits = gwg.eager_step(lambda bits: energy(2 * bits - 1), bits)
        return 2 * bits - 1

    check_stationarity(Steps(eager), energy, (10,), 3)
    check_stationarity(Steps(lambda x, k: gwg.tuned_steps(x.float(), neighbours, weights, k)), energy, (10,), 3)


def test_potts_rivals_keep_the_law() -> None:
    inputs = potts.make_inputs(small(potts.CASE, "small", (3, 3)), 1)

    def eager(x: Tensor, num_steps: int) -> Tensor:
        rows = torch.nn.functional.one_hot(x.flatten(1).long(), 3).float().flatten(1)
        step = potts.eager_step
        for _ in range(num_steps):
            rows = step(potts.dense_energy(inputs), rows, 3)
        return rows.reshape(len(x), 9, 3).argmax(2)

    check_stationarity(Steps(eager), inputs.energy, (3, 3), 3)
    check_stationarity(Steps(lambda x, k: potts.tuned_steps(x.flatten(1), inputs.neighbours, 3, k)), inputs.energy, (3, 3), 3)


@pytest.mark.parametrize("setup", [gibbs._eager, gibbs._tuned])
def test_gibbs_rivals_keep_the_law(setup: Callable[[gibbs.Inputs], timing.Part]) -> None:
    torch.manual_seed(0)
    energy = Ising.lattice((4, 4), gibbs.COUPLING)

    def sweep(x: Tensor, num_steps: int) -> Tensor:
        result: Any = setup(gibbs.Inputs(energy, x)).run(0)
        if isinstance(result, Tensor):
            return result
        s = torch.empty(len(x), 2, 2, 2, 2)  # row pairs and column pairs, cell by cell
        black, white = (half.reshape(len(x), 2, 2, 2) for half in result)
        s[:, :, 0, :, 0], s[:, :, 1, :, 1], s[:, :, 0, :, 1], s[:, :, 1, :, 0] = black[:, :, 0], black[:, :, 1], white[:, :, 0], white[:, :, 1]
        return s

    check_stationarity(Steps(sweep), energy, (4, 4), 1)


def test_checks_see_wrong_samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    energy = Ising.lattice((4, 4), 0.3)
    with pytest.raises(timing.CheckError, match=r"does not keep exp\(-E\) on \(4, 4\)"):
        check_stationarity(Steps(lambda x, k: x.roll(1, 0) * x), energy, (4, 4), 1)
    x = torch.ones(4, 4, 4, dtype=torch.int8)
    for changes, message in (({"energy": 1.0}, "carries are off"), ({"num_flips": -9}, r"reports \[.*\] flips where")):
        with pytest.raises(timing.CheckError, match=message):
            check_carried_energies(Lying(changes), energy, x, 10)
    monkeypatch.setattr(gibbs, "COUPLING", 0.31)
    inputs = gibbs.Inputs(Ising.lattice((32, 32), 0.3), torch.ones(100, 32, 32, dtype=torch.int8))
    with pytest.raises(timing.CheckError, match="standard errors from"):
        gibbs.check(inputs)


def test_neighbour_tables() -> None:
    edges, coupling = torch.tensor([[0, 1], [2, 1], [3, 0]]), torch.tensor([1.0, 2.0, 3.0])
    neighbours, weights = gwg.neighbour_table(edges, coupling, 5)
    found = {(i, int(j), float(w)) for i in range(5) for j, w in zip(neighbours[i], weights[i], strict=True) if w}
    assert found == {(0, 1, 1.0), (1, 0, 1.0), (1, 2, 2.0), (2, 1, 2.0), (0, 3, 3.0), (3, 0, 3.0)}
    assert torch.equal(neighbours[4], torch.full_like(neighbours[4], 4))


def test_potts_models_are_what_the_rivals_take_them_for() -> None:
    inputs = potts.make_inputs(small(potts.CASE, "small", (4, 3)), 1)
    rows = torch.nn.functional.one_hot(inputs.x.flatten(1).long(), 3).float().flatten(1)
    assert isinstance(inputs.energy, Potts)
    torch.testing.assert_close(potts.dense_energy(inputs)(rows), inputs.energy(inputs.x))
