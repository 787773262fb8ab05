"""What `ulam mcmc` says of its chains: the table, the verdict, and a command to try where it fails.

The command is the one that was given with other options. It follows from the cause (:mod:`ulam.mcmc.verdicts.causes`):

- few: four chains or more, 100 draws or more.
- modes: `--temperatures` from T to 8 T, or more of them where there are some; five times the steps.
- divergences: none at hard walls, beyond which energies are infinite, where no option helps; else HMC with small
  steps on long paths. Its step is a tenth of the smallest leapfrog step that adaptation came to, right where chains
  were, not where the density is narrowest; after samplers without a Metropolis test whose chains left the finite
  numbers a thirtieth of theirs. Built-in densities, whole chains of which run in one launch, get 1000 leapfrog steps
  and 20 times as many transitions, others 50 and 4. HMC gets steps a third of its own, and where its paths are as
  long already, steps a third as large or, if it is slow, paths five times as long.
- slow, stuck or divergent at steps that were given and not adapted, but for HMC on paths as long as those above: the
  same sampler, warmed up by `--adapt pooled`, which finds step and masses.
- so slow that more than 50 times the steps would be needed: the same as for divergences for built-in densities and
  after HMC, NUTS under `--adapt pooled` or tempering; else NUTS under it, whose paths find their length.
- slow otherwise: twice the steps that would do at the rate observed, kept as often as before.

From the defaults on every built-in density that command passes, as tests hold it to. For an energy of your own it is a
first step, which ends by saying what comes next.
"""

from __future__ import annotations

import argparse
import math
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from typing import Any

import torch

from ..mcmc.arviz_data import arviz
from ..mcmc.chains import Chains
from ..mcmc.densities import BuiltIn
from ..mcmc.targets import Target
from ..mcmc.verdicts.causes import NO_WALLS
from ..mcmc.verdicts.verdict import Verdict
from ..samplers import HMC, NUTS, ParallelTempering
from ..samplers.mcmc.chain_sampler import ChainSampler

ROWS = 8  # of the table
FEWEST_CHAINS, FEWEST_DRAWS = 4, 100
LADDER, MORE_STEPS_TEMPERED, RARE_SWAPS = (1.0, 2.0, 4.0, 8.0), 5, 0.2
TOO_SLOW = 50  # times the steps
PATHS = {True: (1000, 20), False: (50, 4)}  # leapfrog steps, times as many transitions; for built-in densities, others
SAFER = 10.0  # than the smallest adapted step
LEAST_WARMUP = 500  # steps that NUTS adapts in
NUMBERS = 3  # steps are told to so many digits
LOOKS, WALLED = 8, 0.1  # draws of each chain that are looked from, share of the places that are beyond walls
CAUSE_OPTIONS = {
    "few": "--chains, --steps",
    "runaway": "the sign of the energy, --warmup",
    "divergences": "--step, --adapt pooled, --sampler hmc with --leapfrog",
    "modes": "--temperatures",
    "slow": "--steps with --thin, --adapt pooled, --sampler hmc with --leapfrog or nuts",
    "stuck": "the target, --step, --adapt pooled",
}


def require_arviz() -> None:
    """Raises ImportError, naming the extra, where there is no ArviZ."""
    try:
        arviz()
    except ImportError as error:
        raise ImportError(f"{error}, or pass --no-verdict") from error


def of(chains: Chains) -> Verdict:
    """The verdict, without its warning: it is told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return chains.verdict()


def told(
    verdict: Verdict,
    options: argparse.Namespace,
    defaults: Mapping[str, Any],
    chains: Chains,
    target: Target,
    sampler: ChainSampler | ParallelTempering,
) -> list[str]:
    """The lines to print: the worst rows of the table, the verdict, what to try.

    ``options``: those of the command; ``defaults``: their defaults.
    """
    worst_first = verdict.table.assign(unknown=verdict.table["r_hat"].isna())
    table = worst_first.sort_values(["unknown", "r_hat"], ascending=False).drop(columns="unknown").head(ROWS)
    lines: list[str] = table.to_string(float_format=lambda value: f"{value:.4g}").splitlines()
    if len(verdict.table) > ROWS:
        lines.append(f"(the {ROWS} worst of {len(verdict.table)})")
    lines += [f"ulam: {line}" for line in (verdict.headline, verdict.numbers)]
    if verdict.cause is not None and verdict.cause.name == "divergences" and _has_walls(chains, target):
        lines.append(f"ulam: paths end beyond hard walls, where the energy is infinite: make the target a {NO_WALLS}")
    elif verdict.cause is not None:
        lines.append(f"ulam: {verdict.cause.found}: change {CAUSE_OPTIONS[verdict.cause.name]}")
        if (changes := changed(verdict, options, chains, target, sampler)) is not None:
            lines.append(f"ulam: try: {command({**vars(options), **changes}, defaults)}")
    return lines + [f"ulam: {note}" for note in verdict.notes]


def _has_walls(chains: Chains, target: Target) -> bool:
    """Whether energies are infinite at a tenth of the places that are as far from draws as draws are from one another.

    Where steps are too large for a density without walls, energies there are large, not infinite.
    """
    if isinstance(target, BuiltIn) or not target.has_energy or chains.draws is None:
        return False
    draws, count = chains.draws, len(chains.ids)
    beyond = []
    for look in range(LOOKS):
        here, there = draws[:, look * chains.kept // LOOKS], draws[:, -1]
        at = (here + (there - here.roll(1, 0))).contiguous()
        energy, _ = getattr(target, "rebind", target.bind)(at, torch.arange(count, device=at.device), count, None)(
            at, True
        )
        assert energy is not None
        beyond.append(energy == math.inf)
    return float(torch.stack(beyond).double().mean()) > WALLED


def reported(verdict: Verdict) -> dict[str, Any]:
    """The verdict for report.json."""
    statistics = {name: getattr(verdict, name) for name in ("rhat", "ess_bulk", "ess_tail", "mcse", "bfmi")}
    return {
        "passed": verdict.passed,
        "failed": list(verdict.failed),
        "cause": None if verdict.cause is None else verdict.cause._asdict(),
        **{name: None if worst is None else worst._asdict() for name, worst in statistics.items()},
        "divergences": verdict.divergences,
        "divergence_rate": verdict.divergence_rate,
        "notes": list(verdict.notes),
    }


def changed(
    verdict: Verdict,
    options: argparse.Namespace,
    chains: Chains,
    target: Target,
    sampler: ChainSampler | ParallelTempering,
) -> dict[str, Any] | None:
    """The options to change and their values (None: leave it out), or None where no option helps."""
    assert verdict.cause is not None
    cause, steps, thin = verdict.cause.name, options.steps, options.thin
    if cause == "few":
        enough = max(options.steps, FEWEST_DRAWS * options.thin)
        return {"chains": max(options.chains, FEWEST_CHAINS), "steps": enough}
    if cause in ("divergences", "slow", "stuck") and _may_find_its_step(options, target, sampler):
        return {"step": None, "adapt": "pooled", "warmup": max(options.warmup, LEAST_WARMUP)}
    if cause in ("runaway", "stuck") or (cause == "modes" and not target.has_energy):
        return None
    if cause == "modes":
        ladder, factor = _longer(options, chains), MORE_STEPS_TEMPERED
        return {"temperatures": ladder, "temperature": None, "steps": steps * factor, "thin": thin * factor}
    if target.has_energy and (cause == "divergences" or verdict.more > TOO_SLOW):
        pooled_nuts = isinstance(sampler, NUTS) and options.adapt == "pooled"
        own = not isinstance(target, BuiltIn) and not pooled_nuts
        if cause == "slow" and own and not isinstance(sampler, (HMC, ParallelTempering)):
            return _nuts(options, sampler)
        return _hmc(cause, options, chains, target, sampler)
    if cause == "divergences":
        return {"step": _rounded(float(chains.step.min()) / 4), "steps": 4 * steps, "thin": 4 * thin}
    factor = _rounded_up(2 * verdict.more)
    return {"steps": steps * factor, "thin": thin * factor}


def command(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The command line with these options, but for those at their defaults."""
    words = ["ulam", "mcmc"]
    for name, default in defaults.items():
        if (value := options[name]) != default:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [_word(name, value)])]
    return shlex.join(words)


def _hmc(
    cause: str, options: argparse.Namespace, chains: Chains, target: Target, sampler: ChainSampler | ParallelTempering
) -> dict[str, Any]:
    """HMC of small steps on long paths, and what other samplers take left out."""
    inner = sampler.sampler if isinstance(sampler, ParallelTempering) else sampler
    step, (leaps, factor) = float(chains.step.min()), PATHS[isinstance(target, BuiltIn)]
    if isinstance(inner, HMC) and inner.leaps >= leaps:
        finer = cause == "divergences"
        step, leaps, factor = (step / 3, 3 * inner.leaps, 1) if finer else (step, 5 * inner.leaps, 10)
    elif isinstance(inner, HMC):
        step /= 3
    else:
        known = inner.adjusted or cause != "divergences"  # else at what step chains would stay is not known
        step = _leapfrog_step(chains, inner) / (SAFER if known else 3 * SAFER)
    made = {"sampler": "hmc", "step": _rounded(step), "leapfrog": leaps, "adapt": 0.0}
    made |= {"steps": options.steps * factor, "thin": options.thin * factor}
    return made | _foreign(options, inner, HMC)


def _may_find_its_step(options: argparse.Namespace, target: Target, sampler: ChainSampler | ParallelTempering) -> bool:
    """Whether steps were given, a warm-up of all chains could find them, and paths are not long by advice."""
    if isinstance(sampler, ParallelTempering) or sampler.rate is None or (options.warmup > 0 and options.adapt != 0.0):
        return False
    return not (isinstance(sampler, HMC) and sampler.leaps >= PATHS[isinstance(target, BuiltIn)][0])


def _nuts(options: argparse.Namespace, sampler: ChainSampler) -> dict[str, Any]:
    """NUTS, warmed up by all chains together, and what other samplers take left out."""
    made = {"sampler": "nuts", "step": None, "adapt": "pooled"}
    return made | {"warmup": max(options.warmup, LEAST_WARMUP)} | _foreign(options, sampler, NUTS)


def _leapfrog_step(chains: Chains, sampler: ChainSampler) -> float:
    """The smallest step of a chain as one of a leapfrog: a step h of Langevin dynamics is one of sqrt(2 h)."""
    step = float(chains.step.min())
    return step if sampler.step_is_a_time else math.sqrt(2 * step)


def _foreign(options: argparse.Namespace, sampler: ChainSampler, other: type[ChainSampler]) -> dict[str, Any]:
    """None for the options of a sampler that another does not take."""
    taken, given = ({field.name for field in fields(of)} for of in (other, sampler))
    return {name: None for name in given - taken if hasattr(options, name)}


def _longer(options: argparse.Namespace, chains: Chains) -> tuple[float, ...]:
    """More temperatures: between those that hardly swap, else above; the first ones where there are none."""
    ladder = options.temperatures
    if ladder is None:
        return tuple((options.temperature or 1.0) * factor for factor in LADDER)
    if chains.swaps is not None and float(chains.swaps.mean(0).min()) < RARE_SWAPS:
        between = [_rounded(math.sqrt(a * b)) for a, b in pairwise(ladder)]
        return tuple(sorted({*ladder, *between}))
    return (*ladder, _rounded(2 * ladder[-1]), _rounded(4 * ladder[-1]))


def _rounded(value: float) -> float:
    return float(f"{value:.{NUMBERS}g}")


def _rounded_up(value: float) -> int:
    """The least of 2, 5, 10, 20, 50, ... that is not below."""
    power = 10 ** math.floor(math.log10(max(value, 1.0)))
    return next(int(factor * power) for factor in (1, 2, 5, 10) if factor * power >= max(value, 2.0))


def _word(name: str, value: Any) -> str:
    if name == "adapt" and not value:
        return "off"
    if isinstance(value, tuple):
        return ",".join(_word(name, one) for one in value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
