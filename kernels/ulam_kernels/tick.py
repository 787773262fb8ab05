"""The operations around the fused step in a tick, one launch each.

    look_up     before the network: the time it is told, and the weight of guidance limited to an interval of times
    advance     after it: chains whose outputs are not finite stop, the others go on to their next row

On the CPU plain tensors go straight to the native code, which reads and checks them itself: a tick of a small network
takes no longer than a few checks in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch.autograd import forward_ad

from ulam_kernels.autograd import check_no_gradient, written
from ulam_kernels.dispatch import load, select
from ulam_kernels.operator import BACKEND, operator
from ulam_kernels.tracing import by_operator, compiling
from ulam_kernels.validation import FLOATS, check, check_tensor

CURSOR_LINES = 6  # row, draw, row_advance, draw_advance, failed, parts
TIMES = (torch.float32, torch.int64, torch.float64)


@operator(
    "look_up(Tensor times, Tensor row, Tensor(a!) out, Tensor? guidance=None, Tensor? interval=None, "
    f"Tensor(b!)? weight=None, {BACKEND}) -> ()"
)
def look_up(
    times: torch.Tensor,
    row: torch.Tensor,
    out: torch.Tensor,
    *,
    guidance: torch.Tensor | None = None,
    interval: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Look up the time that the network is told: ``out[b] = times[row[b]]``.

    With a ``weight``, guidance is limited to an interval of times::

        weight[b] = guidance[b]  where interval[0, b] <= out[b] <= interval[1, b], else 1

    Kynkaanniemi et al. 2024. float32 and int64 times are compared in float32 (an int64 is rounded once), float64 times
    in float64; a time or a bound that is NaN is in no interval.

    Args:
        times: ``[rows]`` float32 or int64 (float64: reference backend), contiguous.
        row: ``[B]`` int64, indices into ``times``.
        out: ``[B]`` of the type of ``times``.
        guidance: ``[B]`` float32, the weights inside the interval.
        interval: ``[2, B]`` float32, its first and last time.
        weight: ``[B]`` float32; needs ``guidance`` and ``interval``.
        backend: see :func:`ulam_kernels.backends`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout, or a missing one; ``out``
            or ``weight`` shares memory with another argument.
        IndexError: a row outside the table, before anything is written (checked on the CPU). On a GPU such rows give
            NaN, -1 where times are int64, and a weight of 1.
        RuntimeError: an argument requires grad while gradients are recorded: the operation has no derivative.
    """
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        check_no_gradient("look_up", times=times, out=out, guidance=guidance, interval=interval, weight=weight)
    compiles = compiling()
    if not compiles and _quick()[0](times, row, out, guidance, interval, weight, backend, torch.get_num_threads()):
        written((out,) if weight is None else (out, weight))
        return
    if compiles or by_operator("look_up", times, row, out, guidance, interval, weight):
        torch.ops.ulam.look_up(times, row, out, guidance, interval, weight, backend)
        return
    check_tensor(times, "times")
    check_tensor(row, "row")
    device, chains = times.device, row.shape[:1]
    if times.dtype not in TIMES:
        raise TypeError(f"times: got dtype {times.dtype}, expected float32, int64 or float64")
    check(times, "times", times.dtype, device, (*times.shape[:1],) or (1,))
    check(row, "row", torch.int64, device, (*chains,) or (1,))
    check(out, "out", times.dtype, device, chains)
    if weight is None and (guidance is not None or interval is not None):
        raise ValueError("weight: got None, expected a float32 tensor [B] beside guidance and interval")
    if weight is not None:
        if guidance is None or interval is None:
            raise ValueError("guidance, interval: got None, expected float32 tensors [B] and [2, B] beside weight")
        check(weight, "weight", torch.float32, device, chains)
        check(guidance, "guidance", torch.float32, device, chains)
        check(interval, "interval", torch.float32, device, (2, *chains))
    named = {"times": times, "row": row, "out": out, "guidance": guidance, "interval": interval, "weight": weight}
    _check_apart(("out", "weight"), named)
    if chains[0]:
        select(backend, device.type, times.dtype).look_up(times, row, out, guidance, interval, weight)
    written((out,) if weight is None else (out, weight))


@operator(
    "advance(Tensor(a!) cursor, Tensor(b!) now, Tensor? model=None, Tensor? uncond=None, Tensor? guidance=None, "
    f"{BACKEND}) -> ()"
)
def advance(
    cursor: torch.Tensor,
    now: torch.Tensor,
    *,
    model: torch.Tensor | None = None,
    uncond: torch.Tensor | None = None,
    guidance: torch.Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Let every chain go on to its next row, unless the network's output for it is not finite.

    ``now`` receives the (row, draw) that the next fused step executes, and the cursor moves on::

        well    now = (row, draw)    row += row_advance    draw += draw_advance
        else    now = (0, draw)      failed = row          row = row_advance = draw_advance = 0

    A chain is well if all of its outputs that guidance reads are finite: ``model`` unless w = 0, and ``uncond``, where
    it is given, unless w = 1, with w = guidance[b]. Learned variances count. A chain at row 0, the idle row, is always
    well: its outputs are not looked at. Without a ``model`` all chains are. So a chain that fails keeps its last finite
    state, on the device and without a wait, and affects no other chain.

    Args:
        cursor: ``[6, B]`` int64, contiguous: row, draw, row_advance, draw_advance, failed, parts. ``parts`` is scratch
            of the GPU backends, 0 between calls.
        now: ``[2, B]`` int64, contiguous, apart from all others.
        model: ``[B, *shape]`` float32, bfloat16, float16 or float64, any strides. Where the elements of each chain lie
            together in memory, in whatever order, they are read as they lie; else a copy is.
        uncond: the unconditional output, like ``model``; needs ``guidance``.
        guidance: ``[B]`` float32 weights; read where ``uncond`` is given.
        backend: see :func:`ulam_kernels.backends`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout, or a missing one;
            ``cursor`` or ``now`` shares memory with another argument.
    """
    compiles = compiling()
    if not compiles and _quick()[1](cursor, now, model, uncond, guidance, backend, torch.get_num_threads()):
        written((cursor, now))
        return
    if compiles or by_operator("advance", cursor, now, model, uncond, guidance):
        torch.ops.ulam.advance(cursor, now, model, uncond, guidance, backend)
        return
    check_tensor(cursor, "cursor")
    device = cursor.device
    for name, tensor in (("model", model), ("uncond", uncond)):
        if tensor is not None:
            check_tensor(tensor, name)
    if cursor.dim() != 2 or cursor.shape[0] != CURSOR_LINES:
        raise ValueError(f"cursor: got shape {list(cursor.shape)}, expected [{CURSOR_LINES}, B]")
    chains = cursor.shape[1:]
    check(cursor, "cursor", torch.int64, device, cursor.shape)
    check(now, "now", torch.int64, device, (2, *chains))
    if uncond is not None:
        if model is None or uncond.shape != model.shape or uncond.dtype != model.dtype:
            came = "None" if model is None else f"{model.dtype} {list(model.shape)}"
            raise ValueError(f"uncond: got {uncond.dtype} {list(uncond.shape)}, expected that of model, {came}")
        if guidance is None:
            raise ValueError("guidance: got None, expected float32 weights [B] beside uncond")
        check(guidance, "guidance", torch.float32, device, chains)
    else:
        guidance = None
    model = None if model is None else _output(model, "model", device, chains)
    uncond = None if uncond is None else _output(uncond, "uncond", device, chains)
    named = {"cursor": cursor, "now": now, "model": model, "uncond": uncond, "guidance": guidance}
    _check_apart(("cursor", "now"), named)
    if chains[0]:
        if model is not None and model.numel() == 0:
            model = uncond = guidance = None
        select(backend, device.type, torch.int64).advance(cursor, now, model, uncond, guidance)
    written((cursor, now))


def _output(output: torch.Tensor, name: str, device: torch.device, chains: torch.Size) -> torch.Tensor:
    """A network's output with the elements of each chain together in memory."""
    if output.shape[:1] != chains:
        raise ValueError(f"{name}: got shape {list(output.shape)}, expected [{chains[0]}, *shape]")
    if output.dtype not in FLOATS and output.dtype != torch.float64:
        raise TypeError(f"{name}: got dtype {output.dtype}, expected float32, bfloat16, float16 or float64")
    check(output, name, output.dtype, device, output.shape, contiguous=False)
    return output if _dense(output) else output.contiguous()


def _dense(output: torch.Tensor) -> bool:
    """Whether the elements of each chain lie together in memory, in whatever order."""
    together = 1
    for stride, size in sorted(zip(output.stride()[1:], output.shape[1:], strict=True)):
        if size > 1 and stride != together:
            return False
        together *= max(size, 1)
    return True


def _check_apart(written: tuple[str, ...], named: dict[str, torch.Tensor | None]) -> None:
    """Raise where what is written shares memory with another argument."""
    spans = {name: _span(tensor) for name, tensor in named.items() if tensor is not None and tensor.numel()}
    for name in written:
        for other, (begin, end) in spans.items():
            if name != other and name in spans and spans[name][0] < end and begin < spans[name][1]:
                raise ValueError(f"{name}: got memory shared with {other}, expected memory of its own")


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses between which a tensor's elements lie."""
    last = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


@cache
def _quick() -> tuple[Callable[..., bool], Callable[..., bool]]:
    """The native functions for plain tensors on the CPU; they return whether the tensors were plain."""
    native = load("cpu")
    if isinstance(native, str):
        return _never, _never
    return native.quick_look_up, native.quick_advance


def _never(*_: object) -> bool:
    return False
