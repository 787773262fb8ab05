"""Training objectives: denoising losses, score matching in its three forms, contrastive divergence.

Losses are ``[B]``, one an example (denoising losses are means over elements, score matching sums over dimensions, as
its identities require); take their mean. Random directions and noise are noise-v1, so a training batch can be made
again. Every function raises TypeError or ValueError naming the argument.

:func:`implicit_score_matching` and :func:`sliced_score_matching` differentiate the score in x. At the first use of a
function they compare its derivative with finite differences (:mod:`ulam.estimation.differences`) and raise TypeError
where it hides its dependence on x; they give no gradient in x, and raise RuntimeError where x requires one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch

from ulam_kernels.arguments import choice, described, real, switch, whole
from ulam_kernels.tracing import check_read, recorder, without_memory
from ulam_kernels.validation import check_real, check_tensor

from .arguments import Time, chain_times, per_chain, training_step, whole_number
from .bounds import VARIANCE_HALVES, Index, ReverseChain
from .denoiser import Denoiser, check_denoiser
from .estimation.differences import check_score
from .estimation.forward import Noised as Noised
from .estimation.forward import add_noise as add_noise
from .estimation.probes import probes
from .evaluation import check_halves, check_like, check_output, split_output
from .gradients import check_no_gradient
from .noise import TRAINING, normal_for
from .ops import predict_x0
from .schedules import Array

LARGEST_SIGMA = 1e18  # its square is still a float32

Score: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
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
    weight: torch.Tensor = wanted / _own_weight(denoiser.predicts, batch.alpha, batch.sigma)
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
    _check_batch(x_0, "x_0")
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
    _check_batch(x_0, "x_0")
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


def denoising_score_matching(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    sigma: torch.Tensor,
    *,
    seed: int = 0,
    step: int = 0,
) -> torch.Tensor:
    """sigma^2 / 2 |s(x~, sigma) - (x - x~) / sigma^2|^2 with x~ = x + sigma z, ``[B]``.

    [Vincent 2011, eq. 11; weighted as in Song & Ermon 2019, eq. 5.] Its minimiser is the score of the noised density;
    it differs from explicit score matching there by a constant. x: ``[B, *shape]``; sigma: ``[B]``.
    """
    _check_batch(x, "x")
    _check_callable(score, "score")
    _check_plain(sigma, "sigma")
    check_real(sigma, "sigma")
    step = training_step(step)
    if sigma.shape != (len(x),):
        raise ValueError(f"sigma: got shape {list(sigma.shape)}, expected [{len(x)}], one an example")
    z = normal_for(TRAINING, x.shape[1:], seed=seed, chains=len(x), row=step, device=x.device).to(x.dtype)
    level = per_chain(sigma, x).to(x.dtype)
    return (level * score(x + level * z, sigma) + z).pow(2).flatten(1).sum(1) / 2


def implicit_score_matching(score: Score, x: torch.Tensor) -> torch.Tensor:
    """tr(ds/dx) + |s|^2 / 2, ``[B]`` [Hyvarinen 2005, eq. 4]; the exact trace, by one backward pass per dimension.

    Its mean is explicit score matching E|s - grad log p|^2 / 2 less the constant E|grad log p|^2 / 2.
    """
    x = _leaf(score, x)
    s = _score(score, x)
    flat = s.flatten(1)
    trace = torch.zeros(len(x), dtype=s.dtype, device=x.device)
    for i in range(flat.shape[1]):
        (gradient,) = torch.autograd.grad(flat[:, i].sum(), x, create_graph=True, allow_unused=True)
        if gradient is not None:
            trace = trace + gradient.flatten(1)[:, i]
    return trace + flat.pow(2).sum(1) / 2


def sliced_score_matching(
    score: Score, x: torch.Tensor, *, samples: int = 1, reduced: bool = True, seed: int = 0, step: int = 0
) -> torch.Tensor:
    """v' (ds/dx) v + 1/2 (v' s)^2, mean over ``samples`` directions v, ``[B]`` [Song 2019b, eq. 7].

    reduced: 1/2 |s|^2 in place of 1/2 (v' s)^2, which has less variance [eq. 8]; its mean over v is the implicit
    objective. Directions are Rademacher signs of noise-v1.
    """
    samples, step = whole_number("samples", samples), training_step(step)
    switch(reduced, "reduced")
    x = _leaf(score, x)
    s = _score(score, x)
    total = torch.zeros(len(x), dtype=s.dtype, device=x.device)
    for v in probes(x, samples, seed=seed, first=step * samples):
        along = (s * v).flatten(1).sum(1)
        (gradient,) = torch.autograd.grad(along.sum(), x, create_graph=True, allow_unused=True)
        if gradient is not None:
            total = total + (gradient * v).flatten(1).sum(1)
        total = total + (s.pow(2).flatten(1).sum(1) if reduced else along.pow(2)) / 2
    return total / samples


def contrastive_divergence(
    energy: Callable[[torch.Tensor], torch.Tensor], data: torch.Tensor, model: torch.Tensor, *, penalty: float = 0.0
) -> torch.Tensor:
    """mean E(data) - mean E(model) + penalty (mean E(data)^2 + mean E(model)^2), a number [Hinton 2002; Du 2019].

    ``model`` are samples of exp(-E), such as those of :class:`ulam.ebm.PersistentChains`; no gradient flows into them.
    Where they are exact, the gradient in the energy's parameters is that of the negative log-likelihood.
    """
    _check_callable(energy, "energy")
    _check_batch(data, "data")
    _check_batch(model, "model")
    penalty = real(penalty, "penalty")
    of_data, of_model = energy(data), energy(model.detach())
    for name, values, batch in (("data", of_data, data), ("model", of_model, model)):
        check_like(values, (len(batch),), "energy", "energies", f", one an example of {name}")
    loss = of_data.mean() - of_model.mean()
    return loss + penalty * (of_data.pow(2).mean() + of_model.pow(2).mean()) if penalty else loss


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


def _own_weight(predicts: str, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The weight of |D - x_0|^2 in the squared error of the prediction itself."""
    gain = {
        "eps": alpha / sigma,
        "x0": torch.ones_like(alpha),
        "v": (alpha**2 + sigma**2) / sigma,
        "flow": 1 + alpha / sigma,
        "score": alpha / sigma**2,
    }
    return gain[predicts] ** 2


def _check_callable(function: object, name: str) -> None:
    if not callable(function):
        raise TypeError(f"{name}: got {described(function)}, expected a callable")


def _check_plain(x: torch.Tensor, name: str) -> None:
    check_tensor(x, name)
    if recorder() is None and without_memory(x):  # a fake tensor outside its mode
        check_read(x, name, "a plain tensor")


def _check_batch(x: torch.Tensor, name: str) -> None:
    _check_plain(x, name)
    if not x.is_floating_point() or x.dim() < 2 or not len(x):
        raise ValueError(f"{name}: got {described(x)}, expected a float tensor [B, *shape], not empty")


def _leaf(score: Score, x: torch.Tensor) -> torch.Tensor:
    """x as a leaf to differentiate the score in, after a check that it can be."""
    _check_callable(score, "score")
    _check_batch(x, "x")
    check_no_gradient("score matching in x", x=x)
    check_score(lambda at: _score(score, at), x, score)
    return x.detach().requires_grad_()


def _score(score: Score, x: torch.Tensor) -> torch.Tensor:
    return check_like(score(x), x.shape, "score", why=" like its input")
