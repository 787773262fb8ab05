"""``torch.cuda.CUDAGraph`` over the stand-in's streams: what a capture needs, leaves behind, and replays."""

from __future__ import annotations

import threading
import warnings

from gpu_stand_in_device import INVALIDATED, UNJOINED, UNSUPPORTED, Capture, Gpu, Record, Work, cuda_error

DEAD_POOL = "it->second->use_count > 0 INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp"


def pool_handle(own=False):
    """A new pool's id: (n, 0) of a graph's own, (0, n) from ``torch.cuda.graph_pool_handle``."""
    Gpu.current.pool_ids += 1
    return (Gpu.current.pool_ids, 0) if own else (0, Gpu.current.pool_ids)


def begin_allocate(device, pool):
    """CUDACachingAllocator::beginAllocateToPool.

    A pool that graphs have used and that none uses any more cannot be opened again. (torch forgets such a pool when its
    memory has gone back to the driver; the workspace that cuBLAS made in the capture keeps it from that.) One to which
    a failed capture still allocates cannot be opened either.
    """
    pools, underway = Gpu.current.devices[device].pools, Gpu.current.devices[device].underway
    if pools.get(pool) == 0:
        raise RuntimeError(DEAD_POOL)
    pools[pool] = pools.get(pool, 0) + 1
    if pool in underway:
        raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
    underway.append(pool)


def end_allocate(device, pool):
    underway = Gpu.current.devices[device].underway
    if pool not in underway:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
    underway.remove(pool)


def release_pool(device, pool):
    Gpu.current.devices[device].pools[pool] -= 1


class CUDAGraph:
    """What a capture recorded. A replay does just that, on the same memory, in order, on the current stream of the
    capture's device: it reads weights where they were. Destroyed with the object, or by :meth:`reset`.

    Where :meth:`capture_begin` or :meth:`capture_end` raises, the generator is left capturing and the allocators are
    left allocating to the pool; the caller's stream is not touched here.
    """

    def __init__(self, keep_graph=False):
        self._gpu = Gpu.current
        self._record: Record | None = None
        self._capture: Capture | None = None
        self._state, self._increment = None, 0

    def capture_begin(self, pool=None, capture_error_mode="global", check_input_liveness=False):
        gpu, queue = self._gpu, self._gpu.queue()
        if self._record is not None and self._record.ended:
            raise RuntimeError("This CUDAGraph instance already owns a captured graph.")
        self._state = gpu.devices[gpu.device].generator._state
        self._state.capturing, self._state.inside = True, 0
        if queue.number == 0:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        pool = pool or pool_handle(own=True)
        with gpu.lock:
            begin_allocate(queue.device, pool)
            if pool in gpu.host_underway:
                raise RuntimeError("beginAllocateToPool: already recording to pool_id")
            gpu.host_underway.append(pool)
            if queue.capture is not None:
                raise cuda_error(UNSUPPORTED)
            self._record = Record(queue.device, pool, capture_error_mode)
            gpu.records.append(self._record)
            self._capture = Capture(queue, capture_error_mode, threading.get_ident(), self._record)
            gpu.captures.append(self._capture)
            queue.capture = self._capture

    def capture_end(self):
        """Ends the capture on the device, whatever comes; raises if it was spoilt, before anything is restored."""
        gpu, capture, record = self._gpu, self._capture, self._record
        if capture is None or gpu.queue() is not capture.origin:
            raise RuntimeError("Capture must end on the same stream it began on.")
        with gpu.lock:
            gpu.captures.remove(capture)
            for queue in (queue for device in gpu.devices for queue in device.queues):
                if queue.capture is capture:
                    queue.capture = None
            self._capture = None
            if capture.invalidated:
                raise cuda_error(INVALIDATED)
            if any(capture.joined.get(queue, 0) < last for queue, last in capture.last.items()):
                raise cuda_error(UNJOINED)
            end_allocate(record.device, record.pool)
            gpu.host_underway.remove(record.pool)
            self._state.capturing, self._increment = False, self._state.inside
        if not record.work:
            warnings.warn(
                "The CUDA Graph is empty. This usually means that the graph was "
                "attempted to be captured on wrong device or stream.",
                stacklevel=2,
            )
        record.ended = True

    def replay(self):
        gpu, record = self._gpu, self._record
        if record is None or not record.ended:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        if gpu.queue(record.device).capture is not None:
            raise RuntimeError("Cannot prepare for replay during capturing stage.")
        base = self._state.offset
        gpu.devices[record.device].generator.increase(self._state, self._increment)
        record.replays += 1
        work = list(record.work)

        def run(_):
            for part in work:
                if part.run is not None:
                    part.run(base)

        gpu.enqueue(gpu.queue(record.device), Work("graph.replay", run))

    def pool(self):
        if self._record is None or not self._record.ended:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return self._record.pool

    def reset(self):
        if self._record is not None and self._record.ended:
            release_pool(self._record.device, self._record.pool)
            self._record.work = [Work(work.name, network=work.network) for work in self._record.work]
            self._record = None

    def __del__(self):
        if self._gpu is Gpu.current:
            self.reset()
