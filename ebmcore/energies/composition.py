"""Energies made of others: products, mixtures, temperatures, negations, conditions, and maps of free functions to densities.

A part is any energy, native or torch, or anything with `log_prob` (a torch.distributions object, a flow, an autoregressive model), which
counts as the energy -log p. A composition is a module that holds its parts, so that their parameters train and move with it, and evaluates
each of them once a call. Products of experts: Hinton 2002; composing energies: Du, Li & Mordatch 2020 (arXiv 2004.06030).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore.discrete import NativeRun, alphabet_of, energy_and_differences
from ebmcore.gradients import as_energy
from ebmcore.ops.dynamics import NativeChains, NativeEnergy
from ebmcore.ops.registration import number

_TINY = 1e-37  # |f| counts as at least this


def product(*energies: Any) -> nn.Module:
    """p(x) ∝ Π p_k(x): E = Σ E_k.

    Native chains stay native, where the native parts are up to four in all, those within parts counted.

    Args:
        energies: one or more parts, all of the same x.

    Raises:
        TypeError, ValueError: no parts, one that is no energy, or parts of different alphabets; in a call, a part that does not return
            (num_chains,).
    """
    return _Sum("product", energies, [1.0] * len(energies))


def temper(energy: Any, temperature: float) -> nn.Module:
    """p(x)^(1 / temperature): E / temperature, temperature a finite number > 0. Errors as `product`.

    Native chains stay native.
    """
    return _scaled("temper", energy, 1.0 / number(temperature, "temperature", "temper", low=0.0, strict=True))


def negate(energy: Any, weight: float = 1.0) -> nn.Module:
    """p(x)^(-weight): -weight · E, to steer a product away from what `energy` likes; weight a finite number > 0. Errors as `product`.

    By itself it seldom can be normalised, and a product with it only if the rest grows faster than weight · E: nothing checks that.
    """
    return _scaled("negate", energy, -number(weight, "weight", "negate", low=0.0, strict=True))


def mixture(weights: Sequence[float], energies: Sequence[Any], log_z: Sequence[float] | None = None) -> nn.Module:
    """p(x) = Σ w_k exp(-E_k(x)) / Z_k: E = -log of that.

    Args:
        weights: one finite number > 0 for each part; divided by their sum.
        energies: one or more parts.
        log_z: log Z_k of each part. Without it all count as 0, which is right for what has log_prob; the share of a part whose energy is
            not normalised is then ∝ w_k Z_k.

    Raises:
        TypeError, ValueError: as `product`, and for weights or log_z that are not as above.
    """
    return _Mixture(weights, energies, log_z)


def condition(energy: Callable[[Tensor, Tensor], Tensor], y: Any) -> nn.Module:
    """p(x | y) of a joint energy E(x, y), such as a classifier's with its labels: E(·, y).

    Args:
        energy: (x, y) -> (num_chains,), or anything with log_prob(x, y).
        y: a number or a 0-d tensor, for all chains; or a tensor of one row for each chain, or of one row for all. Whoever calls with
            several rows of x for each of y, such as a sampler with several candidates a chain, has them stand together.

    Raises:
        TypeError: energy is none.
        ValueError: in a call, the number of rows of x is no multiple of that of y.
    """
    return _Conditional(energy, y)


def non_negative(function: Callable[[Tensor], Tensor], map: str = "softplus") -> nn.Module:
    """p(x) ∝ g(f(x)) of a free function f: E = -log g(f(x)).

    E is finite wherever f is: of "square" and "abs", |f| counts as 1e-37 where it is smaller.

    Args:
        function: f, (num_chains, *event) -> (num_chains,), of any sign.
        map: g, one of "square" (f²), "exp" (e^f), "abs" (|f|) and "softplus" (log(1 + e^f)).

    Raises:
        TypeError, ValueError: another map, or function is not callable; in a call, f does not return (num_chains,).
    """
    if map not in _MINUS_LOG:
        raise ValueError(f"non_negative: map must be one of {', '.join(_MINUS_LOG)}, got {map!r}")
    return _NonNegative(function, map)


def _minus_log_softplus(f: Tensor) -> Tensor:
    # log softplus(f) = f - e^f / 2 + ..., which rounds to f from -37 on; softplus itself would come to 0.
    return -torch.where(f < -37, f, nn.functional.softplus(f.clamp(min=-37), threshold=40).log())


_MINUS_LOG: dict[str, Callable[[Tensor], Tensor]] = {
    "square": lambda f: -2 * f.abs().clamp(min=_TINY).log(),
    "exp": torch.neg,
    "abs": lambda f: -f.abs().clamp(min=_TINY).log(),
    "softplus": _minus_log_softplus,
}


class _Part(nn.Module):
    """An energy among others, whose values are checked."""

    def __init__(self, model: Any, caller: str) -> None:
        super().__init__()
        as_energy(model, caller)
        self.model, self.caller = model, caller
        if hasattr(model, "alphabet"):
            self.alphabet = model.alphabet

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        value = as_energy(self.model)(x, *given)
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != x.shape[:1]:
            got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{self.caller}: a part must return a floating tensor of shape ({len(x)},) for x of {tuple(x.shape)}, got {got}")
        return value


class _Composition(nn.Module):
    """Parts of the same x."""

    def __init__(self, caller: str, energies: Sequence[Any]) -> None:
        super().__init__()
        if not isinstance(energies, Sequence) or len(energies) == 0:
            raise ValueError(f"{caller}: there must be one energy or more, got {energies!r}")
        self.caller = caller
        self.parts = nn.ModuleList(_Part(energy, caller) for energy in energies)
        alphabets = [part.alphabet for part in self.parts if hasattr(part, "alphabet")]
        if alphabets:
            self.alphabet = alphabets[0]
            if any(alphabet != self.alphabet for alphabet in alphabets):
                raise ValueError(f"{caller}: all energies must be of one alphabet, got {alphabets}")

    def _values_and_differences(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Of each part: (num_parts, num_chains) and (num_parts, num_chains, num_sites[, num_categories])."""
        results = []
        for part in self.parts:
            has_own = hasattr(part.model, "alphabet") or hasattr(part.model, "energy_and_differences")
            model: Any = part.model if has_own else part
            if not has_own and (kind := alphabet_of(self).kind) != "binary":
                raise TypeError(f"{self.caller}: each energy must have an alphabet where one is of {kind} states; wrap it in energies.OneHot")
            results.append(energy_and_differences(model, states))
        dtype = max((value.dtype for value, _ in results), key=lambda t: torch.finfo(t).bits)
        return torch.stack([value.to(dtype) for value, _ in results]), torch.stack([d.to(dtype) for _, d in results])


class _Sum(NativeChains, _Composition):
    """E = Σ weight_k E_k."""

    def __init__(self, caller: str, energies: Sequence[Any], weights: Sequence[float]) -> None:
        super().__init__(caller, energies)
        self.weights = tuple(weights)

    def forward(self, x: Tensor) -> Tensor:
        total: Any = 0.0
        for weight, part in zip(self.weights, self.parts, strict=True):
            total = total + (part(x) if weight == 1.0 else weight * part(x))
        return total  # type: ignore[no-any-return]

    def native_parts(self, x: Tensor, num_evaluations: int = 1) -> list[NativeEnergy] | None:
        """The parts' own, each times its weight; None where a part has none, or a hook has a say."""
        natives: list[NativeEnergy] = []
        for weight, part in zip(self.weights, self.parts, strict=True):
            is_plain = not any(module._forward_hooks or module._forward_pre_hooks for module in (self, part))
            model: Any = part.model
            is_plain = is_plain and as_energy(model) is model and hasattr(model, "native_parts")
            own: Sequence[NativeEnergy] | None = model.native_parts(x, num_evaluations) if is_plain else None
            if own is None:
                return None
            natives += [native._replace(weight=weight * native.weight) for native in own]
        return natives

    def energy_and_differences(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """E, and Σ of the parts' differences, exact where theirs are."""
        values, differences = self._values_and_differences(states)
        weights = torch.tensor(self.weights, dtype=values.dtype, device=values.device)
        value, difference = weights @ values, torch.tensordot(weights, differences, 1)
        if difference.dim() == 3:  # a token's present value has -inf, whatever the sign of the weights
            difference = difference.scatter(2, states.flatten(1).long()[..., None], -math.inf)
        return value, difference

    def extra_repr(self) -> str:
        return f"{self.caller}, weights={self.weights}"


class _Scaled(_Sum):
    """weight · E of an energy that makes scaled copies of itself, whose chains are native."""

    def scaled(self, factor: float) -> Any:
        part: Any = self.parts[0]
        return part.model.scaled(self.weights[0] * factor)

    def native_chain(self, kernel: str, states: Tensor, key: Tensor, num_steps: int, **options: Any) -> NativeRun | None:
        run: NativeRun | None = self.scaled(1.0).native_chain(kernel, states, key, num_steps, **options)
        return run


def _scaled(caller: str, energy: Any, weight: float) -> nn.Module:
    return (_Scaled if hasattr(energy, "scaled") else _Sum)(caller, [energy], [weight])


class _Mixture(_Composition):
    """E = -log Σ w_k exp(-E_k) / Z_k."""

    log_weights: Tensor  # (num_parts,), log w_k - log Z_k

    def __init__(self, weights: Sequence[float], energies: Sequence[Any], log_z: Sequence[float] | None) -> None:
        super().__init__("mixture", energies)
        log_z = [0.0] * len(self.parts) if log_z is None else log_z
        for name, values in (("weights", weights), ("log_z", log_z)):
            if not isinstance(values, Sequence) or len(values) != len(self.parts):
                raise ValueError(f"mixture: {name} must be {len(self.parts)} numbers, one for each energy, got {values!r}")
        shares = [number(w, f"weights[{k}]", "mixture", low=0.0, strict=True) for k, w in enumerate(weights)]
        logs = [math.log(w / sum(shares)) - number(z, f"log_z[{k}]", "mixture") for k, (w, z) in enumerate(zip(shares, log_z, strict=True))]
        self.register_buffer("log_weights", torch.tensor(logs, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self._of(torch.stack(_promoted([part(x) for part in self.parts])))

    def energy_and_differences(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """E, and its differences from the parts', exact where theirs are."""
        values, differences = self._values_and_differences(states)
        value = self._of(values)
        rows = [-1] + [1] * (differences.dim() - 2)
        return value, value.reshape(rows) - self._of(values.reshape(len(values), *rows) - differences)

    def _of(self, values: Tensor) -> Tensor:
        logs = self.log_weights.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))
        return -(logs - values).logsumexp(0)


def _promoted(values: Sequence[Tensor]) -> list[Tensor]:
    dtype = values[0].dtype
    for value in values[1:]:
        dtype = torch.promote_types(dtype, value.dtype)
    return [value.to(dtype) for value in values]


class _Conditional(nn.Module):
    """E(·, y)."""

    y: Tensor  # (num_rows, ...)

    def __init__(self, energy: Any, y: Any) -> None:
        super().__init__()
        self.joint = _Part(energy, "condition")
        rows = torch.as_tensor(y)
        rows = rows[None] if rows.dim() == 0 else rows
        if len(rows) == 0:
            raise ValueError(f"condition: y must have one row or more, got shape {tuple(rows.shape)}")
        self.register_buffer("y", rows)
        if hasattr(energy, "alphabet"):
            self.alphabet = energy.alphabet

    def forward(self, x: Tensor) -> Tensor:
        if len(x) % len(self.y):
            raise ValueError(f"condition: the rows of x must be a multiple of the {len(self.y)} of y, got {len(x)}")
        value: Tensor = self.joint(x, self.y.repeat_interleave(len(x) // len(self.y), 0))
        return value


class _NonNegative(nn.Module):
    """E = -log g(f(x))."""

    def __init__(self, function: Any, map: str) -> None:
        super().__init__()
        self.function, self.map = _Part(function, "non_negative"), map

    def forward(self, x: Tensor) -> Tensor:
        return _MINUS_LOG[self.map](self.function(x))

    def extra_repr(self) -> str:
        return self.map
