"""What a CUDA thread computes, run on the host by nvcc's host compiler, has the bits of the CPU kernels.

This leaves to a test on a card: launches, memory, and that the device's IEEE operations are IEEE.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ebmcore import Key, ops

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


def test_single_lane_maths_has_the_bits_of_the_cpu(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    program = tmp_path / "single_lane"
    flags = ["-std=c++17", "-O1", "-DEBM_TARGET=cuda", "-Xcompiler=-ffp-contract=off", "-arch=sm_80"]
    subprocess.run(["nvcc", *flags, "-o", str(program), str(SOURCE)], check=True)
    output = subprocess.run([program], check=True, capture_output=True).stdout
    expected = [result for dim in (1, 6, 200, 10007) for result in results_of_cpu_kernels(dim)]
    assert len(output) == sum(result.nbytes for result in expected)
    at = 0
    for i, result in enumerate(expected):
        bits = bytes(result.contiguous().view(torch.uint8).numpy())
        assert output[at : at + len(bits)] == bits, f"result {i % 11} of shape {tuple(result.shape)}"
        at += len(bits)
