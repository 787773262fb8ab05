"""What compiled GPU kernels consist of: the instructions, in loops and in all, and how many loads are in flight."""

from __future__ import annotations

import re
import subprocess
from typing import Any


def disassemble(kernel: Any, directory: Any) -> list[str]:
    """The machine instructions of a compiled kernel."""
    import triton

    path = directory / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    tool = triton.knobs.nvidia.nvdisasm.path
    text = subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=True).stdout
    return [line for line in text.splitlines() if re.match(r"\s+/\*[0-9a-f]{4,}\*/|\.L_x_\d+:|\$", line)]


def opcodes(sass: list[str]) -> list[str]:
    found = [re.match(r"\s+/\*\w+\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)", line) for line in sass]
    return [match[1] for match in found if match]


APPROXIMATE = re.compile(r"\b(ex2|lg2|sin|cos|tanh|rcp|rsqrt)\.|\.approx|\.ftz|div\.\w+\.f32")


def check_kernel(kernel: Any, directory: Any, spilled: int = 0) -> list[str]:
    """What holds for every kernel on every architecture; returns its opcodes. spilled: words kept in local memory."""
    ptx = kernel.asm["ptx"]
    body = ptx[ptx.index(".entry") : ptx.index("\n}")]
    assert not APPROXIMATE.search(body), APPROXIMATE.search(body)
    assert ".local" not in body
    names = opcodes(disassemble(kernel, directory))
    assert max(sum(name.startswith(kind) for name in names) for kind in ("LDL", "STL")) <= spilled
    special = {name for name in names if name.startswith("MUFU")}
    # The beginning of sqrt.rn; and of an integer division, by which elements of short chains find their chain.
    assert special <= ({"MUFU.RCP"} if "div." in body else {"MUFU.RSQ"}), special
    return names


def executed(sass: list[str]) -> int:
    """Instructions a thread executes of a row x, m, z without a clip, in normal operation.

    All of the kernel's up to its last EXIT, without the stretches that a branch jumps over in that case: the slow path
    of a square root (a stretch with a CALL), the clipped estimate (the one that loads the bounds), a second key for
    rows beyond 2^28 (more than 10 wide multiplies and no conversion to float).
    """
    labels, code = {}, []
    for line in sass:
        if line.startswith("."):
            labels[line.split(":")[0]] = len(code)
        else:
            code.append(line)
    end = max(k for k, line in enumerate(code) if "EXIT" in line) + 1
    branches = [
        (k, labels[m[1]]) for k, line in enumerate(code[:end]) if (m := re.search(r"BRA `\((\.L_x_\d+)\)", line))
    ]
    skipped: set[int] = set()
    for branch, target in sorted(branches, key=lambda pair: pair[1] - pair[0]):
        if "@" not in code[branch] or target <= branch:
            continue
        text = "\n".join(code[k] for k in range(branch + 1, target) if k not in skipped)
        rekeys = len(re.findall(r"IMAD\.WIDE", text)) > 10 and "I2F" not in text
        if "CALL" in text or "+0x8]" in text or rekeys:
            skipped.update(range(branch + 1, target))
    return end - len(skipped)


def inside_loops(code: list[str]) -> list[str]:
    """The lines that a backward branch repeats; outside, a few words may wait in local memory for a loop to end."""
    place = {line.split(":")[0]: k for k, line in enumerate(code) if line.startswith(".L_x")}
    branches = [(k, place[m[1]]) for k, line in enumerate(code) if (m := re.search(r"BRA `\((\.L_x_\d+)\)", line))]
    repeated = [range(target, k + 1) for k, target in branches if target <= k]
    assert repeated
    return [line for k, line in enumerate(code) if any(k in loop for loop in repeated)]


LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")


def loads_in_flight(code: str) -> list[int]:
    """How many loads of 16 bytes follow one another before any of their registers is used, a number for each group.

    A branch that may be taken, or not, does not wait for them; the straight way on is followed.
    """
    groups, waiting = [0], set()
    for guard, operation, operands in LINE.findall(code):
        used = {int(register) for register in re.findall(r"\bR(\d+)", operands)}
        if operation.startswith("LDG.E.128"):
            first = int(re.findall(r"\bR(\d+)", operands)[0])
            used = {int(register) for register in re.findall(r"\[R(\d+)", operands)}
            if waiting & used:
                groups, waiting = [*groups, 0], set()
            groups[-1] += 1
            waiting |= set(range(first, first + 4))
        elif waiting & used or (operation.startswith(("BRA", "EXIT")) and not guard and operands[:2] in ("", "0x")):
            groups, waiting = [*groups, 0], set()
    return [size for size in groups if size]
