"""The trees of NUTS in native code: all of a leaf but its energy in one call, with the bits of `Trees`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ulam_kernels.densities import Density
from ulam_kernels.dispatch import select

from .chain_state import ChainState, Columns

if TYPE_CHECKING:
    from ulam_kernels.cpu.bound_trees import BoundTrees

AFTER, BEFORE = 1, 2  # of a leap, see ulam_kernels.cpu.bound_trees


class FusedTrees:
    """As :class:`.nuts.Trees`, on the CPU in float32: chains that rest stay where they are.

    Beside :meth:`begin` and :meth:`leap` it can count and keep transitions itself, where they take a ``record`` of
    `BoundTrees`: chains then begin their next transition within the same call.
    """

    def __init__(self, state: ChainState, max_depth: int, bound: type[BoundTrees]) -> None:
        assert state.energy is not None
        self.state = state
        ids = state.seed, state.chain, state.draw
        self.bound = bound(state.x, state.score, state.energy, *ids, state.scale, max_depth)
        x, _, score = self.bound.here
        self._x, self._score = x.view_as(state.x), score.view_as(state.x)
        self.depth, self.leaps = self.bound.depth, self.bound.leaps
        self.moved, self.diverged, self.live = self.bound.moved, self.bound.diverged, self.bound.live

    def acceptance(self) -> torch.Tensor:
        """The mean of min(1, exp(-(H - H_0) / T)) over the leaps of the current transition, ``[B]`` float64."""
        mean: torch.Tensor = self.bound.accepted / self.leaps
        return mean

    def begin(self, where: torch.Tensor, c: Columns) -> None:
        """Have these chains ``[B]`` bool begin their next transition, with a new momentum, at the next leap."""
        self.bound.fresh |= where

    def leap(self, c: Columns, live: torch.Tensor) -> torch.Tensor:
        """Add a leaf to the trees of the ``live`` chains; which transitions are done, both ``[B]`` bool."""
        self.live.copy_(live)
        self.bound.leap(BEFORE, _columns(c), ())
        self._evaluate()
        self.bound.leap(AFTER, _columns(c), ())
        return self.bound.done

    def rest(self, live: torch.Tensor, c: Columns, record: tuple[int, ...]) -> None:
        """Go to the first leaves of the ``live`` chains ``[B]`` bool; :meth:`go_on` adds them."""
        self.live.copy_(live)
        self.bound.leap(BEFORE, _columns(c), record)

    def go_on(self, c: Columns, record: tuple[int, ...]) -> None:
        """Add a leaf to the trees of the live chains, and go to the next; ``live`` tells which go on."""
        self._evaluate()
        self.bound.leap(AFTER | BEFORE, _columns(c), record)

    def run(self, density: Density, live: torch.Tensor, c: Columns, record: tuple[int, ...]) -> None:
        """Whole chains in one launch: the ``live`` ones ``[B]`` bool, until none is."""
        self.live.copy_(live)
        self.bound.run(density, _columns(c), record)

    def _evaluate(self) -> None:
        energy, score = self.state.evaluate(self._x, True)
        assert energy is not None
        self.bound.energy_here.copy_(energy)
        self._score.copy_(score)


def _columns(c: Columns) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return c[0], c[2], c[3]


def bound_trees(state: ChainState) -> type[BoundTrees] | None:
    """The native trees of the backend that runs a state's operations; None where it has none."""
    if state.x.device.type != "cpu":
        return None
    found: type[BoundTrees] | None = getattr(select(state.backend, "cpu", state.x.dtype), "BoundTrees", None)
    return found
