"""Masses of atoms, and their centre of mass kept at the origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt
import torch

Mass: TypeAlias = "float | Sequence[float] | Sequence[Sequence[float]] | npt.NDArray[Any] | torch.Tensor | None"
CENTERS = ("free", "fixed")
ROUNDING = 16  # units of rounding that the centre of mass may be off by


@dataclass(frozen=True, eq=False, kw_only=True)
class Masses:
    """Settings of the samplers for molecules: see `ChainSampler`."""

    mass: Mass = field(default=None, repr=False)
    center_of_mass: str = field(default="free", repr=False)


class CenterOfMass:
    """Takes the motion of the centre of mass out of chains of atoms, states x ``[B, atoms, dimensions]``.

    With masses m_i that sum to M, u_i = sqrt(m_i / M) is the direction of that motion in whitened coordinates
    sqrt(m_i) x_i, and 1 - u u' takes it out of velocities and noise alike: what is left has atoms - 1 degrees of
    freedom a dimension, each with a kinetic energy of T / 2. ``mass``: ``[atoms]`` float64.
    """

    def __init__(self, mass: torch.Tensor, device: torch.device) -> None:
        self.share = (mass / mass.sum()).to(device)[:, None]
        self.root = self.share.sqrt()

    def hold(self, x: torch.Tensor) -> None:
        """Move the centre of mass of x to the origin, in place, where it is off by more than rounding.

        What has been moved stays as it is to the bit when it is held again.
        """
        wide = x.double()
        off = added(self.share * wide)[:, None]
        far = off.abs() > ROUNDING * torch.finfo(x.dtype).eps * wide.abs().amax(1, keepdim=True)
        x.copy_(torch.where(far, wide - off, wide))

    def project(self, v: torch.Tensor) -> torch.Tensor:
        """Whitened velocities, or noise, like v without the motion of the centre of mass."""
        wide = v.double()
        return (wide - self.root * added(self.root * wide)[:, None]).to(v.dtype)

    def project_score(self, score: torch.Tensor) -> torch.Tensor:
        """A score, like it, that does not move the centre of mass: 1 - u u' of sqrt(P) s."""
        wide = score.double()
        return (wide - self.share * added(wide)[:, None]).to(score.dtype)


def added(terms: torch.Tensor) -> torch.Tensor:
    """The sum over dimension 1, by adding halves until one is left: the same order in any batch."""
    while (count := terms.shape[1]) > 1:
        half = (count + 1) // 2
        sums = terms[:, : count - half] + terms[:, half:]
        terms = sums if 2 * half == count else torch.cat([sums, terms[:, half - 1 : half]], 1)
    return terms[:, 0]
