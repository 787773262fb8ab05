"""DPM-Solver (multistep, singlestep), UniPC and DEIS: exponential integrators on x = alpha x_0 + sigma eps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from ....programs.clip import Clip
from ....programs.program import Program
from ....samplers import DEIS, DPMSolver, DPMSolverPP, UniPC
from ....samplers.grid import Grid, GridSampler
from ....schedules import Array, Schedule, VariancePreserving, flow
from ..call_table import CallRows, CallTable
from ..configuration import unsupported
from ..noise import Generators
from ..positions import Timestep
from ..program_edits import concatenated, with_scaled_D
from ..scheduler import Fused
from ..translation import MovingSteps, at_sigmas, clip_of, numbers, predicts_of, vp_schedule

Positions: TypeAlias = npt.NDArray[np.int64]
FEW = 15  # rows, below which lower_order_final lowers orders


class Solver(Fused):
    """A scheduler on sigmas, on VP or (use_flow_sigmas) flow levels. A loop begins with order 1 wherever it begins."""

    has_history = needs_steps = True
    output: ClassVar[tuple[Any, str | None]] = (SchedulerOutput, None)

    most: ClassVar[int] = 3  # the greatest solver_order that there are rows for
    order_stops: ClassVar[bool] = False  # a greater solver_order is `most`, as in diffusers

    def _check(self) -> None:
        self._schedule()
        clip_of(self.config)
        if self.config.solver_order > self.most and not self.order_stops:
            raise unsupported("solver_order", self.config.solver_order, f"at most {self.most}")

    def _order(self) -> int:
        return min(int(self.config.solver_order), self.most)

    def _schedule(self) -> tuple[Schedule, str]:
        """(schedule, what the network predicts)."""
        predicts = predicts_of(self.config, "epsilon", "sample", "v_prediction", "flow_prediction")
        if self.config.use_flow_sigmas:
            if predicts == "v":  # diffusers reads x_0 = alpha x - sigma v, true only where alpha^2 + sigma^2 = 1
                right = "flow_prediction, epsilon or sample with use_flow_sigmas=True"
                raise unsupported("prediction_type", "v_prediction", right)
            return flow(), predicts
        if predicts == "flow":
            raise unsupported("prediction_type", "flow_prediction", "it with use_flow_sigmas=True only")
        return vp_schedule(self), predicts

    def _sampler(self, steps: int, few: bool, clip: Clip, positions: Positions) -> GridSampler:
        """The sampler of steps at these positions; few: whether the whole loop has fewer than 15 calls."""
        raise NotImplementedError

    def _sde(self) -> bool:
        """Whether every call draws noise."""
        return str(self.config.get("algorithm_type")).startswith("sde")

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        schedule, predicts = self._schedule()
        times, sigmas = numbers(self.timesteps), numbers(self.sigmas)[: len(self.timesteps) + 1]
        network_times = times if isinstance(schedule, VariancePreserving) else sigmas[:-1]
        whole, (clip, factor) = self._levels_at(schedule, sigmas), clip_of(self.config)
        moving = np.flatnonzero(self._moving(network_times, whole).moves)
        first = int(np.searchsorted(moving, start))

        def compiled(grid: Grid) -> Program:
            return self._program(grid, schedule, predicts, clip, moving, first)

        steps = self._moving(network_times[start:], (whole[0][start:], whole[1][start:]))
        program = steps.program(compiled, network_times[start:], schedule, predicts)
        return CallRows(with_scaled_D(program, factor), np.full(len(program), self._sde()))

    def _levels_at(self, schedule: Schedule, sigmas: Array) -> tuple[Array, Array]:
        """(alphas, sigmas) at diffusers' levels."""
        return at_sigmas(schedule, sigmas)

    def _moving(self, times: Array, levels: tuple[Array, Array]) -> MovingSteps:
        """The steps on these levels."""
        return MovingSteps(times, levels)

    def _program(
        self, grid: Grid, schedule: Schedule, predicts: str, clip: Clip, moving: Positions, first: int
    ) -> Program:
        """The rows on the grid, which begins at the step that is `first` of those at the positions `moving`."""
        few = len(self.timesteps) < FEW
        return self._sampler(len(grid), few, clip, moving[first:]).on(grid, schedule, predicts)

    def _at(self, calls: CallTable, time: float) -> int:
        """The position of a timestep's value; of one that is not there the last, as in diffusers."""
        return super()._at(calls, time) if time in calls.positions else calls.length - 1


class FusedDPMMultistep(Solver):
    """DPMSolverMultistepScheduler on `ulam.samplers.DPMSolverPP` and `DPMSolver`.

    Not as in diffusers: solver_order=3 of "sde-dpmsolver++" has the sign of its formula (see `DPMSolverPP`), and that
    of "sde-dpmsolver" exists.
    """

    order_stops = True

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        """That of the estimate that the solver is about, which is the output itself where the network predicts it."""
        own = "sample" if self.config.algorithm_type.endswith("++") else "epsilon"
        if self.config.prediction_type == own:
            return model_output.dtype
        return super()._result_dtype(sample, model_output)

    def _sampler(self, steps: int, few: bool, clip: Clip, positions: Positions) -> GridSampler:
        c = self.config
        kind = DPMSolverPP if c.algorithm_type.endswith("++") else DPMSolver
        return kind(
            steps,
            order=self._order(),
            variant=c.solver_type,
            sde=self._sde(),
            lower_order_final=c.lower_order_final and few,
            euler_at_final=c.euler_at_final,
            clip=clip,
        )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        noise = variance_noise if self._sde() else None
        return self._run(model_output, timestep, sample, generator, return_dict, noise=noise, noise_dtype=torch.float32)


class FusedDPMSinglestep(Solver):
    """DPMSolverSinglestepScheduler on `ulam.samplers.DPMSolverPP` and `DPMSolver`, kind="singlestep".

    A loop that begins inside one of its steps makes a smaller step of the calls that are left of it.

    Not as in diffusers: solver_order=3 of "sde-dpmsolver++" with solver_type="heun" has the sign of its formula.
    """

    def _sampler(self, steps: int, few: bool, clip: Clip, positions: Positions) -> DPMSolverPP | DPMSolver:
        c = self.config
        kind = DPMSolverPP if c.algorithm_type.endswith("++") else DPMSolver
        return kind(
            steps,
            order=c.solver_order,
            kind="singlestep",
            variant=c.solver_type,
            sde=self._sde(),
            lower_order_final=c.lower_order_final,
            clip=clip,
        )

    def _program(
        self, grid: Grid, schedule: Schedule, predicts: str, clip: Clip, moving: Positions, first: int
    ) -> Program:
        sampler = self._sampler(len(grid), False, clip, moving[first:])
        rest = -first % self.config.solver_order  # calls up to the next step's first
        if not 0 < rest < len(grid):
            return sampler.on(grid, schedule, predicts)
        halves = [Grid(grid.times[:rest], grid.alphas[: rest + 1], grid.sigmas[: rest + 1])]
        halves.append(Grid(grid.times[rest:], grid.alphas[rest:], grid.sigmas[rest:]))
        smaller = replace(sampler, steps=rest, order=rest, lower_order_final=False)
        then = replace(sampler, steps=len(grid) - rest)
        return concatenated(smaller.on(halves[0], schedule, predicts), then.on(halves[1], schedule, predicts))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        return self._run(model_output, timestep, sample, generator, return_dict)


class FusedUniPC(Solver):
    """UniPCMultistepScheduler on `ulam.samplers.UniPC`."""

    most = 4

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return sample.dtype

    def _check(self) -> None:
        super()._check()
        if self.config.get("solver_p") is not None:
            raise unsupported("solver_p", type(self.config.solver_p).__name__, "None: the predictor is UniP")

    def _sampler(self, steps: int, few: bool, clip: Clip, positions: Positions) -> GridSampler:
        c = self.config
        return UniPC(
            steps,
            order=c.solver_order,
            variant=c.solver_type,
            predict_x0=c.predict_x0,
            lower_order_final=c.lower_order_final,
            disable_corrector=tuple(np.flatnonzero(np.isin(positions, c.disable_corrector)).tolist()),
            clip=clip if c.predict_x0 else None,
        )

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        return self._run(model_output, timestep, sample, None, return_dict)


class FusedDEIS(Solver):
    """DEISMultistepScheduler on `ulam.samplers.DEIS`."""

    order_stops = True

    def _sampler(self, steps: int, few: bool, clip: Clip, positions: Positions) -> GridSampler:
        c = self.config
        return DEIS(steps, order=self._order(), lower_order_final=c.lower_order_final and few, clip=clip)

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        return self._run(model_output, timestep, sample, None, return_dict)
