"""`lower`: a user's own perceptron as an energy whose chains run natively, with the parameters where they are."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ebmcore.ops.dynamics import DynamicsRun
from ebmcore.perceptron import Perceptron

_ACTIVATIONS = (nn.ELU, nn.GELU, nn.LeakyReLU, nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Tanh)
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.elu: nn.ELU,
    F.gelu: nn.GELU,
    F.leaky_relu: nn.LeakyReLU,
    F.relu: nn.ReLU,
    F.silu: nn.SiLU,
    F.sigmoid: nn.Sigmoid,
    F.softplus: nn.Softplus,
    F.tanh: nn.Tanh,
    torch.relu: nn.ReLU,
    torch.sigmoid: nn.Sigmoid,
    torch.tanh: nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
_RESHAPES = ("flatten", "reshape", "view", "squeeze", torch.flatten, torch.reshape, torch.squeeze)


class LoweredEnergy(nn.Module):
    """What `lower` returns: the energies that the module computes, (num_chains,), with native chains.

    Attributes:
        module: the user's own; its parameters are this energy's.
    """

    def __init__(self, module: nn.Module, linears: Sequence[nn.Linear], activations: Sequence[nn.Module], sign: float) -> None:
        super().__init__()
        self.module = module
        self._linears, self._activations, self._sign = tuple(linears), tuple(activations), sign
        self._all_modules = tuple(self.modules())

    def forward(self, x: Tensor) -> Tensor:
        """x: (num_chains, *event), as the module takes it. Returns (num_chains,)."""
        energies: Tensor = self.module(x).reshape(len(x))
        return energies

    def as_perceptron(self) -> Perceptron | None:
        """What `trace` and the losses take formulas from; None of the negative of a perceptron."""
        return self._perceptron() if self._sign > 0 else None

    def native_dynamics(self, kernel: str, x: Tensor, momentum: Tensor | None, key: Tensor, num_steps: int, **options: Any) -> DynamicsRun | None:
        """Whole chains by `Perceptron.native_dynamics`; None, and nothing done, where a hook has a say."""
        if any(module._forward_hooks or module._forward_pre_hooks for module in self._all_modules):
            return None
        return self._perceptron().native_dynamics(kernel, x, momentum, key, num_steps, sign=self._sign, **options)

    def _perceptron(self) -> Perceptron:
        return Perceptron(self, self._linears, self._activations, is_energy=True)


def lower(module: nn.Module) -> LoweredEnergy:
    """The energy that a perceptron computes, with native chains that read its parameters where they are: an optimiser step is seen at once.

    Args:
        module: linear layers and elementwise activations (ELU, GELU, leaky ReLU, ReLU, SiLU, sigmoid, softplus, tanh) in turns that end with
            one output: an nn.Sequential, or any module of which torch.fx can tell so. It may flatten its input, drop the last dimension of its
            output, and change its sign.

    Raises:
        TypeError: it is no nn.Module.
        ValueError: it computes something else; the message says what, and where.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"lower: module must be an nn.Module, got {type(module).__name__}")
    linears: list[nn.Linear] = []
    activations: list[nn.Module] = []
    sign = 1.0
    for name, layer in _layers(module):
        if layer is None:
            sign = -sign
        elif sign < 0:
            raise _refusal("the end", f"{name} behind a minus sign")
        elif isinstance(layer, nn.Linear):
            if len(linears) != len(activations):
                raise _refusal("an activation", f"the linear layer {name}")
            linears.append(layer)
        else:
            if len(linears) != len(activations) + 1:
                raise _refusal("a linear layer", f"the activation {name}")
            activations.append(layer)
    if not linears or len(linears) != len(activations) + 1:
        raise _refusal("a linear layer", "the end")
    if linears[-1].out_features != 1:
        raise _refusal("one output", f"{linears[-1].out_features}")
    return LoweredEnergy(module, linears, activations, sign)


def _refusal(wanted: str, got: str) -> ValueError:
    return ValueError(f"lower: module must be linear layers and activations in turns, ending in one output: wanted {wanted}, got {got}")


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module | None]]:
    """The linear layers, activations and minus signs (None) that x goes through, one after another."""
    try:
        graph = fx.symbolic_trace(module).graph
    except Exception as error:  # of whatever kind the module's forward raises on a stand-in
        raise ValueError(f"lower: module must be one that torch.fx can trace, got {type(error).__name__}: {error}") from error
    modules = dict(module.named_modules())
    current: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if current is not None:
                raise _refusal("one input", f"a second one, {node.name}")
            current = node
        elif node.op == "output":
            if node.args[0] is not current:
                raise _refusal("one tensor", f"{node.args[0]}")
        elif _is_shape_arithmetic(node):
            continue
        elif not node.args or node.args[0] is not current or any(other is current for other in node.all_input_nodes[1:]):
            raise _refusal("layers one after another", f"{node.name}, which takes {node.args}")
        else:
            current = node
            if node.op == "call_module":
                layer = modules[str(node.target)]
                if isinstance(layer, nn.Flatten | nn.Identity):
                    continue
                if layer._forward_hooks or layer._forward_pre_hooks:
                    raise _refusal("no hooks", f"a hook at {node.target}")
                if type(layer) is not nn.Linear and type(layer) not in _ACTIVATIONS:
                    raise _refusal("a linear layer or an activation", f"{type(layer).__name__} at {node.target}")
                yield str(node.target), layer
            elif node.target in _FUNCTIONS:
                yield node.name, _FUNCTIONS[node.target](*node.args[1:], **_without_inplace(node))
            elif node.target in (operator.neg, torch.neg, "neg"):
                yield node.name, None
            elif node.target not in _RESHAPES and not _is_column(node):
                raise _refusal("a linear layer or an activation", f"{node.name}")


def _without_inplace(node: fx.Node) -> dict[str, Any]:
    return {name: value for name, value in node.kwargs.items() if name != "inplace"}


def _is_shape_arithmetic(node: fx.Node) -> bool:
    """x.shape, x.size(0), x.shape[0], and nothing of x itself."""
    if node.op == "call_method":
        return bool(node.target == "size")
    is_shape = node.target is getattr and node.args[1] == "shape"
    of_shape = node.target is operator.getitem and isinstance(node.args[0], fx.Node) and _is_shape_arithmetic(node.args[0])
    return node.op == "call_function" and (is_shape or of_shape)


def _is_column(node: fx.Node) -> bool:
    """x[:, 0] or x[..., 0]."""
    if node.target is not operator.getitem:
        return False
    index = node.args[1]
    return bool(isinstance(index, tuple) and len(index) == 2 and index[1] == 0 and index[0] in (slice(None), Ellipsis))
