from ebmcore.losses.contrastive_divergence import contrastive_divergence
from ebmcore.losses.pseudo_likelihood import pseudo_likelihood

__all__ = ["contrastive_divergence", "pseudo_likelihood"]
