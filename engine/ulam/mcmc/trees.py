"""The chains of one batch whose transitions are trees: each at its own place in its own tree, all in one leap."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..noise import DRAWS_PER_ROW
from ..samplers.mcmc.nuts import NUTS, Trees
from ..samplers.mcmc.rows import Rows, finds
from .adaptation import DualAveragingEach
from .batch import ChainBatch
from .kept import KeptDraws

LOOK = 8  # leaps from one look at a device to the next, for whether all chains are done


class TreeBatch(ChainBatch):
    """B chains of NUTS, each of which begins its next transition once its tree is done; see :class:`ChainBatch`.

    Attributes:
        made: ``[B]`` int64, transitions so far, the warm-up's included.
        accepted: ``[B]`` float64, the sum of the mean acceptance of each transition since the warm-up.
        leapfrogs: ``[B]`` int64, leapfrog steps of the run, its warm-up included.
        leaps: of the batch, each one evaluation of B scores.
    """

    def run(self, kept: KeptDraws) -> None:
        """Warm up and make all steps, as :meth:`ChainBatch.run`."""
        plan, state, sampler = self.plan, self.state, self.sampler
        assert isinstance(sampler, NUTS)
        state.evaluate_here(True)
        self._check_start()
        self._total, self.leaps = plan.warmup + plan.steps, 0
        self.made, self.leapfrogs = torch.zeros_like(state.chain), torch.zeros_like(state.chain)
        self.accepted = torch.zeros_like(self.step)
        self._averaging = None if plan.adapt is None else DualAveragingEach(self.step, plan.adapt, plan.warmup)
        if kept.draws is not None:
            self.diverging = torch.zeros(kept.draws.shape[:2], dtype=torch.bool, device=plan.device)
        trees, live, columns = Trees(state, sampler.max_depth), self.made < self._total, self._columns()
        trees.begin(live, columns)
        shown, look = 0, 1 if finds(live) else LOOK
        while True:
            done = trees.leap(columns, live)
            self.leaps += 1
            if done_rows := Rows(done):
                self._finish(trees, done_rows, kept)
                if self._averaging is not None:
                    columns = self._columns()
                live = self.made < self._total
                trees.begin(done, columns)
            if self.leaps % look:
                continue
            made = int(self.made.sum())
            self._progress(made // len(self.rows) - shown, self)
            shown = made // len(self.rows)
            if shown == self._total:
                break
        self.index += self._total
        self._thin_from += plan.warmup

    def _finish(self, trees: Trees, rows: Rows, kept: KeptDraws) -> None:
        """Count the transitions of these rows, which are done; adapt their steps, or keep their states."""
        plan, state, done = self.plan, self.state, rows.where
        acceptance, counts = trees.acceptance(), done & (self.made >= plan.warmup)
        self.made += done
        self.leapfrogs += torch.where(done, trees.leaps, 0)
        self.accepted += torch.where(counts, acceptance, 0.0)
        self.diverged += counts & trees.diverged
        self._diverged_now |= counts & trees.diverged
        state.draw += done * DRAWS_PER_ROW
        if self._averaging is not None:
            warm = done & ~counts
            self._averaging.update_where(warm, acceptance)
            step = torch.where(self.made < plan.warmup, self._averaging.step, self._averaging.final)
            self.step = torch.where(warm, step, self.step)
        since = self.made - plan.warmup + plan.counted
        values = {"x": state.x, "tree_depth": trees.depth, "leapfrogs": trees.leaps}
        if state.energy is not None:
            values["energies"] = state.energy
        keep, index = counts & (since % plan.thin == 0), since // plan.thin - plan.counted // plan.thin - 1
        kept_rows, index = Rows(keep), index.clamp(0, plan.kept - 1)
        kept.put_each(kept_rows, index, values)
        if self.diverging is not None and kept_rows:
            kept_rows.put(self.diverging, kept_rows.of(self._diverged_now), at=index)
            self._diverged_now &= ~keep

    def acceptance_so_far(self) -> float | None:
        """The mean over the transitions since the warm-up; None before the first."""
        count = int((self.made - self.plan.warmup).clamp(min=0).sum())
        return float(self.accepted.sum()) / count if count else None


def gradients_of(batches: Sequence[ChainBatch]) -> dict[str, int]:
    """What the report of a run by trees adds: leapfrog steps of all rows, and the gradients that were evaluated."""
    trees = [batch for batch in batches if isinstance(batch, TreeBatch)]
    if not trees:
        return {}
    made = sum(int(batch.leapfrogs.sum()) for batch in trees)
    return {"leapfrogs": made, "gradients": sum(batch.leaps * len(batch.rows) for batch in trees)}
