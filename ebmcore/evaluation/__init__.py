"""How good a model, and a sampler, is."""

from ebmcore.evaluation.ais import AISResult, ais
from ebmcore.evaluation.errors import rmse
from ebmcore.evaluation.exact import exact_distribution, exact_log_z, exact_marginals

__all__ = ["AISResult", "ais", "exact_distribution", "exact_log_z", "exact_marginals", "rmse"]
