"""How good a model, and a sampler, is."""

from ebmcore.evaluation.ais import ais, reverse_ais
from ebmcore.evaluation.annealing import AISState, AnnealedImportanceSampling
from ebmcore.evaluation.diagnostics import ess, mcse, rhat
from ebmcore.evaluation.discrepancy import ksd, mmd
from ebmcore.evaluation.errors import rmse
from ebmcore.evaluation.exact import exact_distribution, exact_log_z, exact_marginals
from ebmcore.evaluation.geometric_path import GeometricPath
from ebmcore.evaluation.log_ratio import log_ratio
from ebmcore.evaluation.streaming import StreamingDiagnostics
from ebmcore.evaluation.weights import AISResult

__all__ = [
    "AISResult",
    "AISState",
    "AnnealedImportanceSampling",
    "GeometricPath",
    "StreamingDiagnostics",
    "ais",
    "ess",
    "exact_distribution",
    "exact_log_z",
    "exact_marginals",
    "ksd",
    "log_ratio",
    "mcse",
    "mmd",
    "reverse_ais",
    "rhat",
    "rmse",
]
