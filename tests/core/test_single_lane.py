"""What a CUDA thread computes, run on the host by nvcc's host compiler, has the bits of the CPU kernels.

This leaves to a test on a card: launches, memory, and that the device's IEEE operations are IEEE.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from ebmcore import Key, ops
from ebmcore._native import core

SOURCE = Path(__file__).with_name("single_lane.cu")
KEY = Key(0x0123456789ABCDEF, step=(5 << 32) | 7, first_chain=(3 << 32) + 9)


def results_of_cpu_kernels(dim: int) -> list[torch.Tensor]:
    shape = (5, dim)
    results = [ops.normal(shape, key=KEY, stream=2, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    results.append(ops.philox(shape, key=KEY, stream=2))
    results += [ops.uniform(shape, key=KEY, stream=2, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    results += [ops.bernoulli(shape, 0.25, key=KEY, stream=2), ops.rademacher(shape, key=KEY, stream=2)]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        x, grad = (ops.normal(shape, key=KEY, stream=stream, dtype=compute).to(dtype) for stream in (3, 4))
        step = {"step_size": 0.01, "noise_std": 0.3, "clip_grad": 0.5, "clip_grad_norm": 2.0, "clamp": (-1.0, 1.5)}
        results.append(ops.langevin_step(x, grad, key=KEY, stream=1, **step))
    return results


def ring(n: int, fields_per_site: int) -> tuple[torch.Tensor, ...]:
    """As in single_lane.cu: offsets, neighbours, couplings and fields of a ring, and the energy of 1."""
    neighbours = torch.tensor([sorted(((i - 1) % n, (i + 1) % n)) for i in range(n)])
    sites = torch.arange(n)[:, None]
    edges = torch.where(neighbours == (sites + 1) % n, sites, neighbours)
    fields = ((sites * 13 + torch.arange(fields_per_site) * 29) % 900 - 450).flatten()
    parts = (neighbours.flatten(), (edges * 37 % 1500 - 700).flatten(), fields)
    unit = torch.tensor([1 / 1024], dtype=torch.float64)
    return 2 * torch.arange(n + 1), *(part.to(torch.int32) for part in parts), unit


def results_of_ising_chains(n: int) -> list[torch.Tensor]:
    offsets, neighbours, couplings, fields, unit = ring(n, 1)
    model = ops.IsingModel(offsets, neighbours, couplings, fields, unit, max_degree=2)
    start = torch.where(torch.arange(5 * n) * 7 % 3 != 0, 1, -1).to(torch.int8).reshape(5, n)
    results = [ops.ising_gibbs_(start.clone(), model, key=KEY, num_steps=20, is_random=is_random) for is_random in (False, True)]
    for balancing in (None, "sqrt", "barker", "min", "max"):
        spins = start.clone()
        if balancing is None:
            ops.ising_metropolis_(spins, model, key=KEY, num_steps=200)
        else:
            ops.ising_gwg_(spins, model, key=KEY, num_steps=200, balancing=balancing)
        results.append(spins)
    return results


def results_of_potts_chains(n: int, q: int) -> list[torch.Tensor]:
    offsets, neighbours, couplings, fields, unit = ring(n, q)
    fields = torch.cat((fields, torch.zeros(16, dtype=torch.int32)))
    start = (torch.arange(5 * n) * 7 % q).to(torch.uint8).reshape(5, n)
    results = []
    for kernel in ("gibbs", "metropolis", "gwg"):
        tokens = start.clone()
        tables = ops.PottsTables(offsets, neighbours, couplings, 1, False, True, None, fields, q, unit, 2)
        ops.potts_chain_(kernel, tokens, tables, key=KEY, num_steps=20 if kernel == "gibbs" else 200)
        results.append(tokens)
    return results


def results_of_rbm_chains(visible: int, hidden: int) -> list[torch.Tensor]:
    scale = 2.0**20
    rows, columns = torch.arange(visible), torch.arange(hidden)
    weight = ((rows[:, None] * 37 + columns * 61) % 200 - 100).float() / 64
    a, b = (rows % 7 - 3).float() / 8, (columns % 5 - 2).float() / 8
    start = (torch.arange(5 * visible) * 7 % 3 != 0).float().reshape(5, visible)
    inputs, units = ((b + start @ weight) * scale).to(torch.int32), (weight * scale).to(torch.int32)

    def tiled(x: torch.Tensor, fill: float) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, -x.shape[-1] % core.RBM_TILE), value=fill).contiguous()

    transposed, tiled_a = tiled(weight.T, 0.0), tiled(a, -3e38)
    key, states, flips = KEY.tensor, start.clone(), torch.empty(5, dtype=torch.int64)
    core.rbm_gibbs(states, flips, tiled(weight, 0.0), transposed, tiled_a, tiled(b, -3e38), key, hidden, 20, 8, 1, None)
    results = [states, flips]
    for balancing in range(4):
        states, acceptance, flips = start.clone(), torch.empty(5, dtype=torch.float64), torch.empty(5, dtype=torch.int64)
        is_accepted = torch.empty(5, dtype=torch.bool)
        run = (is_accepted, acceptance, flips, 100, 1 / scale, balancing, 1, 2, None)
        core.rbm_gwg_chains(states, inputs, units, transposed, tiled_a, key, *run)
        results += [states, acceptance, flips]
    return results


def results_of_probes(dim: int) -> list[torch.Tensor]:
    results = []
    for law in ("rademacher", "gaussian"):
        for dtype in (torch.float32, torch.float64):
            u = ops.normal((5, 2 * dim), key=KEY, stream=4, dtype=dtype).flatten()
            shape, g, vectors = (2, 5, dim), u[:10].reshape(2, 5), u.reshape(2, 5, dim)
            results.append(ops.probes(shape, key=KEY, probe=law, dtype=dtype))
            results += [ops.probe_scale(g, shape, key=KEY, probe=law), ops.probe_dot(vectors, key=KEY, probe=law)]
    return results


def results_of_activations() -> list[torch.Tensor]:
    x = ops.normal((5, 4000), key=KEY, stream=5).flatten()
    x = x * 2.0 ** (torch.arange(len(x)) % 10)
    results = []
    for activation in ops.activations.ACTIVATIONS:
        planes = ops.activation_derivatives(x, activation, 0, 5)
        results += [planes, ops.activation_derivatives_dot(x, planes[:3], activation, 1)]
        rows = x.clone().reshape(10, 5, 400)
        slopes = ops.activation_tangents_(rows, x[:400], activation, keep_slopes=True)
        results += [rows, slopes]
    return results


def results_of_dynamics(dtype: torch.dtype) -> list[torch.Tensor]:
    ramp = ((1 + torch.arange(1000) % 7) / 4).to(dtype)
    banana, ring, mixture = ("banana", [0.25, 0.25, 4], 0, 1.0), ("ring", [2, 4], 0, 1.0), ("gaussian_mixture", ramp, 3, 1.0)
    sums: list[tuple[int, list[tuple[str, Any, int, float]]]] = [(5, [("double_well", [2, 1], 0, 1.0)]), (3, [("rosenbrock", [1, 4], 0, 1.0)])]
    sums += [(6, [("funnel", [0.25], 0, 1.0)]), (2, [ring]), (2, [banana])]
    sums += [(5, [("gaussian_diagonal", ramp, 0, 1.0)]), (5, [("gaussian_full", ramp, 0, 1.0)]), (2, [mixture]), (2, [(*ring[:3], 0.5)])]
    sums.append((2, [mixture, (*ring[:3], -0.25), ("banana", [1, 1, 4], 0, 1.0)]))
    results = []
    for dim, given in sums:
        parts = [(kind, torch.as_tensor(values, dtype=dtype), *rest) for kind, values, *rest in given]
        factors = torch.tensor([1, 0.5, 0.25, 2, 1], dtype=dtype) if len(parts) > 1 else None
        elements = torch.arange(dim)
        scales = ((1 + elements % 3) / 64).to(dtype), ((2 + elements % 3) / 16).to(dtype)
        for kernel in ("langevin", "mala", "hmc", "kinetic_langevin", "random_walk"):
            x, momentum = (ops.normal((5, dim), key=KEY, stream=stream, dtype=dtype) for stream in (3, 4))
            energies, grad = x.new_empty(5), torch.empty_like(x)
            report = torch.empty(5, dtype=torch.bool), torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
            arguments = (kernel, parts, factors, x, momentum, energies, grad, *report, *scales, KEY.tensor, 20, 3)
            core.dynamics(*arguments, 0.0625, 0.25, 2.0, -3.0, 3.0, 0.75, 0.5, 1, 2, 11, None)
            results += [x, momentum, energies, report[1], report[2]]
    return results


def results_of_metropolis(dim: int) -> list[torch.Tensor]:
    results = []
    for dtype in (torch.float32, torch.float64):
        for is_langevin in (True, False):
            x, grad, new_x, new_grad = (ops.normal((5, dim), key=KEY, stream=stream, dtype=dtype) for stream in (3, 4, 5, 6))
            energy, new_energy = (ops.normal((5,), key=KEY, stream=stream, dtype=dtype) for stream in (7, 8))
            options = {"langevin_step_size": 0.0625, "inverse_mass": ((1 + torch.arange(dim) % 3) / 2).to(dtype)}
            if not is_langevin:
                options = {"log_correction": ops.normal((5,), key=KEY, stream=9, dtype=torch.float64)}
            tally = ops.Tally.zeros(energy)
            ops.metropolis_accept_(x, energy, grad, new_x, new_energy, new_grad, tally, key=KEY, stream=2, **options)
            results += [x, energy, grad, *tally[1:]]
    return results


def results_of_swaps(num_temperatures: int) -> list[torch.Tensor]:
    rows = 5 * num_temperatures
    energy = ops.normal((5, num_temperatures), key=KEY, stream=3, dtype=torch.float64).flatten()
    grad = ops.normal((5, 3 * num_temperatures), key=KEY, stream=4).reshape(rows, 3)
    names, betas = torch.arange(rows), 0.5 ** torch.arange(num_temperatures, dtype=torch.float64)
    tally, scales = ops.SwapTally.zeros((names % 3 == 0).reshape(5, -1)), ops.swap_scales(betas)
    ops.swap_replicas_(energy, [grad, names], tally, betas=betas, scales=[scales, scales, None], key=KEY, stream=12)
    return [energy, grad, names, *tally]


def test_single_lane_maths_has_the_bits_of_the_cpu(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    program = tmp_path / "single_lane"
    flags = ["-std=c++17", "-O1", "--expt-relaxed-constexpr", "-DEBM_TARGET=cuda", "-Xcompiler=-ffp-contract=off", "-arch=sm_80"]
    subprocess.run(["nvcc", *flags, "-o", str(program), str(SOURCE)], check=True)
    output = subprocess.run([program], check=True, capture_output=True).stdout
    expected = [result for dim in (1, 6, 200, 10007) for result in results_of_cpu_kernels(dim)]
    expected += [result for n in (5, 40, 300) for result in results_of_ising_chains(n)]
    expected += [result for q in (3, 20) for result in results_of_potts_chains(40, q)]
    expected += [result for sizes in ((20, 7), (33, 40)) for result in results_of_rbm_chains(*sizes)]
    expected += [result for dim in (1, 6, 200, 10007) for result in results_of_probes(dim)] + results_of_activations()
    expected += [result for dtype in (torch.float32, torch.float64) for result in results_of_dynamics(dtype)]
    expected += [result for dim in (1, 6, 200) for result in results_of_metropolis(dim)]
    expected += [result for num_temperatures in (2, 5) for result in results_of_swaps(num_temperatures)]
    assert len(output) == sum(result.nbytes for result in expected)
    at = 0
    for i, result in enumerate(expected):
        bits = bytes(result.contiguous().view(torch.uint8).numpy())
        assert output[at : at + len(bits)] == bits, f"result {i} of shape {tuple(result.shape)}"
        at += len(bits)
