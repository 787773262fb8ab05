"""All that needs a GPU, checked in under eight minutes, offline: `make gpu-check`, `python -m bench.gpu_check`.

Builds the extensions where they lie, runs the GPU tests and some of the others, compute-sanitizer where it is present,
compares fills of hundreds of millions of normals by bits, and measures (bench.gpu). Each part is a process of its own
with a time limit. One JSON holds what all of them found, and is kept after each. Exit code 0 is all well, 1 is not,
2 there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu_timing import Nvml, default_out, device_facts, why_no_gpu

ROOT = Path(__file__).parents[1]
GPU_TESTS = ("tests/test_cuda_gpu.py", "tests/test_triton_gpu.py")
SMOKE_TESTS = ("tests/test_step.py", "tests/test_engine.py", "tests/test_engine_robust.py")
SECONDS = 465.0  # for all parts together
BITS = (sys.executable, "-m", "bench.gpu_bits")
Result = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One check: gets at most ``seconds``, and ``least`` are kept for it when those before it are slow."""

    name: str
    seconds: float
    least: float
    run: Callable[[float], Result]


def allowance(parts: list[Part], index: int, left: float) -> float:
    """Seconds that part ``index`` may take of those left: what the later ones need at least stays untouched."""
    return max(0.0, min(parts[index].seconds, left - sum(part.least for part in parts[index + 1 :])))


def run_parts(
    parts: list[Part], seconds: float, keep: Callable[[Result], None], clock: Callable[[], float] = time.monotonic
) -> Result:
    """``{part: {"ok", "seconds", ...}}``, given to ``keep`` after each; one that raises or has no time is not ok."""
    results: Result = {}
    end = clock() + seconds
    for index, part in enumerate(parts):
        begin = clock()
        allowed = allowance(parts, index, end - begin)
        if allowed <= 0:
            result: Result = {"ok": False, "error": "no time was left for it"}
        else:
            try:
                result = part.run(allowed)
            except Exception as error:
                result = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        results[part.name] = {"ok": False, **result, "seconds": round(clock() - begin, 1)}
        state = "ok" if results[part.name]["ok"] else "FAILED"
        print(f"{part.name:<12} {state:<7}{results[part.name]['seconds']:>7.1f} s  {summary(result)}", flush=True)
        keep(results)
    return results


def summary(result: Result) -> str:
    """What there is to say of a part in one line: its numbers and short texts."""
    brief = {key: value for key, value in result.items() if isinstance(value, int | float | str)}
    return ", ".join(f"{key} {value}" for key, value in brief.items() if key not in ("ok", "output", "seconds"))


@dataclass(frozen=True)
class Child:
    """A finished process: ``code`` is None if it was ended at its time limit."""

    code: int | None
    output: str

    def failure(self) -> Result:
        """What to record of a process that failed; nothing of one that did not."""
        if self.code == 0:
            return {}
        reason = "ended at its time limit" if self.code is None else f"exit code {self.code}"
        return {"error": reason, "output": self.output[-4000:]}


def environment() -> dict[str, str]:
    """That of the children: this checkout's packages, and no backend forced."""
    paths = [str(ROOT / "kernels"), str(ROOT / "engine"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if name != "ULAM_BACKEND"}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def child(command: list[str], seconds: float, extra: dict[str, str] | None = None, show: bool = False) -> Child:
    """Run a command in the checkout; at its time limit it ends with all that it started."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
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


def build(seconds: float) -> Result:
    """Both extensions, beside their package."""
    ran = child([sys.executable, "setup.py", "build_ext", "--inplace"], seconds)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    sizes = {n: ROOT / "kernels/ulam_kernels" / f"{n}{suffix}" for n in ("_cpu", "_cuda")}
    built = {name: path.stat().st_size for name, path in sizes.items() if path.exists()}
    missing = [name for name in sizes if name not in built]
    without = {"error": f"not built: {', '.join(missing)}", "output": ran.output[-4000:]} if missing else {}
    return {"ok": ran.code == 0 and not missing, "bytes": built, **without, **ran.failure()}


VERDICT = re.compile(
    r"^(tests/\S+?\.py\S*::.+?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)(?: \((.*)\))?(?:\s+\[ *\d+%\])?$"
)


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


def tests(files: tuple[str, ...], seconds: float) -> Result:
    """Run the files with pytest; every one of them must have passed something."""
    options = ["-v", "-ra", "--tb=short", "--color=no", "-o", "addopts=", "-p", "no:cacheprovider"]
    ran = child([sys.executable, "-m", "pytest", *options, *files], seconds, {"COLUMNS": "1000"})
    counts = verdicts(ran.output)
    idle = [file for file in files if not counts["passed_by_file"].get(file)]
    nothing = {"error": f"nothing passed in {', '.join(idle)}", "output": ran.output[-4000:]} if idle else {}
    return {"ok": ran.code == 0 and not idle, **counts, **nothing, **ran.failure()}


def sanitizer(seconds: float) -> Result:
    """Memory errors of the operations on small and odd shapes, every tensor in an allocation of its own."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"ok": True, "skipped": "compute-sanitizer is not present"}
    # Failed queries that a library makes to find out what there is are no errors of ours.
    options = ["--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "77"]
    command = [tool, *options, *BITS, "operations"]
    return sanitized(child(command, seconds, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))


def sanitized(ran: Child) -> Result:
    """What compute-sanitizer found."""
    if "Device not supported" in ran.output:
        return {"ok": True, "skipped": "compute-sanitizer does not support this device"}
    totals = re.findall(r"ERROR SUMMARY: (\d+) errors?", ran.output)
    errors = sum(map(int, totals)) if totals else None
    return {"ok": ran.code == 0 and errors == 0, "errors": errors, **ran.failure()}


def from_file(command: list[str], seconds: float, show: bool = False) -> tuple[Child, Result]:
    """Run a command that writes a JSON to ``--out``, and read it, if only a part was written."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        ran = child([*command, "--out", str(path)], seconds, show=show)
        return ran, json.loads(path.read_text()) if path.exists() else {}


def noise(seconds: float) -> Result:
    """Fills against the CPU's bits."""
    ran, found = from_file([*BITS, "noise", "--seconds", str(max(5.0, seconds - 15))], seconds)
    return {**found, "ok": ran.code == 0 and bool(found.get("ok")), **ran.failure()}


def benchmark(seconds: float) -> Result:
    """bench.gpu; its failed candidates are in its JSON."""
    command = [sys.executable, "-m", "bench.gpu", "--seconds-limit", str(max(10.0, seconds - 20))]
    ran, found = from_file(command, seconds, show=True)
    return {"ok": ran.code == 0 and bool(found.get("finished")), "figures": found, **ran.failure()}


PARTS = [
    Part("build", 170, 60, build),
    Part("gpu_tests", 150, 60, partial(tests, GPU_TESTS)),
    Part("smoke_tests", 60, 20, partial(tests, SMOKE_TESTS)),
    Part("sanitizer", 60, 40, sanitizer),
    Part("noise", 45, 25, noise),
    Part("benchmark", 200, 60, benchmark),
]


def check(parts: list[Part], facts: Result, out: Path, seconds: float = SECONDS) -> int:
    """Run the parts and write the JSON; 0 if all are ok, else 1."""
    begin = time.monotonic()

    def keep(results: Result) -> None:
        ok = len(results) == len(parts) and all(result["ok"] for result in results.values())
        whole = {"ok": ok, "seconds": round(time.monotonic() - begin, 1), "machine": facts, "parts": results}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(whole, indent=1) + "\n")

    keep({})
    results = run_parts(parts, seconds, keep)
    bad = [name for name, result in results.items() if not result["ok"]]
    print(f"wrote {out}: " + (f"FAILED: {', '.join(bad)}" if bad else "all well"))
    return 1 if bad else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the JSON (default bench/results/gpu-DEVICE-DATE.json)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for everything (default {SECONDS:.0f})")
    options = parser.parse_args(arguments)
    if (reason := why_no_gpu()) is not None:
        print(f"bench.gpu_check: nothing checked: {reason}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # raised where a child is waited for, which ends it too
    return check(PARTS, device_facts(Nvml()), options.out or default_out("gpu"), options.seconds)


if __name__ == "__main__":
    sys.exit(main())
