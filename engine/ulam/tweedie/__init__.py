"""Tweedie's formula: what a denoiser, or the density of observations, tells of what they were before the noise.

Posterior means, covariances and cumulants under Gaussian noise, in exponential families, and of counts.
"""

from ..lazily import suggests
from .counts import robbins
from .cumulants import cumulant, third_cumulant
from .estimates import (
    Estimate,
    covariance,
    covariance_diagonal,
    covariance_product,
    covariance_trace,
    eigenpairs,
    mean,
)
from .exponential import natural

__all__ = [
    "Estimate",
    "covariance",
    "covariance_diagonal",
    "covariance_product",
    "covariance_trace",
    "cumulant",
    "eigenpairs",
    "mean",
    "natural",
    "robbins",
    "third_cumulant",
]

suggests(__name__)
