"""The CUDA kernels on a GPU: the bits of the CPU, torch's streams and graphs, other devices, large tensors."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

import blend_cases
import tick_cases
import ulam_kernels
from bit_comparison import differences
from reduce_cases import MIXED, mixed_table, random_inputs
from ulam_kernels import Table

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def reason() -> str | None:
    """Why nothing can be launched here."""
    try:
        importlib.import_module("ulam_kernels.cuda")
    except ImportError as error:
        return str(error)
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


pytestmark = [pytest.mark.gpu, pytest.mark.skipif((why := reason()) is not None, reason=f"needs a GPU: {why}")]


def random_table(registers: int, rng: np.random.Generator, rows: int = 16) -> Table:
    """Rows with all that a row can have, present and absent; row 0 is idle."""
    matrix = rng.normal(size=(rows, registers, registers + 3)) * (rng.random((rows, registers, registers + 3)) < 0.7)
    writes = rng.random((rows, registers)) < 0.8
    writes[0] = False
    clip = np.where(rng.random(rows) < 0.5, np.inf, 0.7)
    columns = [rng.normal(size=rows) * (rng.random(rows) < 0.9) for _ in range(5)]
    learned = rng.random(rows) < 0.4
    return Table.pack(columns[0], columns[1], -clip, clip, *columns[2:], matrix, writes, learned)


def ids(chains: int, rng: np.random.Generator, most: int = 2**62) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, most, chains))


def to(device: str, given: dict[str, Any]) -> dict[str, Any]:
    return {name: value if value is None else value.to(device) for name, value in given.items()}


def on_device(table: Table, device: str = "cuda") -> Table:
    return Table(table.coef.to(device), table.flags.to(device), table.registers)


def plain_table() -> Table:
    """One row of DDPM without clipping."""
    matrix = np.array([[[1.01, 0, -0.05, 0.1]]])
    zero, infinite = np.zeros(1), np.full(1, np.inf)
    written = np.ones((1, 1), bool)
    return Table.pack(zero, zero, -infinite, infinite, zero, zero, zero + 1, matrix, written, np.zeros(1, bool))


@pytest.mark.parametrize("registers", range(1, 6))
@pytest.mark.parametrize("model", [FP32, BF16, FP16])
@pytest.mark.parametrize("state", [FP32, BF16, FP16])
def test_step_has_the_bits_of_the_cpu(registers: int, state: torch.dtype, model: torch.dtype) -> None:
    rng = np.random.default_rng([registers, state.itemsize, model.itemsize])
    table = random_table(registers, rng)
    for shape in ((1,), (2,), (3, 5, 7), (4, 33), (2, 8, 100), (3, 32, 32), (1, 5000)):
        chains = 33
        doubled = (chains, 2 * shape[0], *shape[1:])
        generator = torch.Generator().manual_seed(registers)
        values = torch.randn(registers, chains, *shape, generator=generator).to(state)
        given = {
            "model": torch.randn(doubled, generator=generator).to(model),
            "uncond": torch.randn(doubled, generator=generator).to(model) if rng.random() < 0.6 else None,
            "guidance": torch.from_numpy(rng.choice([0.0, 1.0, 2.5, -1.0], size=chains).astype(np.float32)),
            "seed": ids(chains, rng),
            "chain": ids(chains, rng),
            "draw": ids(chains, rng, 2**40),
            "noise": torch.randn(chains, *shape, generator=generator) if rng.random() < 0.2 else None,
            "net_in": torch.full((chains, *shape), 7.0, dtype=[FP32, BF16, FP16][int(rng.integers(3))]),
        }
        row = torch.from_numpy(rng.integers(0, len(table), chains))
        moved, there = values.cuda(), to("cuda", given)
        ulam_kernels.step(values, table, row, backend="cpu", **given)
        ulam_kernels.step(moved, on_device(table), row.cuda(), backend="cuda", **there)
        assert differences(values, moved) == 0, shape
        assert differences(given["net_in"], there["net_in"]) == 0, shape


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_large_fills_have_the_bits_of_the_cpu(dtype: torch.dtype) -> None:
    """2^27 normals of each type, besides odd sizes and offsets."""
    rng = np.random.default_rng(0)
    for chains, elements, offset in ((4, 1 << 25, 0), (1, 1 << 20, (1 << 30) - (1 << 20)), (5, 4099, 3), (1000, 2, 0)):
        names = {name: ids(chains, rng) for name in ("seed", "chain", "draw")}
        expected = torch.empty(chains, elements, dtype=dtype)
        out = torch.full_like(expected, float("nan"), device="cuda")
        ulam_kernels.fill_normal(expected, tag=1, offset=offset, backend="cpu", **names)
        ulam_kernels.fill_normal(out, tag=1, offset=offset, backend="cuda", **to("cuda", names))
        assert differences(expected, out) == 0


def test_affine_has_the_bits_of_the_cpu() -> None:
    rng = np.random.default_rng(1)
    for dtypes in ((FP32,) * 3, (BF16,) * 3, (FP16,) * 3, (FP32, BF16, FP32), (FP16, FP32, BF16)):
        for elements in (1, 2, 33, 3072, 5001):
            x, m = (torch.from_numpy(rng.normal(size=(17, elements))).to(dtype) for dtype in dtypes[:2])
            a, b = (torch.from_numpy((rng.normal(size=17) * (rng.random(17) < 0.7)).astype(np.float32)) for _ in "ab")
            expected = ulam_kernels.affine(x, m, a, b, torch.empty(17, elements, dtype=dtypes[2]), backend="cpu")
            out = torch.full_like(expected, float("nan"), device="cuda")
            ulam_kernels.affine(x.cuda(), m.cuda(), a.cuda(), b.cuda(), out, backend="cuda")
            assert differences(expected, out) == 0


@pytest.mark.parametrize("state", [FP32, BF16, FP16])
def test_reductions_and_their_step_have_the_bits_of_the_cpu(state: torch.dtype) -> None:
    """Every kind of row, long chains and many short ones."""
    rng = np.random.default_rng(3)
    for k, (chains, n) in enumerate(((24, 1), (5000, 34), (96, 1027), (64, 12_288), (7, 200_001), (100_003, 2))):
        table, row = mixed_table(2), torch.from_numpy(rng.integers(0, len(MIXED), chains))
        given = random_inputs(rng, (1, n), [FP32, state][k % 2], chains, guided=k % 2 == 0, explicit=k == 2)
        values = torch.from_numpy(2 * rng.normal(size=(2, chains, 1, n))).to(state)
        moved, there, scales = values.cuda(), to("cuda", given), torch.full((2, chains, 4), float("nan"))
        on_gpu = scales[1].cuda()
        ulam_kernels.reduce(values, table, row, out=scales[0], backend="cpu", **given)
        ulam_kernels.reduce(moved, on_device(table), row.cuda(), out=on_gpu, backend="cuda", **there)
        assert differences(scales[0], on_gpu) == 0, n
        ulam_kernels.step(values, table, row, scales=scales[0], backend="cpu", **given)
        ulam_kernels.step(moved, on_device(table), row.cuda(), scales=on_gpu, backend="cuda", **there)
        assert differences(values, moved) == 0, n


@pytest.mark.parametrize("state", [FP32, BF16, FP16])
def test_blend_has_the_bits_of_the_cpu(state: torch.dtype) -> None:
    rng = np.random.default_rng(4)
    for chains, n in ((6, 1), (5000, 34), (96, 1027), (64, 12_288)):
        given = blend_cases.random_inputs(rng, (n,), chains)
        given |= {"net_in": torch.full((chains, n), 7.0, dtype=state), "c_next": torch.linspace(-2, 2, chains)}
        values = torch.from_numpy(rng.normal(size=(2, chains, n))).to(state)
        moved, there = values.cuda(), to("cuda", given)
        ulam_kernels.blend(values, backend="cpu", **given)
        ulam_kernels.blend(moved, backend="cuda", **there)
        assert differences(values, moved) == 0, n
        assert differences(given["net_in"], there["net_in"]) == 0, n


def test_blend_by_row_has_the_bits_of_the_cpu() -> None:
    rng = np.random.default_rng(5)
    for chains, n in ((5000, 34), (64, 12_288)):
        given = blend_cases.random_inputs(rng, (n,), chains)
        given |= {name: torch.from_numpy(rng.normal(size=9)).float() for name in ("a", "b", "c_next")}
        given |= {"net_in": torch.full((chains, n), 7.0), "row": torch.from_numpy(rng.integers(0, 9, chains))}
        values = torch.from_numpy(rng.normal(size=(1, chains, n))).float()
        moved, there = values.cuda(), to("cuda", given)
        ulam_kernels.blend(values, backend="cpu", **given, stage=1)
        ulam_kernels.blend(moved, backend="cuda", **there, stage=1)
        assert differences(values, moved) == 0, n
        assert differences(given["net_in"], there["net_in"]) == 0, n
        there["row"][1], there["row"][2] = 9, -1
        ulam_kernels.blend(moved, backend="cuda", **there)
        assert moved[0, 1:3].isnan().all() and there["net_in"][1:3].isnan().all() and not moved[0, 3:].isnan().any()


def test_what_stands_around_the_step_follows_its_rules() -> None:
    tick_cases.check_on_gpu("cuda")


def test_blocks_that_share_a_chain_agree() -> None:
    tick_cases.check_races_on_gpu("cuda")


def test_an_output_beyond_four_gigabytes() -> None:
    """Its last element stops its chain, and no other."""
    chains, elements = 5, 1 << 30
    if torch.cuda.mem_get_info()[0] < 5 * chains * elements:
        pytest.skip("not enough memory on the device")
    model = torch.zeros(chains, elements, device="cuda")
    model[-1, -1] = float("nan")
    cursor, now = torch.full((6, chains), 3, device="cuda"), torch.zeros(2, chains, dtype=torch.int64, device="cuda")
    cursor[5] = 0
    ulam_kernels.advance(cursor, now, model=model, backend="cuda")
    assert now[0].tolist() == [3, 3, 3, 3, 0] and cursor[4].tolist() == [3] * 5 and not cursor[5].any()


def test_step_runs_on_the_current_stream() -> None:
    """Work queued before the step on its stream comes first, and the default stream does not wait for it."""
    values = torch.zeros(1, 4, 1 << 20, device="cuda")
    model = torch.zeros(4, 1 << 20, device="cuda")
    zero = torch.zeros(4, dtype=torch.int64, device="cuda")
    table, stream = on_device(plain_table()), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        values.fill_(2.0)
        ulam_kernels.step(values, table, zero, model=model, seed=zero, chain=zero, draw=zero, backend="cuda")
        assert not stream.query()
    stream.synchronize()
    expected = torch.full((1, 4, 1 << 20), 2.0)
    zero = zero.cpu()
    ulam_kernels.step(expected, plain_table(), zero, model=model.cpu(), seed=zero, chain=zero, draw=zero, backend="cpu")
    assert differences(expected, values) == 0


def test_step_in_a_cuda_graph() -> None:
    """The row and the draw live on the device, so every replay executes what they say then."""
    rng = np.random.default_rng(2)
    table = random_table(2, rng)
    values, model = torch.randn(2, 8, 3000), torch.randn(8, 6000)
    names = {name: ids(8, rng) for name in ("seed", "chain", "draw")}
    rows = torch.from_numpy(rng.integers(0, len(table), (5, 8)))
    there, static = to("cuda", names), values.cuda()
    row, there_table, network = rows[0].cuda(), on_device(table), model.reshape(8, 2, 3000).cuda()
    state = static.reshape(2, 8, 1, 3000)

    def tick() -> None:
        ulam_kernels.step(state, there_table, row, model=network, backend="cuda", **there)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tick()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tick()
    static.copy_(values)
    for k, now in enumerate(rows):
        row.copy_(now)
        there["draw"].copy_(names["draw"] + k)
        graph.replay()
    expected = values.reshape(2, 8, 1, 3000).clone()
    for k, now in enumerate(rows):
        given = {**names, "draw": names["draw"] + k}
        ulam_kernels.step(expected, table, now, model=model.reshape(8, 2, 3000), backend="cpu", **given)
    assert differences(expected, state) == 0


@pytest.mark.skipif(why is not None or torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_step_on_a_device_that_is_not_current() -> None:
    values, zero = torch.randn(1, 4, 1000), torch.zeros(4, dtype=torch.int64)
    moved, there = values.to("cuda:1"), zero.to("cuda:1")
    with torch.cuda.device(0):
        given = {"model": moved[0].clone(), "seed": there, "chain": there, "draw": there}
        ulam_kernels.step(moved, on_device(plain_table(), "cuda:1"), there, backend="cuda", **given)
        assert torch.cuda.current_device() == 0
    ulam_kernels.step(
        values, plain_table(), zero, model=values[0].clone(), seed=zero, chain=zero, draw=zero, backend="cpu"
    )
    assert differences(values, moved) == 0


def test_elements_beyond_four_gigabytes() -> None:
    """Chains at the end of a tensor of more than 2^32 bytes have the bits that they have on their own."""
    chains, elements = 1100, 1 << 20
    if torch.cuda.mem_get_info()[0] < 3 * 4 * chains * elements:
        pytest.skip("not enough memory on the device")
    values = torch.ones(1, chains, elements, device="cuda")
    zero = torch.zeros(chains, dtype=torch.int64, device="cuda")
    given = {"seed": zero, "chain": torch.arange(chains, device="cuda"), "draw": zero}
    ulam_kernels.step(values, on_device(plain_table()), zero, model=values[0], backend="cuda", **given)
    last = torch.ones(1, 2, elements)
    few = {name: tensor[-2:].cpu() for name, tensor in given.items()}
    ulam_kernels.step(last, plain_table(), zero[-2:].cpu(), model=torch.ones(2, elements), backend="cpu", **few)
    assert differences(last, values[:, -2:]) == 0


def test_a_row_outside_the_table_writes_nan() -> None:
    values = torch.ones(1, 2, 1000, device="cuda")
    zero = torch.zeros(2, dtype=torch.int64, device="cuda")
    row = torch.tensor([0, 9], device="cuda")
    given = {"seed": zero, "chain": zero, "draw": zero}
    ulam_kernels.step(values, on_device(plain_table()), row, model=values[0].clone(), backend="cuda", **given)
    assert not values[0, 0].isnan().any()
    assert values[0, 1].isnan().all()


def test_a_launch_that_fails_names_operation_and_shapes() -> None:
    from ulam_kernels import _cuda

    with pytest.raises(RuntimeError, match=r"affine: could not launch on 3000000000000 chains of 4 elements: "):
        _cuda.affine(3 * 10**12, 4, 16, 0, 16, 0, 16, 0, 16, 16, 0)
