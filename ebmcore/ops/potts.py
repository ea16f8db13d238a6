"""Whole chains of Potts models, E = -Σ_i h_i[x_i] - Σ_{i<j} J_ij[x_i, x_j]: Gibbs, Metropolis, Gibbs-with-Gradients.

Fields are integers: couplings are rounded once to multiples of a power of two (2**-29 of the largest field a site can have), and a sum of
them is the same in any order and never drifts. Gibbs-with-Gradients (Grathwohl et al. 2021) keeps the fields of a chain and a tree of sums
of weights; a step costs O(degree · (num_categories + log16 num_sites)).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmcore import _native
from ebmcore.ops.registration import key_tensor, register, require_device
from ebmcore.types import Key

SCANS = {"raster": 0, "random": 1, "checkerboard": 2}
BALANCINGS = {"sqrt": 0, "barker": 1, "min": 2, "max": 3}

_ARGUMENTS = (
    "Tensor key, Tensor offsets, Tensor neighbours, Tensor couplings, int coupling_stride, bool is_table, bool is_bounded, Tensor? reverse, "
    "Tensor fields, int num_categories, Tensor unit, Tensor? order, int scan, int balancing, int max_degree, int num_steps"
)


class PottsTables(NamedTuple):
    """A Potts model in integers, on the device of its chains; energies are `unit` times them.

    Attributes:
        offsets, neighbours: the entries of site i, one for each neighbour, are offsets[i] to offsets[i + 1]; int64 and int32.
        couplings: int32. With is_table, of an entry of site i to its neighbour j a (num_categories, num_categories) table [x_j][x_i] (and 16
            more numbers behind the last), else one number, gained where x_i == x_j.
        coupling_stride: numbers of an entry; 0: all entries share theirs.
        is_table: see `couplings`.
        is_bounded: no two fields of a site differ by more than 80 / unit.
        reverse: int32, the entry of the neighbour that leads back; None for what is symmetric anyway.
        fields: int32, (num_sites, num_categories) and 16 more numbers.
        num_categories: of a site.
        unit: (1,) float64.
        max_degree: most entries of a site.
    """

    offsets: Tensor
    neighbours: Tensor
    couplings: Tensor
    coupling_stride: int
    is_table: bool
    is_bounded: bool
    reverse: Tensor | None
    fields: Tensor
    num_categories: int
    unit: Tensor
    max_degree: int


def _define(kernel: str) -> Any:
    name = f"potts_{kernel}"

    def outputs(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, device = len(states), states.device
        return (
            torch.ones(n, dtype=torch.bool, device=device),
            torch.ones(n, dtype=torch.float64, device=device),
            torch.zeros(n, dtype=torch.int64, device=device),
        )

    def implementation(states: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        is_accepted, acceptance_prob, num_flips = outputs(states)
        workspace = None
        if kernel == "gwg" and states.is_cuda:
            scratch = _native.core.potts_gwg_scratch(states[:1].numel(), arguments[9], arguments[14])
            workspace = torch.empty(len(states) * scratch, dtype=torch.uint8, device=states.device)
        rejects = kernel != "gibbs"
        getattr(_native.core, name)(states, *arguments, is_accepted if rejects else None, acceptance_prob if rejects else None, num_flips, workspace)
        torch.autograd.graph.increment_version(states)
        return is_accepted, acceptance_prob, num_flips

    return register(f"{name}(Tensor(a!) states, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", implementation, lambda states, *_: outputs(states))


_OPS = {kernel: _define(kernel) for kernel in ("gibbs", "metropolis", "gwg")}


def potts_chain_(
    kernel: str,
    states: Tensor,
    tables: PottsTables,
    *,
    key: Key | Tensor,
    num_steps: int,
    scan: str = "raster",
    order: Tensor | None = None,
    balancing: str = "sqrt",
) -> tuple[Tensor, Tensor, Tensor]:
    """`num_steps` steps of a kernel that leaves exp(-E) invariant, in place.

    Args:
        kernel: "gibbs" (a sweep a step, or one site drawn uniformly for scan "random"), "metropolis" (uniform site, uniform other value) or
            "gwg" (one change a step, drawn in proportion to balancing(exp(d)); |d| <= 80, for "sqrt" 120).
        states: (num_chains, *event) uint8 tokens, contiguous.
        tables: the model, on the device of `states`.
        key: of the first step.
        num_steps: >= 0.
        scan: of Gibbs: "raster", "random" or "checkerboard", which goes through the sites in `order`.
        order: (num_sites,) int32.
        balancing: of "gwg": "sqrt", "barker", "min" or "max".

    Returns:
        is_accepted (num_chains,) bool of the last step, acceptance_prob float64, its mean, and num_flips int64, their sum (for Gibbs sites
        that changed).

    Raises:
        ValueError: an unknown kernel, scan or balancing.
        RuntimeError: for CUDA tensors where CUDA cannot run.
    """
    caller = "potts_chain_"
    for name, value, known in (("kernel", kernel, _OPS), ("scan", scan, SCANS), ("balancing", balancing, BALANCINGS)):
        if value not in known:
            raise ValueError(f"{caller}: {name} must be one of {', '.join(known)}, got {value!r}")
    if (scan == "checkerboard") != (order is not None):
        raise ValueError(f"{caller}: order must be given for scan='checkerboard' and for no other, got scan={scan!r}")
    require_device(states.device, caller)
    result: tuple[Tensor, Tensor, Tensor] = _OPS[kernel](
        states,
        key_tensor(key, states.device, caller),
        *tables[:-1],
        order,
        SCANS[scan],
        BALANCINGS[balancing],
        tables.max_degree,
        num_steps,
    )
    return result
