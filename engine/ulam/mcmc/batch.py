"""The chains of one batch from their start to their last step: by single steps, or by launches of whole chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

import ulam_kernels.mcmc as ops

from ..noise import DRAWS_PER_ROW, FIRST_STATE, FIRST_VELOCITY, ROW, SWAP
from ..samplers.markov.chain_sampler import BAOAB, HMC, ChainSampler, ParallelTempering, of_rows
from ..samplers.markov.chain_state import Columns, State
from .adaptation import DualAveraging
from .chains import Position
from .densities import BuiltIn
from .targets import Target

Progress = Callable[[int, "Batch"], None]  # steps done, of which batch

LAUNCH_ELEMENTS = 1 << 28  # element updates a launch at most: fractions of a second, so that progress shows


@dataclass(frozen=True, eq=False)
class Plan:
    """A run: what is sampled, how, and for how long.

    ``ids`` ``[chains]``; ``x_init``, ``v_init`` ``[chains, *shape]`` or None; ``first_step`` the number of its first
    step; ``position`` where an earlier run stopped that this one continues, or None.
    """

    target: Target
    sampler: ChainSampler
    tempering: ParallelTempering | None
    ids: torch.Tensor
    shape: tuple[int, ...]
    seed: int
    x_init: torch.Tensor | None
    v_init: torch.Tensor | None
    first_step: int
    position: Position | None
    warmup: int
    steps: int
    thin: int
    adapt: float | None
    launch: bool
    device: torch.device
    dtype: torch.dtype
    backend: str | None

    @property
    def counted(self) -> int:
        """Steps since the last warm-up that earlier runs made: thinning goes on from them."""
        return self.position.counted if self.position is not None and not self.warmup else 0

    @property
    def kept(self) -> int:
        """States that are kept: those after a multiple of ``thin`` steps since the last warm-up."""
        return (self.counted + self.steps) // self.thin - self.counted // self.thin

    @property
    def temperatures(self) -> torch.Tensor:
        """Of the replicas, float64 ``[K]``; [1] without tempering."""
        ladder = [1.0] if self.tempering is None else list(self.tempering.temperatures)
        return torch.tensor(ladder, dtype=torch.float64, device=self.device)


@dataclass(eq=False)
class Record:
    """Where a batch writes what it keeps, each [chains of the batch, ...] or None: see :class:`ulam.mcmc.Chains`."""

    draws: torch.Tensor | None
    energies: torch.Tensor | None
    moments: torch.Tensor | None

    def put(self, index: int, x: torch.Tensor, energy: torch.Tensor | None) -> None:
        """Keep the states x ``[B, *shape]`` as draw ``index``."""
        if self.draws is not None:
            self.draws[:, index] = x
        if self.energies is not None and energy is not None:
            self.energies[:, index] = energy
        if self.moments is not None:
            wide = x.double()
            self.moments[:, 0] += wide
            self.moments[:, 1].addcmul_(wide, wide)

    def of(self, begin: int, end: int) -> Record:
        """New tensors for the draws from ``begin`` to ``end``, contiguous; the moments are these."""
        parts = (None if t is None else torch.empty_like(t[:, begin:end]).contiguous() for t in self.written)
        return replace(self, **dict(zip(("draws", "energies"), parts, strict=True)))

    def take(self, begin: int, end: int, part: Record) -> None:
        """Copy what :meth:`of` gave, filled, to its place."""
        for ours, theirs in zip(self.written, part.written, strict=True):
            if ours is not None and theirs is not None:
                ours[:, begin:end] = theirs

    @property
    def written(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self.draws, self.energies


class Batch:
    """B chains (each with its K replicas, row b K + k) of a plan, at the given ``rows`` of it."""

    def __init__(self, plan: Plan, rows: torch.Tensor, progress: Progress) -> None:
        self.plan, self.sampler, self._progress = plan, plan.sampler, progress
        ladder = plan.temperatures
        self.replicas = K = len(ladder)
        rows = rows.to(plan.device)
        self.rows = rows.repeat_interleave(K)
        chains = len(plan.ids)
        self.temperature = of_rows("temperature", plan.sampler.temperature, self.rows, chains)
        self.step = of_rows("step", plan.sampler.step, self.rows, chains)
        if plan.tempering is not None:
            self.temperature = ladder.repeat(len(rows))
            if plan.tempering.scaled:
                timed = isinstance(plan.sampler, (BAOAB, HMC))
                self.step = self.step * (self.temperature.sqrt() if timed else self.temperature)
        self._given = self.step
        self.index = self._counted_from = plan.first_step  # of the next step; of the first that the counts below are of
        self._thin_from = self.index - plan.counted  # the step that thinning counts from
        self.accepted = torch.zeros(len(self.rows), dtype=torch.int64, device=plan.device)
        self.diverged = torch.zeros_like(self.accepted)
        self.swapped = torch.zeros(len(rows), K - 1, dtype=torch.int64, device=plan.device)
        self.swap_attempts = [0, 0]
        self.state = self._start(rows)
        if plan.position is not None:
            self._take(plan.position, rows)
        self._count_leaps()

    def _start(self, rows: torch.Tensor) -> State:
        plan, K = self.plan, self.replicas
        ids = (plan.ids.to(plan.device)[rows].repeat_interleave(K) * K).view(-1, K)
        ids = (ids + torch.arange(K, device=plan.device)).flatten()
        if plan.x_init is None:
            x = torch.empty(len(ids), *plan.shape, dtype=plan.dtype, device=plan.device)
        else:
            x = plan.x_init[rows.to(plan.x_init.device)].to(plan.device, plan.dtype).repeat_interleave(K, 0)
        evaluate = plan.target.bind(x, self.rows, len(plan.ids), plan.backend)
        seed, draw = torch.full_like(ids, plan.seed), torch.full_like(ids, ROW.draw(plan.first_step))
        state = State(x.contiguous(), evaluate, seed, ids, draw, self.sampler.scale(x), plan.backend)
        if plan.x_init is None and plan.position is None:
            state.x.copy_(state.normals(FIRST_STATE))
        if self.sampler.moves:
            if plan.v_init is None:
                v, temperature = state.normals(FIRST_VELOCITY), self.temperature
            else:  # of the first temperature
                v = plan.v_init[rows.to(plan.v_init.device)].to(plan.device, plan.dtype).repeat_interleave(K, 0)
                temperature = torch.ones_like(self.temperature)
                if K > 1:
                    temperature = self.temperature / self.temperature[::K].repeat_interleave(K)
            state.v = v * temperature.sqrt().to(plan.dtype).view(-1, *[1] * len(plan.shape))
        return state

    def _take(self, position: Position, rows: torch.Tensor) -> None:
        """Go on where an earlier run stopped: its states, velocities and steps."""
        grid = torch.arange(self.replicas, device=rows.device)
        at = (rows[:, None] * self.replicas + grid).flatten()
        self.state.x.copy_(position.x.to(at.device)[at])
        self.step = position.step.to(at.device)[at]
        if position.v is not None:
            self.state.v = position.v.to(at.device)[at]

    def _count_leaps(self) -> None:
        """Tell the state how many leapfrog steps each chain takes at its step."""
        counts = self.sampler.leap_counts(self._given, self.step)
        if counts is not None:
            found = sorted(set(counts.tolist()))
            self.state.ends = {count: None if len(found) == 1 else counts == count for count in found}

    # -------------------------------------------------------------------------------------------- a run

    def run(self, record: Record) -> None:
        """Warm up, adapting the steps if the plan says so; then all steps of the plan, keeping every thin-th state."""
        plan = self.plan
        self.state.look(plan.target.has_energy)
        if plan.position is None or self.sampler.adjusted or plan.tempering is not None:
            self._check_start()
        if plan.adapt is not None:
            self._adapt(plan.warmup)
        else:
            self._advance(plan.warmup, None)
        if plan.warmup:
            self._thin_from = self.index
        for counts in (self.accepted, self.diverged, self.swapped):
            counts.zero_()
        self.swap_attempts, self._counted_from = [0, 0], self.index
        self._advance(plan.steps, record)

    def _check_start(self) -> None:
        state = self.state
        finite = torch.isfinite(state.score.flatten(1)).all(1)
        if state.energy is not None:
            finite &= torch.isfinite(state.energy)
        if not bool(finite.all()):
            bad = (~finite).nonzero()[:, 0]
            stopped = {int(chain) // self.replicas for chain in state.chain[bad]}
            chain, more = int(state.chain[bad[0]]) // self.replicas, len(stopped) - 1
            what = "score" if state.energy is None or bool(torch.isfinite(state.energy[bad[0]])) else "energy"
            others = f" (and of {more} others)" if more else ""
            if self.plan.position is not None:
                raise ValueError(
                    f"resume: got a run whose {what} is not finite at chain {chain}{others}, expected one that did not "
                    "diverge: begin anew with a smaller step, or with x_init= in place of resume="
                )
            raise ValueError(
                f"target: the {what} is not finite at the start of chain {chain}{others}; "
                "check it, or give x_init where it is finite"
            )

    def _adapt(self, steps: int) -> None:
        assert self.plan.adapt is not None
        averaging = DualAveraging(self.step, self.plan.adapt)
        for _ in range(steps):
            self.step = averaging.step
            self._count_leaps()
            log_ratio = self._transition(self._columns(), energy=True)
            assert log_ratio is not None
            averaging.update(log_ratio)
            self._swap_if_due()
        self.step = averaging.final
        self._count_leaps()

    def _advance(self, steps: int, record: Record | None) -> None:
        if not steps:
            return
        if not self.launches:
            self._by_steps(steps, record)
        elif self.plan.tempering is None:
            self._by_launches(steps, record)
        else:
            self._by_short_launches(steps, record)

    def _until_kept(self) -> int:
        """Steps from here to the next state that is kept, at least 1."""
        return self.plan.thin - (self.index - self._thin_from) % self.plan.thin

    def _kept(self) -> int:
        """States kept by now."""
        first = (self._counted_from - self._thin_from) // self.plan.thin
        return (self.index - self._thin_from) // self.plan.thin - first

    # -------------------------------------------------------------------------------------------- step by step

    def _by_steps(self, steps: int, record: Record | None) -> None:
        columns = self._columns()
        for _ in range(steps):
            if self.sampler.kernel is None:
                columns = self._columns()
            keep = record is not None and self._until_kept() == 1
            self._transition(columns, energy=keep or self._swap_due(self.index + 1))
            self._swap_if_due()
            if keep and record is not None:
                self._keep(record)

    def _transition(self, columns: Columns, energy: bool) -> torch.Tensor | None:
        state = self.state
        state.record = energy and self.plan.target.has_energy
        log_ratio = self.sampler.transition(state, columns)
        state.advance()
        self.index += 1
        if log_ratio is not None:
            assert state.accepted is not None
            self.accepted += state.accepted
            self.diverged += ~(log_ratio >= ops.DIVERGED)
        self._progress(1, self)
        return log_ratio

    def _columns(self) -> Columns:
        made = self.sampler.coefficients(self.step, self.temperature, self.rows, self.index)
        a, b, c, d = (column.to(self.plan.dtype).contiguous() for column in made)
        return a, b, c, d

    def _keep(self, record: Record) -> None:
        K, state, index = self.replicas, self.state, self._kept() - 1
        energy = state.energy
        if K == 1:
            record.put(index, state.x, energy)
        else:
            record.put(index, state.x[::K], None if energy is None else energy[::K])

    # -------------------------------------------------------------------------------------------- whole chains

    def _by_launches(self, steps: int, record: Record | None) -> None:
        thin = self.plan.thin
        chunk = max(LAUNCH_ELEMENTS // max(self.state.x.numel() * self.sampler.leaps, 1), 1)
        chunk, end = max(chunk // thin, 1) * thin, self.index + steps
        while self.index < end:
            count = min(chunk, end - self.index)
            if record is None:
                self._launch(count, None)
                continue
            every = self._until_kept()  # less than thin where an earlier run stopped between two states that are kept
            if every < thin:
                count = min(every, count)
            kept = self._kept(), self._kept() + count // every
            if kept == (0, self.plan.kept):
                self._launch(count, record, every)
            elif kept[0] == kept[1]:
                self._launch(count, None)
            else:
                part = record.of(*kept)
                self._launch(count, part, every)
                record.take(*kept, part)

    def _by_short_launches(self, steps: int, record: Record | None) -> None:
        """Launches that end where replicas swap or a state is kept."""
        tempering, end, columns = self.plan.tempering, self.index + steps, self._columns()
        while self.index < end:
            counts = [end - self.index]
            if tempering is not None:
                counts.append(tempering.swap_every - self.index % tempering.swap_every)
            if record is not None:
                counts.append(self._until_kept())
            self._launch(min(counts), None, columns=columns)
            keep = record is not None and self._until_kept() == self.plan.thin
            if keep or self._swap_due(self.index):
                self.state.look(True)
            self._swap_if_due()
            if keep and record is not None:
                self._keep(record)

    def _launch(self, steps: int, record: Record | None, thin: int = 1, columns: Columns | None = None) -> None:
        plan, state, target = self.plan, self.state, self.plan.target
        assert isinstance(target, BuiltIn) and target.kernel is not None and self.sampler.kernel is not None
        lo, hi = self.sampler.bounds
        keep = record is not None
        leapfrog, coef = next(iter(state.ends), self.sampler.leaps), torch.stack(columns or self._columns(), 1)
        ops.run(
            target.kernel, state.x, self.sampler.kernel, coef, steps, **state.ids(),
            v=state.v, leapfrog=leapfrog, scale=state.scale, lo=lo, hi=hi, thin=thin,
            draws=record.draws if record and keep else None, energies=record.energies if record and keep else None,
            moments=record.moments if record and keep else None,
            accepted=self.accepted if self.sampler.adjusted else None,
            diverged=self.diverged if self.sampler.adjusted else None, backend=plan.backend,
        )  # fmt: skip
        state.advance(steps)
        self.index += steps
        self._progress(steps, self)

    # -------------------------------------------------------------------------------------------- tempering

    def _swap_due(self, index: int) -> bool:
        return self.plan.tempering is not None and index % self.plan.tempering.swap_every == 0

    def _swap_if_due(self) -> None:
        """Swap neighbouring replicas, the even pairs and the odd ones in turn [Geyer 1991]."""
        if not self._swap_due(self.index):
            return
        state, K, energy = self.state, self.replicas, self.state.energy
        assert self.plan.tempering is not None and energy is not None
        odd = self.index // self.plan.tempering.swap_every % 2
        self.swap_attempts[odd] += 1
        low = torch.arange(odd, K - 1, 2, device=state.x.device)
        if not len(low):
            return
        grid = torch.arange(len(state.x), device=state.x.device).view(-1, K)
        first, second = grid[:, low].flatten(), grid[:, low + 1].flatten()
        beta = 1 / self.temperature
        log_ratio = (beta[first] - beta[second]) * (energy[first] - energy[second])
        # The uniform is of the lower replica, and of the step before, which was the last one.
        draw = state.draw[first] - DRAWS_PER_ROW + SWAP.stage
        swap = ops.accept(
            log_ratio, [], seed=state.seed[first], chain=state.chain[first], draw=draw, backend=self.plan.backend
        )
        order = grid.flatten().clone()
        order[first], order[second] = torch.where(swap, second, first), torch.where(swap, first, second)
        state.x, state.score, state.energy = state.x[order], state.score[order], energy[order]
        if state.v is not None:
            state.v = state.v[order] * self._velocity_ratio(order)
        self.swapped[:, low] += swap.view(-1, len(low))

    def _velocity_ratio(self, order: torch.Tensor) -> torch.Tensor:
        """A velocity that changes its temperature is scaled by the square root of the ratio."""
        ratio = (self.temperature / self.temperature[order]).sqrt().to(self.plan.dtype)
        return ratio.view(-1, *[1] * len(self.plan.shape))

    # -------------------------------------------------------------------------------------------- results

    @property
    def launches(self) -> bool:
        """Whether whole chains run in one launch."""
        target = self.plan.target
        compiled = isinstance(target, BuiltIn) and target.kernel is not None and self.sampler.kernel is not None
        return self.plan.launch and compiled and len(self.state.ends) <= 1  # chains of one launch leap alike

    @property
    def counted(self) -> int:
        """Steps since the last warm-up, those of earlier runs included."""
        return self.index - self._thin_from

    def acceptance_so_far(self) -> float | None:
        """The mean over chains since the warm-up, or within it; None before the first step."""
        steps = self.index - self._counted_from
        return float(self.accepted[:: self.replicas].double().mean()) / steps if steps else None

    def divergences(self) -> torch.Tensor:
        """See :class:`ulam.mcmc.Chains`: ``[B]`` of the first temperature."""
        if not self.sampler.adjusted:
            return (~torch.isfinite(self.state.x.flatten(1)).all(1)).long()[:: self.replicas]
        return self.diverged[:: self.replicas]

    @property
    def given(self) -> torch.Tensor:
        """The steps of the first temperature before adaptation, ``[B]``."""
        return self._given[:: self.replicas]

    def energies(self) -> torch.Tensor | None:
        """Those that Metropolis tests compared last, ``[B]`` of all replicas; None without, or where they are sums in
        float64."""
        target = self.plan.target
        exact = isinstance(target, BuiltIn) and target.kernel is not None
        return None if exact or not (self.sampler.adjusted or self.plan.tempering) else self.state.energy

    def swap_rates(self) -> torch.Tensor | None:
        """``[B, K - 1]``, None without tempering."""
        if self.plan.tempering is None:
            return None
        attempts = [max(self.swap_attempts[k % 2], 1) for k in range(self.replicas - 1)]
        return self.swapped.double() / torch.tensor(attempts, device=self.plan.device)
