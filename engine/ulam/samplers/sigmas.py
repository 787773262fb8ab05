"""Grids of noise levels by name: where to spend the steps between a largest and a smallest level."""

from __future__ import annotations

import numpy as np

from ..schedules import Array, Continuous, FlowMatching, Schedule, SubVP, VarianceExploding, VariancePreserving
from .noise_levels import coordinate

BETWEEN = ("karras", "exponential", "polyexponential", "beta")  # two levels, which `spacing` may choose
AT_TRAINING_STEPS = ("beta-time", "simple", "ddim_uniform", "turbo")
AYS: dict[str, tuple[float, ...]] = {  # the levels of 10 steps and their end [Sabour 2024]
    "ays_sd1": (
        14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904,
        0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582,
    ),
    "ays_sdxl": (
        14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289,
        0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582,
    ),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}  # fmt: skip
WHOLE_TABLES: dict[str, tuple[float, ...]] = {  # whose last level is evaluated too [modules/sd_schedulers.py of Forge]
    "ays_11_sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),  # and of A1111
    "ays_11_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays_32_sd1": (
        14.615, 11.23951352, 8.64363081, 6.64729424, 5.57250862, 4.71648546, 3.99196065, 3.5195609, 3.13490466,
        2.79228788, 2.48773628, 2.21663865, 1.97508351, 1.7793172, 1.61475335, 1.46540953, 1.314849, 1.16642497,
        1.03475547, 0.91573744, 0.80748169, 0.71202361, 0.621739, 0.53065202, 0.4529096, 0.37491455, 0.27461819,
        0.2011529, 0.14105873, 0.06682881, 0.03166121, 0.015,
    ),
    "ays_32_sdxl": (
        14.615, 11.1491618, 8.50522127, 6.48827151, 5.43707402, 4.60398619, 3.89854704, 3.27407457, 2.74396527,
        2.29968659, 1.95448514, 1.67108715, 1.42878152, 1.23181009, 1.06789649, 0.92579443, 0.80290886, 0.69660121,
        0.60436903, 0.52852552, 0.46773344, 0.41393379, 0.36258186, 0.31008517, 0.26518925, 0.22326461, 0.17653877,
        0.13959192, 0.10587381, 0.05519369, 0.02877334, 0.015,
    ),
    "gits_sd1": (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029),
    "gits_sdxl": (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029),
}  # fmt: skip
IN_TIME = ("normal", "sgm_uniform")
SIGMAS = (
    "karras", "exponential", "beta", "beta-time", "polyexponential", *IN_TIME, "simple", "ddim_uniform",
    "linear_quadratic", "kl_optimal", "laplace", "vp", *AYS, *WHOLE_TABLES, "turbo",
)  # fmt: skip
BETA = 0.6, 0.6  # of the Beta distribution [Lee 2024]
TRAINING_STEPS = 1000  # that ComfyUI gives to schedules that have none
THRESHOLD = 0.025  # the share of sigma that the first, linear half of linear_quadratic removes
LAPLACE = 0.5, 1e-5  # its scale, in log sigma, and what is added under its logarithm
VP_SDE = 19.9, 0.1, 1e-3  # beta_max - beta_min, beta_min and the last time [Song 2021b]
ABOVE = 1.01  # times a schedule's largest level, from where a table of levels is not made for it


def sigma_grid(name: str, largest: float, smallest: float, steps: int) -> Array:
    """[steps] decreasing levels from `largest` to `smallest`, of BETWEEN; see `ulam.samplers.grid`."""
    ramp = np.linspace(0, 1, steps)
    if name == "karras":
        ends = largest ** (1 / 7), smallest ** (1 / 7)
        levels = (ends[0] + ramp * (ends[1] - ends[0])) ** 7
    elif name == "beta":
        levels = smallest + _quantiles(1 - ramp) * (largest - smallest)
    else:
        levels = np.exp(np.log(largest) + ramp * (np.log(smallest) - np.log(largest)))
    return np.asarray(levels, dtype=np.float64)


def training_times(name: str, schedule: Schedule, steps: int) -> Array:
    """Decreasing times of AT_TRAINING_STEPS, `steps` of them, but for ddim_uniform; see `ulam.samplers.grid`.

    beta-time lies at the quantiles 1, 1 - 1/n, ..., 1/n of the Beta distribution in time [Lee 2024]; on VP schedules
    the nearest training step is taken. Raises ValueError for more steps than there are training steps.
    """
    if name == "beta-time":
        share = _quantiles(1 - np.arange(steps) / steps)
        if isinstance(schedule, VariancePreserving):
            return np.asarray(np.rint(share * (schedule.steps - 1)))
        return _time_at(name, schedule, share)
    T = schedule.steps or TRAINING_STEPS
    _check_steps(name, schedule, steps)
    index = T - 1 - np.floor(np.arange(steps) * (T / steps))
    if name == "turbo":  # in float32, as there: halves are rounded to even
        index = np.rint(np.arange(steps, 0, -1, dtype=np.float32) * np.float32(T / steps) - 1).astype(np.float64)
    if name == "ddim_uniform" and steps > 1:
        index = np.arange(1.0, T, T // steps)[::-1]
    if isinstance(schedule, VariancePreserving):
        return np.asarray(index)
    return _time_at(name, schedule, (index + 1) / T if isinstance(schedule, FlowMatching) else index / (T - 1))


def named_levels(name: str, schedule: Schedule, steps: int) -> Array:
    """[steps] decreasing levels, sigma / alpha or on flow schedules sigma, of all other names.

    Raises ValueError where the schedule does not go up to them, or its largest level is infinite.
    """
    largest, smallest = _ends(schedule)
    i = np.arange(steps)
    if name in AYS or name in WHOLE_TABLES or name == "vp":
        levels = _table(name, steps)
        if levels[0] > largest * ABOVE:
            raise ValueError(
                f"sigmas: got {name!r}, which begins at {levels[0]:g}, on {schedule!r}, expected a schedule that goes "
                f"up to there, not to {largest:.4g}"
            )
        return levels
    if not np.isfinite(largest):
        raise ValueError(f"sigmas: got {name!r} on {schedule!r}, expected a schedule whose largest sigma is finite")
    if name in IN_TIME:
        return _uniform_in_time(name, schedule, smallest, steps)
    if name == "linear_quadratic":
        m = max(steps // 2, 1)
        bend = (m - THRESHOLD * steps) / (m * max(steps - m, 1) ** 2)
        return np.asarray(largest * (1 - THRESHOLD / m * i - bend * np.maximum(i - m, 0) ** 2))
    ramp = np.linspace(0, 1, steps)
    if name == "kl_optimal":
        levels = np.tan((1 - ramp) * np.arctan(largest) + ramp * np.arctan(smallest))
        levels[0] = largest  # a tangent that misses 1 by a rounding would leave signal in pure noise
    else:
        scale, floor = LAPLACE
        levels = np.exp(-scale * np.sign(0.5 - ramp) * np.log(1 - 2 * abs(0.5 - ramp) + floor))
    return np.clip(levels, smallest, largest)


def _uniform_in_time(name: str, schedule: Schedule, smallest: float, steps: int) -> Array:
    """From the largest level's time to the smallest's; sgm_uniform is one step more, without the last."""
    last = smallest if isinstance(schedule, FlowMatching) else 0.0  # as in ComfyUI, where that sigma is taken for time
    share = np.linspace(1, last, steps + (name == "sgm_uniform"))[:steps]
    if not isinstance(schedule, VariancePreserving):
        return np.asarray(coordinate(schedule, _time_at(name, schedule, share)))
    _check_steps(name, schedule, steps)
    indices = np.arange(schedule.steps)
    return np.asarray(np.exp(np.interp(share * indices[-1], indices, np.log(schedule.ratios))))


def _table(name: str, steps: int) -> Array:
    """[steps] levels that know no schedule."""
    if name == "vp":
        slope, start, end = VP_SDE
        t = np.linspace(1, end, steps)
        return np.asarray(np.sqrt(np.expm1(slope * t**2 / 2 + start * t)))
    whole = name in WHOLE_TABLES
    known = np.log(WHOLE_TABLES[name] if whole else AYS[name])
    places = np.linspace(0, 1, steps) if whole else np.arange(steps) / steps
    return np.asarray(np.exp(np.interp(places, np.linspace(0, 1, len(known)), known)))


def _ends(schedule: Schedule) -> tuple[float, float]:
    """The largest and the smallest level; on flow schedules the first of TRAINING_STEPS, as in ComfyUI."""
    if isinstance(schedule, VariancePreserving):
        return float(schedule.ratios[-1]), float(schedule.ratios[0])
    if isinstance(schedule, FlowMatching):
        return 1.0, float(schedule.shifted(np.array(1 / TRAINING_STEPS)))
    assert isinstance(schedule, Continuous)
    largest, smallest = coordinate(schedule, schedule.grid(2))
    return float(largest), float(smallest)


def _check_steps(name: str, schedule: Schedule, steps: int) -> None:
    if schedule.steps is not None and steps > schedule.steps:
        raise ValueError(f"steps: got {steps}, expected at most the {schedule.steps} training steps of the schedule")
    if steps > TRAINING_STEPS and schedule.steps is None:
        raise ValueError(f"steps: got {steps} with {name!r}, expected at most the {TRAINING_STEPS} that it chooses of")


def _time_at(name: str, schedule: Schedule, share: Array) -> Array:
    """Times between the last (0) and the first (1): on flow schedules through their shift; on sub-VP from t_min to 1;
    on VE and EDM in log sigma."""
    if isinstance(schedule, FlowMatching):
        return schedule.shifted(share)
    if isinstance(schedule, SubVP):
        return np.asarray(schedule.t_min + share * (1 - schedule.t_min))
    if isinstance(schedule, VarianceExploding):
        return np.asarray(schedule.sigma_max * (schedule.sigma_min / schedule.sigma_max) ** (1 - share))
    instead = "'beta'" if name == "beta-time" else "'karras', 'exponential' or 'beta'"
    raise ValueError(f"sigmas: got {name!r} on {schedule!r}, expected {instead}: its time has no known ends")


def _quantiles(share: Array) -> Array:
    """Of the Beta distribution."""
    from scipy.special import betaincinv  # whose import takes as long as a tenth of torch's, for two grids

    return np.asarray(betaincinv(*BETA, share), dtype=np.float64)
