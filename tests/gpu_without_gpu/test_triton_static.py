"""The Triton kernels without a GPU: what they compile to, and what that computes (see ``triton_simulator``)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402

from triton_simulator import cuda, simulated  # noqa: E402
from ulam_kernels import Table, cpu  # noqa: E402
from ulam_kernels.table import NORMALISE, READS_Z, THRESHOLD  # noqa: E402
from ulam_kernels.triton.affine import affine  # noqa: E402
from ulam_kernels.triton.fill import fill_normal  # noqa: E402
from ulam_kernels.triton.step import step  # noqa: E402

ARCHITECTURES = (80, 90, 100)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Case = dict[str, Any]


# Random cases.


def random_table(
    rng: np.random.Generator, registers: int, learned: bool, scaled: bool = False, rows: int = 12
) -> Table:
    """Rows with terms missing at random; row 0 is idle; ``scaled`` gives some of them a reduction."""
    shape = (rows, registers, registers + 3)
    matrix = rng.normal(size=shape) * (rng.random(shape) < 0.7)
    writes = rng.random((rows, registers)) < 0.8
    writes[0] = False
    bound = np.where(rng.random(rows) < 0.5, np.inf, 0.7)
    kx, km = (rng.normal(size=rows) * (rng.random(rows) < 0.8) for _ in range(2))
    lv_m, lv_b, c_next = rng.normal(size=rows) * 0.5, rng.normal(size=rows), rng.normal(size=rows)
    learns = (rng.random(rows) < 0.4) & learned
    kind = rng.integers(0, 3, rows) * scaled
    threshold, normalise = kind == 1, (kind == 2) & ~learns
    bound[normalise] = np.inf
    lo, hi = np.where(threshold, 0.9, -bound), np.where(threshold, np.inf, bound)
    flags = {"threshold": threshold, "normalise": normalise}
    return Table.pack(kx, km, lo, hi, lv_m, lv_b, c_next, matrix, writes, learns, **flags)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    values = torch.from_numpy(rng.normal(size=shape)).to(dtype)
    values.view(-1)[: values.numel() // 50] = 0
    return values


def random_scales(rng: np.random.Generator, chains: int) -> torch.Tensor:
    """(lo, hi, D_scale, z_scale) ``[chains, 4]``, as a reduction leaves them."""
    hi, scale = rng.uniform(0.2, 2, (2, chains))
    return torch.from_numpy(np.stack([-hi, hi, scale, np.sqrt(scale)], axis=1)).float()


@dataclass(frozen=True)
class Variant:
    """One way in which the step is compiled."""

    registers: int = 1
    types: tuple[torch.dtype, torch.dtype, torch.dtype] = (torch.float32,) * 3  # state, model, net_in
    guided: bool = False
    learned: bool = False
    net_in: bool = False
    noise: str = "generated"  # or "given"
    scaled: bool = False
    source: bool = False

    def __str__(self) -> str:
        types = [str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(self.types)]
        options = [name for name in ("guided", "learned", "net_in", "scaled", "source") if getattr(self, name)]
        return "-".join([f"R{self.registers}", *types, *options, f"noise_{self.noise}"])

    def case(self, rng: np.random.Generator, chains: int, n: int) -> Case:
        """Random arguments of a backend's ``step``."""
        table = random_table(rng, self.registers, self.learned, self.scaled)
        shape = (chains, 2 if self.learned else 1, n)
        ids = {name: torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, chains)) for name in ("seed", "chain", "draw")}
        ids["draw"][::3] &= 0xFFFFFFFF
        ids["draw"][1::3] &= 2**40 - 1
        weights = torch.tensor([0.0, 1.0, 2.5, -1.0]).repeat(-(-chains // 4))[:chains].contiguous()
        given = ids if self.noise == "generated" else {}
        return {
            "state": normal(rng, (self.registers, chains, 1, n), self.types[0]),
            "coef": table.coef,
            "flags": table.flags,
            "row": torch.from_numpy(rng.integers(0, len(table), chains)),
            "model": normal(rng, shape, self.types[1]),
            "uncond": normal(rng, shape, self.types[1]) if self.guided else None,
            "guidance": weights if self.guided else None,
            **{name: given.get(name) for name in ("seed", "chain", "draw")},
            "noise": normal(rng, (chains, 1, n), torch.float32) if self.noise == "given" else None,
            "net_in": torch.full((chains, 1, n), float("nan"), dtype=self.types[2]) if self.net_in else None,
            "scales": random_scales(rng, chains) if self.scaled else None,
            "source": normal(rng, (chains, 1, n), self.types[0]) if self.source else None,
        }


SAME = {dtype: (dtype,) * 3 for dtype in FLOATS}
MIXED = (torch.float32, torch.bfloat16, torch.float16)
PLAIN = [Variant(types=SAME[dtype]) for dtype in FLOATS]
VARIANTS = [
    *PLAIN,
    Variant(types=MIXED, net_in=True),
    Variant(noise="given", net_in=True),
    *(Variant(registers, guided=True, learned=True, net_in=True) for registers in range(1, 6)),
    *(Variant(registers, SAME[torch.bfloat16], guided=True, learned=True, net_in=True) for registers in (1, 5)),
    Variant(3, SAME[torch.float16], guided=True),
    Variant(5, MIXED),
    Variant(scaled=True),
    Variant(noise="given", source=True),
    Variant(3, MIXED, net_in=True, source=True),
    Variant(2, MIXED, guided=True, learned=True, net_in=True, noise="given", scaled=True),
]


def copy_of(case: Case) -> Case:
    return {name: value.clone() if torch.is_tensor(value) else value for name, value in case.items()}


def same_bits(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Equal bit for bit; any NaN equals any NaN."""
    if a is None or b is None:
        return a is b
    integer = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return bool(((a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())).all())


# What is computed.


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("chains, n", [(9, 11_120), (3001, 34)], ids=["long", "short"])
def test_ptx_of_the_step_gives_the_bits_of_the_cpu(variant: Variant, chains: int, n: int) -> None:
    """At least 10^5 elements; the first of them also at a length that forbids wide accesses."""
    rng = np.random.default_rng([chains, VARIANTS.index(variant)])
    sizes = [(chains, n)] if variant not in PLAIN else [(chains, n), (7, 1027), (13, 7), (1, 513)]
    for chains, n in sizes:
        case = variant.case(rng, chains, n)
        expected = copy_of(case)
        cpu.step(**expected)
        with simulated(cuda(90), execute=True):
            step(**case)
        assert same_bits(case["state"], expected["state"])
        assert same_bits(case["net_in"], expected["net_in"])


def fill_case(rng: np.random.Generator, chains: int, n: int, dtype: torch.dtype, **options: Any) -> Case:
    ids = {name: torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, chains)) for name in ("seed", "chain", "draw")}
    ids["draw"][::2] &= 0xFFFFFFFF
    out = torch.full((chains, n), float("nan"), dtype=dtype)
    return {"out": out, **ids, **({"tag": 0, "scale": 1.0, "offset": 0} | options)}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("chains, n, offset", [(9, 11_120, 8), (3001, 34, 0), (2, 1027, 5), (5, 9, 1022), (3, 512, 3)])
def test_ptx_of_the_fill_gives_the_bits_of_the_cpu(dtype: torch.dtype, chains: int, n: int, offset: int) -> None:
    rng = np.random.default_rng([chains, FLOATS.index(dtype)])
    for tag, scale in ((0, 1.0), (3, -0.37)):
        case = fill_case(rng, chains, n, dtype, tag=tag, scale=scale, offset=offset)
        expected = copy_of(case)
        cpu.fill_normal(**expected)
        with simulated(cuda(90), execute=True):
            fill_normal(**case)
        assert same_bits(case["out"], expected["out"])


@pytest.mark.parametrize("types", [*SAME.values(), MIXED], ids=str)
@pytest.mark.parametrize("chains, n", [(9, 11_120), (3000, 34), (5, 1027), (7, 9)])
def test_ptx_of_affine_gives_the_bits_of_the_cpu(types: tuple[torch.dtype, ...], chains: int, n: int) -> None:
    rng = np.random.default_rng([chains, n])
    x, m = (normal(rng, (chains, n), dtype) for dtype in types[:2])
    a, b = (torch.from_numpy(rng.normal(size=chains) * (rng.random(chains) < 0.7)).float() for _ in range(2))
    x[a == 0], m[b == 0] = float("nan"), float("nan")
    outs = [torch.full((chains, n), float("nan"), dtype=types[2]) for _ in range(2)]
    cpu.affine(x, m, a, b, outs[0])
    with simulated(cuda(90), execute=True):
        affine(x, m, a, b, outs[1])
    assert same_bits(*outs)


def one_constant_changed(ptx: str) -> str:
    """pi / 2 of the sine's polynomial, off by one unit in the last place."""
    assert "0f3FC90FDA" in ptx
    return ptx.replace("0f3FC90FDA", "0f3FC90FDB")


def one_rounding_added(ptx: str) -> str:
    """One step of the logarithm's polynomial as a product and a sum."""
    altered = re.sub(
        r"fma\.rn\.f32\s+(%\w+), (%\w+), (%\w+), 0f3F7FFFEB;",
        r"mul.rn.f32 \1, \2, \3; add.rn.f32 \1, \1, 0f3F7FFFEB;",
        ptx,
    )
    assert altered != ptx
    return altered


@pytest.mark.parametrize("alter", [one_constant_changed, one_rounding_added])
def test_an_altered_kernel_is_caught(alter: Callable[[str], str]) -> None:
    """The checks above can fail: the same comparison of an altered kernel finds different bits."""
    case = PLAIN[0].case(np.random.default_rng(3), 9, 11_120)
    case["row"] = ((case["flags"] & READS_Z) != 0).nonzero()[0].repeat(9)
    expected = copy_of(case)
    cpu.step(**expected)
    with simulated(cuda(90), execute=True, alter=alter):
        step(**case)
    assert not same_bits(case["state"], expected["state"])


def test_rows_that_cannot_be_executed_make_their_chain_nan() -> None:
    """A row outside the table, or one that reads what was not given, and no other chain."""
    case = Variant(2).case(np.random.default_rng(4), 5, 600)
    case["flags"] |= 3
    case["row"] = torch.tensor([1, -1, 2, 12, 3])
    expected = copy_of(case)
    expected["row"] = torch.tensor([1, 1, 2, 2, 3])
    cpu.step(**expected)
    with simulated(cuda(90), execute=True):
        step(**case)
        assert case["state"][:, [1, 3]].isnan().all()
        assert same_bits(case["state"][:, [0, 2, 4]].contiguous(), expected["state"][:, [0, 2, 4]].contiguous())
        for flag, without in ((READS_Z, "seed"), (THRESHOLD, "scales"), (NORMALISE, "scales")):
            case = Variant(scaled=True).case(np.random.default_rng(6), 4, 9) | {without: None}
            case["row"] = ((case["flags"] & flag) != 0).nonzero()[0].repeat(4)
            step(**case)
            assert case["state"].isnan().all()


# What is compiled.


@cache
def compiled(variant: Variant, n: int, target: GPUTarget) -> Any:
    """The step's kernel for this target, compiled by the launch code."""
    with simulated(target) as gpu:
        step(**variant.case(np.random.default_rng(0), 2, n))
    return gpu.compiled[0]


@cache
def compiled_others(target: GPUTarget) -> dict[str, Any]:
    """The kernels of the fill and of affine."""
    rng = np.random.default_rng(0)
    found = {}
    with simulated(target) as gpu:
        for n in (8, 2048):
            for dtype in FLOATS:
                fill_normal(**fill_case(rng, 4, n, dtype))
                found[f"fill-{n}-{dtype}"] = gpu.compiled[-1]
            for types in (*SAME.values(), MIXED):
                x, m, out = (torch.empty(4, n, dtype=dtype) for dtype in types)
                affine(x, m, torch.ones(4), torch.ones(4), out)
                found[f"affine-{n}-{types}"] = gpu.compiled[-1]
    return found


def disassemble(kernel: Any, directory: Any) -> list[str]:
    """The machine instructions of a compiled kernel."""
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_step_compiles_without_spills(variant: Variant, architecture: int, tmp_path: Any) -> None:
    for n in (8, 2048):
        # the assembler of Triton 3.7 keeps one word of the fullest variant in local memory there
        fullest = architecture == 100 and variant.scaled and variant.guided and variant.learned
        names = check_kernel(compiled(variant, n, cuda(architecture)), tmp_path, spilled=int(fullest))
        assert any(name.startswith("LDG") for name in names)
        if n == 2048:  # every access to a tensor is 16 bytes wide; the narrow ones are ids and coefficients
            assert {name for name in names if name.startswith("STG")} <= WIDE_STORES[variant.types[2 * variant.net_in]]
            assert [name for name in names if name.startswith("LDG.E.128")]


WIDE_STORES = {torch.float32: {"STG.E.128"}, torch.bfloat16: {"STG.E.128"}, torch.float16: {"STG.E.128", "STG.E.64"}}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fill_and_affine_compile_without_spills(architecture: int, tmp_path: Any) -> None:
    for kernel in compiled_others(cuda(architecture)).values():
        names = check_kernel(kernel, tmp_path)
        assert [name for name in names if name.startswith("STG.E.128")] or "short" in kernel.metadata.name


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


@pytest.mark.parametrize("dtype, budget", [(torch.float32, 60), (torch.bfloat16, 54), (torch.float16, 54)], ids=str)
def test_instructions_of_a_plain_row_are_within_the_budget(dtype: torch.dtype, budget: int, tmp_path: Any) -> None:
    kernel = compiled(Variant(types=SAME[dtype]), 2048, cuda(90))
    each = executed(disassemble(kernel, tmp_path)) * 32 * kernel.metadata.num_warps / 1024
    print(f"{dtype}: {each:.1f} instructions an element")
    assert 35 < each <= budget


def test_nothing_is_compiled_again_when_sizes_or_seeds_change() -> None:
    rng = np.random.default_rng(6)
    long = ((1, 1024), (2, 2048), (16, 3072), (17, 520), (70_000, 1032))
    short = ((1, 8), (2, 16), (16, 256), (1_000_003, 512))
    with simulated(cuda(90)) as gpu:
        for chains, n in (*long, *short):
            case = PLAIN[0].case(rng, 1, n)  # of many chains, which nobody reads, only the shape
            step(
                **{**case, "state": case["state"].expand(1, chains, 1, n), "model": case["model"].expand(chains, 1, n)}
            )
        for offset, scale, tag in ((0, 1.0, 0), (16, 0.5, 1), (8, 3.0, 2)):
            case = fill_case(rng, 3, 1024, torch.float32, offset=offset, scale=scale, tag=tag)
            fill_normal(**case)
            slices = {name: torch.cat([case[name][:1], case[name]])[1:] for name in ("seed", "chain", "draw")}
            fill_normal(**{**case, **slices})  # as when chains enter slots at any place: not 16-byte aligned
        for chains, n in ((1, 8), (3, 64), (40, 512)):
            affine(
                *(torch.ones(chains, n) for _ in range(2)),
                *(torch.ones(chains) for _ in range(2)),
                torch.ones(chains, n),
            )
    names = [kernel.metadata.name for kernel in gpu.compiled]
    assert len({id(kernel) for kernel in gpu.compiled}) == len(set(names)) == 4


@pytest.mark.parametrize("variant", [*PLAIN, Variant(3, MIXED, guided=True, learned=True, net_in=True)], ids=str)
def test_compiles_for_amd(variant: Variant) -> None:
    pytest.importorskip("triton.backends.amd.compiler", reason="this Triton has no AMD backend")
    for n in (8, 2048):
        kernel = compiled(variant, n, GPUTarget("hip", "gfx942", 64))
        assert "v_fma_f32" in kernel.asm["amdgcn"] or "v_fmac_f32" in kernel.asm["amdgcn"]
        assert ".private_segment_fixed_size: 0" in kernel.asm["amdgcn"]


# Triton's own interpreter, in a process of its own because it is chosen when kernels are defined.


EXACT_INTERPRETER = """
import numpy as np, torch, triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder as Builder, TensorHandle
from ulam_kernels.reference.arithmetic import fma

# Where the interpreter departs from what is compiled: a fused multiply-add that rounds twice (some releases), bf16
# rounded towards zero, and comparisons of floats that keep the floats' type when they are broadcast. And where releases
# before 3.7 fail under NumPy 2.4 and later, which makes no number of an array of one element: the bounds of a loop.
def exact_fma(self, x, y, z):
    x, y, z = (np.ascontiguousarray(a) for a in np.broadcast_arrays(x.data, y.data, z.data))
    return TensorHandle(fma(x, y, z).reshape(x.shape), tl.float32)
def truncate(self, x, kind, plain=Builder.create_fp_trunc):
    if kind.scalar != tl.bfloat16:
        return plain(self, x, kind)
    rounded = torch.from_numpy(np.ascontiguousarray(x.data)).to(torch.bfloat16)
    return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)
def splat(self, kind, x):
    return TensorHandle(np.full(kind.shape, x.data.reshape(-1)[0], x.data.dtype), x.dtype.scalar)
def patch_tensor(tensor, scope, plain=interpreter._patch_lang_tensor):
    plain(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))
Builder.create_fma, Builder.create_fp_trunc, Builder.create_splat = exact_fma, truncate, splat
interpreter._patch_lang_tensor = patch_tensor
"""

INTERPRETED = """
import test_triton_static as t
rng = np.random.default_rng(7)
for variant in t.VARIANTS:
    for chains, n in ((3, 1100), (5, 7), (40, 32)):
        case = variant.case(rng, chains, n)
        expected = t.copy_of(case)
        t.cpu.step(**expected)
        t.step(**case)
        for name in ("state", "net_in"):
            assert t.same_bits(case[name], expected[name]), (variant, name)
for dtype in t.FLOATS:
    for chains, n, offset in ((2, 1100, 5), (5, 7, 1022), (40, 32, 8)):
        case = t.fill_case(rng, chains, n, dtype, offset=offset, scale=0.7, tag=2)
        expected = t.copy_of(case)
        t.cpu.fill_normal(**expected)
        t.fill_normal(**case)
        assert t.same_bits(case["out"], expected["out"]), dtype
        x, m = (t.normal(rng, (chains, n), dtype) for _ in range(2))
        a, b = (torch.from_numpy(rng.normal(size=chains)).float() for _ in range(2))
        outs = [torch.empty(chains, n, dtype=dtype) for _ in range(2)]
        t.cpu.affine(x, m, a, b, outs[0])
        t.affine(x, m, a, b, outs[1])
        assert t.same_bits(*outs), dtype
print("agrees")
"""


def test_interpreted_kernels_give_the_bits_of_the_cpu() -> None:
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run(
        [sys.executable, "-c", EXACT_INTERPRETER + INTERPRETED], env=environment, capture_output=True, text=True
    )
    assert ran.stdout.strip() == "agrees", ran.stderr[-3000:]
