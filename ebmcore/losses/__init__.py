from ebmcore.losses.contrastive_divergence import contrastive_divergence
from ebmcore.losses.denoising_score_matching import denoising_score_matching
from ebmcore.losses.noise_contrastive import noise_contrastive
from ebmcore.losses.pseudo_likelihood import pseudo_likelihood
from ebmcore.losses.score_matching import score_matching
from ebmcore.losses.sliced_score_matching import finite_difference_score_matching, sliced_score_matching

__all__ = [
    "contrastive_divergence",
    "denoising_score_matching",
    "finite_difference_score_matching",
    "noise_contrastive",
    "pseudo_likelihood",
    "score_matching",
    "sliced_score_matching",
]
