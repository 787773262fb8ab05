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

from ..arguments import per_chain
from ..estimation.differences import check_derivative
from ..estimation.probes import training_probes
from ..estimation.pullback import Pullback, trace
from ..evaluation import check_like
from ..gradients import check_no_gradient
from ..noise import for_examples
from .arguments import check_batch, check_callable, check_levels

Score: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Chains: TypeAlias = int | range | torch.Tensor | None


def denoising_score_matching(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    sigma: torch.Tensor,
    *,
    seed: int = 0,
    step: int,
    chains: Chains = None,
) -> torch.Tensor:
    """sigma^2 / 2 |s(x~, sigma) - (x - x~) / sigma^2|^2 with x~ = x + sigma z, ``[B]``.

    [Vincent 2011, eq. 11; weighted as in Song & Ermon 2019, eq. 5.] Its minimiser is the score of the noised density;
    it differs from explicit score matching there by a constant. x: ``[B, *shape]``; sigma: ``[B]``; z is noise-v1 of
    (seed, step, chain). Raises TypeError, ValueError for arguments that do not fit, sigma not above 0, or a score of
    another shape.
    """
    check_batch(x, "x")
    check_callable(score, "score")
    check_levels(sigma, x)
    z = for_examples(x, seed=seed, step=step, chains=chains)
    level = per_chain(sigma, x).to(z)
    s = check_like(score((x + level * z).to(x.dtype), sigma), x.shape, "score", why=" like its input")
    return (level * s + z).pow(2).flatten(1).sum(1) / 2


def implicit_score_matching(score: Score, x: torch.Tensor) -> torch.Tensor:
    """tr(ds/dx) + |s|^2 / 2, ``[B]`` [Hyvarinen 2005, eq. 4]; the exact trace, by a backward pass for every dimension.

    Its mean is explicit score matching E|s - grad log p|^2 / 2 less the constant E|grad log p|^2 / 2. The passes are
    batched as those of `torch.vmap`, one by one where the score has an operation that it does not take.
    """
    products = _products(score, x)
    half: torch.Tensor = products.value.flatten(1).pow(2).sum(1) / 2
    return trace(products, x) + half


def sliced_score_matching(
    score: Score,
    x: torch.Tensor,
    *,
    samples: int = 1,
    reduced: bool = True,
    seed: int = 0,
    step: int,
    chains: Chains = None,
) -> torch.Tensor:
    """v' (ds/dx) v + 1/2 (v' s)^2, mean over ``samples`` directions v, ``[B]`` [Song 2019b, eq. 7].

    reduced: 1/2 |s|^2 in place of 1/2 (v' s)^2, which has less variance [eq. 8]; its mean over v is the implicit
    objective. Directions are Rademacher signs of noise-v1 of (seed, step, chain), new for every sample and step.
    Raises TypeError, ValueError for an invalid argument, TypeError for a score without a derivative in x, RuntimeError
    where x requires grad.
    """
    switch(reduced, "reduced")
    check_batch(x, "x")
    directions = training_probes(x, samples, seed=seed, step=step, chains=chains)
    products = _products(score, x)
    s, total = products.value, torch.zeros((), dtype=_wide(x), device=x.device)
    for v in directions:
        v = v.to(s)
        total = total + (products(v) * v).flatten(1).sum(1)
        if not reduced:
            total = total + (s * v).flatten(1).sum(1).pow(2) / 2
    mean = total / samples
    return mean + s.flatten(1).pow(2).sum(1) / 2 if reduced else mean


def _products(score: Score, x: torch.Tensor) -> Pullback:
    """The score at x and its vector-Jacobian products, after a check that it has them."""
    check_callable(score, "score")
    check_batch(x, "x")
    check_no_gradient("score matching in x", x=x)
    check_derivative(lambda at: _score(score, at), x, score)
    return Pullback(lambda at: _score(score, at).to(_wide(x)), x)


def _score(score: Score, x: torch.Tensor) -> torch.Tensor:
    return check_like(score(x), x.shape, "score", why=" like its input")


def _wide(x: torch.Tensor) -> torch.dtype:
    """The dtype of a loss: float32 also where the data are narrower."""
    return torch.promote_types(x.dtype, torch.float32)
