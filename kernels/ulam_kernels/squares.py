"""The squares of the noise that a step used, in whole numbers: what :func:`ulam_kernels.step` adds to ``squares``.

A chain whose row reads noise gets ``sum_e rint(2^20 z_e^2)``. z is the row's noise before it is scaled, as float32;
z^2 is rounded once to float32, and halves go to the even number. The sum is within n / 2 of 2^20 |z|^2 in float32
squares. It does not depend on the order of its terms, so every backend has the same number.

An element of given noise that is NaN, or LIMIT or more in size, adds nothing and sets the sign: the number is negative
from then on, whatever is added. Generated noise is below 6.8. A step adds less than 2^60, of generated noise less than
2^56, to what has 63 bits: thousands of steps fit, whatever the size of a chain.
"""

from __future__ import annotations

import torch

SQUARES_PER_UNIT = 2**20
LIMIT = 32.0


def squared_norms(squares: torch.Tensor) -> torch.Tensor:
    """``|z|^2`` in float64 of ``squares``, of any shape; NaN where the noise had an element without a square."""
    return torch.where(squares < 0, torch.nan, squares.to(torch.float64) / SQUARES_PER_UNIT)
