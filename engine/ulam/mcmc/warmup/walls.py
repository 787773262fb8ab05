"""Hard walls, beyond which the density is 0: a path that ends there is rejected, however small its steps are.

Where many paths do, no step reaches the acceptance that a warm-up tunes to on paths of their length, and dual averaging
would take it to 0. Then paths are made shorter until at most half end beyond a wall, and the step is tuned on the
acceptance of the others: half of the proposals lost cost less than paths of a tenth of the length.
"""

from __future__ import annotations

import torch

from ...engine import errors
from ..batch import ChainBatch
from ..verdicts.causes import NO_WALLS
from .first_step import trial
from .gradients import Gradients
from .paths import MOST_LEAPS, leaps_of

LOOK = 5  # steps of a window before walls are thought of
FINER = 4  # trial steps in one of the length found
MOST_BEYOND, SHORTER = 0.5, 0.7  # share of the paths, and what one shortening does
GROWTH = 2.0  # of paths, from one window to the next


class Walls:
    """Whether paths end beyond walls, and what follows for the length of paths and the acceptance that counts.

    Attributes:
        found: whether there are walls. longest: of paths, in the current window; inf without walls.
        beyond: share of the paths of length ``longest`` that end beyond them.
    """

    def __init__(self, rate: float) -> None:
        self.found, self.longest, self.beyond, self._rate = False, float("inf"), 0.0, rate
        self.begin()

    def begin(self) -> None:
        """Begin to count anew, in a new window."""
        self._steps, self._lost, self._asked = 0, 0.0, False

    def suspected(self, probability: torch.Tensor) -> bool:
        """Whether more paths than the target allows were rejected for certain in this window; True once in it.

        probability: of acceptance ``[B]``, of one more step.
        """
        self._steps, self._lost = self._steps + 1, self._lost + float((probability == 0).double().mean())
        if self.found or self._asked or self._steps < LOOK or self._lost <= (1 - self._rate) * self._steps:
            return False
        self._asked = True
        return True

    def look(self, batch: ChainBatch, gradients: Gradients, step: torch.Tensor, length: float) -> None:
        """Try paths of this length, and shorter ones where they end beyond walls; ``step`` ``[B]`` of a search."""
        fine, self.longest = step / FINER, float("inf")
        while True:
            leaps = leaps_of(length, float(fine[0]), FINER * MOST_LEAPS)
            with gradients.counted():
                ratio = trial(batch, fine, leaps)
            self.beyond = float((~(ratio > -float("inf"))).double().mean())
            self.found |= self.beyond > 1 - self._rate
            if self.found:
                self.longest = length
            if self.beyond <= MOST_BEYOND or leaps == 1:
                return
            length *= SHORTER

    def within(self, probability: torch.Tensor) -> torch.Tensor:
        """The acceptances of the paths that did not end beyond a wall; of all where there is none, or all did."""
        inside = probability > 0
        return probability[inside] if self.found and bool(inside.any()) else probability

    def warn(self) -> None:
        """Warn where walls were found."""
        if self.found:
            errors.warn(
                f"target: got one whose density is 0 where {self.beyond:.0%} of the paths end, which are rejected; "
                f"expected one without hard walls, such as {NO_WALLS}",
                RuntimeWarning,
            )
