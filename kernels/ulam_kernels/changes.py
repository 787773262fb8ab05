"""By what a change is seen in one pass, without copies: digests of memory, places of tensors, identities of objects."""

from __future__ import annotations

import ctypes
import hashlib
import operator
from collections.abc import Collection
from itertools import chain
from typing import Any

import torch

try:
    from ulam_kernels._cpu import digest as digest
    from ulam_kernels._cpu import identical as identical
    from ulam_kernels._cpu import layouts as _layouts
    from ulam_kernels._cpu import same_values as same_values
except ImportError:  # a broken build is reported by its backend

    def digest(addresses: list[int], sizes: list[int], /) -> bytes:
        """What stands for the bytes of arrays, by their addresses: another where they have changed."""
        found = hashlib.blake2b()
        for address, size in zip(addresses, sizes, strict=True):
            found.update(ctypes.string_at(address, size))
        return found.digest()

    def identical(these: Collection[object], those: Collection[object], /) -> bool:
        """Whether these are the same objects, in the same order; lists or tuples."""
        return len(these) == len(those) and all(map(operator.is_, these, those))

    def same_values(dicts: list[dict[Any, Any]], values: list[object], /) -> bool:
        """Whether the values of dicts, one after another, are exactly these objects."""
        return identical(list(chain.from_iterable(map(dict.values, dicts))), values)

    def _layouts(tensors: list[torch.Tensor], /) -> bytes | None:
        return None


def layouts(tensors: list[torch.Tensor]) -> object:
    """Where tensors lie, with dtypes, shapes and strides: to be compared."""
    found = _layouts(tensors)
    return found or [(tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors]
