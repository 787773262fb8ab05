"""The tensors behind the slots: states, network inputs, tables of rows; chains enter and leave here.

Nothing here waits for the device. Every buffer that a CUDA graph uses is allocated once: with graphs, states have room
for the most registers, a new program changes only values, and what few programs need (reductions, known images,
scaled inputs) is allocated for the first of them and used only by ticks of another kind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

import ulam_kernels
from ulam_kernels import Table
from ulam_kernels.dispatch import name_of, select
from ulam_kernels.table import MAX_REGISTERS

from ..conditioning import Shared
from ..noise import FIRST_STATE, ROW
from ..programs.program import Program
from .conditioning import ConditioningBuffers
from .groups import Group
from .guided_outputs import numbers_of
from .inpainting import KnownImages
from .job import Job
from .row_table import Columns, Place, RowTable
from .slots import Ints, Slots, places
from .transfers import on_device

if TYPE_CHECKING:
    from ulam_kernels.cpu.bound import BoundTick


@dataclass(frozen=True, eq=False, slots=True)
class TickTensors:
    """What the ticks of one kind read and write, until a buffer moves.

    of, columns: the buffers that it is made of. net_in: the network's inputs, None where it reads the states.
    bound: the operations around the network on these tensors, where the CPU's native ones run.
    """

    of: torch.Tensor
    columns: Columns
    states: torch.Tensor
    table: Table
    net_in: torch.Tensor | None
    bound: BoundTick | None


class Buffers:
    """State, row pointers and conditioning of a fixed number of slots. Idle slots point at the idle row.

    net_dtype: of the network's parameters. channels_last: the fused step writes the network's inputs in that memory
    format. bound: ticks on the CPU may have their operations bound, which check outputs if ``check_finite``.
    own_inputs: the network reads a separate buffer, never the states themselves. second_time: the network's argument
    for a second time. branches: further conditionings, beside ``cond`` and ``uncond``, that chains may blend in.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        slots: int,
        device: torch.device,
        backend: str | None,
        dtype: torch.dtype,
        net_dtype: torch.dtype,
        time_dtype: torch.dtype,
        reserve: bool,
        channels_last: bool = False,
        bound: bool = True,
        check_finite: bool = True,
        second_time: str | None = None,
        branches: int = 0,
    ) -> None:
        self.shape, self.size, self.device, self.backend, self.dtype = shape, slots, device, backend, dtype
        self._binds = bound and device.type == "cpu" and net_dtype != torch.float64
        self._check_finite = check_finite
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.slots = Slots(slots, device, branches)
        self.rows = RowTable(device, wide, time_dtype)
        self.state = torch.zeros(MAX_REGISTERS if reserve else 1, slots, *shape, dtype=dtype, device=device)
        self._fill_normal = select(backend, device.type, dtype).fill_normal
        self._first_draw = torch.zeros(slots, dtype=torch.int64, device=device)
        self._tick: TickTensors | None = None
        self.t = torch.zeros(slots, dtype=time_dtype, device=device)
        self.second = None if second_time is None else torch.zeros(slots, dtype=time_dtype, device=device)
        own = {} if second_time is None or self.second is None else {second_time: self.second}
        self.cond = ConditioningBuffers("cond", slots, device, own)
        self.uncond = ConditioningBuffers("uncond", slots, device, own)
        self.branches = [ConditioningBuffers(f"blend[{k}]", slots, device, own) for k in range(branches)]
        self.past: torch.Tensor | None = None  # a difference that a rule of guidance remembers, once a job has one
        self.scales: torch.Tensor | None = None  # what reductions give the step, once a program has any
        self.known: KnownImages | None = None  # once a program blends with known images
        # A float64 network over narrower states reads float32 inputs; widening them is exact.
        self._input_dtype = torch.float32 if net_dtype == torch.float64 != dtype else net_dtype
        converted = channels_last and len(shape) == 3 and shape[0] > 1  # with one channel both formats coincide
        self._input_format = torch.channels_last if converted else torch.contiguous_format
        self.own_inputs = net_dtype != dtype or converted
        self.net_in: torch.Tensor | None = None
        self._inputs_are_current = False
        if self.own_inputs:
            self._current_inputs()

    # ------------------------------------------------------------------------------------------------ programs

    def load(self, program: Program, running: Callable[[], Collection[Program]]) -> Place:
        """The place of a program's rows. A new one is added, with the buffers it uses; ``running`` ones stay."""
        if (place := self.rows.find(program)) is not None:
            return place
        with torch.inference_mode(False):  # buffers outlive the call, and their versions are checked
            if program.registers > len(self.state):
                more = self.state.new_zeros(program.registers - len(self.state), *self.state.shape[1:])
                self.state = torch.cat([self.state, more])
            if program.needs_reductions and self.scales is None:
                self.scales = torch.ones(self.size, 4, dtype=self.rows.columns.c_next.dtype, device=self.device)
            if self.known is None and bool(program.blends.any()):
                self.known = KnownImages(self.size, self.shape, self.device, self.rows.columns.c_next.dtype)
            return self.rows.add(program, running)

    def of_tick(self, registers: int, scaled: bool) -> TickTensors:
        """The first registers of all states, with what a tick of programs with no more than these needs besides."""
        tick, net_in = self._tick, self.net_in if scaled or self.own_inputs else None
        if net_in is None:
            self._inputs_are_current = False
        if (
            tick is None
            or tick.of is not self.state
            or tick.columns is not self.rows.columns
            or tick.table.registers != registers
            or tick.net_in is not net_in
        ):
            states, table = self.state[:registers], self.rows.table(registers)
            bound = self._bound(states, table, net_in)
            self._tick = tick = TickTensors(self.state, self.rows.columns, states, table, net_in, bound)
        return tick

    def _bound(self, states: torch.Tensor, table: Table, net_in: torch.Tensor | None) -> BoundTick | None:
        """The operations around the network on these buffers, where they are the native ones of the CPU."""
        if not self._binds or not states.numel():
            return None
        backend, slots = select(self.backend, "cpu", self.dtype), self.slots
        if name_of(backend) != "cpu":
            return None
        bound: BoundTick = backend.BoundTick(
            self.rows.columns.times,
            self.t,
            slots.cursor,
            slots.now,
            states,
            table,
            guidance=slots.weight,
            seed=slots.seed,
            chain=slots.chain,
            net_in=net_in,
            check_finite=self._check_finite,
        )
        return bound

    def _current_inputs(self) -> None:
        """Copy the states of all slots to the network's inputs, if these are out of date."""
        if not self._inputs_are_current:
            if self.net_in is None:
                with torch.inference_mode(False):
                    self.net_in = torch.zeros(self.size, *self.shape, dtype=self._input_dtype, device=self.device)
                    self.net_in = self.net_in.contiguous(memory_format=self._input_format)
            self.net_in.copy_(self.state[0])
            self._inputs_are_current = True

    # ---------------------------------------------------------------------------------- entering and leaving

    def enter(self, groups: list[Group[Job]], running: Callable[[], Collection[Program]]) -> None:
        """Put these groups' chains into their slots, at their first row. May be repeated after an exception."""
        jobs = [group.job for group in groups]
        programs = {id(job.program): job.program for job in jobs}  # few, and hashing them is slow
        rows = {key: self.load(program, running).begin for key, program in programs.items()}
        starts = [(rows[id(job.program)], job.first_row, job.seed) for job in jobs]
        row, first, seed = np.array(starts, dtype=np.int64).T
        chain = np.concatenate([job.chain_ids[group.chains] for job, group in zip(jobs, groups, strict=True)])
        guided = [
            (
                group.slots,
                job.weights[group.chains],
                (*(job.interval or (-np.inf, np.inf)), job.rescale, 1.0, *numbers_of(job.rule)),
            )
            for job, group in zip(jobs, groups, strict=True)
            if job.weights is not None
        ]
        blended = [
            (group.slots, np.stack([weight[group.chains].numpy() for _, weight in job.branches]))
            for job, group in zip(jobs, groups, strict=True)
            if job.branches
        ]
        at = self.slots.begin([group.slots for group in groups], row, ROW.draws(first), seed, chain, guided, blended)
        for group in groups:
            job = group.job
            if job.cond:
                self.cond.enter(group.slots, group.chains, job.cond)
            if job.weights is not None:
                self.uncond.enter(group.slots, group.chains, job.uncond)
            for branch, (values, _) in zip(self.branches, job.branches, strict=False):
                branch.enter(group.slots, group.chains, values)
            if job.known is not None and self.known is not None:
                self.known.enter(group.slots, group.chains, job.known)
        if any(job.rule is not None for job in jobs):
            self._forget_differences(on_device(torch.from_numpy(at), self.device))
        self._first_states(groups, at)

    def _forget_differences(self, at: torch.Tensor) -> None:
        """What rules of guidance remember of these slots is 0; that of other chains there is not read."""
        if self.past is None:
            wide = self.rows.columns.c_next.dtype
            with torch.inference_mode(False):
                self.past = torch.zeros(self.size, *self.shape, dtype=wide, device=self.device)
        self.past.index_fill_(0, at, 0)

    def _first_states(self, groups: list[Group[Job]], at: Ints) -> None:
        if self.own_inputs or any(group.job.program.scales_input for group in groups):
            self._current_inputs()
        registers, sizes = max(group.job.program.registers for group in groups), [group.size for group in groups]
        if len(groups) == 1:  # neighbours, whose states are written where they lie
            slots = groups[0].slots
            seed, chain = self.slots.seed[slots], self.slots.chain[slots]
            self._first_noise(self.state[0, slots], seed, chain, groups[0].job.program.init_scale)
        else:
            places_of_all = on_device(torch.from_numpy(at), self.device)
            x = torch.empty(len(at), *self.shape, dtype=self.dtype, device=self.device)
            (seed, chain), begin = self.slots.ids.index_select(1, places_of_all), 0
            for scale, count in _runs(groups, sizes):  # one launch for neighbours with the same scale
                run = slice(begin, begin + count)
                self._first_noise(x[run], seed[run], chain[run], scale)
                begin += count
            self.state[0].index_copy_(0, places_of_all, x)
        for group in groups:
            if (x_init := group.job.x_init) is not None:
                first = x_init.tensor if isinstance(x_init, Shared) else x_init[group.chains]
                self.state[0, group.slots].copy_(on_device(first.to(self.dtype), self.device))
        if registers > 1:
            self.state[1:registers].index_fill_(1, on_device(torch.from_numpy(at), self.device), 0)
        for group in groups:
            if (history := group.job.history) is not None:
                first = history[group.chains].to(self.dtype).transpose(0, 1)
                self.state[1 : 1 + len(first), group.slots].copy_(on_device(first, self.device))
        if self.net_in is not None and self._inputs_are_current:
            places_of_all = on_device(torch.from_numpy(at), self.device)
            self._first_inputs([group.job.program for group in groups], sizes, places_of_all)

    def _first_noise(self, x: torch.Tensor, seed: torch.Tensor, chain: torch.Tensor, scale: float) -> None:
        """Fill first states with noise of these seeds and chains: all are the engine's own, and need no checks."""
        draw = self._first_draw[: x.shape[0]]
        self._fill_normal(x, seed, chain, draw, FIRST_STATE.tag, scale, 0)

    def _first_inputs(self, programs: list[Program], sizes: list[int], at: torch.Tensor) -> None:
        assert self.net_in is not None
        wide = self.rows.columns.c_next.dtype
        c_in = np.array([program.c_in[program.evaluating[0]] for program in programs])
        scale = on_device(torch.from_numpy(c_in.repeat(sizes)).to(wide), self.device)
        x = self.state[0].index_select(0, at)
        scaled = torch.empty_like(x, dtype=self.net_in.dtype)
        ulam_kernels.affine(x, x, scale, torch.zeros_like(scale), out=scaled, backend=self.backend)
        self.net_in.index_copy_(0, at, scaled)

    def leave(self, groups: list[Group[Job]]) -> None:
        """Make these groups' slots idle."""
        self.slots.idle([group.slots for group in groups])

    def idle_but(self, groups: list[Group[Job]]) -> None:
        """Make all slots but these groups' idle."""
        ends = [0, *(end for group in groups for end in (group.slots.start, group.slots.stop)), self.size]
        ends.sort()
        self.slots.idle([slice(begin, end) for begin, end in zip(ends[::2], ends[1::2], strict=True) if begin < end])

    def taken(self, groups: list[Group[Job]], with_failures: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Copies of these groups' states, one after another, and of the rows at which chains failed (0: none)."""
        if len(groups) == 1:
            at = groups[0].slots
            watched = with_failures and self.slots.any_failed(at)
            return self.state[0, at].clone(), self.slots.failed[at].clone() if watched else None
        slots = on_device(torch.from_numpy(places([group.slots for group in groups])[0]), self.device)
        failed = self.slots.failed.index_select(0, slots) if with_failures else None
        return self.state[0].index_select(0, slots), failed


def _runs(groups: list[Group[Job]], sizes: list[int]) -> list[tuple[float, int]]:
    """(scale of the first state, chains) of each run of neighbouring groups with the same scale."""
    runs: list[tuple[float, int]] = []
    for group, size in zip(groups, sizes, strict=True):
        scale = group.job.program.init_scale
        if runs and runs[-1][0] == scale:
            runs[-1] = scale, runs[-1][1] + size
        else:
            runs.append((scale, size))
    return runs
