"""What whole chains in Triton take on an H100, said beforehand from the machine code; no GPU is needed.

`python -m bench.walk_model` compiles the walk for sm_90, counts the instructions of its loop over rows by unit, and
the bytes of weights, and says what 64 chains x 100 rows of 14-256-256-256-14 take (goal 0.7 ms) and 10^6 chains x 100
rows in the plane, 2-64-64-2 (goal 15 ms in bf16, 25 in tf32x3). Every row reads noise, and all chains are at one row.

Assumptions, of one multiprocessor and clock (1.755 GHz, 132 of them):

- Four instructions of a warp are issued, an IMAD.WIDE for 3.75 (bench/issue_slots.cu). Lanes: 128 of fp32 arithmetic,
  64 of integers, comparisons and selections, 16 of MUFU, 32 of loads and stores. Tensor cores: 2,048 multiply-adds in
  bf16 and 1,024 in tf32, six tenths of it by mma.sync.
- Many programs: three quarters of the scarcest unit, and no less than a program's own time over how many there are.
- A program's own time: a warp issues every second clock; a barrier takes 25 clocks, a round trip to the second cache
  270. A row has six in turn (cursor; x and the row's vector; outputs; where the chain now is; ids and states;
  coefficients) and two for each matrix that is streamed (the first block, and the value that it is multiplied with).
- Streamed weights come from the second cache at 64 bytes, while products, their loads and barriers are issued.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from bench.sass import WIDE_SLOTS, find_tool
from bench.timing import RESULTS, machine
from bench.walk_cases import PLANE, POLICY, Net
from bench.walk_cases import compiled as network_of
from triton.backends.compiler import GPUTarget

from ulam_kernels import Table
from ulam_kernels.networks import Linear, Network
from ulam_kernels.triton import walk

CLOCK, PROCESSORS, REGISTERS, SHARED, WARPS = 1.755e9, 132, 65536, 227 * 1024, 64
LANES = {"fp32": 128, "integer": 64, "mufu": 16, "memory": 32}
UNITS = {
    "fp32": "FFMA FADD FMUL IMAD",
    "integer": "LOP3 SEL FSEL FMNMX ISETP FSETP IADD3 VIADD SHF PRMT LEA VIMNMX F2FP P2R",
    "mufu": "MUFU",
    "memory": "LDS LDSM STS STSM LDG STG LDGSTS SHFL",
}
STREAM = ("HMMA", "LDSM", "LDGSTS", "LDGDEPBAR", "DEPBAR", "BAR")  # issued while weights come
ALONE, BARRIER, ROUND_TRIP, ROUND_TRIPS, L2_BYTES, REACHED = 2.0, 25, 270, 6, 64, 0.75
PRODUCTS = {"bf16": 2048, "tf32x3": 1024 / 3}  # multiply-adds a clock
CASES = ((POLICY, "bf16", 64, 0.7), (POLICY, "tf32x3", 64, None), (PLANE, "bf16", 10**6, 15.0),
         (PLANE, "tf32x3", 10**6, 25.0))  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """The kernel: its cubin's instructions between labels, and what a program takes."""

    code: list[str]
    registers: int
    shared: int
    shape: walk.Shape


@contextmanager
def target(architecture: int) -> Iterator[list[Any]]:
    """What `walk.bound_walk` would launch is compiled for it instead, and listed."""
    found: list[Any] = []

    class Driver:
        get_current_target = staticmethod(lambda: GPUTarget("cuda", architecture, 32))
        get_current_device = staticmethod(lambda: f"sm_{architecture}")
        get_current_stream = staticmethod(lambda _=None: 0)

    class Launcher:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *given, **options: found.append(kernel.run(*given, grid=grid, warmup=True, **options))

    kernel, driver = walk.walk_tiles, triton.runtime.driver
    before = driver._active
    try:
        driver.set_active(Driver())  # type: ignore[arg-type]
        walk.walk_tiles = Launcher()
        yield found
    finally:
        walk.walk_tiles, driver._active = kernel, before


def compiled(network: Network, architecture: int = 90) -> Compiled:
    """The walk of this network by a sampler with one register, with noise."""
    n, chains = network.inputs, 4
    table = Table(torch.zeros(8, 11), torch.zeros(8, dtype=torch.int32), 1)
    ids = torch.zeros(chains, dtype=torch.int64)
    rows = torch.zeros(8, network.row_width)
    with target(architecture) as found:
        cursor = torch.zeros(6, chains, dtype=torch.int64)
        memory = torch.zeros(1, chains, n), table.coef, table.flags, cursor, network
        walk.bound_walk(*memory, None, ids, ids, rows, None, None, None)(1)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "walk.cubin"
        cubin.write_bytes(found[0].asm["cubin"])
        told = [_tool("nvdisasm", "-c", str(cubin)), _tool("cuobjdump", "-res-usage", str(cubin))]
    code = [line for line in told[0].splitlines() if re.match(r"\s+/\*[0-9a-f]{4,}\*/|\.L_x_\d+:", line)]
    used = re.search(r"REG:(\d+)", told[1])
    assert used
    return Compiled(code, int(used[1]), found[0].metadata.shared, walk.shape_of(network))


def _tool(name: str, *arguments: str) -> str:
    tool = find_tool(name)
    assert tool is not None, f"{name}: got none, expected it in Triton's package"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def row_of(kernel: Compiled, deepest: int) -> list[str]:
    """The operations that a warp issues for one row: those of the loop over rows, blocks of a matrix as often as there
    are any, without the keys of rows beyond 2^28."""
    labels: dict[str, int] = {}
    lines: list[tuple[str, str]] = []
    for line in kernel.code:
        if line.startswith("."):
            labels[line.split(":")[0]] = len(lines)
        else:
            operation = re.match(r"\s+/\*\w+\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)", line)
            lines.append((operation[1] if operation else "", line))
    jumps = [(k, labels[m[1]], "@" in line) for k, (_, line) in enumerate(lines)
             if (m := re.search(r"BRA `\((\.L_x_\d+)\)", line))]  # fmt: skip
    loops = sorted(((to, k) for k, to, _ in jumps if to < k), key=lambda loop: loop[1] - loop[0])
    start, end = [loop for loop in loops if any(op.startswith("STG") for op, _ in lines[loop[0] : loop[1]])][-2]
    skipped: set[int] = set()
    for k, to, guarded in jumps:
        stretch = [op for op, _ in lines[k:to]]
        wide = sum(op.startswith(("IMAD.WIDE", "IMAD.HI")) for op in stretch)
        if guarded and wide > 10 and not any(op.startswith(("I2F", "MUFU")) for op in stretch):
            skipped |= set(range(k + 1, to))
    times = Counter(range(start, end + 1))
    for to, k in loops:
        if start < to and k < end and any("MMA" in op for op, _ in lines[to : k + 1]):
            times.update(dict.fromkeys(range(to, k + 1), deepest // kernel.shape.depth - 1))
    return [lines[k][0] for k in sorted(times) if k not in skipped for _ in range(times[k])]


def products_of(network: Network, precision: str, shape: walk.Shape) -> range:
    """How many products a warp must issue: what the counts are checked against. Of an output that is narrower than all
    warps together each may compute a part, or all of it."""
    least = most = 0
    for one in network.instructions:
        if isinstance(one, Linear):
            out, into = (walk.padded(size) for size in one.weights[0].shape)
            deep = into // 16 if precision == "bf16" else 3 * into // 8
            parts = 1 if shape.chains == 64 else max(out // 8 // shape.warps, 1)
            least, most = (
                least + deep * parts,
                most + deep * (1 if shape.chains == 64 else max(parts, min(out // 8, 2))),
            )
    return range(least, most + 1)


def predicted(widths: tuple[int, ...], precision: str, chains: int, rows: int = 100) -> dict[str, Any]:
    """Counts, clocks and milliseconds."""
    torch.manual_seed(0)
    network, _ = network_of(Net(widths).eval(), precision)
    kernel = compiled(network)
    shape, row = kernel.shape, row_of(kernel, max(widths))
    products = sum("MMA" in op for op in row)
    expected = products_of(network, precision, shape)
    assert products in expected, f"products of a row: got {products}, expected {expected}"
    heads = [op.split(".")[0] for op in row]
    warps = shape.warps
    count = {name: sum(heads.count(head) for head in units.split()) for name, units in UNITS.items()}
    wide = sum(op.startswith("IMAD.WIDE") for op in row)
    clocks = {name: count[name] * 32 * warps / lanes for name, lanes in LANES.items()}
    clocks["issue"] = (len(row) + (WIDE_SLOTS - 1) * wide) * warps / 4
    matrices = [w for one in network.instructions if isinstance(one, Linear) for w in one.weights]
    sizes = [[walk.padded(size) for size in w.shape] for w in matrices]
    multiplied = sum(out * into for out, into in sizes) * shape.chains
    clocks["tensor"] = multiplied / PRODUCTS[precision] / (1 if shape.chains == 64 else 0.6)
    streamed = [out * into for out, into in sizes if into > shape.depth]
    weights = sum(streamed) * (2 if precision == "bf16" else 4)

    each_warp = max(warps / 4, ALONE)  # clocks of an instruction that all warps issue
    rest = sum(head not in STREAM for head in heads) * each_warp
    stream = max(weights / L2_BYTES, sum(head in STREAM for head in heads) * each_warp)
    barriers = BARRIER * (heads.count("BAR") if not streamed else heads.count("BAR") // 2)
    own = rest + stream + barriers + ROUND_TRIP * (ROUND_TRIPS + 2 * len(streamed))
    by_registers = REGISTERS // (-(-kernel.registers // 8) * 8 * 32 * warps)
    fit = min(by_registers, SHARED // (kernel.shared + 1024), WARPS // warps)
    tiles = -(-chains // shape.chains)
    together = min(fit, max(1, -(-tiles // PROCESSORS)))
    scarcest = max(clocks, key=lambda name: clocks[name])
    limit = clocks[scarcest] * tiles / PROCESSORS if tiles > PROCESSORS else own
    clocks_of_row = own if tiles <= PROCESSORS else max(limit / REACHED, own / together * tiles / PROCESSORS)
    return {
        "widths": widths, "precision": precision, "chains": chains, "rows": rows, "shape": shape._asdict(),
        "registers": kernel.registers, "shared": kernel.shared, "programs a multiprocessor": together,
        "instructions of a row": len(row), "by operation": dict(Counter(heads).most_common(24)),
        "clocks of a tile's row": clocks, "clocks alone": own, "bytes of weights": weights,
        "scarcest": scarcest if tiles > PROCESSORS else "a program's own time",
        "limit ms": limit * rows / CLOCK * 1e3, "expected ms": clocks_of_row * rows / CLOCK * 1e3,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="print only, write no file")
    dry = parser.parse_args().dry
    found = []
    for widths, precision, chains, goal in CASES:
        model = predicted(widths, precision, chains) | {"goal ms": goal}
        found.append(model)
        clocks = ", ".join(f"{name} {each:.0f}" for name, each in model["clocks of a tile's row"].items())
        print(f"{'-'.join(map(str, widths))} {precision}, {chains} chains x {model['rows']} rows: "
              f"{model['expected ms']:.2f} ms expected (goal {goal}), {model['limit ms']:.2f} at the limit of "
              f"{model['scarcest']}\n  {model['instructions of a row']} instructions, clocks of a tile's row: "
              f"{clocks}; alone {model['clocks alone']:.0f}\n  {model['registers']} registers, {model['shared']} bytes "
              f"shared, {model['programs a multiprocessor']} programs together, {model['bytes of weights']} bytes of "
              "weights a row")  # fmt: skip
    if not dry:
        told = machine()
        path = RESULTS / f"walk-model-{told['date']}.json"
        path.write_text(json.dumps({**told, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
