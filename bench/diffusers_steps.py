"""The time of fused schedulers beside diffusers' own, on the CPU: `python -m bench.diffusers_steps`.

One call is what a pipeline spends on its scheduler a step: scale_model_input and step, with a generator. Prints a table
for a batch of images and one for two elements (the cost of a call itself), then the schedulers' share of whole loops,
with the network's output ready and with a convolution between the calls, which leaves cold caches, and of diffusers'
own pipelines with a small UNet, and writes bench/results/diffusers-steps-DATE.json. There one addition of torch's shows
what a pass over the memory costs, which no step can do without. The candidates of a row are timed in turn, in one
process. Every call returns a new tensor on both sides; whether the memory allocator has it at hand, or
must fault pages in, is part of the time.
"""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from bench.timing import Timing, interleaved, summary, table, write
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from ulam.integrations.diffusers import fuse

IMAGES, FLOOR = (64, 3, 64, 64), (2, 1)
STEPS, AT = 50, 20  # steps of a loop, and the one that is timed
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {},
    "DDIMScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "EulerDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {},
}


def call(scheduler: Any, shape: tuple[int, ...], seed: int = 0) -> Callable[[], object]:
    """One step in the middle of a loop whose first AT steps have been taken."""
    generator = torch.Generator().manual_seed(seed)
    x, m = (torch.randn(shape, generator=generator) for _ in range(2))
    named = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    scheduler.set_timesteps(STEPS)
    scaled = hasattr(scheduler, "scale_model_input")

    def step(at: int) -> object:
        t = times[at]
        if scaled:
            scheduler.scale_model_input(x, t)
        return scheduler.step(m, t, x, **named).prev_sample

    times = list(scheduler.timesteps)
    for at in range(AT):
        step(at)
    counted = hasattr(type(scheduler), "_init_step_index")

    def repeated() -> object:
        if counted:
            scheduler._step_index = AT  # the step just taken, again
        return step(AT)

    return repeated


def loop(scheduler: Any, network: Callable[[torch.Tensor], torch.Tensor], steps: int = 20) -> float:
    """Seconds a step that a loop spends in its scheduler."""
    generator, spent = torch.Generator().manual_seed(0), 0.0
    x = torch.randn(IMAGES, generator=generator)
    scheduler.set_timesteps(steps)
    named = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    with torch.no_grad():
        for t in scheduler.timesteps:
            begin = time.perf_counter()
            net_in = scheduler.scale_model_input(x, t)
            spent += time.perf_counter() - begin
            m = network(net_in)
            begin = time.perf_counter()
            x = scheduler.step(m, t, x, **named).prev_sample
            spent += time.perf_counter() - begin
    return spent / steps


class OnePass:
    """In a scheduler's place: a step is one `torch.add` into memory at hand, and gives an output of diffusers'."""

    def __init__(self) -> None:
        self.timesteps, self._memory = torch.arange(0), [torch.zeros(IMAGES) for _ in range(2)]

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.arange(steps).flip(0)

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **_: Any) -> DDIMSchedulerOutput:
        self._memory.reverse()
        return DDIMSchedulerOutput(prev_sample=torch.add(sample, model_output, alpha=0.01, out=self._memory[0]))


def pipeline(scheduler: Any, unet: diffusers.UNet2DModel, steps: int = 10) -> float:
    """Seconds a step that a pipeline of diffusers spends in its scheduler's `step`."""
    kind = diffusers.DDIMPipeline if "DDIM" in type(scheduler).__name__ else diffusers.DDPMPipeline
    pipe, real, spent = kind(unet, diffusers.DDPMScheduler()), scheduler.step, 0.0

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal spent
        begin = time.perf_counter()
        result = real(*args, **kwargs)
        spent += time.perf_counter() - begin
        return result

    pipe.scheduler = scheduler  # a DDIMPipeline makes itself another from the one it is constructed with
    pipe.set_progress_bar_config(disable=True)
    scheduler.step = step
    try:
        generator = torch.Generator().manual_seed(0)
        pipe(batch_size=IMAGES[0], generator=generator, num_inference_steps=steps, output_type="np")
    finally:
        del scheduler.step
    return spent / steps


def small_unet() -> diffusers.UNet2DModel:
    """Of eight channels: a step takes long enough for cold caches."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return diffusers.UNet2DModel(
        sample_size=IMAGES[-1], block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, **blocks
    ).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="time spent on each row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: dict[str, dict[str, Timing]] = {}
    for shape in (IMAGES, FLOOR):
        for name, config in SCHEDULERS.items():
            theirs = getattr(diffusers, name)(**config)
            candidates = {"ulam fused": call(fuse(theirs), shape), "diffusers": call(theirs, shape)}
            timings = interleaved(candidates, arguments.seconds)
            title = f"{name}, {' x '.join(map(str, shape))}"
            figures[title] = timings
            print(table(title, timings, ours="ulam fused"))
    unet = small_unet()
    networks: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "ready": partial(lambda ready, _: ready, torch.randn(IMAGES)),
        "convolved": torch.nn.Conv2d(3, 3, 3, padding=1),
    }
    for name in list(SCHEDULERS)[:3]:
        theirs = getattr(diffusers, name)()
        schedulers = {"ulam fused": fuse(theirs), "diffusers": theirs}
        loops: dict[str, tuple[Callable[[Any], float], int]] = {
            f"a loop, output {between}": (partial(loop, network=network), 10) for between, network in networks.items()
        }
        loops["a pipeline"] = partial(pipeline, unet=unet), 10
        for what, (run, times) in loops.items():
            rows = schedulers | ({"one torch.add": OnePass()} if what == "a pipeline" else {})
            for scheduler in rows.values():
                run(scheduler)
            seconds: dict[str, list[float]] = {row: [] for row in rows}
            for _ in range(times):
                for row, scheduler in rows.items():
                    seconds[row].append(run(scheduler))
            title = f"{name}, a step of {what}"
            figures[title] = {row: summary(values) for row, values in seconds.items()}
            print(table(title, figures[title], ours="ulam fused"))
    print(write("diffusers-steps", figures, steps=STEPS))


if __name__ == "__main__":
    main()
