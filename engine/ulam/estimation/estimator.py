"""A denoiser as the function D(y, sigma) = E[x | y] of a noisy observation y = x + sigma z."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch

from ulam_kernels.arguments import described
from ulam_kernels.validation import check_data, real_numbers

from ..arguments import per_chain
from ..conditioning import Cond, Shared, arguments_of
from ..denoiser import Denoiser
from ..evaluation import autocast_state, check_output, in_eval_mode, modules_in
from ..gradients import plain
from ..programs.predictions import x0_coefficients
from ..schedules import Array, VariancePreserving
from .derivative_checks import rows_of
from .differences import reduced_precision

Sigma: TypeAlias = "float | torch.Tensor | Array"
Inputs: TypeAlias = Cond
LARGEST_SIGMA = 1e75  # its fourth power is still a float64
SAME_LEVEL = 1e-6  # relative: a level rounded to float32 is still that level


class Estimator:
    """D(y, sigma_b) for a batch y ``[B, *shape]`` with one noise level a chain: a differentiable function of y.

    Where a schedule has alpha below 1, y = x + sigma z is read as x_t = alpha_t y at the t with sigma_t / alpha_t =
    sigma; under time="index" or predicts="mean" that must be a training step. Coefficients are computed in float64 and
    rounded once to the dtype of y (for mean, whose D is a difference of near numbers, D is).
    The network is called in eval mode with ``cond`` as further arguments.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range, named in the message.
    """

    def __init__(self, denoiser: Denoiser, y: torch.Tensor, sigma: Sigma, cond: Inputs | None = None) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"denoiser: got {described(denoiser)}, expected a ulam.Denoiser")
        check_observation(y)
        if cond is not None and not isinstance(cond, Mapping):
            raise TypeError(f"cond: got {described(cond)}, expected tensors by name, or None")
        self.sigma, self.denoiser = noise_levels(y, sigma), denoiser
        self._net, self._like = denoiser.network, y
        with torch.inference_mode(False):  # the graphs of derivatives may hold what is made here
            given = arguments_of(cond, y.device)
            self._cond = {key: _for_graphs(key, value) for key, value in given.items()}
            shared = {key: value.tensor[None] for key, value in (cond or {}).items() if isinstance(value, Shared)}
            self._by_row = {**self._cond, **shared}
            self._set_coefficients(denoiser, y)

    def _set_coefficients(self, denoiser: Denoiser, y: torch.Tensor) -> None:
        self._modules = modules_in(denoiser.net)
        schedule = denoiser.schedule
        time = training_steps(denoiser, self.sigma) if denoiser.told_steps else schedule.t_of_sigma(self.sigma)
        alpha, noise = schedule.levels(time)
        kx, km, c_in = x0_coefficients(denoiser.predicts, alpha, noise, schedule)
        self._to_net = self._tensor(c_in * alpha)
        self._on_y, self._on_m = (self._on_output(c) for c in (kx * alpha, km))
        exact = y.dtype == torch.float64 and denoiser.time != "index"  # for checking
        time_dtype = torch.float64 if exact else denoiser.time_dtype
        self._t = torch.from_numpy(np.ascontiguousarray(time)).to(y.device, time_dtype)

    def _tensor(self, coefficients: Array, dtype: torch.dtype | None = None) -> torch.Tensor:
        with torch.inference_mode(False):  # graphs may hold it
            numbers = torch.from_numpy(np.ascontiguousarray(coefficients))
            return per_chain(numbers.to(self._like.device, dtype or self._like.dtype), self._like)

    def _on_output(self, coefficients: Array) -> torch.Tensor:
        """The coefficients of y or of the output, in the dtype in which they are combined."""
        return self._tensor(coefficients, torch.float64 if self.denoiser.predicts == "mean" else None)

    def __call__(self, y: torch.Tensor) -> torch.Tensor:
        """D, shaped like y."""
        return (self._on_y * y + self._on_m * self.output(y)).to(y.dtype)

    def output(self, y: torch.Tensor) -> torch.Tensor:
        """What the network predicts, shaped like y and in its dtype."""
        x = self._to_net * y
        with in_eval_mode(self._modules):
            m = self._net(x, self._t, **self._cond)
        return check_output(m, y.shape)[:, : y.shape[1]].to(y.dtype)

    @property
    def coefficients(self) -> tuple[torch.Tensor, ...]:
        """What y is multiplied by for the network, and y and the output in D, and the network's time; one a chain."""
        return self._to_net, self._on_y, self._on_m, self._t

    def kind(self) -> tuple[object, ...]:
        """What may decide which operations the network runs: dtype, device, shape, conditioning, autocast."""
        y = self._like
        return y.dtype, y.device.type, y.shape[1:], *sorted(self._cond), *autocast_state(y.device)

    @cached_property
    def octaves(self) -> dict[int, set[Hashable]]:
        """The noise levels of the batch, in ranges of two octaves, increasing; for each the conditioning of its rows.

        What the network does may depend on both. See :func:`ulam.estimation.derivative_checks.rows_of`.
        """
        found: dict[int, set[Hashable]] = {}
        for sigma, row in zip(self.sigma, rows_of(self._by_row, len(self._like)), strict=True):
            found.setdefault(math.floor(math.log2(sigma) / 2), set()).add(row)
        return dict(sorted(found.items()))

    def reduced(self) -> bool:
        """Whether the network appears to compute in bfloat16 or float16."""
        return reduced_precision(self._like, self._modules)

    def per_chain(self, values: Array) -> torch.Tensor:
        """``[B]`` numbers as a tensor that broadcasts over y."""
        return self._tensor(values)


def _for_graphs(key: str, value: object) -> object:
    if isinstance(value, torch.Tensor):
        check_data(value, f"cond[{key!r}]")
    return plain(value) if isinstance(value, torch.Tensor) and value.is_inference() else value


def check_observation(y: object) -> None:
    """Raises TypeError, ValueError or RuntimeError unless y is a batch of numbers ``[B, *shape]``."""
    if not isinstance(y, torch.Tensor) or not y.is_floating_point():
        raise TypeError(f"y: got {described(y)}, expected a float tensor [B, *shape]")
    if y.dim() < 2 or not y.numel():
        raise ValueError(f"y: got shape {list(y.shape)}, expected [B, *shape], not empty")
    check_data(y, "y")


def noise_levels(y: torch.Tensor, sigma: Sigma) -> Array:
    """``sigma`` as ``[B]`` float64. Raises TypeError or ValueError unless it is one number, or one a chain, above 0."""
    values = real_numbers("sigma", sigma).numpy()
    if values.ndim > 1 or (values.ndim == 1 and len(values) != len(y)):
        raise ValueError(f"sigma: got shape {list(values.shape)}, expected a number or [{len(y)}], one a chain")
    values = np.broadcast_to(values, (len(y),))
    if (wrong := ~((values > 0) & (values < np.inf))).any():
        raise ValueError(f"sigma: got {values[wrong][0]:g}, expected finite levels above 0")
    if values.max() > LARGEST_SIGMA:
        raise ValueError(f"sigma: got {values.max():g}, expected at most {LARGEST_SIGMA:g}")
    return values


def training_steps(denoiser: Denoiser, sigma: Array) -> Array:
    """The whole training steps ``[B]`` at which sigma / alpha is ``sigma``, to six digits; else ValueError."""
    schedule = denoiser.schedule
    assert isinstance(schedule, VariancePreserving), "a denoiser told steps has some"
    known = schedule.ratios[np.isfinite(schedule.ratios)]
    steps = np.rint(np.interp(sigma, known, np.arange(len(known))))
    nearest = known[steps.astype(np.int64)]
    off = ~(abs(nearest - sigma) <= SAME_LEVEL * sigma)
    if off.any():
        raise ValueError(
            f"sigma: got {sigma[off][0]:g} under {denoiser.told_steps}, expected sigma / alpha of a training step: use "
            f"{nearest[off][0]:.9g}, that of step {steps[off][0]:g} (schedule.ratios has them all)"
        )
    return np.asarray(steps)
