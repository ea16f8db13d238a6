from ebmcore.energies.ising import Ising
from ebmcore.energies.networks import MLP, ConvNet
from ebmcore.energies.one_hot import OneHot

__all__ = ["MLP", "ConvNet", "Ising", "OneHot"]
