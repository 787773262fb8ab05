"""FlowMap and SCM: diffusers by impulse response, and exact laws where the flow map of Gaussian data is known."""

from __future__ import annotations

from typing import Any

import diffusers
import diffusers.schedulers.scheduling_scm as diffusers_scm
import numpy as np
import numpy.typing as npt
import pytest
import torch

import ulam
from oracles import execute, gaussian_output, impulses
from ulam import schedules
from ulam.programs.program import Program
from ulam.samplers import DDIM, LCM, SCM, Euler, FlowMap, GridSampler
from ulam.schedules import Schedule

Array = npt.NDArray[np.float64]
Law = tuple[float, float]  # mean and standard deviation
MEAN, STD = 0.7, 0.4
SCHEDULES: dict[str, Schedule] = {
    "flow": schedules.flow(),
    "shifted": schedules.flow(3.0),
    "ve": schedules.ve(0.01, 50),
    "edm": schedules.edm(),
    "cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
}


def law_at(alpha: float, sigma: float) -> Law:
    """Of alpha x_0 + sigma eps for data N(MEAN, STD^2)."""
    return alpha * MEAN, float(np.hypot(alpha * STD, sigma))


def exact_output(before: tuple[float, float], after: tuple[float, float]) -> Law:
    """(slope, offset) of the output m = eps - x_0 with alpha_r D + sigma_r eps the flow's map between two levels.

    The map between Gaussian laws is affine, and D = (x - sigma_t m) / (alpha_t + sigma_t), eps likewise, so that the
    step is ((alpha_r + sigma_r) x + (sigma_r alpha_t - alpha_r sigma_t) m) / (alpha_t + sigma_t).
    """
    (mean, std), (mean_r, std_r), total = law_at(*before), law_at(*after), before[0] + before[1]
    on_x, on_m = (after[0] + after[1]) / total, (after[1] * before[0] - after[0] * before[1]) / total
    slope = std_r / std
    return (slope - on_x) / on_m, (mean_r - slope * mean) / on_m


def laws_of(program: Program, outputs: list[Law], law: Law) -> list[Law]:
    """The law after every row of a program whose outputs are slope x + offset."""
    laws = []
    for row, (slope, offset) in enumerate(outputs):
        on_x, on_D, on_m, on_z = program.A[row, 0]
        assert on_D == 0
        gain = on_x + on_m * slope
        law = gain * law[0] + on_m * offset, float(np.hypot(gain * law[1], on_z))
        laws.append(law)
    return laws


def levels(sampler: GridSampler, schedule: Schedule) -> list[tuple[float, float]]:
    grid = sampler.grid(schedule)
    return list(zip(grid.alphas.tolist(), grid.sigmas.tolist(), strict=True))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_marginals_are_those_of_the_flow_at_every_gamma(name: str, steps: int, gamma: float) -> None:
    """The network is exact for the two times that it is told: every row ends with the law of its level."""
    schedule, sampler = SCHEDULES[name], FlowMap(steps, gamma=gamma)
    program, known = sampler.program(schedule, "flow"), levels(sampler, schedule)
    outputs = []
    for row in range(steps):
        ratio = np.sqrt(1 - gamma**2) * known[row + 1][1] / known[row + 1][0]  # of the level that the map goes to
        outputs.append(exact_output(known[row], (known[row + 1][0], ratio * known[row + 1][0])))
    for law, level in zip(laws_of(program, outputs, law_at(*known[0])), known[1:], strict=True):
        assert law == pytest.approx(law_at(*level), rel=1e-10, abs=1e-10)
    assert bool(program.needs_noise) == (gamma > 0 and steps > 1)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", ["flow", "shifted"])
def test_the_second_time_is_the_one_that_the_map_goes_to(name: str, gamma: float) -> None:
    """r / (1 - r) = sqrt(1 - gamma^2) s / (1 - s) on flow schedules, s itself without noise."""
    sampler = FlowMap(5, gamma=gamma)
    program, s = sampler.program(SCHEDULES[name], "flow"), sampler.grid(SCHEDULES[name]).sigmas[1:]
    root = np.sqrt(1 - gamma**2)
    np.testing.assert_allclose(program.second, root * s / (1 - s + root * s), rtol=1e-12, atol=1e-15)
    if gamma == 0:
        assert program.second[:-1].tolist() == program.time[1:].tolist() and program.second[-1] == 0


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_one_exact_map_is_many(gamma: float) -> None:
    """From the mean velocity itself, u(x, t, r) = (X(x; t, r) - x) / (r - t): any steps, one end.

    With gamma, and the noise left out, the last row is the exact map from where the others led.
    """

    def mapped(x: Array, t: float, r: float) -> Array:
        (mean, std), (mean_r, std_r) = law_at(1 - t, t), law_at(1 - r, r)
        return mean_r + std_r / std * (x - mean)

    x = np.linspace(-2.0, 2.0, 7)
    for steps in (1, 2, 9):
        program = FlowMap(steps, gamma=gamma).program(SCHEDULES["shifted"], "flow")

        def u(row: int, x: Array, program: Program = program) -> Array:
            t, r = float(program.time[row]), float(program.second[row])
            return (mapped(x, t, r) - x) / (r - t)

        states = execute(program, x, u, lambda row: np.zeros_like(x))
        start, t = (x, 1.0) if gamma == 0 or steps == 1 else (states[-2], float(program.time[-1]))
        np.testing.assert_allclose(states[-1], mapped(start, t, 0.0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_impulse_response_of_the_flow_map_is_that_of_diffusers(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    program = FlowMap(steps).program(schedules.flow(shift), "flow")
    np.testing.assert_allclose(1000 * program.time, scheduler.timesteps.numpy(), rtol=1e-12)
    x, outputs, noises = impulses(steps)
    states, y = [], torch.from_numpy(x)
    for row, t in enumerate(scheduler.timesteps):
        y = scheduler.step(torch.from_numpy(outputs[row]), t, y).prev_sample
        states.append(y.numpy())
    ours = execute(program, x, lambda row, _: outputs[row], lambda row: noises[row])
    np.testing.assert_allclose(ours, np.array(states), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 4])
def test_its_ends_are_euler_and_lcm(steps: int) -> None:
    """Without noise the rows are Euler's, with gamma = 1 those of multistep consistency sampling."""
    for name, schedule in SCHEDULES.items():
        predicts = "raw" if name == "edm" else "flow"
        for mine, other in ((FlowMap(steps), Euler(steps)), (FlowMap(steps, gamma=1.0), DDIM(steps, eta=1e9))):
            if isinstance(other, DDIM):
                other = DDIM(timesteps=mine.grid(schedule).times, eta=1e9)
            rows = [sampler.program(schedule, predicts).A for sampler in (mine, other)]
            np.testing.assert_allclose(*rows, rtol=1e-9, atol=1e-9)
    gamma, lcm = (s.program(schedules.flow(3.0), "flow").A for s in (FlowMap(steps, gamma=1.0), LCM(steps)))
    np.testing.assert_allclose(gamma, lcm, rtol=1e-12, atol=1e-15)


def test_whole_training_steps_are_told_or_gamma_is_named() -> None:
    vp = schedules.vp_cosine()
    for gamma in (0.0, 1.0):
        program = FlowMap(4, gamma=gamma).index_program(vp, "v")
        assert (program.second % 1 == 0).all() and (program.time % 1 == 0).all()
    with pytest.raises(ValueError, match=r"^gamma: got 0\.5 under time='index', which puts a second time between"):
        FlowMap(4, gamma=0.5).index_program(vp, "v")


# ------------------------------------------------------------------------------------------------------------ SCM


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_impulse_response_of_scm_is_that_of_diffusers(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """TrigFlow's network is a v prediction on VP levels cos(angle) and sin(angle), with sigma_data = 1."""
    scheduler = diffusers.SCMScheduler(sigma_data=1.0)
    scheduler.set_timesteps(steps, max_timesteps=1.5, intermediate_timesteps=1.3 if steps == 2 else None)
    scheduler.timesteps = scheduler.timesteps.double()
    program = SCM(steps, max_angle=1.5).program(schedules.vp_linear(), "v")
    x, outputs, noises = impulses(steps)
    states, y = [], torch.from_numpy(x)
    for row, t in enumerate(scheduler.timesteps[:-1]):
        monkeypatch.setattr(diffusers_scm, "randn_tensor", lambda *_, row=row, **__: torch.from_numpy(noises[row]))
        y = scheduler.step(torch.from_numpy(outputs[row]), t, y).prev_sample
        states.append(y.numpy())
    ours = execute(program, x, lambda row, _: outputs[row], lambda row: noises[row])
    np.testing.assert_allclose(ours, np.array(states), rtol=0, atol=2e-7)  # their angles are float32


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("name", SCHEDULES)
def test_scm_is_exact_with_the_ideal_consistency_function(name: str, steps: int) -> None:
    schedule, sampler = SCHEDULES[name], SCM(steps)
    known = levels(sampler, schedule)
    angles = np.arctan2([sigma for _, sigma in known], [alpha for alpha, _ in known])
    if steps == 2:
        assert angles[1] == pytest.approx(1.3, rel=1e-6)
    else:
        np.testing.assert_allclose(angles, np.linspace(angles[0], 0, steps + 1), rtol=1e-6, atol=1e-12)
    program = sampler.program(schedule, "flow")
    outputs = [exact_output(level, (1.0, 0.0)) for level in known[:-1]]
    for law, level in zip(laws_of(program, outputs, law_at(*known[0])), known[1:], strict=True):
        assert law == pytest.approx(law_at(*level), rel=1e-10, abs=1e-10)


def test_scm_on_flow_schedules_tells_sana_sprints_times() -> None:
    """sin / (sin + cos), as SANA-Sprint's pipeline turns the angles of SCMScheduler into its network's times."""
    scheduler = diffusers.SCMScheduler()
    scheduler.set_timesteps(4, intermediate_timesteps=None, max_timesteps=1.57)
    t = scheduler.timesteps[:-1].double().numpy()
    times = SCM(4, max_angle=1.57).program(schedules.flow(), "flow").time
    np.testing.assert_allclose(times, np.sin(t) / (np.sin(t) + np.cos(t)), rtol=1e-6)


@pytest.mark.parametrize("sampler", [FlowMap(3), FlowMap(3, gamma=0.5), SCM(3)])
@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score", "flow"])
def test_a_point_keeps_its_marginals_with_every_prediction(sampler: Any, predicts: str) -> None:
    """For data at one point every estimate is exact, whatever the second time, so the laws are those of the levels."""
    schedule = schedules.vp_cosine()
    program, known = sampler.program(schedule, predicts), levels(sampler, schedule)
    outputs = [gaussian_output(predicts, alpha, sigma, MEAN, 0.0) for alpha, sigma in known[:-1]]
    start = known[0][0] * MEAN, known[0][1]
    for law, (alpha, sigma) in zip(laws_of(program, outputs, start), known[1:], strict=True):
        assert law == pytest.approx((alpha * MEAN, sigma), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: FlowMap(4, gamma=1.5), r"gamma: got 1\.5, expected a number in \[0, 1\]"),
        (lambda: FlowMap(4, clip=3), "clip: got 3, expected None"),
        (lambda: SCM(4, max_angle=0), "max_angle: got 0, expected an angle above 0 and at most pi / 2"),
        (lambda: SCM(2, max_angle=1.2).program(schedules.flow(), "flow"), "middle: got 1.3, expected an angle below"),
        (lambda: SCM(4, middle=2), r"middle: got 2, expected a number in \[0, 1\.5708\]"),
        (lambda: SCM().program(schedules.flow(), "flow"), "steps: got None, expected a number"),
    ],
)
def test_wrong_arguments_are_named(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        made()


@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("steps", [1, 3])
def test_chains_of_the_exact_flow_map_have_the_law_of_the_data(steps: int, gamma: float) -> None:
    """Through the engine, whose network is told both times: the mean velocity between them, of Gaussian data."""

    def velocity(x: torch.Tensor, t: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        t, r = t[:, None], r[:, None]
        assert bool((r < t).all())
        std, std_r = (torch.hypot((1 - level) * STD, level) for level in (t, r))
        return ((1 - r) * MEAN + std_r / std * (x - (1 - t) * MEAN) - x) / (r - t)

    denoiser = ulam.Denoiser(velocity, schedules.flow(2.0), "flow", second_time="r")
    x = ulam.sample(denoiser, FlowMap(steps, gamma=gamma), (2,), 20_000, seed=3, slots=20_000, progress=False)
    assert x.mean().item() == pytest.approx(MEAN, abs=4 * STD / np.sqrt(x.numel()))
    assert x.std().item() == pytest.approx(STD, rel=4 / np.sqrt(2 * x.numel()))
    if gamma == 0:  # one map, in any number of steps
        once = ulam.sample(denoiser, FlowMap(1), (2,), 20_000, seed=3, slots=20_000, progress=False)
        torch.testing.assert_close(x, once, rtol=0, atol=1e-5)
