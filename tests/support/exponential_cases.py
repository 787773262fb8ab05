"""diffusers' multistep solvers in float64, and programs' exact laws, for the tests of the exponential integrators."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gmm import Array, Mixture
from oracles import execute, gaussian_output
from ulam import Program
from ulam.samplers.grid import Grid, GridSampler
from ulam.schedules import FlowMatching, Schedule

MIXTURE = Mixture(weights=(0.3, 0.5, 0.2), means=(-1.5, 0.4, 1.8), stds=(0.5, 0.6, 0.4))
PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
GRIDS: list[dict[str, Any]] = [
    {"steps": 5, "spacing": "linspace"},
    {"steps": 14, "spacing": "leading"},
    {"steps": 20, "spacing": "trailing"},
    {"steps": 50, "spacing": "linspace"},
    {"steps": 12, "sigmas": "karras"},
    {"steps": 17, "sigmas": "exponential"},
    {"steps": 10, "sigmas": "beta"},
]


def their_grid(steps: int, spacing: str = "linspace", sigmas: str | None = None) -> dict[str, Any]:
    return {"timestep_spacing": spacing} | ({f"use_{sigmas}_sigmas": True} if sigmas else {})


def name_of(value: object) -> str | None:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else None


class Float64Torch:
    """torch with float64 in place of float32, to which diffusers' solvers cast the state in every step."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def run_solver(scheduler: Any, levels: Array, signal: tuple[Array, Array, Array], monkeypatch: Any) -> Array:
    """The state after every step of a diffusers solver whose float32 levels are replaced by `levels`, nearly equal."""
    np.testing.assert_allclose(scheduler.sigmas.numpy(), levels, rtol=3e-6, atol=1e-7)
    scheduler.sigmas = torch.from_numpy(levels)
    scheduler.set_begin_index(0)  # else a repeated first timestep loses a step
    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "torch", Float64Torch())
    x, outputs, noises = signal
    states = []
    for t, output, noise in zip(scheduler.timesteps, outputs, noises, strict=True):
        z = torch.from_numpy(noise)[None]
        monkeypatch.setattr(module, "randn_tensor", lambda *_, z=z, **__: z, raising=False)
        x = scheduler.step(torch.from_numpy(output)[None], t, torch.from_numpy(x)[None]).prev_sample[0].numpy()
        states.append(x)
    return np.array(states)


def run_ours(program: Program, signal: tuple[Array, Array, Array]) -> Array:
    """The state after every row."""
    x, outputs, noises = signal
    return execute(program, x, lambda row, _: outputs[row], lambda row: noises[row])


def coordinates(grid: Grid, schedule: Schedule) -> Array:
    """The grid's levels as diffusers has them: sigma on flow schedules, else sigma / alpha."""
    return grid.sigmas if isinstance(schedule, FlowMatching) else grid.ratios


def signals(rows: int) -> tuple[Array, Array, Array]:
    """x [K, 1], outputs and noises [rows, K, 1] as unit vectors: component 0 is x_T, one for each output and noise."""
    unit = np.eye(1 + 2 * rows)[:, :, None]
    return unit[0], unit[1 : 1 + rows], unit[1 + rows :]


def assert_same_response(
    program: Program, scheduler: Any, levels: Array, monkeypatch: Any, tolerance: float = 1e-9
) -> None:
    """Every state's coefficients on x_T, outputs and noises agree, to `tolerance` of the largest."""
    signal = signals(len(program))
    theirs = run_solver(scheduler, levels, signal, monkeypatch)
    np.testing.assert_allclose(run_ours(program, signal), theirs, rtol=0, atol=tolerance * abs(theirs).max())


def log_snr_sampler(
    make: Callable[..., GridSampler], schedule: Schedule, rows: int, ends: tuple[float, float]
) -> GridSampler:
    """A sampler on a grid uniform in log-SNR between two sigma / alpha."""
    levels = np.geomspace(*ends, rows + 1)
    if isinstance(schedule, FlowMatching):
        levels = levels / (1 + levels)
    return make(sigmas=tuple(levels[:-1]), final=float(levels[-1]))


def flow_error(sampler: GridSampler, schedule: Schedule, predicts: str) -> tuple[int, float]:
    """(declared order, root mean square error) against the probability flow of mixture data."""
    grid, program = sampler.grid(schedule), sampler.program(schedule, predicts)
    x = np.linspace(-2.2, 2.2, 12) * np.hypot(1.2 * grid.alphas[0], grid.sigmas[0])

    def network(row: int, state: Array) -> Array:
        return MIXTURE.output(predicts, state, float(grid.alphas[row]), float(grid.sigmas[row]))

    end = execute(program, x, network, lambda _: np.zeros_like(x))[-1]
    exact = MIXTURE.transport(x, *((float(grid.alphas[i]), float(grid.sigmas[i])) for i in (0, -1)))
    return program.order, float(np.sqrt(np.mean((end - exact) ** 2)))


def law_errors(sampler: GridSampler, schedule: Schedule, predicts: str, start: float = 2.0) -> Array:
    """|mean, variance - exact| of the last state, from the point alpha start, with the ideal network of N(0.8, 0.25).

    The reverse SDE is linear then: x_s given x_t is Gaussian with gain Cov(x_s, x_t) / Var(x_t) = alpha_t P_s /
    (alpha_s P_t), P = Var x [Anderson 1982].
    """
    mean, std, grid, program = 0.8, 0.5, sampler.grid(schedule), sampler.program(schedule, predicts)
    unit = np.eye(1 + len(program))  # components: the constant 1, one for each noise

    def network(row: int, state: Array) -> Array:
        slope, offset = gaussian_output(predicts, float(grid.alphas[row]), float(grid.sigmas[row]), mean, std)
        return slope * state + offset * unit[0]

    (alpha_t, alpha_s), (sigma_t, sigma_s) = grid.alphas[[0, -1]], grid.sigmas[[0, -1]]
    end = execute(program, alpha_t * start * unit[0], network, lambda row: unit[1 + row])[-1]
    power_t, power_s = alpha_t**2 * std**2 + sigma_t**2, alpha_s**2 * std**2 + sigma_s**2
    gain = alpha_t * power_s / (alpha_s * power_t)
    exact = alpha_s * mean + gain * alpha_t * (start - mean), power_s - gain**2 * power_t
    return abs(np.array([end[0], (end[1:] ** 2).sum()]) - exact)
