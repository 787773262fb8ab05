"""A scheduler's state of which every thread has its own: what `set_timesteps` made, and how far a loop has come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ulam_kernels.dispatch import load

from .arguments import check_timestep, number
from .buffers import Buffers

if TYPE_CHECKING:
    from ...schedules import Array
    from .call_table import CallTable

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
    "_times",
    "_noise",
    "_piflow_raw_timesteps",
    "alphas",
    "betas",
    "schedule",
    "sigmas_down",
    "sigmas_up",
    "tau_func",
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
    """A thread's timesteps as numbers; one on another device is known by its address, without waiting for that."""

    def __init__(self, timesteps: Any, values: list[float]) -> None:
        self._kept = timesteps  # keeps the memory alive, so its addresses stay unique
        self._values, self._first, self._end, self._size = values, 0, 0, 0
        self._read = getattr(load("cpu"), "scalar", lambda tensor: None)
        tensor = isinstance(timesteps, torch.Tensor) and not timesteps.is_inference()
        if tensor and timesteps.dim() == 1 and timesteps.is_contiguous():
            self._first, self._size = timesteps.data_ptr(), timesteps.element_size()
            self._end, self._version = self._first + self._size * len(timesteps), timesteps._version

    def value(self, timestep: float | torch.Tensor) -> float | None:
        """A timestep as a number; None for several, and for one that could be read only by waiting for a device."""
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
        """The position of a timestep that is an element of the timesteps in memory; None for others, and after a
        change in place.
        """
        if not isinstance(timestep, torch.Tensor) or timestep.numel() != 1:
            return None
        address = timestep.data_ptr()
        if self._first <= address < self._end and self._kept._version == self._version:
            return (address - self._first) // self._size
        return None


class Local(threading.local):
    """One thread's share of a scheduler. The attributes of diffusers' own are kept beside these."""

    _step_index: int | None = None
    _begin_index: int | None = None
    version: int = -1  # the scheduler's when `calls` was found
    calls: CallTable | None = None
    times: Times  # those of `calls`
    start: int = 0  # the position that the loop began at
    before: tuple[int, int | None, int | None] | None = None  # start, row_offset, _step_index when the loop began
    row_offset: int | None = None  # from a position to its row in `calls`, None where not known yet
    registers: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    chains: list[tuple[int, int]] | None = None  # (position, row_offset) of every chain, where timesteps differ
    chains_before: list[tuple[int, int]] | None = None  # before the last call
    predictor_steps: int = 0  # of a score SDE, so far
    corrector_steps: int = 0  # since the last predictor step
    taus: Array | None = None  # of SA-Solver's steps, as they were compiled
    score_tables: tuple[Any, dict[Any, Any]] | None = None
    programs: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.buffers = Buffers()  # new for each thread


class PerThread:
    """An attribute that each thread sets for itself.

    A thread that has not set it sees, of the schedule, what another thread set last, and of the progress through it the
    value that the scheduler began with.
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


class Threaded:
    """A scheduler with state per thread: made, copied, begun anew, and put back after a refusal."""

    _local: Local
    _shared: dict[str, Any]
    _version: int  # counts changes of the schedule by any thread
    _call_tables: dict[Any, CallTable]
    _lock: threading.Lock

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        scheduler = super().__new__(cls)
        scheduler._local, scheduler._shared, scheduler._version = Local(), {}, 0
        scheduler._call_tables, scheduler._lock = {}, threading.Lock()
        return scheduler

    def _snapshot(self) -> dict[str, Any]:
        """All attributes, as this thread sees them."""
        without = ("_local", "_shared", "_version", "_lock", "_call_tables")
        own = {name: value for name, value in vars(self).items() if name not in without}
        return {**own, **self._shared, **{name: getattr(self, name) for name in self._shared}}

    def _restore(self, attributes: dict[str, Any]) -> None:
        """Take over the attributes of a scheduler, but not the loop that it was in."""
        for name, value in attributes.items():
            setattr(self, name, value)
        self._begin()

    def _begin(self) -> None:
        """Begin a new loop of this thread."""
        local = self._local
        local._step_index = local._begin_index = local.chains = local.row_offset = None
        local.start = local.predictor_steps = local.corrector_steps = 0

    @contextmanager
    def _unchanged_if_refused(self) -> Iterator[None]:
        """Within it an exception leaves this thread's schedule, and its progress, as they were."""
        local = vars(self._local)
        own, shared = dict(local), dict(self._shared)
        try:
            yield
        except BaseException:  # an interrupt too
            for name, value in local.items():
                if name not in self._shared or self._shared[name] is not value:
                    continue  # another thread's, or none
                if name not in shared:
                    del self._shared[name]
                else:
                    self._shared[name] = shared[name]
            local.clear()
            local.update(own)
            self._version += 1
            raise
