"""Whole chains in one launch, in Triton: a program holds a tile of chains and takes all their steps.

All that lives along the loop stays in registers. See :func:`ulam_kernels.mcmc.run`; the bits are those of the other
backends.
"""
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ulam_kernels import mcmc
from ulam_kernels.densities import Density
from ulam_kernels.triton.densities import evaluate_tile, halved_sum, numbers_at_hand, splat
from ulam_kernels.triton.launch import EXACT, on_device
from ulam_kernels.triton.noise import key_of, normals, philox4x32_10, radius
from ulam_kernels.triton.row import clip

WARP, CHAINS = 128, 8  # elements of a warp, four a thread; chains of a tile at least
ULA, MALA, BAOAB, HMC = (tl.constexpr(i) for i in range(4))
DIVERGED = tl.constexpr(mcmc.DIVERGED)
PATH_STAGE = tl.constexpr(mcmc.PATH_STAGE)


@triton.jit
def radius_of_test(seed, chain, draw):
    """sqrt(-2 ln u) of the Metropolis test's u: word 0 of block 0, tag 2."""
    k0, k1 = key_of(seed, draw)
    ids = chain.to(tl.uint64)
    counter = (ids ^ ids).to(tl.uint32) + 0x20000000
    word, _, _, _ = philox4x32_10(counter, draw.to(tl.uint32), ids.to(tl.uint32), (ids >> 32).to(tl.uint32), k0, k1)
    return radius(word)


@triton.jit
def tested(log_ratio, beta, seed, chain, draw):
    """(the log ratio ``[C]`` at the inverse temperature beta, whether the Metropolis test accepts it)."""
    r = tl.max(radius_of_test(seed, chain, draw), 1).to(tl.float64)
    log_ratio = log_ratio * beta
    return log_ratio, r * r > -2.0 * log_ratio


@triton.jit
def noise_of_step(seed, chain, draw, block, inside, C: tl.constexpr, W: tl.constexpr):
    """z ``[C, W]``, 0 beyond the chains' elements."""
    k0, k1 = key_of(seed, draw)
    z = tl.reshape(normals(k0, k1, chain, draw, block), [C, W])
    return tl.where(inside, z, 0.0)


@triton.jit
def moved(to, size, scale, by):
    """``fma(mul(size, L), by, to)``; size is ``[C, 1]``, L ``[1, W]``."""
    return tl.fma(splat(size, to) * splat(scale, to), by, to)


@triton.jit
def mala_sum(x, proposal, score, proposal_score, step, scale, W: tl.constexpr):
    """The sum in the log ratio of a Langevin proposal, ``[C]``."""
    s = score.to(tl.float64)
    t = proposal_score.to(tl.float64)
    wide = splat(scale, x).to(tl.float64)
    half = ((0.5 * splat(step, x).to(tl.float64)) * wide) * wide
    delta = proposal.to(tl.float64) - x.to(tl.float64)
    return halved_sum((s + t) * (delta + half * (t - s)), W)


@triton.jit
def varied_step(step, jitter, seed, chain, draw, block, C: tl.constexpr, W: tl.constexpr):
    """step (1 + jitter u), u = z_0 / |z| of three normals of the draw behind the step's own and its next."""
    k0, k1 = key_of(seed, draw + PATH_STAGE)
    z = tl.reshape(normals(k0, k1, chain, draw + PATH_STAGE, block), [C, W])  # in the layout of the chain's own
    i = tl.arange(0, W)[None, :]
    a = tl.sum(tl.where(i == 0, z, 0.0), 1, keep_dims=True).to(tl.float64)
    b = tl.sum(tl.where(i == 1, z, 0.0), 1, keep_dims=True).to(tl.float64)
    c = tl.sum(tl.where(i == 2, z, 0.0), 1, keep_dims=True).to(tl.float64)
    u = a / tl.sqrt((a * a + b * b) + c * c)
    return (step.to(tl.float64) * (1.0 + jitter.to(tl.float64) * u)).to(tl.float32)


@triton.jit
def squared_norms(v, W: tl.constexpr):
    wide = v.to(tl.float64)
    return halved_sum(wide * wide, W)


@triton.jit
def langevin_proposal(
    state, score, energy, step, noise_scale, factor, z, inside, lo, hi, numbers, first, second, d, components,
    KIND: tl.constexpr, SAMPLER: tl.constexpr, K: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """(proposal, its score, its energy, MALA's log ratio before the temperature) of a Langevin update."""
    force = splat(factor, score) * score
    proposal = moved(moved(state, step, factor, force), noise_scale, factor, z)
    if SAMPLER == ULA:
        proposal = tl.where(inside, clip(proposal, lo, hi), 0.0)
    new_score, new_energy = evaluate_tile(numbers, first, second, proposal, d, components, KIND, K)
    ratio = energy
    if SAMPLER == MALA:
        ratio = (energy - new_energy) - 0.5 * mala_sum(state, proposal, score, new_score, step, factor, W)
    return proposal, new_score, new_energy, ratio


@triton.jit
def baoab_step(
    state, velocity, score, kick, drift, keep, noise_scale, factor, z, numbers, first, second, d, components,
    KIND: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """(state, velocity, score, energy) after a step: Leimkuhler and Matthews 2013."""
    velocity = moved(velocity, kick, factor, score)
    proposal = moved(state, drift, factor, velocity)
    velocity = tl.fma(splat(noise_scale, z), z, splat(keep, velocity) * velocity)
    proposal = moved(proposal, drift, factor, velocity)
    new_score, new_energy = evaluate_tile(numbers, first, second, proposal, d, components, KIND, K)
    velocity = moved(velocity, kick, factor, new_score)
    return proposal, velocity, new_score, new_energy


@triton.jit
def hmc_proposal(
    state, score, energy, step, noise_scale, factor, z, leapfrog, numbers, first, second, d, components,
    KIND: tl.constexpr, K: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """(proposal, its velocity, its score, its energy, the log ratio before the temperature) of a leapfrog path."""
    half = 0.5 * step
    velocity = splat(noise_scale, z) * z
    norm = squared_norms(velocity, W)
    proposal = state
    new_score = score
    new_energy = energy
    for leap in range(0, leapfrog):
        velocity = moved(velocity, tl.where(leap == 0, half, step), factor, new_score)
        proposal = moved(proposal, step, factor, velocity)
        new_score, new_energy = evaluate_tile(numbers, first, second, proposal, d, components, KIND, K)
    velocity = moved(velocity, half, factor, new_score)
    ratio = (energy - new_energy) + 0.5 * (norm - squared_norms(velocity, W))
    return proposal, velocity, new_score, new_energy, ratio


@triton.jit
def transition(
    state, velocity, score, energy, c0, c1, c2, c3, whole, factor, z, inside, lo, hi, leapfrog,
    numbers, first, second, d, components,
    KIND: tl.constexpr, SAMPLER: tl.constexpr, K: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """(proposal, velocity, its score, its energy, the log ratio before the temperature, where there is a test)."""
    ratio = energy
    if (SAMPLER == ULA) | (SAMPLER == MALA):
        proposal, new_score, new_energy, ratio = langevin_proposal(
            state, score, energy, c0, c1, factor, z, inside, lo, hi,
            numbers, first, second, d, components, KIND, SAMPLER, K, W,
        )  # fmt: skip
    elif SAMPLER == BAOAB:
        proposal, velocity, new_score, new_energy = baoab_step(
            state, velocity, score, c0, c1, c2, c3, factor, z, numbers, first, second, d, components, KIND, K
        )
    else:
        proposal, velocity, new_score, new_energy, ratio = hmc_proposal(
            state, score, energy, whole, c3, factor, z, leapfrog, numbers, first, second, d, components, KIND, K, W
        )
    return proposal, velocity, new_score, new_energy, ratio


@triton.jit
def coefficients(coef, b, exists):
    """The four of each chain, ``[C, 1]``."""
    c0 = tl.load(coef + 4 * b, mask=exists, other=0.0)[:, None]
    c1 = tl.load(coef + 4 * b + 1, mask=exists, other=0.0)[:, None]
    c2 = tl.load(coef + 4 * b + 2, mask=exists, other=0.0)[:, None]
    c3 = tl.load(coef + 4 * b + 3, mask=exists, other=0.0)[:, None]
    return c0, c1, c2, c3


@triton.jit
def store_kept(draws, energies, place, state, energy, d, i, inside, exists):
    """Write a kept state and its energy, where they are wanted."""
    if draws is not None:
        tl.store(draws + place[:, None] * d + i, state, mask=inside)
    if energies is not None:
        tl.store(energies + place, energy, mask=exists)


@triton.jit
def add_counts(to, count, b, exists):
    """Add the counts of the chains ``b``, if they are wanted."""
    if to is not None:
        tl.store(to + b, tl.load(to + b, mask=exists, other=0) + count, mask=exists)


SIZES, ADDRESSES = "chains d components steps leapfrog thin lo hi", "numbers seed chain draw coef scale"


@triton.jit(do_not_specialize=SIZES.split(), do_not_specialize_on_alignment=ADDRESSES.split())
def run_kernel(
    numbers, x, coef, seed, chain, draw, v, scale, draws, energies, moments, accepted, diverged,
    chains, d, components, steps, leapfrog, thin, lo, hi,
    KIND: tl.constexpr, SAMPLER: tl.constexpr, C: tl.constexpr, W: tl.constexpr, K: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """As :func:`ulam_kernels.mcmc.run`. Grid (tiles of chains)."""
    if QUADS:
        d = d // 4 * 4  # says to the compiler that 16-byte accesses are aligned
    b = tl.program_id(0) * C + tl.arange(0, C)
    exists = b < chains
    i = tl.arange(0, W)[None, :]
    inside = exists[:, None] & (i < d)
    at = b.to(tl.int64)[:, None] * d + i
    state = tl.load(x + at, mask=inside, other=0.0)
    velocity = tl.zeros([C, W], tl.float32)
    if v is not None:
        velocity = tl.load(v + at, mask=inside, other=0.0)
    c0, c1, c2, c3 = coefficients(coef, b, exists)
    factor = tl.full([1, W], 1.0, tl.float32)
    if scale is not None:
        factor = tl.load(scale + i, mask=i < d, other=0.0)
    seeds = tl.load(seed + b, mask=exists, other=0)[:, None]
    ids = tl.load(chain + b, mask=exists, other=0)[:, None]
    now = tl.load(draw + b, mask=exists, other=0)[:, None]
    block = tl.broadcast_to(tl.arange(0, W // 4)[None, :], [C, W // 4])
    beta = tl.sum(c2.to(tl.float64), 1)
    first, second = numbers_at_hand(numbers, d, KIND, W)
    score, energy = evaluate_tile(numbers, first, second, state, d, components, KIND, K)
    count = tl.zeros([C], tl.int64)
    failures = tl.zeros([C], tl.int64)
    total = tl.zeros([C, W], tl.float64)
    total_square = tl.zeros([C, W], tl.float64)
    if moments is not None:
        moment = moments + 2 * b.to(tl.int64)[:, None] * d + i
        total = tl.load(moment, mask=inside, other=0.0)
        total_square = tl.load(moment + d, mask=inside, other=0.0)
    kept = steps // thin
    varies = tl.max((c1 != 0).to(tl.int32)) != 0

    for step in range(0, steps):
        whole = c0
        if SAMPLER == HMC:  # noqa: SIM102 - which the compiler settles
            if varies:
                jitter = tl.load(coef + 4 * b + 1, mask=exists, other=0.0)[:, None]  # a register less in the loop
                whole = varied_step(c0, jitter, seeds, ids, now, block, C, W)
        z = noise_of_step(seeds, ids, now, block, inside, C, W)
        proposal, velocity, new_score, new_energy, ratio = transition(
            state, velocity, score, energy, c0, c1, c2, c3, whole, factor, z, inside, lo, hi, leapfrog,
            numbers, first, second, d, components, KIND, SAMPLER, K, W,
        )  # fmt: skip
        if (SAMPLER == MALA) | (SAMPLER == HMC):
            ratio, yes = tested(ratio, beta, seeds, ids, now)
            state = tl.where(yes[:, None], proposal, state)
            score = tl.where(yes[:, None], new_score, score)
            energy = tl.where(yes, new_energy, energy)
            count += yes.to(tl.int64)
            failures += 1 - (ratio >= DIVERGED).to(tl.int64)
        else:
            state = proposal
            score = new_score
            energy = new_energy
        now += 16
        if (step + 1) % thin == 0:
            place = b.to(tl.int64) * kept + step // thin
            store_kept(draws, energies, place, state, energy, d, i, inside, exists)
            if moments is not None:
                wide = state.to(tl.float64)
                total += wide
                total_square += wide * wide

    tl.store(x + at, state, mask=inside)
    if v is not None:
        tl.store(v + at, velocity, mask=inside)
    if moments is not None:
        tl.store(moment, total, mask=inside)
        tl.store(moment + d, total_square, mask=inside)
    add_counts(accepted, count, b, exists)
    add_counts(diverged, failures, b, exists)


@triton.jit(do_not_specialize=["chains", "d", "components"], do_not_specialize_on_alignment=["numbers"])
def evaluate_kernel(
    numbers, x, energy, score, chains, d, components,
    KIND: tl.constexpr, C: tl.constexpr, W: tl.constexpr, K: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of chains)."""
    if QUADS:
        d = d // 4 * 4
    b = tl.program_id(0) * C + tl.arange(0, C)
    i = tl.arange(0, W)[None, :]
    inside = (b < chains)[:, None] & (i < d)
    at = b.to(tl.int64)[:, None] * d + i
    first, second = numbers_at_hand(numbers, d, KIND, W)
    state = tl.load(x + at, mask=inside, other=0.0)
    s, e = evaluate_tile(numbers, first, second, state, d, components, KIND, K)
    tl.store(score + at, s, mask=inside)
    if energy is not None:
        tl.store(energy + b, e, mask=b < chains)


def evaluate(
    density: Density, params: torch.Tensor, x: torch.Tensor, energy: torch.Tensor | None, score: torch.Tensor
) -> None:
    grid, options = _launch(density, len(x))
    with on_device(x):
        evaluate_kernel[grid](params, x, energy, score, len(x), density.dimension, density.components, **options)


def run(
    density: Density,
    params: torch.Tensor,
    x: torch.Tensor,
    sampler: int,
    coef: torch.Tensor,
    steps: int,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    v: torch.Tensor | None,
    leapfrog: int,
    scale: torch.Tensor | None,
    lo: float,
    hi: float,
    thin: int,
    draws: torch.Tensor | None,
    energies: torch.Tensor | None,
    moments: torch.Tensor | None,
    accepted: torch.Tensor | None,
    diverged: torch.Tensor | None,
) -> None:
    grid, options = _launch(density, len(x))
    with on_device(x):
        run_kernel[grid](
            params, x, coef, seed, chain, draw, v, scale, draws, energies, moments, accepted, diverged,
            len(x), density.dimension, density.components, steps, leapfrog, thin, float(lo), float(hi),
            SAMPLER=sampler, **options,
        )  # fmt: skip


def _launch(density: Density, chains: int) -> tuple[tuple[int], dict[str, object]]:
    """The grid, and what a tile is: a warp, or more of them for CHAINS chains; W columns.

    Small tiles spread few short chains over many SMs. Of four chains of many columns Triton makes poor layouts.
    """
    width = max(4, 1 << (density.dimension - 1).bit_length())
    components = max(2, 1 << (density.components - 1).bit_length()) if density.components else 2
    held = max(WARP // width, CHAINS)
    tile = {"C": held, "W": width, "K": components, "QUADS": density.dimension % 4 == 0}
    return (-(-chains // held),), {"KIND": density.kind, **tile, "num_warps": held * width // WARP, **EXACT}
