"""ln Z by annealed importance sampling: of any energy, forwards and in reverse (see `annealing`), and of restricted Boltzmann machines as in
Salakhutdinov & Murray, "On the quantitative analysis of deep belief networks", ICML 2008, section 4.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebmcore import ops
from ebmcore.evaluation.annealing import AISState, AnnealedImportanceSampling, schedule
from ebmcore.evaluation.weights import AISResult, log_z_of_weights
from ebmcore.types import EnergyFn, Key, bounded_int

_FRAMES = 5  # from a warning about the weights up to the caller
_TEMPERATURES_AT_ONCE = 10


def ais(
    energy: Any,
    base: Any = None,
    sampler: Any = None,
    *,
    num_chains: int = 100,
    betas: int | Sequence[float] | Tensor | None = None,
    conditional_ess: float | None = None,
    num_steps: int = 1,
    base_visible_bias: Tensor | None = None,
    seed: int | Key | None = None,
    progress: bool = False,
) -> AISResult:
    """ln Z of an energy with its error bar, by annealed importance sampling from a distribution whose Z is known.

    Chains start at exact draws from the base and move by the sampler along the geometric path, E_β = (1 - β) E_0 + β E_1; a temperature costs
    num_steps steps of it and nothing else. The mean log-likelihood of data is then `-energy(data).mean() - log_z`, with the same error.

    A Bernoulli RBM needs neither base nor sampler: chains start in independent visible units of log-odds a₀ and uniform hidden ones, and take one
    block Gibbs step at each β; between them lie p_β(v, h) ∝ exp(-(1 - β) E₀(v) - β E(v, h)), E₀(v) = -a₀ᵀv. A step costs two matrix products;
    hidden units are summed out of the weights.

    After Ctrl-C the KeyboardInterrupt carries what was done so far, but for ten temperatures at most, as `.state`, from which
    `AnnealedImportanceSampling(base, sampler, ...).advance` goes on to the same bits (not of the RBM's own way).

    Args:
        energy: (num_chains, *event) -> (num_chains,), or anything with `log_prob`; without base and sampler an `energies.BernoulliRBM`.
        base, sampler, betas, conditional_ess, num_steps: as `AnnealedImportanceSampling`.
        num_chains: at least 1; more make the error bar smaller, and surer.
        base_visible_bias: of an RBM: a₀ (num_visible,), finite; None for 0. The log-odds of the training data's pixels make a better start.
        seed: an int, a `Key` to go on with its draws (of an RBM the next K + 1 steps; energies as base draw on its device), or None to draw one
            from torch's generator.
        progress: show a bar (needs tqdm).

    Raises:
        TypeError, ValueError: an argument is not as above, betas do not rise from 0 to 1, the base cannot be sampled, the sampler does not leave
            its target invariant, or all weights are 0; a parameter of an RBM, or base_visible_bias, is not finite or has another shape.
        DivergenceError: a weight is infinite or NaN; `chains` are these.
        RuntimeError: adaptive betas would need more than 1e7 temperatures.

    Warns:
        RuntimeWarning: the effective sample size is below 10 (log_z is then too low and the error bar too small), or no proposal was accepted.
    """
    if base is None and sampler is None:
        if conditional_ess is not None or num_steps != 1:
            raise ValueError("ais: conditional_ess and num_steps need a base and a sampler")
        return _ais_of_rbm(energy, num_chains, betas, base_visible_bias, seed, progress)
    if base_visible_bias is not None:
        raise ValueError("ais: give base or base_visible_bias, not both")
    annealing = AnnealedImportanceSampling(base, sampler, betas, conditional_ess, num_steps)
    return _run(annealing, energy, annealing.init(energy, num_chains, seed=seed), progress)


def reverse_ais(
    energy: EnergyFn,
    base: Any,
    sampler: Any,
    x: Tensor,
    *,
    betas: int | Sequence[float] | Tensor | None = None,
    conditional_ess: float | None = None,
    num_steps: int = 1,
    seed: int | Key | None = None,
    progress: bool = False,
) -> AISResult:
    """ln Z from above: annealed importance sampling from the energy to the base, whose mean weight is unbiased for 1/Z.

    With `ais` this brackets ln Z: on average ais <= ln Z <= reverse_ais, and both are within their variance of it. That they agree shows that
    they are right only if x are exact draws: from chains that have missed a mode, both agree on the mass of the others.

    Args:
        x: (num_chains, *event), exact draws from exp(-energy), or what chains that run long enough to pass for them end at.
        Others, result, errors and warnings: as `ais`.
    """
    annealing = AnnealedImportanceSampling(base, sampler, betas, conditional_ess, num_steps)
    return _run(annealing, energy, annealing.init_reverse(energy, x, seed=seed), progress)


def _run(annealing: AnnealedImportanceSampling, energy: EnergyFn, state: AISState, progress: bool) -> AISResult:
    try:
        with _progress_bar(annealing.num_temperatures, progress, stacklevel=_FRAMES + 1) as update:
            while not state.is_done:
                state, before = annealing.advance(energy, state, _TEMPERATURES_AT_ONCE), state
                update(len(state.betas) - len(before.betas))
    except KeyboardInterrupt as interrupt:
        interrupt.state = state  # type: ignore[attr-defined]
        raise
    return annealing._result(state, stacklevel=_FRAMES)


@torch.no_grad()
def _ais_of_rbm(
    energy: Any,
    num_chains: int,
    betas: int | Sequence[float] | Tensor | None,
    base_visible_bias: Tensor | None,
    seed: int | Key | None,
    progress: bool,
) -> AISResult:
    weight, visible_bias, hidden_bias = _parameters(energy)
    num_chains = bounded_int(num_chains, "num_chains", "ais", low=1)
    steps = schedule(1000 if betas is None else betas)
    base = _base(base_visible_bias, visible_bias)
    keys = Key.from_seed(seed, weight.device).steps(len(steps)).unbind()
    hidden_stream, visible_stream = ops.Stream.HIDDEN, ops.Stream.PROPOSAL
    visible = ops.sigmoid_bernoulli(base.expand(num_chains, -1), key=keys[0], stream=visible_stream)
    log_weights = torch.zeros(num_chains, dtype=torch.float64, device=weight.device)
    bias_gain = visible_bias - base
    with _progress_bar(len(steps) - 1, progress, stacklevel=_FRAMES + 1) as update:
        for k in range(1, len(steps)):
            before, beta = steps[k - 1], steps[k]
            inputs = visible @ weight
            bias = beta * hidden_bias
            gain = ops.softplus_sum(inputs, bias, scale=beta) - ops.softplus_sum(inputs, before * hidden_bias, scale=before)
            log_weights += (beta - before) * (visible @ bias_gain).double() + gain
            if k < len(steps) - 1:  # a move at β = 1 would change no weight
                hidden = ops.sigmoid_bernoulli(inputs, bias, key=keys[k], scale=beta, stream=hidden_stream)
                visible_of = torch.lerp(base, visible_bias, beta)
                visible = ops.sigmoid_bernoulli(hidden @ weight.T, visible_of, key=keys[k], scale=beta, stream=visible_stream)
            update(1)
    log_z_base = float(softplus(base.double(), threshold=40).sum()) + len(hidden_bias) * math.log(2)
    return log_z_of_weights(
        log_weights + log_z_base,
        key=Key.from_tensor(keys[-1]),
        betas=torch.tensor(steps, dtype=torch.float64),
        acceptance_prob=None,
        x=visible,
        stacklevel=_FRAMES,
    )


def _parameters(energy: Any) -> tuple[Tensor, Tensor, Tensor]:
    names = ("weight", "visible_bias", "hidden_bias")
    is_binary = getattr(getattr(energy, "alphabet", None), "kind", None) == "binary"
    if not is_binary or not all(isinstance(getattr(energy, name, None), Tensor) for name in names):
        raise TypeError(f"ais: energy must be an energies.BernoulliRBM, got {type(energy).__name__}; of other energies give base and sampler")
    parameters = [getattr(energy, name).detach() for name in names]
    for name, parameter in zip(names, parameters, strict=True):
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"ais: energy must have finite parameters, got NaN or infinity in {name}")
    return parameters[0], parameters[1], parameters[2]


def _base(bias: Tensor | None, like: Tensor) -> Tensor:
    if bias is None:
        return torch.zeros_like(like)
    if not isinstance(bias, Tensor):
        raise TypeError(f"ais: base_visible_bias must be None or a torch.Tensor, got {type(bias).__name__}")
    if bias.shape != like.shape or not bool(bias.isfinite().all()):
        raise ValueError(f"ais: base_visible_bias must be finite, of shape {tuple(like.shape)}, got shape {tuple(bias.shape)}")
    return bias.detach().to(like)


@contextmanager
def _progress_bar(total: int | None, wanted: bool, stacklevel: int) -> Iterator[Callable[[int], Any]]:
    if not wanted:
        yield lambda _: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        warnings.warn("ais: progress=True needs tqdm (pip install tqdm)", stacklevel=stacklevel)
        yield lambda _: None
        return
    with tqdm(total=total, unit="beta") as bar:
        yield bar.update
