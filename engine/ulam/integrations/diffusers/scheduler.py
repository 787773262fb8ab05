"""What all fused schedulers share: from a call of `step` to one execution of a row."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch.compiler import is_dynamo_compiling

from ulam_kernels.tracing import modes, traced, transformed

from ...schedules import Array
from .arguments import check_batch, check_no_gradient, check_return_dict, check_sample
from .call_table import CallRows, CallTable
from .configuration import check_config, short
from .execution import Call, fast_path
from .noise import Generators, Streams
from .outputs import LazyOutput, LazyPair, lazy_class
from .positions import Positioned, Timestep
from .threads import Times
from .tracing import check_not_recorded, with_graph_break
from .translation import LAST_RISE, numbers

TENSOR = torch.Tensor
MOST_TABLES = 32
NO_TIMESTEPS = "timesteps: got none, expected a call of set_timesteps first"


class Fused(Positioned):
    """A diffusers scheduler whose `step` runs ulam's rows. Mixed in before the scheduler's own class.

    Everything but `step` is diffusers' own. What `set_timesteps` makes, and how far a loop has come, is kept per
    thread. `timestep` may be a tensor [B], a timestep for every sample of the batch. The sample is never written to;
    the result has its dtype, and no gradient.
    """

    has_history: ClassVar[bool] = False  # a call reads what earlier calls left
    needs_steps: ClassVar[bool] = False  # there is no step before set_timesteps
    usual_options: ClassVar[tuple[Any, ...]] = ()  # the arguments of step that its rows depend on
    output: ClassVar[tuple[Any, str | None]]  # the class that step returns, its second member

    config: Any
    timesteps: Any
    sigmas: Any
    num_inference_steps: int | None
    _original: ClassVar[Any]  # the class of diffusers

    _streams: Streams | None = None  # of noise-v1; None where noise comes from generators
    _backend: str | None = None

    # ---------------------------------------------------------------------------------- what a family provides

    def _check(self) -> None:
        """Raise ValueError for an option of the configuration that has no rows."""
        raise NotImplementedError

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        """The calls of `step` from position `start` of the timesteps on."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------- the table

    def _call_table(self, options: tuple[Any, ...] = ()) -> CallTable:
        """The calls on this thread's timesteps.

        Raises ValueError for timesteps, levels or a configuration that have no rows.
        """
        local = self._local
        calls = local.calls
        if calls is not None and local.version == self._version and calls.options == options:
            return calls
        if getattr(self, "timesteps", None) is None:
            raise ValueError(NO_TIMESTEPS)
        version, schedule = self._version, [self._told(), getattr(self, "sigmas", None)]
        levels = [None if values is None else numbers(values) for values in (*schedule, self._levels())]
        steps = getattr(self, "num_inference_steps", None)  # not known by timesteps that the caller set
        key = (options, str(self.config), steps, *(values if values is None else values.tobytes() for values in levels))
        with self._lock:
            calls = self._call_tables.get(key)
        if calls is None:
            assert levels[0] is not None
            check_config(self.config, type(self).__name__)
            self._check_times(levels[0])
            calls = CallTable(levels[0], lambda start: self._rows_from(start, options), options, self.has_history)
            with self._lock:
                self._call_tables[key] = calls
                if len(self._call_tables) > MOST_TABLES:
                    del self._call_tables[next(iter(self._call_tables))]
        if calls is not local.calls:
            local.row_offset = local.chains = None
        local.calls, local.version = calls, version
        local.times = Times(schedule[0], calls.times)
        return calls

    def _rows_from(self, start: int, options: tuple[Any, ...]) -> CallRows:
        """`_call_rows`. Raises ValueError where diffusers has no step yet, though it has timesteps."""
        if self.needs_steps and self.num_inference_steps is None:
            raise ValueError(NO_TIMESTEPS)
        return self._call_rows(start, options)

    def _prepare(self) -> None:
        """Compile the usual rows, in float32, which the first call of step would otherwise wait for.

        Raises ValueError for sigmas that have no rows, and where there are none from any timestep on. Where only later
        timesteps have rows, the step that needs others raises it: a loop may leave those out.
        """
        try:
            calls = self._call_table(self.usual_options)
            self._check_sigmas()
            try:
                calls.first_row(0)
            except ValueError:
                if not self._has_rows(calls):
                    raise
            else:
                calls.table(self.timesteps.device, torch.float32)
        finally:
            self._local.version = -1  # timesteps, sigmas and configuration may change before the first step

    def _has_rows(self, calls: CallTable) -> bool:
        """Whether some timesteps have rows, though not all have."""
        return calls.has_rows_later()

    def _check_times(self, times: Array) -> None:
        """Raise ValueError for timesteps that are not finite, or that do not identify a call."""
        if not len(times) or not np.isfinite(times).all():
            raise ValueError(f"timesteps: got {short(times.tolist())}, expected at least one, all finite")
        if not self.counted and len(set(times.tolist())) < len(times):
            twice = next(time for time in times if (times == time).sum() > 1)
            who = type(self).__name__
            raise ValueError(f"timesteps: got {twice:g} twice, expected each once: {who} knows a step by its timestep")

    def _check_sigmas(self) -> None:
        """Raise ValueError for noise levels that rise, are below 0 or are not finite."""
        if getattr(self, "sigmas", None) is None:
            return
        levels = numbers(self.sigmas)[: len(self.timesteps) + 1]
        most = 1.0 if self._on_flow() else np.inf
        if not (np.isfinite(levels) & (levels >= 0) & (levels <= most)).all():
            limits = "from 0 to 1" if self._on_flow() else "of at least 0"
            raise ValueError(f"sigmas: got {short(levels.tolist())}, expected finite levels {limits}")
        falls = levels[1:] <= levels[:-1] * (1 + 1e-6)
        falls[-1:] |= levels[-1:] < levels[-2:-1] * (1 + LAST_RISE)
        if not falls.all() and not self._rises():
            at = int(np.argmin(falls))
            raise ValueError(f"sigmas: got {levels[at]:g} before {levels[at + 1]:g}, expected levels that do not rise")

    def _told(self) -> Any:
        """The timesteps that there is a call at: all."""
        return self.timesteps

    def _rises(self) -> bool:
        """Whether noise levels rise, from the data to noise."""
        return bool(self.config.get("invert_sigmas"))

    def _on_flow(self) -> bool:
        """Whether sigmas are flow matching's, from 1 to 0."""
        return bool(self.config.get("use_flow_sigmas"))

    def _levels(self) -> Any:
        """What the rows depend on besides timesteps, sigmas and the configuration."""
        return getattr(self, "alphas_cumprod", None)

    # ------------------------------------------------------------------------------------------------------ step

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        """The dtype of diffusers' prev_sample: by default what torch makes of the sum of the two."""
        if sample.dtype is model_output.dtype:
            return sample.dtype
        return torch.promote_types(sample.dtype, model_output.dtype)

    def _second_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        """The dtype of diffusers' second output: that of an output which is the estimate itself."""
        if self.config.get("prediction_type") in ("sample", "original_sample"):
            return model_output.dtype
        return torch.promote_types(sample.dtype, model_output.dtype)

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
        dtype: torch.dtype | None = None,
        second_dtype: torch.dtype | None = None,
    ) -> Any:
        """One call of `step`: prev_sample in diffusers' output class, or in a tuple.

        options: the arguments of step that its rows depend on. noise: given by the caller. noise_dtype: what diffusers
        draws noise in, default the output's dtype. dtype, second_dtype: of the results, default `_result_dtype` and
        `_second_dtype`.
        """
        if is_dynamo_compiling():
            return _run_with_graph_break(
                self,
                model_output,
                timestep,
                sample,
                generator,
                return_dict,
                options=options,
                noise=noise,
                noise_dtype=noise_dtype,
                dtype=dtype,
                second_dtype=second_dtype,
            )
        if modes() or traced() is not None or transformed() is not None:
            check_not_recorded("step")
        plain = type(sample) is type(model_output) is TENSOR
        if not plain or sample.dtype is not model_output.dtype:
            check_sample(sample, model_output)
        if return_dict is not True and return_dict is not False:
            check_return_dict(return_dict)
        if sample.requires_grad or model_output.requires_grad or noise is not None:
            check_no_gradient(model_output=model_output, sample=sample, variance_noise=noise)
        if dtype is not None and dtype is not sample.dtype:
            check_sample(sample, model_output)
        local = self._local
        calls = local.calls
        if calls is None or local.version != self._version or calls.options != options:
            calls = self._call_table(options)
        drawn, state = noise_dtype or model_output.dtype, sample
        if dtype is None:
            dtype = self._result_dtype(sample, model_output)
        if dtype is not sample.dtype:  # not rounded to the sample's in between
            state = sample.to(torch.promote_types(sample.dtype, dtype))
        row = self._row(calls, timestep, sample)
        arguments = (calls, row, model_output, state, generator, noise, drawn, self._streams, self._backend)
        previous, kept_noise = None, {}
        try:
            if noise is None and self._streams is None and drawn == torch.float32:
                previous = fast_path(calls, row, model_output, state, generator, local, self._backend)
            if previous is None:
                call = Call(*arguments)
                previous, kept_noise = call.previous(local), call.kept_noise(local)
        except BaseException:  # an interrupt too
            self._step_back(isinstance(row, torch.Tensor))
            raise
        if local._step_index == calls.length:  # the loop is over
            local.registers = local.noise = None
        if previous.dtype is not dtype:
            previous = previous.to(dtype)
        kind, second = self.output
        if second is None:
            return kind(previous) if return_dict else (previous,)
        later = LazyOutput(
            second,
            lambda: _estimate(arguments, kept_noise, second_dtype or self._second_dtype(sample, model_output)),
            (model_output, sample),
        )
        return lazy_class(kind, second)(previous, later) if return_dict else LazyPair(previous, later)


_run_with_graph_break = with_graph_break(Fused._run)


def _estimate(arguments: tuple[Any, ...], kept_noise: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The second output of a call, in a dtype that it is not rounded before."""
    call = Call(*arguments)
    call.sample = call.sample.to(torch.promote_types(call.sample.dtype, dtype))
    return call.second(kept_noise).to(dtype)


class ScaledInput(Fused):
    """A fused scheduler whose samples are x / alpha: the network reads them scaled."""

    def _input_scales(self) -> Array:
        """[n] what the network's input is scaled by, at every position."""
        sigmas = numbers(self.sigmas)[: len(self.timesteps)]
        return np.asarray(1 / np.hypot(1, sigmas))

    def scale_model_input(self, sample: torch.Tensor, timestep: Timestep) -> torch.Tensor:
        """The network's input at `timestep`, a number or one a sample [B]: sample / sqrt(sigma^2 + 1)."""
        if is_dynamo_compiling():
            return _scale_with_graph_break(self, sample, timestep)
        if modes() or traced() is not None or transformed() is not None:
            check_not_recorded("scale_model_input")
        if type(sample) is not TENSOR or sample.is_meta or sample.dtype is not torch.float32 or sample.is_sparse:
            check_batch(sample, "sample")
        local = self._local
        calls = local.calls
        if calls is None or local.version != self._version:
            calls = self._call_table(self.usual_options if calls is None else calls.options)
        if calls.input_scales is None:
            calls.input_scales = self._input_scales().tolist()
        local.is_scale_input_called = True
        if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            before = local.chains
            self._rows_of_chains(calls, timestep, len(sample))
            now, local.chains = local.chains, before
            scales = torch.tensor([calls.input_scales[position] for position, _ in now or ()], device=sample.device)
            return sample * scales.to(sample.dtype).reshape(-1, *(1,) * (sample.dim() - 1))
        scale = calls.input_scales[self._position(calls, timestep)]
        if sample.requires_grad or not sample.is_contiguous():
            return sample * scale
        return torch.mul(sample, scale, out=local.buffers.empty_like(sample))


_scale_with_graph_break = with_graph_break(ScaledInput.scale_model_input)
