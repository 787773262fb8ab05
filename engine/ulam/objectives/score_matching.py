"""Score matching in three forms: denoising, implicit and sliced.

:func:`implicit_score_matching` and :func:`sliced_score_matching` differentiate the score in x. At the first use of a
function they compare its derivative with finite differences (:mod:`ulam.estimation.differences`) and raise TypeError
where it hides its dependence on x; they give no gradient in x, and raise RuntimeError where x requires one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from ulam_kernels.arguments import switch
from ulam_kernels.validation import check_real

from ..arguments import per_chain, training_step, whole_number
from ..estimation.differences import check_derivative
from ..estimation.probes import probes
from ..evaluation import check_like
from ..gradients import check_no_gradient
from ..noise import TRAINING, normal_for
from .arguments import check_batch, check_callable, check_plain

Score: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


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
    check_batch(x, "x")
    check_callable(score, "score")
    check_plain(sigma, "sigma")
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


def _leaf(score: Score, x: torch.Tensor) -> torch.Tensor:
    """x as a leaf to differentiate the score in, after a check that it can be."""
    check_callable(score, "score")
    check_batch(x, "x")
    check_no_gradient("score matching in x", x=x)
    check_derivative(lambda at: _score(score, at), x, score)
    return x.detach().requires_grad_()


def _score(score: Score, x: torch.Tensor) -> torch.Tensor:
    return check_like(score(x), x.shape, "score", why=" like its input")
