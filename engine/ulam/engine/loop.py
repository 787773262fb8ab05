"""The engine's loop: from the scheduler's decisions to ticks of the runner, event by event, up to the results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch

from ..evaluation import in_eval_mode, modules_in
from ..programs.program import Program
from .alone import Alone, Kind
from .delivery import Delivery, Departures, Handed
from .errors import NetworkError
from .groups import Group
from .job import Job
from .runner import Runner
from .scheduler import Scheduler
from .tick_needs import TickNeeds
from .walked_slots import MOST_TICKS

Progress: TypeAlias = Callable[[int], object]


class Loop:
    """Runs the chains of a scheduler's slots on a runner; one thread at a time.

    ``room`` guards the scheduler and the results; it is never held while ticks run, and is notified when the queue gets
    shorter. Whoever changes the scheduler meanwhile sets ``changed``: the slots are then refilled before the next tick.
    Once ``stopped``, there are no more ticks.
    """

    def __init__(
        self, scheduler: Scheduler[Job], runner: Runner, delivery: Delivery, room: threading.Condition
    ) -> None:
        self._scheduler, self._runner, self._delivery, self._room = scheduler, runner, delivery, room
        self._turn = threading.RLock()  # held by the thread that runs the chains
        self.changed = False  # something was submitted, cancelled or closed since the slots were last filled
        self.stopped = False
        self._needs = TickNeeds()
        self._disturbed = False  # there was an exception since the last event
        self._rested = True  # the slots were empty, and nothing waited for them, since the last event
        self._alone: Alone | None = None  # for small jobs by themselves
        self._kept: tuple[Job, Kind] | None = None  # one like the last of them, kept out of the empty queue
        self._by_itself: Group[Job] | None = None  # walked without slots; perhaps still in the scheduler's queue
        self._cancelled: list[Group[Job]] = []  # out of the scheduler's slots, perhaps still in the runner's
        self._modules = [module for net in runner.denoiser.nets for module in modules_in(net)]

    @property
    def scheduler(self) -> Scheduler[Job]:
        """The scheduler, after what was kept out of its queue has entered it, and what has departed has left it."""
        if self._by_itself is not None or self._kept is not None:
            with self._room:
                self._settle_alone()
                self._delivery.complete_move()  # the job may have been joined already
                if self._kept is not None:
                    job, _ = self._kept
                    self._scheduler.settle()
                    if not self._scheduler.waits(job):
                        self._scheduler.submit(job, job.chains.shape[0], job.ticks)
                    self._kept = None
        return self._scheduler

    def keep(self, job: Job) -> bool:
        """Keep a job out of the queue, of the usual weight, until :meth:`run_out` or another needs the queue.

        Whether it was: only beside nothing else, and if it is like the job that was walked last. Under ``room``.
        """
        scheduler = self._scheduler
        if self._alone is None or self._kept is not None or scheduler.busy or scheduler.changing:
            return False
        if not self._delivery.empty:  # what an interrupt has left comes first
            return False
        if (kind := self._alone.repeated(job)) is not None:
            self._kept = job, kind
        return kind is not None

    # ------------------------------------------------------------------------------------------------- results

    def next_results(self, split: bool, progress: Progress | None = None) -> Handed | None:
        """Run until results can be handed out, chain by chain or in groups; None once no chain is left."""
        with self._turn:
            handed = self._delivery.hand_out(split)
            while handed is None and (departures := self._next_departures(progress)) is not None:
                handed = self._delivery.take(departures, split)
            return handed

    def run_out(self) -> None:
        """Run until no chain is left, and join the results of each job's chains, for this thread to take."""
        with self._turn:
            if (kept := self._kept) is not None and self._joined_kept(kept):
                return
            self._delivery.hand_out(split=False)  # completes an interrupted hand-over
            while (departures := self._next_departures(None)) is not None:
                self._delivery.take(departures, split=False)
            self._delivery.join()

    def _next_departures(self, progress: Progress | None) -> Departures | None:
        """Run until chains have left their slots; None once no chain is left."""
        with self._room:
            self._settle()
        while not self.stopped:
            if self._runner.previews:
                self._call_back()
            scheduler = self.scheduler
            busy = bool(scheduler.active or scheduler.waiting)
            departures = self._delivery.next(wait=not busy)
            self._rested = self._rested or not busy
            if departures is not None or not busy:
                return departures
            self.run_to_next_event(progress)
        return None

    def _call_back(self) -> None:
        """Pass the pending previews to their jobs' callbacks."""
        previews = self._runner.previews
        while previews:
            with self._room:
                preview = previews.pop(0)
            if preview.job.callback is not None:
                preview.job.callback(preview)
            previews = self._runner.previews  # a callback may cancel

    def cancel(self, job: Job) -> int:
        """Drop a job from the queue and the slots; return how many chains that were; under ``room``."""
        scheduler = self.scheduler
        scheduler.settle()
        self._retire_held()
        dropped, running = scheduler.cancel(job)
        self._cancelled += running
        self._runner.previews = [preview for preview in self._runner.previews if preview.job is not job]
        self.changed = True
        return dropped

    # --------------------------------------------------------------------------------------------------- ticks

    def run_to_next_event(self, progress: Progress | None) -> None:
        """Fill the free slots and tick until a group is done, previews wait or the scheduler has changed."""
        scheduler, runner, report = self._scheduler, self._runner, self._runner.report
        begin, network, step = time.perf_counter(), runner.network_seconds, runner.step_seconds
        self._disturbed = True
        try:
            if self._walked_alone(progress):
                self._disturbed = False
                return
            with in_eval_mode(self._modules), torch.inference_mode():
                if runner.device.type == "cuda":
                    runner.join_stream()
                with self._room:
                    ticks = self._fill()
                runner.fit(self._needs, scheduler.tick)
                if runner.chains is not None and ticks:
                    runner.chains.follow(self._needs.groups, self._rested)
                    self._rested = False
                if runner.graphs is not None:
                    runner.check_graphs(runner.graphs)
                while ticks:
                    ticks -= self._tick(progress, ticks)
                    if runner.previews or self.changed:
                        break
                with self._room:
                    if ending := scheduler.ending():
                        self._delivery.put(ending)
                        scheduler.retire()
                        runner.buffers.leave(ending)
                        self._needs.leave(ending)
            self._disturbed = False
        finally:
            report.seconds += time.perf_counter() - begin
            report.network_seconds += runner.network_seconds - network
            report.step_seconds += runner.step_seconds - step

    def _walked_alone(self, progress: Progress | None) -> bool:
        """Walk the job that waits by itself, without slots, if it may be. Until it is done it waits in the queue."""
        scheduler, runner = self._scheduler, self._runner
        if runner.chains is None or not runner.between_ticks:
            return False
        if self._alone is None:
            self._alone = Alone(runner.chains, runner.buffers)
        with self._room:
            job = scheduler.only
        if job is None or not self._alone.takes(job):
            return False
        begin = time.perf_counter()
        states, rows = self._alone.walk(job)
        runner.chains.seconds += time.perf_counter() - begin
        self._end_alone(job, states, rows, progress)
        return True

    def _joined_kept(self, kept: tuple[Job, Kind]) -> bool:
        """Walk the job that was kept out of the queue, and join its states for this thread, where that is all."""
        runner, delivery, report, (job, kind) = self._runner, self._delivery, self._runner.report, kept
        if self._disturbed or self.stopped or runner.previews or not delivery.empty:
            return False
        if self._scheduler.busy or self._scheduler.changing:  # it is about to be in the queue
            return False
        if self._alone is None or not self._alone.is_of(kind):
            return False
        begin = time.perf_counter()
        states, rows = self._alone.walk(job)
        count, ticks, took = job.chains.shape[0], job.ticks, time.perf_counter() - begin
        with self._room:
            if rows is not None or self._kept is not kept:  # a chain failed, or another needed the queue
                report.seconds += took
                report.network_seconds += took
                self._disturbed = True
                self._end_alone(job, states, rows, None)
                self._disturbed = False
                return False
            rows_done = count * ticks
            then = {
                "chains": report.chains + count, "ticks": report.ticks + ticks,
                "evaluations": report.evaluations + rows_done, "rows": report.rows + rows_done,
                "seconds": report.seconds + took, "network_seconds": report.network_seconds + took,
            }  # fmt: skip
            delivery.join_alone(job, states, partial(self._drop_kept, kept, then))
        return True

    def _drop_kept(self, kept: tuple[Job, Kind], then: dict[str, Any]) -> None:
        """Drop the kept job, which has been joined; the report is then so. Repeated, it changes nothing."""
        vars(self._runner.report).update(then)
        if self._kept is kept:
            self._kept = None

    def _end_alone(
        self, job: Job, states: torch.Tensor, rows: torch.Tensor | None, progress: Progress | None
    ) -> None:  # fmt: skip
        """Let a job that was walked by itself depart from the queue."""
        runner, report = self._runner, self._runner.report
        count, ticks = job.chains.shape[0], job.ticks
        with self._room:
            scheduler = self.scheduler
            if scheduler.waits(job):  # was not cancelled meanwhile
                group = Group(job, 0, slice(0, count), scheduler.tick, scheduler.tick + ticks)
                self._by_itself = group
                self._delivery.put_alone(group, states, rows)
                scheduler.cancel(job)
                self._by_itself = None
                runner.skip(ticks)
                scheduler.tick = runner.next_tick
                report.ticks += ticks
                report.evaluations += count * ticks
                report.rows += count * ticks
                self._room.notify_all()
                if progress is not None:
                    progress(count * ticks)

    def _settle(self) -> None:
        """Complete whatever an exception has interrupted; under ``room``.

        The scheduler's record of the slots holds. States that were only partly written are lost: all chains in the
        slots then start over, which gives the same bits.
        """
        scheduler, runner = self._scheduler, self._runner
        if scheduler.changing:
            scheduler.settle()
        if not self._disturbed:
            return
        scheduler.tick = runner.next_tick
        if runner.torn:
            scheduler.begin_anew()
            runner.begin_anew()
        self._retire_held()
        self._settle_alone()
        runner.buffers.idle_but(scheduler.groups)
        self._cancelled = []
        self._needs = TickNeeds(scheduler.groups)
        self._disturbed = False

    def _retire_held(self) -> None:
        """Free the slots of groups whose states have been copied out of them, where an interrupt came in between."""
        if any(self._delivery.holds(group) for group in self._scheduler.ending()):
            self._scheduler.retire()

    def _settle_alone(self) -> None:
        """Complete the departure of a job walked by itself."""
        if self._by_itself is not None and self._delivery.holds(self._by_itself):
            self._scheduler.cancel(self._by_itself.job)
        self._by_itself = None

    def _fill(self) -> int:
        """Remove cancelled groups and fill the free slots; return the ticks until the next group is done."""
        scheduler, runner, needs = self._scheduler, self._runner, self._needs
        self.changed = False
        if self._cancelled:
            runner.buffers.leave(self._cancelled)
            needs.leave(self._cancelled)
            self._cancelled = []
        if runner.between_ticks:
            if entered := scheduler.admit():
                needs.enter(entered)
                self._room.notify_all()
            if scheduler.newest:
                runner.buffers.enter(scheduler.newest, self._running)
                if runner.chains is not None:
                    runner.chains.enter(scheduler.newest)
                scheduler.newest = []
        needs.groups, needs.active = scheduler.groups, scheduler.active
        return scheduler.ticks_until_event

    def _running(self) -> set[Program]:
        """The programs of the chains in the slots."""
        return {group.job.program for group in self._scheduler.groups}

    def _tick(self, progress: Progress | None, most: int) -> int:
        """One tick, or as many at once as can be, at most these; return how many."""
        needs, report = self._needs, self._runner.report
        if self._runner.chains is not None and needs.plain and self._runner.between_ticks:
            done = min(most, MOST_TICKS)
            self._runner.walk(self._scheduler.tick, done, needs)
            self._scheduler.tick += done
            report.ticks += done
            report.evaluations += done * needs.active
            report.rows += done * self._runner.rungs.size
            if progress is not None:
                progress(done * needs.active)
            return done
        try:
            self._runner.tick(self._scheduler.tick, needs)
        except NetworkError as error:
            ids: dict[Job, list[int]] = {}
            for group in needs.groups:
                ids.setdefault(group.job, []).extend(group.job.ids[group.chains])
            cause = error.__cause__ or error
            raise NetworkError(cause, ids, error.wants_gradients, error.way_out) from error.__cause__
        self._scheduler.tick += 1
        report.ticks += 1
        report.evaluations += needs.active
        report.rows += self._runner.rungs.size
        if progress is not None:
            progress(needs.active)
        return 1
