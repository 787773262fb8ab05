"""A trajectory: what was recorded of chains on their way, with all that computes the same rows again."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ulam_kernels.arguments import described
from ulam_kernels.squares import squared_norms

from ..arguments import seed_int64, whole_number
from ..conditioning import Shared
from ..programs.program import Program
from .groups import Group
from .job import Job
from .recording import Record

BEYOND = {  # traits of jobs that a trajectory does not hold
    "rescaled": "guidance_rescale",
    "ruled": "a rule of guidance",
    "blended": "further conditionings",
    "blends": "a known image",
}


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Chains of one job, row by row.

    Attributes:
        program: what they ran. rows: which of its rows were recorded, K of them, one after another.
        chains: ``[n]`` int64 ids. seed: of the noise. first_row: of noise-v1, what row 0 of the program had.
        x: ``[n, ...]``, the results (after the job's ``finish``), NaN where chains failed.
        states: ``[n, K + 1, *shape]``: before the first of these rows, and after each of them; None if not recorded.
        history: ``[n, K + 1, R - 1, *shape]``, the other registers of samplers that have them, else None.
        outputs: ``[n, K, *shape]``, the network's after guidance, NaN where a row has none; None if not recorded.
        failed: the row at which chains turned NaN or Inf, by their places; the states after it are the last good one.
        cond, uncond, guidance, interval: as the job had them, ``[n, ...]``. traits: what else its ticks needed.
        shape, dtype: of one chain's states. slots: of the engine, how many states its network was given at once.
    """

    program: Program
    rows: range
    chains: torch.Tensor
    seed: int
    first_row: int
    x: torch.Tensor
    states: torch.Tensor | None
    history: torch.Tensor | None
    squares: torch.Tensor | None  # [n, K] int64, 2^20 |z|^2
    outputs: torch.Tensor | None
    failed: dict[int, int]
    cond: dict[str, torch.Tensor | Shared]
    uncond: dict[str, torch.Tensor | Shared]
    guidance: torch.Tensor | None
    interval: tuple[float, float] | None
    traits: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    slots: int

    def __repr__(self) -> str:
        return f"Trajectory({len(self)} chains of {list(self.shape)}, rows {self.rows.start} to {self.rows.stop - 1})"

    def __len__(self) -> int:
        return len(self.chains)

    @property
    def times(self) -> torch.Tensor:
        """``[K]`` float64: the time that the network was told in each row, NaN where it was not called."""
        return torch.from_numpy(self.program.time[self.rows.start : self.rows.stop].copy())

    @property
    def stochastic(self) -> torch.Tensor:
        """``[K]`` bool: the rows that add noise to x. Others have no density."""
        noisy = self.program.A[self.rows.start : self.rows.stop, 0, -1] != 0
        return torch.from_numpy(noisy & self.program.writes[self.rows.start : self.rows.stop, 0])

    @property
    def log_prob(self) -> torch.Tensor:
        """``[n, K]`` float64: log N(x'; mean, a_z^2) of each row, -|z|^2 / 2 - d (log a_z + log(2 pi) / 2) of d
        elements and the z that the fused step used; NaN in rows without noise, which have no density, and where chains
        failed.

        Raises ValueError if it was not recorded.
        """
        if self.squares is None:
            raise ValueError("log_prob: got a trajectory without it, expected one of Rollout(log_prob=True)")
        found = -squared_norms(self.squares) / 2
        found = found + math.prod(self.shape) * self.log_scales().to(found.device)
        for place, row in self.failed.items():
            found[place, max(row - self.rows.start, 0) :] = torch.nan
        return found

    @property
    def total(self) -> torch.Tensor:
        """``[n]`` float64: the sum of :attr:`log_prob` over the rows that add noise."""
        kept: torch.Tensor = self.log_prob[:, self.stochastic.to(self.log_prob.device)].sum(1)
        return kept

    def log_scales(self) -> torch.Tensor:
        """``[K]`` float64: -log a_z - log(2 pi) / 2, what each element adds to log_prob; NaN in rows without noise."""
        wide = self.dtype == torch.float64
        scale = self.program.A[self.rows.start : self.rows.stop, 0, -1]
        scale = scale if wide else scale.astype(np.float32).astype(np.float64)  # as the step has it
        with np.errstate(divide="ignore"):
            found = -np.log(np.abs(scale)) - math.log(2 * math.pi) / 2
        return torch.from_numpy(np.where(self.stochastic.numpy(), found, np.nan))

    def __getitem__(self, chains: int | slice | Sequence[int] | torch.Tensor) -> Trajectory:
        """Some of the chains, in this order. Raises TypeError or IndexError as tensors do."""
        if not isinstance(chains, slice | list | tuple | range) and not getattr(chains, "shape", None):
            chains = [operator.index(chains)]  # type: ignore[arg-type]  # a number of any kind
        at = torch.arange(len(self))[list(chains) if isinstance(chains, range) else chains]

        def of(value: Any) -> Any:
            return value[at.to(value.device)] if isinstance(value, torch.Tensor) else value

        return replace(
            self,
            **{name: of(getattr(self, name)) for name in ("chains", "x", "states", "history", "squares", "outputs")},
            guidance=of(self.guidance),
            cond={name: of(value) for name, value in self.cond.items()},
            uncond={name: of(value) for name, value in self.uncond.items()},
            failed={new: self.failed[place] for new, place in enumerate(at.tolist()) if place in self.failed},
        )

    def to(self, device: torch.device | str) -> Trajectory:
        """All tensors on this device; those that are there already are shared."""

        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, torch.Tensor) else value

        def all_of(cond: dict[str, torch.Tensor | Shared]) -> dict[str, torch.Tensor | Shared]:
            return {
                name: Shared(value.tensor.to(device)) if isinstance(value, Shared) else value.to(device)
                for name, value in cond.items()
            }

        names = ("x", "states", "history", "squares", "outputs", "guidance")
        return replace(
            self,
            **{name: moved(getattr(self, name)) for name in names},
            cond=all_of(self.cond),
            uncond=all_of(self.uncond),
        )

    def fork(self, row: int, n: int, seed: int, program: Program | None = None) -> dict[str, Any]:
        """``n`` branches of every chain from its state before ``row``: arguments of :meth:`ulam.Engine.submit` and
        :func:`ulam.rollouts.sample`, to which conditioning and guidance belong.

        Branch j of place i has the id ``i n + j`` under the new seed, and thus noise of its own; its bits are those of
        a run that begins there by itself. The trunk's rows are not evaluated again. A second fork takes another seed,
        or shares the noise of the rows that both have. ``finish`` is not among the arguments.

        Args:
            row: of the program, one that was recorded, or the one after the last. n: at least 1. seed: of the branches.
            program: what to go on with where the trunk ran a beginning of it alone, ``program[:row]``; by default the
                trunk's own, and the trunk is a branch itself.

        Raises:
            TypeError, ValueError: an invalid argument; the trunk's own seed, under which the first branch would be the
                trunk; a trajectory without states, or guided by more than weights.
        """
        row, n = whole_number("row", row), whole_number("n", n)
        if self.states is None:
            raise ValueError("fork: got a trajectory without states, expected one of Rollout(states=True)")
        if found := [what for trait, what in BEYOND.items() if trait in self.traits]:
            raise ValueError(f"fork: got a trajectory with {found[0]}, which it does not hold, expected one without")
        if seed_int64(seed) == self.seed:
            raise ValueError(f"seed: got {seed}, the trunk's own, expected another, for noise of the branches' own")
        if not isinstance(whole := self.program if program is None else program, Program):
            raise TypeError(f"program: got {described(whole)}, expected a Program, as denoiser.program(sampler) is")
        if len(whole) < len(self.program) or whole.cut(0, len(self.program)) != self.program:
            raise ValueError(f"program: got {whole!r:.80}, expected one that begins as the trunk's")
        if not self.rows.start <= row < min(self.rows.stop + 1, len(whole)):
            last = min(self.rows.stop, len(whole) - 1)
            raise ValueError(f"row: got {described(row)}, expected {self.rows.start} to {last}, which was recorded")
        if n < 1:
            raise ValueError(f"n: got {n}, expected at least 1")
        if late := [place for place, last in sorted(self.failed.items()) if last < row]:
            got = f"{row}, which place {late[0]} did not reach: it failed at row {self.failed[late[0]]}"
            raise ValueError(f"row: got {got}, expected rows before that, or trajectory[places] of others")
        at = row - self.rows.start

        def repeated(value: Any) -> Any:
            return value.repeat_interleave(n, 0) if isinstance(value, torch.Tensor) else value

        history = None if self.history is None else repeated(self.history[:, at])
        return {
            "sampler": whole.cut(row, len(whole)),
            "chains": range(len(self) * n),
            "seed": seed,
            "x_init": repeated(self.states[:, at]),
            "history": history,
            "first_row": self.first_row + row,
            "cond": {name: repeated(value) for name, value in self.cond.items()} or None,
            "uncond": {name: repeated(value) for name, value in self.uncond.items()} or None,
            "guidance": repeated(self.guidance),
            "guidance_interval": self.interval,
        }


def trajectory_of(group: Group[Job], x: torch.Tensor, failed: dict[int, int]) -> Trajectory | None:
    """What was recorded of a group that has ended, with its results; None if nothing was."""
    record: Record | None = group.record
    if record is None:
        return None
    job, at = group.job, group.chains
    failed = {place - at.start: row for place, row in failed.items()}
    x = x.clone() if failed or x.is_inference() else x
    if failed:
        x[list(failed)] = torch.nan
    return Trajectory(
        job.program, record.rows, job.chains[at], job.seed, job.first_row, x,
        None if record.states is None else record.states.transpose(0, 1),
        None if record.history is None else record.history.permute(2, 0, 1, *range(3, record.history.dim())),
        None if record.squares is None else record.squares.T,
        None if record.outputs is None else record.outputs.transpose(0, 1),
        failed, record.cond, record.uncond, None if job.guidance is None else job.guidance[at], job.interval,
        job.traits, record.shape, record.dtype, record.slots,
    )  # fmt: skip


def joined(parts: list[Trajectory]) -> Trajectory:
    """The trajectories of one job's chains as one, in this order."""
    first, begins = parts[0], np.cumsum([0, *map(len, parts)])
    if len(parts) == 1:
        return first

    def cat(values: list[Any]) -> Any:
        return torch.cat(values) if isinstance(values[0], torch.Tensor) else values[0]

    changed: dict[str, Any] = {
        name: cat([getattr(part, name) for part in parts])
        for name in ("chains", "x", "states", "history", "squares", "outputs", "guidance")
    }
    for name in ("cond", "uncond"):
        changed[name] = {key: cat([getattr(part, name)[key] for part in parts]) for key in getattr(first, name)}
    failed = {
        int(begin) + place: row
        for begin, part in zip(begins, parts, strict=False)
        for place, row in part.failed.items()
    }
    return replace(first, failed=failed, **changed)
