"""Samplers: frozen dataclasses of hyperparameters with init, step, advance and a call."""

from ebmcore.samplers.langevin import Langevin, LangevinInfo, LangevinState

__all__ = ["Langevin", "LangevinInfo", "LangevinState"]
