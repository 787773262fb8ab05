"""Loops over diffusers' schedulers and their fused counterparts, for the tests of fuse."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import diffusers
import torch

from ulam.integrations.diffusers.fusing import FAMILIES

# Those without a `step` of the usual arguments, or without a call at every timestep.
OWN_LOOP = {
    *("ScoreSdeVeScheduler", "ScoreSdeVpScheduler", "SCMScheduler", "HeliosDMDScheduler", "PiflowScheduler"),
    *("RFD4ProteinaScheduler", "CogVideoXDPMScheduler", "DDPMWuerstchenScheduler", "MiniMaxH3Scheduler"),
    *("RePaintScheduler", "KarrasVeScheduler"),
}
ALL = sorted(set(FAMILIES) - OWN_LOOP)
CONFIG: dict[str, dict[str, Any]] = {  # without which there is none, or no plain set_timesteps(steps)
    "HeliosScheduler": {"stages": 1},
    "HeliosDMDScheduler": {"stages": 1},
    "RFD4ProteinaScheduler": {
        "schedule_mode": "log",
        "noise_mode": "tan",
        "tsr_k": 2.0,
        "tsr_sigma": 0.7,
        "tail_steps": 2,
    },
}
SHAPE = (3, 3, 4, 4)
MADE: dict[str, Any] = {}  # by :func:`make`
MEMBERS = ("prev_sample", "pred_original_sample", "denoised")  # Helios' step also gives its history


def make(name: str, **config: Any) -> Any:
    """diffusers' scheduler of that name: a copy of the first like it, since some of them take long."""
    config = {**CONFIG.get(name, {}), **config}
    if not all(value is None or isinstance(value, (str, int, float)) for value in config.values()):
        return getattr(diffusers.schedulers, name)(**config)
    if (key := f"{name} {config}") not in MADE:
        MADE[key] = getattr(diffusers.schedulers, name)(**config)
    return copy.deepcopy(MADE[key])


def set_steps(scheduler: Any, steps: int) -> None:
    """set_timesteps(steps), with what a class asks for besides."""
    scheduler.set_timesteps(
        steps, **({"intermediate_timesteps": None} if isinstance(scheduler, diffusers.SCMScheduler) else {})
    )


def network(x: torch.Tensor, t: Any, doubled: bool = False) -> torch.Tensor:
    """A smooth function of the sample and the timestep, so that errors of one step carry into the next."""
    m = 0.6 * torch.tanh(x) + 0.1 * torch.sin(x + torch.as_tensor(t).to(x.dtype).reshape(-1, 1, 1, 1) / 100)
    return torch.cat([m, torch.cos(m)], dim=1) if doubled else m


def begin(scheduler: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Generator]:
    """The first sample of a loop, and the generator that the loop goes on with."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    return x.to(dtype), generator


def loop(
    scheduler: Any,
    steps: int | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    doubled: bool = False,
    first: int = 0,
    **step: Any,
) -> list[tuple[torch.Tensor, ...]]:
    """What every call of step returned, from call `first` of the timesteps on."""
    if steps is not None:
        scheduler.set_timesteps(steps)
    x, generator = begin(scheduler, seed, dtype)
    if "generator" in inspect.signature(scheduler.step).parameters:
        step["generator"] = generator
    returned = []
    for t in scheduler.timesteps[first:]:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = scheduler.step(network(scaled, t, doubled), t, x, **step)
        x = output.prev_sample
        returned.append(tuple(output[key] for key in output if key in MEMBERS))
    return returned


def assert_same_loops(
    ours: list[tuple[torch.Tensor, ...]], theirs: list[tuple[torch.Tensor, ...]], close: float = 1e-4
) -> None:
    """All outputs of all calls within `close` of the largest value that the loop met (at least 1)."""
    assert len(ours) == len(theirs)
    for member in range(len(theirs[0])):
        mine, other = (torch.stack([call[member].float() for call in calls]) for calls in (ours, theirs))
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= close * max(1.0, float(other.abs().max()))
