"""The No-U-Turn sampler by recursion, one chain in float64, written from the papers: what the leaves' loop is held to.

Trees are built as in algorithm 6 of Hoffman and Gelman 2014, and joined, tested and sampled as in appendix A of
Betancourt 2017 and in Stan: momenta p ~ N(0, T / P) that are not whitened, trees with a left and a right end in time.
Of a doubling a leaf is drawn by passing its leaves once, in the order they were built, each taken with its share of the
weight so far. The noise is that of the sampler's purposes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import ulam_kernels.mcmc as ops
from ulam import noise

Array = np.ndarray
MOST_ERROR = 1000.0


@dataclass
class Leaf:
    x: Array
    p: Array
    log_weight: float


@dataclass
class Tree:
    """Leaves in the order they were built; left and right are the first and the last in time."""

    leaves: list[Leaf]
    left: Leaf
    right: Leaf
    rho: Array
    fine: bool


@dataclass
class Transition:
    x: Array
    depth: int
    leaps: int
    diverged: bool
    acceptance: float


@dataclass
class Recursion:
    """``energy`` and its ``gradient`` in numpy; ``inverse_mass`` P ``[d]``."""

    energy: Callable[[Array], float]
    gradient: Callable[[Array], Array]
    step: float
    max_depth: int = 10
    temperature: float = 1.0
    inverse_mass: Array | float = 1.0
    seed: int = 0

    def transition(self, x: Array, chain: int, step: int) -> Transition:
        """Step number ``step`` of a chain at x ``[d]``."""
        self.chain, self.number, self.built, self.sum = chain, step, 0, 0.0
        z = self._normals(noise.ROW, len(x))
        p = math.sqrt(self.temperature) * z / np.sqrt(self.inverse_mass)
        forward = self._normals(noise.TREE_DIRECTION, self.max_depth) > 0
        self.start, self.diverged = self._hamiltonian(x, p), False
        origin = Leaf(x, p, 0.0)
        tree, chosen, depth = Tree([origin], origin, origin, p, True), origin, 0
        while depth < self.max_depth:
            new = self._build(tree.right, +1, depth) if forward[depth] else self._build(tree.left, -1, depth)
            if not new.fine:
                break
            candidate = self._drawn(new.leaves, 1 << depth)
            last = (1 << depth) + len(new.leaves) - 1
            if self._accepts(noise.TREE_DOUBLING, last, _total(new.leaves) - _total(tree.leaves)):
                chosen = candidate
            tree = self._joined(tree, new) if forward[depth] else self._joined(new, tree)
            depth += 1
            if not tree.fine:
                break
        return Transition(chosen.x, depth, self.built, self.diverged, self.sum / self.built)

    def _build(self, end: Leaf, direction: int, depth: int) -> Tree:
        if depth == 0:
            leaf = self._leapfrog(end, direction * self.step)
            self.built += 1
            self.sum += min(1.0, math.exp(min(leaf.log_weight, 0.0)))
            fine = leaf.log_weight >= -MOST_ERROR
            self.diverged |= not fine
            return Tree([leaf], leaf, leaf, leaf.p, fine)
        first = self._build(end, direction, depth - 1)
        if not first.fine:
            return first
        second = self._build(first.right if direction > 0 else first.left, direction, depth - 1)
        if not second.fine:
            return second
        joined = self._joined(first, second) if direction > 0 else self._joined(second, first)
        joined.leaves = first.leaves + second.leaves
        return joined

    def _joined(self, left: Tree, right: Tree) -> Tree:
        rho = left.rho + right.rho
        fine = (
            self._goes_on(left.left.p, right.right.p, rho)
            and self._goes_on(left.left.p, right.left.p, left.rho + right.left.p)
            and self._goes_on(left.right.p, right.right.p, right.rho + left.right.p)
        )
        return Tree(left.leaves + right.leaves, left.left, right.right, rho, fine)

    def _goes_on(self, begin: Array, end: Array, rho: Array) -> bool:
        return bool((self.inverse_mass * begin) @ rho > 0 and (self.inverse_mass * end) @ rho > 0)

    def _leapfrog(self, at: Leaf, step: float) -> Leaf:
        p = at.p - 0.5 * step * self.gradient(at.x)
        x = at.x + step * self.inverse_mass * p
        p = p - 0.5 * step * self.gradient(x)
        log_weight = (self.start - self._hamiltonian(x, p)) / self.temperature
        return Leaf(x, p, log_weight if math.isfinite(log_weight) else -math.inf)

    def _hamiltonian(self, x: Array, p: Array) -> float:
        return float(self.energy(x) + 0.5 * np.sum(self.inverse_mass * p * p))

    def _drawn(self, leaves: list[Leaf], first: int) -> Leaf:
        chosen = leaves[0]
        for n in range(1, len(leaves)):
            share = leaves[n].log_weight - _total(leaves[: n + 1])
            if self._accepts(noise.TREE_LEAF, first + n, share):
                chosen = leaves[n]
        return chosen

    def _accepts(self, purpose: noise.Purpose, leaf: int, log_ratio: float) -> bool:
        draw = purpose.draw(self.number * noise.TREE_LEAVES + leaf)
        ids = {"seed": self.seed, "chain": self.chain, "draw": draw}
        tensors = {name: torch.tensor([value]) for name, value in ids.items()}
        return bool(ops.accept(torch.tensor([log_ratio], dtype=torch.float64), [], **tensors)[0])

    def _normals(self, purpose: noise.Purpose, count: int) -> Array:
        z = noise.normal_for(purpose, (count,), seed=self.seed, chains=[self.chain], row=self.number)
        return z[0].double().numpy()


def _total(leaves: list[Leaf]) -> float:
    return float(np.logaddexp.reduce([leaf.log_weight for leaf in leaves]))
