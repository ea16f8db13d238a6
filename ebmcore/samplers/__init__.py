"""Samplers: frozen dataclasses of hyperparameters with init, step, advance and a call."""

from ebmcore.samplers.block_gibbs import BlockGibbs
from ebmcore.samplers.langevin import Langevin, LangevinInfo, LangevinState

__all__ = ["BlockGibbs", "Langevin", "LangevinInfo", "LangevinState"]
