"""What `ulam.tune` returns: the options to run a network with, and what was measured of each candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ulam_kernels.reprs import short_repr

from .network import NetworkOptions

PAGING = 0.1  # of eager's time, from which on the table tells it
HEAD = ("", "", "tick", "speed", "row error", "sample error", "warm-up", "pays from")


@dataclass(frozen=True)
class Candidate:
    """One way to run the network, and what was measured of it; None where it was not.

    options, slots, graphs: as of :class:`ulam.Engine`. seconds: of a tick. speed: chains a second, as a multiple of
    eager's. row_error: of the network's output against eager's, root mean square relative to eager's, the
    worst of the rows tried. sample_error: of final samples against eager's, root mean square as a fraction
    of the range of eager's. warm_up: seconds until its first output, beyond a later one's.
    break_even: chains after which it has earned its warm-up. verdict: "chosen", "eager", or why it was not.
    """

    options: NetworkOptions
    slots: int
    graphs: bool = True
    seconds: float | None = None
    speed: float | None = None
    row_error: float | None = None
    sample_error: float | None = None
    warm_up: float | None = None
    break_even: int | None = None
    verdict: str = ""

    @property
    def name(self) -> str:
        """In few words, such as ``compiled, bf16 autocast, 128 slots``."""
        return f"{self.options}, {self.slots} slots" + ("" if self.graphs else ", no CUDA graphs")


@dataclass(frozen=True)
class Tuned:
    """The fastest way found to run a network; give it as ``options`` to :class:`ulam.Engine` or :func:`ulam.sample`.

    options, slots, graphs: of the engine. accuracy: what was asked for. candidates: all that were tried, eager first.
    device, sampler: what it was measured on. paging: the share of eager's time that went into pages of memory that had
    been freed before (:func:`ulam.keep_freed_memory`). ``print`` shows a table.
    """

    options: NetworkOptions
    slots: int
    graphs: bool
    accuracy: str | float
    device: str
    sampler: str
    candidates: tuple[Candidate, ...]
    paging: float = 0.0

    __repr__ = short_repr

    @property
    def chosen(self) -> Candidate:
        """The candidate whose options these are."""
        return next(candidate for candidate in self.candidates if candidate.verdict.startswith("chosen"))

    def __str__(self) -> str:
        rows = [HEAD, *(_cells(candidate) for candidate in self.candidates)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
        lines = [
            "  ".join(cell.ljust(width) if column < 1 else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows
        ]  # fmt: skip
        verdicts = ["", *(candidate.verdict for candidate in self.candidates)]
        table = [f"{line}  {verdict}".rstrip() for line, verdict in zip(lines, verdicts, strict=True)]
        told = f"{self.chosen.name}: {self.chosen.speed:.2f} times eager's chains a second"
        if self.paging > PAGING:
            advice = "ulam.keep_freed_memory() before all else saves it"
            table.append(f"{self.paging:.0%} of eager's time went into pages of memory that had been freed: {advice}")
        return "\n".join([f"{told} ({self.sampler}, accuracy {self.accuracy}, {self.device})", *table])


def _cells(one: Candidate) -> tuple[str, ...]:
    def told(value: float | None, form: str, scale: float = 1.0) -> str:
        return "-" if value is None or math.isnan(value) else form.format(value * scale)

    chains = "-" if one.break_even is None else f"{one.break_even} chains"
    return (
        str(one.options) + ("" if one.graphs else ", no CUDA graphs"),
        f"{one.slots} slots",
        told(one.seconds, "{:.3g} ms", 1e3),
        told(one.speed, "{:.2f}x"),
        told(one.row_error, "{:.1e}"),
        told(one.sample_error, "{:.1e}"),
        told(one.warm_up, "{:.1f} s"),
        chains,
    )
