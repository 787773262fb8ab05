"""A whole tick as one CUDA graph: time look-up, network, guard, reductions, fused step, cursor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch

from .report import Report

log = logging.getLogger("ulam")


class TickGraphs:
    """Graphs of a tick by what it contains (guided or not, reductions, batch of the network), captured when first met.

    The first tick of each kind runs eagerly (it warms up the libraries and the allocator), the second is captured and
    replayed from then on. All graphs share one memory pool. A capture that fails is reported once, and that kind runs
    eagerly. Buffers that a graph reads or writes must stay where they are: :meth:`forget` drops all graphs otherwise.
    """

    def __init__(self, device: torch.device, report: Report) -> None:
        self._device, self._report = device, report
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._warm: set[Hashable] = set()
        self._pool: object | None = None

    def forget(self) -> None:
        """Drop all graphs: a buffer has moved."""
        self._graphs.clear()
        self._warm.clear()

    def run(self, key: Hashable, tick: Callable[[], None]) -> None:
        """Run a tick of this kind once."""
        if key not in self._warm:
            self._warm.add(key)
            tick()
            return
        if key not in self._graphs:
            self._graphs[key] = self._capture(tick)
        graph = self._graphs[key]
        if graph is None:
            tick()
        else:
            graph.replay()

    def _capture(self, tick: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(graph, pool=self._pool):  # type: ignore[arg-type]
                tick()
        except Exception as error:  # the network syncs, allocates on the host, ...: nothing has run, so go on eagerly
            first_line = str(error).partition("\n")[0]
            reason = f"no CUDA graph, ticks run eagerly: {type(error).__name__}: {first_line}"
            self._report.add_fallback(reason)
            log.warning(reason)
            return None
        self._pool = self._pool or graph.pool()
        return graph
