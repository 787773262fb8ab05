"""The forward process: x_t = alpha_t x_0 + sigma_t z and a linear target, in one fused operation with noise-v1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import ulam_kernels
from ulam_kernels import Table
from ulam_kernels.arguments import described
from ulam_kernels.tracing import check_not_recorded, traced
from ulam_kernels.validation import check_tensor

from ..arguments import Time, chain_ids, chain_times, per_chain, seed_int64, whole_number
from ..gradients import check_no_gradient
from ..noise import TRAINING
from ..programs.predictions import check_predicts, step_back
from ..schedules import Array, Schedule, check_schedule


@dataclass(frozen=True)
class Noised:
    """A training batch: ``x_t`` and ``target`` like x_0, ``t`` [B] float32, levels ``alpha`` and ``sigma`` [B] float64.

    target is what a network with this prediction should return, a combination of x_0 and z.
    """

    x_t: torch.Tensor
    target: torch.Tensor
    t: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor

    @property
    def snr(self) -> torch.Tensor:
        """alpha^2 / sigma^2, [B] float64."""
        return (self.alpha / self.sigma) ** 2


def add_noise(
    x_0: torch.Tensor,
    t: Time,
    schedule: Schedule,
    predicts: str = "eps",
    *,
    seed: int = 0,
    step: int = 0,
    chains: int | range | torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    backend: str | None = None,
) -> Noised:
    """x_t = alpha_t x_0 + sigma_t z and the target of ``predicts``, for x_0 ``[B, *shape]`` and one t a chain.

    z is noise-v1 of (seed, chain, step): a batch can be made again, however the data are batched. Gradients flow to
    x_0.

    Args:
        x_0: float32, bfloat16, float16 (float64: reference backend). t: a number or [B], time as the schedule has it.
        predicts: eps, x0, v, score, flow or mean.
        step: the training step, or the epoch if ``chains`` are indices of data.
        chains: ids of the examples, 0 to B - 1 by default. noise: z itself, float32 [B, *shape], in place of noise-v1.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
        RuntimeError: t or noise requires grad while gradients are recorded: they flow to x_0 alone.
    """
    check_schedule(schedule)
    check_predicts(predicts)
    if predicts == "raw":
        raise ValueError("predicts: got 'raw', expected eps, x0, v, score, flow or mean (for EDM use objectives.edm)")
    check_predicts(predicts, schedule)
    if not isinstance(x_0, torch.Tensor) or not x_0.is_floating_point() or x_0.dim() < 2 or not len(x_0):
        raise ValueError(f"x_0: got {described(x_0)}, expected a float tensor [B, *shape], not empty")
    if traced() is not None:  # tracing takes no autograd.Function
        check_not_recorded("add_noise")
    check_tensor(x_0, "x_0")
    check_no_gradient("add_noise", noise=noise)
    times = chain_times(x_0, t)
    alpha, sigma = schedule.levels(times)
    ids = chain_ids(len(x_0) if chains is None else chains)
    if len(ids) != len(x_0):
        raise ValueError(f"chains: got {len(ids)} ids, expected {len(x_0)}, one an example")
    draw = TRAINING.draw(whole_number("step", step))
    keys = [torch.full_like(ids, seed_int64(seed)), ids, torch.full_like(ids, draw)]
    on = np.stack([alpha, sigma, *_target(predicts, alpha, sigma, schedule)], axis=1)
    x_t, target = _Noising.apply(  # type: ignore[no-untyped-call]
        x_0, on, [key.to(x_0.device) for key in keys], noise, backend
    )
    network_times, *levels = (torch.from_numpy(np.array(values)).to(x_0.device) for values in (times, alpha, sigma))
    return Noised(x_t, target, network_times.to(torch.float32), *levels)


def _target(predicts: str, alpha: Array, sigma: Array, schedule: Schedule) -> tuple[Array, Array]:
    """The target's coefficients of x_0 and z."""
    one, zero = np.ones_like(alpha), np.zeros_like(alpha)
    if predicts == "score":
        if (sigma == 0).any():
            raise ValueError("t: got one with sigma 0, expected sigma above 0: the score is undefined without noise")
        return zero, -1 / sigma
    if predicts == "mean":
        on_x, _, alpha_s = step_back(schedule, alpha, sigma)
        return alpha_s, sigma * on_x
    return {"eps": (zero, one), "x0": (one, zero), "v": (-sigma, alpha), "flow": (-one, one)}[predicts]


class _Noising(torch.autograd.Function):
    """Two outputs, both linear in x_0 and z, in one pass: registers r0 <- a x + b z and r1 <- c x + d z."""

    @staticmethod
    def forward(
        ctx: Any,
        x_0: torch.Tensor,
        on: Array,
        keys: list[torch.Tensor],
        noise: torch.Tensor | None,
        backend: str | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, zero = len(on), np.zeros(len(on))
        A = np.zeros((rows, 2, 5))
        A[:, 0, 0], A[:, 0, 4], A[:, 1, 0], A[:, 1, 4] = on.T
        wide = torch.float64 if x_0.dtype == torch.float64 else torch.float32
        table = Table.pack(
            zero, zero, zero - np.inf, zero + np.inf, zero, zero, zero + 1, A,
            np.ones((rows, 2), dtype=bool), np.zeros(rows, dtype=bool), dtype=wide, device=x_0.device,
        )  # fmt: skip
        state = x_0.new_empty(2, *x_0.shape)
        state[0].copy_(x_0)
        seed, chain, draw = keys
        row = torch.arange(rows, device=x_0.device)
        ulam_kernels.step(state, table, row, seed=seed, chain=chain, draw=draw, noise=noise, backend=backend)
        ctx.gains = torch.from_numpy(on[:, [0, 2]].T.copy()).to(x_0.device, wide)
        return state[0], state[1]

    @staticmethod
    def backward(ctx: Any, grad_x: torch.Tensor, grad_target: torch.Tensor) -> tuple[Any, ...]:
        a, c = (per_chain(gain, grad_x) for gain in ctx.gains)
        return (a * grad_x + c * grad_target).to(grad_x.dtype), None, None, None, None
