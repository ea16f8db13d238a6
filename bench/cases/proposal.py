"""What Gibbs-with-Gradients adds to a torch energy on {0, 1}: propose a flip, accept it or not, with energies and gradients given."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import OneHotCategorical

from ebmcore import ops
from ebmcore.bench.checks import check_stationarity
from ebmcore.bench.timing import Case, NamedProblem, Row, Run
from ebmcore.samplers import GibbsWithGradients
from ebmcore.types import Key

DIM = 784


class Inputs(NamedTuple):
    """States (num_chains, DIM), and energies and gradients there and at the proposal."""

    x: Tensor
    energy: Tensor
    grad: Tensor
    new_energy: Tensor
    new_grad: Tensor


def make_inputs(problem: NamedProblem, num_sets: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    shape = (problem.spec, DIM)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(problem.device)

    x = torch.randint(2, shape, generator=generator).float().to(problem.device)
    return Inputs(x, normal(shape[0]), normal(*shape), normal(shape[0]), normal(*shape))


def check(inputs: Inputs) -> str:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(10, size, generator=generator).to(inputs.x.device) for size in (6, 1))

    def energy(x: Tensor) -> Tensor:
        return torch.tanh(x @ first.to(x.dtype)).sum(1) + (x @ second.to(x.dtype)).squeeze(1)

    return str(check_stationarity(GibbsWithGradients(), energy, (10,), 20))


def _ours(inputs: Inputs) -> Run:
    x, energy, differences = inputs.x.clone(), inputs.energy.clone(), (2 * inputs.x - 1) * inputs.grad
    keys = list(Key(1).to(x.device).steps(1024))

    def step(i: int) -> Tensor:
        key = keys[i % 1024]
        site, log_q = ops.propose_flips(differences, key=key)
        old = x.gather(1, site)
        x.scatter_(1, site, 1 - old)
        new_differences = torch.addcmul(-inputs.new_grad, x, inputs.new_grad, value=2)
        verdict = ops.accept_flips_(energy, differences, inputs.new_energy, new_differences, site, log_q, key=key)
        return x.scatter_(1, site, torch.where(verdict.is_accepted[:, None], 1 - old, old))

    return step


def _eager(inputs: Inputs) -> Run:
    x, energy, grad, new_energy, new_grad = inputs

    def step(i: int) -> Tensor:
        forward = OneHotCategorical(logits=(2 * x - 1) * grad / 2)
        change = forward.sample()
        x_new = (1 - x) * change + x * (1 - change)
        backward = OneHotCategorical(logits=(2 * x_new - 1) * new_grad / 2)
        log_ratio = energy - new_energy + backward.log_prob(change) - forward.log_prob(change)
        return torch.where((torch.rand_like(log_ratio) < log_ratio.exp())[:, None], x_new, x)

    return step


def _tuned(inputs: Inputs) -> Run:
    x, energy, _, new_energy, new_grad = inputs
    x, logits = x.clone(), (2 * x - 1) * inputs.grad / 2
    log_z = logits.logsumexp(1)

    def step(i: int) -> Tensor:
        site = (logits - torch.empty_like(logits).exponential_().log_()).argmax(1, keepdim=True)
        old = x.gather(1, site)
        x.scatter_(1, site, 1 - old)
        new_logits = (x - 0.5) * new_grad
        new_log_z = new_logits.logsumexp(1)
        log_q, new_log_q = logits.gather(1, site).squeeze(1) - log_z, new_logits.gather(1, site).squeeze(1) - new_log_z
        is_accepted = torch.rand_like(log_z) < (energy - new_energy + new_log_q - log_q).exp()
        torch.where(is_accepted[:, None], new_logits, logits)
        return x.scatter_(1, site, torch.where(is_accepted[:, None], 1 - old, old))

    return step


CASE = Case(
    name="proposal",
    summary=f"proposal and acceptance of one Gibbs-with-Gradients step on {DIM} binary sites, energies and gradients given",
    rows=(
        Row("ebmcore propose_flips, accept_flips_", "ours", _ours, "with the flips of x and the differences of the new gradient in torch"),
        Row("torch eager", "eager", _eager, "OneHotCategorical twice"),
        Row("torch tuned", "tuned", _tuned, "logits and normaliser kept, Gumbel-argmax, x flipped in place"),
    ),
    make_inputs=make_inputs,
    check=check,
    unit="chain",
    problems=(NamedProblem("100 chains", 100, 100), NamedProblem("10000 chains", 10_000, 10_000)),
)
