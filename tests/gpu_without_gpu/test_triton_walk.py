"""Whole chains in Triton without a GPU: what the interpreter makes of them, and what they compile to."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import triton_interpreter
from bit_comparison import same_bits
from ulam_kernels import evaluate_network
from ulam_kernels.networks import Network
from walk_cases import Builder, Walk, mlp, random_walk
from walk_errors import PRECISIONS

NETWORKS = {"wide": (14, 256, 256, 256, 14), "plane": (2, 64, 64, 2)}
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that a program may have
SMALLER = {86: 99 * 1024, 89: 99 * 1024, 120: 99 * 1024}
MATRIX_UNITS = {80: "HMMA", 90: "HGMMA", 100: "UTC"}


@pytest.mark.long
def test_interpreted_walks_agree_with_the_cpu() -> None:
    """float32: its bits, but for LayerNorm; else within the errors of `walk_errors`. One chain's bits in any batch."""
    pytest.importorskip("triton", reason="triton is not installed")
    triton_interpreter.run("check_walks")


@pytest.mark.long
def test_engines_samples_and_policies_have_the_bits_of_interpreted_walks() -> None:
    """On tensors of a stand-in device (see gpu_stand_in), in float32, tf32x3 and bf16; the CPU's in float32."""
    pytest.importorskip("triton", reason="triton is not installed")
    triton_interpreter.run("check_engines")


def launched(walk: Walk, target: Any, **options: Any) -> tuple[Any, Walk]:
    """(the kernel that `bound_walk` launches, the walk after it). target: a compute capability, or a GPUTarget's."""
    from triton.backends.compiler import GPUTarget

    import triton_simulator
    from ulam_kernels.triton import walk as backend

    net_in = None if walk.net_in is None else walk.net_in.clone()
    after = replace(walk, states=walk.states.clone(), cursor=walk.cursor.clone(), net_in=net_in)
    names = ("seed", "chain", "row_vectors", "chain_vectors", "uncond_vectors", "guidance")
    given = [walk.given.get(name) for name in names]
    gpu_target = GPUTarget(*(target if isinstance(target, tuple) else ("cuda", target, 32)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(triton_simulator.MODULES, backend.walk_tiles, backend)
        with triton_simulator.simulated(gpu_target, **options) as gpu:
            memory = (after.states, walk.table.coef, walk.table.flags, after.cursor)
            known = {"fixed": walk.given.get("known"), "mask": walk.given.get("mask")}
            backend.bound_walk(*memory, walk.network, after.net_in, *given, **known)(walk.steps)
    return gpu.compiled[0], after


def called(network: Network, chains: int, target: int, **options: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """(the kernel that `call_network` launches, its states, its outputs), each chain told its row."""
    import triton_simulator
    from ulam_kernels.triton import walk as backend

    torch.manual_seed(0)
    x, told = torch.randn(chains, network.inputs), torch.randn(chains, network.chain_width)
    out = torch.empty(chains, network.output_width or 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(triton_simulator.MODULES, backend.call_tiles, backend)
        with triton_simulator.simulated(triton_simulator.cuda(target), **options) as gpu:
            backend.call_network(network, x, None, told, out, None)
    return gpu.compiled[0], told, out


def compiled(target: Any, widths: tuple[int, ...], precision: str, chains: int = 4, **other: Any) -> Any:
    rng = np.random.default_rng(0)
    network = replace(mlp(rng, widths), precision=precision)
    return launched(random_walk(rng, chains, widths[0], 1, network=network, learned=False, **other), target)[0]


def residual(rng: np.random.Generator, n: int, learned: bool) -> Network:
    """What depends on the row and on the chain, two inputs, a sum that goes around, odd widths."""
    b = Builder(rng, n)
    first = b.unary(b.linear(17, [0], ("row", "constant")), "gelu")
    block = b.unary(b.linear(9, [first, 0], ("row", "chain")), "silu")
    last = b.binary("add", first, b.linear(17, [block]), 17)
    b.linear(2 * n if learned else n, [b.unary(last, "mish")], ("constant",))
    return b.network()


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_ptx_gives_the_bits_of_the_cpu_in_float32(guided: bool, learned: bool) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    rng = np.random.default_rng([guided, learned])
    network = residual(rng, 3, learned)
    walk = random_walk(rng, 6, 3, 2, network=network, learned=learned, guided=guided, together=not guided, steps=2)
    _, after = launched(walk, 90, execute=True)
    expected = walk.run("cpu")
    assert same_bits(after.states, expected[0]) and torch.equal(after.cursor, expected[1])
    assert not torch.equal(after.states, walk.states)

    def altered(ptx: str) -> str:
        """The high part of ln 2 off by a unit in the last place."""
        assert "0f3F317200" in ptx or "0fBF317200" in ptx
        return ptx.replace("0fBF317200", "0fBF317201").replace("0f3F317200", "0f3F317201")

    assert not same_bits(launched(walk, 90, execute=True, alter=altered)[1].states, expected[0])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_ptx_writes_known_elements_back_with_the_bits_of_the_cpu(scaled: bool, own: bool) -> None:
    """After rows that write, not after others; a mask of all chains, or one of each."""
    pytest.importorskip("triton", reason="triton is not installed")
    rng = np.random.default_rng([scaled, own])
    chains, n = 6, 5
    walk = random_walk(rng, chains, n, 2, network=residual(rng, n, False), learned=False, scaled=scaled, steps=2)
    assert (walk.net_in is None) != scaled
    mask = torch.from_numpy(rng.random((chains, n) if own else n) < 0.5)
    known = torch.from_numpy(rng.normal(size=(chains, n))).float()
    given = {"known": known, "mask": mask}
    walk = replace(walk, given=walk.given | given)
    _, after = launched(walk, 90, execute=True)
    states, cursor, net_in = walk.run("cpu")
    assert same_bits(after.states, states) and torch.equal(after.cursor, cursor)
    assert net_in is None or (after.net_in is not None and same_bits(after.net_in, net_in))
    where = mask.expand(chains, n)
    writes = (cursor[0] != 0)[:, None] & where
    assert writes.any() and torch.equal(states[0][writes], known[writes])
    assert not torch.equal(launched(replace(walk, given=walk.given | {"known": known + 1}), 90, execute=True)[1].states,
                           after.states)  # fmt: skip


@pytest.mark.parametrize("learned", [False, True])
def test_ptx_of_a_network_alone_gives_the_bits_of_the_cpu_in_float32(learned: bool) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    network = residual(np.random.default_rng([5, learned]), 3, learned).told_by_chain
    _, told, out = called(network, 6, 90, execute=True)
    torch.manual_seed(0)
    x = torch.randn(6, 3)
    assert same_bits(out, evaluate_network(network, x, chain_vectors=told)[1].view_as(out))


def test_products_begin_with_nothing_and_constants_are_added_to_them() -> None:
    """Triton would have a whole matrix's product begin with a constant that is added to it after."""
    pytest.importorskip("triton", reason="triton is not installed")
    rng = np.random.default_rng(6)
    b = Builder(rng, 3)
    last = b.linear(16, [0], ("constant", "chain"))
    b.linear(3, [b.unary(last, "relu")], ("constant",))
    network = b.network()
    _, told, out = called(network, 6, 90, execute=True)
    torch.manual_seed(0)
    x = torch.randn(6, 3)
    assert same_bits(out, evaluate_network(network, x, chain_vectors=told)[1].view_as(out))
    for precision in ("tf32x3", "bf16"):
        kernel = called(replace(network, precision=precision), 6, 90)[0]
        begun = re.findall(r"tt\.dot %[\w#]+, %[\w#]+, %(\w+)", kernel.asm["ttir"])
        firsts = begun[::3] if precision == "tf32x3" else begun
        assert len(firsts) == 2 and all(name.startswith("cst") for name in firsts), begun


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_alone_multiplies_as_a_walk_does(name: str, precision: str, tmp_path: Path) -> None:
    """The same instructions of tensor cores, of the same shapes, as often; no local memory; nothing is compiled again
    when the count of chains changes."""
    pytest.importorskip("triton", reason="triton is not installed")
    from machine_code import disassemble, opcodes

    rng = np.random.default_rng(0)
    network = replace(mlp(rng, NETWORKS[name]), precision=precision).told_by_chain
    kernels = [called(network, chains, 90)[0] for chains in (1, 2, 16, 70)]
    assert all(kernel is kernels[0] for kernel in kernels) and kernels[0].metadata.shared <= SHARED[90]
    walking = launched(random_walk(rng, 4, network.inputs, 1, network=network, learned=False), 90)[0]
    products = [
        Counter(re.findall(r"(?:wgmma\.mma_async|mma)\.sync[.\w]*", kernel.asm["ptx"]))
        for kernel in (kernels[0], walking)
    ]
    assert products[0] == products[1] and bool(products[0]) == (precision != "float32")
    assert not [name for name in opcodes(disassemble(kernels[0], tmp_path)) if name.startswith(("LDL", "STL"))]


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_walks_compile_within_a_multiprocessor(name: str, precision: str, architecture: int, tmp_path: Path) -> None:
    """No local memory, and no weights brought out of the loop over rows beyond what shared memory holds."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    from machine_code import disassemble, opcodes

    kernel = compiled(architecture, NETWORKS[name], precision)
    assert kernel.metadata.shared <= SHARED[architecture]
    names = opcodes(disassemble(kernel, tmp_path))
    assert not [each for each in names if each.startswith(("LDL", "STL"))]
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [str(tool), "-res-usage", str(tmp_path / "kernel.cubin")]
    used = re.search(r"REG:(\d+) STACK:(\d+)", subprocess.run(command, capture_output=True, text=True).stdout)
    assert used and int(used[1]) <= 255 and int(used[2]) == 0
    unit = "FFMA" if precision == "float32" else "HMMA" if name == "wide" else MATRIX_UNITS[architecture]
    assert any(each.startswith(unit) for each in names)
    ptx = kernel.asm["ptx"]
    assert (precision == "float32") == (not re.search(r"ex2\.approx\.ftz", ptx)), "activations"
    if precision == "float32":
        assert not re.search(r"ex2\.|lg2\.|\.approx|\.ftz|div\.full", ptx)


def test_nothing_is_compiled_again_when_chains_steps_or_rows_change() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    kernels = [compiled(90, NETWORKS["plane"], "bf16", chains) for chains in (1, 2, 16, 70, 1000)]
    assert all(kernel is kernels[0] for kernel in kernels)


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_guided_walks_compile_within_a_multiprocessor(
    name: str, precision: str, architecture: int, tmp_path: Path
) -> None:
    """Guidance by two branches, and net_in."""
    pytest.importorskip("triton", reason="triton is not installed")
    from machine_code import disassemble, opcodes

    kernel = compiled(architecture, NETWORKS[name], precision, guided=True, scaled=True)
    names = opcodes(disassemble(kernel, tmp_path))
    assert not [each for each in names if each.startswith(("LDL", "STL"))]
    assert kernel.metadata.shared <= SHARED[architecture]


@pytest.mark.long
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_largest_networks_find_room_in_shared_memory(precision: str) -> None:
    """The widest there are; and one of so many narrow matrices that they are not all held along the rows."""
    pytest.importorskip("triton", reason="triton is not installed")
    most = ((256, 512, 512, 256), (256,) * 9, (64, 256, 64, 256, 64), (32, 256, 256, 32), (40, *(128,) * 8, 40))
    for architecture, widths in [(80, widths) for widths in most] + [(90, (40, *(64,) * 12, 40))]:
        assert compiled(architecture, widths, precision).metadata.shared <= SHARED[architecture]


@pytest.mark.long
@pytest.mark.parametrize("precision", PRECISIONS)
def test_walks_find_room_on_smaller_gpus(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from ulam_kernels.triton import walk as backend

    monkeypatch.setattr(backend, "room_on", lambda device: backend.SMALL)
    widest = ((256, 512, 512, 256), (256,) * 5, (64, 256, 64, 256, 64), (32, 256, 256, 32), (40, *(128,) * 8, 40))
    for architecture, widths in [(86, widths) for widths in (*NETWORKS.values(), *widest)] + [
        (architecture, NETWORKS["wide"]) for architecture in SMALLER
    ]:
        assert compiled(architecture, widths, precision).metadata.shared <= SMALLER[architecture], widths


def test_how_much_room_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from ulam_kernels.triton import walk as backend

    bytes_of = {"cuda:0": 232448, "cuda:1": 166912, "cuda:2": 101376}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties",
        lambda device: SimpleNamespace(shared_memory_per_block_optin=bytes_of[str(device)]),
    )  # fmt: skip
    found = [backend.room_on(torch.device(name)) for name in (*bytes_of, "cpu")]
    assert found == [backend.LARGE, backend.LARGE, backend.SMALL, backend.LARGE]


def test_walks_compile_for_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton.backends.amd.compiler", reason="this Triton has no AMD backend")
    monkeypatch.setattr(torch.version, "hip", "7.0")
    for precision in PRECISIONS:
        kernel = compiled(("hip", "gfx942", 64), NETWORKS["wide"], precision)
        assert kernel.metadata.shared <= 64 * 1024
        assert re.search(r"v_mfma_f32_\w+_bf16" if precision == "bf16" else r"v_mfma_f32_\w+_f32", kernel.asm["amdgcn"])


def test_the_model_of_time_meets_its_goals() -> None:
    """It checks its own counts of products; a unit's limit is below what is expected of it."""
    pytest.importorskip("triton", reason="triton is not installed")
    from bench.walk_model import CASES, predicted

    for widths, precision, chains, goal in CASES:
        model = predicted(widths, precision, chains)
        assert 0 < model["limit ms"] <= model["expected ms"]
        assert goal is None or model["expected ms"] <= goal, (widths, precision)
