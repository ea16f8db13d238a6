"""Perceptrons by formula: values, tangents of many probes as one matrix product a layer, and exact traces.

z_1 = W_1 x + b_1, h_l = a(z_l), z_{l+1} = W_{l+1} h_l + b_{l+1}; the last z is the output. With d_l = a'(z_l) the Jacobian is
J = W_{L+1} D_L W_L ... D_1 W_1, D_l = diag(d_l). Its trace is linear in each d_l: with one hidden layer tr J = Σ_j d_1j (W_1 W_2)_jj, with two the
bilinear form tr J = d_2ᵀ [W_2 ∘ (W_1 W_3)ᵀ] d_1, whose matrix changes with the weights only. The Hessian of a scalar output, with u_l = ∂E/∂h_l, is
Σ_l (∂z_l/∂x)ᵀ diag(a''(z_l) u_l) (∂z_l/∂x), so that vᵀHv needs the tangents t_l of the z_l alone: Σ_l Σ_j a''(z_lj) u_lj t_lj².
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ebmcore.ops import Stream, activation_derivatives, normal
from ebmcore.ops.activations import layer_in_forward_mode
from ebmcore.ops.dynamics import DynamicsRun, NativeEnergy, bfloat16_products, bfloat16_tiles, fuses_multiply_add, panels, run_dynamics

_NATIVE: dict[type[nn.Module], str] = {nn.SiLU: "silu", nn.Tanh: "tanh", nn.Softplus: "softplus", nn.Sigmoid: "sigmoid", nn.ReLU: "relu"}
_ELEMENTWISE = (nn.CELU, nn.ELU, nn.GELU, nn.LeakyReLU, nn.Mish, nn.SELU, nn.Softplus, nn.Softsign)
_IN_CHAINS = ("sigmoid", "softplus", "silu", "tanh", "relu", "gelu", "elu", "leaky_relu")  # by their numbers in csrc/ops/activations.h
_FEW_ROWS, _MANY_WEIGHTS = 256, 2**16
_FEW_CHAINS = 3  # that native chains take one by one, with units in lanes in place of chains
_MANY_STEPS = 4  # of native chains, in which copies of many weights in the order of their products pay
_MAX_HIDDEN_LAYERS = 8  # of native chains
_MAX_ELEMENTS = 2**22  # of a layer's tangents when every column of a Jacobian is wanted

_built: weakref.WeakKeyDictionary[nn.Module, tuple[list[Any], list[Tensor], dict[str, Any]]] = weakref.WeakKeyDictionary()


T = TypeVar("T")


class Layers(NamedTuple):
    """Of one forward pass: the output, of each hidden layer [a(z), a'(z)] or [a(z), a'(z), a''(z)], and the weights transposed."""

    output: Tensor
    derivatives: list[Sequence[Tensor]]
    transposed_weights: Sequence[Tensor]


class Perceptron:
    """The linear layers and elementwise activations of a module, read in place.

    Attributes:
        weights, biases: of the linear layers, (num_outputs, num_inputs) and (num_outputs,) or None.
        is_energy: whether its one output is an energy, and not a function of one variable.
    """

    def __init__(self, owner: nn.Module, linears: Sequence[nn.Linear], activations: Sequence[nn.Module], is_energy: bool) -> None:
        self.is_energy = is_energy
        self._owner = owner
        self._activations = activations
        self.weights = [layer.weight for layer in linears]
        self.biases = [layer.bias for layer in linears]
        self._kept: dict[str, Any] | None = None

    @property
    def num_inputs(self) -> int:
        return self.weights[0].shape[1]

    @property
    def num_outputs(self) -> int:
        return self.weights[-1].shape[0]

    @property
    def num_hidden_layers(self) -> int:
        return len(self.weights) - 1

    @property
    def requires_grad(self) -> bool:
        return any(p is not None and p.requires_grad for p in (*self.weights, *self.biases))

    def takes(self, x: Tensor) -> bool:
        """Whether the formulas are for this x: dtype and device of all weights, and nothing rewrites the products."""
        is_same = all(p is None or (p.dtype == x.dtype and p.device == x.device) for p in (*self.weights, *self.biases))
        is_field = self.num_outputs == (1 if self.is_energy else self.num_inputs)
        takes_shape = x.dim() == 2 or not isinstance(self._owner, nn.Sequential)  # which works on the last dimension alone
        return is_same and is_field and takes_shape and x.shape[1:].numel() == self.num_inputs and not torch.is_autocast_enabled(x.device.type)

    def native_dynamics(
        self,
        kernel: str,
        x: Tensor,
        momentum: Tensor | None,
        key: Tensor,
        num_steps: int,
        *,
        sign: float = 1.0,
        precision: str | None = None,
        row_space: bool = False,
        **options: Any,
    ) -> DynamicsRun | None:
        """Steps of chains on sign · E, natively, with the parameters read where they are; None, and nothing done, where that cannot be.

        It can for float32, up to 8 hidden layers, the activations of `lower`, and processors with fused multiply-adds; arguments and result as
        `ops.dynamics.run_dynamics`. The bits are the same on all such processors, for any number of threads and any split of the batch; with
        precision "bf16", on a CPU alone, for the latter two.

        row_space: see `ebmcore.Langevin`, whose kernel alone has it. E depends on Qᵀx alone, where W_1ᵀ = Q R: it is a perceptron with first
        weights Rᵀ of y = Qᵀx.
        """
        activations = [_in_chains(activation) for activation in self._activations]
        parameters = [p.detach() for p in (*self.weights, *self.biases) if p is not None]
        is_native = x.dtype == torch.float32 and len(x) > 0 and num_steps > 0 and self.takes(x) and all(p.is_contiguous() for p in parameters)
        if not is_native or None in activations or len(activations) > _MAX_HIDDEN_LAYERS or not fuses_multiply_add(x.device):
            return None
        if precision is not None and x.is_cuda:
            return None
        weights = [weight.detach() for weight in self.weights]
        biases = [None if bias is None else bias.detach() for bias in self.biases]

        def run(x: Tensor) -> DynamicsRun | None:
            hidden = weights[:-1]
            is_few = len(x) <= _FEW_CHAINS and not x.is_cuda and precision is None
            num_products = num_steps * options.get("num_leapfrog", 1)
            is_long = num_products >= _MANY_STEPS and sum(w.numel() for w in hidden) >= _MANY_WEIGHTS and precision is None and not x.is_cuda
            copies = [[w.t().contiguous() for w in hidden] if is_few else []]
            for build, is_wanted in ((panels, is_long and not is_few), (bfloat16_tiles, precision is not None)):
                copies += [[build(w) for w in hidden], [build(w.t()) for w in hidden]] if is_wanted else [[], []]
            network = (weights, biases, *(zip(*activations, strict=True) if activations else ((), ())), sign, *copies, bfloat16_products())
            num_numbers = 2 * sum(len(w) for w in hidden) + 2 * weights[0].shape[1] * is_few
            if precision is not None:
                num_numbers += max((-(-size // 32) * 16 for w in hidden for size in w.shape), default=0)
            return run_dynamics(kernel, NativeEnergy("perceptron", network, num_numbers), x, momentum, key, num_steps, **options)

        if not row_space or len(weights[0]) >= self.num_inputs:
            return run(x)
        basis, weights[0] = self._constant("row space", self._row_space)
        rows = x.view(len(x), -1)
        start = rows @ basis
        y = start.clone()
        result = run(y)
        assert result is not None
        assert result.grad is not None
        noise = normal(rows.shape, key=key, stream=Stream.COMPLEMENT, device=x.device).mul_(options["noise_std"] * math.sqrt(num_steps))
        rows.add_(noise).add_((y - start - noise @ basis) @ basis.t())
        return result._replace(grad=(result.grad @ basis.t()).view(x.shape))

    def _row_space(self) -> tuple[Tensor, Tensor]:
        """Q and Rᵀ of W_1ᵀ = Q R."""
        basis, triangle = torch.linalg.qr(self.weights[0].detach().t())
        return basis, triangle.t().contiguous()

    def forward(self, x: Tensor, num_derivatives: int = 1) -> Layers:
        """x: (num_chains, num_inputs)."""
        derivatives: list[Sequence[Tensor]] = []
        weights = self._transposed_weights(len(x))
        h = x
        for weight, bias, activation in zip(weights[:-1], self.biases[:-1], self._activations, strict=True):
            derivatives.append(_derivatives(activation, _affine(h, weight, bias), num_derivatives))
            h = derivatives[-1][0]
        return Layers(_affine(h, weights[-1], self.biases[-1]), derivatives, weights)

    def _transposed_weights(self, num_rows: int) -> Sequence[Tensor]:
        """Where no graph needs them, copies in that order from the second use of the same weights on: products of few rows with them take 0.7 (16
        rows) to 0.9 (64 rows) of the time, and to make them costs as much as six such passes gain."""
        if torch.is_grad_enabled() or num_rows > _FEW_ROWS or sum(weight.numel() for weight in self.weights) < _MANY_WEIGHTS:
            return [weight.t() for weight in self.weights]
        uses: list[list[Tensor]] = self._constant("transposed weights", list)
        if len(uses) < 2:
            uses.append([weight.t().contiguous() if uses else weight.t() for weight in self.weights])
        return uses[-1]

    @property
    def is_native(self) -> bool:
        """Whether every activation has a native pass."""
        return all(_native_name(activation) is not None for activation in self._activations)

    def forward_with_tangents(self, x: Tensor, v: Tensor, *, keep_slopes: bool) -> tuple[Layers, Tensor]:
        """The forward pass and J v, v (num_probes, num_chains, num_inputs), in one matrix product a layer. Without a graph, native activations only.

        The layers have no derivatives but their slopes, and these only with keep_slopes.
        """
        weights = self._transposed_weights(x.numel() // self.num_inputs * (1 + len(v)))
        rows = torch.cat((x[None], v))
        derivatives: list[Sequence[Tensor]] = []
        for weight, bias, activation in zip(weights[:-1], self.biases[:-1], self._activations, strict=True):
            rows = (rows.flatten(0, 1) @ weight).unflatten(0, rows.shape[:2])
            name = _native_name(activation)
            assert name is not None
            slopes = layer_in_forward_mode(rows, bias, name, keep_slopes)
            if keep_slopes:
                derivatives.append((slopes, slopes))
        rows = (rows.flatten(0, 1) @ weights[-1]).unflatten(0, rows.shape[:2])
        bias = 0.0 if self.biases[-1] is None else self.biases[-1]
        output = rows[0] + bias if keep_slopes else rows[0].add_(bias)  # what is kept with the layers must not keep the products
        return Layers(output, derivatives, weights), rows[1:]

    def adjoints(self, layers: Layers) -> list[Tensor]:
        """u_l = ∂E/∂h_l of a scalar output, of each hidden layer, and last ∇E; each (num_chains, width)."""
        u = self.weights[-1].expand(len(layers.output), -1)
        adjoints = [u]
        for weight, d in zip(self.weights[-2::-1], layers.derivatives[::-1], strict=True):
            u = (u * d[1]) @ weight
            adjoints.append(u)
        return [*adjoints[-2::-1], u]

    def tangents(self, layers: Layers, v: Tensor) -> Iterator[Tensor]:
        """∂z_l/∂x v of every layer, the output's last; v (num_probes, num_chains, num_inputs). May overwrite what it has handed out."""
        return self._tangents_from(layers, v @ layers.transposed_weights[0], 1)

    def _tangents_from(self, layers: Layers, t: Tensor, first: int) -> Iterator[Tensor]:
        yield t
        for weight, d in zip(layers.transposed_weights[first:], layers.derivatives[first - 1 :], strict=True):
            t = (t * d[1] if torch.is_grad_enabled() else t.mul_(d[1])) @ weight
            yield t

    def transposed_products(self, layers: Layers, v: Tensor) -> Tensor:
        """Jᵀ v, shaped as v: on one core in 0.8 of the time of J v, whose products want the weights the other way round."""
        v = v @ self.weights[-1]
        for weight, d in zip(self.weights[-2::-1], layers.derivatives[::-1], strict=True):
            v = (v * d[1] if torch.is_grad_enabled() else v.mul_(d[1])) @ weight
        return v

    def hessian_products(self, layers: Layers, v: Tensor) -> Tensor:
        """H v of a scalar output, shaped as v: the tangent of its backward pass."""
        adjoints = self.adjoints(layers)[:-1]
        tangents = [t.clone() for t in self.tangents(layers, v)][:-1]
        change = torch.zeros((), dtype=v.dtype, device=v.device)
        for weight, d, u, t in reversed(list(zip(self.weights, layers.derivatives, adjoints, tangents, strict=False))):
            change = (change * d[1] + u * d[2] * t) @ weight
        return change

    def curvatures(self, layers: Layers) -> tuple[Tensor, list[Tensor]]:
        """∇E and a''(z_l) u_l of a scalar output."""
        *adjoints, grad = self.adjoints(layers)
        return grad, [u * d[2] for u, d in zip(adjoints, layers.derivatives, strict=True)]

    def hessian_forms(self, layers: Layers, curvatures: Sequence[Tensor], v: Tensor) -> Tensor:
        """vᵀHv of a scalar output, (num_probes, num_chains)."""
        return _weighted_squares(self.tangents(layers, v), curvatures)

    def jacobian_trace(self, layers: Layers) -> Tensor:
        """tr J, (num_chains,), exact. One bilinear form with up to two hidden layers; one pass over the hidden layers for each of
        min(num_inputs, width of the first) directions with more."""
        first, last = self.weights[0], self.weights[-1]
        d = [pair[1] for pair in layers.derivatives]
        if len(d) == 0:
            return first.diagonal().sum().expand(len(layers.output))
        if len(d) == 1:
            diagonal: Tensor = self._constant("diagonal", lambda: (first * last.t()).sum(1))
            return d[0] @ diagonal
        if len(d) == 2:
            form: Tensor = self._constant("bilinear form", lambda: (first @ last) * self.weights[1].t())
            return ((d[0] @ form) * d[1]).sum(1)
        if self.num_inputs <= len(first):  # tr J = Σ_k e_kᵀ J e_k, else tr(W_1 W_{L+1} D_L ... D_1) over the first layer's units
            columns, rows = first, last
        else:
            columns, rows = torch.eye(len(first), dtype=first.dtype, device=first.device), self._constant("product", lambda: first @ last)
        total = layers.output.new_zeros(len(layers.output))
        for part in self._column_parts(columns, len(total)):
            t = columns.t()[part, None] * d[0]
            for weight, slope in zip(self.weights[1:-1], d[1:], strict=True):
                t = (t @ weight.t()) * slope
            total = total + torch.einsum("kb,knb->n", rows[part], t)
        return total

    def hessian_trace(self, layers: Layers, curvatures: Sequence[Tensor]) -> Tensor:
        """tr H of a scalar output, (num_chains,), exact. A dot product with one hidden layer; with more one pass over the others for each of
        min(num_inputs, width of the first) directions: any factor F with F Fᵀ = W_1 W_1ᵀ gives the same sum of squares."""
        first = self.weights[0]
        if not curvatures:
            return layers.output.new_zeros(len(layers.output))
        squared_norms: Tensor = self._constant("squared norms", lambda: first.square().sum(1))
        total = curvatures[0] @ squared_norms
        if len(curvatures) == 1:
            return total
        factor = first
        if self.num_inputs > len(first) and not torch.is_grad_enabled():
            factor = self._constant("factor", lambda: torch.linalg.qr(first.t())[1].t())
        for part in self._column_parts(factor, len(total)):
            tangents = self._tangents_from(layers, factor.t()[part, None].expand(-1, len(total), -1).clone(), 1)
            next(tangents)
            total = total + _weighted_squares(tangents, curvatures[1:]).sum(0)
        return total

    def _column_parts(self, matrix: Tensor, num_chains: int) -> Iterator[slice]:
        width = max(weight.shape[0] for weight in self.weights[:-1])
        size = max(1, _MAX_ELEMENTS // max(1, num_chains * width))
        for begin in range(0, matrix.shape[1], size):
            yield slice(begin, begin + size)

    def _constant(self, name: str, build: Callable[[], T]) -> T:
        """What depends on the weights alone, built once for each of their values if nothing has to flow back into them."""
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self.weights):
            return build()
        if any(weight.is_inference() for weight in self.weights):
            return build()
        if self._kept is None:
            self._kept = _kept_for(self._owner, self.weights)
        if name not in self._kept:
            with torch.no_grad():
                self._kept[name] = build()
        return self._kept[name]  # type: ignore[no-any-return]


def _kept_for(owner: nn.Module, weights: Sequence[Tensor]) -> dict[str, Any]:
    """What has been built for the values that the owner's weights have now; the older values' is forgotten."""
    # Versions count what optimisers do. Old code that writes through .data is not counted: hence the samples.
    state = [(weight.data_ptr(), weight._version, weight.shape) for weight in weights]
    samples = [weight.detach().reshape(-1)[:: max(1, weight.numel() // 61)] for weight in weights]
    known = _built.get(owner)
    if known and known[0] == state and all(map(torch.equal, known[1], samples)):
        return known[2]
    kept: dict[str, Any] = {}
    _built[owner] = (state, [sample.clone() for sample in samples], kept)
    return kept


def perceptron_of(f: Any) -> Perceptron | None:
    """The perceptron that `f` is, if it is one: a module that says so by `as_perceptron`, or a plain nn.Sequential."""
    if not isinstance(f, nn.Module) or f._forward_hooks or f._forward_pre_hooks:
        return None
    if hasattr(f, "as_perceptron"):
        perceptron: Perceptron | None = f.as_perceptron()  # type: ignore[operator]
        return perceptron
    return perceptron_from(f, f) if type(f) is nn.Sequential else None


def perceptron_from(owner: nn.Module, layers: nn.Sequential, *, is_energy: bool = False) -> Perceptron | None:
    """The perceptron of linear layers and elementwise activations in turns that begin and end with a linear one, None of anything else."""
    linears, activations = list(layers)[::2], list(layers)[1::2]
    is_plain = len(layers) % 2 == 1 and all(type(layer) is nn.Linear for layer in linears)
    is_plain = is_plain and all(type(layer) in _NATIVE or type(layer) in _ELEMENTWISE for layer in activations)
    if not is_plain or any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):
        return None
    return Perceptron(owner, [layer for layer in linears if isinstance(layer, nn.Linear)], activations, is_energy)


def _affine(h: Tensor, transposed_weight: Tensor, bias: Tensor | None) -> Tensor:
    return h @ transposed_weight if bias is None else torch.addmm(bias, h, transposed_weight)


def _weighted_squares(tangents: Iterator[Tensor], curvatures: Sequence[Tensor]) -> Tensor:
    """Σ_l Σ_j c_lj t_lj² over the layers that have curvatures, (num_probes, num_chains)."""
    total: Tensor | None = None
    for t, c in zip(tangents, curvatures, strict=False):
        part = (t.square() * c if torch.is_grad_enabled() else (t * c).mul_(t)).sum(2)
        total = part if total is None else total + part
    assert total is not None
    return total


def _native_name(activation: nn.Module) -> str | None:
    return None if isinstance(activation, nn.Softplus) and activation.beta != 1 else _NATIVE.get(type(activation))


def _in_chains(activation: nn.Module) -> tuple[int, float] | None:
    """The activation's number and parameter in native chains; None if it has none."""
    if isinstance(activation, nn.ELU):
        return _IN_CHAINS.index("elu"), activation.alpha
    if isinstance(activation, nn.LeakyReLU):
        return _IN_CHAINS.index("leaky_relu"), activation.negative_slope
    name = "gelu" if isinstance(activation, nn.GELU) and activation.approximate == "none" else _native_name(activation)
    return None if name is None else (_IN_CHAINS.index(name), 0.0)


def _derivatives(activation: nn.Module, z: Tensor, count: int) -> Sequence[Tensor]:
    """[a(z), a'(z), ...], `count` derivatives beyond a itself."""
    name = _native_name(activation)
    if name is not None:
        return activation_derivatives(z, name, 0, count + 1).unbind()
    keep_graph = torch.is_grad_enabled() and z.requires_grad
    with torch.enable_grad():
        point = z if keep_graph else z.detach().requires_grad_()
        values = [activation(point)]
        for _ in range(count):
            (grad,) = torch.autograd.grad(values[-1].sum(), point, create_graph=True, allow_unused=True) if values[-1].requires_grad else (None,)
            values.append(torch.zeros_like(point) if grad is None else grad)
    return values if keep_graph else [value.detach() for value in values]
