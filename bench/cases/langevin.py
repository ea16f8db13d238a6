"""One Langevin step with the gradient given: x' = x - step_size · grad + noise_std · ξ."""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore.bench.timing import Case, CheckError, Problem, Row, Run
from ebmcore.ops import langevin_step, langevin_step_, langevin_step_reference
from ebmcore.types import Key

STEP_SIZE, NOISE_STD = 0.01, 0.1

# (relative, absolute) distance from the reference that a CUDA result may have: two roundings of the state, and normals whose
# square root and conversions may differ in the last place.
CUDA_TOLERANCE = {
    torch.float32: (1e-6, 1e-6),
    torch.float64: (1e-14, 1e-14),
    torch.bfloat16: (2**-7, 1e-3),
    torch.float16: (2**-10, 1e-3),
}


class Inputs(NamedTuple):
    """Input sets: states and gradients (num_chains, dim), and the key of each call's noise."""

    x: list[Tensor]
    grad: list[Tensor]
    keys: Tensor


def make_inputs(problem: Problem, num_sets: int) -> Inputs:
    generator = torch.Generator(problem.device).manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(problem.shape, generator=generator, device=problem.device, dtype=problem.dtype)

    return Inputs([draw() for _ in range(num_sets)], [draw() for _ in range(num_sets)], Key(2024).to(problem.device).steps(num_sets))


def check(inputs: Inputs) -> str:
    x, grad, key = inputs.x[0], inputs.grad[0], inputs.keys[0]
    scalars: dict[str, Any] = {"step_size": STEP_SIZE, "noise_std": NOISE_STD}
    # The reference draws its noise with ours: on the CPU, so that CUDA's noise is held against another implementation's.
    expected = langevin_step_reference(x.cpu(), grad.cpu(), key=key.cpu(), **scalars)
    results = {
        "langevin_step": langevin_step(x, grad, key=key, **scalars),
        "langevin_step_": langevin_step_(x.clone(), grad, key=key, **scalars),
    }
    rtol, atol = CUDA_TOLERANCE[x.dtype] if x.is_cuda else (0.0, 0.0)
    for name, tensor in results.items():
        result = tensor.cpu()
        if x.is_cuda:
            distance, bound = (result.double() - expected.double()).abs(), atol + rtol * expected.double().abs()
            wrong = ~(distance <= bound)  # a NaN is wrong
        else:
            bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[result.element_size()]
            wrong = result.view(bits) != expected.view(bits)
        if wrong.any():
            first = int(wrong.flatten().nonzero()[0])
            raise CheckError(
                f"{name} differs from langevin_step_reference in {int(wrong.sum())} of {wrong.numel()} elements of {tuple(x.shape)} {x.dtype}; "
                f"the first is {first}: {result.flatten()[first].item()!r}, wanted {expected.flatten()[first].item()!r}"
            )
    how = f"within {rtol:g} · |x'| + {atol:g} of" if x.is_cuda else "bit-equal to"
    return f"{' and '.join(results)} {how} langevin_step_reference on the CPU"


def _ours_in_place(inputs: Inputs) -> Run:
    x, grad, keys = inputs.x, inputs.grad, list(inputs.keys)
    return lambda i: langevin_step_(x[i], grad[i], step_size=STEP_SIZE, noise_std=NOISE_STD, key=keys[i])


def _ours(inputs: Inputs) -> Run:
    x, grad, keys = inputs.x, inputs.grad, list(inputs.keys)
    return lambda i: langevin_step(x[i], grad[i], step_size=STEP_SIZE, noise_std=NOISE_STD, key=keys[i])


def _eager(inputs: Inputs) -> Run:
    x, grad, _ = inputs
    return lambda i: x[i] - STEP_SIZE * grad[i] + NOISE_STD * torch.randn_like(x[i])


def _eager_in_place(inputs: Inputs) -> Run:
    x, grad, _ = inputs
    return lambda i: x[i].add_(grad[i], alpha=-STEP_SIZE).add_(torch.randn_like(x[i]), alpha=NOISE_STD)


def _compiled(inputs: Inputs) -> Run:
    x, grad, _ = inputs

    def step(x: Tensor, grad: Tensor) -> Tensor:
        return x - STEP_SIZE * grad + NOISE_STD * torch.randn_like(x)

    # fullgraph: what cannot be compiled is to fail here, not to run as eager under this label.
    compiled = torch.compile(step, fullgraph=True, dynamic=False)
    return lambda i: compiled(x[i], grad[i])


def _compiled_in_place(inputs: Inputs) -> Run:
    x, grad, _ = inputs

    def step_(x: Tensor, grad: Tensor) -> Tensor:
        return x.copy_(x - STEP_SIZE * grad + NOISE_STD * torch.randn_like(x))

    # Inductor's own randn is ten times slower than eager's on the CPU; on CUDA it is fused, and the better one.
    compiled = torch.compile(step_, fullgraph=True, dynamic=False, options={"fallback_random": not x[0].is_cuda})
    return lambda i: compiled(x[i], grad[i])


def _torchebm(inputs: Inputs) -> Run:
    x, grad, _ = inputs
    precision = torch.get_float32_matmul_precision()
    integrators = importlib.import_module("torchebm.integrators")
    torch.set_float32_matmul_precision(precision)  # importing some parts of torchebm changes it for the process
    integrator = integrators.EulerMaruyamaIntegrator(device=x[0].device, dtype=x[0].dtype)
    noise_scale = NOISE_STD / math.sqrt(2 * STEP_SIZE)
    return lambda i: integrator.step({"x": x[i]}, STEP_SIZE, drift=lambda x, t: -grad[i], noise_scale=noise_scale)["x"]


CASE = Case(
    name="langevin",
    summary="one Langevin step, x - step_size · grad + noise_std · ξ, with the gradient given",
    rows=(
        Row("ebmcore langevin_step_", "ours", _ours_in_place, "in place"),
        Row("ebmcore langevin_step", "ours", _ours, "returns a new tensor"),
        Row("torch eager", "eager", _eager, "x - step_size * grad + noise_std * torch.randn_like(x)"),
        Row("torch in place", "tuned", _eager_in_place, "x.add_(grad, alpha=-step_size).add_(torch.randn_like(x), alpha=noise_std)"),
        Row("torch.compile", "compiled", _compiled, "of the eager line"),
        Row("torch.compile, tuned", "compiled", _compiled_in_place, "in place; on the CPU with eager's randn (fallback_random)"),
        Row("torchebm", "rival", _torchebm, "EulerMaruyamaIntegrator().step; includes drift = -grad, one pass more than the others"),
    ),
    make_inputs=make_inputs,
    check=check,
    arrays=3,
    input_arrays=2,
    dtypes=("float32", "float64", "bfloat16", "float16"),
)
