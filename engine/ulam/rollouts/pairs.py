"""Which (chain, row) pairs of a trajectory a density is asked of, and how far back it reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ulam_kernels.arguments import described

from ..arguments import whole_numbers
from ..engine.trajectory import Trajectory
from ..programs.program import Program

Pairs = tuple[torch.Tensor, torch.Tensor]


def indices(
    trajectory: Trajectory, rows: slice | Sequence[int] | None, pairs: Pairs | None
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Places and rows of all pairs, int64 ``[b]`` on the host, and the shape of what is computed of them.

    Raises TypeError or ValueError for invalid arguments, and for rows that were not recorded or add no noise.
    """
    if pairs is not None:
        if rows is not None:
            raise ValueError("rows: got some beside pairs, expected one of the two")
        places, numbers = _pairs(pairs)
        shape: tuple[int, ...] = tuple(places.shape)
    else:
        wanted = _rows(trajectory, rows)
        numbers = torch.tensor(wanted, dtype=torch.int64).repeat(len(trajectory))
        places = torch.arange(len(trajectory)).repeat_interleave(len(wanted))
        shape = (len(trajectory), len(wanted))
    if len(numbers) == 0:
        raise ValueError(f"rows: got none, expected rows of {trajectory!r} that add noise")
    for row in sorted(set(numbers.tolist())):
        if row not in trajectory.rows:
            raise ValueError(f"rows: got {row}, expected {trajectory.rows.start} to {trajectory.rows.stop - 1}")
        if not trajectory.stochastic[row - trajectory.rows.start]:
            raise ValueError(f"rows: got {row}, which adds no noise to x and has no density, expected rows that do")
    if not bool(((places >= 0) & (places < len(trajectory))).all()):
        raise ValueError(f"pairs: got a place outside 0 to {len(trajectory) - 1}, expected chains of the trajectory")
    return places, numbers, shape


def _pairs(pairs: Pairs) -> Pairs:
    parts = pairs if isinstance(pairs, tuple | list) else ()
    if len(parts) != 2 or not all(isinstance(part, torch.Tensor | np.ndarray | list | range) for part in parts):
        raise TypeError(f"pairs: got {described(pairs)}, expected two int64 tensors [b], places and rows")
    places, numbers = (torch.as_tensor(part).detach().cpu().contiguous() for part in parts)
    if places.dim() != 1 or places.shape != numbers.shape or {places.dtype, numbers.dtype} != {torch.int64}:
        raise ValueError(f"pairs: got {described(pairs[0])} and {described(pairs[1])}, expected two int64 tensors [b]")
    return places, numbers


def _rows(trajectory: Trajectory, rows: slice | Sequence[int] | None) -> list[int]:
    if rows is None:
        return [row for row, adds in zip(trajectory.rows, trajectory.stochastic.tolist(), strict=True) if adds]
    if isinstance(rows, slice):
        return list(range(len(trajectory.program))[rows])
    if isinstance(rows, torch.Tensor) and rows.dtype == torch.bool:
        if rows.shape != (len(trajectory.rows),):
            raise ValueError(f"rows: got shape {list(rows.shape)}, expected [{len(trajectory.rows)}], one a row")
        return [trajectory.rows[place] for place in torch.nonzero(rows).flatten().tolist()]
    if isinstance(rows, torch.Tensor | np.ndarray | Sequence) and not isinstance(rows, str):
        return whole_numbers(**{f"rows[{place}]": row for place, row in enumerate(rows)})
    raise TypeError(f"rows: got {described(rows)}, expected a slice, a sequence of rows, or None")


def reach(program: Program, row: int, first: int) -> int:
    """How many rows before ``row`` its mean reads, through registers.

    Raises ValueError, naming the row, where it reads what is from before row ``first``, or where a row it reads has
    noise or an estimate whose scale another network would have changed.
    """
    if why := _unknown(program, row):
        raise ValueError(f"rows: got {row}, {why}")
    read = _sources(program, row, {0})
    back = 0
    while read:
        back += 1
        earlier = row - back
        if earlier < first:
            raise ValueError(
                f"rows: got {row}, which reads outputs from before row {first}, the first that was recorded, expected "
                "later rows, or a trajectory of more"
            )
        if why := _unknown(program, earlier):
            raise ValueError(f"rows: got {row}, which reads row {earlier}, {why}")
        for register in read:
            if program.writes[earlier, register] and program.A[earlier, register, -1] and not _noisy(program, earlier):
                raise ValueError(
                    f"rows: got {row}, which reads noise of row {earlier} that x did not take, expected other rows"
                )
        read = _sources(program, earlier, read)
    return back


def _sources(program: Program, row: int, registers: set[int]) -> set[int]:
    """The registers beyond x, before this row, on which these depend after it."""
    found: set[int] = set()
    for register in registers:
        if program.writes[row, register]:
            found |= set(np.flatnonzero(program.A[row, register, : program.registers]).tolist())
        else:
            found.add(register)
        if register and _noisy_in(program, row, register):
            found |= _sources(program, row, {0})  # noise is known from x after the row, and its mean
    return found - {0, int(program.unguided[row])}


def _noisy_in(program: Program, row: int, register: int) -> bool:
    return bool(program.writes[row, register] and program.A[row, register, -1])


def _noisy(program: Program, row: int) -> bool:
    return _noisy_in(program, row, 0)


def _unknown(program: Program, row: int) -> str:
    """Why what a row writes cannot be computed again; empty if it can."""
    for what, marked in (
        ("a learned variance", program.learned), ("noise scaled by norms", program.normalise),
        ("a clip by a quantile", program.threshold),
    ):  # fmt: skip
        if marked[row]:
            return f"which has {what}, expected rows without"
    return ""
