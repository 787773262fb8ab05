"""The chains of one batch from their first step to their last: by single steps, or by launches of whole chains."""

from __future__ import annotations

from collections.abc import Callable

import torch

import ulam_kernels.mcmc as ops

from ..memory import room_for
from ..noise import FIRST_STATE, FIRST_VELOCITY, ROW
from ..samplers.mcmc.chain_sampler import ChainSampler, select_rows
from ..samplers.mcmc.chain_state import ChainState, Columns, Evaluate
from ..samplers.mcmc.low_rank import moved
from .chains import Position
from .densities import BuiltIn
from .kept import KeptDraws
from .models.minibatch import DrawnScore
from .plan import RunPlan
from .start import check_start
from .tempering import Replicas

Progress = Callable[[int, "ChainBatch"], None]  # steps done, of which batch
Take = Callable[[torch.Tensor, "torch.Tensor | None"], None]  # see :meth:`ChainBatch.warm`

LAUNCH_ELEMENTS = 1 << 28  # the most element updates of one launch: a second or so (MAMS: a few), for progress


class ChainBatch:
    """B chains of a plan, those in its ``rows`` ``[B]``, each with its K replicas in rows b K + k.

    Attributes:
        step, temperature: ``[B K]`` float64. index: the number of the next step.
        accepted, diverged: ``[B K]`` int64, counts since the warm-up.
        diverging: ``[B, kept]`` bool, see :class:`ulam.mcmc.Chains`, or None.
        diverged_now: ``[B K]`` bool, whether a proposal diverged since the last draw.
    """

    def __init__(self, plan: RunPlan, rows: torch.Tensor, progress: Progress) -> None:
        self.plan, self.sampler, self._progress = plan, plan.sampler, progress
        rows, chains = rows.to(plan.device), len(plan.ids)
        self.replicas = Replicas(plan.tempering, len(rows), plan.device)
        self.rows = rows.repeat_interleave(self.replicas.count)
        temperature = select_rows("temperature", plan.sampler.temperature, self.rows, chains)
        assert plan.sampler.step is not None
        step = select_rows("step", plan.sampler.step, self.rows, chains)
        self.step, self.temperature = self.replicas.heated(plan.sampler, step, temperature)
        self._given = self.step
        self.index = self._counted_from = plan.first_step  # of the next step; the first step that counts
        self._thin_from = self.index - plan.counted  # the step that thinning counts from
        self.accepted = torch.zeros(len(self.rows), dtype=torch.int64, device=plan.device)
        self.diverged = torch.zeros_like(self.accepted)
        self.diverging: torch.Tensor | None = None
        self.diverged_now = torch.zeros(len(self.rows), dtype=torch.bool, device=plan.device)
        self.state = self._start(rows)
        if plan.position is not None:
            self._continue_from(plan.position, rows)
        self._count_leaps()

    def _start(self, rows: torch.Tensor) -> ChainState:
        """The chains where they start, their energy and score not yet evaluated."""
        plan, K = self.plan, self.replicas.count
        ids = self.replicas.rows(plan.ids.to(plan.device)[rows])  # replica k of chain c draws the noise of c K + k
        if plan.x_init is None:
            with room_for(f"chains: got {len(ids)} of {list(plan.shape)} in a batch, expected what fits into memory"):
                x = torch.empty(len(ids), *plan.shape, dtype=plan.dtype, device=plan.device)
        else:
            x = plan.x_init[rows.to(plan.x_init.device)].to(plan.device, plan.dtype).repeat_interleave(K, 0)
        evaluate = self._bound(x)
        seed, draw = torch.full_like(ids, plan.seed), torch.full_like(ids, ROW.draw(plan.first_step))
        self.coordinates = self.sampler.coordinates(x)
        scale = self.sampler.scale(x) if self.coordinates is None else None
        state = ChainState(x.contiguous(), evaluate, seed, ids, draw, scale, plan.backend)
        if isinstance(evaluate, DrawnScore):
            evaluate.state = state
        if plan.x_init is None and plan.position is None:
            state.x.copy_(state.normals(FIRST_STATE))
        if (center := self.sampler.center(x)) is not None:
            state.hold(center)
        self._evaluate = state.evaluate
        if self.coordinates is not None:
            state.x.copy_(self.coordinates.back(state.x))
            state.evaluate = moved(self._evaluate, self.coordinates)
        if self.sampler.has_velocity:
            if plan.v_init is None:
                v, temperature = state.normals(FIRST_VELOCITY), self.temperature
            else:  # of the first temperature
                v = plan.v_init[rows.to(plan.v_init.device)].to(plan.device, plan.dtype).repeat_interleave(K, 0)
                temperature = torch.ones_like(self.temperature)
                if K > 1:
                    temperature = self.temperature / self.temperature[::K].repeat_interleave(K)
            state.v = state.without_center(self.sampler.at_temperature(v, temperature))
        return state

    def _bound(self, x: torch.Tensor) -> Evaluate:
        """The target bound to all chains; x is like their states."""
        return self.plan.target.bind(x, self.rows, len(self.plan.ids), self.plan.backend)

    def _continue_from(self, position: Position, rows: torch.Tensor) -> None:
        """Take over the states, velocities and steps that an earlier run stopped with."""
        at = self.replicas.rows(rows)
        self.state.x.copy_(position.x.to(at.device)[at])
        self.step = position.step.to(at.device)[at]
        if position.v is not None:
            self.state.v = position.v.to(at.device)[at]
        if position.diverged is not None and not self.plan.warmup:
            self.diverged_now = position.diverged.to(at.device)[at]

    def _count_leaps(self) -> None:
        """Note in the state how many leapfrog steps each chain takes at its step size."""
        counts = self.sampler.leap_counts(self._given, self.step)
        if counts is not None:
            found = sorted(set(counts.tolist()))
            self.state.ends = {count: None if len(found) == 1 else counts == count for count in found}

    # -------------------------------------------------------------------------------------------- warm-up

    def advance_unkept(self) -> None:
        """The warm-up where nothing is adapted."""
        self._advance(self.plan.warmup, None)

    def warm(self, steps: int, take: Take) -> None:
        """Make so many steps of each chain, calling ``take(probability, done)`` after each.

        probability: of acceptance ``[B K]`` float64. done: which chains it is of, or None: of all.
        """
        for _ in range(steps):
            log_ratio = self._transition(self._columns(), energy=True)
            assert log_ratio is not None
            take(log_ratio.clamp(max=0).exp().nan_to_num(0.0), None)
            self._swap_if_due()

    def change_step(self, step: torch.Tensor) -> None:
        """Go on with these step sizes ``[B K]``, on paths as long as before."""
        self.step = step
        self._count_leaps()

    def begin_at(self, step: torch.Tensor) -> None:
        """Go on as if these step sizes ``[B K]`` had been given."""
        self._given = step
        self.change_step(step)

    def adopt(self, sampler: ChainSampler) -> None:
        """Go on with the settings of another sampler of the same class.

        Where it brings other coordinates the chains move there, and energies and scores are to be evaluated anew.
        """
        assert sampler.step is not None
        state, other = self.state, sampler.preconditioner is not self.sampler.preconditioner
        coordinates = sampler.coordinates(state.x) if other else self.coordinates
        if coordinates is not self.coordinates:
            x = self.placed(state.x)
            state.x.copy_(x if coordinates is None else coordinates.back(x))
            state.evaluate = self._evaluate if coordinates is None else moved(self._evaluate, coordinates)
        self.sampler, self.coordinates = sampler, coordinates
        state.scale = sampler.scale(state.x) if coordinates is None else None
        self.begin_at(select_rows("step", sampler.step, self.rows))

    def placed(self, states: torch.Tensor) -> torch.Tensor:
        """x of the coordinates that the chains move in, both ``[N, *shape]``."""
        return states if self.coordinates is None else self.coordinates.place(states).to(states.dtype)

    # -------------------------------------------------------------------------------------------- a run

    def begin(self) -> None:
        """Evaluate where the chains start.

        Raises ValueError for an energy or a score that is not finite there.
        """
        plan = self.plan
        self.state.evaluate_here(plan.target.has_energy)
        if plan.position is None or self.sampler.adjusted or plan.tempering is not None:
            check_start(self.state, self.replicas.count, resumed=plan.position is not None)

    def run(self, kept: KeptDraws) -> None:
        """After the warm-up make all steps of the plan, keeping every thin-th state."""
        plan, kept.coordinates = self.plan, self.coordinates
        if plan.warmup:
            self._thin_from = self.index
            self.diverged_now.zero_()
        for counts in (self.accepted, self.diverged):
            counts.zero_()
        self.replicas.forget()
        self._counted_from = self.index
        self._advance(plan.steps, kept)

    def _advance(self, steps: int, kept: KeptDraws | None) -> None:
        if not steps:
            return
        if not self.launches:
            self._by_steps(steps, kept)
        elif self.plan.tempering is None and (kept is None or not self.plan.looks):
            self._by_launches(steps, kept)
        else:
            self._by_short_launches(steps, kept)

    def _swap_if_due(self) -> None:
        if self.replicas.swap_due(self.index):
            self.replicas.swap(self.state, self.temperature, self.index)

    def _until_kept(self) -> int:
        """Steps from here to the next state that is kept, at least 1."""
        return self.plan.thin - (self.index - self._thin_from) % self.plan.thin

    def _kept_so_far(self) -> int:
        """How many states are kept by now."""
        first = (self._counted_from - self._thin_from) // self.plan.thin
        return (self.index - self._thin_from) // self.plan.thin - first

    # -------------------------------------------------------------------------------------------- step by step

    def _by_steps(self, steps: int, kept: KeptDraws | None) -> None:
        columns = self._columns()
        if kept is not None and kept.each and self.sampler.adjusted:
            self.diverging = self._no_divergence()
        for _ in range(steps):
            if self.sampler.kernel is None:
                columns = self._columns()
            keep = kept is not None and self._until_kept() == 1
            self._transition(columns, energy=keep or self.replicas.swap_due(self.index + 1))
            self._swap_if_due()
            if keep and kept is not None:
                self._keep(kept)

    def _transition(self, columns: Columns, energy: bool) -> torch.Tensor | None:
        state = self.state
        state.wants_energy = energy and self.plan.target.has_energy
        log_ratio = self.sampler.transition(state, columns)
        state.advance()
        self.index += 1
        if log_ratio is not None:
            assert state.accepted is not None
            self.accepted += state.accepted
            diverged = ~(log_ratio >= ops.DIVERGED)
            self.diverged += diverged
            self.diverged_now |= diverged
        self._progress(1, self)
        return log_ratio

    def _columns(self) -> Columns:
        return self.columns(self.sampler, self.step)

    def columns(self, sampler: ChainSampler, step: torch.Tensor) -> Columns:
        """A sampler's coefficients of the next step, of sizes ``step`` ``[B K]``, in the dtype of the states."""
        made = sampler.coefficients(step, self.temperature, self.rows, self.index)
        a, b, c, d = (column.to(self.plan.dtype).contiguous() for column in made)
        return a, b, c, d

    def _keep(self, kept: KeptDraws) -> None:
        """Keep the states at the first temperature."""
        state, index = self.state, self._kept_so_far() - 1
        if self.diverging is not None:
            self.diverging[:, index] = self._coldest(self.diverged_now)
            self.diverged_now.zero_()
        kept.put(index, self._coldest(state.x), None if state.energy is None else self._coldest(state.energy))
        if self.plan.record and state.v is not None:
            kept.put_velocities(index, self._coldest(state.v), state)

    def room(self, store: bool) -> KeptDraws:
        """Room for what the run keeps of these chains. Raises TypeError or ValueError for unfit observables."""
        K = self.replicas.count
        x = self.placed(self._coldest(self.state.x))
        return KeptDraws.empty(self.plan, x, self._coldest(self.state.chain) // K, store)

    def _no_divergence(self) -> torch.Tensor:
        """``diverging`` before the first step."""
        return torch.zeros(
            len(self.rows) // self.replicas.count, self.plan.kept, dtype=torch.bool, device=self.plan.device
        )

    # -------------------------------------------------------------------------------------------- whole chains

    def _by_launches(self, steps: int, kept: KeptDraws | None) -> None:
        thin = self.plan.thin
        chunk, end = max(self._most_steps // thin, 1) * thin, self.index + steps
        while self.index < end:
            count = min(chunk, end - self.index)
            if kept is None:
                self._launch(count, None)
                continue
            every = self._until_kept()  # less than thin where an earlier run stopped between two states that are kept
            if every < thin:
                count = min(every, count)
            draws = self._kept_so_far(), self._kept_so_far() + count // every
            if draws == (0, self.plan.kept):
                self._launch(count, kept, every)
            elif draws[0] == draws[1]:
                self._launch(count, None)
            else:
                part = kept.split(*draws)
                self._launch(count, part, every)
                kept.join(*draws, part)

    def _by_short_launches(self, steps: int, kept: KeptDraws | None) -> None:
        """Launches that end where replicas swap, or where a state is kept and looked at."""
        end, columns = self.index + steps, self._columns()
        while self.index < end:
            counts = [end - self.index, self._most_steps]
            if self.plan.tempering is not None:
                counts.append(self.replicas.until_swap(self.index))
            if kept is not None:
                counts.append(self._until_kept())
            self._launch(min(counts), None, columns=columns)
            keep = kept is not None and self._until_kept() == self.plan.thin
            if keep or self.replicas.swap_due(self.index):
                self.state.evaluate_here(True)
            self._swap_if_due()
            if keep and kept is not None:
                self._keep(kept)

    @property
    def _most_steps(self) -> int:
        """Steps of the longest launch."""
        return max(LAUNCH_ELEMENTS // max(self.state.x.numel() * self.sampler.leaps, 1), 1)

    def _launch(self, steps: int, kept: KeptDraws | None, thin: int = 1, columns: Columns | None = None) -> None:
        plan, state, target = self.plan, self.state, self.plan.target
        assert isinstance(target, BuiltIn) and target.kernel is not None and self.sampler.kernel is not None
        lo, hi = self.sampler.bounds
        leapfrog, coef = next(iter(state.ends), self.sampler.leaps), torch.stack(columns or self._columns(), 1)
        ops.run(
            target.kernel, state.x, self.sampler.kernel, coef, steps, **state.ids(),
            v=state.v, leapfrog=leapfrog, scale=state.scale, lo=lo, hi=hi, thin=thin,
            draws=kept.draws if kept else None, energies=kept.energies if kept else None,
            moments=kept.moments if kept else None,
            accepted=self.accepted if self.sampler.adjusted else None,
            diverged=self.diverged if self.sampler.adjusted else None, backend=plan.backend,
        )  # fmt: skip
        state.advance(steps)
        self.index += steps
        self._progress(steps, self)

    # -------------------------------------------------------------------------------------------- results

    @property
    def launches(self) -> bool:
        """Whether whole chains run in one launch."""
        target = self.plan.target
        compiled = isinstance(target, BuiltIn) and target.kernel is not None
        alike = len(self.state.ends) <= 1  # chains of one launch leap alike
        plain = self.state.center is None and self.coordinates is None
        return self.plan.launch and compiled and alike and plain and self._has_kernel

    @property
    def _has_kernel(self) -> bool:
        """Whether the backend has launches of the sampler's chains."""
        name, x = self.sampler.kernel, self.state.x
        return name is not None and ops.launches(name, x, self.plan.backend)

    @property
    def counted(self) -> int:
        """Steps since the last warm-up, those of earlier runs included."""
        return self.index - self._thin_from

    def acceptance_so_far(self) -> float | None:
        """The mean over chains since the warm-up, or within it; None before the first step."""
        steps = self.index - self._counted_from
        return float(self._coldest(self.accepted).double().mean()) / steps if steps else None

    def acceptance(self) -> torch.Tensor | None:
        """The share of accepted proposals after the warm-up, ``[B]`` float64; None without a Metropolis test."""
        return self._coldest(self.accepted).double() / self.plan.steps if self.sampler.adjusted else None

    def divergences(self) -> torch.Tensor:
        """``[B]`` int64, see :class:`ulam.mcmc.Chains`."""
        if not self.sampler.adjusted:
            return self._coldest((~torch.isfinite(self.state.x.flatten(1)).all(1)).long())
        return self._coldest(self.diverged)

    @property
    def given(self) -> torch.Tensor:
        """The step sizes before adaptation, ``[B]`` float64."""
        return self._coldest(self._given)

    def compared_energies(self) -> torch.Tensor | None:
        """The energies that tests and swaps compared last, ``[B K]``; None without any, or where kernels sum them."""
        target = self.plan.target
        exact = isinstance(target, BuiltIn) and target.kernel is not None  # a sum in float64
        return None if exact or not (self.sampler.adjusted or self.plan.tempering) else self.state.energy

    def _coldest(self, values: torch.Tensor) -> torch.Tensor:
        """Those of the first temperature."""
        return values[:: self.replicas.count]
