"""From the arguments of a submission to a job: every check, before anything is queued."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ulam_kernels.arguments import described
from ulam_kernels.validation import check_data, real_numbers

from ..arguments import chain_ids, seed_int64, whole_numbers
from ..conditioning import Blend, Cond, Shared, check_blend, check_conditioning
from ..denoiser import Denoiser, Sampler
from ..gradients import check_no_gradient
from ..guidance import APG, CFGZero, GuidanceSchedule, Rule, check_rule
from ..programs.program import Program
from ..samplers.grid import GridSampler
from ..samplers.start import start_below_noise
from ..schedules import Schedule
from .errors import warn
from .inpainting import check_known
from .job import Callback, Finish, Job, Noise
from .rollout import Rollout, check_recording

LAST_ROW = 1 << 59  # keeps every row of a program below noise-v1's 2^60
OF_PAIR = ("", "'s weight")  # as errors name the parts of a further conditioning
NORMS_DEFINED = 3  # the fewest elements for which the inverse squared norm has a mean
NORMS_USABLE = 202  # the fewest for which 2 / (n - 2), the excess of a standard deviation, is at most 1%


def job_of(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    sampler: Sampler | Program,
    chains: int | range | Sequence[int] | torch.Tensor,
    seed: int | None,
    cond: Cond | None,
    guidance: float | Sequence[float] | torch.Tensor | None,
    uncond: Cond | None,
    x_init: torch.Tensor | Shared | None,
    noise: Noise | None,
    known: torch.Tensor | Shared | None,
    mask: torch.Tensor | Shared | None,
    first_row: int,
    guidance_interval: tuple[float, float] | None,
    guidance_rescale: float,
    callback: Callback | None = None,
    every: int = 1,
    finish: Finish | None = None,
    priority: int = 0,
    deadline: float | None = None,
    *,
    guidance_rule: Rule | None = None,
    guidance_schedule: GuidanceSchedule | None = None,
    blend: Blend | None = None,
    branches: int = 0,
    rollout: Rollout | None = None,
    history: torch.Tensor | None = None,
) -> Job:
    """The job that :meth:`ulam.Engine.submit` queues, for an engine of this denoiser, sample shape and ``branches``.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
        RuntimeError: an argument requires grad while gradients are recorded.
    """
    tensors = {"uncond": uncond, "x_init": x_init, "guidance": guidance, "known": known, "mask": mask}
    check_no_gradient("sampling", cond, **{name: value for name, value in tensors.items() if value is not None},
                      **_parts(blend))  # fmt: skip
    ids = chain_ids(chains)
    if not (count := ids.shape[0]):
        raise ValueError("chains: got none, expected at least 1")
    if not isinstance(chains, (int, range)) and len(torch.unique(ids)) != count:
        raise ValueError("chains: got an id twice in one job, expected distinct ids (use two jobs)")
    program = denoiser.program(sampler)
    if not program.evaluating:
        raise ValueError(f"sampler: got {sampler!r}, which never evaluates the network, expected one that does")
    first_row, every, priority = whole_numbers(first_row=first_row, every=every, priority=priority)
    if not 0 <= first_row < LAST_ROW:
        raise ValueError(f"first_row: got {first_row}, expected 0 to 2^59 - 1")
    _check_first_states(x_init, (count, *shape))
    _check_norms(program, shape)
    if x_init is None and not isinstance(sampler, Program):
        _check_start(sampler, denoiser.schedule)
    seed = _seed(seed, anew=x_init is not None and not first_row and program.needs_noise)
    if noise is not None and not callable(noise):
        raise TypeError(f"noise: got {type(noise).__name__}, expected a callable noise(row, chains) or None")
    interval, rescale = _guidance_options(guidance, guidance_interval, guidance_rescale, guidance_rule)
    _check_beginning(guidance_rule, first_row)
    program = _with_guidance(program, guidance, guidance_rule, guidance_schedule)
    _check_callback(callback, every, finish)
    known_image = check_known(known, mask, program, count, shape)
    if known_image is not None and noise is not None:
        raise ValueError("noise: got a callable beside known, whose noise is noise-v1 always, expected None")
    conditional, weights, unconditional = check_conditioning(
        cond, guidance, uncond, count, has_guide=denoiser.guide is not None,
        always=program.reads_unguided or program.schedules_guidance,
    )  # fmt: skip
    check_recording(rollout, history, program, (count, program.registers - 1, *shape), noise)
    further = check_blend(blend, conditional, count, branches)
    return Job(
        program, ids, seed, conditional, unconditional, weights, x_init, noise, known_image, interval, rescale,
        callback, every, finish, priority, deadline, first_row, guidance_rule if weights is not None else None, further,
        rollout, history,
    )  # fmt: skip


def _parts(blend: object) -> dict[str, object]:
    """What further conditionings and their weights are called in errors, of those that are pairs."""
    if not isinstance(blend, list | tuple):
        return {}
    pairs = enumerate(pair for pair in blend if isinstance(pair, list | tuple))
    return {f"blend[{at}]{of}": part for at, pair in pairs for of, part in zip(OF_PAIR, pair, strict=False)}


def _check_first_states(x_init: object, expected: tuple[int, ...]) -> None:
    """Raises TypeError or ValueError unless it is ``[chains, *shape]``, ``[*shape]`` under :class:`Shared`, or None."""
    if x_init is None:
        return
    if isinstance(x_init, Shared):
        x_init, expected = x_init.tensor, expected[1:]
    if not isinstance(x_init, torch.Tensor) or not x_init.is_floating_point():
        raise TypeError(f"x_init: got {described(x_init)}, expected a float tensor {list(expected)} or None")
    check_data(x_init, "x_init")
    if tuple(x_init.shape) != expected:
        raise ValueError(f"x_init: got shape {list(x_init.shape)}, expected {list(expected)} (chains first)")


def _seed(seed: int | None, anew: bool) -> int:
    """The seed as an int64, 0 for None; ``anew``: warn that without one, states get the noise that they had before."""
    if seed is None and anew:
        warn(
            "x_init: got states without a seed, the noise begins anew at row 0 of seed 0, expected first_row= (rows "
            "that they have run so far) or another seed= where they go on from an earlier run"
        )
    return seed_int64(0 if seed is None else seed)


def _check_start(sampler: Sampler, schedule: Schedule) -> None:
    """Warn where a run without x_init starts from pure noise at a level that still has signal."""
    if isinstance(sampler, GridSampler) and (message := start_below_noise(sampler, schedule)) is not None:
        warn(message)


def _check_norms(program: Program, shape: tuple[int, ...]) -> None:
    """Warn, or raise ValueError, where step sizes use a chain's own norms and it has few elements.

    See :class:`ulam.samplers.PredictorCorrector` for the bias.
    """
    elements = math.prod(shape)
    if elements >= NORMS_USABLE or not program.needs_reductions or not program.normalise.any():
        return
    problem = f"norms: got 'chain' for samples of {elements} elements, expected"
    if elements < NORMS_DEFINED:
        raise ValueError(f"{problem} at least {NORMS_DEFINED}: the variance has no bound, use norms='expected'")
    warn(
        f"{problem} at least {NORMS_USABLE}: standard deviations come out about {200 / (elements - 2):.2g}% too large, "
        "use norms='expected'"
    )


def _check_beginning(rule: Rule | None, first_row: int) -> None:
    """Raises ValueError for a run that goes on under a rule that knows of the evaluations before."""
    if first_row and isinstance(rule, APG) and rule.momentum:
        raise ValueError(
            f"momentum: got {rule.momentum} in a run that goes on at row {first_row}, expected 0: what it remembers is "
            "not in the states"
        )
    if first_row and isinstance(rule, CFGZero) and rule.zero_steps:
        raise ValueError(
            f"zero_steps: got {rule.zero_steps} in a run that goes on at row {first_row}, expected 0: they are the "
            "first of a whole run"
        )


def _with_guidance(program: Program, guidance: object, rule: Rule | None, schedule: GuidanceSchedule | None) -> Program:
    """The program with what rows know of guidance: factors on its weight, outputs that are taken as 0.

    Raises:
        TypeError, ValueError: an invalid schedule, or zero steps of another prediction than the flow.
    """
    if schedule is not None:
        if guidance is None:
            raise ValueError("guidance: got None beside guidance_schedule, expected a weight")
        told = program.time[program.evaluating].tolist()
        given = [schedule(t) for t in told] if callable(schedule) else schedule
        factors = real_numbers("guidance_schedule", given)
        if list(factors.shape) != [len(told)]:
            got = f"got shape {list(factors.shape)}"
            raise ValueError(f"guidance_schedule: {got}, expected a factor for each of {len(told)} evaluations")
        if not bool(torch.isfinite(factors).all()):
            raise ValueError("guidance_schedule: got a factor that is not finite, expected finite numbers")
        column = np.ones(len(program))
        column[program.evaluating] = factors.double().numpy()
        program = replace(program, guidance=column)
    if not (isinstance(rule, CFGZero) and rule.zero_steps):
        return program
    if program.predicts != "flow":
        raise ValueError(
            f"zero_steps: got {rule.zero_steps} under predicts={program.predicts!r}, expected 0, or predicts='flow'"
        )
    rows = program.evaluating[: rule.zero_steps]
    A, km, unguided = program.A.copy(), program.km.copy(), program.unguided.copy()
    A[rows, :, program.registers + 1] = km[rows] = 0.0
    for row in rows:
        if register := int(unguided[row]):
            A[row, :, register] = 0.0
    unguided[rows] = 0
    return replace(program, A=A, km=km, unguided=unguided)


def _guidance_options(
    guidance: object, interval: object, rescale: object, rule: object
) -> tuple[tuple[float, float] | None, float]:
    """The interval as (lo, hi) or None, rounded to float32 as the slots hold it, and phi.

    Raises:
        TypeError, ValueError: an invalid interval or phi.
    """
    phi = rescale if type(rescale) is float else _number("guidance_rescale", rescale)
    if not 0 <= phi <= 1:
        raise ValueError(f"guidance_rescale: got {described(rescale)}, expected a number in [0, 1]")
    check_rule(rule)
    if phi and rule is not None:
        raise ValueError(f"guidance_rescale: got {described(rescale)} beside guidance_rule, expected 0, or no rule")
    if guidance is None and (interval is not None or phi or rule is not None):
        name = "guidance_interval" if interval is not None else "guidance_rescale" if phi else "guidance_rule"
        raise ValueError(f"guidance: got None beside {name}, expected a weight")
    if interval is None:
        return None, phi
    if not isinstance(interval, Sequence) or len(interval) != 2:
        raise TypeError(f"guidance_interval: got {described(interval)}, expected a pair (lo, hi) of times, or None")
    lo, hi = (torch.tensor(_number("guidance_interval", end), dtype=torch.float32).item() for end in interval)
    if not lo <= hi:  # NaN too
        raise ValueError(f"guidance_interval: got {described(interval)}, expected lo <= hi")
    return (lo, hi), phi


def _check_callback(callback: object, every: int, finish: object) -> None:
    """Raises TypeError or ValueError for an invalid function or period."""
    for name, function in (("callback", callback), ("finish", finish)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: got {type(function).__name__}, expected a callable or None")
    if every < 1:
        raise ValueError(f"every: got {every}, expected at least 1")


def _number(name: str, value: object) -> float:
    number = real_numbers(name, value)
    if number.dim():
        raise ValueError(f"{name}: got shape {list(number.shape)}, expected a number")
    return float(number)
