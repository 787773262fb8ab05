"""The stand-in for CUDA knows what waits, what does not, and what comes too early then."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch

from gpu_stand_in_waits import WAITS, with_event

pytest_plugins = "gpu_stand_in"

DEVICE = "cuda:0"


def pinned(*values):
    return torch.tensor(values).pin_memory()


HOST_READS = ("item", "if", "equal", "nonzero", "mask", "stream")


@pytest.mark.parametrize("kind", WAITS)
def test_sync_debug_mode_sees_what_torch_sees(gpu, kind):
    """Not events, nor a whole device."""
    x, seen = with_event(torch.zeros(3, device=DEVICE)), kind in HOST_READS
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        WAITS[kind](x)
    assert bool(told) == seen
    torch.cuda.set_sync_debug_mode("error")
    if seen:
        with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
            WAITS[kind](x)
    else:
        WAITS[kind](x)
    torch.cuda.set_sync_debug_mode("default")


COPIES = {  # (does it wait, is it pageable)
    "pinned": (lambda x: x.copy_(pinned(1.0, 2.0, 3.0), non_blocking=True), False, False),
    "pinned, another dtype": (lambda x: x.copy_(pinned(1, 2, 3), non_blocking=True), False, False),
    "pinned, blocking": (lambda x: x.copy_(pinned(1.0, 2.0, 3.0)), True, False),
    "pageable": (lambda x: x.copy_(torch.ones(3)), True, True),
    "pageable, non-blocking": (lambda x: x.copy_(torch.ones(3), non_blocking=True), True, True),
    "pinned, expanded": (lambda x: x.copy_(pinned(1.0), non_blocking=True), True, True),
    "pinned, in pieces": (lambda x: x.copy_(pinned(1.0, 2, 3, 4, 5, 6)[::2], non_blocking=True), True, True),
    "from_numpy": (lambda x: torch.from_numpy(x.numpy(force=True)).to(x.device), True, True),
    "to the host": (lambda x: x.cpu(), True, True),
    "to the host, non-blocking": (lambda x: x.to("cpu", non_blocking=True), False, False),
    "to pinned memory": (lambda x: torch.empty(3, pin_memory=True).copy_(x, non_blocking=True), False, False),
    "a number": (lambda x: torch.where(x > 0, x, 1.0).mul_(2.0).fill_(3.0), False, False),
    "a number into an index": (
        lambda x: x.__setitem__(torch.zeros(1, dtype=torch.int64, device=DEVICE), 1.0),
        True,
        True,
    ),
    "a number into a mask": (lambda x: x.__setitem__(x > 0, 1.0), False, False),
    "an index of the host": (lambda x: x[[0, 2]], True, True),
    "empty": (lambda x: x[:0].copy_(torch.ones(0)), False, False),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_wait_unless_they_are_asynchronous_and_pinned(gpu, kind):
    copy, waits, pageable = COPIES[kind]
    x = torch.zeros(3, device=DEVICE)
    gpu.forget()
    copy(x)
    assert bool(gpu.waits) == waits and any(wait.pageable for wait in gpu.waits) == pageable
    assert all(wait.where.startswith("test_gpu_stand_in_waits.py:") for wait in gpu.waits)


def test_a_pinned_buffer_written_too_early_is_read_too_late(gpu):
    x, buffer = torch.zeros(3, device=DEVICE), pinned(1.0, 1.0, 1.0)
    x.copy_(buffer, non_blocking=True)
    event = torch.cuda.current_stream().record_event()
    buffer.fill_(2.0)
    event.synchronize()
    assert x.tolist() == [2, 2, 2], "no event was waited for before it was written"
    x.copy_(buffer, non_blocking=True)
    event = torch.cuda.current_stream().record_event()
    event.synchronize()
    buffer.fill_(3.0)
    assert x.tolist() == [2, 2, 2]


def test_pinned_memory_freed_after_its_copy_was_queued_stays_until_then(gpu):
    x = torch.zeros(3, device=DEVICE)
    x.copy_(pinned(1.0, 2.0, 3.0), non_blocking=True)
    gc.collect()
    assert gpu.pinned_bytes == 12
    assert x.tolist() == [1, 2, 3]
    assert gpu.pinned_bytes == 0 and gpu.pinned_peak == 12


def test_memory_on_the_host_is_not_there_before_its_event(gpu):
    x = torch.ones(3, device=DEVICE)
    out = x.to("cpu", non_blocking=True)
    event = torch.cuda.current_stream().record_event()
    assert out.is_pinned() and out.isnan().all()
    polls = 0
    while not event.query():
        polls += 1
    assert polls == gpu.patience and out.tolist() == [1, 1, 1]


@pytest.mark.parametrize("waits", [True, False])
def test_streams_wait_for_one_another_only_where_told(gpu, waits):
    x, y, side = torch.zeros(3, device=DEVICE), torch.zeros(3, device=DEVICE), torch.cuda.Stream()
    torch.cuda.synchronize()
    gpu.rush = False
    x.add_(1)
    if waits:
        side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y.copy_(x)
        side.synchronize()
    assert y.tolist() == ([1, 1, 1] if waits else [0, 0, 0])


@pytest.mark.parametrize("recorded", [True, False])
def test_memory_used_on_another_stream_needs_record_stream(gpu, recorded):
    y, side = torch.zeros(3, device=DEVICE), torch.cuda.Stream()
    x = torch.ones(3, device=DEVICE)
    gpu.rush = False
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y.copy_(x)
    if recorded:
        x.record_stream(side)
    del x  # its stream may give the memory to someone else from here on
    torch.cuda.current_stream().synchronize()
    side.synchronize()
    assert y.isnan().all() != recorded


def test_events_belong_to_a_device(gpu):
    y, event = torch.zeros(3, device="cuda:1"), torch.cuda.Event()
    buffer = pinned(1.0, 1.0, 1.0)
    y.copy_(buffer, non_blocking=True)
    event.record()  # on the current device's stream, where nothing happens
    gpu.rush = False
    event.synchronize()
    buffer.fill_(2.0)
    assert y.tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="Event device 0 does not match recording stream's device 1"):
        event.record(torch.cuda.current_stream("cuda:1"))
