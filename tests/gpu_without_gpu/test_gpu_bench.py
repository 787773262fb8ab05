"""What is measured on a GPU and how, without one: bytes, candidates, limits, and what a failure leaves."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench import gpu, gpu_bits, gpu_check, gpu_loops, gpu_report, gpu_rows, gpu_timing
from bench.gpu_rows import BF16, FP32, LARGE, MIXED, Case, Data
from bench.gpu_stage import Run, Stage
from bench.gpu_timing import Spread
from bench.unet import UNet

import ulam_kernels

NO_GPU = not torch.cuda.is_available()
TINY = (3, 2, 4, 4)
REHEARSAL = Stage(rehearsal=True)


@pytest.mark.skipif(not NO_GPU, reason="here is a GPU")
@pytest.mark.parametrize("module", [gpu, gpu_loops, gpu_check, gpu_bits], ids=lambda module: module.__name__)
def test_without_a_gpu_one_line_says_so(module, capsys, tmp_path):
    arguments = ["noise"] if module is gpu_bits else []
    assert module.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "torch sees no CUDA device" in said
    assert not list(tmp_path.iterdir())


# What is measured.

ELEMENT = {  # bytes in fp32, in bf16, and of fp32 states with bf16 outputs; and those of a chain
    "ddpm": (12, 6, 10, 32), "guided": (16, 8, 12, 36), "clip": (12, 6, 10, 32), "ddim": (12, 6, 10, 8),
    "net_in": (14, 8, 12, 32), "channels_last": (12, 6, 10, 32), "learned": (16, 8, 12, 32), "2m": (20, 10, 18, 8),
    "unipc": (36, 18, 34, 8), "threshold": (12, 6, 10, 48), "quantiles": (8, 4, 6, 48), "norms": (4, 2, 2, 48),
    "corrector": (12, 6, 10, 48), "fill": (4, 2, 4, 24), "affine": (12, 6, 10, 8),
}  # fmt: skip


@pytest.mark.parametrize("operation", gpu_rows.OPERATIONS)
def test_bytes_an_element(operation):
    """What a row reads and writes of its registers, outputs and input; and the names of each chain."""
    *each, chain = ELEMENT[operation]
    size, elements = (2, 1, 1024, 1024), 2 << 20
    for (state, model), expected in zip(MIXED, each, strict=True):
        assert gpu_rows.moved_bytes(operation, size, state, model) == expected * elements + 2 * chain


def test_every_case_is_timed_once():
    todo = gpu_rows.cases()
    assert len(todo) == len(set(todo)) == len(set(map(str, todo)))
    assert {case.operation for case in todo} == set(gpu_rows.OPERATIONS)
    assert {case.size for case in todo} >= {LARGE, (1_000_000, 1, 1, 2), (8, 3, 256, 256), (64, 3, 32, 32)}
    assert set(gpu_rows.COMPILED) <= set(todo)


@pytest.mark.parametrize("operation", gpu_rows.OPERATIONS)
@pytest.mark.parametrize("dtypes", MIXED, ids=str)
def test_candidates_do_the_same_work(operation, dtypes, monkeypatch):
    """With the same noise the fused row and what people write give the same numbers: equal work is compared."""
    fixed = torch.randn(TINY, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "randn_like", lambda x: fixed.to(x.dtype))
    case = Case(operation, TINY, *dtypes)
    data = Data(case, "cpu")
    made = gpu_rows.builders(REHEARSAL, case, data, {"diffusers": "not asked"})
    assert {"ulam cuda", "naive eager"} <= set(made)
    results = {name: made[name]() for name in made if not name.startswith("ulam")}
    if operation == "fill":
        assert results["naive eager"]().dtype == dtypes[0]
        out = gpu_rows.ours(data, "cpu")()
        assert out.dtype == dtypes[0] and 0.5 < out.float().std() < 1.5
        return
    if operation == "affine":
        expected = [gpu_rows.ours(data, "cpu")()]
    else:
        state = torch.stack([data.x, *data.history])
        given = {"model": data.m, "noise": fixed, "backend": "cpu"}
        table = data.program.table()
        if data.operation.scaled:
            ulam_kernels.reduce(state, table, data.row, out=data.scales, **given)
        if data.operation.scaled == "reduce":
            low, hi, _, z_scale = data.scales.unbind(1)
            got = results["naive eager"]()
            expected = hi if operation == "quantiles" else z_scale
            got = got.clamp(min=1.0) if operation == "quantiles" else got
            assert torch.allclose(got.float(), expected, rtol=1e-5 if dtypes[0] == dtypes[1] == FP32 else 0.03)
            assert torch.equal(low, -hi)
            return
        guidance = {} if data.uncond is None else {"uncond": data.uncond, "guidance": data.weight}
        if data.operation.scaled:
            guidance["scales"] = data.scales
        ulam_kernels.step(state, table, data.row, **given, **guidance)
        expected = list(state)
    for name, function in results.items():
        tolerance = 1e-5 if dtypes[0] == dtypes[1] == FP32 else 0.06
        got = function()
        got = got if isinstance(got, list) else [got]
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == dtypes[0] or dtypes == (FP32, BF16), name
            assert torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance), name
    repeated = gpu_rows.ours(data, "cpu")
    for _ in range(3):
        repeated()


@pytest.mark.parametrize("operation", [name for name, kind in gpu_rows.OPERATIONS.items() if kind.sampler])
def test_rows_that_are_repeated_stay_finite(operation):
    """No more than 1e4 after 5,000 calls on one's own result: data of ordinary size is timed."""
    program, row = gpu_rows.program(operation)
    registers = program.registers
    linear = program.A[row][:, :registers].copy()
    if not (program.threshold[row] or program.normalise[row]):
        linear[:, 0] += program.A[row][:, registers] * program.kx[row]
    linear = np.where(program.writes[row][:, None], linear, np.eye(registers))
    assert max(abs(np.linalg.eigvals(linear))) ** 5000 < 1e4
    if operation in ("ddpm", "guided", "clip"):
        assert program.table().flags[row] & ulam_kernels.table.READS_Z


def test_the_unet_is_that_of_the_paper():
    """35.7 million parameters [Ho 2020, appendix B]; channels-last and bf16 go through."""
    assert sum(parameter.numel() for parameter in UNet().parameters()) == 35_746_307
    net = UNet(32, (1, 1), 1).to(BF16).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(BF16)
    with torch.inference_mode():
        out = net(x.contiguous(memory_format=torch.channels_last), torch.tensor([3.0, 900.0]))
        apart = torch.cat([net(x[k : k + 1], t) for k, t in enumerate(torch.tensor([[3.0], [900.0]]))])
    assert out.shape == x.shape and out.dtype == BF16
    assert torch.allclose(out.float(), apart.float(), atol=0.05) and not torch.allclose(out[0], out[1])


def test_an_engine_that_fell_back_is_no_figure_of_the_engine():
    report = SimpleNamespace(fallbacks=(), as_dict=lambda: {"captures": 0})
    engine = SimpleNamespace(report=report)
    gpu_loops.check_graphs(REHEARSAL, engine)
    with pytest.raises(RuntimeError, match="captures: got 0, expected at least 1"):
        gpu_loops.check_graphs(Stage(), engine)
    report.as_dict = lambda: {"captures": 2}
    gpu_loops.check_graphs(Stage(), engine)
    report.fallbacks = ("no CUDA graph, ticks run eagerly: reason",)
    with pytest.raises(RuntimeError, match="fell back: no CUDA graph"):
        gpu_loops.check_graphs(Stage(), engine)


# How it is measured.


def test_interleaved_takes_turns():
    order = []

    def timer(function):
        order.append(function())
        return float(len(order))

    spreads = gpu_timing.interleaved({"a": lambda: "a", "b": lambda: "b"}, timer, seconds=0, least=4)
    assert order == ["a", "b"] * 4
    assert spreads["a"] == Spread.of([1.0, 3.0, 5.0, 7.0]) and spreads["a"].median == 4 and spreads["a"].runs == 4


def test_host_cost_never_waits_within_a_batch():
    order = []
    spread = gpu_timing.host_cost(lambda: order.append("call"), lambda: order.append("wait"), calls=3, batches=2)
    assert order == ["wait", *["call"] * 3, "wait", *["call"] * 3, "wait"]
    assert spread.runs == 2


def test_energy_is_counted_between_ticks():
    """A device of 100 W whose counter moves every 100 ms, and calls of 1 ms: 100 mJ each."""
    now = itertools.count()
    at = SimpleNamespace(ms=0)

    def call():
        at.ms += 1

    found = gpu_timing.energy_per_call(
        call, lambda: at.ms // 100 * 10_000, lambda: next(now), batch=10, clock=lambda: at.ms / 1e3
    )
    assert found["millijoules_per_call"] == pytest.approx(100, rel=0.02)
    assert found["watts"] == pytest.approx(100, rel=0.02) and found["calls"] >= 1000


def test_an_energy_counter_that_stands_is_an_error():
    clock = itertools.count()
    with pytest.raises(RuntimeError, match="does not move"):
        gpu_timing.energy_per_call(lambda: None, lambda: 7, lambda: None, batch=1, clock=lambda: next(clock) / 10)


def figure(**changed):
    """A bf16 row with noise that moves as many bytes a second as a copy at 3 TB/s."""
    case = Case("ddpm", LARGE, BF16, BF16)
    median = case.bytes / 3000 / 1e3
    return {
        "name": str(case), "unit": "us", "group": "ddpm", "bytes": case.bytes, "elements": case.elements,
        "instructions": 40.0, "slots": 49.125, "copy_gb_per_s": 3000.0, "clocks": {"sm_mhz": 1980},
        "candidates": {"ulam cuda": {"median": median}, "naive eager": {"median": 10 * median}}, **changed,
    }  # fmt: skip


def test_limits_of_memory_and_of_issue_slots():
    """An H100: 132 multiprocessors of 128 slots a clock, so 67 slots an element at the full rate of a copy."""
    machine = {"multiprocessors": 132}
    limits = gpu_report.Limits.of(figure(), machine)
    case = Case("ddpm", LARGE, BF16, BF16)
    assert limits.memory == pytest.approx(case.bytes / 3e12 * 1e6)
    assert limits.issue / limits.memory == pytest.approx(49.125 / 66.9, rel=1e-3)
    (row,) = gpu_report.rows(figure(), machine)
    assert "| 100% |" in row and "| 10% | 10.00 |" in row
    faster = figure(copy_gb_per_s=4300.0)  # an H200: there the instructions are the limit
    assert gpu_report.Limits.of(faster, machine).issue > gpu_report.Limits.of(faster, machine).memory
    (rate,) = gpu_report.normals([figure()], machine)
    assert "| 0.5 | memory allows 0.5, issue slots allow 0.681 |" in rate


def test_limits_that_are_not_known_are_left_out():
    for changed in ({"slots": None}, {"clocks": {"unknown": "no NVML"}}):
        assert gpu_report.Limits.of(figure(**changed), {"multiprocessors": 132}).issue is None
    (row,) = gpu_report.rows(figure(bytes=None, slots=None), {})
    assert "| - | - |" in row
    alone = figure(candidates={"ulam cuda": None, "naive eager": {"median": 2.0}, "torch.compile of naive": None})
    assert len(list(gpu_report.rows(alone, {}))) == 1


def test_a_candidate_that_fails_is_recorded(tmp_path, capsys):
    run = Run(REHEARSAL, tmp_path / "new" / "out.json", seconds=60)

    def broken():
        raise ValueError("the kernel is broken")

    made = run.prepare("a case", {"bad": broken, "bad when called": lambda: broken, "good": lambda: lambda: 1})
    assert list(made) == ["good"]
    run.keep({"name": "a"})
    kept = json.loads(run.out.read_text())
    assert kept["figures"] == [{"name": "a"}] and not kept["finished"]
    assert [(f["candidate"], f["error"]) for f in kept["failures"]] == [
        ("bad", "ValueError: the kernel is broken"),
        ("bad when called", "ValueError: the kernel is broken"),
    ]
    assert capsys.readouterr().out.count("FAILED a case") == 2
    assert run.finish() == 1 and json.loads(run.out.read_text())["finished"]


@pytest.fixture
def short(monkeypatch):
    """One case of the kernels' benchmark and nothing beside it."""
    monkeypatch.setattr(gpu, "cases", lambda: [Case("ddpm", LARGE)])
    for name in ("chain_tasks", "bound_tasks"):
        monkeypatch.setattr(gpu, name, lambda stage, absent: [])
    for name in ("launches", "energies", "compiled_tick"):
        monkeypatch.setattr(gpu, name, lambda bench: None)


@pytest.mark.long
def test_a_run_without_time_lists_what_it_skipped(short, tmp_path, capsys):
    out = tmp_path / "out.json"
    out.write_text(json.dumps({"part": "bench", "error": "begun"}))
    assert gpu.main(["--rehearse", "--seconds", "0", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["finished"] and found["figures"] == [] and found["part"] == "bench"
    assert found["skipped"] == [str(Case("ddpm", LARGE)), "launch costs", "energy", "compiled tick"]
    assert "skipped for want of time: 4 figures" in capsys.readouterr().out


@pytest.mark.long
def test_a_run_with_a_broken_candidate_fails(short, tmp_path, monkeypatch, capsys):
    def broken(data, backend):
        raise RuntimeError("step: could not launch")

    monkeypatch.setattr(gpu_rows, "ours", broken)
    out = tmp_path / "out.json"
    assert gpu.main(["--rehearse", "--out", str(out)]) == 1
    found = json.loads(out.read_text())
    assert found["finished"] and {f["candidate"] for f in found["failures"]} == {"ulam cuda", "ulam triton"}
    (figure,) = found["figures"]
    assert "naive eager" in figure["candidates"] and "ulam cuda" not in figure["candidates"]
    assert "ulam cuda: RuntimeError: step: could not launch" in capsys.readouterr().out


# Bits.


def test_fills_reach_all_tags_and_the_last_offset_and_are_compared():
    shown = list(itertools.islice(gpu_bits.fills(total=1 << 14), 60))
    assert {case["tag"] for case in shown} == set(range(15))
    assert {case["dtype"] for case in shown} == {FP32, BF16, torch.float16}
    assert max(case["offset"] + case["shape"][1] for case in shown) == 2**30
    assert any(bool((case["names"]["draw"] >= 2**32).any()) for case in shown)
    found = gpu_bits.compare_fills({"reference": "cpu"}, iter(shown), normals=100_000, seconds=60)
    assert found["different"] == {"reference": 0} and found["normals"] >= 100_000 and not found["first_different"]


def test_a_fill_that_differs_is_counted(monkeypatch):
    fill = ulam_kernels.fill_normal

    def altered(out, *, backend, **options):
        fill(out, backend="cpu", **options)
        if backend == "reference":
            out.view(-1)[5] *= 1.0001

    monkeypatch.setattr(ulam_kernels, "fill_normal", altered)
    found = gpu_bits.compare_fills({"reference": "cpu"}, gpu_bits.fills(total=1 << 14), normals=1, seconds=60)
    assert found["different"] == {"reference": 1} and "1 differ" in found["first_different"]["reference"]


def test_operations_are_compared(monkeypatch):
    monkeypatch.setattr(gpu_bits, "SHAPES", ((1, 1), (5, 7), (2, 130)))
    variants = {"reference": [(1, FP32), (3, BF16)]}
    assert gpu_bits.compare_operations({"reference": "cpu"}, variants) == {"reference": 0}
    ones, nans = torch.ones(4), torch.full((4,), float("nan"))
    assert gpu_bits.different(ones, nans) == gpu_bits.different(nans, nans) == 4
    assert gpu_bits.different(ones * 0, -ones * 0) == 4
