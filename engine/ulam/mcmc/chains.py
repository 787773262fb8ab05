"""The result of a run: draws, rates, and their diagnostics by ArviZ."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class Position:
    """Where a run stopped, for ``resume`` of :func:`ulam.mcmc.run`; the tensors are copies.

    Attributes:
        x, v: ``[chains K, *shape]``, the K replicas of each chain in turn (K = 1 without tempering); v may be None.
        step: ``[chains K]`` float64, the adapted step sizes.
        index: the number of the next step.
        counted: steps since the last warm-up, where thinning starts to count.
        seed: as int64. ids: ``[chains]`` int64.
        sampler: its class and settings, to tell it from others.
    """

    x: torch.Tensor
    v: torch.Tensor | None
    step: torch.Tensor
    index: int
    counted: int
    seed: int
    ids: torch.Tensor
    sampler: dict[str, Any]


@dataclass(eq=False)
class Chains:
    """The result of :func:`ulam.mcmc.run`.

    ``run(..., resume=chains)`` continues it to the bit as if it had not stopped: n steps and then m have the draws,
    states and velocities of n + m, for every sampler, wherever thinning, batches or launches fall. States, velocities,
    adapted step sizes, the number of the next step, seed and chain ids come with it, so ``adapt``, ``x_init``,
    ``v_init`` and ``first_step`` are refused. The target is evaluated anew, so it may have changed. Rates and counts
    are those of the steps of the new run alone.

    Attributes:
        draws: ``[chain, draw, *shape]``, None where only moments were kept.
        energies: ``[chain, draw]`` float64, None for targets that give a score alone.
        acceptance: ``[chain]`` float64, the share of accepted proposals of this run after its warm-up; None without a
            Metropolis test. NUTS: the mean of the acceptance statistic of its transitions.
        divergences: ``[chain]`` int64. With a Metropolis test: proposals after warm-up whose log acceptance ratio was
            below -1000 or not a number; NUTS: transitions that came to such a state. The others: 1
            where the chain left the finite numbers (its draws from there on are not finite), else 0.
        step: ``[chain]`` float64, the step sizes after adaptation.
        x: ``[chain, *shape]``, the last states. v: their velocities, whitened by the mass, or None.
        position: where the run stopped.
        moments: ``[chain, 2, *shape]`` float64, sums of the kept states and of their squares, if only these were kept.
        kept: draws per chain.
        swaps: ``[chain, K - 1]``, shares of accepted swaps of neighbouring temperatures; None without tempering.
        ids: ``[chain]`` int64.
        report: what ran, and how fast.
        tree_depth, leapfrogs: ``[chain, draw]`` int64, of the transitions that ended in the draws: how often NUTS
            doubled its path, and how many leapfrog steps that took. None for other samplers, and with moments alone.
    """

    draws: torch.Tensor | None
    energies: torch.Tensor | None
    acceptance: torch.Tensor | None
    divergences: torch.Tensor
    step: torch.Tensor
    x: torch.Tensor
    v: torch.Tensor | None
    moments: torch.Tensor | None
    kept: int
    swaps: torch.Tensor | None
    ids: torch.Tensor
    position: Position
    report: dict[str, Any]
    tree_depth: torch.Tensor | None = None
    leapfrogs: torch.Tensor | None = None

    @property
    def next_step(self) -> int:
        """The number of the next step: ``first_step`` of a run that continues with fresh noise."""
        return self.position.index

    @cached_property
    def sums(self) -> torch.Tensor:
        """``[chain, 2, *shape]`` float64, sums of the kept states and of their squares."""
        if self.moments is not None:
            return self.moments
        assert self.draws is not None
        wide = self.draws.double()
        return torch.stack([wide.sum(1), wide.square().sum(1)], 1)

    def mean(self) -> torch.Tensor:
        """The mean ``[*shape]`` float64 of all draws of the chains that stayed finite."""
        return self._finite()[:, 0].sum(0) / (self._count() * self.kept)

    def variance(self) -> torch.Tensor:
        """The variance ``[*shape]`` float64 of all draws of the chains that stayed finite, about their common mean."""
        return self._finite()[:, 1].sum(0) / (self._count() * self.kept) - self.mean().square()

    def to_arviz(self) -> Any:
        """An ``arviz.InferenceData``: posterior ``x``, sample statistic ``lp`` = -energy.

        Raises:
            ImportError: ArviZ, of the extra ``mcmc``, is not installed. ValueError: only moments were kept.
        """
        if self.draws is None:
            raise ValueError("draws: got moments alone, expected those of a run with store=True")
        arviz = _arviz()
        statistics = {} if self.energies is None else {"lp": -self.energies.cpu().numpy()}
        return arviz.from_dict(posterior={"x": self.draws.cpu().numpy()}, sample_stats=statistics)

    def summary(self, **options: Any) -> Any:
        """ArviZ's table with one row per element: mean, sd, MCSE, bulk and tail ESS, R-hat [Vehtari 2021].

        ``options`` are those of ``arviz.summary``. Raises as :meth:`to_arviz`.
        """
        data = self.to_arviz()
        return _arviz().summary(data, **{"round_to": "none", **options})

    def ess(self) -> torch.Tensor:
        """Bulk effective sample size of every element, ``[*shape]`` [Vehtari 2021]. Raises as :meth:`to_arviz`."""
        return torch.from_numpy(_arviz().ess(self.to_arviz())["x"].values)

    def _finite(self) -> torch.Tensor:
        return self.sums[self._stayed]

    def _count(self) -> int:
        return int(self._stayed.sum())

    @cached_property
    def _stayed(self) -> torch.Tensor:
        return torch.isfinite(self.sums.flatten(1)).all(1)


def _arviz() -> Any:
    try:
        import arviz
    except ImportError as error:
        raise ImportError("arviz: got no installation, expected one: pip install 'ulam[mcmc]'") from error
    return arviz
