"""A CUDA device for machines without one: torch and the engine as they are, over CPU memory and torch's own rules.

``gpu`` is the fixture, for modules with ``pytest_plugins = "gpu_stand_in"``. Under it ``torch.cuda`` sees two devices,
tensors may live on ``cuda:0`` and ``cuda:1``, and the engine runs on them as on real ones: streams are asynchronous,
captures record and replay, what a capture forbids raises, what would wait for the device is recorded in
``gpu.waits``. ``torch.cuda.graph``, ``torch.cuda.stream`` and ``torch.cuda.device`` are torch's own code. The fused
operations are those of the CPU backend, one launch each; whole chains go through the Triton backend's own code, up to
the launch (gpu_stand_in_triton). Gradients are not computed there.
"""

from __future__ import annotations

import contextlib
import ctypes
import types
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo  # some shape functions import it: not while torch is patched
from torch.utils import _pytree as pytree

import ulam_kernels.cpu
import ulam_kernels.reference
from gpu_stand_in_device import PROTOTYPE, Gpu, index_of
from gpu_stand_in_graphs import CUDAGraph, begin_allocate, end_allocate, pool_handle, release_pool
from gpu_stand_in_streams import Event, Stream
from gpu_stand_in_tensors import CudaTensor, aten, bare, copy, is_pinned, pinned_like, unwrapped, wrapped
from ulam_kernels import dispatch

try:
    import gpu_stand_in_triton
except ImportError:  # Triton is not installed
    gpu_stand_in_triton = None

OF_NETWORKS = ("bound_walk", "call_network", "packed")
CUDA = 1  # c10::DeviceType
FACTORIES = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm", "tril_indices")


@pytest.fixture(params=["late", "rush"])
def gpu(request):
    """Two devices. late: streams run when something waits for them; rush: the others run first."""
    if torch.version.cuda is not None:
        pytest.skip("this torch has devices of its own")
    with standing_in(request.param == "rush") as made:
        yield made


@contextlib.contextmanager
def standing_in(rush):
    """As the fixture has them, for a torch without devices."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from _devices(rush, monkeypatch)


def _devices(rush, monkeypatch):
    found = {name: dispatch.load(name) for name in dispatch.NAMES}  # before torch is patched
    made = Gpu(devices=2, rush=rush)
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the kernels of a device are overridden, though it has none
        _register(library)
    registry = _device_guards()
    registry[CUDA] = registry[0]  # the CPU's, which does nothing
    monkeypatch.setattr(Gpu, "current", made)
    _patch_torch(monkeypatch, made)
    _patch_backends(monkeypatch, found)
    try:
        yield made
    finally:
        made.sync_debug = 0
        for capture in made.captures:
            capture.invalidated = True
        registry[CUDA] = 0
        library._destroy()
        dispatch._automatic.cache_clear()
        dispatch._named.cache_clear()


def _device_guards():
    """c10's table of device guards, in which a torch for the CPU has none for CUDA."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    return (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")


def _register(library):
    """Make tensors on a device; all other factories come down to these."""

    def empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        like = torch.empty(size, dtype=dtype, device="meta", memory_format=memory_format or torch.contiguous_format)
        return wrapped(bare(like.size(), like.stride(), like.dtype), index_of(device))

    def empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
        return wrapped(bare(size, stride, dtype or torch.get_default_dtype()), index_of(device))

    def counted(func):
        def make(*args, device=None, pin_memory=None, **kwargs):
            like = func(*args, **kwargs, device="meta")
            made = wrapped(bare(like.size(), like.stride(), like.dtype), index_of(device))
            return copy_kernel(func, made, args, kwargs)

        return make

    library.impl("empty.memory_format", empty, "CUDA")
    library.impl("empty_strided", empty_strided, "CUDA")
    library.impl("copy_", copy, "CUDA")  # torch.tensor moves its values below the dispatch to Python
    for name in FACTORIES:
        packet, _, overload = name.partition(".")
        library.impl(name, counted(getattr(getattr(aten, packet), overload or "default")), "CUDA")


def copy_kernel(func, made, args, kwargs):
    inner = made.inner
    Gpu.current.launch(func._schema.name, made.device.index, lambda _: inner.copy_(func(*args, **kwargs, device="cpu")))
    return made


def _patch_torch(monkeypatch, gpu):
    replaced = _of_devices(gpu) | _of_streams(gpu)
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("_lazy_call", "_lazy_init", "current_device"):
        monkeypatch.setattr(torch.cuda.random, name, replaced[name])
    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)
    for name, value in {
        "_host_emptyCache": lambda: None,
        "_cuda_getDevice": lambda: gpu.device,
        "_cuda_beginAllocateToPool": begin_allocate,
        "_cuda_beginAllocateCurrentThreadToPool": begin_allocate,
        "_cuda_endAllocateToPool": end_allocate,
        "_cuda_releasePool": release_pool,
    }.items():
        monkeypatch.setattr(torch._C, name, value, raising=False)
    same = torch._has_compatible_shallow_copy_type  # a module that moves gets new parameters, on a device the same ones
    monkeypatch.setattr(
        torch,
        "_has_compatible_shallow_copy_type",
        lambda a, b: isinstance(a, CudaTensor) == isinstance(b, CudaTensor) and same(a, b),
    )
    _patch_pinning(monkeypatch)


def _of_devices(gpu):
    """The functions of ``torch.cuda`` about devices, by name."""

    def exchange(index):
        before, gpu.device = gpu.device, index if index >= 0 else gpu.device
        return before

    def properties(device=None):
        return SimpleNamespace(
            name="stand-in",
            uuid="0",
            total_memory=1 << 40,
            major=9,
            minor=0,
            multi_processor_count=132,
            shared_memory_per_block_optin=227 * 1024,
            index=index_of(device),
        )

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "_lazy_call": lambda call, **named: call(),
        "device_count": lambda: len(gpu.devices),
        "current_device": lambda: gpu.device,
        "set_device": lambda device: exchange(index_of(device)) and None,
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "default_generators": tuple(device.generator for device in gpu.devices),
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda device=None: gpu.devices[index_of(device)].peak,
        "memory_allocated": lambda device=None: gpu.devices[index_of(device)].live,
        "reset_peak_memory_stats": lambda device=None: None,
        "get_device_properties": properties,
        "get_device_name": lambda device=None: "stand-in",
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
    }


def _of_streams(gpu):
    """The functions of ``torch.cuda`` about streams, graphs and waits, by name."""

    def synchronize(device=None):
        index = index_of(device)
        gpu.forbid_whole(index)
        for queue in gpu.devices[index].queues:
            gpu.wait("synchronize", queue, debug=False)

    def set_sync_debug_mode(mode):
        warnings.warn(PROTOTYPE, UserWarning, stacklevel=2)  # which torch does once in a process
        gpu.sync_debug = ("default", "warn", "error").index(mode) if isinstance(mode, str) else mode

    return {
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device=None: Stream(queue=gpu.queue(index_of(device))),
        "default_stream": lambda device=None: Stream(queue=gpu.devices[index_of(device)].queues[0]),
        "set_stream": lambda stream: None if stream is None else gpu.set_queue(stream.queue),
        "is_current_stream_capturing": lambda: gpu.queue().capture is not None,
        "CUDAGraph": CUDAGraph,
        "graph_pool_handle": pool_handle,
        "synchronize": synchronize,
        "get_sync_debug_mode": lambda: gpu.sync_debug,
        "set_sync_debug_mode": set_sync_debug_mode,
    }


def _patch_pinning(monkeypatch):
    """Pinned memory: ``pin_memory=`` of the factories, ``pin_memory()``, ``is_pinned()``."""

    def pinning(factory):
        def make(*arguments, pin_memory=False, **named):
            made = factory(*arguments, **named)
            if not pin_memory:
                return made
            into = pinned_like(made.size(), made.dtype)
            return into if factory.__name__.startswith("empty") else into.copy_(made)

        return make

    def pin_memory(x, device=None):
        return x if is_pinned(x) else pinned_like(x.size(), x.dtype).copy_(x)

    for name in (
        "empty",
        "zeros",
        "ones",
        "full",
        "tensor",
        "arange",
        "empty_strided",
        "empty_like",
        "zeros_like",
        "rand",
        "randn",
    ):
        monkeypatch.setattr(torch, name, pinning(getattr(torch, name)))

    def cuda(x, device=None, non_blocking=False, memory_format=torch.preserve_format):
        return x.to(torch.device("cuda", index_of(device)), non_blocking=non_blocking, memory_format=memory_format)

    monkeypatch.setattr(torch.Tensor, "cuda", cuda)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "is_pinned", is_pinned)


class Backend(types.ModuleType):
    """The ``cuda`` backend: the CPU's functions, each one launch on the current stream of the tensors' device."""

    group = ulam_kernels.cpu

    @property
    def mcmc(self):
        operations = Backend(f"{self.__name__}.mcmc")
        operations.group = ulam_kernels.cpu.mcmc
        return operations

    def __getattr__(self, name):
        if name in OF_NETWORKS:  # Triton's alone
            raise AttributeError(name)
        function = getattr(self.group, name, None) or getattr(ulam_kernels.reference, name)

        def launch(*arguments, **named):
            tensors = [x for x in pytree.tree_leaves((arguments, named)) if isinstance(x, torch.Tensor)]
            if any(not isinstance(x, CudaTensor) for x in tensors):
                raise RuntimeError(f"{name}: a tensor on the host, whose address no kernel can read")
            inner, inner_named = unwrapped((arguments, named))
            Gpu.current.launch(f"ulam::{name}", tensors[0].device.index, lambda _: function(*inner, **inner_named))

        return launch


def _patch_backends(monkeypatch, found):
    usable = {**found, "cuda": Backend("ulam_kernels.cuda")}
    if gpu_stand_in_triton is not None:
        usable["triton"] = gpu_stand_in_triton.patched(monkeypatch, Backend("ulam_kernels.triton"))
    monkeypatch.setattr(dispatch, "load", lambda name: usable[name])
    dispatch._automatic.cache_clear()
    dispatch._named.cache_clear()
