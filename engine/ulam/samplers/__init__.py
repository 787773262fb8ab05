"""Samplers: each one short function of float64 mathematics from a schedule to a `Program`."""

from .ddim import DDIM
from .ddpm import DDPM

__all__ = ["DDIM", "DDPM"]
