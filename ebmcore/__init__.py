"""ebmcore: native-accelerated sampling for energy-based models in PyTorch."""

from ebmcore import energies, evaluation, losses, networks, ops, testing, trace, training
from ebmcore.energies import lower
from ebmcore.ops import get_num_threads, info, set_num_threads
from ebmcore.ops import version as __version__
from ebmcore.samplers import (
    HMC,
    MALA,
    AnnealedLangevin,
    BlockGibbs,
    DiscreteLangevin,
    Gibbs,
    GibbsWithGradients,
    KineticLangevin,
    Langevin,
    ParallelTempering,
    PathAuxiliary,
    RandomFlipMetropolis,
    RandomWalkMetropolis,
    SwendsenWang,
)
from ebmcore.sampling import Trace, sample
from ebmcore.training import ReplayBuffer
from ebmcore.types import DivergenceError, Key
from ebmcore.warm_up import warm_up

__all__ = [
    "HMC",
    "MALA",
    "AnnealedLangevin",
    "BlockGibbs",
    "DiscreteLangevin",
    "DivergenceError",
    "Gibbs",
    "GibbsWithGradients",
    "Key",
    "KineticLangevin",
    "Langevin",
    "ParallelTempering",
    "PathAuxiliary",
    "RandomFlipMetropolis",
    "RandomWalkMetropolis",
    "ReplayBuffer",
    "SwendsenWang",
    "Trace",
    "__version__",
    "energies",
    "evaluation",
    "get_num_threads",
    "info",
    "losses",
    "lower",
    "networks",
    "ops",
    "sample",
    "set_num_threads",
    "testing",
    "trace",
    "training",
    "warm_up",
]
