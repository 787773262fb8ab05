"""Finished units without a run, and exports of them in processes of their own."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ulam.bulk import exports
from ulam.bulk.store.unit import Unit

FIRST, FAILED = 1 << 40, 5  # id of the first chain, place of one that failed
COUNTS = 70, 30  # chains of the two jobs, of which the first has labels


def samples(job: int, shape: tuple[int, ...] = (3, 8, 8), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(COUNTS[job], *shape, generator=torch.Generator().manual_seed(job)).to(dtype)
    x[FAILED] = float("nan")
    return x


def units(
    size: int = 64, shape: tuple[int, ...] = (3, 8, 8), dtype: torch.dtype = torch.float32
) -> Iterator[tuple[int, Unit]]:
    for job, count in enumerate(COUNTS):
        x = samples(job, shape, dtype)
        for begin in range(0, count, size):
            at = torch.arange(begin, min(begin + size, count))
            failed = {FAILED - begin: 3} if begin <= FAILED < begin + size else {}
            yield job, Unit(x[at], FIRST + at, at % 10 if job == 0 else None, 7 - 9 * job, failed)


def _many(count: int) -> Iterator[tuple[int, Unit]]:
    """Units of one chain of 196 KiB each."""
    for chain in range(count):
        yield 0, Unit(torch.zeros(1, 3, 128, 128), torch.tensor([chain]), torch.tensor([chain % 10]), 0, {})


def _grown(to: str, folder: Path) -> None:
    """Print the KiB by which the peak of memory is higher at 2,000 units than at 200."""
    peaks = []
    for count in (200, 2000):
        exports.write(_many(count), to, folder / f"{to}-{count}", count)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(to, peaks[1] - peaks[0], flush=True)


def _too_large(to: str, folder: Path) -> None:
    """Print the error of a file that grows too large, and what is left then."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
    os.makedirs(folder / to)
    try:
        exports.write(units(), to, folder / to / "out", sum(COUNTS))
        error = "none"
    except OSError as raised:
        error = str(raised)
    print(to, [*(folder / to).iterdir()], error, flush=True)


if __name__ == "__main__":
    check = {"grown": _grown, "too large": _too_large}[sys.argv[1]]
    for to in sys.argv[3:]:
        if not (child := os.fork()):
            check(to, Path(sys.argv[2]))
            os._exit(0)
        os.waitpid(child, 0)
