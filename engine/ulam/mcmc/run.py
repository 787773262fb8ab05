"""`ulam.mcmc.run`: one call from a target and a sampler to chains.

Whether they mixed is not looked at here, which would take ArviZ: `verdict()` of the result says it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

import ulam_kernels.dispatch
from ulam_kernels.arguments import switch
from ulam_kernels.tracing import check_not_recorded, outside_graphs

from ..engine.arguments import check_slots, fallbacks
from ..gradients import check_no_gradient
from ..memory import freed_memory_kept
from ..samplers.mcmc.chain_sampler import ChainSampler
from ..samplers.mcmc.nuts import NUTS
from ..samplers.mcmc.tempering import ParallelTempering
from .batch import ChainBatch
from .chains import Chains, Position
from .densities import BuiltIn
from .kept import KeptDraws
from .observables import Functions
from .pieces import filled
from .plan import RunPlan, checked_plan, resumed
from .targets import Target
from .trees import TreeBatch, gradients_of
from .verdicts import diagnosis
from .warmup.settings import Adapt, Warmup
from .warmup.tuning import Warmed
from .warmup.tuning import joined as joined_tuning
from .warmup.warming import warm_up


@outside_graphs
def run(
    target: Target, sampler: ChainSampler | ParallelTempering, *,
    chains: int | range | Sequence[int] | torch.Tensor | None = None, steps: int = 1000,
    shape: Sequence[int] | None = None, seed: int | None = None,
    x_init: torch.Tensor | Mapping[str, torch.Tensor] | None = None, v_init: torch.Tensor | None = None,
    first_step: int | None = None, resume: Chains | None = None, warmup: int | None = None, thin: int = 1,
    adapt: Adapt = None, slots: int | None = None, store: bool | None = None,
    observables: Functions | None = None, record: Sequence[str] | None = None, launch: bool = True,
    device: torch.device | str | None = None, backend: str | None = None, dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Chains:  # fmt: skip
    """Run Markov chains: ``warmup`` steps that are not kept, then ``steps``, of which every ``thin``-th state is kept.

    A chain's numbers depend on its id, the seed and its own settings, adaptation included, never on who shares the
    batch: the same bits for any number and order of chains where the target treats rows independently, and for every
    target at equal ``slots``. To continue a run to the bit, see ``resume`` and :class:`ulam.mcmc.Chains`.

    Args:
        target: an :class:`ulam.Energy`, :class:`ulam.mcmc.Model`, :class:`ulam.mcmc.Score`,
            :class:`ulam.mcmc.DenoiserScore` or a built-in density, which runs as whole chains in one launch (the same
            bits as by single steps; NUTS, GHMC, MALT, MCLMC and MAMS on the CPU alone). ``report["launch"]`` says
            whether it did.
        sampler: a Markov chain sampler of :mod:`ulam.samplers`.
        chains: a number n (chains 0 to n - 1), a range, or distinct ids in [0, 2^63); 4 by default.
        steps, warmup, thin: whole numbers; the states after thin, 2 thin, ... steps since the last warm-up are kept.
            warmup is 0 by default, and 1000 for a sampler without a step.
        shape: of one state; by default that of the density or the model, or of ``x_init``.
        seed: an integer in [-2^63, 2^64); 0 by default.
        x_init: ``[chains, *shape]``, the first states, of a model also its parameters by name; N(0, I) by default
            (noise-v1, tag 1; of a model without constraints).
        v_init: ``[chains, *shape]``, the first velocities of samplers that keep them, as ``v``; N(0, T) by default.
        first_step: the number of the first step, which decides noise, SGLD's step sizes and swaps; 0 by default.
        resume: the result of an earlier run by the same sampler, which this one continues.
        adapt: what the warm-up tunes. A target acceptance in (0, 1): each chain's step size, alone, by dual averaging
            [Hoffman & Gelman 2014]; "chain": the same, to the sampler's own ``rate`` (MALA 0.574, HMC and NUTS 0.8).
            "pooled": from all chains together one step, the inverse mass, and path lengths that are not given, see
            :class:`ulam.mcmc.Warmup`; ``Chains.tuning`` has them. Chains then depend on one another until the warm-up
            ends. None keeps the step sizes; of a sampler without a step it is "pooled".
        slots: chains per batch, the last batch padded; by default, and for built-in densities, all at once. NUTS calls
            a target for the chains that still have steps to make, fewer and fewer rows, unless slots are given.
        store: keep the states, True without observables; False keeps only their sums and sums of squares (no energies).
        observables: functions of x ``[chains, *shape]`` by name, each ``[chains, *sizes]``, recorded in place of the
            states that are kept, with energies; called before the first step too: see :mod:`ulam.mcmc.observables`.
        record: "velocities" and "kinetic", either or both, at the states kept, of samplers that keep velocities.
        launch: False runs built-in densities by single steps too.
        device: of the chains; that of ``x_init``, else the CPU. backend: see :class:`ulam.Engine`.
        dtype: float32 (the default), or float64 (reference backend, for checking).
        progress: show a bar, with the acceptance, where stderr is a terminal.

    Raises:
        TypeError, ValueError: an invalid argument, or an energy that is not finite where a chain starts.
        RuntimeError: x_init, v_init or cond requires grad while gradients are recorded: none flows through a run.

    Warns:
        RuntimeWarning: chains diverged or froze, or energies are rounded coarsely.
        UserWarning: ``x_init`` without ``seed``, ``first_step`` or ``resume``: the noise begins anew.
    """
    check_not_recorded("run")
    check_no_gradient("a run of chains", getattr(target, "cond", None), x_init=x_init, v_init=v_init)
    store = observables is None if store is None else store
    _check_ways(slots, store=store, launch=launch, progress=progress)
    if isinstance(x_init, Mapping) and (layout := getattr(target, "layout", None)) is not None:
        x_init = layout.unconstrain(x_init, "x_init")
    given: dict[str, Any] = {"chains": chains, "shape": shape, "seed": seed, "x_init": x_init, "v_init": v_init}
    given |= {"device": device, "first_step": first_step, "adapt": adapt, "dtype": dtype}
    if resume is not None:
        given = resumed(resume, target, sampler, given)
    elif x_init is not None and seed is None and first_step is None:
        diagnosis.warn_of_repeated_noise()
    given |= {"steps": steps, "warmup": warmup, "thin": thin, "launch": launch, "backend": backend}
    given |= {"observables": observables, "record": record}
    return _run(replace(checked_plan(target, sampler, **given), slots=slots), store, progress)


def _check_ways(slots: int | None, **switches: bool) -> None:
    if slots is not None:
        check_slots(slots)
    for name, flag in switches.items():
        switch(flag, name)


def _run(plan: RunPlan, store: bool, progress: bool) -> Chains:
    """The chains of a plan, batch by batch."""
    whole = isinstance(plan.target, BuiltIn) and plan.target.kernel is not None
    rows = _batches(len(plan.ids), None if whole else plan.slots)
    if isinstance(plan.adapt, Warmup) and any(len(of_batch) != len(plan.ids) for of_batch, _ in rows):
        raise ValueError(
            f"slots: got {plan.slots}, expected None or the number of chains, {len(plan.ids)}, where all warm up "
            'together; adapt="chain" warms up each alone'
        )
    parts, batch_class = [], TreeBatch if isinstance(plan.sampler, NUTS) and plan.tempering is None else ChainBatch
    warmed: list[Warmed | None] = []
    begin = time.perf_counter()
    with freed_memory_kept(), _Bar(plan, len(rows), progress) as bar:
        for of_batch, count in rows:
            batch = batch_class(plan, of_batch, bar.update)
            batch.begin()
            kept = batch.room(store)
            warmed.append(warm_up(batch))
            batch.run(kept)
            parts.append((batch, kept, count))
    result = _joined(plan, parts, warmed, time.perf_counter() - begin)
    diagnosis.warn(result, plan, [batch for batch, _, _ in parts])
    return result


def _batches(chains: int, slots: int | None) -> list[tuple[torch.Tensor, int]]:
    """The rows of every batch, padded to ``slots`` with its last row, and how many of them count."""
    rows = torch.arange(chains)
    if slots is None:
        return [(rows, chains)]
    return [(filled(part, slots), len(part)) for part in torch.split(rows, slots)]


def _joined(
    plan: RunPlan, parts: list[tuple[ChainBatch, KeptDraws, int]], warmed: list[Warmed | None], seconds: float
) -> Chains:
    """The result of all batches, each with what it kept and how many of its chains count, and its warm-up's."""

    def joined(tensors: list[torch.Tensor | None], replicas: int = 1) -> torch.Tensor | None:
        cut = [t[: count * replicas] for t, (_, _, count) in zip(tensors, parts, strict=True) if t is not None]
        return None if not cut else cut[0] if len(cut) == 1 else torch.cat(cut)

    def joined_by_name(dicts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        made = {name: joined([named[name] for named in dicts]) for name in dicts[0]}
        return {name: tensor for name, tensor in made.items() if tensor is not None}

    first, batches, kept = parts[0][0], [batch for batch, _, _ in parts], [kept for _, kept, _ in parts]
    K = first.replicas.count
    every, v = joined([batch.state.x for batch in batches], K), joined([batch.state.v for batch in batches], K)
    step, divergences = joined([batch.step for batch in batches], K), joined([b.divergences() for b in batches])
    assert every is not None and step is not None and divergences is not None
    found = joined_tuning([(one, count) for one, (_, _, count) in zip(warmed, parts, strict=True)], step)
    position = Position(
        x=every.clone(),
        v=None if v is None else v.clone(),
        step=step.clone(),
        index=first.index,
        counted=first.counted,
        seed=plan.seed,
        ids=plan.ids.clone(),
        sampler=(plan.tempering or plan.asked).settings(),
        diverged=joined([None if b.diverging is None else b.diverged_now for b in batches], K),
        tuning=found if found is not None or plan.position is None else plan.position.tuning,
    )
    return Chains(
        draws=joined([part.draws for part in kept]),
        energies=joined([part.energies for part in kept]),
        acceptance=joined([batch.acceptance() for batch in batches]),
        divergences=divergences,
        step=step[::K],
        x=first.placed(every[::K]),
        v=None if v is None else v[::K],
        moments=joined([part.moments for part in kept]),
        kept=plan.kept,
        swaps=joined([batch.replicas.swap_rates() for batch in batches]),
        ids=plan.ids,
        position=position,
        report=_report(plan, batches, seconds),
        tree_depth=joined([part.tree_depth for part in kept]),
        leapfrogs=joined([part.leapfrogs for part in kept]),
        diverging=joined([batch.diverging for batch in batches]),
        layout=getattr(plan.target, "layout", None),
        observables=joined_by_name([part.observables for part in kept]) or None,
        velocities=joined([part.velocities for part in kept]),
        kinetic=joined([part.kinetic for part in kept]),
    )


def _report(plan: RunPlan, batches: list[ChainBatch], seconds: float) -> dict[str, Any]:
    """What ran, and how fast."""
    module = ulam_kernels.dispatch.select(plan.backend, plan.device.type, plan.dtype)
    backend = ulam_kernels.dispatch.name_of(module)
    total = len(plan.ids) * (plan.warmup + plan.steps)
    return {
        "target": repr(plan.target),
        "sampler": repr(plan.tempering or plan.asked),
        "chains": len(plan.ids),
        "first_step": plan.first_step,
        "warmup": plan.warmup,
        "steps": plan.steps,
        "thin": plan.thin,
        "seconds": seconds,
        "steps_per_second": total / max(seconds, 1e-9),
        "launch": batches[0].launches,
        "chain_kernel": "off" if (kernel := getattr(plan.target, "energy_kernel", None)) is None else kernel.state,
        "backend": backend,
        "fallbacks": list(fallbacks(backend, plan.backend, plan.dtype)),
        "device": str(plan.device),
        **gradients_of(batches),
    }


class _Bar:
    """A progress bar over the steps of all batches, with the acceptance so far."""

    REFRESH = 0.5  # seconds between looks at the device

    def __init__(self, plan: RunPlan, batches: int, shown: bool) -> None:
        total = batches * (plan.warmup + plan.steps)
        self._bar = tqdm(total=total, unit="step", desc="ulam", disable=None if shown else True)
        self._adjusted, self._next, self._pending = plan.sampler.adjusted, 0.0, 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.update(self._pending)
        self._bar.close()

    def update(self, steps: int, batch: ChainBatch) -> None:
        """Count steps of a batch."""
        if self._bar.disable:
            return
        self._pending += steps
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self.REFRESH
        self._bar.update(self._pending)
        self._pending = 0
        if self._adjusted and (rate := batch.acceptance_so_far()) is not None:
            self._bar.set_postfix_str(f"acceptance {rate:.3f}", refresh=False)
