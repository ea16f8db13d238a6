"""R-hat, effective sample size and Monte Carlo error against the reference numbers, and what they say of odd chains."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from ebmcore.evaluation import ess, mcse, rhat
from support.truths import truth, truth_arrays

pytest.importorskip("arviz_stats", reason="the extra 'diagnostics' is not installed")

NAMES = ("iid", "ar0.3", "ar0.9", "ar-0.5", "shifted", "scale_diff", "cauchy", "binary", "trend", "oddlen")
FUNCTIONS = {"ess": ess, "rhat": rhat, "mcse": mcse}


@pytest.mark.parametrize("name", NAMES)
def test_reference_numbers(name):
    values = truth("metrics")["mcmc"]["values"][name]
    x = torch.tensor(truth_arrays("metrics")[f"chain_{name}"]).T  # kept there as (chain, draw)
    for key, expected in values.items():
        function, _, method = key.partition("_")
        if function in FUNCTIONS:
            assert float(FUNCTIONS[function](x, method=method)) == pytest.approx(expected, rel=1e-12), key
    assert float(ess(x)) == pytest.approx(values["ess_bulk"], rel=1e-12)
    assert float(rhat(x)) == pytest.approx(values["rhat_rank"], rel=1e-12)
    assert float(mcse(x)) == pytest.approx(values["mcse_mean"], rel=1e-12)


def test_each_element_by_itself():
    x = torch.randn(100, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    for function in FUNCTIONS.values():
        value = function(x)
        assert value.shape == (2, 3)
        assert value.dtype == torch.float64
        assert float(value[1, 2]) == pytest.approx(float(function(x[:, :, 1, 2])), rel=1e-12)
        assert float(function((x[..., 0, 0] > 0).to(torch.int8))) == float(function((x[..., 0, 0] > 0).double()))
        with torch.inference_mode():
            assert torch.equal(function(x.clone().requires_grad_()), value)


def test_odd_chains():
    """As the reference has it: nothing varies, NaN inside, one chain."""
    edge = truth("metrics")["mcmc"]["edge_cases"]
    constant = torch.ones(1000, 4)
    assert float(ess(constant)) == float(edge["constant_chain"]["ess"])
    assert math.isnan(float(rhat(constant)))
    assert float(mcse(constant)) == 0
    x = torch.tensor(truth_arrays("metrics")["chain_iid"]).T
    assert math.isnan(float(rhat(x[:, :1])))
    x[3] = math.nan
    for function in FUNCTIONS.values():
        assert math.isnan(float(function(x)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_input(name):
    function = FUNCTIONS[name]
    for shape in ((3, 4), (100,), (100, 0)):
        with pytest.raises(ValueError, match=rf"{name}: x must have shape \(num_kept >= 4, num_chains >= 1, \*event\), got"):
            function(torch.zeros(shape))
    with pytest.raises(ValueError, match=f"{name}: method must be one of .*, got 'best'"):
        function(torch.zeros(10, 4), method="best")
    with pytest.raises(TypeError, match=f"{name}: x must be a real torch.Tensor, got torch.complex64"):
        function(torch.zeros(10, 4, dtype=torch.complex64))
    with pytest.raises(TypeError, match=f"{name}: x must be a real torch.Tensor, got list"):
        function([[0.0]])


def test_without_arviz(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz_stats.base", None)
    with pytest.raises(ImportError, match=r"ess: needs arviz-stats \(pip install ebmcore\[diagnostics\]\)"):
        ess(torch.zeros(10, 4))
