"""What the Triton backend makes of random ticks."""

from __future__ import annotations

from typing import Any

import torch

from tick_cases import clone_of, expected_of
from ulam_kernels.triton.tick import advance

ADVANCE, LOOK_UP = ("cursor", "now", "model", "uncond", "guidance"), ("times", "row", "out", "guidance", "interval")


def run(given: dict[str, Any]) -> None:
    advance(*(given.get(name) for name in ADVANCE))


def agrees(given: dict[str, Any]) -> bool:
    """Whether the kernel does what the rules say."""
    expected, done = expected_of(given), clone_of(given)
    run(done)
    return torch.equal(done["cursor"], expected[0]) and torch.equal(done["now"], expected[1])
