"""RePaint: DDIM's steps, blended with a known image through a mask [Lugmayr 2022]."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_repaint import RePaintSchedulerOutput

import ulam_kernels
from ulam_kernels.tracing import outside_graphs

from ....noise import DRAWS_PER_ROW
from ....programs.builder import ProgramBuilder
from ....schedules import Array
from ..arguments import check_batch, check_no_gradient, check_return_dict, check_sample
from ..call_table import CallRows
from ..execution import wide
from ..noise import Generators, check_generators, drawn
from ..positions import Timestep
from ..program_edits import estimates
from ..scheduler import Fused
from ..tracing import check_not_recorded
from ..translation import numbers, vp_levels, vp_schedule


class FusedRePaint(Fused):
    """RePaintScheduler: x_s = mask (alpha_s y + sigma_s z) + (1 - mask) x', x' DDIM's step with noise eta.

    From t to T // n training steps below, with one z for both, as in diffusers (`ulam.samplers.RePaint` has two). eta
    is the scheduler's. Timesteps come again and again, so under noise-v1 the k-th call of step and undo_step since
    set_timesteps has the noise of row k. undo_step is diffusers' own; under noise-v1 it is one draw of its law.
    """

    counted = False
    needs_steps = True
    output = RePaintSchedulerOutput, "pred_original_sample"
    alphas_cumprod: Any
    betas: Any
    eta: Any
    final_alpha_cumprod: Any

    def _check(self) -> None: ...

    def _told(self) -> Any:
        return torch.unique(self.timesteps).flip(0)

    def _levels(self) -> Any:
        return np.append(numbers(self.alphas_cumprod), float(self.eta))

    def _after(self, times: Array) -> Array:
        """abar [n] at the ends of steps from these timesteps."""
        assert self.num_inference_steps is not None
        after = times.astype(np.int64) - self.config.num_train_timesteps // self.num_inference_steps
        known = numbers(self.alphas_cumprod)[np.maximum(after, 0)]
        return np.where(after >= 0, known, float(self.final_alpha_cumprod))

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        schedule, clip = vp_schedule(self), (-1.0, 1.0) if self.config.clip_sample else None
        times = numbers(self._told())[start:]
        alphas, sigmas = (level[:-1] for level in vp_levels(self, times, 1.0))
        abar_s = self._after(times)
        std = float(self.eta) * np.sqrt((1 - abar_s) / sigmas**2 * (1 - alphas**2 / abar_s))
        builder = ProgramBuilder(schedule, "eps", clip=clip)
        along = np.sqrt(np.maximum(1 - abar_s - std**2, 0.0))
        x = {"D": np.sqrt(abar_s), "eps": along, "z": np.where(times > 0, std, 0.0)}
        builder.rows(times, levels=(alphas, sigmas), x=x)
        program = builder.program(sampler="RePaint", init_scale=1.0)
        levels = alphas, sigmas
        return CallRows(program, np.ones(len(times), np.bool_), lambda: estimates(schedule, "eps", times, levels, clip))

    @outside_graphs
    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        original_image: torch.Tensor,
        mask: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The next sample; original_image and mask (1 where it is known) broadcast to the sample's shape."""
        check_not_recorded("step")
        check_sample(sample, model_output)
        check_return_dict(return_dict)
        check_no_gradient(model_output=model_output, sample=sample, original_image=original_image, mask=mask)
        known, through = _like(sample, original_image, "original_image"), _like(sample, mask, "mask")
        check_generators(generator, len(sample))
        calls = self._call_table()
        rows = self._row(calls, timestep, sample)
        noise = self._noise_of(sample, generator, model_output.dtype)
        dtype = torch.promote_types(self._result_dtype(sample, model_output), original_image.dtype)
        dtype = torch.promote_types(dtype, mask.dtype)
        result = self._run(model_output, timestep, sample, None, return_dict, noise=noise, dtype=dtype)
        abar = torch.as_tensor(self._after(np.array(calls.times)), dtype=noise.dtype, device=sample.device)
        index = rows if isinstance(rows, torch.Tensor) else calls.index(rows, len(sample), sample.device)
        a, b = (level[index.to(sample.device)] for level in (abar.sqrt(), (1 - abar).sqrt()))
        previous, backend = result[0], None if noise.dtype == torch.float64 else self._backend
        state = previous.to(noise.dtype)
        known, through = (given.to(noise.dtype).contiguous() for given in (known, through))
        none: dict[str, Any] = dict.fromkeys(("seed", "chain", "draw"))
        ulam_kernels.blend(state[None], known, through, a, b, noise=noise, backend=backend, **none)
        if state is not previous:
            previous.copy_(state)
        self._local.predictor_steps += 1
        return result

    def undo_step(self, sample: torch.Tensor, timestep: Any, generator: Generators = None) -> torch.Tensor:
        """T // n training steps back up, from `timestep` [Lugmayr 2022, alg. 1]."""
        if self._streams is None:
            return super().undo_step(sample, timestep, generator)  # type: ignore[misc,no-any-return]
        check_batch(sample, "sample")
        assert self.num_inference_steps is not None
        first, count = int(timestep), self.config.num_train_timesteps // self.num_inference_steps
        signal = float(np.prod(1 - numbers(self.betas)[first : first + count]))
        noise = self._noise_of(sample, generator, sample.dtype)
        self._local.predictor_steps += 1
        up: torch.Tensor = signal**0.5 * sample.to(noise.dtype) + (1 - signal) ** 0.5 * noise
        return up.to(sample.dtype)

    def _noise_of(self, sample: torch.Tensor, generator: Generators, dtype: torch.dtype) -> torch.Tensor:
        """This call's noise, in the dtype of coefficients."""
        chains, device = len(sample), sample.device
        if self._streams is None:
            return drawn(None, sample.shape, generator, device, dtype, wide(sample))
        draw = torch.full((chains,), self._local.predictor_steps * DRAWS_PER_ROW, device=device)
        out = torch.empty(sample.shape, device=device)
        stream = self._streams.operands(chains, device)
        return ulam_kernels.fill_normal(out, draw=draw, backend=self._backend, **stream).to(wide(sample))  # type: ignore[arg-type]


def _like(sample: torch.Tensor, given: object, name: str) -> torch.Tensor:
    """A tensor in the sample's shape. Raises TypeError or ValueError for one that does not broadcast to it."""
    check_batch(given, name)
    assert isinstance(given, torch.Tensor)
    try:
        return given.detach().to(sample.device).expand(sample.shape)
    except RuntimeError:
        right = f"one that broadcasts to {list(sample.shape)} like sample"
        raise ValueError(f"{name}: got shape {list(given.shape)}, expected {right}") from None
