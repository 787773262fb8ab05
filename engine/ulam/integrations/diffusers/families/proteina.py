"""RFD4-Proteina: a flow from noise at time 0 to data at time 1, with the score rescaled over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_rfd4_proteina import RFD4ProteinaSchedulerOutput

from ulam_kernels.arguments import described
from ulam_kernels.tracing import outside_graphs

from ....samplers.euler import Terms
from ..arguments import check_batch, check_return_dict
from ..call_table import CallRows, CallTable
from ..noise import Generators
from ..positions import Timestep
from ..scheduler import Fused
from ..tracing import check_not_recorded
from ..translation import numbers
from .flow import affine


class FusedRFD4Proteina(Fused):
    """RFD4ProteinaScheduler: a step of the rescaled flow or, within its window of times, of its SDE; then the mask.

    With the velocity m, the score s = (t m - x) / (1 - t) and the rescaling k(t) of it [temporal score rescaling]:

        x' = x + (((1 - k) / t) x + k m) dt + [g k s dt + sqrt(2 g dt) z]

    the part in brackets where t_lim_ode_below <= t <= t_lim_ode. emit_mask is multiplied in after the row. Calls go
    through the timesteps in order, as in diffusers, but a loop may begin anew without set_timesteps.
    """

    output = RFD4ProteinaSchedulerOutput, None
    _times: Any
    _noise: Any

    def _check(self) -> None:
        pass

    def _levels(self) -> Any:
        return np.concatenate([numbers(self._times), numbers(self._noise)]) if self._times is not None else None

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        c, t = self.config, numbers(self.timesteps)[start:]
        dt, g = np.diff(numbers(self._times))[start:], numbers(self._noise)[start:]
        snr = np.divide(t, 1 - t) ** 2 * c.tsr_sigma**2
        k = (snr + 1) / (snr / c.tsr_k + 1)
        noisy = (t <= np.float32(c.t_lim_ode)) & (t >= np.float32(c.t_lim_ode_below)) & (t > 0)
        g = np.where(noisy, g, 0.0)
        of_x = np.divide(1 - k, t, out=np.zeros_like(t), where=t > 0)
        of_m = np.where(t > 0, k, 0.0)
        x: Terms = {
            "x": 1 + dt * (of_x - g * k / (1 - t)),
            "m": dt * (of_m + g * k * t / (1 - t)),
            "z": np.sqrt(2 * g * dt),
        }
        return CallRows(affine(x=x), noisy)

    def _row(self, calls: CallTable, timestep: Timestep, sample: torch.Tensor) -> int | torch.Tensor:
        value, position = self._local.times.value(timestep), self._local._step_index or 0
        due = calls.times[position] if position < calls.length else calls.first
        if value is not None and value not in (due, calls.first):
            raise ValueError(f"timestep: got {value:g}, expected the next of scheduler.timesteps, {due:g}")
        return super()._row(calls, timestep, sample)

    @outside_graphs
    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        emit_mask: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        check_not_recorded("step")
        check_batch(sample, "sample")
        check_batch(model_output, "model_output")
        check_return_dict(return_dict)
        if not isinstance(emit_mask, torch.Tensor) or emit_mask.dtype != torch.bool:
            raise TypeError(f"emit_mask: got {described(emit_mask)}, expected a tensor of bools")
        if sample.dim() != 3 or emit_mask.shape != sample.shape[:2]:
            right = f"{list(sample.shape[:2])}, one a token of the sample [B, tokens, D]"
            raise ValueError(f"emit_mask: got shape {list(emit_mask.shape)}, expected {right}")
        if emit_mask.device != sample.device:
            raise ValueError(f"emit_mask: got one on {emit_mask.device}, expected {sample.device} like sample")
        dtype = torch.promote_types(torch.promote_types(sample.dtype, model_output.dtype), torch.float32)
        (previous,) = self._run(
            model_output,
            timestep,
            sample,
            _one_each(generator, len(sample)),
            False,
            noise_dtype=sample.dtype,
            dtype=dtype,
        )
        previous *= emit_mask[..., None]
        return RFD4ProteinaSchedulerOutput(prev_sample=previous) if return_dict else (previous,)


def _one_each(generator: Any, chains: int) -> Any:
    """The generators, of which diffusers wants one a sample here, each another. Raises ValueError otherwise."""
    if generator is None:
        return None
    given = [generator] if isinstance(generator, torch.Generator) else list(generator)
    if len(given) != chains or len({id(one) for one in given}) < chains:
        raise ValueError(f"generator: got {len(given)} for {chains} samples, expected another one for each")
    return given
