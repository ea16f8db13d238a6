from ebmcore.losses.contrastive_divergence import contrastive_divergence

__all__ = ["contrastive_divergence"]
