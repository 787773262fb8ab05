"""Losses of a denoiser on noised data: its own prediction's squared error [Ho 2020], and that of EDM [Karras 2022]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from ulam_kernels.arguments import choice, described, positive
from ulam_kernels.tracing import readable
from ulam_kernels.validation import check_real, check_tensor

from ..arguments import Time, per_chain
from ..conditioning import Cond, arguments_of
from ..denoiser import Denoiser, check_denoiser
from ..estimation.forward import Noised, noised, step_back, tensor_times, whole_times
from ..estimation.x0_variances import VARIANCE_HALVES
from ..evaluation import check_halves, check_output, split_output
from .arguments import check_batch

Ids: TypeAlias = int | range | Sequence[int] | torch.Tensor | None
Inputs: TypeAlias = Cond
Weight: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

LARGEST_SIGMA = 1e18  # its square is still a float32
ALMOST_NONE = 1e-12  # in place of levels of 0, at which a weight need not have a value but has a limit

WEIGHTINGS = ("simple", "snr", "min-snr", "x0")


def denoising(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    t: Time,
    cond: Inputs | None = None,
    *,
    weighting: str | Weight = "simple",
    gamma: float = 5.0,
    noise: torch.Tensor | None = None,
    seed: int = 0,
    step: int | None = None,
    chains: Ids = None,
) -> torch.Tensor:
    """w(t) times the mean squared error of the network's own prediction, ``[B]`` [Ho 2020, eq. 14].

    The network is called as it is (in training mode while it trains), once, on x_t = alpha_t x_0 + sigma_t z with
    noise-v1 z of (seed, chain, step). The second half of an output with a learned variance is ignored. Targets and
    errors are float32, float64 for such data. In terms of the error |D - x_0|^2 of the x_0 estimate:

    | weighting | weight of |D - x_0|^2 |
    |---|---|
    | simple | the prediction's own: snr for eps, 1 for x0, snr + 1 for v on VP, (1 + alpha / sigma)^2 for flow |
    | snr | snr: the simple loss of eps whatever is predicted |
    | min-snr | min(snr, gamma) [Hang 2023, eq. 7] |
    | x0 | 1 |
    | a function | what it gives for snr = alpha^2 / sigma^2, float64 ``[B]``: ``[B]`` |

    For mean its own is on_D^2, on_D the coefficient of x_0 in mu~ (:func:`ulam.ops.posterior_mean`).
    Where alpha or sigma is 0 the weight of the prediction's error is the limit; an infinite one is refused.

    Args:
        x_0: ``[B, *shape]``. t: one number or ``[B]``. cond: the network's further arguments.
        noise: z itself, float32 like x_0, in place of noise-v1: reflow, or pairs of optimal transport.
        step: the training step; required without ``noise``. chains: see :func:`ulam.noise.examples`.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """
    check_denoiser(denoiser, cond)
    if not callable(weighting):
        choice(weighting, "weighting", WEIGHTINGS)
    gamma = positive(gamma, "gamma")
    batch = noise_batch(denoiser, x_0, t, noise, seed, step, chains)
    loss = squared_error(network_output(denoiser, batch, x_0.dtype, cond)[0], batch.target)
    if weighting == "simple":
        return loss
    weight = _relative_weight(weighting, gamma, denoiser, batch)
    return loss * weight.to(loss.dtype)


def edm(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    sigma: Time,
    cond: Inputs | None = None,
    *,
    noise: torch.Tensor | None = None,
    seed: int = 0,
    step: int | None = None,
    chains: Ids = None,
) -> torch.Tensor:
    """lambda(sigma) |D - x_0|^2 with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 [Karras 2022, table 1].

    ``[B]``, for ``predicts="raw"`` on :func:`ulam.schedules.edm`; computed as |F - target|^2 of the network F itself,
    where target = (sigma x_0 - sigma_data^2 z) / (sigma_data sqrt(sigma^2 + sigma_data^2)) has no cancellation.
    x_0 is ``[B, *shape]``, sigma one number or ``[B]``; noise, seed, step, chains and errors as :func:`denoising`.
    """
    check_denoiser(denoiser, cond)
    if denoiser.predicts != "raw":
        raise ValueError(f"denoiser: got one that predicts {denoiser.predicts!r}, expected 'raw' (EDM preconditioning)")
    check_batch(x_0, "x_0")
    levels = tensor_times(sigma, x_0, "sigma")
    if readable(levels) and not bool(((levels >= 0) & (levels <= LARGEST_SIGMA)).all()):
        raise ValueError(f"sigma: got {described(sigma)}, expected numbers from 0 to {LARGEST_SIGMA:g}")
    batch = noise_batch(denoiser, x_0, levels, noise, seed, step, chains)
    data: float = denoiser.schedule.sigma_data  # type: ignore[attr-defined]
    scale = per_chain((batch.sigma**2 + data**2).rsqrt().to(batch.target.dtype), x_0)
    scaled = (batch.x_t * scale).to(x_0.dtype)
    m = check_output(denoiser.network(scaled, batch.t, **arguments_of(cond, scaled.device)), x_0.shape)
    check_tensor(m, "net")
    return squared_error(split_output(m, x_0.shape[1])[0], batch.target)


def noise_batch(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    t: Time,
    noise: torch.Tensor | None,
    seed: int,
    step: int | None,
    chains: Ids,
) -> Noised:
    """The training batch of a denoiser in float32, or float64, after a check of x_0 and of times told by index."""
    check_batch(x_0, "x_0")
    if denoiser.time == "index":
        t = whole_times(tensor_times(t, x_0), "t under time='index': got {}, expected whole training steps")
    exact = x_0 if x_0.dtype in (torch.float32, torch.float64) else x_0.to(torch.float32)
    return noised(exact, t, denoiser.schedule, denoiser.predicts, seed, step, chains, noise)


def network_output(
    denoiser: Denoiser, batch: Noised, dtype: torch.dtype, cond: Inputs | None, learned: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The network's prediction from x_t in the data's ``dtype``, and the second half of its output, or None.

    learned: it must be there: the variance.
    """
    t, shape = batch.t.long() if denoiser.time == "index" else batch.t, batch.x_t.shape
    m = denoiser.network(batch.x_t.to(dtype), t, **arguments_of(cond, t.device))
    return split_output(check_halves(m, shape, VARIANCE_HALVES) if learned else check_output(m, shape), shape[1])


def squared_error(m: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean of (m - target)^2 over elements, ``[B]`` in the target's precision."""
    error = torch.nn.functional.mse_loss(m.to(target.dtype), target, reduction="none")
    return error.mean(tuple(range(1, target.dim())))


def _relative_weight(weighting: str | Weight, gamma: float, denoiser: Denoiser, batch: Noised) -> torch.Tensor:
    """The weight of the prediction's own squared error, ``[B]`` float64: that of |D - x_0|^2 over its own there."""
    alpha, sigma = batch.levels
    if callable(weighting):
        alpha, sigma = alpha.clamp(min=ALMOST_NONE), sigma.clamp(min=ALMOST_NONE)
        wanted = weighting((alpha / sigma) ** 2)
        if not isinstance(wanted, torch.Tensor) or wanted.shape != alpha.shape:
            raise ValueError(f"weighting: got {described(wanted)}, expected weights {list(alpha.shape)} of snr")
        check_real(wanted, "weighting")
        if readable(wanted) and not bool(((wanted >= 0) & wanted.isfinite()).all()):
            raise ValueError(f"weighting: got {wanted.tolist()[:8]}, expected finite weights from 0 on")
        return wanted * _over_own(denoiser, batch.times, alpha, sigma)[1]
    of_snr, of_x0 = _over_own(denoiser, batch.times, alpha, sigma)
    weight = {"snr": of_snr, "x0": of_x0, "min-snr": torch.minimum(of_snr, gamma * of_x0)}[weighting]
    if readable(weight) and not bool(weight.isfinite().all()):
        level = "alpha" if weighting == "x0" else "sigma"
        raise ValueError(f"t: got one with {level} 0, expected another: weighting {weighting!r} is infinite there")
    return weight


def _over_own(
    denoiser: Denoiser, t: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(snr, 1) over the weight of |D - x_0|^2 in the prediction's own squared error, without 0 / 0."""
    if denoiser.predicts == "mean":
        _, on_D, _ = step_back(denoiser.schedule, t.to(alpha.device))
        return (alpha / sigma / on_D) ** 2, on_D**-2
    one, power = torch.ones_like(alpha), alpha**2 + sigma**2
    gains: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
        "eps": (one, sigma / alpha),
        "x0": (alpha / sigma, one),
        "v": (alpha / power, sigma / power),
        "flow": (alpha / (alpha + sigma), sigma / (alpha + sigma)),
        "score": (sigma, sigma**2 / alpha),
    }
    of_snr, of_x0 = gains[denoiser.predicts]
    return of_snr**2, of_x0**2
