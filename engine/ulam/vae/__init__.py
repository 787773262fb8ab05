"""VAEs and hierarchical VAEs over user networks: ancestral sampling, the bound latent by latent, posterior collapse.

log p(x) >= E_q[log p(x | z_1)] - KL(q(z_L .. z_1 | x) || p(z_L .. z_1)), z_L at the top; all Gaussians are diagonal."""

from ..lazily import suggests
from .bound import Elbo, ImportanceWeighted
from .gaussians import MOMENTS, gaussian_kl, gaussian_log_density
from .levels import INFERENCES, Level, Network
from .model import ChainIds, GaussianVAE, HierarchicalVAE

__all__ = [
    "INFERENCES",
    "MOMENTS",
    "ChainIds",
    "Elbo",
    "GaussianVAE",
    "HierarchicalVAE",
    "ImportanceWeighted",
    "Level",
    "Network",
    "gaussian_kl",
    "gaussian_log_density",
]

suggests(__name__)
