"""Per-chain reductions of the x0 estimate, exact and readable: the quantile of |D|, and the norms of D and z."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.reference.arithmetic import RealArray, fma, sub
from ulam_kernels.reference.operands import Operands, estimate, rows_of, working_dtype
from ulam_kernels.table import HI, KM, LO, NORMALISE, THRESHOLD

Float64Array = npt.NDArray[np.float64]

LANES = 1024  # sums of squares: element e is added in lane e % LANES


def reduce(
    state: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    row: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """``out[b]`` = (lo, hi, D_scale, z_scale) of chain ``b``, for the row that it is about to execute.

    D is the x0 estimate before any clip, ``fma(km, m, mul(kx, r0))``, guidance included::

        THRESHOLD   s = quantile(|D|, p), then s < 1 ? 1 : s, then s > cap ? cap : s     (-s, s, 1 / s, 1)
        NORMALISE   g = sum z^2 / sum D^2, 0 where the divisor is 0                      (-inf, inf, g, sqrt(g))
        others                                                                           (-inf, inf, 1, 1)

    ``1 / s`` is rounded once; g and sqrt(g) are computed in float64 and each rounded once to the result's type.
    Arguments and errors are those of :func:`ulam_kernels.reference.step.step`; ``state`` has elements.
    """
    operands = Operands.on_host(state, model, uncond, guidance, seed, chain, draw, noise)
    coefficients, flag, index = rows_of(coef, flags, row)
    r0: RealArray = state[0].to("cpu", working_dtype(state)).numpy().reshape(len(index), -1)
    result = np.tile(np.array([-np.inf, np.inf, 1, 1], dtype=r0.dtype), (len(index), 1))
    for number in np.unique(index):
        kind = int(flag[number])
        if not kind & (THRESHOLD | NORMALISE):
            continue
        chains = np.flatnonzero(index == number)
        m = operands.guided(chains) if coefficients[number, KM] != 0 else None
        x0 = estimate(coefficients[number], r0[chains], m)
        if kind & THRESHOLD:
            result[chains] = _threshold(x0, coefficients[number, LO], coefficients[number, HI])
        else:
            result[chains] = _normalise(x0, operands.normal(chains, r0.dtype))
    out.copy_(torch.from_numpy(result))


def quantile(values: RealArray, p: float | np.floating[npt.NBitBase]) -> RealArray:
    """The p-quantile ``[chains]`` of ``values`` ``[chains, n]``, with linear interpolation; NaN where one is NaN.

    The position ``p (n - 1)`` is one float64 product. With k its integer part, t the rest, rounded to the type of
    the values, and a <= b the order statistics k and k + 1 (from 0), it is ``fma(t, sub(b, a), a)``; a alone where
    t = 0 or a = b.
    """
    n = values.shape[1]
    position = np.float64(p) * (n - 1)
    below = int(position)
    above = min(below + 1, n - 1)
    ordered = np.partition(values, (below, above), axis=1)
    a, b = ordered[:, below], ordered[:, above]
    t = values.dtype.type(position - below)
    between = np.where((t == 0) | (a == b), a, fma(t, sub(b, a), a))
    return np.where(np.isnan(values).any(axis=1), values.dtype.type(np.nan), between)


def sum_of_squares(values: RealArray) -> Float64Array:
    """``[chains]`` from ``[chains, n]``: float64 sums in a fixed order, whatever the batch and the backend.

    Lane l of 1024 adds the squares of the elements e with ``e % 1024 == l``, in order of e (the square of a float32
    is exact in float64); then halves are added, ``lane[l] += lane[l + w]`` for ``l < w``, w = 512, 256, ... 1.
    """
    wide = values.astype(np.float64)
    return sum_in_lanes(wide * wide)


def sum_in_lanes(terms: npt.NDArray[Any]) -> Float64Array:
    """``[chains]`` from ``[chains, n]``: the sums of :func:`sum_of_squares`, of these terms."""
    lanes = np.zeros((len(terms), LANES))
    for first in range(0, terms.shape[1], LANES):
        part = terms[:, first : first + LANES]
        lanes[:, : part.shape[1]] += part
    while (half := lanes.shape[1] // 2) > 0:
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


@np.errstate(all="ignore")
def moments(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    """``out[b]`` = sums of x, y, x^2, x y and y^2 over chain ``b``, in the order of :func:`sum_of_squares`."""
    p, q = (tensor.detach().to("cpu", torch.float64).numpy().reshape(len(tensor), -1) for tensor in (x, y))
    for number, values in enumerate((p, q, p * p, p * q, q * q)):
        out[:, number] = torch.from_numpy(sum_in_lanes(values))


@np.errstate(all="ignore")
def _threshold(x0: RealArray, level: np.floating[npt.NBitBase], cap: np.floating[npt.NBitBase]) -> RealArray:
    """``[chains, 4]``. Dynamic thresholding: Saharia et al. 2022, section 2.3."""
    s = quantile(np.abs(x0), level)
    one = s.dtype.type(1)
    s = np.where(s < one, one, s)
    s = np.where(s > cap, cap, s)
    return np.stack([-s, s, one / s, np.ones_like(s)], axis=1)


@np.errstate(all="ignore")
def _normalise(x0: RealArray, z: RealArray) -> RealArray:
    """``[chains, 4]``. The step size of the Langevin corrector: Song et al. 2021, algorithms 4 and 5."""
    divisor = sum_of_squares(x0)
    g = np.where(divisor == 0, 0.0, sum_of_squares(z) / divisor)
    infinite = np.full_like(g, np.inf)
    return np.stack([-infinite, infinite, g, np.sqrt(g)], axis=1).astype(x0.dtype)
