"""The squares of the noise that a step uses, in whole numbers: see :mod:`ulam_kernels.squares`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.reference.arithmetic import RealArray, mul
from ulam_kernels.reference.operands import Operands
from ulam_kernels.squares import LIMIT, SQUARES_PER_UNIT
from ulam_kernels.table import MAX_REGISTERS, READS_Z

WRITES = (1 << MAX_REGISTERS) - 1
FAILED = np.int64(-(2**63))


def with_noise(squares: torch.Tensor, operands: Operands, flags: npt.NDArray[np.int32]) -> torch.Tensor:
    """``squares`` ``[B]`` after a step, on the host: ``flags`` ``[B]`` are those of the chains' rows."""
    sums = squares.cpu().clone()
    chains = np.flatnonzero(((flags & READS_Z) != 0) & ((flags & WRITES) != 0))
    if chains.size:
        total, failed = _terms(operands.normal(chains, np.dtype(np.float64)))
        sums[torch.from_numpy(chains)] = torch.from_numpy((sums.numpy()[chains] + total) | np.where(failed, FAILED, 0))
    return sums


def _terms(z: RealArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Of ``z`` ``[chains, n]``: the sum of each chain's terms, and whether it has an element without one."""
    with np.errstate(over="ignore"):  # float64 noise, beyond float32
        z = z.astype(np.float32)
    inside = np.abs(z) < LIMIT  # NaN is not
    scaled = mul(z, z).astype(np.float64) * SQUARES_PER_UNIT
    terms: npt.NDArray[np.int64] = np.rint(np.where(inside, scaled, 0)).astype(np.int64)
    return terms.sum(axis=1), np.asarray(~inside.all(axis=1))
