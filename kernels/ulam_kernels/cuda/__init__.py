"""The CUDA C++ backend: NVIDIA GPUs of compute capability 8.0 and newer.

The operations take tensors that :mod:`ulam_kernels.ops` has validated and launch on their device, on torch's current
stream. Importing this module raises ImportError with the reason where nothing can be launched.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

if find_spec("ulam_kernels._cuda") is None:
    raise ImportError("ulam was built without nvcc: its CUDA extension is missing")

from ulam_kernels import _cuda

if (_reason := _cuda.unavailable_reason()) is not None:
    raise ImportError(_reason)

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


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
) -> None:
    device = state.device
    if torch.cuda.current_device() != device.index:
        with torch.cuda.device(device):
            return step(state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in)
    registers, chains = state.size(0), state.size(1)
    _cuda.step(
        chains,
        state.numel() // (registers * chains) if chains else 0,
        registers,
        state.data_ptr(),
        DTYPES[state.dtype],
        coef.data_ptr(),
        flags.data_ptr(),
        flags.size(0),
        row.data_ptr(),
        _address(model),
        _address(uncond),
        0 if model is None else DTYPES[model.dtype],
        0 if model is None or not chains else model.numel() // chains,
        _address(guidance),
        _address(seed),
        _address(chain),
        _address(draw),
        _address(noise),
        _address(net_in),
        0 if net_in is None else DTYPES[net_in.dtype],
        torch.cuda.current_stream(device).cuda_stream,
    )


def fill_normal(
    out: torch.Tensor,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    tag: int,
    scale: float,
    offset: int,
) -> None:
    device, chains = out.device, out.size(0)
    if torch.cuda.current_device() != device.index:
        with torch.cuda.device(device):
            return fill_normal(out, seed, chain, draw, tag, scale, offset)
    _cuda.fill_normal(
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
        torch.cuda.current_stream(device).cuda_stream,
    )


def affine(x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    device, chains = out.device, out.size(0)
    if torch.cuda.current_device() != device.index:
        with torch.cuda.device(device):
            return affine(x, m, a, b, out)
    _cuda.affine(
        chains,
        out.numel() // chains if chains else 0,
        x.data_ptr(),
        DTYPES[x.dtype],
        m.data_ptr(),
        DTYPES[m.dtype],
        out.data_ptr(),
        DTYPES[out.dtype],
        a.data_ptr(),
        b.data_ptr(),
        torch.cuda.current_stream(device).cuda_stream,
    )
