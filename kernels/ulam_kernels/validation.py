"""Checks of the operations' arguments: what came and what would be right, in one line, before any work is done."""

from __future__ import annotations

import torch

from ulam_kernels.arguments import described
from ulam_kernels.table import Table

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
REALS = (torch.float64, *FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MAX_ELEMENTS = 1 << 30  # noise-v1 counts a chain's elements in 30 bits
MAX_STAGE = 15  # draw = 16 * row + stage


def check_tensor(tensor: object, name: str) -> None:
    """Raise unless it is a tensor with its numbers in memory, one after the other."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: got {described(tensor)}, expected a tensor")
    if tensor.layout is not torch.strided or tensor.is_meta:
        found = "the meta device" if tensor.is_meta else str(tensor.layout)
        raise ValueError(f"{name}: got a tensor on {found}, expected a dense one with data")


def check_state(state: torch.Tensor) -> None:
    if state.dim() < 2:
        raise ValueError(f"state: got shape {list(state.shape)}, expected [R, B, *shape]")
    if state.dtype not in FLOATS and state.dtype != torch.float64:
        raise TypeError(f"state: got dtype {state.dtype}, expected float32, bfloat16, float16 or float64")
    if not state.is_contiguous():
        raise ValueError("state: must be contiguous, it is updated in place")
    if state.numel() > state.shape[0] * state.shape[1] * MAX_ELEMENTS:
        raise ValueError(f"state: got shape {list(state.shape)}, a chain may have at most 2^30 elements")


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


def operands(
    state: torch.Tensor,
    table: Table,
    row: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Check what a row may read; return model and uncond as the backends take them."""
    check_state(state)
    sample, device = state.shape[1:], state.device
    per_chain, coef = sample[:1], table.coef
    if state.shape[0] != table.registers:
        raise ValueError(f"state: got {state.shape[0]} registers, but the table has {table.registers}")
    wanted = torch.float64 if state.dtype == torch.float64 else torch.float32
    if coef.dtype != wanted or coef.device != device:
        raise ValueError(f"table: is {coef.dtype} on {coef.device}, expected {wanted} on {device}")
    check(row, "row", torch.int64, device, per_chain)
    model = _model(model, "model", state, sample)
    if uncond is not None:
        uncond = _model(uncond, "uncond", state, sample)
        if model is None or uncond is None or model.dtype != uncond.dtype or model.shape != uncond.shape:
            raise ValueError("uncond: must have the shape and dtype of model")
        if guidance is None:
            raise ValueError("guidance: got None, expected float32 weights [B] beside uncond")
        check(guidance, "guidance", torch.float32, device, per_chain)
    check_ids(seed, chain, draw, device, per_chain)
    if noise is not None:
        check(noise, "noise", wanted, device, sample)
    return model, uncond


def check(
    tensor: torch.Tensor,
    name: str,
    dtype: torch.dtype | None,
    device: torch.device,
    shape: tuple[int, ...],
    contiguous: bool = True,
) -> None:
    """Raise unless the tensor has this dtype (None: one of FLOATS), device and shape."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
        check_tensor(tensor, name)
    if tensor.shape != shape:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.dtype != dtype and (dtype is not None or tensor.dtype not in FLOATS):
        raise TypeError(f"{name}: got dtype {tensor.dtype}, expected {dtype or 'float32, bfloat16 or float16'}")
    if tensor.device != device:
        raise ValueError(f"{name}: is on {tensor.device}, expected {device} like the other tensors")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name}: must be contiguous")


def _model(model: torch.Tensor | None, name: str, state: torch.Tensor, sample: torch.Size) -> torch.Tensor | None:
    """Check a network output; return it contiguous, and apart from the registers unless it is r_0 exactly."""
    if model is None:
        return None
    if model.shape != sample:
        doubled = (*sample[:1], 2 * sample[1], *sample[2:]) if len(sample) > 1 else sample
        if model.shape != doubled:
            raise ValueError(f"{name}: got shape {list(model.shape)}, expected {list(sample)} (or twice the channels)")
    if model.dtype not in FLOATS and model.dtype != torch.float64:
        raise TypeError(f"{name}: got dtype {model.dtype}, expected a float type")
    if model.device != state.device:
        raise ValueError(f"{name}: is on {model.device}, expected {state.device} like the other tensors")
    if model.dtype == torch.float64 != state.dtype:
        model = model.to(torch.float32)
    if not model.is_contiguous():
        return model.contiguous()
    if model.untyped_storage().data_ptr() == state.untyped_storage().data_ptr():
        exact = model.data_ptr() == state.data_ptr() and model.dtype == state.dtype and model.shape == sample
        return model if exact else model.clone()
    return model
