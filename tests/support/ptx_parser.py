"""PTX as text, and the kernels in it as lists of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

TYPES: dict[str, Any] = {
    **{f"{kind}{bits}": np.dtype(f"{kind.replace('b', 'u').replace('s', 'i')}{bits // 8}")
       for bits in (8, 16, 32, 64) for kind in "bus"},
    "pred": np.dtype(bool), "f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"),
    "bf16": np.dtype("u2"), "bf16x2": np.dtype("u4"), "f16x2": np.dtype("u4"),
}  # fmt: skip
STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
OPERANDS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")


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
    dynamic: list[str]  # names of the variables after them, whose size each launch sets


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
    """The index of the brace that closes the one before ``start``."""
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
        # Braces around operands stay; those of a scope go, and its names get the number of the scope.
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
