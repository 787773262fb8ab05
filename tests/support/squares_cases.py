"""The squares of the noise that a step uses, exactly: in float64, and in Python's whole numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ulam_kernels import Table
from ulam_kernels.reference.noise import normals
from ulam_kernels.squares import LIMIT, SQUARES_PER_UNIT
from ulam_kernels.table import READS_Z

LEAST = -(2**63)


def start(chains: int) -> torch.Tensor:
    """What is there before: sums of earlier steps."""
    return torch.arange(chains) * 12_345_678_901


def added(table: Table, row: torch.Tensor, shape: tuple[int, ...], given: dict[str, Any]) -> torch.Tensor:
    """``[B]``: what a step adds to ``squares`` of 0."""
    sums, size = [], math.prod(shape)
    if given.get("noise") is not None:
        z = given["noise"].reshape(len(row), size).numpy()
    else:
        names = (given[name].numpy().view(np.uint64) for name in ("seed", "chain", "draw"))
        z = normals(*names, tag=0, offset=0, count=size)
    for b, flags in enumerate(table.flags[row].tolist()):
        read = z[b] if flags & READS_Z and flags & 31 else z[b, :0]
        inside = read[np.abs(read) < LIMIT]
        scaled = (inside * inside).astype(np.float64) * SQUARES_PER_UNIT  # float32 squares, then nothing is lost
        total = sum(int(term) for term in np.rint(scaled))
        sums.append(total + LEAST * (len(inside) < len(read)))
    return torch.tensor(sums)
