"""Losses of denoisers that need no clean data: Stein's unbiased risk estimate, and its forms for other observations.

Each is an unbiased estimate of the mean squared error itself, with no constant left out: trained on noisy data alone, a
network comes to what supervised training makes of it. Estimates without gradient are in :mod:`ulam.sure`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ulam_kernels.arguments import choice, switch

from ..denoiser import Denoiser
from ..estimation.differences import EXAMPLES, check_derivative
from ..estimation.estimator import Inputs, Sigma
from ..estimation.jumps import check_weakly_differentiable
from ..estimation.observed import check_cond, first_rows, levels, named, observed
from ..estimation.probes import training_photons, training_probes
from ..estimation.risk import DIVERGENCES, Operator, check_counts, hudson, linear, stein
from ..gradients import check_no_gradient
from .arguments import check_batch


def sure(
    denoiser: Denoiser | Callable[..., torch.Tensor],
    y: torch.Tensor,
    sigma: Sigma,
    cond: Inputs | None = None,
    *,
    seed: int = 0,
    step: int,
    chains: int | range | torch.Tensor | None = None,
    samples: int = 1,
    divergence: str = "exact",
    check: bool = False,
) -> torch.Tensor:
    """|D(y) - y|^2 / n - sigma^2 + 2 sigma^2 div D(y) / n, ``[B]`` [Stein 1981; as a loss Soltanayev & Chun 2018].

    For y = x + sigma z its mean is that of |D(y) - x|^2 / n, and its gradient in the denoiser's parameters has the mean
    of the error's: D is trained on noisy data alone. D must be weakly differentiable, as continuous functions with
    kinks are; where it jumps, the exact divergence misses the jumps.

    Args:
        denoiser: a Denoiser, called as it is (in training mode while it trains), or a function: D(y, sigma) if it has a
            second parameter without a default (sigma ``[B]`` like y), else D(y).
        y: noisy data ``[B, *shape]``. sigma: of the noise, a number or ``[B]``. cond: the network's further arguments.
        samples: directions v, signs of noise-v1 of (seed, step, chain), over which v' (dD/dy) v is averaged.
        divergence: exact, by automatic differentiation, trained by double backward; or difference, v' (D(y + h v) -
            D(y)) / h with h = 0.05 sigma [Ramani 2008], for black boxes and denoisers that jump: biased as if the
            divergence were taken at noise 0.12% above sigma.
        check: compare the derivative with differences on segments as long as the noise, which sees jumps; it costs
            thousands of evaluations, and is for the first step rather than all.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message; a denoiser that hides its dependence on y, has
            no derivative, or jumps under ``check``.
        RuntimeError: y, sigma or cond requires grad: the gradient is one in parameters. ``check`` where torch compiles
            or transforms the call.
    """
    name, function = named(denoiser)
    noise, differences = _checked(y, sigma, cond), choice(divergence, "divergence", DIVERGENCES) == "difference"
    directions = training_probes(y, samples, seed=seed, step=step, chains=chains)
    D = observed(denoiser, noise, cond)
    switch(check, "check")
    if not differences:
        first = observed(denoiser, noise[:EXAMPLES], first_rows(cond, EXAMPLES, len(y)))
        check_derivative(first, y[:EXAMPLES], function, name)
        if check:
            check_weakly_differentiable(D, y, noise, function, name, seed)
    return stein(D, y, noise, directions, differences=differences, name=name).risk


def projected_sure(
    denoiser: Callable[..., torch.Tensor],
    y: torch.Tensor,
    sigma: Sigma,
    operator: Operator,
    *,
    seed: int = 0,
    step: int,
    chains: int | range | torch.Tensor | None = None,
    samples: int = 1,
    divergence: str = "exact",
    check: bool = False,
) -> torch.Tensor:
    """SURE of |P (f(y) - x)|^2 / n for y = H x + sigma z, ``[B]``, P = H^+ H projecting on what H sees [Eldar 2009].

    |P f(y) - H^+ y|^2 / n - sigma^2 |H^+|_F^2 / n + 2 sigma^2 div_y(H^+' f(y)) / n: f is trained on observations
    through H alone. What H does not see is left to the network.

    Args:
        denoiser: f(y, sigma) if it has a second parameter without a default, else f(y): estimates of x
            ``[B, *shape]`` with n elements.
        y: observations ``[B, *seen]``.
        operator: H as a matrix ``[m, n]`` for y ``[B, m]`` and estimates ``[B, n]``, or two functions of batches: H,
            and its pseudo-inverse H^+, whose |H^+|_F^2 the directions estimate.
        sigma, samples, divergence, check and errors: see :func:`sure`.
    """
    name, function = named(denoiser, plain_only=True)
    noise, differences = _checked(y, sigma, None), choice(divergence, "divergence", DIVERGENCES) == "difference"
    H = linear(operator, y)
    directions = training_probes(y, samples, seed=seed, step=step, chains=chains)
    f = observed(denoiser, noise, None, like=False)
    switch(check, "check")
    if not differences:
        first = observed(denoiser, noise[:EXAMPLES], None, like=False)
        check_derivative(lambda at: H.forward(first(at)), y[:EXAMPLES], function, name)
        if check:
            check_weakly_differentiable(f, y, noise, function, name, seed, H)
    return stein(f, y, noise, directions, H, differences=differences, name=name).risk


def poisson_sure(
    denoiser: Callable[[torch.Tensor], torch.Tensor],
    y: torch.Tensor,
    *,
    gain: float = 1.0,
    seed: int = 0,
    step: int,
    chains: int | range | torch.Tensor | None = None,
    samples: int | None = 1,
) -> torch.Tensor:
    """The unbiased estimate of |D(y) - x|^2 / n for counts y = gain Poisson(x / gain), ``[B]`` [Luisier 2010, PURE].

    (|D|^2 - 2 sum_i y_i D_i(y - gain e_i) + |y|^2 - gain sum_i y_i) / n, by Hudson's identity E[x_i D_i(y)] =
    E[y_i D_i(y - gain e_i)] [Hudson 1978], for every D, with jumps or without: no derivative is taken.

    Args:
        denoiser: a function D(y), like y.
        y: whole multiples of ``gain``, ``[B, *shape]``.
        samples: counts taken away at random, in proportion to y, by one evaluation each. None: every element's, by one
            evaluation an element.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
        RuntimeError: y requires grad.
    """
    named(denoiser, plain_only=True)
    check_batch(y, "y")
    check_no_gradient("poisson_sure", y=y)
    gain = check_counts(y, gain)
    photons = training_photons(y, samples, seed=seed, step=step, chains=chains)
    return hudson(denoiser, y, gain, photons).risk


def _checked(y: torch.Tensor, sigma: Sigma, cond: Inputs | None) -> torch.Tensor:
    """The noise levels ``[B]``, after checks of what is given."""
    check_batch(y, "y")
    check_cond(cond)
    check_no_gradient("SURE", cond, y=y, sigma=sigma)
    return levels(y, sigma)
