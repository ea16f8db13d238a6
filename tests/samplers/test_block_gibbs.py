"""Block Gibbs: transition probabilities, expected gradients of contrastive divergence, equalities, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmcore import DivergenceError, Key, ops, sample
from ebmcore.energies import BernoulliRBM, GaussianRBM
from ebmcore.losses import contrastive_divergence
from ebmcore.samplers import BlockGibbs
from support.statistics import assert_counts, assert_gaussian, assert_mean
from support.targets import assert_same_bits
from support.truths import truth, truth_arrays


def small_rbm(index: int = 0, dtype: torch.dtype = torch.float32) -> BernoulliRBM:
    numbers = truth("rbm")["small"][index]
    with torch.random.fork_rng(devices=[]):
        rbm = BernoulliRBM(numbers["V"], numbers["H"]).to(dtype)
    with torch.no_grad():
        rbm.weight.copy_(torch.tensor(numbers["W"]))
        rbm.visible_bias.copy_(torch.tensor(numbers["b"]))
        rbm.hidden_bias.copy_(torch.tensor(numbers["c"]))
    return rbm


class TwoLayers:
    """What block Gibbs asks of an energy, and nothing else."""

    alphabet = BernoulliRBM.alphabet

    def __init__(self, rbm: BernoulliRBM) -> None:
        self.rbm = rbm

    def __call__(self, x: Tensor) -> Tensor:
        return self.rbm(x)

    def sample_hidden(self, visible: Tensor, *, key: Any) -> Tensor:
        return self.rbm.sample_hidden(visible, key=key)

    def sample_visible(self, hidden: Tensor, *, key: Any) -> Tensor:
        return self.rbm.sample_visible(hidden, key=key)


@pytest.mark.parametrize(("index", "start", "num_steps"), [(0, 0, 1), (0, 41, 1), (0, 63, 3), (1, 17, 1), (1, 255, 2)])
def test_transitions(index, start, num_steps, device, rbm_path):
    """One row of T^k, from states of each dtype: int8 and float32 run natively, the others by the general way."""
    T = torch.as_tensor(truth_arrays("rbm")[f"small{index}__T"])
    num_visible = truth("rbm")["small"][index]["V"]
    bits = torch.arange(num_visible)
    x = ((torch.tensor(start) >> bits) & 1).expand(50_000, -1).to(device)
    energies = (
        ("native", small_rbm(index).to(device), torch.int8),
        ("float64", small_rbm(index, torch.float64).to(device), torch.float64),
        ("two layers", TwoLayers(small_rbm(index).to(device)), torch.float32),
    )
    for k, (name, energy, dtype) in enumerate(energies):
        out = BlockGibbs()(energy, x.to(dtype), num_steps, seed=Key(20 + k, start))
        assert out.dtype == dtype
        counts = torch.bincount((out.long().cpu() * (1 << bits)).sum(1), minlength=2**num_visible)
        assert_counts(counts, torch.linalg.matrix_power(T, num_steps)[start], what=f"{name}, {num_steps} steps from {start}")


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10])
def test_expected_gradient_of_contrastive_divergence(num_steps):
    """CD-k from the data: the loss's gradient is the positive phase less the mean over chains, whose expectation is known exactly."""
    numbers = truth("rbm")["small"][0]
    rbm = small_rbm()
    data = torch.tensor(numbers["data"], dtype=torch.float32)
    model = BlockGibbs()(rbm, data.repeat(1000, 1), num_steps, seed=num_steps)
    rbm, data, model = rbm.double(), data.double(), model.double()  # float32 sums of so many chains are no exact means
    contrastive_divergence(rbm, data, model).backward()
    with torch.no_grad():
        means, model_means = torch.sigmoid(rbm.hidden_logits(data)), torch.sigmoid(rbm.hidden_logits(model))
    wanted = numbers["cd"][str(num_steps)]
    phases = {
        "dW": (rbm.weight.grad, data[:, :, None] * means[:, None], model[:, :, None] * model_means[:, None]),
        "db": (rbm.visible_bias.grad, data, model),
        "dc": (rbm.hidden_bias.grad, means, model_means),
    }
    for name, (grad, positive, negative) in phases.items():
        torch.testing.assert_close(-grad, positive.mean(0) - negative.mean(0), rtol=1e-9, atol=1e-9)
        expected = positive.mean(0) - torch.tensor(wanted[name], dtype=torch.float64)
        for value, mean in zip(negative.flatten(1).T, expected.flatten().tolist(), strict=True):
            assert_mean(value, mean, what=f"CD-{num_steps}, {name}")


def test_persistent_chains_survive_batches():
    """The state goes on where it stood: many short calls are one long one."""
    rbm, sampler = small_rbm(), BlockGibbs()
    state = sampler.init(rbm, torch.zeros(30, 6), seed=1)
    for _ in range(12):
        state, _ = sampler.advance(rbm, state, 3)
    assert_same_bits(state.x, sampler(rbm, torch.zeros(30, 6), 36, seed=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_advance_is_n_steps_is_a_call_is_sample(dtype, rbm_path):
    rbm, sampler, key = small_rbm(), BlockGibbs(), Key(3, 4, 5)
    x = (ops.uniform((40, 6), key=Key(9)) < 0.5).to(dtype)
    state = start = sampler.init(rbm, x, seed=key)
    flips = torch.zeros(40, dtype=torch.int64)
    for _ in range(37):
        before = state
        state, info = sampler.step(rbm, state)
        assert torch.equal(info.num_flips, (state.x != before.x).sum(1))
        flips += info.num_flips
    whole, info = sampler.advance(rbm, start, 37)
    assert_same_bits(whole.x, state.x)
    assert_same_bits(whole.energy, state.energy)
    assert torch.equal(info.num_flips, flips)
    assert info.is_accepted.all()
    assert (info.acceptance_prob == 1).all()
    assert not info.is_diverged.any()
    torch.testing.assert_close(info.energy_change, whole.energy - start.energy)
    torch.testing.assert_close(whole.energy, rbm(whole.x).detach())
    assert_same_bits(sampler(rbm, x, 37, seed=key), whole.x)
    assert_same_bits(sample(sampler, rbm, x, 30, num_warmup=7, seed=key).x[-1], whole.x)
    assert whole.key == key.advance(37)
    assert_same_bits(start.x, x)
    assert_same_bits(sampler.advance(rbm, start, 0)[0].x, x)


def test_native_chains_are_the_general_ones(rbm_path):
    x = (ops.uniform((64, 6), key=Key(9)) < 0.5).float()
    rbm = small_rbm()
    assert_same_bits(BlockGibbs()(rbm, x, 20, seed=2), BlockGibbs()(TwoLayers(rbm), x, 20, seed=2))


def test_layers_draw_from_streams_of_their_own():
    """With no weights and no biases the layers are independent fair coins; a shared counter would make them equal."""
    rbm = BernoulliRBM(40, 40)
    with torch.no_grad():
        rbm.weight.zero_()
    h = rbm.sample_hidden(torch.zeros(1000, 40), key=Key(1))
    v = rbm.sample_visible(h, key=Key(1))
    assert_mean((h == v).float(), 0.5, 0.5, what="equal units of both layers")


def test_gaussian_visible_units():
    """Without weights v is exactly normal after one step; with weights, chains started at the exact law keep its moments."""
    rbm = GaussianRBM(2, 3).double()
    with torch.no_grad():
        rbm.weight.zero_()
        rbm.visible_bias.copy_(torch.tensor([1.0, -2.0]))
        rbm.log_sigma.copy_(torch.tensor([0.5, -0.3]))
    x = BlockGibbs()(rbm, torch.zeros(20_000, 2, dtype=torch.float64), 1, seed=3)
    assert_gaussian(x, rbm.visible_bias.detach(), rbm.sigma.detach().square().diag(), what="no weights")

    numbers, arrays = truth("rbm")["gaussian"][0], truth_arrays("rbm")
    with torch.no_grad():
        rbm = GaussianRBM(2, 6).double()
        rbm.weight.copy_(torch.as_tensor(arrays["gbrbm0__W"]))
        rbm.visible_bias.copy_(torch.as_tensor(arrays["gbrbm0__b"]))
        rbm.hidden_bias.copy_(torch.as_tensor(arrays["gbrbm0__c"]))
        h = ((torch.arange(64)[:, None] >> torch.arange(6)) & 1).double()
        n = 100_000
        weights = (-rbm.hidden_free_energy(h)).softmax(0)
        u = ops.uniform((n,), key=Key(8), dtype=torch.float64)
        v = rbm.sample_visible(h[torch.searchsorted(weights.cumsum(0), u).clamp(max=63)], key=Key(9))
    for num_steps in (0, 2):
        out = BlockGibbs()(rbm, v, num_steps, seed=5)
        for site in range(2):
            assert_mean(out[:, site], numbers["mean_v"][site], math.sqrt(numbers["var_v"][site]), what=f"mean of v_{site}, {num_steps} steps")
            assert_mean((out[:, site] - numbers["mean_v"][site]).square(), numbers["var_v"][site], what=f"variance of v_{site}, {num_steps} steps")


def test_x_parameters_and_the_global_generator_are_left_alone(untouched_generator):
    rbm = small_rbm()
    x = torch.ones(5, 6)
    version = x._version
    with torch.inference_mode():
        BlockGibbs()(rbm, x, 3, seed=1)
    BlockGibbs().advance(rbm, BlockGibbs().init(rbm, x, seed=1), 3)
    assert x._version == version
    assert x.all()
    assert rbm.weight.grad is None
    assert rbm.weight.requires_grad
    assert BlockGibbs() == BlockGibbs()
    with pytest.raises(AttributeError):
        BlockGibbs().anything = 1


def test_no_chains():
    rbm = small_rbm()
    assert BlockGibbs()(rbm, torch.zeros(0, 6), 3, seed=1).shape == (0, 6)


def test_bad_input():
    rbm, sampler = small_rbm(), BlockGibbs()
    x = torch.zeros(4, 6)
    with pytest.raises(TypeError, match=r"BlockGibbs: energy must have sample_hidden and sample_visible, as energies\.BernoulliRBM has"):
        sampler(lambda x: x.sum(1), x, 1)
    bad = x.clone()
    bad[2, 3] = 0.5
    with pytest.raises(ValueError, match=r"BlockGibbs: x must be 0 or 1 at every site, got 0.5 at index \(2, 3\)"):
        sampler(rbm, bad, 1)
    with pytest.raises(ValueError, match=r"BlockGibbs: x must have shape \(num_chains, 6\), got \(4, 5\)"):
        sampler.init(rbm, x[:, :5])
    with pytest.raises(ValueError, match=r"BlockGibbs: x must have shape \(num_chains, 6\), got \(4, 2, 3\)"):
        sampler(rbm, x.reshape(4, 2, 3), 1)
    with pytest.raises(TypeError, match=r"BlockGibbs: x must be a torch\.Tensor, got list"):
        sampler(rbm, [[0.0] * 6], 1)
    with pytest.raises(TypeError, match="BlockGibbs: x must be float32, float64"):
        sampler(GaussianRBM(6, 2), x.long(), 1)
    with pytest.raises(ValueError, match="num_steps must be an int"):
        sampler(rbm, x, -1)
    with torch.no_grad():
        rbm.weight[0, 0] = math.nan
    with pytest.raises(DivergenceError, match="BlockGibbs: the energy of the starting point is not finite in 4 of 4 chains"):
        sampler.init(rbm, x)
