"""What was measured of a work, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping

from . import figures, parts
from .measured import GIB, MIB, Measured, Way, amount, seconds
from .page import heading, listing, page, paragraph, picture, table
from .ways import LOOP

WAYS = (
    "way", "an evaluation", "quartiles", "samples/s", "speed", "its quartiles", "warm-up", "memory", "difference",
)  # fmt: skip
PARTS = (
    "Each part is timed right after a call of itself: what it reads is in the caches as far as they hold it, and the "
    "fused step writes over the states that it reads, as in a run. A run's evaluation has besides the network, the "
    "first noise and the engine's own work; a network that fills the caches with its own makes the step slower."
)


def html(measured: Measured, title: str, machine: Mapping[str, str], pictures: bool = True) -> str:
    """The file. machine: facts by name, the date among them. pictures: with plots, which need matplotlib."""
    found = measured
    ran = {way.name: way.timing for way in found.ways if way.timing is not None}
    sections = [heading("Samples a second")]
    if pictures:
        says = f"Samples a second of whole chains, {found.slots} at a time ({found.sampler})."
        sections.append(
            picture(figures.bars("Samples a second", "samples / s", ran, found.slots / found.evaluations), says)
        )
    out = [[way.name, way.told] for way in found.ways if way.timing is None]
    sections += [
        table(WAYS, [_row(way) for way in found.ways if way.timing is not None], best=found.best),
        paragraph(" ".join(filter(None, (_legend(found), found.unrest and f"{found.unrest}.".capitalize())))),
    ]
    if out:
        sections += [heading("Left out"), table(("way", "why"), out, words=1)]
    sections.append(heading("The parts of a step, by themselves"))
    named = {part.name: part.timing for part in found.parts}
    if pictures:
        timed = {name: timing for name, timing in named.items() if name != parts.MEMORY}
        limit = (f"limit: {found.step_bytes / MIB:.3g} MiB at the memory's speed", found.limit)
        says = (
            f"Seconds of one step of {found.slots} chains and of its noise, beside the time to move the step's bytes."
        )
        sections.append(picture(figures.bars("A step and its noise", "time", timed, limit=limit), says))
    rows = [
        [name, seconds(t.median), f"{seconds(t.lower_quartile)} to {seconds(t.upper_quartile)}"]
        for name, t in named.items()
    ]
    rows.append(
        [f"limit: {found.step_bytes / MIB:.3g} MiB at {found.bandwidth / GIB:.3g} GiB/s", seconds(found.limit), ""]
    )
    sections += [table(("part", "median", "quartiles"), rows), paragraph(PARTS)]
    if found.network_share is not None:
        sections.append(paragraph(f"The network takes {found.network_share:.1%} of the plain loop's time."))
    if found.tuning:
        sections += [heading("What ulam.tune tried"), listing(found.tuning)]
    sections += [heading("What was measured, and where"), table(("", ""), _facts(found, machine), words=1)]
    return page(title, sections, lead=f"{found.verdict[0].upper()}{found.verdict[1:]}.")


def _row(way: Way) -> list[str]:
    timing, speed = way.timing, way.speed
    assert timing is not None
    return [
        way.name,
        seconds(timing.median),
        f"{seconds(timing.lower_quartile)} to {seconds(timing.upper_quartile)}",
        amount(way.samples_per_second or 0),
        "-" if speed is None else f"{speed.median:.2f}x",
        "-" if speed is None else f"{speed.lower_quartile:.2f} to {speed.upper_quartile:.2f}",
        f"{way.warm_up or 0:.1f} s",
        "-" if way.peak_bytes is None else f"{way.peak_bytes / MIB:.3g} MiB",
        "-" if way.difference is None else f"{way.difference:.1e}",
    ]


def _legend(found: Measured) -> str:
    return (
        f"An evaluation: seconds of one evaluation of the network for all {found.slots} slots, with its step. Speed: "
        f"against {LOOP}, the median of the ratios in {found.rounds} rounds in which all ways ran in turn. Warm-up: "
        "of the first run, beyond a later one. Memory: the most that torch held at once during a run, beyond what "
        f"there was before. Difference: of the samples from those of {LOOP} with the same noise, root mean square as a "
        "fraction of their range; - where a way draws its own noise or has its own grid."
    )


def _facts(found: Measured, machine: Mapping[str, str]) -> list[list[str]]:
    timed = "whole runs" if found.timed == found.evaluations else f"the first {found.timed} evaluations of a run"
    facts = {
        "sampler": found.sampler,
        "schedule": found.schedule,
        "evaluations": f"{found.evaluations} a chain; timed: {timed}",
        "batch": f"{found.slots} slots of {list(found.shape)}",
        "guidance": "none" if found.guidance is None else f"{found.guidance:g}: two calls an evaluation",
        "parameters": f"{found.parameters:,}",
        "device": f"{found.device}, backend {found.backend}",
        "took": f"{found.seconds:.0f} s",
        **{f"note {number}": note for number, note in enumerate(found.notes, 1)},
        **machine,
    }
    return [[name, value] for name, value in facts.items()]
