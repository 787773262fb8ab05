"""What the stand-in's devices hold and do, without tensors: queues of work, captures, waits, memory counted.

Work is queued on streams and executed as late as the rules allow: when the host waits for it, or when work that it
waits for needs it. Code that forgets to wait therefore reads values that are not there yet. Errors, and the state that
they leave behind, follow CUDAGraph.cpp, CUDACachingAllocator.cpp, CachingHostAllocatorImpl.h, CUDAEvent.h,
CUDAGeneratorImpl.cpp and Copy.cu of torch 2.11.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import warnings
import weakref
from collections import deque
from dataclasses import dataclass, field

import torch

from gpu_stand_in_generator import Generator

UNSUPPORTED = "operation not permitted when stream is capturing"
INVALIDATED = "operation failed due to a previous error during capture"
ISOLATION = "dependency created on uncaptured work in another stream"
UNJOINED = "capturing stream has unjoined work"
CAPTURED_EVENT = "operation not permitted on an event last recorded in a capturing stream"
SYNCHRONIZING = "called a synchronizing CUDA operation"
PROTOTYPE = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"


def cuda_error(text):
    return torch.AcceleratorError(f"CUDA error: {text}\nCUDA kernel errors might be asynchronously reported.")


@dataclass(eq=False)
class Work:
    """What a stream does at one place: ``run(base)``, base being the offset of the random numbers of a replay."""

    name: str
    run: object = None
    queue: Queue | None = None
    after: Work | None = None  # another stream's, to be done before
    network: bool = False  # launched inside the network
    done: bool = False


@dataclass(eq=False)
class Queue:
    """A CUDA stream: its work not yet done, in order, and the capture that it is part of."""

    device: int
    number: int
    pending: deque = field(default_factory=deque)
    capture: Capture | None = None


@dataclass(eq=False)
class Capture:
    """A capture under way: what it holds so far, and the streams that have joined it."""

    origin: Queue
    mode: str
    thread: int
    record: Record
    invalidated: bool = False
    last: dict = field(default_factory=dict)  # by joined stream: where its last work is
    joined: dict = field(default_factory=dict)  # by joined stream: up to where the origin has waited for it


@dataclass(eq=False)
class Record:
    """What a capture held and how often it was replayed; outlives the graph."""

    device: int
    pool: tuple = ()
    mode: str = "global"
    work: list = field(default_factory=list)
    replays: int = 0
    ended: bool = False

    @property
    def names(self):
        return [work.name for work in self.work]

    @property
    def outside(self):
        """The names of what was launched outside the network."""
        return [work.name for work in self.work if not work.network]


@dataclass(frozen=True)
class Wait:
    """The host waited for the device. kind: by what; pageable: for a copy from or to memory that is not page-locked;
    where: file and line of the caller."""

    kind: str
    device: int
    pageable: bool
    where: str


class Device:
    """One device: its streams, memory pools and default generator."""

    def __init__(self, gpu, index):
        self.index = index
        self.queues = [Queue(index, 0)]
        self.pools: dict[tuple, int] = {}  # by id: graphs that use it; at 0 it cannot be opened again
        self.underway: list[tuple] = []  # pools to which a capture allocates, as the allocator has it
        self.live = self.peak = 0  # bytes
        self.generator = Generator(gpu, index)

    def new_queue(self):
        self.queues.append(Queue(self.index, len(self.queues)))
        return self.queues[-1]


class Gpu:
    """All devices of the process. ``rush``: other streams run as far as they can before the one that is waited for."""

    current = None  # the one that torch's patched functions speak to

    def __init__(self, devices=2, rush=False):
        self.lock, self._own, self.rush = threading.RLock(), threading.local(), rush
        self.devices = [Device(self, index) for index in range(devices)]
        self.captures: list[Capture] = []  # under way
        self.host_underway: list[tuple] = []  # pools to which a capture allocates pinned memory
        self.records: list[Record] = []  # of all captures begun
        self.waits: list[Wait] = []
        self.launches: list[tuple[str, Queue, bool]] = []  # name, stream, inside the network; not those of replays
        self.sync_debug = 0
        self.patience = 1  # how often an event says that it is not done yet, before it is
        self.pool_ids = 0
        self.pinned: dict[int, int] = {}  # bytes by address
        self.pinned_peak = 0

    # ------------------------------------------------------------------------------- what a thread has set

    @property
    def device(self):
        return getattr(self._own, "device", 0)

    @device.setter
    def device(self, index):
        self._own.device = index

    @property
    def network(self):
        return getattr(self._own, "network", False)

    @network.setter
    def network(self, inside):
        self._own.network = inside

    def queue(self, device=None):
        """This thread's current stream of a device."""
        device = self.device if device is None else device
        return getattr(self._own, f"queue{device}", self.devices[device].queues[0])

    def set_queue(self, queue):
        """As ``torch.cuda.set_stream``: also makes the stream's device the current one."""
        setattr(self._own, f"queue{queue.device}", queue)
        self.device = queue.device

    def inside(self, net):
        """``net``, its launches marked as the network's."""

        @functools.wraps(net, updated=())
        def call(*arguments, **named):
            self.network = True
            try:
                return net(*arguments, **named)
            finally:
                self.network = False

        return call

    # ------------------------------------------------------------------------------- launching and waiting

    def launch(self, name, device, run):
        """Queue work on the current stream of its device, or put it into the capture that this stream is part of."""
        self.enqueue(self.queue(device), Work(name, run, network=self.network))

    def enqueue(self, queue, work):
        with self.lock:
            work.queue, capture = queue, queue.capture
            if capture is None:
                queue.pending.append(work)
                self.launches.append((work.name, queue, work.network))
                return
            if capture.invalidated:
                raise cuda_error(INVALIDATED)
            capture.record.work.append(work)
            if queue is not capture.origin:
                capture.last[queue] = len(capture.record.work)

    def drain(self, queue, until=None):
        """Do a stream's work, up to some of it, and what that waits for."""
        with self.lock:
            if self.rush:
                self._run_ahead(queue)
            while queue.pending and not (until is not None and until.done):
                work = queue.pending[0]
                if work.after is not None and not work.after.done:
                    self.drain(work.after.queue, work.after)
                    continue
                queue.pending.popleft()
                self._do(work)

    def _run_ahead(self, but):
        moved = True
        while moved:
            moved = False
            for queue in (queue for device in self.devices for queue in device.queues if queue is not but):
                while queue.pending and (queue.pending[0].after is None or queue.pending[0].after.done):
                    self._do(queue.pending.popleft())
                    moved = True

    def _do(self, work):
        work.done = True
        if work.run is None:
            return
        run, work.run = work.run, None
        try:
            run(0)
        except Exception as error:
            raise cuda_error(f"device-side assert triggered ({work.name}: {error})") from error

    def finish(self):
        """Do all work of all streams, as the device would sooner or later."""
        for device in self.devices:
            for queue in device.queues:
                self.drain(queue)

    def wait(self, kind, queue, until=None, *, pageable=False, debug=True):
        """The host waits for a stream, or for part of its work.

        debug: torch's sync debug mode sees it (memcpy_and_sync and stream_synchronize; not events, nor a whole device).
        Under a capture the runtime refuses (:meth:`forbid`).
        """
        if debug:
            self.check_sync_debug()
        self.forbid()
        with self.lock:
            self.waits.append(Wait(kind, queue.device, pageable, caller()))
            self.drain(queue, until)

    def check_sync_debug(self):
        if self.sync_debug == 1:
            warnings.warn(SYNCHRONIZING, UserWarning, stacklevel=3)
        if self.sync_debug == 2:
            raise RuntimeError(SYNCHRONIZING)

    def forbid(self):
        """Refuse what may not happen during a capture, and spoil the capture: a wait, a query, an allocation elsewhere.

        cudaStreamCaptureModeGlobal: by any thread; ThreadLocal: by the thread that captures; Relaxed: never.
        """
        with self.lock:
            here = threading.get_ident()
            hit = [c for c in self.captures if c.mode == "global" or (c.mode == "thread_local" and c.thread == here)]
            for capture in hit:
                capture.invalidated = True
            if hit:
                raise cuda_error(UNSUPPORTED)

    def forbid_whole(self, device):
        """Refuse a wait for a whole device of which a stream is being captured, by whichever thread, and spoil that."""
        with self.lock:
            hit = [c for c in self.captures if c.origin.device == device]
            for capture in hit:
                capture.invalidated = True
            if hit:
                raise cuda_error(UNSUPPORTED)

    def allocate(self, device, size):
        """New device memory. The allocator knows how to do so inside a capture, on the stream that captures; elsewhere
        a cudaMalloc is refused as all else is (torch's cache may save it from that; here nothing does)."""
        if self.queue(device).capture is None:
            self.forbid()
        where = self.devices[device]
        where.live += size
        where.peak = max(where.peak, where.live)

    def allocate_pinned(self, address, size, buffer):
        """New page-locked memory: cudaHostAlloc is refused under a capture."""
        self.pinned[address] = size
        self.pinned_peak = max(self.pinned_peak, self.pinned_bytes)
        weakref.finalize(buffer, self.pinned.pop, address, None)

    @property
    def pinned_bytes(self):
        return sum(self.pinned.values())

    # ------------------------------------------------------------------------------- for assertions

    def waited(self, *, but=()):
        """The waits of other kinds than these."""
        return [wait for wait in self.waits if wait.kind not in but]

    def forget(self):
        """Begin to count anew."""
        self.waits.clear()
        self.launches.clear()


def caller():
    """File and line of the nearest frame that is neither torch's nor of the stand-in."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if f"{os.sep}torch{os.sep}" not in name and not os.path.basename(name).startswith("gpu_stand_in"):
            return f"{os.path.basename(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def index_of(device):
    """The index of a device given as torch takes it; the current one for None."""
    if device is None:
        return Gpu.current.device
    where = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return Gpu.current.device if where.index is None else where.index
