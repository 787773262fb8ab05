"""A mass of low rank from states and scores of all chains [Seyboldt, Carlson & Carpenter 2025].

The Fisher divergence between a density with the scores g and a normal of covariance P is least at the geometric mean
of the covariance of the states and the inverse of that of the scores: P cov(g) P = cov(x). Of a Gaussian that is its
covariance, exactly, from little more states than dimensions, where sample covariances are far off.

First the diagonal S^2: 1 / var g, which is right where some directions are longer than the elements, var x, where some
are shorter, or the geometric mean of both, right without any. In the units of each the space of the largest singular
vectors of states and of scores, at most 64 directions, and there the geometric mean, whose eigenvectors of eigenvalues
beyond [1/2, 2] are kept; elsewhere it is taken for 1. The diagonal with the fewest directions is taken. Where a chain
is stuck at a score a billion times those of others the condition of covariances is beyond float64, and no geometric
mean may be found: then there are no directions, and the diagonal is var x.
"""

from __future__ import annotations

import math

import torch

from ...samplers.mcmc.low_rank import LowRank

LEAST, MOST_STATES, MOST_ELEMENTS = 10, 512, 1 << 24  # states that it takes; those looked at
MOST = 64  # directions
CUTOFF = 2.0  # eigenvalues from 1 / 2 to 2 are left out
PRIOR = 1e-5  # added to both covariances
TINY = 1e-60  # of variances
ROUNDED = 1e-2  # of the norm of a covariance: as far from it P cov(g) P may be


def most_states(elements: int) -> int:
    """How many states of so many elements a fit looks at, or up to twice as many."""
    return max(min(max(MOST_STATES, elements), MOST_ELEMENTS // elements), LEAST)


def fitted(x: torch.Tensor, score: torch.Tensor, shape: tuple[int, ...]) -> LowRank | None:
    """The mass of states x with the scores g of their density, both ``[n, d]`` float64; None of fewer than 10."""
    finite = torch.isfinite(x).all(1) & torch.isfinite(score).all(1)
    x, score = x[finite].cpu(), score[finite].cpu()
    if len(x) < LEAST:
        return None
    center, variance = x.mean(0), x.var(0).clamp(min=TINY)
    least = 1 / score.var(0).maximum(1 / variance)  # 1 / var g, which is at most var x
    diagonals = [power.sqrt() for power in ((least * variance).sqrt(), least, variance)]
    found = [_directions((x - center) / scale, (score - score.mean(0)) * scale) for scale in diagonals]
    sound = [(scale, pair) for scale, pair in zip(diagonals, found, strict=True) if pair is not None]
    none = (variance.sqrt(), (variance[:0], x.T[:, :0]))
    scale, (values, vectors) = min(sound, key=lambda pair: len(pair[1][0]), default=none)
    return LowRank(scale.view(shape), vectors.T.reshape(len(values), *shape), values, center.view(shape))


def _directions(x: torch.Tensor, score: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The eigenvalues ``[k]`` that are kept, farthest from 1 first, and their vectors ``[d, k]``; None by rounding."""
    d = x.shape[1]
    space = torch.eye(d, dtype=torch.float64) if d <= MOST else _leading(x, score)
    states, scores = _covariance(x @ space), _covariance(score @ space)
    values, vectors = torch.linalg.eigh(mean := geometric_mean(states, scores))
    if not float((mean @ scores @ mean - states).norm()) < ROUNDED * float(states.norm()) or float(values.min()) <= 0:
        return None
    far = values.log().abs()
    kept = far.argsort(descending=True, stable=True)[: int((far > math.log(CUTOFF)).sum())]
    return values[kept], space @ vectors[:, kept]


def geometric_mean(states: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """B^-1/2 (B^1/2 A B^1/2)^1/2 B^-1/2, the positive P with P B P = A, of covariances A of states and B of scores."""
    root, inverse_root = _power(scores, 0.5), _power(scores, -0.5)
    inner = _power(root @ states @ root, 0.5)
    mean: torch.Tensor = inverse_root @ inner @ inverse_root
    return (mean + mean.T) / 2


def _leading(x: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis ``[d, r]`` of the directions in which states, or scores, vary most; r at most 64."""
    rank = min(MOST // 2, len(x))
    both = [torch.linalg.svd(rows, full_matrices=False).Vh[:rank] for rows in (x, score)]
    basis, sizes, _ = torch.linalg.svd(torch.cat(both).T, full_matrices=False)
    found: torch.Tensor = basis[:, sizes > 1e-8]
    return found


def _covariance(rows: torch.Tensor) -> torch.Tensor:
    return rows.T @ rows / len(rows) + PRIOR * torch.eye(rows.shape[1], dtype=rows.dtype)


def _power(matrix: torch.Tensor, power: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    found: torch.Tensor = (vectors * values.clamp(min=TINY) ** power) @ vectors.T
    return found
