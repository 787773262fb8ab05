"""What native code is told of tensors: where they lie and how large they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def addresses(tensors: Sequence[torch.Tensor | None]) -> list[int]:
    return [address(tensor) for tensor in tensors]


def sizes(x: torch.Tensor) -> tuple[int, int]:
    """Chains, and elements of each."""
    return len(x), x.numel() // len(x)
