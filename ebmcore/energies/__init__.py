from ebmcore.energies.banana import Banana
from ebmcore.energies.composition import condition, mixture, negate, non_negative, product, temper
from ebmcore.energies.double_well import DoubleWell
from ebmcore.energies.funnel import Funnel
from ebmcore.energies.gaussian import Gaussian
from ebmcore.energies.gaussian_mixture import GaussianMixture
from ebmcore.energies.ising import Ising
from ebmcore.energies.lowering import LoweredEnergy, lower
from ebmcore.energies.networks import MLP, ConvNet
from ebmcore.energies.one_hot import OneHot
from ebmcore.energies.potts import Potts
from ebmcore.energies.rbm import BernoulliRBM, GaussianRBM
from ebmcore.energies.ring import Ring
from ebmcore.energies.rosenbrock import Rosenbrock

__all__ = [
    "MLP",
    "Banana",
    "BernoulliRBM",
    "ConvNet",
    "DoubleWell",
    "Funnel",
    "Gaussian",
    "GaussianMixture",
    "GaussianRBM",
    "Ising",
    "LoweredEnergy",
    "OneHot",
    "Potts",
    "Ring",
    "Rosenbrock",
    "condition",
    "lower",
    "mixture",
    "negate",
    "non_negative",
    "product",
    "temper",
]
