"""Gibbs-with-Gradients on Potts models on tori, E = -COUPLING Σ [x_i = x_j]."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ebmcore.bench.cases.gwg import neighbour_table
from ebmcore.bench.checks import check_carried_energies, check_stationarity
from ebmcore.bench.timing import Case, NamedProblem, Part, Row, Run
from ebmcore.energies import Potts
from ebmcore.samplers import GibbsWithGradients

COUPLING, NUM_CHAINS, NUM_STEPS = 0.5, 100, 1000
TUNED_STEPS = 20


class Inputs(NamedTuple):
    """Tokens x, uint8 (num_chains, side, side), and the torus as neighbours (num_sites, 4)."""

    energy: Potts
    x: Tensor
    neighbours: Tensor
    num_categories: int


def make_inputs(problem: NamedProblem, num_sets: int) -> Inputs:
    side, q = problem.spec
    sites = torch.arange(side * side).reshape(side, side)
    edges = torch.cat([torch.stack((sites.flatten(), sites.roll(-1, axis).flatten()), 1) for axis in (0, 1)])
    neighbours, _ = neighbour_table(edges, torch.ones(len(edges)), side * side)
    x = torch.randint(q, (NUM_CHAINS, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Inputs(Potts.lattice((side, side), q, COUPLING).to(problem.device), x.to(problem.device), neighbours.to(problem.device), q)


def check(inputs: Inputs) -> str:
    energy, x, _, q = inputs
    passed = check_carried_energies(GibbsWithGradients(), energy, x, NUM_STEPS)
    shape = (3, 3) if q == 3 else (4,)
    return f"{passed}; {check_stationarity(GibbsWithGradients(), Potts.lattice(shape, q, COUPLING).to(x.device), shape, 50)}"


def _ours(inputs: Inputs) -> Run:
    return lambda i: GibbsWithGradients()(inputs.energy, inputs.x, NUM_STEPS, seed=1)


def dense_energy(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    """The energy of one-hot rows (num_chains, num_sites * num_categories), by a dense matrix."""
    num_sites, q = len(inputs.neighbours), inputs.num_categories
    matrix = torch.zeros(num_sites, q, num_sites, q, device=inputs.x.device)
    for category in range(q):
        matrix[torch.arange(num_sites)[:, None], category, inputs.neighbours, category] = COUPLING
    parameter = torch.nn.Parameter(matrix.reshape(num_sites * q, num_sites * q))
    return lambda x: -0.5 * (x @ parameter * x).sum(1)


def _eager(inputs: Inputs) -> Part:
    q = inputs.num_categories
    energy, x = dense_energy(inputs), torch.nn.functional.one_hot(inputs.x.flatten(1).long(), q).float().flatten(1)
    return Part(lambda i: eager_step(energy, x, q), 1 / NUM_STEPS)


def eager_step(energy: Callable[[Tensor], Tensor], x: Tensor, num_categories: int) -> Tensor:
    """One step on one-hot rows (num_chains, num_sites * num_categories), as the paper reads: four forwards and two backwards."""

    def proposal(x: Tensor) -> torch.distributions.OneHotCategorical:
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(energy(x).sum(), x)
        x, grad = (t.detach().reshape(len(x), -1, num_categories) for t in (x, grad))
        differences = (x * grad).sum(2, keepdim=True) - grad
        # Its check that float32 probabilities sum to 1 fails now and then with thousands of them.
        return torch.distributions.OneHotCategorical(logits=(differences / 2 - 1e9 * x).flatten(1), validate_args=False)

    forward = proposal(x)
    change = forward.sample()
    is_site = change.reshape(len(x), -1, num_categories).sum(2).repeat_interleave(num_categories, 1)
    x_new = x * (1 - is_site) + change
    backward = proposal(x_new)
    change_back = x * is_site
    with torch.no_grad():
        log_ratio = energy(x) - energy(x_new) + backward.log_prob(change_back) - forward.log_prob(change)
        is_accepted = torch.rand_like(log_ratio) < log_ratio.exp()
    return torch.where(is_accepted[:, None], x_new, x)


def tuned_steps(tokens: Tensor, neighbours: Tensor, num_categories: int, num_steps: int) -> Tensor:
    """The same in analytic torch: no autograd, fields kept up, one new normaliser a step; the acceptance is min(1, Z / Z')."""
    x = tokens.long()
    field = COUPLING * torch.nn.functional.one_hot(x[:, neighbours], num_categories).sum(2).float()

    def logits_of(x: Tensor, field: Tensor) -> Tensor:
        present = x[..., None]
        return ((field - field.gather(2, present)) / 2).scatter_(2, present, -torch.inf).flatten(1)

    logits = logits_of(x, field)
    log_z = logits.logsumexp(1)
    chains = torch.arange(len(x), device=x.device)
    for _ in range(num_steps):
        change = (logits - torch.empty_like(logits).exponential_().log_()).argmax(1)
        site, new = change // num_categories, change % num_categories
        x_new, field_new = x.clone(), field.clone()
        x_new[chains, site] = new
        field_new[chains[:, None], neighbours[site], x[chains, site][:, None]] -= COUPLING
        field_new[chains[:, None], neighbours[site], new[:, None]] += COUPLING
        logits_new = logits_of(x_new, field_new)
        log_z_new = logits_new.logsumexp(1)
        is_accepted = torch.rand_like(log_z) < (log_z - log_z_new).exp()
        row = is_accepted[:, None]
        x, field = torch.where(row, x_new, x), torch.where(row[..., None], field_new, field)
        logits, log_z = torch.where(row, logits_new, logits), torch.where(is_accepted, log_z_new, log_z)
    return x


def _tuned(inputs: Inputs) -> Part:
    tokens = inputs.x.flatten(1)
    return Part(lambda i: tuned_steps(tokens, inputs.neighbours, inputs.num_categories, TUNED_STEPS), TUNED_STEPS / NUM_STEPS)


CASE = Case(
    name="potts",
    summary=f"Gibbs-with-Gradients on Potts tori, {NUM_STEPS} steps of {NUM_CHAINS} chains",
    rows=(
        Row("ebmcore GibbsWithGradients", "ours", _ours),
        Row("torch eager", "eager", _eager, "the paper's algorithm on one-hot rows: 4 forwards, 2 backwards, dense J; one step a call"),
        Row("torch tuned", "tuned", _tuned, f"fields kept up by neighbour tables, Gumbel-argmax, one logsumexp a step; {TUNED_STEPS} steps a call"),
    ),
    make_inputs=make_inputs,
    check=check,
    unit="chain step",
    problems=tuple(
        NamedProblem(name, NUM_CHAINS * NUM_STEPS, spec) for name, spec in (("10x10 q=3", (10, 3)), ("10x10 q=20", (10, 20)), ("32x32 q=3", (32, 3)))
    ),
)
