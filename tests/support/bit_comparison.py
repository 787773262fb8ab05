"""Tensors compared bit for bit."""

from __future__ import annotations

import torch

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def differences(a: torch.Tensor, b: torch.Tensor) -> int:
    """How many elements differ in their bits, whatever the layouts and devices; any NaN equals any NaN."""
    a, b = a.cpu().contiguous(), b.cpu().contiguous()
    kind = INTEGERS[a.element_size()]
    return int(((a.view(kind) != b.view(kind)) & ~(a.isnan() & b.isnan())).sum())


def same_bits(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether no element differs; None equals None."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and differences(a, b) == 0
