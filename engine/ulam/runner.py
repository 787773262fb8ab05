"""The tensors behind the slots, and one tick of all of them: network, then one fused step.

Nothing here waits for the device: what happens at a tick is known in advance from the programs. What a tick does on the
device is one function of static buffers (``_evaluate_and_step``), so that a CUDA graph can hold all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function

import ulam_kernels
from ulam_kernels.table import C_NEXT

from .conditioning import ConditioningBuffers
from .denoiser import Denoiser
from .graphs import TickGraphs
from .guard import freeze
from .guidance import rescaled
from .job import Job
from .known import KnownImages
from .network import Network, NetworkOptions
from .noise import DRAWS_PER_ROW, INITIAL_STATE
from .preview import Preview
from .program import Program
from .report import Report
from .rows import Rows
from .scheduler import Group
from .slots import IDLE_ROW, Slots, on_device, places
from .work import Work, due, row_of, silent_rows


class Runner:
    """State, row pointers and conditioning of a fixed number of slots. Idle slots point at an idle row."""

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
    ) -> None:
        self.denoiser, self.shape, self.size = denoiser, shape, slots
        self.device, self.backend, self.dtype, self.report = device, backend, dtype, report
        self.network = Network(denoiser, slots, device, options, report)
        self.net_dtype = self.network.dtype or dtype
        self.time_dtype = denoiser.time_dtype
        if dtype == self.net_dtype == torch.float64 and denoiser.time != "index":
            self.time_dtype = torch.float64  # for checking: float32 would limit the accuracy
        self.slots = Slots(slots, device)
        self.state = torch.zeros(1, slots, *shape, dtype=dtype, device=device)
        self.net_in: torch.Tensor | None = None
        self.t = torch.zeros(slots, dtype=self.time_dtype, device=device)
        self.cond = ConditioningBuffers("cond", slots, device)
        self.uncond = ConditioningBuffers("uncond", slots, device)
        self.scales: torch.Tensor | None = None  # of the rows with reductions, where a program has any
        self.known: KnownImages | None = None  # where a program blends with known images
        self.check_finite = check_finite
        self.graphs = TickGraphs(device, report) if graphs and device.type == "cuda" else None
        self.rows = Rows(device, torch.float64 if dtype == torch.float64 else torch.float32, self.time_dtype)
        self.previews: list[Preview] = []  # taken, not yet given to their callbacks
        self._before = self._after = 0  # silent rows done in this tick, before the evaluation and after it
        self._evaluated = False
        self.step_seconds = 0.0
        self._range: Callable[[str], AbstractContextManager[object]] = record_function if trace else _no_range

    @property
    def between_ticks(self) -> bool:
        """False after an exception inside a tick that has begun, until :meth:`tick` has completed it."""
        return not (self._before or self._evaluated)

    # ------------------------------------------------------------------------------------------ programs

    def load(self, program: Program) -> None:
        """Make a program's rows part of the table, and the buffers what they need."""
        if program not in self.rows:
            with torch.inference_mode(False):  # buffers stay, and their versions are watched
                self.rows.add(program)
                self._provide(program)

    def _provide(self, program: Program) -> None:
        """Make or widen the buffers that a program's rows read and write."""
        wide = self.rows.table.coef.dtype
        if (more := self.rows.table.registers - len(self.state)) > 0:
            self.state = torch.cat([self.state, self.state.new_zeros(more, *self.state.shape[1:])])
        if program.needs_reductions and self.scales is None:
            self.scales = torch.ones(self.size, 4, dtype=wide, device=self.device)
        if program.blends.any() and self.known is None:
            self.known = KnownImages(self.size, self.shape, self.device)
        if self.known is not None:
            self.known.load(self.rows.blends)
        if self.net_in is None and (self.net_dtype != self.dtype or bool((program.c_in != 1).any())):
            # A float64 network over narrower states reads float32 inputs, which are exact there, widened.
            dtype = self.net_dtype if self.net_dtype != torch.float64 or wide == torch.float64 else torch.float32
            self.net_in = torch.zeros(self.size, *self.shape, dtype=dtype, device=self.device)
            self.net_in.copy_(self.state[0])
        if self.graphs is not None:
            self.graphs.forget()  # they hold the tables that were

    # ---------------------------------------------------------------------------------- entering and leaving

    def enter(self, groups: list[Group[Job]]) -> None:
        """Put these groups' chains, at their first row, into their slots. May be repeated after an exception."""
        at, sizes = places([group.slots for group in groups])
        rows, seeds, chains = [], [], []
        for group in groups:
            job = group.job
            self.load(job.program)
            rows.append(self.rows.begin(job.program))
            seeds.append(job.seed)
            chains.append(job.chain_ids[group.chains])
        self.slots.put(
            at,
            row=np.array(rows).repeat(sizes),
            draw=0,
            row_advance=1,
            draw_advance=DRAWS_PER_ROW,
            seed=np.array(seeds).repeat(sizes),
            chain=np.concatenate(chains),
            failed=0,
            weight=1.0,
            guided_from=-np.inf,
            guided_to=np.inf,
            rescale=0.0,
        )
        for group in groups:
            job = group.job
            if job.cond:
                self.cond.enter(group.slots, group.chains, job.cond)
            if job.weights is not None:
                lo, hi = job.interval or (-np.inf, np.inf)
                weight = job.weights[group.chains]
                self.slots.put(group.slots, weight=weight, guided_from=lo, guided_to=hi, rescale=job.rescale)
                self.uncond.enter(group.slots, group.chains, job.uncond)
            if job.known is not None and self.known is not None:
                self.known.enter(group.slots, group.chains, job.known)
        self.slots.commit()
        self._first_states(groups, sizes, on_device(at, self.device))

    def _first_states(self, groups: list[Group[Job]], sizes: list[int], at: torch.Tensor) -> None:
        x = torch.empty(len(at), *self.shape, dtype=self.dtype, device=self.device)
        seed, chain = self.slots.seed[at], self.slots.chain[at]
        draw = torch.zeros_like(seed)
        begin = 0
        for scale, count in _runs(groups, sizes):  # neighbours with one scale are one launch
            part = slice(begin, begin + count)
            ulam_kernels.fill_normal(
                x[part],
                seed=seed[part],
                chain=chain[part],
                draw=draw[part],
                tag=INITIAL_STATE,
                scale=scale,
                backend=self.backend,
            )
            begin += count
        self.state[0].index_copy_(0, at, x)
        for group in groups:
            if group.job.x_init is not None:
                self.state[0, group.slots].copy_(group.job.x_init[group.chains])
        if len(self.state) > 1:
            self.state[1:].index_fill_(1, at, 0)
        if self.net_in is not None:
            programs = [group.job.program for group in groups]
            c_in = np.array([program.c_in[program.evaluating[0]] for program in programs])
            scale_in = torch.from_numpy(c_in.repeat(sizes)).to(self.device, self.rows.table.coef.dtype)
            scaled = torch.empty(len(at), *self.shape, dtype=self.net_in.dtype, device=self.device)
            x = self.state[0].index_select(0, at)
            ulam_kernels.affine(x, x, scale_in, torch.zeros_like(scale_in), out=scaled, backend=self.backend)
            self.net_in.index_copy_(0, at, scaled)

    def leave(self, groups: list[Group[Job]]) -> None:
        """Idle these groups' slots."""
        self.slots.idle(places([group.slots for group in groups])[0])
        self.slots.commit()

    def taken(self, groups: list[Group[Job]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """These groups' states, one after another, and the rows at which chains failed (0: well), as copies."""
        if len(groups) == 1:
            at: slice | torch.Tensor = groups[0].slots
            states = self.state[0, at].clone()
        else:
            at = on_device(places([group.slots for group in groups])[0], self.device)
            states = self.state[0].index_select(0, at)
        return states, self.slots.failed[at].clone() if self.check_finite else None

    # ---------------------------------------------------------------------------------------------- a tick

    def tick(self, tick: int, work: Work) -> None:
        """One evaluation of the network and one fused step for every chain in the slots.

        Rows of a program that do not evaluate the network run in the same tick, before it (those behind the last
        evaluation: after it). If the network or a ``noise`` raises, the next call, with the same arguments, goes on
        where this one stopped.
        """
        before, after = silent_rows(tick, work.groups) if work.silent else ((), ())
        for moving in before[self._before :]:
            self._step_silently(moving, work)
            self._before += 1
        if not self._evaluated:
            guided = self._guided_at(tick, work)
            explicit = [(g, row_of(g, tick)) for g in work.groups if g.job.noise] if work.noisy else []
            if self.graphs is not None and not explicit and not work.previews:
                key = (guided, work.intervals, work.rescaled, work.reduces, work.blends, self.network.batch)
                self.graphs.run(key, lambda: self._evaluate_and_step(guided, work))
            else:
                previews = [(g, row_of(g, tick)) for g in work.groups if due(g, tick)] if work.previews else []
                self._evaluate_and_step(guided, work, explicit, previews)
            self._evaluated = True
        for moving in after[self._after :]:
            self._step_silently(moving, work)
            self._after += 1
        self._before = self._after = 0
        self._evaluated = False

    def _guided_at(self, tick: int, work: Work) -> bool:
        """Whether a chain needs the unconditional branch at this tick."""
        if not work.intervals:
            return work.guided
        for group in work.groups:
            job = group.job
            if job.guidance is not None:
                t = self.rows.told(job.program)[tick - group.start]
                if job.interval is None or job.interval[0] <= t <= job.interval[1]:
                    return True
        return False

    def _evaluate_and_step(
        self,
        guided: bool,
        work: Work,
        explicit: list[tuple[Group[Job], int]] | None = None,
        previews: list[tuple[Group[Job], int]] | None = None,
    ) -> None:
        m, uncond = self._evaluate(guided)
        weight = self.slots.weight
        if uncond is not None and work.intervals:
            inside = (self.t >= self.slots.guided_from) & (self.t <= self.slots.guided_to)
            weight = torch.where(inside, weight, 1.0)
        if self.check_finite:
            freeze(m, uncond, weight, self.slots)
        if uncond is not None and work.rescaled:
            m, uncond, weight = self._rescaled(m, uncond, weight)
        noise = self._explicit_noise(explicit) if explicit else None
        taken = [(group, row, self._x0(group, row, m, uncond, weight)) for group, row in previews or ()]
        self._step(self.slots.row, m, uncond, weight, noise, work)
        self.slots.cursor += self.slots.advance
        self.previews += [
            Preview(g.job, g.job.ids[g.chains], row, self.state[0, g.slots].clone(), x0) for g, row, x0 in taken
        ]

    def _rescaled(
        self, m: torch.Tensor, uncond: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Outputs and weights with the rescaled chains' guidance done; the others' is left to the fused step."""
        wide = torch.promote_types(m.dtype, torch.float32)
        m, uncond, phi = m.to(wide, copy=True), uncond.to(wide), self.slots.rescale
        own, other = self._without_variances(m), self._without_variances(uncond)
        chosen = (phi > 0).view(-1, *[1] * (m.dim() - 1))
        own.copy_(torch.where(chosen, rescaled(own, other, weight, phi), own))
        return m, uncond, torch.where(phi > 0, 1.0, weight)

    def _without_variances(self, m: torch.Tensor) -> torch.Tensor:
        """The network's output without the learned variances that may stand behind it."""
        return m[:, : self.shape[0]] if self.shape else m

    def _x0(
        self, group: Group[Job], row: int, m: torch.Tensor, uncond: torch.Tensor | None, weight: torch.Tensor
    ) -> torch.Tensor | None:
        """The x_0 estimate of a group's chains before the update of `row`; None on corrector rows, which have none."""
        program, at = group.job.program, group.slots
        if program.normalise[row]:
            return None
        x, m = self.state[0, at], self._without_variances(m)[at]
        if uncond is not None:
            w, other = weight[at].view(-1, *[1] * (x.dim() - 1)), self._without_variances(uncond)[at]
            m = torch.where(w == 1, m, other + w * (m - other))
        return float(program.kx[row]) * x + float(program.km[row]) * m.to(x.dtype)

    def _evaluate(self, guided: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The network's outputs with the conditional and, for guided chains, the unconditional inputs.

        Unless asked for in one, these are two calls, so that the network sees the same batch shape, and a chain gets
        the same bits, whether or not there are guided chains in the batch.
        """
        torch.index_select(self.rows.time, 0, self.slots.row, out=self.t)
        buffer = self.state[0] if self.net_in is None else self.net_in
        x = buffer.double() if self.net_dtype == torch.float64 != buffer.dtype else buffer
        with self._range("ulam.network"):
            uncond = self.uncond.inputs if guided else None
            return self.network(x, self.t, self.cond.inputs, uncond, self.cond.shared)

    def _step_silently(self, moving: list[tuple[Group[Job], int]], work: Work) -> None:
        """Execute these groups' next rows, which do not evaluate the network, and leave all other chains alone."""
        live, row, advance = self.slots, torch.full_like(self.slots.row, IDLE_ROW), torch.zeros_like(self.slots.advance)
        for group, _ in moving:
            row[group.slots] = live.row[group.slots]
            advance[:, group.slots] = live.advance[:, group.slots]
        explicit = [(group, row) for group, row in moving if group.job.noise]
        self._step(row, None, None, None, self._explicit_noise(explicit) if explicit else None, work)
        live.cursor += advance

    def _step(
        self,
        row: torch.Tensor,
        m: torch.Tensor | None,
        uncond: torch.Tensor | None,
        weight: torch.Tensor | None,
        noise: torch.Tensor | None,
        work: Work,
    ) -> None:
        begin = time.perf_counter()
        live, backend = self.slots, self.backend
        inputs: dict[str, Any] = {
            "model": m,
            "uncond": uncond,
            "guidance": None if uncond is None else weight,
            "seed": live.seed,
            "chain": live.chain,
            "draw": live.draw,
            "noise": noise,
            "backend": backend,
        }
        with self._range("ulam.step"):
            if work.reduces and self.scales is not None:
                ulam_kernels.reduce(self.state, self.rows.table, row, **inputs, out=self.scales)
            ulam_kernels.step(self.state, self.rows.table, row, **inputs, net_in=self.net_in, scales=self.scales)
            if work.blends and self.known is not None:
                c_next = self.rows.table.coef[row, C_NEXT]
                self.known.blend(self.state, row, live.seed, live.chain, live.draw, self.net_in, c_next, backend)
        self.step_seconds += time.perf_counter() - begin

    def _explicit_noise(self, explicit: list[tuple[Group[Job], int]]) -> torch.Tensor:
        """The noise of all slots, where some jobs bring their own for the row given; the others keep noise-v1."""
        noise = torch.empty(self.size, *self.shape, dtype=self.rows.table.coef.dtype, device=self.device)
        live = self.slots
        ulam_kernels.fill_normal(noise, seed=live.seed, chain=live.chain, draw=live.draw, backend=self.backend)
        for group, row in explicit:
            if not (group.job.program.A[row, :, -1] != 0).any() or group.job.noise is None:
                continue
            z = group.job.noise(row, group.job.chains[group.chains])
            expected = [group.size, *self.shape]
            if not isinstance(z, torch.Tensor) or list(z.shape) != expected or not z.is_floating_point():
                came = f"{z.dtype} {list(z.shape)}" if isinstance(z, torch.Tensor) else type(z).__name__
                raise ValueError(f"noise: returned {came} for row {row}, expected a float tensor {expected}")
            noise[group.slots] = z
        return noise


def _no_range(_: str) -> AbstractContextManager[object]:
    return _NO_RANGE


_NO_RANGE = nullcontext()


def _runs(groups: list[Group[Job]], sizes: list[int]) -> list[tuple[float, int]]:
    """(scale of the first state, chains) of neighbours in the list with the same scale."""
    runs: list[tuple[float, int]] = []
    for group, size in zip(groups, sizes, strict=True):
        scale = group.job.program.init_scale
        if runs and runs[-1][0] == scale:
            runs[-1] = scale, runs[-1][1] + size
        else:
            runs.append((scale, size))
    return runs
