"""Run tests over an extension that was built with a sanitizer, as make sanitize does.

    python tests/support/sanitize.py address|thread FOLDER [pytest's arguments]

FOLDER holds what ``ULAM_SANITIZE=... python setup.py build_ext --build-lib FOLDER`` built. The process starts itself
again with the sanitizer's runtime in front, which an uninstrumented Python needs; then it checks that a deliberate
fault is found, and runs the tests. The exit code is nonzero if anything else was found.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

RUNTIMES = {"address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}
# Python and torch keep memory until the process ends, so leaks are not looked for; no other finding is suppressed.
# ThreadSanitizer does not see libgomp's barriers, so races are looked for with one OpenMP thread per Python thread.
OPTIONS = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    "thread": {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66", "OMP_NUM_THREADS": "1"},
}
FAULTS = {"address": "AddressSanitizer: heap-buffer-overflow", "thread": "ThreadSanitizer: data race"}
NO_RANDOM_ADDRESSES = (
    0x0040000  # for personality(2): gcc 12's runtime does not know all address ranges of newer kernels
)
EXTENSION = "ulam_kernels._cpu"


class Instrumented:
    """Finds the extension in a folder of its own, before any other finder."""

    def __init__(self, folder: Path) -> None:
        (self.file,) = (folder.resolve() / "ulam_kernels").glob("_cpu.*.so")

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.file) if name == EXTENSION else None


def start_again(kind: str) -> None:
    """The same command with the sanitizer's runtime, and the C++ library that it stands in for, in front."""
    find = lambda name: subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()  # noqa: E731
    libraries = [find(name) for name in (*RUNTIMES[kind], "libstdc++.so.6")]
    missing = [name for name in libraries if not os.path.isabs(name)]
    if missing:
        sys.exit(f"sanitize: gcc has no {' and no '.join(missing)}, install its sanitizers")
    ctypes.CDLL(None).personality(NO_RANDOM_ADDRESSES)
    environment = {**os.environ, **OPTIONS[kind], "LD_PRELOAD": " ".join(libraries), "ULAM_SANITIZED": kind}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def make_a_fault(kind: str) -> None:
    """A chain declared longer than its tensors, or one tensor that two threads write at once."""
    import threading

    import torch

    from ulam_kernels import _cpu
    from ulam_kernels.native import rows

    x, m, out, one = torch.ones(1, 4096), torch.ones(1, 4096), torch.ones(1, 4096), torch.ones(1)
    chains, elements, *rest = rows.affine(x, m, one, one, out)
    if kind == "address":
        elements += 16
    gate = threading.Barrier(2)

    def write() -> None:
        gate.wait()
        for _ in range(1000):
            _cpu.affine(chains, elements, *rest, 1)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def expect_a_finding(kind: str) -> None:
    ran = subprocess.run([sys.executable, *sys.argv[:3], "--fault"], capture_output=True, text=True)
    if not ran.returncode or FAULTS[kind] not in ran.stderr:
        sys.exit(f"sanitize: a fault made on purpose was not found (exit {ran.returncode}): {ran.stderr[-2000:]}")


def main() -> int:
    kind, folder, *arguments = sys.argv[1:]
    if os.environ.get("ULAM_SANITIZED") != kind:
        start_again(kind)
    finder = Instrumented(Path(folder))
    sys.meta_path.insert(0, finder)
    from ulam_kernels import _cpu

    assert _cpu.__file__ == str(finder.file), f"{EXTENSION}: got {_cpu.__file__}, expected {finder.file}"
    if arguments == ["--fault"]:
        make_a_fault(kind)
        return 0
    expect_a_finding(kind)
    import pytest

    return int(pytest.main(["--capture=sys", *arguments]))  # a runtime writes to the process's own stderr


if __name__ == "__main__":
    sys.exit(main())
