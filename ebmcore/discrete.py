"""Discrete states: what a site can be, the checks at the door, and what every sampler of them needs to know of an energy.

An energy says its alphabet by an attribute `alphabet`; one without it is of {0, 1}. Samplers work on states in the alphabet's own dtype
(`encode`): int8 for spins, uint8 for tokens of up to 256 categories and int64 beyond, float32 or float64 for {0, 1}.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebmcore.gradients import energy_and_grad, evaluate
from ebmcore.types import Alphabet, DivergenceError, EnergyFn, Key

BINARY = Alphabet("binary")


class DiscreteState(NamedTuple):
    """Chains between two steps.

    Attributes:
        x: (num_chains, *event), in the dtype that the chains were started with.
        energy: (num_chains,), E(x).
        key: of the next step's draws.
        differences: E(x) - E(x with one site changed), exact or to first order, if the sampler uses it and the energy is not one whose
            chains run natively: (num_chains, num_sites) where a site has one other value, else (num_chains, num_sites, num_categories)
            with -inf at the present value.
    """

    x: Tensor
    energy: Tensor
    key: Key
    differences: Tensor | None = None


class DiscreteInfo(NamedTuple):
    """Of the steps of one call; each (num_chains,), on the device of the chains.

    Attributes:
        is_diverged: bool, a proposal had an energy that is not finite (it was rejected).
        is_accepted: bool, the last proposal was accepted (always true for kernels that do not reject).
        acceptance_prob: mean probability of acceptance.
        num_flips: int64, sites that accepted proposals changed, summed over the steps.
        energy_change: E at the end minus E at the start.
    """

    is_diverged: Tensor
    is_accepted: Tensor
    acceptance_prob: Tensor
    num_flips: Tensor
    energy_change: Tensor


class NativeRun(NamedTuple):
    """What `native_chain` of an energy says of the steps that it took; each (num_chains,).

    Attributes:
        is_accepted: bool, the last proposal was accepted; None for kernels that do not reject.
        acceptance_prob: mean probability of acceptance over the steps; None for kernels that do not reject.
        num_flips: int64, sites that changed, summed over the steps.
    """

    is_accepted: Tensor | None
    acceptance_prob: Tensor | None
    num_flips: Tensor


def alphabet_of(energy: EnergyFn) -> Alphabet:
    """The alphabet that `energy` says it has; {0, 1} if it says nothing."""
    alphabet: Alphabet = getattr(energy, "alphabet", BINARY)
    return alphabet


def check_states(x: Tensor, alphabet: Alphabet, caller: str) -> None:
    """Raise unless x is (num_chains, *event) with every site in the alphabet. Reads one flag from the device."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{caller}: x must be a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_nested or x.is_complex() or x.is_quantized:
        raise TypeError(f"{caller}: x must be a dense tensor of real numbers, got {x.dtype} ({x.layout})")
    if x.dim() < 2 or 0 in x.shape[1:]:
        raise ValueError(f"{caller}: x must have shape (num_chains, *event) with at least one site, got {tuple(x.shape)}")
    if alphabet.kind == "spin" and x.dtype in (torch.bool, torch.uint8):
        raise TypeError(f"{caller}: x must be of a signed dtype for spins -1 and +1, got {x.dtype}")
    if alphabet.kind == "token" and (x.is_floating_point() or x.dtype == torch.bool):
        raise TypeError(f"{caller}: x must be integer tokens, got {x.dtype}")
    if len(x) == 0 or _is_in(x, alphabet):
        return
    if alphabet.kind == "spin":
        is_known, wanted = (x == 1) | (x == -1), "-1 or +1"
    elif alphabet.kind == "binary":
        is_known, wanted = (x == 1) | (x == 0), "0 or 1"
    else:
        is_known, wanted = (x >= 0) & (x < alphabet.num_categories), f"a token in [0, {alphabet.num_categories})"
    first = tuple((~is_known).nonzero()[0].tolist())
    raise ValueError(f"{caller}: x must be {wanted} at every site, got {x[first].item()} at index {first}")


def _is_in(x: Tensor, alphabet: Alphabet) -> bool:
    """Whether every site is in the alphabet, in fewer passes than it takes to say which is not."""
    if x.dtype == torch.bool:
        return True
    if x.is_floating_point():
        return not bool((x * x != 1).any() if alphabet.kind == "spin" else (x * x != x).any())
    low, high = torch.aminmax(x)
    if alphabet.kind == "spin":
        return bool((low >= -1) & (high <= 1) & (torch.count_nonzero(x) == x.numel()))
    return bool((low >= 0) & (high < alphabet.num_categories))


def encode(x: Tensor, alphabet: Alphabet) -> Tensor:
    """A contiguous copy of x, which the caller owns, in the dtype of the alphabet."""
    if alphabet.kind == "spin":
        dtype = torch.int8
    elif alphabet.kind == "token":
        dtype = torch.uint8 if alphabet.num_categories <= 256 else torch.int64
    else:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.inference_mode(False), torch.no_grad():
        return x.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def decode(states: Tensor, like: Tensor) -> Tensor:
    """Encoded `states` in the dtype of `like`."""
    return states if states.dtype == like.dtype else states.to(like.dtype)


def scaled_copy(energy: Any, factor: float) -> Any:
    """The module `energy`, whose parameters E is linear in, with `factor` times their present values, detached; all else is shared."""
    other = copy.copy(energy)
    parameters = energy._parameters.items()
    other._parameters = {name: None if p is None else nn.Parameter(p.detach() * factor, requires_grad=False) for name, p in parameters}
    return other


def start_energy(energy: EnergyFn, states: Tensor, caller: str) -> Tensor:
    """E at encoded states; DivergenceError where it is not finite."""
    value = evaluate(energy, states)
    check_start(value, caller)
    return value


def check_start(value: Tensor, caller: str) -> None:
    """DivergenceError for energies of starting points that are not finite."""
    is_bad = ~value.isfinite()
    if bool(is_bad.any()):
        chains = is_bad.nonzero().flatten().tolist()
        message = f"{caller}: the energy of the starting point is not finite in {len(chains)} of {len(value)} chains ({chains[:8]} ...)"
        raise DivergenceError(message, chains=chains, step=-1, last_energies=[math.nan] * len(chains))


def energy_and_differences(energy: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """E, and E(x) - E(x with one site changed) for every change, at encoded states; one evaluation.

    Exact from energies that have a method `energy_and_differences`; otherwise to first order, from one forward and one backward: on
    {0, 1} in x itself, on tokens in the one-hot rows that an energy with an attribute `of_one_hot` takes (`energies.OneHot`).

    Returns:
        energies (num_chains,), and differences (num_chains, num_sites) where a site has one other value, else (num_chains, num_sites,
        num_categories) with -inf at the present one.
    """
    if hasattr(energy, "energy_and_differences"):
        with torch.no_grad():
            exact: tuple[Tensor, Tensor] = energy.energy_and_differences(states)
        return exact
    alphabet = alphabet_of(energy)
    if alphabet.kind == "binary":
        value, grad = energy_and_grad(energy, states)
        return value, torch.addcmul(-grad, states, grad, value=2).flatten(1)  # (2x - 1) · grad, in two passes
    if not hasattr(energy, "of_one_hot"):
        raise TypeError(f"energy: must have energy_and_differences or of_one_hot for {alphabet.kind} states; wrap it in energies.OneHot")
    tokens = states.flatten(1).long()[..., None]
    one_hot = torch.zeros(*tokens.shape[:2], alphabet.num_categories, dtype=energy.dtype, device=states.device).scatter_(2, tokens, 1.0)
    one_hot = one_hot.reshape(*states.shape, alphabet.num_categories)
    value, grad = energy_and_grad(energy.of_one_hot, one_hot)
    grad = grad.reshape(*tokens.shape[:2], alphabet.num_categories)
    return value, (grad.gather(2, tokens) - grad).scatter_(2, tokens, -math.inf)
