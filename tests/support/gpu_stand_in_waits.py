"""What makes the host wait for a stand-in device, for the tests of its rules."""

from __future__ import annotations

import torch

WAITS = {
    "item": lambda x: x[0].item(),
    "if": lambda x: bool(x[0] > 0),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "stream": lambda x: torch.cuda.default_stream().synchronize(),
    "event": lambda x: x.event.synchronize(),
    "query": lambda x: x.event.query(),
    "device": lambda x: torch.cuda.synchronize(),
    "pinned memory": lambda x: torch.empty(3, pin_memory=True),
}


def with_event(x):
    x.event = torch.cuda.Event()
    x.event.record()
    return x
