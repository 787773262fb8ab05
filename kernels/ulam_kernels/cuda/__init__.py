"""The CUDA C++ backend: NVIDIA GPUs of compute capability 8.0 and newer.

The operations take tensors that :mod:`ulam_kernels.ops` has validated and launch on their device, on torch's current
stream. Importing this module raises ImportError with the reason where nothing can be launched.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch

if find_spec("ulam_kernels._cuda") is None:
    raise ImportError("ulam was built without nvcc: its CUDA extension is missing")

from ulam_kernels import _cuda
from ulam_kernels.native import (
    advance_arguments,
    affine_arguments,
    blend_arguments,
    fill_arguments,
    look_up_arguments,
    reduce_arguments,
    step_arguments,
)

if (_reason := _cuda.unavailable_reason()) is not None:
    raise ImportError(_reason)
if not torch.cuda.is_available():
    raise ImportError("torch sees no CUDA device (is it a build for the CPU?)")


def _launch(operation: Callable[..., None], device: torch.device, arguments: tuple[float, ...]) -> None:
    if torch.cuda.current_device() != device.index:
        with torch.cuda.device(device):
            return _launch(operation, device, arguments)
    operation(*arguments, torch.cuda.current_stream(device).cuda_stream)


def step(state: torch.Tensor, *tensors: torch.Tensor | None, **named: torch.Tensor | None) -> None:
    _launch(_cuda.step, state.device, step_arguments(state, *tensors, **named))  # type: ignore[arg-type]


def reduce(state: torch.Tensor, *tensors: torch.Tensor | None, **named: torch.Tensor | None) -> None:
    _launch(_cuda.reduce, state.device, reduce_arguments(state, *tensors, **named))  # type: ignore[arg-type]


def blend(x: torch.Tensor, *tensors: torch.Tensor | int | None, **named: torch.Tensor | int | None) -> None:
    _launch(_cuda.blend, x.device, blend_arguments(x, *tensors, **named))  # type: ignore[arg-type]


def fill_normal(out: torch.Tensor, *stream: torch.Tensor | float, **named: torch.Tensor | float) -> None:
    _launch(_cuda.fill_normal, out.device, fill_arguments(out, *stream, **named))  # type: ignore[arg-type]


def affine(x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    _launch(_cuda.affine, x.device, affine_arguments(x, m, a, b, out))


def look_up(times: torch.Tensor, *tensors: torch.Tensor | None, **named: torch.Tensor | None) -> None:
    _launch(_cuda.look_up, times.device, look_up_arguments(times, *tensors, **named))  # type: ignore[arg-type]


def advance(cursor: torch.Tensor, *tensors: torch.Tensor | None, **named: torch.Tensor | None) -> None:
    _launch(_cuda.advance, cursor.device, advance_arguments(cursor, *tensors, **named))  # type: ignore[arg-type]
