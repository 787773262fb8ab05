"""What the chains in the slots need at a tick, known on the host from their programs."""

from __future__ import annotations

from collections import Counter

from .groups import Group
from .job import Job

NOT_PLAIN = (
    "without_evaluation", "noisy", "intervals", "rescaled", "reduces", "blends", "previews",
    "unguided", "scheduled", "ruled", "blended", "recorded",
)  # fmt: skip


class TickNeeds:
    """What ticks need until the next chain enters or leaves its slot: a flag is True if any chain needs it."""

    without_evaluation = False  # rows that do not evaluate the network
    noisy = False  # noise given by the caller
    intervals = False  # guidance that depends on the time
    guided = False
    rescaled = False
    reduces = False
    blends = False
    scaled = False  # network inputs that are not the states
    previews = False
    unguided = False  # the unguided output by itself
    scheduled = False  # guidance weights that depend on the row
    ruled = False  # guidance by a rule
    blended = False  # outputs of further conditionings
    recorded = False  # states, outputs, log-probabilities
    plain = True  # none but guidance by constant weights, and scaled inputs

    def __init__(self, groups: list[Group[Job]] | None = None) -> None:
        self.groups: list[Group[Job]] = []
        self.active = 0  # chains in them
        self._counts: Counter[str] = Counter()
        self._registers: Counter[int] = Counter()
        self.registers = 1  # the most of any program
        self.enter(groups or [])

    @property
    def kind(self) -> tuple[object, ...]:
        """What determines a tick's operations, besides the network's calls."""
        return (
            self.registers, self.intervals, self.rescaled, self.reduces, self.blends, self.scaled,
            self.unguided, self.scheduled, self.ruled, self.blended, self.recorded,
        )  # fmt: skip

    def enter(self, groups: list[Group[Job]]) -> None:
        """Add what these groups need."""
        self._count(groups, 1)

    def leave(self, groups: list[Group[Job]]) -> None:
        """Remove what these groups needed."""
        self._count(groups, -1)

    def _count(self, groups: list[Group[Job]], sign: int) -> None:
        for group in groups:
            for trait in group.job.traits:
                self._counts[trait] += sign
                setattr(self, trait, self._counts[trait] > 0)
            self._registers[group.job.program.registers] += sign
        self.plain = not any(map(self._counts.__getitem__, NOT_PLAIN)) if self._counts else True
        self.registers = max((count for count, groups in self._registers.items() if groups), default=1)


Rows = list[list[tuple[Group[Job], int]]]


def rows_without_evaluation(tick: int, groups: list[Group[Job]]) -> tuple[Rows, Rows]:
    """Rows without an evaluation that come before this tick's evaluation, and after it if it is the last.

    Each list holds fused steps; each step lists the groups that take part, with the row of their program.
    """
    before: Rows = []
    after: Rows = []
    for group in groups:
        rows, evaluation = group.job.program.evaluating, tick - group.start
        if len(rows) == len(group.job.program):
            continue
        previous = rows[evaluation - 1] + 1 if evaluation else 0
        trailing = rows[-1] + 1 if evaluation == len(rows) - 1 else len(group.job.program)
        for steps, rows_between in (
            (before, range(previous, rows[evaluation])),
            (after, range(trailing, len(group.job.program))),
        ):
            steps += [[] for _ in range(len(rows_between) - len(steps))]
            for step, row in zip(steps, rows_between, strict=False):
                step.append((group, row))
    return before, after


def row_of(group: Group[Job], tick: int) -> int:
    """The row of its program that a group evaluates at this tick."""
    return group.job.program.evaluating[tick - group.start]


def due(group: Group[Job], tick: int) -> bool:
    """Whether a preview of this group is due at this tick."""
    job = group.job
    return job.callback is not None and (tick - group.start + 1) % job.every == 0
