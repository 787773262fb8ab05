"""What a run warns of, once and in one line: divergence, chains frozen by adaptation, energies rounded too coarsely.

**Rounding.** An energy stored with the spacing u between neighbouring numbers is off by up to u / 2, so the chain
samples exp(-(E + d) / T), |d| <= u / 2: every probability is off by a factor of up to exp(u / (2 T)). A run warns where
u / T is above 1 / 16 (3% of a probability) at the energies of its last states. u is that of the narrowest of bfloat16,
float16, float32 and float64 that holds all of them exactly, so a float32 sum that was widened is noticed too. The
built-in densities sum in float64. The check adds nothing to a step.

**Frozen chains.** Dual averaging takes the log step far down when the first transitions are rejected, as at a hard
wall, and may not come back in time. A run warns of chains whose adapted step is below 1 / 100 of the one given or of
the chains' median, and whose acceptance is above the target by more than a third of what is left up to 1: they could
take larger steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...engine import errors
from .causes import NO_WALLS

if TYPE_CHECKING:
    from ..batch import ChainBatch
    from ..chains import Chains
    from ..plan import RunPlan

COARSE = 1 / 16  # spacing of the energies over the temperature
FROZEN = 1 / 100  # of the step given, or of the median
EASY = 1 / 3  # of the way from the target acceptance to 1
FORMATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
NAMED = 8  # chains that a warning names


def warn(result: Chains, plan: RunPlan, batches: list[ChainBatch]) -> None:
    """Warn of what went wrong in a finished run."""
    _warn_of_divergence(result, plan)
    _warn_of_observables(result)
    if isinstance(plan.adapt, float):
        given = torch.cat([batch.given for batch in batches])[: len(plan.ids)]  # without the last batch's padding
        _warn_of_frozen_chains(result, plan.adapt, given)
    for batch in batches:
        if (energy := batch.compared_energies()) is not None and warn_of_rounding(energy, batch.temperature):
            return


def warn_of_repeated_noise() -> None:
    """Warn that a run from given states repeats the noise of others that began at step 0 of seed 0."""
    errors.warn(
        "x_init: the noise begins anew at step 0 of seed 0; pass resume= to go on from a run, or seed= or first_step=",
    )


def warn_of_rounding(energy: torch.Tensor, temperature: torch.Tensor) -> bool:
    """Warn if energies ``[B]`` float64 are rounded too coarsely for temperatures ``[B]``. Returns whether it warned."""
    finite = torch.isfinite(energy)
    energy, temperature = energy[finite], temperature[finite]
    dtype = next((dtype for dtype in FORMATS if torch.equal(energy.to(dtype).double(), energy)), torch.float64)
    # frexp: |E| = m 2^e with m in [1/2, 1), whose neighbours are eps 2^(e - 1) away.
    spacing = torch.ldexp(torch.full_like(energy, torch.finfo(dtype).eps), torch.frexp(energy.abs()).exponent - 1)
    coarse = spacing / temperature
    if not len(coarse) or float(coarse.max()) <= COARSE:
        return False
    worst = int(coarse.argmax())
    errors.warn(
        f"target: energies near {float(energy[worst]):.4g} are {float(spacing[worst]):.3g} apart in "
        f"{str(dtype).removeprefix('torch.')}, too far for the Metropolis test at temperature "
        f"{float(temperature[worst]):g}: take a constant off the energy, or compute it in float64 "
        "(Energy(fn, dtype=torch.float64))",
        RuntimeWarning,
    )
    return True


def _warn_of_divergence(result: Chains, plan: RunPlan) -> None:
    bad = result.divergences.nonzero()[:, 0]
    if not len(bad):
        return
    worst, advice = int(bad[0]), "try a smaller step"
    if plan.sampler.adjusted:
        advice += f", or at hard walls, where no step helps, {NO_WALLS}"
        count = int(result.divergences.sum())
        message = (
            f"{count} divergent proposals in {len(bad)} of {len(plan.ids)} chains (chain {int(plan.ids[worst])}, ...)"
        )
    else:
        message = (
            f"{len(bad)} of {len(plan.ids)} chains left the finite numbers (chain {int(plan.ids[worst])}, ...); "
            "their draws from there on are not finite"
        )
    errors.warn(f"{message}: {advice}", RuntimeWarning)


def _warn_of_observables(result: Chains) -> None:
    """Of observables that are not finite in chains that are."""
    stayed = torch.isfinite(result.x.flatten(1)).all(1)
    for name, values in (result.observables or {}).items():
        bad = (stayed & ~torch.isfinite(values.flatten(1)).all(1)).nonzero()[:, 0]
        if len(bad):
            errors.warn(
                f"observables: {name} is not finite at some draws of {len(bad)} of {len(result.ids)} chains "
                f"(chain {int(result.ids[int(bad[0])])}, ...), whose states are: see chains.observables",
                RuntimeWarning,
            )


def _warn_of_frozen_chains(result: Chains, rate: float, given: torch.Tensor) -> None:
    """``rate``: the target acceptance. ``given``: step sizes ``[chains]`` before adaptation."""
    assert result.acceptance is not None
    step, given, acceptance = result.step.cpu(), given.cpu(), result.acceptance.cpu()
    median = step.sort().values[len(step) // 2]
    small = step < FROZEN * given.clamp(min=float(median))
    frozen = (small & (acceptance > rate + EASY * (1 - rate))).nonzero()[:, 0]
    if not len(frozen):
        return
    names = ", ".join(str(chain) for chain in result.ids[frozen[:NAMED]].tolist())
    errors.warn(
        f"adapt: the step fell to {float(step[frozen].min()):.2g} (median {float(median):.2g}) in {len(frozen)} of "
        f"{len(step)} chains ({names}{', ...' if len(frozen) > NAMED else ''}), which hardly move now: give a longer "
        "warm-up, or start them elsewhere by x_init",
        RuntimeWarning,
    )
