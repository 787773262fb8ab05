"""Exact oracles for Gaussian-mixture data in one dimension, in float64, on any Gaussian path.

x_t = alpha x_0 + sigma eps with x_0 ~ sum_k w_k N(mu_k, s_k^2) and eps ~ N(0, 1) is again a mixture,

    x_t ~ sum_k w_k N(alpha mu_k, v_k),  v_k = alpha^2 s_k^2 + sigma^2,

so the ideal network is known in closed form whatever it predicts. The probability-flow ODE is a monotone map of the
line that carries p_t to p_s, so it carries quantiles to quantiles: F_s(x_s) = F_t(x_t) [Song 2021b, sec. 4.3]. All
functions act element by element; alpha and sigma broadcast against x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, logsumexp, ndtri_exp, softmax

Array = npt.NDArray[np.float64]
Level = Array | float


@dataclass(frozen=True)
class Mixture:
    """weights, means and standard deviations of the components, each [K]."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    def output(self, predicts: str, x: Array, alpha: Level, sigma: Level, sigma_data: float = 0.5) -> Array:
        """What the ideal network returns for the state x, shaped like x; for "raw" too x is the state, not c_in x."""
        D, score = self.x0(x, alpha, sigma), self.score(x, alpha, sigma)
        eps = -sigma * score
        if predicts == "raw":  # D = c_skip x + c_out m [Karras 2022, table 1]
            power = np.asarray(sigma) ** 2 + sigma_data**2
            return (D - sigma_data**2 / power * x) * np.sqrt(power) / (sigma * sigma_data)
        return {"eps": eps, "x0": D, "v": alpha * eps - sigma * D, "score": score, "flow": eps - D}[predicts]

    def x0(self, x: Array, alpha: Level, sigma: Level) -> Array:
        """E[x_0 | x_t = x]."""
        resp, centred, variance = self._components(x, alpha, sigma)
        shrink = _last(alpha) * np.square(self.stds) / variance
        return (resp * (self.means + shrink * centred)).sum(-1)

    def score(self, x: Array, alpha: Level, sigma: Level) -> Array:
        """d/dx log p_t(x)."""
        resp, centred, variance = self._components(x, alpha, sigma)
        return -(resp * centred / variance).sum(-1)

    def log_density(self, x: Array, alpha: Level, sigma: Level) -> Array:
        """log p_t(x)."""
        centred, variance = self._centred(x, alpha, sigma)
        return logsumexp(self._log_terms(centred, variance), axis=-1)

    def log_cdf(self, x: Array, alpha: Level, sigma: Level, upper: bool = False) -> Array:
        """log P(x_t < x), or log P(x_t > x) for `upper`."""
        centred, variance = self._centred(x, alpha, sigma)
        standard = centred / np.sqrt(variance)
        return logsumexp(log_ndtr(-standard if upper else standard), b=self.weights, axis=-1)

    def transport(self, x: Array, level_t: tuple[Level, Level], level_s: tuple[Level, Level]) -> Array:
        """x_s on the probability-flow trajectory through x_t = x; levels are (alpha, sigma), sigma_s may be 0.

        The smaller of the two tails is matched, in logarithms, by Newton's method inside a bisection: the mixture's
        quantile lies between its components'. Raises ArithmeticError where it does not converge.
        """
        below = self.log_cdf(x, *level_t) < np.log(0.5)
        target = np.where(below, self.log_cdf(x, *level_t), self.log_cdf(x, *level_t, upper=True))
        sign = np.where(below, 1.0, -1.0)
        alpha, sigma = level_s
        stds = np.sqrt(np.square(_last(alpha) * np.asarray(self.stds)) + np.square(_last(sigma)))
        ends = _last(alpha) * self.means + stds * (sign * ndtri_exp(target))[..., None]
        low, high = ends.min(-1), ends.max(-1)
        y = (low + high) / 2
        for _ in range(200):
            log_tail = np.where(below, self.log_cdf(y, *level_s), self.log_cdf(y, *level_s, upper=True))
            excess = log_tail - target
            too_high = sign * excess > 0
            low, high = np.where(too_high, low, y), np.where(too_high, y, high)
            newton = y - sign * excess * np.exp(log_tail - self.log_density(y, *level_s))
            new = np.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
            if (abs(new - y) <= 4e-16 * np.maximum(1.0, abs(y))).all():
                return new
            y = new
        if (abs(excess) > 1e-13).any():
            raise ArithmeticError(f"no quantile found, log tails off by {abs(excess).max():g}")
        return y

    def _components(self, x: Array, alpha: Level, sigma: Level) -> tuple[Array, Array, Array]:
        """(P(component | x), x - alpha mu_k, v_k), the components last."""
        centred, variance = self._centred(x, alpha, sigma)
        return softmax(self._log_terms(centred, variance), axis=-1), centred, variance

    def _centred(self, x: Array, alpha: Level, sigma: Level) -> tuple[Array, Array]:
        centred = _last(x) - _last(alpha) * self.means
        variance = np.square(_last(alpha) * np.asarray(self.stds)) + np.square(_last(sigma))
        return centred, np.broadcast_to(variance, centred.shape)

    def _log_terms(self, centred: Array, variance: Array) -> Array:
        return np.log(self.weights) - (centred**2 / variance + np.log(2 * np.pi * variance)) / 2


def _last(value: Level) -> Array:
    """With a last axis for the components."""
    return np.asarray(value, dtype=np.float64)[..., None]
