"""Spacings and named sigmas against diffusers' schedulers and closed forms."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import scipy.stats

from grid_cases import FAMILIES, LINEAR, VP, Endless, Fractional, Index, theirs
from sampler_cases import CONTINUOUS
from ulam import schedules
from ulam.samplers.grid import network_times, spaced
from ulam.schedules import Schedule

SPACINGS = ("leading", "linspace", "trailing")


def times_of(scheduler: Any) -> np.ndarray:
    """Heun's are doubled: first, then every one twice."""
    times = scheduler.timesteps.double().numpy()
    return np.append(times[0], times[1::2]) if isinstance(scheduler, diffusers.HeunDiscreteScheduler) else times


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("schedule", ["linear", "short"])
def test_spacings_equal_diffusers(schedule: str, name: str, spacing: str) -> None:
    T, convention = VP[schedule].steps, FAMILIES[name].convention
    for steps in {2, 3, 7, 10, 27, 50, 61, 76, T // 2, T - 1, T}:
        expected = times_of(theirs(name, VP[schedule], steps, timestep_spacing=spacing))[:steps]
        times = spaced(T, steps, spacing, convention)
        if name.startswith("Heun"):
            np.testing.assert_allclose(times, expected, rtol=1e-6)
        else:
            np.testing.assert_allclose(times, expected, rtol=1e-7)
        assert len(times) == steps and times[-1] >= 0
        if convention != "endless":
            assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name[:3] not in ("DDP", "DDI")])
@pytest.mark.parametrize("schedule", VP)
def test_noise_levels_equal_diffusers(schedule: str, name: str, spacing: str) -> None:
    """Those of rows and, where it is not the data, of the end; DEIS always ends at the smallest."""
    for final in ("zero", "sigma_min"):
        if final == "sigma_min" and (FAMILIES[name] is Fractional or name.startswith("DEIS")) and spacing != "trailing":
            continue
        config = {} if name[:3] in ("LMS", "DEI", "Heu") else {"final_sigmas_type": final}
        sigmas = theirs(name, VP[schedule], 9, timestep_spacing=spacing, **config).sigmas.double().numpy()
        if name.startswith("Heun"):
            sigmas = np.append(sigmas[0], sigmas[1:-1:2])
        grid = FAMILIES[name](9, spacing=spacing, final=final).grid(VP[schedule])
        np.testing.assert_allclose(grid.ratios[:9], sigmas[:9], rtol=3e-7)
        if config or (name.startswith("DEIS") and final == "sigma_min"):
            assert grid.ratios[-1] == pytest.approx(sigmas[-1], rel=1e-6)


@pytest.mark.parametrize("spacing", [None, *SPACINGS])
@pytest.mark.parametrize("convention", ["index", "fractional", "endless"])
def test_one_step_begins_at_the_noisiest_level_where_diffusers_may_begin_at_the_data(
    convention: str, spacing: str | None
) -> None:
    cls = {"index": Index, "fractional": Fractional, "endless": Endless}[convention]
    for schedule in VP.values():
        for sigmas in (None, "karras", "exponential", "beta"):
            grid = cls(1, spacing=spacing, sigmas=sigmas).grid(schedule)
            assert grid.times == pytest.approx([schedule.steps - 1], rel=1e-12) and grid.sigmas[-1] == 0
            assert grid.ratios[0] == pytest.approx(schedule.ratios[-1], rel=1e-12)
    assert theirs("DDIMScheduler", LINEAR, 1).timesteps.tolist() == [0]


@pytest.mark.parametrize("sigmas", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("schedule", VP)
def test_named_sigmas_equal_diffusers(schedule: str, name: str, sigmas: str) -> None:
    """Multistep schedulers round Karras' times, but truncate the others': ours are always the nearest."""
    scheduler = theirs(name, VP[schedule], 11, **{f"use_{sigmas}_sigmas": True})
    grid = FAMILIES[name](11, sigmas=sigmas).grid(VP[schedule])
    np.testing.assert_allclose(grid.ratios[:-1], scheduler.sigmas.numpy()[:11], rtol=3e-7)
    assert grid.ratios[-1] == 0
    if FAMILIES[name] is Fractional:
        np.testing.assert_allclose(grid.times, scheduler.timesteps, rtol=1e-6, atol=1e-4)
    elif sigmas == "karras":
        np.testing.assert_array_equal(grid.times, scheduler.timesteps)
    else:
        exact = network_times(VP[schedule], grid.alphas[:-1], grid.sigmas[:-1])
        np.testing.assert_array_equal(grid.times, exact.round())
        assert (abs(np.floor(exact + 1e-9) - scheduler.timesteps.numpy()) <= 1e-9).all()


@pytest.mark.parametrize("sigmas", ["karras", "exponential", "beta"])
def test_named_sigmas_equal_diffusers_on_flow(sigmas: str) -> None:
    schedule = schedules.flow(2.0)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**{f"use_{sigmas}_sigmas": True})
    scheduler.set_timesteps(sigmas=list(schedule.grid(8)))
    grid = Fractional(8, sigmas=sigmas).grid(schedule)
    np.testing.assert_allclose(grid.sigmas, scheduler.sigmas, rtol=3e-7)
    np.testing.assert_allclose(1000 * grid.times, scheduler.timesteps, rtol=3e-7)
    np.testing.assert_allclose(grid.alphas + grid.sigmas, 1, rtol=1e-15)


def test_karras_on_edm_is_its_own_grid() -> None:
    schedule = schedules.edm()
    np.testing.assert_allclose(Fractional(9, sigmas="karras").grid(schedule).times, schedule.grid(9), rtol=1e-12)
    geometric = Fractional(9, sigmas="exponential").grid(CONTINUOUS["ve"])
    np.testing.assert_allclose(geometric.times, CONTINUOUS["ve"].grid(9), rtol=1e-12)


def test_beta_sigmas_are_quantiles() -> None:
    """The Beta(0.6, 0.6) distribution, integrated here, has mass 1 - i / (n - 1) below level i."""
    levels = Fractional(6, sigmas="beta").grid(schedules.ve(1.0, 3.0)).sigmas[:-1]
    angle = np.linspace(0, np.pi / 2, 20001)  # u = sin^2: (u (1 - u))^-0.4 du = 2 (sin cos)^0.2 d angle
    density = (np.sin(angle) * np.cos(angle)) ** 0.2
    mass = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2))
    below = np.interp((levels - 1) / 2, np.sin(angle) ** 2, mass / mass[-1])
    np.testing.assert_allclose(below, np.linspace(1, 0, 6), atol=1e-4)


def comfyui_beta(sigmas: np.ndarray, steps: int) -> list[float]:
    """What ComfyUI's beta scheduler takes of a model's `sigmas`, increasing: quantiles of the index, each once."""
    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
    indices = np.rint(quantiles * (len(sigmas) - 1)).astype(int)
    return [float(sigmas[i]) for i in dict.fromkeys(indices.tolist())]


@pytest.mark.parametrize("cls", [Fractional, Index, Endless])
@pytest.mark.parametrize("name", VP)
def test_beta_in_time_is_comfyuis_and_far_from_beta_in_sigma(name: str, cls: type[Fractional]) -> None:
    schedule = VP[name]
    for steps in (1, 2, 7, 20):
        grid = cls(steps, sigmas="beta-time").grid(schedule)
        np.testing.assert_allclose(grid.ratios[:-1], comfyui_beta(schedule.ratios, steps), rtol=1e-12)
        assert (grid.times % 1 == 0).all() and grid.ratios[-1] == 0
    in_sigma = cls(20, sigmas="beta").grid(schedule).ratios[:-1]
    assert abs(np.log(in_sigma / grid.ratios[:-1])).max() > 0.7


def test_beta_in_time_on_schedules_without_training_steps() -> None:
    quantiles = scipy.stats.beta.ppf(1 - np.arange(6) / 6, 0.6, 0.6)

    def times(schedule: Schedule) -> np.ndarray:
        return Fractional(6, sigmas="beta-time").grid(schedule).times

    np.testing.assert_allclose(times(schedules.flow(3.0)), 3 * quantiles / (1 + 2 * quantiles), rtol=1e-12)
    np.testing.assert_allclose(times(schedules.sub_vp(t_min=0.01)), 0.01 + 0.99 * quantiles, rtol=1e-12)
    np.testing.assert_allclose(times(schedules.ve(0.01, 50)), 0.01 * 5000**quantiles, rtol=1e-12)
    np.testing.assert_allclose(times(schedules.edm()), 0.002 * 40000**quantiles, rtol=1e-12)
    assert times(schedules.zero_terminal_snr(LINEAR))[0] == 999
