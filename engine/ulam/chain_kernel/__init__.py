"""Whole chains in one kernel: a denoiser's network read into instructions, time and conditioning folded out of it.
Where it does not fit, one line says which operation of which line of its source is why."""

from ..lazily import suggests
from .compiled import CompiledChain as CompiledChain
from .compiled import compile as compile
from .energies import CompiledEnergy as CompiledEnergy
from .energies import compile_energy as compile_energy

__all__ = ["CompiledChain", "CompiledEnergy", "compile", "compile_energy"]

suggests(__name__)
