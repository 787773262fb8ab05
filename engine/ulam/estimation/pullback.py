"""Vector-Jacobian products that can themselves be differentiated: what a loss needs that contains a derivative.

Such a loss is trained by double backward. In eager mode the products are `torch.autograd.grad`, which also serves
functions that take gradients inside; under `torch.compile` and the transforms of `torch.func`, which do not take that,
they are `torch.func.vjp`. Graphs lose the second derivative of a `torch.autograd.Function`: one is refused there.
Attention runs as its plain formula: the fused kernels have no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ulam_kernels.tracing import check_second_derivatives, traced, transformed

from ..gradients import plain
from .autograd import Function

AT_ONCE = 64  # products in one batched backward pass


class Pullback:
    """``value`` = f(x) of a function f, and products v' (df/dx) for any v like the value; x ``[B, *shape]``.

    Rows of f are independent, so products are those of each row. Where gradients are recorded, value and products are
    differentiable in what else f depends on, not in x. Where f does not depend on x, products are 0.
    """

    def __init__(self, function: Function, x: torch.Tensor) -> None:
        self._record = torch.is_grad_enabled()
        self._vjp: Callable[[torch.Tensor], tuple[torch.Tensor]] | None = None
        self._batched = traced() is None
        with sdpa_kernel(SDPBackend.MATH):
            if torch.compiler.is_compiling() or transformed() is not None:
                self.value, self._vjp = torch.func.vjp(function, x)  # type: ignore[misc]
                if self._record:
                    check_second_derivatives()
                return
            with torch.inference_mode(False), torch.enable_grad():
                self._x = plain(x).requires_grad_()
                self._output = function(self._x)
        self.value = self._output if self._record else self._output.detach()

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        """v' (df/dx) like x, for v like the value."""
        return self._vjp(v)[0] if self._vjp is not None else self._backward(v, False)

    def many(self, vs: torch.Tensor) -> torch.Tensor:
        """The products of several v at once, ``[K, *v] -> [K, *x]``: one batched pass where the function allows it."""
        try:
            if self._batched:
                return torch.func.vmap(self._vjp)(vs)[0] if self._vjp is not None else self._backward(vs, True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # an operation that torch.vmap does not take
            if torch.compiler.is_compiling():
                raise
            self._batched = False
        return torch.stack([self(v) for v in vs])

    def _backward(self, v: torch.Tensor, batched: bool) -> torch.Tensor:
        shape = (len(v), *self._x.shape) if batched else self._x.shape
        if not self._output.requires_grad:
            return self._x.new_zeros(shape)
        with torch.inference_mode(False), torch.enable_grad():
            v = plain(v)
            # torch.jit.trace has no shapes to compare those of v with
            output, seeds = (self._output, v) if batched else ((self._output * v).sum(), None)
            (found,) = torch.autograd.grad(
                output, self._x, seeds, retain_graph=True, create_graph=self._record, allow_unused=True,
                is_grads_batched=batched,
            )  # fmt: skip
        return self._x.new_zeros(shape) if found is None else found


def trace(products: Pullback, x: torch.Tensor) -> torch.Tensor:
    """tr(df/dx) of each row, ``[B]``, for f(x) like x: :data:`AT_ONCE` rows of the Jacobian in a backward pass."""
    n, total = x[0].numel(), torch.zeros((), dtype=products.value.dtype, device=x.device)
    for first in range(0, n, AT_ONCE):
        units = torch.eye(n, dtype=total.dtype, device=x.device)[first : first + AT_ONCE]
        vs = units.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
        rows = products.many(vs).flatten(2)[:, :, first : first + AT_ONCE]
        total = total + rows.to(total).diagonal(dim1=0, dim2=2).sum(1)
    return total
