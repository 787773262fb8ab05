"""What bench.gpu and bench.gpu_check do around their launches: bytes, candidates, budgets, the JSON, no GPU."""

from __future__ import annotations

import itertools
import json
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from bench import gpu, gpu_bits, gpu_check, gpu_timing
from bench.gpu import BF16, FP32, Case, Data
from bench.gpu_check import Child, Part, allowance, child, run_parts, verdicts
from bench.gpu_timing import Spread

import ulam_kernels

NO_GPU = not torch.cuda.is_available()
TINY = (3, 2, 4, 4)


@pytest.mark.skipif(not NO_GPU, reason="here is a GPU")
@pytest.mark.parametrize("module", [gpu, gpu_check, gpu_bits], ids=lambda module: module.__name__)
def test_without_a_gpu_one_line_says_so(module, capsys, tmp_path):
    arguments = ["noise"] if module is gpu_bits else []
    assert module.main([*arguments, "--out", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "torch sees no CUDA device" in said
    assert not list(tmp_path.iterdir())


# What is measured.


@pytest.mark.parametrize(
    "operation, fp32, bf16, mixed",
    [("ddpm", 12, 6, 10), ("guided", 16, 8, 12), ("clip", 12, 6, 10), ("fill", 4, 2, 4), ("affine", 12, 6, 10)],
)
def test_bytes_an_element(operation, fp32, bf16, mixed):
    """x and m read, x written; and the names of each chain, which count where chains are short."""
    size, elements = (2, 1, 1024, 1024), 2 << 20
    for (state, model), expected in zip(gpu.DTYPES, (fp32, bf16, mixed), strict=True):
        chain = {"ddpm": 32, "guided": 36, "clip": 32, "fill": 24, "affine": 8}[operation]
        assert gpu.moved_bytes(operation, size, state, model) == expected * elements + 2 * chain


def test_every_operation_meets_every_size_and_dtype_once():
    todo = gpu.cases(gpu.SIZES, gpu.OPERATIONS)
    assert len(todo) == len(set(todo)) == len(set(map(str, todo))) == (4 * 3 + 2) * 6
    assert todo[0] == Case("ddpm", (4096, 3, 64, 64), FP32, FP32)


@pytest.mark.parametrize("operation", gpu.OPERATIONS)
@pytest.mark.parametrize("dtypes", gpu.DTYPES, ids=str)
def test_candidates_do_the_same_work(operation, dtypes, monkeypatch):
    """With no noise the fused row and what people write give the same mean, so that equal work is compared."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    data = Data(Case(operation, TINY, *dtypes), "cpu")
    made = gpu.builders(data, {}, compile_it=False)
    assert {"ulam cuda", "ulam triton", "naive eager"} <= set(made)
    results = {name: made[name]() for name in made if not name.startswith("ulam")}
    if operation == "fill":
        assert results["naive eager"]().dtype == dtypes[0]
        out = gpu.ours(data, "cpu")()
        assert out.dtype == dtypes[0] and 0.5 < out.float().std() < 1.5
        return
    if operation == "affine":
        expected = gpu.ours(data, "cpu")()
    else:
        state, m = data.x[None].clone(), data.m
        rows = gpu.program(operation == "clip").table()
        guidance = {} if data.uncond is None else {"uncond": data.uncond, "guidance": data.weight}
        zero = torch.zeros(TINY)
        ulam_kernels.step(state, rows, data.row, model=m, noise=zero, backend="cpu", **guidance)
        expected = state[0]
        repeated = gpu.ours(data, "cpu")
        for _ in range(3):
            repeated()
    for name, function in results.items():
        if "diffusers" in name:
            continue  # draws its own noise
        tolerance = 1e-5 if dtypes[0] == dtypes[1] == FP32 else 0.05
        got = function()
        assert got.dtype == dtypes[0], name
        assert torch.allclose(got.float(), expected.float(), rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("operation", gpu.OPERATIONS)
def test_what_is_compiled_is_one_graph(operation, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: seen.append(options) or f)
    assert torch.isfinite(gpu.compiled(Data(Case(operation, TINY), "cpu"))()).all()
    assert seen == [{"fullgraph": True, "dynamic": False}]


def test_the_row_that_is_repeated_has_noise_and_stays_finite():
    data = Data(Case("ddpm", TINY, BF16, BF16), "cpu")
    rows = gpu.program(False).table()
    assert rows.flags[data.row[0]] & ulam_kernels.table.READS_Z
    growth = rows.coef[data.row[0], ulam_kernels.table.MATRIX].item()
    assert growth**50_000 < 1e3  # more calls than a run makes on one state


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


def test_figures_of_a_case():
    """12 bytes an element in the time that a copy at 2 TB/s takes for as many are 100% of it."""
    case = Case("ddpm", (4096, 3, 64, 64))
    copy = 2 * gpu.COPY_BYTES / 2e12 * 1e6
    times = {"ulam cuda": Spread.of([case.bytes / 2e12 * 1e6] * 5), "large copy": Spread.of([copy] * 5)}
    figures = gpu.cell(case, times)
    assert figures["copy_gb_per_s"] == pytest.approx(2000)
    assert figures["candidates"]["ulam cuda"]["gb_per_s"] == pytest.approx(2000)
    assert figures["candidates"]["ulam cuda"]["share_of_copy"] == pytest.approx(1)
    assert "100.0%" in gpu_timing.table(str(case), figures)


def test_a_candidate_that_fails_is_recorded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    run = gpu.Run(tmp_path / "new" / "out.json", {"finished": False})

    def broken():
        raise ValueError("the kernel is broken")

    made = run.prepare("a case", {"bad": broken, "bad when called": lambda: broken, "good": lambda: lambda: 1})
    assert list(made) == ["good"]
    run.keep(cells=[1])
    kept = json.loads(run.out.read_text())
    assert kept["cells"] == [1] and not kept["finished"]
    assert [(f["candidate"], f["error"]) for f in kept["failures"]] == [
        ("bad", "ValueError: the kernel is broken"),
        ("bad when called", "ValueError: the kernel is broken"),
    ]
    assert capsys.readouterr().out.count("FAILED a case") == 2


class CpuTimer:
    """Stands for the timer, on a machine where it cannot be."""

    bytes = 0

    def __call__(self, function):
        begin = time.perf_counter()
        function()
        return (time.perf_counter() - begin) * 1e6


class FakeNvml:
    """100 W, whatever happens."""

    def clocks(self):
        return {"sm_mhz": 1980}

    def millijoules(self):
        return int(time.perf_counter() * 100_000)


@pytest.fixture
def on_cpu(monkeypatch):
    """The whole of bench.gpu with the CPU in the GPU's place: all but launches, graphs and compiling."""
    ours = gpu.ours
    monkeypatch.setattr(gpu, "ours", lambda data, backend: ours(data, "cpu"))
    monkeypatch.setattr(ulam_kernels, "backends", lambda: {"cpu": "usable", "cuda": "usable", "triton": "no triton"})
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: None)
    monkeypatch.setattr(gpu, "without_diffusers", lambda: "not importable: absent")
    monkeypatch.setattr(gpu, "device_facts", lambda nvml: {"device": "a CPU"})
    monkeypatch.setattr(gpu, "energy_per_call", partial(gpu_timing.energy_per_call, seconds=0.01))
    monkeypatch.setattr(gpu, "graph_cost", lambda function: {"gpu": Spread.of([1.0]), "host": Spread.of([0.1])})
    monkeypatch.setattr(gpu, "compiled", gpu.eager)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    constants = {"DEVICE": "cpu", "COPY_BYTES": 1 << 16, "LARGE": TINY, "SMALL": TINY, "QUICK_SIZES": (TINY,)}
    for name, value in {**constants, "ColdTimer": CpuTimer, "Nvml": FakeNvml}.items():
        monkeypatch.setattr(gpu, name, value)


def test_a_whole_run(on_cpu, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert gpu.main(["--quick", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["finished"] and not found["failures"] and not found["skipped"] and found["copy_gb_per_s"] > 0
    assert found["absent"] == {"triton": "no triton", "diffusers": "not importable: absent"}
    assert [cell["operation"] for cell in found["cells"]] == [c.operation for c in gpu.cases((TINY,), gpu.OPERATIONS)]
    first = found["cells"][0]
    expected = {"ulam cuda", "naive eager", "eager, fewest operations", "torch.compile of naive"}
    assert set(first["candidates"]) == expected | {"copy of as many bytes", "large copy"}
    assert first["bytes"] == 12 * 96 + 32 * 3 and first["clocks"] == {"sm_mhz": 1980}
    assert set(found["host_microseconds"]) == set(found["graph_of_100_steps_microseconds"]) == expected
    assert all(entry["watts"] > 0 for e in found["energy"].values() for entry in e.values())
    said = capsys.readouterr().out
    assert "not measured: triton: no triton" in said and "of copy" in said and said.endswith(f"wrote {out}\n")


def test_a_run_without_time_lists_what_it_skipped(on_cpu, tmp_path):
    out = tmp_path / "out.json"
    assert gpu.main(["--quick", "--seconds-limit", "0", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["finished"] and not found["cells"] and found["copy_gb_per_s"] is None
    assert len(found["skipped"]) == 14 + 2


def test_a_run_with_a_broken_candidate_fails(on_cpu, tmp_path, monkeypatch, capsys):
    def broken(data, backend):
        raise RuntimeError("step: could not launch")

    monkeypatch.setattr(gpu, "ours", broken)
    out = tmp_path / "out.json"
    assert gpu.main(["--quick", "--out", str(out)]) == 1
    found = json.loads(out.read_text())
    assert found["finished"] and {f["candidate"] for f in found["failures"]} == {"ulam cuda"}
    assert all("naive eager" in cell["candidates"] for cell in found["cells"])
    assert "FAILED launch cost: ulam cuda: RuntimeError: step: could not launch" in capsys.readouterr().out


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


# The check as a whole.


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def part(self, name, seconds, least, takes, result=None):
        """A part that takes so long, or as long as it may; ``given`` is what it was allowed."""

        def run(allowed):
            self.now += min(takes, allowed)
            return {"ok": takes <= allowed, "given": allowed, **(result or {})}

        return Part(name, seconds, least, run)


def test_a_slow_part_leaves_the_later_ones_their_least():
    clock = Clock()
    parts = [clock.part("a", 80, 10, 1000), clock.part("b", 80, 10, 5), clock.part("c", 80, 20, 1000)]
    results = run_parts(parts, 100, lambda _: None, clock)
    assert [results[name]["given"] for name in "abc"] == [70, 10, 25]
    assert [results[name]["ok"] for name in "abc"] == [False, True, False]
    assert clock.now == 100
    assert allowance(parts, 0, 20) == 0


def test_the_budgets_of_the_parts_fit():
    assert sum(part.least for part in gpu_check.PARTS) < gpu_check.SECONDS < 480
    assert all(part.least <= part.seconds for part in gpu_check.PARTS)


def test_every_part_reports_even_when_others_raise(tmp_path, capsys):
    clock = Clock()

    def broken(allowed):
        raise OSError("nvcc is gone")

    out = tmp_path / "results" / "gpu.json"
    seen = []

    def watch(allowed):
        seen.append(json.loads(out.read_text()))  # what is there if nothing more comes
        return {"ok": True, "passed": 3}

    parts = [Part("build", 10, 1, broken), Part("tests", 10, 1, watch), clock.part("noise", 10, 1, 1)]
    assert gpu_check.check(parts, {"device": "a GPU"}, out) == 1
    whole = json.loads(out.read_text())
    assert whole["machine"] == {"device": "a GPU"} and list(whole["parts"]) == ["build", "tests", "noise"]
    assert whole["parts"]["build"]["error"] == "OSError: nvcc is gone" and not whole["ok"]
    assert whole["parts"]["tests"]["passed"] == 3
    assert list(seen[0]["parts"]) == ["build"] and not seen[0]["ok"]
    assert "FAILED: build" in capsys.readouterr().out
    assert gpu_check.check(parts[1:], {}, out) == 0 and json.loads(out.read_text())["ok"]
    assert gpu_check.check(parts[1:], {}, out, seconds=0) == 1


def test_a_child_ends_at_its_limit_with_what_it_started(tmp_path):
    alive = tmp_path / "alive"
    grandchild = f"import time, pathlib; time.sleep(2); pathlib.Path({str(alive)!r}).touch()"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {grandchild!r}])"
    ran = child([sys.executable, "-c", code], 1.5)
    assert ran.code is None and ran.output == "begun\n"
    assert ran.failure() == {"error": "ended at its time limit", "output": "begun\n"}
    time.sleep(1.5)
    assert not alive.exists()


def test_children_see_this_checkout_and_no_forced_backend(monkeypatch):
    monkeypatch.setenv("ULAM_BACKEND", "reference")
    code = "import os, ulam_kernels; print(ulam_kernels.__file__, os.environ.get('ULAM_BACKEND'))"
    ran = child([sys.executable, "-c", code], 60)
    assert ran.code == 0 and ran.output.split() == [str(gpu_check.ROOT / "kernels/ulam_kernels/__init__.py"), "None"]


PYTEST = """\
collected 5 items

tests/test_a.py::test_one PASSED                                         [ 20%]
tests/test_a.py::test_two[a long name-(1, 2)] FAILED                     [ 40%]
tests/test_a.py::test_three[fp32] SKIPPED (needs two GPUs)               [ 60%]
tests/test_b.py::test_four ERROR                                         [ 80%]
tests/test_b.py::test_five PASSED                                        [100%]
=========================== short test summary info ============================
FAILED tests/test_a.py::test_two[a long name-(1, 2)] - assert 1 == 2
ERROR tests/test_b.py::test_four - OSError
ERROR tests/test_c.py - ImportError: no
"""


def test_verdicts_of_pytest():
    found = verdicts(PYTEST)
    assert (found["passed"], found["failed"], found["skipped"]) == (2, 3, 1)
    names = ["test_a.py::test_two[a long name-(1, 2)]", "test_b.py::test_four", "test_c.py"]
    assert found["failing"] == [f"tests/{name}" for name in names]
    assert found["skip_reasons"] == {"needs two GPUs": 1}
    cut = verdicts(PYTEST[: PYTEST.index("tests/test_a.py::test_three")])
    assert (cut["passed"], cut["failed"]) == (1, 1)


def test_pytest_is_run_and_read():
    """As the check runs it. Files of which nothing passed are a failure: on a GPU their tests must not be skipped."""
    found = gpu_check.tests(("tests/test_scheduler.py", "tests/test_cuda_gpu.py"), 60)
    assert found["passed_by_file"]["tests/test_scheduler.py"] >= 1 and found["failing"] == []
    if NO_GPU:
        assert not found["ok"] and found["error"] == "nothing passed in tests/test_cuda_gpu.py"
        assert found["skipped"] and any("needs a GPU" in reason for reason in found["skip_reasons"])


@pytest.mark.parametrize(
    "code, output, ok, errors",
    [
        (0, "========= ERROR SUMMARY: 0 errors", True, 0),
        (77, "========= Invalid __global__ read\n========= ERROR SUMMARY: 2 errors", False, 2),
        (1, "========= ERROR SUMMARY: 0 errors", False, 0),
        (0, "nothing", False, None),
        (None, "begun", False, None),
    ],
)
def test_what_compute_sanitizer_says(code, output, ok, errors):
    found = gpu_check.sanitized(Child(code, output))
    assert found["ok"] is ok and found["errors"] == errors


def test_a_device_without_sanitizer_support_is_no_failure():
    found = gpu_check.sanitized(Child(1, "========= Error: Device not supported. Please refer to ..."))
    assert found == {"ok": True, "skipped": "compute-sanitizer does not support this device"}


def test_half_a_benchmark_is_kept(tmp_path):
    code = "import sys, pathlib, time; pathlib.Path(sys.argv[-1]).write_text('{\"cells\": [1]}'); time.sleep(30)"
    ran, found = gpu_check.from_file([sys.executable, "-c", code], 2.0)
    assert ran.code is None and found == {"cells": [1]}
