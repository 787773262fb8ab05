"""The tensors behind the slots, and one tick of all of them: network, then one fused step.

Nothing here waits for the device: what happens at a tick is known in advance from the programs.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import ulam_kernels
from ulam_kernels import Table

from .conditioning import ConditioningBuffers
from .denoiser import Denoiser
from .job import Job
from .noise import DRAWS_PER_ROW, INITIAL_STATE
from .program import Program
from .scheduler import Group

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
        self.net_dtype = _input_dtype(denoiser.net, dtype)
        self.time_dtype = denoiser.time_dtype
        if dtype == self.net_dtype == torch.float64 and denoiser.time != "index":
            self.time_dtype = torch.float64  # for checking: float32 would limit the accuracy
        self.cursor, self.advance = torch.zeros(2, 2, slots, dtype=torch.int64, device=device)
        self.row, self.draw = self.cursor
        self.seed, self.chain = torch.zeros(2, slots, dtype=torch.int64, device=device)
        self.weight = torch.ones(slots, dtype=torch.float32, device=device)
        self.state = torch.zeros(1, slots, *shape, dtype=dtype, device=device)
        self.net_in: torch.Tensor | None = None
        self.t = torch.zeros(slots, dtype=self.time_dtype, device=device)
        self.cond = ConditioningBuffers("cond", slots, device)
        self.uncond = ConditioningBuffers("uncond", slots, device)
        self._base: dict[Program, int] = {}
        self._tables: list[Table] = []
        self._times: list[torch.Tensor] = []
        self._phase = 0
        self.network_seconds = 0.0

    @property
    def between_ticks(self) -> bool:
        """False after an exception inside a tick, until :meth:`tick` has completed it."""
        return self._phase == 0

    # ------------------------------------------------------------------------------------------ programs

    def load(self, program: Program) -> None:
        """Make a program's rows part of the table (its coefficients are rounded once, here)."""
        if program in self._base:
            return
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        table = program.table(dtype=wide, device=self.device)
        if not self._tables:
            # Idle slots are told the first program's first time, which the network can surely take.
            idle = Table(torch.zeros_like(table.coef[:1]), torch.zeros_like(table.flags[:1]), table.registers)
            self._append(idle, program.time[program.evaluates][:1])
        self._base[program] = sum(map(len, self._tables))
        self._append(table, program.time)
        registers = max(table.registers for table in self._tables)
        self.table = Table.cat([table.widen(registers) for table in self._tables])
        self.time = torch.cat(self._times)
        if (more := registers - len(self.state)) > 0:
            self.state = torch.cat([self.state, self.state.new_zeros(more, *self.state.shape[1:])])
        if self.net_in is None and (self.net_dtype != self.dtype or bool((program.c_in != 1).any())):
            # A float64 network over narrower states reads float32 inputs, which are exact there, widened.
            dtype = self.net_dtype if self.net_dtype != torch.float64 or wide == torch.float64 else torch.float32
            self.net_in = torch.zeros(self.slots, *self.shape, dtype=dtype, device=self.device)
            self.net_in.copy_(self.state[0])

    def _append(self, table: Table, time: npt.NDArray[np.float64]) -> None:
        self._tables.append(table)
        self._times.append(torch.from_numpy(np.nan_to_num(time)).to(self.device, self.time_dtype))

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
        self.cond.enter(at, chains, job.cond)
        self.uncond.enter(at, chains, job.uncond)
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

    def leave(self, group: Group[Job]) -> None:
        """Idle a group's slots; its final states stay there until other chains enter."""
        self.row[group.slots] = IDLE_ROW
        self.advance[:, group.slots] = 0

    # ---------------------------------------------------------------------------------------------- a tick

    def tick(self, tick: int, groups: list[Group[Job]], guided: bool) -> None:
        """One evaluation of the network and one fused step for every chain in the slots.

        Rows of a program that do not evaluate the network run in the same tick, before it (those behind the last
        evaluation: after it). If the network or a ``noise`` raises, the next call, with the same arguments, goes on
        where this one stopped.
        """
        before, after = _silent_rows(tick, groups)
        while self._phase < len(before):
            self._step_silently(before[self._phase])
            self._phase += 1
        if self._phase == len(before):
            m, uncond = self._evaluate(guided)
            now = [(group, group.job.program.evaluating[tick - group.start]) for group in groups if group.job.noise]
            self._step(self.row, now, m, uncond)
            self.cursor += self.advance
            self._phase += 1
        while self._phase <= len(before) + len(after) and after:
            self._step_silently(after[self._phase - len(before) - 1])
            self._phase += 1
        self._phase = 0

    def _evaluate(self, guided: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The network's outputs with the conditional and, for guided chains, the unconditional inputs.

        These are two calls, so that the network sees the same batch shape, and a chain gets the same bits, whether or
        not there are guided chains in the batch.
        """
        torch.index_select(self.time, 0, self.row, out=self.t)
        m = self._call_network(self.cond.inputs)
        return m, self._call_network(self.uncond.inputs) if guided else None

    def _call_network(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        buffer = self.state[0] if self.net_in is None else self.net_in
        x = buffer.double() if self.net_dtype == torch.float64 != buffer.dtype else buffer
        begin, version = time.perf_counter(), buffer._version
        m = self.denoiser.net(x, self.t, **inputs)
        self.network_seconds += time.perf_counter() - begin
        if buffer._version != version:
            raise ValueError("net: changed its input x in place, which is the engine's own; work on x.clone()")
        if not isinstance(m, torch.Tensor):
            raise TypeError(f"net: returned {type(m).__name__}, expected a tensor {list(x.shape)} like its input")
        if m.shape != x.shape:
            doubled = [x.shape[0], 2 * x.shape[1], *x.shape[2:]] if x.dim() > 1 else None
            if list(m.shape) != doubled:
                raise ValueError(f"net: returned shape {list(m.shape)}, expected {list(x.shape)} like its input")
        if not m.is_floating_point() or m.device != x.device:
            raise TypeError(f"net: returned {m.dtype} on {m.device}, expected a float tensor on {x.device}")
        return m

    def _step_silently(self, moving: list[tuple[Group[Job], int]]) -> None:
        """Execute these groups' next rows, which do not evaluate the network, and leave all other chains alone."""
        row, advance = torch.full_like(self.row, IDLE_ROW), torch.zeros_like(self.advance)
        for group, _ in moving:
            row[group.slots] = self.row[group.slots]
            advance[:, group.slots] = self.advance[:, group.slots]
        self._step(row, [(group, row) for group, row in moving if group.job.noise], None, None)
        self.cursor += advance

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


Silent = list[list[tuple[Group[Job], int]]]


def _silent_rows(tick: int, groups: list[Group[Job]]) -> tuple[Silent, Silent]:
    """Rows without an evaluation that come before this tick's evaluation, and behind it if it is the last.

    Each list holds fused steps; each step the groups that take part in it, with the row of their program.
    """
    before: Silent = []
    after: Silent = []
    for group in groups:
        rows, evaluation = group.job.program.evaluating, tick - group.start
        if len(rows) == len(group.job.program):
            continue
        previous = rows[evaluation - 1] + 1 if evaluation else 0
        trailing = rows[-1] + 1 if evaluation == len(rows) - 1 else len(group.job.program)
        for steps, silent in (
            (before, range(previous, rows[evaluation])),
            (after, range(trailing, len(group.job.program))),
        ):
            steps += [[] for _ in range(len(silent) - len(steps))]
            for step, row in zip(steps, silent, strict=False):
                step.append((group, row))
    return before, after


def _input_dtype(net: Any, state: torch.dtype) -> torch.dtype:
    """What the network computes in: the dtype of its floating-point parameters, without any the states' dtype."""
    for parameter in net.parameters() if isinstance(net, torch.nn.Module) else ():
        if parameter.is_floating_point():
            return parameter.dtype
    return state
