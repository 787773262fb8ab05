"""Losses of a denoiser on noised data: of Ho 2020, Karras 2022, and Nichol & Dhariwal 2021."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from ulam_kernels.arguments import choice, described, real, whole
from ulam_kernels.validation import check_tensor

from ..arguments import Time, chain_times, per_chain
from ..denoiser import Denoiser, check_denoiser
from ..estimation.forward import Noised, add_noise
from ..estimation.reverse_chain import Index, ReverseChain
from ..estimation.x0_variances import VARIANCE_HALVES
from ..evaluation import check_halves, check_output, split_output
from ..ops import predict_x0
from ..programs.predictions import step_back
from ..schedules import Array
from .arguments import check_batch

LARGEST_SIGMA = 1e18  # its square is still a float32

WEIGHTINGS = ("simple", "snr", "min-snr", "x0")


def denoising(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    t: Time,
    cond: Mapping[str, torch.Tensor] | None = None,
    *,
    weighting: str = "simple",
    gamma: float = 5.0,
    seed: int = 0,
    step: int = 0,
    chains: int | range | torch.Tensor | None = None,
) -> torch.Tensor:
    """w(t) times the mean squared error of the network's own prediction, ``[B]`` [Ho 2020, eq. 14].

    The network is called as it is (in training mode while it trains), once, on x_t = alpha_t x_0 + sigma_t z with
    noise-v1 z of (seed, chain, step). The second half of an output with a learned variance is ignored. x_0 is
    ``[B, *shape]``, t one number or ``[B]``. In terms of the error |D - x_0|^2 of the x_0 estimate:

    | weighting | weight of |D - x_0|^2 |
    |---|---|
    | simple | the prediction's own: snr for eps, 1 for x0, snr + 1 for v on VP, (1 + alpha / sigma)^2 for flow |
    | snr | snr: the simple loss of eps whatever is predicted |
    | min-snr | min(snr, gamma) [Hang 2023, eq. 7] |
    | x0 | 1 |

    For mean its own is on_D^2, on_D the coefficient of x_0 in mu~ (:func:`ulam.ops.posterior_mean`).
    """
    check_denoiser(denoiser, cond)
    choice(weighting, "weighting", WEIGHTINGS)
    real(gamma, "gamma")
    batch = add_noise(x_0, t, denoiser.schedule, denoiser.predicts, seed=seed, step=step, chains=chains)
    m, _ = _output(denoiser, batch, cond)
    loss = (m.float() - batch.target.float()).pow(2).flatten(1).mean(1)
    if weighting == "simple":
        return loss
    wanted = {"snr": batch.snr, "min-snr": batch.snr.clamp(max=gamma), "x0": torch.ones_like(batch.snr)}[weighting]
    weight: torch.Tensor = wanted / _own_weight(denoiser, batch.alpha, batch.sigma)
    return loss * weight.to(loss)


def edm(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    sigma: Time,
    cond: Mapping[str, torch.Tensor] | None = None,
    *,
    seed: int = 0,
    step: int = 0,
    chains: int | range | torch.Tensor | None = None,
) -> torch.Tensor:
    """lambda(sigma) |D - x_0|^2 with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 [Karras 2022, table 1].

    ``[B]``, for ``predicts="raw"`` on :func:`ulam.schedules.edm`; equal to |F - target|^2 of the network F itself.
    x_0 is ``[B, *shape]``, sigma one number or ``[B]``.
    """
    check_denoiser(denoiser, cond)
    if denoiser.predicts != "raw":
        raise ValueError(f"denoiser: got one that predicts {denoiser.predicts!r}, expected 'raw' (EDM preconditioning)")
    check_batch(x_0, "x_0")
    levels = chain_times(x_0, sigma, "sigma")
    if not ((levels >= 0) & (levels <= LARGEST_SIGMA)).all():
        raise ValueError(f"sigma: got {described(sigma)}, expected numbers from 0 to {LARGEST_SIGMA:g}")
    batch = add_noise(x_0, sigma, denoiser.schedule, "x0", seed=seed, step=step, chains=chains)
    data = float(denoiser.schedule.sigma_data)  # type: ignore[attr-defined]
    level = per_chain(batch.sigma.to(torch.float32), x_0)
    power = level**2 + data**2
    F: torch.Tensor = denoiser.net(batch.x_t * power.rsqrt().to(x_0.dtype), batch.t, **(cond or {}))
    check_tensor(F, "net")
    F = check_output(F, x_0.shape)[:, : x_0.shape[1]].float()
    target = (x_0.float() - data**2 / power * batch.x_t.float()) * power.sqrt() / (level * data)
    return (F - target).pow(2).flatten(1).mean(1)


def hybrid(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    t: Time,
    cond: Mapping[str, torch.Tensor] | None = None,
    *,
    variance: str = "learned_range",
    weight: float = 1e-3,
    bins: int = 256,
    seed: int = 0,
    step: int = 0,
    chains: int | range | torch.Tensor | None = None,
) -> torch.Tensor:
    """L_simple + weight L_vlb for a network that learns its variance too, ``[B]`` [Nichol & Dhariwal 2021, eq. 16].

    L_simple is :func:`denoising` with weighting simple; L_vlb is T times the bound's term at t in bits per dimension,
    of :func:`ulam.bounds.vlb` with cdf="tanh", its mean detached, so that it trains the variance alone. In
    openai/guided-diffusion this is LossType.RESCALED_MSE. The network returns twice the channels, the second half v.
    variance: learned or learned_range. x_0: ``[B, C, ...]`` in ``bins`` bins from -1 to 1. t: whole training steps of
    a vp schedule.
    """
    check_denoiser(denoiser, cond)
    check_batch(x_0, "x_0")
    choice(variance, "variance", ("learned", "learned_range"))
    weight, bins = real(weight, "weight"), whole(bins, "bins", 2, 1 << 24)
    chain = ReverseChain(denoiser.schedule)
    k = chain_times(x_0, t)
    if (k % 1 != 0).any():
        raise ValueError(f"t: got {k[k % 1 != 0][0]:g}, expected whole training steps")
    batch = add_noise(x_0, t, denoiser.schedule, denoiser.predicts, seed=seed, step=step, chains=chains)
    m, v = _output(denoiser, batch, cond, learned=True)
    assert v is not None
    simple = (m.float() - batch.target.float()).pow(2).flatten(1).mean(1)
    D = predict_x0(batch.x_t.detach(), m.detach().contiguous(), t, denoiser.schedule, denoiser.predicts).float()
    return simple + weight * len(chain) * _bound_term(
        chain, k.astype(np.int64), x_0.detach().float(), D, v.float(), variance, bins
    )


def _bound_term(
    chain: ReverseChain, k: Index, x_0: torch.Tensor, D: torch.Tensor, v: torch.Tensor, variance: str, bins: int
) -> torch.Tensor:
    """Terms of the bound at steps ``k``, ``[B]`` bits per dimension, differentiable in v [Ho 2020, eq. 5, 13]."""

    def broadcast(values: Array) -> torch.Tensor:
        return per_chain(torch.from_numpy(values).to(x_0), x_0)

    log_variance = torch.as_tensor(chain.log_variance(variance, k, v))
    d = broadcast(chain.small[k]) - log_variance
    off = broadcast(chain.on_D[k]) * (x_0 - D)
    kl = (torch.expm1(d) - d + off**2 * torch.exp(-log_variance)) / 2
    half, inverse = 1 / (bins - 1), torch.exp(-log_variance / 2)
    above, below = (_tanh_cdf(inverse * (x_0 - D + side * half)) for side in (1, -1))
    last = torch.where(x_0 > 1 - half / 2, 1 - below, above - below)
    nll = -torch.where(x_0 < half / 2 - 1, above, last).clamp(min=1e-12).log()
    first = (broadcast(k.astype(float)) == 0).expand_as(kl)
    return torch.where(first, nll, kl).flatten(1).mean(1) / math.log(2)


def _tanh_cdf(y: torch.Tensor) -> torch.Tensor:
    """An approximation of the normal distribution function, from the code of Ho 2020."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))) / 2


def _output(
    denoiser: Denoiser, batch: Noised, cond: Mapping[str, torch.Tensor] | None, learned: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The network's prediction, and the second half of its output, which is there where the variance is ``learned``."""
    # torch.compile traces a function that names torch, with the network and the checks inside it.
    t, shape = torch.round(batch.t).long() if denoiser.time == "index" else batch.t, batch.x_t.shape
    m = denoiser.net(batch.x_t, t, **(cond or {}))
    return split_output(check_halves(m, shape, VARIANCE_HALVES) if learned else check_output(m, shape), shape[1])


def _own_weight(denoiser: Denoiser, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The weight of |D - x_0|^2 in the squared error of the prediction itself."""
    if denoiser.predicts == "mean":
        _, on_D, _ = step_back(denoiser.schedule, alpha.cpu().numpy(), sigma.cpu().numpy())
        return torch.from_numpy(on_D).to(alpha) ** 2
    gain = {
        "eps": alpha / sigma,
        "x0": torch.ones_like(alpha),
        "v": (alpha**2 + sigma**2) / sigma,
        "flow": 1 + alpha / sigma,
        "score": alpha / sigma**2,
    }
    return gain[denoiser.predicts] ** 2
