"""The chains of one batch while they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias

import torch

import ulam_kernels
from ulam_kernels.reprs import short_repr

from ...noise import DRAWS_PER_ROW, HMC_PATH, ROW, Purpose
from .masses import CenterOfMass
from .weights import Weights, rounded_root

JITTERS_AHEAD = 16  # steps whose uniforms are made together

Evaluated: TypeAlias = "tuple[torch.Tensor | None, torch.Tensor]"  # energy [B] float64 (or None) and score like x
Evaluate: TypeAlias = Callable[[torch.Tensor, bool], Evaluated]  # of x [B, *shape], and whether the energy is wanted
Columns: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # a sampler's coefficients, [B] each


class Proposal(NamedTuple):
    """Where paths ended: x and v ``[B, *shape]``, and the times ``[B]`` they took."""

    x: torch.Tensor
    v: torch.Tensor
    time: torch.Tensor


@dataclass(eq=False)
class ChainState:
    """B chains: their states, energies and scores, and the noise that comes next.

    Attributes:
        x, score: ``[B, *shape]``. v: whitened velocities, likewise, or None.
        energy: ``[B]`` float64, None where it was not asked for.
        seed, chain, draw: ``[B]`` int64, the address of the noise of the next step.
        scale: sqrt(P) ``[*shape]``, or None.
        wants_energy: whether the energy is needed after the current step.
        ahead: the steps from that of ``draw`` to that which begins at the score evaluated next: 1 within a transition.
        accepted: ``[B]`` bool, whether the last proposals were accepted. proposal: the last ones, of HMC alone.
        ends: leapfrog steps per transition, each with the chains ``[B]`` bool that take that many (None: all); empty
            where the sampler's own number holds.
        center: what keeps the centre of mass at the origin, or None.
    """

    x: torch.Tensor
    evaluate: Evaluate
    seed: torch.Tensor
    chain: torch.Tensor
    draw: torch.Tensor
    scale: torch.Tensor | None
    backend: str | None
    v: torch.Tensor | None = None
    energy: torch.Tensor | None = None
    wants_energy: bool = True
    accepted: torch.Tensor | None = None
    ahead: int = 1
    proposal: Proposal | None = None
    ends: dict[int, torch.Tensor | None] = field(default_factory=dict)
    center: CenterOfMass | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        self.spare = torch.empty_like(self.x)
        self.score = torch.empty_like(self.x)
        self._uniforms: list[torch.Tensor] = []  # of the current step and those after it

    def evaluate_here(self, energy: bool) -> None:
        """Evaluate the score at x, and the energy if asked for: copies, which a Metropolis test may overwrite."""
        self.ahead = 0
        found, score = self.evaluate(self.x, energy)
        self.ahead = 1
        self.energy, self.score = None if found is None else found.clone(), score.clone()

    def hold(self, center: CenterOfMass) -> None:
        """From here on keep the centre of mass of states at the origin: x is moved there where it is evaluated."""
        evaluate = self.evaluate

        def held(x: torch.Tensor, wanted: bool) -> Evaluated:
            center.hold(x)
            energy, score = evaluate(x, wanted)
            return energy, center.project_score(score)

        self.center, self.evaluate = center, held

    @cached_property
    def weights(self) -> Weights:
        """Exponentials and logarithms on the chains' device."""
        return Weights(self.x.device)

    def without_center(self, v: torch.Tensor) -> torch.Tensor:
        """Whitened velocities v without the motion of the centre of mass where that is held, else v itself."""
        return v if self.center is None else self.center.project(v)

    def advance(self, steps: int = 1) -> None:
        """Move on to the noise of the step after the next ``steps``."""
        self.draw += DRAWS_PER_ROW * steps
        del self._uniforms[:steps]

    def uniforms(self, purpose: Purpose = HMC_PATH) -> torch.Tensor:
        """u ``[B]`` float64, uniform on [-1, 1], of the current step, of the one purpose that a run asks for."""
        if not self._uniforms:
            ahead = torch.arange(JITTERS_AHEAD, device=self.x.device)[:, None] * DRAWS_PER_ROW + purpose.stage
            draw = (self.draw + ahead).flatten()
            z = torch.empty(len(draw), 3, dtype=torch.float32, device=self.x.device)
            seed, chain = self.seed.repeat(JITTERS_AHEAD), self.chain.repeat(JITTERS_AHEAD)
            ulam_kernels.fill_normal(z, seed=seed, chain=chain, draw=draw, tag=purpose.tag, backend=self.backend)
            self._uniforms = list(uniform(z).view(JITTERS_AHEAD, -1).unbind())
        return self._uniforms[0]

    def ids(self, purpose: Purpose = ROW) -> dict[str, torch.Tensor]:
        """The address of an operation's noise; the operation itself adds the tag."""
        draw = self.draw + purpose.stage if purpose.stage else self.draw
        return {"seed": self.seed, "chain": self.chain, "draw": draw}

    def normals(self, purpose: Purpose = ROW, offset: int = 0) -> torch.Tensor:
        """Standard normal noise like x, that of the current step, from element ``offset`` of it on.

        It does not move a centre of mass that is held.
        """
        out = torch.empty(self.x.shape, dtype=torch.float32, device=self.x.device)
        ids = self.ids(purpose)
        ulam_kernels.fill_normal(
            out, seed=ids["seed"], chain=ids["chain"], draw=ids["draw"], tag=purpose.tag, offset=offset,
            backend=self.backend,
        )  # fmt: skip
        return self.without_center(out.to(self.x.dtype))


def uniform(z: torch.Tensor) -> torch.Tensor:
    """Numbers uniform on [-1, 1], ``[N]`` float64, of standard normals ``[N, 3]``.

    z_0 / sqrt(z_0^2 + z_1^2 + z_2^2), a coordinate of a uniform point on the sphere [Archimedes]: by operations that
    round alike everywhere.
    """
    a, b, c = z.double().unbind(1)
    return a / rounded_root(a * a + b * b + c * c)
