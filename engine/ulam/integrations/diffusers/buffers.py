"""Memory for results: that of earlier ones, where nobody holds them any more."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

LARGE = 1 << 16  # elements: the memory allocator has smaller pieces at hand
MOST = 4  # a loop holds the sample, the next one and the network's input
ALIGNMENT = 64


def _unheld() -> int:
    """The references that `Buffers.empty` counts of an array which no tensor has: they differ between Pythons."""
    arrays = [np.empty(1)]
    for array in arrays:
        count = sys.getrefcount(array)
    return count


UNHELD = _unheld()


class Buffers:
    """One thread's arrays, kept for its next loop. New pages cost more to fault in than a step takes to fill them.

    A tensor's storage holds a reference to its array for as long as any tensor, view or not, holds the storage.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray[Any, np.dtype[np.float32]]] = []

    def empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Contiguous, of a tensor's shape, dtype and device."""
        if tensor.dtype is torch.float32 and tensor.is_cpu:
            return self.empty(tensor.shape)
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    def empty(self, shape: torch.Size) -> torch.Tensor:
        """Contiguous, float32, on the CPU."""
        for array in self._arrays:
            if array.shape == shape and sys.getrefcount(array) == UNHELD:
                return torch.from_numpy(array)
        size = shape.numel()
        if size < LARGE:
            return torch.empty(shape, dtype=torch.float32, device="cpu")
        whole = np.empty(size + ALIGNMENT // 4, dtype=np.float32)
        first = -whole.ctypes.data % ALIGNMENT // 4
        array = whole[first : first + size].reshape(shape)
        self._arrays = [array, *self._arrays[: MOST - 1]]
        return torch.from_numpy(array)
