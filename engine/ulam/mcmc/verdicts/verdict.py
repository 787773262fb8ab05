"""Whether chains have mixed, by ArviZ's statistics, and what to try where they have not.

**Failed** where the rank-normalised split R-hat of an element or of the energy is above 1.01 or its bulk or tail
effective sample size is below 400 over all chains [Vehtari 2021, section 4], where more than 0.1% of the proposals
diverged, or where a chain left the finite numbers. No statistic knows what no chain has seen: chains that all missed
the same mode pass. Why a verdict fails: see :mod:`ulam.mcmc.verdicts.causes`.

**E-BFMI** [Betancourt 2016] says how well fresh momenta change the energy; below 0.3 tails may be missed, which is told
and does not fail. It needs the energies of consecutive transitions that each begin with a fresh momentum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ulam_kernels.reprs import short_repr

from .causes import NO_WALLS, Cause, modes, more_steps, runaway
from .statistics import (
    LEAST_CHAINS,
    LEAST_DRAWS,
    LOW_BFMI,
    MOST_DIVERGED,
    MOST_ELEMENTS,
    Worst,
    failures,
    looked_at,
    table,
    worst,
    worst_bfmi,
)

NAMED = 4  # elements of a state where proposals diverged


@dataclass(frozen=True, eq=False, kw_only=True)
class Verdict:
    """What :meth:`ulam.mcmc.Chains.verdict` found; printed it is a few lines. NaN is a number that is not known.

    Attributes:
        rhat, ess_bulk, ess_tail: the worst of all elements and the energy, each a (value, where).
        mcse: the largest Monte Carlo standard error of a mean, in standard deviations.
        bfmi: the lowest E-BFMI of a chain, or None: ``bfmi_note`` says why it does not apply.
        divergences: their number (without a Metropolis test: of chains that left the finite numbers);
            divergence_rate: their share of all proposals (of all chains).
        divergent: ``[n, 2]`` int64, the (chain, draw) of ``draws`` at which divergent proposals began; under thinning,
            the draws before which. None where only counts per chain are known: in launches of whole chains.
        failed: the checks that failed, empty if the verdict passed. cause: why, and what to try; None if it passed.
        more: how many times as many steps would do if the chains went on as they did, at least 1.
        table: ArviZ's statistics of up to 256 elements and the energy, a ``pandas.DataFrame``.
        notes: what else to know.
    """

    rhat: Worst
    ess_bulk: Worst
    ess_tail: Worst
    mcse: Worst
    bfmi: Worst | None
    bfmi_note: str
    divergences: int
    divergence_rate: float
    divergent: torch.Tensor | None
    failed: tuple[str, ...]
    cause: Cause | None
    more: float
    table: Any
    notes: tuple[str, ...]

    __repr__ = short_repr

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def headline(self) -> str:
        """One line: passed, or what failed."""
        return "passed" if self.passed else f"failed: {'; '.join(self.failed)}"

    @property
    def numbers(self) -> str:
        """One line: the worst of each statistic."""
        told = [f"R-hat {self.rhat}", f"bulk ESS {self.ess_bulk}", f"tail ESS {self.ess_tail}"]
        told += [f"MCSE {self.mcse.value:.2g} sd ({self.mcse.where})"]
        told += [f"E-BFMI {self.bfmi}" if self.bfmi else f"no E-BFMI: {self.bfmi_note}"]
        return "; ".join([*told, f"{self.divergences} divergences ({self.divergence_rate:.2%})"])

    def __str__(self) -> str:
        cause = [str(self.cause)] if self.cause else []
        return "\n".join([self.headline, self.numbers, *cause, *self.notes])


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """What a verdict looks at, see :class:`ulam.mcmc.Chains`.

    ``draws``: what is judged, ``[chain, draw, n]``, ``labels`` the n names. ``states`` ``[chain, draw, *shape]``, None
    where observables are judged alone. ``proposals``: of all chains after the warm-up.
    ``hamiltonian`` ``[chain, draw]``, or why there is none.
    """

    draws: torch.Tensor
    labels: list[str]
    states: torch.Tensor | None
    energies: torch.Tensor | None
    adjusted: bool
    divergences: int
    proposals: int
    diverging: torch.Tensor | None
    hamiltonian: torch.Tensor | str
    temperature: float
    launched: bool


def judge(evidence: Evidence) -> Verdict:
    """The verdict on a run. Raises ImportError without ArviZ."""
    draws = evidence.draws
    flat = draws.flatten(2) if draws.dim() > 2 else draws[..., None]
    finite = torch.isfinite(flat).all(2).all(1).cpu()
    made = table(draws, evidence.energies, finite, evidence.labels)
    rhat, bulk, tail = (_worst(made, name) for name in ("r_hat", "ess_bulk", "ess_tail"))
    rate = evidence.divergences / max(evidence.proposals if evidence.adjusted else len(draws), 1)
    failed = failures(rhat, bulk, tail)
    if evidence.adjusted and rate > MOST_DIVERGED:
        failed.append(f"{rate:.2%} of the proposals diverged, expected at most {MOST_DIVERGED:.1%}")
    if lost := int((~finite).sum()):
        failed.append(f"{lost} of {len(draws)} chains left the finite numbers, expected none")
    more = more_steps(rhat, bulk, tail)
    no_bfmi = evidence.hamiltonian if isinstance(evidence.hamiltonian, str) else "the energy does not vary"
    bfmi = None if isinstance(evidence.hamiltonian, str) else worst_bfmi(evidence.hamiltonian)
    divergent = None if evidence.diverging is None else evidence.diverging.nonzero().cpu()
    cause = None
    if failed:
        chosen = looked_at(flat.shape[2])
        at = chosen[int(made["r_hat"].fillna(0.0).to_numpy()[: len(chosen)].argmax())]
        too_large = lost > 0 or (evidence.adjusted and rate > MOST_DIVERGED)
        cause = _cause(evidence, flat, flat[finite.to(flat.device)][:, :, at], too_large, more)
    return Verdict(
        rhat=rhat, ess_bulk=bulk, ess_tail=tail, mcse=_worst(made.assign(mcse=made["mcse_mean"] / made["sd"]), "mcse"),
        bfmi=bfmi, bfmi_note="" if bfmi else no_bfmi, divergences=evidence.divergences, divergence_rate=rate,
        divergent=divergent, failed=tuple(failed), cause=cause, more=more, table=made,
        notes=tuple(_notes(evidence, flat, bfmi, divergent)),
    )  # fmt: skip


def of_table(made: Any) -> list[str]:
    """What fails in a table of ArviZ's summary; nothing of columns that it lacks."""
    if not {"r_hat", "ess_bulk", "ess_tail"} <= {*made.columns}:
        return []
    return failures(*(_worst(made, name) for name in ("r_hat", "ess_bulk", "ess_tail")))


def _worst(made: Any, name: str) -> Worst:
    labels = [str(label) for label in made.index]
    return worst(made[name].to_numpy(dtype=float), labels, largest=not name.startswith("ess"))


def _cause(evidence: Evidence, flat: torch.Tensor, x: torch.Tensor, too_large: bool, more: float) -> Cause:
    """``x`` ``[chain, draw]``: the element whose R-hat is worst, of the chains that stayed finite."""
    chains, draws = flat.shape[:2]
    if chains < LEAST_CHAINS or draws < LEAST_DRAWS:
        found = f"{chains} chains of {draws} draws are too few for R-hat ({LEAST_CHAINS} of {LEAST_DRAWS})"
        return Cause("few", found, "chains=4 or more, and more steps")
    states = evidence.states
    if states is not None:
        states = states.flatten(2) if states.dim() > 2 else states[..., None]
        if away := runaway(states, evidence.energies, evidence.temperature):
            return away
    if too_large and evidence.adjusted:
        found = "steps are too large where the density is narrow, or paths end beyond hard walls, where it is 0"
        advice = f'a smaller step, adapt="pooled", or HMC with small steps and long paths; at walls {NO_WALLS}'
        return Cause("divergences", found, advice)
    if too_large:
        return Cause("divergences", "steps are too large, or exp(-E) is not integrable", "a smaller step")
    if in_modes := modes(x):
        return in_modes
    if more > 1:
        found = f"chains are slow: at this rate {more:.3g} times as many steps would do"
        advice = 'more steps (thin= keeps as many draws), adapt="pooled", HMC with longer paths, or NUTS'
        return Cause("slow", found, advice)
    return Cause(
        "stuck", "some element never moved", 'a target under which all move, a smaller step, or adapt="pooled"'
    )


def _notes(evidence: Evidence, flat: torch.Tensor, bfmi: Worst | None, divergent: torch.Tensor | None) -> list[str]:
    notes = []
    if flat.shape[2] > MOST_ELEMENTS:
        notes.append(f"{MOST_ELEMENTS} of {flat.shape[2]} elements were looked at, evenly spaced")
    if not evidence.adjusted:
        notes.append("without a Metropolis test the step biases the law, which no statistic of the draws shows")
    if bfmi and bfmi.value < LOW_BFMI:
        notes.append(f"E-BFMI {bfmi} below {LOW_BFMI}: momenta hardly change the energy, tails may be missed")
    if divergent is not None and len(divergent):
        chain, draw = divergent[0].tolist()
        values = [f"{value:.3g}" for value in flat[chain, draw, :NAMED].tolist()]
        more = ", ..." if flat.shape[2] > NAMED else ""
        if evidence.labels[0].split("[")[0] == "x":
            place = f"x = [{', '.join(values)}{more}]"
        else:
            pairs = zip(evidence.labels, values, strict=False)
            place = ", ".join(f"{label} = {value}" for label, value in pairs) + more
        notes.append(f"divergences at {len(divergent)} draws: see verdict.divergent; first near {place}")
    elif divergent is None and evidence.adjusted and evidence.divergences:
        way = "in launches: ulam.mcmc.run(..., launch=False) does, with the same draws" if evidence.launched else "here"
        notes.append(f"where proposals diverged is not recorded {way}")
    return notes
