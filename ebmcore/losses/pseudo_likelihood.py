"""Pseudo-likelihood (Besag 1975): every site given all others, no sampling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ebmcore.discrete import alphabet_of, check_states
from ebmcore.types import Alphabet, DivergenceError, EnergyFn, bounded_int


def pseudo_likelihood(energy: EnergyFn, x: Tensor, *, batch_size: int = 4096) -> Tensor:
    """-mean over the chains of Σ_i log p(x_i | all other sites).

    Consistent where p(x) ∝ exp(-E(x)) for some value of the parameters, as maximum likelihood is, and free of log Z.

    One matrix product where the energy has a method `conditional_logits` (Ising, Potts, BernoulliRBM). Any other energy is evaluated at
    every state that differs from x in one site, num_sites · (num_categories - 1) for each chain.

    Args:
        energy: (num_chains, *event) -> (num_chains,), of {0, 1}, spins or tokens.
        x: (num_chains, *event), states of its alphabet, in a dtype that it takes.
        batch_size: states that are evaluated at once; what is more than one batch is evaluated again in the backward, to save memory.

    Returns:
        A scalar, float64 for float64 energies and float32 otherwise, attached to the graph of the parameters.

    Raises:
        TypeError, ValueError: x is not as above or empty, or the energies are not a floating tensor of shape (num_chains,).
        DivergenceError: a conditional probability is NaN or 0; `chains` are the rows of x where (reads from the device).
    """
    alphabet = alphabet_of(energy)
    check_states(x, alphabet, "pseudo_likelihood")
    if len(x) == 0:
        raise ValueError(f"pseudo_likelihood: x must have at least one chain, got shape {tuple(x.shape)}")
    batch_size = bounded_int(batch_size, "batch_size", "pseudo_likelihood", low=1)
    x = x.detach()
    has_formula = hasattr(energy, "conditional_logits")
    log_p = _from_logits(energy, x, alphabet) if has_formula else _from_changes(energy, x, alphabet, batch_size)
    value = (log_p if log_p.dtype == torch.float64 else log_p.float()).sum(1)
    is_finite = value.detach().isfinite()
    if not bool(is_finite.all()):
        chains = (~is_finite).nonzero().flatten().tolist()
        message = f"pseudo_likelihood: log p must be finite, got NaN or infinity in {len(chains)} chains {chains[:8]} (first 8 shown)"
        raise DivergenceError(message, chains=chains, step=-1, last_energies=[math.nan] * len(chains))
    return -value.mean()


def _from_logits(energy: Any, x: Tensor, alphabet: Alphabet) -> Tensor:
    """log p(x_i | rest), (num_chains, num_sites), from the energy's own formula."""
    logits: Tensor = energy.conditional_logits(x)
    sites = x.flatten(1)
    if alphabet.kind == "token":
        return logits.log_softmax(-1).gather(2, sites.long()[..., None]).squeeze(2)
    return torch.nn.functional.logsigmoid(torch.where(sites == 1, logits.flatten(1), -logits.flatten(1)))


def _from_changes(energy: EnergyFn, x: Tensor, alphabet: Alphabet, batch_size: int) -> Tensor:
    """The same from E(x) - E(x'), where x' has another value at one site."""
    n, num_others = len(x), alphabet.num_categories - 1
    num_sites = x[0].numel()
    present = _energies(energy, x)
    per_chain = num_sites * num_others
    batches = torch.arange(n * per_chain, device=x.device).split(batch_size)
    changed = []
    for rows in batches:
        if len(batches) > 1 and torch.is_grad_enabled():
            changed.append(checkpoint(_changed_energies, energy, x, alphabet, rows, use_reentrant=False))
        else:
            changed.append(_changed_energies(energy, x, alphabet, rows))
    differences = present[:, None, None] - torch.cat(changed).reshape(n, num_sites, num_others)
    # log p(x_i | rest) = -log(1 + Σ_x' exp(E(x) - E(x')))
    return -torch.cat((torch.zeros_like(differences[..., :1]), differences), 2).logsumexp(2)


def _changed_energies(energy: EnergyFn, x: Tensor, alphabet: Alphabet, rows: Tensor) -> Tensor:
    """E at the changes numbered `rows`: of (chain, site, steps to the other value), the last fastest."""
    num_others = alphabet.num_categories - 1
    chains = rows.div(x[0].numel() * num_others, rounding_mode="floor")
    sites = (rows.div(num_others, rounding_mode="floor") % x[0].numel())[:, None]
    states = x.flatten(1)[chains]
    old = states.gather(1, sites)
    if alphabet.kind == "token":
        new = ((old.long() + 1 + rows[:, None] % num_others) % alphabet.num_categories).to(x.dtype)
    else:
        new = -old if alphabet.kind == "spin" else (old == 0).to(x.dtype)
    return _energies(energy, states.scatter(1, sites, new).reshape(-1, *x.shape[1:]))


def _energies(energy: EnergyFn, x: Tensor) -> Tensor:
    value = energy(x)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"pseudo_likelihood: energy must return a floating-point tensor, got {got}")
    if value.shape != x.shape[:1]:
        raise ValueError(f"pseudo_likelihood: energy must return shape ({len(x)},), got {tuple(value.shape)}")
    return value
