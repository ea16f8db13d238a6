"""A field at a point, f(x) or ∇E(x), and products with its Jacobian there, by what costs least for the f at hand.

A perceptron goes by its formulas. Anything else goes by autograd, and was measured (medians of forward and products together, one core):
one probe costs least in reverse mode, also where parameters need gradients (double backward); several probes in one batched reverse pass, except
with convolutions, whose batched reverse pass is slow: there forward mode wins for energies and where parameters need gradients, and probes one by
one win for functions alone.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ebmcore.gradients import as_energy, check_state
from ebmcore.ops import Stream, normal
from ebmcore.perceptron import Layers, Perceptron, perceptron_of
from ebmcore.trace.probes import Probes, flattened
from ebmcore.types import DivergenceError, Key

_MAX_ELEMENTS = 2**22  # of the vectors in one batched pass
_MAX_ROWS = 128  # of a perceptron's matrix products: they keep a core busy, and 16 probes for 64 chains need 1.25 the memory of one


class Linearization:
    """f at x.

    Attributes:
        is_energy: whether f maps to (num_chains,); the Jacobian is then the Hessian.
        field: f(x) or ∇E(x), (num_chains, *event); attached to the graph if something that it depends on wants gradients.
        needs_graph: whether it does.
        num_products_of_trace: products that `trace` costs.
    """

    is_energy: bool
    needs_graph: bool
    num_products_of_trace: int

    def __init__(self, x: Tensor, caller: str) -> None:
        self._x = x
        self._caller = caller

    @property
    def field(self) -> Tensor:
        raise NotImplementedError

    def trace(self) -> Tensor:
        """tr J, (num_chains,), exact."""
        return self.checked(self._trace())

    def quadratic_forms(self, probes: Probes, begin: int = 0) -> Tensor:
        """vᵀJ v of the probes from `begin` on, (num_probes - begin, num_chains)."""
        return self.checked(self._quadratic_forms(probes, begin))

    def products(self, v: Tensor) -> Tensor:
        """J v or Jᵀ v, always the same of the two, shaped as v: (num_vectors, num_chains, *event)."""
        raise NotImplementedError

    def _is_flat(self) -> bool:
        """Whether the Jacobian is 0 at every chain, and not only its trace: by one product with a vector that nothing is orthogonal to by design."""
        v = normal((1, *self._x.shape), key=Key(0), stream=Stream.PROBE, dtype=self._x.dtype, device=self._x.device)
        return not bool(self.products(v).detach().any())

    def _trace(self) -> Tensor:
        raise NotImplementedError

    def _quadratic_forms(self, probes: Probes, begin: int) -> Tensor:
        raise NotImplementedError

    def checked(self, values: Tensor) -> Tensor:
        """`values`, (..., num_chains), if they and the field are finite. Reads from the device."""
        if values.numel() == 0:
            return values
        seen = values.detach()
        if not abs(float(seen.sum() + self.field.detach().sum())) < torch.inf:  # a finite sum has finite terms
            check_finite(self._caller, self.field, seen)
        if self.is_energy and not bool(seen.any()) and self._is_flat():
            warnings.warn(
                f"{self._caller}: the energy's second derivative is zero at every chain, as it is everywhere that ReLU nets are differentiable: "
                "its trace says nothing about their curvature. Use a smooth activation (SiLU, softplus, tanh), or denoising score matching.",
                UserWarning,
                stacklevel=4,
            )
        return values


def check_finite(caller: str, field: Tensor, values: Tensor) -> None:
    """Raise DivergenceError naming the rows where `field` (num_chains, *event) or `values` (..., num_chains) are not finite."""
    is_finite = flattened(field.detach(), 1).isfinite().all(1) & values.isfinite().reshape(-1, len(field)).all(0)
    if bool(is_finite.all()):
        return
    chains = (~is_finite).nonzero().flatten().tolist()
    message = f"{caller}: f and its Jacobian products must be finite, got NaN or infinity in {len(chains)} chains {chains[:8]} (first 8 shown)"
    raise DivergenceError(message, chains=chains, step=-1, last_energies=[torch.nan] * len(chains))


def linearize(f: Any, x: Tensor, caller: str) -> Linearization:
    """f at x: an energy (num_chains, *event) -> (num_chains,), a function (num_chains, *event) -> (num_chains, *event), or a log_prob.

    Each chain's output must depend on that chain alone. A graph to the parameters is kept if grad mode is on and one of them wants
    gradients, one to x if x does.

    Raises:
        TypeError: x or what f returns is no float32 or float64 tensor, or f is not callable.
        ValueError: shapes or devices are not as above, or f does not depend on x.
    """
    check_state(x, caller)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{caller}: x must be float32 or float64, got {x.dtype}")
    perceptron = perceptron_of(f)
    if perceptron is not None and perceptron.takes(x):
        return _ByFormula(perceptron, x, caller)
    return _ByAutograd(as_energy(f, caller), x, caller)


F = TypeVar("F", bound=Callable[..., Any])


def outside_inference_mode(function: F) -> F:
    """`function`(f, x, ...) with autograd at its disposal, also in inference mode; grad mode stays as it is."""

    @functools.wraps(function)
    def wrapper(f: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (torch.is_inference_mode_enabled() or (isinstance(x, Tensor) and x.is_inference())):
            return function(f, x, *args, **kwargs)
        is_grad_enabled = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(is_grad_enabled):
            return function(f, x.clone(), *args, **kwargs)

    return wrapper  # type: ignore[return-value]


class _ByFormula(Linearization):
    """Of a perceptron: exact traces in closed form, products with all probes in one matrix product a layer."""

    def __init__(self, perceptron: Perceptron, x: Tensor, caller: str) -> None:
        super().__init__(x, caller)
        self.num_products_of_trace = 0
        self._perceptron = perceptron
        self.is_energy = perceptron.is_energy
        self.needs_graph = torch.is_grad_enabled() and (x.requires_grad or perceptron.requires_grad)
        self._field: Tensor | None = None  # before the first use: what asks for it first may get more out of the same pass
        self._layers: Layers | None = None

    @property
    def field(self) -> Tensor:
        if self._field is None:
            layers = self._forward()
            self._field = (self._curvatures[0] if self.is_energy else layers.output).reshape(self._x.shape)
        return self._field

    def _forward(self) -> Layers:
        if self._layers is None:
            with torch.set_grad_enabled(self.needs_graph):
                self._layers = self._perceptron.forward(flattened(self._x, 1), 2 if self.is_energy else 1)
                if self.is_energy:
                    self._curvatures = self._perceptron.curvatures(self._layers)
        return self._layers

    def _trace(self) -> Tensor:
        layers = self._forward()
        with torch.set_grad_enabled(self.needs_graph):
            if self.is_energy:
                return self._perceptron.hessian_trace(layers, self._curvatures[1])
            return self._perceptron.jacobian_trace(layers)

    def _quadratic_forms(self, probes: Probes, begin: int) -> Tensor:
        """In parts of few rows if no graph wants to keep them: no more memory for many probes than for one."""
        parts: list[Tensor] = []
        with torch.set_grad_enabled(self.needs_graph):
            while begin < probes.num_probes:
                # A function's forward pass is among the rows of the first part.
                rows = _MAX_ROWS if self.is_energy or self._layers is not None else _MAX_ROWS // 2
                count = probes.num_probes if self.needs_graph else max(1, rows // max(1, len(self._x)))
                end = min(begin + count, probes.num_probes)
                parts.append(self._forms_of(probes, begin, end))
                begin = end
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _forms_of(self, probes: Probes, begin: int, end: int) -> Tensor:
        """Of probes begin, ..., end - 1. Without a name for the vectors, which are then freed as soon as the first layer is through with them."""
        perceptron = self._perceptron
        if self.is_energy:
            layers = self._forward()
            return perceptron.hessian_forms(layers, self._curvatures[1], flattened(probes.vectors(begin, end), 2))
        if self._field is None and self._layers is None and not self.needs_graph and perceptron.is_native:
            is_last, v = end == probes.num_probes, flattened(probes.vectors(begin, end), 2)
            layers, products = perceptron.forward_with_tangents(flattened(self._x, 1), v, keep_slopes=not is_last)
            self._field = layers.output.reshape(self._x.shape)
            self._layers = None if is_last else layers
        else:
            products = perceptron.transposed_products(self._forward(), flattened(probes.vectors(begin, end), 2))
        return probes.dot(products.reshape(len(products), *self._x.shape), begin)

    def products(self, v: Tensor) -> Tensor:
        layers = self._forward()
        with torch.set_grad_enabled(self.needs_graph):
            product = self._perceptron.hessian_products if self.is_energy else self._perceptron.transposed_products
            return product(layers, flattened(v, 2)).reshape(v.shape)


class _ByAutograd(Linearization):
    """Of any function that torch can differentiate."""

    def __init__(self, f: Callable[..., Tensor], x: Tensor, caller: str) -> None:
        super().__init__(x, caller)
        self._f = f
        wants_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = x if wants_graph and x.requires_grad else x.detach().requires_grad_()
            version = leaf._version
            value = f(leaf)
            self._check_value(value)
            if leaf._version != version:
                raise ValueError(f"{caller}: f must not modify x in place")
            names, leaves = _graph_of(value)
            self.needs_graph = wants_graph and (x.requires_grad or any(other is not leaf for other in leaves))
            self.is_energy = value.shape != x.shape
            field = value
            if self.is_energy:
                (grad,) = torch.autograd.grad(value, leaf, torch.ones_like(value), create_graph=True, allow_unused=True)
                if grad is None:
                    raise ValueError(f"{caller}: f must depend on x, but its gradient in x is None (detached, or x unused)")
                field = grad
        self._leaf, self._attached = leaf, field
        self.num_products_of_trace = x.shape[1:].numel()
        self._many: Callable[[Tensor], Tensor] | None = self._batched_products
        if any("Convolution" in name for name in names):
            self._many = self._forward_products if self.is_energy or self.needs_graph else None

    @property
    def field(self) -> Tensor:
        return self._attached if self.needs_graph else self._attached.detach()

    def _check_value(self, value: Tensor) -> None:
        x, caller = self._x, self._caller
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{caller}: f must return a floating-point tensor, got {got}")
        if value.shape != x.shape and value.shape != x.shape[:1]:
            wanted = f"{tuple(x.shape)} (a function) or ({len(x)},) (an energy)"
            raise ValueError(f"{caller}: f must return shape {wanted} for x of shape {tuple(x.shape)}, got {tuple(value.shape)}")
        if value.device != x.device:
            raise ValueError(f"{caller}: f must return a tensor on {x.device}, where x is, got {value.device}")
        if not value.requires_grad:
            raise ValueError(f"{caller}: f must depend on x, but what it returns has no graph (detached, or x unused)")

    def _trace(self) -> Tensor:
        d = self._x.shape[1:].numel()
        total = torch.zeros(len(self._x), dtype=self._x.dtype, device=self._x.device)
        size = max(1, _MAX_ELEMENTS // max(1, self._x.numel()))
        for begin in range(0, d, size):
            axes = torch.arange(begin, min(begin + size, d), device=self._x.device)
            v = torch.zeros(len(axes), *self._x.shape, dtype=self._x.dtype, device=self._x.device)
            v.view(len(axes), len(self._x), d)[torch.arange(len(axes)), :, axes] = 1.0
            rows = self.products(v).reshape(len(axes), len(self._x), d)
            total = total + rows[torch.arange(len(axes)), :, axes].sum(0)
        return total

    def _quadratic_forms(self, probes: Probes, begin: int) -> Tensor:
        size = max(1, _MAX_ELEMENTS // max(1, self._x.numel()))
        parts = [probes.dot(self.products(probes.vectors(i, i + size)), i) for i in range(begin, probes.num_probes, size)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def products(self, v: Tensor) -> Tensor:
        if len(v) > 1 and self._many is not None:
            try:
                return self._many(v)
            except (RuntimeError, NotImplementedError):  # an operation without a rule for batches or for forward mode
                self._many = None
        return torch.stack([self._reverse_product(row) for row in v.unbind()])

    def _reverse_product(self, v: Tensor, *, is_batched: bool = False) -> Tensor:
        if not self._attached.requires_grad:  # an energy linear in x
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(
            self._attached, self._leaf, v, retain_graph=True, create_graph=self.needs_graph, allow_unused=True, is_grads_batched=is_batched
        )
        return torch.zeros_like(v) if product is None else product

    def _batched_products(self, v: Tensor) -> Tensor:
        return self._reverse_product(v, is_batched=True)

    def _forward_products(self, v: Tensor) -> Tensor:
        function = torch.func.grad(lambda y: self._f(y).sum()) if self.is_energy else self._f
        with torch.set_grad_enabled(self.needs_graph):
            products: Tensor = torch.func.vmap(lambda t: torch.func.jvp(function, (self._x,), (t,))[1])(v)
            return products


def _graph_of(value: Tensor) -> tuple[set[str], list[Tensor]]:
    """The names of the operations behind `value`, and the leaves that it depends on."""
    names: set[str] = set()
    leaves: list[Tensor] = []
    seen: set[Any] = set()
    stack = [value.grad_fn] if value.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        names.add(node.name())
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        stack += [parent for parent, _ in node.next_functions if parent is not None]
    return names, leaves
