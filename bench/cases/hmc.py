"""Whole chains of Hamiltonian Monte Carlo on a Gaussian, ten leapfrog steps each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore.bench.checks import check_native_chains
from ebmcore.bench.jax_chains import JAX_STEPS, jax_chains
from ebmcore.bench.timing import Case, NamedProblem, Part, Row
from ebmcore.energies import Gaussian
from ebmcore.samplers import HMC

STEP_SIZE, NUM_LEAPFROG = 0.1, 10
NUM_STEPS, RIVAL_STEPS = 200, 2  # of a call; steps of the torch rows take as long as they take
NUM_JUDGED, JUDGED_STEPS = 256, 1000  # chains whose draws are judged, and their steps


class Inputs(NamedTuple):
    """A standard normal energy, and chains x (num_chains, dim)."""

    energy: Gaussian
    x: Tensor


def make_inputs(problem: NamedProblem, num_sets: int) -> Inputs:
    num_chains, dim = problem.spec
    x = torch.randn(num_chains, dim, generator=torch.Generator().manual_seed(0))
    return Inputs(Gaussian(torch.zeros(dim), precision=torch.ones(dim)).to(problem.device), x.to(problem.device))


def check(inputs: Inputs) -> str:
    passed: str = check_native_chains(HMC(STEP_SIZE, NUM_LEAPFROG), inputs.energy, inputs.x, 5)
    return passed


def formula(x: Tensor) -> Tensor:
    """The energy as a user writes it."""
    return 0.5 * x.square().sum(1)


def _identity(x: Tensor) -> Tensor:
    return x


def _ours(inputs: Inputs) -> Part:
    sampler = HMC(STEP_SIZE, NUM_LEAPFROG)
    return Part(lambda i: sampler(inputs.energy, inputs.x, NUM_STEPS, seed=1), 1.0, lambda x: sampler(inputs.energy, x, 1))


def _ours_on_torch(inputs: Inputs) -> Part:
    sampler = HMC(STEP_SIZE, NUM_LEAPFROG)
    return Part(lambda i: sampler(formula, inputs.x, RIVAL_STEPS, seed=1), RIVAL_STEPS / NUM_STEPS, lambda x: sampler(formula, x, 1))


def move(gradient: Callable[[Tensor], Tensor], x: Tensor, p: Tensor, kick: float) -> tuple[Tensor, Tensor]:
    """A drift of x and a kick of its momentum p."""
    x = x + STEP_SIZE * p
    return x, p - kick * gradient(x)


def hmc_step(gradient: Callable[[Tensor], Tensor], x: Tensor, move: Callable[..., tuple[Tensor, Tensor]] = move) -> Tensor:
    p = torch.randn_like(x)
    start, before = x, formula(x) + 0.5 * p.square().sum(1)
    p = p - 0.5 * STEP_SIZE * gradient(x)
    for k in range(NUM_LEAPFROG):
        x, p = move(gradient, x, p, STEP_SIZE if k < NUM_LEAPFROG - 1 else 0.5 * STEP_SIZE)
    after = formula(x) + 0.5 * p.square().sum(1)
    is_accepted = torch.rand_like(before).log() < before - after
    return torch.where(is_accepted[:, None], x, start)


def _steps(gradient: Callable[[Tensor], Tensor], inputs: Inputs, move: Callable[..., tuple[Tensor, Tensor]] = move) -> Part:
    @torch.no_grad()
    def step(x: Tensor) -> Tensor:
        return hmc_step(gradient, x, move)

    def steps(i: int) -> Tensor:
        x = inputs.x
        for _ in range(RIVAL_STEPS):
            x = step(x)
        return x

    return Part(steps, RIVAL_STEPS / NUM_STEPS, step)


def _eager(inputs: Inputs) -> Part:
    @torch.enable_grad()
    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        grad: Tensor
        (grad,) = torch.autograd.grad(formula(x).sum(), x)
        return grad

    return _steps(gradient, inputs)


def _tuned(inputs: Inputs) -> Part:
    return _steps(_identity, inputs)


def _compiled(inputs: Inputs) -> Part:
    # Of ten moves at once inductor makes one expression, and minutes of it.
    return _steps(_identity, inputs, torch.compile(move, fullgraph=True, dynamic=False))


def _torchebm(inputs: Inputs) -> Part:
    precision = torch.get_float32_matmul_precision()
    core, samplers = (importlib.import_module(f"torchebm.{name}") for name in ("core", "samplers"))
    torch.set_float32_matmul_precision(precision)  # importing some parts of torchebm changes it for the process
    settings: dict[str, Any] = {"dtype": inputs.x.dtype, "device": inputs.x.device}
    dim = inputs.x.shape[1]
    model = core.GaussianModel(torch.zeros(dim), torch.eye(dim), **settings)
    sampler = samplers.HamiltonianMonteCarlo(model, step_size=STEP_SIZE, n_leapfrog_steps=NUM_LEAPFROG, **settings)
    share = RIVAL_STEPS / NUM_STEPS
    return Part(lambda i: sampler.sample(x=inputs.x, n_steps=RIVAL_STEPS), share, lambda x: sampler.sample(x=x, n_steps=1))


def _ebmkit(inputs: Inputs) -> Part:
    sampler = importlib.import_module("ebm.samplers").HMC(STEP_SIZE, NUM_LEAPFROG)
    share = RIVAL_STEPS / NUM_STEPS
    return Part(lambda i: sampler.sample(formula, inputs.x, steps=RIVAL_STEPS), share, lambda x: sampler.sample(formula, x, steps=1))


def _blackjax(inputs: Inputs) -> Part:
    jax, blackjax = importlib.import_module("jax"), importlib.import_module("blackjax")
    hmc = blackjax.hmc(lambda x: -0.5 * (x**2).sum(), STEP_SIZE, jax.numpy.ones(inputs.x.shape[1]), NUM_LEAPFROG)
    return jax_chains(hmc.init, lambda key, state: hmc.step(key, state)[0], lambda state: state.position, inputs.x, JAX_STEPS, NUM_STEPS)


L = NUM_LEAPFROG
CASE = Case(
    name="hmc",
    summary=f"whole chains of {NUM_STEPS} HMC steps of {NUM_LEAPFROG} leapfrog steps on a Gaussian",
    rows=(
        Row("ebmcore", "ours", _ours, "HMC on a native energy, one call, start included", evaluations=L),
        Row("ebmcore, torch energy", "ours", _ours_on_torch, f"HMC on the energy in plain torch; {RIVAL_STEPS} steps a call", evaluations=L),
        Row("torch eager", "eager", _eager, f"the energy in plain torch, autograd.grad; {RIVAL_STEPS} steps a call", evaluations=L + 3),
        Row("torch tuned", "tuned", _tuned, f"the gradient by hand, no graph; {RIVAL_STEPS} steps a call", evaluations=L + 3),
        Row("torch.compile", "compiled", _compiled, "of a leapfrog step with the gradient by hand", evaluations=L + 3),
        Row("torchebm", "rival", _torchebm, f"HamiltonianMonteCarlo(GaussianModel).sample; {RIVAL_STEPS} steps a call", evaluations=2 * L + 2),
        Row("ebmkit", "rival", _ebmkit, f"HMC.sample on the energy in plain torch; {RIVAL_STEPS} steps a call", evaluations=L + 1),
        Row("blackjax", "rival", _blackjax, f"hmc, {JAX_STEPS} steps compiled by JAX, which takes the threads it likes", evaluations=L),
    ),
    make_inputs=make_inputs,
    check=check,
    unit="chain step",
    problems=tuple(
        NamedProblem(f"Gaussian {n}x{dim}", n * NUM_STEPS, (n, dim), judged=((NUM_JUDGED, dim), JUDGED_STEPS))
        for n, dim in ((128, 2), (10_000, 2), (1024, 10))
    ),
)
