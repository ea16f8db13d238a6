"""Score matching (Hyvärinen 2005, eq. 4): fits ∇ log p without its constant, from the trace of the score's Jacobian.

The trace is exact or Hutchinson's estimate; `sliced_score_matching` has the latter with other first terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from ebmcore.losses.batch import check_batch, finite_mean
from ebmcore.trace.linearization import linearize, outside_inference_mode
from ebmcore.trace.probes import ProbeLaw, Probes
from ebmcore.types import Key


@outside_inference_mode
def score_matching(
    model: Callable[[Tensor], Tensor] | Any,
    x: Tensor,
    *,
    trace: Literal["exact", "hutchinson"] = "exact",
    num_probes: int = 1,
    probe: ProbeLaw | Tensor = "rademacher",
    key: Key | None = None,
) -> Tensor:
    """mean ½ |s(x)|² + tr ∇s(x): up to a constant ½ E|s - ∇ log p_data|², half the mean square error of the score.

    The exact trace costs as much as there are elements in an event, but for networks whose closed form is known (`energies.MLP`,
    `networks.ScoreMLP` of one or two hidden layers).

    Args:
        model: the score s as a function (n, *event) -> (n, *event); or an energy (n, *event) -> (n,), of which s = -∇E and
            tr ∇s = -tr of its Hessian; or anything with `log_prob`.
        x: (n, *event), float32 or float64.
        trace: "exact", or "hutchinson": mean vᵀ∇s v over `num_probes` probes v for each row, unbiased.
        num_probes, probe, key: of "hutchinson", as for `sliced_score_matching`.

    Returns:
        A scalar in x's dtype, attached to the graph of the parameters.

    Raises:
        TypeError, ValueError: an argument is not as above, or the model returns neither energies nor scores.
        DivergenceError: the loss is NaN or infinite at some rows of x; `chains` are these (reads from the device).

    Warns:
        UserWarning: the Hessian of the energy is exactly zero everywhere, as with ReLU: nothing bends the energy at the data.
    """
    caller = "score_matching"
    check_batch(x, "x", caller)
    if trace not in ("exact", "hutchinson"):
        raise ValueError(f"{caller}: trace must be 'exact' or 'hutchinson', got {trace!r}")
    linear = linearize(model, x, caller)
    divergence = linear.trace() if trace == "exact" else linear.quadratic_forms(Probes(x, num_probes, probe, key, caller)).mean(0)
    half_square = 0.5 * linear.field.reshape(len(x), -1).square().sum(1)
    return finite_mean(half_square - divergence if linear.is_energy else half_square + divergence, caller)
