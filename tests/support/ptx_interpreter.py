"""Executes the PTX of a kernel on NumPy arrays, all threads of a launch at once, with IEEE rounding.

So a machine without a GPU can compare what one would compute with the CPU backend, bit for bit. The interpreter knows
the instructions that nvcc and Triton emit for these kernels and raises on any other, on a misaligned access, on an
access outside every buffer and on a barrier that some threads never reach. Registers never written hold NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ptx_arithmetic import Arithmetic
from ptx_memory import Array
from ptx_parser import TYPES, Instruction
from ptx_threads import UNWRITTEN

ATOMIC = {"add": np.add, "min": np.minimum, "max": np.maximum, "or": np.bitwise_or}
REDUCTIONS = {"add": np.add.reduce, "min": np.min, "max": np.max}


class Machine(Arithmetic):
    """A launch with all its instructions: those here reach memory or other threads."""

    REMOTE = 1 << 24  # what is added to an address of shared memory for each block of a cluster

    def _address(self, operand: str) -> Array:
        base, _, offset = operand.strip("[] ").partition("+")
        start = np.asarray(self.read(base.strip(), TYPES["u64"]))
        return np.broadcast_to(
            start + np.uint64(int(offset or 0) % (1 << 64)), self.special["tid", "x"][self.lanes].shape
        )

    def _bar(self, i: Instruction) -> None:
        if "red" in i.modifiers:
            self._reduce_over_block(i)
        elif "warp" not in i.modifiers:  # a warp's threads run together anyway
            self._wait(i, 1)

    def _barrier(self, i: Instruction) -> None:
        """A cluster's barrier: a thread arrives where it waits, as no instruction lies between the two."""
        if "cluster" not in i.modifiers:
            raise NotImplementedError(i.text)
        if "wait" in i.modifiers:
            self._wait(i, 2)

    def _wait(self, i: Instruction, kind: int) -> None:
        if i.guard is not None:
            raise NotImplementedError(i.text)
        self.awaits[self.lanes] = kind

    def _mapa(self, i: Instruction) -> None:
        here, rank = (np.asarray(x, np.int64) for x in self._inputs(i))
        if (rank >= self.cluster).any():
            raise ValueError("shared memory of a block outside the cluster")
        self.write(i.operands[0], (here + (rank + 1) * self.REMOTE).astype(np.uint32))

    def _reduce_over_block(self, i: Instruction) -> None:
        """Threads at the lowest instruction go first, so all of them have arrived."""
        if "or" not in i.modifiers:
            raise NotImplementedError(i.text)
        block, given = self.block[self.lanes], self.read(i.operands[2], TYPES["pred"])
        if (np.bincount(block) % self.block_size).any():
            raise ValueError(f"only a part of a block arrived at {i.text}")
        self.write(i.operands[0], np.isin(block, block[np.broadcast_to(given, block.shape)]))

    def _vote(self, i: Instruction) -> None:
        if "ballot" not in i.modifiers or self.block_size % 32:
            raise NotImplementedError(i.text)
        lane, given = np.arange(self.threads)[self.lanes], self.read(i.operands[1], TYPES["pred"])
        ballots = np.zeros(self.threads // 32, np.uint32)
        np.bitwise_or.at(ballots, lane // 32, np.where(given, np.uint32(1) << (lane % 32).astype(np.uint32), 0))
        self.write(i.operands[0], ballots[lane // 32])

    def _items(self, address: str, kind: Any, count: int) -> list[tuple[Any, Any]]:
        """Where in ``shared`` the items of an access lie: (block, index) of each."""
        base, _, offset = address.strip("[] ").partition("+")
        at = np.asarray(self.read(base.strip(), TYPES["u32"]), np.int64) + int(offset or 0)
        block, remote = self.block[self.lanes], at // self.REMOTE
        if remote.any():
            block, at = block // self.cluster * self.cluster + remote - 1, at % self.REMOTE
            running = np.bincount(self.block, weights=self.place < len(self.kernel.code)) > 0
            if not running[block].all():
                raise ValueError("shared memory of a block that has ended")
        if (at % (count * kind.itemsize)).any():
            raise ValueError(f"misaligned access of {count} x {kind.itemsize} bytes of shared memory")
        return [(block, at // kind.itemsize + k) for k in range(count)]

    def _of_warps(self, i: Instruction, operand: str, kind: Any) -> Array:
        """``[warps, 32]``: an operand in the threads of whole warps."""
        threads = np.arange(self.threads)[self.lanes]
        if len(threads) % 32 or (threads.reshape(-1, 32) % 32 != np.arange(32)).any():
            raise NotImplementedError(f"{i.text} by a part of a warp")
        return np.broadcast_to(self.read(operand, kind), len(threads)).reshape(-1, 32)

    def _shfl_down(self, i: Instruction) -> None:
        """Also in the last warp of a block, which may have fewer threads: what the others have is no number."""
        threads, kind = np.arange(self.threads)[self.lanes], i.types[0]
        lane = threads % self.block_size % 32
        values, apart, members = (
            np.broadcast_to(self.read(operand, each), len(threads))
            for operand, each in zip((*i.operands[1:3], i.operands[4]), (kind, TYPES["u32"], TYPES["u32"]), strict=True)
        )
        together = np.zeros(self.threads, np.uint32)  # by each warp's first thread
        np.bitwise_or.at(together, threads - lane, np.uint32(1) << lane.astype(np.uint32))
        if (together[threads - lane] != members).any():
            raise ValueError(f"other threads than its members are at {i.text}")
        unwritten = np.uint64(UNWRITTEN).astype(values.dtype)
        found = np.full(self.threads + 32, unwritten)
        found[threads] = values
        other = lane + apart.astype(np.int64)
        there = threads % self.block_size - lane + other < self.block_size
        behind = np.where(there, found[threads - lane + np.minimum(other, 31)], unwritten)
        self.write(i.operands[0].split("|")[0], np.where(other > 31, values, behind), kind)

    def _shfl(self, i: Instruction) -> None:
        if "down" in i.modifiers:
            return self._shfl_down(i)
        values = self._of_warps(i, i.operands[1], i.types[0])
        which, lane = self._of_warps(i, i.operands[2], TYPES["u32"]).astype(np.int64), np.arange(32)
        if "bfly" in i.modifiers:
            which = lane ^ which
        elif "up" in i.modifiers:
            which = np.where(lane < which, lane, lane - which)
        elif "idx" not in i.modifiers:
            raise NotImplementedError(i.text)
        return self.write(i.operands[0].split("|")[0], np.take_along_axis(values, which, 1).reshape(-1), i.types[0])

    def _redux(self, i: Instruction) -> None:
        values = self._of_warps(i, i.operands[1], i.types[0])
        (combined,) = (REDUCTIONS[name](values, axis=1) for name in i.modifiers if name in REDUCTIONS)
        self.write(i.operands[0], np.repeat(combined, 32), i.types[0])

    def _atom(self, i: Instruction) -> None:
        """In shared memory, where no result is used: the order of threads is unspecified."""
        (operation,) = (ATOMIC[name] for name in i.modifiers if name in ATOMIC)
        if "shared" not in i.modifiers:
            return self._in_turn(i, operation)
        (item,) = self._items(i.operands[-2], i.types[0], 1)
        value = np.broadcast_to(self.read(i.operands[-1], i.types[0]), item[0].shape)
        operation.at(self.shared.view(i.types[0]), item, value)

    _red = _atom

    def _in_turn(self, i: Instruction, operation: Any) -> None:
        """On global memory: one thread after another."""
        target, address, given = (
            i.operands if len(i.operands) == 3 else ("_", *i.operands)
        )  # of red, which gives nothing
        place = self.memory.index(self._address(address), i.types[0].itemsize, 1)
        value = np.broadcast_to(self.read(given, i.types[0]), place.shape)
        whole, before = self.memory.bytes.view(i.types[0]), np.zeros(len(place), i.types[0])
        for k in self.turns(len(place)):
            before[k] = whole[place[k]]
            whole[place[k]] = operation(before[k], value[k])
        self.write(target, before)

    def _ld(self, i: Instruction) -> None:
        names, kind = [name.strip() for name in i.operands[0].strip("{}").split(",")], i.types[0]
        if "shared" in i.modifiers:
            values = [self.shared.view(kind)[item] for item in self._items(i.operands[1], kind, len(names))]
            for name, value in zip(names, values, strict=True):
                self.write(name, value)
            return
        start = self.memory.index(self._address(i.operands[1]), kind.itemsize, len(names))
        if self.memory.reads is not None:
            every = start[:, None] * np.uint64(kind.itemsize) + np.arange(len(names) * kind.itemsize, dtype=np.uint64)
            np.add.at(self.memory.reads, every, 1)
        whole = self.memory.bytes.view(kind)
        for k, name in enumerate(names):
            self.write(name, whole[start + np.uint64(k)])

    def _st(self, i: Instruction) -> None:
        names, kind = [name.strip() for name in i.operands[1].strip("{}").split(",")], i.types[0]
        if "shared" in i.modifiers:
            for name, item in zip(names, self._items(i.operands[0], kind, len(names)), strict=True):
                self.shared.view(kind)[item] = self.read(name, kind)
            return
        start = self.memory.index(self._address(i.operands[0]), kind.itemsize, len(names))
        whole = self.memory.bytes.view(kind)
        for k, name in enumerate(names):
            whole[start + np.uint64(k)] = self.read(name, kind)
