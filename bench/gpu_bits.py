"""The GPU backends against the CPU's bits, apart from the tests: `python -m bench.gpu_bits noise|operations`.

``noise`` compares fills of billions of normals, ``operations`` all operations on small and odd shapes (short enough for
compute-sanitizer). Exit code 0 is no difference, 1 is some, 2 there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.gpu_stage import Stage, write_whole

import ulam_kernels
from ulam_kernels import Table

FILL = 1 << 25  # normals of one comparison
NORMALS = 1 << 32  # to compare, as far as the time reaches
LEAST_NORMALS = 300_000_000  # fewer are not enough
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
SHAPES = ((1, 1), (5, 7), (3, 1024), (33, 33), (2, 2051))  # chains, elements
Tensors = dict[str, torch.Tensor]


def different(expected: torch.Tensor, got: torch.Tensor) -> int:
    """Elements whose bits differ; NaN, which no operation here makes, differs from everything."""
    kind = {4: torch.int32, 2: torch.int16}[expected.element_size()]
    unequal = expected.view(kind) != got.view(kind)
    return int((unequal | got.isnan()).sum())


def fills(total: int = FILL, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Fills without end: long and short chains, aligned and not, all tags, random and extreme names, all offsets."""
    rng = np.random.default_rng(seed)
    shapes = [(32, total // 32), (1, total), (total // 509, 509), (total // 16, 2), (total // 4099, 4099)]
    extremes = (0, -1, 2**63 - 1, -(2**63))
    index = 0
    while True:
        chains, elements = shapes[index % 5]
        names = {name: rng.integers(-(2**63), 2**63 - 1, chains) for name in ("seed", "chain", "draw")}
        names["seed"][0], names["chain"][-1] = extremes[index % 4], extremes[index // 4 % 4]
        if index % 3 == 0:
            names["draw"] &= 0xFFFFFFFF  # beyond 2^32 the key is another
        room = 2**30 - elements
        offset = (0, int(rng.integers(room)), 8 * int(rng.integers(room // 8)), room)[index % 4]
        dtype = (FP32, BF16, FP32, FP16, FP32, FP32, FP32)[index % 7]
        given = {name: torch.from_numpy(values) for name, values in names.items()}
        yield {"shape": (chains, elements), "dtype": dtype, "tag": index % 15, "offset": offset, "names": given}
        index += 1


def compare_fills(
    devices: dict[str, str],
    cases: Iterator[dict[str, Any]],
    normals: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Fill by each backend (``{backend: device}``) and by the CPU until so many normals or seconds; count differences.

    Two of the four 32-bit words of a block give a radius, two an angle. Random words repeat, so of n normals
    1 - exp(-n / 2^33) of all words may be expected to have been seen in either role.
    """
    begin, done = clock(), 0
    differences = dict.fromkeys(devices, 0)
    first: dict[str, str] = {}
    while done < normals and clock() - begin < seconds:
        case = next(cases)
        options = {"tag": case["tag"], "offset": case["offset"]}
        expected = torch.empty(case["shape"], dtype=case["dtype"])
        ulam_kernels.fill_normal(expected, backend="cpu", **case["names"], **options)
        there = {device: expected.to(device) for device in set(devices.values())}
        for backend, device in devices.items():
            out = torch.full(case["shape"], float("nan"), dtype=case["dtype"], device=device)
            names = {name: tensor.to(device) for name, tensor in case["names"].items()}
            ulam_kernels.fill_normal(out, backend=backend, **names, **options)
            count = different(there[device], out)
            differences[backend] += count
            if count:
                first.setdefault(backend, f"{list(case['shape'])} {case['dtype']} {options}: {count} differ")
        done += expected.numel()
    seen = 1 - math.exp(-done / 2**33)
    return {"normals": done, "different": differences, "first_different": first, "expected_share_of_words": seen}


def random_rows(registers: int, rng: np.random.Generator, rows: int = 4) -> Table:
    """Affine rows with most of their terms, half of them clipped."""
    matrix = rng.normal(size=(rows, registers, registers + 3)) * (rng.random((rows, registers, registers + 3)) < 0.8)
    columns = [rng.normal(size=rows) for _ in range(5)]
    clip = np.where(np.arange(rows) % 2, 0.7, np.inf)
    written = np.ones((rows, registers), bool)
    return Table.pack(columns[0], columns[1], -clip, clip, *columns[2:], matrix, written, np.zeros(rows, bool))


def operands(chains: int, elements: int, rows: Table, dtype: torch.dtype, rng: np.random.Generator) -> Tensors:
    def normal(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape)).to(kind)

    return {
        "state": normal(rows.registers, chains, elements),
        "model": normal(chains, elements),
        "uncond": normal(chains, elements),
        "weight": normal(chains, kind=FP32),
        "chain": torch.arange(chains),
        "coef": rows.coef,
        "flags": rows.flags,
    }


def step(given: Tensors, backend: str) -> torch.Tensor:
    """All registers and the network's input."""
    state, ids = given["state"], given["chain"]
    table = Table(given["coef"], given["flags"], state.shape[0])
    network = {"model": given["model"], "uncond": given["uncond"], "guidance": given["weight"]}
    net_in = torch.full_like(state[0], float("nan"))
    names = {"seed": ids, "chain": ids, "draw": ids}
    ulam_kernels.step(state, table, ids % len(table), **network, **names, net_in=net_in, backend=backend)
    return torch.cat([state, net_in[None]])


def fill(given: Tensors, backend: str) -> torch.Tensor:
    ids = given["chain"]
    out = torch.full_like(given["model"], float("nan"))
    return ulam_kernels.fill_normal(out, seed=ids, chain=ids, draw=ids, offset=3, backend=backend)


def affine(given: Tensors, backend: str) -> torch.Tensor:
    return ulam_kernels.affine(given["model"], given["uncond"], given["weight"], given["weight"], backend=backend)


def compare_operations(devices: dict[str, str], variants: dict[str, list[tuple[int, torch.dtype]]]) -> dict[str, int]:
    """Differences of each backend (``{backend: device}``) in its variants: registers and dtype."""
    rng = np.random.default_rng(0)
    found = dict.fromkeys(devices, 0)
    for backend, device in devices.items():
        for registers, dtype in variants[backend]:
            rows = random_rows(registers, rng)
            for chains, elements in SHAPES:
                given = operands(chains, elements, rows, dtype, rng)
                for operation in (step, fill, affine):
                    expected = operation({name: tensor.clone() for name, tensor in given.items()}, "cpu")
                    got = operation({name: tensor.clone().to(device) for name, tensor in given.items()}, backend)
                    found[backend] += different(expected, got.cpu())
    return found


def noise_part(stage: Stage, devices: dict[str, str], out: Path | None, seconds: float) -> bool:
    """Compare fills; ok with enough normals on all GPU backends and none different."""
    least, total = (1 << 14, 1 << 14) if stage.rehearsal else (LEAST_NORMALS, FILL)
    found = compare_fills(devices, fills(total), 4 * least if stage.rehearsal else NORMALS, seconds)
    missing = {name: state for name, state in stage.absent().items() if name in ("cuda", "triton")}
    ok = found["normals"] >= least and not missing and not any(found["different"].values())
    told = {"ok": ok, **found, "not_usable": missing}
    print(json.dumps(told))
    if out is not None:
        write_whole(out, told)
    return ok


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("noise", "operations"))
    parser.add_argument("--out", type=Path, help="write what noise finds there, as JSON")
    parser.add_argument("--seconds", type=float, default=60.0, help="for noise (default 60)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU in the GPU's place: its reference backend")
    options = parser.parse_args(arguments)
    stage = Stage(options.rehearse)
    if (reason := stage.why_not()) is not None:
        print(f"bench.gpu_bits: nothing compared: {reason}")
        return 2
    usable = {name: stage.device for name in ("cuda", "triton") if name not in stage.absent()}
    if stage.rehearsal:
        usable = {"reference": stage.device}
    if options.part == "noise":
        return 0 if noise_part(stage, usable, options.out, options.seconds) else 1
    every = [(registers, dtype) for registers in (1, 3, 5) for dtype in (FP32, BF16, FP16)]
    few = [(1, FP32), (2, BF16)]  # Triton compiles each anew
    variants = {"cuda": every, "triton": few, "reference": few}
    found = compare_operations(usable, {name: variants[name] for name in usable})
    print(f"elements that differ from the CPU's: {found}")
    return 1 if any(found.values()) or not found else 0


if __name__ == "__main__":
    sys.exit(main())
