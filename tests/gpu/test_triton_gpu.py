"""The Triton backend on a GPU, against the CPU's bits. Skipped where torch sees none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tick_cases

pytest.importorskip("triton", reason="triton is not installed")

import ulam_kernels
from bit_comparison import same_bits
from triton_cases import FLOATS, MIXED, SAME, VARIANTS, Case, Variant, copy_of, normal
from triton_reduce_cases import blending, by_row, reduction
from ulam_kernels import cpu

REASON = ulam_kernels.backends()["triton"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON != "usable", reason=f"no GPU for Triton: {REASON}")]
SIZES = [(9, 11_120), (7, 1027), (1, 513), (3001, 34), (13, 7), (100_003, 2), (70_000, 520)]


def on_gpu(case: Case, device: str = "cuda") -> Case:
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in case.items()}


def run(case: Case) -> None:
    from ulam_kernels import triton

    triton.step(**case)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("chains, n", SIZES)
def test_step_gives_the_bits_of_the_cpu(variant: Variant, chains: int, n: int) -> None:
    if chains * n > 10**7 and variant.registers > 1:
        pytest.skip("large only with one register")
    case = variant.case(np.random.default_rng([chains, n]), chains, n)
    device = on_gpu(case)
    cpu.step(**case)
    run(device)
    assert same_bits(device["state"].cpu(), case["state"])
    if case["net_in"] is not None:
        assert same_bits(device["net_in"].cpu(), case["net_in"])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("chains, n, offset", [(9, 11_120, 8), (3001, 34, 0), (2, 1027, 5), (5, 9, 1022), (3, 512, 3)])
def test_fill_gives_the_bits_of_the_cpu(dtype: torch.dtype, chains: int, n: int, offset: int) -> None:
    rng = np.random.default_rng([chains, n])
    ids = {name: torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, chains)) for name in ("seed", "chain", "draw")}
    results = []
    for device in ("cpu", "cuda"):
        out = torch.full((chains, n), float("nan"), dtype=dtype, device=device)
        options = {"tag": 3, "scale": -0.37, "offset": offset, "backend": {"cpu": "cpu", "cuda": "triton"}[device]}
        results.append(ulam_kernels.fill_normal(out, **on_gpu(ids, device), **options).cpu())
    assert same_bits(*results)


@pytest.mark.parametrize("types", [*SAME.values(), MIXED], ids=str)
@pytest.mark.parametrize("chains, n", SIZES[:5])
def test_affine_gives_the_bits_of_the_cpu(types: tuple[torch.dtype, ...], chains: int, n: int) -> None:
    rng = np.random.default_rng([chains, n])
    x, m = (normal(rng, (chains, n), dtype) for dtype in types[:2])
    a, b = (torch.from_numpy(rng.normal(size=chains) * (rng.random(chains) < 0.7)).float() for _ in range(2))
    x[a == 0], m[b == 0] = float("nan"), float("nan")
    results = []
    for device, backend in (("cpu", "cpu"), ("cuda", "triton")):
        out = torch.full((chains, n), float("nan"), dtype=types[2], device=device)
        results.append(ulam_kernels.affine(*(t.to(device) for t in (x, m, a, b)), out, backend=backend).cpu())
    assert same_bits(*results)


@pytest.mark.parametrize("state", FLOATS, ids=str)
@pytest.mark.parametrize("chains, n", [(24, 1), (100_003, 2), (3001, 34), (96, 1027), (64, 12_288), (13, 200_001)])
def test_reductions_give_the_bits_of_the_cpu(state: torch.dtype, chains: int, n: int) -> None:
    from ulam_kernels import triton

    case = reduction(np.random.default_rng(n), chains, n, state, torch.float32, n % 2 == 0, chains == 96)
    device = on_gpu(case)
    cpu.reduce(**case)
    triton.reduce(**device)
    assert same_bits(device["out"].cpu(), case["out"])


@pytest.mark.parametrize("state", FLOATS, ids=str)
@pytest.mark.parametrize("chains, n", [(6, 1), (3001, 34), (96, 1027), (64, 12_288)])
def test_blend_gives_the_bits_of_the_cpu(state: torch.dtype, chains: int, n: int) -> None:
    from ulam_kernels import triton

    case = blending(np.random.default_rng(n), chains, n, state, state, chains == 96)
    device = on_gpu(case)
    cpu.blend(**case)
    triton.blend(**device)
    assert same_bits(device["x"].cpu(), case["x"])
    assert same_bits(device["net_in"].cpu(), case["net_in"])


@pytest.mark.parametrize("chains, n", [(3001, 34), (64, 12_288)])
def test_blend_by_row_gives_the_bits_of_the_cpu(chains: int, n: int) -> None:
    from ulam_kernels import triton

    case = by_row(np.random.default_rng(n), (chains, n, torch.float32, torch.float32, False))
    device = on_gpu(case)
    cpu.blend(**case)
    triton.blend(**device)
    assert same_bits(device["x"].cpu(), case["x"])
    assert same_bits(device["net_in"].cpu(), case["net_in"])


def test_what_stands_around_the_step_follows_its_rules() -> None:
    tick_cases.check_on_gpu("triton")


def test_programs_that_share_a_chain_agree() -> None:
    tick_cases.check_races_on_gpu("triton")


def test_model_output_may_be_the_state_itself() -> None:
    case = Variant().case(np.random.default_rng(0), 5, 4096)
    device = on_gpu(case)
    case["model"], device["model"] = case["state"][0].clone(), device["state"][0]
    cpu.step(**case)
    run(device)
    assert same_bits(device["state"].cpu(), case["state"])


def test_runs_on_the_current_stream() -> None:
    """Work queued on a side stream before and after is ordered with the step, and other streams do not wait."""
    case = Variant().case(np.random.default_rng(1), 64, 4096)
    start, device = case["state"].cuda(), on_gpu(case)
    run(on_gpu(case))  # compiled before the clock runs
    cpu.step(**case)
    stream = torch.cuda.Stream()
    device["state"].fill_(float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        device["state"].copy_(start)
        run(device)
        result = device["state"].clone()
        finished = torch.cuda.Event()
        finished.record()
    assert not finished.query()
    stream.synchronize()
    assert same_bits(result.cpu(), case["state"])


def test_a_captured_step_replays_with_what_its_tensors_hold_then() -> None:
    """Rows and draws that advance on the device: every replay is the next row."""
    case = Variant(2).case(np.random.default_rng(2), 16, 3072)
    case["row"], case["draw"] = torch.zeros(16, dtype=torch.int64), torch.zeros(16, dtype=torch.int64)
    device = on_gpu(case)
    run(copy_of(device))  # compiled before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(device)
        device["row"] += 1
        device["draw"] += 16
    for _ in range(5):
        graph.replay()
        cpu.step(**case)
        case["row"] += 1
        case["draw"] += 16
        assert same_bits(device["state"].cpu(), case["state"])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_runs_on_the_device_of_its_tensors() -> None:
    case = Variant().case(np.random.default_rng(3), 4, 2048)
    device = on_gpu(case, "cuda:1")
    cpu.step(**case)
    run(device)
    assert torch.cuda.current_device() == 0
    assert same_bits(device["state"].cpu(), case["state"])


def test_absent_terms_are_not_read() -> None:
    """NaN behind a zero coefficient stays where it is, in long chains and in short ones."""
    for n in (4096, 33):
        case = Variant().case(np.random.default_rng(4), 8, n)
        case["coef"][:, 9] = 0  # the terms of m, and m in the x0 estimate
        case["coef"][:, 1] = 0
        case["model"].fill_(float("nan"))
        device = on_gpu(case)
        run(device)
        assert not device["state"].isnan().any()
