"""Gaussians and their mixtures: Gaussian noise leaves them what they are, so their ideal denoisers have a formula."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TypeAlias

import torch

import ulam_kernels.densities as kernels
from ulam_kernels.validation import real_numbers

from ..arguments import check_plain
from ..denoiser import Denoiser
from ..estimation.estimator import Sigma, noise_levels
from ..gradients import check_no_gradient
from ..programs.predictions import check_predicts
from ..samplers.mcmc.chain_state import Evaluated
from ..schedules import EDM, Schedule, check_schedule
from .densities import BuiltIn, Numbers, check_positive

Tensor: TypeAlias = torch.Tensor
Terms: TypeAlias = tuple[Tensor, Tensor, Tensor]


class NoisyLaw(BuiltIn):
    """A density of x_0 for which that of x_t = alpha x_0 + sigma eps has a formula, at every alpha and sigma."""

    def noised(self, sigma: Sigma) -> NoisyLaw | Noised:
        """The density of y = x + sigma z, z ~ N(0, I), of the same class.

        For levels ``[B]``, one a chain: the ``log_prob`` and ``score`` of y ``[B, d]``, each row at its own level.
        Raises TypeError or ValueError for a sigma that is not finite numbers above 0, RuntimeError for one that
        requires grad.
        """
        check_no_gradient("noised", sigma=sigma)
        given = real_numbers("sigma", sigma)
        if given.dim() > 1 or not given.numel():
            raise ValueError(f"sigma: got shape {list(given.shape)}, expected a number or [B], one a chain")
        levels = noise_levels(given.view(-1), given)
        return Noised(self, torch.tensor(levels)) if given.dim() else self._noised(float(levels[0]) ** 2)

    def denoiser(self, schedule: Schedule, predicts: str = "eps", *, time: str = "auto") -> Denoiser:
        """The denoiser that training on data of this law aims at: its network is the conditional expectation itself.

        net(x_t, t) is E[eps | x_t] for ``predicts="eps"``, E[x_0 | x_t] for "x0", and so on (see
        :func:`ulam.programs.predictions.x0_coefficients`), at any t of any schedule, between training steps too. It
        computes in float64, without cancellation at any level, and answers in the dtype of x_t ``[B, d]``. All that
        torch does with a network it does with this one: derivatives of any order in both modes, vmap, compile.

        schedule, predicts, time: see :class:`ulam.Denoiser`. Raises TypeError or ValueError for an invalid one; a call
        raises them for an x_t of another shape.
        """
        check_schedule(schedule)
        check_predicts(predicts, schedule)
        sigma_data = schedule.sigma_data if isinstance(schedule, EDM) else math.nan

        def net(x_t: Tensor, t: Tensor) -> Tensor:
            x = self._checked(x_t, "x_t").double()
            check_plain(t, "t")
            if t.shape not in ((), x.shape[:1]):
                raise ValueError(f"t: got shape {list(t.shape)}, expected [{len(x)}], one a chain of x_t")
            alpha, sigma = _columns(schedule, t, x)
            if predicts == "raw":  # the network is given c_in x_t
                x = x * (sigma**2 + sigma_data**2).sqrt()
            if predicts == "mean":
                terms = _terms_of_mean(schedule, t, alpha)
            else:
                terms = _terms(predicts, alpha, sigma, sigma_data)
            return self._expected(x, alpha, sigma, terms).to(x_t.dtype)

        return Denoiser(net, schedule, predicts, time)

    @abstractmethod
    def _noised(self, power: float) -> NoisyLaw:
        """The density with noise of this variance."""

    @abstractmethod
    def _log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log p(x_t = x) ``[B]``; alpha, sigma ``[B, 1]``."""

    @abstractmethod
    def _expected(self, x: Tensor, alpha: Tensor, sigma: Tensor, terms: Terms) -> Tensor:
        """The mean over the posterior of the component, N(mu, s^2 I), of a mu + (b s^2 + c) u; a, b, c are the terms.

        u = (x_t - alpha mu) / (alpha^2 s^2 + sigma^2).
        """


class Noised:
    """The densities of y_b = x + sigma_b z, one noise level a chain: what :meth:`NoisyLaw.noised` gives for ``[B]``."""

    def __init__(self, law: NoisyLaw, sigma: Tensor) -> None:
        self.law, self.sigma = law, sigma

    def __repr__(self) -> str:
        return f"Noised({self.law!r}, {len(self.sigma)} levels)"

    def log_prob(self, y: Tensor) -> Tensor:
        """log p(y_b) ``[B]`` of y ``[B, d]``. Raises TypeError or ValueError for another y."""
        alpha, sigma = self._levels(y)
        return self.law._log_density(y, alpha, sigma)

    def score(self, y: Tensor) -> Tensor:
        """grad log p(y_b), like y ``[B, d]``. Raises TypeError or ValueError for another y."""
        alpha, sigma = self._levels(y)
        return self.law._expected(y, alpha, sigma, _terms("score", alpha, sigma))

    def _levels(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.law._checked(y, "y")) != len(self.sigma):
            raise ValueError(f"y: got {len(y)} rows, expected {len(self.sigma)}, one for each noise level")
        sigma = self.sigma.to(y)[:, None]
        return torch.ones_like(sigma), sigma


def _terms(predicts: str, alpha: Tensor, sigma: Tensor, sigma_data: float = math.nan) -> Terms:
    """What is predicted as a mu + (b s^2 + c) u, see :meth:`NoisyLaw._expected`; a, b, c ``[B, 1]``.

    Given the component, E[x_0 | x_t] = mu + alpha s^2 u and E[eps | x_t] = sigma u; all predictions are linear in both.
    """
    one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
    if predicts == "raw":  # (x_0 - c_skip x_t) / c_out [Karras 2022, table 1]
        scale = sigma / (sigma_data * (sigma**2 + sigma_data**2).sqrt())
        return scale, scale, -scale * sigma_data**2
    return {
        "eps": (zero, zero, sigma),
        "x0": (one, alpha, zero),
        "v": (-sigma, -alpha * sigma, alpha * sigma),
        "flow": (-one, -alpha, sigma),
        "score": (zero, zero, -one),
    }[predicts]


def _terms_of_mean(schedule: Schedule, t: Tensor, alpha: Tensor) -> Terms:
    """As :func:`_terms`, of the mean one training step back: that of x_s = alpha_s x_0 + sigma_s eps, s = t - 1.

    E[x_s | x_t] given the component is alpha_s mu + (alpha alpha_s s^2 + sigma_s^2 alpha / alpha_s) u: a conditional
    Gaussian, Cov[x_s, x_t] = alpha alpha_s s^2 + (alpha / alpha_s) sigma_s^2.
    """
    before, noise = _columns(schedule, (t - 1).clamp(min=0), alpha)
    first = t.reshape(-1, 1) == 0  # whose step back leads to the data
    before, noise = torch.where(first, 1.0, before), torch.where(first, 0.0, noise)
    return before, alpha * before, noise**2 * alpha / before


def _columns(schedule: Schedule, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t ``[B]``, ``[B, 1]`` like another tensor."""
    alpha, sigma = schedule.levels(t)
    return alpha.to(like).reshape(-1, 1), sigma.to(like).reshape(-1, 1)


class Gaussian(NoisyLaw):
    """N(mean, covariance) in d dimensions.

    Args:
        mean: ``[d]``.
        covariance: ``[d, d]``, symmetric positive definite; ``[d]``, its diagonal; or a number, every variance.

    Raises:
        ValueError: shapes that do not match, or a matrix that is not a covariance.
    """

    def __init__(self, mean: Numbers, covariance: Numbers = 1.0) -> None:
        self.mean, given = _float64("mean", mean, 1), real_numbers("covariance", covariance)
        self.dimension = len(self.mean)
        d = self.dimension
        if given.dim() == 0:
            given = given.expand(d)
        if given.shape not in ((d,), (d, d)):
            raise ValueError(f"covariance: got shape {list(given.shape)}, expected [{d}], [{d}, {d}] or a number")
        self.covariance = given.diag() if given.dim() == 1 else given
        if not torch.allclose(self.covariance, self.covariance.T):
            raise ValueError("covariance: got a matrix that is not symmetric, expected a symmetric one")
        root, failed = torch.linalg.cholesky_ex(self.covariance)
        if failed or not bool(torch.isfinite(root).all()):
            raise ValueError("covariance: got one that is not positive definite, expected a positive definite one")
        self._root, self._diagonal = root, given.dim() == 1
        precision = torch.cholesky_inverse(root)
        self.precision = precision.diag() if self._diagonal else (precision + precision.T) / 2
        self._variances: Tensor
        self._axes: Tensor | None
        self._variances, self._axes = (given, None) if self._diagonal else torch.linalg.eigh(self.covariance)
        self._constant = float(root.diag().log().sum()) + d / 2 * math.log(2 * math.pi)

    def __repr__(self) -> str:
        return f"Gaussian(dimension={self.dimension})"

    def _score(self, x: Tensor) -> Tensor:
        return self._pulled(x - self.mean.to(x), -self.precision.to(x))

    def _log_prob(self, x: Tensor) -> Tensor:
        away = x - self.mean.to(x)
        energy = 0.5 * (away * self._pulled(away, self.precision.to(x))).sum(1)
        return -energy - self._constant

    def _pulled(self, away: Tensor, matrix: Tensor) -> Tensor:
        pulled: Tensor = away * matrix if self._diagonal else away @ matrix
        return pulled

    def _torch_formulas(self, at: Tensor, wanted: bool) -> Evaluated:
        away = at - self.mean.to(at) if bool(self.mean.any()) else at
        score = self._pulled(away, -self.precision.to(at))
        if not wanted:
            return None, score
        inner = torch.bmm(away[:, None], score[:, :, None])[:, 0, 0]  # without a tensor of products
        return inner.double().mul_(-0.5).add_(self._constant), score

    def _noised(self, power: float) -> Gaussian:
        noise = torch.full_like(self.mean, power)
        return Gaussian(self.mean, self._variances + noise if self._diagonal else self.covariance + noise.diag())

    def _off(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Terms:
        """x_t - alpha mean along the principal axes, and its variances, ``[B, d]``; those of x_0 ``[d]``."""
        power, off = self._variances.to(x), x - alpha * self.mean.to(x)
        return off if self._axes is None else off @ self._axes.to(x), alpha**2 * power + sigma**2, power

    def _log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        off, variance, _ = self._off(x, alpha, sigma)
        return -(off.square() / variance + (2 * math.pi * variance).log()).sum(1) / 2

    def _expected(self, x: Tensor, alpha: Tensor, sigma: Tensor, terms: Terms) -> Tensor:
        off, variance, power = self._off(x, alpha, sigma)
        a, b, c = terms
        pull: Tensor = (b * power + c) * off / variance
        return a * self.mean.to(x) + (pull if self._axes is None else pull @ self._axes.to(x).T)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        draws: Tensor = self.mean + self._normals(count, self.dimension, seed) @ self._root.T
        return draws

    def _kernel(self) -> kernels.Density:
        return kernels.gaussian(self.mean, self.precision)


class GaussianMixture(NoisyLaw):
    """sum_k w_k N(mean_k, std_k^2 I), at most 64 components.

    Args:
        means: ``[K, d]``.
        std: of the components, one number or ``[K]``.
        weights: ``[K]``, scaled to sum to 1; equal by default.

    Raises:
        ValueError: shapes that do not match, or weights or standard deviations that are not positive.
    """

    def __init__(self, means: Numbers, std: Numbers = 1.0, weights: Numbers | None = None) -> None:
        self.means = _float64("means", means, 2)
        count, self.dimension = self.means.shape
        widths = real_numbers("std", std)
        if widths.shape not in ((), (count,)):
            raise ValueError(f"std: got shape {list(widths.shape)}, expected a number or [{count}], one a component")
        self.std = check_positive("std", widths.expand(count))
        given = torch.ones(count) if weights is None else real_numbers("weights", weights)
        if given.shape != (count,):
            raise ValueError(f"weights: got shape {list(given.shape)}, expected [{count}], one a component")
        self.weights = check_positive("weights", given.double()) / given.double().sum()

    def __repr__(self) -> str:
        return f"GaussianMixture(components={len(self.means)}, dimension={self.dimension})"

    def _log_prob(self, x: Tensor) -> Tensor:
        return self._log_density(x, *self._clean(x))

    def _score(self, x: Tensor) -> Tensor:
        alpha, sigma = self._clean(x)
        return self._expected(x, alpha, sigma, _terms("score", alpha, sigma))

    def _clean(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of x_0 itself."""
        return x.new_ones(1, 1), x.new_zeros(1, 1)

    def _noised(self, power: float) -> GaussianMixture:
        return GaussianMixture(self.means, (self.std**2 + power).sqrt(), self.weights)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Terms:
        """log(w_k p_k(x_t)) and the variances ``[K, B]``, x_t - alpha mean_k ``[K, d, B]``: chains last, for speed."""
        means, std, weights = (values.to(x) for values in (self.means, self.std, self.weights))
        off = x.T.contiguous() - alpha.T * means[:, :, None]
        variance = (alpha.T * std[:, None]).square() + sigma.T**2
        scale = self.dimension / 2 * (2 * math.pi * variance).log()
        return weights.log()[:, None] - scale - off.square().sum(1) / (2 * variance), variance, off

    def _log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.logsumexp(self._components(x, alpha, sigma)[0], 0)

    def _expected(self, x: Tensor, alpha: Tensor, sigma: Tensor, terms: Terms) -> Tensor:
        logs, variance, off = self._components(x, alpha, sigma)
        share, (a, b, c) = torch.softmax(logs, 0), terms
        pull = share * (b.T * self.std.to(x)[:, None] ** 2 + c.T) / variance
        expected: Tensor = a * (share.T @ self.means.to(x)) + (pull[:, None] * off).sum(0).T
        return expected

    def sample(self, count: int, seed: int = 0) -> Tensor:
        z = self._normals(count, self.dimension + 1, seed)
        ends = self.weights.cumsum(0)[:-1].contiguous()
        component = torch.bucketize(torch.special.ndtr(z[:, -1].contiguous()), ends)
        return self.means[component] + self.std[component, None] * z[:, :-1]

    def _kernel(self) -> kernels.Density:
        return kernels.mixture(self.weights, self.means, self.std)


def _float64(name: str, values: Numbers, dimensions: int) -> Tensor:
    tensor = real_numbers(name, values)
    if tensor.dim() != dimensions or not tensor.numel():
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {dimensions} dimensions, not empty")
    if (wrong := ~torch.isfinite(tensor)).any():
        raise ValueError(f"{name}: got {tensor[wrong][0].item():g}, expected finite numbers")
    return tensor
