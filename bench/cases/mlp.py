"""Langevin chains on a perceptron of the user's own: 784-256-256-1, as wide as images want, and 2-128-128-1."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebmcore import ops
from ebmcore.bench.timing import Case, CheckError, LeftOutError, NamedProblem, Part, Row, Run
from ebmcore.energies import LoweredEnergy, lower
from ebmcore.samplers import Langevin
from ebmcore.types import Key

STEP_SIZE = 0.01
RIVAL_STEPS = 6  # of a call of the torch rows, whose steps take as long as they take
NOISE_STD = math.sqrt(2 * STEP_SIZE)


WIDE, SMALL = (784, 256, 256, 1), (2, 128, 128, 1)
PROBLEMS = ((WIDE, 64, 60), (WIDE, 256, 60), (SMALL, 1, 60), (SMALL, 1, 1000), (SMALL, 32, 1000), (SMALL, 256, 200))


class Inputs(NamedTuple):
    """The user's module, (n, num_inputs) -> (n, 1), chains, and the steps of a call."""

    module: nn.Sequential
    energy: LoweredEnergy
    x: Tensor
    num_steps: int


def make_inputs(problem: NamedProblem, num_sets: int) -> Inputs:
    widths, num_chains, num_steps = problem.spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.SiLU()]
        module = nn.Sequential(*layers[:-1]).to(problem.device)
        x = torch.randn(num_chains, widths[0]).to(problem.device)
    return Inputs(module, lower(module), x, num_steps)


def check(inputs: Inputs) -> str:
    """Five steps against the formula in float64 under the same noise, and those in bfloat16 beside them."""
    module, energy, x, _ = inputs
    ours = Langevin(STEP_SIZE)(energy, x, 5, seed=1)
    double = nn.Sequential(*(nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else nn.SiLU() for m in module))
    double.load_state_dict(module.state_dict())
    double = double.to(x.device).double()
    y = x.double()
    for i in range(5):
        leaf = y.detach().requires_grad_()
        (grad,) = torch.autograd.grad(double(leaf).sum(), leaf)
        noise = ops.normal(x.shape, key=Key(1).advance(i), stream=ops.Stream.PROPOSAL, device=x.device)
        y = y - STEP_SIZE * grad + NOISE_STD * noise.double()
    error = float((ours.double() - y).abs().max())
    if error > 1e-5:
        raise CheckError(f"five steps are {error:.2g} away from the formula")
    if x.is_cuda:
        return f"five steps within {error:.1g} of the formula in float64, with the same noise"
    rounded = float((Langevin(STEP_SIZE, precision="bf16")(energy, x, 5, seed=1).double() - y).abs().max())
    if not rounded < 1e-2 * STEP_SIZE * 5:
        raise CheckError(f"five steps in bfloat16 are {rounded:.2g} away from the formula")
    return f"five steps within {error:.1g} of the formula in float64 with the same noise, in bfloat16 within {rounded:.1g}"


def _ours(**mode: Any) -> Callable[[Inputs], Run]:
    def make(inputs: Inputs) -> Run:
        if "precision" in mode and inputs.x.is_cuda:
            raise LeftOutError("for CPUs")
        sampler = Langevin(STEP_SIZE, **mode)
        return lambda i: sampler(inputs.energy, inputs.x, inputs.num_steps, seed=1)

    return make


def _eager_grad(module: nn.Module, x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(module(leaf).sum(), leaf)
    return grad


def _eager(inputs: Inputs) -> Part:
    def steps(i: int) -> Tensor:
        x = inputs.x
        for _ in range(RIVAL_STEPS):
            x = x - STEP_SIZE * _eager_grad(inputs.module, x) + NOISE_STD * torch.randn_like(x)
        return x

    return Part(steps, RIVAL_STEPS / inputs.num_steps)


def _by_hand(inputs: Inputs) -> Part:
    linears = [(layer.weight.detach(), layer.bias.detach()) for layer in inputs.module if isinstance(layer, nn.Linear)]

    def steps(i: int) -> Tensor:
        x = inputs.x.clone()
        for _ in range(RIVAL_STEPS):
            h, slopes = x, []
            for weight, bias in linears[:-1]:
                z = torch.addmm(bias, h, weight.t())
                s = torch.sigmoid(z)
                h = z * s
                slopes.append(s.add_(h * (1 - s)))
            grad = linears[-1][0] * slopes[-1]
            for k in range(len(slopes) - 1, -1, -1):
                grad = grad @ linears[k][0]
                if k:
                    grad.mul_(slopes[k - 1])
            x.sub_(grad, alpha=STEP_SIZE).add_(torch.randn_like(x), alpha=NOISE_STD)
        return x

    return Part(steps, RIVAL_STEPS / inputs.num_steps)


def _compiled(inputs: Inputs) -> Part:
    module = inputs.module

    def energy(x: Tensor) -> Tensor:
        total: Tensor = module(x).sum()
        return total

    step_grad = torch.compile(torch.func.grad(energy), dynamic=False)

    def steps(i: int) -> Tensor:
        x: Tensor = inputs.x
        for _ in range(RIVAL_STEPS):
            x = x - STEP_SIZE * step_grad(x).detach() + NOISE_STD * torch.randn_like(x)
        return x

    return Part(steps, RIVAL_STEPS / inputs.num_steps)


def _torchebm(inputs: Inputs) -> Part:
    precision = torch.get_float32_matmul_precision()
    core, samplers = importlib.import_module("torchebm.core"), importlib.import_module("torchebm.samplers")
    torch.set_float32_matmul_precision(precision)  # importing some parts of torchebm changes it for the process

    class Model(core.BaseModel):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.module = inputs.module

        def forward(self, x: Tensor) -> Tensor:
            energies: Tensor = self.module(x).squeeze(1)
            return energies

    sampler = samplers.LangevinDynamics(Model().to(inputs.x.device), step_size=STEP_SIZE, noise_scale=1.0, device=inputs.x.device)

    def steps(i: int) -> Tensor:
        states: Tensor = sampler.sample(x=inputs.x.clone(), n_steps=RIVAL_STEPS)
        return states

    return Part(steps, RIVAL_STEPS / inputs.num_steps)


CASE = Case(
    name="mlp",
    summary="Langevin chains on perceptrons",
    rows=(
        Row("ebmcore, lowered", "ours", _ours(), "Langevin on ebmcore.lower(module): one native call; gain of kernels and of saved calls"),
        Row("ebmcore, row space", "ours", _ours(row_space=True), "the same law in fewer dimensions: a gain of the algorithm, exact"),
        Row("ebmcore, bf16", "ours", _ours(precision="bf16"), "products of rounded numbers: a gain of precision, with its bias"),
        Row("ebmcore, bf16, row space", "ours", _ours(precision="bf16", row_space=True), "both"),
        Row("torch eager", "eager", _eager, f"autograd, randn_like; {RIVAL_STEPS} steps a call"),
        Row("torch by hand", "tuned", _by_hand, "forward and backward written out, in place, no graph"),
        Row("torch.compile", "compiled", _compiled, "the gradient compiled"),
        Row("torchebm", "rival", _torchebm, "LangevinDynamics"),
    ),
    make_inputs=make_inputs,
    check=check,
    unit="step",
    problems=tuple(
        NamedProblem(f"{'-'.join(map(str, widths))} {num_chains} x {num_steps} steps", num_steps, (widths, num_chains, num_steps))
        for widths, num_chains, num_steps in PROBLEMS
    ),
)
