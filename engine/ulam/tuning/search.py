"""The search among candidates: each is held to the accuracy, timed by turns with eager, and told apart by a verdict."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from dataclasses import replace
from typing import Any, cast

from tqdm.std import tqdm

from ..denoiser import Sampler
from ..engine.network import NetworkOptions
from ..engine.tuned import Candidate, Tuned
from ..programs.program import Program
from .candidates import EXACT, FP32, candidates
from .reference import Reference, outputs_of, reference
from .trial import TICKS, Failed, Setting, Trial

LEAST_ROUNDS, ROUNDS = 3, 21  # of a candidate's ticks and eager's, by turns
SHARE = 0.05  # of the budget, which the rounds of a candidate may take
LEAD = 1.02  # by which the median of these must be faster, and the lower quartile at all
TIMED = 0.02  # seconds that a timed run takes at least, where the program is long enough
SAMPLED = 0.05  # of the budget, which the compared samples may take in eager code
FEWEST = 5  # steps of these
BEGUN = 0.9  # of the budget, by which every candidate is expected to end: some take longer than those before them
NEEDED = {True: 0.3, False: 0.1}  # of the budget: what a candidate that compiles, or not, is taken to need at first


class Search:
    """Tries candidates until all are tried or the budget is spent."""

    def __init__(
        self,
        setting: Setting,
        sampler: Sampler | Program,
        accuracy: str | float,
        given: NetworkOptions,
        doubled: bool,
        budget: float,
        bar: tqdm[None],
    ) -> None:
        self._setting, self._sampler, self._accuracy, self._given = setting, sampler, accuracy, given
        self._doubled = doubled
        self._budget, self._end, self._bar = budget, time.monotonic() + BEGUN * budget, bar
        self._needed = {
            compiles: share * budget for compiles, share in NEEDED.items()
        }  # seconds, by whether it compiles
        self._evaluations = len(setting.program.evaluating)  # of a chain
        self._told: list[Candidate] = []
        self._eager: list[float] = []  # seconds of its ticks, beside those of all candidates

    def run(self, counts: list[int]) -> Tuned:
        """The fastest of all candidates, at the fastest of these numbers of slots.

        Raises ValueError where the network does not run eagerly.
        """
        first, guided = Candidate(self._given, counts[0]), self._setting.job["guidance"] is not None
        try:
            eager = Trial(self._setting, first)
            eager.warm_up()
            seconds, paging = eager.tick_and_paging()
            self._fit(seconds)
            eager = Trial(self._setting, first)
            expected = reference(self._setting, first, guided, wide=self._accuracy == FP32)
        except Failed as error:
            raise ValueError(f"denoiser: got a network that fails ({error}), expected one that runs eagerly") from None
        self._told.append(replace(first, seconds=seconds, speed=1.0, row_error=0.0, sample_error=0.0, warm_up=0.0))
        for slots in counts[1:]:
            self._try(Candidate(self._given, slots), eager, expected)
        slots, images = self._fastest().slots, len(self._setting.shape) == 3
        branches, device = guided and self._doubled, self._setting.device
        for candidate in candidates(self._given, slots, self._accuracy, device, images, branches):
            self._try(candidate, eager, expected)
        best = self._fastest()
        self._told = [replace(one, verdict="chosen") if one is best else one for one in self._told]
        if self._eager:
            self._told[0] = replace(self._told[0], seconds=statistics.median(self._eager))
        return Tuned(
            best.options, best.slots, best.graphs, self._accuracy, str(device), self._setting.program.sampler,
            tuple(self._told), paging,
        )  # fmt: skip

    def _fastest(self) -> Candidate:
        """The fastest of those without a verdict against them."""
        return max((one for one in self._told if not one.verdict), key=lambda one: one.speed or 0.0)

    def _fit(self, seconds: float) -> None:
        """Fit the runs to a tick of so many seconds: a timed one takes long enough to be timed; the compared one has
        fewer steps where all of them would take too long and the sampler can do with fewer.
        """
        program, denoiser = self._setting.program, self._setting.denoiser
        ticks = min(len(program.evaluating), max(TICKS, math.ceil(TIMED / seconds)))
        self._setting = replace(self._setting, timed=program[: int(program.evaluating[ticks - 1]) + 1])
        steps, own = int(SAMPLED * self._budget / seconds), getattr(self._sampler, "steps", None)
        if isinstance(own, int) and dataclasses.is_dataclass(self._sampler) and max(steps, FEWEST) < own:
            shorter: Any = replace(cast(Any, self._sampler), steps=max(steps, FEWEST))
            self._setting = replace(self._setting, program=denoiser.program(shorter))

    def _try(self, candidate: Candidate, eager: Trial, expected: Reference) -> None:
        left = self._end - time.monotonic()
        compiles = bool(candidate.options.compile)
        begin = time.monotonic()
        if left < self._needed[compiles]:
            found = replace(candidate, verdict=f"not tried: {max(0.0, left):.0f} s were left of {self._budget:.0f}")
        else:
            self._bar.set_postfix_str(candidate.name)
            try:
                found = self._measured(candidate, eager, expected)
            except Failed as error:
                found = replace(candidate, verdict=f"failed: {error}")
            self._needed[compiles] = time.monotonic() - begin
        self._told.append(found)
        self._bar.update()

    def _measured(self, candidate: Candidate, eager: Trial, expected: Reference) -> Candidate:
        """The candidate with all that was measured, and the verdict, if one speaks against it."""
        trial = Trial(self._setting, candidate)
        found = replace(candidate, warm_up=trial.warm_up())
        outputs = outputs_of(trial, expected.calls)
        found = replace(found, row_error=expected.row_error(outputs))
        if unlike := expected.unlike(self._accuracy, outputs):
            return replace(found, verdict=unlike)
        if candidate.options.doubled and not trial.branches_apart(*expected.calls[:2]):
            return replace(found, verdict="a chain's bits would depend on whether others are guided")
        found, leads = self._timed(found, trial, eager)
        if not leads:
            return replace(found, verdict="no lead over eager" if (found.speed or 0.0) > 1 else "slower than eager")
        if (found.speed or 0.0) < (self._fastest().speed or 0.0):
            return replace(found, verdict="not the fastest")
        error = expected.sample_error(trial.samples())
        allowed = {EXACT: 0.0, FP32: math.inf}.get(str(self._accuracy), self._accuracy)
        verdict = "" if error <= float(allowed) else f"sample error above {allowed}"
        return replace(found, sample_error=error, verdict=verdict)

    def _timed(self, candidate: Candidate, trial: Trial, eager: Trial) -> tuple[Candidate, bool]:
        """The candidate with its tick and speed; whether it leads eager beyond the noise of the measurement."""
        chains = candidate.slots / eager.candidate.slots
        times: list[tuple[float, float]] = []
        end = time.monotonic() + SHARE * self._budget
        while len(times) < LEAST_ROUNDS or (len(times) < ROUNDS and time.monotonic() < end):
            times.append((chains * eager.tick(), trial.tick()))  # for as many chains
        self._eager += [theirs / chains for theirs, _ in times]
        ratios = sorted(theirs / ours for theirs, ours in times)
        seconds, speed = statistics.median(ours for _, ours in times), statistics.median(ratios)
        saved = (statistics.median(theirs for theirs, _ in times) - seconds) * self._evaluations / candidate.slots
        pays = math.ceil((candidate.warm_up or 0.0) / saved) if saved > 0 else None
        found = replace(candidate, seconds=seconds, speed=speed, break_even=pays)
        return found, speed >= LEAD and ratios[len(ratios) // 4] > 1.0
