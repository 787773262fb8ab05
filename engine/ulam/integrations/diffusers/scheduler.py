"""The part that all fused schedulers share: from a call of `step` to one execution of a row."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
import torch

from .execution import Call, short_way
from .levels import numbers
from .noise import Generators, Streams
from .outputs import Later, Pair, later_class
from .plan import Calls, Plan
from .threads import Local, Times

Timestep = float | torch.Tensor
MOST_PLANS = 32


class Fused:
    """A diffusers scheduler whose `step` runs ulam's rows. Mixed in before the scheduler's own class.

    Everything but `step` is diffusers' own. What `set_timesteps` makes, and how far a loop has come, is kept per
    thread. `timestep` may be a tensor [B], a timestep for every sample of the batch. The sample is never written to;
    the result has its dtype, and no gradient.
    """

    counted: ClassVar[bool] = True  # calls are counted from the first on, as diffusers counts them
    has_history: ClassVar[bool] = False  # a call reads what earlier calls left
    needs_steps: ClassVar[bool] = False  # there is no step before set_timesteps
    usual_options: ClassVar[tuple[Any, ...]] = ()  # the arguments of step that its rows depend on
    output: ClassVar[tuple[Any, str | None]]  # the class that step returns, its second member

    config: Any
    timesteps: Any
    sigmas: Any
    num_inference_steps: int | None
    _local: Local
    _shared: dict[str, Any]
    _version: int
    _plans: dict[Any, Plan]
    _lock: threading.Lock
    _original: ClassVar[Any]  # the class of diffusers

    _streams: Streams | None = None  # of noise-v1; None where noise comes from generators
    _backend: str | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        scheduler = super().__new__(cls)
        scheduler._local, scheduler._shared, scheduler._version = Local(), {}, 0
        scheduler._plans, scheduler._lock = {}, threading.Lock()
        return scheduler

    def __reduce__(self) -> Any:
        """A copy has the schedule of the thread that makes it, and begins a new loop."""
        return _rebuilt, (self._original, self._snapshot())

    def _snapshot(self) -> dict[str, Any]:
        """All attributes, as this thread sees them."""
        without = ("_local", "_shared", "_version", "_lock", "_plans")
        own = {name: value for name, value in vars(self).items() if name not in without}
        return {**own, **self._shared, **{name: getattr(self, name) for name in self._shared}}

    def _restore(self, attributes: dict[str, Any]) -> None:
        """Take over the attributes of a scheduler; a loop that it was in is not gone on with."""
        for name, value in attributes.items():
            setattr(self, name, value)
        self._begin()

    def _begin(self) -> None:
        """A new loop of this thread."""
        local = self._local
        local._step_index = local._begin_index = local.chains = local.shift = None
        local.start = local.level = local.corrections = 0

    # ---------------------------------------------------------------------------------- what a family provides

    def _check(self) -> None:
        """Raise ValueError for an option of the configuration that has no rows."""
        raise NotImplementedError

    def _calls(self, start: int, options: tuple[Any, ...]) -> Calls:
        """The calls of `step` from position `start` of the timesteps on."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------------- plan

    def _plan(self, options: tuple[Any, ...] = ()) -> Plan:
        """The calls on this thread's timesteps."""
        local = self._local
        plan = local.plan
        if plan is not None and local.version == self._version and plan.options == options:
            return plan
        if self.timesteps is None or (self.needs_steps and self.num_inference_steps is None):
            raise ValueError("Number of inference steps is 'None', you need to run 'set_timesteps' first")
        version, schedule = self._version, [getattr(self, name, None) for name in ("timesteps", "sigmas")]
        levels = [None if values is None else numbers(values) for values in (*schedule, self._levels())]
        key = (options, str(self.config), *(values if values is None else values.tobytes() for values in levels))
        with self._lock:
            plan = self._plans.get(key)
        if plan is None:
            assert levels[0] is not None
            plan = Plan(levels[0], lambda start: self._calls(start, options), options, self.has_history)
            with self._lock:
                self._plans[key] = plan
                if len(self._plans) > MOST_PLANS:
                    del self._plans[next(iter(self._plans))]
        if plan is not local.plan:
            local.shift = local.chains = None
        local.plan, local.version = plan, version
        local.times = Times(schedule[0], plan.times)
        return plan

    def _prepare(self) -> None:
        """Compile the usual rows, in float32, which the first call of step would otherwise wait for."""
        with suppress(ValueError):  # raised by the step that needs what there are no rows for
            plan = self._plan(self.usual_options)
            plan.offset(0)
            plan.table(self.timesteps.device, torch.float32)
        self._local.version = -1  # timesteps, sigmas and configuration may change before the first step

    def _levels(self) -> Any:
        """What the rows depend on beside timesteps, sigmas and the configuration."""
        return getattr(self, "alphas_cumprod", None)

    # -------------------------------------------------------------------------------------------------- position

    def _row(self, plan: Plan, timestep: Timestep, chains: int) -> int | torch.Tensor:
        """The table's row of this call, or the row of every chain [B]; counts on."""
        local = self._local
        value = None if self.counted else local.times.value(timestep)
        if value is None and isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            return self._rows_of_chains(plan, timestep, chains)
        if not self.counted:
            row = plan.rows.get(value)
            return self._looked_up(plan, timestep) if row is None else row
        position = self._position(plan, timestep)
        local._step_index = position + 1
        if local.shift is None:
            local.shift = plan.shift(local.start)
        return position + local.shift

    def _looked_up(self, plan: Plan, timestep: Timestep) -> int:
        """The row of a timestep of a scheduler that does not count calls."""
        position = self._lookup(plan, timestep)
        row = position + plan.shift(position)
        if position >= 0:
            plan.rows[plan.times[position]] = row
        return row

    def _position(self, plan: Plan, timestep: Timestep) -> int:
        """The position of this call in the timesteps: counted on, but for a loop that begins (anew)."""
        local = self._local
        position = local._step_index
        again = bool(position) and local.times.value(timestep) == plan.first
        if position is None or position >= plan.length or again:
            begin = local._begin_index
            position = self._lookup(plan, timestep) if begin is None else begin
            local.start, local.shift, local._step_index = position, None, position
        return position

    def _lookup(self, plan: Plan, timestep: Timestep) -> int:
        """The position of a timestep that is one of `self.timesteps`."""
        value = self._local.times.value(timestep)
        return self._at(plan, float(timestep if value is None else value))

    def _at(self, plan: Plan, time: float) -> int:
        """The position of a timestep's value. Raises ValueError where there is none."""
        return plan.at(time)

    def _rows_of_chains(self, plan: Plan, timestep: torch.Tensor, chains: int) -> torch.Tensor:
        """[B] rows; a chain goes on where it was, if its timestep is the next there, and starts at it otherwise."""
        local = self._local
        times = timestep.tolist()
        if timestep.dim() != 1 or len(times) != chains:
            raise ValueError(f"timestep must be a number or [{chains}], got shape {list(timestep.shape)}")
        known = local.chains if local.chains is not None and len(local.chains) == chains else [(-1, 0)] * chains
        now = []
        for time, (before, shift) in zip(times, known, strict=True):
            position = before + 1
            if before < 0 or position not in plan.positions.get(time, ()):
                position = self._at(plan, time)
                shift = plan.shift(position)
            now.append((position, shift))
        if self.counted:
            local.chains = now
        rows = [position + shift for position, shift in now]
        return torch.tensor(rows, device=timestep.device)

    # ------------------------------------------------------------------------------------------------------ step

    def _run(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators,
        return_dict: bool,
        *,
        options: tuple[Any, ...] = (),
        noise: torch.Tensor | None = None,
        noise_dtype: torch.dtype | None = None,
    ) -> Any:
        """One call of `step`: prev_sample in diffusers' output class, or in a tuple."""
        check_no_gradient(model_output, sample)
        local, plan = self._local, self._plan(options)
        row = self._row(plan, timestep, sample.shape[0])
        dtype = noise_dtype or model_output.dtype
        arguments = (plan, row, model_output, sample, generator, noise, dtype, self._streams, self._backend)
        previous, keeps = None, {}
        if noise is None and self._streams is None and dtype == torch.float32:
            previous = short_way(plan, row, model_output, sample, generator, local, self._backend)
        if previous is None:
            call = Call(*arguments)
            previous, keeps = call.previous(local), call.kept_noise(local)
        if local._step_index == plan.length:  # the loop is over
            local.registers = local.noise = None
        kind, second = self.output
        if second is None:
            return kind(previous) if return_dict else (previous,)
        later = Later(second, lambda: Call(*arguments).second(keeps), (model_output, sample))
        return later_class(kind, second)(previous, later) if return_dict else Pair(previous, later)


class ScaledInput(Fused):
    """A fused scheduler whose samples are x / alpha: the network reads them scaled."""

    def _input_scales(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[n] what the network's input is scaled by, at every position."""
        sigmas = numbers(self.sigmas)[: len(self.timesteps)]
        return np.asarray(1 / np.hypot(1, sigmas))

    def scale_model_input(self, sample: torch.Tensor, timestep: Timestep) -> torch.Tensor:
        """The network's input at `timestep`, a number or one a sample [B]: sample / sqrt(sigma^2 + 1)."""
        plan = self._plan(self._local.plan.options if self._local.plan is not None else self.usual_options)
        if plan.input_scales is None:
            plan.input_scales = self._input_scales().tolist()
        self._local.is_scale_input_called = True
        if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            before = self._local.chains
            self._rows_of_chains(plan, timestep, len(sample))
            now, self._local.chains = self._local.chains, before
            scales = torch.tensor([plan.input_scales[position] for position, _ in now or ()], device=sample.device)
            return sample * scales.to(sample.dtype).reshape(-1, *(1,) * (sample.dim() - 1))
        scale = plan.input_scales[self._position(plan, timestep)]
        if sample.requires_grad or not sample.is_contiguous():
            return sample * scale
        return torch.mul(sample, scale, out=self._local.buffers.empty_like(sample))


def check_no_gradient(model_output: torch.Tensor, sample: torch.Tensor) -> None:
    """Raises RuntimeError where autograd expects a gradient of the step, which has none."""
    if (sample.requires_grad or model_output.requires_grad) and torch.is_grad_enabled():
        raise RuntimeError("step has no gradient: call it under torch.no_grad(), or detach model_output and sample")


def _rebuilt(original: Any, attributes: dict[str, Any]) -> Any:
    from .fusing import fused

    scheduler = fused(original).__new__(fused(original))
    scheduler._restore(attributes)
    return scheduler
