"""The formulas of perceptrons against autograd, and that they are used where they hold and nowhere else."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import ebmcore
from ebmcore import Key, ops, trace
from ebmcore.perceptron import perceptron_of

KEY = Key(1)
ACTIVATIONS = (nn.SiLU, nn.Tanh, nn.Softplus, nn.Sigmoid, nn.GELU, nn.ELU, nn.Mish, nn.LeakyReLU)
HIDDEN = ((), (7,), (7, 5), (4, 6, 5), (9, 3, 6, 5))


def sequential(widths, activation, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [nn.Linear(width, next_width), activation()]
        return nn.Sequential(*layers[:-1]).double()


def energy_of(num_inputs, hidden, activation) -> ebmcore.energies.MLP:
    energy = ebmcore.energies.MLP(num_inputs, hidden, activation).double()
    energy.layers.load_state_dict(sequential((num_inputs, *hidden, 1), activation).state_dict())
    return energy


def gradients(value: Tensor, module: nn.Module) -> list[Tensor]:
    """In the parameters; 0 where it does not depend on them."""
    found = torch.autograd.grad(value, list(module.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if grad is None else grad for p, grad in zip(module.parameters(), found, strict=True)]


def assert_agree(net: nn.Module, x: Tensor, call, *, flow: bool = True) -> None:
    """A formula, in all grad modes and in the parameters and x, against the same by autograd, which is what a lambda gets."""
    by_formula = call(net, x)
    by_autograd = call(lambda y: net(y), x)
    torch.testing.assert_close(by_formula, by_autograd, rtol=1e-10, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(call(net, x), by_autograd.detach(), rtol=1e-10, atol=1e-11)
    if not flow or not by_autograd.requires_grad:
        return
    weights = ops.normal(by_formula.shape, key=KEY, dtype=torch.float64)
    for mine, others in zip(gradients((weights * by_formula).sum(), net), gradients((weights * by_autograd).sum(), net), strict=True):
        torch.testing.assert_close(mine, others, rtol=1e-9, atol=1e-10)
    y = x.clone().requires_grad_()
    mine, others = ((weights * call(f, y)).sum() for f in (net, lambda z: net(z)))
    torch.testing.assert_close(*(torch.autograd.grad(value, y, allow_unused=True)[0] for value in (mine, others)), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
@pytest.mark.parametrize("num_inputs", [3, 8])
@pytest.mark.parametrize("kind", ["function", "energy"])
def test_formulas_are_what_autograd_finds(activation, hidden, num_inputs, kind):
    if kind == "energy" and (not hidden or activation is nn.LeakyReLU):
        pytest.skip("its Hessian is zero, which is warned of: tests/trace")
    net = energy_of(num_inputs, hidden, activation) if kind == "energy" else sequential((num_inputs, *hidden, num_inputs), activation)
    x = ops.normal((4, num_inputs), key=KEY, dtype=torch.float64)
    assert perceptron_of(net) is not None
    assert_agree(net, x, lambda f, y: trace.function_value_and_trace(f, y, "exact")[0])
    assert_agree(net, x, lambda f, y: trace.exact(f, y).value, flow=bool(hidden))
    for law in ("rademacher", "orthogonal"):
        assert_agree(net, x, lambda f, y, law=law: trace.hutchinson(f, y, 3, law, key=KEY).value, flow=bool(hidden))


@pytest.mark.parametrize("kind", ["function", "energy"])
def test_products_are_the_rows_of_the_jacobian(kind):
    net = energy_of(5, (7, 6), nn.Tanh) if kind == "energy" else sequential((5, 7, 6, 5), nn.Tanh)
    x = ops.normal((4, 5), key=KEY, dtype=torch.float64)
    field = (lambda y: torch.func.grad(lambda z: net(z).sum())(y)) if kind == "energy" else net
    jacobians = torch.stack([torch.func.jacrev(lambda row: field(row[None])[0])(row) for row in x])
    perceptron = perceptron_of(net)
    assert perceptron is not None
    basis = torch.eye(5, dtype=torch.float64)[:, None].expand(-1, 4, -1)
    with torch.no_grad():
        if kind == "energy":
            products = perceptron.hessian_products(perceptron.forward(x, 2), basis)
        else:
            products = perceptron.transposed_products(perceptron.forward(x), basis)
    torch.testing.assert_close(products, jacobians.permute(1, 0, 2), rtol=1e-11, atol=1e-12)
    if kind == "energy":
        assert_agree(net, x, lambda f, y: trace.hutch_plus_plus(f, y, 6, probe="gaussian", key=KEY).value)
        with torch.no_grad():
            assert_agree(net, x, lambda f, y: trace.xtrace(f, y, 6, key=KEY).value, flow=False)


@pytest.mark.parametrize("kind", ["function", "energy"])
def test_constants_follow_the_weights(kind):
    """What is built once for each value of the weights follows optimisers, copies into them, and writes through .data."""
    net = energy_of(9, (17, 15), nn.SiLU) if kind == "energy" else sequential((9, 17, 15, 9), nn.SiLU)
    layers = net.layers if kind == "energy" else net
    x = ops.normal((4, 9), key=KEY, dtype=torch.float64)

    def assert_right() -> None:
        with torch.no_grad():
            torch.testing.assert_close(trace.exact(net, x).value, trace.exact(lambda y: net(y), x).value, rtol=1e-10, atol=1e-11)

    assert_right()
    before = trace.exact(net, x).value.detach()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    trace.exact(net, x).value.sum().backward()
    optimizer.step()
    assert_right()
    assert not torch.allclose(trace.exact(net, x).value, before)
    layers[0].weight.data.mul_(1.5)
    assert_right()
    with torch.no_grad():  # one entry alone, counted by its version
        layers[2].weight[3, 2] += 2
    assert_right()
    net.load_state_dict({name: 0.5 * value for name, value in net.state_dict().items()})
    assert_right()
    layers[2].weight = nn.Parameter(layers[2].weight.detach() + 1)
    assert_right()


def test_only_what_is_a_perceptron_is_taken_for_one():
    class Doubled(ebmcore.energies.MLP):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Renamed(ebmcore.energies.MLP):
        pass

    assert perceptron_of(Doubled(3)) is None
    assert perceptron_of(Renamed(3)) is not None
    others = [
        nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(3, 3), nn.SiLU()),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 3)),
        nn.Sequential(),
        nn.Linear(3, 3),
        ebmcore.energies.ConvNet(),
    ]
    assert [perceptron_of(other) for other in others] == [None] * len(others)
    for hook in ("register_forward_hook", "register_forward_pre_hook"):
        for where in ("outside", "inside"):
            net = sequential((3, 4, 3), nn.SiLU)
            assert perceptron_of(net) is not None
            getattr(net if where == "outside" else net[0], hook)(lambda *_: None)
            assert perceptron_of(net) is None
    net = sequential((3, 4, 3), nn.SiLU)
    nn.utils.parametrizations.weight_norm(net[0])
    x = ops.normal((4, 3), key=KEY, dtype=torch.float64)
    torch.testing.assert_close(trace.exact(net, x).value, trace.exact(lambda y: net(y), x).value)


def test_what_the_formulas_do_not_take_goes_by_autograd():
    net = sequential((4, 5, 4), nn.SiLU)
    perceptron = perceptron_of(net)
    assert perceptron is not None
    assert not perceptron.takes(torch.zeros(2, 4))  # another dtype
    assert not perceptron.takes(torch.zeros(2, 2, dtype=torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not perceptron.takes(torch.zeros(2, 4, dtype=torch.float64))
    wide = sequential((4, 5, 3), nn.SiLU)
    with pytest.raises(ValueError, match=r"f must return shape \(2, 4\)"):
        trace.exact(wide, torch.zeros(2, 4, dtype=torch.float64))
    images = ops.normal((3, 1, 2, 2), key=KEY, dtype=torch.float64)  # nn.Linear works on the last dimension alone
    with pytest.raises(RuntimeError):
        trace.exact(net, images)
    scaled = nn.Softplus(beta=2)
    net = nn.Sequential(nn.Linear(4, 5), scaled, nn.Linear(5, 4)).double()
    x = ops.normal((4, 4), key=KEY, dtype=torch.float64)
    torch.testing.assert_close(trace.exact(net, x).value, trace.exact(lambda y: net(y), x).value)


@pytest.mark.parametrize("kind", ["function", "energy"])
@pytest.mark.parametrize("num_probes", [1, 3])
def test_large_weights_that_are_kept_transposed_follow_the_weights(kind, num_probes):
    """From the second use on there are copies of them; after a change they are not used."""
    net = energy_of(300, (250, 200), nn.SiLU) if kind == "energy" else sequential((300, 250, 200, 300), nn.SiLU)
    weight = (net.layers if kind == "energy" else net)[2].weight
    x = ops.normal((6, 300), key=KEY, dtype=torch.float64)

    @torch.no_grad()
    def assert_right() -> None:
        for call in range(4):
            key = KEY.advance(call)
            found = trace.function_value_and_trace(net, x, num_probes=num_probes, key=key)
            expected = trace.function_value_and_trace(lambda y: net(y), x, num_probes=num_probes, key=key)
            torch.testing.assert_close((found[0], found[1].value), (expected[0], expected[1].value), rtol=1e-10, atol=1e-11)

    assert_right()
    with torch.no_grad():
        weight.mul_(1.5)
    assert_right()
    weight.data.mul_(1.5)
    assert_right()
    weight.data = weight.detach() * 1.5
    assert_right()
