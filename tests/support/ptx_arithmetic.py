"""The instructions that compute: arithmetic, logic, comparisons and conversions."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ptx_memory import Array
from ptx_parser import TYPES, Instruction
from ptx_threads import Threads
from ulam_kernels.reference import arithmetic

COMPARE = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip
CONVERSIONS = (
    ("f32", "f16"), ("f16", "f32"), ("f64", "f32"), ("f32", "f64"), ("f64", "s32"), ("f64", "s64"), ("f32", "s64"),
)  # fmt: skip
LOGIC = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


class Arithmetic(Threads):
    """Each method executes the instruction whose name it has."""

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

    def _abs(self, i: Instruction) -> None:
        self.write(i.operands[0], np.abs(self._inputs(i)[0]), i.types[0])

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
        if "rni" in i.modifiers and (to, source) == ("s32", "f32"):
            return self.write(i.operands[0], np.rint(values[0]).astype(np.int32), i.types[0])
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
