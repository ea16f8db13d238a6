"""RBMs against exact numbers: free energies, ln Z, gradients, conditionals, and the native chain's transition probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmcore import GibbsWithGradients, Key
from ebmcore.discrete import energy_and_differences
from ebmcore.energies import BernoulliRBM, GaussianRBM
from support.statistics import assert_counts, assert_mean
from support.targets import assert_same_bits
from support.truths import truth, truth_arrays


def bernoulli_rbm(weight: Any, visible_bias: Any, hidden_bias: Any, dtype: torch.dtype = torch.float32) -> BernoulliRBM:
    weight = torch.as_tensor(weight, dtype=dtype)
    rbm = BernoulliRBM(*weight.shape).to(dtype)
    with torch.no_grad():
        rbm.weight.copy_(weight)
        rbm.visible_bias.copy_(torch.as_tensor(visible_bias))
        rbm.hidden_bias.copy_(torch.as_tensor(hidden_bias))
    return rbm


def states_of(num_units: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """All 2^n states, unit i being bit i."""
    return ((torch.arange(2**num_units)[:, None] >> torch.arange(num_units)) & 1).to(dtype)


def a_small_rbm(num_visible: int = 6, num_hidden: int = 5, dtype: torch.dtype = torch.float32) -> BernoulliRBM:
    generator = torch.Generator().manual_seed(3)
    return bernoulli_rbm(
        torch.randn(num_visible, num_hidden, generator=generator),
        torch.randn(num_visible, generator=generator) / 2,
        torch.randn(num_hidden, generator=generator) / 2,
        dtype,
    )


@pytest.mark.parametrize("index", [0, 1])
def test_log_z_likelihood_and_its_gradient(index):
    """ln Z to 1e-11 and the gradient of the mean log-likelihood, whose parts are the exact means of both layers."""
    wanted, arrays = truth("rbm")["bernoulli"][index], truth_arrays("rbm")
    name = wanted["name"]
    rbm = bernoulli_rbm(arrays[f"{name}__W"], arrays[f"{name}__b"], arrays[f"{name}__c"], torch.float64)
    data = torch.as_tensor(arrays[f"{name}__data"])
    torch.testing.assert_close(rbm(data), torch.as_tensor(arrays[f"{name}__free_energy_data"]), rtol=1e-12, atol=1e-12)
    log_z = rbm.exact_log_z()
    assert abs(float(log_z.detach()) - wanted["lnZ"]) < 1e-11
    log_likelihood = -rbm(data).mean() - log_z
    assert abs(float(log_likelihood.detach()) - wanted["mean_loglik_data"]) < 1e-11
    grads = torch.autograd.grad(log_likelihood, (rbm.weight, rbm.visible_bias, rbm.hidden_bias), retain_graph=True)
    for grad, part in zip(grads, "Wbc", strict=True):
        torch.testing.assert_close(grad, torch.as_tensor(arrays[f"{name}__grad_{part}"]), rtol=1e-9, atol=1e-12)
    means = torch.autograd.grad(log_z, (rbm.weight, rbm.visible_bias, rbm.hidden_bias))
    for mean, part in zip(means, ("mean_vh", "mean_v", "mean_h"), strict=True):
        torch.testing.assert_close(mean, torch.as_tensor(arrays[f"{name}__{part}"]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("index", [0, 1])
def test_gaussian_log_z_density_and_means(index):
    wanted, arrays = truth("rbm")["gaussian"][index], truth_arrays("rbm")
    name = wanted["name"]
    rbm = GaussianRBM(wanted["V"], wanted["H"]).double()
    with torch.no_grad():
        rbm.weight.copy_(torch.as_tensor(arrays[f"{name}__W"]))
        rbm.visible_bias.copy_(torch.as_tensor(arrays[f"{name}__b"]))
        rbm.hidden_bias.copy_(torch.as_tensor(arrays[f"{name}__c"]))
        rbm.log_sigma.copy_(torch.as_tensor(arrays[f"{name}__sigma"]).log())
    log_z = rbm.exact_log_z()
    assert abs(float(log_z.detach()) - wanted["lnZ"]) < 1e-11
    points = torch.as_tensor(arrays[f"{name}__points"])
    torch.testing.assert_close((-rbm(points) - log_z).detach(), torch.as_tensor(arrays[f"{name}__logp_points"]), rtol=1e-12, atol=1e-11)
    grad_a, grad_b = torch.autograd.grad(log_z, (rbm.visible_bias, rbm.hidden_bias))  # E[(v - a) / σ²], E[h]
    mean_v = rbm.visible_bias.detach() + grad_a * rbm.sigma.detach() ** 2
    torch.testing.assert_close(mean_v, torch.as_tensor(arrays[f"{name}__mean_v"]), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(grad_b, torch.as_tensor(arrays[f"{name}__mean_h"]), rtol=1e-9, atol=1e-11)


def test_energies_and_conditionals_agree_with_the_joint_energy():
    rbm = a_small_rbm(dtype=torch.float64)
    v, h = states_of(6), states_of(5)
    joint = rbm.joint_energy(v.repeat_interleave(len(h), 0), h.repeat(len(v), 1)).reshape(len(v), len(h)).detach()
    torch.testing.assert_close(rbm(v).detach(), -(-joint).logsumexp(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rbm.hidden_free_energy(h).detach(), -(-joint).logsumexp(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.sigmoid(rbm.hidden_logits(v)).detach(), (-joint).softmax(1) @ h)
    torch.testing.assert_close(torch.sigmoid(rbm.visible_logits(h)).detach(), (-joint).softmax(0).T @ v)
    free = rbm(v).detach()
    for site in range(6):
        on, off = torch.arange(64) | (1 << site), torch.arange(64) & ~(1 << site)
        torch.testing.assert_close(rbm.conditional_logits(v)[:, site].detach(), free[off] - free[on], rtol=1e-11, atol=1e-11)


def test_gaussian_conditionals_agree_with_the_joint_energy():
    rbm = GaussianRBM(3, 4).double()
    with torch.no_grad():
        for k, parameter in enumerate(rbm.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)) / 2)
    h = states_of(4)
    v = torch.randn(16, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    joint = rbm.joint_energy(v.repeat_interleave(16, 0), h.repeat(16, 1)).reshape(16, 16).detach()
    torch.testing.assert_close(rbm(v).detach(), -(-joint).logsumexp(1))
    torch.testing.assert_close(torch.sigmoid(rbm.hidden_logits(v)).detach(), (-joint).softmax(1) @ h)
    # E(v, h) = Σ (v - mean)² / 2σ² + F(h) + Σ ln σ√2π
    normal = torch.distributions.Normal(rbm.visible_mean(h), rbm.sigma)
    density = torch.stack([normal.log_prob(row).sum(1) for row in v]).detach()
    torch.testing.assert_close(density, -joint + rbm.hidden_free_energy(h).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_differences_are_those_of_the_gradient(dtype):
    rbm = a_small_rbm(30, 17, dtype)
    x = (torch.rand(50, 30, generator=torch.Generator().manual_seed(1)) < 0.5).to(dtype)
    value, differences = energy_and_differences(rbm, x)
    expected_value, expected = energy_and_differences(lambda x: rbm(x), x)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(differences, expected)


def test_any_dtype_of_states():
    rbm = a_small_rbm()
    v = states_of(6, torch.float32)
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float64, torch.bfloat16):
        assert_same_bits(rbm(v.to(dtype)), rbm(v))


def test_from_data():
    data = torch.tensor([[1.0, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 0]])
    rbm = BernoulliRBM.from_data(data, 4, smoothing=0.5)
    torch.testing.assert_close(rbm.visible_bias.detach(), torch.tensor([math.log(4.5 / 0.5), math.log(0.5 / 4.5), 0.0]))
    assert rbm.weight.shape == (3, 4)
    assert 0 < float(rbm.weight.detach().abs().max()) < 0.1
    gaussian = GaussianRBM.from_data(torch.tensor([[1.0, 5], [3, 9]]), 4)
    torch.testing.assert_close(gaussian.visible_bias.detach(), torch.tensor([2.0, 7]))
    torch.testing.assert_close(gaussian.sigma.detach(), torch.tensor([1.0, 2]))


def gwg_transitions(rbm: BernoulliRBM, balancing: str) -> Tensor:
    """The transition matrix of one step with first-order differences, from the formulas."""
    W, a, b = (p.detach().double() for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias))
    states = states_of(rbm.num_visible)
    inputs = b + states @ W
    energy = -(states @ a) - torch.log1p(inputs.exp()).sum(1)
    ratio = ((1 - 2 * states) * (a + torch.sigmoid(inputs) @ W.T)).exp()
    g = {"sqrt": ratio.sqrt(), "barker": ratio / (1 + ratio), "min": ratio.clamp(max=1), "max": ratio.clamp(min=1)}[balancing]
    q = g / g.sum(1, keepdim=True)
    k = torch.arange(len(states))
    P = torch.zeros(len(states), len(states), dtype=torch.float64)
    for site in range(rbm.num_visible):
        to = k ^ (1 << site)
        P[k, to] = q[:, site] * ((energy - energy[to]).exp() * q[to, site] / q[:, site]).clamp(max=1)
    P[k, k] = 1 - P.sum(1)
    return P


def index_of(states: Tensor) -> Tensor:
    return (states.long() * (1 << torch.arange(states.shape[1], device=states.device))).sum(1).cpu()


@pytest.mark.parametrize("balancing", ["sqrt", "barker", "min", "max"])
def test_transitions_of_native_gwg(balancing, device, rbm_path):
    """Rows of P and of P^5, from the native chain and from the same energy without one."""
    rbm = a_small_rbm().to(device)
    P = gwg_transitions(rbm.cpu(), balancing)
    rbm = rbm.to(device)
    sampler, n = GibbsWithGradients(balancing=balancing), 20_000
    energies = {rbm_path: rbm} if rbm_path == "products" else {rbm_path: rbm, "general": lambda x: rbm(x)}
    for name, energy in energies.items():
        for power, start in ((1, 0), (1, 37), (5, 63)):
            x = states_of(6, torch.float32)[start].expand(n, -1).to(device)
            state, info = sampler.advance(energy, sampler.init(energy, x, seed=Key(5, 100 * start)), power)
            assert_counts(torch.bincount(index_of(state.x), minlength=64), torch.linalg.matrix_power(P, power)[start], what=f"{name}, P^{power}")
            if power == 1:
                assert_mean(info.num_flips.double(), float(1 - P[start, start]), what="flips")
                assert abs(float(info.acceptance_prob.double().mean()) - float(1 - P[start, start])) < 5.5 * 0.5 / math.sqrt(n)
                assert torch.equal(info.is_accepted, info.num_flips == 1)
            torch.testing.assert_close(state.energy, rbm(state.x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_visible", "num_hidden", "scale"), [(100, 25, 1.0), (33, 40, 0.1), (16, 16, 30.0), (1, 1, 1.0)])
def test_native_chains_resume_and_do_not_depend_on_instruction_sets_or_threads(num_visible, num_hidden, scale, num_threads, rbm_path):
    from ebmcore._native import core

    rbm = a_small_rbm(num_visible, num_hidden)
    with torch.no_grad():
        rbm.weight.mul_(scale)
    x = (torch.rand(40, num_visible, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    before = core.cpu_target()
    for kernel in ("gwg", "block_gibbs"):
        whole, parts = x.clone(), x.clone()
        run = rbm.native_chain(kernel, whole, Key(4, 7, 2).tensor, 60)
        flips = torch.zeros(40, dtype=torch.int64)
        for step in range(60):
            flips += rbm.native_chain(kernel, parts, Key(4, 7 + step, 2).tensor, 1).num_flips
        assert_same_bits(parts, whole)
        assert torch.equal(flips, run.num_flips)
        try:
            for target in core.cpu_targets():
                core.set_cpu_target(target)
                other = x.clone()
                again = rbm.native_chain(kernel, other, Key(4, 7, 2).tensor, 60)
                assert_same_bits(other, whole, target)
                assert torch.equal(again.num_flips, run.num_flips)
                if kernel == "gwg":
                    assert_same_bits(again.acceptance_prob, run.acceptance_prob, target)
        finally:
            core.set_cpu_target(before)


@pytest.mark.parametrize("kernel", ["gwg", "block_gibbs"])
def test_whole_chains_do_not_depend_on_the_batch(kernel, cpu_target):
    rbm = a_small_rbm(100, 25)
    with torch.no_grad():
        rbm.weight.mul_(0.2)
    x = (torch.rand(37, 100, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    whole = x.clone()
    run = rbm.native_chain(kernel, whole, Key(4, 7, 2).tensor, 50)
    for part in (slice(0, 1), slice(1, 19), slice(19, 37)):
        alone = x[part].clone()
        again = rbm.native_chain(kernel, alone, Key(4, 7, 2 + part.start).tensor, 50)
        assert_same_bits(alone, whole[part])
        assert torch.equal(again.num_flips, run.num_flips[part])


@pytest.mark.parametrize(("num_visible", "num_hidden"), [(100, 25), (33, 40)])
def test_gwg_of_whole_chains_and_of_products_have_one_acceptance(num_visible, num_hidden):
    """The same mean acceptance at sizes at which no table can be made."""
    from ebmcore.ops import rbm as native

    rbm, n = a_small_rbm(num_visible, num_hidden), 4000
    x = (torch.rand(num_visible, generator=torch.Generator().manual_seed(2)) < 0.5).float().expand(n, -1)
    arguments = rbm.weight.detach(), rbm.visible_bias.detach(), rbm.hidden_bias.detach()
    means = []
    for limit, seed in ((2**60, 1), (0, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "MAX_NATIVE_WEIGHTS", limit)
            _, acceptance, num_flips = native.rbm_gwg_chain(x.clone(), *arguments, Key(seed).tensor, 20, "sqrt")
        means.append((acceptance.double(), num_flips.double()))
    for one, other in zip(*means, strict=True):
        error = math.sqrt(float(one.var() + other.var()) / n)
        assert abs(float(one.mean() - other.mean())) < 5.5 * error


def test_what_is_not_native():
    rbm = a_small_rbm()
    x = states_of(6, torch.float32)
    key = Key(1).tensor
    assert rbm.native_chain("metropolis", x, key, 1) is None
    assert rbm.native_chain("gwg", x, key, 1, num_flips=2) is None
    assert rbm.native_chain("gwg", x.double(), key, 1) is None
    assert a_small_rbm(dtype=torch.float64).native_chain("gwg", x, key, 1) is None
    with torch.no_grad():
        rbm.weight[0, 0] = math.inf
    assert rbm.native_chain("gwg", x, key, 1) is None
    assert_same_bits(x, states_of(6, torch.float32))


def test_native_gwg_with_differences_of_thousands(rbm_path):
    """Weights far beyond what exp can hold: chains go to where they are sure to go."""
    rbm = bernoulli_rbm([[3000.0, -3000.0], [0.0, 0.0]], [1000.0, -2000.0], [0.0, 0.0])
    x = torch.tensor([[0.0, 1.0]]).expand(100, -1)
    out = GibbsWithGradients()(rbm, x, 20, seed=1)
    assert torch.equal(out[:, 0], torch.ones(100))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, r"BernoulliRBM: num_hidden must be an int >= 1, got 0", lambda: BernoulliRBM(3, 0)),
        (TypeError, r"GaussianRBM: num_visible must be an int >= 1, got 2.0", lambda: GaussianRBM(2.0, 1)),
        (ValueError, r"BernoulliRBM: visible must have shape \(num_chains, 6\), got \(2, 5\)", lambda: a_small_rbm()(torch.zeros(2, 5))),
        (ValueError, r"visible_logits: hidden must have shape \(num_chains, 5\), got \(5,\)", lambda: a_small_rbm().visible_logits(torch.zeros(5))),
        (ValueError, r"GaussianRBM: visible must have shape \(num_chains, 2\)", lambda: GaussianRBM(2, 3)(torch.zeros(2, 2, 1))),
        (ValueError, r"from_data: data must be in \[0, 1\]", lambda: BernoulliRBM.from_data(torch.full((2, 2), 255.0), 3)),
        (ValueError, r"from_data: data must be in \[0, 1\]", lambda: BernoulliRBM.from_data(torch.full((2, 2), math.nan), 3)),
        (ValueError, r"from_data: smoothing must be finite and > 0, got 0", lambda: BernoulliRBM.from_data(torch.ones(2, 2), 3, smoothing=0)),
        (ValueError, r"from_data: data must have shape \(num_data, num_visible\)", lambda: BernoulliRBM.from_data(torch.ones(0, 2), 3)),
        (TypeError, r"from_data: data must be a torch.Tensor, got list", lambda: BernoulliRBM.from_data([[1.0]], 3)),
        (ValueError, r"GaussianRBM.from_data: data must be finite, and no column constant", lambda: GaussianRBM.from_data(torch.ones(4, 2), 3)),
        (ValueError, r"exact_log_z: a layer must have at most 25 units to be enumerated, got 26", lambda: BernoulliRBM(30, 26).exact_log_z()),
        (ValueError, r"x must be 0 or 1 at every site, got 2.0 at index \(0, 0\)", lambda: GibbsWithGradients()(a_small_rbm(), torch.eye(6) * 2, 1)),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()
