"""Gibbs-with-Gradients on Ising models: tori with one coupling, random graphs with normal couplings; how the cost grows with D."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ebmcore.bench.checks import check_carried_energies, check_stationarity
from ebmcore.bench.timing import Case, LeftOutError, NamedProblem, Part, Row, Run
from ebmcore.energies import Ising
from ebmcore.samplers import GibbsWithGradients

COUPLING, NUM_CHAINS, NUM_STEPS = 0.3, 100, 1000
TUNED_STEPS = 20


class Inputs(NamedTuple):
    """The model as ours and as edges (num_edges, 2) with couplings (num_edges,); spins x, int8 (num_chains, *event)."""

    energy: Ising
    edges: Tensor
    coupling: Tensor
    x: Tensor
    num_steps: int


def lattice(side: int) -> tuple[Ising, Tensor, Tensor]:
    sites = torch.arange(side * side).reshape(side, side)
    edges = torch.cat([torch.stack((sites.flatten(), sites.roll(-1, axis).flatten()), 1) for axis in (0, 1)])
    return Ising.lattice((side, side), COUPLING), edges, torch.full((len(edges),), COUPLING)


def random_graph(num_sites: int) -> tuple[Ising, Tensor, Tensor]:
    """2 num_sites edges between random sites: degree 4 in the mean (Erdős-Rényi)."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(num_sites, (3 * num_sites + 50, 2), generator=generator).sort(1).values
    codes = torch.unique((pairs[:, 0] * num_sites + pairs[:, 1])[pairs[:, 0] != pairs[:, 1]])
    codes = codes[torch.randperm(len(codes), generator=generator)[: 2 * num_sites]]
    edges = torch.stack((codes // num_sites, codes % num_sites), 1)
    coupling = COUPLING * torch.randn(len(edges), generator=generator)
    return Ising(edges, coupling, 0.0, num_sites=num_sites), edges, coupling


def make_inputs(problem: NamedProblem, num_sets: int) -> Inputs:
    build, size, num_chains, num_steps = problem.spec
    energy, edges, coupling = build(size)
    event = (size, size) if build is lattice else (size,)
    x = 2 * torch.randint(2, (num_chains, *event), generator=torch.Generator().manual_seed(1), dtype=torch.int8) - 1
    device = problem.device
    return Inputs(energy.to(device), edges.to(device), coupling.to(device), x.to(device), num_steps)


def check(inputs: Inputs) -> str:
    energy, x = inputs.energy, inputs.x[:4]
    passed = check_carried_energies(GibbsWithGradients(), energy, x, min(inputs.num_steps, 1000))
    shape = (4, 4) if x.dim() == 3 else (12,)
    small = Ising.lattice(shape, COUPLING) if x.dim() == 3 else random_graph(12)[0]
    return f"{passed}; {check_stationarity(GibbsWithGradients(), small.to(x.device), shape, 50)}"


def _ours(inputs: Inputs) -> Run:
    return lambda i: GibbsWithGradients()(inputs.energy, inputs.x, inputs.num_steps, seed=1)


def eager_step(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """One step on {0, 1} as the paper's algorithm 1 reads (Grathwohl et al. 2021): four forwards and two backwards."""

    def proposal(x: Tensor) -> torch.distributions.OneHotCategorical:
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(energy(x).sum(), x)
        # By default its arguments are checked, as most users leave it; float32 probabilities of more sites than this do not pass.
        validate_args = None if x.shape[1] <= 5000 else False
        return torch.distributions.OneHotCategorical(logits=(2 * x.detach() - 1) * grad / 2, validate_args=validate_args)

    forward = proposal(x)
    change = forward.sample()
    x_new = (1 - x) * change + x * (1 - change)
    backward = proposal(x_new)
    with torch.no_grad():
        log_ratio = energy(x) - energy(x_new) + backward.log_prob(change) - forward.log_prob(change)
        is_accepted = torch.rand_like(log_ratio) < log_ratio.exp()
    return torch.where(is_accepted[:, None], x_new, x)


def _eager(inputs: Inputs) -> Part:
    num_sites = inputs.x[0].numel()
    if len(inputs.x) < NUM_CHAINS:
        raise LeftOutError(f"see the problems of {NUM_CHAINS} chains")
    matrix = torch.zeros(num_sites, num_sites, device=inputs.x.device)
    first, second = inputs.edges.T
    matrix[first, second] = matrix[second, first] = inputs.coupling
    matrix = torch.nn.Parameter(matrix)
    x = (inputs.x.flatten(1).float() + 1) / 2

    def energy(x: Tensor) -> Tensor:
        s = 2 * x - 1
        return -0.5 * (s @ matrix * s).sum(1)

    return Part(lambda i: eager_step(energy, x), 1 / inputs.num_steps)


def tuned_steps(spins: Tensor, neighbours: Tensor, weights: Tensor, num_steps: int) -> Tensor:
    """The same in analytic torch: no autograd, fields kept up, one new normaliser a step.

    With log q(i) = Δ_i / 2 - log Z and exact differences Δ_i = -2 s_i f_i the acceptance is min(1, Z / Z').
    """
    s = spins.clone()
    field = (s[:, neighbours] * weights).sum(2)
    log_z = (-s * field).logsumexp(1)
    chains = torch.arange(len(s), device=s.device)
    for _ in range(num_steps):
        logits = -s * field
        i = (logits - torch.empty_like(logits).exponential_().log_()).argmax(1)
        old = s[chains, i]
        new_field = field.scatter_add(1, neighbours[i], -2 * old[:, None] * weights[i])
        s[chains, i] = -old
        new_log_z = (-s * new_field).logsumexp(1)
        is_accepted = torch.rand_like(log_z) < (log_z - new_log_z).exp()
        s[chains, i] = torch.where(is_accepted, -old, old)
        field = torch.where(is_accepted[:, None], new_field, field)
        log_z = torch.where(is_accepted, new_log_z, log_z)
    return s


def neighbour_table(edges: Tensor, coupling: Tensor, num_sites: int) -> tuple[Tensor, Tensor]:
    """Neighbours and couplings of each site, (num_sites, max_degree); rows are filled up with the site itself and 0."""
    ends = torch.cat((edges, edges.flip(1)))
    order = ends[:, 0].argsort(stable=True)
    first, second = ends[order].T
    degree = first.bincount(minlength=num_sites)
    slot = torch.arange(len(first), device=edges.device) - (degree.cumsum(0) - degree)[first]
    neighbours = torch.arange(num_sites, device=edges.device)[:, None].repeat(1, int(degree.max()))
    weights = torch.zeros(neighbours.shape, device=edges.device)
    neighbours[first, slot], weights[first, slot] = second, coupling.repeat(2)[order]
    return neighbours, weights


def _tuned(inputs: Inputs) -> Part:
    spins = inputs.x.flatten(1).float()
    if len(spins) < NUM_CHAINS:
        raise LeftOutError(f"see the problems of {NUM_CHAINS} chains")
    neighbours, weights = neighbour_table(inputs.edges, inputs.coupling, spins.shape[1])
    return Part(lambda i: tuned_steps(spins, neighbours, weights, TUNED_STEPS), TUNED_STEPS / inputs.num_steps)


def _problems() -> list[NamedProblem]:
    rows = [("10x10", lattice, 10), ("32x32", lattice, 32), ("100x100", lattice, 100), ("random 1000", random_graph, 1000)]
    problems = [(name, build, size, NUM_CHAINS, NUM_STEPS) for name, build, size in rows]
    for side, size in ((10, "1e2"), (32, "1e3"), (100, "1e4"), (316, "1e5"), (1000, "1e6")):
        num_steps = max(20_000, side**2)  # the start of a call costs O(D); few chains, so that a million sites fit
        problems.append((f"growth: torus {size}", lattice, side, 4, num_steps))
        problems.append((f"growth: random {size}", random_graph, side**2, 4, num_steps))
    return [NamedProblem(name, n * k, (build, size, n, k)) for name, build, size, n, k in problems]


CASE = Case(
    name="gwg",
    summary=f"Gibbs-with-Gradients on Ising models, {NUM_STEPS} steps of {NUM_CHAINS} chains (growth: 4 chains, 20,000 steps or more)",
    rows=(
        Row("ebmcore GibbsWithGradients", "ours", _ours),
        Row("torch eager", "eager", _eager, "the paper's algorithm on {0, 1}: 4 forwards, 2 backwards, OneHotCategorical, dense J; one step a call"),
        Row("torch tuned", "tuned", _tuned, f"fields kept up by neighbour tables, Gumbel-argmax, one logsumexp a step; {TUNED_STEPS} steps a call"),
    ),
    make_inputs=make_inputs,
    check=check,
    unit="chain step",
    problems=tuple(_problems()),
)
