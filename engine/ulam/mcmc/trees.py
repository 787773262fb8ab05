"""The chains of one batch whose transitions are trees: each at its own place in its own tree, all in one leap."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..noise import DRAWS_PER_ROW
from ..samplers.mcmc.chain_state import Evaluate
from ..samplers.mcmc.fused_trees import FusedTrees, bound_trees
from ..samplers.mcmc.nuts import NUTS, Trees
from ..samplers.mcmc.rows import Rows, finds
from .batch import ChainBatch, Take
from .densities import BuiltIn
from .kept import KeptDraws
from .live_rows import LiveRows

LOOK = 8  # leaps from one look at a device to the next, for whether all chains are done
LAUNCH_WORK = 1 << 23  # the most transitions times chains times elements of one launch: about a second


class TreeBatch(ChainBatch):
    """B chains of NUTS, each of which begins its next transition once its tree is done; see :class:`ChainBatch`.

    A warm-up that adapts goes leaf by leaf, and here. After it native trees, where there are any, count and keep
    transitions themselves: leaf by leaf, or for built-in densities as whole chains in one launch. Leaf by leaf, chains
    that are done, of the run or of a window of a warm-up, are left out of the evaluations while others go on: see
    :class:`LiveRows`. Batches of a given size stay whole, so that every target has its bits of that size.

    Attributes:
        made: ``[B]`` int64, transitions so far, the warm-up's included.
        accepted: ``[B]`` float64, the sum of the mean acceptance of each transition since the warm-up.
        leapfrogs: ``[B]`` int64, leapfrog steps of the run, its warm-up included.
        leaps: of the batch. evaluations: ``[B]`` int64, of scores in them, those of idle rows included.
        launched: leapfrog steps in launches, one score each.
        at: the target, evaluated at rows that are at work.
        take: called with the acceptance of transitions that are done, see :meth:`ChainBatch.warm`, or None.
    """

    def begin(self) -> None:
        super().begin()
        self.made, self.leapfrogs = torch.zeros_like(self.state.chain), torch.zeros_like(self.state.chain)
        self.accepted, self.evaluations = torch.zeros_like(self.step), torch.zeros_like(self.made)
        self.leaps, self.launched, self._goal, self._shown = 0, 0, 0, 0
        self.take: Take | None = None

    def _bound(self, x: torch.Tensor) -> Evaluate:
        target, rows, chains, backend = self.plan.target, self.rows, len(self.plan.ids), self.plan.backend
        again = getattr(target, "rebind", target.bind)
        everywhere = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        self.at = LiveRows(super()._bound(x), lambda some, at: again(some, rows[at], chains, backend), everywhere)
        return self.at

    def advance_unkept(self) -> None:
        """Nothing: a chain goes on into the run when its own warm-up is over."""

    def warm(self, steps: int, take: Take) -> None:
        self.take = take
        self._grow(self._trees(), None, self._goal + steps)
        self.take = None

    def run(self, kept: KeptDraws) -> None:
        """Make all steps, and those of the warm-up that are not made yet, as :meth:`ChainBatch.run`."""
        plan, trees, kept.coordinates = self.plan, self._trees(), self.coordinates
        if self.take is not None and isinstance(trees, FusedTrees):  # chains that adapt alone: native trees do not
            self.warm(plan.warmup, self.take)
            trees = self._trees()
        if kept.each:
            self.diverging = self._no_divergence()
        total = plan.warmup + plan.steps
        sums = self.coordinates is not None and not kept.each  # of states that native trees do not place
        if not isinstance(trees, FusedTrees) or plan.looks or sums:
            self._grow(trees, kept, total)
        elif self.launches:
            self._launch_trees(trees, kept, total)
        else:
            self._grow_recorded(trees, kept, total)
            kept.place()
        self.index += total
        self._thin_from += plan.warmup

    def _trees(self) -> Trees | FusedTrees:
        assert isinstance(self.sampler, NUTS)
        return self.sampler.trees(self.state)

    @property
    def launches(self) -> bool:
        """Whether whole chains run in one launch."""
        target = self.plan.target
        compiled = isinstance(target, BuiltIn) and target.kernel is not None
        plain = not self.plan.looks and self.coordinates is None
        return self.plan.launch and compiled and plain and bound_trees(self.state) is not None

    # ------------------------------------------------------------------------------- leaf by leaf, looked at from here

    def _grow(self, trees: Trees | FusedTrees, kept: KeptDraws | None, goal: int) -> None:
        """Leap until every chain has made ``goal`` transitions."""
        live, columns = self.made < goal, self._columns()
        trees.begin(live, columns)
        self._goal, look = goal, 1 if finds(live) else LOOK
        while True:
            done = trees.leap(columns, live)
            self._count_leap()
            if done_rows := Rows(done):
                self._finish(trees, done_rows, kept)
                if self.take is not None:
                    columns = self._columns()
                live = self.made < goal
                trees.begin(done, columns)
            if self.leaps % look == 0 and not self._look(live):
                break
        self.at.widen()

    def _count_leap(self) -> None:
        self.leaps += 1
        self.evaluations += self.at.evaluated

    def _look(self, live: torch.Tensor) -> int:
        """Tell the progress, and leave rows out that are done; how many are ``live`` ``[B]`` bool."""
        made, going = torch.stack([self.made.sum(), live.sum()]).tolist()
        self._progress(made // len(self.rows) - self._shown, self)
        self._shown = made // len(self.rows)
        if self.plan.slots is None:
            self.at.narrow(live, going)
        return int(going)

    def _finish(self, trees: Trees | FusedTrees, rows: Rows, kept: KeptDraws | None) -> None:
        """Count the transitions of these rows, which are done; adapt their steps, or keep their states."""
        plan, state, done = self.plan, self.state, rows.where
        acceptance, counts = trees.acceptance(), done & (self.made >= plan.warmup)
        self.made += done
        self.leapfrogs += torch.where(done, trees.leaps, 0)
        self.accepted += torch.where(counts, acceptance, 0.0)
        self.diverged += counts & trees.diverged
        self.diverged_now |= counts & trees.diverged
        state.draw += done * DRAWS_PER_ROW
        if self.take is not None:
            self.take(acceptance, done)
        if kept is None:
            return
        since = self.made - plan.warmup + plan.counted
        values = {"x": state.x, "tree_depth": trees.depth, "leapfrogs": trees.leaps}
        if state.energy is not None:
            values["energies"] = state.energy
        keep, index = counts & (since % plan.thin == 0), since // plan.thin - plan.counted // plan.thin - 1
        kept_rows, index = Rows(keep), index.clamp(0, plan.kept - 1)
        kept.put_each(kept_rows, index, values)
        if self.diverging is not None and kept_rows:
            kept_rows.put(self.diverging, kept_rows.of(self.diverged_now), at=index)
            self.diverged_now &= ~keep

    # ------------------------------------------------------------------------------------ counted and kept by the trees

    def _grow_recorded(self, trees: FusedTrees, kept: KeptDraws, total: int) -> None:
        """All transitions that are left, leaf by leaf."""
        columns, record = self._columns(), self._record(trees, kept, total)
        trees.rest(self.made < total, columns, record)
        while self._look(trees.live):
            trees.go_on(columns, record)
            self._count_leap()
        self.at.widen()

    def _launch_trees(self, trees: FusedTrees, kept: KeptDraws, total: int) -> None:
        """All transitions that are left, as whole chains, in launches of about a second."""
        target, columns, before = self.plan.target, self._columns(), int(self.leapfrogs.sum())
        assert isinstance(target, BuiltIn) and target.kernel is not None
        chunk = max(LAUNCH_WORK // self.state.x.numel(), 1)
        for limit in range(self._shown + chunk, total + chunk, chunk):
            limit = min(limit, total)
            trees.run(target.kernel, self.made < limit, columns, self._record(trees, kept, limit))
            self._look(trees.live)
        self.launched += int(self.leapfrogs.sum()) - before

    def _record(self, trees: FusedTrees, kept: KeptDraws, limit: int) -> tuple[int, ...]:
        plan = self.plan
        outputs = kept.draws, kept.energies, kept.moments, kept.tree_depth, kept.leapfrogs, self.diverging
        counts = self.diverged_now, self.accepted, self.diverged, self.leapfrogs
        return trees.bound.record(
            self.made, limit, plan.warmup, plan.thin, plan.counted, plan.kept, [*outputs, *counts]
        )

    def acceptance_so_far(self) -> float | None:
        """The mean over the transitions since the warm-up; None before the first."""
        count = int((self.made - self.plan.warmup).clamp(min=0).sum())
        return float(self.accepted.sum()) / count if count else None


def gradients_of(batches: Sequence[ChainBatch]) -> dict[str, int]:
    """What the report of a run by trees adds: leapfrog steps of all rows, and the gradients that were evaluated."""
    trees = [batch for batch in batches if isinstance(batch, TreeBatch)]
    if not trees:
        return {}
    return {
        "leapfrogs": sum(int(batch.leapfrogs.sum()) for batch in trees),
        "gradients": sum(int(batch.evaluations.sum()) + batch.launched for batch in trees),
    }
