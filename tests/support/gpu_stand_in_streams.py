"""``torch.cuda.Stream`` and ``torch.cuda.Event`` over the stand-in's queues."""

from __future__ import annotations

import torch

from gpu_stand_in_device import CAPTURED_EVENT, ISOLATION, Capture, Gpu, Work, cuda_error, index_of


class Stream:
    """``torch.cuda.Stream``: belongs to a device, the current one by default."""

    def __init__(self, device=None, priority=0, *, queue=None):
        gpu = Gpu.current
        self.queue = queue or gpu.devices[index_of(device)].new_queue()

    device_index = property(lambda self: self.queue.device)
    stream_id = property(lambda self: self.queue.number)
    device = property(lambda self: torch.device("cuda", self.queue.device))
    cuda_stream = property(lambda self: self.queue.device << 32 | self.queue.number)
    device_type = 1

    def wait_event(self, event):
        event.wait(self)

    def wait_stream(self, stream):
        self.wait_event(stream.record_event())

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def query(self):
        Gpu.current.forbid()
        return not self.queue.pending

    def synchronize(self):
        Gpu.current.wait("stream.synchronize", self.queue)

    def __eq__(self, other):
        return isinstance(other, Stream) and other.queue is self.queue

    def __hash__(self):
        return hash(self.queue)


class Event:
    """``torch.cuda.Event``: takes the device of the stream on which it is first recorded.

    Without a stream, :meth:`record` takes the current stream of the current device, whatever device the work was on.
    """

    def __init__(self, enable_timing=False, blocking=False, interprocess=False, external=False):
        self._device = None
        self._mark: Work | None = None
        self._capture: Capture | None = None
        self._place = self._asked = 0

    def record(self, stream=None):
        gpu = Gpu.current
        queue = gpu.queue() if stream is None else stream.queue
        self._device = queue.device if self._device is None else self._device
        if self._device != queue.device:
            came = f"Event device {self._device} does not match recording stream's device {queue.device}."
            raise RuntimeError(came)
        self._mark = Work("event.record", network=gpu.network)
        with gpu.lock:
            gpu.enqueue(queue, self._mark)
            self._capture, self._asked = queue.capture, 0
            if queue.capture is not None:
                self._place = len(queue.capture.record.work)

    def wait(self, stream=None):
        """Work queued on the stream from now on comes after what the event marks; so streams join a capture."""
        gpu = Gpu.current
        queue = gpu.queue() if stream is None else stream.queue
        if self._mark is None:
            return
        with gpu.lock:
            if self._capture is not None:
                self._join(queue)
            elif queue.capture is not None:
                queue.capture.invalidated = True
                raise cuda_error(ISOLATION)
            else:
                gpu.enqueue(queue, Work("event.wait", after=self._mark))

    def _join(self, queue):
        capture = self._capture
        if capture not in Gpu.current.captures or queue.capture not in (None, capture):
            raise cuda_error(CAPTURED_EVENT)
        if queue is capture.origin:
            capture.joined[self._mark.queue] = self._place
        queue.capture = capture

    def _refuse_captured(self):
        if self._capture is not None:
            self._capture.invalidated = True
            raise cuda_error(CAPTURED_EVENT)
        Gpu.current.forbid()

    def query(self):
        """Whether the work is done; asking gets it done after a while (:attr:`Gpu.patience`), as time would."""
        if self._mark is None:
            return True
        self._refuse_captured()
        if not self._mark.done and self._asked >= Gpu.current.patience:
            Gpu.current.drain(self._mark.queue, self._mark)
        self._asked += 1
        return self._mark.done

    def synchronize(self):
        if self._mark is not None:
            self._refuse_captured()
            Gpu.current.wait("event.synchronize", self._mark.queue, self._mark, debug=False)

    def elapsed_time(self, end):
        return 0.0
