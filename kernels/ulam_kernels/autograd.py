"""What autograd is told of the operations: which inputs they refuse, what they wrote, and the derivative of `affine`.

Kernels read and write memory by its address, which autograd does not see.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

# Tells autograd that tensors were changed in place: a graph that saved one of them then refuses to go back. This is the
# public function without the check of its argument's type, in a third of the time.
written: Callable[[tuple[torch.Tensor, ...]], None] = getattr(torch._C, "_increment_version", increment_version)


def recorded(*tensors: torch.Tensor) -> bool:
    """Whether autograd records what is computed from one of these."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                return True
    return False


def check_no_gradient(operation: str, **tensors: torch.Tensor | None) -> None:
    """Raises RuntimeError where an input of an operation without a derivative asks for one."""
    backward, forward = torch.is_grad_enabled(), forward_mode()
    if not backward and not forward:  # none may be asked for
        return
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        if (backward and tensor.requires_grad) or (forward and _has_tangent(tensor)):
            raise RuntimeError(
                f"{name}: got a tensor that asks for a derivative, but {operation} has none, expected {name}.detach(), "
                "or a call under torch.no_grad()"
            )


def forward_mode() -> bool:
    """Whether there may be tensors with tangents."""
    return forward_ad._current_level >= 0


def _has_tangent(tensor: torch.Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def of_affine(
    ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, None]:
    """The gradients of a x + b m in x, m, a and b, computed in the precision of the operation."""
    x, m, a, b = ctx.saved_tensors  # type: ignore[attr-defined]
    for_x, for_m, for_a, for_b = ctx.needs_input_grad[:4]  # type: ignore[attr-defined]
    wide = gradient.to(a.dtype)
    per_chain = (-1, *[1] * (gradient.dim() - 1))
    return (
        (a.view(per_chain) * wide).to(x.dtype) if for_x else None,
        (b.view(per_chain) * wide).to(m.dtype) if for_m else None,
        (wide * x).reshape(len(a), -1).sum(1) if for_a else None,
        (wide * m).reshape(len(b), -1).sum(1) if for_b else None,
        None,
    )


def save_for_affine(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> None:
    ctx.save_for_backward(*inputs[:4])
