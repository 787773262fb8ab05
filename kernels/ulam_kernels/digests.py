"""Digests of memory, by which a change of many bytes is seen in one pass, without a copy of them."""

from __future__ import annotations

import ctypes
import hashlib

try:
    from ulam_kernels._cpu import digest as digest
except ImportError:  # a broken build is reported by its backend

    def digest(addresses: list[int], sizes: list[int], /) -> bytes:
        """What stands for the bytes of arrays, by their addresses: another where they have changed."""
        found = hashlib.blake2b()
        for address, size in zip(addresses, sizes, strict=True):
            found.update(ctypes.string_at(address, size))
        return found.digest()
