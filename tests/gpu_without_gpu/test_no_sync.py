"""Nothing in a steady tick waits for the device, copies to the host or grows; every tick is the same few operations."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ulam
import ulam_kernels
from engine_cases import SCHEDULE, SHAPE, net
from ulam.samplers import DDIM, DDPM, Heun
from ulam_kernels import operator

SLOTS, TICKS = 16, 1000
# What reads a value on the host, or has a size that depends on one.
WAITING = {
    "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "nonzero_static", "masked_select", "_unique2",
    "unique_dim", "unique_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]
    ),
]


class Enough(Exception):
    """Raised to leave the engine in mid-run."""


class Watch(TorchDispatchMode):
    """Counts aten operations, tick by tick, and the tensors that outlive their tick."""

    def __init__(self, device):
        super().__init__()
        self.device, self.ticks, self.current, self.copies, self.alive = device, [], Counter(), [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ulam":  # what it asks torch for is looked at, in its place
            with self:
                return operator.implementations[func._opname](*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self.current[func._schema.name.removeprefix("aten::")] += 1
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        results = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        for result in results:
            self.alive[id(result)] = weakref.ref(result)
            if result.device.type == "cpu" and any(t.device.type != "cpu" for t in tensors):
                self.copies.append(func)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            target = kwargs.get("device") if kwargs else None
            if target is not None and torch.device(target).type == "cpu":
                self.copies.append(func)
        return out

    def tick(self, _):
        if not self.ticks:
            self.copies = []  # loading the programs comes before the first tick
        same = self.ticks and self.ticks[-1] == self.current
        self.ticks.append(self.ticks[-1] if same else self.current)  # so that the watch itself does not grow
        self.current = Counter()
        self.alive = {key: reference for key, reference in self.alive.items() if reference() is not None}
        self.lasting = len(self.alive)


def long_jobs(engine, device):
    """Mixed programs whose chains last longer than what is watched: no group enters or leaves in between."""
    y, null = {"y": torch.arange(4.0, device=device)}, {"y": torch.full((4,), 10.0, device=device)}
    engine.submit(DDPM(), 4, 1, y)
    engine.submit(DDIM(steps=1000, eta=1.0), 4, 2, y, guidance=1.5, uncond=null)
    engine.submit(DDPM(clip=(-1, 1)), 4, 3, y)
    engine.submit(Heun(steps=501), 4, 4, y)


def watched(device, jobs=long_jobs, network=net, **options):
    """The operations of 1,000 ticks, less the first few."""
    engine = ulam.Engine(ulam.Denoiser(network, SCHEDULE), SHAPE, SLOTS, device, graphs=False, **options)
    jobs(engine, device)
    watch = Watch(device)
    mode = torch.cuda.get_sync_debug_mode() if device == "cuda" else None
    memory = []

    def progress(chains):
        measured = len(watch.ticks) + 1 in (50, TICKS - 10)
        if measured:
            gc.collect()  # what only waits to be collected is no growth
        watch.tick(chains)
        if measured:
            memory.append((watch.lasting, tracemalloc.get_traced_memory()[0]))
        if len(watch.ticks) == 3 and device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        if len(watch.ticks) == TICKS - 1:
            raise Enough

    tracemalloc.start()
    try:
        with watch, contextlib.suppress(Enough):
            next(engine.finished(progress))
    finally:
        tracemalloc.stop()
        if mode is not None:
            torch.cuda.set_sync_debug_mode(mode)
    return watch, memory


@pytest.mark.parametrize("device", DEVICES)
def test_a_thousand_steady_ticks_never_wait_and_never_grow(device):
    watch, memory = watched(device)
    steady = watch.ticks[2:]
    assert len(steady) > 990
    seen = set().union(*steady)
    assert not seen & WAITING, seen & WAITING
    assert not watch.copies, watch.copies
    assert all(tick == steady[0] for tick in steady), "every tick is the same operations"
    (tensors, python), (tensors_later, python_later) = memory
    assert tensors == tensors_later and python_later - python < 60_000


@pytest.mark.parametrize("device", DEVICES)
def test_a_plain_tick_is_three_operations_and_the_network(device, monkeypatch):
    """Look-up, check and step are three operations of ulam's own; torch is asked for nothing but views of the state."""
    views = {"select", "slice", "detach", "to", "resolve_conj", "resolve_neg"}
    called = Counter()
    for name in ("look_up", "advance", "step", "reduce", "blend"):
        monkeypatch.setattr(ulam_kernels, name, counted(getattr(ulam_kernels, name), called))

    def plain(engine, device):
        engine.submit(DDPM(), SLOTS, 1)

    free = torch.zeros(SLOTS, *SHAPE, device=device)
    for check_finite in (True, False):
        called.clear()
        watch, _ = watched(device, plain, lambda x, t: free, check_finite=check_finite)
        assert watch.ticks[-1].keys() - views <= {"index_select"}, "of the look-up"
        assert set(called.values()) == {TICKS - 1} and set(called) == {"look_up", "advance", "step"}


CONVERTING = {"clone", "contiguous", "copy_", "_to_copy", "empty_strided", "empty_like", "new_empty", "cat"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("jobs", [lambda engine, device: engine.submit(DDPM(), SLOTS, 1), long_jobs])
def test_a_tick_with_channels_last_converts_neither_input_nor_output(device, jobs, monkeypatch):
    """The step reads the network's output and writes its input as they lie; the look-up of classes is the network's."""
    seen, last = Counter(), torch.channels_last
    free = torch.zeros(SLOTS, *SHAPE, device=device).contiguous(memory_format=last)
    step = ulam_kernels.step

    def watched_step(*arguments, model, net_in, **named):
        seen[model is free, net_in.is_contiguous(memory_format=last), net_in.is_contiguous()] += 1
        return step(*arguments, model=model, net_in=net_in, **named)

    def network(x, t, y=None):
        seen[x.is_contiguous(memory_format=last), "network"] += 1
        return free

    monkeypatch.setattr(ulam_kernels, "step", watched_step)
    watch, _ = watched(device, jobs, network, options=ulam.NetworkOptions(channels_last=True))
    assert not watch.ticks[-1].keys() & CONVERTING, watch.ticks[-1]
    assert set(seen) == {(True, True, False), (True, "network")}


def counted(function, called):
    def call(*arguments, **named):
        called[function.__name__] += 1
        return function(*arguments, **named)

    return call


def test_the_watch_sees_what_it_forbids():
    watch = Watch("cpu")
    x = torch.tensor([1.0, 0.0])
    with watch:
        x[0].item()
        x.nonzero()
        x.to("meta")
    assert watch.current.keys() & WAITING == {"_local_scalar_dense", "nonzero"}
