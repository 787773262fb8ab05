"""What was measured of a work: every way and part, and in one sentence what to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .timing import Ratio, Timing
from .ways import COMPILED, KERNEL, LOOP, OURS, THEIRS, TUNED, ULAM

GIB, MIB = 1 << 30, 1 << 20


@dataclass(frozen=True)
class Way:
    """A way to do the work.

    timing: seconds of an evaluation of all slots, with its step. speed: as a multiple of plain PyTorch's, by rounds.
    samples_per_second: of whole chains. warm_up: seconds of its first run beyond a later one. peak_bytes: that torch
    held at once during a run, beyond what there was before. difference: of its samples from plain PyTorch's of the same
    noise, root mean square as a fraction of their range; None where it draws its own noise, or has its own grid.
    told: what else there is to say, or why it was left out: then all else is None.
    """

    name: str
    timing: Timing | None = None
    speed: Ratio | None = None
    samples_per_second: float | None = None
    warm_up: float | None = None
    peak_bytes: int | None = None
    difference: float | None = None
    told: str = ""


@dataclass(frozen=True)
class Part:
    """A part of a run by itself: seconds a call of all slots."""

    name: str
    timing: Timing


@dataclass(frozen=True)
class Measured:
    """The throughput of a work, as :func:`ulam.throughput.measure` found it; ``print`` shows it in few lines.

    sampler, schedule, evaluations: of a chain. slots, shape, guidance, device, backend, parameters: of the work.
    timed: evaluations of a timed run. rounds: in which all ways ran in turn. step_bytes: the least that a step moves;
    bandwidth: bytes a second of torch's read-add-write pass, or of the fused step where that is faster; limit: seconds
    of a step that only moves its bytes.
    best: the way to use, or "" for nothing. verdict: that in a sentence. tuning: the table of :func:`ulam.tune`.
    """

    sampler: str
    schedule: str
    evaluations: int
    slots: int
    shape: tuple[int, ...]
    guidance: float | None
    device: str
    backend: str
    parameters: int
    timed: int
    rounds: int
    seconds: float
    ways: tuple[Way, ...]
    parts: tuple[Part, ...]
    network_share: float | None
    step_bytes: int
    bandwidth: float
    limit: float
    best: str
    verdict: str
    tuning: str = ""
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Way:
        """A way by its name. Raises KeyError."""
        return {way.name: way for way in self.ways}[name]

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"<Measured {self.sampler}, {self.slots} slots of {list(self.shape)}, {self.device}: {self.verdict}>"

    def __str__(self) -> str:
        guided = "" if self.guidance is None else f", guidance {self.guidance:g}"
        run = "" if self.timed == self.evaluations else f" (timed: the first {self.timed})"
        lines = [
            f"{self.sampler}{guided}: {self.evaluations} evaluations{run}, {self.slots} slots of {list(self.shape)}, "
            f"{self.device}, {self.rounds} rounds",
            f"  {'':<24}{'an evaluation':>14}{'quartiles':>20}{'samples/s':>11}{'speed':>8}{'warm-up':>10}"
            f"{'memory':>13}",
        ]
        lines += [_line(way) for way in self.ways]
        lines += [f"  {part.name:<32}{seconds(part.timing.median):>10}" for part in self.parts[:4]]
        lines.append(
            f"  {f'its limit: {self.step_bytes / MIB:.3g} MiB at {self.bandwidth / GIB:.3g} GiB/s':<32}"
            f"{seconds(self.limit):>10}"
        )
        return "\n".join([*lines, *([self.unrest] if self.unrest else []), self.verdict])

    @property
    def unrest(self) -> str:
        """A warning where the times of a way spread more than a quiet machine's do; else empty."""
        timings = [way.timing for way in self.ways if way.timing is not None]
        spread = max((t.upper_quartile / t.lower_quartile for t in timings), default=1.0)
        return f"the quartiles of one way are {spread:.1f}-fold apart: run again when it is quiet" if spread > 2 else ""


def _line(way: Way) -> str:
    if way.timing is None:
        return f"  {way.name:<24}left out: {way.told if len(way.told) <= 88 else way.told[:85] + '...'}"
    quartiles = f"{seconds(way.timing.lower_quartile)} - {seconds(way.timing.upper_quartile)}"
    speed = "-" if way.speed is None else f"{way.speed.median:.2f}x"
    memory = "-" if way.peak_bytes is None else f"{way.peak_bytes / MIB:.3g} MiB"
    rate = amount(way.samples_per_second or 0)
    return (
        f"  {way.name:<24}{seconds(way.timing.median):>14}{quartiles:>20}{rate:>11}{speed:>8}"
        f"{f'{way.warm_up or 0:.1f} s':>10}{memory:>13}"
    )


def seconds(value: float) -> str:
    """With a unit that leaves few digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def amount(value: float) -> str:
    """A number in few digits, without powers of ten."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


# ------------------------------------------------------------------------------------------------ the verdict


def judged(
    ratios: Mapping[tuple[str, str], Ratio], medians: Mapping[str, float], how: Mapping[str, str], share: float | None
) -> tuple[str, str]:
    """The way to use ("" for none beyond the plain loop) and the sentence that says it and what it gains.

    ratios: of pairs (a, b), how many times as fast b is as a. medians: seconds of each way that ran. how: what to write
    for each of ulam's ways. share: of the plain loop's time that the network takes.
    """
    ours = _simplest([name for name in OURS if name in medians], ratios, medians)
    others = sorted({*medians} - {*THEIRS, *OURS})
    theirs = _simplest([name for name in (*THEIRS, *others) if name in medians], ratios, medians)
    if ours is None or theirs is None:
        return "", "nothing was compared: see what was left out"
    over_loop, over_best = ratios[(LOOP, ours)] if LOOP in medians else ratios[(theirs, ours)], ratios[(theirs, ours)]
    beside = "" if theirs == LOOP else f", and {over_best} times {_spoken(theirs)}"
    if over_best.gains:
        return ours, f"use {how[ours]}: {over_loop} times the samples a second of the plain loop{beside}"
    if theirs != LOOP and not over_best.loses and over_loop.gains:
        return ours, (
            f"use {how[ours]} or {_spoken(theirs)}: {over_loop} times the plain loop's samples a second; between the "
            "two there is nothing beyond the quartiles"
        )
    network = "" if share is None else f", the network takes {min(share, 1.0):.1%} of the plain loop's time"
    if theirs != LOOP and LOOP in medians and ratios[(LOOP, theirs)].gains:
        gained = ratios[(LOOP, theirs)]
        return theirs, f"use {_spoken(theirs)}: {gained} times the plain loop; ulam gains nothing beyond it{network}"
    if over_loop.loses:
        return "", f"nothing to gain: keep the plain loop, ulam has {over_loop} times its samples a second{network}"
    return "", f"nothing to gain in speed: ulam and the plain loop differ within the quartiles, {over_loop}{network}"


def _simplest(names: list[str], ratios: Mapping[tuple[str, str], Ratio], medians: Mapping[str, float]) -> str | None:
    """The fastest of ways that are given from the simplest on, or a simpler one that it does not lead."""
    if not names:
        return None
    best = min(names, key=medians.__getitem__)
    return next(name for name in names if name == best or not ratios[(name, best)].gains)


def _spoken(name: str) -> str:
    return {COMPILED: "torch.compile of it", LOOP: "the plain loop"}.get(
        name, f"{name}{chr(39) if name.endswith('s') else chr(39) + 's'} loop"
    )


def how_to(options: str) -> dict[str, str]:
    """What to write for each of ulam's ways; ``options``: those that were tuned, in words."""
    return {
        ULAM: "ulam.Engine as it is",
        TUNED: f"ulam.Engine(options=ulam.tune(...)), which runs the network {options}",
        KERNEL: 'ulam.Engine(chain_kernel="on"), or --chain-kernel on',
    }
