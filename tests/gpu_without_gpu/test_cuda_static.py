"""The CUDA kernels without a GPU: what they compile to, and what their PTX computes (see ``cuda_simulator``)."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
import pytest
import torch
from bench.sass import WIDE_SLOTS, cheapest_pass, counts_an_element

import cuda_simulator
import ulam_kernels
from bit_comparison import differences
from cuda_cases import FAST, plain_row
from cuda_simulator import ARCHITECTURES, BF16, CUOBJDUMP, FP16, FP32, MISSING, NUMBERS, Device, sass
from ptx_parser import Instruction, parse
from reduce_cases import table_of
from ulam_kernels import Table

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def ptx() -> str:
    return cuda_simulator.ptx()


@pytest.fixture(scope="module")
def device() -> Device:
    return cuda_simulator.device()


def random_table(registers: int, rng: np.random.Generator, rows: int = 16) -> Table:
    """Rows with all that a row can have, present and absent; row 0 is idle."""
    matrix = rng.normal(size=(rows, registers, registers + 3)) * (rng.random((rows, registers, registers + 3)) < 0.7)
    writes = rng.random((rows, registers)) < 0.8
    writes[0] = False
    clip = np.where(rng.random(rows) < 0.5, np.inf, 0.7)
    kx, km, c_next = (rng.normal(size=rows) * (rng.random(rows) < 0.9) for _ in range(3))
    learned, kind = rng.random(rows) < 0.4, rng.integers(0, 6, rows)
    threshold, normalise = kind == 1, (kind == 2) & ~learned
    lo, hi = np.where(normalise, -np.inf, -clip), np.where(normalise, np.inf, clip)
    lo, hi = np.where(threshold, 0.9, lo), np.where(threshold, np.inf, hi)
    lv_m, lv_b = rng.normal(size=rows) * 0.5, rng.normal(size=rows) * 0.1
    flags = {"threshold": threshold, "normalise": normalise}
    return Table.pack(kx, km, lo, hi, lv_m, lv_b, c_next, matrix, writes, learned, **flags)


def ids(chains: int, rng: np.random.Generator, most: int = 2**63) -> torch.Tensor:
    return torch.from_numpy(rng.integers(-most if most == 2**63 else 0, most, chains))


def random_step(shape: tuple[int, ...], chains: int, state: torch.dtype, model: torch.dtype, net: torch.dtype,
                rng: np.random.Generator, explicit: bool = False, guided: bool = True) -> dict[str, Any]:  # fmt: skip
    """The arguments of a step, without the state and the table."""
    doubled = (chains, 2 * shape[0], *shape[1:])
    normal = lambda *size: torch.from_numpy(rng.normal(size=size).astype(np.float32))  # noqa: E731
    weights = rng.choice([0.0, 1.0, 2.5, -1.0, 0.3], size=chains).astype(np.float32)
    return {
        "model": normal(*doubled).to(model),
        "uncond": normal(*doubled).to(model) if guided else None,
        "guidance": torch.from_numpy(weights) if guided else None,
        "seed": ids(chains, rng),
        "chain": ids(chains, rng),
        "draw": ids(chains, rng, 2**40),
        "noise": normal(chains, *shape) if explicit else None,
        "net_in": torch.full((chains, *shape), 7.0, dtype=net),
        "source": normal(chains, *shape).to(state) if explicit else None,
        "scales": (normal(chains, 4) * torch.tensor([0.5, 0.5, 1, 1])).add(torch.tensor([-2.0, 2, 0, 0])),
    }


def assert_step_equal(device: Device, state: torch.Tensor, table: Table, row: torch.Tensor, given: dict[str, Any],
                      skew: int = 0) -> None:  # fmt: skip
    expected, expected_net = state.clone(), given["net_in"].clone()
    ulam_kernels.step(expected, table, row, backend="cpu", **{**given, "net_in": expected_net})
    net = given["net_in"].clone()
    device.step(state, table, row, skew=skew, **{**given, "net_in": net})
    assert differences(expected, state) == 0
    assert differences(expected_net, net) == 0


@pytest.mark.parametrize("registers", range(1, 6))
@pytest.mark.parametrize(("state", "model"), FAST)
def test_long_chains_have_the_bits_of_the_cpu(
    device: Device, registers: int, state: torch.dtype, model: torch.dtype
) -> None:
    """At least 10^5 elements of every aligned variant: all rows of a table, tails of a chain and of a warp."""
    rng = np.random.default_rng([registers, NUMBERS[state], NUMBERS[model]])
    table = random_table(registers, rng)
    total = 0
    for shape, chains, explicit in (((2, 24, 54), 32, False), ((3, 8, 11), 16, True), ((1, 1096), 16, False)):
        values = torch.from_numpy(rng.normal(size=(registers, chains, *shape))).to(state)
        row = torch.from_numpy(rng.permutation(np.arange(chains) % len(table)))
        net = [FP32, BF16, FP16][int(rng.integers(3))]
        given = random_step(shape, chains, state, model, net, rng, explicit, guided=chains > 16)
        assert_step_equal(device, values, table, row, given)
        assert "step_vectors" in device.used
        total += values[0].numel()
    assert total >= 100_000


@pytest.mark.parametrize("registers", range(1, 6))
def test_other_chains_have_the_bits_of_the_cpu(device: Device, registers: int) -> None:
    """At least 10^5 elements of the variant for any type: short chains, odd sizes, mixed types, misaligned buffers."""
    rng = np.random.default_rng([7, registers])
    table = random_table(registers, rng)
    cases = [
        ((1, 2), 6000, FP32, FP32, FP32, 0), ((32,), 1000, FP32, FP32, BF16, 0), ((3, 7), 500, BF16, BF16, FP16, 0),
        ((1,), 900, FP16, FP16, FP32, 0), ((6,), 600, BF16, BF16, BF16, 0), ((2, 3, 171), 12, FP32, FP32, FP32, 0),
        ((1, 1023), 12, FP16, FP32, BF16, 0), ((1, 2050), 6, BF16, FP32, FP16, 0), ((4, 256), 8, FP32, BF16, FP32, 4),
        ((1, 512), 8, BF16, BF16, BF16, 2), ((4, 64), 60, FP32, FP16, FP32, 8), ((1, 516), 8, FP16, FP16, FP16, 0),
        ((1, 257), 2050, BF16, BF16, BF16, 0), ((1, 258), 2050, FP16, FP16, BF16, 0),
    ]  # fmt: skip
    total = 0
    for shape, chains, state, model, net, skew in cases:
        values = torch.from_numpy(rng.normal(size=(registers, chains, *shape))).to(state)
        row = torch.from_numpy(rng.integers(0, len(table), chains))
        given = random_step(shape, chains, state, model, net, rng, explicit=bool(rng.random() < 0.2))
        assert_step_equal(device, values, table, row, given, skew)
        assert ("step_quads" if chains * shape[-1] > 500_000 else "step_short") in device.used
        total += values[0].numel()
    assert total >= 100_000


def plain_step(device: Device, chains: int, elements: int, dtype: torch.dtype = FP32) -> int:
    """Elements that differ from the CPU after a plain row."""
    rng = np.random.default_rng(5)
    values = torch.from_numpy(rng.normal(size=(1, chains, elements))).to(dtype)
    expected, row = values.clone(), torch.zeros(chains, dtype=torch.int64)
    given = {"model": torch.from_numpy(rng.normal(size=(chains, elements))).to(dtype)}
    given |= {name: ids(chains, rng, 2**32) for name in ("seed", "chain", "draw")}
    ulam_kernels.step(expected, plain_row(), row, backend="cpu", **given)
    device.step(values, plain_row(), row, **given)
    return differences(expected, values)


def test_any_reciprocal_root_within_the_bound_gives_the_same_bits(device: Device) -> None:
    """rsqrt.approx is not specified to the bit: up to two units off either way must not show."""
    rng = np.random.default_rng(0)
    device.rsqrt = lambda y: (y.view(np.int32) + rng.integers(-2, 3, y.shape).astype(np.int32)).view(np.float32)
    try:
        assert plain_step(device, 26, 4096) == 0
    finally:
        device.rsqrt = None


def test_model_may_be_the_state_itself(device: Device) -> None:
    rng = np.random.default_rng(1)
    values = torch.from_numpy(rng.normal(size=(1, 3, 2000)).astype(np.float32))
    given = {name: ids(3, rng) for name in ("seed", "chain", "draw")}
    expected, row = values.clone(), torch.zeros(3, dtype=torch.int64)
    ulam_kernels.step(expected, plain_row(), row, model=expected[0].clone(), backend="cpu", **given)
    device.step(values, plain_row(), row, model=values[0].clone(), alias=True, **given)
    assert differences(expected, values) == 0


@pytest.mark.parametrize("elements", [1024, 6])
def test_a_row_that_cannot_be_executed_writes_nan(device: Device, elements: int) -> None:
    rng = np.random.default_rng(2)
    given = {name: ids(4, rng) for name in ("seed", "chain", "draw")}
    model = torch.zeros(4, elements)
    for row, args in (([0, 1, -1, 2**40], {**given, "model": model}), ([0] * 4, given), ([0] * 4, {"model": model})):
        values = torch.ones(1, 4, elements)
        device.step(values, plain_row(), torch.tensor(row), **args)
        whole = "model" in args and "seed" in args
        assert values.isnan().flatten(2).all(2).tolist() == [[not whole, True, True, True]]
    values = torch.ones(1, 4, elements)
    table = table_of(["threshold", "plain", "normalise", "clip"])
    device.step(values, table, torch.arange(4), **given, model=model)  # without scales
    assert values.isnan().flatten(2).all(2).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_fill_has_the_bits_of_the_cpu(device: Device, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(3)
    total = 0
    cases = [
        (4096, 20, 0, 0), (1032, 8, 8, 0), (1200, 8, 5, 0), (999, 8, 4, 0), (2, 2000, 0, 0), (3, 500, 2, 0),
        (7, 300, 3, 0), (640, 4, 1 << 20, 4), (1, 300, 1, 0),
    ]  # fmt: skip
    for elements, chains, offset, skew in cases:
        expected = torch.full((chains, elements), float("nan"), dtype=dtype)
        out = expected.clone()
        names = {name: ids(chains, rng) for name in ("seed", "chain", "draw")}
        ulam_kernels.fill_normal(expected, tag=1, scale=1.5, offset=offset, backend="cpu", **names)
        device.fill_normal(out, **names, tag=1, scale=1.5, offset=offset, skew=skew)
        assert differences(expected, out) == 0, (elements, offset)
        total += out.numel()
    assert total >= 100_000


@pytest.mark.parametrize(("x_type", "m_type", "out_type"), [(s, m, s) for s, m in FAST] + [(BF16, FP32, FP16)])
def test_affine_has_the_bits_of_the_cpu(
    device: Device, x_type: torch.dtype, m_type: torch.dtype, out_type: torch.dtype
) -> None:
    rng = np.random.default_rng(4)
    total = 0
    for elements, chains in ((4104, 24), (513, 9), (2, 500), (100, 30)):
        x, m = (torch.from_numpy(rng.normal(size=(chains, elements))).to(t) for t in (x_type, m_type))
        factors = rng.normal(size=(2, chains)).astype(np.float32) * (rng.random((2, chains)) < 0.7)
        a, b = (torch.from_numpy(f.astype(np.float32)) for f in factors)
        expected = torch.empty(chains, elements, dtype=out_type)
        out = torch.full_like(expected, float("nan"))
        ulam_kernels.affine(x, m, a, b, expected, backend="cpu")
        device.affine(x, m, a, b, out)
        assert differences(expected, out) == 0
        total += out.numel()
    assert total >= 100_000


def test_a_launch_that_fails_names_operation_and_shapes(device: Device) -> None:
    expected = "affine: could not launch on 3000000000000 chains of 4 elements: the stand-in refuses"
    with pytest.raises(RuntimeError, match=expected):
        device.call("affine", struct.pack("<qqQQQiii4xQQ", 3 * 10**12, 4, 16, 16, 16, 0, 0, 0, 16, 16))


# Constants of the noise as PTX spells them, each altered in its last bit.
CONSTANTS = {
    "Philox multiplier": ("-766435501", "-766435499"),
    "Philox key increment": ("-1640531527", "-1640531528"),
    "uniform scale": ("0f2F7FFFFF", "0f2F800000"),
    "ln polynomial": ("0fBE8F544D", "0fBE8F544E"),
    "ln 2": ("0fB4317218", "0fB4317219"),
    "sine": ("0fBF255DD1", "0fBF255DD0"),
    "cosine": ("0fBF9DE9E6", "0fBF9DE9E7"),
}


@pytest.mark.parametrize("what", CONSTANTS)
def test_an_altered_constant_is_noticed(device: Device, ptx: str, what: str) -> None:
    constant, altered = CONSTANTS[what]
    assert constant in ptx
    changed = Device(device.library, parse(plain_kernel(ptx).replace(constant, altered)))
    assert plain_step(changed, 25, 4096) > 0


def plain_kernel(ptx: str) -> str:
    """The constants and the kernel of fp32 with one register."""
    start = ptx.index(".visible .entry _ZN4ulam4cuda12step_vectorsINS0_7Float32ES2_Li1ELb0E")
    constants = "\n".join(re.findall(r"\.global[^;=]*?= \{[^}]*\};", ptx))
    return constants + "\n" + ptx[start : ptx.index("\n}", start) + 2]


def test_an_altered_rounding_is_noticed(device: Device, ptx: str) -> None:
    """A fused multiply-add made a product and a sum, one at a time.

    Those of the row itself all show. Some of the noise cannot: a correction far below the last bit, say.
    """
    text = plain_kernel(ptx)
    assert plain_step(device, 25, 4096) == 0
    executed = zip(device.kernels[device.used].code, device.executed, strict=True)
    fused = [instruction for instruction, threads in executed if instruction.name == "fma" and threads]
    assert len(fused) == 4 * 25 + 16  # 25 for two normals, and two for each of eight elements

    def noticed(instruction: Instruction) -> bool:
        d, a, b, c = instruction.operands
        split = f"mul.rn.f32 %split0, {a}, {b}; add.rn.f32 {d}, %split0, {c}"
        altered = text.replace(instruction.text, split).replace(".reg .pred", ".reg .f32 %split<1>;\n.reg .pred", 1)
        assert altered.count("%split0") == 2
        return plain_step(Device(device.library, parse(altered)), 25, 4096) > 0

    assert all(map(noticed, fused[-16::5]))
    assert sum(map(noticed, fused[:-16:12])) >= 4


# --- Machine code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code(architecture: str) -> None:
    """No local memory, and no approximate instruction but the reciprocal root that the noise standard allows."""
    of_name = re.compile(r"\d(step|fill|affine|reduce|blend)_(vectors|quads|chain)")
    kernels = {name: code for name, code in sass(architecture).items() if of_name.search(name)}
    assert len(kernels) == 2 * 30 + 4 + 6 + 1 + 4 + 8
    if architecture == "sm_80":  # has no clusters: what is compiled for them is empty there
        empty = [name for name in kernels if "reduce_chainILi8E" in name]
        assert len(empty) == 2 and all(len(kernels.pop(name)) < 32 for name in empty)
    for name, code in kernels.items():
        operations = {op for _, _, op, _ in code}
        assert not [op for op in operations if op.startswith(("LDL", "STL"))], name
        allowed = set() if "affine" in name else {"MUFU.RSQ"}
        if "reduce" in name:  # the beginnings of correctly rounded quotients and roots
            allowed |= {"MUFU.RCP", "MUFU.RCP64H", "MUFU.RSQ64H"}
        assert {op for op in operations if op.startswith("MUFU")} == allowed, name
        if "vectors" in name:
            assert "STG.E.128" in operations and ("fill" in name or "LDG.E.128" in operations), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("types", "accesses", "budget"),
    [
        ("7Float32ES2_", ["LDG.E.128"] * 4 + ["STG.E.128"] * 2, 40),
        ("7Float32ENS0_8BFloat16E", ["LDG.E.64"] * 2 + ["LDG.E.128"] * 2 + ["STG.E.128"] * 2, 40),
        ("8BFloat16ES2_", ["LDG.E.128"] * 2 + ["STG.E.128"], 40),
        ("7Float16ES2_", ["LDG.E.128"] * 2 + ["STG.E.128"], 40),
    ],
)
def test_cost_of_a_plain_row(architecture: str, types: str, accesses: list[str], budget: int) -> None:
    """Instructions an element in the loop of a plain DDPM row with noise, and the width of its accesses."""
    kernels = sass(architecture).items()
    code = next(code for name, code in kernels if f"step_vectorsINS0_{types}Li1ELb0E" in name)
    stores, loads16, loads8 = (accesses.count(kind) for kind in ("STG.E.128", "LDG.E.128", "LDG.E.64"))
    path = cheapest_pass(code, 8, stores, loads16, loads8)
    print(f"{architecture} {types}: {len(path) / 8:.1f} instructions an element")
    assert len(path) / 8 <= budget
    assert {op for _, _, op, _ in path if op.startswith(("LDG", "STG"))} == set(accesses)


def test_counted_instructions_are_those_of_the_kernels() -> None:
    """What `bench.gpu` makes limits of: more for a row than for the noise alone, and for halves, which are unpacked."""
    counts = counts_an_element(cuda_simulator.build() / "machine.so", "sm_90", str(CUOBJDUMP))
    counted = {name: count.instructions for name, count in counts.items()}
    plain, half = counted["step float32 float32"], counted["step bfloat16 bfloat16"]
    assert 30 < counted["fill float32"] <= plain <= counted["step float32 bfloat16"] < half <= 40
    assert 30 < counted["fill bfloat16"] < half
    for count in counts.values():  # 37 wide products make the words of eight normals
        assert count.slots == pytest.approx(count.instructions + (WIDE_SLOTS - 1) * 37 / 8, rel=0.02)
