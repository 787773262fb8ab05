"""Warm-up of all chains together: one step, one inverse mass and one path length from the states of all of them.

It goes window by window (`windows.py`). A window begins with a search of the step (`first_step.py`) and tunes it by
dual averaging, shrunk towards the step found, on the mean acceptance of all chains in every step, or for NUTS, whose
chains are each at a transition of their own, of every B transitions that end. The mean is harmonic, as in [Hoffman,
Radul & Sountsov 2021], of acceptances of at least 0.05: where all chains fare alike it is little below the arithmetic
one at 0.8, and where some are stuck it asks for steps at which few are. MALA's rate is that of an arithmetic mean. The
step of GHMC, and its friction, come from MEADS (`meads.py`) in place of dual averaging. A window of masses
ends by setting the inverse mass to the variances of its states (`moments.py`). Chains wait for one another at the ends
of windows alone. After the last window step, mass and path stay as they are, and chains are on their own again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ...samplers.mcmc.ghmc import GHMC
from ...samplers.mcmc.hmc import HMC
from ...samplers.mcmc.mala import MALA
from ...samplers.mcmc.mams import MAMS
from ...samplers.mcmc.nuts import NUTS
from ...samplers.mcmc.paths import PathSampler
from ..adaptation import DualAveraging
from ..batch import ChainBatch
from ..trees import TreeBatch
from .first_step import first_step
from .gradients import Gradients
from .low_rank import fitted, most_states
from .meads import Meads
from .moments import Moments, inverse_mass
from .paths import FIRST_LEAPS, ChEES, Decorrelation, leaps_of
from .settings import Warmup
from .snapshots import Snapshots
from .tuning import Warmed
from .walls import GROWTH, Walls
from .windows import Window, windows

LEAST_ACCEPTANCE = 0.05  # in harmonic means
SHORT_DEPTH = 7  # of trees, until the last window of masses


def warm_up_together(batch: ChainBatch, settings: Warmup) -> Warmed:
    """Warm up the chains of a batch, all that there are, and give them what was found."""
    return PooledWarmup(batch, settings).run()


class PooledWarmup:
    """The warm-up of a batch while it goes on."""

    def __init__(self, batch: ChainBatch, settings: Warmup) -> None:
        self._batch, self._settings, self._gradients = batch, settings, Gradients(batch)
        self._step = batch.step.log().mean().exp()
        self._averaging = DualAveraging(self._step, settings.rate or 0.0, ahead=1.0)
        self._moments = Moments(batch.state.x)
        self._low_rank = settings.mass == "low-rank" or (settings.mass is not None and batch.coordinates is not None)
        self._snapshots = Snapshots(most_states(batch.state.x[0].numel()))
        self._acceptance, self._walls = torch.zeros_like(batch.step), Walls(settings.rate or 0.0)
        self._sum, self._count = torch.zeros_like(self._step), 0  # of transitions that ended since the last update
        self._path: ChEES | Decorrelation | None = None
        self._before: torch.Tensor | None = None  # the states before a transition, where paths need them
        asked = batch.plan.asked
        self._harmonic = not isinstance(asked, MALA)
        self._finds_path = isinstance(asked, (HMC, MAMS)) and asked.leapfrog is None
        self._finds_friction = isinstance(asked, GHMC) and asked.friction is None
        self._meads: Meads | None = None
        if isinstance(asked, GHMC):
            temperature = float(batch.temperature.mean())
            self._meads = Meads(batch.state.chain, temperature, batch.sampler.leaps, self._averaging.rate)

    def run(self) -> Warmed:
        """The whole warm-up."""
        plan, batch = self._batch.plan, self._batch
        parts = windows(plan.warmup, len(batch.rows))
        for number, window in enumerate(parts):
            self._begin()
            with self._short_trees(number < len(parts) - 2):
                self._go(window)
            self._step = self._averaging.final.clamp(max=self._walls.longest)
            if window.mass:
                self._set_mass(last=number == len(parts) - 2)
        changed: Any = {"step": float(self._step)}
        if self._meads is not None:
            changed["step"], friction = self._meads.final(batch.state)
            if self._finds_friction:
                changed["friction"] = friction
        if isinstance(batch.sampler, PathSampler):
            changed["leapfrog"] = self._leaps(self._step, final=True)
        batch.adopt(replace(batch.sampler, **changed))
        self._walls.warn()
        return Warmed(batch.sampler, self._acceptance, self._gradients.of_chains)

    # ------------------------------------------------------------------------------------------------ windows

    def _begin(self, again: bool = False) -> None:
        """Search the step, and begin to average anew; ``again``: within a window, whose states so far count."""
        batch = self._batch
        if not again:
            self._moments = Moments(batch.state.x)
            self._snapshots.restart()
        self._sum, self._count = torch.zeros_like(self._step), 0
        found = first_step(batch, self._gradients, self._step.expand_as(batch.step).contiguous(), together=True)
        self._step = found[0]
        self._averaging = DualAveraging(self._step, self._averaging.rate, ahead=1.0)
        if self._meads is not None:
            self._meads.begin(batch.state, longest=float(self._step))
            self._set_folds(self._meads)
            return
        if self._finds_path and self._path is None:
            length = FIRST_LEAPS * float(self._step)
            self._path = ChEES(length) if isinstance(batch.sampler, HMC) else Decorrelation(length)
        if isinstance(self._path, ChEES):
            self._path.restart()
        elif self._path is not None:
            self._path.restart(batch.state.x)
        self._walls.begin()
        if self._walls.found:
            self._look_for_walls()
        batch.step = found.clamp(max=self._walls.longest)
        self._set_leaps()

    def _go(self, window: Window) -> None:
        batch = self._batch
        self._acceptance.zero_()
        self._keep_states()
        if isinstance(batch, TreeBatch):
            before = batch.evaluations.clone()
            batch.warm(window.steps, self._take)
            self._gradients.add(batch.evaluations - before)
        else:
            with self._gradients.counted():
                batch.warm(window.steps, self._take)
        self._acceptance /= window.steps

    @contextmanager
    def _short_trees(self, short: bool) -> Iterator[None]:
        """Inside, NUTS doubles at most 7 times: the masses still to come make longer paths useless."""
        batch, sampler = self._batch, self._batch.sampler
        if short and isinstance(sampler, NUTS):
            batch.sampler = replace(sampler, max_depth=min(sampler.max_depth, SHORT_DEPTH))
        try:
            yield
        finally:
            batch.sampler = sampler

    def _take(self, probability: torch.Tensor, done: torch.Tensor | None) -> None:
        """Learn from a step of all chains, or from the transitions of those that are ``done``."""
        batch = self._batch
        if done is None:
            self._acceptance += probability
            self._moments.add(batch.state.x)
            self._see()
            self._learn_path(probability)
            if self._meads is not None:
                self._meads.take(batch.state, float(self._mean(self._counted(probability).mean())))
                self._set_folds(self._meads)
                return
            if self._path is not None and self._walls.suspected(probability):
                self._look_for_walls()
                if self._walls.found:
                    self._begin(again=True)
                    self._keep_states()
                    return
            self._averaging.take(self._mean(self._counted(self._walls.within(probability)).mean()))
        else:
            self._acceptance += torch.where(done, probability, 0.0)
            self._moments.add(batch.state.x[done])
            self._sum = self._sum + torch.where(done, self._counted(probability), 0.0).sum()
            self._count += int(done.sum())
            if self._count >= len(done):
                self._averaging.take(self._mean(self._sum / self._count))
                self._sum, self._count = torch.zeros_like(self._sum), 0
                self._see()
        step = self._averaging.step.clamp(max=self._walls.longest).expand_as(batch.step)
        batch.step = step.contiguous() if done is None else torch.where(done, step, batch.step)
        self._set_leaps()
        self._keep_states()

    def _set_folds(self, meads: Meads) -> None:
        """Go on with the steps and frictions of MEADS' folds."""
        batch = self._batch
        batch.step = meads.step
        if self._finds_friction:
            changed: Any = {"friction": meads.friction}
            batch.sampler = replace(batch.sampler, **changed)

    def _counted(self, probability: torch.Tensor) -> torch.Tensor:
        """What is averaged of acceptances ``[B]``."""
        return 1 / probability.clamp(min=LEAST_ACCEPTANCE) if self._harmonic else probability

    def _mean(self, averaged: torch.Tensor) -> torch.Tensor:
        return 1 / averaged if self._harmonic else averaged

    # ------------------------------------------------------------------------------------------------ masses

    def _set_mass(self, last: bool) -> None:
        """Take the states of a window for the inverse mass, and its units for paths; ``last``: of such windows."""
        batch, moments = self._batch, self._moments
        if self._low_rank:
            self._set_low_rank(last)
            return
        before = torch.ones_like(moments.mean) if batch.state.scale is None else batch.state.scale.double().square()
        mass = before if self._settings.mass is None else inverse_mass(moments, before)
        if self._settings.mass is not None:
            changed: Any = {"preconditioner": mass.cpu()}
            batch.adopt(replace(batch.sampler, **changed))
            if isinstance(self._path, ChEES):
                unit = float(batch.temperature.mean()) ** -0.5
                self._path.whitened(float((mass / before).max().sqrt()), unit)
        if isinstance(self._path, Decorrelation):
            self._path.whitened(moments, mass)
            if last:
                self._path.decorrelated(moments)

    def _see(self) -> None:
        """See the states of all chains, of NUTS those chosen so far, where a mass of low rank is asked for."""
        if self._low_rank:
            self._snapshots.add(self._batch.state.x, self._batch.state.score)

    def _set_low_rank(self, last: bool) -> None:
        """As :meth:`_set_mass`, in the coordinates of a mass of low rank from then on."""
        batch, shape = self._batch, self._batch.state.x.shape[1:]
        before, temperature = batch.coordinates, float(batch.temperature.mean())

        def out(y: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, w = y.view(-1, *shape), w.view(-1, *shape)
            x, score = (y, w) if before is None else (before.place(y), before.push(w))
            return x.flatten(1), score.flatten(1)

        def change(y: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, score = (part.view(-1, *shape) for part in out(y, w))
            assert batch.coordinates is not None
            return batch.coordinates.back(x).flatten(1), batch.coordinates.pull(score).flatten(1)

        seen = self._snapshots.states()
        x, score = out(seen.x, seen.score)
        if (found := fitted(x, score / temperature, tuple(shape))) is None:
            return
        changed: Any = {"preconditioner": found}
        batch.adopt(replace(batch.sampler, **changed))
        with self._gradients.counted():
            batch.state.evaluate_here(True)
        if self._meads is not None:
            self._meads.move(change)
        if isinstance(self._path, ChEES):
            self._path.whitened(float(self._moments.variance.max().sqrt()), temperature**-0.5)
        elif self._path is not None:
            moments = Moments(batch.state.x.double())
            moments.add(change(seen.x, seen.score)[0].view(-1, *shape))
            self._path.whitened(moments, torch.ones_like(moments.mean))
            if last:
                self._path.decorrelated(self._moments)

    # ------------------------------------------------------------------------------------------------ paths

    def _learn_path(self, probability: torch.Tensor) -> None:
        state = self._batch.state
        if isinstance(self._path, ChEES):
            assert self._before is not None and state.proposal is not None
            self._path.update(self._before, state.proposal, self._moments.mean, state.scale, probability)
            self._path.length = min(self._path.length, GROWTH * self._walls.longest)
        elif self._path is not None:
            assert self._before is not None
            self._path.update(self._before, state.x)

    def _look_for_walls(self) -> None:
        """With the step that the window began with."""
        assert self._path is not None
        step = self._step.expand_as(self._batch.step)
        self._walls.look(self._batch, self._gradients, step, self._path.length)

    def _keep_states(self) -> None:
        if self._path is not None:
            self._before = self._batch.state.x.clone()

    def _set_leaps(self) -> None:
        if isinstance(self._batch.sampler, PathSampler):
            self._batch.state.ends = {self._leaps(self._batch.step[0]): None}

    def _leaps(self, step: torch.Tensor, final: bool = False) -> int:
        """Leapfrog steps of a path: ceil(length / step), from 1 to 1000, or the sampler's own number."""
        if self._path is None:
            return self._batch.sampler.leaps
        length = self._path.final if final and isinstance(self._path, ChEES) else self._path.length
        return leaps_of(min(length, self._walls.longest), float(step))
