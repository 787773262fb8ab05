"""Chains of one program walked by themselves, without slots: what `ulam.sample` and `ulam.Policy` run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch

import ulam_kernels
from ulam_kernels import Table
from ulam_kernels.dispatch import select
from ulam_kernels.networks import Linear, Network
from ulam_kernels.walks import BoundWalk

from ..chain_kernel.compiled import CompiledChain, compiled_once
from ..conditioning import Cond, Shared, check_cond
from ..denoiser import Denoiser
from ..noise import DRAWS_PER_ROW, FIRST_STATE, ROW
from ..programs.program import Program
from .job import Job
from .slots import Ints
from .walked_slots import differences

WALKED = {"guided", "scaled"}  # what a job may need beyond its rows
MOST_OPERATIONS = {"cpu": 1 << 35, "cuda": 1 << 42}  # of one call, which Ctrl-C waits for: a fraction of a second
Heard: TypeAlias = "tuple[torch.Tensor, dict[str, torch.Tensor | Shared]]"
LAST = "walker"
KEPT = 1 << 16  # elements of the states of a walker that waits for the next call
BEGIN = (1, 0, 1, DRAWS_PER_ROW, 0, 0)  # the cursor of a chain: row, draw, what they advance by, failed, parts
FIRST_DRAW = ROW.draw(0)
DRAW, FAILED, SEED, CHAIN = 1, 4, len(BEGIN), len(BEGIN) + 1  # lines of a walker's whole numbers


class Walker:
    """``chains`` chains of a program with a compiled network, in memory of their own that every run uses again.

    The bits are those of an engine that walks whole chains.
    """

    def __init__(
        self, compiled: CompiledChain, program: Program, shape: tuple[int, ...], chains: int, *,
        guided: bool, times: torch.dtype, device: torch.device, backend: str | None, precision: str,
        mask: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self._compiled, self._program, self._guided, self._backend = compiled, program, guided, backend
        self._precision, self._mask, self._device, self._rows = precision, mask, device, len(program)
        self._times = torch.tensor(program.time).to(times)
        self._fill_normal = select(backend, device.type, torch.float32).fill_normal
        rows = program.table(dtype=torch.float32)
        idle = Table(torch.zeros_like(rows.coef[:1]), torch.zeros_like(rows.flags[:1]), rows.registers)
        with torch.inference_mode(False):
            table = Table.cat([idle, rows])
            self._table = Table(table.coef.to(device), table.flags.to(device), table.registers)
            self.states = torch.zeros(program.registers, chains, *shape, device=device)
            self._net_in = torch.empty(chains, *shape, device=device) if program.scales_input else None
            self._whole = whole = torch.zeros(len(BEGIN) + 3, chains, dtype=torch.int64, device=device)
            self._cursor, (self._seed, self._chain, self._first) = whole[: len(BEGIN)], whole[len(BEGIN) :]
            self._weight = torch.ones(chains, device=device)
            self.known = None if mask is None else torch.zeros(chains, *shape, device=device)
        if self._net_in is not None:
            first = float(np.float32(program.c_in[program.evaluating[0]]))
            self._scale = torch.full((chains,), first, device=device)
            self._shift = torch.zeros(chains, device=device)
        self._x = self.states[0]
        self._host, self._begin = whole.cpu().numpy(), np.array(BEGIN)[:, None]  # on the CPU the tensors' own memory
        self._lines, self._x_host = [*self._host], self._x.numpy() if device.type == "cpu" else None
        self._told: dict[int, dict[str, torch.Tensor | Shared]] = {}
        self._network: Network | None = None  # of which all below is
        self.follow()

    def _bind(self, network: Network) -> None:
        """Hold this network."""
        chains = self.states.shape[1]
        with torch.inference_mode(False):
            self._vectors = torch.zeros(2, chains, network.chain_width, device=self._device)
            rows = torch.zeros(len(self._table), network.row_width, device=self._device)
            rows[1:] = self._compiled.row_vectors(self._times)
        linears = [instruction for instruction in network.instructions if isinstance(instruction, Linear)]
        operations = 2 * chains * sum(weight.numel() for linear in linears for weight in linear.weights)
        self._most = max(1, MOST_OPERATIONS[self._device.type] // max(operations, 1))
        uncond = (self._vectors[1], self._weight) if self._guided else (None, None)
        self._run = BoundWalk(
            self.states, self._table, self._cursor, network, net_in=self._net_in, seed=self._seed,
            chain=self._chain, row_vectors=rows, chain_vectors=self._vectors[0], uncond_vectors=uncond[0],
            guidance=uncond[1], known=self.known, mask=self._mask, backend=self._backend, reduces=False,
        )  # fmt: skip

    def follow(self) -> None:
        """Take the network as its last refresh has read it."""
        network = self._compiled.rounded(self._precision)
        if self._network is not network:
            self._network = None  # until all is done: an interrupt may come in between
            self._bind(network)
            for branch, told in self._told.items():
                self._vectors[branch] = self._compiled.chain_vectors(told, len(self._weight))
            self._network = network

    def begin(self, ids: Ints, seed: int, first_row: int = 0, x_init: torch.Tensor | None = None) -> None:
        """Put the chains of these ids at their first row, in states of noise or in these."""
        self._host[: len(BEGIN)], self._lines[CHAIN][:] = self._begin, ids
        self._lines[DRAW].fill(ROW.draw(first_row) if first_row else FIRST_DRAW)
        self._lines[SEED].fill(seed)
        if self._device.type != "cpu":
            self._whole.copy_(torch.from_numpy(self._host))
        x = self._x
        if x_init is None:
            self._fill_normal(x, self._seed, self._chain, self._first, FIRST_STATE.tag, self._program.init_scale, 0)
        else:
            x.copy_(x_init.detach())
        if self.known is not None and self._mask is not None:
            torch.where(self._mask, self.known, x, out=x)
        if self._program.registers > 1:
            self.states[1:] = 0
        if self._net_in is not None:
            ulam_kernels.affine(x, x, self._scale, self._shift, out=self._net_in, backend=self._backend)

    def condition(self, cond: Cond, branch: int = 0) -> None:
        """What the network is told of each chain: in the conditional branch, 0, or the unconditional, 1."""
        self.tell(branch, self.heard(cond, branch))

    def heard(self, cond: Cond, branch: int) -> Heard:
        """What :meth:`condition` makes of conditioning, before anything is written."""
        told = check_cond("uncond" if branch else "cond", cond, len(self._weight))
        vectors = self._compiled.chain_vectors(told, len(self._weight))
        return vectors, {n: v if isinstance(v, Shared) else v.clone() for n, v in told.items()}

    def tell(self, branch: int, heard: Heard) -> None:
        """Write what was heard."""
        vectors, self._told[branch] = heard
        self._vectors[branch] = vectors

    def guide(self, weights: torch.Tensor) -> None:
        """The chains' weights of guidance."""
        self._weight.copy_(weights)

    def walk(self, job: Job, progress: Callable[[int], object] | None = None) -> torch.Tensor:
        """The final states of a job's chains, as :meth:`run` gives them."""
        x_init = job.x_init.tensor.expand_as(self.states[0]) if isinstance(job.x_init, Shared) else job.x_init
        self.begin(job.chain_ids, job.seed, job.first_row, x_init)
        if job.cond:
            self.condition(job.cond)
        if job.guidance is not None:
            self.condition(job.uncond, 1)
            self.guide(job.guidance)
        return self.run(progress)

    def run(self, progress: Callable[[int], object] | None = None) -> torch.Tensor:
        """Walk all rows; return the final states, in memory that the next run writes over.

        ``progress`` is called with the number of evaluations, summed over chains, since its last call.
        """
        left, chains = self._rows, self.states.shape[1]
        while left:
            steps = min(left, self._most)
            self._run(steps)
            left -= steps
            if progress is not None:
                progress(steps * chains)
        return self._x

    def finite(self) -> bool:
        """Whether all final states are finite numbers."""
        finite = np.isfinite(self._x.cpu().numpy() if self._x_host is None else self._x_host)
        return bool(np.count_nonzero(finite) == finite.size)

    def failed_rows(self) -> torch.Tensor | None:
        """Of each chain 1 + the row of the program at which it turned NaN or Inf, 0 if it did not; None if none did."""
        rows = self._lines[FAILED] if self._device.type == "cpu" else self._cursor[FAILED].cpu().numpy()
        return torch.from_numpy(rows.copy()) if np.count_nonzero(rows) else None

    def failed(self) -> dict[int, int]:
        """The row of the program at which each chain turned NaN or Inf, by its place, of those that did."""
        rows = self.failed_rows()
        return {} if rows is None else {place: row - 1 for place, row in enumerate(rows.tolist()) if row}


def read(denoiser: Denoiser, shape: tuple[int, ...], job: Job) -> CompiledChain:
    """A job's network, as it is now. Raises TypeError for one that does not fit."""
    if different := differences(job):
        raise TypeError(different)
    return compiled_once(denoiser, shape, job.cond)


def walked(
    compiled: CompiledChain,
    denoiser: Denoiser,
    job: Job,
    device: torch.device,
    backend: str | None,
    precision: str,
    progress: Callable[[int], object] | None,
) -> tuple[torch.Tensor, dict[int, int]]:
    """A job's final states ``[chains, *shape]``, and the rows at which chains failed, by their places."""
    key = job.program, len(job.chains), job.weights is not None, device, backend, precision
    last = compiled.kept.pop(LAST, None)  # so that no other thread has it
    if last is not None and last[0] == key:
        walker = last[1]
        walker.follow()
    else:
        walker = Walker(compiled, job.program, compiled.shape, len(job.chains), guided=job.weights is not None,
                        times=denoiser.time_dtype, device=device, backend=backend, precision=precision)  # fmt: skip
    out = walker.walk(job, progress)
    failed = walker.failed()
    if walker.states.numel() <= KEPT:
        out = out.clone()
        compiled.kept[LAST] = key, walker  # which refers to it in turn
    return out if len(walker.states) == 1 else out.clone(), failed


def walks(job: Job) -> bool:
    """Whether every row of a job is an evaluation and a step, so that no slots are needed."""
    return WALKED.issuperset(job.traits)
