"""Timing in turn, in one process: drifts of the machine hit all functions alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

LEAD = 1.02  # the lower quartile of the ratios from which on there is a gain


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median, quartiles and best of ``runs`` runs."""

    median: float
    lower_quartile: float
    upper_quartile: float
    best: float
    runs: int


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one function is as another: median and quartiles of the rounds' ratios."""

    median: float
    lower_quartile: float
    upper_quartile: float

    @property
    def gains(self) -> bool:
        """Whether it is faster beyond the noise of the measurement."""
        return self.lower_quartile >= LEAD

    @property
    def loses(self) -> bool:
        """Whether it is slower beyond the noise of the measurement."""
        return self.upper_quartile <= 1 / LEAD

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lower_quartile:.2f} to {self.upper_quartile:.2f})"


def interleaved(functions: dict[str, Callable[[], object]], seconds: float = 4.0, least: int = 5) -> dict[str, Timing]:
    """Time every function in turn, A B C A B C ...; before each timed call one that does not count, so that every
    function finds its own data, and not the others', in the caches."""
    times = rounds(functions, seconds, least, warmed=True)
    return {name: summary(values) for name, values in times.items()}


def rounds(
    functions: dict[str, Callable[[], object]],
    seconds: float,
    least: int = 5,
    most: int | None = None,
    warmed: bool = False,
) -> dict[str, list[float]]:
    """The seconds of every function, round by round: as many rounds as fit, at least ``least``. warmed: with a call
    that does not count before each."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    end, done = time.perf_counter() + seconds, 0
    while done < least or (time.perf_counter() < end and (most is None or done < most)):
        for name, function in functions.items():
            if warmed:
                function()
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
        done += 1
    return times


def summary(values: list[float]) -> Timing:
    """Of at least two runs' seconds."""
    lower, median, upper = statistics.quantiles(values, n=4)
    return Timing(median, lower, upper, min(values), len(values))


def ratio(theirs: list[float], ours: list[float]) -> Ratio:
    """How many times as fast ours is, from at least two rounds in which both ran."""
    lower, median, upper = statistics.quantiles([a / b for a, b in zip(theirs, ours, strict=True)], n=4)
    return Ratio(median, lower, upper)
