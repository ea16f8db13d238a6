"""Exact laws of MALA, HMC and random-walk Metropolis on known targets, and chains held to them.

Chains are independent draws, and an assertion fails by chance once in 2e7 new seeds. With 100,000 draws an acceptance of 0.9 that is
off by 0.008 is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from scipy.special import betainc
from torch import Tensor

from ebmcore import Key, ops
from support.statistics import assert_count, assert_mean
from support.targets import logistic, quadratic, two_modes

TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "quartic": lambda x: (x**4 / 4 - x**2 / 2 + x / 4).sum(1),
    "gauss1": quadratic,
    "logistic": logistic,
    "mix2": two_modes,
}


def normals(num: int, dim: int, seed: int, first: int = 0) -> Tensor:
    return ops.normal((num, dim), key=Key(seed).shard(first), stream=ops.Stream.INIT, dtype=torch.float64)


def one_step(sampler, energy, x: Tensor, seed: int | Key):
    return sampler.step(energy, sampler.init(energy, x, seed=seed))


def stationary_acceptance(sampler, energy, dim: int, scale: Tensor | float, seed: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Acceptance probabilities and outcomes of one step from exact draws of independent normals, in blocks that fit into memory."""
    num = 100_000 if dim <= 10 else 40_000 if dim <= 100 else 10_000
    block = min(num, 2_000_000 // dim)
    for first in range(0, num, block):
        x = (normals(block, dim, seed, first) * scale).to(dtype)
        _, info = one_step(sampler, energy, x, Key(seed + 1).shard(first))
        yield info.acceptance_prob, info.is_accepted


def check_acceptance(sampler, energy, dim: int, expected: float, seed: int, scale: Tensor | float = 1.0, dtype: torch.dtype = torch.float64) -> None:
    probs, outcomes = (torch.cat(parts) for parts in zip(*stationary_acceptance(sampler, energy, dim, scale, seed, dtype), strict=True))
    assert_mean(probs, expected, what=f"{sampler}, d = {dim}: acceptance probability")
    assert_count(int(outcomes.sum()), len(outcomes), expected, what=f"{sampler}, d = {dim}: accepted")


def mala_acceptance(dim: int, h: float) -> float:
    """Of N(0, I) in equilibrium: 2 P(|x'| < |x|), as the log ratio of acceptance is h/4 (|x|² - |x'|²). The quadratic form x'² - x² of the
    Gaussian pair has two eigenvalues for each coordinate, so that it is a ratio of two chi-squares."""
    correlation, variance = 1 - h, (1 - h) ** 2 + 2 * h  # of x' and x, and of x'
    trace, product = variance - 1, correlation**2 - variance
    root = math.sqrt(trace**2 - 4 * product)
    high, low = (trace + root) / 2, (root - trace) / 2
    return 2 * float(betainc(dim / 2, dim / 2, low / (low + high)))


def check_one_step(sampler, energy, law: dict, seed: int, dtype: torch.dtype = torch.float64) -> None:
    num = 200_000
    state, info = one_step(sampler, energy, torch.full((num, 1), law["x0"], dtype=dtype), seed)
    what = f"{sampler}, {law['target']} from {law['x0']}"
    assert_mean(info.acceptance_prob, law["mean_accept"], what=f"{what}: acceptance")
    assert_mean(state.x, law["E_x1"], what=f"{what}: E x")
    assert_mean(state.x.square(), law["E_x1sq"], what=f"{what}: E x²")
    if "P_x1_gt_0" in law:
        assert_count(int((state.x > 0).sum()), num, law["P_x1_gt_0"], what=f"{what}: P(x > 0)")


def walk_law(target: str, x0: float, step_size: float) -> dict:
    """Moments of one step of random-walk Metropolis, by quadrature over its proposal (trapezoid, exact to 1e-10 for a smooth integrand)."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    new = (x0 + step_size * z)[:, None]
    energy = TARGETS[target]
    accept = weight * (energy(torch.full((1, 1), x0, dtype=torch.float64)) - energy(new)).clamp(max=0.0).exp()
    rate, moments = float(accept.sum()), [float((accept * new[:, 0] ** k).sum()) for k in (1, 2)]
    above = float(accept[new[:, 0] > 0].sum()) + (x0 > 0) * (1 - rate)
    return {
        "target": target,
        "x0": x0,
        "mean_accept": rate,
        "E_x1": moments[0] + (1 - rate) * x0,
        "E_x1sq": moments[1] + (1 - rate) * x0**2,
        "P_x1_gt_0": above,
    }
