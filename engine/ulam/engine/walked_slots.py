"""The network of an engine inside the kernel that walks whole chains, and whether it fits there.

An engine decides at its first job. From then on every evaluation is the kernel's: ticks between two events are one
walk; where a tick needs Python, as previews and a caller's noise do, the kernel evaluates the network alone. So a chain
has the same bits in any company, whatever its neighbours need.

On a GPU a walk is one launch, and nothing here waits for it. What the network reads of rows and chains is computed on
the host and copied from page-locked memory; conditioning that lives on the GPU is therefore read when it is submitted.
Only where an engine had come to rest, and where weights have changed, the host waits: it compares them, or reads them.
"""

from __future__ import annotations

import time
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch

from ulam_kernels import evaluate_network
from ulam_kernels.dispatch import select_for_networks
from ulam_kernels.networks import Network
from ulam_kernels.walks import BoundWalk, prepare

from ..chain_kernel.compiled import CompiledChain, compiled_once
from ..conditioning import Shared
from ..denoiser import Denoiser
from ..programs.program import Program
from .buffers import Buffers, TickTensors
from .conditioning import Input, kind_of
from .groups import Group
from .job import Job
from .network import NetworkOptions
from .row_table import Place
from .slots import IDLE_ROW, places
from .tick_needs import TickNeeds
from .transfers import on_device, write_rows

Told: TypeAlias = dict[str, torch.Tensor | Shared]

PRECISIONS = ("float32", "bf16", "bf16_dot", "tf32x3")
CHOICES = ("auto", "on", "off", *PRECISIONS[1:])
MOST_TICKS = 64  # of one walk: a cancelled job leaves after it


def precision_of(chain_kernel: str) -> str:
    """The precision of the kernel's matrices under a choice of :data:`CHOICES`."""
    return chain_kernel if chain_kernel in PRECISIONS else "float32"


def why_not(
    device: torch.device,
    dtype: torch.dtype,
    backend: str | None,
    options: NetworkOptions,
    shape: tuple[int, ...],
    **uses: bool,
) -> str:
    """Why an engine of these arguments cannot walk whole chains; empty if nothing is against it."""
    if dtype != torch.float32:
        return f"dtype: got {dtype}, expected torch.float32"
    try:
        select_for_networks(backend, device.type, dtype)
    except ValueError as error:
        return f"device: got {device}, expected one with a backend that holds networks ({error})"
    if options != NetworkOptions():
        return f"options: got {options}, expected none"
    if torch.is_autocast_enabled(device.type):
        return "autocast: got one around the engine, expected float32 throughout"
    if not shape:
        return "shape: got (), expected at least one dimension"
    for name, used in uses.items():
        if used:
            return f"{name}: got one, expected none"
    return ""


class WalkedSlots:
    """The network in the kernel, with the vectors of the rows in the table and of the chains in the slots."""

    def __init__(self, compiled: CompiledChain, buffers: Buffers, precision: str) -> None:
        self.compiled, self._buffers, self.precision = compiled, buffers, precision
        self._written: dict[Program, Place] = {}
        self._read: WeakKeyDictionary[Job, tuple[Told, Told]] = WeakKeyDictionary()
        self.seconds = 0.0
        self._complete = False  # nothing is missing: an interrupt may have left vectors half made
        self.places = 0  # how often tensors have taken new places: what reads them at the old ones is out of date
        self._take(compiled.rounded(precision))

    def _take(self, network: Network) -> None:
        """Hold this network from now on."""
        self._network = network
        for one in (network, network.told_by_chain):
            prepare(one, self._buffers.device, self._buffers.backend)

    def _allocate(self) -> None:
        """Vectors for every row and slot, of the network as it is now; each is written before it is read."""
        network, buffers = self._network, self._buffers
        self._written, self.places = {}, self.places + 1
        self._bound: tuple[TickTensors, bool, BoundWalk] | None = None
        with torch.inference_mode(False):
            self._rows = torch.empty(len(buffers.rows), network.row_width, device=buffers.device)
            self._rows[IDLE_ROW] = 0
            self._chain, self._uncond = torch.zeros(2, buffers.size, network.chain_width, device=buffers.device)

    def check(self, job: Job) -> None:
        """Raise ValueError for a job whose two branches take different arguments: the kernel holds one network.

        On a GPU what its chains are told is read here, where it lives there.
        """
        if different := differences(job):
            raise ValueError(f"{different} in an engine that walks whole chains, or chain_kernel='off'")
        if self._buffers.device.type == "cuda":
            self._read[job] = on_host(job.cond), on_host(job.uncond)

    def enter(self, groups: list[Group[Job]]) -> None:
        """Compute what the network reads of these groups' chains; where all is to be made anew, :meth:`follow` will."""
        if self._current():
            self._tell(groups)

    def _current(self) -> bool:
        """Whether there are vectors, of this network and for every row."""
        known = self.compiled.rounded(self.precision)
        return self._complete and known is self._network and len(self._rows) == len(self._buffers.rows)

    def _tell(self, groups: list[Group[Job]]) -> None:
        if self._network.chain_width:
            self._enter(self._chain, [(group, self._told(group.job)[0]) for group in groups])
            guided = [group for group in groups if group.job.guidance is not None]
            self._enter(self._uncond, [(group, self._told(group.job)[1]) for group in guided])

    def _told(self, job: Job) -> tuple[Told, Told]:
        return self._read.get(job, (job.cond, job.uncond))

    def _enter(self, into: torch.Tensor, told: list[tuple[Group[Job], Told]]) -> None:
        if told:
            vectors = torch.cat([self._vectors(cond, group) for group, cond in told])
            at = torch.from_numpy(places([group.slots for group, _ in told])[0])
            into.index_copy_(0, on_device(at, into.device), on_device(vectors, into.device))

    def _vectors(self, cond: Told, group: Group[Job]) -> torch.Tensor:
        own = {name: value if isinstance(value, Shared) else value[group.chains] for name, value in cond.items()}
        return self.compiled.chain_vectors(own, group.size)

    def follow(self, groups: list[Group[Job]], rested: bool) -> None:
        """Bring all vectors up to date: of weights that have changed, of programs and tables that have moved.

        rested: the slots were empty and nothing waited for them. A GPU's weights are then compared byte by byte, for
        which the host waits; else only what torch counts of them is looked at.
        """
        self.compiled.refresh(wait=rested)
        if not self._current():
            self._complete = False
            self._take(self.compiled.rounded(self.precision))
            self._allocate()
            self._tell(groups)
            self._complete = True
        for program in {id(group.job.program): group.job.program for group in groups}.values():
            place = self._buffers.rows[program]
            if self._written.get(program) is not place:
                self._write(program, place)

    def _write(self, program: Program, place: Place) -> None:
        if self._network.row_width:
            at = torch.tensor(program.evaluating)
            times = torch.tensor(program.time)[at].to(self._buffers.t.dtype)  # as the table has them
            vectors = torch.zeros(len(program.time), self._network.row_width)
            vectors[at] = self.compiled.row_vectors(times)
            write_rows(place.begin, (self._rows, vectors))
        rows = self._buffers.rows
        self._written = {p: there for p, there in self._written.items() if p in rows.programs and rows[p] is there}
        self._written[program] = place

    def walk(self, ticks: int, needs: TickNeeds) -> None:
        """Execute so many rows of every chain, the network included."""
        begin = time.perf_counter()
        tensors, slots = self._buffers.of_tick(needs.registers, needs.scaled), self._buffers.slots
        if self._bound is None or self._bound[0] is not tensors or self._bound[1] != needs.guided:
            bound = BoundWalk(
                tensors.states, tensors.table, slots.cursor, self._network, net_in=tensors.net_in,
                seed=slots.seed, chain=slots.chain, row_vectors=self._rows, chain_vectors=self._chain,
                uncond_vectors=self._uncond if needs.guided else None, guidance=slots.weight if needs.guided else None,
                backend=self._buffers.backend, reduces=False,
            )  # fmt: skip
            self._bound = tensors, needs.guided, bound
        self._bound[2](ticks)
        self.seconds += time.perf_counter() - begin

    def evaluate(
        self, x: torch.Tensor, uncond: dict[str, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The network's outputs alone, with the bits that a walk gives them; learned variances behind them."""
        begin = time.perf_counter()
        m = self._evaluated(x, self._chain)
        other = None if uncond is None else self._evaluated(x, self._uncond)
        self.seconds += time.perf_counter() - begin
        return m, other

    def _evaluated(self, x: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        told = torch.cat([vectors, self._rows.index_select(0, self._buffers.slots.row)], 1)
        network, backend = self._network.told_by_chain, self._buffers.backend
        m = evaluate_network(network, x, chain_vectors=told, backend=backend)[1]
        return m.view(len(x), 2 * x.shape[1], *x.shape[2:]) if network.learned else m


def on_host(cond: Told) -> Told:
    """Conditioning with copies on the host of what lives on a GPU."""
    return {
        name: Shared(value.tensor.detach().cpu()) if isinstance(value, Shared) else value.detach().cpu()
        for name, value in cond.items()
    }


def differences(job: Job) -> str:
    """How the arguments of a guided job's two branches differ, which one network cannot take; empty if not."""
    for name, value in job.uncond.items() if job.guidance is not None else ():
        own, other = Input.of(job.cond[name]), Input.of(value)
        if (own.dtype, own.shape, own.shared is None) != (other.dtype, other.shape, other.shared is None):
            got, expected = (f"{kind_of(given)}, {given.dtype} {list(given.shape)}" for given in (other, own))
            return f"uncond[{name!r}]: got {got}, expected {expected} like cond[{name!r}]"
    return ""


def chains_of(denoiser: Denoiser, shape: tuple[int, ...], job: Job, buffers: Buffers, precision: str) -> WalkedSlots:
    """The network in the kernel, for an engine whose first job this is. Raises TypeError where it does not fit."""
    if different := differences(job):
        raise TypeError(different)
    compiled = compiled_once(denoiser, shape, job.cond)
    return WalkedSlots(compiled, buffers, precision)
