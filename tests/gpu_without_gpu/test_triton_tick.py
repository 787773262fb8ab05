"""Triton's kernels around the fused step, without a GPU: what they do in any order of programs, and their code."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

import triton_interpreter

pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget

from bit_comparison import same_bits
from machine_code import disassemble, inside_loops, opcodes
from tick_cases import ORDERS, OUTPUTS, expected_of, looked_up, not_finite, random_look_up, random_tick
from triton_cases import ARCHITECTURES
from triton_reduce_cases import BLENDS, by_row
from triton_simulator import cuda, simulated
from triton_tick_cases import LOOK_UP, agrees, run
from ulam_kernels import cpu
from ulam_kernels.triton.blend import blend
from ulam_kernels.triton.tick import TILE, advance, long_parts, look_up

BYTES = {dtype: torch.finfo(dtype).bits // 8 for dtype in OUTPUTS}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
def test_long_chains_in_any_order_of_programs(order: str, dtype: torch.dtype) -> None:
    """One program a chain and several, aligned and not."""
    rng = np.random.default_rng([1, OUTPUTS.index(dtype)])
    waves, turns = ORDERS[order]
    with simulated(cuda(90), execute=True, waves=waves, turns=turns):
        for chains, n in ((4, 513), (1, TILE), (5, 2 * TILE + 8), (3, 3 * TILE + 1)):
            assert agrees(random_tick(rng, chains, (n,), dtype, guided=n > 2 * TILE, bad=0.4)), (chains, n)


def test_parts_are_zero_again_and_the_next_tick_is_right() -> None:
    given = random_tick(np.random.default_rng(2), 4, (10_000,), torch.float32, guided=True)
    with simulated(cuda(90), execute=True, waves=np.arange):
        for _ in range(3):
            expected = expected_of(given)
            run(given)
            assert torch.equal(given["cursor"], expected[0]) and torch.equal(given["now"], expected[1])
    assert long_parts(4, 10_000)[0] > 1 and not given["cursor"][5].any()


@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
def test_short_chains(dtype: torch.dtype) -> None:
    rng = np.random.default_rng([3, OUTPUTS.index(dtype)])
    with simulated(cuda(90), execute=True):
        for chains, n in ((3000, 1), (1500, 2), (300, 9), (300, 16), (50, 100), (9, 512)):
            assert agrees(random_tick(rng, chains, (n,), dtype, guided=chains != 300, bad=0.2)), (chains, n)
        given = random_tick(rng, 2500, (1,), dtype, guided=False)
        assert agrees(given | {"model": None})


@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
@pytest.mark.parametrize("n", [7, 1500, 5000])
def test_any_address_and_any_distance_of_chains(dtype: torch.dtype, n: int) -> None:
    """Chains that begin anywhere, model and uncond each elsewhere, with what is not finite around them."""
    rng = np.random.default_rng([4, n])
    with simulated(cuda(90), execute=True):
        for skew, gap in ((1, 0), (8, 8)):
            given = random_tick(rng, 3, (n,), dtype, guided=True)
            for name, extra in (("model", gap), ("uncond", gap + skew)):
                wide = torch.full((3 * (n + extra) + 8,), math.nan, dtype=dtype)
                view = wide[skew : skew + 3 * (n + extra)].view(3, -1)[:, :n]
                given[name] = view.copy_(given[name])
            assert agrees(given), (skew, gap)


@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
def test_one_number_stops_its_chain_wherever_it_is(dtype: torch.dtype) -> None:
    rng = np.random.default_rng([5, OUTPUTS.index(dtype)])
    n = 2 * TILE + 5
    with simulated(cuda(90), execute=True):
        for place in (0, 1, 7, 8, TILE - 1, TILE, 2 * TILE - 1, 2 * TILE, n - 1):
            model = torch.zeros(3, n, dtype=dtype)
            model[1, place] = not_finite(rng, dtype)
            cursor, now = torch.full((6, 3), 5), torch.zeros(2, 3, dtype=torch.int64)
            cursor[5] = 0
            advance(cursor, now, model, None, None)
            assert now[0].tolist() == [5, 0, 5], place


def test_few_long_chains_fill_a_gpu() -> None:
    """(parts, elements of each) of a chain of 196,608 numbers and of one of 3,072."""
    assert long_parts(8, 196_608) == (96, TILE)
    assert long_parts(1, 196_608) == (96, TILE)
    assert long_parts(256, 196_608) == (16, 6 * TILE)
    assert long_parts(4096, 3072) == (1, 2 * TILE)
    for chains, n in ((1, 513), (7, 10**6), (10**5, 10**5), (1, 2**30)):
        parts, span = long_parts(chains, n)
        assert (parts - 1) * span < n <= parts * span


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_look_up(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(6)
    with simulated(cuda(90), execute=True):
        for chains, rows, limited in ((1, 1, True), (300, 40, True), (1000, 7, False)):
            given = random_look_up(rng, chains, rows, dtype, limited)
            expected, weights = looked_up(given)
            look_up(*(given.get(name) for name in LOOK_UP), given.get("weight"))
            assert torch.equal(given["out"].nan_to_num(8), expected.nan_to_num(8))
            assert weights is None or torch.equal(given["weight"], weights)
        given = random_look_up(rng, 4, 7, dtype, limited=True)
        row, interval = torch.tensor([-1, 7, 6, 2**62]), torch.tensor([[-math.inf] * 4, [math.inf] * 4])
        look_up(given["times"], row, given["out"], given["guidance"], interval, given["weight"])
    absent = given["out"].isnan() if dtype == torch.float32 else given["out"] == -1
    assert absent.tolist() == [True, True, False, True]
    assert torch.equal(given["weight"], torch.where(absent, 1.0, given["guidance"]))


def test_a_whole_time_is_rounded_once() -> None:
    times, bound = torch.tensor([2**24 + 1, 2**53 + 2**29 + 1]), torch.tensor([2.0**24, 2.0**53 + 2.0**30])
    out, weight = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    with simulated(cuda(90), execute=True):
        look_up(times, torch.arange(2), out, torch.tensor([3.0, 4.0]), torch.stack([bound, bound]), weight)
    assert torch.equal(out, times) and weight.tolist() == [3, 4]


@pytest.mark.parametrize("case", BLENDS, ids=str)
def test_blend_by_row(case: tuple[Any, ...]) -> None:
    """The bits of the CPU, and NaN where a row is outside the tables, in the network's input too."""
    given = by_row(np.random.default_rng(7), case)
    expected = {name: value.clone() if torch.is_tensor(value) else value for name, value in given.items()}
    cpu.blend(**expected)
    with simulated(cuda(90), execute=True):
        blend(**given)
        assert same_bits(given["x"], expected["x"]) and same_bits(given["net_in"], expected["net_in"])
        given["row"][:3] = torch.tensor([0, 9, -1])
        given["a"][0], given["x"] = 0.5, torch.zeros_like(given["x"])
        blend(**given)
    for written in (given["x"], given["net_in"]):
        if written is not None:
            assert written[:3].isnan().all(1).tolist() == [False, True, True]


# Changes of the PTX behind the atomic, or of what it adds, that tests must notice.
FAULTS = {
    "every program counts on": (
        r"(atom\.global.*?)setp\.eq\.b32(\s+%p\d+), (%r\d+), %r\d+;",
        r"\1setp.eq.b32\2, \3, \3;",
    ),
    "parts are not set to 0 again": (r"(atom\.global.*?)@%p\d+ st\.global\.b64 [^;]*;", r"\1"),
    "others' failures are not read": (r"(setp\.gt\.u64[^;]*), 4294967295;", r"\1, 4611686018427387904;"),
    "failures are not told": (r"4294967297, 1, ", "1, 1, "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str) -> None:
    pattern, put = FAULTS[fault]

    def alter(ptx: str) -> str:
        altered, count = re.subn(pattern, put, ptx, count=1, flags=re.S)
        assert count == 1
        return altered

    given = random_tick(np.random.default_rng(8), 6, (9000,), torch.float32, guided=False, bad=0.6)
    with simulated(cuda(90), execute=True, alter=alter, waves=np.arange):
        right = [agrees(given)]
        run(given)
        right.append(agrees(given) and not given["cursor"][5].any())
    assert not all(right)


# What is compiled.


def kernels(target: GPUTarget) -> list[Any]:
    """All of the above, compiled."""
    rng = np.random.default_rng(9)
    with simulated(target) as gpu:
        for n in (2, 16, 128, 512, 4096):
            run(random_tick(rng, 4, (n,), torch.float32, guided=True))
            run(random_tick(rng, 4, (n,), torch.float32, guided=False))
        for dtype in OUTPUTS[1:]:
            run(random_tick(rng, 4, (2,), dtype, guided=True))
            run(random_tick(rng, 4, (4096,), dtype, guided=True))
        run(random_tick(rng, 4, (2,), torch.float32, guided=False) | {"model": None})
        for dtype in (torch.float32, torch.int64):
            given = random_look_up(rng, 4, 7, dtype, limited=True)
            look_up(*(given[name] for name in LOOK_UP), given["weight"])
    return gpu.compiled


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code(architecture: int, tmp_path: Any) -> None:
    """No local memory in a loop, no floats' arithmetic; vectors of 16 bytes; one atomic, in order, for long chains."""
    for kernel in kernels(cuda(architecture)):
        ptx, name = kernel.asm["ptx"], kernel.metadata.name
        assert ".local" not in ptx
        lines = disassemble(kernel, tmp_path)
        code = opcodes(lines)
        assert not [op for op in code if re.match(r"MUFU|[FDH](ADD|MUL|FMA)", op)], name
        # a few words of a long chain may wait there for the loop's end
        kept = opcodes(inside_loops(lines)) if name == "advance_long" else code
        assert not [op for op in kept if op.startswith(("LDL", "STL"))], name
        atomics = re.findall(r"atom\.[\w.]+", ptx)
        assert atomics == (["atom.global.gpu.acq_rel.add.u64"] if name == "advance_long" else [])
        if name == "advance_long":
            outputs = [op for op in code if op.startswith("LDG") and op not in ("LDG.E", "LDG.E.64")]
            assert outputs and {op.removesuffix(".CONSTANT") for op in outputs} == {"LDG.E.128"}


def test_compiles_for_amd() -> None:
    pytest.importorskip("triton.backends.amd.compiler", reason="this Triton has no AMD backend")
    for kernel in kernels(GPUTarget("hip", "gfx942", 64)):
        assert ".private_segment_fixed_size: 0" in kernel.asm["amdgcn"], kernel.metadata.name


def test_nothing_is_compiled_again_when_sizes_change() -> None:
    rng = np.random.default_rng(10)
    with simulated(cuda(90)) as gpu:
        for chains, n in ((1, 128), (40, 72), (300, 80), (1, 1024), (2, 2048), (17, 80_000)):
            given = random_tick(rng, chains + 1, (n,), torch.float32, guided=True)
            run({name: value[..., 1:] if name in ("cursor", "now", "guidance") else value[1:]
                 for name, value in given.items()})  # fmt: skip
            run(given)
        for chains, rows in ((1, 1), (300, 16), (1000, 7)):
            given = random_look_up(rng, chains, rows, torch.float32, limited=False)
            look_up(given["times"], given["row"], given["out"], None, None, None)
    assert len({id(kernel) for kernel in gpu.compiled}) == 3


# Triton's own interpreter, in a process of its own because it is chosen when kernels are defined.


def test_interpreted_kernels_agree() -> None:
    triton_interpreter.run("check_ticks")
