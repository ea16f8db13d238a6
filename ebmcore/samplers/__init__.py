"""Samplers: frozen dataclasses of hyperparameters with init, step, advance and a call."""

from ebmcore.samplers.annealed_langevin import AnnealedLangevin, AnnealedLangevinInfo, AnnealedLangevinState
from ebmcore.samplers.block_gibbs import BlockGibbs
from ebmcore.samplers.discrete_langevin import DiscreteLangevin
from ebmcore.samplers.gibbs import Gibbs
from ebmcore.samplers.gibbs_with_gradients import GibbsWithGradients
from ebmcore.samplers.hmc import HMC
from ebmcore.samplers.kinetic_langevin import KineticLangevin, KineticLangevinInfo, KineticLangevinState
from ebmcore.samplers.langevin import Langevin, LangevinInfo, LangevinState
from ebmcore.samplers.mala import MALA
from ebmcore.samplers.parallel_tempering import ParallelTempering, ParallelTemperingInfo, ParallelTemperingState
from ebmcore.samplers.path_auxiliary import PathAuxiliary
from ebmcore.samplers.random_flip_metropolis import RandomFlipMetropolis
from ebmcore.samplers.random_walk_metropolis import RandomWalkMetropolis
from ebmcore.samplers.swendsen_wang import SwendsenWang

__all__ = [
    "HMC",
    "MALA",
    "AnnealedLangevin",
    "AnnealedLangevinInfo",
    "AnnealedLangevinState",
    "BlockGibbs",
    "DiscreteLangevin",
    "Gibbs",
    "GibbsWithGradients",
    "KineticLangevin",
    "KineticLangevinInfo",
    "KineticLangevinState",
    "Langevin",
    "LangevinInfo",
    "LangevinState",
    "ParallelTempering",
    "ParallelTemperingInfo",
    "ParallelTemperingState",
    "PathAuxiliary",
    "RandomFlipMetropolis",
    "RandomWalkMetropolis",
    "SwendsenWang",
]
