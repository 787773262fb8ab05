"""What the fast paths of the CUDA step serve: types, and a row of DDPM."""

from __future__ import annotations

import numpy as np

from cuda_simulator import BF16, FP16, FP32
from ulam_kernels import Table

FAST = [(FP32, FP32), (FP32, BF16), (FP32, FP16), (BF16, BF16), (FP16, FP16)]


def plain_row(registers: int = 1) -> Table:
    """A row of DDPM without clipping: x, model output and noise."""
    matrix = np.zeros((1, registers, registers + 3))
    matrix[0, 0, 0], matrix[0, 0, -2:] = 1.01, (-0.05, 0.1)
    writes = np.zeros((1, registers), bool)
    writes[0, 0] = True
    zero, infinite = np.zeros(1), np.full(1, np.inf)
    return Table.pack(zero, zero, -infinite, infinite, zero, zero, zero + 1, matrix, writes, np.zeros(1, bool))
