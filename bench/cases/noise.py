"""Noise: normals, uniforms and signs, against torch's own generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebmcore.bench.timing import Case, CheckError, Problem, Row, Run
from ebmcore.ops import normal, philox, rademacher, uniform
from ebmcore.types import Key

KEY = Key(2024)


def make_inputs(problem: Problem, num_sets: int) -> dict[str, Any]:
    return {"shape": problem.shape, "dtype": problem.dtype, "device": problem.device}


def _ours(op: Callable[..., Tensor]) -> Callable[[dict[str, Any]], Run]:
    def setup(inputs: dict[str, Any]) -> Run:
        key = KEY.to(inputs["device"])
        return lambda i: op(key=key, **inputs)

    return setup


def _torch(op: Callable[..., Tensor]) -> Callable[[dict[str, Any]], Run]:
    return lambda inputs: lambda i: op(inputs["shape"], dtype=inputs["dtype"], device=inputs["device"])


def check(inputs: dict[str, Any]) -> str:
    n, dim = inputs["shape"]
    double = inputs["dtype"] == torch.float64
    words = (philox((n, -(-dim // 4) * 4 * (1 + double)), key=KEY).view(torch.int32).long() & 0xFFFFFFFF).double()
    signs = philox((n, -(-dim // 32)), key=KEY).view(torch.int32).long()[..., None] >> torch.arange(32) & 1
    if double:  # two words an element, low one first; the draws keep the upper 52 bits
        uniforms = (words[:, 1::2] * 2**20 + (words[:, ::2] / 2**12).floor() + 0.5) / 2**52
        radius, turns = uniforms[:, ::2], words[:, 3::4] / 2**32 + words[:, 2::4] / 2.0**64
    else:  # the word of a radius is rounded to float32 first
        uniforms = ((words / 2**9).floor() + 0.5) / 2**23
        radius, turns = (words[:, ::2].float() + 0.5).double() / 2**32, words[:, 1::2] / 2**32
    angle = turns * (2 * math.pi)
    normals = (-2 * radius.log()).sqrt()[..., None] * torch.stack((angle.cos(), angle.sin()), -1)
    for op, expected, tolerance in (
        (uniform, uniforms, 0.0),
        (rademacher, 1.0 - 2.0 * signs, 0.0),
        (normal, normals, 4e-15 if double else 2e-6),
    ):
        error = (op(key=KEY, **inputs).cpu().double() - expected.reshape(n, -1)[:, :dim]).abs().max().item()
        if not error <= tolerance:
            raise CheckError(f"{op.__name__} is off by {error:g} from the formula on the same Philox words; the bound is {tolerance:g}")
    return "uniform and rademacher exactly, normal to 2e-6 (float64: 4e-15), as the formulas on the same Philox words say"


CASE = Case(
    name="noise",
    summary="normals, uniforms and signs",
    rows=(
        Row("ebmcore normal", "ours", _ours(normal), group="normal"),
        Row("torch.randn", "eager", _torch(torch.randn), group="normal"),
        Row("ebmcore uniform", "ours", _ours(uniform), group="uniform"),
        Row("torch.rand", "eager", _torch(torch.rand), group="uniform"),
        Row("ebmcore rademacher", "ours", _ours(rademacher), group="signs"),
        Row("torch.randint", "eager", _torch(lambda *shape, **k: torch.randint(2, *shape, **k).mul_(2).sub_(1)), "then 2 x - 1 in place", "signs"),
    ),
    make_inputs=make_inputs,
    check=check,
    arrays=1,
    input_arrays=0,
    dtypes=("float32", "float64"),
)
