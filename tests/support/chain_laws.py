"""Oracles of the Markov chain tests: a Gaussian, and what separates an estimate from an exact law."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ulam import mcmc

Array = npt.NDArray[np.float64]

COVARIANCE = np.array([[1.0, 0.6], [0.6, 2.0]])
MEAN = np.array([0.5, -1.0])


def gaussian() -> mcmc.Gaussian:
    """N(MEAN, COVARIANCE)."""
    return mcmc.Gaussian(torch.tensor(MEAN), torch.tensor(COVARIANCE))


def rowwise(target: Any) -> mcmc.Energy:
    """The same density as an energy that autograd differentiates."""
    return mcmc.Energy(lambda x: -target.log_prob(x))


def check_law(x: torch.Tensor, mean: Array, covariance: Array, errors: float = 4.0) -> None:
    """Assert that mean and covariance of the rows x [n, d], draws of a Gaussian, lie within 4 standard errors."""
    rows = x.double().numpy()
    count = len(rows)
    assert np.abs((rows.mean(0) - mean) / np.sqrt(np.diag(covariance) / count)).max() < errors
    assert np.abs((np.cov(rows.T) - covariance) / covariance_error(covariance, count)).max() < errors


def covariance_error(covariance: Array, count: int) -> Array:
    """The standard errors of the entries of an empirical covariance of ``count`` Gaussian draws."""
    diagonal = np.diag(covariance)
    return np.asarray(np.sqrt((np.outer(diagonal, diagonal) + covariance**2) / count))


def within(values: torch.Tensor | Array, expected: float, errors: float = 4.0) -> bool:
    """Whether the mean of independent values is within 4 of its standard errors of what is expected."""
    values = np.asarray(values, dtype=np.float64)
    return bool(abs(values.mean() - expected) < errors * values.std() / np.sqrt(len(values)))
