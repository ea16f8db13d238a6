"""How good a model, and a sampler, is."""

from ebmcore.evaluation.ais import AISResult, ais
from ebmcore.evaluation.errors import rmse
from ebmcore.evaluation.exact import exact_distribution, exact_log_z, exact_marginals
from ebmcore.evaluation.log_ratio import log_ratio

__all__ = ["AISResult", "ais", "exact_distribution", "exact_log_z", "exact_marginals", "log_ratio", "rmse"]
