"""The exact laws of unadjusted Langevin: Gaussian targets after n steps and for ever, one-dimensional targets for ever.

Every chain is one independent draw, the law is known exactly, and an assertion fails by chance once in 2e7 new seeds. With 100,000
chains a mean off by 0.027 standard deviations is seen, or a variance off by 3.8 % (with the 40,000 in ten dimensions 0.043 and 6 %).
sqrt(h) for sqrt(2h) halves the variance.
"""

from __future__ import annotations

import math

import pytest
import torch

from ebmcore import Key, Langevin, ops
from support.statistics import assert_gaussian, assert_mean
from support.targets import Gaussian, logistic, two_modes
from support.truths import truth

NUM_CHAINS = 100_000


def laws(index: int) -> tuple[dict, Gaussian]:
    row = truth("continuous")["gaussian"][index]
    return row, Gaussian(row["precision"], row["mu"])


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("index", "step"), [(0, 0), (1, 1), (2, 0)])
def test_after_n_steps(index, step):
    """Mean and covariance after 1, 2, 5, 20 and 100 steps from one point."""
    row, energy = laws(index)
    law = row["ula"][step]
    sampler = Langevin(law["h"])
    state = sampler.init(energy, tensor(row["x0"]).repeat(min(NUM_CHAINS, 400_000 // row["d"]), 1), seed=100 + index)
    done = 0
    for after in law["finite"]:
        state, _ = sampler.advance(energy, state, after["n"] - done)
        done = after["n"]
        assert_gaussian(state.x, tensor(after["mean"]), tensor(after["cov"]), what=f"d = {row['d']}, h = {law['h']}, n = {done}")


@pytest.mark.parametrize(("index", "step"), [(0, 2), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stationary(index, step, dtype):
    """Exact draws of the stationary law, whose covariance is not the target's, stay so."""
    row, _ = laws(index)
    energy = Gaussian(row["precision"], row["mu"], dtype)
    law = row["ula"][step]
    mean, covariance = tensor(law["stationary_mean"]), tensor(law["stationary_cov"])
    x = ops.normal((NUM_CHAINS, row["d"]), key=Key(200 + index), stream=ops.Stream.INIT, dtype=torch.float64)
    x = (x @ torch.linalg.cholesky(covariance).T + mean).to(dtype)
    sampler = Langevin(law["h"])
    state = sampler.init(energy, x, seed=300 + index)
    for num_steps in (1, 9):
        state, _ = sampler.advance(energy, state, num_steps)
        assert_gaussian(state.x, mean, covariance, what=f"d = {row['d']}, h = {law['h']}, {state.step} steps")


def test_temperature_scales_the_covariance():
    """At temperature T the covariance is T times as large, however T was asked for."""
    row, energy = laws(0)
    law, temperature = row["ula"][1], 0.3
    after = law["finite"][2]
    expected = tensor(after["cov"]) * temperature
    noise_std = math.sqrt(2 * law["h"] * temperature)
    x = tensor(row["x0"]).repeat(NUM_CHAINS, 1)
    for seed, sampler in ((1, Langevin(law["h"], temperature=temperature)), (2, Langevin(law["h"], noise_std=noise_std))):
        assert sampler.effective_temperature == pytest.approx(temperature)
        assert_gaussian(sampler(energy, x, after["n"], seed=seed), tensor(after["mean"]), expected, what=f"T = {temperature}")


@pytest.mark.parametrize("row", [1, 2, 3])  # row 0, h = 0.05, takes ten times as long and shows less
def test_one_dimensional_targets(row):
    """E x, E x², E x⁴ of the stationary law (biased by the step, which the truth knows), from draws of a law close to it.

    Chains start at the target's own law and run for 30 units of time; the slowest mode of either target has died out to 1e-2 of the
    start's own bias by then, far below what is seen here.
    """
    law = truth("continuous")["ula_1d"][row]
    n = NUM_CHAINS
    u = ops.uniform((n, 1), key=Key(400 + row), stream=ops.Stream.INIT, dtype=torch.float64)
    if law["target"] == "mix2":
        energy = two_modes
        x = ops.normal((n, 1), key=Key(410 + row), stream=ops.Stream.INIT, dtype=torch.float64) + torch.where(u < 0.6, -1.5, 1.5)
    else:
        energy = logistic
        x = u.log() - (-u).log1p()
    num_steps = math.ceil((30 if law["target"] == "mix2" else 60) / law["h"])
    x = Langevin(law["h"])(energy, x.float(), num_steps, seed=420 + row).double()
    for k, name in ((1, "E_x"), (2, "E_x2"), (4, "E_x4")):
        assert_mean(x**k, law[name], what=f"{law['target']}, h = {law['h']}, {name}")


def test_chains_are_independent_of_one_another():
    """Neighbouring chains, and a chain and the next seed's."""
    x = torch.zeros(NUM_CHAINS, 1, dtype=torch.float64)
    a, b = (Langevin(0.5)(lambda x: 0.5 * x.square().sum(1), x, 3, seed=seed).squeeze(1) for seed in (1, 2))
    variance = sum(0.5 ** (2 * k) for k in range(3))
    for shift in (1, 2, 4, 16):
        assert_mean(a[shift:] * a[:-shift], 0.0, variance, what=f"chains {shift} apart")
    assert_mean(a * b, 0.0, variance, what="two seeds")
