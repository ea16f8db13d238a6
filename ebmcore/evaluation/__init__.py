"""How good a model, and a sampler, is."""

from ebmcore.evaluation.exact import exact_distribution, exact_log_z, exact_marginals

__all__ = ["exact_distribution", "exact_log_z", "exact_marginals"]
