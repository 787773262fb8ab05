"""Which chains are in which slots, and when. Plain Python: no tensors, no clock.

A chain's number of ticks is known before it starts, so every departure is known on arrival, and the end of every
job can be predicted. Chains of one job that enter neighbouring slots together form a group, which also leaves together:
the work grows with events, not chains.
"""

from __future__ import annotations

import copy
import functools
import heapq
import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from .errors import QueueFull
from .fair_shares import J, JobRecord, check_numbers, shares
from .groups import Group, merged

POLICIES = ("fifo", "shortest", "fair", "deadline")
Method = TypeVar("Method", bound=Callable[..., Any])


def _changes(method: Method) -> Method:
    """Decorates a method that changes the scheduler and never raises; the next one completes an interrupted change."""

    @functools.wraps(method)
    def change(self: Scheduler[Any], *arguments: Any, **named: Any) -> Any:
        self.settle()
        self.changing = True
        result = method(self, *arguments, **named)
        self.changing = False
        return result

    return cast(Method, change)


class Scheduler(Generic[J]):
    """Jobs in a queue, and their chains in a fixed number of slots; a chain in a slot is never preempted.

    A free slot goes to a waiting job of the highest priority; among those, by the policy, to the job with

    | policy | the least |
    |---|---|
    | fifo | submission number |
    | shortest | waiting work (chains times ticks) over weight [Smith 1956] |
    | fair | (slots held + 1) / weight: slots in proportion to the weights, as far as jobs can use them |
    | deadline | latest start, ``deadline - ceil(chains / slots) ticks``; jobs without a deadline come last |

    and ties go by submission. Under the first three, jobs whose deadline presses come before the others of their
    priority, the least waiting work over weight first. A deadline presses once waiting for the longest chain submitted
    so far could make the job miss its latest start. It is not guaranteed; :meth:`plan` says whether it is met.

    capacity: the most chains that may wait, None for any number. The caller advances ``tick``, by at most
    ``ticks_until_event`` before :meth:`retire` and :meth:`admit`. ``newest``: the groups that have entered since the
    caller last emptied it. :meth:`settle` completes an interrupted change (``changing``): the set of jobs and the
    groups in the slots change in one assignment each, and all else is derived from these. Raises ValueError for an
    invalid argument.
    """

    def __init__(self, slots: int, policy: str = "fifo", capacity: int | None = None) -> None:
        if slots < 1:
            raise ValueError(f"slots: got {slots}, expected at least 1")
        if policy not in POLICIES:
            raise ValueError(f"policy: got {policy!r}, expected one of {', '.join(POLICIES)}")
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity: got {capacity}, expected at least 1 chain, or None")
        self.slots, self.policy, self.capacity = slots, policy, capacity
        self.tick = 0
        self.active = 0  # slots with a chain
        self.waiting = 0  # chains without a slot
        self._groups: dict[Group[J], None] = {}
        self._listed: list[Group[J]] | None = []
        self._free = [(0, slots)]
        self._records: dict[J, JobRecord[J]] = {}
        self._jobs: dict[int, J] = {}  # by number
        self._queue: list[tuple[int, bool, float, int, int]] = []  # a heap, with stale entries
        self._due: list[tuple[float, int]] = []  # a heap: when a deadline begins to press, job number
        self._ends: dict[int, list[Group[J]]] = {}  # the groups by the tick at which they end
        self._ticks: list[int] = []  # those ticks, a heap
        self._longest = 0
        self._numbers = 0
        self._plan: dict[J, int] | None = {}
        self.newest: list[Group[J]] = []
        self.changing = False

    @property
    def busy(self) -> bool:
        return bool(self._groups or self.waiting)

    @property
    def free(self) -> int:
        """Slots without a chain."""
        return self.slots - self.active

    @property
    def groups(self) -> list[Group[J]]:
        """The groups in the slots, in order of entry."""
        if self._listed is None:
            self._listed = list(self._groups)
        return self._listed

    @property
    def only(self) -> J | None:
        """The job that waits, with all of its chains, where there is no other and the slots are empty and enough."""
        if self.active or self.waiting > self.slots or len(self._records) != 1 or self.changing:
            return None
        (record,) = self._records.values()
        return None if record.entered else record.job

    def waits(self, job: J) -> bool:
        """Whether a job waits with all of its chains."""
        return (record := self._records.get(job)) is not None and not record.entered

    def check(
        self, chains: int, ticks: int, priority: int = 0, weight: float = 1.0, deadline: float | None = None
    ) -> None:
        """Raise what :meth:`submit` would: ValueError for an invalid argument, QueueFull if there is no room."""
        self.settle()
        check_numbers(chains, ticks, priority, weight, deadline)
        if self.capacity is not None and chains > self.capacity:
            raise QueueFull(f"chains: got {chains}, expected at most {self.capacity}, the queue's capacity")
        if self.capacity is not None and not self._has_room(chains):
            room = f"{self.capacity - self.waiting} (in {self.room_in(chains)} ticks there is room)"
            raise QueueFull(f"chains: got {chains} beside {self.waiting} that wait, expected at most {room}")

    def submit(
        self, job: J, chains: int, ticks: int, priority: int = 0, weight: float = 1.0, deadline: float | None = None
    ) -> None:
        """Queue a job of ``chains`` chains, each lasting ``ticks`` ticks (both at least 1).

        priority: higher comes first. weight: see the class. deadline: the number of ticks from now by which the
        job should end. Raises ValueError for an invalid argument, QueueFull if there is no room.
        """
        self.check(chains, ticks, priority, weight, deadline)
        if job in self._records:
            raise ValueError(f"job: got {job!r:.60} a second time, expected each once")
        self._submit(job, chains, ticks, priority, weight, deadline)

    @_changes
    def _submit(self, job: J, chains: int, ticks: int, priority: int, weight: float, deadline: float | None) -> None:
        self._numbers += 1
        latest = math.inf
        if deadline is not None:
            latest = self.tick + deadline - math.ceil(chains / self.slots) * ticks
        record = JobRecord(job, self._numbers, ticks, chains, priority, weight, latest)
        self._records[job], self._jobs[record.number] = record, job
        self.waiting += chains
        if ticks > self._longest:  # all deadlines press sooner; equal shifts keep the heap order
            self._due = [(at + self._longest - ticks, number) for at, number in self._due]
            self._longest = ticks
        self._await_deadline(record)
        self._enqueue(record)
        self._plan = None

    @_changes
    def cancel(self, job: J) -> tuple[int, list[Group[J]]]:
        """Drop a job; return how many chains, in the queue and in slots, and the groups that left their slots.

        A job that is unknown, or over, is ignored.
        """
        if (record := self._records.get(job)) is None:
            return 0, []
        groups = [group for group in self._groups if group.job == job]
        self.waiting -= record.waiting
        self._leave(groups)
        self._list_ends()
        self._forget(record)
        self._plan = None
        return record.waiting + record.held, groups

    @_changes
    def drop_waiting(self) -> None:
        """Drop the chains in the queue, not those in slots."""
        self.waiting = 0
        self._queue, self._due = [], []
        for record in list(self._records.values()):
            record.chains, record.waiting = record.entered, 0
            if not record.held:
                self._forget(record)
        self._plan = None

    @_changes
    def admit(self) -> list[Group[J]]:
        """Fill the free slots from the queue; return the groups that entered."""
        while self._due and self._due[0][0] <= self.tick:
            record = self._numbered(heapq.heappop(self._due)[1])
            if record is not None and record.waiting:
                record.pressing = True
                self._enqueue(record)
        entered: list[Group[J]] = []
        while self._free and (records := self._next()):
            for record, count in shares(records, self.free):
                self._enter(record, count, entered)
                self._enqueue(record)
        return entered

    @property
    def ticks_until_event(self) -> int:
        """Ticks until the next group leaves; nothing enters before."""
        return self._ticks[0] - self.tick if self._ticks else 0

    def ending(self) -> list[Group[J]]:
        """The groups that end at this tick, whose slots :meth:`retire` will free."""
        return list(self._ends[self._ticks[0]]) if self._ticks and self._ticks[0] <= self.tick else []

    @_changes
    def retire(self) -> list[Group[J]]:
        """Free the slots of the groups that end at this tick; return these groups."""
        ended = self.ending()
        if not ended:
            return ended
        del self._ends[heapq.heappop(self._ticks)]
        for group in ended:
            self._records[group.job].held -= group.size
        self._leave(ended)
        for job in {group.job: None for group in ended}:
            record = self._records[job]
            if not record.held and not record.waiting:
                self._forget(record)
            elif self.policy == "fair":
                self._enqueue(record)  # its turn may come sooner now
        return ended

    def settle(self) -> None:
        """After an interrupted change: derive everything else from the jobs and groups there are."""
        if not self.changing:
            return
        for record in self._records.values():
            record.held, record.waiting = 0, record.chains - record.entered
            self._longest = max(self._longest, record.ticks)
        free, begin = [], 0
        for group in sorted(self._groups, key=lambda group: group.slots.start):
            record = self._records[group.job]
            record.held += group.size
            record.entered = max(record.entered, group.chains.stop)
            record.waiting = record.chains - record.entered
            free.append((begin, group.slots.start))
            begin = group.slots.stop
        self._free = [(begin, end) for begin, end in (*free, (begin, self.slots)) if begin < end]
        self.active = self.slots - sum(end - begin for begin, end in self._free)
        self.newest = [group for group in self.newest if group in self._groups]
        self._records = {job: record for job, record in self._records.items() if record.waiting or record.held}
        self._jobs = {record.number: job for job, record in self._records.items()}
        self.waiting = sum(record.waiting for record in self._records.values())
        self._queue, self._due, self._listed, self._plan = [], [], None, None
        self._list_ends()
        for record in self._records.values():
            self._await_deadline(record)
            self._enqueue(record)
        self.changing = False

    def begin_anew(self) -> None:
        """Make all chains in the slots enter again, at this tick."""
        for group in self._groups:
            group.start, group.end = self.tick, self.tick + self._records[group.job].ticks
        self._list_ends()
        self.newest = list(self._groups)
        self._plan = None

    def plan(self) -> dict[J, int]:
        """The tick at which each job's last chain leaves: exact as long as nothing is submitted or cancelled."""
        self.settle()
        if self._plan is None:
            ends: dict[J, int] = {}
            ahead = self._fork()
            while ahead.busy:
                ahead.admit()
                ahead.tick += ahead.ticks_until_event
                ends.update((group.job, ahead.tick) for group in ahead.retire())
            self._plan = ends
        return dict(self._plan)

    def predicted_end(self, job: J) -> int | None:
        """Ticks from now until a job's last chain leaves, as :meth:`plan` has it; None for a job that is not here."""
        end = self.plan().get(job)
        return None if end is None else end - self.tick

    def room_in(self, chains: int) -> int:
        """Ticks from now until ``chains`` more (at most ``capacity``) may be submitted, as exact as :meth:`plan`."""
        self.settle()
        ahead = self._fork()
        while ahead.waiting and not ahead._has_room(chains):
            ahead.admit()
            if not ahead._has_room(chains):
                ahead.tick += ahead.ticks_until_event
                ahead.retire()
        return ahead.tick - self.tick

    def _fork(self) -> Scheduler[J]:
        """A copy that can be run ahead."""
        ahead = copy.copy(self)
        ahead._groups, ahead._listed, ahead._free = dict(self._groups), None, list(self._free)
        ahead._queue, ahead._due, ahead.newest = list(self._queue), list(self._due), list(self.newest)
        ahead._ends, ahead._ticks = {end: list(groups) for end, groups in self._ends.items()}, list(self._ticks)
        ahead._jobs = dict(self._jobs)
        ahead._records = {job: copy.copy(record) for job, record in self._records.items()}
        return ahead

    def _has_room(self, chains: int) -> bool:
        return self.capacity is None or self.waiting + chains <= self.capacity

    def _await_deadline(self, record: JobRecord[J]) -> None:
        """Note when a job's deadline begins to press, if it has one."""
        if record.latest < math.inf and self.policy != "deadline" and not record.pressing:
            heapq.heappush(self._due, (record.latest - self._longest, record.number))

    def _enqueue(self, record: JobRecord[J]) -> None:
        """Put a job where it now belongs in the queue; its previous entry becomes stale."""
        self._numbers += 1
        record.stamp = self._numbers
        if not record.waiting:
            return
        if len(self._queue) > 2 * len(self._records) + 64:
            self._queue = [entry for entry in self._queue if self._valid(entry)]
            heapq.heapify(self._queue)
        value = 0.0
        if record.pressing or self.policy == "shortest":
            value = record.waiting * record.ticks / record.weight
        elif self.policy == "fair":
            value = (record.held + 1) / record.weight
        elif self.policy == "deadline":
            value = record.latest
        entry = (-record.priority, not record.pressing, value, record.number, record.stamp)
        heapq.heappush(self._queue, entry)

    def _valid(self, entry: tuple[int, bool, float, int, int]) -> bool:
        record = self._numbered(entry[3])
        return record is not None and record.stamp == entry[4]

    def _numbered(self, number: int) -> JobRecord[J] | None:
        return self._records[self._jobs[number]] if number in self._jobs else None

    def _forget(self, record: JobRecord[J]) -> None:
        """Drop all references to a job that is over: it may hold large tensors."""
        del self._records[record.job], self._jobs[record.number]
        if self._plan is not None:
            self._plan.pop(record.job, None)

    def _next(self) -> list[JobRecord[J]]:
        """The jobs that the free slots go to: one, or under "fair" all that may share them."""
        chosen: list[JobRecord[J]] = []
        first = None
        while self._queue and len(chosen) < self.free:
            if self._valid(self._queue[0]):
                entry = self._queue[0]
                if first is not None and entry[:2] != first[:2]:
                    break
                first = entry
                chosen.append(self._records[self._jobs[entry[3]]])
            heapq.heappop(self._queue)
            if chosen and (self.policy != "fair" or chosen[0].pressing):
                break
        return chosen

    def _enter(self, record: JobRecord[J], count: int, entered: list[Group[J]]) -> None:
        """Put the next ``count`` chains of a job into free slots, and their groups into ``entered``."""
        while count:
            begin, end = self._free[0]
            size = min(count, end - begin)
            self._free[:1] = [(begin + size, end)] if begin + size < end else []
            slots = slice(begin, begin + size)
            group = Group(record.job, record.entered, slots, self.tick, self.tick + record.ticks)
            self.newest.append(group)
            self._groups[group] = None
            self._list_end(group)
            entered.append(group)
            count -= size
            record.entered += size
            record.waiting -= size
            record.held += size
            self.waiting -= size
            self.active += size
        self._listed = None

    def _list_end(self, group: Group[J]) -> None:
        if (ending := self._ends.get(group.end)) is not None:
            ending.append(group)
        else:
            self._ends[group.end] = [group]
            heapq.heappush(self._ticks, group.end)

    def _list_ends(self) -> None:
        """List again when each group ends."""
        self._ends, self._ticks = {}, []
        for group in self._groups:
            self._list_end(group)

    def _leave(self, groups: list[Group[J]]) -> None:
        """Free the slots of these groups."""
        for group in groups:
            del self._groups[group]
            self.active -= group.size
        if self.newest:
            self.newest = [group for group in self.newest if group in self._groups]
        if groups:
            self._free = merged(self._free + [(group.slots.start, group.slots.stop) for group in groups])
            self._listed = None
