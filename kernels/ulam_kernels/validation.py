"""Checks of the operations' arguments: what came and what would be right, in one line, before any work is done."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch

from ulam_kernels.arguments import described
from ulam_kernels.table import Table
from ulam_kernels.tracing import check_read

try:
    from ulam_kernels._cpu import ready as ready
    from ulam_kernels._cpu import separate
except ImportError:  # a broken build is reported by its backend

    def ready(
        state: torch.Tensor, net_in: torch.Tensor | None, squares: torch.Tensor | None, /, *reads: torch.Tensor | None
    ) -> bool:
        """Whether no argument needs a closer look: see bindings/door.h."""
        return False

    def separate(written: torch.Tensor, elementwise: int, /, *reads: torch.Tensor | None) -> bool:
        """Whether no memory is shared: see bindings/door.h."""
        return False


FLOATS = (torch.float32, torch.bfloat16, torch.float16)
REALS = (torch.float64, *FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NEGATIVE = "got a tensor with torch's negative bit, expected plain memory: pass it through resolve_neg()"
OTHER_DEVICE = "got a tensor on {}, expected one on {} like the other tensors"
MAX_ELEMENTS = 1 << 30  # noise-v1 counts a chain's elements in 30 bits
MAX_STAGE = 15  # draw = 16 * row + stage
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def check_tensor(tensor: object, name: str) -> None:
    """Raise unless it is a dense tensor with data."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: got {described(tensor)}, expected a tensor")
    if tensor.layout is not torch.strided or tensor.is_meta:
        found = "the meta device" if tensor.is_meta else str(tensor.layout)
        raise ValueError(f"{name}: got a tensor on {found}, expected a dense one with data")


def check_data(tensor: torch.Tensor, name: str) -> None:
    """Raise unless it is a dense tensor whose numbers the host can read."""
    check_tensor(tensor, name)
    check_read(tensor, name, "a plain tensor")


def check_batch(x: torch.Tensor, name: str) -> None:
    """Raise unless it is a float tensor ``[B, *shape]`` with data, not empty."""
    check_data(x, name)
    if not x.is_floating_point() or x.dim() < 2 or not x.numel():
        raise ValueError(f"{name}: got {described(x)}, expected a float tensor [B, *shape], not empty")


def check_real(tensor: torch.Tensor, name: str) -> None:
    """Raise TypeError unless its numbers are real; booleans are not."""
    if tensor.is_complex() or tensor.dtype == torch.bool:
        found = {torch.bool: "true or false"}.get(tensor.dtype, "complex numbers")
        raise TypeError(f"{name}: got {found}, expected real numbers")


def real_numbers(name: str, value: Any) -> torch.Tensor:
    """One number or several, of any numeric type, copied to a float64 tensor on the CPU.

    Raises:
        TypeError, ValueError, RuntimeError: not real numbers, or numbers that cannot be read here.
    """
    if isinstance(value, int) and value.bit_length() > 63:  # which torch does not read
        raise ValueError(f"{name}: got {described(value)}, expected a float where a number has more than 63 bits")
    try:  # NumPy's own copy: torch takes none that runs backwards, and warns of one that is read-only
        tensor = torch.as_tensor(value.copy() if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name}: got {described(value)}, expected a number, or several") from None
    if tensor is value:
        check_data(tensor, name)
    check_real(tensor, name)
    exact = tensor if isinstance(value, (torch.Tensor, np.ndarray)) else torch.as_tensor(value, dtype=torch.float64)
    return exact.detach().to("cpu", torch.float64, copy=True)


def check_state(state: torch.Tensor) -> None:
    if not isinstance(state, torch.Tensor) or state.layout is not torch.strided or state.is_meta:
        check_tensor(state, "state")
    if state.dim() < 2:
        raise ValueError(f"state: got shape {list(state.shape)}, expected [R, B, *shape]")
    if state.dtype not in FLOATS and state.dtype != torch.float64:
        raise TypeError(f"state: got dtype {state.dtype}, expected float32, bfloat16, float16 or float64")
    if not state.is_contiguous():
        raise ValueError(f"state: got strides {state.stride()}, expected a contiguous tensor: it is updated in place")
    if state.is_neg():
        raise ValueError(f"state: {NEGATIVE}")
    if state.numel() > state.shape[0] * state.shape[1] * MAX_ELEMENTS:
        raise ValueError(f"state: got shape {list(state.shape)}, expected at most 2^30 elements a chain")


def check_chains(x: torch.Tensor, name: str) -> None:
    """Raise unless it is float32 or float64 numbers ``[B, *shape]`` in plain memory."""
    check_tensor(x, name)
    if x.dim() < 1 or x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: got {x.dtype} {list(x.shape)}, expected float32 [B, *shape]")
    check(x, name, x.dtype, x.device, x.shape)
    if x.numel() > len(x) * MAX_ELEMENTS:
        raise ValueError(f"{name}: got shape {list(x.shape)}, expected at most 2^30 elements a chain")


def refuse_table(table: object) -> NoReturn:
    """Raises TypeError for what is given in place of a Table."""
    raise TypeError(f"table: got {described(table)}, expected a Table")


def check_row(
    row: torch.Tensor,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    state: torch.Tensor,
) -> None:
    check(row, "row", torch.int64, state.device, state.shape[1:2])
    check_ids(seed, chain, draw, state.device, state.shape[1:2])


def check_ids(
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    device: torch.device,
    per_chain: tuple[int, ...],
) -> None:
    if seed is not None:
        check(seed, "seed", torch.int64, device, per_chain)
    if chain is not None:
        check(chain, "chain", torch.int64, device, per_chain)
    if draw is not None:
        check(draw, "draw", torch.int64, device, per_chain)


def check_noise_ids(x: torch.Tensor, seed: torch.Tensor, chain: torch.Tensor, draw: torch.Tensor) -> None:
    """As :func:`check_ids` for chains like ``x``, where there is no noise but that of these ids."""
    device, per_chain = x.device, (x.shape[0],)
    check(seed, "seed", torch.int64, device, per_chain)
    check(chain, "chain", torch.int64, device, per_chain)
    check(draw, "draw", torch.int64, device, per_chain)


def operands(
    state: torch.Tensor,
    table: Table,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    noise: torch.Tensor | None,
    *,
    last: bool,
    net_in: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    source: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Check the tensors that a row reads and writes, beside its ids; return model and uncond as the backends take them.

    Both are contiguous; or both have their channels innermost, where that is what they came as and ``last`` allows it.
    """
    check_state(state)
    sample, device = state.shape[1:], state.device
    per_chain = sample[:1]
    coef = table.coef
    if state.shape[0] != table.registers:
        raise ValueError(f"state: got {state.shape[0]} registers, expected {table.registers} like the table")
    wanted = torch.float64 if state.dtype == torch.float64 else torch.float32
    if coef.dtype != wanted or coef.device != device:
        raise ValueError(f"table: got {coef.dtype} on {coef.device}, expected {wanted} on {device}")
    if model is not None:
        model = _model(model, "model", state, sample, last)
    if uncond is not None:
        uncond = _model(uncond, "uncond", state, sample, last)
        if model is None or model.dtype != uncond.dtype or model.shape != uncond.shape:
            came = "None" if model is None else f"{model.dtype} {list(model.shape)}"
            raise ValueError(f"uncond: got {uncond.dtype} {list(uncond.shape)}, expected that of model, {came}")
        if model.is_contiguous() != uncond.is_contiguous():
            model, uncond = model.contiguous(), uncond.contiguous()
        if guidance is None:
            raise ValueError("guidance: got None, expected float32 weights [B] beside uncond")
        check(guidance, "guidance", torch.float32, device, per_chain)
    elif guidance is not None:
        check_tensor(guidance, "guidance")
    if noise is not None:
        check(noise, "noise", wanted, device, sample)
    if net_in is not None:
        check_net_in(net_in, state)
    if scales is not None:
        check(scales, "scales", wanted, device, (*per_chain, 4))
    if source is not None:
        check(source, "source", state.dtype, device, sample)
    return model, uncond


def check(
    tensor: torch.Tensor,
    name: str,
    dtype: torch.dtype | None,
    device: torch.device,
    shape: tuple[int, ...],
    contiguous: bool = True,
) -> None:
    """Raise unless the tensor has this dtype (None: one of FLOATS), device and shape.

    ``contiguous``: and lies in plain memory, without holes and without torch's negative bit.
    """
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
        check_tensor(tensor, name)
    if tensor.shape != shape:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.dtype != dtype and (dtype is not None or tensor.dtype not in FLOATS):
        raise TypeError(f"{name}: got dtype {tensor.dtype}, expected {dtype or 'float32, bfloat16 or float16'}")
    if tensor.device != device:
        raise ValueError(f"{name}: {OTHER_DEVICE.format(tensor.device, device)}")
    if contiguous:
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: got strides {tensor.stride()}, expected a contiguous tensor")
        if tensor.is_neg():
            raise ValueError(f"{name}: {NEGATIVE}")


def check_squares(squares: torch.Tensor, state: torch.Tensor, net_in: torch.Tensor | None) -> None:
    """Raise unless sums of squares can be added to this: a number a chain, and no memory that is written otherwise."""
    check(squares, "squares", torch.int64, state.device, state.shape[1:2])
    for name, other in (("state", state), ("net_in", net_in)):
        if other is not None and _overlap(squares, other):
            raise ValueError(f"squares: got memory shared with {name}, expected memory of its own")


def check_net_in(net_in: torch.Tensor, state: torch.Tensor) -> None:
    """Raise unless a network's input can be written to this: contiguous, or with its channels innermost."""
    wide = state.dtype == torch.float64 == getattr(net_in, "dtype", None)
    check(net_in, "net_in", torch.float64 if wide else None, state.device, state.shape[1:], contiguous=False)
    if not net_in.is_contiguous() and not channels_last(net_in):
        raise ValueError(f"net_in: got strides {net_in.stride()}, expected a contiguous or channels-last tensor")
    if net_in.is_neg():
        raise ValueError(f"net_in: {NEGATIVE}")
    if _overlap(net_in, state):
        raise ValueError("net_in: got memory shared with state, expected memory of its own")


def channels_last(tensor: torch.Tensor) -> bool:
    """Whether the channels of ``[B, C, *shape]`` lie innermost in memory, as torch.channels_last has them."""
    layout = CHANNELS_LAST.get(tensor.dim())
    return layout is not None and tensor.is_contiguous(memory_format=layout)


def _model(model: torch.Tensor, name: str, state: torch.Tensor, sample: torch.Size, last: bool) -> torch.Tensor:
    """Check a network output; return it contiguous, or with its channels innermost where ``last`` allows it."""
    if not isinstance(model, torch.Tensor) or model.layout is not torch.strided:
        check_tensor(model, name)
    if model.shape != sample:
        doubled = (*sample[:1], 2 * sample[1], *sample[2:]) if len(sample) > 1 else sample
        if model.shape != doubled:
            raise ValueError(f"{name}: got shape {list(model.shape)}, expected {list(sample)} (or twice the channels)")
    if model.dtype not in FLOATS and model.dtype != torch.float64:
        raise TypeError(f"{name}: got dtype {model.dtype}, expected a float type")
    if model.device != state.device:
        raise ValueError(f"{name}: {OTHER_DEVICE.format(model.device, state.device)}")
    if model.dtype == torch.float64 != state.dtype:
        model = model.to(torch.float32)
    if model.is_neg():
        model = model.resolve_neg()
    if model.is_contiguous() or (last and channels_last(model)):
        return model
    return model.contiguous()


def apart(
    reads: tuple[torch.Tensor | None, ...],
    elementwise: int,
    written: torch.Tensor,
    *others: torch.Tensor | None,
) -> tuple[Any, ...]:
    """What an operation reads, copied where it shares memory with what the operation writes: ``written`` and others.

    Of the first ``elementwise`` an element is read before the same element of ``written``, or of the register r_0 in a
    state, is written: these may be that tensor itself.
    """
    also = [other for other in others if other is not None]
    if separate(written, elementwise, *reads) and all(separate(other, 0, *reads) for other in also):
        return reads
    private: list[torch.Tensor | None] | None = None
    for k, tensor in enumerate(reads):
        if tensor is None:
            continue
        shares = _overlap(tensor, written) and not (k < elementwise and _is_first(tensor, written))
        if shares or any(_overlap(tensor, other) for other in also):
            private = private or list(reads)
            private[k] = tensor.clone()
    return reads if private is None else tuple(private)


def check_memory_of_its_own(**written: torch.Tensor) -> None:
    """Raise ValueError where two tensors without holes that an operation writes to share memory."""
    names, tensors = list(written), list(written.values())
    for k in range(1, len(tensors)):
        if separate(tensors[k], 0, *tensors[:k]):
            continue
        for name, tensor in zip(names, tensors[:k], strict=False):
            if _overlap(tensors[k], tensor):
                raise ValueError(f"{names[k]}: got memory shared with {name}, expected memory of its own")


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the memory of two tensors without holes meets."""
    begin, at = one.data_ptr(), other.data_ptr()
    return begin < at + other.nbytes and at < begin + one.nbytes


def _is_first(tensor: torch.Tensor, written: torch.Tensor) -> bool:
    """Whether it is ``written`` itself, or ``written[0]``, element for element."""
    same = tensor.data_ptr() == written.data_ptr() and tensor.dtype == written.dtype and tensor.is_contiguous()
    return same and tensor.shape in (written.shape, written.shape[1:])
