"""Reads machine code: what a thread of a kernel issues for an element (`cuobjdump -sass`, no GPU needed).

A multiprocessor of the architectures here issues at most one instruction a clock on each of its four schedulers, for 32
threads at once: 128 issue slots a clock. A wide product of integers, of which a round of Philox has two, keeps its
scheduler for WIDE_SLOTS of them, whatever else stands ready (`bench/issue_slots.cu` measures it). A kernel can be no
faster than the slots of an element allow.
"""

from __future__ import annotations

import heapq
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Sass = tuple[int, str, str, str]  # address, guard, operation, operands
SASS_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*?)\s*;")
SLOTS_A_CLOCK = 128  # of one multiprocessor
WIDE_SLOTS = 3.75  # of an IMAD.WIDE, measured on sm_90: bench/results/issue-slots-nvidia-h200-2026-11-27.txt
# What the main loop of a kernel with noise loads and stores for eight elements: stores, loads of 16 and of 8 bytes.
PLAIN_ROWS = {
    ("float32", "float32"): ("7Float32ES2_", 2, 4, 0),
    ("float32", "bfloat16"): ("7Float32ENS0_8BFloat16E", 2, 2, 2),
    ("bfloat16", "bfloat16"): ("8BFloat16ES2_", 1, 2, 0),
}
FILLS = {"float32": ("7Float32E", 2), "bfloat16": ("8BFloat16E", 1)}


def find_tool(name: str) -> str | None:
    """A CUDA tool: on the path, under CUDA_HOME, in /usr/local/cuda or in Triton's package."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        folders.append(str(Path(triton.origin).parent / "backends/nvidia/bin"))
    return shutil.which(name, path=os.pathsep.join(folders))


@cache
def disassembled(library: Path, architecture: str, cuobjdump: str) -> dict[str, list[Sass]]:
    """The instructions of every kernel in a library: ten seconds, once."""
    command = [cuobjdump, "-sass", "-arch", architecture, str(library)]
    dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {
        part.split("\n", 1)[0].strip(): [(int(a, 16), g, op, rest) for a, g, op, rest in SASS_LINE.findall(part)]
        for part in dump.split("Function : ")[1:]
    }


@dataclass(frozen=True)
class Count:
    """What a thread issues for one element."""

    instructions: float
    slots: float

    @classmethod
    def of(cls, path: list[Sass], lanes: int) -> Count:
        wide = sum(op.startswith("IMAD.WIDE") for _, _, op, _ in path)
        return cls(len(path) / lanes, (len(path) + (WIDE_SLOTS - 1) * wide) / lanes)


def counts_an_element(library: Path, architecture: str, cuobjdump: str) -> dict[str, Count]:
    """Of a plain row with noise (``step STATE MODEL``) and of a fill (``fill DTYPE``), for each dtype."""
    kernels = disassembled(library, architecture, cuobjdump)

    def code(name: str) -> list[Sass]:
        return next(code for kernel, code in kernels.items() if name in kernel)

    found = {}
    for (state, model), (types, *accesses) in PLAIN_ROWS.items():
        found[f"step {state} {model}"] = Count.of(
            cheapest_pass(code(f"step_vectorsINS0_{types}Li1ELb0E"), 8, *accesses), 8
        )
    for dtype, (types, stores) in FILLS.items():
        found[f"fill {dtype}"] = Count.of(cheapest_pass(code(f"fill_vectorsINS0_{types}"), 8, stores, 0, 0, 1), 8)
    return found


def features(block: list[Sass]) -> tuple[int, ...]:
    """How many of each: fp32 operations, roots, wide products, stores, loads of 16 and of 8 bytes; and fp32 sums."""
    heads = [op.split(".")[0] for _, _, op, _ in block]
    count = lambda *starts: sum(op.startswith(starts) for _, _, op, _ in block)  # noqa: E731
    sums = heads.count("FADD") + 2 * heads.count("FADD2")
    fp32 = heads.count("FFMA") + heads.count("FMUL") + 2 * (heads.count("FFMA2") + heads.count("FMUL2")) + sums
    wide = count("IMAD.WIDE", "IMAD.HI")
    return fp32, count("MUFU.RSQ"), wide, count("STG"), count("LDG.E.128"), count("LDG.E.64"), sums


def loops(code: list[Sass]) -> list[int]:
    """Where the loops over a chain's elements begin: backward branches around roots and stores."""
    found = set()
    for at, _, op, rest in code:
        if op.startswith("BRA") and (target := int(rest.split("0x")[-1], 16)) < at:
            inside = features([i for i in code if target <= i[0] <= at])
            if inside[1] and inside[3]:
                found.add(target)
    return sorted(found)


def cheapest_pass(
    code: list[Sass], lanes: int, stores: int, loads16: int, loads8: int, arithmetic: int = 3
) -> list[Sass]:
    """The shortest way round a loop that does all a plain row needs, for one thread's elements.

    That is: generate the noise (33 fp32 operations and a root for two normals, 17 wide products for four), load the
    state and the model's output, so many fp32 operations an element (three of a row, one of a scaled fill), and store;
    without guidance, which is told by its sums. Instructions whose guard is false are counted, as they take an issue
    slot.
    """
    need = (lanes // 2 * 33 + arithmetic * lanes, lanes // 2, lanes // 4 * 17, stores, loads16, loads8)
    ways = [way for start in loops(code) if (way := cheapest_way(code, start, need, lanes // 2)) is not None]
    if not ways:
        raise AssertionError("no path round a loop does what a plain row needs")
    return min(ways, key=len)


def cheapest_way(code: list[Sass], start: int, need: tuple[int, ...], most_sums: int) -> list[Sass] | None:
    """The shortest way from the head of a loop to itself with these features and no more sums than that."""
    position = {i[0]: k for k, i in enumerate(code)}
    width = code[1][0] - code[0][0]
    leaders = {start}
    for at, _, op, rest in code:
        if op.startswith(("BRA", "EXIT")):
            leaders |= {at + width} | ({int(rest.split("0x")[-1], 16)} if op.startswith("BRA") else set())
    heap: list[tuple[int, int, tuple[int, ...], list[Sass]]] = [(0, start, (0,) * 7, [])]
    seen = set()
    while heap:
        cost, at, have, path = heapq.heappop(heap)
        if at == start and path:
            if all(h >= n for h, n in zip(have, need, strict=False)):
                return path
            continue
        if (at, have) in seen or have[6] > most_sums:
            continue
        seen.add((at, have))
        k = position[at]
        block = [code[k]]
        while not block[-1][2].startswith(("BRA", "EXIT")) and code[k + 1][0] not in leaders:
            k += 1
            block.append(code[k])
        total = [a + b for a, b in zip(have, features(block), strict=True)]
        capped = (*(min(t, n) for t, n in zip(total, need, strict=False)), total[6])
        end, guard, op, rest = block[-1]
        conditional = bool(guard) or re.match(r"(DIV|CONV)?,?\s*!?U?P\d", rest)
        following = [end + width] if not op.startswith(("BRA", "EXIT")) or conditional else []
        if op.startswith("BRA") and ((target := int(rest.split("0x")[-1], 16)) > end or target == start):
            following.append(target)
        for place in following:
            if place in position:
                heapq.heappush(heap, (cost + len(block), place, capped, path + block))
    return None
