"""The check of a GPU as a whole, without one: time limits, files, the build, and a rehearsal of all of it."""

from __future__ import annotations

import json
import shutil
import sys
import time
from functools import partial

import pytest
import torch
from bench import gpu_build, gpu_check, gpu_report
from bench.gpu_check import Child, Files, Part, allowance, child, run_parts, verdicts
from bench.gpu_stage import Stage

NO_GPU = not torch.cuda.is_available()
REHEARSAL = Stage(rehearsal=True)
MACHINE = {"device": "A GPU 80GB", "multiprocessors": 132}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def part(self, name, seconds, least, takes, result=None):
        """A part that takes so long, or as long as it may; ``given`` is what it was allowed."""

        def run(allowed, path):
            self.now += min(takes, allowed)
            return {"ok": takes <= allowed, "given": allowed, **(result or {})}

        return Part(name, seconds, least, run)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "results", MACHINE)


def saved(files, part):
    return json.loads(files.path(part).read_text())


def test_a_slow_part_leaves_the_later_ones_their_least(files):
    clock = Clock()
    parts = [clock.part("a", 80, 10, 1000), clock.part("b", 80, 10, 5), clock.part("c", 80, 20, 1000)]
    results = run_parts(parts, 100, files, clock)
    assert [results[name]["given"] for name in "abc"] == [70, 10, 25]
    assert [results[name]["ok"] for name in "abc"] == [False, True, False]
    assert clock.now == 100
    assert allowance(parts, 0, 20) == 0


@pytest.mark.parametrize("stage", [REHEARSAL] if NO_GPU else [REHEARSAL, Stage()], ids=str)
def test_the_parts_have_their_order_and_their_budgets_fit(stage):
    parts = gpu_check.parts_for(stage)
    assert [part.name for part in parts] == ["build", "kernels", "engine", "bench", "loops", "noise", "sanitizer"]
    assert len(parts) + 1 <= 8, "files to carry home from a machine elsewhere, the table among them"
    assert sum(part.least for part in parts) < gpu_check.SECONDS < 480
    assert all(part.least <= part.seconds for part in parts)
    for test in (*gpu_check.KERNEL_TESTS, *gpu_check.ENGINE_TESTS):
        assert (gpu_check.ROOT / test).exists()


def test_every_part_leaves_its_file_even_when_others_raise(files, capsys):
    clock = Clock()

    def broken(allowed, path):
        raise OSError("nvcc is gone")

    seen = []

    def watch(allowed, path):
        seen.extend((saved(files, "build"), saved(files, "kernels")))  # what is there if nothing more comes
        return {"ok": True, "passed": 3}

    parts = [Part("build", 10, 1, broken), Part("kernels", 10, 1, watch), clock.part("noise", 10, 1, 1)]
    results = run_parts(parts, 60, files)
    assert [results[part.name]["ok"] for part in parts] == [False, True, True]
    assert seen[0]["error"] == "OSError: nvcc is gone" and not seen[0]["ok"]
    assert seen[1]["error"] == "begun, and not heard of since" and not seen[1]["ok"]
    for part in ("build", "kernels", "noise"):
        whole = saved(files, part)
        assert whole["machine"] == MACHINE and whole["part"] == part and whole == results[part]
    table = (files.folder / "gpu-check-a-gpu-80gb.md").read_text()
    assert "| build | FAILED |" in table and "nvcc is gone" in table and "| kernels | ok |" in table
    assert "3 passed" in table and "not heard of" not in table
    assert "build        FAILED" in capsys.readouterr().out
    assert run_parts(parts[1:2], 0, files)["kernels"]["error"] == "no time was left for it"


HALF = """
import json, os, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
found = json.loads(path.read_text())
figure = {"name": "a row", "unit": "us", "candidates": {"ulam cuda": {"median": 2.0}, "naive eager": {"median": 8.0}}}
path.write_text(json.dumps({**found, "finished": False, "figures": [figure]}))
"""


@pytest.mark.parametrize(
    "end, reason",
    [
        ("time.sleep(60)", "ended at its time limit"),
        ("os.kill(os.getpid(), 9)", "exit code -9"),
        ("raise MemoryError", "exit code 1"),
    ],
    ids=["time-out", "killed", "raises"],
)
def test_a_part_that_dies_loses_only_itself(files, end, reason):
    """Its figures so far are kept, the others are whole, and a second run of it alone makes the check whole."""
    begun = time.monotonic()

    def run(code, seconds, path):
        ran = child([sys.executable, "-c", HALF + code, str(path)], min(seconds, 3.0))
        return {"ok": ran.code == 0, **ran.failure()}

    parts = [
        Part("bench", 20, 1, partial(run, end)),
        Part("noise", 20, 1, lambda seconds, path: {"ok": True, "normals": 5}),
    ]
    results = run_parts(parts, 60, files)
    assert time.monotonic() - begun < 30
    assert not results["bench"]["ok"] and results["bench"]["error"] == reason and results["noise"]["ok"]
    assert saved(files, "bench")["figures"][0]["name"] == "a row" and saved(files, "noise")["normals"] == 5
    table = (files.folder / "gpu-check-a-gpu-80gb.md").read_text()
    assert f"| bench | FAILED | {results['bench']['seconds']} s | 1 figures; {reason} |" in table
    assert "| a row | ulam cuda | 2 us | - | - | 8 | - | 4.00 |" in table
    run_parts([Part("bench", 20, 1, partial(run, ""))], 60, files)
    table = (files.folder / "gpu-check-a-gpu-80gb.md").read_text()
    assert "| bench | ok |" in table and "| noise | ok |" in table and "FAILED" not in table


def test_a_check_that_is_killed_leaves_what_was_there(files):
    """The file of the part under way says so, with the figures that its process had written."""
    path = files.path("bench")
    files.keep("bench", path, {"error": "begun, and not heard of since"})
    assert child([sys.executable, "-c", HALF, str(path)], 60).code == 0
    (device,) = gpu_report.parts(files.folder).values()
    assert device["bench"]["figures"] and device["bench"]["error"] == "begun, and not heard of since"
    (page,) = gpu_report.write(files.folder)
    assert "| bench | FAILED |" in page.read_text() and "| a row |" in page.read_text()


def test_a_file_that_is_not_whole_does_not_hide_the_others(files, capsys):
    files.keep("noise", files.path("noise"), {"ok": True})
    files.path("bench").write_text('{"part": "bench", "mach')
    assert list(gpu_report.parts(files.folder)["A GPU 80GB"]) == ["noise"]
    assert "bench.json: not read: JSONDecodeError" in capsys.readouterr().out
    assert gpu_report.main([str(files.folder)]) == 0 and gpu_report.main([str(files.folder / "none")]) == 1


def test_the_newest_file_of_a_part_counts(files):
    for day, passed in (("2026-11-27", 1), ("2026-11-28", 2)):
        name = f"gpu-check-a-gpu-80gb-{day}-kernels.json"
        files.folder.mkdir(exist_ok=True)
        content = {"part": "kernels", "date": f"{day}T10:00:00+00:00", "machine": MACHINE, "ok": True, "passed": passed}
        (files.folder / name).write_text(json.dumps(content))
    assert gpu_report.parts(files.folder)["A GPU 80GB"]["kernels"]["passed"] == 2


def test_parts_are_chosen_by_name_and_built_when_they_must_be(monkeypatch):
    parts = gpu_check.parts_for(REHEARSAL)
    names = lambda *given: [part.name for part in gpu_check.chosen(parts, *given)]  # noqa: E731
    assert names("bench,engine", None) == ["engine", "bench"]
    assert names("", None) == [part.name for part in parts]
    with pytest.raises(ValueError, match="parts: got tests, gpu, expected some of build, kernels, engine"):
        gpu_check.chosen(parts, "tests,engine,gpu", None)
    monkeypatch.setattr(gpu_build, "current", lambda root, architecture: architecture == "90")
    assert names("engine", "90") == ["engine"]
    assert names("engine", "80") == ["build", "engine"]
    with pytest.raises(SystemExit):
        gpu_check.main(["--rehearse", "--parts", "engines"])


# The build.

SETUP = """
from setuptools import Extension, setup
extensions = [Extension(f"ulam_kernels.{name}", [f"bindings/{name}.c"]) for name in ("_cpu", "_cuda")]
setup(ext_modules=extensions)
"""
SOURCE = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "NAME", "ARCHITECTURES", -1, 0};
PyMODINIT_FUNC PyInit_NAME(void) { return PyModule_Create(&module); }
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a compiler")
def test_the_build_reads_no_pyproject_and_is_done_once(tmp_path, monkeypatch):
    """A small project of this one's shape, whose pyproject.toml no setuptools can read."""
    for folder in ("csrc", "bindings", "kernels/ulam_kernels"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ulam"\nlicense = 7\n')
    (tmp_path / "setup.py").write_text(SETUP)
    for name in gpu_build.MODULES:
        (tmp_path / f"bindings/{name}.c").write_text(SOURCE.replace("NAME", name))
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    direct = child([sys.executable, "setup.py", "build_ext", "--inplace"], 60, cwd=tmp_path)
    assert direct.code != 0, "the file cannot be read"
    assert not gpu_build.current(tmp_path, "90")
    found = gpu_check.build("90", 60, tmp_path / "none")
    assert found["ok"], found
    assert set(found["bytes"]) == {"_cpu", "_cuda"} and gpu_build.current(tmp_path, "90")
    assert not gpu_build.current(tmp_path, "100"), "what is there is for one architecture"
    assert gpu_check.build("90", 60, tmp_path / "none")["built"] == "before, from the same sources"
    for source in (tmp_path / "bindings/_cpu.c", tmp_path / "setup.py"):
        source.write_text(source.read_text() + "\n")
        assert not gpu_build.current(tmp_path, "90")
        assert gpu_check.build("90", 60, tmp_path / "none")["ok"] and gpu_build.current(tmp_path, "90")
    next(iter(gpu_build.built(tmp_path).values())).write_bytes(b"another build")
    assert not gpu_build.current(tmp_path, "90")
    (tmp_path / "bindings/_cuda.c").write_text("no C")
    failed = gpu_check.build("90", 60, tmp_path / "none")
    assert not failed["ok"] and "_cuda" in failed["error"] + failed["output"]


def test_the_folder_of_the_build_has_all_that_setup_py_reads():
    """Its relative paths, under links, and no pyproject.toml."""
    folder = gpu_build.folder(gpu_check.ROOT, "rehearsal")
    try:
        assert not (folder / "pyproject.toml").exists()
        for name in ("setup.py", "csrc/cuda/step.cu", "csrc/include/ulam/row.h", "bindings/cuda.cpp"):
            assert (folder / name).samefile(gpu_check.ROOT / name)
        assert (folder / "ulam_kernels").samefile(gpu_check.ROOT / "kernels/ulam_kernels")
        relative = {part.split("/")[0] for part in ("csrc/cuda", "bindings", "csrc/include", "csrc/cpu")}
        assert relative <= {path.name for path in folder.iterdir()}
    finally:
        shutil.rmtree(folder)


# Processes.


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


@pytest.mark.long
def test_pytest_is_run_and_read(tmp_path):
    """As the check runs it. Files of which nothing passed are a failure: on a GPU their tests must not be skipped."""
    files = ("tests/engine/test_scheduler.py", "tests/gpu/test_cuda_gpu.py")
    found = gpu_check.tests(files, False, 120, tmp_path)
    assert found["passed_by_file"]["tests/engine/test_scheduler.py"] >= 1 and found["failing"] == []
    if NO_GPU:
        assert not found["ok"] and found["error"].startswith(
            "nothing passed in tests/gpu/test_cuda_gpu.py; skipped for want"
        )
        assert found["skipped"] and any("needs a GPU" in reason for reason in found["skip_reasons"])
        beside = gpu_check.tests(("tests/gpu/test_likelihood_gpu.py",), False, 120, tmp_path)
        assert not beside["ok"] and beside["passed"] >= 5 and "skipped for want of a GPU: " in beside["error"]
        assert gpu_check.tests(("tests/gpu/test_likelihood_gpu.py",), True, 120, tmp_path)["ok"]


def test_a_file_of_tests_that_hangs_loses_only_itself(tmp_path):
    hangs, quick = tmp_path / "test_hangs.py", tmp_path / "test_quick.py"
    hangs.write_text("import time\ndef test_hangs(): time.sleep(300)\n")
    quick.write_text("def test_fails(): assert 1 == 2\n")
    found = gpu_check.tests((str(hangs), str(quick)), False, 8, tmp_path)
    assert not found["ok"]
    assert f"{hangs}: ended at its time limit" in found["error"] and f"{quick}: exit code 1" in found["error"]


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
    assert found == {"ok": True, "not_run": "compute-sanitizer does not support this device"}


@pytest.mark.long
def test_a_rehearsal_of_everything(tmp_path, capfd):
    """All parts as on a GPU, each in its processes: every figure is measured and every file written."""
    out = tmp_path / "out"
    rehearsed = gpu_check.main(["--rehearse", "--out", str(out), "--seconds", "900"])
    said = capfd.readouterr().out
    found = gpu_report.parts(out)["rehearsal"]
    assert list(found) == sorted(part.name for part in gpu_check.parts_for(REHEARSAL))
    for name, result in found.items():
        assert result["ok"] and not result.get("failures") and result["error"] == "", (name, result)
    assert rehearsed == 0 and "FAILED" not in said
    bench, loops = found["bench"], found["loops"]
    assert not bench["skipped"] and not loops["skipped"] and bench["finished"] and loops["finished"]
    groups = {figure["group"] for figure in bench["figures"]}
    assert groups >= {"ddpm", "2m", "unipc", "fill", "mcmc", "likelihood", "launch", "energy", "compile", "norms"}
    for figure in (*bench["figures"], *loops["figures"]):
        assert figure["candidates"], figure["name"]
        assert all(entry["median"] is not None for entry in figure["candidates"].values())
    plain = next(figure for figure in bench["figures"] if figure["group"] == "ddpm")
    wanted = {"ulam cuda", "ulam triton", "naive eager", "torch.compile of naive", "copy of as many bytes"}
    assert wanted <= set(plain["candidates"])
    names = [figure["name"] for figure in loops["figures"]]
    for net in ("MLP", "digits U-Net", "CIFAR-size U-Net"):
        for dtype in ("fp32", "bf16 channels-last"):
            assert sum(name.startswith(net) and dtype in name for name in names) == 2
    first = next(figure for figure in loops["figures"] if figure["name"].startswith("MLP"))
    assert set(first["candidates"]) == {"ulam", "ulam, no CUDA graphs", "ulam, outputs not checked", "naive eager",
                                        "naive, CUDA graph"}  # fmt: skip
    assert {"host time of a tick, 256 slots", "host time of a chain's admission, 256 slots"} <= set(names)
    assert found["engine"]["passed"] >= 13 and found["noise"]["normals"] >= 1 << 14
    assert len(list(out.iterdir())) == len(found) + 1 <= 8
    table = (out / "gpu-check-rehearsal.md").read_text()
    assert table.count("\n") > 100 and table in said
