from ebmcore.energies.networks import MLP, ConvNet

__all__ = ["MLP", "ConvNet"]
