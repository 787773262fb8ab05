"""MEADS: the step and the friction of GHMC from the states and scores of all chains [Hoffman & Sountsov 2022].

In coordinates whitened by the mass a leapfrog step is stable below 2 / omega for the largest frequency omega, and a
friction near the smallest one loses the memory of a direction just as slowly as the slowest state. The largest
eigenvalue of the covariance of the whitened scores is T omega^2 of the one, that of the states T / omega^2 of the
other. So, with the paper's constant,

    h = c / 2 sqrt(T / lambda(scores)),     friction = max(sqrt(T / lambda(states)), 1 / (t h leapfrog))

at step t of the warm-up. The chains b are in 4 folds by b mod 4: the step of a fold comes from the scores of the one
before it, its friction from its own states. Until the warm-up ends this goes on at every step; then one step and one
friction, from all folds together, stay. Four things differ from the paper's algorithm 3. No fold rests and none are
mixed, since the folds end with the warm-up. Where a fold has few chains, their states of the window so far count too.
And c <= 1 falls where the acceptance is below the rate asked for [Robbins & Monro 1951], which the trace ratio, a lower
bound of the eigenvalue, does not see to. Scores say nothing of the frequencies where all chains start at a mode, or
inside walls between which the density is flat: h is at most c times the step of a search at the begin of each window.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ...samplers.mcmc.chain_state import ChainState
from .snapshots import Seen, Snapshots

FOLDS, LEAST_FOLD = 4, 8  # folds, each of at least so many chains, else all chains are one
ENOUGH, MOST = 32, 64  # states of a fold: below it those before count too; the most that are looked at
STABLE = 0.5  # the step in units of 1 / omega
GAIN, DECAY, AVERAGED = 0.5, 0.6, 0.75  # of log c at its m-th step: gain m^-0.6; averaged with weights m^-0.75
TINY = 1e-300


class Meads:
    """What MEADS finds while a warm-up goes on.

    Attributes:
        step, friction: ``[B]`` float64, of the next transition.
    """

    def __init__(self, chains: torch.Tensor, temperature: float, leaps: int, rate: float) -> None:
        count = len(chains)
        self._folds = FOLDS if count >= FOLDS * LEAST_FOLD else 1
        self._fold = torch.arange(count, device=chains.device) % self._folds
        self._temperature, self._leaps, self._rate = temperature, leaps, rate
        self._all, self._earlier = Snapshots(ENOUGH * self._folds), Snapshots(ENOUGH * self._folds)
        self._steps, self._log_c, self._longest = 1, 0.0, math.inf
        self.step = torch.ones(count, dtype=torch.float64, device=chains.device)
        self.friction = torch.ones_like(self.step)

    def begin(self, state: ChainState, longest: float = math.inf) -> None:
        """Begin a window, in coordinates that may be new; ``longest``: the step that a search found there."""
        if len(self._all) >= ENOUGH or not len(self._earlier):
            self._all, self._earlier = self._earlier, self._all
        self._all.restart()
        self._count, self._log_average, self._longest = 0, self._log_c, longest
        self._look(state)

    def take(self, state: ChainState, acceptance: float) -> None:
        """Learn from a transition that left the chains in ``state``, of that mean acceptance."""
        self._steps += 1
        self._count += 1
        self._log_c = min(self._log_c + GAIN * self._count**-DECAY * (acceptance - self._rate), 0.0)
        self._log_average += (self._log_c - self._log_average) * self._count**-AVERAGED
        self._look(state)

    def move(self, change: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Change the states seen to other coordinates, from x and score ``[n, d]`` to theirs."""
        for snapshots in (self._all, self._earlier):
            snapshots.move(change)

    def final(self, state: ChainState) -> tuple[float, float]:
        """One step and one friction for all chains, from all their states of the last two windows."""
        seen = self._whitened(state, self._seen(0, 1, len(self._all) + ENOUGH))
        step = math.exp(self._log_average) * self._largest(seen)
        return step, max(self._slowest(seen), 1 / (self._steps * self._leaps * step))

    # ------------------------------------------------------------------------------------------------ folds

    def _look(self, state: ChainState) -> None:
        """Set the steps and frictions of all folds by the states that the chains are in."""
        kept, many = self._all.add(state.x, state.score), len(state.x) >= ENOUGH * self._folds
        if many or kept:
            seen = [
                self._whitened(state, self._now(state, fold) if many else self._seen(fold, self._folds))
                for fold in range(self._folds)
            ]
            found = [(self._largest(seen[fold - 1]), self._slowest(seen[fold])) for fold in range(self._folds)]
            table = torch.tensor(found, dtype=torch.float64, device=self.step.device)[self._fold]
            self._largest_steps, self._frictions = table.unbind(1)
        self.step = math.exp(self._log_c) * self._largest_steps
        self.friction = self._frictions.maximum(1 / (self._steps * self._leaps * self.step))

    def _now(self, state: ChainState, fold: int) -> Seen:
        """The states that a fold is in."""
        x, score = (at[fold :: self._folds][:MOST].flatten(1).double() for at in (state.x, state.score))
        return Seen(x, score, torch.arange(len(x), device=x.device))

    def _seen(self, fold: int, folds: int, enough: int = ENOUGH) -> Seen:
        """The states of a window, with those of the one before while they are not ``enough``."""
        seen = self._all.states(fold, folds)
        few = len(seen.x) < enough and len(self._earlier)
        return self._earlier.states(fold, folds).joined(seen) if few else seen

    @staticmethod
    def _whitened(state: ChainState, seen: Seen) -> Seen:
        if state.scale is None:
            return seen
        scale = state.scale.double().flatten()
        return Seen(seen.x / scale, seen.score * scale, seen.chain)

    def _largest(self, seen: Seen) -> float:
        """The step, at c = 1, by whitened scores."""
        return min(STABLE * math.sqrt(self._temperature / largest_eigenvalue(seen.score, seen.chain)), self._longest)

    def _slowest(self, seen: Seen) -> float:
        """The friction by whitened states."""
        return math.sqrt(self._temperature / largest_eigenvalue(seen.x - seen.x.mean(0), seen.chain))


def largest_eigenvalue(x: torch.Tensor, chain: torch.Tensor) -> float:
    """tr(S^2) / tr(S) of S = E[x x'] from x ``[n, d]`` float64 of these chains ``[n]``: at most S's largest eigenvalue.

    [Hoffman & Sountsov 2022, section 3.3]. tr(S^2) is estimated by the mean of (x_i . x_j)^2 over rows of two chains,
    which are independent (over i != j of one chain alone); it is tr(S)^2 / d at least. Rows that are not finite do not
    count.
    """
    finite = torch.isfinite(x).all(1)
    rows, chain = x[finite], chain[finite]
    products, n = rows @ rows.T, len(rows)
    apart = chain[:, None] != chain
    if not bool(apart.any()):
        apart = ~torch.eye(n, dtype=torch.bool, device=x.device)
    trace = float(products.diagonal().mean()) if n else 0.0
    squared = float(products[apart].square().mean()) if n > 1 else 0.0
    return max(squared / max(trace, TINY), trace / x.shape[1], TINY)
