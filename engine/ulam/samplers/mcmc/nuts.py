"""The No-U-Turn sampler, without recursion: the tree of every chain grows leaf by leaf, each at its own pace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

import ulam_kernels
import ulam_kernels.mcmc as ops
from ulam_kernels.arguments import described

from ...arguments import per_chain, whole_number
from ...noise import DRAWS_PER_ROW, ROW, TREE_DIRECTION, TREE_DOUBLING, TREE_LEAF, TREE_LEAVES, Purpose
from .chain_sampler import ChainSampler, PerChain, Preconditioner
from .chain_state import ChainState, Columns
from .fused_trees import FusedTrees, bound_trees
from .rows import Rows, finds
from .weights import Weights, dot

DEEPEST = TREE_LEAVES.bit_length() - 1  # doublings whose leaves noise-v1 can number


@dataclass(frozen=True, eq=False)
class NUTS(ChainSampler):
    """Hamiltonian paths that double, forwards or backwards, until they turn round [Hoffman & Gelman 2014].

    From a fresh momentum N(0, T) the path of leapfrog steps of length ``step`` doubles, in a direction drawn anew each
    time, until it turns, or a subtree of it does, or it has doubled ``max_depth`` times. Of each new half one state is
    drawn, with its share of the weight exp(-H / T), and it replaces the one so far with probability
    min(1, W_new / W_before) [Betancourt 2017, appendix A.3]. A path whose ends have the momenta p and p', and whose
    momenta add up to rho, turns where p . P rho <= 0 or p' . P rho <= 0 [the same, appendix A.4]. As in Stan, this is
    asked also of either half together with the next state of the other. An energy error above 1000 T, or one that is
    not a number, ends the transition: a divergence. There is no path length to choose, and ``adapt=0.8`` of
    :func:`ulam.mcmc.run` tunes the step, to the mean of min(1, exp(-(H - H_0) / T)) over a transition's leapfrog steps.

    In a run every chain is at its own place in its own tree, and begins its next transition as soon as one is done: of
    a batch's gradients none is idle until a chain has made all its steps, and such chains leave the batch. Under
    `ParallelTempering` and in `ulam.ebm` chains wait for one another after each transition, and the acceptance is the
    share of transitions that moved.

    step: a time. max_depth: from 1 to 20; a transition has at most 2^max_depth - 1 leapfrog steps, and a chain keeps
    3 (max_depth + 1) momenta. P is the inverse mass. Other arguments: see `ChainSampler`. Raises TypeError or
    ValueError naming the argument.
    """

    step: PerChain | None = None
    max_depth: int = 10
    temperature: PerChain = 1.0
    preconditioner: Preconditioner = None

    adjusted: ClassVar[bool] = True
    rate: ClassVar[float | None] = 0.8
    most_steps: ClassVar[int] = 1 << 40
    step_is_a_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= whole_number("max_depth", self.max_depth) <= DEEPEST:
            raise ValueError(f"max_depth: got {described(self.max_depth)}, expected 1 to {DEEPEST}")

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        return step, torch.zeros_like(step), 1 / temperature, temperature.sqrt()

    def trees(self, state: ChainState) -> Trees | FusedTrees:
        """The trees of a state's chains, their first transitions to begin: native ones where its backend has them."""
        bound = None if state.center is not None else bound_trees(state)
        return Trees(state, self.max_depth) if bound is None else FusedTrees(state, self.max_depth, bound)

    def transition(self, state: ChainState, c: Columns) -> torch.Tensor | None:
        """One transition of all chains, which wait for the last: log of the mean acceptance, NaN where one diverged."""
        trees, live = self.trees(state), torch.ones_like(state.chain, dtype=torch.bool)
        trees.begin(live, c)
        diverged = torch.zeros_like(live)
        while bool(live.any()):
            done = trees.leap(c, live)
            diverged |= done & trees.diverged
            live = live & ~done
        state.accepted = trees.moved
        return torch.where(diverged, math.nan, trees.acceptance().log())


class End:
    """An end of the paths of all chains: x, whitened velocity v and score, each ``[B, *shape]``."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.v, self.score = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)

    def swap(self, other: End, where: torch.Tensor) -> None:
        """Swap these chains ``[B]`` bool with the other end's."""
        rows = Rows(where)
        pairs = ((self.x, other.x), (self.v, other.v), (self.score, other.score)) if rows else ()
        for a, b in pairs:
            ours, theirs = rows.of(a).clone(), rows.of(b)
            rows.put(a, theirs)
            rows.put(b, ours)


class Trees:
    """The trees of B chains while they grow, in torch on any device.

    ``state`` has the state chosen so far, in the end that of the transition.
    A leap adds one leaf to every tree, at its end ``here``. The leaves of a doubling are n = 0 ... 2^depth - 1. A slot
    keeps what is needed of a subtree that is not complete: the momentum of its first leaf, that of the last leaf of its
    first half, and the sum of momenta before it. A subtree that begins with leaf n has the slot 1 + (the ones of n in
    binary); leaf n completes as many subtrees as n ends in ones, and theirs are the slots just before its own
    [Phan 2019; Lao 2020]. Slot 0 is that of the whole tree, so what is checked at a leaf is one range of slots.
    Momenta are whitened velocities v: p . P rho is v . sum v.

    Attributes:
        depth, leaps: ``[B]`` int64, doublings and leapfrog steps of the current transition.
        moved, diverged: ``[B]`` bool, whether it left its first state; whether the last leap diverged.
    """

    def __init__(self, state: ChainState, max_depth: int) -> None:
        x, self.state, self.max_depth = state.x, state, max_depth
        chains, device = len(x), x.device
        self.here, self.there = End(x), End(x)
        self.chosen, self.chosen_score = torch.empty_like(x), torch.empty_like(x)  # of the doubling
        self.chosen_energy = torch.zeros(chains, dtype=torch.float64, device=device)
        self.first, self.last, self.before = x.new_zeros(3, max_depth + 1, chains, x[0].numel()).unbind()
        self.sum = torch.zeros_like(self.before[0])  # of the doubling's momenta
        self.depth, self.leaps, self.leaf = torch.zeros(3, chains, dtype=torch.int64, device=device).unbind()
        numbers = torch.zeros(4, chains, dtype=torch.float64, device=device).unbind()
        self.start, self.weight, self.doubling_weight, self.accepted = numbers  # H_0, log W, log W_new, sum of a
        self.forward = torch.zeros(chains, dtype=torch.bool, device=device)
        self.moved, self.diverged = torch.zeros_like(self.forward), torch.zeros_like(self.forward)
        self.directions = torch.zeros(chains, max_depth, dtype=torch.bool, device=device)
        self._rows, self._weights = torch.arange(chains, device=device), Weights(device)
        self._slots = torch.arange(max_depth, device=device)

    def acceptance(self) -> torch.Tensor:
        """The mean of min(1, exp(-(H - H_0) / T)) over the leaps of the current transition, ``[B]`` float64."""
        return self.accepted / self.leaps

    def begin(self, where: torch.Tensor, c: Columns) -> None:
        """Begin the next transition of these chains ``[B]`` bool, with a momentum of its own noise."""
        rows, state = Rows(where), self.state
        if not rows:
            return
        v = self._normals(rows, ROW, state.x.shape[1:]).to(state.x.dtype)
        v = state.without_center(v * per_chain(rows.of(c[3]), v))
        for end in (self.here, self.there):
            for tensor, value in ((end.x, rows.of(state.x)), (end.v, v), (end.score, rows.of(state.score))):
                rows.put(tensor, value)
        assert state.energy is not None
        rows.put(self.start, rows.of(state.energy) + 0.5 * ops.squared_norm(v, backend=state.backend))
        rows.put(self.before[0], -v.flatten(1))
        rows.put(self.directions, self._normals(rows, TREE_DIRECTION, (self.max_depth,)) > 0)
        for zero in (self.weight, self.accepted, self.depth, self.leaps, self.leaf):
            rows.put(zero, 0)
        rows.put(self.moved, False)

    def leap(self, c: Columns, live: torch.Tensor) -> torch.Tensor:
        """Add a leaf to the trees of the ``live`` chains; which transitions are done, both ``[B]`` bool.

        c: the step and 1 / T, first and third of the sampler's coefficients. The others stay where they are.
        """
        here, state = self.here, self.state
        self._begin_doublings(live & (self.leaf == 0))
        step = torch.where(live, torch.where(self.forward, c[0], -c[0]), 0)
        half = 0.5 * step
        ops.kick_drift(here.x, here.v, here.score, half, step, scale=state.scale, backend=state.backend)
        energy, score = state.evaluate(here.x, True)
        assert energy is not None
        here.score.copy_(score)
        ops.kick_drift(here.x, here.v, here.score, half, None, scale=state.scale, backend=state.backend)
        error = energy + 0.5 * ops.squared_norm(here.v, backend=state.backend) - self.start
        log_weight = -error * c[2].double()
        fine = live & (log_weight >= ops.DIVERGED) & (log_weight < math.inf)
        self.diverged = live & ~fine
        self.leaps += live
        self.accepted += torch.where(live, self._weights.exp(log_weight.clamp(max=0)).nan_to_num(0.0), 0.0)
        self._choose(energy, torch.where(fine, log_weight, -math.inf))
        turned = self._turned(fine)
        return self._end(live, self.diverged | turned[1:].any(0), turned[0])

    # -------------------------------------------------------------------------------------------- parts of a leap

    def _begin_doublings(self, where: torch.Tensor) -> None:
        """Go to the end of the tree at which it grows next."""
        rows = Rows(where)
        if not rows:
            return
        forward = self.directions.gather(1, self.depth.clamp(max=self.max_depth - 1)[:, None])[:, 0]
        self.here.swap(self.there, where & (forward != self.forward))
        self.forward = torch.where(where, forward, self.forward)
        rows.put(self.first[0], rows.of(self.there.v.flatten(1)))
        rows.put(self.last[0], rows.of(self.here.v.flatten(1)))
        rows.put(self.sum, 0)
        rows.put(self.doubling_weight, -math.inf)

    def _choose(self, energy: torch.Tensor, log_weight: torch.Tensor) -> None:
        """Take the new leaf with its share of the doubling's weight: so every leaf stays with its weight's share."""
        total = self._weights.log_sum(self.doubling_weight, log_weight)
        pairs = [(self.chosen, self.here.x), (self.chosen_score, self.here.score), (self.chosen_energy, energy)]
        ops.accept(log_weight - total, pairs, **self._ids(TREE_LEAF), backend=self.state.backend)
        self.doubling_weight = total

    def _turned(self, fine: torch.Tensor) -> torch.Tensor:
        """Which slots have a subtree that the new leaf completes and that turns, ``[max_depth, B]`` bool."""
        v, rows = self.here.v.flatten(1), self._rows
        ones = self.leaf[:, None] >> self._slots & 1
        slot, completed = ones.sum(1), ones.cumprod(1).sum(1)  # the slot before the leaf's own
        self.first[slot + 1, rows] = v
        self.before[slot + 1, rows] = self.sum
        self.sum += v
        begin = slot + 1 - completed
        slots = self._slots[:, None]
        checked = fine & (slots >= begin - self._complete().long()) & (slots <= slot)
        turned = self._turned_at(checked, v)
        self.last[begin, rows] = v
        return turned

    def _turned_at(self, checked: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Which of the slots that are ``checked`` turn, both ``[max_depth, B]`` bool."""
        turned = torch.zeros_like(checked)
        slot: torch.Tensor | slice
        after: torch.Tensor | slice
        row: torch.Tensor | slice
        if finds(checked):
            slot, row = checked.nonzero(as_tuple=True)
            if not len(slot):
                return turned
            after = slot + 1
        else:
            slot, after, row = slice(0, self.max_depth), slice(1, None), slice(None)
        first, last, middle, end = self.first[slot, row], self.last[slot, row], self.first[after, row], v[row]
        left = self.before[after, row] - self.before[slot, row]
        right = self.sum[row] - self.before[after, row]
        found = turns(first, end, left + right) | turns(first, middle, left + middle) | turns(last, end, right + last)
        turned[slot, row] = found & checked[slot, row]
        return turned

    def _end(self, live: torch.Tensor, bad: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
        """Join doublings that are complete to their trees; which transitions are done.

        ``bad``: the doubling is to be left out. ``across``: the tree turns together with it.
        """
        state, complete = self.state, self._complete()
        grown = live & complete & ~bad
        if Rows(grown):
            assert state.energy is not None
            ratio = torch.where(grown, self.doubling_weight - self.weight, -math.inf)
            pairs = [
                (state.x, self.chosen),
                (state.score, self.chosen_score),
                (state.energy, self.chosen_energy),
            ]
            self.moved |= ops.accept(ratio, pairs, **self._ids(TREE_DOUBLING), backend=state.backend)
            self.weight = torch.where(grown, self._weights.log_sum(self.weight, self.doubling_weight), self.weight)
            self.before[0] -= torch.where(grown[:, None], self.sum, 0)
            self.depth += grown
        done = (live & bad) | (grown & (across | (self.depth == self.max_depth)))
        self.leaf = torch.where(complete | done, 0, self.leaf + 1)
        return done

    def _complete(self) -> torch.Tensor:
        """Whether the current leaf is the last of its doubling, ``[B]`` bool."""
        return self.leaf + 1 == self._leaves()

    def _leaves(self) -> torch.Tensor:
        """2^depth, the leaves of the current doubling ``[B]``."""
        return torch.ones_like(self.depth) << self.depth

    def _ids(self, purpose: Purpose) -> dict[str, torch.Tensor]:
        """The address of noise for the current leaf: row step 2^20 + 2^depth + leaf."""
        state, number = self.state, self._leaves() + self.leaf
        draw = state.draw * TREE_LEAVES + number * DRAWS_PER_ROW + purpose.stage
        return {"seed": state.seed, "chain": state.chain, "draw": draw}

    def _normals(self, rows: Rows, purpose: Purpose, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normals ``[M, *shape]`` float32 of the steps of these rows."""
        state = self.state
        seed, chain, draw = rows.of(state.seed), rows.of(state.chain), rows.of(state.draw)
        out = torch.empty(len(draw), *shape, dtype=torch.float32, device=state.x.device)
        draw = draw + purpose.stage
        ulam_kernels.fill_normal(out, seed=seed, chain=chain, draw=draw, tag=purpose.tag, backend=state.backend)
        return out


def turns(first: torch.Tensor, last: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Whether paths turn, given the momenta at their ends and their sum ``[..., n]``; ``[...]`` bool."""
    return ~((dot(first, total) > 0) & (dot(last, total) > 0))
