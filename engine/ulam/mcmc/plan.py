"""The arguments of a run, checked: what is sampled, how, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch

from ulam_kernels.arguments import described
from ulam_kernels.validation import check_data

from ..arguments import chain_ids, check_shape, resolve_device, seed_int64, whole_number
from ..denoiser import Denoiser
from ..samplers.mcmc.chain_sampler import ChainSampler, select_rows
from ..samplers.mcmc.tempering import ParallelTempering
from .chains import Chains, Position
from .models.parameters import Layout
from .observables import Functions, Observables, checked_observables, checked_record
from .targets import Target
from .warmup.settings import Adapt, Warmup, checked_adapt

REPLICA_IDS = 1 << 63  # chain ids times replicas stay below it
CHAINS = 4  # by default
WARMUP = 1000  # steps, by default, where the sampler is given no step
FIRST_STEP = 1.0  # where a search begins


@dataclass(frozen=True, eq=False, kw_only=True)
class RunPlan:
    """What is sampled, how, and for how long.

    ``ids`` ``[chains]`` int64; ``x_init``, ``v_init`` ``[chains, *shape]`` or None; ``first_step``: the number of the
    first step; ``position``: where the earlier run stopped that this one continues, or None. ``asked``: the sampler as
    it was given; ``sampler``: with a step to begin at, and with what an earlier warm-up found. ``slots``: the size of
    batches, None where they may shrink.
    """

    target: Target
    asked: ChainSampler
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
    adapt: float | Warmup | None
    launch: bool
    device: torch.device
    dtype: torch.dtype
    backend: str | None
    observables: Observables | None = None
    record: tuple[str, ...] = ()
    slots: int | None = None

    @property
    def looks(self) -> bool:
        """Whether something is recorded that launches of whole chains do not write."""
        return self.observables is not None or bool(self.record)

    @property
    def counted(self) -> int:
        """Steps of earlier runs since their last warm-up: thinning goes on from them."""
        return self.position.counted if self.position is not None and not self.warmup else 0

    @property
    def kept(self) -> int:
        """The number of states kept: those after a multiple of ``thin`` steps since the last warm-up."""
        return (self.counted + self.steps) // self.thin - self.counted // self.thin


def resumed(resume: object, target: object, sampler: object, given: dict[str, Any]) -> dict[str, Any]:
    """``given`` with what the run to resume brings: chains, seed, first step, shape, dtype, device and position.

    Raises TypeError or ValueError for arguments that contradict the run to resume.
    """
    if not isinstance(resume, Chains):
        raise TypeError(f"resume: got {type(resume).__name__}, expected what ulam.mcmc.run returned, or None")
    position, shape, dtype = resume.position, tuple(resume.x.shape[1:]), resume.x.dtype
    _check_parameters(resume.layout, getattr(target, "layout", None))
    if getattr(target, "shape", None) not in (None, shape):
        raise ValueError(f"resume: got a run with states {list(shape)}, expected those of {target!r}")
    for name in ("x_init", "v_init", "first_step", "adapt"):
        if given[name] is not None:
            raise ValueError(f"{name}: got one beside resume, expected None: the run to resume brings its own")
    if given["seed"] is not None and seed_int64(given["seed"]) != position.seed:
        raise ValueError(f"seed: got {given['seed']}, expected {position.seed} of the run to resume; leave it out")
    if given["chains"] is not None and not torch.equal(chain_ids(given["chains"]), position.ids):
        raise ValueError(f"chains: got others, expected the {len(position.ids)} of the run to resume; leave them out")
    if given["shape"] is not None and check_shape(given["shape"]) != shape:
        raise ValueError(f"shape: got {given['shape']}, expected {shape} of the run to resume; leave it out")
    if given["dtype"] is not None and given["dtype"] != dtype:
        raise ValueError(f"dtype: got {given['dtype']}, expected {dtype} of the run to resume; leave it out")
    if isinstance(sampler, (ChainSampler, ParallelTempering)) and not _same(sampler.settings(), position.sampler):
        raise ValueError(
            f"sampler: got {type(sampler).__name__} with other settings, expected the {position.sampler['name']} of "
            "the run to resume; for another sampler pass x_init=chains.x, first_step=chains.next_step"
        )
    return given | {
        "chains": position.ids,
        "seed": position.seed,
        "first_step": position.index,
        "shape": shape,
        "dtype": dtype,
        "device": resume.x.device if given["device"] is None else given["device"],
        "position": position,
    }


def _check_parameters(resumed: Layout | None, wanted: Layout | None) -> None:
    """Raises ValueError unless the run to resume had the parameters of the target, which its states stand for."""
    came, right = ([] if layout is None else layout.described() for layout in (resumed, wanted))
    for i, (one, other) in enumerate(zip_longest(came, right)):
        if one != other:
            raise ValueError(
                f"resume: got a run whose parameter {i} is {one or 'none'}, expected {other or 'none'} of the target"
            )


def _same(settings: dict[str, Any], others: dict[str, Any]) -> bool:
    def equal(a: object, b: object) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return torch.equal(a, b)
        return type(a) is type(b) and a == b

    return settings.keys() == others.keys() and all(equal(value, others[name]) for name, value in settings.items())


def checked_plan(
    target: Target,
    sampler: ChainSampler | ParallelTempering,
    *,
    chains: int | range | Sequence[int] | torch.Tensor | None,
    steps: int,
    shape: Sequence[int] | None,
    seed: int | None,
    x_init: torch.Tensor | None,
    v_init: torch.Tensor | None,
    first_step: int | None,
    warmup: int | None,
    thin: int,
    adapt: Adapt,
    launch: bool,
    device: torch.device | str | None,
    backend: str | None,
    dtype: torch.dtype | None,
    observables: Functions | None = None,
    record: Sequence[str] | None = None,
    position: Position | None = None,
) -> RunPlan:
    """The plan of a run. Raises TypeError or ValueError for an argument of :func:`ulam.mcmc.run` that is invalid."""
    first_step = 0 if first_step is None else first_step
    dtype = torch.float32 if dtype is None else dtype
    inner = _checked_sampler(target, sampler)
    tempering = sampler if isinstance(sampler, ParallelTempering) else None
    inner, asked = _with_step(inner, position), inner
    searches = inner is not asked and position is None
    warmup = (WARMUP if searches else 0) if warmup is None else warmup
    counted = position.counted if position is not None and not warmup else 0
    _check_steps(steps, warmup, thin, first_step, counted, inner.most_steps)
    adapted = checked_adapt("pooled" if searches and adapt is None else adapt, asked, warmup, tempering is not None)
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: got {described(dtype)}, expected torch.float32 or torch.float64")
    ids = _checked_ids(CHAINS if chains is None else chains, tempering)
    starts = (("x_init", x_init), ("v_init", v_init))
    for name, start in starts:
        _check_float(name, start)
    sizes = _shape(target, shape, x_init)
    where = resolve_device(device if device is not None else "cpu" if x_init is None else x_init.device)
    if v_init is not None and not inner.has_velocity:
        raise ValueError(f"v_init: got one, expected None: {type(inner).__name__} keeps no velocity")
    for name, start in starts:
        _check_start(name, start, (len(ids), *sizes), dtype)
    inner.check_states(sizes, v_init)
    for name in inner.per_chain:
        if (value := getattr(inner, name)) is not None:
            select_rows(name, value, torch.zeros(1, dtype=torch.int64), len(ids))
    layout = getattr(target, "layout", None)
    parameters = () if layout is None else tuple(layout.parameters)
    return RunPlan(
        target=target, asked=asked, sampler=inner, tempering=tempering, ids=ids, shape=sizes,
        seed=seed_int64(0 if seed is None else seed), x_init=x_init, v_init=v_init, first_step=first_step,
        position=position, warmup=warmup, steps=steps, thin=thin, adapt=adapted, launch=launch, device=where,
        dtype=dtype, backend=backend, observables=checked_observables(observables, parameters),
        record=checked_record(record, inner),
    )  # fmt: skip


def _checked_sampler(target: Target, sampler: object) -> ChainSampler:
    """The sampler whose steps are run, that of the replicas under tempering."""
    if isinstance(target, Denoiser):
        raise TypeError("target: got a Denoiser, expected ulam.mcmc.DenoiserScore(denoiser, sigma)")
    if not hasattr(target, "bind") or isinstance(target, type):
        raise TypeError(f"target: got {described(target)}, expected ulam.Energy(fn), a score or a built-in density")
    tempered = isinstance(sampler, ParallelTempering)
    inner = sampler.sampler if isinstance(sampler, ParallelTempering) else sampler
    if not isinstance(inner, ChainSampler):
        raise TypeError(f"sampler: got {described(sampler)}, expected ULA, HMC, another of ulam.samplers or tempering")
    if (inner.adjusted or tempered) and not target.has_energy:
        raise TypeError(f"target: got {target!r}, a score alone, expected an energy for {type(sampler).__name__}")
    return inner


def _check_steps(steps: int, warmup: int, thin: int, first_step: int, counted: int, most: int) -> None:
    counts = (("steps", steps, 1), ("warmup", warmup, 0), ("thin", thin, 1), ("first_step", first_step, 0))
    power = most.bit_length() - 1
    for name, number, least in counts:
        if whole_number(name, number) < least:
            raise ValueError(f"{name}: got {number}, expected at least {least}")
        if number > most and name != "thin":
            raise ValueError(f"{name}: got {number}, expected at most 2^{power}")
    if first_step + warmup + steps > most:
        raise ValueError(f"steps: got {steps}, expected at most 2^{power} together with those before them")
    if counted % thin + steps < thin:
        raise ValueError(f"thin: got {thin}, expected at most the {steps} steps: nothing would be kept")


def _with_step(sampler: ChainSampler, position: Position | None) -> ChainSampler:
    """The sampler that runs: as an earlier warm-up tuned it, or with the step at which a search begins."""
    if position is not None and position.tuning is not None:
        return position.tuning.sampler
    changed: Any = {"step": FIRST_STEP}
    return sampler if sampler.step is not None else replace(sampler, **changed)


def _checked_ids(
    chains: int | range | Sequence[int] | torch.Tensor, tempering: ParallelTempering | None
) -> torch.Tensor:
    ids = chain_ids(chains)
    if not len(ids):
        raise ValueError("chains: got none, expected at least 1")
    if len(set(ids.tolist())) != len(ids):
        raise ValueError(f"chains: got {described(chains)} with an id twice, expected distinct ids")
    if tempering and int(ids.max()) >= REPLICA_IDS // len(tempering.temperatures):
        raise ValueError(f"chains: got the id {int(ids.max())}, expected ids times temperatures below 2^63")
    return ids


def _check_float(name: str, start: object) -> None:
    if start is None:
        return
    if not isinstance(start, torch.Tensor) or not start.is_floating_point():
        came = start.dtype if isinstance(start, torch.Tensor) else type(start).__name__
        raise TypeError(f"{name}: got {came}, expected a float tensor [chains, *shape] or None")
    check_data(start, name)


def _check_start(name: str, start: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if start is None:
        return
    if start.shape != shape:
        raise ValueError(f"{name}: got shape {list(start.shape)}, expected {list(shape)} (chains first)")
    if not bool(torch.isfinite(start.to(dtype)).all()):
        raise ValueError(f"{name}: got numbers that are not finite in {dtype}, expected finite ones")


def _shape(target: Target, shape: Sequence[int] | None, x_init: torch.Tensor | None) -> tuple[int, ...]:
    """The shape of one state."""
    known: tuple[int, ...] | None = getattr(target, "shape", None)
    if shape is None and known is None and x_init is None:
        raise ValueError("shape: got None, expected the sizes of one state, such as (2,) (or x_init)")
    sizes = check_shape(shape) if shape is not None else known
    if known is not None and sizes != known:
        raise ValueError(f"shape: got {sizes}, expected {known}, that of the states of {target!r}")
    if sizes is None and x_init is not None:
        sizes = tuple(x_init.shape[1:])
    if not sizes:
        name, came = ("shape", "()") if shape is not None else ("x_init", "a tensor [chains]")
        raise ValueError(f"{name}: got {came}, expected states with an axis at least, such as (1,)")
    return sizes
