from ebmcore.energies.composition import condition, mixture, negate, non_negative, product, temper
from ebmcore.energies.ising import Ising
from ebmcore.energies.networks import MLP, ConvNet
from ebmcore.energies.one_hot import OneHot
from ebmcore.energies.potts import Potts
from ebmcore.energies.rbm import BernoulliRBM, GaussianRBM

__all__ = [
    "MLP",
    "BernoulliRBM",
    "ConvNet",
    "GaussianRBM",
    "Ising",
    "OneHot",
    "Potts",
    "condition",
    "mixture",
    "negate",
    "non_negative",
    "product",
    "temper",
]
