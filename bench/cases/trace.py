"""Fields and traces of their Jacobians: Hutchinson's estimator, exact traces, sliced score matching, Hutch++ and XTrace."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebmcore import ops, trace
from ebmcore.bench import torch_traces
from ebmcore.bench.timing import Case, CheckError, LeftOutError, NamedProblem, Row, Run
from ebmcore.energies import MLP
from ebmcore.losses import sliced_score_matching
from ebmcore.networks import ScoreMLP
from ebmcore.types import Key

KEY = Key(2024)
TOLERANCE = 2e-5  # of float32 sums, relative to the sum of their terms' sizes


class Inputs(NamedTuple):
    """A function or an energy, x (n, d), the number of probes or products, and what ours is held against."""

    f: Any
    x: Tensor
    amount: int
    check: Callable[[Inputs], str]


def make_inputs(problem: NamedProblem, num_sets: int) -> Inputs:
    build, dim, amount, check = problem.spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f, x = build(dim), torch.randn(problem.num_units, dim)
    return Inputs(f.to(problem.device), x.to(problem.device), amount, check)


def low_rank(dim: int) -> nn.Module:
    """x -> tanh(A x), A symmetric with eigenvalues 1/i²: a function that only autograd knows."""
    q = torch.linalg.qr(torch.randn(dim, dim)).Q
    layer = nn.Linear(dim, dim, bias=False)
    layer.weight.data = (q / torch.arange(1, dim + 1) ** 2) @ q.T
    return nn.Sequential(layer, nn.Tanh())


# Checks, against autograd in float64 on the CPU.


def in_double(inputs: Inputs) -> tuple[Any, Tensor]:
    return copy.deepcopy(inputs.f).cpu().double(), inputs.x.cpu().double()


def demand(name: str, result: Tensor, expected: Tensor, scale: Tensor) -> None:
    """CheckError unless |result - expected| is below TOLERANCE · scale."""
    error = float(((result.detach().cpu().double() - expected).abs() / scale).max())
    if not error < TOLERANCE:
        raise CheckError(f"{name} is off by {error:.2g} of its terms from float64 autograd, the bound is {TOLERANCE:g}")


def check_estimate(inputs: Inputs) -> str:
    f, x = in_double(inputs)
    probes = trace.draw_probes(inputs.x, inputs.amount, key=KEY)
    with torch.no_grad():
        field, estimate = trace.function_value_and_trace(inputs.f, inputs.x, "hutchinson", num_probes=inputs.amount, key=KEY)
    leaf, v = x.requires_grad_(), probes.cpu().double()
    expected = torch_traces.field_of(f, leaf)
    terms = torch.stack([torch.autograd.grad(expected, leaf, each, retain_graph=True)[0] for each in v]) * v
    demand("the field", field, expected.detach(), expected.detach().abs().amax(1, keepdim=True))
    demand("Hutchinson's estimate", estimate.value, terms.sum(2).mean(0), terms.abs().sum(2).mean(0))
    return f"fields and estimates within {TOLERANCE:g} of float64 autograd on the same probes"


def check_exact(inputs: Inputs) -> str:
    f, x = in_double(inputs)
    with torch.no_grad():
        field, estimate = trace.function_value_and_trace(inputs.f, inputs.x, "exact")
    leaf = x.requires_grad_()
    expected = torch_traces.field_of(f, leaf)
    diagonal = torch.stack([torch.autograd.grad(expected[:, i].sum(), leaf, retain_graph=True)[0][:, i] for i in range(x.shape[1])])
    demand("the field", field, expected.detach(), expected.detach().abs().amax(1, keepdim=True))
    demand("the exact trace", estimate.value, diagonal.sum(0), diagonal.abs().sum(0))
    return f"fields and exact traces within {TOLERANCE:g} of float64 autograd"


def check_update(inputs: Inputs) -> str:
    f, x = in_double(inputs)
    probes = trace.draw_probes(inputs.x, inputs.amount, key=KEY)
    loss = sliced_score_matching(inputs.f, inputs.x, probe=probes)
    expected = torch_loss(torch_traces.double_backward, f, x, probes.cpu().double())
    demand("the loss", loss, expected.detach(), expected.detach().abs() + 1)
    grads = torch.autograd.grad(loss, list(inputs.f.parameters()), allow_unused=True)
    expected_grads = torch.autograd.grad(expected, list(f.parameters()), allow_unused=True)
    for (name, _), result, truth in zip(f.named_parameters(), grads, expected_grads, strict=True):
        if truth is not None:  # an energy's last bias does nothing
            demand(f"the gradient in {name}", torch.zeros(()) if result is None else result, truth, truth.abs().max())
    return f"losses and their gradients within {TOLERANCE:g} of float64 double backward on the same probes"


def check_probe_dot(inputs: Inputs) -> str:
    u = inputs.x[None]
    products = u * ops.rademacher(inputs.x.shape, key=KEY, stream=ops.Stream.PROBE, device=inputs.x.device)
    demand("probe_dot", ops.probe_dot(u, key=KEY), products.cpu().double().sum(2), products.cpu().double().abs().sum(2))
    return f"dot products within {TOLERANCE:g} of those with rademacher()"


def check_low_rank(inputs: Inputs) -> str:
    """The errors over the chains average to zero, and are as large as those of the rivals."""
    f, x = in_double(inputs)
    double = inputs._replace(f=f, x=x)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        truth = torch_traces.jacobians(f, x)[1]
        for name, method, estimate in (("Hutch++", trace.hutch_plus_plus, torch_hutch_plus_plus), ("XTrace", trace.xtrace, torch_xtrace)):
            errors = method(f, x, inputs.amount, key=KEY).value - truth
            z = float(errors.mean() / errors.std()) * len(x) ** 0.5
            ratio = float(errors.norm() / (estimate(double, torch_traces.product_vmap) - truth).norm())
            if not (abs(z) < 7 and 0.4 < ratio < 2.5):
                raise CheckError(f"{name}: the mean error is {z:.1f} standard errors from 0, the rms {ratio:.2g} times that in plain torch")
    return "errors average to zero, and are as large as those of the same algorithms in plain torch"


# Rows.


def signs(like: Tensor, num_probes: int) -> Tensor:
    """The fastest Rademacher probes of torch on a CPU: half the time of randn().sign(), which research code has."""
    return torch.randint(2, (num_probes, *like.shape), dtype=like.dtype, device=like.device).mul_(2).sub_(1)


def torch_loss(estimator: torch_traces.Estimator, f: Any, x: Tensor, probes: Tensor) -> Tensor:
    """Sliced score matching with reduced variance: mean ½|s|² + vᵀ(∂s/∂x)v, s = -∇E for an energy."""
    field, estimate = estimator(f, x, probes)
    values: Tensor = 0.5 * field.square().sum(1) + (-estimate if isinstance(f, MLP) else estimate)
    return values.mean()


def _ours(inputs: Inputs) -> Run:
    def call(i: int) -> object:
        with torch.no_grad():
            return trace.function_value_and_trace(inputs.f, inputs.x, "hutchinson", num_probes=inputs.amount)

    return call


def _estimate(estimator: torch_traces.Estimator, *, has_graph: bool = False) -> Callable[[Inputs], Run]:
    def setup(inputs: Inputs) -> Run:
        f, x, amount, _ = inputs

        def call(i: int) -> object:
            with torch.set_grad_enabled(has_graph):
                return estimator(f, x, signs(x, amount))

        return call

    return setup


def _several(setup: Callable[[Inputs], Run]) -> Callable[[Inputs], Run]:
    def of_several(inputs: Inputs) -> Run:
        if inputs.amount == 1:
            raise LeftOutError("of several probes")
        return setup(inputs)

    return of_several


def _compiled(inputs: Inputs) -> Run:
    return _estimate(torch.compile(torch_traces.forward_mode, fullgraph=True, dynamic=False))(inputs)


def _ours_exact(inputs: Inputs) -> Run:
    def call(i: int) -> object:
        with torch.no_grad():
            return trace.function_value_and_trace(inputs.f, inputs.x, "exact")

    return call


def _ours_exact_anew(inputs: Inputs) -> Run:
    run, weight = _ours_exact(inputs), inputs.f.layers[0].weight

    def call(i: int) -> object:
        with torch.no_grad():
            weight[0, 0].mul_(1.0)  # counts as a new value
        return run(i)

    return call


def _exact(function: Callable[[Any, Tensor], object]) -> Callable[[Inputs], Run]:
    return lambda inputs: lambda i: function(inputs.f, inputs.x)


def _closed_form(inputs: Inputs) -> Run:
    form = torch_traces.bilinear_form(inputs.f).detach()
    return lambda i: torch_traces.closed_form(inputs.f, inputs.x, form)


def _closed_form_anew(inputs: Inputs) -> Run:
    @torch.no_grad()
    def call(i: int) -> object:
        return torch_traces.closed_form(inputs.f, inputs.x, torch_traces.bilinear_form(inputs.f))

    return call


def _update(loss: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Run]:
    def setup(inputs: Inputs) -> Run:
        def call(i: int) -> object:
            inputs.f.zero_grad()
            value = loss(inputs)
            value.backward()
            return value

        return call

    return setup


def _torch_update(estimator: torch_traces.Estimator) -> Callable[[Inputs], Run]:
    return _update(lambda inputs: torch_loss(estimator, inputs.f, inputs.x, signs(inputs.x, inputs.amount)))


def _torchebm_update(inputs: Inputs) -> Run:
    if not isinstance(inputs.f, MLP):
        raise LeftOutError("of energies alone")
    precision = torch.get_float32_matmul_precision()
    losses, core = importlib.import_module("torchebm.losses"), importlib.import_module("torchebm.core")
    torch.set_float32_matmul_precision(precision)  # importing some parts of torchebm changes it for the process

    class Model(core.BaseModel):  # type: ignore[misc, name-defined]
        def forward(self, x: Tensor) -> Tensor:
            energies: Tensor = inputs.f(x)
            return energies

    loss = losses.SlicedScoreMatching(model=Model(), n_projections=inputs.amount, device=inputs.x.device)
    return _update(lambda inputs: loss(inputs.x))(inputs)


def torch_hutch_plus_plus(inputs: Inputs, times: Callable[..., Tensor]) -> Tensor:
    f, x, amount, _ = inputs
    probes = signs(x[..., None].expand(*x.shape, 2 * (amount // 3)), 1)[0]
    values: Tensor = torch_traces.hutch_plus_plus(partial(times, f, x), probes)
    return values


def torch_xtrace(inputs: Inputs, times: Callable[..., Tensor]) -> Tensor:
    f, x, amount, _ = inputs
    probes = torch.randn(*x.shape, amount // 2, dtype=x.dtype, device=x.device)
    values: Tensor = torch_traces.xtrace(partial(times, f, x), probes * (x.shape[1] ** 0.5 / probes.norm(dim=1, keepdim=True)))
    return values


def _ours_low_rank(method: Callable[..., object]) -> Callable[[Inputs], Run]:
    def setup(inputs: Inputs) -> Run:
        def call(i: int) -> object:
            with torch.no_grad():
                return method(inputs.f, inputs.x, inputs.amount)

        return call

    return setup


def _torch_low_rank(estimate: Callable[..., Tensor], times: Callable[..., Tensor]) -> Callable[[Inputs], Run]:
    def setup(inputs: Inputs) -> Run:
        def call(i: int) -> object:
            with torch.no_grad():
                return estimate(inputs, times)

        return call

    return setup


def _probe_dot(inputs: Inputs) -> Run:
    u, keys = inputs.x[None], list(KEY.to(inputs.x.device).steps(64))
    return lambda i: ops.probe_dot(u, key=keys[i % 64])


def _rademacher_dot(inputs: Inputs) -> Run:
    u, key = inputs.x[None], KEY.to(inputs.x.device)
    return lambda i: (ops.probes(u.shape, key=key, device=u.device) * u).sum(2)


def _eager_dot(inputs: Inputs) -> Run:
    x = inputs.x
    return lambda i: ((torch.randint(0, 2, x.shape, device=x.device).to(x.dtype) * 2 - 1) * x).sum(1)


def _tuned_dot(inputs: Inputs) -> Run:
    x = inputs.x
    return lambda i: torch.linalg.vecdot(signs(x, 1)[0], x)


ALGORITHM = "the gain over it is mostly the algorithm's"
KERNEL = "the same products and formulas as ours: the gain over it is the kernels' and of saved calls"

FORWARD = Row("torch forward mode by hand", "tuned", _estimate(torch_traces.forward_mode), KERNEL)
HUTCHINSON = (
    Row("ebmcore", "ours", _ours, "function_value_and_trace: the field too, as every row; under no_grad, with a fresh seed a call"),
    Row("torch double backward", "eager", _estimate(torch_traces.double_backward, has_graph=True), f"batch repeated, create_graph=True; {ALGORITHM}"),
    Row("torch vjp", "tuned", _estimate(torch_traces.vjps, has_graph=True), "one forward pass, a backward pass for each probe, no graph of it"),
    Row("torch batched vjp", "tuned", _several(_estimate(torch_traces.batched_vjps, has_graph=True)), "is_grads_batched=True"),
    Row("torch.func.jvp", "tuned", _estimate(torch_traces.jvps), "under no_grad; under vmap if there are several probes"),
    FORWARD,
    Row("torch forward mode by hand, compiled", "compiled", _compiled),
)
EXACT_ENERGY = (
    Row("ebmcore", "ours", _ours_exact, "function_value_and_trace: the field too, as every row; what depends on the weights alone is kept"),
    Row("ebmcore, weights changed", "ours", _ours_exact_anew, "and what depends on the weights built anew in every call"),
    Row("torch loop", "eager", _exact(torch_traces.autograd_loop), f"a backward pass for each dimension; {ALGORITHM}"),
    Row("torch vmap(jacrev)", "tuned", _exact(torch_traces.jacobians), "whole Jacobians"),
)
EXACT = (
    *EXACT_ENERGY,
    Row("torch closed form", "tuned", _closed_form, f"{KERNEL}; W_2 ∘ (W_1 W_3)ᵀ kept"),
    Row("torch closed form, weights changed", "tuned", _closed_form_anew, "W_2 ∘ (W_1 W_3)ᵀ built anew in every call"),
)
UPDATE = (
    Row("ebmcore", "ours", _update(lambda inputs: sliced_score_matching(inputs.f, inputs.x, num_probes=inputs.amount)), "loss and its backward pass"),
    Row("torch double backward", "eager", _torch_update(torch_traces.double_backward), f"batch repeated; {ALGORITHM}"),
    Row("torch batched vjp", "tuned", _torch_update(partial(torch_traces.batched_vjps, create_graph=True)), "one forward pass for all probes"),
    Row("torch.func.jvp", "tuned", _torch_update(torch_traces.jvps), "under vmap if there are several probes"),
    Row("torch forward mode by hand", "tuned", _torch_update(torch_traces.forward_mode), KERNEL),
    Row("torchebm", "rival", _torchebm_update, "SlicedScoreMatching, whose first term is (v · s)², not |s|²"),
)
PROBE_DOT = (
    Row("ebmcore probe_dot", "ours", _probe_dot, "probes never stored"),
    Row("ebmcore probes, then the product", "ours", _rademacher_dot),
    Row("torch eager", "eager", _eager_dot, "(torch.randint(0, 2, x.shape).float() * 2 - 1) * x, summed; a kernel gain"),
    Row("torch tuned", "tuned", _tuned_dot, "randint in float, in place, torch.linalg.vecdot"),
)
LOW_RANK = tuple(
    row
    for name, ours, estimate in (("Hutch++", trace.hutch_plus_plus, torch_hutch_plus_plus), ("XTrace", trace.xtrace, torch_xtrace))
    for row in (
        Row(f"ebmcore {name}", "ours", _ours_low_rank(ours), "", name),
        Row(
            f"torch {name}, loop",
            "eager",
            _torch_low_rank(estimate, torch_traces.product_loop),
            "the algorithm by hand, a jvp for each product",
            name,
        ),
        Row(f"torch {name}, vmap", "tuned", _torch_low_rank(estimate, torch_traces.product_vmap), "all products of a stage in one", name),
    )
)


def _problems() -> tuple[NamedProblem, ...]:
    problems = []

    def add(name: str, build: Callable[..., Any], dim: int, n: int, amount: int, check: Callable[[Inputs], str], rows: tuple[Row, ...]) -> None:
        problems.append(NamedProblem(name, n, (build, dim, amount, check), rows=rows))

    for dim, width, n, n_exact in ((784, 512, 64, 16), (2, 128, 256, 256)):
        shapes = {f"{dim}-{width}-{width}-{dim}": (ScoreMLP, EXACT), f"{dim}-{width}-{width}-1 energy": (MLP, EXACT_ENERGY)}
        for shape, (kind, exact_rows) in shapes.items():
            build = partial(kind, hidden=(width, width))
            for num_probes in (1, 16):
                add(f"{shape} {num_probes} probe{'s' * (num_probes > 1)}", build, dim, n, num_probes, check_estimate, HUTCHINSON)
            add(f"{shape} exact", build, dim, n_exact, 0, check_exact, exact_rows)
            for num_probes in (1, 16):
                add(f"{shape} update {num_probes}", build, dim, n, num_probes, check_update, UPDATE)
    add("probe and dot 784", lambda dim: nn.Identity(), 784, 128, 1, check_probe_dot, PROBE_DOT)
    for num_products in (30, 120):
        add(f"{num_products} products of 512", low_rank, 512, 64, num_products, check_low_rank, LOW_RANK)
    return tuple(problems)


CASE = Case(
    name="trace",
    summary="a field and the trace of its Jacobian; sliced score matching updates; matrix-free trace estimators",
    rows=HUTCHINSON,
    make_inputs=make_inputs,
    check=lambda inputs: inputs.check(inputs),
    unit="chain",
    problems=_problems(),
    with_memory=True,
)
