"""Grids of noise levels: explicit and log-SNR levels, ends of grids, and every wrong argument of GridSampler."""

from __future__ import annotations

import math
from collections.abc import Callable

import diffusers
import numpy as np
import pytest
import torch

from grid_cases import FAMILIES, FLOW, LINEAR, VP, Endless, Fractional, Index, theirs
from sampler_cases import CONTINUOUS
from ulam import schedules
from ulam.integrations.diffusers import fuse
from ulam.samplers import DDIM, DDPM, TCD
from ulam.samplers.arguments import check_whole
from ulam.samplers.grid import Grid
from ulam.samplers.noise_levels import levels_at, network_times, sigma_min
from ulam.schedules import Schedule, VariancePreserving

# diffusers reads torch tensors through NumPy's old protocol


# ------------------------------------------------------------------------------------------- explicit and log-SNR


def test_explicit_sigmas_equal_diffusers_and_are_told_exactly() -> None:
    schedule, sigmas = VP["linear"], [14.0, 6.5, 2.0, 0.7, 0.1]
    scheduler = theirs("EulerDiscreteScheduler", schedule, None, {"sigmas": [*sigmas, 0.0]})
    for cls in (Fractional, Index, Endless):
        for given in ([*sigmas, 0.0], np.array(sigmas), torch.tensor(sigmas, dtype=torch.float64)):
            grid = cls(sigmas=given).grid(schedule)
            np.testing.assert_allclose(grid.ratios, [*sigmas, 0.0], rtol=1e-15)
            np.testing.assert_allclose(grid.times, scheduler.timesteps, rtol=1e-6)
            np.testing.assert_allclose(grid.alphas**2 + grid.sigmas**2, 1, rtol=1e-15)
    assert Fractional(5, sigmas=[*sigmas, 0.0]).steps == 5
    flow = Fractional(sigmas=[0.9, 0.4], final=0.1).grid(schedules.flow())
    np.testing.assert_allclose(flow.times, [0.9, 0.4], rtol=1e-15)
    assert flow.sigmas.tolist() == [0.9, 0.4, 0.1]


def test_explicit_timesteps_equal_diffusers() -> None:
    times = [901, 700, 333, 20]
    for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        scheduler = theirs(name, VP["linear"], None, {"timesteps": times})
        grid = FAMILIES[name](timesteps=times).grid(VP["linear"])
        assert grid.times.tolist() == scheduler.timesteps.tolist() == times
        np.testing.assert_allclose(grid.ratios, scheduler.sigmas, rtol=1e-6)


def test_fractional_timesteps_are_told_and_interpolated() -> None:
    schedule = VP["linear"]
    program = DDIM(timesteps=[700.5, 3.25]).program(schedule)
    assert program.time.tolist() == [700.5, 3.25]
    assert program is DDIM(2, timesteps=np.array([700.5, 3.25])).program(schedule)
    assert program.A[0, 0, 0] == pytest.approx(schedule.alpha(3.25) / schedule.alpha(700.5), rel=1e-13)


def test_a_list_with_one_more_than_the_steps_has_the_end_too() -> None:
    for cls in (Fractional, Endless, TCD):  # TCD's final is not "zero" by default
        ended, short = cls(2, sigmas=[3, 1, 0.1]).grid(LINEAR), cls(sigmas=[3, 1], final=0.1).grid(LINEAR)
        to_data = cls(sigmas=[3, 1, 0]).grid(LINEAR)
        for one, other in zip(vars(ended).values(), vars(short).values(), strict=True):
            assert one.tolist() == other.tolist()
        assert (to_data.alphas[-1], to_data.sigmas[-1]) == (1, 0) and to_data.times.tolist() == short.times.tolist()
    ended = Index(2, timesteps=[500, 300, 10]).grid(LINEAR)
    assert ended.times.tolist() == [500, 300] and (ended.alphas[-1], ended.sigmas[-1]) == LINEAR.levels(10)
    ended = Fractional(1, sigmas=[0.9, 0.2]).grid(FLOW)
    assert ended.sigmas.tolist() == [0.9, 0.2]


@pytest.mark.parametrize("name", ["linear", "cosine", *CONTINUOUS])
@pytest.mark.parametrize("cls", [Fractional, Index, Endless])
def test_log_snr_spacing_is_uniform(cls: type[Fractional], name: str) -> None:
    schedule: Schedule = (VP | CONTINUOUS)[name]
    grid = cls(7, spacing="log-snr", final="sigma_min").grid(schedule)
    np.testing.assert_allclose(np.diff(grid.log_snr), (grid.log_snr[-1] - grid.log_snr[0]) / 7, rtol=1e-9)
    np.testing.assert_allclose(schedule.t_of_sigma(grid.ratios[0]), grid.times[0], rtol=1e-12)
    assert grid.ratios[-1] == pytest.approx(sigma_min(schedule), rel=1e-12)
    np.testing.assert_allclose(network_times(schedule, grid.alphas[:-1], grid.sigmas[:-1]), grid.times, rtol=1e-14)
    to_data = cls(7, spacing="log-snr").grid(schedule)
    assert to_data.alphas[:-1].tolist() == grid.alphas[:-1].tolist() and to_data.sigmas[-1] == 0


@pytest.mark.parametrize("name", [*VP, *CONTINUOUS])
def test_the_end_is_the_data_or_a_number(name: str) -> None:
    schedule = (VP | CONTINUOUS)[name]
    spacing = "trailing" if name in VP else None
    grid = Fractional(4, spacing=spacing, final="zero").grid(schedule)
    assert (grid.alphas[-1], grid.sigmas[-1], grid.ratios[-1], grid.log_snr[-1]) == (1, 0, 0, math.inf)
    number = Fractional(4, spacing=spacing, final=1e-5).grid(schedule)
    assert (number.sigmas if name == "flow" else number.ratios)[-1] == pytest.approx(1e-5, rel=1e-12)
    assert number.sigmas[:-1].tolist() == grid.sigmas[:-1].tolist() and number.times.tolist() == grid.times.tolist()


def test_sigma_min_is_where_the_schedule_ends() -> None:
    assert sigma_min(VP["linear"]) == pytest.approx(math.sqrt(1e-4 / (1 - 1e-4)), rel=1e-12)
    assert sigma_min(CONTINUOUS["ve"]) == 0.01 and sigma_min(CONTINUOUS["edm"]) == 0.002
    alpha, sigma = schedules.sub_vp(t_min=0.02).levels(0.02)
    assert sigma_min(schedules.sub_vp(t_min=0.02)) == pytest.approx(sigma / alpha, rel=1e-14)
    flow = Fractional(4, final="sigma_min").grid(schedules.flow())
    assert flow.ratios[-1] == pytest.approx(1e-3, rel=1e-12)


@pytest.mark.parametrize("name", [*VP, *CONTINUOUS])
def test_told_inverts_the_levels(name: str) -> None:
    schedule = (VP | CONTINUOUS)[name]
    values = np.array([0.59, 0.31, 0.05])
    alpha, sigma = levels_at(schedule, values)
    np.testing.assert_allclose(sigma if name == "flow" else sigma / alpha, values, rtol=1e-12)
    times = network_times(schedule, alpha, sigma)
    if isinstance(schedule, VariancePreserving):  # k-diffusion interpolates in log(sigma / alpha)
        log_ratio = np.interp(times, np.arange(schedule.steps), np.log(schedule.ratios))
        np.testing.assert_allclose(log_ratio, np.log(values), rtol=1e-12)
    else:
        np.testing.assert_allclose(schedule.levels(times), (alpha, sigma), rtol=1e-11)


def test_continuous_schedules_use_their_own_grid() -> None:
    for schedule in CONTINUOUS.values():
        assert Index(6).program(schedule, "x0").time.tolist() == schedule.grid(6).tolist()
    assert Index(6).program(CONTINUOUS["ve"]).init_scale == 50
    assert Fractional(sigmas=[7.0, 2.0, 0]).program(CONTINUOUS["ve"]).init_scale == 7


def test_zero_terminal_snr_starts_at_infinite_noise() -> None:
    schedule = schedules.zero_terminal_snr(VP["linear"])
    grid = Index(5, spacing="trailing").grid(schedule)
    assert (grid.alphas[0], grid.sigmas[0], grid.ratios[0], grid.log_snr[0]) == (0, 1, math.inf, -math.inf)
    assert np.isfinite(Index(5, spacing="trailing").program(schedule, "v").A).all()
    for cls in (Fractional, Endless):
        with pytest.raises(
            ValueError, match=r"sigmas: got 'karras' on .*, expected a schedule whose largest sigma is finite"
        ):
            cls(5, sigmas="karras", spacing="trailing").grid(schedule)
    with pytest.raises(
        ValueError, match=r"spacing: got 'log-snr' on .*, expected a schedule whose largest sigma is finite"
    ):
        Fractional(5, spacing="log-snr").grid(schedule)


# ------------------------------------------------------------------------------------------------------ bad input


def levels(*ratios: float, alpha: float = 1.0) -> Grid:
    ratio = np.array(ratios)
    return Grid(np.arange(len(ratio) - 1.0), np.full(len(ratio), alpha), ratio)


BAD: dict[str, Callable[[], object]] = {
    "steps: got 0, expected a whole number of at least 1": lambda: DDIM(0),
    "steps: got -3, expected a whole number of at least 1": lambda: DDPM(-3),
    "steps: got True, expected a whole number of at least 1": lambda: DDIM(True),
    "steps: got 5.0, expected a whole number of at least 1": lambda: DDIM(5.0),
    "steps: got '5', expected a whole number of at least 1": lambda: DDPM("5"),
    "steps: got None, expected a number of steps .or timesteps or sigmas.": lambda: DDIM(),
    "steps: got 1001, expected at most the 1000 training steps of the schedule": lambda: DDIM(1001).program(LINEAR),
    "steps: got None on edm": lambda: DDPM().program(schedules.edm()),
    "steps: got 3, expected the 2 timesteps given": lambda: DDIM(3, timesteps=[5, 1]),
    "steps: got 3, expected the 2 sigmas given": lambda: DDIM(3, sigmas=[5, 1, 0]),
    "steps: got .* 0.0100005 before 0.0100005, expected strictly decreasing noise levels: use fewer":
        lambda: Endless(1000, spacing="leading").grid(LINEAR),
    "spacing: got 'even', expected one of leading, linspace, trailing, log-snr": lambda: DDPM(5, spacing="even"),
    "spacing: got 'leading' on flow.*, expected None or log-snr":
        lambda: DDIM(5, spacing="leading").program(FLOW, "flow"),
    "spacing, timesteps, sigmas: got more than one, expected one": lambda: DDIM(2, spacing="leading", timesteps=[5, 1]),
    "timesteps, sigmas: got more than one, expected one": lambda: DDIM(2, sigmas="karras", timesteps=[5, 1]),
    "spacing, timesteps, sigmas: got more than one": lambda: DDIM(2, spacing="linspace", sigmas=[2, 1]),
    "spacing, .*: got more than one, expected one .or spacing with sigmas='karras'":
        lambda: DDIM(4, spacing="log-snr", sigmas="karras"),
    "spacing, .*: got more than one, expected one .or spacing with sigmas='karras', 'exponential' or 'beta'.$":
        lambda: DDIM(4, spacing="linspace", sigmas="beta-time"),
    "steps: got .*, expected strictly decreasing noise levels: use fewer steps":
        lambda: Fractional(200, sigmas="beta-time").grid(LINEAR),
    "steps: got None on edm.*, expected a number: it has no training steps":
        lambda: DDPM(sigmas="beta-time").grid(schedules.edm()),
    "sigmas: got nan at level 1, expected finite numbers": lambda: levels(3, math.nan, 0),
    "sigmas: got nan at level 0, expected finite numbers": lambda: levels(math.nan, 0),
    "sigmas: got inf at level 0, expected finite numbers": lambda: levels(math.inf, 1, 0),
    "alphas: got nan at level 0, expected finite numbers": lambda: levels(3, 1, 0, alpha=math.nan),
    "times: got nan at level 0, expected finite numbers":
        lambda: Grid(np.array([math.nan]), np.ones(2), np.array([1.0, 0.0])),
    "timesteps: got 1 before 5, expected strictly decreasing": lambda: DDIM(timesteps=[1, 5]),
    "timesteps: got 5 before 5, expected strictly decreasing": lambda: DDPM(timesteps=[5, 5]),
    "timesteps: got .*, expected a sequence of numbers, not empty": lambda: DDPM(timesteps=[]),
    "timesteps: got 7, expected a sequence of numbers, not empty": lambda: DDPM(timesteps=7),
    "timesteps: got nan, expected finite numbers": lambda: DDPM(timesteps=[math.nan]),
    "timesteps: got True, expected finite numbers": lambda: DDPM(timesteps=[True]),
    "timesteps: got 'a', expected finite numbers": lambda: DDPM(timesteps=["a"]),
    "timesteps: got 1000.0, expected numbers in .0, 999.": lambda: DDIM(timesteps=[1000, 3]).program(LINEAR),
    "timesteps: got -1.0, expected numbers in": lambda: DDPM(timesteps=[3, -1]).program(LINEAR),
    "timesteps: got 0 with sigma 0, expected sigma above 0": lambda: DDIM(timesteps=[1, 0]).program(FLOW, "flow"),
    "sigmas: got 'lu', expected one of karras, exponential, beta, beta-time": lambda: DDIM(5, sigmas="lu"),
    "sigmas: got 1 before 2, expected strictly decreasing": lambda: DDIM(sigmas=[1, 2]),
    "sigmas: got -1, expected numbers above 0 .the last may be 0.": lambda: DDIM(sigmas=[1, -1]),
    "sigmas: got 0, expected numbers above 0 .the last may be 0.": lambda: DDIM(sigmas=[0]),
    "sigmas: got inf, expected finite numbers": lambda: DDIM(sigmas=[math.inf, 1]),
    "sigmas: got 3, expected a sequence of numbers, not empty": lambda: DDIM(sigmas=3),
    "sigmas: got 1.5, expected numbers in .0, 1.": lambda: DDIM(sigmas=[1.5, 0.2]).program(FLOW, "flow"),
    "sigmas: got 1000000000.0, expected numbers in": lambda: DDIM(sigmas=[1e9, 1]).program(schedules.sub_vp()),
    "final: got 'one', expected 'zero', 'sigma_min' or a noise level above 0": lambda: DDIM(5, final="one"),
    "final: got 0, expected 'zero', 'sigma_min' or a noise level above 0": lambda: DDIM(5, final=0),
    "final: got True, expected 'zero', 'sigma_min' or a noise level above 0": lambda: DDIM(5, final=True),
    "final: got inf, expected 'zero',": lambda: DDIM(5, final=math.inf),
    "final: got 'sigma_min', expected 'zero' where the last of sigmas is the end":
        lambda: DDIM(sigmas=[1, 0], final="sigma_min"),
    "final: got sigma/alpha 0.01, expected a level below the last one, 0.01":
        lambda: DDIM(5, final="sigma_min").program(schedules.ve(0.01, 1)),
    "final: got 2.0, expected numbers in .0, 1.": lambda: DDIM(5, final=2).program(FLOW, "flow"),
    "timesteps: got .*, expected sigma above 0": lambda: levels(1, 0, 0),
    "steps: got sigma/alpha 1 before 2, expected strictly decreasing noise levels": lambda: levels(1, 2, 0),
    "final: got 0.05, expected 'zero' where the last of sigmas is the end":
        lambda: DDIM(1, sigmas=[1, 0.1], final=0.05),
    "final: got .*, expected 'zero' where the last of timesteps is":
        lambda: DDIM(1, timesteps=[9, 1], final="sigma_min"),
    "final: got .*, expected a level below": lambda: levels(3, 2, 2),
    "final: got sigma/alpha 0.002, expected a level below the last one, 0.002":
        lambda: Endless(20, final="sigma_min").grid(schedules.edm()),  # rounding must not pass for a step
    "order: got 4, expected a whole number from 1 to 3": lambda: check_whole("order", 4, 1, 3),
}  # fmt: skip


def test_levels_of_a_fused_scheduler_that_are_nan_are_named() -> None:
    """With one step diffusers divides 0 by 0 in stretching its sigmas to shift_terminal."""
    scheduler = fuse(diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1))
    with pytest.raises(ValueError, match=r"^timesteps: got \[nan\], expected at least one, all finite$"):
        scheduler.set_timesteps(1)


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()
