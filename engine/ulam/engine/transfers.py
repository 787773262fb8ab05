"""Copies from host to device without waiting: from page-locked memory, in the order of the current stream."""

from __future__ import annotations

import torch


def on_device(source: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on ``device``; itself if it is there already.

    A copy from pageable memory would wait for everything queued on the GPU, so host memory is page-locked first. Change
    dtype or layout beforehand: a copy that does so makes a pageable tensor of its own.
    """
    if source.device == device:
        return source
    if source.device.type == "cpu":
        source = source.contiguous().pin_memory()
    return source.to(device, non_blocking=True)


def write_rows(begin: int, *columns: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Write each column's values, rounded to its dtype, into its rows from ``begin`` on."""
    for column, values in columns:
        column[begin : begin + len(values)].copy_(on_device(values.to(column.dtype), column.device))
