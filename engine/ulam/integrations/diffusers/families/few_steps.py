"""Few steps of networks distilled for them: sCM's TrigFlow, flow maps between any two times, pi-Flow's policies."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_map_euler_discrete import FlowMapEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_piflow import PiflowSchedulerOutput
from diffusers.schedulers.scheduling_scm import SCMSchedulerOutput

from ulam_kernels.arguments import described
from ulam_kernels.tracing import outside_graphs
from ulam_kernels.validation import real_numbers

from ....samplers.euler import Terms
from ....schedules import Array
from ..arguments import check_batch, check_index
from ..call_table import CallRows, CallTable
from ..configuration import unsupported
from ..noise import Generators
from ..positions import Timestep, checked_begin
from ..scheduler import Fused
from ..tracing import check_not_recorded
from ..translation import numbers
from .flow import OnFlow, affine, dtype_of

NEAR = 1e-3  # how far from a timestep of the schedule diffusers takes one for it, of the 1000 of training


class FusedSCM(Fused):
    """SCMScheduler: multistep sampling of a consistency model on TrigFlow, x = cos(t) x_0 + sin(t) sigma_data z.

    D = cos(t) x - sin(t) m, x' = cos(s) D + sin(s) sigma_data z [Lu & Song 2025]. In other units of the sample that is
    `ulam.samplers.SCM` on flow levels sin(t) / (sin(t) + cos(t)). The last of the timesteps is the end of the last
    step, and none begins there. Dtypes are diffusers': float32 at least.
    """

    needs_steps = True
    output = SCMSchedulerOutput, "pred_original_sample"

    def _check(self) -> None:
        if self.config.prediction_type != "trigflow":
            raise unsupported("prediction_type", self.config.prediction_type, "trigflow")

    def _told(self) -> Any:
        return self.timesteps[:-1]

    def _levels(self) -> Any:
        return self.timesteps

    def _at(self, calls: CallTable, time: float) -> int:
        if time not in calls.positions:
            raise ValueError(f"timestep: got {time:g}, expected one of scheduler.timesteps but the last, the end")
        return super()._at(calls, time)

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        self._check()
        times = numbers(self.timesteps)[start:]
        t, s = times[:-1], times[1:]
        D: Terms = {"x": np.cos(t), "m": -np.sin(t)}
        x: Terms = {name: np.cos(s) * value for name, value in D.items()}
        x["z"] = np.sin(s) * self.config.sigma_data
        return CallRows(affine(x=x), np.ones(len(t), dtype=np.bool_), lambda: affine(x=D))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        noise, dtype = torch.get_default_dtype(), dtype_of(model_output)
        if dtype is None or dtype_of(sample) is None:
            return self._run(model_output, timestep, sample, generator, return_dict)  # which names what came
        second = torch.promote_types(dtype, sample.dtype)
        return self._run(
            model_output,
            timestep,
            sample,
            generator,
            return_dict,
            noise_dtype=noise,
            dtype=torch.promote_types(second, noise),
            second_dtype=second,
        )


class FusedFlowMapEuler(OnFlow):
    """FlowMapEulerDiscreteScheduler: x' = x + (r - t) m, m being the mean velocity from t to r [Gu 2026].

    It knows a step by its timestep, to the next of the timesteps or to any r_timestep. Both may be tensors [B], a time
    a sample; of these diffusers reads the first alone. Timesteps that are none of the schedule are t / T, as there.
    """

    counted = False
    output = FlowMapEulerDiscreteSchedulerOutput, None

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        t, r = self._steps(start)
        lengths = np.array(options) if options else r - t
        return CallRows(affine(x={"x": 1.0, "m": lengths}), np.zeros(len(lengths), dtype=np.bool_))

    def _at(self, calls: CallTable, time: float) -> int:
        nearest = int(np.argmin(np.abs(np.array(calls.times) - time)))
        return nearest if abs(calls.times[nearest] - time) <= NEAR else super()._at(calls, time)

    def _row(self, calls: CallTable, timestep: Timestep, sample: torch.Tensor) -> int | torch.Tensor:
        if not calls.options:
            return super()._row(calls, timestep, sample)
        first = calls.row_offset(0)
        if len(calls.options) == 1:
            return first
        return torch.arange(first, first + len(calls.options))

    @outside_graphs
    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        r_timestep: Timestep | None = None,
        return_dict: bool = True,
    ) -> Any:
        local = self._local
        options: tuple[float, ...] = ()
        if r_timestep is not None:
            check_not_recorded("step")
            options = self._lengths(timestep, r_timestep, sample)
        before = local._step_index
        if before is None and local._begin_index is not None:
            before = checked_begin(self._call_table(options), local._begin_index)
        result = self._run(model_output, timestep, sample, None, return_dict, options=options)
        if before is None:  # as diffusers counts, from the first step's position on
            before = self.index_for_timestep(timestep) or 0
        local._step_index = before + 1
        return result

    def index_for_timestep(self, timestep: Timestep, schedule_timesteps: Any = None) -> int | None:
        """The position of a timestep, of several the first's; None for one that is none of the schedule."""
        times = numbers(self.timesteps if schedule_timesteps is None else schedule_timesteps)
        time = float(numbers(timestep).flat[0])
        nearest = int(np.argmin(np.abs(times - time)))
        return nearest if abs(times[nearest] - time) <= NEAR else None

    def _lengths(self, timestep: Timestep, r_timestep: Timestep, sample: Any) -> tuple[float, ...]:
        """r - t in units of the levels, one for all samples or one each."""
        check_batch(sample, "sample")
        given = {"timestep": timestep, "r_timestep": r_timestep}
        t, r = (self._sigmas_at(name, value, len(sample)) for name, value in given.items())
        return tuple((r - t).tolist())

    def _sigmas_at(self, name: str, timestep: Any, chains: int) -> Array:
        """The levels of timesteps, [1] or [B]. Raises TypeError or ValueError for what is no such number."""
        values = real_numbers(name, timestep).double().reshape(-1).cpu().numpy()
        most = self.config.num_train_timesteps
        if len(values) not in (1, chains) or not ((values >= 0) & (values <= most + NEAR)).all():
            right = f"a number from 0 to {most} or [{chains}] of them"
            raise ValueError(f"{name}: got {described(timestep)}, expected {right}")
        times, sigmas = numbers(self.timesteps), numbers(self.sigmas)
        nearest = np.abs(times - values[:, None]).argmin(axis=1)
        known = np.abs(times[nearest] - values) <= NEAR
        return np.asarray(np.where(known, sigmas[nearest], values / most))


class FusedPiflow(OnFlow):
    """PiflowScheduler: the whole rollout of a policy from t to s as one row [pi-Flow, Chen 2025].

    The network gives n_grid outputs m_k, each with its estimate D_k = x - t m_k. Along the rollout's substeps D is
    interpolated between them in time, so that the rollout is linear in x and all D_k: x' = a x + sum_k w_k D_k, with a
    and w from its recursion in float64. The row reads m = -t sum_k w_k m_k, summed before it.
    """

    output = PiflowSchedulerOutput, None
    n_grid: int
    eps: float
    num_policy_substeps: int
    _piflow_raw_timesteps: Any

    def _levels(self) -> Any:
        return self._piflow_raw_timesteps

    def _segments(self) -> list[tuple[float, Array]]:
        """(a, w) of every call."""
        raw, sigmas = numbers(self._piflow_raw_timesteps), numbers(self.sigmas)
        ends, shift = np.append(raw[1:], self.eps), float(self.config.shift)
        how = self.n_grid, shift, self.eps, self.num_policy_substeps
        return [rollout(*segment, *how) for segment in zip(raw.tolist(), ends.tolist(), sigmas.tolist(), strict=False)]

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        x = np.array([a + w.sum() for a, w in self._segments()[start:]])
        return CallRows(affine(x={"x": x, "m": 1.0}), np.zeros(len(x), dtype=np.bool_))

    @outside_graphs
    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        check_not_recorded("step")
        check_index(timestep)
        check_batch(sample, "sample")
        check_batch(model_output, "model_output")
        right = [*sample.shape[:-1], sample.shape[-1] * self.n_grid]
        if list(model_output.shape) != right:
            raise ValueError(f"model_output: got shape {list(model_output.shape)}, expected {right}, n_grid outputs")
        if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            raise ValueError(f"timestep: got shape {list(timestep.shape)}, expected one timestep for all samples")
        calls = self._call_table()
        if (self._local._step_index or 0) >= calls.length:
            raise RuntimeError(f"timestep: got a call after the last of {calls.length}, expected set_timesteps first")
        if calls.weights is None:
            sigmas = numbers(self.sigmas)
            calls.weights = [-sigma * w for sigma, (_, w) in zip(sigmas, self._segments(), strict=False)]
        wide = torch.promote_types(model_output.dtype, torch.float32)
        weights = torch.tensor(calls.weights[self._position(calls, timestep)], dtype=wide, device=sample.device)
        outputs = model_output.to(wide).reshape(*sample.shape[:-1], self.n_grid, sample.shape[-1])
        combined = torch.einsum("...kc,k->...c", outputs, weights)
        return self._run(combined, timestep, sample, None, return_dict, dtype=sample.dtype)


@lru_cache(maxsize=4096)
def rollout(
    raw: float, raw_end: float, sigma: float, n_grid: int, shift: float, eps: float, substeps: int
) -> tuple[float, Array]:
    """(a, w [n_grid]) with x' = a x + sum_k w_k D_k after Euler's steps from raw to raw_end along (x - D) / sigma.

    Levels are shift r / (1 + (shift - 1) r) of raw times r. D is linear between D_0 at the segment's end and D_{n - 1}
    at its start.
    """
    start = sigma / (shift + (1 - shift) * sigma)
    end = max(start - (raw - raw_end), 0.0)
    length = max(start - end, eps)
    steps = max(int(np.round(np.float32(np.float32(raw) - np.float32(raw_end)) * np.float32(substeps))), 1)
    a, w = 1.0, np.zeros(n_grid)
    for i in range(1, steps + 1):
        after = max(raw - i * (raw - raw_end) / steps, 0.0)
        sigma_after = shift * after / (1 + (shift - 1) * after)
        at = min(max((sigma / (shift + (1 - shift) * sigma) - end) / length, 0.0), 1.0) * (n_grid - 1)
        below = min(int(at), n_grid - 2)
        c = (sigma_after - sigma) / max(sigma, eps)
        a, w = a * (1 + c), w * (1 + c)
        w[below] -= c * (below + 1 - at)
        w[below + 1] -= c * (at - below)
        sigma = sigma_after
    return a, w
