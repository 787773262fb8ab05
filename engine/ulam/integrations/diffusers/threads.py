"""State of which every thread has its own: what `set_timesteps` made, and how far a loop has come."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from ulam_kernels.dispatch import load

from .arguments import check_timestep, number
from .buffers import Buffers

if TYPE_CHECKING:
    from .call_table import Plan

# What `set_timesteps` and `step` of diffusers' schedulers assign.
SCHEDULE = (
    "timesteps",
    "sigmas",
    "num_inference_steps",
    "custom_timesteps",
    "_timesteps",
    "prk_timesteps",
    "plms_timesteps",
    "sigmas_interpol",
    "log_sigmas",
    "order_list",
    "discrete_sigmas",
    "alphas_cumprod",
)
PROGRESS = (
    "_step_index",
    "_begin_index",
    "counter",
    "cur_model_output",
    "cur_sample",
    "derivatives",
    "dt",
    "ets",
    "is_scale_input_called",
    "last_sample",
    "lower_order_nums",
    "model_outputs",
    "prev_derivative",
    "sample",
    "this_order",
    "timestep_list",
)


class Times:
    """A thread's timesteps as numbers: one on another device is known by its address, without waiting for it."""

    def __init__(self, timesteps: Any, values: list[float]) -> None:
        self._kept = timesteps  # else something else could come to lie there
        self._values, self._first, self._end, self._each = values, 0, 0, 0
        self._read = getattr(load("cpu"), "scalar", lambda tensor: None)
        tensor = isinstance(timesteps, torch.Tensor) and not timesteps.is_inference()
        if tensor and timesteps.dim() == 1 and timesteps.is_contiguous():
            self._first, self._each = timesteps.data_ptr(), timesteps.element_size()
            self._end, self._version = self._first + self._each * len(timesteps), timesteps._version

    def value(self, timestep: float | torch.Tensor) -> float | None:
        """A timestep as a number; None for several, and where that would have to wait for a device."""
        value: float | None = self._read(timestep)
        if value is not None:
            return value
        if not isinstance(timestep, torch.Tensor):
            return float(timestep) if type(timestep) is float else number(timestep)
        check_timestep(timestep)
        if timestep.numel() != 1:
            return None
        position = self.position(timestep)
        if position is not None:
            return self._values[position]
        return float(timestep.detach()) if timestep.is_cpu else None

    def position(self, timestep: float | torch.Tensor) -> int | None:
        """Where a timestep lies among those kept; None for one that is no part of their memory, or changed."""
        if not isinstance(timestep, torch.Tensor) or timestep.numel() != 1:
            return None
        address = timestep.data_ptr()
        if self._first <= address < self._end and self._kept._version == self._version:
            return (address - self._first) // self._each
        return None


class Local(threading.local):
    """One thread's share of a scheduler. The attributes of diffusers' own lie beside these."""

    _step_index: int | None = None
    _begin_index: int | None = None
    version: int = -1  # the scheduler's when `plan` was found
    plan: Plan | None = None
    times: Times  # those of the plan
    start: int = 0  # the position that the loop began at
    before: tuple[int, int | None, int | None] | None = None  # start, shift and _step_index when the loop began
    shift: int | None = None  # row of the plan's table less position in the timesteps, None where not known yet
    registers: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    chains: list[tuple[int, int]] | None = None  # (position, shift) of every chain, where timesteps differ
    chains_before: list[tuple[int, int]] | None = None  # before the last call
    level: int = 0  # predictor steps of a score SDE so far
    corrections: int = 0  # its corrector steps since
    score_tables: tuple[Any, dict[Any, Any]] | None = None
    programs: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.buffers = Buffers()  # for each thread anew


class PerThread:
    """An attribute that each thread sets for itself.

    A thread that has not set it sees what another set last, for the schedule, and the value that the scheduler
    began with, for the progress through it.
    """

    def __init__(self, name: str, progress: bool) -> None:
        self.name, self.progress = name, progress

    def __get__(self, scheduler: Any, owner: type) -> Any:
        if scheduler is None:
            return self
        try:
            return getattr(scheduler._local, self.name)
        except AttributeError:
            pass
        try:
            return scheduler._shared[self.name]
        except KeyError:
            raise AttributeError(f"{owner.__name__} has no attribute {self.name!r}") from None

    def __set__(self, scheduler: Any, value: Any) -> None:
        setattr(scheduler._local, self.name, value)
        shared = scheduler._shared
        if self.progress:
            shared.setdefault(self.name, value)
        elif shared.get(self.name, self) is not value:
            shared[self.name] = value
            scheduler._version += 1
