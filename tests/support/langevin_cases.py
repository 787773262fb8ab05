"""Schedules, data and the execution of programs for the tests of the Langevin samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from oracles import Array, gaussian_output
from ulam import Program, schedules

SCHEDULES = {
    "linear": schedules.vp_linear(),
    "cosine": schedules.vp_cosine(1000),
    "ve": schedules.ve(0.01, 50),
    "flow": schedules.flow(),
    "subvp": schedules.sub_vp(),
}
MEAN, STD = 0.7, 0.5


def execute(program: Program, x: Array, network: Callable[[int, Array], Array], noise: Callable[[int], Array]) -> Array:
    """The last state of x [chains, d] by the formulas of ulam.programs.program, one register, norms over d."""
    for row, A in enumerate(program.A[:, 0]):
        m, z = network(row, program.c_in[row] * x), noise(row)
        D = program.kx[row] * x + program.km[row] * m
        if program.normalise[row]:
            g = (np.linalg.norm(z, axis=1, keepdims=True) / np.linalg.norm(D, axis=1, keepdims=True)) ** 2
            D, z = g * D, np.sqrt(g) * z
        x = A[0] * x + A[1] * D + A[2] * m + A[3] * z
    return x


def gaussian_network(program: Program, levels: tuple[Array, Array]) -> Callable[[int, Array], Array]:
    """The ideal network for data N(MEAN, STD^2) in every element, whose row i is at levels[:, i]."""
    affine = [gaussian_output(program.predicts, a, s, MEAN, STD) for a, s in zip(*levels, strict=True)]
    return lambda row, x: affine[row][0] * x + affine[row][1]


def ratio_grid(name: str, steps: int) -> dict[str, Any]:
    """Levels uniform in log-SNR that end at noise, as arguments."""
    ratios = np.geomspace(20, 0.02, steps + 1)
    levels = ratios / (1 + ratios) if name == "flow" else ratios
    return {"sigmas": levels[:-1], "final": float(levels[-1])}
