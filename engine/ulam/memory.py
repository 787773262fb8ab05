"""Freed memory that stays with the process, so that the next tensor need not be paged in again.

The C library gives large freed blocks back to the system at once: glibc maps blocks of more than 32 MiB one by one, and
trims its heap where more is free at its end than twice the largest block mapped so far. A network or an energy that
allocates its activations anew in every call then pays for every page of them, every time, as do all tensors of that
process: on two cores 30% of an eager U-Net, and four fifths of the gradient of a posterior of 500 parameters at 1,024
chains (``bench/paging.py``).
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
MOST = 2**31 - 1  # bytes: the largest that mallopt takes
USUAL = {MMAP_THRESHOLD: 1 << 25, TRIM_THRESHOLD: 1 << 26}  # the most that glibc adapts itself to

FEW = 1000  # pages, of 4 KiB each
NO_ROOM = re.compile("can't allocate memory|not enough memory|out of memory|overflow")  # in messages of torch

_lock = threading.Lock()
_runs = 0  # that keep it now
_for_good = False


def keep_freed_memory() -> bool:
    """Keep freed memory of the CPU in this process from now on; call it once, before the first network is run.

    All tensors of the process are allocated faster, those of other packages too; no number changes. Blocks of up to
    2 GiB stay, to be used again, so that the process holds the most it ever needed, and somewhat more as memory
    splinters. ``ulam`` on the command line, :func:`ulam.mcmc.run` and workers of :mod:`ulam.bulk` do so while they run;
    :class:`ulam.Engine` and :func:`ulam.sample` leave it to the program that they are part of. Returns whether the C
    library obeys: glibc does, others have no such setting.
    """
    global _for_good
    with _lock:
        _for_good = _set(MOST, MOST)
        return _for_good


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, freed memory is kept; after the last of several such runs at once it is given back, and kept no more."""
    global _runs
    with _lock:
        _runs += 1
        if _runs == 1 and not _for_good:
            _set(MOST, MOST)
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            if _runs == 0 and not _for_good:
                _set(USUAL[MMAP_THRESHOLD], USUAL[TRIM_THRESHOLD], give_back=True)


@contextmanager
def room_for(told: str) -> Iterator[None]:
    """Tensors are made inside. Raises ValueError with ``told``, a message, where memory does not hold them."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's, which has a class of its own on CUDA alone
        if not isinstance(error, MemoryError) and not NO_ROOM.search(str(error)):
            raise
        raise ValueError(told) from None


def paging_of(function: Callable[[], T]) -> tuple[T, float]:
    """What a function returns, and the seconds that the system spent for it on pages: 0 where pages are too few to
    matter, or nothing can be done about them.
    """
    if sys.platform != "linux":
        return function(), 0.0
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF)
    result = function()
    after = resource.getrusage(resource.RUSAGE_SELF)
    few = after.ru_minflt - before.ru_minflt < FEW
    return result, 0.0 if few else after.ru_stime - before.ru_stime


def _set(mmap: int, trim: int, give_back: bool = False) -> bool:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        return False
    obeyed = bool(library.mallopt(MMAP_THRESHOLD, mmap)) and bool(library.mallopt(TRIM_THRESHOLD, trim))
    if give_back:
        library.malloc_trim(0)
    return obeyed
