"""Chains of a JAX library as rows of a case: all steps of a call in one compiled program."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebmcore.bench.timing import LeftOutError, Part

JAX_STEPS = 100  # of a call


def jax_chains(
    init: Callable[[Any], Any],
    step: Callable[[Any, Any], Any],
    position: Callable[[Any], Any],
    x: Tensor,
    num_steps: int,
    problem_steps: int,
) -> Part:
    """Calls of `num_steps` steps from x, tensors in and out, of a problem of `problem_steps`.

    Args:
        init: x of one chain -> its state.
        step: (key, state) -> the next state.
        position: state -> x.
        x: (num_chains, dim), on the CPU.

    Raises:
        ImportError: JAX is not installed.
        LeftOutError: x is elsewhere.
    """
    if x.is_cuda:
        raise LeftOutError("is run on JAX's CPU device only")
    jax = importlib.import_module("jax")

    def chain(key: Any, x: Any, num_steps: int) -> Any:
        keys = jax.random.split(key, num_steps)
        return position(jax.lax.scan(lambda state, key: (step(key, state), None), init(x), keys)[0])

    chains = jax.jit(jax.vmap(chain, in_axes=(0, 0, None)), static_argnums=2)

    def advance(x: Tensor, num_steps: int, seed: int) -> Tensor:
        keys = jax.random.split(jax.random.key(seed), len(x))
        return torch.utils.dlpack.from_dlpack(jax.block_until_ready(chains(keys, jax.numpy.asarray(x.numpy()), num_steps)))

    return Part(lambda i: advance(x, num_steps, 1), num_steps / problem_steps, lambda x: advance(x, 1, int(torch.randint(2**31, ()))))
