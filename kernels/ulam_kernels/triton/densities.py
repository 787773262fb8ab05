"""The built-in densities in Triton, operation by operation as ``csrc/include/ulam/densities.h``.

A tile ``[C, W]`` holds C chains, W the least power of two of at least d and 4; columns beyond d are 0.
"""
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from ulam_kernels import densities
from ulam_kernels.triton.noise import LOG_SCALE, RADIUS, polynomial
from ulam_kernels.triton.row import exp

GAUSSIAN_DIAGONAL = tl.constexpr(densities.GAUSSIAN_DIAGONAL)
GAUSSIAN = tl.constexpr(densities.GAUSSIAN)
MIXTURE = tl.constexpr(densities.MIXTURE)
DOUBLE_WELL = tl.constexpr(densities.DOUBLE_WELL)
ROSENBROCK = tl.constexpr(densities.ROSENBROCK)
FUNNEL = tl.constexpr(densities.FUNNEL)


@triton.jit
def folded(x, w: tl.constexpr):
    """Column l of ``[C, W]`` adds column l xor v for v = w, w / 2, ... 1."""
    C: tl.constexpr = x.shape[0]
    W: tl.constexpr = x.shape[1]
    if w > 0:
        pairs = tl.reshape(x, [C, W // (2 * w), 2, w])
        sums = tl.broadcast_to(tl.expand_dims(tl.sum(pairs, 2), 2), pairs.shape)
        x = folded(tl.reshape(sums, [C, W]), w // 2)
    return x


@triton.jit
def halved_sum(x, W: tl.constexpr):
    """Sums ``[C]`` over ``[C, W]``: column l adds column l + w for w = W / 2, ... 1.

    Every column ends with the sum, so all stays in the tile's layout. Halving the tile would end in layouts where a
    thread holds whole rows, and Triton then takes them for the state.
    """
    total = folded(x, W // 2)
    if x.dtype == tl.float64:
        total = tl.max(total.to(tl.int64, bitcast=True), 1).to(tl.float64, bitcast=True)
    else:
        total = tl.max(total.to(tl.int32, bitcast=True), 1).to(tl.float32, bitcast=True)
    return total


@triton.jit
def column(x, at):
    """Column ``at`` of a tile, ``[C, 1]``."""
    where = tl.arange(0, x.shape[1])[None, :] == at
    return tl.sum(tl.where(where, x, 0.0), 1)[:, None]


@triton.jit
def splat(x, like):
    return tl.broadcast_to(x, like.shape)


@triton.jit
def log(x):
    """ln x of a positive normal number."""
    i = x.to(tl.uint32, bitcast=True)
    e = (i - 0x3F2AAAAB) & 0xFF800000
    m = (i - e).to(tl.float32, bitcast=True) - 1.0
    scale = tl.full(x.shape, LOG_SCALE, tl.float32)
    return -0.5 * tl.fma(e.to(tl.int32, bitcast=True).to(tl.float32), scale, polynomial(m, RADIUS, 8) * m)


@triton.jit
def numbers_at_hand(numbers, d, KIND: tl.constexpr, W: tl.constexpr):
    """What every evaluation reads, loaded once: mean and diagonal precision ``[1, W]``, or the two numbers of a kind.

    Mixtures have none; of a full Gaussian it is the mean alone.
    """
    first = 0.0
    second = 0.0
    if KIND <= GAUSSIAN:
        i = tl.arange(0, W)[None, :]
        first = tl.load(numbers + i, mask=i < d, other=0.0)
        second = first
        if KIND == GAUSSIAN_DIAGONAL:
            second = tl.load(numbers + d + i, mask=i < d, other=0.0)
    elif KIND != MIXTURE:
        first = tl.load(numbers)
        second = tl.load(numbers + 1)
    return first, second


@triton.jit
def gaussian(numbers, mean, precision, x, d, FULL: tl.constexpr):
    """(score, energy terms)."""
    i = tl.arange(0, x.shape[1])[None, :]
    inside = i < d
    u = x - splat(mean, x)
    if FULL:
        row = numbers + d + i * d
        score = -splat(tl.load(row, mask=inside, other=0.0), x) * splat(column(u, 0), x)
        for j in range(1, d):
            entry = tl.load(row + j, mask=inside, other=0.0)
            score = tl.fma(-splat(entry, x), splat(column(u, j), x), score)
    else:
        score = -splat(precision, x) * u
    return score, (-0.5 * u) * score


@triton.jit
def mixture(numbers, x, d, components, K: tl.constexpr):
    """(score, energies ``[C]`` float64); K is the least power of two of at least the components and 2."""
    C: tl.constexpr = x.shape[0]
    W: tl.constexpr = x.shape[1]
    i = tl.arange(0, W)[None, :]
    component = tl.arange(0, K)[None, :]
    inside = i < d
    means = numbers + 2 * components + i
    exponents = tl.full([C, K], float("-inf"), tl.float32)
    for k in range(0, components):
        u = tl.where(inside, splat(tl.load(means + k * d, mask=inside, other=0.0), x) - x, 0.0)
        squares = halved_sum(u * u, W)[:, None]
        half = tl.full([C, 1], -0.5, tl.float32) * tl.load(numbers + components + k)
        exponent = tl.fma(half, squares, splat(tl.load(numbers + k), squares))
        exponents = tl.where(component == k, splat(exponent, exponents), exponents)
    largest = column(exponents, 0)
    for k in range(1, components):
        exponent = column(exponents, k)
        largest = tl.where(largest < exponent, exponent, largest)
    shares = exp(exponents - splat(largest, exponents))
    total = column(shares, 0)
    for k in range(1, components):
        total = total + column(shares, k)
    reciprocal = tl.div_rn(tl.full(total.shape, 1.0, tl.float32), total)
    score = tl.zeros(x.shape, tl.float32)
    for k in range(0, components):
        u = splat(tl.load(means + k * d, mask=inside, other=0.0), x) - x
        weight = splat((column(shares, k) * reciprocal) * tl.load(numbers + components + k), x)
        score = tl.where(k == 0, weight * u, tl.fma(weight, u, score))
    energy = -(largest.to(tl.float64) + log(total).to(tl.float64))
    return score, tl.sum(energy, 1)


@triton.jit
def rosenbrock(a, b, x):
    """(score, energy terms)."""
    C: tl.constexpr = x.shape[0]
    W: tl.constexpr = x.shape[1]
    first, second = tl.split(tl.reshape(x, [C, W // 2, 2]))
    t = tl.fma(-first, first, second)
    one = 1.0 - first
    score = tl.join(tl.fma(splat(2.0 * b, one), one, ((4.0 * a) * t) * first), (-2.0 * a) * t)
    terms = tl.join((b * one) * one, (a * t) * t)
    return tl.reshape(score, [C, W]), tl.reshape(terms, [C, W])


@triton.jit
def funnel(precision, rest, x):
    """(score, energy terms)."""
    i = tl.arange(0, x.shape[1])[None, :]
    first = column(x, 0)
    inverse = exp(-first)
    half = 0.5 * inverse
    squares = halved_sum(tl.where(i == 0, 0.0, x * x), x.shape[1])[:, None]
    first_score = tl.fma(splat(-precision, first), first, half * squares - rest)
    first_term = tl.fma((0.5 * precision) * first, first, rest * first)
    score = tl.where(i == 0, splat(first_score, x), splat(-inverse, x) * x)
    terms = tl.where(i == 0, splat(first_term, x), (splat(half, x) * x) * x)
    return score, terms


@triton.jit
def evaluate_tile(numbers, first, second, x, d, components, KIND: tl.constexpr, K: tl.constexpr):
    """Score ``[C, W]`` and energies ``[C]`` float64 of a tile of chains; first and second are ``numbers_at_hand``."""
    W: tl.constexpr = x.shape[1]
    inside = tl.arange(0, W)[None, :] < d
    if KIND == MIXTURE:
        score, energy = mixture(numbers, x, d, components, K)
    elif KIND <= FUNNEL:
        if KIND == GAUSSIAN_DIAGONAL:
            score, terms = gaussian(numbers, first, second, x, d, False)
        elif KIND == GAUSSIAN:
            score, terms = gaussian(numbers, first, second, x, d, True)
        elif KIND == DOUBLE_WELL:
            t = tl.fma(x, x, splat(-second, x))
            score = ((-4.0 * first) * x) * t
            terms = (first * t) * t
        elif KIND == ROSENBROCK:
            score, terms = rosenbrock(first, second, x)
        else:
            score, terms = funnel(first, second, x)
        energy = halved_sum(tl.where(inside, terms, 0.0).to(tl.float64), W)
    else:
        r = tl.sqrt_rn(halved_sum(x * x, W))
        inward = first - r
        pull = inward * second
        energy = ((0.5 * inward) * pull).to(tl.float64)
        score = splat(tl.div_rn(pull, tl.where(r == 0, 1.0, r))[:, None], x) * x
    return tl.where(inside, score, 0.0), energy
