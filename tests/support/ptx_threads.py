"""The threads of a launch: their registers, the order in which they run, and where they wait."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ptx_memory import Array, Memory
from ptx_parser import TYPES, Instruction, Kernel

UNWRITTEN = 0x7FC0DEAD_7FC0DEAD
SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.([xyz])")


class Threads:
    """One launch of a kernel: every register is an array over its threads.

    ``dynamic``: bytes of a block's dynamic shared memory. ``cluster``: blocks along x that read each other's.
    """

    def __init__(self, kernel: Kernel, memory: Memory, grid: Sequence[int], block: Sequence[int],
                 arguments: Sequence[int | bytes], rsqrt: Callable[[Array], Array] | None = None,
                 dynamic: int = 0, cluster: int = 1) -> None:  # fmt: skip
        self.kernel, self.memory = kernel, memory
        self.rsqrt = rsqrt or (lambda y: y)
        grid, block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        self.threads = int(np.prod(grid) * np.prod(block))
        index = np.arange(self.threads, dtype=np.int64)
        self.special: dict[tuple[str, str], Array] = {}
        for axis, size, count in zip("xyz", block, grid, strict=True):
            self.special["tid", axis], index = (index % size).astype(np.uint32), index // size
            self.special["ntid", axis] = np.full(self.threads, size, np.uint32)
            self.special["nctaid", axis] = np.full(self.threads, count, np.uint32)
        for axis, count in zip("xyz", grid, strict=True):
            self.special["ctaid", axis], index = (index % count).astype(np.uint32), index // count
        self.symbols = {name: memory.put(data) for name, data in kernel.constants.items()}
        for (name, size), value in zip(kernel.parameters, arguments, strict=True):
            data = value if isinstance(value, bytes) else (value % (1 << 8 * size)).to_bytes(size, "little")
            self.symbols[name] = memory.put(data.ljust(size, b"\0"))
        size = 0
        for name, needed in kernel.shared.items():
            self.symbols[name] = size
            size += -(-needed // 16) * 16
        self.symbols |= dict.fromkeys(kernel.dynamic, size)
        self.block_size = int(np.prod(block))
        self.blocks = self.threads // self.block_size
        self.block = np.arange(self.threads) // self.block_size
        self.turns: Callable[[int], Any] = range  # the order in which so many threads get to a place in global memory
        self.shared = np.full((self.blocks, size + -(-dynamic // 16) * 16), 0xFF, np.uint8)
        self.cluster = cluster
        self.place = np.zeros(self.threads, np.int64)  # of each thread's next instruction
        self.awaits = np.zeros(self.threads, np.int64)  # 1 at a barrier of the block, 2 at one of the cluster
        self.registers: dict[str, Array] = {}
        self.executed = np.zeros(len(kernel.code), np.int64)  # how many threads executed each instruction

    def run(self, alone: Array | None = None) -> Threads:
        """Threads at the lowest instruction go first, so those that took different branches meet again.

        ``alone`` is a number for each thread: only threads with the lowest run, until they wait or end. So whatever no
        barrier orders happens in another order.
        """
        code, leaders, at = self.kernel.code, set(self.kernel.labels.values()), self.place
        with np.errstate(all="ignore"):
            while (at < len(code)).any():
                ready = (self.awaits == 0) & (at < len(code))
                if not ready.any():
                    raise ValueError("threads wait at a barrier that others of theirs do not reach")
                if alone is not None:
                    ready &= alone == alone[ready].min()
                place = int(at[ready].min())
                ready &= at == place
                self.lanes: Any = slice(None) if ready.all() else np.flatnonzero(ready)
                count = int(ready.sum())
                while True:
                    instruction = code[place]
                    self.executed[place] += count
                    place += 1
                    if instruction.name in ("bra", "ret", "exit"):
                        target = self.kernel.labels[instruction.operands[0]] if instruction.name == "bra" else len(code)
                        taken = self._guard(instruction)
                        at[self.lanes] = target if taken is None else np.where(taken, target, place)
                        break
                    self._execute(instruction)
                    at[self.lanes] = place
                    if place in leaders or place == len(code) or self.awaits[self.lanes].any():
                        break
                self._open_barriers()
        return self

    def by_waves(self, waves: Sequence[Any]) -> Array:
        """For :meth:`run`: waves of blocks one after another, given by the blocks' numbers."""
        order = np.zeros(self.blocks, np.int64)
        for number, wave in enumerate(waves):
            order[wave] = number
        return order[self.block]

    def _open_barriers(self) -> None:
        """A barrier opens once every thread waits at it or has ended."""
        for kind, group in ((1, self.block), (2, self.block // self.cluster)):
            if (waits := self.awaits == kind).any():
                missing = np.bincount(group, weights=~waits & (self.place < len(self.kernel.code))) > 0
                self.awaits[waits & ~missing[group]] = 0

    def _guard(self, instruction: Instruction) -> Array | None:
        if instruction.guard is None:
            return None
        return self.read(instruction.guard, TYPES["pred"]) ^ instruction.negated

    def _execute(self, instruction: Instruction) -> None:
        handler = getattr(self, f"_{instruction.name}", None)
        if handler is None:
            raise NotImplementedError(instruction.text)
        guard = self._guard(instruction)
        if guard is None:
            return handler(instruction)  # type: ignore[no-any-return]
        lanes = self.lanes
        self.lanes = (np.arange(self.threads) if isinstance(lanes, slice) else lanes)[guard]
        if len(self.lanes):
            handler(instruction)
        self.lanes = lanes
        return None

    def _storage(self, name: str) -> Array:
        if name not in self.registers:
            width = self.kernel.widths.get(name) or self.kernel.widths[name.rstrip("0123456789")]
            kind = np.dtype(bool if width == 1 else f"u{width}")
            self.registers[name] = np.full(self.threads, np.uint64(UNWRITTEN).astype(kind), kind)
        return self.registers[name]

    def read(self, operand: str, kind: Any) -> Any:
        if match := SPECIAL.fullmatch(operand):
            return self.special[match[1], match[2]][self.lanes]
        if operand.startswith("%"):
            values = self._storage(operand)[self.lanes]
            wide = f"u{kind.itemsize}"
            return (
                values
                if kind.kind == "b"
                else (values if values.itemsize == kind.itemsize else values.astype(wide)).view(kind)
            )
        if operand in self.symbols:
            return np.uint64(self.symbols[operand])
        if operand.startswith(("0f", "0d")):
            return np.array(int(operand[2:], 16), f"u{kind.itemsize}").view(kind)[()]
        value = int(operand.rstrip("U"), 0)
        return (
            np.bool_(value)
            if kind.kind == "b"
            else np.array(value % (1 << 8 * kind.itemsize), f"u{kind.itemsize}").view(kind)[()]
        )

    def write(self, operand: str, values: Any, kind: Any = None) -> None:
        if operand == "_":
            return
        storage = self._storage(operand)
        values = np.asarray(values if kind is None else np.asarray(values).astype(kind, copy=False))
        if storage.dtype != bool:
            wide = f"{'i' if values.dtype.kind == 'i' else 'u'}{storage.itemsize}"
            narrow = values.view(f"{'i' if values.dtype.kind == 'i' else 'u'}{values.itemsize}")
            values = narrow.astype(wide).view(storage.dtype)
        storage[self.lanes] = values

    def _inputs(self, i: Instruction, kind: Any = None) -> list[Any]:
        return [self.read(operand, kind or i.types[-1]) for operand in i.operands[1:]]
