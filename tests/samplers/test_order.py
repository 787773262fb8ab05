"""Deterministic samplers have the global order that they declare, measured by halving the steps.

The state follows the probability flow of Gaussian-mixture data, whose end is known exactly (`gmm.Mixture.transport`).
Every sampler runs through the engine in float64, on a grid uniform in log-SNR that ends at sigma > 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import ulam
from gmm import Array, Mixture
from oracles import gaussian_output
from ulam import schedules
from ulam.samplers import catalogue
from ulam.samplers.grid import GridSampler
from ulam.samplers.noise_levels import levels_at
from ulam.schedules import FlowMatching, Schedule, VariancePreserving

MIXTURE = Mixture(weights=(0.3, 0.5, 0.2), means=(-1.5, 0.4, 1.8), stds=(0.5, 0.6, 0.4))
SCHEDULES = {"vp_cosine": schedules.vp_cosine(), "ve": schedules.ve(0.01, 50), "flow": schedules.flow()}
PREDICTS = ("eps", "x0", "v", "flow")
STEPS = (30, 60)  # multiples of 2 and 3: whole steps of the singlestep solvers
FINER = {"HeunPP": (120, 240)}  # on coarse grids of the flow its errors of first and second order cancel in part
LARGEST, SMALLEST = 15.0, 0.1  # sigma / alpha
FLOOR = 1e-10  # errors below are rounding

# The options to measure, [{}] where a sampler is not listed. No lower-order finish: that is not what is declared.
FULL = {"lower_order_final": False}
DPM: list[dict[str, Any]] = [
    {"order": 2, **FULL},
    {"order": 2, "variant": "heun", **FULL},
    {"order": 3, **FULL},
    {"order": 2, "kind": "singlestep", **FULL},
    {"order": 3, "kind": "singlestep", **FULL},
    {"order": 3, "kind": "singlestep", "variant": "heun", **FULL},
    {"order": 3, "kind": "singlestep", "variant": "dpmsolver", **FULL},
]
SOLVERS: dict[str, list[dict[str, Any]]] = {
    "DEIS": [{"order": order, **FULL} for order in (2, 3)],
    "DPMSolver": DPM,
    "DPMSolverPP": [*DPM, {"cfg_pp": True, **FULL}],
    "DPMSolverPP2SAncestral": [{"eta": 0.0}, {"eta": 0.0, "rectified": True}, {"eta": 0.0, "cfg_pp": True}],
    "DPMSolverPPSDE": [{"eta": 0.0}],
    "ERSDE": [{"eta": 0.0, "points": None, "stages": stages} for stages in (1, 2, 3)],
    "GradientEstimation": [{}, {"gamma": 1.5}, {"gamma": 1.5, "cfg_pp": True}],
    "LMS": [
        *({"order": order} for order in (2, 3, 4)),
        *({"order": order, "polynomial": polynomial} for order in (2, 4) for polynomial in ("index", "vp-time")),
    ],
    "PNDM": [{}, {"skip_prk": True}, {"mixes": "output"}],
    "RESMultistep": [{}, {"cfg_pp": True}],
    "Restart": [{"restarts": ()}],
    "SASolver": [
        {"predictor_order": 2, "corrector_order": 0, "tau": 0.0, **FULL},
        {"predictor_order": 2, "corrector_order": 3, "tau": 0.0, **FULL},
        {"predictor_order": 3, "corrector_order": 4, "tau": 0.0, "pece": True, **FULL},
        {"predictor_order": 2, "corrector_order": 3, "tau": 0.0, "predict_x0": False, **FULL},
    ],
    "SEEDS": [
        {"eta": 0.0},
        {"eta": 0.0, "r": 1.0},
        {"eta": 0.0, "r": 1.0, "solver_type": "phi_2"},
        {"eta": 0.0, "stages": 3},
    ],
    "UniPC": [
        {"order": 1, "variant": "bh1", **FULL},
        {"order": 2, **FULL},
        {"order": 2, "predict_x0": False, **FULL},
        {"order": 2, "disable_corrector": range(200), **FULL},
        {"order": 3, **FULL},
    ],
}


def deterministic() -> list[tuple[type[GridSampler], dict[str, Any]]]:
    """(class, options) of all samplers of the probability flow: no noise of their own, no known image, no flow map."""
    cases = []
    for name, cls in catalogue().items():
        for options in SOLVERS.get(name, [{}]):
            program = cls(4, **options).program(SCHEDULES["ve"], "x0")
            if not ({"noise", "known image"} & {*program.needs} or program.tells_second):
                cases.append((cls, options))
    return cases


CASES = deterministic()


def sigmas(schedule: Schedule, steps: int) -> tuple[Array, float]:
    """The noise levels of the rows, uniform in log-SNR, and the last, as GridSampler's sigmas and final."""
    values = coordinate_of(schedule, np.geomspace(LARGEST, SMALLEST, steps + 1))
    return values[:-1], float(values[-1])


def coordinate_of(schedule: Schedule, ratio: Array) -> Array:
    return ratio / (1 + ratio) if isinstance(schedule, FlowMatching) else ratio


def level(schedule: Schedule, t: Array) -> tuple[Array, Array]:
    """(alpha, sigma) where the network is told t: on VP schedules log(sigma / alpha) is interpolated."""
    if not isinstance(schedule, VariancePreserving):
        return schedule.levels(t)
    ratio = np.exp(np.interp(t, np.arange(schedule.steps), np.log(schedule.ratios)))
    return 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)


def network(schedule: Schedule, predicts: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The ideal one."""

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.dtype == x.dtype == torch.float64
        alpha, sigma = level(schedule, t.numpy()[:, None])
        return torch.from_numpy(MIXTURE.output(predicts, x.numpy(), alpha, sigma))

    return net


def error(sampler: GridSampler, schedule: Schedule, predicts: str) -> float:
    """The root mean square error of the last state."""
    grid = sampler.grid(schedule)
    first, last = ((float(grid.alphas[i]), float(grid.sigmas[i])) for i in (0, -1))
    x = np.linspace(-2.2, 2.2, 12) * np.hypot(1.2 * first[0], first[1])
    denoiser = ulam.Denoiser(network(schedule, predicts), schedule, predicts)
    end = ulam.sample(
        denoiser, sampler, x.shape, 1, x_init=torch.from_numpy(x[None]), dtype=torch.float64, backend="reference",
        progress=False,
    )  # fmt: skip
    return float(np.sqrt(np.mean((end[0].numpy() - MIXTURE.transport(x, first, last)) ** 2)))


def spelled(case: tuple[type[GridSampler], dict[str, Any]]) -> str:
    return f"{case[0].__name__}({', '.join(f'{key}={value}' for key, value in case[1].items())})"


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize(("sampler", "options"), [pytest.param(*case, id=spelled(case)) for case in CASES])
def test_declared_order_is_measured(
    sampler: type[GridSampler], options: dict[str, Any], predicts: str, name: str
) -> None:
    schedule = SCHEDULES[name]
    order, errors = 0, []
    for steps in FINER.get(sampler.__name__, STEPS):
        values, final = sigmas(schedule, steps)
        solver = sampler(sigmas=tuple(values), final=final, **options)
        order = solver.program(schedule, predicts).order
        errors.append(error(solver, schedule, predicts))
    slopes = [np.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors) if fine > FLOOR]
    assert not slopes or slopes[-1] >= order - 0.3, (order, slopes, errors)


def test_every_listed_solver_exists() -> None:
    assert SOLVERS.keys() <= {cls.__name__ for cls, _ in CASES}


# ----------------------------------------------------------------------------------------------- the oracle itself

LEVELS = [(0.05, 0.9987), (0.8, 0.6), (1.0, 0.2), (1.0, 20.0), (0.3, 0.7)]


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_mixture_outputs_are_derivatives_and_regressions(alpha: float, sigma: float) -> None:
    """The score by central differences, the rest by its definition and Tweedie, one component by regression."""
    x = np.linspace(-2, 2, 9) * np.hypot(alpha, sigma)
    h = 1e-5 * np.hypot(alpha, sigma)
    slope = (MIXTURE.log_density(x + h, alpha, sigma) - MIXTURE.log_density(x - h, alpha, sigma)) / (2 * h)
    np.testing.assert_allclose(MIXTURE.output("score", x, alpha, sigma), slope, rtol=1e-6, atol=1e-8)
    mass = (MIXTURE.log_cdf(x + h, alpha, sigma), MIXTURE.log_cdf(x - h, alpha, sigma))
    density = (np.exp(mass[0]) - np.exp(mass[1])) / (2 * h)
    np.testing.assert_allclose(np.exp(MIXTURE.log_density(x, alpha, sigma)), density, rtol=1e-6)
    assert (
        abs(np.logaddexp(MIXTURE.log_cdf(x, alpha, sigma), MIXTURE.log_cdf(x, alpha, sigma, upper=True))).max() < 1e-14
    )
    D, eps = MIXTURE.output("x0", x, alpha, sigma), MIXTURE.output("eps", x, alpha, sigma)
    np.testing.assert_allclose(alpha * D + sigma * eps, x, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(alpha * D, x + sigma**2 * MIXTURE.score(x, alpha, sigma), atol=1e-11)
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / np.sqrt(sigma**2 + 0.25)
    np.testing.assert_allclose(c_skip * x + c_out * MIXTURE.output("raw", x, alpha, sigma), D, rtol=1e-12)
    one = Mixture((1.0,), (0.7,), (0.4,))
    for predicts in ("eps", "x0", "v", "score", "flow"):
        gain, offset = gaussian_output(predicts, alpha, sigma, 0.7, 0.4)
        np.testing.assert_allclose(one.output(predicts, x, alpha, sigma), gain * x + offset, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", SCHEDULES)
def test_transport_solves_the_probability_flow_ode(name: str) -> None:
    """d(x / alpha) / d(sigma / alpha) = eps [Song 2021a, eq. 14], by an 8th order Runge-Kutta method."""
    values, end = sigmas(SCHEDULES[name], 1)
    first, last = (tuple(map(float, levels_at(SCHEDULES[name], value))) for value in (values[0], end))
    x = np.linspace(-2.2, 2.2, 7) * np.hypot(1.2 * first[0], first[1])

    def flow(log_ratio: float, y: Array) -> Array:
        alpha, sigma = levels_at(SCHEDULES[name], coordinate_of(SCHEDULES[name], np.exp(log_ratio)))
        return MIXTURE.output("eps", alpha * y, float(alpha), float(sigma)) * np.exp(log_ratio)

    ends = np.log([first[1] / first[0], last[1] / last[0]])
    solved = solve_ivp(flow, ends, x / first[0], rtol=1e-12, atol=1e-12, method="DOP853").y[:, -1] * last[0]
    np.testing.assert_allclose(MIXTURE.transport(x, first, last), solved, atol=1e-10)


def test_transport_is_a_bijection_up_to_the_data_themselves() -> None:
    x = np.linspace(-4, 4, 17)
    for first, last in (((0.02, 1.0), (1.0, 0.0)), ((0.0, 1.0), (0.9, 0.1)), ((1.0, 1.0), (1.0, 0.01))):
        there = MIXTURE.transport(x, first, last)
        assert (np.diff(there) > 0).all()
        np.testing.assert_allclose(MIXTURE.transport(there, last, first), x, rtol=1e-12, atol=1e-12)
