"""diffusers' schedulers in float64, and runs on data at a point, for the tests of samplers of the probability flow."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from oracles import execute, gaussian_output, in_float64
from ulam import Program
from ulam.programs.builder import ProgramBuilder
from ulam.samplers.grid import GridSampler
from ulam.schedules import Schedule, VariancePreserving

Array = npt.NDArray[np.float64]
Signal = tuple[Array, Array, Array]  # x_T, one output for each evaluation, one noise for each row (or call)


class InFloat64:
    """A module whose float32 is float64."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, "float64" if name == "float32" else name)


def peer(scheduler: Any, steps: int, patch: pytest.MonkeyPatch, schedule: VariancePreserving | None = None) -> Any:
    """A diffusers scheduler that casts to float64 where it casts to float32, on our alphas_cumprod."""
    module = sys.modules[type(scheduler).__module__]
    for name in ("np", "torch"):
        patch.setattr(module, name, InFloat64(sys.modules["numpy" if name == "np" else name]), raising=False)
    if schedule is not None:
        in_float64(scheduler, schedule)
    scheduler.set_timesteps(steps)
    return scheduler


def their_states(scheduler: Any, signal: Signal, patch: pytest.MonkeyPatch, **step: Any) -> Array:
    """The state after every call of `step`; output and noise i go to call i."""
    module = sys.modules[type(scheduler).__module__]
    x, outputs, noises = (torch.from_numpy(part) for part in signal)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else it searches for the first time, and takes the second of two that are equal
    states = []
    for t, m, z in zip(scheduler.timesteps, outputs, noises, strict=True):
        patch.setattr(module, "randn_tensor", lambda *_, z=z, **__: z, raising=False)
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.scale_model_input(x, t)
        x = scheduler.step(m, t, x, **step).prev_sample
        states.append(x.numpy())
    return np.array(states)


def our_states(program: Program, signal: Signal) -> Array:
    """The state after every row; the outputs go to the evaluating rows, noise j to row j."""
    x, outputs, noises = signal
    number = np.cumsum(program.evaluates) - 1
    silent = np.zeros((1, *x.shape))
    noises = np.concatenate([noises, silent])
    return execute(program, x, lambda row, _: outputs[number[row]], lambda row: noises[row])


def assert_same_states(mine: Array, theirs: Array, tolerance: float = 1e-7) -> None:
    """The states agree row by row, to `tolerance` of the largest value."""
    assert np.isfinite(mine).all() and mine.shape == theirs.shape
    for row, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        assert abs(a - b).max() <= tolerance * abs(b).max(), row


def recorded(sampler: GridSampler, schedule: Schedule, predicts: str) -> tuple[Program, Array]:
    """The program, not from the cache, and (alpha, sigma) of its evaluating rows and of its end, [nfe + 1, 2]."""
    levels: list[tuple[float, float]] = []
    rows = ProgramBuilder.rows

    def record(self: ProgramBuilder, t: Any, **arguments: Any) -> None:
        levels.extend(zip(*(np.atleast_1d(level) for level in arguments["levels"]), strict=True))
        rows(self, t, **arguments)

    grid = sampler.grid(schedule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgramBuilder, "rows", record)
        program = sampler.on(grid, schedule, predicts)
    return program, np.array([*levels, (grid.alphas[-1], grid.sigmas[-1])])


def gaussian_run(
    sampler: GridSampler, schedule: Schedule, predicts: str, data: tuple[float, float], x: Array, noises: Array
) -> Array:
    """The last state from `x` with the ideal network of N(mean, std^2) data, std = 0 being a point; noise j to row j.

    predicts="raw" is that of edm(sigma_data=0.5).
    """
    program, levels = recorded(sampler, schedule, predicts)
    number = np.cumsum(program.evaluates) - 1

    def output(row: int, scaled: Array) -> Array:
        alpha, sigma = levels[number[row]]
        state = scaled / program.c_in[row]
        slope, offset = gaussian_output("x0" if predicts == "raw" else predicts, alpha, sigma, *data)
        if predicts == "raw":  # D = c_skip x + c_out m [Karras 2022, table 1]
            power = sigma**2 + 0.25
            return (slope * state + offset - 0.25 / power * state) * np.sqrt(power) / (0.5 * sigma)
        return slope * state + offset

    return execute(program, x, output, lambda row: noises[row])[-1]


def assert_point_is_kept(sampler: GridSampler, schedule: Schedule, predicts: str) -> None:
    """Along the flow of data at mu eps is constant: alpha mu + sigma eps must go to the same at the end."""
    mu, eps, grid = 1.7, np.linspace(-2, 2, 5), sampler.grid(schedule)
    noises = np.zeros((4 * len(grid) + 12, 5))
    end = gaussian_run(sampler, schedule, predicts, (mu, 0.0), grid.alphas[0] * mu + grid.sigmas[0] * eps, noises)
    np.testing.assert_allclose(end, grid.alphas[-1] * mu + grid.sigmas[-1] * eps, rtol=1e-8, atol=1e-8)


def assert_law_of_a_point_is_kept(
    sampler: GridSampler, schedule: Schedule, predicts: str, tolerance: float = 1e-9
) -> None:
    """N(alpha mu, sigma^2) must go to the same at the end: the last state is affine in x_T and the noises."""
    grid, rows, mu = sampler.grid(schedule), len(sampler.program(schedule, predicts)), 1.7
    unit = np.eye(1 + rows)
    linear = gaussian_run(sampler, schedule, predicts, (0.0, 0.0), grid.sigmas[0] * unit[0], unit[1:])
    assert np.hypot.reduce(linear) == pytest.approx(grid.sigmas[-1], rel=tolerance, abs=tolerance)
    mean = gaussian_run(sampler, schedule, predicts, (mu, 0.0), np.full(1, grid.alphas[0] * mu), np.zeros((rows, 1)))
    assert mean[0] == pytest.approx(grid.alphas[-1] * mu, rel=tolerance)


def gaussian_variance(sampler: GridSampler, schedule: Schedule, std: float) -> tuple[float, float]:
    """(variance of the last state, the exact one) for data N(0, std^2), started from the exact law; v predictions."""
    grid, rows = sampler.grid(schedule), len(sampler.program(schedule, "v"))
    first, last = (float(np.hypot(grid.alphas[i] * std, grid.sigmas[i])) for i in (0, -1))
    unit = np.eye(1 + rows)
    end = gaussian_run(sampler, schedule, "v", (0.0, std), first * unit[0], unit[1:])
    return float((end**2).sum()), last**2
