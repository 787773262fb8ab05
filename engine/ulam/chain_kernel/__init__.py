"""Whole chains in one kernel: a denoiser's network read into instructions, time and conditioning folded out of it.
Where it does not fit, one line says which operation of which line of its source is why."""

from .compiled import CompiledChain as CompiledChain
from .compiled import compile as compile

__all__ = ["CompiledChain", "compile"]
