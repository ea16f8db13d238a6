"""ebmcore: native-accelerated sampling for energy-based models in PyTorch."""

from ebmcore import energies, losses, ops, training
from ebmcore.ops import get_num_threads, info, set_num_threads
from ebmcore.samplers import Langevin
from ebmcore.sampling import Trace, sample
from ebmcore.training import ReplayBuffer
from ebmcore.types import DivergenceError, Key

__version__: str = info()["version"]

__all__ = [
    "DivergenceError",
    "Key",
    "Langevin",
    "ReplayBuffer",
    "Trace",
    "energies",
    "get_num_threads",
    "info",
    "losses",
    "ops",
    "sample",
    "set_num_threads",
    "training",
]
