"""How far a denoiser's D(x_t, t) is from x_0, by time: the numbers of the optimal reverse variance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ulam_kernels.arguments import described, real, whole
from ulam_kernels.tracing import check_not_recorded, outside_graphs
from ulam_kernels.validation import check_batch, real_numbers

from ..arguments import chain_ids, per_chain
from ..conditioning import arguments_of
from ..denoiser import Denoiser, check_denoiser
from ..evaluation import check_halves, check_output, in_eval_mode, modules_in
from ..gradients import check_no_gradient, without_graph
from ..noise import X0_VARIANCE, normal_for
from ..ops import predict_x0
from ..programs.predictions import x0_coefficients
from ..schedules import Array
from .estimator import Inputs
from .forward import add_noise
from .probes import MOST_PROBES

VARIANCE_HALVES = "the mean, then the variance"


@outside_graphs
def x0_variances(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    cond: Inputs | None = None,
    *,
    timesteps: Sequence[float] | Array | torch.Tensor | None = None,
    samples: int = 1,
    clip: tuple[float, float] | None = None,
    seed: int = 0,
    chains: int | range | torch.Tensor | None = None,
    backend: str | None = None,
) -> dict[float, float]:
    """{t: e_t}, e_t = E|x_0 - D(x_t, t)|^2 / n over data and noise: what `variance="optimal"` needs.

    Of all isotropic variances of a step from t to s, the least KL from q(x_s | x_t), and so the least bound, has

        sigma_*^2 = beta~ + on_D^2 e_t,    on_D the coefficient of x_0 in mu~ (:func:`ulam.ops.posterior_mean`)

    for any D [Bao 2022b, arXiv:2206.07309]; for the ideal one e_t is the mean posterior variance of an element, by
    Tweedie's formula E tr Cov[x_0 | x_t] / n [Bao 2022, theorem 1]. e_t does not depend on s: measured once at all
    times, it serves every grid, of :class:`ulam.samplers.DDPM` and of :func:`ulam.bounds.vlb` (``x0_variances=``). The
    noise is noise-v1 of (seed, chain), the same at every t.

    Args:
        x_0: ``[B, *shape]``, other data than those that a bound is then measured on: fitted to its own examples it is
            too low. cond: the network's further arguments.
        timesteps: the times, in any order, as the schedule has them; every training step by default. Those of a
            sampler are ``sampler.grid(schedule).times``.
        samples: draws of the noise for each example. clip: (lo, hi) for D. chains: ids of the examples, 0 to B - 1 by
            default.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message; a network whose error is not finite.
        RuntimeError: x_0 or cond requires grad while gradients are recorded: none flows through the result.
    """
    check_not_recorded("x0_variances")
    check_no_gradient("bounds.x0_variances", cond, x_0=x_0)
    check_denoiser(denoiser, cond)
    x = check_finite(x_0)
    times = _times(denoiser, timesteps)
    samples = whole(samples, "samples", 1, MOST_PROBES)
    clip = check_clip(clip)
    if chains is not None and len(chain_ids(chains)) != len(x):
        raise ValueError(f"chains: got {len(chain_ids(chains))} ids, expected {len(x)}, one an example")
    names = {"seed": seed, "chains": len(x) if chains is None else chains, "device": x.device, "backend": backend}
    found: dict[float, float] = {}
    for t in times:
        errors = []
        for sample in range(samples):
            z = normal_for(X0_VARIANCE, x.shape[1:], row=sample, **names)
            _, D, _ = noised_estimate(denoiser, x, np.full(len(x), t), z, cond or {}, clip=clip, backend=backend)
            errors.append(float((D.double() - x.double()).square().mean()))
        found[float(t)] = math.fsum(errors) / samples
        if not math.isfinite(found[float(t)]):
            raise ValueError(f"net: got an error of {found[float(t)]} at t = {t:g}, expected finite outputs")
    return found


def noised_estimate(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    t: Array,
    z: torch.Tensor,
    cond: Inputs,
    *,
    clip: tuple[float, float] | None = None,
    learned: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(x_t, D, v) for x_t = alpha_t x_0 + sigma_t z, t ``[B]``: v is the second half of an output with a ``learned``
    variance. No gradient flows.
    """
    channels = x_0.shape[1]
    with torch.no_grad():
        wide = z.to(torch.float64 if x_0.dtype == torch.float64 else torch.float32).contiguous()
        x_t = add_noise(x_0.detach(), torch.from_numpy(t), denoiser.schedule, "eps", noise=wide, backend=backend).x_t
        told = torch.from_numpy(t).to(x_t.device, denoiser.time_dtype)
        read = x_t
        if denoiser.predicts == "raw":
            _, _, c_in = x0_coefficients("raw", *denoiser.schedule.levels(t), denoiser.schedule)
            read = x_t * per_chain(torch.from_numpy(c_in).to(x_t), x_t)

        def output(x: torch.Tensor) -> torch.Tensor:
            m = denoiser.network(x, told, **arguments_of(cond, x.device))
            return check_halves(m, x.shape, VARIANCE_HALVES) if learned else check_output(m, x.shape)

        with in_eval_mode(modules_in(denoiser.net)):
            m = without_graph(output, read)
        D = predict_x0(x_t, m[:, :channels].contiguous(), torch.from_numpy(t), denoiser.schedule, denoiser.predicts)
    return x_t, D if clip is None else D.clamp(*clip), m[:, channels:] if learned else None


def check_finite(x_0: torch.Tensor) -> torch.Tensor:
    """x_0 without lazy bits. Raises TypeError or ValueError unless it is a batch of finite numbers ``[B, *shape]``."""
    check_batch(x_0, "x_0")
    if not bool(torch.isfinite(x_0).all()):
        raise ValueError("x_0: got numbers that are not finite, expected finite ones")
    return x_0.resolve_neg()


def check_clip(clip: object) -> tuple[float, float] | None:
    """(lo, hi) with lo below hi, or None. Raises TypeError or ValueError for another."""
    return None if clip is None else check_pair(clip, "clip")


def check_pair(pair: object, name: str) -> tuple[float, float]:
    """(lo, hi) with lo below hi. Raises TypeError or ValueError for another."""
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise TypeError(f"{name}: got {described(pair)}, expected (lo, hi)")
    lo, hi = real(pair[0], name), real(pair[1], name)
    if not lo < hi:
        raise ValueError(f"{name}: got {described(pair)}, expected (lo, hi) with lo below hi")
    return lo, hi


def _times(denoiser: Denoiser, timesteps: object) -> Array:
    """The times ``[K]``, each once. Raises TypeError or ValueError naming ``timesteps``."""
    if timesteps is None:
        if denoiser.schedule.steps is None:
            raise ValueError(f"timesteps: got None on {denoiser.schedule!r}, expected times: it has no training steps")
        return np.arange(denoiser.schedule.steps, dtype=np.float64)
    if isinstance(timesteps, str) or not isinstance(timesteps, (Sequence, np.ndarray, torch.Tensor)):
        raise TypeError(f"timesteps: got {described(timesteps)}, expected times, or None")
    times = np.unique(real_numbers("timesteps", timesteps).numpy())
    if not len(times):
        raise ValueError("timesteps: got none, expected times")
    try:
        denoiser.schedule.levels(times)
    except ValueError as error:
        raise ValueError(f"timesteps: {str(error).partition(': ')[2]}") from None
    if denoiser.told_steps and (fractional := times[times % 1 > 0]).size:
        raise ValueError(f"timesteps: got {fractional[0]:g} under {denoiser.told_steps}, expected whole training steps")
    return times
