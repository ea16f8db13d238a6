"""What plain torch can do for fields and traces of their Jacobians: the rivals of `cases/trace.py`.

f is a function (n, d) -> (n, d) or an energy, `energies.MLP`, whose field is ∇E; x is (n, d), probes (num_probes, n, d).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import linear

from ebmcore.energies import MLP

func: Any = torch.func  # whose annotations know fewer results than it has

Estimator = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(f, x, probes) -> the field (n, d) and the means of vᵀJv, (n,)."""


def field_of(f: Any, leaf: Tensor) -> Tensor:
    """f(leaf), or ∇E(leaf) with its graph."""
    value: Tensor = f(leaf)
    return value if value.dim() > 1 else grad(value.sum(), leaf, create_graph=True)[0]


# Hutchinson's estimate.


def double_backward(f: Any, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """The batch repeated for each probe, and a graph of the gradient of v · s whether wanted or not: sliced score matching's own way."""
    leaf, v = x.repeat(len(probes), 1).requires_grad_(), probes.flatten(0, 1)
    s = field_of(f, leaf)
    (products,) = grad((s * v).sum(), leaf, create_graph=True)
    return s[: len(x)], (products * v).sum(1).view(len(probes), -1).mean(0)


def vjps(f: Any, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass, a backward pass for each probe, no graph of it."""
    leaf = x.detach().requires_grad_()
    s = field_of(f, leaf)
    forms = [(grad(s, leaf, v, retain_graph=True)[0] * v).sum(1) for v in probes]
    return s, torch.stack(forms).mean(0)


def batched_vjps(f: Any, x: Tensor, probes: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """One forward pass, one backward pass for all probes."""
    leaf = x.detach().requires_grad_()
    s = field_of(f, leaf)
    (products,) = grad(s, leaf, probes, is_grads_batched=True, create_graph=create_graph)
    return s, (products * probes).sum(2).mean(0)


def jvps(f: Any, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """torch.func.jvp, under vmap if there are several probes."""
    function = func.grad(lambda y: f(y).sum()) if isinstance(f, MLP) else f
    if len(probes) == 1:
        s, product = func.jvp(function, (x,), (probes[0],))
        return s, (product * probes[0]).sum(1)
    s, products = func.vmap(lambda v: func.jvp(function, (x,), (v,)), out_dims=(None, 0))(probes)
    return s, (products * probes).sum(2).mean(0)


def forward_mode(f: Any, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """The formulas of ours by hand, for perceptrons of SiLU: tangents of all probes in one product a layer, of an energy Σ a''(z) u t²."""
    *hidden, last = (layer for layer in f.layers if isinstance(layer, nn.Linear))
    h, t = x, probes
    slopes, curvatures, tangents = [], [], []
    for layer in hidden:
        z, t = linear(h, layer.weight, layer.bias), linear(t, layer.weight)
        sigma = z.sigmoid()
        h = z * sigma
        slopes.append(sigma + h * (1 - sigma))
        if isinstance(f, MLP):
            curvatures.append(sigma * (1 - sigma) * (2 + z - 2 * h))
            tangents.append(t)
        t = t * slopes[-1]
    if not isinstance(f, MLP):
        return linear(h, last.weight, last.bias), (linear(t, last.weight) * probes).sum(2).mean(0)
    u, forms = last.weight, torch.zeros((), dtype=x.dtype, device=x.device)
    for layer, slope, curvature, t in zip(hidden[::-1], slopes[::-1], curvatures[::-1], tangents[::-1], strict=True):
        forms = forms + (t.square() * (u * curvature)).sum(2)
        u = (u * slope) @ layer.weight
    return u, forms.mean(0)


# Exact traces.


def autograd_loop(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A backward pass for each dimension."""
    leaf = x.detach().requires_grad_()
    s = field_of(f, leaf)
    return s, torch.stack([grad(s[:, i].sum(), leaf, retain_graph=True)[0][:, i] for i in range(x.shape[1])]).sum(0)


@torch.no_grad()
def jacobians(f: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The whole Jacobian of each chain by torch.func, all rows in one batched pass."""
    function = func.grad(lambda y: f(y[None])[0]) if isinstance(f, MLP) else lambda y: f(y[None])[0]

    def twice(y: Tensor) -> tuple[Tensor, Tensor]:
        s = function(y)
        return s, s

    jacobian, s = func.vmap(func.jacrev(twice, has_aux=True))(x)
    return s, jacobian.diagonal(dim1=1, dim2=2).sum(1)


def bilinear_form(f: Any) -> Tensor:
    """W_2 ∘ (W_1 W_3)ᵀ of a function with two hidden layers."""
    first, second, third = (layer.weight for layer in f.layers if isinstance(layer, nn.Linear))
    return second * (first @ third).t()


@torch.no_grad()
def closed_form(f: Any, x: Tensor, form: Tensor) -> tuple[Tensor, Tensor]:
    """a'(z_2)ᵀ [W_2 ∘ (W_1 W_3)ᵀ] a'(z_1), the identity that ours goes by, by hand for SiLU."""
    *hidden, last = (layer for layer in f.layers if isinstance(layer, nn.Linear))
    h, slopes = x, []
    for layer in hidden:
        z = linear(h, layer.weight, layer.bias)
        sigma = z.sigmoid()
        h = z * sigma
        slopes.append(sigma + h * (1 - sigma))
    return linear(h, last.weight, last.bias), (linear(slopes[0], form) * slopes[1]).sum(1)


# Traces from few products of a symmetric Jacobian with the columns of (n, d, m).


def product_loop(f: Any, x: Tensor, columns: Tensor) -> Tensor:
    products: list[Tensor] = [func.jvp(f, (x,), (column,))[1] for column in columns.unbind(2)]
    return torch.stack(products, 2)


def product_vmap(f: Any, x: Tensor, columns: Tensor) -> Tensor:
    products: Tensor = func.vmap(lambda v: func.jvp(f, (x,), (v,))[1], in_dims=2, out_dims=2)(columns)
    return products


def hutch_plus_plus(times: Callable[[Tensor], Tensor], probes: Tensor) -> Tensor:
    """Meyer et al. 2021, algorithm 1; probes (n, d, 2k), half of them for the range. 3k products."""
    half = probes.shape[2] // 2
    q = torch.linalg.qr(times(probes[:, :, :half])).Q
    rest = probes[:, :, half:] - q @ (q.mT @ probes[:, :, half:])
    value: Tensor = (q * times(q)).sum((1, 2)) + (rest * times(rest)).sum(1).mean(1)
    return value


def xtrace(times: Callable[[Tensor], Tensor], probes: Tensor) -> Tensor:
    """Epperly, Tropp & Webber 2024, each probe left out in turn; probes (n, d, m) of length √d. 2m products."""
    d, m = probes.shape[1:]
    y = times(probes)
    q, r = torch.linalg.qr(y)
    z = times(q)
    normals = torch.linalg.inv(r).mT
    normals = normals / normals.norm(dim=1, keepdim=True)
    through = (q * z).sum((1, 2))
    estimates = []
    for i in range(m):
        omega, normal = probes[:, :, i : i + 1], normals[:, :, i : i + 1]  # the others span Q (I - normal normalᵀ)
        w = q.mT @ omega
        w = w - normal @ (normal.mT @ w)
        rest, product = omega - q @ w, y[:, :, i : i + 1] - z @ w
        of_range = through - (normal * (q.mT @ (z @ normal))).sum((1, 2))
        estimates.append(of_range + (d - m + 1) / rest.square().sum((1, 2)) * (rest * product).sum((1, 2)))
    return torch.stack(estimates).mean(0)
