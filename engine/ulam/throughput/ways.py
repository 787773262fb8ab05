"""The ways to do a work that are timed: plain PyTorch, diffusers' schedulers, and ulam."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..conditioning import arguments_of
from ..engine.engine import Engine
from ..engine.errors import NetworkError
from ..engine.tuned import Tuned
from ..evaluation import check_output
from ..files import one_line
from ..noise import FIRST_STATE, ROW, normal_for
from ..schedules import VariancePreserving
from .plain_loop import PlainLoop, Unlike
from .work import Work

LOOP, COMPILED, DIFFUSERS = "plain PyTorch", "plain, torch.compile", "diffusers"
ULAM, TUNED, KERNEL = "ulam", "ulam, tuned", "ulam, chain kernel"
THEIRS, OURS = (LOOP, COMPILED, DIFFUSERS), (ULAM, TUNED, KERNEL)
SEED = 0
Other = Callable[[Work, int], Callable[[], object]]  # of a work and its first evaluations, one run of these

# diffusers' schedulers that evaluate the network as often as the sampler of this name.
SCHEDULERS = {
    "DDIM": "DDIMScheduler",
    "DDPM": "DDPMScheduler",
    "DPMSolverPP": "DPMSolverMultistepScheduler",
    "UniPC": "UniPCMultistepScheduler",
}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@dataclass(frozen=True)
class Ready:
    """A way that can be timed: ``run()`` is one run; ``samples()`` are those of noise-v1, None where it draws its own.

    warm_up: seconds of the first run beyond a later one.
    """

    run: Callable[[], object]
    samples: Callable[[], torch.Tensor] | None
    warm_up: float


def ready(
    name: str, work: Work, evaluations: int, tuned: Tuned | None = None, others: Mapping[str, Other] | None = None
) -> Ready:
    """A way, warmed up; ``others``: of other libraries. Raises Unlike where it cannot do the work."""
    make = {LOOP: plain, COMPILED: compiled, DIFFUSERS: diffusers, ULAM: engine, KERNEL: kernel}
    try:
        if others and name in others:
            run, samples = others[name](work, evaluations), None
        elif name == TUNED:
            run, samples = engine(work, evaluations, options=tuned)
        else:
            run, samples = make[name](work, evaluations)
        first, second = seconds_of(run), seconds_of(run)
    except Unlike:
        raise
    except NetworkError as error:
        raise Unlike(one_line(error.__cause__ or error)) from None
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise Unlike(one_line(error)) from None
    return Ready(run, samples, max(0.0, first - second))


def seconds_of(run: Callable[[], object]) -> float:
    """Of one run."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


Made = tuple[Callable[[], object], "Callable[[], torch.Tensor] | None"]


def plain(work: Work, evaluations: int, through_compile: bool = False) -> Made:
    """The loop that people write."""
    loop, scale = PlainLoop(work, evaluations, through_compile), work.program.init_scale
    names: dict[str, Any] = {"seed": SEED, "chains": work.slots, "device": work.device}

    def run() -> torch.Tensor:
        return loop(scale * torch.randn(work.batch, device=work.device))

    def samples() -> torch.Tensor:
        first = torch.tensor(scale, dtype=torch.float32) * normal_for(FIRST_STATE, work.shape, **names)
        return loop(first, lambda row: normal_for(ROW, work.shape, row=row, **names))

    return run, samples


def compiled(work: Work, evaluations: int) -> Made:
    """The same through ``torch.compile``."""
    return plain(work, evaluations, True)


def engine(work: Work, evaluations: int, **options: Any) -> Made:
    """An engine that lives on, as in a program that samples batch after batch."""
    made = Engine(work.denoiser, work.shape, work.slots, work.device, work.backend, **options)
    program = work.first(evaluations)

    def run() -> torch.Tensor:
        job = made.submit(program, work.slots, SEED, **work.job)
        x: torch.Tensor = made.run()[job]
        work.wait()
        return x

    return run, run


def kernel(work: Work, evaluations: int) -> Made:
    """An engine that walks whole chains in one kernel, the network included."""
    return engine(work, evaluations, chain_kernel="on")


def diffusers(work: Work, evaluations: int) -> Made:
    """The loop of a diffusers pipeline, on the scheduler that evaluates as often."""
    name, denoiser = type(work.sampler).__name__, work.denoiser
    schedule, steps = denoiser.schedule, getattr(work.sampler, "steps", None)
    if name not in SCHEDULERS or not isinstance(steps, int):
        raise Unlike(f"no scheduler that does what {work.program.sampler} does")
    if not isinstance(schedule, VariancePreserving) or denoiser.predicts not in PREDICTIONS or denoiser.guide:
        raise Unlike(f"its schedulers do not take {schedule!r} with predictions of {denoiser.predicts}")
    import diffusers as library

    betas = schedule.betas.tolist()
    settings: dict[str, Any] = {"trained_betas": betas, "prediction_type": PREDICTIONS[denoiser.predicts]}
    if name in ("DDIM", "DDPM"):
        settings["clip_sample"] = False
    scheduler = getattr(library, SCHEDULERS[name])(num_train_timesteps=len(betas), **settings)
    cond, uncond = (arguments_of(given, torch.device(work.device)) for given in (work.cond, work.uncond))
    dtype, size = denoiser.time_dtype, work.batch

    def predicted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times = t.to(dtype).expand(len(x))
        m = check_output(denoiser.network(x, times, **cond), size)
        if work.guidance is None:
            return m
        unguided = check_output(denoiser.network(x, times, **uncond), size)
        return unguided + work.guidance * (m - unguided)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            scheduler.set_timesteps(steps, device=work.device)
            x: torch.Tensor = torch.randn(size, device=work.device) * scheduler.init_noise_sigma
            for t in scheduler.timesteps[:evaluations]:
                x = scheduler.step(predicted(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        work.wait()
        return x

    return run, None
