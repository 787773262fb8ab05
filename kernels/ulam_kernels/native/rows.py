"""Arguments of the operations on rows and ticks, as bindings/{arguments,tick}.h have them, of checked tensors."""

from __future__ import annotations

import torch

from ulam_kernels.native.addresses import address

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
OUTPUT_DTYPES = DTYPES | {torch.float64: 3}  # of tensors that are only checked
MODEL_LAST, NET_LAST = 1, 2  # channels-last tensors: others come contiguous


def step(
    state: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    row: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    net_in: torch.Tensor | None,
    scales: torch.Tensor | None = None,
    source: torch.Tensor | None = None,
    squares: torch.Tensor | None = None,
) -> tuple[int, ...]:
    pixels = last = 0
    if model is not None and not model.is_contiguous():
        last = MODEL_LAST
    if net_in is not None and not net_in.is_contiguous():
        last |= NET_LAST
    if last:
        pixels = state[0, 0, 0].numel()
    return (
        *_row_arguments(state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise),
        0 if net_in is None else net_in.data_ptr(),
        0 if net_in is None else DTYPES[net_in.dtype],
        0 if scales is None else scales.data_ptr(),
        0 if source is None else source.data_ptr(),
        pixels,
        last,
        0 if squares is None else squares.data_ptr(),
    )


def reduce(
    state: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    row: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    out: torch.Tensor,
) -> tuple[int, ...]:
    return (
        *_row_arguments(state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise),
        out.data_ptr(),
    )


def _row_arguments(
    state: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    row: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> tuple[int, ...]:
    """What a row may read."""
    shape = state.shape
    registers, chains = shape[0], shape[1]
    return (
        chains,
        state.numel() // (registers * chains) if chains else 0,
        registers,
        state.data_ptr(),
        DTYPES[state.dtype],
        coef.data_ptr(),
        flags.data_ptr(),
        flags.numel(),
        row.data_ptr(),
        0 if model is None else model.data_ptr(),  # a function of its own would cost a twentieth of the step
        0 if uncond is None else uncond.data_ptr(),
        0 if model is None else DTYPES[model.dtype],
        0 if model is None or not chains else model.numel() // chains,
        0 if guidance is None else guidance.data_ptr(),
        0 if seed is None else seed.data_ptr(),
        0 if chain is None else chain.data_ptr(),
        0 if draw is None else draw.data_ptr(),
        0 if noise is None else noise.data_ptr(),
    )


def blend(
    x: torch.Tensor,
    known: torch.Tensor,
    mask: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    net_in: torch.Tensor | None,
    c_next: torch.Tensor | None,
    row: torch.Tensor | None = None,
    stage: int = 0,
) -> tuple[int, ...]:
    chains = x.size(0)
    return (
        chains,
        x.numel() // chains if chains else 0,
        x.data_ptr(),
        DTYPES[x.dtype],
        known.data_ptr(),
        mask.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        address(seed),
        address(chain),
        address(draw),
        address(noise),
        address(net_in),
        0 if net_in is None else DTYPES[net_in.dtype],
        address(c_next),
        address(row),
        a.size(0),
        stage,
    )


def fill_normal(
    out: torch.Tensor,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    tag: int,
    scale: float,
    offset: int,
) -> tuple[int, int, int, int, int, int, int, int, int, float]:
    chains = out.size(0)
    return (
        chains,
        out.numel() // chains if chains else 0,
        offset,
        out.data_ptr(),
        DTYPES[out.dtype],
        seed.data_ptr(),
        chain.data_ptr(),
        draw.data_ptr(),
        tag,
        scale,
    )


def affine(x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> tuple[int, ...]:
    chains = x.size(0)
    return (
        chains,
        x.numel() // chains if chains else 0,
        x.data_ptr(),
        DTYPES[x.dtype],
        m.data_ptr(),
        DTYPES[m.dtype],
        out.data_ptr(),
        DTYPES[out.dtype],
        a.data_ptr(),
        b.data_ptr(),
    )


def moments(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> tuple[int, ...]:
    chains = x.size(0)
    return chains, x.numel() // chains if chains else 0, x.data_ptr(), y.data_ptr(), out.data_ptr()


def look_up(
    times: torch.Tensor,
    row: torch.Tensor,
    out: torch.Tensor,
    guidance: torch.Tensor | None,
    interval: torch.Tensor | None,
    weight: torch.Tensor | None,
) -> tuple[int, ...]:
    return (
        row.size(0),
        times.size(0),
        times.data_ptr(),
        times.dtype == torch.int64,
        row.data_ptr(),
        out.data_ptr(),
        address(guidance),
        address(interval),
        address(weight),
    )


def advance(
    cursor: torch.Tensor,
    now: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
) -> tuple[int, ...]:
    chains = cursor.size(1)
    elements = 0 if model is None or not chains else model.numel() // chains
    return (
        chains,
        elements,
        cursor.data_ptr(),
        now.data_ptr(),
        address(model),
        address(uncond),
        0 if model is None else OUTPUT_DTYPES[model.dtype],
        elements if model is None or chains < 2 else model.stride(0),
        elements if uncond is None or chains < 2 else uncond.stride(0),
        address(guidance),
    )
