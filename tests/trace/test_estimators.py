"""Exact traces against autograd's Jacobians; estimators against saved values, enumeration, their own variances; what they refuse."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ebmcore
from ebmcore import Key, ops, trace
from ebmcore.trace import estimators
from ebmcore.trace.linearization import linearize
from ebmcore.types import DivergenceError
from support.statistics import assert_mean
from support.targets import assert_same_bits
from support.truths import truth, truth_arrays

KEY = Key(7, 3, 11)
LAWS = ("rademacher", "gaussian", "sphere", "orthogonal")
X = ops.normal((4, 3, 2), key=KEY, dtype=torch.float64)


class Linear:
    """x -> A x for flattened rows: the Jacobian is A for every chain. Counts its calls."""

    def __init__(self, a: Tensor) -> None:
        self.a = a
        self.num_calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return (x.flatten(1) @ self.a.T).reshape(x.shape)


def mixed(x: Tensor) -> Tensor:
    """A function whose Jacobian has no symmetry and differs from chain to chain."""
    y = x.flatten(1)
    return (torch.sin(y) * y.roll(1, 1) ** 2 + y.sum(1, keepdim=True)).reshape(x.shape)


def quartic(x: Tensor) -> Tensor:
    y = x.flatten(1)
    return (y**4).sum(1) + (y * y.roll(1, 1)).sum(1) * y[:, 0]


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    images = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.SiLU(), nn.Conv2d(3, 1, 3, padding=1)).double()


def jacobians(f, x: Tensor) -> Tensor:
    """(num_chains, d, d), a row at a time."""

    def field(row: Tensor) -> Tensor:
        value = f(row[None])
        return torch.func.grad(lambda y: f(y[None]).sum())(row) if value.shape == (1,) and row.dim() > 0 else value[0]

    return torch.stack([torch.func.jacrev(field)(row).reshape(row.numel(), row.numel()) for row in x])


def traces(f, x: Tensor) -> Tensor:
    return jacobians(f, x).diagonal(dim1=1, dim2=2).sum(1)


CASES = {
    "function": (mixed, X),
    "energy": (quartic, X),
    "function of images": (images, ops.normal((2, 1, 4, 4), key=KEY, dtype=torch.float64)),
    "energy of images": (lambda x: images(x).square().flatten(1).sum(1), ops.normal((2, 1, 4, 4), key=KEY, dtype=torch.float64)),
    "function of numbers": (lambda x: x**3, X[:, 0, 0]),
    "one chain": (mixed, X[:1]),
}
cases = pytest.mark.parametrize(("f", "x"), CASES.values(), ids=CASES)


@cases
def test_exact_is_the_trace_of_autograd(f, x):
    estimate = trace.exact(f, x)
    torch.testing.assert_close(estimate.value, traces(f, x), rtol=1e-12, atol=1e-12)
    assert estimate.standard_error is not None
    assert not estimate.standard_error.any()
    assert estimate.num_products == x[0].numel()


@cases
@pytest.mark.parametrize("law", LAWS)
def test_hutchinson_is_the_mean_of_its_quadratic_forms(f, x, law):
    count = min(3, x[0].numel())
    v = trace.draw_probes(x, count, law, key=KEY).reshape(count, len(x), -1)
    forms = torch.einsum("pni,nij,pnj->pn", v, jacobians(f, x), v)
    estimate = trace.hutchinson(f, x, count, law, key=KEY)
    torch.testing.assert_close(estimate.value, forms.mean(0), rtol=1e-11, atol=1e-11)
    assert estimate.num_products == count
    if count == 1:
        assert estimate.standard_error is None
    else:
        expected = forms.std(0) / math.sqrt(count) * math.sqrt(1 - count / x[0].numel() if law == "orthogonal" else 1.0)
        torch.testing.assert_close(estimate.standard_error, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("distribution", ["multivariate", "independent", "factors", "mixture"])
def test_a_distribution_is_the_energy_of_its_log_prob(distribution):
    normal = torch.distributions.Normal(torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64))
    model = {
        "multivariate": torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([1.0, 4.0]).double())),
        "independent": torch.distributions.Independent(normal, 1),
        "factors": normal,
        "mixture": torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(1, dtype=torch.float64)),
            torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1, 2).double(), torch.tensor([[1.0, 2.0]]).double()), 1),
        ),
    }[distribution]
    torch.testing.assert_close(trace.exact(model, X[:, 0]).value, torch.full((4,), 1.25, dtype=torch.float64))


def matrices() -> list:
    return truth("score_trace")["trace"]


def saved(case: dict, name: str) -> Tensor:
    return torch.tensor(truth_arrays("score_trace")[f"{case['name']}__{name}"].astype(float))


def saved_probes(case: dict, name: str) -> Tensor:
    return saved(case, name).T[:, None].contiguous()


@pytest.mark.parametrize("i", range(6))
def test_saved_probes_give_the_saved_values(i):
    case = matrices()[i]
    f = Linear(saved(case, "A"))
    x = torch.zeros(1, case["n"], dtype=torch.float64)
    linear = linearize(f, x, "test")
    expected = case["fixed_probe"]
    close = {"rel": 1e-11, "abs": 0}
    estimate = trace.hutchinson(f, x, probe=saved_probes(case, "x_Om_rademacher"))
    assert estimate.value.item() == pytest.approx(expected["hutchinson_Om_rademacher"], **close)
    estimate = estimators._hutch_plus_plus(linear, saved_probes(case, "hpp_S"), saved_probes(case, "hpp_G"))
    assert estimate.value.item() == pytest.approx(expected["hutchpp"], **close)
    assert estimate.num_products == expected["m_matvecs"]
    for name, law, is_invariant in (("rademacher_noimprove", "rademacher", False), ("sphere_improved", "sphere", True)):
        estimate = estimators._xtrace(linear, saved_probes(case, f"x_Om_{law}"), is_rotation_invariant=is_invariant)
        assert estimate.value.item() == pytest.approx(expected[f"xtrace_{name}"], **close)
        assert estimate.standard_error is not None
        assert estimate.standard_error.item() == pytest.approx(expected[f"xtrace_{name}_err"], rel=1e-10, abs=0)
        assert estimate.num_products == expected["m_matvecs"]


def all_signs(d: int) -> Tensor:
    return torch.tensor(list(product((1.0, -1.0), repeat=d)), dtype=torch.float64)[:, None]


def test_every_rademacher_vector_gives_the_exact_mean_and_variance():
    symmetric = matrices()[0]
    other = truth("score_trace")["nonsymmetric"]
    for a, mean, variance in (
        (saved(symmetric, "A"), symmetric["trace"], symmetric["var_one_probe"]["rademacher"]),
        (torch.tensor(other["A"], dtype=torch.float64), other["trace"], other["var_rademacher"]),
    ):
        signs = all_signs(len(a))
        estimate = trace.hutchinson(Linear(a), torch.zeros(1, len(a), dtype=torch.float64), probe=signs)
        assert estimate.value.item() == pytest.approx(mean, rel=1e-12)
        assert estimate.standard_error is not None
        assert estimate.standard_error.item() ** 2 * (len(signs) - 1) == pytest.approx(variance, rel=1e-11)


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
@pytest.mark.parametrize("i", [0, 2])
def test_means_and_variances_of_the_laws(i, law):
    case = matrices()[i]
    num_chains = 200_000 if case["n"] == 10 else 20_000
    x = torch.zeros(num_chains, case["n"], dtype=torch.float64)
    with torch.no_grad():
        value = trace.hutchinson(Linear(saved(case, "A")), x, 1, law, key=KEY).value
    variance = case["var_one_probe"][law]
    assert_mean(value, case["trace"], math.sqrt(variance), what=f"{law} mean")
    assert_mean((value - case["trace"]).square(), variance, what=f"{law} variance")  # 20,000 draws see a shift of 2 to 6 %


@pytest.mark.parametrize("law", LAWS)
def test_standard_errors_are_right_on_average(law):
    """E[standard_error²] is the variance of the value: exactly known for three laws, and seen in the values themselves for all."""
    case = matrices()[0]
    x = torch.zeros(50_000, 10, dtype=torch.float64)
    with torch.no_grad():
        estimate = trace.hutchinson(Linear(saved(case, "A")), x, 4, law, key=KEY)
    assert estimate.standard_error is not None
    assert_mean(estimate.value, case["trace"], what=f"{law} value")
    # The squares differ by the error of the mean, which is no bias: both are draws with the variance of the value as their mean.
    assert_mean(estimate.standard_error.square() - (estimate.value - case["trace"]).square(), 0.0, what=f"{law} squared error")
    if law != "orthogonal":
        assert_mean(estimate.standard_error.square(), case["var_one_probe"][law] / 4, what=f"{law} variance of the mean")


def test_as_many_orthogonal_probes_as_dimensions_are_exact():
    estimate = trace.hutchinson(mixed, X, 6, "orthogonal", key=KEY)
    torch.testing.assert_close(estimate.value, traces(mixed, X), rtol=1e-11, atol=1e-11)
    assert estimate.standard_error is not None
    assert not estimate.standard_error.any()


@pytest.mark.parametrize("i", range(1, 6))
def test_errors_are_those_of_the_table(i):
    """The rms relative error over 2,000 chains with probes of their own, against that of 1,000 other draws, within their joint error."""
    case = matrices()[i]
    x = torch.zeros(2000, case["n"], dtype=torch.float64)
    f, count = Linear(saved(case, "A")), case["fixed_probe"]["m_matvecs"]
    with torch.no_grad():
        found = {
            "hutchinson": trace.hutchinson(f, x, count, key=KEY).value,
            "hutchpp": trace.hutch_plus_plus(f, x, count, key=KEY).value,
            "xtrace": trace.xtrace(f, x, count, key=KEY).value,
        }
    for name, value in found.items():
        table = case["mc_relative_error"][name]
        squares = ((value - case["trace"]) / case["trace"]).square()
        rms = squares.mean().sqrt().item()
        own_error = squares.std().item() / math.sqrt(len(x)) / (2 * rms**2)  # relative, of the rms
        z = math.log(rms / table["rms"]) / math.hypot(own_error, table["rms_rel_se"])
        assert abs(z) < 5.45, (name, rms, table["rms"], z)
        bias = squares.new_tensor((value - case["trace"]).mean().item())
        assert abs(bias) < 5.45 * value.std() / math.sqrt(len(x)), (name, bias)


def test_xtrace_by_the_definition():
    """Each probe's estimate: the trace over the range that the others span, and the quadratic form of what is outside it."""
    a = jacobians(mixed, X)
    omega = trace.draw_probes(X, 4, "sphere", key=KEY).reshape(4, 4, 6).permute(1, 2, 0)
    for operator in (a, a.mT):  # either of the two is the operator, whichever is cheaper
        estimates = []
        for i in range(4):
            others = [j for j in range(4) if j != i]
            q = torch.linalg.qr(operator @ omega[:, :, others])[0]
            rest = omega[:, :, i] - (q @ (q.mT @ omega[:, :, i, None])).squeeze(2)
            form = torch.einsum("ni,nij,nj->n", rest, operator, rest)
            inner = (q.mT @ operator @ q).diagonal(dim1=1, dim2=2).sum(1)
            estimates.append(inner + (6 - 4 + 1) / rest.square().sum(1) * form)
        stacked = torch.stack(estimates)
        found = trace.xtrace(mixed, X, 8, key=KEY)
        if torch.allclose(found.value, stacked.mean(0), rtol=1e-9):
            assert found.standard_error is not None
            torch.testing.assert_close(found.standard_error, stacked.std(0) / 2, rtol=1e-8, atol=1e-10)
            return
    pytest.fail("xtrace is the definition of neither J nor its transpose")


def test_xtrace_of_matrices_of_low_rank_is_exact():
    for rank in (0, 1, 3):
        a = ops.normal((20, rank), key=KEY, dtype=torch.float64) @ ops.normal((rank, 20), key=KEY.advance(), dtype=torch.float64)
        for probe in ("sphere", "rademacher"):
            estimate = trace.xtrace(Linear(a), torch.zeros(3, 20, dtype=torch.float64), 12, probe=probe, key=KEY)
            torch.testing.assert_close(estimate.value, a.trace().expand(3), rtol=1e-9, atol=1e-12)
            assert estimate.standard_error is not None
            assert float(estimate.standard_error.max()) <= 1e-10
    estimate = trace.xtrace(mixed, X, 12, key=KEY)  # as many probes as dimensions
    torch.testing.assert_close(estimate.value, traces(mixed, X), rtol=1e-9, atol=1e-9)


def test_hutch_plus_plus_is_exact_on_the_range_it_finds():
    a = ops.normal((20, 3), key=KEY, dtype=torch.float64) @ ops.normal((3, 20), key=KEY.advance(), dtype=torch.float64)
    estimate = trace.hutch_plus_plus(Linear(a), torch.zeros(2, 20, dtype=torch.float64), 9, key=KEY)
    torch.testing.assert_close(estimate.value, a.trace().expand(2), rtol=1e-9, atol=1e-9)
    assert trace.hutch_plus_plus(mixed, X, 3, key=KEY).standard_error is None
    assert trace.hutch_plus_plus(mixed, X, 4, key=KEY).num_products == 4


@pytest.mark.parametrize("call", ["hutchinson", "hutch_plus_plus", "xtrace"])
def test_fresh_probes_at_every_call_and_the_same_under_a_key(call):
    def run(**options) -> Tensor:
        return {
            "hutchinson": lambda: trace.hutchinson(mixed, X, 2, **options),
            "hutch_plus_plus": lambda: trace.hutch_plus_plus(mixed, X, 6, **options),
            "xtrace": lambda: trace.xtrace(mixed, X, 4, **options),
        }[call]().value

    assert not torch.equal(run(), run())
    assert_same_bits(run(key=KEY), run(key=KEY))
    assert not torch.equal(run(key=KEY), run(key=KEY.advance(8)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first = run()
        torch.manual_seed(5)
        assert_same_bits(first, run())


def test_estimates_do_not_depend_on_the_split_of_the_batch():
    for law in LAWS:
        whole = trace.hutchinson(mixed, X, 3, law, key=KEY)
        parts = [trace.hutchinson(mixed, X[i : i + 2], 3, law, key=KEY.shard(i)) for i in (0, 2)]
        torch.testing.assert_close(whole.value, torch.cat([part.value for part in parts]), rtol=1e-13, atol=1e-13)
    whole, part = trace.hutchinson(mixed, X, tolerance=1.0, key=KEY), trace.hutchinson(mixed, X[3:], tolerance=1.0, key=KEY.shard(3))
    torch.testing.assert_close(whole.value[3:], part.value, rtol=1e-12, atol=1e-12)


def test_a_tolerance_is_kept():
    f, x = Linear(saved(matrices()[0], "A")), torch.zeros(5, 10, dtype=torch.float64)
    estimate = trace.hutchinson(f, x, tolerance=0.2, key=KEY)
    assert estimate.standard_error is not None
    assert float(estimate.standard_error.max()) <= 0.2
    assert estimate.num_products in (128, 256, 512)  # the standard error of one probe is 2.6
    assert (estimate.value - 20.0).abs().max() < 5.45 * 0.2
    with pytest.warns(RuntimeWarning, match=r"standard error is above tolerance=1e-06 in 5 chains after 64 probes"):
        trace.hutchinson(f, x, tolerance=1e-6, max_num_probes=64, key=KEY)
    assert trace.hutchinson(f, x, tolerance=100.0, key=KEY).num_products == 16


def test_one_forward_pass_gives_field_and_trace():
    f = Linear(saved(matrices()[0], "A"))
    x = ops.normal((3, 10), key=KEY, dtype=torch.float64)
    field, estimate = trace.function_value_and_trace(f, x, num_probes=4, key=KEY)
    assert f.num_calls == 1
    assert_same_bits(field, f(x))
    assert_same_bits(estimate.value, trace.hutchinson(f, x, 4, key=KEY).value)
    calls = 0

    def energy(y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return quartic(y)

    field, estimate = trace.function_value_and_trace(energy, X, "exact")
    assert calls == 1
    torch.testing.assert_close(field, torch.func.grad(lambda y: quartic(y).sum())(X))
    torch.testing.assert_close(estimate.value, traces(quartic, X))


class Scaled(nn.Module):
    """Its trace is scale · that of `mixed`, or with an energy of `quartic`."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f = f
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.f(x)


@pytest.mark.parametrize("f", [mixed, quartic])
@pytest.mark.parametrize("call", ["exact", "hutchinson", "hutch_plus_plus"])
def test_gradients_flow_to_parameters_and_to_x(f, call):
    def run(model, x: Tensor) -> Tensor:
        return {
            "exact": lambda: trace.exact(model, x),
            "hutchinson": lambda: trace.hutchinson(model, x, 2, key=KEY),
            "hutch_plus_plus": lambda: trace.hutch_plus_plus(model, x, 6, key=KEY),
        }[call]().value.sum()

    model = Scaled(f)
    for other in (model, lambda x: model(x)):  # parameters are found in a closure, too
        value = run(other, X)
        (grad,) = torch.autograd.grad(value, model.scale)
        torch.testing.assert_close(grad, value.detach() / 1.5, rtol=1e-10, atol=0)
    assert model.scale.grad is None
    if call == "exact":
        x = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(run(f, x), x)
        torch.testing.assert_close(grad, torch.func.grad(lambda y: traces(f, y).sum())(X), rtol=1e-10, atol=1e-10)
    frozen = Scaled(f).requires_grad_(False)
    assert not run(frozen, X).requires_grad
    with torch.no_grad():
        assert not run(model, X).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(run(model, X), value.detach())


def test_parameter_gradients_are_those_of_autograd():
    """Of Hutchinson with every Rademacher vector, which is the trace: twice differentiable, through the mode that a convolution takes, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv1d(2, 1, 3, padding=1)).double(), nn.Linear(3, 3).double()]
    for net, f in ((nets[0], lambda x: nets[0](x[:, None])[:, 0]), (nets[1], lambda x: nets[1](x) ** 2 * x.sin())):
        x = X[:, :, 0]
        value = trace.hutchinson(f, x, probe=all_signs(3).expand(-1, 4, -1)).value.square().sum()
        parameters = [p for name, p in net.named_parameters() if name != "2.bias"]  # the Jacobian does not know the last one
        grads = torch.autograd.grad(value, parameters, create_graph=True)
        expected = torch.autograd.grad(traces(f, x).square().sum(), parameters)
        for grad, wanted in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-9)


def test_images_equal_their_flattened_rows():
    x = ops.normal((3, 2, 4, 4), key=KEY, dtype=torch.float64)
    for law in ("rademacher", "gaussian"):
        a = trace.hutchinson(mixed, x, 3, law, key=KEY)
        b = trace.hutchinson(mixed, x.flatten(1), 3, law, key=KEY)
        torch.testing.assert_close(a.value, b.value, rtol=1e-13, atol=0)
    torch.testing.assert_close(trace.exact(mixed, x).value, trace.exact(mixed, x.flatten(1)).value, rtol=1e-13, atol=0)


def test_float32_is_float64_rounded():
    for call in (lambda x: trace.exact(mixed, x), lambda x: trace.hutchinson(mixed, x, 3, key=KEY)):
        single = call(X.float()).value
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), call(X.float().double()).value, rtol=2e-5, atol=2e-5)
    estimate = trace.xtrace(mixed, X.float(), 12, key=KEY)  # exact with so many probes: fewer are other ones in float64
    torch.testing.assert_close(estimate.value.double(), traces(mixed, X), rtol=5e-3, atol=5e-3)


@pytest.mark.usefixtures("untouched_generator")
def test_nothing_of_the_caller_is_touched():
    model, x = Scaled(mixed), X.clone()
    model.scale.grad = torch.ones_like(model.scale)
    for call in (trace.exact, lambda f, y: trace.hutchinson(f, y, 3, key=KEY), lambda f, y: trace.xtrace(f, y, 4, key=KEY)):
        call(model, x)
        assert torch.equal(x, X)
        assert not x.requires_grad
        assert model.scale.grad.item() == 1.0
        assert torch.is_grad_enabled()


def test_a_relu_energy_is_warned_of():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        energies = [ebmcore.energies.MLP(2, (8,), nn.ReLU), nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))]
    for energy in energies:
        for call in (trace.exact, trace.hutchinson):
            with pytest.warns(UserWarning, match="second derivative is zero at every chain"):
                assert not call(energy, X[:, 0].float()).value.any()
    with pytest.warns(UserWarning, match="second derivative is zero"):
        trace.exact(lambda x: x.flatten(1).sum(1), X)
    for call in (trace.exact, trace.hutchinson):  # a saddle: only its trace is 0, and every sum of two signs' squares
        assert not call(lambda x: x[:, 0].square() - x[:, 1].square(), X[:, 0]).value.any()


@pytest.mark.parametrize("call", ["exact", "hutchinson", "hutch_plus_plus", "xtrace"])
def test_what_is_not_finite_is_named(call):
    run = {
        "exact": trace.exact,
        "hutchinson": lambda f, x: trace.hutchinson(f, x, 2),
        "hutch_plus_plus": lambda f, x: trace.hutch_plus_plus(f, x, 6),
        "xtrace": lambda f, x: trace.xtrace(f, x, 4),
    }[call]
    x = X.clone()
    x[2, 1, 0] = math.nan
    for f in (mixed, quartic):
        with pytest.raises(DivergenceError, match=r"NaN or infinity in 1 chains \[2\]") as caught:
            run(f, x)
        assert caught.value.chains == [2]
    with pytest.raises(DivergenceError):
        run(lambda y: y.abs().sqrt(), torch.zeros_like(X))  # finite itself, with an infinite slope
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    with pytest.raises(DivergenceError):
        run(net, x[:, 1])
    large = X * 1e300
    assert bool(trace.exact(lambda y: y * 1e5, large[:1]).value.isfinite().all())  # a sum that overflows is no NaN


def function(x: Tensor) -> Tensor:
    return x * 2


def in_place(x: Tensor) -> Tensor:
    with torch.no_grad():
        x.mul_(2)
    return x * 2


WRONG = {
    "no probes": (lambda: trace.hutchinson(function, X, 0), ValueError, "hutchinson: num_probes must be an int >= 1, got 0"),
    "half a probe": (lambda: trace.hutchinson(function, X, 1.5), TypeError, "hutchinson: num_probes must be an int >= 1, got 1.5"),
    "unknown law": (lambda: trace.hutchinson(function, X, 1, "cauchy"), ValueError, "hutchinson: probe must be one of rademacher, gaussian"),
    "too many orthogonal": (lambda: trace.hutchinson(function, X, 7, "orthogonal"), ValueError, "num_probes must be at most 6, the dimension"),
    "probes of another shape": (lambda: trace.hutchinson(function, X, probe=X), ValueError, r"probe must have shape \(num_probes, \*\(4, 3, 2\)\)"),
    "probes of another dtype": (lambda: trace.hutchinson(function, X, probe=X[None].float()), TypeError, "probe must be torch.float64"),
    "two products": (lambda: trace.hutch_plus_plus(function, X, 2), ValueError, "hutch_plus_plus: num_products must be an int >= 3, got 2"),
    "too many products": (
        lambda: trace.hutch_plus_plus(function, X, 21),
        ValueError,
        "num_products must be at most 20, thrice the dimension, got 21",
    ),
    "more probes than dimensions": (
        lambda: trace.xtrace(function, X, 14),
        ValueError,
        "num_products must be even and at most 12, twice the dimension",
    ),
    "odd": (lambda: trace.xtrace(function, X, 5), ValueError, "num_products must be even"),
    "one probe": (lambda: trace.xtrace(function, X, 2), ValueError, "xtrace: num_products must be an int >= 4, got 2"),
    "output of another shape": (lambda: trace.exact(lambda x: x[:, :2], X), ValueError, r"f must return shape \(4, 3, 2\) \(a function\) or \(4,\)"),
    "a scalar": (lambda: trace.exact(lambda x: x.sum(), X), ValueError, r"f must return shape .*, got \(\)"),
    "integers": (lambda: trace.exact(function, torch.ones(3, 2, dtype=torch.int64)), TypeError, "x must be float32, float64"),
    "bfloat16": (lambda: trace.exact(function, X.bfloat16()), TypeError, "exact: x must be float32 or float64, got torch.bfloat16"),
    "an array": (lambda: trace.exact(function, np.ones((3, 2))), TypeError, "x must be a torch.Tensor, got ndarray"),
    "no function": (lambda: trace.exact(3.0, X), TypeError, "model must be callable or have log_prob, got float"),
    "no tensor": (lambda: trace.exact(lambda x: 1.0, X), TypeError, "f must return a floating-point tensor, got float"),
    "detached": (lambda: trace.exact(lambda x: x.detach(), X), ValueError, "f must depend on x"),
    "in place": (lambda: trace.exact(in_place, X.clone()), ValueError, "exact: f must not modify x in place"),
    "tolerance 0": (lambda: trace.hutchinson(function, X, tolerance=0.0), ValueError, "tolerance must be a finite number > 0"),
    "tolerance of orthogonal ones": (lambda: trace.hutchinson(function, X, 2, "orthogonal", tolerance=1.0), ValueError, "cannot be added to"),
    "unknown method": (
        lambda: trace.function_value_and_trace(function, X, "magic"),
        ValueError,
        "method must be one of exact, hutchinson, got 'magic'",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_operation_without_batching_goes_one_by_one():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * torch.from_numpy(3 * x.detach().numpy() ** 2)  # no batch has a NumPy array

    torch.testing.assert_close(trace.exact(Cube.apply, X).value, 3 * X.square().flatten(1).sum(1))


def test_no_chains():
    for call in (trace.exact, lambda f, x: trace.hutchinson(f, x, 2), lambda f, x: trace.xtrace(f, x, 4)):
        assert call(mixed, X[:0]).value.shape == (0,)


def test_a_device_estimates_as_the_cpu_does(device):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = [
            ebmcore.energies.MLP(6, (16, 16)).double(),
            nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6)).double(),
            Scaled(mixed),
        ]
    x = X.flatten(1)
    for model in models:
        expected = [trace.exact(model, x), *(trace.hutchinson(model, x, 3, law, key=KEY) for law in LAWS), trace.xtrace(model, x, 12, key=KEY)]
        there = model.to(device)
        y = x.to(device)
        found = [trace.exact(there, y), *(trace.hutchinson(there, y, 3, law, key=KEY) for law in LAWS), trace.xtrace(there, y, 12, key=KEY)]
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.value.device.type == device
            torch.testing.assert_close(mine.value.cpu(), theirs.value, rtol=1e-8, atol=1e-8)
