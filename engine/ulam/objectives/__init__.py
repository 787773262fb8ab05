"""Training objectives, one number an example: denoising losses, score matching, contrastive divergence, the ELBO.

Losses of denoisers are means over elements, the others sums over dimensions; noise and directions are noise-v1.
"""

from ..estimation.forward import Noised, add_noise
from ..lazily import suggests
from . import timesteps, weightings
from .denoising import denoising, edm
from .elbo import elbo
from .energies import contrastive_divergence
from .higher_order import second_order_score_matching
from .score_matching import denoising_score_matching, implicit_score_matching, sliced_score_matching
from .sure import poisson_sure, projected_sure, sure
from .variational import continuous_bound, hybrid, vlb_term

__all__ = [
    "Noised",
    "add_noise",
    "continuous_bound",
    "contrastive_divergence",
    "denoising",
    "denoising_score_matching",
    "edm",
    "elbo",
    "hybrid",
    "implicit_score_matching",
    "poisson_sure",
    "projected_sure",
    "second_order_score_matching",
    "sliced_score_matching",
    "sure",
    "timesteps",
    "vlb_term",
    "weightings",
]

suggests(__name__)
