"""The densities that are built into the kernels: a formula and its numbers, in one tensor.

An energy is minus the logarithm of the density up to a constant, E(x) = -log p(x) + const, x in R^d; its score is
-grad E. The formulas, in fp32 with one rounding an operation, are in ``csrc/include/ulam/densities.h``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ulam_kernels import validation
from ulam_kernels.arguments import described, positive, whole
from ulam_kernels.tracing import check_read

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
        params: float64, one-dimensional, as many as the formula has; rounded once to float32 where the kernels read
            it. The density keeps a copy.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, or numbers that float32 cannot hold.
    """

    name: str
    kind: int
    dimension: int
    components: int
    params: torch.Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or "\n" in self.name:
            raise TypeError(f"name: got {described(self.name)}, expected a word")
        kind = whole(self.kind, "kind", GAUSSIAN_DIAGONAL, RING)
        d = _dimension(self.dimension, kind)
        least, most = (1, MAX_COMPONENTS) if kind == MIXTURE else (0, 0)
        components = whole(self.components, "components", least, most)
        params = _numbers(self.params, "params", (torch.float64,))
        count = {GAUSSIAN_DIAGONAL: 2 * d, GAUSSIAN: d + d * d, MIXTURE: components * (2 + d)}.get(kind, 2)
        if params.shape != (count,):
            raise ValueError(f"params: got shape {list(params.shape)}, expected [{count}] for {self.name}")
        for name, value in (("kind", kind), ("dimension", d), ("components", components), ("params", params.clone())):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Density({self.name}, dimension={self.dimension})"

    def to(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """``params`` on the device and in the dtype of a kernel, kept for the next call."""
        kept: dict[tuple[torch.device, torch.dtype], torch.Tensor] = self.__dict__.setdefault("_kept", {})
        key = (device, dtype)
        if key not in kept:
            kept[key] = self.params.to(device=device, dtype=dtype).contiguous()
        return kept[key]


def gaussian(mean: torch.Tensor, precision: torch.Tensor) -> Density:
    """E = (x - mean)' A (x - mean) / 2 with the precision A ``[d, d]``, symmetric and positive definite.

    A precision ``[d]`` is that matrix's diagonal, the rest of it 0.

    Raises:
        TypeError, ValueError: no tensors of real numbers, shapes that do not fit, or a precision that is not symmetric
            positive definite.
    """
    mean, precision = _numbers(mean, "mean").cpu(), _numbers(precision, "precision").cpu()
    if mean.dim() != 1 or not 1 <= len(mean) <= MAX_DIMENSION:
        raise ValueError(f"mean: got shape {list(mean.shape)}, expected [d] with d from 1 to {MAX_DIMENSION}")
    d = len(mean)
    if precision.shape not in ((d,), (d, d)):
        raise ValueError(f"precision: got shape {list(precision.shape)}, expected [d] or [d, d] with d = {d}")
    if precision.dim() == 1:
        _check_positive("precision", precision)
        return Density("gaussian", GAUSSIAN_DIAGONAL, d, 0, torch.cat([mean, precision]))
    uneven = (precision - precision.T).abs().max() > 1e-5 * precision.abs().max()
    precision = (precision + precision.T) / 2
    if uneven or not bool((torch.linalg.eigvalsh(precision) > 0).all()):
        raise ValueError("precision: got another matrix, expected a symmetric positive definite one")
    return Density("gaussian", GAUSSIAN, d, 0, torch.cat([mean, precision.flatten()]))


def mixture(weights: torch.Tensor, means: torch.Tensor, stds: torch.Tensor | float) -> Density:
    """p = sum_k w_k N(mean_k, std_k^2 I), K <= 64 components; weights ``[K]`` (made to sum to 1), means ``[K, d]``.

    E = -log sum_k exp(c_k - |x - mean_k|^2 / (2 std_k^2)), c_k = log w_k - d log std_k. stds: ``[K]``, or one for all.

    Raises:
        TypeError, ValueError: no tensors of real numbers, shapes that do not fit, or weights or standard deviations
            that are not positive.
    """
    means, weights = _numbers(means, "means").cpu(), _numbers(weights, "weights").cpu()
    if weights.dim() != 1 or not 1 <= len(weights) <= MAX_COMPONENTS:
        raise ValueError(f"weights: got shape {list(weights.shape)}, expected [K] with K from 1 to {MAX_COMPONENTS}")
    count = len(weights)
    if means.dim() != 2 or len(means) != count or not 1 <= means.shape[1] <= MAX_DIMENSION:
        right = f"[{count}, d] for {count} weights, d from 1 to {MAX_DIMENSION}"
        raise ValueError(f"means: got shape {list(means.shape)}, expected {right}")
    d = means.shape[1]
    if isinstance(stds, torch.Tensor):
        stds = _numbers(stds, "stds").cpu()
        if stds.shape not in ((), (1,), (count,)):
            raise ValueError(f"stds: got shape {list(stds.shape)}, expected [{count}] or a number")
    else:
        stds = torch.tensor(positive(stds, "stds"), dtype=torch.float64)
    stds = stds.expand(count)
    shares = weights / weights.sum()
    for name, values in (("weights", weights), ("weights / sum of weights", shares)):
        _check_positive(name, values, torch.float64)  # float32 holds their logarithm
    _check_positive("stds", stds)
    _check_positive("1 / stds^2", stds**-2)
    constants = shares.log() - d * stds.log()
    return Density("mixture", MIXTURE, d, count, torch.cat([constants, stds**-2, means.flatten()]))


def double_well(dimension: int, height: float = 1.0, separation: float = 1.0) -> Density:
    """E = sum_i height (x_i^2 - separation)^2: two wells a coordinate, at +-sqrt(separation).

    Raises:
        TypeError, ValueError, OverflowError: a number of the wrong type, or one that is not positive.
    """
    return _of_two("double_well", DOUBLE_WELL, dimension, height=height, separation=separation)


def rosenbrock(dimension: int = 2, a: float = 5.0, b: float = 0.05) -> Density:
    """E = sum over pairs (x, y) of a (y - x^2)^2 + b (1 - x)^2, the pairs being (x_0, x_1), (x_2, x_3), ...

    The even Rosenbrock density, whose exact law is x ~ N(1, 1 / (2 b)), y | x ~ N(x^2, 1 / (2 a)): Goodman and Weare
    2010, section 3; Pagani et al. 2022, section 2.

    Raises:
        TypeError, ValueError, OverflowError: an odd dimension, a number of the wrong type, or one that is not positive.
    """
    return _of_two("rosenbrock", ROSENBROCK, dimension, a=a, b=b)


def funnel(dimension: int = 10, std: float = 3.0) -> Density:
    """x_0 ~ N(0, std^2), x_i | x_0 ~ N(0, exp(x_0)) for i >= 1: Neal 2003, section 8.

    E = x_0^2 / (2 std^2) + (d - 1) x_0 / 2 + exp(-x_0) sum_{i >= 1} x_i^2 / 2. exp holds its argument to [-86, 88].

    Raises:
        TypeError, ValueError, OverflowError: a number of the wrong type, or one that is not positive.
    """
    d = _dimension(dimension, FUNNEL)
    numbers = torch.tensor([_precision(std), (d - 1) / 2], dtype=torch.float64)
    return Density("funnel", FUNNEL, d, 0, numbers)


def ring(dimension: int = 2, radius: float = 3.0, std: float = 0.3) -> Density:
    """E = (|x| - radius)^2 / (2 std^2). The score at x = 0, where E has no gradient, is 0.

    Raises:
        TypeError, ValueError, OverflowError: a number of the wrong type, or one that is not positive.
    """
    return _of_two("ring", RING, dimension, radius=radius, std=_precision(std))


def _of_two(name: str, kind: int, dimension: int, **numbers: float) -> Density:
    d = _dimension(dimension, kind)
    values = [torch.tensor([positive(value, label)], dtype=torch.float64) for label, value in numbers.items()]
    for label, value in zip(numbers, values, strict=True):
        _check_positive(label, value)
    return Density(name, kind, d, 0, torch.cat(values))


def _dimension(value: object, kind: int) -> int:
    d = whole(value, "dimension", 2 if kind in (ROSENBROCK, FUNNEL, RING) else 1, MAX_DIMENSION)
    if kind == ROSENBROCK and d % 2:
        raise ValueError(f"dimension: got {d}, expected an even number: coordinates come in pairs")
    return d


def _precision(std: object) -> float:
    value = torch.tensor([positive(std, "std")], dtype=torch.float64) ** -2
    _check_positive("1 / std^2", value)
    return float(value)


def _numbers(tensor: object, name: str, dtypes: tuple[torch.dtype, ...] = validation.REALS) -> torch.Tensor:
    """The tensor in float64, without its history, after the check that float32 holds its numbers."""
    validation.check_tensor(tensor, name)
    assert isinstance(tensor, torch.Tensor)
    if tensor.dtype not in dtypes:
        right = "real numbers" if len(dtypes) > 1 else str(dtypes[0])
        raise TypeError(f"{name}: got dtype {tensor.dtype}, expected {right}")
    check_read(tensor, name, "a plain tensor outside of it")
    if not bool(torch.isfinite(tensor.to(torch.float32)).all()):
        raise ValueError(f"{name}: got numbers that are not finite in float32, expected finite ones")
    return tensor.detach().to(torch.float64)


def _check_positive(name: str, values: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    """As numbers of the dtype that reads them."""
    narrow = values.to(dtype)
    wrong = values[~((narrow > 0) & torch.isfinite(narrow))]
    if len(wrong):
        raise ValueError(f"{name}: got {wrong[0]:g}, expected positive finite numbers")
