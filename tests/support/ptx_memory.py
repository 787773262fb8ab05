"""The global memory of an interpreted kernel: every access is checked."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Memory:
    """One address space. Buffers are copied in and out, and what lies between them must not be touched."""

    BASE, GUARD = 1 << 32, 512

    def __init__(self, size: int = 1 << 26) -> None:
        self.bytes = np.full(size, 0xFF, dtype=np.uint8)
        self.owned = np.zeros(size, dtype=bool)
        self.reads: Array | None = None  # how often each byte was loaded, where a test has asked: an array of zeros
        self.end = 0

    def put(self, data: Array | bytes, skew: int = 0) -> int:
        """Copy a buffer in; its address is ``skew`` bytes past a multiple of GUARD."""
        raw = (
            np.frombuffer(data, np.uint8)
            if isinstance(data, bytes)
            else np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        )
        start = (self.end // self.GUARD + 2) * self.GUARD + skew
        self.end = start + len(raw)
        self.bytes[start : self.end] = raw
        self.owned[start : self.end] = True
        return self.BASE + start

    def get(self, address: int, dtype: Any, count: int) -> Array:
        start = address - self.BASE
        return self.bytes[start : start + count * np.dtype(dtype).itemsize].view(dtype).copy()

    def index(self, address: Array, itemsize: int, count: int) -> Array:
        """Index of each address in units of ``itemsize``, after the checks of an access to ``count`` items."""
        start = address - np.uint64(self.BASE)
        if (start % np.uint64(itemsize * count)).any():
            raise ValueError(f"misaligned access of {count} x {itemsize} bytes")
        if (start >= len(self.bytes)).any() or not self.owned[start].all():
            raise ValueError("access outside every buffer")
        if not self.owned[start + np.uint64(itemsize * count - 1)].all():
            raise ValueError("access across the end of a buffer")
        return start // np.uint64(itemsize)
