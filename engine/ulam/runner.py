"""The tensors behind the slots, and one tick of all of them: network, then one fused step.

Nothing here waits for the device: what happens at a tick is known in advance from the programs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

import ulam_kernels
from ulam_kernels import Table

from .conditioning import ConditioningBuffers
from .denoiser import Denoiser
from .job import Job
from .noise import INITIAL_STATE
from .program import Program
from .scheduler import Group

DRAWS_PER_ROW = 16
IDLE_ROW = 0


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
    ) -> None:
        self.denoiser, self.shape, self.slots = denoiser, shape, slots
        self.device, self.backend, self.dtype = device, backend, dtype
        self.time_dtype = torch.float64 if dtype == torch.float64 and denoiser.time != "index" else denoiser.time_dtype
        self.net_dtype = _input_dtype(denoiser.net, dtype)
        ids = torch.zeros(5, slots, dtype=torch.int64, device=device)
        self.cursor, self.advance, self.seed = ids[:2], torch.zeros_like(ids[:2]), ids[4]
        self.row, self.draw, self.chain = ids[0], ids[1], ids[3]
        self.weight = torch.ones(slots, device=device)
        self.state = torch.zeros(1, slots, *shape, dtype=dtype, device=device)
        self.net_in: torch.Tensor | None = None
        self.t = torch.zeros(slots, dtype=self.time_dtype, device=device)
        self.conditioning = ConditioningBuffers(slots, device)
        self._base: dict[Program, int] = {}
        self._output_shapes: tuple[torch.Size, ...] = ()
        self.network_seconds = 0.0

    # ------------------------------------------------------------------------------------------ programs

    def load(self, program: Program) -> None:
        """Make a program's rows part of the table (its coefficients are rounded once, here)."""
        if program in self._base:
            return
        programs = [*self._base, program]
        registers = max(p.registers for p in programs)
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        tables = [p.table(dtype=wide, device=self.device).widen(registers) for p in programs]
        idle = Table(torch.zeros_like(tables[0].coef[:1]), torch.zeros_like(tables[0].flags[:1]), registers, False)
        self.table = Table.cat([idle, *tables])
        # Idle slots are told the first program's first time, which the network can surely take.
        first = programs[0].time[programs[0].evaluates][:1]
        times = torch.cat([torch.from_numpy(t.copy()) for t in (first, *(p.time for p in programs))])
        self.time = times.nan_to_num(0.0).to(self.device, self.time_dtype)
        base = 1
        for p in programs:
            self._base[p] = base
            base += len(p)
        if registers > self.state.shape[0]:
            more = registers - self.state.shape[0]
            self.state = torch.cat([self.state, self.state.new_zeros(more, *self.state.shape[1:])])
        casts = self.net_dtype not in (self.dtype, torch.float64)
        if self.net_in is None and (casts or any((p.c_in != 1).any() for p in programs)):
            dtype = torch.float32 if self.net_dtype == torch.float64 else self.net_dtype
            self.net_in = torch.zeros(self.slots, *self.shape, dtype=dtype, device=self.device)
            self.net_in.copy_(self.state[0])

    # ---------------------------------------------------------------------------------- entering and leaving

    def enter(self, group: Group[Job]) -> None:
        """Put a group's chains, at their first row, into its slots."""
        job, at, chains = group.job, group.slots, group.chains
        program = job.program
        self.row[at] = self._base[program]
        self.draw[at] = 0
        self.advance[0, at] = 1
        self.advance[1, at] = DRAWS_PER_ROW
        self.seed[at] = job.seed
        self.chain[at].copy_(job.chains[chains])
        self.weight[at] = 1.0 if job.guidance is None else job.guidance[chains].to(self.device)
        self.conditioning.enter(at, chains, job.cond, job.uncond)
        self.state[1:, at] = 0
        x = self.state[0, at]
        if job.x_init is not None:
            x.copy_(job.x_init[chains])
        else:
            ulam_kernels.fill_normal(
                x,
                seed=self.seed[at],
                chain=self.chain[at],
                draw=self.draw[at],
                tag=INITIAL_STATE,
                scale=program.init_scale,
                backend=self.backend,
            )
        if self.net_in is not None:
            c_in = float(program.c_in[program.evaluates][0])
            scale = torch.full((group.size,), c_in, dtype=self.table.coef.dtype, device=self.device)
            net_in = self.net_in[at]
            ulam_kernels.affine(x, x, scale, torch.zeros_like(scale), out=net_in, backend=self.backend)

    def leave(self, group: Group[Job]) -> torch.Tensor:
        """Idle a group's slots; a view of its final states ``[group, *shape]``, valid until the next tick."""
        self.row[group.slots] = IDLE_ROW
        self.advance[:, group.slots] = 0
        return self.state[0, group.slots]

    # ---------------------------------------------------------------------------------------------- a tick

    def tick(self, tick: int, groups: list[Group[Job]], guided: bool) -> None:
        """One evaluation of the network and one fused step for every chain in the slots.

        Rows of a program that do not evaluate the network run in the same tick, before it (those behind the last
        evaluation: after it). If the network raises, no chain has moved past the row that it was to evaluate.
        """
        silent = [group for group in groups if len(group.job.program) > group.job.ticks]
        if silent:
            self._run_silent((group, _silent_before(group.job.program, tick - group.start)) for group in silent)
        m = self._evaluate(guided)
        now = [(group, _evaluating(group.job.program)[tick - group.start]) for group in groups if group.job.noise]
        self._step(self.row, now, m[: self.slots], m[self.slots :] if guided else None)
        self.cursor += self.advance
        if silent:
            self._run_silent((group, _silent_after(group.job.program, tick - group.start)) for group in silent)

    def _evaluate(self, guided: bool) -> torch.Tensor:
        torch.index_select(self.time, 0, self.row, out=self.t)
        x, t = self.state[0] if self.net_in is None else self.net_in, self.t
        if self.net_dtype == torch.float64 != x.dtype:
            x = x.double()
        if guided:
            x, t = torch.cat([x, x]), torch.cat([t, t])
        begin = time.perf_counter()
        m = self.denoiser.net(x, t, **self.conditioning.inputs(guided))
        self.network_seconds += time.perf_counter() - begin
        if not isinstance(m, torch.Tensor):
            raise TypeError(f"net: returned {type(m).__name__}, expected a tensor {list(x.shape)} like its input")
        if m.shape != x.shape:
            doubled = [x.shape[0], 2 * x.shape[1], *x.shape[2:]] if x.dim() > 1 else None
            if list(m.shape) != doubled:
                raise ValueError(f"net: returned shape {list(m.shape)}, expected {list(x.shape)} like its input")
        if not m.is_floating_point() or m.device != x.device:
            raise TypeError(f"net: returned {m.dtype} on {m.device}, expected a float tensor on {x.device}")
        return m

    def _run_silent(self, moves: Iterable[tuple[Group[Job], range]]) -> None:
        """Execute these rows, which do not evaluate the network, and leave all other chains alone."""
        waiting = [(group, rows) for group, rows in moves if rows]
        while waiting:
            row = torch.full_like(self.row, IDLE_ROW)
            step = torch.zeros_like(self.advance)
            for group, _ in waiting:
                row[group.slots] = self.row[group.slots]
                step[:, group.slots] = self.advance[:, group.slots]
            self._step(row, [(group, rows[0]) for group, rows in waiting if group.job.noise], None, None)
            self.cursor += step
            waiting = [(group, rows[1:]) for group, rows in waiting if len(rows) > 1]

    def _step(
        self,
        row: torch.Tensor,
        explicit: list[tuple[Group[Job], int]],
        m: torch.Tensor | None,
        uncond: torch.Tensor | None,
    ) -> None:
        ulam_kernels.step(
            self.state,
            self.table,
            row,
            model=m,
            uncond=uncond,
            guidance=None if uncond is None else self.weight,
            seed=self.seed,
            chain=self.chain,
            draw=self.draw,
            noise=self._explicit_noise(explicit) if explicit else None,
            net_in=self.net_in,
            backend=self.backend,
        )

    def _explicit_noise(self, explicit: list[tuple[Group[Job], int]]) -> torch.Tensor:
        """The noise of all slots, where some jobs bring their own for the row given; the others keep noise-v1."""
        noise = torch.empty(self.slots, *self.shape, dtype=self.table.coef.dtype, device=self.device)
        ulam_kernels.fill_normal(noise, seed=self.seed, chain=self.chain, draw=self.draw, backend=self.backend)
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


@lru_cache(maxsize=256)
def _evaluating(program: Program) -> list[int]:
    """The rows that evaluate the network, in order."""
    return [int(row) for row in np.flatnonzero(program.evaluates)]


def _silent_before(program: Program, evaluation: int) -> range:
    """The rows between an evaluation and the one before it."""
    rows = _evaluating(program)
    return range(rows[evaluation - 1] + 1 if evaluation else 0, rows[evaluation])


def _silent_after(program: Program, evaluation: int) -> range:
    """The rows behind the last evaluation, if this is the last."""
    rows = _evaluating(program)
    return range(rows[-1] + 1, len(program)) if evaluation == len(rows) - 1 else range(0)


def _input_dtype(net: Any, state: torch.dtype) -> torch.dtype:
    """What the network computes in: the dtype of its floating-point parameters, without any the states' dtype."""
    for parameter in net.parameters() if isinstance(net, torch.nn.Module) else ():
        if parameter.is_floating_point():
            return parameter.dtype
    return state
