"""The case `ais`: its loops in plain torch are annealed importance sampling too, and its check sees a wrong ln Z."""

from __future__ import annotations

import math

import pytest
import torch

from ebmcore.bench.cases import ais
from ebmcore.bench.timing import CheckError
from ebmcore.energies import Gaussian
from support.statistics import assert_mean


@pytest.mark.parametrize("loop", [ais._eager, ais._carried])
def test_loops_in_torch(loop, monkeypatch):
    """From N(0, 1) a fifth of the way to N(1/2, 1/4) in two dimensions: the mean weight is the ratio of the Zs."""
    monkeypatch.setattr(ais, "NUM_CHAINS", 20_000)
    target, base = Gaussian([0.5, 0.5], precision=[4.0, 4.0]), Gaussian([0.0, 0.0], precision=[1.0, 1.0])
    torch.manual_seed(0)
    log_weights = loop(ais.Inputs(target, target, base, 2)).run(0)
    beta = ais.RIVAL_TEMPERATURES / ais.NUM_TEMPERATURES
    precision = 1 + 3 * beta
    mean = 2 * beta / precision
    log_ratio = -math.log(precision) - beta + precision * mean**2  # of two equal elements
    assert_mean((log_weights.double() - log_ratio).exp(), 1.0, what="weight over the ratio of Z")


def test_check(monkeypatch):
    inputs = ais.Inputs(None, None, None, 2)
    assert "error bars from the exact value" in ais.check(inputs)
    right = ais.ais
    monkeypatch.setattr(ais, "ais", lambda *args, **kwargs: right(*args, **kwargs)._replace(log_z=3.0))
    with pytest.raises(CheckError, match=r"log Z between two normals is 3\.0000"):
        ais.check(inputs)


@pytest.mark.parametrize("problem", ais.CASE.problems, ids=lambda problem: problem.name)
def test_inputs(problem):
    inputs = ais.make_inputs(problem, 1)
    assert inputs.energy(torch.zeros(3, inputs.dim)).shape == (3,)
    assert len(inputs.base.mean) == inputs.dim
    x = torch.randn(3, inputs.dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inputs.composed(x), inputs.energy(x))
