"""Whole Langevin chains on energies by formula: double wells, and a mixture of eight Gaussians."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore.bench.checks import check_native_chains
from ebmcore.bench.jax_chains import JAX_STEPS, jax_chains
from ebmcore.bench.timing import Case, LeftOutError, NamedProblem, Part, Row
from ebmcore.energies import DoubleWell, GaussianMixture
from ebmcore.samplers import Langevin

STEP_SIZE = 0.01
NUM_STEPS, RIVAL_STEPS = 1000, 20  # of a call; steps of the torch rows take as long as they take
NUM_JUDGED, JUDGED_STEPS = 256, 4000  # chains whose draws are judged, and their steps
HEIGHT, STD = 2.0, 0.5
NOISE_STD = math.sqrt(2 * STEP_SIZE)


class Inputs(NamedTuple):
    """The energy, the same in plain torch as a user writes it, its gradient by hand, and chains x (num_chains, dim)."""

    energy: DoubleWell | GaussianMixture
    formula: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    x: Tensor


def make_inputs(problem: NamedProblem, num_sets: int) -> Inputs:
    name, num_chains, dim = problem.spec
    x = torch.randn(num_chains, dim, generator=torch.Generator().manual_seed(0)).to(problem.device)
    if name == "double well":
        return Inputs(
            DoubleWell(HEIGHT),
            lambda x: HEIGHT * (x.square() - 1).square().sum(1),
            lambda x: 4 * HEIGHT * x * (x.square() - 1),
            x,
        )
    angles = torch.arange(8, device=problem.device) * (math.pi / 4)
    means = 4 * torch.stack((angles.cos(), angles.sin()), 1)

    def log_parts(x: Tensor) -> Tensor:
        return (x[:, None] - means).square().sum(2) * (-0.5 / STD**2)

    return Inputs(
        GaussianMixture([1.0] * 8, means.cpu(), std=STD).to(problem.device),
        lambda x: -torch.logsumexp(log_parts(x), 1),
        lambda x: (x - torch.softmax(log_parts(x), 1) @ means) / STD**2,
        4 * x,
    )


def check(inputs: Inputs) -> str:
    passed: str = check_native_chains(Langevin(STEP_SIZE), inputs.energy, inputs.x, 10)
    return passed


def _ours(inputs: Inputs) -> Part:
    sampler = Langevin(STEP_SIZE)
    return Part(lambda i: sampler(inputs.energy, inputs.x, NUM_STEPS, seed=1), 1.0, lambda x: sampler(inputs.energy, x, 1))


def _ours_on_torch(inputs: Inputs) -> Part:
    sampler = Langevin(STEP_SIZE)
    share = RIVAL_STEPS / NUM_STEPS
    return Part(lambda i: sampler(inputs.formula, inputs.x, RIVAL_STEPS, seed=1), share, lambda x: sampler(inputs.formula, x, 1))


def _steps(step: Callable[[Tensor], Tensor], x: Tensor) -> Part:
    def steps(i: int) -> Tensor:
        states = x.clone()
        for _ in range(RIVAL_STEPS):
            states = step(states)
        return states

    return Part(steps, RIVAL_STEPS / NUM_STEPS, step)


def _eager(inputs: Inputs) -> Part:
    def step(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(inputs.formula(x).sum(), x)
        return (x - STEP_SIZE * grad + NOISE_STD * torch.randn_like(x)).detach()

    return _steps(step, inputs.x)


def _tuned(inputs: Inputs) -> Part:
    def step(x: Tensor) -> Tensor:
        return x.add_(inputs.gradient(x), alpha=-STEP_SIZE).add_(torch.randn_like(x), alpha=NOISE_STD)

    return _steps(torch.no_grad()(step), inputs.x)


def _compiled(inputs: Inputs) -> Part:
    def step(x: Tensor) -> Tensor:
        return x - STEP_SIZE * inputs.gradient(x) + NOISE_STD * torch.randn_like(x)

    # Inductor's own randn is ten times slower than eager's on the CPU.
    return _steps(torch.compile(step, fullgraph=True, dynamic=False, options={"fallback_random": not inputs.x.is_cuda}), inputs.x)


def _torchebm(inputs: Inputs) -> Part:
    if not isinstance(inputs.energy, DoubleWell):
        raise LeftOutError("has no mixture")
    precision = torch.get_float32_matmul_precision()
    core, samplers = (importlib.import_module(f"torchebm.{name}") for name in ("core", "samplers"))
    torch.set_float32_matmul_precision(precision)  # importing some parts of torchebm changes it for the process
    settings: dict[str, Any] = {"dtype": inputs.x.dtype, "device": inputs.x.device}
    sampler = samplers.LangevinDynamics(core.DoubleWellModel(HEIGHT, 1.0, **settings), step_size=STEP_SIZE, noise_scale=1.0, **settings)
    share = RIVAL_STEPS / NUM_STEPS
    return Part(lambda i: sampler.sample(x=inputs.x, n_steps=RIVAL_STEPS), share, lambda x: sampler.sample(x=x, n_steps=1))


def _ebmkit(inputs: Inputs) -> Part:
    sampler = importlib.import_module("ebm.samplers").LangevinDynamics(STEP_SIZE)
    share = RIVAL_STEPS / NUM_STEPS
    return Part(lambda i: sampler.sample(inputs.formula, inputs.x, steps=RIVAL_STEPS), share, lambda x: sampler.sample(inputs.formula, x, steps=1))


def _blackjax(inputs: Inputs) -> Part:
    if not isinstance(inputs.energy, DoubleWell):
        raise LeftOutError("is given the double well only")
    jax, blackjax = importlib.import_module("jax"), importlib.import_module("blackjax")
    sgld = blackjax.sgld(lambda x, batch: jax.grad(lambda x: -HEIGHT * ((x**2 - 1) ** 2).sum())(x))  # with the whole gradient it is Langevin
    return jax_chains(sgld.init, lambda key, x: sgld.step(key, x, None, STEP_SIZE), lambda x: x, inputs.x, JAX_STEPS, NUM_STEPS)


def _judged(name: str, dim: int) -> tuple[Any, int] | None:
    """Not the mixture, whose modes chains leave once in thousands of steps, nor the smallest of a hundred equal coordinates."""
    return ((name, NUM_JUDGED, dim), JUDGED_STEPS) if name == "double well" and dim == 2 else None


PROBLEMS = (("double well", 100, 2), ("double well", 10_000, 2), ("double well", 1000, 100), ("mixture", 10_000, 2))

CASE = Case(
    name="chains",
    summary=f"whole Langevin chains of {NUM_STEPS} steps on energies by formula",
    rows=(
        Row("ebmcore", "ours", _ours, "Langevin on a native energy, one call, start included", evaluations=1),
        Row("ebmcore, torch energy", "ours", _ours_on_torch, f"Langevin on the energy in plain torch; {RIVAL_STEPS} steps a call", evaluations=1),
        Row("torch eager", "eager", _eager, f"the energy in plain torch, autograd.grad, randn_like; {RIVAL_STEPS} steps a call", evaluations=1),
        Row("torch tuned", "tuned", _tuned, f"the gradient by hand, no graph, in place; {RIVAL_STEPS} steps a call", evaluations=1),
        Row("torch.compile", "compiled", _compiled, "of a step with the gradient by hand; on the CPU with eager's randn", evaluations=1),
        Row("torchebm", "rival", _torchebm, f"LangevinDynamics(DoubleWellModel).sample; {RIVAL_STEPS} steps a call", evaluations=1),
        Row("ebmkit", "rival", _ebmkit, f"LangevinDynamics.sample on the energy in plain torch; {RIVAL_STEPS} steps a call", evaluations=1),
        Row(
            "blackjax",
            "rival",
            _blackjax,
            f"sgld with the whole gradient, {JAX_STEPS} steps compiled by JAX, which takes the threads it likes",
            evaluations=1,
        ),
    ),
    make_inputs=make_inputs,
    check=check,
    unit="chain step",
    problems=tuple(NamedProblem(f"{name} {n}x{dim}", n * NUM_STEPS, (name, n, dim), judged=_judged(name, dim)) for name, n, dim in PROBLEMS),
)
