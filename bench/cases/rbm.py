"""Bernoulli RBMs: block Gibbs, and Gibbs-with-Gradients with one matrix product a step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli
from torch.nn.functional import linear, softplus

from ebmcore.bench.cases.gwg import eager_step
from ebmcore.bench.checks import check_stationarity
from ebmcore.bench.timing import Case, LeftOutError, NamedProblem, Part, Row, Run
from ebmcore.energies import BernoulliRBM
from ebmcore.samplers import BlockGibbs, GibbsWithGradients

NUM_CHAINS, NUM_STEPS = 100, 100
RIVAL_STEPS = 5  # of a call of the torch rows, whose steps take as long as they take


class Inputs(NamedTuple):
    """The sampler, the model, its weight as a linear layer has it (num_hidden, num_visible), and states (num_chains, num_visible)."""

    sampler: BlockGibbs | GibbsWithGradients
    rbm: BernoulliRBM
    weight: Tensor
    x: Tensor


def make_inputs(problem: NamedProblem, num_sets: int) -> Inputs:
    sampler, num_visible, num_hidden = problem.spec
    generator = torch.Generator().manual_seed(0)
    rbm = BernoulliRBM(num_visible, num_hidden)
    with torch.no_grad():
        rbm.weight.copy_(0.05 * torch.randn(num_visible, num_hidden, generator=generator))
    x = torch.randint(2, (NUM_CHAINS, num_visible), generator=generator).float()
    rbm = rbm.to(problem.device)
    return Inputs(sampler, rbm, rbm.weight.detach().T.contiguous(), x.to(problem.device))


def check(inputs: Inputs) -> str:
    small = BernoulliRBM(8, 5)
    with torch.no_grad():
        small.weight.copy_(torch.randn(8, 5, generator=torch.Generator().manual_seed(1)))
    passed: str = check_stationarity(inputs.sampler, small.to(inputs.x.device), (8,), 20)
    return passed


def _ours(inputs: Inputs) -> Run:
    return lambda i: inputs.sampler(inputs.rbm, inputs.x, NUM_STEPS, seed=1)


def _eager(inputs: Inputs) -> Part:
    _, rbm, weight, x = inputs
    weight, visible_bias, hidden_bias = (torch.nn.Parameter(p.detach()) for p in (weight, rbm.visible_bias, rbm.hidden_bias))

    def energy(x: Tensor) -> Tensor:
        return -softplus(linear(x, weight, hidden_bias)).sum(1) - (visible_bias * x).sum(1)

    def sweep(x: Tensor) -> Tensor:
        hidden = Bernoulli(probs=torch.sigmoid(linear(x, weight, hidden_bias))).sample()
        visible: Tensor = Bernoulli(probs=torch.sigmoid(linear(hidden, weight.T, visible_bias))).sample()
        return visible

    def steps(i: int) -> Tensor:
        states = x
        for _ in range(RIVAL_STEPS):
            states = sweep(states) if isinstance(inputs.sampler, BlockGibbs) else eager_step(energy, states)
        return states

    return Part(steps, RIVAL_STEPS / NUM_STEPS)


def _tuned(inputs: Inputs) -> Part:
    if not isinstance(inputs.sampler, BlockGibbs):
        raise LeftOutError("of block Gibbs alone")
    rbm, x = inputs.rbm, inputs.x
    weight, visible_bias, hidden_bias = (p.detach() for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias))

    def steps(i: int) -> Tensor:
        states = x
        for _ in range(RIVAL_STEPS):
            p_hidden = torch.addmm(hidden_bias, states, weight).sigmoid_()
            hidden = (torch.rand_like(p_hidden) < p_hidden).float()
            p_visible = torch.addmm(visible_bias, hidden, weight.T).sigmoid_()
            states = (torch.rand_like(p_visible) < p_visible).float()
        return states

    return Part(steps, RIVAL_STEPS / NUM_STEPS)


CASE = Case(
    name="rbm",
    summary=f"Bernoulli RBMs, {NUM_STEPS} steps of {NUM_CHAINS} chains",
    rows=(
        Row("ebmcore", "ours", _ours, "the sampler's call, start included"),
        Row("torch eager", "eager", _eager, f"distributions, autograd for the gradients of GWG; {RIVAL_STEPS} steps a call"),
        Row("torch tuned", "tuned", _tuned, f"no graph, sigmoid in place, rand < p; {RIVAL_STEPS} steps a call"),
    ),
    make_inputs=make_inputs,
    check=check,
    unit="chain step",
    problems=tuple(
        NamedProblem(f"{name} {num_visible}-{num_hidden}", NUM_CHAINS * NUM_STEPS, (sampler, num_visible, num_hidden))
        for name, sampler in (("block Gibbs", BlockGibbs()), ("GWG", GibbsWithGradients()))
        for num_visible, num_hidden in ((784, 500), (100, 25))
    ),
)
