"""Memory for results: that of earlier results which nobody holds any more."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from ulam_kernels.dispatch import load

LARGE = 1 << 16  # elements; smaller pieces the memory allocator has at hand
MOST = 4  # a loop holds the sample, the next one and the network's input
ALIGNMENT = 64
AHEAD = 16  # tensors made of an array at once: with cold caches the first costs as much as all others


class Buffers:
    """One thread's arrays, kept for its next loop. New pages cost more to fault in than a step takes to fill them.

    A tensor's storage holds a reference to its array for as long as any tensor, view or not, holds the storage: an
    array is free when it has no references but ours and those of the tensors made ahead.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[torch.Size, np.ndarray[Any, np.dtype[np.float32]], list[torch.Tensor]]] = []

    def empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """An uninitialised contiguous tensor of another's shape, dtype and device."""
        if tensor.dtype is torch.float32 and tensor.is_cpu:
            return self.empty(tensor.shape)
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    def empty(self, shape: torch.Size) -> torch.Tensor:
        """An uninitialised contiguous float32 tensor on the CPU."""
        for kept, array, ready in self._kept:
            if kept == shape and sys.getrefcount(array) == UNHELD + len(ready):
                return ready.pop() if ready else self._made(array, ready)
        size = shape.numel()
        if size < LARGE:
            return torch.empty(shape, dtype=torch.float32, device="cpu")
        whole = np.empty(size + ALIGNMENT // 4, dtype=np.float32)
        first = -whole.__array_interface__["data"][0] % ALIGNMENT // 4
        array, ready = whole[first : first + size].reshape(shape), []
        self._kept = [(shape, array, ready), *self._kept[: MOST - 1]]
        return self._made(array, ready)

    @staticmethod
    def _made(array: np.ndarray[Any, np.dtype[np.float32]], ready: list[torch.Tensor]) -> torch.Tensor:
        """A tensor of an array; more are made ready, unless a mode of torch turns them into something else."""
        with torch.inference_mode(False):
            made = [torch.from_numpy(array) for _ in range(AHEAD)]
        address = getattr(load("cpu"), "address", None)
        if address is not None and address(made[0]) == array.__array_interface__["data"][0]:
            ready += made[1:]
        return made[0]


def _unheld() -> int:
    """How many references `Buffers.empty` counts of an array that no tensor holds; it depends on the Python version."""
    kept = [(None, np.empty(1), None)]
    for _, array, _ in kept:
        count = sys.getrefcount(array)
    return count


UNHELD = _unheld()
