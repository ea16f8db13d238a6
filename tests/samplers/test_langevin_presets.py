"""The presets against the loops that the papers' code runs, written here in plain torch with our noise, float64, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ebmcore import Key, Langevin, ops
from support.targets import Network, quadratic

KEY = Key(77, step=2, first_chain=5)


def gradient(energy, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(energy(x).sum(), x)[0]


def noise(x: Tensor, step: int) -> Tensor:
    return ops.normal(tuple(x.shape), key=KEY.advance(step), stream=ops.Stream.PROPOSAL, dtype=x.dtype)


def jem(energy, x: Tensor, step: int) -> Tensor:
    """f is -E; x += 1.0 · ∇f + 0.01 · randn."""
    return x + 1.0 * gradient(lambda x: -energy(x), x) + 0.01 * noise(x, step)


def igebm(energy, x: Tensor, step: int) -> Tensor:
    """CIFAR-10 flags, pixels in [0, 1]: noise, gradient at the noisy point, cut to ±0.01, step of 10, clamp."""
    x = x + 0.005 * noise(x, step)
    return (x - 10.0 * gradient(energy, x).clamp(-0.01, 0.01)).clamp(0.0, 1.0)


def short_run(energy, x: Tensor, step: int) -> Tensor:
    """x -= ∇f, x += ε · randn, ε = 0.01: Langevin of U = 2 f / ε² at temperature 1, and of f at ε² / 2."""
    return x - gradient(energy, x) + 0.01 * noise(x, step)


@pytest.fixture(scope="module")
def energy():
    return Network(12).double().eval()


@pytest.mark.parametrize("loop", [jem, igebm, short_run])
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_presets(energy, loop, scale):
    """Gradients of a size that clipping cuts some and not others (scale 0.02), and that it cuts nearly all (1)."""
    sampler = Langevin.preset(loop.__name__)
    x = ops.uniform((6, 12), key=Key(1), dtype=torch.float64)
    state = sampler.init(lambda x: scale * energy(x), x, seed=KEY)
    for step in range(20):
        x = loop(lambda x: scale * energy(x), x, step)
        state, _ = sampler.step(lambda x: scale * energy(x), state)
        torch.testing.assert_close(state.x, x, rtol=1e-12, atol=1e-12)
    start = ops.uniform((6, 12), key=Key(1), dtype=torch.float64)
    torch.testing.assert_close(sampler(lambda x: scale * energy(x), start, 20, seed=KEY), x, rtol=1e-12, atol=1e-12)


def test_igebm_cuts_some_gradients_and_some_states(energy):
    """What makes the test above worth its name."""
    x = ops.uniform((6, 12), key=Key(1), dtype=torch.float64)
    cut = gradient(lambda x: 0.02 * energy(x), x).abs() > 0.01
    assert 0.1 < float(cut.double().mean()) < 0.9
    for step in range(20):
        x = igebm(energy, x, step)
    assert bool((x == 0.0).any())
    assert bool(((x > 0.0) & (x < 1.0)).any())


def test_temperatures():
    """T = noise_std² / (2 · step_size), as peers' numbers have it."""
    assert Langevin.preset("jem").effective_temperature == pytest.approx(5e-5)
    assert Langevin.preset("igebm").effective_temperature == pytest.approx(1.25e-6)
    assert Langevin.preset("short_run").effective_temperature == pytest.approx(5e-5)


def test_changes():
    assert Langevin.preset("igebm", clamp=(-1.0, 1.0), on_divergence="freeze") == Langevin(
        10.0, noise_std=0.005, noise_first=True, clip_grad=0.01, clamp=(-1.0, 1.0), on_divergence="freeze"
    )
    with pytest.raises(ValueError, match="step_size"):
        Langevin.preset("jem", step_size=-1.0)
    with pytest.raises(TypeError, match="warp"):
        Langevin.preset("jem", warp=9)


@pytest.mark.parametrize("name", ["JEM", "", None, "langevin"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match=r"^Langevin.preset: name must be one of jem, igebm, short_run, got "):
        Langevin.preset(name)


def test_noise_first_differs_from_noise_with_the_step():
    """Two orders, two chains: the gradient is taken at the noisy point or before."""
    x = ops.normal((4, 3), key=Key(1), dtype=torch.float64)
    first, together = (Langevin(0.1, noise_std=0.1, noise_first=flag)(quadratic, x, 1, seed=KEY) for flag in (True, False))
    z = noise(x, 0)
    torch.testing.assert_close(first, 0.9 * (x + 0.1 * z), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(together, 0.9 * x + 0.1 * z, rtol=1e-14, atol=1e-14)
