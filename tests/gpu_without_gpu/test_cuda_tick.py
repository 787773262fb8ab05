"""The CUDA kernels around the fused step, without a GPU: what their PTX does in any order of blocks, and their code."""

from __future__ import annotations

import math
import re
import struct
from typing import Any

import numpy as np
import pytest
import torch

import cuda_simulator
import ulam_kernels
from bit_comparison import differences
from blend_cases import random_inputs
from cuda_simulator import ARCHITECTURES, MISSING, Device, sass
from ptx_parser import parse
from tick_cases import ORDERS, OUTPUTS, clone_of, expected_of, looked_up, not_finite, random_look_up, random_tick

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
BYTES = {dtype: torch.finfo(dtype).bits // 8 for dtype in OUTPUTS}


@pytest.fixture(scope="module")
def device() -> Device:
    return cuda_simulator.device()


def advance(device: Device, given: dict[str, Any]) -> bool:
    """Whether the kernel does what the rules say; where there are blocks for it, in whatever order they run."""
    expected = expected_of(given)
    done = clone_of(given)
    device.advance(**done)
    return torch.equal(done["cursor"], expected[0]) and torch.equal(done["now"], expected[1])


@pytest.fixture(params=ORDERS)
def ordered(device: Device, request: pytest.FixtureRequest) -> Any:
    device.waves, device.turns = ORDERS[request.param]
    yield device
    device.waves, device.turns = None, range


@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
def test_long_chains_in_any_order_of_blocks(ordered: Device, dtype: torch.dtype) -> None:
    """One block a chain, several, and such whose last block has little or nothing: sizes on either side of a part's."""
    rng = np.random.default_rng([1, OUTPUTS.index(dtype)])
    part = 16 * 1024 // BYTES[dtype]
    for elements in (2048 // BYTES[dtype] + 1, part + 1, 3 * part + 5):
        for chains, bad in ((1, 1.0), (4, 0.4)):
            given = random_tick(rng, chains, (elements,), dtype, guided=bool(rng.random() < 0.5), bad=bad)
            assert advance(ordered, given), (elements, chains)
            assert "advance_long" in ordered.used
            assert ordered.grid[:2] == (chains, -(-elements // part))


def test_parts_are_zero_again_and_the_next_tick_is_right(ordered: Device) -> None:
    rng = np.random.default_rng(2)
    given = random_tick(rng, 4, (10_000,), torch.float32, guided=True)
    for _ in range(3):
        expected = expected_of(given)
        ordered.advance(**given)
        assert torch.equal(given["cursor"], expected[0]) and torch.equal(given["now"], expected[1])
        assert ordered.grid[1] == 3 and not given["cursor"][5].any()


@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
def test_short_chains(device: Device, dtype: torch.dtype) -> None:
    """From one number to 2048 bytes: every width of access, and every number of lanes."""
    rng = np.random.default_rng([3, OUTPUTS.index(dtype)])
    items = set()
    for elements in (1, 2, 3, 4, 6, 8, 12, 16, 33, 63, 64, 100, 255, 2048 // BYTES[dtype]):
        if elements * BYTES[dtype] > 2048:
            continue
        for chains in (1, 300):
            given = random_tick(rng, chains, (elements,), dtype, guided=bool(rng.random() < 0.5), bad=0.2)
            assert advance(device, given), (elements, chains)
            items.add(re.search(r"advance_shortI(\w+?)E", device.used)[1])
    expected = {2: {"5uint4", "5uint2", "j", "t"}, 4: {"5uint4", "5uint2", "j"}, 8: {"5uint4", "5uint2"}}
    assert items == expected[BYTES[dtype]]


def test_without_an_output_rows_are_counted_only(device: Device) -> None:
    rng = np.random.default_rng(4)
    given = random_tick(rng, 700, (1,), torch.float32, guided=False)
    given["model"] = None
    assert advance(device, given)
    given["model"] = torch.zeros(700, 0)
    assert advance(device, given)


@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
@pytest.mark.parametrize("elements", [7, 1500, 9000])
def test_any_address_and_any_distance_of_chains(device: Device, dtype: torch.dtype, elements: int) -> None:
    """Chains that begin anywhere, model and uncond each elsewhere, with what is not finite around them."""
    rng = np.random.default_rng([5, elements])
    for skew, gap in ((1, 0), (3, 2), (0, 1), (2, 8)):
        given = random_tick(rng, 3, (elements,), dtype, guided=True)
        for name, extra in (("model", gap), ("uncond", gap + skew)):
            wide = torch.full((3 * (elements + extra) + 8,), math.nan, dtype=dtype)
            view = wide[skew : skew + 3 * (elements + extra)].view(3, -1)[:, :elements]
            given[name] = view.copy_(given[name])
        assert advance(device, given), (skew, gap)


@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
def test_one_number_stops_its_chain_wherever_it_is(device: Device, dtype: torch.dtype) -> None:
    """At the ends of a chain and of its vectors and parts; the chain begins at an odd address."""
    rng = np.random.default_rng([6, OUTPUTS.index(dtype)])
    elements = 20_000 // BYTES[dtype] + 3
    run, part = 16 // BYTES[dtype], 16 * 1024 // BYTES[dtype]
    places = {
        0,
        1,
        run - 2,
        run - 1,
        run,
        run + 1,
        part - 1,
        part,
        part + run,
        elements - run,
        elements - 2,
        elements - 1,
    }
    for place in sorted(places | set(rng.integers(0, elements, 6).tolist())):
        model = torch.zeros(3 * elements + 1, dtype=dtype)[1:].view(3, elements)
        model[1, place] = not_finite(rng, dtype)
        cursor, now = torch.full((6, 3), 5), torch.zeros(2, 3, dtype=torch.int64)
        cursor[5] = 0
        device.advance(cursor, now, model)
        assert now[0].tolist() == [5, 0, 5], place


@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
@pytest.mark.parametrize("chains, elements, offset", [(3, 20_011, 0), (3, 20_011, 1), (40, 3, 0), (9, 120, 2)])
def test_each_element_is_read_once(device: Device, dtype: torch.dtype, chains: int, elements: int, offset: int) -> None:
    """And uncond not at all at weight 1, where a long chain's block knows it in time."""
    rng = np.random.default_rng(7)
    wide = torch.zeros(chains * elements + offset, dtype=dtype)
    model, uncond = wide[offset:].view(chains, elements), torch.zeros(chains, elements, dtype=dtype)
    given = random_tick(rng, chains, (1,), dtype, guided=True) | {"model": model, "uncond": uncond}
    given["guidance"] = torch.where(torch.arange(chains) == 1, 1.0, 2.0)
    device.advance(**given)
    size = elements * BYTES[dtype]
    reads = device.memory.reads
    for address, output in zip(device.outputs, (model, uncond), strict=True):
        start = address - device.memory.BASE
        counted = reads[start : start + chains * size].reshape(chains, size)
        skipped = output is uncond and size > 2048
        assert (counted == (~(skipped & (np.arange(chains) == 1)))[:, None]).all()


def test_few_long_chains_fill_a_gpu(device: Device) -> None:
    """Eight chains of 196,608 numbers: 384 blocks, which the 132 multiprocessors of an H100 hold at once."""
    for chains, elements, blocks in ((8, 196_608, 384), (1, 196_608, 48), (256, 196_608, 4096), (4096, 3072, 4096)):
        grids: list[tuple[int, ...]] = []

        def record(name: bytes, shape: Any, arguments: Any, grids: list[tuple[int, ...]] = grids) -> None:
            grids.append(tuple(shape[0:6]))

        device.host.set_on_launch(stand_in := type(device.on_launch)(record))
        function = device.host[cuda_simulator.SYMBOLS["advance"]]
        function(struct.pack("<qqQQQQi4xqqQ", chains, elements, 64, 64, 64, 0, 0, elements, elements, 0), 0x57)
        assert stand_in and math.prod(grids[0][:3]) == blocks and grids[0][3] in (192, 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_look_up(device: Device, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(8)
    for chains, rows in ((1, 1), (300, 40), (1000, 7)):
        for limited in (False, True):
            given = random_look_up(rng, chains, rows, dtype, limited)
            expected, weights = looked_up(given)
            device.look_up(**given)
            assert torch.equal(given["out"].nan_to_num(8), expected.nan_to_num(8))
            assert weights is None or torch.equal(given["weight"], weights)
    given = random_look_up(rng, 4, 7, dtype, limited=True)
    given["row"], given["interval"] = torch.tensor([-1, 7, 6, 2**62]), torch.tensor([[-math.inf] * 4, [math.inf] * 4])
    device.look_up(**given)
    absent = given["out"].isnan() if dtype == torch.float32 else given["out"] == -1
    assert absent.tolist() == [True, True, False, True]
    assert torch.equal(given["weight"], torch.where(absent, 1.0, given["guidance"]))


def test_a_whole_time_is_rounded_once(device: Device) -> None:
    times, bound = torch.tensor([2**24 + 1, 2**53 + 2**29 + 1]), torch.tensor([2.0**24, 2.0**53 + 2.0**30])
    out, weight = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    device.look_up(times, torch.arange(2), out, torch.tensor([3.0, 4.0]), torch.stack([bound, bound]), weight)
    assert torch.equal(out, times) and weight.tolist() == [3, 4]


@pytest.mark.parametrize("shape", [(2,), (3, 40), (1, 1001)])
def test_blend_by_row(device: Device, shape: tuple[int, ...]) -> None:
    """The bits of the CPU, and NaN where a row is outside the tables, in the network's input too."""
    rng = np.random.default_rng(9)
    inputs: dict[str, Any] = random_inputs(rng, shape)
    inputs |= {name: torch.from_numpy(rng.normal(size=9)).float() for name in ("a", "b", "c_next")}
    inputs["a"][1::3], inputs["b"][1::2] = 0, 0
    inputs["row"], start = torch.from_numpy(rng.integers(0, 9, 6)), torch.from_numpy(rng.normal(size=(1, 6, *shape)))
    states, nets = [start.float(), start.float()], torch.full((2, 6, *shape), math.nan)
    ulam_kernels.blend(states[0], **inputs, stage=3, net_in=nets[0], backend="cpu")
    device.blend(states[1], **inputs, stage=3, net_in=nets[1])
    assert differences(*states) == 0 and differences(*nets) == 0
    inputs["row"][1], inputs["row"][4] = 9, -1
    device.blend(states[1], **inputs, net_in=nets[1].fill_(5.0))
    assert states[1].isnan().flatten(2).all(2).tolist() == [[False, True, False, False, True, False]]
    assert nets[1].isnan().flatten(1).all(1).tolist() == [False, True, False, False, True, False]


# Changes of the PTX behind the atomic, or of what it adds, that tests must notice.
FAULTS = {
    "every block counts on": (r"(atom\.acq_rel.*?)@%p\d+ bra [^;]*;", r"\1"),
    "parts are not set to 0 again": (r"(atom\.acq_rel.*?)st\.global\.u64 [^;]*;", r"\1"),
    "other blocks' failures are not read": (
        r"(atom\.acq_rel.*?setp\.gt\.u64[^;]*), 4294967295;",
        r"\1, 4611686018427387904;",
    ),
    "failures are not told": (r"4294967297, 1, ", "1, 1, "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(device: Device, fault: str) -> None:
    pattern, put = FAULTS[fault]
    kernel = next(part for part in cuda_simulator.ptx().split(".visible")[1:] if "advance_long" in part)
    altered, count = re.subn(pattern, put, kernel, count=1, flags=re.S)
    assert count == 1
    for text, well in ((kernel, True), (altered, False)):
        changed = Device(device.library, parse(text))
        changed.waves = np.arange
        given = random_tick(np.random.default_rng(10), 6, (9000,), torch.float32, guided=False, bad=0.6)
        right = [advance(changed, given)]
        changed.advance(**given)
        right.append(advance(changed, given) and not given["cursor"][5].any())
        assert all(right) == well


# --- Machine code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code(architecture: str) -> None:
    """No local memory, no arithmetic of floats; vectors of 16 bytes; one atomic, in order, where there are parts."""
    kernels = {n: code for n, code in sass(architecture).items() if re.search(r"\d(advance|look_up)_", n)}
    assert len(kernels) == 1 + 4 + 2
    for name, code in kernels.items():
        operations = [op for _, _, op, _ in code]
        assert not [op for op in operations if op.startswith(("LDL", "STL"))], name
        assert not [op for op in operations if re.match(r"(F|D|H)(ADD|MUL|FMA)|MUFU", op)], name
        atomics = [op for op in operations if op.startswith(("ATOM", "RED"))]
        wide = [op for op in operations if op.startswith("LDG.E.128")]
        if "advance_long" in name:
            assert len(atomics) == 1 and re.match(r"ATOMG?\.E\.ADD\.64\.STRONG\.GPU", atomics[0])
            at = operations.index(atomics[0])
            assert [op for op in operations[at - 8 : at] if op.startswith("MEMBAR")]
            assert [op for op in operations[at : at + 8] if op.startswith("CCTL.IVALL")]
        else:
            assert not atomics, name
        assert bool(wide) == ("advance_long" in name or "uint4" in name), name


def test_the_counter_is_added_to_in_order() -> None:
    """And nothing else in global memory is, but squares by the kernels that record: whole numbers, in any order."""
    recording = 0
    for kernel in cuda_simulator.ptx().split(".visible .entry ")[1:]:
        name = kernel.split("(", 1)[0]
        found = re.findall(r"(?<![\w.])(?:atom|red)\.(?!shared)\S+", kernel)
        if "advance_long" in name:
            assert found == ["atom.acq_rel.gpu.global.add.u64"]
        elif re.search(r"ELb1EEEvNS_4StepE", name):
            assert set(found) == {"atom.global.or.b64", "atom.global.add.u64"}, name
            recording += 1
        else:
            assert not found, name
    assert recording == 65
