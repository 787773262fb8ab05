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

from ..evaluation import modules_reached
from .report import Report

log = logging.getLogger("ulam")
SYNCHRONISES = "called a synchronizing CUDA operation"  # what torch warns of in its debug mode,
PROTOTYPE = "Synchronization debug mode is a prototype"  # and of that mode itself, once in a process
# torch.cuda.graph waits for the whole device before a capture, which spoils one that another thread has under way.
_CAPTURING = threading.Lock()
_WATCHING = threading.RLock()  # over torch's debug mode and Python's warnings: each is one for all threads
DISTURBED = "previous error during capture"  # how CUDA ends a capture that something outside of it has spoilt
ATTEMPTS = 3  # at the capture of a kind of tick, where others spoil it


class TickGraphs:
    """Graphs of a tick by what it contains (guided or not, reductions, batch of the network), captured when first met.

    The first tick of each kind runs eagerly: it warms up the libraries and the allocator, and shows whether anything in
    it waits for the device, which a graph cannot. The second is captured, and replayed from then on. A first tick that
    waits may have compiled the network, so the second is watched too. A kind that waits again, or whose capture fails,
    runs eagerly, and that is reported once; a capture that something outside of the tick spoils, such as another thread
    that waits for the whole device, is tried anew at the next ticks. All graphs share one memory pool and are captured
    on one stream of their own, so that engines on several devices, or two on one, do not meet. Buffers that a graph
    reads or writes must stay where they are: :meth:`forget` drops all graphs otherwise.
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
        self._pool = None  # a pool whose graphs are gone cannot be opened again

    def reads(self, addresses: list[int]) -> None:
        """Say where what the network reads lies: graphs that were captured with other addresses are dropped."""
        if addresses != self._addresses:
            self.forget()
            self._addresses = addresses

    def of_tick(self, key: Hashable, tick: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The graph of ticks of this kind, to be replayed; None if the tick has been run eagerly instead."""
        if key not in self._warm:
            self._warm_up(key, tick)
            return None
        if key not in self._graphs:
            made = self._capture(tick)
            if isinstance(made, str):
                self._disturbed[key] += 1
                if DISTURBED in made and self._disturbed[key] < ATTEMPTS:
                    tick()
                    return None
                self._refuse(key, made)
            else:
                self._graphs[key] = made
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
            self._doubted.add(key)  # what is compiled at its first call does both meanwhile
            return
        if reason is not None:
            self._refuse(key, reason)
        self._warm.add(key)

    def _capture(self, tick: Callable[[], None]) -> torch.cuda.CUDAGraph | str:
        """The graph of a tick, which has not run; or why there is none."""
        begin = time.perf_counter()
        graph, pool = torch.cuda.CUDAGraph(), self._pool or torch.cuda.graph_pool_handle()
        with _CAPTURING, torch.cuda.device(self._device):
            stream, random = torch.cuda.current_stream(self._device), self._generator.graphsafe_get_state()
            try:
                # A capture that ends badly leaves its stream current and allocator and generator in it. The generator
                # has a copy of its state meanwhile: other graphs hold the state itself.
                self._generator.graphsafe_set_state(self._generator.clone_state())
                with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                    tick()
            except BaseException as error:
                torch.cuda.set_stream(stream)
                with suppress(RuntimeError):  # it has ended already
                    torch._C._cuda_endAllocateToPool(self._device.index, pool)
                self._pool = None  # open for page-locked memory for good: no further capture may use it
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
    """Where this thread waits for the device meanwhile, as "file:line".

    All other warnings go where they went; where they are errors, they are raised as ever, before the step.
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
    """Where the parameters and buffers of a network lie, those of modules that a function refers to included."""
    tensors = (
        tensor
        for module in modules_reached(net, set())
        for kept in (module._parameters, module._buffers)
        for tensor in kept.values()
        if tensor is not None
    )
    return [tensor.data_ptr() for tensor in tensors]
