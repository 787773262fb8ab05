"""The exact law that a program gives to Gaussian data with the ideal network, in float64: no sampling.

Unclipped rows are affine in the registers and the noise, and the ideal network of N(mean, std^2) data is affine in the
state, so the registers are jointly Gaussian: their mean [R] and covariance [R, R] go from row to row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from oracles import gaussian_output
from ulam import Program

Array = npt.NDArray[np.float64]
Law = tuple[float, float]  # mean and standard deviation


def row_maps(program: Program, levels: Array, data: Law) -> list[tuple[Array, Array, Array]]:
    """Each row as (G [R, R], o [R], b [R]): the registers r become G r + o + b z, z standard normal.

    levels: (alpha, sigma) of the evaluating rows in order, [>= nfe, 2]. Rows by norms, with a threshold or a learned
    variance are not affine.
    """
    assert not (program.normalise | program.threshold | program.learned).any()
    R, number, maps = program.registers, -1, []
    for row in range(len(program)):
        slope = offset = 0.0
        if program.evaluates[row]:
            number += 1
            slope, offset = output(program.predicts, *levels[number], data)
        A, on_x = program.A[row].copy(), np.eye(1, R)[0]
        if unguided := int(program.unguided[row]):  # no guidance: that branch's output is the output
            A[:, R + 1] += A[:, unguided]
            A[:, unguided] = 0.0
        on_D, on_m = A[:, R], A[:, R + 1]
        gain = on_D * (program.kx[row] + program.km[row] * slope) + on_m * slope
        G = A[:, :R] + gain[:, None] * on_x
        o, b = (on_D * program.km[row] + on_m) * offset, A[:, R + 2].copy()
        kept = ~program.writes[row]
        G[kept], o[kept], b[kept] = np.eye(R)[kept], 0.0, 0.0
        maps.append((G, o, b))
    return maps


def output(predicts: str, alpha: float, sigma: float, data: Law) -> Law:
    """(slope, offset) of the ideal network's output on the state x; for "raw" that of edm(sigma_data=0.5)."""
    if predicts != "raw":
        return gaussian_output(predicts, alpha, sigma, *data)
    slope, offset = gaussian_output("x0", alpha, sigma, *data)  # D = c_skip x + c_out m [Karras 2022, table 1]
    power = sigma**2 + 0.25
    c_out = 0.5 * sigma / np.sqrt(power)
    return (slope - 0.25 / power) / c_out, offset / c_out


def end_law(program: Program, levels: Array, data: Law, start: Law | None = None) -> Law:
    """The law of the last state; it starts at N(0, init_scale^2), or as `start` says."""
    mean, cov = np.zeros(program.registers), np.zeros((program.registers, program.registers))
    mean[0], std = start or (0.0, program.init_scale)
    cov[0, 0] = std**2
    for G, o, b in row_maps(program, levels, data):
        mean, cov = G @ mean + o, G @ cov @ G.T + np.outer(b, b)
    return float(mean[0]), float(np.sqrt(cov[0, 0]))
