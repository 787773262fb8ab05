"""One tick of all slots: look up the times, evaluate the network, check its output, execute one fused step.

Nothing here waits for the device: what happens at a tick is known in advance from the programs. What a tick does on the
device is one function of static buffers (``_run_tick``), so that a CUDA graph can hold all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.profiler import record_function

import ulam_kernels

from ..denoiser import Denoiser
from ..evaluation import autocast_state
from .branches import Branches, Outputs
from .buffers import Buffers, TickTensors
from .groups import Group
from .guided_outputs import prediction, weighted
from .job import Job, Preview
from .ladder import Ladder, Rungs
from .network import Network, NetworkOptions
from .recording import Recorder, Rows
from .report import Report
from .slots import IDLE_ROW
from .tick_graphs import TickGraphs, addresses
from .tick_needs import TickNeeds, due, row_of, rows_without_evaluation
from .walked_slots import WalkedSlots


class TickProgress(NamedTuple):
    """Of the tick under way, or the next: rows done before and after its evaluation, and whether that is done."""

    tick: int
    before: int = 0
    evaluated: bool = False
    after: int = 0


class Runner:
    """Runs the ticks of a fixed number of slots, whose tensors are in ``buffers``."""

    def __init__(
        self,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        slots: int,
        device: torch.device,
        backend: str | None,
        dtype: torch.dtype,
        options: NetworkOptions,
        report: Report,
        check_finite: bool = True,
        graphs: bool = True,
        trace: bool = False,
        ladder: Ladder | None = None,
        branches: int = 0,
    ) -> None:
        self.denoiser, self.device, self.report = denoiser, device, report
        self.network = Network(denoiser, slots, device, options, report)
        net_dtype = self.network.dtype or dtype
        time_dtype = denoiser.time_dtype
        if dtype == net_dtype == torch.float64 and denoiser.time != "index":
            time_dtype = torch.float64  # for checking: float32 would limit the accuracy
        self.graphs: TickGraphs | None = None
        if graphs and device.type == "cuda":
            if report.backend == "reference":
                report.add_fallback("no CUDA graph, ticks run eagerly: the reference backend computes on the host")
            else:
                self.graphs = TickGraphs(device, report)
        self.buffers = Buffers(
            shape,
            slots,
            device,
            backend,
            dtype,
            net_dtype,
            time_dtype,
            reserve=self.graphs is not None,
            channels_last=options.channels_last,
            bound=not trace and denoiser.second_time is None,  # a trace shows the operations one by one
            check_finite=check_finite,
            second_time=denoiser.second_time,
            branches=branches,
        )
        self.rungs = Rungs(ladder, self.network, self.buffers, report)
        self.branches = Branches(self.buffers, self.rungs)
        self.recorder = Recorder(self.buffers)
        self._stream: torch.cuda.Stream | None = None
        self._weight = torch.ones(slots, dtype=torch.float32, device=device)  # of guidance, 1 off its interval
        self.check_finite = check_finite
        self.previews: list[Preview] = []  # not yet passed to their callbacks
        self._progress = TickProgress(0)
        self.chains: WalkedSlots | None = None  # the network in a kernel that walks, once the first job has settled it
        self.outputs: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = self.rungs  # or theirs
        self.torn = False  # states are being written, or an exception left them half written
        self.step_seconds = 0.0
        self._range: Callable[[str], AbstractContextManager[object]] = record_function if trace else _no_range

    @property
    def between_ticks(self) -> bool:
        """False after an exception in the middle of a tick, until :meth:`tick` has completed it."""
        return not (self._progress.before or self._progress.evaluated)

    @property
    def next_tick(self) -> int:
        """The tick under way, or the next one."""
        return self._progress.tick

    @property
    def network_seconds(self) -> float:
        """Seconds in the network, or in walks of which it is a part."""
        return self.network.seconds + (0.0 if self.chains is None else self.chains.seconds)

    def join_stream(self) -> None:
        """Make the caller's current stream wait for the one that the last caller used."""
        if (stream := torch.cuda.current_stream(self.device)) != self._stream:
            if self._stream is not None:
                stream.wait_stream(self._stream)
            self._stream = stream

    def check_graphs(self, graphs: TickGraphs) -> None:
        """Drop all graphs if the tables or the network's weights have moved since their capture."""
        weights = [address for net in self.denoiser.nets for address in addresses(net)]
        moved = 0 if self.chains is None else self.chains.places
        graphs.reads([self.buffers.rows.columns.times.data_ptr(), moved, *weights])

    def fit(self, needs: TickNeeds, tick: int) -> None:
        """Choose the batch that the network sees from this tick on."""
        if not self.rungs.places:
            return
        x = self.buffers.of_tick(needs.registers, needs.scaled).net_in
        uncond = self.buffers.uncond.inputs if needs.guided else None
        self.rungs.fit(needs.groups, self.buffers.state[0] if x is None else x, uncond, tick)

    # ---------------------------------------------------------------------------------------------- a tick

    def tick(self, tick: int, needs: TickNeeds) -> None:
        """One evaluation of the network and one fused step for every chain in the slots.

        Rows of a program that do not evaluate the network run in the same tick, before it (those after the last
        evaluation: after it). If the network or a ``noise`` raises, the next call, with the same arguments, resumes
        where this one stopped, unless states were being written: ``torn`` is then True, and all chains must enter their
        slots again (:meth:`begin_anew`).
        """
        progress = self._progress
        if tick < progress.tick:
            return  # it is done: an interrupt came before the caller counted it
        before, after = rows_without_evaluation(tick, needs.groups) if needs.without_evaluation else ((), ())
        for moving in before[progress.before :]:
            self._step_without_evaluation(moving, needs)
            progress = self._record(progress._replace(before=progress.before + 1))
        if not progress.evaluated:
            if needs.plain and self.graphs is None:
                self._run_tick(needs.guided, needs)
            else:
                self._evaluate_and_step(tick, needs)
            progress = self._record(progress._replace(evaluated=True)) if after else progress
        for moving in after[progress.after :]:
            self._step_without_evaluation(moving, needs)
            progress = self._record(progress._replace(after=progress.after + 1))
        self._record(TickProgress(tick + 1))

    def walk(self, tick: int, ticks: int, needs: TickNeeds) -> None:
        """So many ticks at once, from this one on, of chains that need no more than evaluations and fused steps."""
        assert self.chains is not None
        if tick >= self._progress.tick:
            self.torn = True
            self.chains.walk(ticks, needs)
            self._record(TickProgress(tick + ticks))

    def skip(self, ticks: int) -> None:
        """Count ticks whose chains were walked by themselves."""
        self._record(TickProgress(self._progress.tick + ticks))

    def _record(self, progress: TickProgress) -> TickProgress:
        """Record in one assignment what is done."""
        self._progress = progress
        self.torn = False
        return progress

    def begin_anew(self) -> None:
        """Discard a tick under way: all chains enter their slots again."""
        self._progress = TickProgress(self._progress.tick)
        self.torn = False

    def _evaluate_and_step(self, tick: int, needs: TickNeeds) -> None:
        guided = self._guided_at(tick, needs)
        explicit = [(g, row_of(g, tick)) for g in needs.groups if g.job.noise] if needs.noisy else []
        previews = [(g, row_of(g, tick)) for g in needs.groups if due(g, tick)] if needs.previews else []
        recorded = [(g, row_of(g, tick)) for g in needs.groups if g.job.rollout] if needs.recorded else []
        if recorded:
            self.recorder.begin(recorded)
        if self.graphs is None or explicit or needs.previews or needs.recorded:
            self._run_tick(guided, needs, explicit, previews, recorded)
            return
        key = (guided, self.network.batch, self.rungs.size, autocast_state(self.device), *needs.kind)
        graph = self.graphs.of_tick(key, lambda: self._run_tick(guided, needs))
        if graph is not None:
            self.torn = True
            graph.replay()

    def _guided_at(self, tick: int, needs: TickNeeds) -> bool:
        """Whether any chain needs the unconditional branch at this tick."""
        if not needs.intervals:
            return needs.guided
        for group in needs.groups:
            job = group.job
            if job.guidance is not None:
                if job.program.reads_unguided:
                    return True
                t = self.buffers.rows[job.program].network_times[tick - group.start]
                if job.interval is None or job.interval[0] <= t <= job.interval[1]:
                    return True
        return False

    def _run_tick(
        self,
        guided: bool,
        needs: TickNeeds,
        explicit: list[tuple[Group[Job], int]] | None = None,
        previews: list[tuple[Group[Job], int]] | None = None,
        recorded: Rows | None = None,
    ) -> None:
        """All that a tick with an evaluation does on the device."""
        buffers, slots = self.buffers, self.buffers.slots
        tensors = buffers.of_tick(needs.registers, needs.scaled)
        x, uncond_inputs = tensors.net_in, buffers.uncond.inputs if guided else None
        if x is None:
            x = buffers.state[0]  # anew at each tick: what the network does to the object is not kept
        if needs.plain and (bound := tensors.bound) is not None and bound.look_up():
            m, uncond = self.outputs(x, uncond_inputs)
            begin, self.torn = time.perf_counter(), True
            done = bound.step(m, uncond)
            self.step_seconds += time.perf_counter() - begin
            if done:
                return
            weight = slots.weight
        else:
            weight = self._look_up(guided and needs.intervals, needs)
            with self._range("ulam.network"):
                m, uncond = self.outputs(x, uncond_inputs)
                if needs.blended:
                    m = self.branches.blended(m, x)
        noise = self._explicit_noise(explicit) if explicit else None
        if m.dtype == torch.float64 != buffers.dtype:  # converted once for the check and the step
            m, uncond = m.float(), None if uncond is None else uncond.float()
        if uncond is not None and uncond.dtype != m.dtype:  # after a blend
            uncond = uncond.to(m.dtype)
        self.torn = needs.ruled  # what rules remember is being written: an interrupted tick cannot be repeated
        outputs = self.branches.guided(tensors, Outputs(m, uncond, weight), needs)
        estimates = [(group, row, self._x0(group, row, *outputs)) for group, row in previews or ()]
        self.torn = True
        if self.check_finite:
            checked = self.branches.checked(weight) if needs.unguided else weight
            ulam_kernels.advance(
                slots.cursor,
                slots.now,
                model=m,
                uncond=uncond,
                guidance=None if uncond is None else checked,
                backend=buffers.backend,
            )
        else:
            ulam_kernels.advance(slots.cursor, slots.now, backend=buffers.backend)
        if needs.unguided:
            self.branches.load(tensors.states, m, uncond)
        self._step(tensors, slots.now_row, slots.now_draw, *outputs, noise, needs)
        if recorded:
            self.recorder.keep(recorded, outputs)
        for group, row, x0 in estimates:
            job, x = group.job, buffers.state[0, group.slots].clone()
            self.previews.append(Preview(job, job.ids[group.chains], row, x, x0))

    def _look_up(self, intervals: bool, needs: TickNeeds) -> torch.Tensor:
        """Look up the network's times; return the guidance weights, which apply in their intervals."""
        slots, backend, times = self.buffers.slots, self.buffers.backend, self.buffers.rows.columns.times
        weight = self.branches.scheduled() if needs.scheduled else slots.weight
        self.branches.look_up_second()
        if not intervals:
            ulam_kernels.look_up(times, slots.row, self.buffers.t, backend=backend)
            return weight
        ulam_kernels.look_up(
            times,
            slots.row,
            self.buffers.t,
            guidance=weight,
            interval=slots.interval,
            weight=self._weight,
            backend=backend,
        )
        return self._weight

    def _x0(
        self, group: Group[Job], row: int, m: torch.Tensor, uncond: torch.Tensor | None, weight: torch.Tensor
    ) -> torch.Tensor | None:
        """The x_0 estimate of a group's chains before the update of `row`; None on corrector rows, which have none."""
        program, at = group.job.program, group.slots
        if program.normalise[row]:
            return None
        x, shape = self.buffers.state[0, at], self.buffers.shape
        other = None if uncond is None else prediction(uncond, shape)[at]
        m = weighted(prediction(m, shape)[at], other, weight[at])
        return float(program.kx[row]) * x + float(program.km[row]) * m.to(x.dtype)

    def _step_without_evaluation(self, moving: list[tuple[Group[Job], int]], needs: TickNeeds) -> None:
        """Execute these groups' next rows, which do not evaluate the network; all other chains stay as they are."""
        slots = self.buffers.slots
        row, advance = torch.full_like(slots.row, IDLE_ROW), torch.zeros_like(slots.cursor[2:4])
        for group, _ in moving:
            row[group.slots] = slots.row[group.slots]
            advance[:, group.slots] = slots.cursor[2:4, group.slots]
        explicit = [(group, row) for group, row in moving if group.job.noise]
        noise = self._explicit_noise(explicit) if explicit else None
        recorded = [(group, row) for group, row in moving if group.job.rollout]
        self.recorder.begin(recorded)
        self.torn = True
        tensors = self.buffers.of_tick(needs.registers, needs.scaled)
        self._step(tensors, row, slots.draw, None, None, None, noise, needs)
        self.recorder.keep(recorded)
        slots.cursor[:2] += advance

    def _step(
        self,
        tensors: TickTensors,
        row: torch.Tensor,
        draw: torch.Tensor,
        m: torch.Tensor | None,
        uncond: torch.Tensor | None,
        weight: torch.Tensor | None,
        noise: torch.Tensor | None,
        needs: TickNeeds,
    ) -> None:
        begin = time.perf_counter()
        states, table, net_in = tensors.states, tensors.table, tensors.net_in
        buffers, slots, columns = self.buffers, self.buffers.slots, self.buffers.rows.columns
        inputs: dict[str, Any] = {
            "model": m,
            "uncond": uncond,
            "guidance": None if uncond is None else weight,
            "seed": slots.seed,
            "chain": slots.chain,
            "draw": draw,
            "noise": noise,
            "backend": buffers.backend,
        }
        with self._range("ulam.step"):
            scales = buffers.scales if needs.reduces else None
            if scales is not None:
                ulam_kernels.reduce(states, table, row, **inputs, out=scales)
            squares = self.recorder.of_step() if needs.recorded else {}
            ulam_kernels.step(states, table, row, **inputs, net_in=net_in, scales=scales, **squares)
            if needs.blends and buffers.known is not None:
                buffers.known.blend(
                    states,
                    a=columns.known_a,
                    b=columns.known_b,
                    c_next=None if net_in is None else columns.c_next,
                    row=row,
                    net_in=net_in,
                    seed=slots.seed,
                    chain=slots.chain,
                    draw=draw,
                    backend=buffers.backend,
                )
        self.step_seconds += time.perf_counter() - begin

    def _explicit_noise(self, explicit: list[tuple[Group[Job], int]]) -> torch.Tensor:
        """The noise of all slots: of the jobs that bring their own, at the row given; noise-v1 for the others."""
        buffers, slots = self.buffers, self.buffers.slots
        noise = torch.empty(len(slots.row), *buffers.shape, dtype=buffers.rows.columns.c_next.dtype, device=self.device)
        ulam_kernels.fill_normal(noise, seed=slots.seed, chain=slots.chain, draw=slots.draw, backend=buffers.backend)
        for group, row in explicit:
            if not (group.job.program.A[row, :, -1] != 0).any() or group.job.noise is None:
                continue
            row += group.job.first_row
            z = group.job.noise(row, group.job.chains[group.chains])
            expected = [group.size, *buffers.shape]
            if not isinstance(z, torch.Tensor) or list(z.shape) != expected or not z.is_floating_point():
                got = f"{z.dtype} {list(z.shape)}" if isinstance(z, torch.Tensor) else type(z).__name__
                raise ValueError(f"noise: got {got} for row {row}, expected a float tensor {expected}")
            noise[group.slots] = z
        return noise


def _no_range(_: str) -> AbstractContextManager[object]:
    return _NO_RANGE


_NO_RANGE = nullcontext()
