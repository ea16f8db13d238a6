"""ebmcore: native-accelerated sampling for energy-based models in PyTorch."""

from ebmcore import energies, evaluation, losses, networks, ops, testing, trace, training
from ebmcore.ops import get_num_threads, info, set_num_threads
from ebmcore.ops import version as __version__
from ebmcore.samplers import (
    AnnealedLangevin,
    BlockGibbs,
    DiscreteLangevin,
    Gibbs,
    GibbsWithGradients,
    Langevin,
    ParallelTempering,
    PathAuxiliary,
    RandomFlipMetropolis,
    SwendsenWang,
)
from ebmcore.sampling import Trace, sample
from ebmcore.training import ReplayBuffer
from ebmcore.types import DivergenceError, Key
from ebmcore.warm_up import warm_up

__all__ = [
    "AnnealedLangevin",
    "BlockGibbs",
    "DiscreteLangevin",
    "DivergenceError",
    "Gibbs",
    "GibbsWithGradients",
    "Key",
    "Langevin",
    "ParallelTempering",
    "PathAuxiliary",
    "RandomFlipMetropolis",
    "ReplayBuffer",
    "SwendsenWang",
    "Trace",
    "__version__",
    "energies",
    "evaluation",
    "get_num_threads",
    "info",
    "losses",
    "networks",
    "ops",
    "sample",
    "set_num_threads",
    "testing",
    "trace",
    "training",
    "warm_up",
]
