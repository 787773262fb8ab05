"""The native C++ backend: AVX-512, AVX2 or portable code, chosen when it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch  # before the extension, so that one OpenMP runtime serves both

from ulam_kernels import _cpu
from ulam_kernels.native import (
    advance_arguments,
    affine_arguments,
    blend_arguments,
    fill_arguments,
    look_up_arguments,
    reduce_arguments,
    step_arguments,
)

from .bound import BoundStep as BoundStep

scalar, address = _cpu.scalar, _cpu.address
quick_look_up, quick_advance = _cpu.quick_look_up, _cpu.quick_advance


def _run(operation: Callable[..., None], arguments: tuple[float, ...]) -> None:
    operation(*arguments, torch.get_num_threads())


def step(state: torch.Tensor, *tensors: torch.Tensor | None, **named: torch.Tensor | None) -> None:
    _run(_cpu.step, step_arguments(state, *tensors, **named))  # type: ignore[arg-type]


def reduce(state: torch.Tensor, *tensors: torch.Tensor | None, **named: torch.Tensor | None) -> None:
    _run(_cpu.reduce, reduce_arguments(state, *tensors, **named))  # type: ignore[arg-type]


def blend(x: torch.Tensor, *tensors: torch.Tensor | int | None, **named: torch.Tensor | int | None) -> None:
    _run(_cpu.blend, blend_arguments(x, *tensors, **named))  # type: ignore[arg-type]


def fill_normal(out: torch.Tensor, *stream: torch.Tensor | float, **named: torch.Tensor | float) -> None:
    _run(_cpu.fill_normal, fill_arguments(out, *stream, **named))  # type: ignore[arg-type]


def affine(x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    _run(_cpu.affine, affine_arguments(x, m, a, b, out))


def look_up(times: torch.Tensor, *tensors: torch.Tensor | None, **named: torch.Tensor | None) -> None:
    _run(_cpu.look_up, look_up_arguments(times, *tensors, **named))  # type: ignore[arg-type]


def advance(cursor: torch.Tensor, *tensors: torch.Tensor | None, **named: torch.Tensor | None) -> None:
    _run(_cpu.advance, advance_arguments(cursor, *tensors, **named))  # type: ignore[arg-type]
