"""Context managers: the CPU backend with other instructions, or another number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ulam_kernels import _cpu


@contextmanager
def instruction_set(name: str) -> Iterator[str]:
    """Yields the backend to call: "reference", or "cpu" with these instructions."""
    before = _cpu.instruction_set()
    if name == "reference":
        yield name
        return
    _cpu.use_instruction_set(name)
    try:
        yield "cpu"
    finally:
        _cpu.use_instruction_set(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
