"""The engine's loop: from what the scheduler decides to ticks of the runner, event by event."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeAlias

import torch

from ..evaluation import in_eval_mode
from ..programs.program import Program
from .errors import NetworkError
from .job import Job
from .results import Outbox
from .runner import Runner
from .scheduler import Group, Scheduler
from .tick_needs import Work

Progress: TypeAlias = Callable[[int], object]


class Loop:
    """Runs the chains of a scheduler's slots on a runner; one thread at a time.

    ``room`` is held over the scheduler and the outbox, never while ticks run, and notified when the queue gets shorter.
    Whoever changes the scheduler meanwhile says so by ``changed``: the slots are then filled anew at the next tick.
    """

    def __init__(self, scheduler: Scheduler[Job], runner: Runner, outbox: Outbox, room: threading.Condition) -> None:
        self._scheduler, self._runner, self._outbox, self._room = scheduler, runner, outbox, room
        self.changed = False  # something was submitted, cancelled or closed since the slots were last filled
        self._work = Work()
        self._disturbed = False  # an exception came since the last event
        self._cancelled: list[Group[Job]] = []  # out of the scheduler's slots, perhaps in the runner's
        net = runner.denoiser.net
        self._modules = list(net.modules()) if isinstance(net, torch.nn.Module) else []

    def cancel(self, job: Job, groups: list[Group[Job]]) -> None:
        """Take a cancelled job's groups, which have left the scheduler's slots, out of the runner's; under ``room``."""
        self._cancelled += groups
        self._runner.previews = [preview for preview in self._runner.previews if preview.job is not job]
        self.changed = True

    def run_to_next_event(self, progress: Progress | None) -> None:
        """Fill the free slots and tick until a group is done, or something else is to be done."""
        scheduler, runner, report = self._scheduler, self._runner, self._runner.report
        begin, network, step = time.perf_counter(), runner.network.seconds, runner.step_seconds
        self._disturbed = True
        try:
            with in_eval_mode(self._modules), torch.inference_mode():
                runner.join_stream()
                with self._room:
                    ticks = self._fill()
                runner.begin_run()
                for _ in range(ticks):
                    self._tick(progress)
                    if runner.previews or self.changed:
                        break
                with self._room:
                    if left := scheduler.ending():
                        self._outbox.put(left)
                        scheduler.retire()
                        runner.buffers.leave(left)
                        self._work.leave(left)
            self._disturbed = False
        finally:
            report.seconds += time.perf_counter() - begin
            report.network_seconds += runner.network.seconds - network
            report.step_seconds += runner.step_seconds - step

    def settle(self) -> None:
        """Complete, after an exception, what it may have come in the midst of; under ``room``.

        What the scheduler says of the slots holds. States of which only a part was written are lost: all chains in
        the slots then begin anew, which gives them the same bits.
        """
        scheduler, runner = self._scheduler, self._runner
        scheduler.settle()
        if not self._disturbed:
            return
        scheduler.tick = runner.next_tick
        if runner.torn:
            scheduler.begin_anew()
            runner.begin_anew()
        if any(self._outbox.holds(group) for group in scheduler.ending()):
            scheduler.retire()
        runner.buffers.idle_but(scheduler.groups)
        self._cancelled = []
        self._work = Work(scheduler.groups)
        self._disturbed = False

    def _fill(self) -> int:
        """Take out what was cancelled and fill the free slots; the ticks until the next group is done."""
        scheduler, runner, work = self._scheduler, self._runner, self._work
        self.changed = False
        if self._cancelled:
            runner.buffers.leave(self._cancelled)
            work.leave(self._cancelled)
            self._cancelled = []
        if runner.between_ticks:
            if entered := scheduler.admit():
                work.enter(entered)
                self._room.notify_all()
            if scheduler.newest:
                runner.buffers.enter(scheduler.newest, self._running)
                scheduler.newest = []
        work.groups, work.active = scheduler.groups, scheduler.active
        return scheduler.ticks_until_event

    def _running(self) -> set[Program]:
        """The programs of the chains in the slots."""
        return {group.job.program for group in self._scheduler.groups}

    def _tick(self, progress: Progress | None) -> None:
        work, report = self._work, self._runner.report
        try:
            self._runner.tick(self._scheduler.tick, work)
        except NetworkError as error:
            ids: dict[Job, list[int]] = {}
            for group in work.groups:
                ids.setdefault(group.job, []).extend(group.job.ids[group.chains])
            raise NetworkError(error.__cause__ or error, ids, error.wants_gradients) from error.__cause__
        self._scheduler.tick += 1
        report.ticks += 1
        report.evaluations += work.active
        if progress is not None:
            progress(work.active)

    def call_back(self) -> None:
        """Give the previews that were taken to their jobs' callbacks."""
        previews = self._runner.previews
        while previews:
            with self._room:
                preview = previews.pop(0)
            if preview.job.callback is not None:
                preview.job.callback(preview)
            previews = self._runner.previews  # a callback may cancel
