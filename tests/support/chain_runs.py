"""What the tests of Markov chain runs share: samplers of every kind, an energy, and when two runs are the same."""

from __future__ import annotations

import torch

from ulam import mcmc
from ulam.mcmc import BAOAB, GHMC, HMC, MALA, MALT, MAMS, MCLMC, NUTS, SGLD, ULA

SAMPLERS = [
    ULA(0.1),
    ULA(0.1, noise_scale=0.3, clip=(-1.0, 1.5)),
    SGLD(0.2),
    MALA(0.4),
    BAOAB(0.4, friction=2.0),
    HMC(0.4, leapfrog=3),
    HMC(0.4, leapfrog=3, jitter=0),
    GHMC(0.4, leapfrog=2, friction=2.0),
    MALT(0.4, leapfrog=3),
    MCLMC(0.4, length=2.0),
    MAMS(0.4, leapfrog=3),
    NUTS(0.5),
    mcmc.ParallelTempering(MALA(0.4), [1.0, 2.0, 4.0]),
    mcmc.ParallelTempering(ULA(0.1), [1.0, 2.0, 4.0], swap_every=3),
    mcmc.ParallelTempering(BAOAB(0.4, 1.0), [1.0, 3.0], swap_every=2),
    mcmc.ParallelTempering(HMC(0.4, 2), [1.0, 3.0]),
    mcmc.ParallelTempering(GHMC(0.4), [1.0, 3.0]),
    mcmc.ParallelTempering(MCLMC(0.4), [1.0, 3.0], swap_every=2),
    mcmc.ParallelTempering(NUTS(0.5), [1.0, 3.0]),
]


def curved(x):
    """An energy whose gradient grows no faster than x."""
    return (1 + (x[:, 0] - x[:, 1].sin()) ** 2).sqrt() + x[:, 1] ** 2 / 2


def run(target, sampler, **options):
    defaults = {"chains": 6, "steps": 12, "warmup": 4, "thin": 3, "seed": 7, "progress": False}
    return mcmc.run(target, sampler, **{**defaults, **options})


def same(a, b, rows=slice(None)):
    """Whether run ``a`` has the bits of these rows of run ``b``."""
    pairs = [(a.draws, b.draws), (a.energies, b.energies), (a.acceptance, b.acceptance), (a.swaps, b.swaps)]
    pairs += [(a.x, b.x), (a.v, b.v), (a.step, b.step), (a.divergences, b.divergences)]
    return all((x is None and y is None) or torch.equal(x, y[rows]) for x, y in pairs)
