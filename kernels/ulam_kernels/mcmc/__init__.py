"""Langevin and Metropolis operations on a batch of independent chains: single steps, and whole chains in one launch.

What all of them keep to, arithmetic, noise and sums, is said in :mod:`ulam_kernels.mcmc.checks`.
"""

from ulam_kernels.mcmc.chains import DIVERGED as DIVERGED
from ulam_kernels.mcmc.chains import EVERYWHERE as EVERYWHERE
from ulam_kernels.mcmc.chains import PATH_STAGE as PATH_STAGE
from ulam_kernels.mcmc.chains import SAMPLERS as SAMPLERS
from ulam_kernels.mcmc.chains import WITH_TEST as WITH_TEST
from ulam_kernels.mcmc.chains import WITH_VELOCITIES as WITH_VELOCITIES
from ulam_kernels.mcmc.chains import evaluate, run
from ulam_kernels.mcmc.chains import launches as launches
from ulam_kernels.mcmc.metropolis import accept, mala_accept, squared_norm
from ulam_kernels.mcmc.steps import kick_drift, langevin

__all__ = ["accept", "evaluate", "kick_drift", "langevin", "mala_accept", "run", "squared_norm"]
