"""Cluster updates of Ising and Potts models (Swendsen & Wang, "Nonuniversal critical dynamics in Monte Carlo simulations", 1987)."""

from __future__ import annotations

import torch
from torch import Tensor

from ebmcore import _native
from ebmcore.ops.registration import key_tensor, register, require_device
from ebmcore.types import Key


def _implementation(
    states: Tensor, key: Tensor, edges: Tensor, bond_probs: Tensor, fields: Tensor | None, num_categories: int, num_steps: int
) -> Tensor:
    num_flips = torch.zeros(len(states), dtype=torch.int64, device=states.device)
    num_sites = states[:1].numel()
    num_sums = 0 if fields is None else fields.numel()
    scratch = -(-(5 * num_sites + 8 * num_sums) // 64) * 64
    workspace = torch.empty(len(states) * scratch, dtype=torch.uint8, device=states.device) if states.is_cuda else None
    _native.core.swendsen_wang(states, key, edges, bond_probs, fields, num_categories, num_steps, num_flips, workspace, scratch)
    torch.autograd.graph.increment_version(states)
    return num_flips


_swendsen_wang = register(
    "swendsen_wang(Tensor(a!) states, Tensor key, Tensor edges, Tensor bond_probs, Tensor? fields, int num_categories, int num_steps) -> Tensor",
    _implementation,
    lambda states, *_: torch.empty(len(states), dtype=torch.int64, device=states.device),
)


def swendsen_wang_(
    states: Tensor,
    edges: Tensor,
    couplings: Tensor,
    fields: Tensor | None,
    *,
    key: Key | Tensor,
    num_steps: int,
    num_categories: int = 2,
) -> Tensor:
    """`num_steps` steps in place; leaves exp(-E) invariant: E = -Σ_(i,j) J_ij s_i s_j - Σ_i h_i s_i over the edges for spins, E =
    -Σ_(i,j) J_ij [x_i = x_j] - Σ_i h_i[x_i] for tokens.

    A bond is laid on an edge that the state satisfies with probability 1 - exp(-2 |J|) (tokens: 1 - exp(-J)); each cluster is drawn from its
    conditional given the fields: spins keep their pattern or turn it round, whatever the signs of J, tokens take one value.

    Args:
        states: (num_chains, *event), int8 spins or uint8 tokens, contiguous.
        edges: (num_edges, 2) int64, on the device of `states`.
        couplings: (num_edges,) or (1,), J; at least 0 for tokens.
        fields: (num_sites,) for spins, (num_sites, num_categories) for tokens, or None.
        key: of the first step.
        num_steps: >= 0.
        num_categories: of tokens.

    Returns:
        num_flips (num_chains,) int64: sites that changed, summed over the steps.

    Raises:
        ValueError: couplings or fields that are not finite, or couplings of tokens below 0; reads one flag from the device.
        RuntimeError: for CUDA tensors where CUDA cannot run.
    """
    caller = "swendsen_wang_"
    require_device(states.device, caller)
    couplings = couplings.detach().double().reshape(-1)
    is_spin = states.dtype == torch.int8
    is_good = couplings.isfinite().all() if is_spin else (couplings.isfinite() & (couplings >= 0)).all()
    if fields is not None:
        fields = fields.detach().double().contiguous()
        is_good = is_good & fields.isfinite().all()
    if not bool(is_good):
        raise ValueError(f"{caller}: couplings and fields must be finite{'' if is_spin else ' and couplings of tokens at least 0'}")
    bond_probs = -torch.expm1(-2 * couplings.abs()) * couplings.sign() if is_spin else -torch.expm1(-couplings)
    result: Tensor = _swendsen_wang(states, key_tensor(key, states.device, caller), edges, bond_probs, fields, num_categories, num_steps)
    return result
