"""The part that all fused schedulers share: from a call of `step` to one execution of a row."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch.compiler import is_dynamo_compiling

from ...schedules import Array
from .arguments import check_batch, check_return_dict, check_sample, check_timestep
from .call_table import Calls, Plan
from .configuration import check_config, short
from .execution import Call, short_way
from .noise import Generators, Streams
from .outputs import Later, Pair, later_class
from .threads import Local, Times
from .tracing import apart, check_not_recorded, modes, traced, transformed
from .translation import LAST_RISE, numbers

Timestep = float | torch.Tensor
TENSOR = torch.Tensor
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

    @contextmanager
    def _as_before_if_refused(self) -> Iterator[None]:
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
        steps = getattr(self, "num_inference_steps", None)  # which timesteps that the caller set do not tell
        key = (options, str(self.config), steps, *(values if values is None else values.tobytes() for values in levels))
        with self._lock:
            plan = self._plans.get(key)
        if plan is None:
            assert levels[0] is not None
            check_config(self.config, type(self).__name__)
            self._check_times(levels[0])
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
        """Compile the usual rows, in float32, which the first call of step would otherwise wait for.

        Raises ValueError for sigmas that have no rows, and where there are none from any timestep on. Where only later
        timesteps have rows, the step that needs others raises it: a loop may leave those out.
        """
        try:
            plan = self._plan(self.usual_options)
            self._check_sigmas()
            try:
                plan.offset(0)
            except ValueError:
                if not plan.has_rows_later():
                    raise
            else:
                plan.table(self.timesteps.device, torch.float32)
        finally:
            self._local.version = -1  # timesteps, sigmas and configuration may change before the first step

    def _check_times(self, times: Array) -> None:
        """Raise ValueError for timesteps that tell no position."""
        if not len(times) or not np.isfinite(times).all():
            raise ValueError(f"timesteps: got {short(times.tolist())}, expected at least one, all finite")
        if not self.counted and len(set(times.tolist())) < len(times):
            twice = next(time for time in times if (times == time).sum() > 1)
            who = type(self).__name__
            raise ValueError(f"timesteps: got {twice:g} twice, expected each once: {who} knows a step by its timestep")

    def _check_sigmas(self) -> None:
        """Raise ValueError for noise levels that rise, lie below 0 or are not finite."""
        if getattr(self, "sigmas", None) is None:
            return
        levels = numbers(self.sigmas)[: len(self.timesteps) + 1]
        most = 1.0 if self._on_flow() else np.inf
        if not (np.isfinite(levels) & (levels >= 0) & (levels <= most)).all():
            limits = "from 0 to 1" if self._on_flow() else "of at least 0"
            raise ValueError(f"sigmas: got {short(levels.tolist())}, expected finite levels {limits}")
        falls = levels[1:] <= levels[:-1] * (1 + 1e-6)
        falls[-1:] |= levels[-1:] < levels[-2:-1] * (1 + LAST_RISE)
        if not falls.all() and not self.config.get("invert_sigmas"):
            at = int(np.argmin(falls))
            raise ValueError(f"sigmas: got {levels[at]:g} before {levels[at + 1]:g}, expected levels that do not rise")

    def _on_flow(self) -> bool:
        """Whether sigmas are flow matching's, from 1 to 0."""
        return bool(self.config.get("use_flow_sigmas"))

    def _levels(self) -> Any:
        """What the rows depend on beside timesteps, sigmas and the configuration."""
        return getattr(self, "alphas_cumprod", None)

    # -------------------------------------------------------------------------------------------------- position

    def _row(self, plan: Plan, timestep: Timestep, sample: torch.Tensor) -> int | torch.Tensor:
        """The table's row of this call, or the row of every chain [B]; counts on."""
        local = self._local
        if not self.counted:
            row = plan.rows.get(local.times.value(timestep))
            if row is not None:
                return row
        if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            check_batch(sample, "sample")
            return self._rows_of_chains(plan, timestep, len(sample))
        if not self.counted:
            return self._looked_up(plan, timestep)
        position = local._step_index
        if (
            position is None
            or position >= plan.length
            or (position and local.times.value(timestep) == plan.first and self._begins_anew(plan, position, timestep))
        ):
            position = self._begun(plan, timestep)
        if local.shift is None:
            try:
                local.shift = plan.shift(local.start)
            except ValueError:  # no rows from there on
                local.start, local.shift, local._step_index = local.before or (0, None, None)
                raise
        local._step_index = position + 1
        return position + local.shift

    def _step_back(self, of_chains: bool) -> None:
        """The progress before a call that was refused behind `_row`."""
        local = self._local
        if not self.counted:
            return
        if of_chains:
            local.chains = local.chains_before
            return
        assert local._step_index is not None
        local._step_index -= 1
        if local._step_index == local.start and local.before is not None:
            local.start, local.shift, local._step_index = local.before

    def _looked_up(self, plan: Plan, timestep: Timestep) -> int:
        """The row of a timestep of a scheduler that does not count calls."""
        position = self._lookup(plan, timestep)
        row = position + plan.shift(position)
        if position >= 0:
            plan.rows[plan.times[position]] = row
        return row

    def _position(self, plan: Plan, timestep: Timestep) -> int:
        """The position of this call in the timesteps: counted on, but for a loop that begins (anew)."""
        position = self._local._step_index
        if position is None or position >= plan.length:
            return self._begun(plan, timestep)
        if position and self._local.times.value(timestep) == plan.first and self._begins_anew(plan, position, timestep):
            return self._begun(plan, timestep)
        return position

    def _begun(self, plan: Plan, timestep: Timestep) -> int:
        """The position that a loop begins at: that of `set_begin_index`, or else its timestep's."""
        local = self._local
        begin = local._begin_index
        position = self._lookup(plan, timestep) if begin is None else _checked_begin(plan, begin)
        local.before = local.start, local.shift, local._step_index
        local.start, local.shift, local._step_index = position, None, position
        return position

    def _begins_anew(self, plan: Plan, position: int, timestep: Timestep) -> bool:
        """Whether the first timestep's value, told after it, begins a new loop: not where it is due once more."""
        return plan.times[position] != plan.first or self._local.times.position(timestep) == 0

    def _lookup(self, plan: Plan, timestep: Timestep) -> int:
        """The position of a timestep that is one of `self.timesteps`; of equal ones the very one where it is a part.

        Else a loop that begins at the first timestep begins at the first row, and one that begins at another, of
        several equal ones, at the second of them, as in diffusers.
        """
        times = self._local.times
        value = times.value(timestep)
        time = float(timestep if value is None else value)
        if not math.isfinite(time):
            raise ValueError(f"timestep: got {time}, expected one of scheduler.timesteps")
        equal = plan.positions.get(time, ())
        if len(equal) > 1:
            position = times.position(timestep)
            return position if position in equal else self._among(equal)
        return self._at(plan, time)

    def _at(self, plan: Plan, time: float) -> int:
        """The position of a timestep's value, which is there once at most. Raises ValueError where there is none."""
        return plan.at(time)

    def _among(self, equal: Sequence[int]) -> int:
        """Of the positions of equal timesteps the one that a loop begins at."""
        return equal[0] if equal[0] == 0 else equal[1]

    def _rows_of_chains(self, plan: Plan, timestep: torch.Tensor, chains: int) -> torch.Tensor:
        """[B] rows; a chain goes on where it was, if its timestep is the next there, and starts at it otherwise."""
        local = self._local
        check_timestep(timestep)
        times = timestep.tolist()
        if timestep.dim() != 1 or len(times) != chains:
            raise ValueError(f"timestep must be a number or [{chains}], got shape {list(timestep.shape)}")
        known = local.chains if local.chains is not None and len(local.chains) == chains else [(-1, 0)] * chains
        now = []
        for time, (before, shift) in zip(times, known, strict=True):
            position = before + 1
            if before < 0 or position not in plan.positions.get(time, ()):
                position = self._first_of_chain(plan, time)
                shift = plan.shift(position)
            now.append((position, shift))
        if self.counted:
            local.chains_before, local.chains = local.chains, now
        rows = [position + shift for position, shift in now]
        return torch.tensor(rows, device=timestep.device)

    def _first_of_chain(self, plan: Plan, time: float) -> int:
        """The position that a chain begins at: that of `set_begin_index`, if its timestep is the one there."""
        equal, begin = plan.positions.get(time, ()), self._local._begin_index
        if begin in equal:
            return begin  # type: ignore[return-value]
        return self._among(equal) if len(equal) > 1 else self._at(plan, time)

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
        if is_dynamo_compiling():
            return _run_apart(
                self,
                model_output,
                timestep,
                sample,
                generator,
                return_dict,
                options=options,
                noise=noise,
                noise_dtype=noise_dtype,
            )
        if modes() or traced() is not None or transformed() is not None:
            check_not_recorded("step")
        if type(sample) is not TENSOR or type(model_output) is not TENSOR:
            check_sample(sample, model_output)
        if return_dict is not True and return_dict is not False:
            check_return_dict(return_dict)
        if sample.requires_grad or model_output.requires_grad or noise is not None:
            check_no_gradient(model_output=model_output, sample=sample, variance_noise=noise)
        local = self._local
        plan = local.plan
        if plan is None or local.version != self._version or plan.options != options:
            plan = self._plan(options)
        row = self._row(plan, timestep, sample)
        dtype = noise_dtype or model_output.dtype
        arguments = (plan, row, model_output, sample, generator, noise, dtype, self._streams, self._backend)
        previous, keeps = None, {}
        try:
            if noise is None and self._streams is None and dtype == torch.float32:
                previous = short_way(plan, row, model_output, sample, generator, local, self._backend)
            if previous is None:
                call = Call(*arguments)
                previous, keeps = call.previous(local), call.kept_noise(local)
        except BaseException:  # an interrupt too
            self._step_back(isinstance(row, torch.Tensor))
            raise
        if local._step_index == plan.length:  # the loop is over
            local.registers = local.noise = None
        kind, second = self.output
        if second is None:
            return kind(previous) if return_dict else (previous,)
        later = Later(second, lambda: Call(*arguments).second(keeps), (model_output, sample))
        return later_class(kind, second)(previous, later) if return_dict else Pair(previous, later)


_run_apart = apart(Fused._run)


class ScaledInput(Fused):
    """A fused scheduler whose samples are x / alpha: the network reads them scaled."""

    def _input_scales(self) -> Array:
        """[n] what the network's input is scaled by, at every position."""
        sigmas = numbers(self.sigmas)[: len(self.timesteps)]
        return np.asarray(1 / np.hypot(1, sigmas))

    def scale_model_input(self, sample: torch.Tensor, timestep: Timestep) -> torch.Tensor:
        """The network's input at `timestep`, a number or one a sample [B]: sample / sqrt(sigma^2 + 1)."""
        if is_dynamo_compiling():
            return _scaled_apart(self, sample, timestep)
        if modes() or traced() is not None or transformed() is not None:
            check_not_recorded("scale_model_input")
        if type(sample) is not TENSOR or sample.is_meta or sample.dtype is not torch.float32 or sample.is_sparse:
            check_batch(sample, "sample")
        local = self._local
        plan = local.plan
        if plan is None or local.version != self._version:
            plan = self._plan(self.usual_options if plan is None else plan.options)
        if plan.input_scales is None:
            plan.input_scales = self._input_scales().tolist()
        local.is_scale_input_called = True
        if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            before = local.chains
            self._rows_of_chains(plan, timestep, len(sample))
            now, local.chains = local.chains, before
            scales = torch.tensor([plan.input_scales[position] for position, _ in now or ()], device=sample.device)
            return sample * scales.to(sample.dtype).reshape(-1, *(1,) * (sample.dim() - 1))
        scale = plan.input_scales[self._position(plan, timestep)]
        if sample.requires_grad or not sample.is_contiguous():
            return sample * scale
        return torch.mul(sample, scale, out=local.buffers.empty_like(sample))


_scaled_apart = apart(ScaledInput.scale_model_input)


def check_no_gradient(**tensors: object) -> None:
    """Raises RuntimeError where autograd expects a gradient of the step, which has none."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            raise RuntimeError(
                f"{name}: got a tensor that requires grad, but step has no gradient, expected its .detach(), or a call "
                "under torch.no_grad()"
            )


def index_for_timestep(self: Any, timestep: Timestep, schedule_timesteps: Any = None) -> int:
    """The position of a timestep for diffusers' `add_noise`: where a loop begins at it."""
    times = self.timesteps if schedule_timesteps is None else schedule_timesteps
    equal = np.flatnonzero(numbers(times) == float(timestep)).tolist()
    if len(equal) > 1:
        known = getattr(self._local, "times", None)
        position = known.position(timestep) if known is not None else None
        return position if position in equal else self._among(equal)  # type: ignore[no-any-return]
    return self._original.index_for_timestep(self, timestep, schedule_timesteps)  # type: ignore[no-any-return]


def _checked_begin(plan: Plan, begin: Any) -> int:
    """What `set_begin_index` set. Raises ValueError where there is no such position."""
    if isinstance(begin, bool) or not isinstance(begin, (int, np.integer)) or not 0 <= begin < plan.length:
        raise ValueError(f"begin_index: got {begin!r}, expected a position of the {plan.length} timesteps")
    return int(begin)


def _rebuilt(original: Any, attributes: dict[str, Any]) -> Any:
    from .fusing import fused

    scheduler = fused(original).__new__(fused(original))
    scheduler._restore(attributes)
    return scheduler
