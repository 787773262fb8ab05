"""The result of a run: draws, rates, and their diagnostics by ArviZ."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ulam_kernels.arguments import described
from ulam_kernels.reprs import short_repr
from ulam_kernels.validation import check_data, check_real

from ..engine import errors
from . import arviz_data
from .arviz_data import Coords, Dims, Names
from .models.parameters import Layout
from .verdicts.statistics import labels_of
from .verdicts.verdict import Evidence, Verdict, judge, of_table
from .warmup.tuning import Tuning

FRESH_MOMENTUM = ("HMC", "NUTS")  # samplers whose paths each keep the energy of one, noise-v1's of the step


@dataclass(frozen=True, eq=False)
class Position:
    """Where a run stopped, for ``resume`` of :func:`ulam.mcmc.run`; the tensors are copies.

    Attributes:
        x, v: ``[chains K, *shape]``, the K replicas of each chain in turn (K = 1 without tempering); v may be None.
            In the coordinates that chains move in, which are others than x by a :class:`ulam.mcmc.LowRank`.
        step: ``[chains K]`` float64, the adapted step sizes.
        index: the number of the next step.
        counted: steps since the last warm-up, where thinning starts to count.
        seed: as int64. ids: ``[chains]`` int64.
        sampler: its class and settings, to tell it from others.
        diverged: ``[chains K]`` bool, whether a proposal diverged since the last draw; None where it is not recorded.
        tuning: what the warm-up found, or None.
    """

    x: torch.Tensor
    v: torch.Tensor | None
    step: torch.Tensor
    index: int
    counted: int
    seed: int
    ids: torch.Tensor
    sampler: dict[str, Any]
    diverged: torch.Tensor | None = None
    tuning: Tuning | None = None

    __repr__ = short_repr


@dataclass(eq=False)
class Chains:
    """The result of :func:`ulam.mcmc.run`.

    ``run(..., resume=chains)`` continues it to the bit as if it had not stopped: n steps and then m have the draws,
    states and velocities of n + m, for every sampler, wherever thinning, batches or launches fall. States, velocities,
    adapted step sizes, the number of the next step, seed and chain ids come with it, so ``adapt``, ``x_init``,
    ``v_init`` and ``first_step`` are refused. The target is evaluated anew, so it may have changed. Rates and counts
    are those of the steps of the new run alone.

    Attributes:
        draws: ``[chain, draw, *shape]``, None where moments or observables were kept in their place.
        energies: ``[chain, draw]`` float64, None for targets that give a score alone.
        acceptance: ``[chain]`` float64, the share of accepted proposals of this run after its warm-up; None without a
            Metropolis test. NUTS: the mean of the acceptance statistic of its transitions.
        divergences: ``[chain]`` int64. With a Metropolis test: proposals after warm-up whose log acceptance ratio was
            below -1000 or not a number; NUTS: transitions that came to such a state. The others: 1
            where the chain left the finite numbers (its draws from there on are not finite), else 0.
        diverging: ``[chain, draw]`` bool, whether a proposal diverged on the way from the draw before (it was rejected,
            so without thinning the draw is where it began); None without a Metropolis test, with moments alone, and
            for launches of whole chains, which count divergences only (``launch=False`` records them).
        step: ``[chain]`` float64, the step sizes after adaptation.
        tuning: what the warm-up found, see :class:`ulam.mcmc.Tuning`; None where each chain adapted a step that was
            given (``step`` has it), and without adaptation.
        x: ``[chain, *shape]``, the last states. v: their velocities, whitened by the mass, or None.
        position: where the run stopped.
        moments: ``[chain, 2, *shape]`` float64, sums of the kept states and of their squares, if only these were kept.
        kept: draws per chain.
        swaps: ``[chain, K - 1]``, shares of accepted swaps of neighbouring temperatures; None without tempering.
        ids: ``[chain]`` int64.
        report: what ran, and how fast.
        tree_depth, leapfrogs: ``[chain, draw]`` int64, of the transitions that ended in the draws: how often NUTS
            doubled its path, and how many leapfrog steps that took. None for other samplers, and with moments alone.
        layout: the parameters of a :class:`ulam.mcmc.Model`, else None. Draws, ``x``, ``moments``, :meth:`mean`,
            :meth:`variance` and :meth:`ess` of a model are of its states without constraints; ``parameters`` has the
            others.
        observables: ``[chain, draw, *sizes]`` by name, of the states that were kept, or None.
        velocities: ``[chain, draw, *shape]``, dx / dt = sqrt(P) v, or None.
        kinetic: ``[chain, draw]`` float64, |v|^2 / 2: the sum of mass times (dx / dt)^2 / 2; or None.
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
    diverging: torch.Tensor | None = None
    layout: Layout | None = None
    observables: dict[str, torch.Tensor] | None = None
    velocities: torch.Tensor | None = None
    kinetic: torch.Tensor | None = None

    __repr__ = short_repr

    @property
    def tuning(self) -> Tuning | None:
        """See above."""
        return self.position.tuning

    @property
    def next_step(self) -> int:
        """The number of the next step: ``first_step`` of a run that continues with fresh noise."""
        return self.position.index

    @cached_property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The draws of a :class:`ulam.mcmc.Model` as its parameters, by name ``[chain, draw, *shape]``.

        They are in the dtype in which the model computes them. Raises ValueError for another target, or where only
        moments were kept.
        """
        if self.layout is None:
            raise ValueError(f"parameters: got a run of {self.report['target']}, expected one of a ulam.mcmc.Model")
        if (stored := self._stored()) is None:
            raise ValueError("parameters: got observables alone, expected the draws of a run with store=True")
        return self.layout.constrain(stored)

    @cached_property
    def sums(self) -> torch.Tensor:
        """``[chain, 2, *shape]`` float64, sums of the kept states and of their squares."""
        if self.moments is not None:
            return self.moments
        assert self.draws is not None
        wide = self.draws.double()
        return torch.stack([wide.sum(1), wide.square().sum(1)], 1)

    def weights(self) -> torch.Tensor:
        """Of each draw ``[draw]`` float64, their sum 1: the size of the step that leaves it for SGLD, else equal ones.

        Averages by these weights are those of [Welling & Teh 2011, eq. 11], for steps that fall.
        """
        at, thin = self.position, self.report["thin"]
        if at.sampler["name"] != "SGLD":
            return torch.full((self.kept,), 1 / self.kept, dtype=torch.float64)
        last = at.index - at.counted % thin  # the number of the step that leaves the last draw
        steps = last - thin * torch.arange(self.kept - 1, -1, -1, dtype=torch.float64)
        weights: torch.Tensor = (1 + steps / at.sampler["delay"]) ** -at.sampler["decay"]
        return weights / weights.sum()

    def weighted_mean(self, of: torch.Tensor | None = None) -> torch.Tensor:
        """The mean ``[*shape]`` float64 of all draws by :meth:`weights`, over the chains that stayed finite.

        of: values ``[chain, draw, *shape]`` of each draw, such as one of ``parameters``; by default the draws.
        Raises TypeError or ValueError for another shape, or where only moments were kept.
        """
        values, right = self._stored() if of is None else of, [len(self.ids), self.kept]
        if not isinstance(values, torch.Tensor) or list(values.shape[:2]) != right:
            raise ValueError(f"of: got {described(values)}, expected a tensor {right} and more, of each draw")
        check_data(values, "of")
        check_real(values, "of")
        weights = self.weights().to(values.device)
        of_chains: torch.Tensor = torch.tensordot(values[self._stayed].double(), weights, dims=([1], [0]))
        return of_chains.mean(0)

    def mean(self) -> torch.Tensor:
        """The mean ``[*shape]`` float64 of all draws of the chains that stayed finite."""
        return self._finite()[:, 0].sum(0) / (self._count() * self.kept)

    def variance(self) -> torch.Tensor:
        """The variance ``[*shape]`` float64 of all draws of the chains that stayed finite, about their common mean."""
        return self._finite()[:, 1].sum(0) / (self._count() * self.kept) - self.mean().square()

    def to_arviz(self, names: Names = None, coords: Coords = None, dims: Dims = None) -> Any:
        """An ``arviz.InferenceData``: draws and observables as posterior, and ``sample_stats`` ``[chain, draw]``.

        The statistics are those that are known: ``lp`` = -E (without log Z, and not divided by T); ``energy``, the
        Hamiltonian with which the path that leaves the draw begins (HMC and NUTS, of every state kept, without
        tempering: momenta are made anew from the noise); ``diverging``, see ``diverging``; ``step_size`` (not SGLD's,
        which falls); ``acceptance_rate``, its chain's, the same at each draw; ``tree_depth`` and ``n_steps`` (NUTS);
        ``kinetic``, where it was recorded.

        Args:
            names: of the posterior's variable, "x" by default; or one name for each element of flat states ``(d,)``,
                which are variables of their own then. A model's parameters are variables by the names they have.
            coords: labels along the axes named in ``dims``.
            dims: a name for each axis of a state; not beside names of elements. Of a model, a dict of such lists by the
                names of parameters.

        Raises:
            ImportError: ArviZ, of the extra ``mcmc``, is not installed. ValueError: only moments were kept.
            TypeError, ValueError: names, coords or dims that do not fit.
        """
        stored = self._stored()
        draws = stored if stored is None or self.layout is None else self.parameters
        return arviz_data.inference_data(draws, self._statistics(), names, coords, dims, self.observables)

    def summary(self, **options: Any) -> Any:
        """ArviZ's table with one row per element: mean, sd, MCSE, bulk and tail ESS, R-hat [Vehtari 2021].

        Of a model its rows are the elements of its parameters. ``options`` are those of ``arviz.summary``. Raises as
        :meth:`to_arviz`. Warns with a RuntimeWarning of an R-hat or effective sample sizes that fail :meth:`verdict`.
        """
        table = arviz_data.arviz().summary(self.to_arviz(), **{"round_to": "none", **options})
        if failed := of_table(table if self.layout is None else table.drop(self.layout.still, errors="ignore")):
            errors.warn(f"summary: {'; '.join(failed)}: verdict() says why, and what to try", RuntimeWarning)
        return table

    def verdict(self) -> Verdict:
        """Whether the chains have mixed, and what to try if not: see :class:`ulam.mcmc.Verdict`, which prints.

        :func:`ulam.mcmc.run` does not ask for it: it takes ArviZ, and time that grows with the elements, tens of
        milliseconds each for 64 chains of 1000 draws (of more than 256, so many evenly spaced are looked at). A run
        warns of divergences, frozen chains and coarse energies alone, which cost nothing. Of a model the elements are
        those of its parameters, without those that its sets keep where they are.

        Raises as :meth:`to_arviz`. Warns with a RuntimeWarning, in one line, where the verdict fails.
        """
        setting, (flat, labels) = self.position.sampler, self._judged()
        evidence = Evidence(
            draws=flat,
            labels=labels,
            states=self.draws,
            energies=self.energies,
            adjusted=self.acceptance is not None,
            divergences=int(self.divergences.sum()),
            proposals=len(self.ids) * self.report["steps"],
            diverging=self.diverging,
            hamiltonian=self._hamiltonian(),
            temperature=float(torch.as_tensor(setting.get("temperature", 1.0)).max()),
            launched=self.report["launch"],
        )
        found = judge(evidence)
        if not found.passed:
            errors.warn(f"verdict: {found.headline}; {found.cause}", RuntimeWarning)
        return found

    def ess(self) -> torch.Tensor:
        """Bulk effective sample size of every element, ``[*shape]`` [Vehtari 2021].

        Raises as :meth:`to_arviz`, and ValueError where observables were kept alone.
        """
        if self.draws is None and self.observables:
            raise ValueError("draws: got observables alone, expected those of a run with store=True, or summary()")
        stored = self._stored()
        assert stored is not None
        return torch.from_numpy(arviz_data.arviz().ess({"x": stored.cpu().numpy()})["x"].values)

    def _stored(self) -> torch.Tensor | None:
        """The draws, None where there are observables alone."""
        if self.draws is None and not self.observables:
            raise ValueError("draws: got moments alone, expected those of a run with store=True")
        return self.draws

    def _judged(self) -> tuple[torch.Tensor, list[str]]:
        """What a verdict looks at, ``[chain, draw, n]``, and the name of each of the n: observables, then the state.

        Of a model the elements of its parameters that can vary stand for the state.
        """
        parts = [(_flat(of), labels_of(name, of.shape[2:])) for name, of in (self.observables or {}).items()]
        if (stored := self._stored()) is not None and self.layout is None:
            parts.append((_flat(stored), labels_of("x", stored.shape[2:])))
        elif stored is not None and self.layout is not None:
            names, values = self.layout.elements(stored)
            parts.append((values, names))
        flat, labels = [of for of, _ in parts], [label for _, of_one in parts for label in of_one]
        return flat[0] if len(flat) == 1 else torch.cat([of.double() for of in flat], 2), labels

    def _statistics(self) -> dict[str, torch.Tensor]:
        """What is known of every draw, ``[chain, draw]``, by ArviZ's names."""
        counts = {"tree_depth": getattr(self, "tree_depth", None), "n_steps": getattr(self, "leapfrogs", None)}
        step = None if self.position.sampler["name"] == "SGLD" else self.step
        rates = {"acceptance_rate": self.acceptance, "step_size": step}
        hamiltonian = self._hamiltonian()
        known = {
            "lp": None if self.energies is None else -self.energies,
            "energy": None if isinstance(hamiltonian, str) else hamiltonian,
            "diverging": self.diverging,
            **{name: None if of is None else of[:, None].expand(-1, self.kept) for name, of in rates.items()},
            **counts,
            "kinetic": getattr(self, "kinetic", None),
        }
        return {name: values for name, values in known.items() if values is not None}

    def _hamiltonian(self) -> torch.Tensor | str:
        """H ``[chain, draw]`` where the path that leaves each draw begins, or why there is none."""
        at = self.position
        if at.sampler["name"] not in FRESH_MOMENTUM:
            return f"{at.sampler['name']} has no paths from fresh momenta that keep their energy"
        if self.energies is None or self.report["thin"] != 1:
            return "it needs the energy of every state, and thinning leaves some out"
        if at.sampler.get("center_of_mass") == "fixed":
            return "momenta are made anew from noise, in which the centre of mass moves, and here it is fixed"
        temperature, shape = at.sampler["temperature"], tuple(self.x.shape[1:])
        return arviz_data.hamiltonian(
            self.energies, shape, ids=at.ids, seed=at.seed, next_step=at.index, temperature=temperature
        )

    def _finite(self) -> torch.Tensor:
        return self.sums[self._stayed]

    def _count(self) -> int:
        return int(self._stayed.sum())

    @cached_property
    def _stayed(self) -> torch.Tensor:
        return torch.isfinite(self.sums.flatten(1)).all(1)


def _flat(values: torch.Tensor) -> torch.Tensor:
    """Values ``[chain, draw, *shape]`` as ``[chain, draw, n]``."""
    return values.flatten(2) if values.dim() > 2 else values[..., None]
