"""LCM, TCD and consistency models: diffusers by impulse response; the ideal network's law is exact in any steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers.schedulers.scheduling_consistency_models as diffusers_cm
import diffusers.schedulers.scheduling_flow_match_lcm as diffusers_flow_lcm
import diffusers.schedulers.scheduling_lcm as diffusers_lcm
import diffusers.schedulers.scheduling_tcd as diffusers_tcd
import numpy as np
import pytest
import torch

from oracles import Array, execute, gaussian_output, impulses, in_float64
from ulam import Program, schedules
from ulam.programs.clip import DynamicThreshold
from ulam.samplers.consistency import Consistency
from ulam.samplers.ddim import DDIM
from ulam.samplers.lcm import LCM
from ulam.samplers.noise_levels import sigma_min
from ulam.samplers.tcd import TCD

VP = {"scaled": schedules.vp_scaled_linear(), "cosine": schedules.vp_cosine(1000)}
CONTINUOUS = {"ve": schedules.ve(0.01, 50), "flow": schedules.flow(3.0), "subvp": schedules.sub_vp()}
PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
MEAN, STD = 0.7, 0.4


def theirs(module: Any, scheduler: Any, signal: tuple[Array, Array, Array], monkeypatch: Any, **step: Any) -> Array:
    """The state after every step of a diffusers scheduler that draws from `module`, with recorded noises."""
    x, outputs, noises = signal
    states = []
    for row, t in enumerate(scheduler.timesteps.tolist()):  # whole numbers keep its boundary condition in float64
        noise = torch.from_numpy(noises[row])[None]
        monkeypatch.setattr(module, "randn_tensor", lambda *_, z=noise, **__: z)
        m = torch.from_numpy(outputs[row])[None]
        x = scheduler.step(m, t, torch.from_numpy(x)[None], **step).prev_sample[0].numpy()
        states.append(x)
    return np.array(states)


def ours(program: Program, signal: tuple[Array, Array, Array]) -> Array:
    return execute(program, signal[0], lambda row, _: signal[1][row], lambda row: signal[2][row])


def assert_close(mine: Array, other: Array, tolerance: float = 1e-9) -> None:
    assert abs(mine - other).max() <= tolerance * abs(other).max()


# -------------------------------------------------------------------------------------- impulse response


@pytest.mark.parametrize("prediction", PREDICTS)
@pytest.mark.parametrize(
    ("steps", "original", "scaling"), [(1, 50, 10.0), (4, 50, 10.0), (5, 64, 0.01), (8, 40, 1e-3), (50, 50, 10.0)]
)
@pytest.mark.parametrize("name", VP)
def test_lcm_impulse_response(
    name: str, steps: int, original: int, scaling: float, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = diffusers_lcm.LCMScheduler(
        prediction_type=prediction, original_inference_steps=original, timestep_scaling=scaling
    )
    scheduler.set_timesteps(steps)
    program = LCM(steps, original, scaling).program(VP[name], PREDICTS[prediction])
    assert program.time.tolist() == scheduler.timesteps.tolist() and program.nfe == len(program) == steps
    signal = impulses(steps)
    expected = theirs(diffusers_lcm, in_float64(scheduler, VP[name]), signal, monkeypatch)
    assert_close(ours(program, signal), expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_clipped_lcm_equals_diffusers(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """cap = 1 makes the dynamic threshold a static clip to [-1, 1], which the float64 execution knows."""
    draw = np.random.default_rng(1)
    scheduler = diffusers_lcm.LCMScheduler(clip_sample=True, thresholding=dynamic, timestep_scaling=0.01)
    scheduler.set_timesteps(6)
    signal = draw.normal(size=(3, 4)), draw.normal(size=(6, 3, 4)), draw.normal(size=(6, 3, 4))
    expected = theirs(diffusers_lcm, in_float64(scheduler, VP["scaled"]), signal, monkeypatch)
    program = LCM(6, timestep_scaling=0.01, clip=(-1, 1)).program(VP["scaled"])
    np.testing.assert_allclose(ours(program, signal), expected, rtol=1e-9, atol=1e-9)
    threshold = LCM(6, timestep_scaling=0.01, clip=DynamicThreshold(cap=1.0)).program(VP["scaled"])
    assert threshold.threshold.all() and (threshold.A == program.A).all()


def test_lcm_times_are_those_of_diffusers_for_every_number_of_steps() -> None:
    for original, counts in ((50, range(1, 51)), (40, range(1, 41)), (100, range(1, 101, 3)), (1000, (1, 7, 999))):
        scheduler = diffusers_lcm.LCMScheduler(original_inference_steps=original)
        for steps in counts:
            scheduler.set_timesteps(steps)
            times = LCM(steps, original).grid(VP["scaled"]).times
            assert times.tolist() == scheduler.timesteps.tolist()
            assert TCD(steps, original_steps=original, final="zero").grid(VP["scaled"]).times.tolist() == times.tolist()


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_lcm_on_flow_schedules_is_flow_match_lcm(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sigmas = np.linspace(1, 1 / steps, steps)
    scheduler = diffusers_flow_lcm.FlowMatchLCMScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    program = LCM(steps).program(schedules.flow(3.0), "flow")
    np.testing.assert_allclose(1000 * program.time, scheduler.timesteps, rtol=1e-6)
    signal = impulses(steps, noisy_end=True)
    assert_close(ours(program, signal), theirs(diffusers_flow_lcm, scheduler, signal, monkeypatch), 1e-5)


@pytest.mark.parametrize("prediction", PREDICTS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("steps", "original"), [(1, 50), (4, 50), (8, 40), (30, 50)])
@pytest.mark.parametrize("name", VP)
def test_tcd_impulse_response(
    name: str, steps: int, original: int, eta: float, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = diffusers_tcd.TCDScheduler(prediction_type=prediction, original_inference_steps=original)
    scheduler.set_timesteps(steps)
    program = TCD(steps, eta, original).program(VP[name], PREDICTS[prediction])
    assert program.time.tolist() == scheduler.timesteps.tolist()
    assert program.order == (eta == 0) and program.needs_noise == (eta > 0 and steps > 1)
    signal = impulses(steps, noisy_end=True)
    expected = theirs(diffusers_tcd, in_float64(scheduler, VP[name]), signal, monkeypatch, eta=eta)
    assert_close(ours(program, signal), expected)


@pytest.mark.parametrize("clip", [None, (-1, 1)])
@pytest.mark.parametrize("steps", [1, 2, 3, 17, 40])
def test_consistency_impulse_response(steps: int, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, draw = schedules.edm(), np.random.default_rng(2)
    scheduler = diffusers_cm.CMStochasticIterativeScheduler(clip_denoised=clip is not None)
    scheduler.set_timesteps(steps)
    program = Consistency(steps, clip=clip).program(schedule, "raw")
    np.testing.assert_allclose(program.time, scheduler.timesteps, rtol=1e-12)
    assert program.init_scale == pytest.approx(scheduler.init_noise_sigma)
    read = [scheduler.sigmas[row].item() for row in range(steps)]
    np.testing.assert_allclose(program.c_in, 1 / np.hypot(read, 0.5), rtol=1e-6)
    signal = impulses(steps, noisy_end=True)
    if clip is not None:
        signal = 80 * draw.normal(size=(3, 4)), draw.normal(size=(steps, 3, 4)), draw.normal(size=(steps, 3, 4))
    assert_close(ours(program, signal), theirs(diffusers_cm, scheduler, signal, monkeypatch), 1e-5)


def test_consistency_levels_of_the_papers_two_step_sampler() -> None:
    """openai's and diffusers' example: timesteps [22, 0] of 40, a list of sigmas here."""
    scheduler = diffusers_cm.CMStochasticIterativeScheduler()
    scheduler.set_timesteps(timesteps=[22, 0])
    levels = schedules.edm().grid(40)[[0, 22]]
    program = Consistency(sigmas=levels).program(schedules.edm(), "raw")
    np.testing.assert_allclose(program.time, scheduler.timesteps, rtol=1e-12)
    assert Consistency(sigmas=levels).program(schedules.edm(), "x0").time.tolist() == levels.tolist()


def test_consistency_noise_scale() -> None:
    plain, scaled = (Consistency(4, s_noise=s).program(schedules.edm(), "raw").A for s in (1.0, 1.25))
    np.testing.assert_allclose(scaled[:, 0, -1], 1.25 * plain[:, 0, -1], rtol=1e-15)
    assert (scaled[:, 0, :-1] == plain[:, 0, :-1]).all()


# ------------------------------------------------------------------------- exact laws with the ideal network


def level_law(alpha: float, sigma: float) -> tuple[float, float]:
    """Mean and standard deviation of x_t for data N(MEAN, STD^2)."""
    return alpha * MEAN, float(np.hypot(alpha * STD, sigma))


def law_after(program: Program, start: tuple[float, float], ideal: list[tuple[float, float]]) -> tuple[float, float]:
    """Mean and standard deviation of the last state, where the network returns slope x + offset in each row."""
    assert program.registers == 1 and len(ideal) == len(program)
    mean, std = start
    for row, (slope, offset) in enumerate(ideal):
        on_x, on_D, on_m, on_z = program.A[row, 0]
        on_x, on_m = on_x + on_D * program.kx[row], on_m + on_D * program.km[row]
        mean, std = (on_x + on_m * slope) * mean + on_m * offset, np.hypot((on_x + on_m * slope) * std, on_z)
    return mean, std


def affine_flow(before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    """(slope, offset) of the probability-flow map between two Gaussian laws."""
    slope = after[1] / before[1]
    return slope, after[0] - slope * before[0]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", [*VP, *CONTINUOUS])
def test_lcm_and_consistency_are_exact_with_the_ideal_consistency_function(name: str, steps: int) -> None:
    """f maps p_t to the law at its end, and noise then takes it to p_s: only f(x, t) is an output here."""
    schedule = (VP | CONTINUOUS)[name]
    least = sigma_min(schedule)
    for sampler, end in ((LCM(steps, timestep_scaling=1e9), 0.0), (Consistency(steps), least)):
        program, grid = sampler.program(schedule, "x0"), sampler.grid(schedule)
        laws = [level_law(*level) for level in zip(grid.alphas, grid.sigmas, strict=True)]
        ideal = [affine_flow(law, level_law(1.0, end)) for law in laws[:-1]]
        assert law_after(program, laws[0], ideal) == pytest.approx(level_law(1.0, end), rel=1e-9)


def test_raw_consistency_is_exact_with_the_ideal_consistency_function() -> None:
    """F that makes c_skip x + c_out F(c_in x) the ideal f; the last of 40 levels is sigma_min, where f = x."""
    schedule = schedules.edm()
    program, grid = Consistency(40).program(schedule, "raw"), Consistency(40).grid(schedule)
    laws = [level_law(1.0, sigma) for sigma in grid.sigmas[:-1]]
    ideal = []
    for sigma, law in zip(grid.sigmas, laws, strict=False):
        slope, offset = affine_flow(law, laws[-1])
        skip = 0.25 / ((sigma - schedule.sigma_min) ** 2 + 0.25)
        out = (sigma - schedule.sigma_min) * 0.5 / np.sqrt(sigma**2 + 0.25)
        ideal.append(((slope - skip) / out, offset / out) if out > 1e-12 else (0.0, 0.0))
    assert law_after(program, laws[0], ideal) == pytest.approx(laws[-1], rel=1e-9)


@pytest.mark.parametrize("eta", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("name", [*VP, *CONTINUOUS])
def test_tcd_is_exact_with_the_ideal_trajectory_function(name: str, eta: float) -> None:
    """The output is whatever makes alpha_u D + sigma_u eps the probability-flow map from t to u.

    One output m gives both D and eps, here with the eps prediction: alpha_u / alpha_t x + (sigma_u - alpha_u sigma_t /
    alpha_t) m.
    """
    schedule, sampler = (VP | CONTINUOUS)[name], TCD(5, eta)
    if name == "flow":
        sampler = TCD(eta=eta, timesteps=[0.95, 0.8, 0.5, 0.2, 0.05])  # alpha above 0
    program, grid = sampler.program(schedule, "eps"), sampler.grid(schedule)
    laws = [level_law(*level) for level in zip(grid.alphas, grid.sigmas, strict=True)]
    ideal = []
    for i, (alpha_t, sigma_t) in enumerate(zip(grid.alphas[:-1], grid.sigmas[:-1], strict=True)):
        alpha_u, sigma_u = grid.alphas[-1], grid.sigmas[-1]
        if i + 1 < len(program):
            u = (1 - eta) * grid.times[i + 1]
            alpha_u, sigma_u = schedule.levels(np.floor(u) if name in VP else u)
        slope, offset = affine_flow(laws[i], level_law(alpha_u, sigma_u))
        on_m = sigma_u - alpha_u * sigma_t / alpha_t
        ideal.append(((slope - alpha_u / alpha_t) / on_m, offset / on_m))
    assert law_after(program, laws[0], ideal) == pytest.approx(laws[-1], rel=1e-9)


def test_tcd_without_noise_is_ddim() -> None:
    for schedule in (VP["cosine"], schedules.ve(0.01, 50)):
        mine, ddim = TCD(12, 0.0, final="zero"), DDIM(timesteps=TCD(12, final="zero").grid(schedule).times)
        np.testing.assert_allclose(mine.program(schedule).A, ddim.program(schedule).A, rtol=1e-13)


# -------------------------------------------------------------------------------------------- hard schedules


@pytest.mark.parametrize("steps", [2, 3, 5, 10])
@pytest.mark.parametrize("predicts", ["v", "x0", "flow"])
@pytest.mark.parametrize("sampler", [LCM, TCD, Consistency])
def test_a_point_keeps_its_marginals_on_zero_terminal_snr_and_cosine(sampler: Any, predicts: str, steps: int) -> None:
    """For data at one point D is exact, so every row's state has mean alpha MEAN and standard deviation sigma."""
    options = {"timestep_scaling": 1e9} if sampler is LCM else {}
    for schedule in (schedules.zero_terminal_snr(VP["scaled"]), VP["cosine"]):
        chosen = sampler(steps, **options)
        program, grid = chosen.program(schedule, predicts), chosen.grid(schedule)
        assert grid.times[0] == 999
        outputs = [
            gaussian_output(predicts, alpha, sigma, MEAN, 0.0)
            for alpha, sigma in zip(grid.alphas[:-1], grid.sigmas[:-1], strict=True)
        ]
        start = grid.alphas[0] * MEAN, grid.sigmas[0]
        end = grid.alphas[-1] * MEAN, grid.sigmas[-1]
        assert law_after(program, start, outputs) == pytest.approx(end, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("sampler", [LCM, TCD, Consistency])
def test_zero_terminal_snr_raises_for_eps(sampler: Any) -> None:
    with pytest.raises(ValueError, match="predicts: got 'eps', which says nothing about x_0"):
        sampler(4).program(schedules.zero_terminal_snr(VP["scaled"]), "eps")


BAD: dict[str, Callable[[], object]] = {
    "original_steps: got 0, expected a whole number of at least 1": lambda: LCM(4, 0),
    "original_steps: got 2.5, expected a whole number of at least 1": lambda: TCD(4, original_steps=2.5),
    "original_steps: got 1001, expected at most the 1000 training steps": lambda: LCM(4, 1001).program(VP["scaled"]),
    "steps: got 51, expected at most original_steps=50": lambda: TCD(51).program(VP["scaled"]),
    "steps: got 41, expected at most training_levels=40": lambda: Consistency(41).program(schedules.edm(), "raw"),
    "training_levels: got -1, expected a whole number of at least 1": lambda: Consistency(4, -1),
    "timestep_scaling: got -1, expected a finite number of at least 0": lambda: LCM(4, timestep_scaling=-1),
    "s_noise: got nan, expected a finite number of at least 0": lambda: Consistency(4, s_noise=float("nan")),
    "eta: got 1.5, expected a number in .0, 1.": lambda: TCD(4, 1.5),
    "clip: got 3, expected None": lambda: LCM(4, clip=3),
    "schedule: got .* under predicts='raw' .*, expected edm": lambda: Consistency(4).program(VP["scaled"], "raw"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()
