"""Grids of noise levels by ComfyUI's names, against its formulas stated again, number by number."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import beta

from grid_cases import Endless, Fractional, Index
from ulam import samplers, schedules
from ulam.samplers.sigmas import AYS, SIGMAS, WHOLE_TABLES
from ulam.schedules import FlowMatching, Schedule, VariancePreserving

SD = schedules.vp_scaled_linear()
FLOW = schedules.flow(3.0)
SCHEDULES = {"sd": SD, "short": schedules.vp_linear(77), "flow": FLOW}
STEPS = (1, 2, 3, 7, 10, 20, 30, 33)


class Known:
    """What ComfyUI knows of a model: the sigmas of its training steps, and sigma where a time is given."""

    def __init__(self, schedule: Schedule) -> None:
        if isinstance(schedule, FlowMatching):
            self.shift, self.times = schedule.shift, (1.0, self.shifted(schedule.shift, 1 / 1000))
            self.table = [self.shifted(schedule.shift, (i + 1) / 1000) for i in range(1000)]
        else:
            assert isinstance(schedule, VariancePreserving)
            self.shift, self.times = None, (float(schedule.steps - 1), 0.0)
            self.table = [math.sqrt((1 - abar) / abar) for abar in schedule.alphas_cumprod]

    @staticmethod
    def shifted(shift: float, u: float) -> float:
        return shift * u / (1 + (shift - 1) * u)

    def at(self, time: float) -> float:
        """On VP models log-linear between two training steps."""
        if self.shift is not None:
            return self.shifted(self.shift, time)
        below = min(int(time), len(self.table) - 2)
        part = time - below
        return math.exp((1 - part) * math.log(self.table[below]) + part * math.log(self.table[below + 1]))


def normal(model: Known, n: int) -> list[float]:
    first, last = model.times
    return [model.at(first + (last - first) * i / max(n - 1, 1)) for i in range(n)]


def sgm_uniform(model: Known, n: int) -> list[float]:
    first, last = model.times
    return [model.at(first + (last - first) * i / n) for i in range(n)]


def simple(model: Known, n: int) -> list[float]:
    return [model.table[-1 - int(i * (len(model.table) / n))] for i in range(n)]


def ddim_uniform(model: Known, n: int) -> list[float]:
    return model.table[1 :: max(len(model.table) // n, 1)][::-1] if n > 1 else model.table[-1:]


def beta_time(model: Known, n: int) -> list[float]:
    return [model.table[round(beta.ppf(1 - i / n, 0.6, 0.6) * (len(model.table) - 1))] for i in range(n)]


def linear_quadratic(model: Known, n: int) -> list[float]:
    """A line from 0 to 0.025 over the first half, a parabola with its slope there from then on, to 1."""
    if n == 1:
        return model.table[-1:]
    m = n // 2
    slope = 0.025 / m
    share = [slope * i for i in range(m)]
    bend = (1 - 0.025 - slope * (n - m)) / (n - m) ** 2
    share += [0.025 + slope * j + bend * j**2 for j in range(n - m)]
    return [model.table[-1] * (1 - s) for s in share]


def kl_optimal(model: Known, n: int) -> list[float]:
    first, last = math.atan(model.table[-1]), math.atan(model.table[0])
    return [math.tan(first + (last - first) * i / max(n - 1, 1)) for i in range(n)]


def laplace(model: Known, n: int) -> list[float]:
    levels = []
    for i in range(n):
        x = i / max(n - 1, 1)
        tail = math.log(1 - 2 * abs(0.5 - x) + 1e-5)
        log_sigma = 0.0 if x == 0.5 else -0.5 * math.copysign(1, 0.5 - x) * tail
        levels.append(min(max(math.exp(log_sigma), model.table[0]), model.table[-1]))
    return levels


def karras(model: Known, n: int) -> list[float]:
    first, last = model.table[-1] ** (1 / 7), model.table[0] ** (1 / 7)
    return [(first + (last - first) * i / max(n - 1, 1)) ** 7 for i in range(n)]


def exponential(model: Known, n: int) -> list[float]:
    first, last = math.log(model.table[-1]), math.log(model.table[0])
    return [math.exp(first + (last - first) * i / max(n - 1, 1)) for i in range(n)]


FORMULAS: dict[str, Callable[[Known, int], list[float]]] = {
    "normal": normal, "sgm_uniform": sgm_uniform, "simple": simple, "ddim_uniform": ddim_uniform,
    "beta-time": beta_time, "linear_quadratic": linear_quadratic, "kl_optimal": kl_optimal, "laplace": laplace,
    "karras": karras, "exponential": exponential, "polyexponential": exponential,
}  # fmt: skip
ON_FLOW = ("normal", "sgm_uniform", "simple", "ddim_uniform", "linear_quadratic", "kl_optimal")


def levels_of(grid: samplers.Grid, schedule: Schedule) -> np.ndarray:
    return grid.sigmas if isinstance(schedule, FlowMatching) else grid.ratios


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_are_comfyuis(schedule: str, name: str) -> None:
    """For samplers of all conventions; the sampler then ends at the data."""
    on = SCHEDULES[schedule]
    if on is FLOW and name not in ON_FLOW:
        return  # diffusers' there, but for laplace, see below
    model = Known(on)
    for steps in STEPS:
        expected = FORMULAS[name](model, steps)
        for cls in (Fractional, Index, Endless):
            if len({*expected}) < steps and name != "ddim_uniform":
                continue
            grid = cls(steps, sigmas=name).grid(on)
            np.testing.assert_allclose(levels_of(grid, on), [*expected, 0.0], rtol=1e-9)
            if cls is Fractional and on is not FLOW:
                at = np.interp(np.log(expected), np.log(model.table), np.arange(len(model.table)))
                np.testing.assert_allclose(grid.times, at, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in FORMULAS if name not in ("beta-time", "laplace")])
def test_as_many_steps_as_training_steps_and_no_more(name: str) -> None:
    schedule = SCHEDULES["short"]
    grid = Fractional(77, sigmas=name).grid(schedule)
    np.testing.assert_allclose(grid.ratios[:-1], FORMULAS[name](Known(schedule), 77), rtol=1e-9)
    assert len(grid) == 77 - (name == "ddim_uniform")
    refused = name not in ("linear_quadratic", "kl_optimal")
    if refused:
        with pytest.raises(ValueError, match=r"^steps: got 78, expected at most the 77 training steps of the schedule"):
            Fractional(78, sigmas=name).grid(schedule)


def test_levels_that_are_the_same_are_refused_in_one_line() -> None:
    for case in (
        lambda: Fractional(77, sigmas="beta-time").grid(SCHEDULES["short"]),
        lambda: Fractional(10, sigmas="laplace").grid(FLOW),  # half of them lie above sigma = 1
        lambda: Fractional(2000, sigmas="laplace").grid(SD),
    ):
        with pytest.raises(ValueError, match=r"^steps: got sigma/alpha .* expected strictly decreasing.*use fewer"):
            case()
    for name in ("simple", "ddim_uniform"):
        with pytest.raises(ValueError, match=rf"^steps: got 1001 with '{name}', expected at most the 1000 that it"):
            Fractional(1001, sigmas=name).grid(FLOW)


@pytest.mark.parametrize("name", AYS)
def test_align_your_steps_is_log_linear_between_its_own_levels(name: str) -> None:
    """diffusers keeps three digits, those of the authors' page; the data are at the place of the last of the table."""
    from diffusers.schedulers.scheduling_utils import AysSchedules

    key = {"ays_sd1": "StableDiffusion", "ays_sdxl": "StableDiffusionXL", "ays_svd": "StableDiffusionVideo"}[name]
    schedule = schedules.ve(0.002, 700.0)
    ten = Fractional(10, sigmas=name).grid(schedule).sigmas
    np.testing.assert_allclose(ten[:-1], AysSchedules[f"{key}Sigmas"][:10], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(ten[:-1], AYS[name][:-1], rtol=1e-14)
    for steps in (1, 3, 10, 25):
        levels = Fractional(steps, sigmas=name).grid(schedule).sigmas
        for i, level in enumerate(levels[:-1]):
            below = min(int(10 * i / steps), 9)
            part = 10 * i / steps - below
            expected = AYS[name][below] ** (1 - part) * AYS[name][below + 1] ** part
            assert level == pytest.approx(expected, rel=1e-12)
        assert levels[-1] == 0


@pytest.mark.parametrize("name", WHOLE_TABLES)
def test_the_tables_of_webuis_are_log_linear_from_their_first_level_to_their_last(name: str) -> None:
    """n of them and the data, on the table itself where n is its length, as A1111 and Forge interpolate."""
    table = WHOLE_TABLES[name]
    assert len(table) == (32 if "32" in name else 11) and [*table] == sorted(table, reverse=True)
    np.testing.assert_allclose(Fractional(len(table), sigmas=name).grid(SD).ratios, [*table, 0], rtol=1e-12)
    for steps in (2, 7, 20, 40):
        expected = []
        for i in range(steps):
            at = i * (len(table) - 1) / (steps - 1)
            below = min(int(at), len(table) - 2)
            expected.append(table[below] ** (below + 1 - at) * table[below + 1] ** (at - below))
        np.testing.assert_allclose(Fractional(steps, sigmas=name).grid(SD).ratios, [*expected, 0], rtol=1e-12)
    assert Fractional(1, sigmas=name).grid(SD).ratios[0] == pytest.approx(14.615)


def test_align_your_steps_of_a1111_has_the_three_digits_of_the_authors() -> None:
    """diffusers keeps them too, but for the end; what ComfyUI has is within 0.06 %, or their rounding."""
    from diffusers.schedulers.scheduling_utils import AysSchedules

    for name, key in (("ays_11_sd1", "StableDiffusionSigmas"), ("ays_11_sdxl", "StableDiffusionXLSigmas")):
        np.testing.assert_allclose(WHOLE_TABLES[name][:10], AysSchedules[key][:10], atol=5e-3)
        np.testing.assert_allclose(WHOLE_TABLES[name], AYS[name.replace("_11", "")], rtol=6e-4, atol=3e-3)


def test_turbo_is_forges() -> None:
    """Its training steps are taken in float32 by torch, which rounds halves to even."""
    for steps in range(1, 1001):
        times = (torch.arange(1, steps + 1) * float(1000.0 / steps) - 1).flip(0).round().long().clip(0, 999)
        mine = Index(steps, sigmas="turbo").grid(SD)
        np.testing.assert_array_equal(mine.times, times)
    np.testing.assert_allclose(mine.ratios[:-1], SD.ratios[times], rtol=1e-12)
    with pytest.raises(ValueError, match=r"^steps: got 1001, expected at most the 1000 training steps"):
        Index(1001, sigmas="turbo").grid(SD)
    levels = Fractional(4, sigmas="turbo").grid(FLOW).sigmas
    np.testing.assert_allclose(levels, [*(Known.shifted(3.0, i / 4) for i in (4, 3, 2, 1)), 0], rtol=1e-12)


def test_vp_is_the_sde_at_uniform_times() -> None:
    """Where sub_vp has sigma / alpha = 2 sinh(B), VP has sqrt(exp(2 B) - 1), B = -log alpha_t [Song 2021b]."""
    schedule = schedules.vp_linear()
    t = np.linspace(1, 1e-3, 12)
    log_alpha = np.log(schedules.sub_vp().alpha(t))
    grid = Fractional(12, sigmas="vp").grid(schedule)
    # beta_max - beta_min is 19.9 there, as in k-diffusion
    np.testing.assert_allclose(grid.ratios[:-1], np.sqrt(np.expm1(-2 * log_alpha)), rtol=1e-9)


@pytest.mark.parametrize("name", ["vp", *AYS, *WHOLE_TABLES])
def test_tables_above_the_schedule_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^sigmas: got '{name}', which begins at .*, expected a schedule that goes"):
        Fractional(5, sigmas=name).grid(FLOW)


def test_other_schedules() -> None:
    """Uniform in time is uniform in t on sub-VP, in log sigma on VE and EDM; simple is every training step's."""
    sub_vp, edm = schedules.sub_vp(t_min=0.01), schedules.edm()
    np.testing.assert_allclose(Fractional(5, sigmas="normal").grid(sub_vp).times, np.linspace(1, 0.01, 5), rtol=1e-9)
    np.testing.assert_allclose(
        Fractional(5, sigmas="sgm_uniform").grid(edm).times, np.geomspace(80, 0.002, 6)[:-1], rtol=1e-9
    )
    np.testing.assert_allclose(
        Fractional(4, sigmas="simple").grid(edm).times, np.geomspace(0.002, 80, 1000)[[999, 749, 499, 249]], rtol=1e-9
    )
    zero = schedules.zero_terminal_snr(SD)
    assert Index(5, sigmas="simple").grid(zero).alphas[0] == 0
    for name in ("normal", "kl_optimal", "linear_quadratic"):
        with pytest.raises(ValueError, match=rf"^sigmas: got '{name}' on zero.*, expected a schedule whose largest"):
            Index(5, sigmas=name).grid(zero)
    frozen = schedules.learned(lambda t: 10 * t - 5).frozen()
    with pytest.raises(ValueError, match=r"^sigmas: got 'normal' on .*, expected 'karras', 'exponential' or 'beta'"):
        Fractional(5, sigmas="normal").grid(frozen)
    assert Fractional(5, sigmas="kl_optimal").grid(frozen).ratios[0] == pytest.approx(math.exp(2.5))


@pytest.mark.parametrize("name", [name for name in SIGMAS if name not in ("ddim_uniform", "vp", "ays_svd")])
def test_drop_last_is_one_step_more_without_its_last(name: str) -> None:
    for cls in (Fractional, Endless):
        more = cls(9, sigmas=name).grid(SD)
        grid = cls(8, sigmas=name, drop_last=True).grid(SD)
        np.testing.assert_array_equal(grid.ratios, np.delete(more.ratios, -2))
        np.testing.assert_array_equal(grid.times, more.times[:-1])
    for sigmas in (None, (3.0, 1.0)):
        with pytest.raises(ValueError, match=r"^drop_last: got True without sigmas by name"):
            Fractional(2, sigmas=sigmas, drop_last=True)


def test_names_begin_at_the_noisiest_level_and_a_spacing_says_otherwise() -> None:
    for name in ("karras", "exponential", "beta"):
        whole = Index(6, sigmas=name).grid(SD).ratios
        assert (whole[0], whole[-2]) == pytest.approx((SD.ratios[-1], SD.ratios[0]), rel=1e-12)
        spaced = Index(6, sigmas=name, spacing="leading").grid(SD).ratios
        assert (spaced[0], spaced[-2]) == pytest.approx((SD.ratios[5 * 166], SD.ratios[0]), rel=1e-12)
    for name in set(SIGMAS) - {"karras", "exponential", "polyexponential", "beta"}:
        with pytest.raises(ValueError, match=r"^spacing, timesteps, sigmas: got more than one"):
            Index(6, sigmas=name, spacing="leading")


@pytest.mark.parametrize("shift", [0.07, 0.3, 1 / 3, 0.9, 1.0, 1.15, math.exp(0.7), 3.0, 11.7])
def test_a_grid_of_a_flow_begins_at_pure_noise_or_well_below(shift: float) -> None:
    """A first time one rounding below 1 is a signal of 1e-16, by which solvers in log-SNR divide."""
    for name in (None, *SIGMAS):
        for steps in (1, 2, 7, 20):
            if name in (*AYS, *WHOLE_TABLES, "vp", "laplace"):
                continue  # refused: they go beyond, or stay at pure noise
            alpha = Fractional(steps, sigmas=name).grid(schedules.flow(shift)).alphas[0]
            assert alpha == 0 or alpha > 1e-6, (name, steps)
