"""Restricted Boltzmann machines (Smolensky 1986; Hinton 2002): binary hidden units, binary or Gaussian visible ones, no edges within a layer.

As an energy of its visible units v an RBM is its free energy F(v) = -ln Σ_h exp(-E(v, h)), in closed form and differentiable in v and the
parameters. `BlockGibbs` samples both layers in turn. Left out: several hidden layers, and visible units of other kinds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ebmcore import ops
from ebmcore.discrete import NativeRun
from ebmcore.ops.rbm import block_gibbs_chain, draw_layer, rbm_gwg_chain
from ebmcore.ops.registration import key_tensor
from ebmcore.types import Alphabet, Key, bounded_int

MAX_ENUMERATED = 25  # units: 2**25 states are summed in about a minute
_HIDDEN, _PROPOSAL = int(ops.Stream.HIDDEN), int(ops.Stream.PROPOSAL)
_CHUNK = 2**13  # of states enumerated at a time


class BernoulliRBM(nn.Module):
    """E(v, h) = -aᵀv - bᵀh - vᵀWh on v in {0, 1}^num_visible, h in {0, 1}^num_hidden; a call gives F(v) = -aᵀv - Σ_j ln(1 + exp(b + vW)_j).

    Args:
        num_visible, num_hidden: units of the two layers, at least 1.

    Attributes:
        visible_bias, hidden_bias, weight: a (num_visible,) and b (num_hidden,), which start at 0, and W (num_visible, num_hidden), which
            starts at normals of standard deviation 0.01 (Hinton 2010) from torch's generator.

    Raises:
        TypeError, ValueError: for sizes that are not ints of at least 1.
    """

    alphabet = Alphabet("binary")

    def __init__(self, num_visible: int, num_hidden: int) -> None:
        super().__init__()
        self.num_visible = bounded_int(num_visible, "num_visible", "BernoulliRBM", low=1)
        self.num_hidden = bounded_int(num_hidden, "num_hidden", "BernoulliRBM", low=1)
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))
        self.weight = nn.Parameter(0.01 * torch.randn(num_visible, num_hidden))

    @classmethod
    def from_data(cls, data: Tensor, num_hidden: int, *, smoothing: float = 1.0) -> BernoulliRBM:
        """An RBM that starts at the data's own means: visible_bias = ln p / (1 - p), so that learning need not find them first.

        Args:
            data: (num_data, num_visible), values in [0, 1].
            num_hidden: at least 1.
            smoothing: observations of 0 and of 1 that are added to each pixel, > 0: a pixel that never changes gets a finite bias.

        Raises:
            TypeError, ValueError: for anything else than the above.
        """
        data = _check_data(data, "BernoulliRBM.from_data")
        if not (math.isfinite(smoothing) and smoothing > 0):
            raise ValueError(f"BernoulliRBM.from_data: smoothing must be finite and > 0, got {smoothing}")
        if not bool(((data >= 0) & (data <= 1)).all()):
            raise ValueError("BernoulliRBM.from_data: data must be in [0, 1]")
        rbm = cls(data.shape[1], num_hidden)
        ones = data.sum(0, dtype=torch.float64)
        with torch.no_grad():
            rbm.visible_bias.copy_(((ones + smoothing) / (len(data) - ones + smoothing)).log())
        return rbm

    def forward(self, visible: Tensor) -> Tensor:
        """The free energies F(v), (num_chains,), of (num_chains, num_visible) of any dtype."""
        v = _layer(visible, self.weight, 0, "BernoulliRBM")
        return -(v @ self.visible_bias) - softplus(self.hidden_logits(v), threshold=40).sum(1)

    def joint_energy(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """E(v, h), (num_chains,), of (num_chains, num_visible) and (num_chains, num_hidden)."""
        v, h = _layer(visible, self.weight, 0, "BernoulliRBM.joint_energy"), _layer(hidden, self.weight, 1, "BernoulliRBM.joint_energy")
        return -(v @ self.visible_bias) - (h * self.hidden_logits(v)).sum(1)

    def hidden_logits(self, visible: Tensor) -> Tensor:
        """b + vW, (num_chains, num_hidden): the log-odds of every hidden unit given v."""
        return torch.addmm(self.hidden_bias, _layer(visible, self.weight, 0, "BernoulliRBM.hidden_logits"), self.weight)

    def visible_logits(self, hidden: Tensor) -> Tensor:
        """a + Wh, (num_chains, num_visible): the log-odds of every visible unit given h."""
        return torch.addmm(self.visible_bias, _layer(hidden, self.weight, 1, "BernoulliRBM.visible_logits"), self.weight.T)

    def hidden_free_energy(self, hidden: Tensor) -> Tensor:
        """-ln Σ_v exp(-E(v, h)), (num_chains,), of (num_chains, num_hidden)."""
        h = _layer(hidden, self.weight, 1, "BernoulliRBM.hidden_free_energy")
        return -(h @ self.hidden_bias) - softplus(self.visible_logits(h), threshold=40).sum(1)

    def conditional_logits(self, visible: Tensor) -> Tensor:
        """ln p(v_i = 1 | other v) / p(v_i = 0 | other v) of every site, (num_chains, num_visible), differentiable.

        Exact, hence a softplus for each pair of units: memory is num_chains · num_visible · num_hidden numbers.
        """
        v = _layer(visible, self.weight, 0, "BernoulliRBM.conditional_logits")
        without = self.hidden_logits(v)[:, None] - v[:, :, None] * self.weight  # the inputs of h with v_i = 0
        return self.visible_bias + (softplus(without + self.weight, threshold=40) - softplus(without, threshold=40)).sum(2)

    def energy_and_differences(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """F(v), and F(v) - F(v with v_i flipped) to first order, (1 - 2 v_i)(a + W sigmoid(b + vW))_i, from two matrix products."""
        with torch.no_grad():
            v = _layer(states, self.weight, 0, "BernoulliRBM")
            logits = self.hidden_logits(v)
            value = -ops.softplus_sum(logits) - v @ self.visible_bias
            differences = torch.addmm(self.visible_bias, logits.sigmoid_(), self.weight.T).mul_(1 - 2 * v)
            return value.to(states.dtype), differences.to(states.dtype)

    def sample_hidden(self, visible: Tensor, *, key: Key | Tensor) -> Tensor:
        """h ~ p(h | v), (num_chains, num_hidden), in the dtype of the parameters, as visible is; draws of stream HIDDEN."""
        weight, bias = self.weight.detach(), self.hidden_bias.detach()
        return draw_layer(visible.detach().mm(weight), bias, key_tensor(key, visible.device, "sample_hidden"), 1.0, _HIDDEN)

    def sample_visible(self, hidden: Tensor, *, key: Key | Tensor) -> Tensor:
        """v ~ p(v | h), (num_chains, num_visible), in the dtype of the parameters, as hidden is; draws of stream PROPOSAL."""
        weight, bias = self.weight.detach().t(), self.visible_bias.detach()
        return draw_layer(hidden.detach().mm(weight), bias, key_tensor(key, hidden.device, "sample_visible"), 1.0, _PROPOSAL)

    @torch.no_grad()
    def native_chain(
        self,
        kernel: str,
        states: Tensor,
        key: Tensor,
        num_steps: int,
        *,
        num_flips: int = 1,
        balancing: str = "sqrt",
        count_flips: bool = True,
        **_: Any,
    ) -> NativeRun | None:
        """`num_steps` in place of "block_gibbs", or of "gwg" with first-order differences and one matrix product a step.

        None, and nothing written, for other kernels, for more than one flip, and unless states and parameters are float32 and finite.
        `count_flips=False` spares "block_gibbs" the counting.

        Up to `ops.rbm.MAX_NATIVE_WEIGHTS` weights a result depends on nothing but its own chain; beyond, on the number of chains by what
        matrix products round differently.
        """
        _layer(states, self.weight, 0, "BernoulliRBM")
        if states.dtype != torch.float32 or self.weight.dtype != torch.float32 or len(states) == 0 or num_steps == 0:
            return None
        model = self.weight, self.visible_bias, self.hidden_bias
        if kernel == "block_gibbs":
            return NativeRun(None, None, block_gibbs_chain(states, *model, key, num_steps, count_flips))
        if kernel != "gwg" or num_flips != 1:
            return None
        result = rbm_gwg_chain(states, *model, key, num_steps, balancing)
        return None if result is None else NativeRun(*result)

    def exact_log_z(self) -> Tensor:
        """ln Z by summing over the smaller layer, a float64 scalar, differentiable: its gradient holds the exact means.

        Raises:
            ValueError: both layers have more than 25 units.
        """
        if self.num_hidden <= self.num_visible:
            return _log_z(self.num_hidden, self.weight, self._log_weight_of_hidden, "BernoulliRBM")
        return _log_z(self.num_visible, self.weight, self._log_weight_of_visible, "BernoulliRBM")

    def _log_weight_of_hidden(self, h: Tensor) -> Tensor:
        visible_logits = self.visible_bias.double() + h @ self.weight.double().T
        return h @ self.hidden_bias.double() + softplus(visible_logits, threshold=40).sum(1)

    def _log_weight_of_visible(self, v: Tensor) -> Tensor:
        hidden_logits = self.hidden_bias.double() + v @ self.weight.double()
        return v @ self.visible_bias.double() + softplus(hidden_logits, threshold=40).sum(1)


class GaussianRBM(nn.Module):
    """E(v, h) = Σ_i (v_i - a_i)² / (2σ_i²) - bᵀh - Σ_ij (v_i / σ_i²) W_ij h_j on real v and h in {0, 1}^num_hidden, so v | h ~ N(a + Wh, σ²).

    Other texts write v_i / σ_i in the last term; with σ = 1 the two agree. A call gives
    F(v) = Σ_i (v_i - a_i)² / (2σ_i²) - Σ_j ln(1 + exp(b + (v / σ²) W)_j).

    Args:
        num_visible, num_hidden: units of the two layers, at least 1.

    Attributes:
        visible_bias, hidden_bias, log_sigma, weight: a (num_visible,), b (num_hidden,) and ln σ (num_visible,), which start at 0, and W
            (num_visible, num_hidden), which starts at normals of standard deviation 0.01 from torch's generator.

    Raises:
        TypeError, ValueError: for sizes that are not ints of at least 1.
    """

    def __init__(self, num_visible: int, num_hidden: int) -> None:
        super().__init__()
        self.num_visible = bounded_int(num_visible, "num_visible", "GaussianRBM", low=1)
        self.num_hidden = bounded_int(num_hidden, "num_hidden", "GaussianRBM", low=1)
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))
        self.log_sigma = nn.Parameter(torch.zeros(num_visible))
        self.weight = nn.Parameter(0.01 * torch.randn(num_visible, num_hidden))

    @classmethod
    def from_data(cls, data: Tensor, num_hidden: int) -> GaussianRBM:
        """An RBM that starts at the data's own means and standard deviations.

        Args:
            data: (num_data, num_visible), finite; no column constant.
            num_hidden: at least 1.

        Raises:
            TypeError, ValueError: for anything else than the above.
        """
        data = _check_data(data, "GaussianRBM.from_data").double()
        variance, mean = torch.var_mean(data, 0, correction=0)
        if not bool((variance.isfinite() & (variance > 0)).all()):
            raise ValueError("GaussianRBM.from_data: data must be finite, and no column constant")
        rbm = cls(data.shape[1], num_hidden)
        with torch.no_grad():
            rbm.visible_bias.copy_(mean)
            rbm.log_sigma.copy_(0.5 * variance.log())
        return rbm

    @property
    def sigma(self) -> Tensor:
        """σ (num_visible,)."""
        return self.log_sigma.exp()

    def forward(self, visible: Tensor) -> Tensor:
        """The free energies F(v), (num_chains,), of (num_chains, num_visible)."""
        v = _layer(visible, self.weight, 0, "GaussianRBM")
        return self._quadratic(v) - softplus(self.hidden_logits(v), threshold=40).sum(1)

    def joint_energy(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """E(v, h), (num_chains,), of (num_chains, num_visible) and (num_chains, num_hidden)."""
        v, h = _layer(visible, self.weight, 0, "GaussianRBM.joint_energy"), _layer(hidden, self.weight, 1, "GaussianRBM.joint_energy")
        return self._quadratic(v) - (h * self.hidden_logits(v)).sum(1)

    def hidden_logits(self, visible: Tensor) -> Tensor:
        """b + (v / σ²) W, (num_chains, num_hidden): the log-odds of every hidden unit given v."""
        v = _layer(visible, self.weight, 0, "GaussianRBM.hidden_logits")
        return torch.addmm(self.hidden_bias, v * (-2 * self.log_sigma).exp(), self.weight)

    def visible_mean(self, hidden: Tensor) -> Tensor:
        """a + Wh, (num_chains, num_visible): the mean of v given h."""
        return torch.addmm(self.visible_bias, _layer(hidden, self.weight, 1, "GaussianRBM.visible_mean"), self.weight.T)

    def hidden_free_energy(self, hidden: Tensor) -> Tensor:
        """-ln ∫ exp(-E(v, h)) dv, (num_chains,), of (num_chains, num_hidden)."""
        return -self._log_weight_of_hidden(_layer(hidden, self.weight, 1, "GaussianRBM.hidden_free_energy"))

    @torch.no_grad()
    def sample_hidden(self, visible: Tensor, *, key: Key | Tensor) -> Tensor:
        """h ~ p(h | v), (num_chains, num_hidden); draws of stream HIDDEN."""
        logits = torch.mm(visible * (-2 * self.log_sigma).exp(), self.weight)
        return draw_layer(logits, self.hidden_bias.detach(), key_tensor(key, visible.device, "sample_hidden"), 1.0, _HIDDEN)

    @torch.no_grad()
    def sample_visible(self, hidden: Tensor, *, key: Key | Tensor) -> Tensor:
        """v ~ p(v | h), (num_chains, num_visible); draws of stream PROPOSAL."""
        mean = self.visible_mean(hidden)
        noise = ops.normal(mean.shape, key=key, stream=ops.Stream.PROPOSAL, dtype=mean.dtype, device=mean.device)
        return torch.addcmul(mean, noise, self.sigma)

    def exact_log_z(self) -> Tensor:
        """ln Z by summing over the hidden units, a float64 scalar, differentiable.

        Raises:
            ValueError: there are more than 25 of them.
        """
        return _log_z(self.num_hidden, self.weight, self._log_weight_of_hidden, "GaussianRBM")

    def _quadratic(self, v: Tensor) -> Tensor:
        return 0.5 * ((v - self.visible_bias) * (-self.log_sigma).exp()).square().sum(1)

    def _log_weight_of_hidden(self, h: Tensor) -> Tensor:
        a, log_sigma = self.visible_bias.to(h.dtype), self.log_sigma.to(h.dtype)
        shift = h @ self.weight.to(h.dtype).T
        gain = (shift * (shift + 2 * a) * (-2 * log_sigma).exp()).sum(1) / 2  # (|a + Wh|² - |a|²) / 2σ²
        return h @ self.hidden_bias.to(h.dtype) + gain + log_sigma.sum() + 0.5 * self.num_visible * math.log(2 * math.pi)


def _layer(units: Tensor, weight: Tensor, axis: int, caller: str) -> Tensor:
    """`units` in the dtype of the weights, if there are as many as that axis of them has."""
    if units.dim() != 2 or units.shape[1] != weight.shape[axis]:
        name = ("visible", "hidden")[axis]
        raise ValueError(f"{caller}: {name} must have shape (num_chains, {weight.shape[axis]}), got {tuple(units.shape)}")
    return units.to(weight.dtype)


def _check_data(data: Tensor, caller: str) -> Tensor:
    if not isinstance(data, Tensor):
        raise TypeError(f"{caller}: data must be a torch.Tensor, got {type(data).__name__}")
    if data.dim() != 2 or 0 in data.shape:
        raise ValueError(f"{caller}: data must have shape (num_data, num_visible), both at least 1, got {tuple(data.shape)}")
    return data


def _log_z(num_units: int, like: Tensor, log_weight: Callable[[Tensor], Tensor], caller: str) -> Tensor:
    """ln Σ over all states of `num_units` binary units of exp(log_weight(states))."""
    if num_units > MAX_ENUMERATED:
        raise ValueError(f"{caller}.exact_log_z: a layer must have at most {MAX_ENUMERATED} units to be enumerated, got {num_units}")
    bits = torch.arange(num_units, device=like.device)
    parts = []
    for first in range(0, 2**num_units, _CHUNK):
        index = torch.arange(first, min(first + _CHUNK, 2**num_units), device=like.device)
        parts.append(log_weight(((index[:, None] >> bits) & 1).double()).logsumexp(0))
    return torch.stack(parts).logsumexp(0)
