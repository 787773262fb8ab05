"""A whole tick as one CUDA graph: time look-up, network, check, reductions, fused step."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import torch

from ..evaluation import modules_in
from .report import Report

log = logging.getLogger("ulam")
SYNCHRONISES = "called a synchronizing CUDA operation"  # torch's warning in its sync debug mode,
PROTOTYPE = "Synchronization debug mode is a prototype"  # and its warning about that mode, once per process
# torch.cuda.graph waits for the whole device before a capture, which spoils another thread's capture under way.
_CAPTURING = threading.RLock()
_WATCHING = threading.RLock()  # guards torch's debug mode and Python's warnings, which all threads share
DISTURBED = "previous error during capture"  # CUDA's error for a capture spoilt from outside
ATTEMPTS = 3  # at capturing a kind of tick, when spoilt from outside


class TickGraphs:
    """CUDA graphs of ticks, by what a tick contains: guidance, reductions, the network's batch, and so on.

    The first tick of each kind runs eagerly: it warms up libraries and allocator, and shows whether it waits for the
    device, which a graph cannot. The second is captured, and replayed from then on. A first tick that waits may have
    compiled the network, so the second is watched too. A kind that waits again, or whose capture fails, runs eagerly,
    and that is reported once; a capture spoilt from outside the tick, such as by another thread that waits for the
    whole device, is retried at the next ticks. All graphs share one memory pool and are captured on one stream of
    their own, so that engines on several devices, or two on one, do not interfere. Buffers that a graph reads or writes
    must not move; if one does, :meth:`forget` drops all graphs.
    """

    def __init__(self, device: torch.device, report: Report) -> None:
        self._device, self._report = device, report
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._warm: set[Hashable] = set()
        self._doubted: set[Hashable] = set()
        self._disturbed: Counter[Hashable] = Counter()
        self._addresses: list[int] | None = None
        self._pool: Any = None
        self._generator = torch.cuda.default_generators[device.index]

    def forget(self) -> None:
        """Drop all graphs: a buffer has moved."""
        self._graphs = {key: None for key, graph in self._graphs.items() if graph is None}
        self._pool = None  # a pool whose graphs are gone cannot be used again

    def reads(self, addresses: list[int]) -> None:
        """Drop all graphs if what a tick reads is not at the addresses that they were captured with."""
        if addresses != self._addresses:
            self.forget()
            self._addresses = addresses

    def of_tick(self, key: Hashable, tick: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The graph of this kind of tick, to be replayed; None if the tick was run eagerly instead."""
        if key not in self._warm:
            self._warm_up(key, tick)
            return None
        if key not in self._graphs:
            captured = self._capture(tick)
            if isinstance(captured, str):
                self._disturbed[key] += 1
                if DISTURBED in captured and self._disturbed[key] < ATTEMPTS:
                    tick()
                    return None
                self._refuse(key, captured)
            else:
                self._graphs[key] = captured
        graph = self._graphs[key]
        if graph is None:
            tick()
        return graph

    def _warm_up(self, key: Hashable, tick: Callable[[], None]) -> None:
        drawn = self._generator.get_offset()
        with _waits_noted() as waits:
            tick()
        reason = None
        if waits:
            reason = f"the network waits for the device ({waits[0]})"
        elif self._generator.get_offset() != drawn:
            reason = "the network draws random numbers"
        if reason is not None and key not in self._doubted:
            self._doubted.add(key)  # a network that compiles at its first call does both
            return
        if reason is not None:
            self._refuse(key, reason)
        self._warm.add(key)

    def _capture(self, tick: Callable[[], None]) -> torch.cuda.CUDAGraph | str:
        """The graph of a tick, captured but not run; or why there is none."""
        begin = time.perf_counter()
        graph, pool = torch.cuda.CUDAGraph(), self._pool or torch.cuda.graph_pool_handle()
        with _CAPTURING, torch.cuda.device(self._device):
            stream, random = torch.cuda.current_stream(self._device), self._generator.graphsafe_get_state()
            try:
                # A failed capture leaves its stream current, and allocator and generator capturing. The generator
                # works on a copy of its state meanwhile: other graphs hold the state itself.
                self._generator.graphsafe_set_state(self._generator.clone_state())
                with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                    tick()
            except BaseException as error:
                torch.cuda.set_stream(stream)
                with suppress(RuntimeError):  # it has ended already
                    torch._C._cuda_endAllocateToPool(self._device.index, pool)
                self._pool = None  # left open for page-locked memory: no further capture may use it
                if not isinstance(error, Exception):
                    raise
                cause = error.__cause__ or error
                return f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
            finally:
                self._generator.graphsafe_set_state(random)
        self._pool = pool
        self._report.add_capture(time.perf_counter() - begin)
        return graph

    def _refuse(self, key: Hashable, why: str) -> None:
        self._graphs[key] = None
        reason = f"no CUDA graph, ticks run eagerly: {why}"
        self._report.add_fallback(reason)
        log.warning(reason)


@contextmanager
def _waits_noted() -> Iterator[list[str]]:
    """Lists where this thread waits for the device inside the block, as "file:line".

    Other warnings are shown as before; where they are errors, they are raised as ever, before the step.
    """
    waits: list[str] = []
    here = threading.get_ident()
    with _WATCHING, warnings.catch_warnings():
        warnings.filterwarnings("always", SYNCHRONISES)
        warnings.filterwarnings("ignore", PROTOTYPE)
        show = warnings.showwarning

        def note(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if SYNCHRONISES not in str(message):
                show(message, category, filename, lineno, file, line)
            elif threading.get_ident() == here:
                waits.append(f"{filename}:{lineno}")

        warnings.showwarning = note
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)


def addresses(net: object) -> list[int]:
    """Addresses of a network's parameters and buffers, including those of modules that a function refers to."""
    tensors = (
        tensor
        for module in modules_in(net)
        for named in (module._parameters, module._buffers)
        for tensor in named.values()
        if tensor is not None
    )
    return [tensor.data_ptr() for tensor in tensors]
