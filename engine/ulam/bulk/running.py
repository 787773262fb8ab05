"""`ulam.bulk.run`: a plan, a folder and workers, until every unit is done."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ulam_kernels.arguments import choice, described, switch, whole

from ..arguments import whole_number
from ..files import full_path
from .folder import Folder
from .plan import Plan
from .progress import bar
from .record import finished_units, read_record
from .store.store import Store
from .workers.local_workers import LocalWorkers
from .workers.shares import Share, share_of_environment
from .workers.worker import Stop, work

LAUNCHERS = ("local", "ray")
MOST = 4096  # workers, and threads of one: more are a slip of the pen
ON_INTERRUPT = ("drop", "drain")


def run(
    plan: Plan,
    folder: str | Path,
    workers: int | None = None,
    *,
    launcher: str = "local",
    address: str | None = None,
    threads: int | None = None,
    allow_environment: bool = False,
    on_interrupt: str = "drop",
    progress: bool = True,
) -> Folder:
    """Sample all units of a plan that a folder lacks. Several runs may work in one folder at once.

    Args:
        folder: made if it is not there. One that holds another plan is refused.
        workers: processes; by default one a GPU, or one on the CPU, or under torchrun and Slurm (whose variables say
            which part of the list comes first) one. A single local worker is this process. Workers that are killed are
            started again.
        launcher: "local", or "ray": actors of the Ray cluster at ``address``, by default one on this machine.
        threads: of a worker on the CPU; by default as in the folder's first run, in which they were this process's own
            for one worker, or the cores divided by the workers.
        allow_environment: accept units and workers of another environment (other threads, versions, devices), whose
            bits may differ.
        on_interrupt: "drop" the units in hand, or "drain": give them up to seven seconds to end.
        progress: show a bar.

    Raises:
        TypeError, ValueError, OSError, ImportError: an invalid argument, another plan or environment in the folder, a
            folder that cannot be written to; in one line. What is finished stays.
        NetworkError, WorkerError: what a worker met.
        KeyboardInterrupt: an interrupt, after the workers have stopped.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: got {described(plan)}, expected an ulam.bulk.Plan")
    choice(launcher, "launcher", LAUNCHERS)
    choice(on_interrupt, "on_interrupt", ON_INTERRUPT)
    share = share_of_environment(os.environ)
    count = _workers(plan, workers, share, launcher)
    given = None if threads is None else whole(threads, "threads", 1, MOST)
    switch(allow_environment, "allow_environment")
    switch(progress, "progress")
    if address is not None and not (launcher == "ray" and isinstance(address, str)):
        raise TypeError(f"address: got {described(address)}, expected one of a Ray cluster, with launcher='ray'")
    if plan.recipe is None:  # from a recipe, each worker makes it anew
        plan.check_unchanged()
    store = opened_store(full_path(folder))
    first_threads, begun = _begun(store)
    options: dict[str, Any] = {
        "threads": given or first_threads or _threads(count),
        "allow_environment": allow_environment,
    }
    with bar(plan.chains, progress, begun) as shown:
        if launcher == "ray":
            from .workers.ray_workers import run_on_ray  # Ray is optional

            run_on_ray(plan, store, count, address, shown.update, on_interrupt=on_interrupt, **options)
        elif count == 1:
            with _draining(on_interrupt == "drain") as stop:
                work(plan, store, share, stop=stop, on_done=shown.update, **options)
        else:
            first = share.rank * count, share.local_rank * count
            shares = [Share(first[0] + i, share.world * count, first[1] + i) for i in range(count)]
            LocalWorkers(plan, store, shares, shown.update, on_interrupt=on_interrupt, **options).run()
    return Folder(store.folder)


@contextmanager
def _draining(wanted: bool) -> Iterator[Stop]:
    """Within, if wanted, the first Ctrl-C or SIGTERM is a request to stop, raised at the end; the second raises."""
    stop, came = Stop(), []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.request()
        came.append(number)
        restore()
        print("ulam: finishing the units in hand, for up to seven seconds; again stops at once", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield stop
    finally:
        restore()
    if came:
        signal.raise_signal(came[0])


def recompute(plan: Plan, folder: str | Path, count: int) -> list[str]:
    """Sample ``count`` random finished units of a folder again; the names of those whose bytes differ.

    Raises:
        ValueError: another plan or environment than the folder's. TypeError: an argument of another type.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: got {described(plan)}, expected an ulam.bulk.Plan")
    store = Store(full_path(folder))
    there = read_record(store.folder)
    finished = dict(finished_units(store, there))
    if not 1 <= whole_number("recompute", count) <= len(finished):
        raise ValueError(f"recompute: got {count}, expected 1 to the {len(finished)} finished units of {folder}")
    chosen = random.sample(list(finished), count)
    with tempfile.TemporaryDirectory(prefix="ulam-") as other:
        again = Store(Path(other))
        again.put("plan.json", there.as_json())
        work(plan, again, Share(), threads=there.environment.get("threads") or 1, only={unit.key for unit in chosen})
        redone = dict(finished_units(again, there))
        return [
            finished[unit]
            for unit in chosen
            if again.path(redone[unit]).read_bytes() != store.path(finished[unit]).read_bytes()
        ]


def opened_store(folder: Path) -> Store:
    """The store in a folder, made if it is missing. Raises OSError for one that cannot be written to."""
    store = Store(folder)
    with store.writing():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return store


def _workers(plan: Plan, workers: int | None, share: Share, launcher: str) -> int:
    gpus = torch.cuda.device_count() if plan.device == "cuda" else 0
    if workers is None:
        return gpus if gpus and share.world == 1 else 1
    count = whole(workers, "workers", 1, MOST)
    if plan.device == "cuda" and launcher == "local" and share.world == 1 and count > gpus:  # a cluster has its own
        raise ValueError(f"workers: got {count}, expected at most one for each of {gpus} GPUs")
    return count


def _begun(store: Store) -> tuple[int | None, int]:
    """A worker's threads in the first run into a folder, None for GPUs or a new folder; the chains that are done."""
    if not (store.folder / "plan.json").exists():
        return None, 0
    known = read_record(store.folder)
    done = sum(unit.end - unit.begin for unit, _ in finished_units(store, known))
    return known.environment.get("threads"), done


def _threads(workers: int) -> int:
    return torch.get_num_threads() if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
