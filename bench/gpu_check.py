"""All that needs a GPU, checked in under eight minutes, offline: `make gpu-check`, `python -m bench.gpu_check`.

In this order: builds the extensions where they lie, for the GPU that is present; runs the GPU tests of the kernels, and
beside them some of the others; runs the engine's tests on the GPU; times kernels (bench.gpu) and whole loops
(bench.gpu_loops); compares fills of hundreds of millions of normals by bits; compute-sanitizer where it is present.

Each part is a process of its own with a time limit, and writes a JSON of its own as it goes, into the folder OUT
(bench/results): gpu-check-DEVICE-DATE-PART.json. So one that dies or is cut short loses itself only. `--parts
engine,bench` (make: PARTS=) runs those alone. After each part a table of all that is in the folder is written to
gpu-check-DEVICE.md there.
`--rehearse` runs all of it without a GPU. Exit code 0 is all well, 1 is not, 2 there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import gpu_build, gpu_report
from bench.gpu_stage import Stage, write_whole
from bench.gpu_timing import slug
from bench.sass import find_tool
from bench.shard import VARIABLE

ROOT = Path(__file__).parents[1]
# Each file is a process of its own, all at once, or as many as SHARDS says; those behind the first five need no GPU.
SHARDS = {"tests/gpu/test_triton_gpu.py": 5}  # which spends its time in Triton's compiler, on one core
KERNEL_TESTS = ("tests/gpu/test_cuda_gpu.py", "tests/gpu/test_triton_gpu.py", "tests/gpu/test_mcmc_gpu.py",
                "tests/gpu/test_likelihood_gpu.py", "tests/gpu/test_walk_gpu.py", "tests/kernels/test_step.py",
                "tests/engine/test_engine.py", "tests/engine/test_engine_robust.py")  # fmt: skip
ENGINE_TESTS = ("tests/gpu/test_engine_gpu.py", "tests/gpu/test_chains_gpu.py", "tests/gpu/test_bulk_gpu.py",
                "tests/gpu_without_gpu/test_no_sync.py")  # fmt: skip
SECONDS = 465.0  # for all parts together
BITS = (sys.executable, "-m", "bench.gpu_bits")
Result = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One check: gets at most ``seconds``, and ``least`` are kept for it when those before it are slow.

    ``run`` is given its seconds and the path of its JSON, into which it may write what it has so far.
    """

    name: str
    seconds: float
    least: float
    run: Callable[[float, Path], Result]


def allowance(parts: list[Part], index: int, left: float) -> float:
    """Seconds that part ``index`` may take of those left: what the later ones need at least stays untouched."""
    return max(0.0, min(parts[index].seconds, left - sum(part.least for part in parts[index + 1 :])))


@dataclass(frozen=True)
class Files:
    """Where the parts of one check of one machine are kept."""

    folder: Path
    machine: Result

    def path(self, part: str) -> Path:
        day = datetime.now(timezone.utc).date().isoformat()
        return self.folder / f"{gpu_report.PREFIX}{slug(self.machine['device'])}-{day}-{part}.json"

    def keep(self, part: str, path: Path, result: Result) -> Result:
        """Write a part's result over what its process has written so far, and the table of all parts."""
        written: Result = {}
        if path.exists():
            written = json.loads(path.read_text())
        head = {"part": part, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "ok": False}
        whole = {**head, **written, **result, "machine": {**self.machine, **written.get("machine", {})}}
        write_whole(path, whole)
        gpu_report.write(self.folder)
        return whole


def run_parts(
    parts: list[Part], seconds: float, files: Files, clock: Callable[[], float] = time.monotonic
) -> dict[str, Result]:
    """Run the parts in turn, each into its file; one that raises or has no time is not ok. What they found, by name."""
    results: dict[str, Result] = {}
    end = clock() + seconds
    for index, part in enumerate(parts):
        begin, path = clock(), files.path(part.name)
        path.unlink(missing_ok=True)
        files.keep(part.name, path, {"error": "begun, and not heard of since"})
        allowed = allowance(parts, index, end - begin)
        try:
            result = part.run(allowed, path) if allowed > 0 else {"error": "no time was left for it"}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        told = {"ok": False, "error": "", **result, "seconds": round(clock() - begin, 1)}
        results[part.name] = files.keep(part.name, path, told)
        state = "ok" if told["ok"] else "FAILED"
        print(f"{part.name:<12} {state:<7}{told['seconds']:>7.1f} s  {summary(told)}", flush=True)
    return results


def summary(result: Result) -> str:
    """What there is to say of a part in one line: its numbers and short texts."""
    brief = {key: value for key, value in result.items() if isinstance(value, int | float | str) and value != ""}
    return ", ".join(f"{key} {value}" for key, value in brief.items() if key not in ("ok", "output", "seconds"))


@dataclass(frozen=True)
class Child:
    """A finished process: ``code`` is None if it was ended at its time limit."""

    code: int | None
    output: str

    def beside(self, other: Child) -> Child:
        """Two processes as one: the code of the one that failed, if one did, and the output of both."""
        code = self.code if self.code != 0 else other.code
        return Child(code, f"{self.output}\n{other.output}")

    def failure(self) -> Result:
        """What to record of a process that failed; nothing of one that did not."""
        if self.code == 0:
            return {}
        reason = "ended at its time limit" if self.code is None else f"exit code {self.code}"
        return {"error": reason, "output": self.output[-4000:]}


def environment() -> dict[str, str]:
    """The children's environment: this checkout's packages, and no backend forced."""
    paths = [str(ROOT / "kernels"), str(ROOT / "engine"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if name != "ULAM_BACKEND"}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def child(
    command: list[str], seconds: float, extra: dict[str, str] | None = None, show: bool = False, cwd: Path = ROOT
) -> Child:
    """Run a command in the checkout; at its time limit it ends with all that it started."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment() | (extra or {}),
            stdin=subprocess.DEVNULL,
            stdout=None if show else output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            code = None
        output.seek(0)
        return Child(code, output.read())


def build(architecture: str, seconds: float, _: Path) -> Result:
    """Both extensions, beside their package, for one architecture."""
    if gpu_build.current(ROOT, architecture):
        return {"ok": True, "built": "before, from the same sources", "architecture": architecture}
    folder = gpu_build.folder(ROOT, architecture)
    for path in gpu_build.built(ROOT).values():
        path.unlink()  # of other sources or architectures
    ran = child(gpu_build.COMMAND, seconds, {"ULAM_CUDA_ARCHITECTURES": architecture}, cwd=folder)
    built = {name: path.stat().st_size for name, path in gpu_build.built(ROOT).items()}
    missing = [name for name in gpu_build.MODULES if name not in built]
    without = {"error": f"not built: {', '.join(missing)}", "output": ran.output[-4000:]} if missing else {}
    if ran.code == 0 and not missing:
        gpu_build.remember(ROOT, architecture)
    return {"ok": ran.code == 0 and not missing, "bytes": built, "architecture": architecture, **without,
            **ran.failure()}  # fmt: skip


VERDICT = re.compile(
    r"^(tests/\S+?\.py\S*::.+?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)(?: \((.*)\))?(?:\s+\[ *\d+%\])?$"
)


WITHOUT_GPU = re.compile(r"\bno GPU|needs a GPU")  # how tests say why they were skipped


def verdicts(output: str) -> Result:
    """Counts, failing names and reasons of skipping from pytest's verbose output, whole or cut short."""
    found = [match.groups() for line in output.splitlines() if (match := VERDICT.match(line))]
    counts = Counter(verdict for _, verdict, _ in found)
    uncollected = set(re.findall(r"^ERROR (tests/[^\s:]+\.py)(?: - .*)?$", output, flags=re.MULTILINE))
    failing = [name for name, verdict, _ in found if verdict in ("FAILED", "ERROR")]
    return {
        "passed": counts["PASSED"],
        "failed": counts["FAILED"] + counts["ERROR"] + len(uncollected),
        "skipped": counts["SKIPPED"],
        "failing": failing + sorted(uncollected),
        "skip_reasons": dict(Counter(reason or "" for _, verdict, reason in found if verdict == "SKIPPED")),
        "passed_by_file": dict(Counter(name.split("::")[0] for name, verdict, _ in found if verdict == "PASSED")),
    }


def told_of_failures(output: str) -> str:
    """The tracebacks in pytest's output, if any, and its end."""
    begin = output.find("= FAILURES =")
    shown = output[begin : begin + 8000] if begin >= 0 else ""
    return re.sub(r"[ =_-]{80,}", " ", f"{shown}\n{output[-3000:]}")


def tests(files: tuple[str, ...], idle_ok: bool, seconds: float, _: Path) -> Result:
    """Run the files with pytest, side by side; each must pass something and find a GPU (unless ``idle_ok``)."""
    options = ["-v", "-ra", "--tb=short", "--color=no", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "bench.shard"]
    extra = {"COLUMNS": "1000", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1" if idle_ok else "4"}

    def run(file: str, shard: int, of: int) -> Child:
        return child([sys.executable, "-m", "pytest", *options, file], seconds, extra | {VARIABLE: f"{shard}/{of}"})

    shards = [(file, shard, of) for file in files for of in [SHARDS.get(file, 1)] for shard in range(of)]
    with ThreadPoolExecutor(1 if idle_ok else len(shards)) as pool:
        done = list(pool.map(lambda each: run(*each), shards))
    ran: dict[str, Child] = {}
    for (file, _, _), each in zip(shards, done, strict=True):
        ran[file] = ran[file].beside(each) if file in ran else each
    counts = verdicts("\n".join(each.output for each in ran.values()))
    idle = [file for file in files if not counts["passed_by_file"].get(file) and not idle_ok]
    bad = {file: each for file, each in ran.items() if each.code not in ((0, 5) if idle_ok else (0,))}
    told = [f"nothing passed in {', '.join(idle)}"] if idle else []
    unseen = {reason: count for reason, count in counts["skip_reasons"].items() if WITHOUT_GPU.search(reason)}
    if unseen and not idle_ok:  # cases for the CPU may have passed beside them
        told.append(f"skipped for want of a GPU: {sum(unseen.values())} ({'; '.join(unseen)})")
    told += [f"{file}: {each.failure()['error']}" for file, each in bad.items()]
    output = "\n".join(told_of_failures(ran[file].output) for file in {*bad, *idle})
    return {"ok": not told, **counts, **({"error": "; ".join(told), "output": output} if told else {})}


def sanitizer(seconds: float, _: Path) -> Result:
    """Memory errors of the operations on small and odd shapes, every tensor in an allocation of its own."""
    tool = find_tool("compute-sanitizer")
    if tool is None:
        return {"ok": True, "not_run": "compute-sanitizer is not present"}
    # Libraries probe the device with queries that may fail: these are not our errors.
    options = ["--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "77"]
    command = [tool, *options, *BITS, "operations"]
    return sanitized(child(command, seconds, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))


def sanitized(ran: Child) -> Result:
    """What compute-sanitizer found."""
    if "Device not supported" in ran.output:
        return {"ok": True, "not_run": "compute-sanitizer does not support this device"}
    totals = re.findall(r"ERROR SUMMARY: (\d+) errors?", ran.output)
    errors = sum(map(int, totals)) if totals else None
    return {"ok": ran.code == 0 and errors == 0, "errors": errors, **ran.failure()}


def written(path: Path) -> Result:
    """What a process has written into its JSON, if only a part of it."""
    return json.loads(path.read_text()) if path.exists() else {}


def noise(rehearse: list[str], seconds: float, path: Path) -> Result:
    """Fills against the CPU's bits."""
    ran = child([*BITS, "noise", "--out", str(path), "--seconds", str(max(5.0, seconds - 15)), *rehearse], seconds)
    return {"ok": ran.code == 0 and bool(written(path).get("ok")), **ran.failure()}


def benchmark(module: str, rehearse: list[str], seconds: float, path: Path) -> Result:
    """A benchmark, which writes its figures as they come; its failed candidates are in its JSON."""
    command = [sys.executable, "-m", module, "--out", str(path), "--seconds", str(max(10.0, seconds - 30)), *rehearse]
    ran = child(command, seconds, show=True)
    return {"ok": ran.code == 0 and bool(written(path).get("finished")), **ran.failure()}


def parts_for(stage: Stage) -> list[Part]:
    """All parts, in their order. A rehearsal builds nothing and has tests that find no GPU."""
    rehearse = ["--rehearse"] if stage.rehearsal else []
    major, minor = (9, 0) if stage.rehearsal else torch.cuda.get_device_capability()

    def rehearsed_build(_: float, __: Path) -> Result:
        return {"ok": len(gpu_build.built(ROOT)) > 0, "not_run": "a rehearsal takes what is there"}

    return [
        Part("build", 150, 60, rehearsed_build if stage.rehearsal else partial(build, f"{major}{minor}")),
        Part("kernels", 120, 50, partial(tests, KERNEL_TESTS[: 5 if stage.rehearsal else None], stage.rehearsal)),
        Part("engine", 80, 30, partial(tests, ENGINE_TESTS[: 1 if stage.rehearsal else None], stage.rehearsal)),
        Part("bench", 150, 50, partial(benchmark, "bench.gpu", rehearse)),
        Part("loops", 150, 50, partial(benchmark, "bench.gpu_loops", rehearse)),
        Part("noise", 45, 25, partial(noise, rehearse)),
        Part("sanitizer", 60, 30, sanitizer),
    ]


def chosen(parts: list[Part], names: str, architecture: str | None) -> list[Part]:
    """The parts named, in their order; the build before them if what is built is not of these sources.

    Raises:
        ValueError: a name that no part has.
    """
    wanted = [name for name in names.split(",") if name] or [part.name for part in parts]
    known = [part.name for part in parts]
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"parts: got {', '.join(unknown)}, expected some of {', '.join(known)}")
    if architecture is not None and not gpu_build.current(ROOT, architecture):
        wanted.append("build")
    return [part for part in parts if part.name in wanted]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="the folder (default bench/results)")
    parser.add_argument("--parts", default="", help="names with commas (default all)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for everything (default {SECONDS:.0f})")
    parser.add_argument("--rehearse", action="store_true", help="on a machine without a GPU: all but the times")
    options = parser.parse_args(arguments)
    stage = Stage(options.rehearse)
    if (reason := stage.why_not()) is not None:
        print(f"bench.gpu_check: nothing checked: {reason}")
        return 2
    architecture = None if stage.rehearsal else "{}{}".format(*torch.cuda.get_device_capability())
    try:
        parts = chosen(parts_for(stage), options.parts, architecture)
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # raised where a child is waited for, which ends it too
    files = Files(options.out.absolute(), stage.facts(stage.nvml()))
    results = run_parts(parts, options.seconds, files)
    bad = [name for name, result in results.items() if not result["ok"]]
    for path in gpu_report.write(files.folder):
        if slug(files.machine["device"]) in path.name:
            print(path.read_text())
    print(f"wrote {files.folder}: " + (f"FAILED: {', '.join(bad)}" if bad else "all well"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
