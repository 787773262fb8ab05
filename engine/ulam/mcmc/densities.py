"""Densities with a formula: log-density, score, exact draws. Whole chains of them run in one launch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

import ulam_kernels.densities as kernels
import ulam_kernels.mcmc as ops
from ulam_kernels.arguments import positive
from ulam_kernels.validation import MAX_ELEMENTS, real_numbers

from .. import noise
from ..arguments import whole_number
from ..samplers.mcmc.chain_state import Evaluate, Evaluated

Numbers: TypeAlias = "torch.Tensor | Sequence[float] | Sequence[Sequence[float]] | npt.NDArray[np.float64] | float"
QUADRATURE = 40_001  # points of a one-dimensional law's table


class BuiltIn(ABC):
    """What the built-in densities share; x is ``[B, d]`` everywhere, and densities are normalised.

    ``log_prob`` and ``score`` are torch formulas in the dtype of x (``log_prob`` differentiable); a run uses the
    kernels' formulas in their place, up to d = 128.
    """

    has_energy: ClassVar[bool] = True
    dimension: int

    @abstractmethod
    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) ``[B]``."""

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """grad log p(x) ``[B, d]``."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(leaf).sum(), leaf)
        return gradient

    @abstractmethod
    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        """``count`` independent draws from p, ``[count, d]`` float64, made of noise-v1: the same for the same seed."""

    @abstractmethod
    def _kernel(self) -> kernels.Density:
        """The density in the form that the kernels take."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one state, (d,)."""
        return (self.dimension,)

    @cached_property
    def kernel(self) -> kernels.Density | None:
        """The density in the form that the kernels take; None above 128 dimensions."""
        return self._kernel() if self.dimension <= kernels.MAX_DIMENSION else None

    def bind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> Evaluate:
        """As :meth:`ulam.mcmc.targets.Target.bind`: the kernels' formulas, torch's above 128 dimensions."""
        kernel = self.kernel
        if kernel is None:
            return self._torch_formulas

        def evaluate(at: torch.Tensor, wanted: bool) -> Evaluated:
            return ops.evaluate(kernel, at, energy=wanted, backend=backend)

        return evaluate

    def _torch_formulas(self, at: torch.Tensor, wanted: bool) -> Evaluated:
        return -self.log_prob(at).double() if wanted else None, self.score(at).contiguous()

    def _normals(self, count: int, width: int, seed: int) -> torch.Tensor:
        return noise.normal_for(noise.EXACT_DRAWS, (width,), seed=seed, chains=count).double()


class Gaussian(BuiltIn):
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
        self._constant = float(root.diag().log().sum()) + d / 2 * math.log(2 * math.pi)

    def __repr__(self) -> str:
        return f"Gaussian(dimension={self.dimension})"

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return self._pulled(x - self.mean.to(x), -self.precision.to(x))

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        away = x - self.mean.to(x)
        energy = 0.5 * (away * self._pulled(away, self.precision.to(x))).sum(1)
        return -energy - self._constant

    def _pulled(self, away: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        pulled: torch.Tensor = away * matrix if self._diagonal else away @ matrix
        return pulled

    def _torch_formulas(self, at: torch.Tensor, wanted: bool) -> Evaluated:
        away = at - self.mean.to(at) if bool(self.mean.any()) else at
        score = self._pulled(away, -self.precision.to(at))
        if not wanted:
            return None, score
        inner = torch.bmm(away[:, None], score[:, :, None])[:, 0, 0]  # without a tensor of products
        return inner.double().mul_(-0.5).add_(self._constant), score

    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        draws: torch.Tensor = self.mean + self._normals(count, self.dimension, seed) @ self._root.T
        return draws

    def _kernel(self) -> kernels.Density:
        return kernels.gaussian(self.mean, self.precision)


class GaussianMixture(BuiltIn):
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
        self.std = _positive("std", widths.expand(count))
        given = torch.ones(count) if weights is None else real_numbers("weights", weights)
        if given.shape != (count,):
            raise ValueError(f"weights: got shape {list(given.shape)}, expected [{count}], one a component")
        self.weights = _positive("weights", given.double()) / given.double().sum()

    def __repr__(self) -> str:
        return f"GaussianMixture(components={len(self.means)}, dimension={self.dimension})"

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        means, std, weights = (values.to(x) for values in (self.means, self.std, self.weights))
        squared = (x[:, None] - means).square().sum(2)
        scale = self.dimension * (std.log() + 0.5 * math.log(2 * math.pi))
        return torch.logsumexp(weights.log() - scale - squared / (2 * std**2), 1)

    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        z = self._normals(count, self.dimension + 1, seed)
        ends = self.weights.cumsum(0)[:-1].contiguous()
        component = torch.bucketize(torch.special.ndtr(z[:, -1].contiguous()), ends)
        return self.means[component] + self.std[component, None] * z[:, :-1]

    def _kernel(self) -> kernels.Density:
        return kernels.mixture(self.weights, self.means, self.std)


class DoubleWell(BuiltIn):
    """E = sum_i height (x_i^2 - separation)^2: d independent coordinates, each with wells at +-sqrt(separation)."""

    def __init__(self, dimension: int = 1, height: float = 1.0, separation: float = 1.0) -> None:
        self.dimension = _dimension(dimension, 1)
        self.height, self.separation = _number("height", height), _number("separation", separation)

    def __repr__(self) -> str:
        return f"DoubleWell(dimension={self.dimension}, height={self.height}, separation={self.separation})"

    @cached_property
    def _law(self) -> _Table:
        # The energy is 745 (the density 0 in float64) at the ends.
        end = math.sqrt(self.separation + math.sqrt(745 / self.height))
        return _Table(lambda x: -self.height * (x * x - self.separation) ** 2, -end, end)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        energy = self.height * (x * x - self.separation).square()
        return -energy.sum(1) - self.dimension * self._law.log_normaliser

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return -4 * self.height * x * (x * x - self.separation)

    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        """By the quantile function of one coordinate, tabulated to about 1e-6."""
        return self._law.quantile(torch.special.ndtr(self._normals(count, self.dimension, seed)))

    def _kernel(self) -> kernels.Density:
        return kernels.double_well(self.dimension, self.height, self.separation)


class Rosenbrock(BuiltIn):
    """E = sum over pairs (x, y) of a (y - x^2)^2 + b (1 - x)^2: x ~ N(1, 1 / (2 b)), y | x ~ N(x^2, 1 / (2 a)).

    Pairs are (x_0, x_1), (x_2, x_3), ... [Goodman & Weare 2010, section 3; Pagani 2022, section 2].
    """

    def __init__(self, dimension: int = 2, a: float = 5.0, b: float = 0.05) -> None:
        self.dimension = _dimension(dimension, 2)
        if dimension % 2:
            raise ValueError(f"dimension: got {dimension}, expected an even number: coordinates come in pairs")
        self.a, self.b = _number("a", a), _number("b", b)

    def __repr__(self) -> str:
        return f"Rosenbrock(dimension={self.dimension}, a={self.a}, b={self.b})"

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x[:, 0::2], x[:, 1::2]
        energy = self.a * (second - first.square()).square() + self.b * (1 - first).square()
        return -energy.sum(1) - self.dimension / 2 * math.log(math.pi / math.sqrt(self.a * self.b))

    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        z = self._normals(count, self.dimension, seed)
        first = 1 + z[:, 0::2] / math.sqrt(2 * self.b)
        return torch.stack([first, first.square() + z[:, 1::2] / math.sqrt(2 * self.a)], 2).flatten(1)

    def _kernel(self) -> kernels.Density:
        return kernels.rosenbrock(self.dimension, self.a, self.b)


class Funnel(BuiltIn):
    """x_0 ~ N(0, std^2), x_i | x_0 ~ N(0, exp(x_0)) for i >= 1 [Neal 2003, section 8]."""

    def __init__(self, dimension: int = 10, std: float = 3.0) -> None:
        self.dimension, self.std = _dimension(dimension, 2), _number("std", std)

    def __repr__(self) -> str:
        return f"Funnel(dimension={self.dimension}, std={self.std})"

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        first, rest = x[:, 0], x[:, 1:]
        energy = 0.5 * (first / self.std).square() + (self.dimension - 1) / 2 * first
        energy = energy + 0.5 * (-first).exp() * rest.square().sum(1)
        return -energy - math.log(self.std) - self.dimension / 2 * math.log(2 * math.pi)

    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        z = self._normals(count, self.dimension, seed)
        z[:, 0] *= self.std
        z[:, 1:] *= (z[:, :1] / 2).exp()
        return z

    def _kernel(self) -> kernels.Density:
        return kernels.funnel(self.dimension, self.std)


class Ring(BuiltIn):
    """E = (|x| - radius)^2 / (2 std^2): a shell around the origin."""

    def __init__(self, dimension: int = 2, radius: float = 3.0, std: float = 0.3) -> None:
        self.dimension = _dimension(dimension, 2)
        self.radius, self.std = _number("radius", radius), _number("std", std)

    def __repr__(self) -> str:
        return f"Ring(dimension={self.dimension}, radius={self.radius}, std={self.std})"

    @cached_property
    def _law(self) -> _Table:
        """The law of the distance r from the origin: r^(d - 1) exp(-(r - radius)^2 / (2 std^2))."""
        d, reach = self.dimension, (12 + math.sqrt(self.dimension)) * self.std

        def log_density(r: torch.Tensor) -> torch.Tensor:
            return (d - 1) * r.log() - (r - self.radius) ** 2 / (2 * self.std**2)

        mode = (self.radius + math.sqrt(self.radius**2 + 4 * (d - 1) * self.std**2)) / 2
        return _Table(log_density, max(0.0, mode - reach), mode + reach)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        energy = 0.5 * ((x.norm(dim=1) - self.radius) / self.std).square()
        sphere = math.log(2) + self.dimension / 2 * math.log(math.pi) - math.lgamma(self.dimension / 2)
        log_p: torch.Tensor = -energy - self._law.log_normaliser - sphere
        return log_p

    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        """A uniform direction, and the distance by its quantile function, tabulated to about 1e-6."""
        z = self._normals(count, self.dimension + 1, seed)
        r = self._law.quantile(torch.special.ndtr(z[:, -1:]))
        draws: torch.Tensor = r * z[:, :-1] / z[:, :-1].norm(dim=1, keepdim=True)
        return draws

    def _kernel(self) -> kernels.Density:
        return kernels.ring(self.dimension, self.radius, self.std)


class _Table:
    """A one-dimensional law on [lo, hi] by the trapezoidal rule, which converges fast where the ends carry no mass."""

    def __init__(self, log_density: Callable[[torch.Tensor], torch.Tensor], lo: float, hi: float) -> None:
        self.x = torch.linspace(lo, hi, QUADRATURE, dtype=torch.float64)
        logs = log_density(self.x)
        top = logs[torch.isfinite(logs)].max()
        values = (logs - top).exp()
        self.cumulative = torch.cat([values.new_zeros(1), torch.cumulative_trapezoid(values, self.x)])
        self.log_normaliser = float(top + self.cumulative[-1].log())

    def quantile(self, share: torch.Tensor) -> torch.Tensor:
        """The x below which this share of the law lies, linear between the points of the table."""
        at = (share * self.cumulative[-1]).contiguous()
        right = torch.searchsorted(self.cumulative, at).clamp(1, QUADRATURE - 1)
        below, above = self.cumulative[right - 1], self.cumulative[right]
        part = ((at - below) / (above - below)).nan_to_num(0.5).clamp(0, 1)
        return self.x[right - 1] + part * (self.x[right] - self.x[right - 1])


def _float64(name: str, values: Numbers, dimensions: int) -> torch.Tensor:
    tensor = real_numbers(name, values)
    if tensor.dim() != dimensions or not tensor.numel():
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {dimensions} dimensions, not empty")
    if (wrong := ~torch.isfinite(tensor)).any():
        raise ValueError(f"{name}: got {tensor[wrong][0].item():g}, expected finite numbers")
    return tensor


def _positive(name: str, values: torch.Tensor) -> torch.Tensor:
    if not bool((values > 0).all() & torch.isfinite(values).all()):
        raise ValueError(f"{name}: got {values.tolist()}, expected finite numbers above 0")
    return values


def _number(name: str, value: float) -> float:
    number = real_numbers(name, value)
    if number.numel() != 1:
        raise ValueError(f"{name}: got shape {list(number.shape)}, expected a number")
    return positive(float(_positive(name, number)), name)


def _dimension(dimension: int, least: int) -> int:
    whole = whole_number("dimension", dimension)
    if not least <= whole <= MAX_ELEMENTS:
        rule = f"at least {least}" if whole < least else "at most 2^30"
        raise ValueError(f"dimension: got {whole}, expected {rule}")
    return whole
