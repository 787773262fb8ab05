"""What the kernels read of every slot: row pointer, noise counter, seed, chain, guidance. Written on the host.

On the CPU the arrays are the tensors' own memory. On a GPU the host fills a pinned staging buffer, and one asynchronous
copy and one select per table update the slots that changed: nothing waits, and what the device itself counts stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ..noise import DRAWS_PER_ROW

IDLE_ROW = 0
CURSOR = ("row", "draw", "row_advance", "draw_advance", "failed", "parts")  # in the order of ulam_kernels.advance
FAILED = CURSOR.index("failed")
INTEGERS = (*CURSOR, "seed", "chain")
FLOATS = ("weight", "guided_from", "guided_to", "rescale", "branches", "rule", "eta", "norm", "momentum")
Ints: TypeAlias = "npt.NDArray[np.int64]"
Guided: TypeAlias = "tuple[slice, npt.NDArray[np.float32], tuple[float, ...]]"  # slots, weights, the rest of FLOATS
UNGUIDED = np.array([1.0, -np.inf, np.inf, 0.0, 0.0, 0.0, 1.0, np.inf, 0.0], dtype=np.float32)  # values of FLOATS
STAGINGS = 4  # staging buffers, copies in flight at once


class Slots:
    """``[slots]`` tensors on the device, by name; :meth:`begin` and :meth:`idle` change them.

    row: of the table. draw: of noise-v1. row_advance, draw_advance: what a tick adds to them. failed: the row at which
    the network's output was not finite, else 0. parts: scratch of ``ulam_kernels.advance``. cursor: these six rows.
    ids: seed and chain.
    now: ``[2, slots]``, the row and draw that the fused step of a tick executes. weight: of guidance, applied where
    guided_from <= t <= guided_to (``interval``); rescale: Lin et al. 2024, section 3.4. branches: 1 where the unguided
    branch is one of its own. rule, eta, norm, momentum: see :mod:`ulam.engine.guided_outputs`. blend: weights
    ``[blends, slots]`` of further branches.
    """

    row: torch.Tensor
    draw: torch.Tensor
    seed: torch.Tensor
    chain: torch.Tensor
    failed: torch.Tensor
    weight: torch.Tensor
    guided_from: torch.Tensor
    guided_to: torch.Tensor
    rescale: torch.Tensor
    branches: torch.Tensor
    rule: torch.Tensor
    eta: torch.Tensor
    norm: torch.Tensor
    momentum: torch.Tensor

    def __init__(self, slots: int, device: torch.device, blends: int = 0) -> None:
        self._live = (
            torch.zeros(len(INTEGERS), slots, dtype=torch.int64, device=device),
            torch.zeros(len(FLOATS) + blends, slots, dtype=torch.float32, device=device),
        )
        self._plain = np.append(UNGUIDED, np.zeros(blends, dtype=np.float32))[:, None]
        self.blend = self._live[1][len(FLOATS) :]
        self.cursor, self.ids = self._live[0][: len(CURSOR)], self._live[0][len(CURSOR) :]
        self.interval = self._live[1][1:3]
        self.now = torch.zeros(2, slots, dtype=torch.int64, device=device)
        self.now_row, self.now_draw = self.now
        for names, table in zip((INTEGERS, FLOATS), self._live, strict=True):
            for name, values in zip(names, table, strict=False):
                setattr(self, name, values)
        self.weight.fill_(1.0)
        self._direct = device.type == "cpu"
        self._stagings = deque([] if self._direct else [_Staging(slots, device, blends) for _ in range(STAGINGS)])
        self._host = tuple(table.numpy() for table in self._live) if self._direct else self._stagings[0].arrays

    def begin(
        self,
        ranges: list[slice],
        row: Ints,
        draw: Ints,
        seed: Ints,
        chain: Ints,
        guided: Sequence[Guided],
        blended: Sequence[tuple[slice, npt.NDArray[np.float32]]],
    ) -> Ints:
        """Start chains in these ranges of slots; return the slots' indices.

        row, draw, seed: one per range. chain: ids, one per slot. guided: ranges whose guidance is not 1 everywhere.
        blended: ranges with weights of further branches, ``[branches, slots]``.
        """
        at, sizes = places(ranges)
        if len(ranges) == 1:
            where: slice | Ints = ranges[0]
        else:
            where, (row, draw, seed) = at, np.stack([row, draw, seed]).repeat(sizes, axis=1)
        integers, floats = self._host
        for line, values in enumerate((row, draw, 1, DRAWS_PER_ROW, 0, 0, seed, chain)):
            integers[line, where] = values
        floats[:, where] = self._plain
        for slots, weight, numbers in guided:
            self._host[1][0, slots] = weight
            self._host[1][1 : len(FLOATS), slots] = np.array(numbers, dtype=np.float32)[:, None]
        for slots, weights in blended:
            self._host[1][len(FLOATS) : len(FLOATS) + len(weights), slots] = weights
        self._commit(where)
        return at

    def idle(self, ranges: list[slice]) -> None:
        """Make these slots idle; all else that they hold stays."""
        at = ranges[0] if len(ranges) == 1 else places(ranges)[0]
        self._host[0][:4, at] = 0  # row = IDLE_ROW, draw, and what a tick adds to them
        if ranges:
            self._commit(at)

    def any_failed(self, at: slice) -> bool:
        """Whether a chain in these slots has failed; on a GPU True, as the host does not know."""
        return not self._direct or bool(self._host[0][FAILED, at].any())

    def _commit(self, at: slice | Ints) -> None:
        """Make what was written for these slots visible to the device's next operation."""
        if self._direct:
            return
        self._stagings[0].changed[at] = True
        self._stagings[0].upload(self._live)
        self._stagings.rotate(-1)
        self._stagings[0].wait()
        self._host = self._stagings[0].arrays


class _Staging:
    """A pinned staging buffer of the tables, and the event after which it may be written again."""

    def __init__(self, slots: int, device: torch.device, blends: int) -> None:
        def pair(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
            return (
                torch.zeros(rows, slots, dtype=dtype, pin_memory=True),
                torch.zeros(rows, slots, dtype=dtype, device=device),
            )

        self._tables = pair(len(INTEGERS), torch.int64), pair(len(FLOATS) + blends, torch.float32)
        self._changed = pair(1, torch.bool)
        self._device = device
        self.arrays = tuple(host.numpy() for host, _ in self._tables)
        self.changed = self._changed[0].numpy()[0]
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def upload(self, live: tuple[torch.Tensor, torch.Tensor]) -> None:
        for host, device in (*self._tables, self._changed):
            device.copy_(host, non_blocking=True)
        for (_, fresh), table in zip(self._tables, live, strict=True):
            torch.where(self._changed[1], fresh, table, out=table)
        self._event.record(torch.cuda.current_stream(self._device))  # of this device, which need not be the current one

    def wait(self) -> None:
        """Wait for this buffer's last upload: STAGINGS - 1 uploads ago, so in practice it is done."""
        self._event.synchronize()
        self.changed[:] = False


def places(ranges: list[slice]) -> tuple[npt.NDArray[np.int64], list[int]]:
    """The slots of all ranges, one after another, and the size of each range."""
    sizes = [at.stop - at.start for at in ranges]
    starts = np.array([at.start for at in ranges], dtype=np.int64)
    if len(ranges) == sum(sizes):
        return starts, sizes
    ends = np.cumsum(sizes)
    return np.arange(ends[-1]) + (starts - ends + sizes).repeat(sizes), sizes
