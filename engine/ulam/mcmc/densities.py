"""Densities with a formula: log-density, score, exact draws. Whole chains of them run in one launch.

The Gaussian ones, whose noised densities have a formula too, are in `gaussians.py`.
"""

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
from ..arguments import check_states, whole_number
from ..samplers.mcmc.chain_state import Evaluate, Evaluated

Numbers: TypeAlias = "torch.Tensor | Sequence[float] | Sequence[Sequence[float]] | npt.NDArray[np.float64] | float"
QUADRATURE = 40_001  # points of a one-dimensional law's table


class BuiltIn(ABC):
    """What the built-in densities share; x is ``[B, d]`` everywhere, and densities are normalised.

    ``log_prob`` and ``score`` are torch formulas in the dtype of x, differentiable any number of times; a run uses the
    kernels' formulas in their place, up to d = 128.
    """

    has_energy: ClassVar[bool] = True
    dimension: int

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) ``[B]`` of x ``[B, d]``. Raises TypeError or ValueError for another x."""
        return self._log_prob(self._checked(x))

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """grad log p(x), like x ``[B, d]``. Raises TypeError or ValueError for another x."""
        return self._score(self._checked(x))

    @abstractmethod
    def _log_prob(self, x: torch.Tensor) -> torch.Tensor: ...

    def _score(self, x: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda at: self._log_prob(at).sum())(x)  # type: ignore[no-any-return]

    def _checked(self, x: torch.Tensor, name: str = "x") -> torch.Tensor:
        if check_states(x, name).dim() > 2 or x.shape[1] != self.dimension:
            raise ValueError(
                f"{name}: got shape {list(x.shape)}, expected [B, {self.dimension}], the states of {self!r}"
            )
        return x

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
        return -self._log_prob(at).double() if wanted else None, self._score(at).contiguous()

    def _normals(self, count: int, width: int, seed: int) -> torch.Tensor:
        return noise.normal_for(noise.EXACT_DRAWS, (width,), seed=seed, chains=count).double()


class DoubleWell(BuiltIn):
    """E = sum_i height (x_i^2 - separation)^2: d independent coordinates, each with wells at +-sqrt(separation).

    Raises TypeError, ValueError unless dimension is a whole number from 1 on and the others are numbers above 0.
    """

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

    def _log_prob(self, x: torch.Tensor) -> torch.Tensor:
        energy = self.height * (x * x - self.separation).square()
        return -energy.sum(1) - self.dimension * self._law.log_normaliser

    def _score(self, x: torch.Tensor) -> torch.Tensor:
        return -4 * self.height * x * (x * x - self.separation)

    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        """By the quantile function of one coordinate, tabulated to about 1e-6."""
        return self._law.quantile(torch.special.ndtr(self._normals(count, self.dimension, seed)))

    def _kernel(self) -> kernels.Density:
        return kernels.double_well(self.dimension, self.height, self.separation)


class Rosenbrock(BuiltIn):
    """E = sum over pairs (x, y) of a (y - x^2)^2 + b (1 - x)^2: x ~ N(1, 1 / (2 b)), y | x ~ N(x^2, 1 / (2 a)).

    Pairs are (x_0, x_1), (x_2, x_3), ... [Goodman & Weare 2010, section 3; Pagani 2022, section 2].
    Raises TypeError, ValueError unless dimension is even and at least 2, and a and b are numbers above 0.
    """

    def __init__(self, dimension: int = 2, a: float = 5.0, b: float = 0.05) -> None:
        self.dimension = _dimension(dimension, 2)
        if dimension % 2:
            raise ValueError(f"dimension: got {dimension}, expected an even number: coordinates come in pairs")
        self.a, self.b = _number("a", a), _number("b", b)

    def __repr__(self) -> str:
        return f"Rosenbrock(dimension={self.dimension}, a={self.a}, b={self.b})"

    def _log_prob(self, x: torch.Tensor) -> torch.Tensor:
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
    """x_0 ~ N(0, std^2), x_i | x_0 ~ N(0, exp(x_0)) for i >= 1 [Neal 2003, section 8].

    Raises TypeError, ValueError unless dimension is a whole number from 2 on and std a number above 0.
    """

    def __init__(self, dimension: int = 10, std: float = 3.0) -> None:
        self.dimension, self.std = _dimension(dimension, 2), _number("std", std)

    def __repr__(self) -> str:
        return f"Funnel(dimension={self.dimension}, std={self.std})"

    def _log_prob(self, x: torch.Tensor) -> torch.Tensor:
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
    """E = (|x| - radius)^2 / (2 std^2): a shell around the origin.

    Raises TypeError, ValueError for a dimension, radius or std out of range.
    """

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

    def _log_prob(self, x: torch.Tensor) -> torch.Tensor:
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


def check_positive(name: str, values: torch.Tensor) -> torch.Tensor:
    """``values``. Raises ValueError unless all are finite and above 0."""
    if not bool((values > 0).all() & torch.isfinite(values).all()):
        raise ValueError(f"{name}: got {values.tolist()}, expected finite numbers above 0")
    return values


def _number(name: str, value: float) -> float:
    number = real_numbers(name, value)
    if number.numel() != 1:
        raise ValueError(f"{name}: got shape {list(number.shape)}, expected a number")
    return positive(float(check_positive(name, number)), name)


def _dimension(dimension: int, least: int) -> int:
    whole = whole_number("dimension", dimension)
    if not least <= whole <= MAX_ELEMENTS:
        rule = f"at least {least}" if whole < least else "at most 2^30"
        raise ValueError(f"dimension: got {whole}, expected {rule}")
    return whole
