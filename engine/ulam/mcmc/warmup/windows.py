"""The windows of a warm-up together."""

from __future__ import annotations

from typing import NamedTuple

LEAST = 20  # steps, below which only the step is adapted
LONGEST_FIRST, SHORTEST_FIRST, STATES = 25, 10, 100  # steps of the first window, and the states that it should have
BEFORE, BEFORE_SHARE = 3, 0.15  # first windows, or so much of the warm-up, until masses begin
AFTER, LEAST_AFTER, AFTER_SHARE = 50, 10, 0.1  # steps, or so much of the warm-up, after masses end


class Window(NamedTuple):
    """``steps`` of each chain; ``mass``: whether the inverse mass is set at its end, from its states."""

    steps: int
    mass: bool


def windows(steps: int, chains: int) -> list[Window]:
    """The windows of a warm-up of ``steps`` steps of ``chains`` chains [Stan reference manual, automatic tuning].

    A first buffer, windows of doubling length, of which the last takes what is left, and a last buffer. For one chain
    of 1000 steps they are Stan's: 75; 25, 50, 100, 200, 500; 50. Many chains need fewer steps for as many states, so
    the first windows are shorter then.
    """
    if steps < LEAST:
        return [Window(steps, False)]
    first = min(max(-(-STATES // chains), SHORTEST_FIRST), LONGEST_FIRST)
    before = min(BEFORE * first, int(BEFORE_SHARE * steps))
    after = min(max(LEAST_AFTER, int(AFTER_SHARE * steps)), AFTER)
    found, left, length = [Window(before, False)], steps - before - after, first
    while left:
        length = length if left >= 3 * length else left
        found.append(Window(length, True))
        left, length = left - length, 2 * length
    return [*found, Window(after, False)]
