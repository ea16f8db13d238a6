from ebmcore.energies.ising import Ising
from ebmcore.energies.networks import MLP, ConvNet
from ebmcore.energies.one_hot import OneHot
from ebmcore.energies.potts import Potts

__all__ = ["MLP", "ConvNet", "Ising", "OneHot", "Potts"]
