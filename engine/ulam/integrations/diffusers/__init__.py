"""Schedulers and models of diffusers on ulam: `fuse` and `fused`, and what `Denoiser.from_diffusers` reads.

`families/` holds the rows of the schedulers, one file for those that share their coordinates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...lazily import attribute

if TYPE_CHECKING:
    from .fusing import fuse, fused

__all__ = ["fuse", "fused"]


def __getattr__(name: str) -> Any:
    """`fuse` and `fused` import diffusers, which is slow, so they are loaded when they are first asked for."""
    return attribute(__name__, name, dict.fromkeys(__all__, ".fusing"))
