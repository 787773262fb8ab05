"""Flow matching: schedulers on x = (1 - t) x_0 + t eps, whose network's output m estimates eps - x_0.

A row goes from t to the next level s. With the estimate D = x - t m of x_0 Euler's step is x + (s - t) m, and one with
all noise fresh (1 - s) D + s z.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_lcm import FlowMatchLCMSchedulerOutput
from diffusers.schedulers.scheduling_ltx_euler_ancestral_rf import LTXEulerAncestralRFSchedulerOutput

from ....programs.builder import ProgramBuilder
from ....programs.program import Program
from ....samplers.euler import Terms
from ....schedules import Array, flow
from ..arguments import check_batch, check_index, check_return_dict, check_sample, churn
from ..call_table import CallRows
from ..configuration import unsupported
from ..noise import Generators, check_generators
from ..positions import Timestep
from ..scheduler import Fused
from ..translation import numbers
from .churn import Churning, quotients, raised
from .sigma import TwoCalls


def affine(x: Terms, registers: int = 1, **others: Terms) -> Program:
    """One row a call in terms of x, m, z and registers, coefficients [n]: whatever the schedule, since none reads D."""
    count = max(np.size(value) for value in x.values())
    builder, updates = ProgramBuilder(flow(), "flow", registers=registers), {"x": x, **others}
    builder.rows(np.full(count, 0.5), **updates)  # type: ignore[arg-type]
    return builder.program(sampler="affine", init_scale=1.0)


def toward_noise(t: Array, s: Array, std: Array | None = None) -> Terms:
    """(1 - s) D + std z, default std = s."""
    return {"x": 1 - s, "m": -(1 - s) * t, "z": s if std is None else std}


class OnFlow(Fused):
    """A scheduler on flow matching's levels; the result has the dtype of the network's output, as in diffusers."""

    def _check(self) -> None:
        pass

    def _on_flow(self) -> bool:
        return True

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return model_output.dtype

    def _steps(self, start: int) -> tuple[Array, Array]:
        """(t, s), the levels before and after each call from position `start` on."""
        sigmas = np.append(numbers(self.sigmas), 0.0)[: len(self.timesteps) + 1]
        return sigmas[start:-1], sigmas[start + 1 :]


class FusedFlowMatchEuler(OnFlow):
    """FlowMatchEulerDiscreteScheduler: `ulam.samplers.Euler`, with stochastic_sampling all noise fresh.

    per_token_timesteps, a noise level for every token, are left to diffusers' own step. With invert_sigmas the rows go
    from the data to noise.
    """

    output = FlowMatchEulerDiscreteSchedulerOutput, None

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        (t, s), fresh = self._steps(start), bool(self.config.stochastic_sampling)
        program = affine(x=toward_noise(t, s) if fresh else {"x": 1.0, "m": s - t})
        return CallRows(program, np.full(len(t), fresh))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Generators = None,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        check_index(timestep)
        churn(s_churn, s_tmin, s_tmax, s_noise)  # which diffusers does not read either
        if per_token_timesteps is not None:
            self._check_per_token(model_output, timestep, sample, generator, per_token_timesteps)
            check_return_dict(return_dict)
            return super().step(  # type: ignore[misc]
                model_output,
                timestep.detach() if isinstance(timestep, torch.Tensor) else timestep,
                sample,
                generator=generator,
                per_token_timesteps=per_token_timesteps,
                return_dict=return_dict,
            )
        return self._run(model_output, timestep, sample, generator, return_dict, noise_dtype=torch.float32)

    def _check_per_token(
        self, model_output: Any, timestep: Timestep, sample: Any, generator: Generators, per_token: Any
    ) -> None:
        """Raise TypeError or ValueError for what diffusers' step would not take."""
        check_sample(sample, model_output)
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output: got shape {list(model_output.shape)}, expected {list(sample.shape)} like sample"
            )
        check_batch(per_token, "per_token_timesteps")
        if sample.dim() != 3 or per_token.shape != sample.shape[:2]:
            right = f"{list(sample.shape[:2])}, one a token of the sample [B, tokens, C]"
            raise ValueError(f"per_token_timesteps: got shape {list(per_token.shape)}, expected {right}")
        check_generators(generator, len(sample))
        calls = self._call_table()
        if self._local._step_index is None and self._local._begin_index is None:
            self._lookup(calls, timestep)


class FusedFlowMatchHeun(Churning, TwoCalls, OnFlow):
    """FlowMatchHeunDiscreteScheduler: `ulam.samplers.Heun` on flow levels, two calls a step and one in the last.

    With s_churn a step begins at the raised level h, with the output taken where it was before and scaled by t / h, as
    in diffusers; its second call draws noise too, to no effect.
    """

    has_history = True
    output = FlowMatchHeunDiscreteSchedulerOutput, None

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        self._check_begins(start)
        sigmas, calls = numbers(self.sigmas), len(self.timesteps)
        levels = np.append(sigmas[start:calls:2], sigmas[-1])
        hat, std = raised(levels, options, of=len(sigmas) - 1)
        euler = (levels[1:] - hat) * quotients(levels[:-1], hat)
        of_step, second = np.arange(calls - start) // 2, np.arange(calls - start) % 2 == 1
        euler, half, std = euler[of_step], (levels[1:] - hat)[of_step] / 2, std[of_step]
        first = np.where(second, 0.0, 1.0)
        x: Terms = {"x": first, "m": np.where(second, half, euler), "z": first * std, "r1": 1 - first}
        r1: Terms = {"x": 1.0, "m": euler / 2, "z": std}
        return CallRows(affine(registers=2, x=x, r1=r1), std > 0)


class FusedFlowMatchLCM(OnFlow):
    """FlowMatchLCMScheduler: `ulam.samplers.LCM` on flow levels, x' = (1 - s) D + s z.

    scale_factors, with which the latents grow from call to call, are no update of the sample and have no rows.
    """

    output = FlowMatchLCMSchedulerOutput, None
    _scale_factors: Any
    _upscale_mode: Any

    def _check(self) -> None:
        if self._scale_factors and self._upscale_mode:
            right = "none: a step that changes the sample's shape has no row, take diffusers' own class"
            raise unsupported("scale_factors", self._scale_factors, right)

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        t, s = self._steps(start)
        return CallRows(affine(x=toward_noise(t, s)), np.ones(len(t), dtype=np.bool_))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        check_index(timestep)
        if self._scale_factors:
            self._check()
        noise = torch.float64 if dtype_of(model_output) == torch.float64 else torch.float32
        return self._run(model_output, timestep, sample, generator, return_dict, noise_dtype=noise)


class FusedLTXEulerAncestral(OnFlow):
    """LTXEulerAncestralRFScheduler: Euler's step to a level d below s, and noise from there to s.

        d = s (1 + eta (s / t - 1)),    g = (1 - s) / (1 - d),    x' = g (x + (d - t) m) + s_noise sqrt(s^2 - (g d)^2) z

    so that signal and noise are those of level s. With eta or s_noise 0 it is Euler's step to d alone, and the last
    step is D. A timestep that is the last of the levels given, where diffusers' step returns the sample, has a row that
    does so. The result has the sample's dtype.
    """

    output = LTXEulerAncestralRFSchedulerOutput, None

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        eta, s_noise, small = self.config.eta, self.config.s_noise, 1e-12
        t, s = self._steps(start)
        sigmas = len(numbers(self.sigmas))
        noisy = (s >= 1e-8) & (eta > 0) & (s_noise > 0)
        down = np.where(s < 1e-8, 0.0, s * (1 + eta * (np.divide(s, t, out=np.ones_like(t), where=t > 0) - 1)))
        up = np.sqrt(np.maximum(s**2 - (down * (1 - s)) ** 2 / ((1 - down) ** 2 + small), 0.0))
        gain = np.where(noisy, (1 - s) / (1 - down + small), 1.0)
        x: Terms = {"x": gain, "m": gain * (down - t), "z": np.where(noisy, s_noise * up, 0.0)}
        if len(self.timesteps) == sigmas:  # the last is the end
            x = {name: np.append(np.asarray(value)[:-1], float(name == "x")) for name, value in x.items()}
            noisy = np.append(noisy[:-1], False)
        return CallRows(affine(x=x), noisy)

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return sample.dtype

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        check_index(timestep)
        return self._run(model_output, timestep, sample, generator, return_dict, noise_dtype=torch.float32)


def dtype_of(model_output: Any) -> torch.dtype | None:
    """The dtype of the network's output; None for what is no tensor, which the call will name."""
    return model_output.dtype if isinstance(model_output, torch.Tensor) else None
