"""Annealed importance sampling with MALA moves: one evaluation a temperature, beside loops that evaluate more."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ebmcore import MALA
from ebmcore.bench.timing import Case, CheckError, NamedProblem, Part, Row, Run
from ebmcore.energies import MLP, Gaussian, product
from ebmcore.evaluation import ais
from ebmcore.types import EnergyFn

NUM_CHAINS, NUM_TEMPERATURES, STEP_SIZE = 64, 100, 0.01
RIVAL_TEMPERATURES = 20  # of a call of the torch rows


class Inputs(NamedTuple):
    """The target E_1(x) = MLP(x) + ½ |x|², as a composition and as a user without ours writes it, and the base, a standard normal."""

    composed: EnergyFn
    energy: EnergyFn
    base: Gaussian
    dim: int


def make_inputs(problem: NamedProblem, num_sets: int) -> Inputs:
    dim, hidden = problem.spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLP(dim, hidden=hidden).to(problem.device)
    base = Gaussian(torch.zeros(dim), precision=torch.ones(dim)).to(problem.device)
    return Inputs(product(network, base), lambda x: network(x) + 0.5 * x.square().sum(1), base, dim)


def check(inputs: Inputs) -> str:
    """ln Z between two normals, within 5 of its error bars."""
    target = Gaussian(torch.full((4,), 0.5), precision=torch.full((4,), 4.0))
    result = ais(target, Gaussian(torch.zeros(4), precision=torch.ones(4)), MALA(0.1), num_chains=500, betas=100, seed=1)
    distance = abs(result.log_z - target.log_z) / result.standard_error
    if not distance < 5:
        raise CheckError(f"log Z between two normals is {result.log_z:.4f} ± {result.standard_error:.4f} for {target.log_z:.4f}")
    return f"log Z between two normals is {distance:.1f} error bars from the exact value"


def _ours(inputs: Inputs) -> Run:
    sampler = MALA(STEP_SIZE)
    return lambda i: ais(inputs.composed, inputs.base, sampler, num_chains=NUM_CHAINS, betas=NUM_TEMPERATURES, seed=1).log_z


def _ours_on_torch(inputs: Inputs) -> Run:
    sampler = MALA(STEP_SIZE)
    return lambda i: ais(inputs.energy, inputs.base, sampler, num_chains=NUM_CHAINS, betas=NUM_TEMPERATURES, seed=1).log_z


def _grad(energy: EnergyFn, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = energy(x)
    (grad,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), grad


def _log_q(new: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    return -(new - x + STEP_SIZE * grad).square().sum(1) / (4 * STEP_SIZE)


def _base_energy(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(1)


def _eager(inputs: Inputs) -> Part:
    energy, dim = inputs.energy, inputs.dim

    def steps(i: int) -> Tensor:
        x, log_w = torch.randn(NUM_CHAINS, dim), torch.zeros(NUM_CHAINS)
        for k in range(1, RIVAL_TEMPERATURES + 1):
            beta = k / NUM_TEMPERATURES

            def annealed(x: Tensor, beta: float = beta) -> Tensor:
                return (1 - beta) * _base_energy(x) + beta * energy(x)

            with torch.no_grad():
                log_w += (_base_energy(x) - energy(x)) / NUM_TEMPERATURES
            value, grad = _grad(annealed, x)
            new = x - STEP_SIZE * grad + math.sqrt(2 * STEP_SIZE) * torch.randn_like(x)
            new_value, new_grad = _grad(annealed, new)
            log_ratio = value - new_value + _log_q(x, new, new_grad) - _log_q(new, x, grad)
            x = torch.where((torch.rand(NUM_CHAINS).log() < log_ratio)[:, None], new, x)
        return log_w

    return Part(steps, RIVAL_TEMPERATURES / NUM_TEMPERATURES)


def _carried(inputs: Inputs) -> Part:
    energy, dim = inputs.energy, inputs.dim

    def steps(i: int) -> Tensor:
        x, log_w = torch.randn(NUM_CHAINS, dim), torch.zeros(NUM_CHAINS, dtype=torch.float64)
        value, grad = _grad(energy, x)
        base = _base_energy(x)
        for k in range(1, RIVAL_TEMPERATURES + 1):
            beta = k / NUM_TEMPERATURES
            log_w += (base.double() - value.double()) / NUM_TEMPERATURES
            slope = torch.lerp(x, grad, beta)
            new = x - STEP_SIZE * slope + math.sqrt(2 * STEP_SIZE) * torch.randn_like(x)
            new_value, new_grad = _grad(energy, new)
            new_base = _base_energy(new)
            log_ratio = torch.lerp(base - new_base, value - new_value, beta)
            log_ratio += _log_q(x, new, torch.lerp(new, new_grad, beta)) - _log_q(new, x, slope)
            is_accepted = torch.rand(NUM_CHAINS).log() < log_ratio
            x, grad = torch.where(is_accepted[:, None], new, x), torch.where(is_accepted[:, None], new_grad, grad)
            value, base = torch.where(is_accepted, new_value, value), torch.where(is_accepted, new_base, base)
        return log_w

    return Part(steps, RIVAL_TEMPERATURES / NUM_TEMPERATURES)


CASE = Case(
    name="ais",
    summary=f"annealed importance sampling of networks, {NUM_CHAINS} chains, {NUM_TEMPERATURES} temperatures, MALA",
    rows=(
        Row("ebmcore ais", "ours", _ours, "of energies.product(MLP, Gaussian); one evaluation a temperature; draws, weights and bootstrap included"),
        Row("ebmcore ais, torch energy", "ours", _ours_on_torch, "the same of the sum in plain torch: one forward and one backward a temperature"),
        Row("torch eager", "eager", _eager, f"as it is often written, 3 forward and 2 backward; {RIVAL_TEMPERATURES} temperatures a call"),
        Row("torch carried", "tuned", _carried, f"energies and gradients carried by hand, 1 and 1; {RIVAL_TEMPERATURES} temperatures a call"),
    ),
    make_inputs=make_inputs,
    check=check,
    unit="chain temperature",
    problems=tuple(
        NamedProblem(f"MLP {dim}-{'-'.join(map(str, hidden))}-1", NUM_CHAINS * NUM_TEMPERATURES, (dim, hidden))
        for dim, hidden in ((2, (128, 128)), (784, (256, 256)), (784, (1024, 1024)))
    ),
)
