"""Second-order denoising score matching: a network that says the Hessian of log p at once [Meng 2021]."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch

from ulam_kernels.arguments import choice, described, switch

from ..arguments import per_chain
from ..evaluation import check_like
from ..noise import for_examples
from .arguments import check_batch, check_callable, check_levels

FORMS = ("full", "diagonal", "low-rank")

Score: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Second: TypeAlias = Callable[[torch.Tensor, torch.Tensor], "torch.Tensor | tuple[torch.Tensor, torch.Tensor]"]


def second_order_score_matching(
    score2: Second,
    score: Score,
    x: torch.Tensor,
    sigma: torch.Tensor,
    *,
    form: str = "full",
    reduced: bool = False,
    seed: int = 0,
    step: int,
    chains: int | range | torch.Tensor | None = None,
) -> torch.Tensor:
    """1/2 |sigma^2 (S + s s') + I - z z'|^2 for S = score2(x~, sigma), s = score(x~, sigma), x~ = x + sigma z, ``[B]``.

    sigma^4 / 2 times D2SM [Meng 2021, sec. 3.1 and 4.1], as :func:`denoising_score_matching` has sigma^2. Where s is
    the score of the noised density, S = Hess log p(x~) minimises the mean; then the covariance of x given x~ is
    sigma^2 (I + sigma^2 S). Gradients flow into ``score`` too: train both together beside its own loss, or call a fixed
    one under torch.no_grad(). The norm is Frobenius', over the n elements of an example.

    | form | score2 returns | compared with I - z z' |
    |---|---|---|
    | full | S, ``[B, n, n]`` | all entries |
    | diagonal | diag S, like x | the diagonal |
    | low-rank | a like x and b ``[B, n, r]``, S = diag(a) + b b' [Meng 2021, sec. 4.2] | all, in O(n r^2) operations |

    reduced: less variance at small sigma, for three calls of either function. With A = sigma^2 (S + s s') at x + sigma
    z, x - sigma z and x,

        (|A+|^2 + |A-|^2) / 4 + <I - z z', A+ + A- - 2 A_0> / 2 + (n^2 + n) / 2          (diagonal: + n)

    has the mean of the plain form [Meng 2021, sec. 4.3, and a constant].

    x: ``[B, *shape]``; sigma: ``[B]``. Raises TypeError or ValueError naming the argument.
    """
    check_callable(score2, "score2")
    check_callable(score, "score")
    check_batch(x, "x")
    check_levels(sigma, x)
    choice(form, "form", FORMS)
    switch(reduced, "reduced")
    z = for_examples(x, seed=seed, step=step, chains=chains)
    level = per_chain(sigma, x).to(z)

    def at(side: float) -> Matrix:
        """sigma^2 (S + s s') at x + side sigma z."""
        place = (x + side * level * z).to(x.dtype)
        s = check_like(score(place, sigma), x.shape, "score", why=" like its input")
        return _matrix(form, score2(place, sigma), level * s, level)

    noise = _noise(form, z.flatten(1))
    if not reduced:
        return _inner(off := _plus(at(1.0), noise), off) / 2
    ahead, behind, here = at(1.0), at(-1.0), at(0.0)
    n = x[0].numel()
    along = _inner(ahead, noise) + _inner(behind, noise) - 2 * _inner(here, noise)
    spread = (_inner(ahead, ahead) + _inner(behind, behind)) / 4
    return spread + along / 2 + (n if form == "diagonal" else n * (n + 1) / 2)


class LowRank(NamedTuple):
    """diag(a) + U diag(c) U' for a ``[B, n]``, U ``[B, n, r]`` and c ``[r]``."""

    a: torch.Tensor
    U: torch.Tensor
    c: torch.Tensor


Matrix: TypeAlias = "torch.Tensor | LowRank"  # all entries [B, n, n], the diagonal [B, n], or factors


def _noise(form: str, z: torch.Tensor) -> Matrix:
    """I - z z'."""
    if form == "full":
        return torch.eye(z.shape[1], dtype=z.dtype, device=z.device) - z[:, :, None] * z[:, None]
    if form == "diagonal":
        return 1 - z.square()
    return LowRank(torch.ones_like(z), z[:, :, None], z.new_full((1,), -1.0))


def _matrix(form: str, second: object, s: torch.Tensor, level: torch.Tensor) -> Matrix:
    """sigma^2 S + s s' for what score2 returns, its shape checked, and sigma times the score."""
    rows, n, flat = len(s), s[0].numel(), s.flatten(1)
    if form == "full":
        S = check_like(second, (rows, n, n), "score2", why=": the n x n Hessian of every example")
        return level.view(-1, 1, 1) ** 2 * S + flat[:, :, None] * flat[:, None]
    if form == "diagonal":
        S = check_like(second, s.shape, "score2", why=" like its input: the diagonal of the Hessian")
        return (level**2 * S).flatten(1) + flat.square()
    if not isinstance(second, tuple) or len(second) != 2:
        raise TypeError(f"score2: got {described(second)}, expected a pair (a, b) for a Hessian diag(a) + b b'")
    a = check_like(second[0], s.shape, "score2", "diagonals", " like its input")
    b = second[1]
    rank = b.shape[2] if isinstance(b, torch.Tensor) and b.dim() == 3 else 1
    b = check_like(b, (rows, n, rank), "score2", "factors", " or of any other rank")
    U = torch.cat([level.view(-1, 1, 1) * b, flat[:, :, None]], 2)
    return LowRank((level**2 * a).flatten(1), U, U.new_ones(U.shape[2]))


def _plus(A: Matrix, B: Matrix) -> Matrix:
    if isinstance(A, LowRank) and isinstance(B, LowRank):
        return LowRank(A.a + B.a, torch.cat([A.U, B.U], 2), torch.cat([A.c, B.c]))
    assert isinstance(A, torch.Tensor) and isinstance(B, torch.Tensor)
    return A + B


def _inner(A: Matrix, B: Matrix) -> torch.Tensor:
    """The sum of the products of all entries, ``[B]``."""
    if isinstance(A, LowRank) and isinstance(B, LowRank):
        crossed = A.c * (B.a[:, :, None] * A.U.square()).sum(1), B.c * (A.a[:, :, None] * B.U.square()).sum(1)
        both = A.c[:, None] * B.c * (A.U.mT @ B.U).square()
        return (A.a * B.a).sum(1) + crossed[0].sum(1) + crossed[1].sum(1) + both.sum((1, 2))
    assert isinstance(A, torch.Tensor) and isinstance(B, torch.Tensor)
    return (A * B).flatten(1).sum(1)
