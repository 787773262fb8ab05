"""Bijections from real numbers to the sets of parameters: those of ``torch.distributions``, in steps that round alike.

``torch.sigmoid`` and ``softplus`` round by where in a batch a number lies, as vectorised loops and their ends differ on
the CPU, so that a chain's bits would depend on others. Here they are made of exp and log1p, which do not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributions import biject_to, constraints, transforms
from torch.nn.functional import pad


class OrderedVector(constraints.Constraint):
    """Vectors whose elements ascend: a constraint that ``torch.distributions`` lacks."""

    event_dim = 1

    def check(self, value: torch.Tensor) -> torch.Tensor:
        return (value[..., 1:] > value[..., :-1]).all(-1)


class FromGaps(transforms.Transform):
    """x_1 = y_1, x_k = x_(k-1) + exp(y_k), whose log |det| is the sum of y_2, y_3, ..."""

    domain = constraints.real_vector
    codomain = OrderedVector()
    bijective = True

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[..., :1], x[..., 1:].exp()], -1).cumsum(-1)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y[..., :1], y.diff(dim=-1).log()], -1)

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x[..., 1:].sum(-1)


class Sigmoid(transforms.SigmoidTransform):
    """``SigmoidTransform``, clipped as it is to the least positive number and to the last below 1."""

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        return _sigmoid(x)

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -x.abs() - 2 * _log1p_exp(x)


class StickBreaking(transforms.StickBreakingTransform):
    """``StickBreakingTransform``: x_k = z_k (1 - z_1) ... (1 - z_(k-1)), z_k = sigmoid(y_k - log(n - k))."""

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        z = _sigmoid(x - _offset(x))
        left = pad((1 - z).cumprod(-1), [1, 0], value=1)
        return pad(z, [0, 1], value=1) * left

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x - _offset(x)
        log_rest = -(x + x.abs()) / 2 - _log1p_exp(x)  # log(1 - z)
        return (log_rest + y[..., :-1].log()).sum(-1)


class CorrelationCholeskyFactor(transforms.CorrCholeskyTransform):
    """``CorrCholeskyTransform``, by tanh and stick breaking of squares."""

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor, intermediates: object = None) -> torch.Tensor:
        n = y.shape[-1]
        rows, columns = torch.tril_indices(n, n, -2, device=y.device)
        rest = (1 - (y * y).cumsum(-1))[..., rows, columns]
        return 0.5 * rest.log().sum(-1) - 2 * (x.abs() + _log1p_exp(2 * x) - math.log(2)).sum(-1)


biject_to.register(OrderedVector, lambda _: FromGaps())  # type: ignore[no-untyped-call]

STEADY = {
    transforms.SigmoidTransform: Sigmoid,
    transforms.StickBreakingTransform: StickBreaking,
    transforms.CorrCholeskyTransform: CorrelationCholeskyFactor,
}


def bijection(constraint: Any) -> Any:
    """``biject_to(constraint)``. Raises NotImplementedError where there is none."""
    return _steady(biject_to(constraint))


def _steady(transform: Any) -> Any:
    if isinstance(transform, transforms.ComposeTransform) and transform.parts:
        return transforms.ComposeTransform([_steady(part) for part in transform.parts])
    if isinstance(transform, transforms.IndependentTransform):
        return transforms.IndependentTransform(_steady(transform.base_transform), transform.reinterpreted_batch_ndims)
    return STEADY[type(transform)]() if type(transform) in STEADY else transform


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    numbers = torch.finfo(x.dtype)
    made = ((x - x.abs()) / 2 - _log1p_exp(x)).exp()
    return made.clamp(numbers.tiny, 1.0 - numbers.eps)


def _log1p_exp(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(-|x|))."""
    return x.abs().neg().exp().log1p()


def _offset(x: torch.Tensor) -> torch.Tensor:
    """log(n - k) for k = 0, ..., n - 1."""
    n = x.shape[-1]
    return torch.arange(n, 0, -1, dtype=x.dtype, device=x.device).log()
