"""The native C++ backend: AVX-512, AVX2 or portable code, chosen when it runs.

The operations take tensors that :mod:`ulam_kernels.ops` has validated and hand their addresses to the extension.
"""

from __future__ import annotations

import torch  # before the extension, so that one OpenMP runtime serves both

from ulam_kernels import _cpu

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
    registers, chains = state.shape[:2]
    elements = state.numel() // (registers * chains) if chains else 0
    _cpu.step(
        chains,
        elements,
        registers,
        state.data_ptr(),
        DTYPES[state.dtype],
        coef.data_ptr(),
        flags.data_ptr(),
        flags.shape[0],
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
        torch.get_num_threads(),
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
    chains = out.shape[0]
    _cpu.fill_normal(
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
        torch.get_num_threads(),
    )


def affine(x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    chains = x.shape[0]
    _cpu.affine(
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
        torch.get_num_threads(),
    )
