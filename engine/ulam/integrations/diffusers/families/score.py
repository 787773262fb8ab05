"""ScoreSdeVe and ScoreSdeVp: the predictors of the two SDEs, and the first one's corrector [Song 2021b]."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_sde_ve import SdeVeOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput

import ulam_kernels
from ulam_kernels import Table
from ulam_kernels.arguments import described
from ulam_kernels.tracing import outside_graphs

from ....noise import DRAWS_PER_ROW
from ....programs.builder import ProgramBuilder
from ....programs.program import Program
from ....samplers.euler import Terms
from ....schedules import Array, ve
from ..arguments import check_batch, check_no_gradient, check_return_dict, check_sample, check_timestep, number
from ..call_table import CallRows
from ..execution import wide
from ..noise import Generators, check_generators, drawn
from ..outputs import LazyOutput, LazyPair, lazy_class
from ..positions import Timestep
from ..scheduler import Fused
from ..tracing import check_not_recorded
from ..translation import numbers
from .flow import affine

PREDICTOR, MEAN, CORRECTOR = range(3)


class FusedScoreSdeVe(Fused):
    """ScoreSdeVeScheduler: rows of `discrete_sigmas`, and the corrector with diffusers' norms, means over the batch.

    Under noise-v1 the predictor's noise is stage 0 of its row, the correctors' before it are its stages 1 to 15.
    """

    counted = False
    output = SdeVeOutput, "prev_sample_mean"
    discrete_sigmas: Any

    def _check(self) -> None:
        pass

    def _prepare(self) -> None:
        pass

    @outside_graphs
    def step_pred(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """x + g^2 s + g z, g^2 = sigma_i^2 - sigma_{i-1}^2 [Song 2021b, eq. 9 of algorithm 2]."""
        check_not_recorded("step_pred")
        self._check_call(model_output, sample, generator, return_dict)
        rows = self._rows_at(timestep, sample)
        draw = (len(self.timesteps) - 1 - rows) * DRAWS_PER_ROW
        if self._streams is not None:
            noise = {**self._streams.operands(len(sample), sample.device), "draw": draw}
        else:
            noise = {"noise": drawn(None, sample.shape, generator, sample.device, sample.dtype, wide(sample))}
        state = sample.to(self._result_dtype(sample, model_output))
        if "noise" in noise:
            noise["noise"] = noise["noise"].to(wide(state))
        previous = self._executed(PREDICTOR, rows, state, model_output, noise)
        self._local.predictor_steps, self._local.corrector_steps = self._local.predictor_steps + 1, 0
        second = "prev_sample_mean"
        later = LazyOutput(second, lambda: self._executed(MEAN, rows, state, model_output, {}), (model_output, sample))
        return lazy_class(SdeVeOutput, second)(previous, later) if return_dict else LazyPair(previous, later)

    @outside_graphs
    def step_correct(
        self,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """x + h s + sqrt(2 h) z, h = 2 (snr mean norm(z) / mean norm(s))^2 [Song 2021b, algorithm 4]."""
        check_not_recorded("step_correct")
        self._check_call(model_output, sample, generator, return_dict)
        local, device = self._local, sample.device
        draw = torch.full(
            (len(sample),), local.predictor_steps * DRAWS_PER_ROW + 1 + local.corrector_steps % 15, device=device
        )
        local.corrector_steps += 1
        noise = self._explicit_noise(sample, generator, draw)
        norms = [torch.linalg.vector_norm(values.flatten(1), dim=1).mean() for values in (noise, model_output)]
        root = self.config.snr * norms[0] / norms[1]
        without = torch.full_like(root, torch.inf)
        scales = torch.stack([-without, without, root**2, root]).to(noise.dtype).expand(len(sample), 4).contiguous()
        rows = torch.zeros(len(sample), dtype=torch.int64, device=device)
        state = sample.to(self._result_dtype(sample, model_output))
        noise, scales = noise.to(wide(state)), scales.to(wide(state))
        previous = self._executed(CORRECTOR, rows, state, model_output, {"noise": noise, "scales": scales})
        return SchedulerOutput(previous) if return_dict else (previous,)

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        """Wide: diffusers' coefficients are float32 tensors with dimensions."""
        return torch.promote_types(super()._result_dtype(sample, model_output), torch.float32)

    def _check_call(self, model_output: Any, sample: Any, generator: Generators, return_dict: object) -> None:
        """Raise TypeError, ValueError or RuntimeError for an invalid argument, before anything is drawn."""
        check_sample(sample, model_output)
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output: got shape {list(model_output.shape)}, expected {list(sample.shape)} like sample"
            )
        check_generators(generator, len(sample))
        check_return_dict(return_dict)
        check_no_gradient(model_output=model_output, sample=sample)
        if self.timesteps is None or getattr(self, "discrete_sigmas", None) is None:
            raise ValueError("timesteps: got none, expected a call of set_timesteps and set_sigmas first")

    def _rows_at(self, timestep: Timestep, sample: torch.Tensor) -> torch.Tensor:
        """[B] rows of timesteps in [0, 1], one for all or one a sample."""
        if isinstance(timestep, torch.Tensor):
            check_timestep(timestep)
            if timestep.numel() > 1 and timestep.shape != sample.shape[:1]:
                raise ValueError(f"timestep: got shape {list(timestep.shape)}, expected a number or [{len(sample)}]")
            timestep = timestep.detach().reshape(-1)
        else:
            timestep = number(timestep)
        here = timestep if not isinstance(timestep, torch.Tensor) else timestep if timestep.is_cpu else None
        if here is not None:  # on a GPU reading them would wait for it
            times = torch.as_tensor(here, dtype=torch.float64)
            if not bool(((times >= 0) & (times <= 1)).all()):
                came = described(here) if times.numel() > 1 else f"{times.item():g}"
                raise ValueError(f"timestep: got {came}, expected one of scheduler.timesteps, from 0 to 1")
        return (timestep * torch.ones(len(sample), device=sample.device) * (len(self.timesteps) - 1)).long()

    def _explicit_noise(self, sample: torch.Tensor, generator: Generators, draw: torch.Tensor) -> torch.Tensor:
        """The corrector's noise, which its norm needs: from a CPU generator, as in diffusers, or noise-v1."""
        if self._streams is None:
            cpu = torch.device("cpu")
            return drawn(None, sample.shape, generator, cpu, torch.float32, wide(sample)).to(sample.device)
        out, stream = (
            torch.empty(sample.shape, device=sample.device),
            self._streams.operands(len(sample), sample.device),
        )
        return ulam_kernels.fill_normal(out, draw=draw, backend=self._backend, **stream).to(wide(sample))  # type: ignore[arg-type]

    def _executed(
        self, kind: int, rows: torch.Tensor, sample: torch.Tensor, model_output: torch.Tensor, operands: dict[str, Any]
    ) -> torch.Tensor:
        """One row of one of the three tables."""
        backend = None if wide(sample) == torch.float64 else self._backend
        previous = torch.empty(sample.shape, dtype=sample.dtype, device=sample.device)
        table = self._table(kind, sample.device, wide(sample))
        source = sample.contiguous()
        ulam_kernels.step(previous[None], table, rows, source=source, model=model_output, backend=backend, **operands)
        return previous

    def _table(self, kind: int, device: torch.device, dtype: torch.dtype) -> Table:
        """Row i of the predictor and of its mean goes down from discrete_sigmas[i]; the corrector is one row."""
        local = self._local
        if local.score_tables is None or local.score_tables[0] is not self.discrete_sigmas:
            local.score_tables = self.discrete_sigmas, {}
            local.programs = _programs(numbers(self.discrete_sigmas))
        tables = local.score_tables[1]
        if (kind, device, dtype) not in tables:
            tables[kind, device, dtype] = local.programs[kind].table(dtype, device)
        return tables[kind, device, dtype]  # type: ignore[no-any-return]


class FusedScoreSdeVp(Fused):
    """ScoreSdeVpScheduler: Euler-Maruyama on the reverse VP SDE [Song 2021b, eq. 6 and 11], in n steps of 1 / n.

    The network's output m is std times the noise's direction, score = -m / std: x_mean = (1 + b / 2) x - b / std m and
    x = x_mean + sqrt(b) z, b = beta(t) / n.
    """

    counted = False
    output = SdeVeOutput, "x_mean"

    def _check(self) -> None:
        pass

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        times, low, high = numbers(self.timesteps)[start:], float(self.config.beta_min), float(self.config.beta_max)
        std = np.sqrt(-np.expm1(-(times**2) * (high - low) / 2 - times * low))
        b = (low + times * (high - low)) / len(self.timesteps)
        mean: Terms = {"x": 1 + b / 2, "m": -b / std}
        return CallRows(
            affine(x={**mean, "z": np.sqrt(b)}), np.ones(len(times), dtype=np.bool_), lambda: affine(x=mean)
        )

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        """Wide: diffusers' coefficients are tensors of the timesteps' dtype with dimensions."""
        return torch.promote_types(super()._result_dtype(sample, model_output), self.timesteps.dtype)

    _second_dtype = _result_dtype

    def step_pred(self, score: torch.Tensor, x: torch.Tensor, t: Timestep, generator: Generators = None) -> Any:
        """(x, x_mean) at the next of `timesteps`; t: one for all or one a sample, of `timesteps`."""
        check_batch(score, "score")
        check_batch(x, "x")
        if score.shape != x.shape:
            raise ValueError(f"score: got shape {list(score.shape)}, expected {list(x.shape)} like x")
        check_no_gradient(score=score, x=x)
        return self._run(score, t, x, generator, False, noise_dtype=x.dtype)


def _programs(sigmas: Array) -> tuple[Program, Program, Program]:
    """(predictor, its mean, corrector) on increasing levels; D of the corrector is the score."""
    g2 = np.diff(sigmas**2, prepend=0.0)
    levels, schedule = (np.ones_like(sigmas), sigmas), ve(float(sigmas[0]), float(sigmas[-1]))
    predictor, mean, corrector = (ProgramBuilder(schedule, "score") for _ in range(3))
    predictor.rows(sigmas, levels=levels, x={"x": 1.0, "eps": -g2 / sigmas, "z": np.sqrt(g2)})
    mean.rows(sigmas, levels=levels, x={"x": 1.0, "eps": -g2 / sigmas})
    corrector.rows(sigmas[-1], normalise=True, x={"x": 1.0, "D": 2.0, "z": 2.0})
    return predictor.program("predictor"), mean.program("predictor mean"), corrector.program("corrector")
