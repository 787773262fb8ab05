"""Executes the PTX of a kernel on NumPy arrays, all threads of a launch at once, with IEEE rounding.

What a GPU would compute can so be compared bit for bit with the CPU backend on a machine without a GPU. It knows the
instructions that nvcc and Triton emit for these kernels and raises on any other, on a misaligned access, on an access
outside every buffer and on a barrier that some threads never reach. Registers that were never written hold NaN.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ulam_kernels.reference import arithmetic

Array = np.ndarray[Any, Any]

TYPES: dict[str, Any] = {
    **{f"{kind}{bits}": np.dtype(f"{kind.replace('b', 'u').replace('s', 'i')}{bits // 8}")
       for bits in (8, 16, 32, 64) for kind in "bus"},
    "pred": np.dtype(bool), "f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"),
    "bf16": np.dtype("u2"), "bf16x2": np.dtype("u4"), "f16x2": np.dtype("u4"),
}  # fmt: skip
UNWRITTEN = 0x7FC0DEAD_7FC0DEAD
SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.([xyz])")
STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
OPERANDS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
COMPARE = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip
ATOMIC = {"add": np.add, "min": np.minimum, "max": np.maximum}
CONVERSIONS = (
    ("f32", "f16"), ("f16", "f32"), ("f64", "f32"), ("f32", "f64"), ("f64", "s32"), ("f64", "s64"), ("f32", "s64"),
)  # fmt: skip
REDUCTIONS = {"add": np.add.reduce, "min": np.min, "max": np.max}
LOGIC = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


class Memory:
    """One address space. Buffers are copied in and out, and what lies between them must not be touched."""

    BASE, GUARD = 1 << 32, 512

    def __init__(self, size: int = 1 << 26) -> None:
        self.bytes = np.full(size, 0xFF, dtype=np.uint8)
        self.owned = np.zeros(size, dtype=bool)
        self.reads: Array | None = None  # how often each byte was loaded, where a test has asked: an array of zeros
        self.end = 0

    def put(self, data: Array | bytes, skew: int = 0) -> int:
        """Copy a buffer in; its address is ``skew`` bytes past a multiple of GUARD."""
        raw = (
            np.frombuffer(data, np.uint8)
            if isinstance(data, bytes)
            else np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        )
        start = (self.end // self.GUARD + 2) * self.GUARD + skew
        self.end = start + len(raw)
        self.bytes[start : self.end] = raw
        self.owned[start : self.end] = True
        return self.BASE + start

    def get(self, address: int, dtype: Any, count: int) -> Array:
        start = address - self.BASE
        return self.bytes[start : start + count * np.dtype(dtype).itemsize].view(dtype).copy()

    def index(self, address: Array, itemsize: int, count: int) -> Array:
        """Index of each address in units of ``itemsize``, after the checks of an access to ``count`` items."""
        start = address - np.uint64(self.BASE)
        if (start % np.uint64(itemsize * count)).any():
            raise ValueError(f"misaligned access of {count} x {itemsize} bytes")
        if (start >= len(self.bytes)).any() or not self.owned[start].all():
            raise ValueError("access outside every buffer")
        if not self.owned[start + np.uint64(itemsize * count - 1)].all():
            raise ValueError("access across the end of a buffer")
        return start // np.uint64(itemsize)


@dataclass
class Instruction:
    text: str
    guard: str | None
    negated: bool
    name: str
    modifiers: list[str]
    types: list[Any]
    type_names: list[str]
    operands: list[str]


@dataclass
class Kernel:
    name: str
    parameters: list[tuple[str, int]]  # name and size
    widths: dict[str, int]  # of registers, by their prefix
    code: list[Instruction]
    labels: dict[str, int]
    constants: dict[str, bytes]
    shared: dict[str, int]  # name and size of a block's variables
    dynamic: list[str]  # names of what lies behind them: as much as a launch says


def _instruction(text: str) -> Instruction:
    match = STATEMENT.fullmatch(text)
    if match is None:
        raise NotImplementedError(text)
    name, *parts = re.split(r"\.|::", match[3])
    return Instruction(
        text=text,
        guard=match[2],
        negated=match[1] == "!",
        name=name,
        modifiers=[part for part in parts if part not in TYPES],
        types=[TYPES[part] for part in parts if part in TYPES],
        type_names=[part for part in parts if part in TYPES],
        operands=[operand.strip() for operand in OPERANDS.findall(match[4])],
    )


def _closing(ptx: str, start: int) -> int:
    """Where the brace stands that closes one before ``start``."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(ptx, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise ValueError("a brace is not closed")


def parse(ptx: str) -> dict[str, Kernel]:
    """The kernels of a PTX text."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    constants = {
        name: bytes(int(value) for value in values.split(","))
        for name, values in re.findall(r"\.global[^;=]*?\.b8 (\w+)\[\d+\] = \{([^}]*)\}", ptx)
    }
    dynamic = re.findall(r"\.extern \.shared \.align 16 \.b8 (\w+)\[\]", ptx)
    kernels = {}
    for match in re.finditer(r"\.entry (\w+)\((.*?)\)[^{]*\{", ptx, re.S):
        body = ptx[match.end() : _closing(ptx, match.end())]
        parameters = [
            (name, int(size) if size else TYPES[kind].itemsize)
            for kind, name, size in re.findall(
                r"\.param(?: \.align \d+)? \.(\w+)[^,]*? (\w+)(?:\[(\d+)\])?\s*(?:,|$)", match[2]
            )
        ]
        widths = {prefix: TYPES[kind].itemsize for kind, prefix in re.findall(r"\.reg \.(\w+)\s+(%\w+)<\d+>", body)}
        code: list[Instruction] = []
        labels: dict[str, int] = {}
        # Operands in braces stay; a scope's braces go, and the names in it are told apart by where it stands.
        for number, scope in enumerate(re.split(r"(?<=[;\s])\{(?=\s*\.reg)", body)):
            inner, end, rest = (*re.split(r"(?<=;)(\s*\})", scope, maxsplit=1), "", "")[:3]
            for name, kind in [
                (n.strip(), k) for k, names in re.findall(r"\.reg \.(\w+)\s+([^<;]+);", inner) for n in names.split(",")
            ]:
                widths[f"%{name.lstrip('%')}_{number}"] = TYPES[kind].itemsize
                inner = re.sub(rf"(?<![\w%.]){name}(?![\w:])", f"%{name.lstrip('%')}_{number}", inner)
            scope = inner + end + rest
            for piece in scope.split(";"):
                text = piece.strip().removeprefix("}").strip()
                while label := re.match(r"(\$?\w+):\s*", text):
                    labels[label[1]] = len(code)
                    text = text[label.end() :]
                if text and not text.startswith((".reg", ".loc", ".pragma", ".shared")):
                    code.append(_instruction(text))
        shared = {name: int(size) for name, size in re.findall(r"\.shared \.align \d+ \.b8 (\w+)\[(\d+)\]", body)}
        kernels[match[1]] = Kernel(match[1], parameters, widths, code, labels, constants, shared, dynamic)
    return kernels


class Machine:
    """One launch of a kernel: every register is an array over its threads.

    ``dynamic``: bytes of a block's dynamic shared memory. ``cluster``: blocks along x that read each other's.
    """

    REMOTE = 1 << 24  # what is added to an address of shared memory for each block of a cluster

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

    def run(self, alone: Array | None = None) -> Machine:
        """Threads at the lowest instruction go first, so those that took different branches meet again.

        ``alone``, a number for each thread: only threads with the lowest go on, until they wait or have ended. What is
        not ordered by a barrier happens in another order so.
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
        """A barrier opens when all wait at it but those that have ended."""
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

    # Each method below is one instruction.
    def _mov(self, i: Instruction) -> None:
        target, source = i.operands
        kind = i.types[0]
        if target.startswith("{"):
            names = [name.strip() for name in target.strip("{}").split(",")]
            part = np.dtype(f"u{kind.itemsize // len(names)}")
            values = np.ascontiguousarray(self.read(source, kind)).view(part).reshape(-1, len(names))
            for k, name in enumerate(names):
                self.write(name, values[:, k])
        elif source.startswith("{"):
            names = [name.strip() for name in source.strip("{}").split(",")]
            part = np.dtype(f"u{kind.itemsize // len(names)}")
            values = np.broadcast_arrays(*(self.read(name, part) for name in names))
            self.write(target, np.ascontiguousarray(np.stack(values, -1)).view(f"u{kind.itemsize}")[..., 0])
        else:
            self.write(target, self.read(source, kind), kind)

    def _cvta(self, i: Instruction) -> None:
        self.write(i.operands[0], self._inputs(i)[0])

    def _add(self, i: Instruction) -> None:
        self.write(i.operands[0], operator.add(*self._inputs(i)), i.types[0])

    def _sub(self, i: Instruction) -> None:
        self.write(i.operands[0], operator.sub(*self._inputs(i)), i.types[0])

    def _mul(self, i: Instruction) -> None:
        self.write(i.operands[0], self._product(i, *self._inputs(i)[:2]))

    def _mad(self, i: Instruction) -> None:
        product = self._product(i, *(self.read(operand, i.types[0]) for operand in i.operands[1:3]))
        self.write(i.operands[0], product + self.read(i.operands[3], product.dtype), product.dtype)

    def _product(self, i: Instruction, a: Any, b: Any) -> Array:
        kind = i.types[0]
        if kind.kind == "f":
            return np.asarray(a * b)
        if "lo" in i.modifiers:
            return np.asarray(a * b, kind)
        wide = np.dtype(f"{kind.kind}{2 * kind.itemsize}")
        product = np.asarray(a, wide) * np.asarray(b, wide)
        return product if "wide" in i.modifiers else (product >> wide.type(8 * kind.itemsize)).astype(kind)

    def _fma(self, i: Instruction) -> None:
        self.write(i.operands[0], arithmetic.fma(*np.broadcast_arrays(*self._inputs(i))))

    def _div(self, i: Instruction) -> None:
        a, b = self._inputs(i)
        self.write(i.operands[0], a / b if i.types[0].kind == "f" else a // b, i.types[0])

    def _rcp(self, i: Instruction) -> None:
        if "rn" not in i.modifiers:
            raise NotImplementedError(i.text)
        (value,) = self._inputs(i)
        self.write(i.operands[0], value.dtype.type(1) / value)

    def _rem(self, i: Instruction) -> None:
        self.write(i.operands[0], operator.mod(*self._inputs(i)), i.types[0])

    def _min(self, i: Instruction) -> None:
        self.write(i.operands[0], np.minimum(*self._inputs(i)), i.types[0])

    def _max(self, i: Instruction) -> None:
        self.write(i.operands[0], np.maximum(*self._inputs(i)), i.types[0])

    def _neg(self, i: Instruction) -> None:
        self.write(i.operands[0], -self._inputs(i)[0], i.types[0])

    def _sqrt(self, i: Instruction) -> None:
        if "rn" not in i.modifiers:
            raise NotImplementedError(i.text)
        (value,) = self._inputs(i)
        self.write(i.operands[0], np.sqrt(value) if i.types[0].itemsize == 8 else arithmetic.sqrt(value))

    def _rsqrt(self, i: Instruction) -> None:
        exact = 1 / np.sqrt(self._inputs(i)[0], dtype=np.float64)
        self.write(i.operands[0], self.rsqrt(exact.astype(np.float32)))

    def _and(self, i: Instruction) -> None:
        self.write(i.operands[0], operator.and_(*self._inputs(i)))

    def _or(self, i: Instruction) -> None:
        self.write(i.operands[0], operator.or_(*self._inputs(i)))

    def _xor(self, i: Instruction) -> None:
        self.write(i.operands[0], operator.xor(*self._inputs(i)))

    def _not(self, i: Instruction) -> None:
        self.write(i.operands[0], ~self._inputs(i)[0])

    def _shl(self, i: Instruction) -> None:
        self._shift(i, np.left_shift)

    def _shr(self, i: Instruction) -> None:
        self._shift(i, np.right_shift)

    def _shift(self, i: Instruction, shift: Any) -> None:
        kind = i.types[0]
        value, bits = self.read(i.operands[1], kind), self.read(i.operands[2], TYPES["u32"])
        most = 8 * kind.itemsize - 1
        shifted = shift(value, np.minimum(bits, most).astype(kind))
        beyond = value >> kind.type(most) if kind.kind == "i" else kind.type(0)
        self.write(i.operands[0], np.where(bits > most, beyond, shifted), kind)

    def _shf(self, i: Instruction) -> None:
        low, high, bits = (np.asarray(x, np.uint64) for x in self._inputs(i, TYPES["u32"]))
        bits = bits & np.uint64(31) if "wrap" in i.modifiers else np.minimum(bits, np.uint64(32))
        both = high << np.uint64(32) | low
        left = "l" in i.modifiers
        self.write(i.operands[0], (both << bits >> np.uint64(32) if left else both >> bits).astype(np.uint32))

    def _bfi(self, i: Instruction) -> None:
        field, base, start, length = self._inputs(i, TYPES["u32"])
        mask = np.uint32(((1 << int(length)) - 1) << int(start) & 0xFFFFFFFF)
        self.write(i.operands[0], base & ~mask | field << start & mask)

    def _prmt(self, i: Instruction) -> None:
        low, high, selector = (np.asarray(x, np.uint64) for x in self._inputs(i, TYPES["u32"]))
        both, result = high << np.uint64(32) | low, np.uint64(0)
        if (selector & np.uint64(0x8888)).any():
            raise NotImplementedError(i.text)
        for byte in range(4):
            chosen = selector >> np.uint64(4 * byte) & np.uint64(7)
            result = result | (both >> np.uint64(8) * chosen & np.uint64(0xFF)) << np.uint64(8 * byte)
        self.write(i.operands[0], result.astype(np.uint32))

    def _lop3(self, i: Instruction) -> None:
        *inputs, table = self._inputs(i)
        result = np.uint32(0)
        for row in range(8):
            if int(table) >> row & 1:
                a, b, c = (x if row >> (2 - k) & 1 else ~x for k, x in enumerate(inputs))
                result = result | a & b & c
        self.write(i.operands[0], result)

    def _selp(self, i: Instruction) -> None:
        a, b = (self.read(operand, i.types[0]) for operand in i.operands[1:3])
        self.write(i.operands[0], np.where(self.read(i.operands[3], TYPES["pred"]), a, b), i.types[0])

    def _setp(self, i: Instruction) -> None:
        a, b = (self.read(operand, i.types[0]) for operand in i.operands[1:3])
        relation = i.modifiers[0]
        unordered = np.isnan(a) | np.isnan(b) if i.types[0].kind == "f" else np.bool_(False)
        if relation in ("nan", "num"):
            result = unordered ^ (relation == "num")
        elif i.types[0].kind == "f" and relation.endswith("u"):
            result = COMPARE[relation[:2]](a, b) | unordered
        else:
            result = COMPARE[relation](a, b) & ~unordered
        if len(i.operands) == 4:
            result = LOGIC[i.modifiers[1]](result, self.read(i.operands[3], TYPES["pred"]))
        self.write(i.operands[0], result)

    def _cvt(self, i: Instruction) -> None:
        to, source = i.type_names
        values = self._inputs(i)
        if to in ("bf16x2", "f16x2"):
            high, low = (self._narrow(x, to[:-2]).astype(np.uint32) for x in values)
            return self.write(i.operands[0], high << np.uint32(16) | low)
        if to == "bf16":
            return self.write(i.operands[0], self._narrow(values[0], to))
        if source == "bf16":
            return self.write(i.operands[0], (values[0].astype(np.uint32) << np.uint32(16)).view(np.float32))
        if source in ("s32", "u32") and to == "f32":
            return self.write(i.operands[0], values[0].astype(np.float64).astype(np.float32))
        if "f" in to + source and (to, source) not in CONVERSIONS and "rzi" not in i.modifiers:
            raise NotImplementedError(i.text)
        return self.write(i.operands[0], values[0].astype(i.types[0]), i.types[0])

    @staticmethod
    def _narrow(x: Any, to: str) -> Array:
        x = np.asarray(x)
        if to == "f16":
            return x.astype(np.float16).view(np.uint16)
        bits = x.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)

    def _address(self, operand: str) -> Array:
        base, _, offset = operand.strip("[] ").partition("+")
        start = np.asarray(self.read(base.strip(), TYPES["u64"]))
        return np.broadcast_to(
            start + np.uint64(int(offset or 0) % (1 << 64)), self.special["tid", "x"][self.lanes].shape
        )

    def _bar(self, i: Instruction) -> None:
        if "red" in i.modifiers:
            self._reduce_over_block(i)
        elif "warp" not in i.modifiers:  # a warp's threads meet as it is
            self._wait(i, 1)

    def _barrier(self, i: Instruction) -> None:
        """Of a cluster: a thread arrives where it waits, as nothing stands between the two."""
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

    def _shfl(self, i: Instruction) -> None:
        values = self._of_warps(i, i.operands[1], i.types[0])
        which, lane = self._of_warps(i, i.operands[2], TYPES["u32"]).astype(np.int64), np.arange(32)
        if "bfly" in i.modifiers:
            which = lane ^ which
        elif "up" in i.modifiers:
            which = np.where(lane < which, lane, lane - which)
        elif "idx" not in i.modifiers:
            raise NotImplementedError(i.text)
        self.write(i.operands[0].split("|")[0], np.take_along_axis(values, which, 1).reshape(-1), i.types[0])

    def _redux(self, i: Instruction) -> None:
        values = self._of_warps(i, i.operands[1], i.types[0])
        (combined,) = (REDUCTIONS[name](values, axis=1) for name in i.modifiers if name in REDUCTIONS)
        self.write(i.operands[0], np.repeat(combined, 32), i.types[0])

    def _atom(self, i: Instruction) -> None:
        """On shared memory, and its result dropped or not used: the order of threads is not specified."""
        (operation,) = (ATOMIC[name] for name in i.modifiers if name in ATOMIC)
        if "shared" not in i.modifiers:
            return self._in_turn(i, operation)
        (item,) = self._items(i.operands[-2], i.types[0], 1)
        value = np.broadcast_to(self.read(i.operands[-1], i.types[0]), item[0].shape)
        operation.at(self.shared.view(i.types[0]), item, value)

    _red = _atom

    def _in_turn(self, i: Instruction, operation: Any) -> None:
        """On global memory: one thread after another."""
        target, address, given = i.operands
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
