"""Unbiased estimates of a squared error without the truth, as functions of parameters: for losses and estimates.

For y = H x + sigma z with z ~ N(0, I), P = H^+ H the projection on what H sees, and x of n elements [Eldar 2009]:

    E|P (f(y) - x)|^2 = E[ |P f(y) - H^+ y|^2 - sigma^2 |H^+|_F^2 + 2 sigma^2 div_y (H^+' f(y)) ]

With H = I this is SURE [Stein 1981]. The divergence is v' d(H^+' f) v = (H^+ v)' (df/dy) v, for directions v with
E[v v'] = I [Hutchinson 1990].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ulam_kernels.arguments import described, positive
from ulam_kernels.reprs import short_repr
from ulam_kernels.tracing import readable, transformed
from ulam_kernels.validation import check_real

from ..arguments import check_plain, per_chain
from ..evaluation import check_like
from .autograd import Function
from .probes import dot
from .pullback import Pullback

Operator: TypeAlias = "torch.Tensor | tuple[Function, Function]"

DIVERGENCES = ("exact", "difference")
WHOLE = 1e-2  # from a whole number, relative: bfloat16 knows counts no better
STEP = 0.05  # of a difference, in units of sigma


@dataclass(frozen=True)
class Linear:
    """H and its pseudo-inverse H^+, both for batches; ``power``: |H^+|_F^2, None where only probes tell it."""

    forward: Function
    inverse: Function
    power: torch.Tensor | None = None

    __repr__ = short_repr


@dataclass(frozen=True)
class Risk:
    """risk: ``[B]``, per element of x. divergences: ``[S, B]``, of every direction."""

    risk: torch.Tensor
    divergences: torch.Tensor

    __repr__ = short_repr


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


IDENTITY = Linear(_same, _same)  # whose power is the number of elements


def linear(operator: object, y: torch.Tensor) -> Linear:
    """A matrix ``[m, n]`` or a pair of functions as a Linear. Raises TypeError or ValueError for anything else."""
    right = "a matrix [m, n] for y [B, m], or functions (H, pseudo_inverse) of batches"
    if isinstance(operator, tuple) and len(operator) == 2 and all(map(callable, operator)):
        return Linear(*operator)
    if not isinstance(operator, torch.Tensor):
        raise TypeError(f"operator: got {described(operator)}, expected {right}")
    check_plain(operator, "operator")
    check_real(operator, "operator")
    if y.dim() != 2 or operator.dim() != 2 or len(operator) != y.shape[1] or not operator.shape[1]:
        raise ValueError(f"operator: got shape {list(operator.shape)} for y {list(y.shape)}, expected {right}")
    if readable(operator) and not bool(operator.isfinite().all()):
        raise ValueError("operator: got a matrix with infinite or NaN entries, expected finite ones")
    exact = operator.detach().double()
    inverse = torch.linalg.pinv(exact)
    H, back = (matrix.to(y.device, torch.promote_types(y.dtype, torch.float32)) for matrix in (exact, inverse))
    power = inverse.square().sum().to(y.device)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return check_like(x, (len(x), H.shape[1]), "denoiser", why=", what the operator takes").to(H) @ H.T

    return Linear(forward, lambda v: v.to(back) @ back.T, power)


def stein(
    f: Function,
    y: torch.Tensor,
    sigma: torch.Tensor,
    directions: Iterable[torch.Tensor],
    operator: Linear = IDENTITY,
    *,
    differences: bool = False,
    name: str = "denoiser",
) -> Risk:
    """The estimate above, divided by n, for y ``[B, *shape]`` and noise levels ``sigma`` [B] float64.

    differences: the divergence is (H^+ v)' (f(y + h v) - f(y)) / h with h = :data:`STEP` sigma [Ramani 2008, eq. 8].
    By Stein's lemma its mean over normal v is the divergence's mean over y + h v, whatever f is, with jumps or without:
    it is biased as if the divergence, and it alone, were taken at a noise level 0.12% above sigma (signs v are nearer
    still). Rounding of f, of u |f| at a relative precision u, adds u |f| / h.
    """
    wide = torch.promote_types(y.dtype, torch.float32)

    def function(at: torch.Tensor) -> torch.Tensor:
        return f(at).to(wide)

    products = None if differences else Pullback(function, y)
    estimate = function(y) if products is None else products.value
    seen = check_like(operator.forward(estimate), y.shape, "operator", "observations", " like y")
    h = per_chain(STEP * sigma, y).to(wide)
    divergences, powers = [], []
    for v in directions:
        back = check_like(operator.inverse(v.to(wide)), estimate.shape, "operator", "inverses", f", those of {name}")
        if products is None:
            divergences.append(dot(back, (function((y + h * v).to(y.dtype)) - estimate) / h))
        else:
            divergences.append(dot(products(back), v))
        powers.append(dot(back, back))
    off = operator.inverse(seen) - operator.inverse(y.to(wide))
    found, n = torch.stack(divergences), estimate[0].numel()
    known = n if operator is IDENTITY else operator.power
    power = torch.stack(powers).mean(0) if known is None else known
    variance = sigma**2
    risk = (dot(off, off) - variance * power + 2 * variance * found.mean(0)) / n
    return Risk(risk.to(wide), found)


def check_counts(y: torch.Tensor, gain: object) -> float:
    """``gain``, after a check that y are whole multiples of it, where the host can read them."""
    gain = positive(gain, "gain")
    if torch.compiler.is_compiling() or transformed() is not None:
        return gain
    counts = y.detach().double() / gain
    if not ((counts >= 0) & ((counts - counts.round()).abs() <= WHOLE * counts.clamp(min=1))).all():
        raise ValueError(f"y: got numbers that are no counts of {gain:g}, expected whole multiples of it from 0")
    return gain


def hudson(
    f: Callable[[torch.Tensor], torch.Tensor], y: torch.Tensor, gain: float, photons: torch.Tensor | None
) -> Risk:
    """Poisson noise: y = gain k with k ~ Poisson(x / gain), element by element [Hudson 1978; Luisier 2010, eq. 7].

        E|f(y) - x|^2 = E[ |f(y)|^2 - 2 sum_i y_i f_i(y - gain e_i) + |y|^2 - gain sum_i y_i ]

    photons: ``[S, B]`` uniform numbers that draw elements with probability y_i / sum y, at which the sum is taken as
    sum_i y_i f_i(y) less sum y times the mean of f_i(y) - f_i(y - gain e_i): unbiased, with the variance of these
    changes alone. None: the sum itself, by an evaluation for every element. No condition on f.
    """
    wide = torch.promote_types(y.dtype, torch.float32)

    def function(at: torch.Tensor) -> torch.Tensor:
        return check_like(f(at.to(y.dtype)), y.shape, "denoiser", why=" like its input").to(wide).flatten(1)

    n, counts, estimate = y[0].numel(), y.to(wide).flatten(1), function(y)

    def change(i: torch.Tensor) -> torch.Tensor:
        """f_i(y) - f_i(y - gain e_i) for an element i [B] of each chain."""
        less = counts.scatter_add(1, i[:, None], torch.full_like(counts[:, :1], -gain)).clamp(min=0)
        return (estimate - function(less.view(y.shape))).gather(1, i[:, None])[:, 0]

    if photons is None:
        of_all = (counts[:, i] * change(torch.full_like(counts[:, 0], i, dtype=torch.int64)) for i in range(n))
        changes = torch.stack(list(of_all)).sum(0, keepdim=True)
    else:
        shares = counts.double().cumsum(1)
        total = shares[:, -1]
        places = [torch.searchsorted(shares, (u * total)[:, None], right=True)[:, 0].clamp(max=n - 1) for u in photons]
        changes = torch.stack([total * change(i) for i in places])
    along = dot(counts, estimate) - changes.mean(0)
    risk = (dot(estimate, estimate) - 2 * along + dot(counts, counts) - gain * counts.double().sum(1)) / n
    return Risk(risk.to(wide), changes)
