"""The CUDA kernels without a GPU: channels innermost in memory, and how short chains wait for memory."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from bench import sass as machine_code
from bench.sass import Sass, cheapest_pass

import cuda_simulator
import memory_trips
import ulam_kernels
from bit_comparison import same_bits
from cuda_cases import FAST, plain_row
from cuda_simulator import ARCHITECTURES, BF16, FP16, FP32, MISSING, Device, sass
from layout_cases import LAYOUTS, cases, laid_out, normal, random_case
from memory_trips import Trips
from ulam_kernels import Table

NAMES = {FP32: "7Float32", BF16: "8BFloat16", FP16: "7Float16"}
LAID_OUT = re.compile(r"step_short|step_pixels|step_channels|fill_short")
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def device() -> Device:
    return cuda_simulator.device()


def mangled(state: torch.dtype, model: torch.dtype) -> str:
    """The first template arguments of a kernel that is compiled for these types."""
    return f"INS0_{NAMES[state]}E" + ("S2_" if state == model else f"NS0_{NAMES[model]}E")


@pytest.mark.parametrize(
    ("seed", "each"), [(0, 4), *(pytest.param(seed, 1, marks=pytest.mark.long) for seed in range(5))]
)
def test_channels_last_has_the_bits_of_the_cpu(device: Device, seed: int, each: int) -> None:
    """Every shape, or each fourth, and mixture of layouts; many chains or few, misaligned buffers too."""
    rng = np.random.default_rng([1, seed])
    for number, (shape, registers, types) in list(enumerate(cases(seed)))[::each]:
        chains = int(rng.integers(1, 40))
        start, table, row, given = random_case(rng, shape, chains, types, registers)
        expected, net = start.clone(), given["net_in"].clone()
        ulam_kernels.step(expected, table, row, backend="cpu", **{**given, "net_in": net})
        for layout in LAYOUTS:
            if shape[0] == 1 and not layout[0]:
                continue  # a network's input of one channel is contiguous
            state, operands = start.clone(), laid_out(given, *layout)
            device.step(state, table, row, skew=4 * (number % 2), **operands)
            assert "step_pixels" in device.used
            assert same_bits(state, expected) and same_bits(operands["net_in"], net), (shape, layout)


@pytest.mark.parametrize(("state", "model"), FAST)
def test_images_of_three_and_four_channels_have_the_bits_of_the_cpu(
    device: Device, state: torch.dtype, model: torch.dtype
) -> None:
    """Those whose output is m alone, aligned and of whole quads of pixels: one and two registers, any network input."""
    rng, total = np.random.default_rng(3), 0
    shapes = [(3, 8, 8), (4, 12, 10), (3, 2, 4, 6), (4, 2, 2), (3, 64, 20), (4, 36, 36)]
    for number, (shape, registers) in enumerate(itertools.product(shapes, (1, 2))):
        types, chains = (state, model, (FP32, BF16, FP16)[number % 3]), 2 + 100 // shape[1]
        start, table, row, given = random_case(rng, shape, chains, types, registers, learns=False)
        expected, net = start.clone(), given["net_in"].clone()
        ulam_kernels.step(expected, table, row, backend="cpu", **{**given, "net_in": net})
        operands = laid_out(given, True, number % 4 > 0)
        device.step(start, table, row, **operands)
        assert f"step_channels{mangled(state, model)}Li{shape[0]}ELi{registers}E" in device.used
        assert same_bits(start, expected) and same_bits(operands["net_in"], net), shape
        total += expected.numel()
    assert total > 100_000


def test_a_large_image_has_the_bits_of_the_cpu(device: Device) -> None:
    """Several blocks a chain; then several passes a block, where there are chains enough."""
    for shape, chains, launched in (((3, 96, 64), 2, (2, 24)), ((3, 8, 64), 2100, (2100, 1))):
        start, table, row, given = random_case(np.random.default_rng(4), shape, chains, (BF16,) * 3, 1, learns=False)
        given = {name: given[name] for name in ("model", "seed", "chain", "draw", "scales")}
        expected, operands = start.clone(), laid_out(given, True, True)
        ulam_kernels.step(expected, table, row, backend="cpu", **given)
        device.step(start, table, row, **operands)
        assert device.shape[:2] == launched and "step_channels" in device.used
        assert same_bits(start, expected)


def test_other_images_go_another_way(device: Device) -> None:
    """Misaligned, of other types, of three registers, of contiguous outputs, of pixels that are no multiple of four."""
    ways: list[tuple[tuple[int, ...], tuple[torch.dtype, ...], int, int, bool]] = [
        ((3, 4, 8), (FP32,) * 3, 1, 4, True), ((3, 4, 8), (BF16, FP32, BF16), 1, 0, True),
        ((3, 4, 8), (FP32,) * 3, 3, 0, True), ((3, 4, 8), (FP32,) * 3, 1, 0, False),
        ((3, 5, 7), (FP32,) * 3, 1, 0, True), ((5, 4, 8), (FP32,) * 3, 1, 0, True),
    ]  # fmt: skip
    for number, (shape, types, registers, skew, model_last) in enumerate(ways):
        rng = np.random.default_rng([6, number])
        start, table, row, given = random_case(rng, shape, 9, types, registers, learns=False)
        expected, operands = start.clone(), laid_out(given, model_last, True)
        ulam_kernels.step(expected, table, row, backend="cpu", **given)
        device.step(start, table, row, skew=skew, **operands)
        assert "step_pixels" in device.used
        assert same_bits(start, expected) and same_bits(operands["net_in"], given["net_in"]), number


def test_large_images_have_the_bits_of_the_cpu(device: Device) -> None:
    """Several blocks and passes a plane."""
    rng = np.random.default_rng(2)
    for shape, chains in (((3, 64, 60), 3), ((4, 31, 33), 3), ((3, 4, 44), 1500)):
        start, table, row, given = random_case(rng, shape, chains, (BF16,) * 3, 1)
        expected, net = start.clone(), given["net_in"].clone()
        ulam_kernels.step(expected, table, row, backend="cpu", **{**given, "net_in": net})
        operands = laid_out(given, True, True)
        device.step(start, table, row, **operands)
        assert same_bits(start, expected) and same_bits(operands["net_in"], net), shape


def test_a_row_that_cannot_be_executed_writes_nan(device: Device) -> None:
    for shape in ((3, 8, 8), (3, 5, 7)):
        values, ids = torch.ones(1, 3, *shape), torch.arange(3)
        given = {"model": torch.zeros(3, *shape).to(memory_format=torch.channels_last)}
        device.step(values, plain_row(), torch.tensor([0, 1, -1]), **given, seed=ids, chain=ids, draw=ids)
        assert values.isnan().flatten(2).all(2).tolist() == [[False, True, True]]
        device.step(values.fill_(1), plain_row(), ids * 0, **given)
        assert bool(values.isnan().all())


# --- Waiting for memory ---------------------------------------------------------------------------------------------


def trips(device: Device, monkeypatch: pytest.MonkeyPatch, chains: int, elements: int, guided: bool = False) -> int:
    """How often a thread waits for memory in a plain row, after a check of its bits."""
    monkeypatch.setattr(cuda_simulator, "Machine", Trips)
    rng = np.random.default_rng(5)
    start, row = normal(rng, (1, chains, elements), FP32), torch.zeros(chains, dtype=torch.int64)
    given = {name: torch.from_numpy(rng.integers(0, 2**32, chains)) for name in ("seed", "chain", "draw")}
    given["model"] = normal(rng, (chains, elements), FP32)
    if guided:
        given |= {"uncond": given["model"] * 2, "guidance": torch.linspace(0, 2, chains)}
    expected = start.clone()
    ulam_kernels.step(expected, plain_row(), row, backend="cpu", **given)
    device.step(start, plain_row(), row, **given)
    assert same_bits(start, expected)
    return memory_trips.Trips.latest


def test_short_chains_wait_twice_for_memory(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what belongs to the chain and the number of its row, all at once; and for the row."""
    for elements in (1, 2, 6, 64, 33):
        for guided in (False, True):
            assert trips(device, monkeypatch, 150, elements, guided) == 2
            assert f"step_shortINS0_5GroupILi{2 if elements <= 2 else 4}E" in device.used
    assert trips(device, monkeypatch, 2, 4096) > 3  # the measure tells the others apart
    assert "step_vectors" in device.used


def test_many_short_chains_are_launched_in_larger_blocks(device: Device) -> None:
    """And a table without rows, which no chain can be at, is not read."""
    rng = np.random.default_rng(8)
    for chains, elements, threads in ((150, 2, 64), (262_200, 1, 128), (70_000, 3, 64)):
        start, row = normal(rng, (1, chains, elements), FP32), torch.zeros(chains, dtype=torch.int64)
        given = {"model": normal(rng, (chains, elements), FP32)}
        given |= dict.fromkeys(("seed", "chain", "draw"), torch.arange(chains))
        expected = start.clone()
        ulam_kernels.step(expected, plain_row(), row, backend="cpu", **given)
        device.step(start, plain_row(), row, **given)
        assert device.block == (1, threads, 1) and same_bits(start, expected)
    none = Table(torch.empty(0, 11), torch.empty(0, dtype=torch.int32), 1)
    device.step(start, none, row, **given)
    assert "step_quads" in device.used and bool(start.isnan().all())


@pytest.mark.parametrize("elements", [1, 2, 3, 20])
def test_short_fills_wait_once_for_memory(device: Device, monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(cuda_simulator, "Machine", Trips)
    out, ids = torch.empty(100, elements), torch.arange(100)
    names = {"seed": ids * 3, "chain": ids, "draw": ids * 16}
    expected = ulam_kernels.fill_normal(out.clone(), **names, tag=1, scale=0.5, offset=8)
    device.fill_normal(out, **names, tag=1, scale=0.5, offset=8)
    assert torch.equal(out, expected) and memory_trips.Trips.latest == 1
    assert f"fill_shortINS0_5GroupILi{2 if elements <= 2 else 4}E" in device.used


def kernel(architecture: str, name: str, registers: int | None = None) -> list[Sass]:
    """Of so many registers, unless the name has it already; of a step, that which does not record."""
    full = name if registers is None else f"{name}Li{registers}E" + ("Lb0E" if name.startswith("step") else "")
    return next(code for found, code in sass(architecture).items() if full in found)


PIXELS, SHORT = "step_pixelsI", "step_shortINS0_5GroupILi{}EEE"
CONSTANT = re.compile(r"(R\d+), .*\[(R\d+)(?:\.64)?(?:\+0x([0-9a-f]+))?\]")  # target, base, offset


def before_the_table_is_used(code: list[Sass], columns: int) -> list[str]:
    """The loads that stand before a register with a column of the row is touched again; all columns are asked for."""
    loads = {k: m for k, (_, _, op, rest) in enumerate(code) if op == "LDG.E.CONSTANT" and (m := CONSTANT.search(rest))}
    offset = lambda k: int(loads[k][3] or "0", 16)  # noqa: E731
    (last,) = (k for k in loads if offset(k) == 4 * (columns - 1))
    of_row = [[k for k in loads if loads[k][2] == loads[last][2] and offset(k) == 4 * c] for c in range(columns)]
    row = [min(found, key=lambda k: abs(k - last)) for found in of_row]  # others reuse the register
    held: set[str] = set()
    for k in range(min(row), len(code)):
        touched = set(re.findall(r"\bR\d+\b", code[k][3]))
        if held & touched:
            assert k > max(row), "the row is not asked for as a whole"
            return [op for _, _, op, _ in code[:k] if op.startswith("LDG")]
        if k in row:
            held.add(loads[k][1])
    raise AssertionError("no value of the table is used")


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("registers", [1, 2, 5])
@pytest.mark.parametrize("lanes", [2, 4])
def test_short_chains_ask_for_all_before_they_use_the_row(architecture: str, registers: int, lanes: int) -> None:
    """In the machine code: the numbers of the chain, the model's output and the registers at their widest, the row."""
    code = kernel(architecture, SHORT.format(lanes), registers)
    loads = before_the_table_is_used(code, 7 + registers * (registers + 3))
    assert loads.count("LDG.E.64.CONSTANT") == 4  # row, seed, chain, draw
    assert loads.count(f"LDG.E.{32 * lanes}") >= 2 + registers  # model, uncond, registers


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_elements_make_two_normals(architecture: str) -> None:
    for name in (*(SHORT.format(lanes) for lanes in (2, 4)), *(f"fill_shortINS0_5GroupILi{n}E" for n in (2, 4))):
        code = kernel(architecture, name, 1 if "step" in name else None)
        assert [op for _, _, op, _ in code].count("MUFU.RSQ") == (1 if "Li2E" in name else 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code(architecture: str) -> None:
    """No local memory; no approximate instruction but the noise's root, and the beginning of an integer division."""
    kernels = {name: code for name, code in sass(architecture).items() if LAID_OUT.search(name)}
    assert len(kernels) == 2 * (2 * 5 + 5 + 5 * 2 * 2) + 2
    for name, code in kernels.items():
        operations = {op for _, _, op, _ in code}
        assert not [op for op in operations if op.startswith(("LDL", "STL"))], name
        approximate = {op for op in operations if op.startswith("MUFU")}
        assert approximate <= {"MUFU.RSQ"} | ({"MUFU.RCP"} if "step_pixels" in name else set()), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("state", "model"), FAST)
def test_cost_of_a_plain_row_of_images(
    architecture: str, channels: int, state: torch.dtype, model: torch.dtype
) -> None:
    """Instructions an element: those of the branches that a contiguous row's own loop lacks, and wide accesses."""
    code = kernel(architecture, f"step_channels{mangled(state, model)}Li{channels}E", 1)
    planes, piece = "128" if state == FP32 else "64", channels * model.itemsize * 4
    loads = [f"LDG.E.{planes}"] * channels
    loads += ["LDG.E.128"] * (piece // 16) if piece % 16 == 0 else ["LDG.E.64"] * (piece // 8)
    wide = loads.count("LDG.E.128")
    path = cheapest_pass(code, 4 * channels, channels, wide, len(loads) - wide)
    print(f"{architecture} {state} {model} {channels}: {len(path) / 4 / channels:.1f} instructions an element")
    assert len(path) / 4 / channels <= 48
    assert {op for _, _, op, _ in path if op.startswith("LDG")} == set(loads)
    assert [op for _, _, op, _ in path if op.startswith("STG")] == [f"STG.E.{planes}"] * channels


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cost_of_a_plain_row_with_channels_last(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    """Instructions an element of the loop, with four narrow loads of the model's output for a wide one of the state."""
    features = machine_code.features

    def with_narrow_loads(block: list[Sass]) -> tuple[int, ...]:
        found = list(features(block))
        found[5] = sum(op == "LDG.E" for _, _, op, _ in block)
        return tuple(found)

    monkeypatch.setattr(machine_code, "features", with_narrow_loads)
    path = cheapest_pass(kernel(architecture, PIXELS, 1), 4, 1, 1, 4)
    print(f"{architecture}: {len(path) / 4:.1f} instructions an element")
    assert len(path) / 4 <= 72
    kinds = [op for _, _, op, _ in path if op.startswith(("LDG", "STG"))]
    assert sorted(kinds) == ["LDG.E"] * 4 + ["LDG.E.128", "STG.E.128"]
