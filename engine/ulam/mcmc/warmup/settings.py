"""What a warm-up is asked for: the argument ``adapt`` of :func:`ulam.mcmc.run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ulam_kernels.arguments import described

from ...samplers.mcmc.chain_sampler import ChainSampler

MASSES = ("diagonal", "low-rank", None)


@dataclass(frozen=True)
class Warmup:
    """A warm-up of all chains together, as ``adapt`` of :func:`ulam.mcmc.run`; "pooled" is ``Warmup()``.

    Chains are coupled until it ends, and their bits then depend on which chains run. See :mod:`.warmup.pooled`.

    Args:
        rate: the acceptance to tune the step to, in (0, 1); None is the sampler's own (``rate`` of its class).
        mass: "diagonal", variances of all chains in growing windows as the inverse mass; "low-rank", those and up to
            64 directions beside, a :class:`ulam.mcmc.LowRank`, see :mod:`.warmup.low_rank`: where elements are
            correlated; None keeps the sampler's. Masses of atoms stay: "low-rank" is refused beside them, and beside a
            fixed centre of mass.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """

    rate: float | None = None
    mass: str | None = "diagonal"

    def __post_init__(self) -> None:
        if self.rate is not None and not _is_rate(self.rate):
            raise ValueError(f"rate: got {described(self.rate)}, expected a target acceptance in (0, 1), or None")
        if not (self.mass is None or isinstance(self.mass, str)) or self.mass not in MASSES:
            raise ValueError(f'mass: got {described(self.mass)}, expected "diagonal", "low-rank" or None')


Adapt: TypeAlias = "float | str | Warmup | None"


def checked_adapt(adapt: object, sampler: ChainSampler, warmup: int, tempered: bool) -> float | Warmup | None:
    """A rate that each chain adapts to alone, a warm-up together with its rate, or None.

    Raises ValueError for what is neither, for samplers without a Metropolis test, without warm-up, and for replicas.
    """
    if adapt is None:
        return None
    name = type(sampler).__name__
    told = repr(adapt) if isinstance(adapt, str) else adapt if _is_rate(adapt) else described(adapt)
    together = adapt == "pooled" if isinstance(adapt, str) else isinstance(adapt, Warmup)
    if not (together or _is_rate(adapt) or (isinstance(adapt, str) and adapt == "chain")):
        raise ValueError(
            f'adapt: got {told}, expected a target acceptance in (0, 1), "chain", "pooled", a Warmup or None'
        )
    if not sampler.adjusted:
        raise ValueError(f"adapt: got {told}, expected None: {name} has no Metropolis test")
    if not warmup:
        raise ValueError(f"adapt: got {told} without warm-up, expected warmup= of at least 1 to adapt in")
    if together and tempered:
        raise ValueError(f'adapt: got {told}, expected a target acceptance, "chain" or None under ParallelTempering')
    if isinstance(adapt, float):
        return adapt
    rate = adapt.rate if isinstance(adapt, Warmup) and adapt.rate is not None else sampler.rate
    if rate is None:
        raise ValueError(f"adapt: got {told}, expected a target acceptance in (0, 1): {name} has none of its own")
    if not together:
        return rate
    given = sampler.mass is not None or sampler.center_of_mass == "fixed"  # masses of atoms stay what they are
    mass = adapt.mass if isinstance(adapt, Warmup) else "diagonal"
    if given and mass == "low-rank":
        beside = "mass=" if sampler.mass is not None else 'center_of_mass="fixed"'
        raise ValueError(f'adapt: got mass="low-rank" beside {beside} of {name}, which stays, expected one of the two')
    return Warmup(rate, None if given else mass)


def _is_rate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1
