"""Steps of flow SDEs against the formulas as their papers' code has them, and programs with noise in a window."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import ulam
from oracles import execute
from ulam import rollouts
from ulam.samplers import DDIM, DDPM, DPMSolverPP, Euler, EulerAncestral, FlowSDE, Heun

FLOW = ulam.schedules.flow()
DENOISER = ulam.Denoiser(lambda x, t: x, FLOW, predicts="flow")
Array = Any


def grpo(x: Array, velocity: Array, sigma: float, following: float, most: float, eta: float, z: Array) -> Array:
    """Flow-GRPO's step: prev_sample_mean and std_dev_t."""
    dt = following - sigma
    std = np.sqrt(sigma / (1 - (most if sigma == 1 else sigma))) * eta
    mean = x * (1 + std**2 / (2 * sigma) * dt) + velocity * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
    return mean + std * np.sqrt(-dt) * z


def cps(x: Array, velocity: Array, sigma: float, following: float, most: float, eta: float, z: Array) -> Array:
    """The step of coefficient-preserving sampling: estimates of both ends, put together anew."""
    std = following * np.sin(eta * np.pi / 2)
    data, noise = x - sigma * velocity, x + (1 - sigma) * velocity
    return data * (1 - following) + noise * np.sqrt(following**2 - std**2) + std * z


@pytest.mark.parametrize("predicts", ["flow", "x0", "eps"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("form", "step"), [("grpo", grpo), ("cps", cps)])
def test_impulse_responses_are_the_formulas(form: str, step: Any, eta: float, shift: float, predicts: str) -> None:
    schedule = ulam.schedules.flow(shift=shift)
    sampler = FlowSDE(7, eta=eta, form=form)
    if predicts == "eps":  # which says nothing of D at t = 1
        sampler = FlowSDE(sigmas=(0.9, 0.7, 0.4, 0.2), eta=eta, form=form)
    program = sampler.program(schedule, predicts)
    levels = [*sampler.grid(schedule).sigmas]
    rng = np.random.default_rng(0)
    x, outputs = rng.normal(size=(1, 5)), rng.normal(size=(len(program), 1, 5))
    z = rng.normal(size=(len(program), 1, 5))
    mine = execute(program, x.copy(), lambda row, y: outputs[row], lambda row: z[row])[-1]
    for row, (sigma, following) in enumerate(itertools.pairwise(levels)):
        m = outputs[row]
        velocity = {"flow": m, "x0": (x - m) / sigma, "eps": (m - x) / max(1 - sigma, 1e-300)}[predicts]
        x = step(x, velocity, sigma, following, levels[1], eta, z[row])
    np.testing.assert_allclose(mine, x, rtol=0, atol=1e-10 * (1 + abs(x).max()))


def test_without_noise_both_are_eulers_method() -> None:
    euler = Euler(9).program(FLOW, "flow")
    for form in ("grpo", "cps"):
        program = FlowSDE(9, eta=0.0, form=form).program(FLOW, "flow")
        np.testing.assert_allclose(program.A, euler.A, atol=1e-15)
        assert not program.needs_noise


def test_the_law_of_gaussian_data_is_kept() -> None:
    """Mean and variance of data N(0.6, 0.4^2) by the exact recursion: the error of a step goes down with its length."""
    errors = []
    for steps in (40, 80, 160):
        sampler = FlowSDE(steps)
        program, grid = sampler.program(FLOW, "x0"), sampler.grid(FLOW)
        mean, variance = 0.0, 1.0
        for row in range(len(program)):
            alpha, sigma = grid.alphas[row], grid.sigmas[row]
            gain = alpha * 0.16 / (alpha**2 * 0.16 + sigma**2)
            a, d, m, z = program.A[row, 0]
            slope = a + (d * program.km[row] + m) * gain + d * program.kx[row]
            mean = slope * mean + (d * program.km[row] + m) * 0.6 * (1 - gain * alpha)
            variance = slope**2 * variance + z**2
        errors.append(max(abs(mean - 0.6), abs(np.sqrt(variance) - 0.4)))
    assert errors[0] / errors[1] > 1.6 and errors[1] / errors[2] > 1.6 and errors[-1] < 0.01


VP = ulam.Denoiser(lambda x, t: x, ulam.schedules.vp_linear(1000))


@pytest.mark.parametrize(
    ("denoiser", "sde", "ode"),
    [
        (DENOISER, FlowSDE(10), Euler(10)),
        (DENOISER, FlowSDE(10, form="cps"), FlowSDE(10, eta=0.0)),
        (VP, DDIM(10, eta=1.0), DDIM(10)),
        (VP, EulerAncestral(10), Euler(10)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_noise_is_in_the_window_alone(denoiser: ulam.Denoiser, sde: Any, ode: Any) -> None:
    program = rollouts.mixed(denoiser, sde, ode, slice(3, 6))
    whole, rest = denoiser.program(sde), denoiser.program(ode)
    for row in range(10):
        own = whole if 3 <= row < 6 else rest
        assert (program.A[row] == own.A[row]).all() and program.km[row] == own.km[row]
    assert np.flatnonzero(program.A[:, 0, -1]).tolist() == [3, 4, 5]
    trajectory = rollouts.sample(denoiser, program, (4,), 5, 1)
    assert trajectory.stochastic.nonzero().flatten().tolist() == [3, 4, 5]
    assert trajectory.log_prob.isfinite().sum() == 15
    found = rollouts.log_prob(denoiser, trajectory)
    np.testing.assert_allclose(found.numpy(), trajectory.log_prob[:, 3:6].numpy(), rtol=0, atol=4e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FlowSDE(5, form="ode"), "form: got 'ode', expected one of grpo, cps"),
        (lambda: FlowSDE(5, eta=-1), "eta: got -1"),
        (lambda: FlowSDE(5, eta=1.5, form="cps"), "eta: got 1.5"),
        (lambda: rollouts.mixed(VP, DDIM(9, eta=1.0), DDIM(10), slice(2, 4)), "other: got .*, expected the levels of"),
        (
            lambda: rollouts.mixed(VP, DDIM(9, eta=1.0), DDIM(9), slice(9, 12)),
            "rows: got 9 to 9, expected at least one",
        ),
        (lambda: rollouts.mixed(VP, DDIM(9, eta=1.0), DDIM(9), 3), "rows: got 3, expected a slice"),
        (lambda: rollouts.mixed(VP, DPMSolverPP(9, sde=True), DPMSolverPP(9), slice(3)), "stochastic, other: got"),
        (lambda: rollouts.mixed(VP, DDPM(9), Heun(9), slice(3)), "stochastic, other: got"),
    ],
)
def test_hostile_arguments_are_refused_in_one_line(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as error:
        call()
    assert "\n" not in str(error.value)
