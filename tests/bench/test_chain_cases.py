"""Cases of whole continuous chains: what they time is right, rivals written here included, and their check sees a wrong energy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ebmcore import HMC, Langevin
from ebmcore.bench import timing
from ebmcore.bench.cases import chains, hmc
from ebmcore.bench.checks import check_native_chains
from ebmcore.energies import DoubleWell
from support.statistics import assert_gaussian


def small(spec: Any) -> timing.NamedProblem:
    return timing.NamedProblem("small", 1, spec, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("case", "spec"),
    [(chains.CASE, ("double well", 20, 3)), (chains.CASE, ("mixture", 20, 2)), (hmc.CASE, (20, 3))],
    ids=["double well", "mixture", "hmc"],
)
def test_checks_pass_and_every_row_runs(case: timing.Case, spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case.make_inputs(small(spec), 1)
    before = inputs.x.clone()
    assert case.check(inputs)
    for row in case.rows:
        if row.kind not in ("rival", "compiled"):
            part = row.setup(inputs)
            result: Any = (part.run if isinstance(part, timing.Part) else part)(0)
            assert result.shape == before.shape
            assert torch.equal(inputs.x, before), row.label


@pytest.mark.parametrize("name", ["double well", "mixture"])
def test_formulas_are_the_energies(name: str) -> None:
    inputs = chains.make_inputs(small((name, 50, 2)), 1)
    x = inputs.x.clone().requires_grad_()
    torch.testing.assert_close(inputs.formula(x), inputs.energy(x), rtol=1e-4, atol=1e-4)
    (grad,) = torch.autograd.grad(inputs.formula(x).sum(), x)
    torch.testing.assert_close(inputs.gradient(x), grad, rtol=1e-4, atol=1e-4)


def test_hmc_rivals_keep_the_law() -> None:
    torch.manual_seed(0)
    x = torch.randn(20_000, 2, dtype=torch.float64)
    for _ in range(3):
        x = hmc.hmc_step(lambda y: y, x)
    assert_gaussian(x, torch.zeros(2), torch.eye(2), what="hmc_step")


class Wrong(DoubleWell):
    """The native chains of another energy."""

    def _energy(self, x: Tensor) -> Tensor:
        return 1.001 * super()._energy(x)


@pytest.mark.parametrize("sampler", [Langevin(0.01), HMC(0.1, 3)], ids=["langevin", "hmc"])
def test_check_sees_a_wrong_energy(sampler: Any) -> None:
    with pytest.raises(timing.CheckError, match="native chains of Wrong"):
        check_native_chains(sampler, Wrong(), torch.ones(4, 2), 5)
