"""One run of `ulam sample`: the jobs of an engine, what has come out of them, and the report of it."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from ..bulk import progress
from ..bulk.store.unit import Unit
from ..engine.engine import Engine
from ..engine.job import Job, Preview
from ..files import written
from ..jobs.tables import JobSpec
from ..models.built_in import Model
from . import frames, info, output
from .streams import Terminated

NAMED = 8  # failed chains that are named on stderr


@dataclass
class SamplingRun:
    """A run, and what has come out of it so far: row i of ``x`` is the i-th chain of all jobs in order."""

    engine: Engine
    model: Model
    specs: list[JobSpec]
    options: argparse.Namespace
    done: list[int] = field(default_factory=list)
    failed: list[tuple[int, Job, int, int]] = field(default_factory=list)  # row of x, job, chain, row of its program
    interrupted: bool = False
    terminated: bool = False  # by SIGTERM
    seconds: float = 0.0
    frames: frames.Frames | None = field(default=None, init=False)
    titles: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        given = self.options
        shows, watching = given.preview or "x0", list[Any]()
        if given.preview_every is not None or (given.preview is not None and given.animate is None):
            watching.append(output.Previews(given.out, given.preview_every, shows))
        self.frames = None if given.animate is None else frames.Frames(given.animate, shows, self.model.shape)
        watching += [] if self.frames is None else [self.frames]
        self.jobs = [
            self.engine.submit(s.sampler, s.chains, **s.submit, **self._watched(s, watching)) for s in self.specs
        ]
        for one in watching:
            one.jobs = self.jobs
        self.titles = [self._title(number, spec) for number, spec in enumerate(self.specs, 1)]
        if self.frames is not None:
            self.frames.titles = self.titles
        counts = [len(spec.chains) for spec in self.specs]
        self.begins = {job: sum(counts[:number]) for number, job in enumerate(self.jobs)}
        self.total = sum(count * job.ticks for count, job in zip(counts, self.jobs, strict=True))
        self.x = torch.zeros(sum(counts), *self.model.shape, dtype=torch.float32)

    def _watched(self, spec: JobSpec, watching: list[Any]) -> dict[str, Any]:
        """Arguments of a job that previews, or frames of an animation, are made of."""
        if not watching:
            return {}
        ticks = len(self.model.denoiser.program(spec.sampler).evaluating)

        def callback(preview: Preview) -> None:
            for one in watching:
                one(preview)

        return {"callback": callback, "every": math.gcd(*(one.every(ticks) for one in watching))}

    def _title(self, number: int, spec: JobSpec) -> str:
        guided = f", guidance {spec.submit['guidance']:g}" if "guidance" in spec.submit else ""
        job = f"job {number}: " if len(self.specs) > 1 else ""
        return f"{job}{spec.sampler}{guided}, seed {spec.submit['seed']}"

    def go(self) -> None:
        """Sample until all chains are done, or Ctrl-C."""
        begin = time.perf_counter()
        with progress.bar(self.total, unit="evaluation") as bar, self._interruptible() as pressed:
            on_gpu = self.engine.report.device != "cpu"

            def tick(evaluations: int) -> None:
                if not on_gpu:  # there a tick is launched long before it is done
                    bar.update(evaluations)
                if pressed and not self.interrupted:
                    self.interrupted = True
                    self.engine.drop_waiting()

            try:
                for group in self.engine.finished(tick):
                    at = self.begins[group.job]
                    rows = range(at + group.chains.start, at + group.chains.stop)
                    self.x[rows.start : rows.stop] = group.states
                    self.done += rows
                    for place, row in group.failed.items():
                        self.x[at + place] = float("nan")
                        self.failed.append((at + place, group.job, group.job.ids[place], row))
                    if on_gpu:
                        bar.update(len(rows) * group.job.ticks)
            except KeyboardInterrupt as error:
                self.interrupted, self.terminated = True, isinstance(error, Terminated)
        self.seconds = time.perf_counter() - begin
        self._find_overflows()

    def _find_overflows(self) -> None:
        """Chains whose last update left the finite numbers have failed too."""
        known = {place for place, *_ in self.failed}
        for place in torch.nonzero(~torch.isfinite(self.x).flatten(1).all(1)).flatten().tolist():
            if place not in known:
                job = next(job for job in reversed(self.jobs) if self.begins[job] <= place)
                self.failed.append((place, job, job.ids[place - self.begins[job]], len(job.program) - 1))

    @contextmanager
    def _interruptible(self) -> Iterator[list[bool]]:
        """With --on-interrupt drain the first Ctrl-C is noted, the second raises."""
        pressed: list[bool] = []
        if self.options.on_interrupt == "drop" or threading.current_thread() is not threading.main_thread():
            yield pressed
            return

        def note(number: int, frame: FrameType | None) -> None:
            pressed.append(True)
            signal.signal(signal.SIGINT, before)
            print("ulam: finishing the chains in the batch; Ctrl-C again stops at once", file=sys.stderr)

        before = signal.signal(signal.SIGINT, note)
        try:
            yield pressed
        finally:
            signal.signal(signal.SIGINT, before)

    def write(self) -> None:
        """Write the chains that ended; failed ones are NaN (black in pictures), and told."""
        done = sorted(self.done)
        x, report = self.x[done], self._report(done)
        self._tell(report)
        given, save = self.options.labels, self.options.save
        columns = len(given) if given and len(given) <= 20 else None
        parts = [(title, len(self._rows(job, done))) for title, job in zip(self.titles, self.jobs, strict=True)]
        paths, lost = written(
            self.options.out,
            lambda folder: output.write_run(folder, x, self._units(done), save, columns, parts, report),
        )
        if self.frames is not None and not self.interrupted:
            self.frames.write([self.x[self._rows(job, done)] for job in self.jobs])
            paths.append(str(self.options.animate))
        rate = f"{report['seconds']:.2f} s, {report['samples_per_second']:.1f} samples/s"
        print(f"ulam: {rate}; wrote {', '.join(paths)}")
        if lost is not None:
            raise lost

    def _rows(self, job: Job, done: list[int]) -> list[int]:
        """Those of x, in order, that are of one job."""
        begin = self.begins[job]
        return done[bisect_left(done, begin) : bisect_left(done, begin + len(job.ids))]

    def _units(self, done: list[int]) -> Iterator[tuple[int, Unit]]:
        """The chains that ended, a unit for each job."""
        failed = {place: row for place, *_, row in self.failed}
        for number, (job, spec) in enumerate(zip(self.jobs, self.specs, strict=True)):
            begin, rows = self.begins[job], self._rows(job, done)
            places = [row - begin for row in rows]
            labels = None if spec.labels is None else torch.tensor([spec.labels[place] for place in places])
            rows_failed = {place: failed[row] for place, row in enumerate(rows) if row in failed}
            yield number, Unit(self.x[rows], job.chains[places], labels, job.seed, rows_failed)

    def _tell(self, report: dict[str, Any]) -> None:
        for note in (*report["fallbacks"], *report["ladder"]):
            print(f"ulam: note: {note}", file=sys.stderr)
        if not self.failed:
            return
        named = [f"{chain} at row {row}" for _, _, chain, row in self.failed[:NAMED]]
        more = ", ..." if len(self.failed) > NAMED else ""
        count = f"{len(self.failed)} of {len(self.x)} chains"
        print(f"ulam: failed: {count} turned NaN or Inf: chain {', '.join(named)}{more}", file=sys.stderr)

    def _report(self, done: list[int]) -> dict[str, Any]:
        """What the engine tells, and what was asked for. ``chains_failed``: with ``sample``, the row in arr_0."""
        told, first = self.engine.report, self.specs[0]
        sample = {row: place for place, row in enumerate(done)}
        own = [self._job_report(number, spec) for number, spec in enumerate(self.specs)]
        return {
            "model": self.model.name,
            "schedule": repr(self.model.denoiser.schedule),
            "predicts": self.model.denoiser.predicts,
            **({**own[0], "labels": first.labels is not None} if len(own) == 1 else {}),
            "jobs": own,
            **told.as_dict(),
            "chains": len(done),
            "chains_asked": len(self.x),
            "chains_failed": [
                {"sample": sample[place], "job": self.jobs.index(job), "chain": chain, "row": row}
                for place, job, chain, row in sorted(self.failed, key=lambda entry: entry[0])
            ],
            "seconds": self.seconds,
            "samples_per_second": len(done) / self.seconds,
            "instruction_set": info.instruction_set(),
            "threads": torch.get_num_threads(),
            "versions": info.versions(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def _job_report(self, number: int, spec: JobSpec) -> dict[str, Any]:
        plain = {key: value for key, value in spec.submit.items() if isinstance(value, (int, float, str, list, tuple))}
        chains = {"first": spec.chains.start, "chains": len(spec.chains), "ticks": self.jobs[number].ticks}
        return {"sampler": repr(spec.sampler), **plain, **chains}
