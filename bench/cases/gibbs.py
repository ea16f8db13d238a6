"""Gibbs sweeps of the Ising model on a torus, E = -COUPLING Σ s_i s_j."""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore.bench.timing import Case, CheckError, LeftOutError, NamedProblem, Part, Row, Run
from ebmcore.energies import Ising
from ebmcore.samplers import Gibbs

COUPLING, NUM_SWEEPS = 0.3, 100
CHECK_SWEEPS = 100  # from random spins; the correlation length is 1.6


class Inputs(NamedTuple):
    """num_chains tori of side x side, and random spins on them: int8 (num_chains, side, side)."""

    energy: Ising
    x: Tensor


def make_inputs(problem: NamedProblem, num_sets: int) -> Inputs:
    num_chains, side = problem.spec
    energy = Ising.lattice((side, side), COUPLING).to(problem.device)
    generator = torch.Generator(problem.device).manual_seed(0)
    x = torch.randint(2, (num_chains, side, side), generator=generator, device=problem.device, dtype=torch.int8)
    return Inputs(energy, x.mul_(2).sub_(1))


def onsager_bond(coupling: float) -> float:
    """The mean of s_i s_j over the bonds of an infinite lattice (Onsager 1944)."""
    sinh, cosh, tanh = math.sinh(2 * coupling), math.cosh(2 * coupling), math.tanh(2 * coupling)
    a, b = 1.0, math.sqrt(1 - (2 * sinh / cosh**2) ** 2)
    while abs(a - b) > 1e-15 * a:
        a, b = (a + b) / 2, math.sqrt(a * b)
    elliptic = math.pi / (2 * a)  # complete, of the first kind
    return (1 + 2 / math.pi * (2 * tanh**2 - 1) * elliptic) / tanh / 2


def bond_mean(x: Tensor) -> float:
    sums = [int((x * x.roll(1, axis)).sum(dtype=torch.int64)) for axis in (1, 2)]
    return sum(sums) / (2 * x.numel())


def check(inputs: Inputs) -> str:
    energy, x = inputs
    before = x.clone()
    worst = 0.0
    for scan in ("raster", "checkerboard"):
        mean = bond_mean(Gibbs(scan)(energy, x, CHECK_SWEEPS, seed=1))
        variance = (onsager_bond(COUPLING + 1e-5) - onsager_bond(COUPLING - 1e-5)) / 2e-5 / (2 * x.numel())
        z = (mean - onsager_bond(COUPLING)) / math.sqrt(variance)
        if not abs(z) < 5.5:
            raise CheckError(f"{scan}: <s_i s_j> of {tuple(x.shape)} is {mean:.6f}, {z:.1f} standard errors from {onsager_bond(COUPLING):.6f}")
        worst = max(worst, abs(z))
    if not torch.equal(x, before):
        raise CheckError("Gibbs changed its argument x")
    return f"mean energy after {CHECK_SWEEPS} sweeps within 5.5 standard errors of Onsager's ({worst:.1f})"


def _ours(scan: Any) -> Any:
    def setup(inputs: Inputs) -> Run:
        energy, x = inputs
        return lambda i: Gibbs(scan)(energy, x, NUM_SWEEPS, seed=1)

    return setup


def _eager(inputs: Inputs) -> Part:
    x = inputs.x.float()
    rows, columns = torch.meshgrid(*(torch.arange(side, device=x.device) for side in x.shape[1:]), indexing="ij")
    masks = [(rows + columns) % 2 == parity for parity in (0, 1)]

    def sweep(i: int) -> Tensor:
        s = x
        for mask in masks:
            field = s.roll(1, 1) + s.roll(-1, 1) + s.roll(1, 2) + s.roll(-1, 2)
            s = torch.where(mask, 2 * torch.bernoulli(torch.sigmoid(2 * COUPLING * field)) - 1, s)
        return s

    return Part(sweep, 1 / NUM_SWEEPS)


def _tuned(inputs: Inputs) -> Part:
    x = inputs.x.float()
    n, side, _ = x.shape
    cells = x.reshape(n, side // 2, 2, side // 2, 2)
    white = torch.stack((cells[:, :, 0, :, 1], cells[:, :, 1, :, 0]), 2).reshape(n, side, side // 2)

    def update(other: Tensor, shift: int) -> Tensor:
        field = other + other.roll(1, 1)
        field += other.roll(-1, 1)
        field[:, ::2] += other[:, ::2].roll(shift, 2)
        field[:, 1::2] += other[:, 1::2].roll(-shift, 2)
        p = field.mul_(2 * COUPLING).sigmoid_()
        return (torch.rand_like(p) < p).float().mul_(2).sub_(1)

    def sweep(i: int) -> tuple[Tensor, Tensor]:
        black = update(white, 1)
        return black, update(black, -1)

    return Part(sweep, 1 / NUM_SWEEPS)


def _dwave(inputs: Inputs) -> Part:
    x = inputs.x
    num_chains, side, _ = x.shape
    if x.is_cuda or side > 1024:
        raise LeftOutError("its model is a Python dictionary of couplings, on the CPU")
    dimod, samplers = importlib.import_module("dimod"), importlib.import_module("dwave.samplers")
    sites = torch.arange(side * side).reshape(side, side)
    bonds = [pair for axis in (0, 1) for pair in zip(sites.flatten().tolist(), sites.roll(-1, axis).flatten().tolist(), strict=True)]
    model = dimod.BinaryQuadraticModel.from_ising({}, dict.fromkeys(bonds, -COUPLING))

    def sample(i: int) -> object:
        return samplers.SimulatedAnnealingSampler().sample(
            model,
            num_reads=num_chains,
            beta_schedule_type="custom",
            beta_schedule=[1.0],
            num_sweeps_per_beta=1000,
            proposal_acceptance_criteria="Gibbs",
            seed=i,
        )

    return Part(sample, 1000 / NUM_SWEEPS)


def _thrml(inputs: Inputs) -> Part:
    x = inputs.x
    num_chains, side, _ = x.shape
    if x.is_cuda or side > 128:
        raise LeftOutError("its model is a Python object for each site, on JAX's device")
    jax, thrml, models = (importlib.import_module(name) for name in ("jax", "thrml", "thrml.models"))
    nodes = [[thrml.SpinNode() for _ in range(side)] for _ in range(side)]
    bonds = [(nodes[r][c], nodes[(r + 1) % side][c]) for r in range(side) for c in range(side)]
    bonds += [(nodes[r][c], nodes[r][(c + 1) % side]) for r in range(side) for c in range(side)]
    flat = [node for row in nodes for node in row]
    colors = [thrml.Block([nodes[r][c] for r in range(side) for c in range(side) if (r + c) % 2 == parity]) for parity in (0, 1)]
    number = jax.numpy.array
    model = models.IsingEBM(flat, bonds, number([0.0] * len(flat)), number([COUPLING] * len(bonds)), number(1.0))
    program = models.IsingSamplingProgram(model, colors, clamped_blocks=[])
    schedule = thrml.SamplingSchedule(n_warmup=NUM_SWEEPS, n_samples=1, steps_per_sample=1)
    start = models.hinton_init(jax.random.key(0), model, colors, (num_chains,))
    run = jax.jit(jax.vmap(lambda key, state: thrml.sample_states(key, program, schedule, state, [], [thrml.Block(flat)])))
    keys = jax.random.split(jax.random.key(1), num_chains)
    return Part(lambda i: jax.block_until_ready(run(keys, start)), (NUM_SWEEPS + 1) / NUM_SWEEPS)


CASE = Case(
    name="gibbs",
    summary=f"{NUM_SWEEPS} Gibbs sweeps of the Ising model on tori, from given spins",
    rows=(
        Row("ebmcore Gibbs, raster", "ours", _ours("raster")),
        Row("ebmcore Gibbs, checkerboard", "ours", _ours("checkerboard")),
        Row("torch eager", "eager", _eager, "checkerboard by roll, sigmoid, bernoulli and where; float32"),
        Row("torch tuned", "tuned", _tuned, "each colour an array of its own, in place, rand < p; float32"),
        Row("dwave-samplers", "rival", _dwave, "SimulatedAnnealingSampler, Gibbs at one temperature; 1000 sweeps a call, conversions included"),
        Row("thrml", "rival", _thrml, "two blocks, compiled by JAX; JAX takes the threads it likes"),
    ),
    make_inputs=make_inputs,
    check=check,
    unit="spin",
    problems=tuple(
        NamedProblem(name, num_chains * side**2 * NUM_SWEEPS, (num_chains, side))
        for name, num_chains, side in (("100x32x32", 100, 32), ("512x512", 1, 512), ("4096x4096", 1, 4096))
    ),
)
