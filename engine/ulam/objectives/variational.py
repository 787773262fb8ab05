"""The variational bound as a loss: of DDPM's steps [Nichol & Dhariwal 2021], and in continuous time [Kingma 2021]."""

from __future__ import annotations

import math

import torch

from ulam_kernels.arguments import choice, real, switch, whole
from ulam_kernels.tracing import readable

from ..arguments import Time, per_chain
from ..denoiser import Denoiser, check_denoiser
from ..estimation.forward import Noised, step_back, target_coefficients, tensor_times, whole_times
from ..samplers.ddpm import VARIANCES
from ..schedules import VariancePreserving, before, posterior
from .arguments import check_batch
from .denoising import Ids, Inputs, denoising, network_output, noise_batch, squared_error

LARGEST_PIXEL = 1 + 1e-3


def vlb_term(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    t: Time,
    cond: Inputs | None = None,
    *,
    variance: str = "learned_range",
    detach_mean: bool = True,
    bins: int = 256,
    noise: torch.Tensor | None = None,
    seed: int = 0,
    step: int | None = None,
    chains: Ids = None,
) -> torch.Tensor:
    """The term of DDPM's bound at training step t, ``[B]`` bits per dimension [Ho 2020, eq. 5, 13].

    KL(q(x_(t-1) | x_t, x_0) || N(mu(x_t, D), variance)), and at t = 0 the decoder's -log p(x_0 | x_1): the terms of
    :func:`ulam.bounds.vlb` with cdf="tanh". T times its mean over uniform t is L_vlb without the constant prior.

    Args:
        x_0: ``[B, C, ...]`` in ``bins`` bins from -1 to 1. t: whole training steps of a vp schedule.
        variance: learned or learned_range, of a network that returns twice the channels, the second half v; posterior
            or beta, which are fixed.
        detach_mean: let gradients flow to the variance alone, as in the hybrid loss; False: to the mean too.
        cond, noise, seed, step, chains: as :func:`ulam.objectives.denoising`.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """
    switch(detach_mean, "detach_mean")
    batch, m, v, t = _with_variance(denoiser, x_0, t, cond, variance, bins, noise, seed, step, chains)
    return _term(denoiser, x_0, t, batch, m.detach() if detach_mean else m, v, variance, bins)


def hybrid(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    t: Time,
    cond: Inputs | None = None,
    *,
    variance: str = "learned_range",
    weight: float = 1e-3,
    bins: int = 256,
    noise: torch.Tensor | None = None,
    seed: int = 0,
    step: int | None = None,
    chains: Ids = None,
) -> torch.Tensor:
    """L_simple + weight L_vlb for a network that learns its variance too, ``[B]`` [Nichol & Dhariwal 2021, eq. 16].

    :func:`ulam.objectives.denoising` + weight T :func:`vlb_term`, by one call of the network: the bound trains the
    variance alone. In openai/guided-diffusion this is LossType.RESCALED_MSE. variance: learned or learned_range; the
    rest and errors as :func:`vlb_term`.
    """
    choice(variance, "variance", ("learned", "learned_range"))
    weight = real(weight, "weight")
    batch, m, v, t = _with_variance(denoiser, x_0, t, cond, variance, bins, noise, seed, step, chains)
    term = _term(denoiser, x_0, t, batch, m.detach(), v, variance, bins)
    assert denoiser.schedule.steps is not None
    return squared_error(m, batch.target) + weight * denoiser.schedule.steps * term


def continuous_bound(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    t: Time,
    cond: Inputs | None = None,
    *,
    prior: bool = True,
    noise: torch.Tensor | None = None,
    seed: int = 0,
    step: int | None = None,
    chains: Ids = None,
) -> torch.Tensor:
    """The bound in continuous time at t, ``[B]`` bits per dimension: the diffusion loss, and the prior's term.

        gamma'(t) / 2 |eps - eps_hat(x_t, t)|^2 + KL(q(x_1 | x_0) || N(0, I))           [Kingma 2021, eq. 15, 17]

    with gamma = -log snr of the denoiser's schedule. Its mean over t uniform in [0, 1] and the loss of decoding x_0
    from x at t = 0 bound -log p(x_0); the diffusion loss depends on gamma at the ends alone [eq. 18]. Gradients flow
    to the parameters of a learned schedule, through x_t, gamma' and the prior.

    Args:
        t: in [0, 1]. prior: add the prior's term. x_0, cond, noise, seed, step, chains: as
            :func:`ulam.objectives.denoising`.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message; a schedule whose time does not end at 1.
    """
    check_denoiser(denoiser, cond)
    switch(prior, "prior")
    schedule = denoiser.schedule
    if schedule.kind not in ("learned", "flow", "subvp"):
        raise ValueError(f"schedule: got {schedule!r:.80}, expected one with t in [0, 1], such as learned(gamma)")
    check_batch(x_0, "x_0")
    times = tensor_times(t, x_0)
    loss = denoising(denoiser, x_0, times, cond, weighting="snr", noise=noise, seed=seed, step=step, chains=chains)

    def gamma(t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedule.levels(t)
        return 2 * (sigma.log() - alpha.log())

    times = times.double()
    slope = torch.func.jvp(gamma, (times,), (torch.ones_like(times),))[1]
    if readable(slope) and not bool(slope.isfinite().all()):
        raise ValueError("t: got one at which log snr is infinite, expected another: the bound is infinite there")
    nats: torch.Tensor = loss * (slope / 2).to(loss)
    if prior:
        alpha, sigma = (level.to(loss) for level in schedule.levels(torch.ones_like(times)))
        squares = x_0.to(loss.dtype).pow(2).flatten(1).mean(1)
        nats = nats + (sigma**2 + alpha**2 * squares - 1) / 2 - sigma.log()
    return nats / math.log(2)


def _with_variance(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    t: Time,
    cond: Inputs | None,
    variance: str,
    bins: int,
    noise: torch.Tensor | None,
    seed: int,
    step: int | None,
    chains: Ids,
) -> tuple[Noised, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(batch, prediction, v or None, t), after a check of every argument."""
    check_denoiser(denoiser, cond)
    check_batch(x_0, "x_0")
    choice(variance, "variance", VARIANCES)
    whole(bins, "bins", 2, 1 << 24)
    schedule = denoiser.schedule
    if not isinstance(schedule, VariancePreserving):
        raise ValueError(f"schedule: got {schedule!r:.80}, expected a vp schedule: the bound is of its training steps")
    if readable(x_0) and not float(x_0.detach().abs().max()) <= LARGEST_PIXEL:  # NaN too
        largest = float(x_0.detach().abs().max())
        raise ValueError(f"x_0: got {largest:g} in size, expected numbers in [-1, 1], which the bins are of")
    t = whole_times(tensor_times(t, x_0), "t: got {}, expected whole training steps")
    batch = noise_batch(denoiser, x_0, t, noise, seed, step, chains)
    m, v = network_output(denoiser, batch, x_0.dtype, cond, learned=variance.startswith("learned"))
    return batch, m, v, t


def _term(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    t: torch.Tensor,
    batch: Noised,
    m: torch.Tensor,
    v: torch.Tensor | None,
    variance: str,
    bins: int,
) -> torch.Tensor:
    """The bound's terms, ``[B]`` bits per dimension, NaN for x_0 out of range; no gradient to x_0 or to x_t."""
    assert isinstance(denoiser.schedule, VariancePreserving)
    x, x_t = x_0.detach().to(batch.target.dtype), batch.x_t.detach()

    def per_example(values: torch.Tensor) -> torch.Tensor:
        return per_chain(values.to(x), x)

    kx, km = _x0_coefficients(denoiser, batch)
    D = per_example(kx) * x_t + per_example(km) * m.to(x.dtype)
    on_D, small, large = (per_example(values) for values in _posteriors(denoiser.schedule, t.to(x.device)))
    if v is None:
        log_variance = small if variance == "posterior" else torch.where(per_example(t) == 0, small, large)
        log_variance = log_variance.expand_as(x)
    else:
        v = v.to(x.dtype)
        log_variance = v if variance == "learned" else (small + large) / 2 + (large - small) / 2 * v
    d = small - log_variance
    kl = (torch.expm1(d) - d + (on_D * (x - D)) ** 2 * torch.exp(-log_variance)) / 2
    half, inverse = 1 / (bins - 1), torch.exp(-log_variance / 2)
    above, below = (_tanh_cdf(inverse * (x - D + side * half)) for side in (1, -1))
    last = torch.where(x > 1 - half / 2, 1 - below, above - below)
    nll = -torch.where(x < half / 2 - 1, above, last).clamp(min=1e-12).log()
    nats = torch.where(per_example(t) == 0, nll, kl)
    return torch.where(x.abs() <= LARGEST_PIXEL, nats, torch.nan).flatten(1).mean(1) / math.log(2)


def _x0_coefficients(denoiser: Denoiser, batch: Noised) -> tuple[torch.Tensor, torch.Tensor]:
    """(kx, km) of D = kx x_t + km m: x_t = alpha x_0 + sigma z and target = c x_0 + d z, solved for x_0."""
    alpha, sigma, predicts = batch.alpha, batch.sigma, denoiser.predicts
    if predicts == "x0":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if predicts in ("eps", "score") and readable(alpha) and bool((alpha == 0).any()):
        raise ValueError(
            f"predicts: got {predicts!r}, which says nothing about x_0 where alpha is 0, expected a smaller t"
        )
    if predicts == "mean":
        on_x, on_D, _ = step_back(denoiser.schedule, batch.times.to(alpha.device))
        return -on_x / on_D, 1 / on_D
    c, d = target_coefficients(predicts, alpha, sigma, denoiser.schedule, batch.times)
    determinant = alpha * d - sigma * c
    return d / determinant, -sigma / determinant


def _posteriors(schedule: VariancePreserving, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """At training steps t: on_D, log beta~ and log beta of :class:`ulam.bounds.ReverseChain`, ``[B]`` float64."""

    def at(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        alpha_s, sigma_s = before(schedule, t)
        _, on_D, fresh = posterior(*schedule.levels(t), alpha_s, sigma_s)
        if readable(fresh) and not bool((fresh > 0).all()):
            raise ValueError("t: got a step that adds no noise, expected one that does")
        return on_D, (sigma_s**2 * fresh).log(), (schedule.sigma(t) ** 2 * fresh).log()

    on_D, _, large = at(t)
    if schedule.steps == 1:
        return on_D, large, large
    return on_D, at(t.clamp(min=1))[1], large  # beta~ of the first step is 0: the second's stands for it


def _tanh_cdf(y: torch.Tensor) -> torch.Tensor:
    """An approximation of the normal distribution function, from the code of Ho 2020."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))) / 2
