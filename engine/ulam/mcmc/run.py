"""`ulam.mcmc.run`: one call from a target and a sampler to chains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

import ulam_kernels.dispatch
from ulam_kernels.arguments import described, switch
from ulam_kernels.tracing import check_not_recorded, outside_graphs
from ulam_kernels.validation import check_data

from ..arguments import chain_ids, check_shape, resolve_device, seed_int64, whole_number
from ..denoiser import Denoiser
from ..engine.arguments import check_slots, fallbacks
from ..gradients import check_no_gradient
from ..samplers.markov.chain_sampler import ChainSampler, ParallelTempering, of_rows
from . import diagnosis
from .batch import Batch, Plan, Record
from .chains import Chains, Position
from .densities import BuiltIn
from .targets import Target

REPLICA_IDS = 1 << 63  # chain ids times replicas stay below it
MOST_STEPS = 1 << 60  # noise-v1 numbers the steps of a chain below it


@outside_graphs
def run(
    target: Target,
    sampler: ChainSampler | ParallelTempering,
    *,
    chains: int | range | Sequence[int] | torch.Tensor | None = None,
    steps: int = 1000,
    shape: Sequence[int] | None = None,
    seed: int | None = None,
    x_init: torch.Tensor | None = None,
    v_init: torch.Tensor | None = None,
    first_step: int | None = None,
    resume: Chains | None = None,
    warmup: int = 0,
    thin: int = 1,
    adapt: float | None = None,
    slots: int | None = None,
    store: bool = True,
    launch: bool = True,
    device: torch.device | str | None = None,
    backend: str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Chains:
    """Run Markov chains: ``warmup`` steps that are not kept, then ``steps``, of which every ``thin``-th state is.

    With ``resume`` a run goes on to the bit as if the earlier one had not stopped: n steps and then m have the draws,
    states and velocities of n + m, for every sampler, wherever thinning, batches or launches fall.

    A chain's numbers depend on its id, the seed and its own numbers, never on who shares the batch, adaptation
    included: same bits for any number and order of chains where the target treats rows independently, and at equal
    ``slots`` for every target.

    Args:
        target: an :class:`ulam.Energy`, :class:`ulam.mcmc.Score`, :class:`ulam.mcmc.DenoiserScore` or one of the
            built-in densities, which run as whole chains in one launch (same bits as by single steps).
        sampler: ULA, SGLD, MALA, BAOAB, HMC or ParallelTempering of :mod:`ulam.samplers`.
        chains: a number n (chains 0 to n - 1), a range, or distinct ids in [0, 2^63); 4 by default.
        steps, warmup, thin: whole numbers; the states after thin, 2 thin, ... steps from the last warm-up are kept.
        shape: of one state; by default the built-in density's or that of ``x_init``.
        seed: any integer in [-2^63, 2^64); 0 by default.
        x_init: ``[chains, *shape]``, where the chains start; N(0, I) by default (noise-v1, tag 1).
        v_init: ``[chains, *shape]``, the velocities of BAOAB as ``v`` of :class:`ulam.mcmc.Chains`; N(0, T) by default.
        first_step: the number of the run's first step, 0 by default: its noise is that of this step and those after
            it (so are SGLD's step sizes, and which replicas swap).
        resume: what an earlier run returned, by the same sampler. Its states, velocities, step sizes, step number, seed
            and chain ids come with it; the target is asked anew where the chains stand, so it may have changed.
            Its step sizes are tuned: ``adapt`` is refused, and so are ``x_init``, ``v_init`` and ``first_step``.
            Rates and counts are those of the steps of this run alone.
        adapt: a target acceptance in (0, 1): each chain's step is tuned to it during the warm-up by dual averaging
            [Hoffman & Gelman 2014]; 0.574 suits MALA, 0.65 to 0.8 HMC. None keeps the steps.
        slots: chains in one batch, the last batch padded; by default all at once. For targets other than built-in
            densities, whose memory or bits depend on the batch.
        store: keep the states; False keeps their sums and sums of squares alone, and no energies.
        launch: False runs built-in densities by single steps too.
        device: of the chains; that of ``x_init``, else the CPU. backend: see :class:`ulam.Engine`.
        dtype: float32 (the default), or float64 (reference backend, for checking).
        progress: show a bar, with the acceptance, where stderr is a terminal.

    Raises:
        TypeError, ValueError: an argument that cannot be, or an energy that is not finite where a chain starts.
        RuntimeError: x_init, v_init or cond requires grad while gradients are recorded: none flows through a run.

    Warns:
        RuntimeWarning: chains diverged (see ``divergences`` of :class:`ulam.mcmc.Chains`); adaptation left a chain with
        so small a step that it stands still; the energy is rounded too coarsely for the Metropolis test (see
        :mod:`ulam.mcmc.diagnosis`).
        UserWarning: ``x_init`` without ``seed``, ``first_step`` or ``resume``: the noise begins anew.
    """
    check_not_recorded("run")
    check_no_gradient("a run of chains", getattr(target, "cond", None), x_init=x_init, v_init=v_init)
    if slots is not None:
        check_slots(slots)
    for name, flag in (("store", store), ("launch", launch), ("progress", progress)):
        switch(flag, name)
    if resume is not None:
        given = {"chains": chains, "shape": shape, "seed": seed, "x_init": x_init, "v_init": v_init}
        _check_resumed(resume, sampler, given | {"first_step": first_step, "adapt": adapt, "dtype": dtype})
        chains, seed, first_step = resume.position.ids, resume.position.seed, resume.position.index
        shape, dtype = tuple(resume.x.shape[1:]), resume.x.dtype
        device = resume.x.device if device is None else device
    elif x_init is not None and seed is None and first_step is None:
        diagnosis.warn_of_repeated_noise()
    plan = _plan(
        target, sampler, 4 if chains is None else chains, steps, shape, 0 if seed is None else seed, x_init, v_init,
        0 if first_step is None else first_step, None if resume is None else resume.position, warmup, thin, adapt,
        launch, device, backend, torch.float32 if dtype is None else dtype,
    )  # fmt: skip
    whole = isinstance(target, BuiltIn) and target.kernel is not None
    rows = _batches(len(plan.ids), None if whole else slots)
    begin = time.perf_counter()
    with _Bar(plan, len(rows), progress) as bar:
        parts = [_run(plan, part, store, bar) for part in rows]
    result = _joined(plan, parts, time.perf_counter() - begin)
    diagnosis.warn(result, plan, [batch for batch, _, _ in parts])
    return result


def _check_resumed(resume: object, sampler: object, given: dict[str, Any]) -> None:
    """Raises TypeError or ValueError for arguments that say something else than the run to resume."""
    if not isinstance(resume, Chains):
        raise TypeError(f"resume: got {type(resume).__name__}, expected what ulam.mcmc.run returned, or None")
    position, shape = resume.position, tuple(resume.x.shape[1:])
    for name in ("x_init", "v_init", "first_step", "adapt"):
        if given[name] is not None:
            raise ValueError(f"{name}: got one beside resume, which brings its own; leave it out")
    if given["seed"] is not None and seed_int64(given["seed"]) != position.seed:
        raise ValueError(f"seed: got {given['seed']}, expected {position.seed} of the run to resume; leave it out")
    if given["chains"] is not None and not torch.equal(chain_ids(given["chains"]), position.ids):
        raise ValueError(f"chains: got others than the {len(position.ids)} of the run to resume; leave them out")
    if given["shape"] is not None and check_shape(given["shape"]) != shape:
        raise ValueError(f"shape: got {given['shape']}, expected {shape} of the run to resume; leave it out")
    if given["dtype"] is not None and given["dtype"] != resume.x.dtype:
        raise ValueError(f"dtype: got {given['dtype']}, expected {resume.x.dtype} of the run to resume; leave it out")
    if isinstance(sampler, (ChainSampler, ParallelTempering)):
        numbers = sampler.numbers()
        if numbers.keys() != position.sampler.keys() or any(
            not _equal(value, position.sampler[name]) for name, value in numbers.items()
        ):
            raise ValueError(
                f"sampler: got {numbers['name']} with other numbers than {position.sampler['name']} of the run to "
                "resume; for another sampler pass x_init=chains.x, first_step=chains.next_step"
            )


def _equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b


def _plan(
    target: Target,
    sampler: ChainSampler | ParallelTempering,
    chains: int | range | Sequence[int] | torch.Tensor,
    steps: int,
    shape: Sequence[int] | None,
    seed: int,
    x_init: torch.Tensor | None,
    v_init: torch.Tensor | None,
    first_step: int,
    position: Position | None,
    warmup: int,
    thin: int,
    adapt: float | None,
    launch: bool,
    device: torch.device | str | None,
    backend: str | None,
    dtype: torch.dtype,
) -> Plan:
    """The arguments of :func:`run`, checked."""
    if isinstance(target, Denoiser):
        raise TypeError("target: got a Denoiser, expected ulam.mcmc.DenoiserScore(denoiser, sigma)")
    if not hasattr(target, "bind"):
        raise TypeError(f"target: got {type(target).__name__}, expected ulam.Energy(fn), a score or a built-in density")
    tempering = sampler if isinstance(sampler, ParallelTempering) else None
    inner = sampler.sampler if isinstance(sampler, ParallelTempering) else sampler
    if not isinstance(inner, ChainSampler):
        raise TypeError(f"sampler: got {type(sampler).__name__}, expected ULA, SGLD, MALA, BAOAB, HMC or tempering")
    if (inner.adjusted or tempering) and not target.has_energy:
        raise TypeError(f"target: {type(sampler).__name__} needs an energy, {target!r} gives a score alone")
    counts = (("steps", steps, 1), ("warmup", warmup, 0), ("thin", thin, 1), ("first_step", first_step, 0))
    for name, number, least in counts:
        if whole_number(name, number) < least:
            raise ValueError(f"{name}: got {number}, expected at least {least}")
    if first_step + warmup + steps > MOST_STEPS:
        raise ValueError(f"steps: got {steps}, expected at most 2^60 with those before them")
    counted = position.counted if position is not None and not warmup else 0
    if counted % thin + steps < thin:
        raise ValueError(f"thin: got {thin}, more than the {steps} steps: nothing would be kept")
    if adapt is not None and not (isinstance(adapt, (int, float)) and not isinstance(adapt, bool) and 0 < adapt < 1):
        raise ValueError(f"adapt: got {described(adapt)}, expected a target acceptance in (0, 1), or None")
    if adapt is not None and not inner.adjusted:
        raise ValueError(f"adapt: {type(inner).__name__} has no Metropolis test to adapt to")
    if adapt is not None and not warmup:
        raise ValueError("adapt: needs warm-up steps (warmup=)")
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: got {described(dtype)}, expected torch.float32 or torch.float64")
    ids = chain_ids(chains)
    if not len(ids):
        raise ValueError("chains: got none, expected at least 1")
    if len(set(ids.tolist())) != len(ids):
        raise ValueError("chains: ids must be distinct")
    if tempering and int(ids.max()) >= REPLICA_IDS // len(tempering.temperatures):
        raise ValueError("chains: ids times temperatures must stay below 2^63")
    for name, start in (("x_init", x_init), ("v_init", v_init)):
        if start is not None and not (isinstance(start, torch.Tensor) and start.is_floating_point()):
            what = start.dtype if isinstance(start, torch.Tensor) else type(start).__name__
            raise TypeError(f"{name}: got {what}, expected a float tensor [chains, *shape] or None")
        if start is not None:
            check_data(start, name)
    sizes = _shape(target, shape, x_init)
    where = resolve_device(device if device is not None else "cpu" if x_init is None else x_init.device)
    if v_init is not None and not inner.moves:
        raise ValueError(f"v_init: {type(inner).__name__} has no velocity that it keeps, expected None")
    for name, start in (("x_init", x_init), ("v_init", v_init)):
        if start is not None and start.shape != (len(ids), *sizes):
            raise ValueError(f"{name}: got shape {list(start.shape)}, expected {[len(ids), *sizes]} (chains first)")
        if start is not None and not bool(torch.isfinite(start.to(dtype)).all()):
            raise ValueError(f"{name}: has numbers that are not finite in {dtype}")
    for name in inner.per_chain:
        value = getattr(inner, name)
        if value is not None:
            of_rows(name, value, torch.zeros(1, dtype=torch.int64), len(ids))
    return Plan(
        target, inner, tempering, ids, sizes, seed_int64(seed), x_init, v_init, first_step, position, warmup, steps,
        thin, adapt, launch, where, dtype, backend,
    )  # fmt: skip


def _shape(target: Target, shape: Sequence[int] | None, x_init: torch.Tensor | None) -> tuple[int, ...]:
    known = target.shape if isinstance(target, BuiltIn) else None
    if shape is None:
        if known is None and x_init is None:
            raise ValueError("shape: got None, expected the sizes of one state, such as (2,) (or x_init)")
        return known if known is not None else tuple(x_init.shape[1:]) if x_init is not None else ()
    sizes = check_shape(shape)
    if known is not None and sizes != known:
        raise ValueError(f"shape: got {sizes}, but {target!r} has states of shape {known}")
    return sizes


def _batches(chains: int, slots: int | None) -> list[tuple[torch.Tensor, int]]:
    """The rows of every batch, padded to ``slots`` by its last row, and how many of them count."""
    rows = torch.arange(chains)
    if slots is None:
        return [(rows, chains)]
    parts = [rows[begin : begin + slots] for begin in range(0, chains, slots)]
    return [(torch.cat([part, part[-1:].expand(slots - len(part))]), len(part)) for part in parts]


def _run(plan: Plan, part: tuple[torch.Tensor, int], store: bool, bar: _Bar) -> tuple[Batch, Record, int]:
    rows, count = part
    kept, size = plan.kept, len(rows)
    draws = torch.empty(size, kept, *plan.shape, dtype=plan.dtype, device=plan.device) if store else None
    energies = None
    if store and plan.target.has_energy:
        energies = torch.empty(size, kept, dtype=torch.float64, device=plan.device)
    moments = None if store else torch.zeros(size, 2, *plan.shape, dtype=torch.float64, device=plan.device)
    record = Record(draws, energies, moments)
    batch = Batch(plan, rows, bar.update)
    batch.run(record)
    return batch, record, count


def _joined(plan: Plan, parts: list[tuple[Batch, Record, int]], seconds: float) -> Chains:
    def join(tensors: list[torch.Tensor | None], replicas: int = 1) -> torch.Tensor | None:
        cut = [t[: count * replicas] for t, (_, _, count) in zip(tensors, parts, strict=True) if t is not None]
        return None if not cut else cut[0] if len(cut) == 1 else torch.cat(cut)

    def joined(tensors: list[torch.Tensor], replicas: int = 1) -> torch.Tensor:
        out = join(list(tensors), replicas)
        assert out is not None
        return out

    first = parts[0][0]
    K, batches = first.replicas, [batch for batch, _, _ in parts]
    rates = [batch.accepted[::K].double() / plan.steps if plan.sampler.adjusted else None for batch in batches]
    total = len(plan.ids) * (plan.warmup + plan.steps)
    report = {
        "target": repr(plan.target),
        "sampler": repr(plan.tempering or plan.sampler),
        "chains": len(plan.ids),
        "first_step": plan.first_step,
        "warmup": plan.warmup,
        "steps": plan.steps,
        "thin": plan.thin,
        "seconds": seconds,
        "steps_per_second": total / max(seconds, 1e-9),
        "launch": first.launches,
        "backend": _backend(plan),
        "fallbacks": list(fallbacks(_backend(plan), plan.backend, plan.dtype)),
        "device": str(plan.device),
    }
    every, v = joined([batch.state.x for batch in batches], K), join([batch.state.v for batch in batches], K)
    step = joined([batch.step for batch in batches], K)
    position = Position(
        x=every.clone(),
        v=None if v is None else v.clone(),
        step=step.clone(),
        index=first.index,
        counted=first.counted,
        seed=plan.seed,
        ids=plan.ids.clone(),
        sampler=(plan.tempering or plan.sampler).numbers(),
    )
    return Chains(
        draws=join([record.draws for _, record, _ in parts]),
        energies=join([record.energies for _, record, _ in parts]),
        acceptance=join(rates),
        divergences=joined([batch.divergences() for batch in batches]),
        step=step[::K],
        x=every[::K],
        v=None if v is None else v[::K],
        moments=join([record.moments for _, record, _ in parts]),
        kept=plan.kept,
        swaps=join([batch.swap_rates() for batch in batches]),
        ids=plan.ids,
        position=position,
        report=report,
    )


def _backend(plan: Plan) -> str:
    module = ulam_kernels.dispatch.select(plan.backend, plan.device.type, plan.dtype)
    return ulam_kernels.dispatch.name_of(module)


class _Bar:
    """A progress bar over the steps of all batches, with the acceptance so far."""

    REFRESH = 0.5  # seconds between looks at the device

    def __init__(self, plan: Plan, batches: int, shown: bool) -> None:
        total = batches * (plan.warmup + plan.steps)
        self._bar = tqdm(total=total, unit="step", desc="ulam", disable=None if shown else True)
        self._adjusted, self._next, self._done, self._pending = plan.sampler.adjusted, 0.0, 0, 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.update(self._pending)
        self._bar.close()

    def update(self, steps: int, batch: Batch) -> None:
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
