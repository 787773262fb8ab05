"""Conversions between predictions, batched, one t per chain.

All share one signature: state `x_t` [B, *shape], network output `m` [B, *shape] of what `predicts` names,
`t` one number or a [B] tensor (as the network takes it: see `schedules`), `schedule`. Both tensors may have
any float dtype; the result has their promoted dtype. All are linear: the coefficients are computed on the
host in float64 (waiting for a `t` on a GPU), rounded once, and applied by one fused operation (by plain
torch where a derivative in x_t or m is wanted, in reverse or forward mode; there is none in t). For
`predicts="mean"` D is a difference of near numbers, coefficients are applied in float64 and the result is rounded.

Every function raises TypeError or ValueError, naming the argument, for unequal shapes, a dtype that is not
floating-point, a `t` of the wrong shape or out of range, and where the prediction leaves the result undefined
(eps and score at alpha = 0, mean between training steps).
"""

from __future__ import annotations

import numpy as np
import torch

import ulam_kernels
from ulam_kernels.autograd import forward_mode, recorded
from ulam_kernels.validation import check_tensor

from .arguments import Time, chain_times, per_chain
from .lazily import suggests
from .programs.predictions import check_predicts, combine
from .schedules import Array, Schedule, VariancePreserving, before, check_schedule, posterior


def predict_x0(x_t: torch.Tensor, m: torch.Tensor, t: Time, schedule: Schedule, predicts: str = "eps") -> torch.Tensor:
    """D = E[x_0 | x_t], [B, *shape]: (x_t - sigma_t eps) / alpha_t [Ho 2020, eq. 15]."""
    alpha, sigma = _levels(x_t, m, t, schedule, predicts)
    return _affine(x_t, m, *combine(predicts, alpha, sigma, schedule, D=1.0), near=predicts == "mean")


def predict_eps(x_t: torch.Tensor, m: torch.Tensor, t: Time, schedule: Schedule, predicts: str = "eps") -> torch.Tensor:
    """E[eps | x_t] = (x_t - alpha_t D) / sigma_t, [B, *shape]."""
    alpha, sigma = _levels(x_t, m, t, schedule, predicts)
    return _affine(x_t, m, *combine(predicts, alpha, sigma, schedule, eps=1.0), near=predicts == "mean")


def predict_v(x_t: torch.Tensor, m: torch.Tensor, t: Time, schedule: Schedule, predicts: str = "eps") -> torch.Tensor:
    """v = alpha_t eps - sigma_t D, [B, *shape] [Salimans & Ho 2022, app. D]."""
    alpha, sigma = _levels(x_t, m, t, schedule, predicts)
    if predicts == "v":
        return _affine(x_t, m, 0 * alpha, np.ones_like(alpha))
    return _affine(x_t, m, *combine(predicts, alpha, sigma, schedule, D=-sigma, eps=alpha), near=predicts == "mean")


def score(x_t: torch.Tensor, m: torch.Tensor, t: Time, schedule: Schedule, predicts: str = "eps") -> torch.Tensor:
    """grad_x log p_t(x_t) = -eps / sigma_t, [B, *shape] [Vincent 2011; Tweedie]. Undefined at sigma_t = 0."""
    alpha, sigma = _levels(x_t, m, t, schedule, predicts)
    if (sigma == 0).any():
        raise ValueError("t: got one with sigma 0, expected sigma above 0: the score is undefined without noise")
    return _affine(x_t, m, *combine(predicts, alpha, sigma, schedule, eps=-1 / sigma), near=predicts == "mean")


def posterior_mean(
    x_t: torch.Tensor, m: torch.Tensor, t: Time, schedule: Schedule, predicts: str = "eps", *, s: Time | None = None
) -> torch.Tensor:
    """mu~ of q(x_s | x_t, x_0 = D), [B, *shape], with q = alpha_t sigma_s / (alpha_s sigma_t) [Kingma 2021, eq. 26-29]:

        (sigma_s / sigma_t) q x_t + alpha_s (1 - q^2) D

    s: any earlier time, one number or [B]. None is the training step before t, on VP schedules and for whole t; before
    step 0 come the data, and the result is D. For eps that is (x_t - beta_t / sigma_t eps) / sqrt(1 - beta_t) [Ho 2020,
    eq. 7 and 11].
    """
    alpha, sigma = _levels(x_t, m, t, schedule, predicts)
    if predicts == "mean" and s is None:
        _earlier(x_t, t, s, sigma, schedule)
        return _affine(x_t, m, 0 * alpha, np.ones_like(alpha))
    on_x, on_D, _ = posterior(alpha, sigma, *_earlier(x_t, t, s, sigma, schedule))
    x, model = combine(predicts, alpha, sigma, schedule, D=on_D)
    return _affine(x_t, m, on_x + x, model, near=predicts == "mean")


def posterior_variance(
    x_t: torch.Tensor, m: torch.Tensor, t: Time, schedule: Schedule, predicts: str = "eps", *, s: Time | None = None
) -> torch.Tensor:
    """beta~ = sigma_s^2 (1 - q^2) of q(x_s | x_t, x_0), [B], one number per chain [Ho 2020, eq. 7].

    s as in `posterior_mean`; 0 where x_s are the data. It depends on times alone: x_t and m give the number of chains,
    the dtype and the device.
    """
    alpha, sigma = _levels(x_t, m, t, schedule, predicts)
    alpha_s, sigma_s = _earlier(x_t, t, s, sigma, schedule)
    _, _, fresh = posterior(alpha, sigma, alpha_s, sigma_s)
    return torch.from_numpy(sigma_s**2 * fresh).to(x_t.device, torch.promote_types(x_t.dtype, m.dtype))


def _levels(x_t: torch.Tensor, m: torch.Tensor, t: Time, schedule: Schedule, predicts: str) -> tuple[Array, Array]:
    """(alpha_t, sigma_t), [B], after a check of every argument."""
    check_schedule(schedule)
    check_predicts(predicts, schedule)
    for name, tensor in (("x_t", x_t), ("m", m)):
        check_tensor(tensor, name)
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: got {tensor.dtype}, expected a float dtype")
    if x_t.ndim == 0 or x_t.shape != m.shape:
        raise ValueError(f"m: got shape {list(m.shape)}, expected {list(x_t.shape)} like x_t (chains first)")
    if x_t.device != m.device:
        raise ValueError(f"m: got one on {m.device}, expected {x_t.device} like x_t")
    return schedule.levels(chain_times(x_t, t))


def _earlier(x_t: torch.Tensor, t: Time, s: Time | None, sigma: Array, schedule: Schedule) -> tuple[Array, Array]:
    """(alpha_s, sigma_s), [B], one training step before t if s is None."""
    times = chain_times(x_t, t)
    if (sigma == 0).any():
        raise ValueError("t: got one with sigma 0, expected sigma above 0: there is no posterior without noise")
    if s is None:
        if not isinstance(schedule, VariancePreserving):
            raise ValueError(f"schedule: got {schedule!r}, expected a vp schedule, which has a step before t, or s")
        if (times % 1 != 0).any():
            raise ValueError(f"t: got {times[times % 1 != 0][0]!s}, expected whole training steps, or s")
        return before(schedule, times)
    earlier = chain_times(x_t, s, "s")
    if (late := ~(earlier < times)).any():
        raise ValueError(f"s: got {earlier[late][0]:.10g} at t = {times[late][0]:.10g}, expected an earlier time")
    try:
        return schedule.levels(earlier)
    except ValueError as error:
        raise ValueError(f"s: {str(error).partition(': ')[2]}") from None


def _affine(x: torch.Tensor, m: torch.Tensor, on_x: Array, on_m: Array, *, near: bool = False) -> torch.Tensor:
    """on_x x + on_m m, coefficients [B] rounded once to float32: to float64 for float64 tensors, and where x and m are
    `near`, so that their difference keeps its digits.
    """
    promoted = torch.promote_types(x.dtype, m.dtype)
    wide = torch.float64 if promoted == torch.float64 or near else torch.float32
    a, b = (torch.from_numpy(np.ascontiguousarray(c)).to(x.device, wide) for c in (on_x, on_m))
    if recorded(x, m) or forward_mode():
        a, b = per_chain(a, x), per_chain(b, x)
        return (a * x + b * m).to(promoted)
    return ulam_kernels.affine(x.to(wide), m.to(wide), a, b).to(promoted) if near else ulam_kernels.affine(x, m, a, b)


suggests(__name__)
