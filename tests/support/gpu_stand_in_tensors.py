"""Tensors on a stand-in device: CPU memory behind a wrapper on ``cuda:N``, whose operations go to its streams."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from gpu_stand_in_device import Gpu, Work
from gpu_stand_in_shapes import shapes
from gpu_stand_in_streams import Event, Stream
from ulam_kernels import operator

aten = torch.ops.aten
# Read a value on the host, or have a size that depends on one.
SYNCHRONIZING = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip
RANDOM = {
    "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "bernoulli", "multinomial", "native_dropout",
    "randperm", "rand_like", "randn_like", "randint_like", "normal", "poisson", "log_normal_", "cauchy_", "geometric_",
}  # fmt: skip
MOVES_SCALARS = {"where", "index_put_", "index_put", "index", "_index_put_impl_"}  # bring operands over from the host


def bare(size, stride, dtype):
    """Memory whose content is not to be read: NaN, or a number that is out of every range."""
    with torch.inference_mode(False), torch.no_grad():
        made = torch.empty_strided(size, stride, dtype=dtype)
        poison(made)
    return made


def poison(tensor):
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        tensor.fill_(math.nan)
    else:
        tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max // 2)


class Allocation:
    """Device memory, alive as long as a tensor on it. Freed memory is anyone's from then on, in the order of the stream
    it was made on: it is overwritten there. ``record_stream`` keeps it until that stream's work so far is done (here:
    for good). What a capture allocated stays its graph's."""

    def __init__(self, inner, device):
        self._gpu, self._device, self._inner, self._size, self.kept = Gpu.current, device, inner, 0, True
        self._gpu.allocate(device, size := inner.untyped_storage().nbytes())
        self.queue = self._gpu.queue(device)
        self._size, self.kept = size, self.queue.capture is not None

    def __del__(self):
        self._gpu.devices[self._device].live -= self._size
        inner = self._inner
        if not self.kept and self._gpu is Gpu.current and self.queue.capture is None:
            self._gpu.enqueue(self.queue, Work("free", lambda _: quietly(poison, inner)))


class CudaTensor(torch.Tensor):
    """A tensor on ``cuda:N``; ``inner`` is its memory, a CPU tensor that shares storage with those of its views."""

    @staticmethod
    def __new__(cls, inner, device, allocation):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=f"cuda:{device}",
        )  # fmt: skip
        made.inner, made.allocation = inner, allocation
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        if func.namespace == "ulam":  # its backend launches it
            return operator.implementations[func._opname](*args, **kwargs)
        if name == "item":
            return aten._local_scalar_dense.default(args[0])
        if func._can_decompose() and name not in SYNCHRONIZING:
            return func.decompose(*args, **kwargs)
        if name == "copy_":
            return copy(*args, **kwargs)
        if name == "_foreach_copy_":
            return [copy(dst, src, *args[2:], **kwargs) for dst, src in zip(*args[:2], strict=True)]
        if name == "_to_copy":
            return to_copy(*args, **kwargs)
        if func.is_view:
            return viewed(func, args, kwargs)
        if name == "detach_":
            return args[0]
        device = device_of(args, kwargs, func)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]) != torch.device("cuda", device):
            return elsewhere(func, args, kwargs)
        if name == "index_put_" and fills(*args, **kwargs):  # masked_fill_, as torch has it
            args, func = (args[0], args[1][0], args[2].item()), aten.masked_fill_.Scalar
            return launched(func, "masked_fill_", device, args, {})
        if name in SYNCHRONIZING or (name in MOVES_SCALARS and has_mask(args[1])):
            return synchronous(func, name, device, args, kwargs)
        if name in MOVES_SCALARS:
            args, kwargs = tree_map(lambda x: brought(x, device), (args, kwargs))
        return launched(func, name, device, args, kwargs)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, new):
        torch._C.TensorBase.data.__set__(self, new)
        self.inner, self.allocation = new.inner, new.allocation

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force=False):
        if not force:
            raise TypeError(
                f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
                "memory first."
            )
        return self.detach().cpu().numpy()

    def __array__(self, dtype=None):
        return self.numpy()

    def record_stream(self, stream):
        if stream.queue is not self.allocation.queue:
            self.allocation.kept = True

    def is_pinned(self, device=None):
        return False

    def pin_memory(self, device=None):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def __deepcopy__(self, memo):
        made = self.detach().clone()
        made = torch.nn.Parameter(made, self.requires_grad) if getattr(self, "_is_param", False) else made
        memo[id(self)] = made
        return made

    def __format__(self, spec):
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __repr__(self):
        return f"CudaTensor({list(self.shape)}, {self.dtype}, device='{self.device}')"  # without looking, which waits


def unwrapped(tree):
    return tree_map(lambda x: x.inner if isinstance(x, CudaTensor) else x, tree)


def quietly(function, *arguments, **named):
    """Call it as the device would: no autograd, no versions."""
    with torch.inference_mode():
        return function(*arguments, **named)


def wrapped(inner, device, like=None):
    """A tensor on this device over new memory, or over that of ``like``, of which ``inner`` is a view."""
    if like is None:
        return CudaTensor(inner, device, Allocation(inner, device))
    with torch.inference_mode(like.is_inference()):  # a view of a normal tensor is a normal tensor
        return CudaTensor(inner, device, like.allocation)


def viewed(func, args, kwargs):
    base = next(x for x in tree_leaves(args) if isinstance(x, CudaTensor))
    with torch.inference_mode(False), torch.no_grad():
        inner = func(*unwrapped(args), **unwrapped(kwargs))
    return tree_map(lambda x: wrapped(x, base.device.index, base) if isinstance(x, torch.Tensor) else x, inner)


def device_of(args, kwargs, func):
    """The one device of an operation's tensors; 0-dimensional CPU tensors go along as numbers."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    devices = {x.device for x in tensors if isinstance(x, CudaTensor)}
    name = func._schema.name.removeprefix("aten::")
    host = [x for x in tensors if not isinstance(x, CudaTensor)]
    if len(devices) > 1 or (any(x.dim() > 0 for x in host) and name not in MOVES_SCALARS):
        found = " and ".join(sorted({str(x.device) for x in tensors}, reverse=True)[:2])
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {found}! ({func})"
        )
    return devices.pop().index


def has_mask(indices):
    return isinstance(indices, (list, tuple)) and any(
        isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices
    )


def fills(x, indices, value, accumulate=False):
    """Whether indexing by one mask in front puts one number of the host there."""
    return has_mask(indices[:1]) and len(indices) == 1 and value.numel() == 1 and not value.is_cuda and not accumulate


def brought(value, device):
    """Operands that torch itself brings over: numbers in ``where``, indices and values of indexing. A pageable copy."""
    if isinstance(value, CudaTensor) or not isinstance(value, torch.Tensor):
        return value
    made = wrapped(bare(value.size(), value.contiguous().stride(), value.dtype), device)
    return copy(made, value)


def elsewhere(func, args, kwargs):
    """``new_*`` and ``*_like`` with a device of their own."""
    target = torch.device(kwargs.pop("device"))
    made = quietly(func, *unwrapped(args), **{**unwrapped(kwargs), "device": "cpu"})
    return made if target.type == "cpu" else made.to(target)


def launched(func, name, device, args, kwargs):
    """Queue an operation; its results are memory of now and values of when it runs."""
    described, arrangement = shapes(func, args, kwargs)
    given = tree_leaves((args, kwargs))
    results, fresh = [], []
    for place, (own, *what) in enumerate(described):
        if own is not None:
            results.append(given[own])
        elif len(what) == 1:
            results.append(what[0])
        else:
            made = bare(*what)
            fresh.append((place, made))
            results.append(wrapped(made, device))
    if not name.startswith(("empty", "new_empty")):
        inner_args, inner_kwargs = unwrapped((args, kwargs))
        inner_kwargs = {k: v for k, v in inner_kwargs.items() if k not in ("device", "pin_memory", "generator")}
        seeded = Gpu.current.devices[device].generator.next() if name in RANDOM else None

        def run(base):
            done = tree_leaves(quietly(drawn, func, inner_args, inner_kwargs, seeded, base))
            for place, made in fresh:
                if not done[place].numel():
                    continue  # something for the backward pass that the CPU does not make
                if done[place].shape != made.shape:
                    raise AssertionError(f"{func}: gave {list(done[place].shape)}, expected {list(made.shape)}")
                quietly(made.copy_, done[place])

        Gpu.current.launch(func._schema.name, device, run)
    return tree_unflatten(results, arrangement)


def drawn(func, args, kwargs, seeded, base):
    if seeded is None:
        return func(*args, **kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((seeded[0] * 1_000_003 + seeded[1] + base) % (1 << 62))
        return func(*args, **kwargs)


def synchronous(func, name, device, args, kwargs):
    """Wait for the stream, then compute at once: the host reads a value."""
    Gpu.current.wait("item" if name == "_local_scalar_dense" else name, Gpu.current.queue(device))
    mutated = func._schema.is_mutable
    out = quietly(func, *unwrapped(args), **unwrapped(kwargs))
    if mutated:
        return args[0]
    return tree_map(lambda x: wrapped(_own(x), device) if isinstance(x, torch.Tensor) else x, out)


def _own(x):
    made = bare(x.size(), x.stride(), x.dtype)
    quietly(made.copy_, x)
    return made


# --------------------------------------------------------------------------------------- copies, pinned memory


def pinned_like(size, dtype):
    """Page-locked memory: a CPU tensor that is remembered as pinned until it is freed."""
    Gpu.current.forbid()
    count = math.prod(size)
    buffer = np.empty(max(count, 1) * dtype.itemsize, np.uint8).view(Buffer)
    with torch.inference_mode(False):
        made = torch.from_numpy(buffer)[: count * dtype.itemsize].view(dtype).view(size)
    poison(made)
    Gpu.current.allocate_pinned(made.untyped_storage().data_ptr(), buffer.nbytes, buffer)
    return made


class Buffer(np.ndarray):
    """An array that can be watched until it is freed."""


def is_pinned(tensor, device=None):
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in Gpu.current.pinned


def to_copy(x, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None):
    target = x.device if device is None else torch.device(device)
    dtype = dtype or x.dtype
    if target == x.device:
        named = {"dtype": dtype, "memory_format": memory_format}
        return launched(aten._to_copy.default, "_to_copy", x.device.index, (x,), named)
    like = torch.empty_like(
        torch.empty_strided(x.size(), x.stride(), dtype=dtype, device="meta"),
        memory_format=memory_format or torch.preserve_format,
    )
    if target.type == "cuda":
        made = wrapped(bare(like.size(), like.stride(), dtype), target.index or 0)
    elif non_blocking:  # torch makes it pinned then
        made = torch.as_strided(pinned_like((x.numel(),), dtype), like.size(), like.stride())
    else:
        made = torch.empty_strided(like.size(), like.stride(), dtype=dtype)
    return copy(made, x, non_blocking)


def copy(dst, src, non_blocking=False):
    """``copy_``: within a device or between devices on their streams; to and from the host as Copy.cu does it.

    Only from and to pinned memory, with ``non_blocking``, is the host copy work of the stream; every other one waits.
    Host memory that is not in one piece, or has to be expanded, is copied to a pageable temporary first.
    """
    if dst.numel() == 0:
        return dst
    if isinstance(dst, CudaTensor) and isinstance(src, CudaTensor):
        if dst.device == src.device:
            return launched(aten.copy_.default, "copy_", dst.device.index, (dst, src), {})
        return between(dst, src)
    gpu = Gpu.current
    to_device = isinstance(dst, CudaTensor)
    device = (dst if to_device else src).device.index
    queue, host = gpu.queue(device), src if to_device else dst
    pinned = is_pinned(host) and (host.is_contiguous() and host.shape == dst.shape)
    if queue.capture is not None and not is_pinned(host):
        raise RuntimeError(
            "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor is pinned. "
            "Please use tensor.pin_memory() or allocate the tensor with pin_memory=True."
        )
    inner_dst, inner_src = unwrapped((dst, src))
    way = "copy to device" if to_device else "copy to host"
    if non_blocking and pinned:
        gpu.launch(f"aten::copy_ ({way[5:]})", device, lambda _: quietly(inner_dst.copy_, inner_src))
        return dst
    gpu.wait(way, queue, pageable=not pinned, debug=not non_blocking)
    quietly(inner_dst.copy_, inner_src)
    return dst


def between(dst, src):
    """Between devices: on the source's current stream, which waits for the target's, which waits for the copy."""
    gpu = Gpu.current
    there, here = Stream(queue=gpu.queue(dst.device.index)), Stream(queue=gpu.queue(src.device.index))
    here.wait_stream(there)
    inner_dst, inner_src = dst.inner, src.inner
    gpu.launch("aten::copy_ (between devices)", src.device.index, lambda _: quietly(inner_dst.copy_, inner_src))
    event = Event()
    event.record(here)
    there.wait_event(event)
    return dst
