"""Rows whose result goes to a tensor of its own, so that the sample need not be copied first.

The fused step works in place on r0, which is read only where its coefficient is not 0, and every operand enters
linearly. So r0 can be a new tensor that holds the noise (or nothing), the sample x coming in as the noise operand:

    r0' = c_z r0 + c_x x + c_m m                                                  r0 = z

D reads r0 and the output alone. Where a row uses it, the output is guided from x to m, which holds both:

    m_w = x + w (m - x),   w = km / (kx + km),   D = clip((kx + km) m_w),   m = (m_w - (1 - w) x) / w

Roundings of m_w enter D with (kx + km) w = km, as those of the output do in place, however large w is. Rows of x and m
alone are `ulam_kernels.affine`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...program import Program
from ...schedules import Array


@dataclass(frozen=True)
class Apart:
    """The rows in that form.

    possible: [n]; guided: [n], the rows that need `uncond=x` and `guidance=weights` [n]; plain: [n], those that are
    a x + b m with (a, b) = `pairs` [2, n].
    """

    program: Program
    possible: npt.NDArray[np.bool_]
    guided: npt.NDArray[np.bool_]
    plain: npt.NDArray[np.bool_]
    weights: Array
    pairs: Array


def apart(program: Program) -> Apart | None:
    """The rows of a program of one register in that form, None where there are more.

    Not possible are rows with a learned variance or a reduction, and those whose kx + km nearly cancels (w unbounded).
    """
    if program.registers > 1:
        return None
    on_x, on_D, on_m, on_z = program.A[:, 0].T
    guided = on_D != 0
    total = program.kx + program.km
    bounded = np.abs(total) > 1e-6 * np.maximum(np.abs(program.kx), np.abs(program.km))
    possible = ~(program.learned | program.threshold | program.normalise) & (~guided | bounded & (program.km != 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(guided & possible, program.km / total, 1.0)
    A = np.zeros_like(program.A)
    A[:, 0] = np.stack([on_z, on_D, on_m / weights, on_x - on_m * (1 - weights) / weights], axis=1)
    A[~possible] = program.A[~possible]
    kx, km = np.where(possible, 0.0, program.kx), np.where(possible & guided, total, program.km)
    plain = possible & ~guided & (on_z == 0)
    return Apart(replace(program, A=A, kx=kx, km=km), possible, guided, plain, weights, np.stack([on_x, on_m]))
