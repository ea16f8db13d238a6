"""Small discrete models with known transition matrices: the energies, in torch alone, and the comparison of a sampler with a matrix."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ebmcore import ops
from ebmcore.discrete import NativeRun
from ebmcore.energies import OneHot
from ebmcore.testing import transition_matrix
from ebmcore.types import Alphabet
from support.statistics import assert_counts
from support.truths import truth_arrays

CHAINS_PER_START = int(os.environ.get("EBMCORE_TEST_CHAINS", 4096))  # and step: more find smaller errors


def parameters(model: str, dtype: torch.dtype) -> dict[str, Tensor]:
    prefix = f"{model}__param_"
    return {
        name.removeprefix(prefix): torch.tensor(value).to(dtype) for name, value in truth_arrays("transitions").items() if name.startswith(prefix)
    }


def torch_energy(model: str, dtype: torch.dtype = torch.float32) -> Any:
    """The energy -f of a model of truths/transitions: B1, B2 and B3 of {0, 1}, C1 and C2 of tokens."""
    p = parameters(model, dtype)
    if model in ("B1", "B3"):

        def pairs(x: Tensor) -> Tensor:
            s = 2 * x.to(dtype) - 1
            return -(0.5 * ((s @ p["J"]) * s).sum(1) + s @ p["h"])

        return pairs
    if model == "B2":
        return lambda x: -(torch.tanh(x.to(dtype) @ p["W1"].T + p["b1"]) @ p["w2"] + x.to(dtype) @ p["b0"])
    if model == "C1":
        size = p["h"].numel()
        matrix = p["A"].permute(0, 2, 1, 3).reshape(size, size)
        return OneHot(lambda x: -(0.5 * ((x.flatten(1) @ matrix) * x.flatten(1)).sum(1) + x.flatten(1) @ p["h"].flatten()), 3, dtype)
    return OneHot(lambda x: -(torch.tanh(x.flatten(1) @ p["W1"].T + p["b1"]) @ p["w2"] + x.flatten(1) @ p["b0"]), 3, dtype)


class Exact:
    """An energy given by its values at all states, so that its differences are exact."""

    def __init__(self, states: Tensor, values: Tensor, alphabet: Alphabet) -> None:
        self.alphabet, self.values, self.num_evaluations = alphabet, values, 0
        q, num_sites = alphabet.num_categories, states.shape[1]
        steps = (torch.arange(q) - states[..., None]) * q ** torch.arange(num_sites)[:, None]
        differences = values[:, None, None] - values[torch.arange(len(states))[:, None, None] + steps]
        if alphabet.kind == "token":
            self.differences = differences.scatter(2, states[..., None], -torch.inf)
        else:
            self.differences = differences.gather(2, 1 - states[..., None])[..., 0]

    def numbers(self, x: Tensor) -> Tensor:
        x = x.long()
        return state_numbers((x + 1) // 2 if self.alphabet.kind == "spin" else x, self.alphabet.num_categories)

    def __call__(self, x: Tensor) -> Tensor:
        self.num_evaluations += 1
        return self.values[self.numbers(x)]

    def energy_and_differences(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), self.differences[self.numbers(x)]


def exact_energy(model: str, kind: str | None = None, dtype: torch.dtype = torch.float32) -> Exact:
    """The same with exact differences; kind "spin" for a model of {0, 1} in spins."""
    states = all_states(model)
    values = torch_energy(model, torch.float64)(states).to(dtype)
    return Exact(states, values, Alphabet("token", 3) if model[0] == "C" else Alphabet("spin" if kind == "spin" else "binary"))


def all_states(model: str) -> Tensor:
    """(num_states, num_sites) int64; state k has value (k // q^i) % q at site i."""
    return torch.tensor(truth_arrays("transitions")[f"{model}__states"]).long()


def matrix(model: str, kernel: str) -> Tensor:
    """Transition probabilities; what is only rounding is 0."""
    p = torch.tensor(truth_arrays("transitions")[f"{model}__P__{kernel}"])
    return torch.where(p < 1e-12, 0.0, p)


def state_numbers(x: Tensor, num_categories: int) -> Tensor:
    x = x.flatten(1)
    return (x * num_categories ** torch.arange(x.shape[1])).sum(1)


def assert_transitions(sampler: Any, energy: Any, states: Tensor, transitions: Tensor, num_steps: int, *, seed: int, what: str) -> None:
    """Chains from every state at once: after `num_steps` steps, each row of the matrix's power by chi-square, impossible cells empty.

    states: (num_states, num_sites) of numbers of values; they are handed to the sampler in what the energy's alphabet wants.
    """
    kind = getattr(energy, "alphabet", Alphabet("binary")).kind
    x = {"binary": states.float(), "spin": (2 * states - 1).to(torch.int8), "token": states.to(torch.uint8)}[kind]
    counts = transition_matrix(sampler, energy, x, num_steps=num_steps, num_chains=CHAINS_PER_START // num_steps, seed=seed)
    power = torch.linalg.matrix_power(transitions.double(), num_steps)
    for k in range(len(states)):
        assert_counts(counts[k], power[k], what=f"{what}: {num_steps} steps from state {k}")


class FreeSpins:
    """Spins without coupling, whose clusters are single sites: the smallest energy with native chains of its own. Says what it was asked."""

    alphabet = Alphabet("spin")

    def __init__(self, kernels: tuple[str, ...] = ("swendsen_wang",)) -> None:
        self.kernels, self.asked, self.num_evaluations = kernels, [], 0

    def __call__(self, x: Tensor) -> Tensor:
        self.num_evaluations += 1
        return 0.0 * x.flatten(1).sum(1).float()

    def native_chain(self, kernel: str, states: Tensor, key: Tensor, num_steps: int, **options: Any) -> NativeRun | None:
        self.asked.append((kernel, num_steps, options))
        if kernel not in self.kernels:
            return None
        num_flips = torch.zeros(len(states), dtype=torch.int64)
        for i in range(num_steps):
            new = ops.rademacher(states.shape, key=key + torch.tensor([0, i, 0])).to(states.dtype)
            num_flips += (new != states).flatten(1).sum(1)
            states.copy_(new)
        return NativeRun(None, None, num_flips)
