"""The densities that compile into a whole chain: numbers for the kernels, in one tensor.

An energy is minus the logarithm of the density up to a constant, E(x) = -log p(x) + const, x in R^d; its score is
-grad E. The formulas, in fp32 with one rounding an operation, are in ``csrc/include/ulam/densities.h``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

MAX_DIMENSION = 128
MAX_COMPONENTS = 64
GAUSSIAN_DIAGONAL, GAUSSIAN, MIXTURE, DOUBLE_WELL, ROSENBROCK, FUNNEL, RING = range(7)


@dataclass(frozen=True, eq=False)
class Density:
    """A density's formula and its numbers; make one with the functions of this module.

    Args:
        name: of the function that made it.
        kind: which formula.
        dimension: d, 1 to 128.
        components: of a mixture, 1 to 64; else 0.
        params: float64, one-dimensional; rounded once to float32 where the kernels read it.
    """

    name: str
    kind: int
    dimension: int
    components: int
    params: torch.Tensor

    def __post_init__(self) -> None:
        least = 2 if self.kind in (ROSENBROCK, FUNNEL, RING) else 1
        if not least <= self.dimension <= MAX_DIMENSION:
            raise ValueError(f"dimension: got {self.dimension}, expected {least} to {MAX_DIMENSION}")
        if not bool(torch.isfinite(self.params).all()):
            raise ValueError(f"{self.name}: its numbers must be finite")

    def __repr__(self) -> str:
        return f"Density({self.name}, dimension={self.dimension})"

    def to(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """``params`` where and as a kernel reads them, kept for the next call."""
        kept: dict[tuple[torch.device, torch.dtype], torch.Tensor] = self.__dict__.setdefault("_kept", {})
        key = (device, dtype)
        if key not in kept:
            kept[key] = self.params.to(device=device, dtype=dtype).contiguous()
        return kept[key]


def gaussian(mean: torch.Tensor, precision: torch.Tensor) -> Density:
    """E = (x - mean)' A (x - mean) / 2 with the precision A ``[d, d]``, symmetric and positive definite.

    A precision ``[d]`` is that matrix's diagonal, the rest of it 0.

    Raises:
        ValueError: shapes that do not fit, or a precision that is not symmetric positive definite.
    """
    mean, precision = mean.detach().double().cpu(), precision.detach().double().cpu()
    d = mean.numel()
    if mean.dim() != 1 or precision.shape not in ((d,), (d, d)):
        raise ValueError(f"precision: got shape {list(precision.shape)}, expected [d] or [d, d] with d = {d}")
    if precision.dim() == 1:
        _check_positive("precision", precision)
        return Density("gaussian", GAUSSIAN_DIAGONAL, d, 0, torch.cat([mean, precision]))
    uneven = (precision - precision.T).abs().max() > 1e-5 * precision.abs().max()
    precision = (precision + precision.T) / 2
    if uneven or not bool((torch.linalg.eigvalsh(precision) > 0).all()):
        raise ValueError("precision: expected a symmetric positive definite matrix")
    return Density("gaussian", GAUSSIAN, d, 0, torch.cat([mean, precision.flatten()]))


def mixture(weights: torch.Tensor, means: torch.Tensor, stds: torch.Tensor | float) -> Density:
    """p = sum_k w_k N(mean_k, std_k^2 I), K <= 64 components; weights ``[K]`` (made to sum to 1), means ``[K, d]``.

    E = -log sum_k exp(c_k - |x - mean_k|^2 / (2 std_k^2)), c_k = log w_k - d log std_k.

    Raises:
        ValueError: shapes that do not fit, or weights or standard deviations that are not positive.
    """
    means, weights = means.detach().double().cpu(), weights.detach().double().cpu()
    if means.dim() != 2 or weights.shape != means.shape[:1] or not 1 <= len(means) <= MAX_COMPONENTS:
        raise ValueError(
            f"means: got shape {list(means.shape)}, expected [K, d] for weights [K], K <= {MAX_COMPONENTS}"
        )
    stds = torch.as_tensor(stds, dtype=torch.float64).detach().cpu().expand(len(means))
    _check_positive("weights", weights)
    _check_positive("stds", stds)
    count, d = means.shape
    constants = (weights / weights.sum()).log() - d * stds.log()
    return Density("mixture", MIXTURE, d, count, torch.cat([constants, stds**-2, means.flatten()]))


def double_well(dimension: int, height: float = 1.0, separation: float = 1.0) -> Density:
    """E = sum_i height (x_i^2 - separation)^2: two wells a coordinate, at +-sqrt(separation)."""
    _check_positive("height, separation", torch.tensor([height, separation]))
    return Density("double_well", DOUBLE_WELL, dimension, 0, torch.tensor([height, separation], dtype=torch.float64))


def rosenbrock(dimension: int = 2, a: float = 5.0, b: float = 0.05) -> Density:
    """E = sum over pairs (x, y) of a (y - x^2)^2 + b (1 - x)^2, the pairs being (x_0, x_1), (x_2, x_3), ...

    The even Rosenbrock density, whose exact law is x ~ N(1, 1 / (2 b)), y | x ~ N(x^2, 1 / (2 a)): Goodman and Weare
    2010, section 3; Pagani et al. 2022, section 2.

    Raises:
        ValueError: an odd dimension, or numbers that are not positive.
    """
    _check_positive("a, b", torch.tensor([a, b]))
    if dimension % 2:
        raise ValueError(f"dimension: got {dimension}, expected an even number: coordinates come in pairs")
    return Density("rosenbrock", ROSENBROCK, dimension, 0, torch.tensor([a, b], dtype=torch.float64))


def funnel(dimension: int = 10, std: float = 3.0) -> Density:
    """x_0 ~ N(0, std^2), x_i | x_0 ~ N(0, exp(x_0)) for i >= 1: Neal 2003, section 8.

    E = x_0^2 / (2 std^2) + (d - 1) x_0 / 2 + exp(-x_0) sum_{i >= 1} x_i^2 / 2. exp holds its argument to [-86, 88].
    """
    _check_positive("std", torch.tensor([std]))
    return Density("funnel", FUNNEL, dimension, 0, torch.tensor([std**-2, (dimension - 1) / 2], dtype=torch.float64))


def ring(dimension: int = 2, radius: float = 3.0, std: float = 0.3) -> Density:
    """E = (|x| - radius)^2 / (2 std^2). The score at x = 0, where E has no gradient, is 0."""
    _check_positive("radius, std", torch.tensor([radius, std]))
    return Density("ring", RING, dimension, 0, torch.tensor([radius, std**-2], dtype=torch.float64))


def _check_positive(name: str, values: torch.Tensor) -> None:
    if not bool((values > 0).all()) or not all(map(math.isfinite, values.flatten().tolist())):
        raise ValueError(f"{name}: got {values.tolist()}, expected positive finite numbers")
