"""Properties of every sampler on every schedule, prediction and grid, on Gaussian data, whose laws are exact.

Nothing here is sampled: `law_cases` carries mean and covariance from row to row. Hypothesis chooses the cases, the same
in every run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from law_cases import Array, Law, end_law
from ode_cases import recorded
from ulam import schedules
from ulam.samplers import DDIM, DDPM, DPM2, EulerAncestral, Grid, GridSampler, PredictorCorrector, catalogue
from ulam.samplers.start import start_below_noise
from ulam.schedules import FlowMatching, Schedule, VariancePreserving

SCHEDULES: dict[str, Schedule] = {
    "linear": schedules.vp_linear(),
    "scaled": schedules.vp_scaled_linear(),
    "cosine": schedules.vp_cosine(),
    "short": schedules.vp_linear(40, 1e-3, 0.3),
    "zero_snr": schedules.zero_terminal_snr(schedules.vp_linear()),
    "ve": schedules.ve(0.01, 50),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "shifted": schedules.flow(3.0),
    "sub_vp": schedules.sub_vp(),
}
PREDICTIONS = ("eps", "x0", "v", "score", "flow", "raw")
GRIDS: list[dict[str, Any]] = [
    {},
    *({"spacing": spacing} for spacing in ("leading", "linspace", "trailing", "log-snr")),
    *({"sigmas": sigmas} for sigmas in ("karras", "exponential", "beta", "beta-time")),
]


def options(**choices: tuple[Any, ...]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: st.sampled_from(values) for name, values in choices.items()})


DPM = options(order=(1, 2, 3), kind=("multistep", "singlestep"), variant=("midpoint", "heun", "dpmsolver"))
DETERMINISTIC: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "DDIM": options(cfg_pp=(True, False)),
    "Euler": options(cfg_pp=(True, False)),
    "Heun": st.just({}),
    "DPM2": st.just({}),
    "LMS": options(order=(1, 2, 3, 4), polynomial=("sigma", "index")),
    "HeunPP": st.just({}),
    "GradientEstimation": options(gamma=(1.0, 1.5, 2.0), cfg_pp=(True, False)),
    "RESMultistep": options(cfg_pp=(True, False)),
    "DEIS": options(order=(1, 2, 3)),
    "PNDM": options(skip_prk=(True, False), mixes=("eps", "output")),
    "UniPC": options(order=(1, 2, 3, 4), variant=("bh1", "bh2"), predict_x0=(True, False)),
    "DPMSolverPP": DPM,
    "DPMSolver": DPM,
    "TCD": st.just({"eta": 0.0}),
    "DPMSolverPPSDE": options(eta=(0.0,), r=(0.3, 0.5, 1.0)),
    "SEEDS": options(eta=(0.0,), stages=(2, 3), solver_type=("phi_1", "phi_2"), r=(0.5, 1.0)),
    "ERSDE": options(eta=(0.0,), stages=(1, 2, 3), points=(None,)),
    "SASolver": options(
        tau=(0.0,),
        predictor_order=(1, 2, 3, 4),
        corrector_order=(0, 2, 3, 4),
        predict_x0=(True, False),
        pece=(True, False),
    ),
}
NOISY: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "DDIM": options(eta=(0.3, 1.0, 2.0)),
    "DDPM": options(variance=("posterior", "beta")),
    "EulerAncestral": options(eta=(0.5, 1.0)),
    "Euler": options(churn=(0.0, 2.0), s_tmax=(5.0,)),
    "Heun": options(churn=(0.0, 2.0), s_tmax=(5.0,)),
    "DPM2": options(eta=(1.0,), rectified=(True, False)),
    "DPMSolverPP2SAncestral": options(eta=(0.5, 1.0), rectified=(True, False), cfg_pp=(True, False)),
    "RESMultistep": options(eta=(0.5, 1.0)),
    "Restart": st.just({}),
    "DPMFast": options(eta=(0.5, 1.0)),
    "DPMSolverPP": options(sde=(True,), order=(1, 2, 3), eta=(0.5, 1.0)),
    "DPMSolver": options(sde=(True,), order=(1, 2, 3), eta=(0.5, 1.0)),
    "DPMSolverPPSDE": options(eta=(0.5, 1.0), r=(0.3, 0.5, 1.0)),
    "SEEDS": options(eta=(0.5, 1.0), stages=(2, 3), r=(0.5, 1.0)),
    "ERSDE": options(eta=(None, 1.0), stages=(1, 2, 3)),
    "SASolver": options(
        predictor_order=(1, 2, 3, 4), corrector_order=(0, 2, 3, 4), interval=(None, (0.2, 0.8)), pece=(True, False)
    ),
    "PredictorCorrector": options(
        predictor=("reverse_diffusion", "ancestral"), corrector=("langevin", "none"), snr=(0.05, 0.16)
    ),
    "AnnealedLangevin": options(steps_per_level=(1, 7)),
    "Consistency": st.just({}),
    "LCM": st.just({}),
    "FlowMap": options(gamma=(0.0, 0.4, 1.0)),
    "SCM": st.just({}),
    "TCD": options(eta=(0.3, 1.0)),
    "RePaint": options(jump_n_sample=(1, 2), eta=(0.0, 1.0)),
}
fixed = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@st.composite
def cases(draw: st.DrawFn, samplers: dict[str, Any], least: int = 1, most: int = 30) -> tuple[Any, ...]:
    """(sampler, schedule, prediction, data) for a call that is allowed; another is drawn for one that is not."""
    name = draw(st.sampled_from(sorted(samplers)))
    arguments = {**draw(samplers[name]), **draw(st.sampled_from(GRIDS))}
    schedule = SCHEDULES[draw(st.sampled_from(sorted(SCHEDULES)))]
    predicts = draw(st.sampled_from(PREDICTIONS))
    data = draw(st.floats(-1.5, 1.5)), draw(st.floats(0.1, 1.2))
    sampler = made(name, draw(st.integers(least, most)), arguments)
    assume(sampler is not None and compiles(sampler, schedule, predicts))
    return sampler, schedule, predicts, data


def made(name: str, steps: int, arguments: dict[str, Any]) -> GridSampler | None:
    try:
        return catalogue()[name](steps, **arguments)
    except ValueError as error:
        assert_one_line(error)
        return None


def compiles(sampler: GridSampler, schedule: Schedule, predicts: str) -> bool:
    """Whether a program exists; what is refused is refused in one line."""
    try:
        sampler.program(schedule, predicts)
    except ValueError as error:
        assert_one_line(error)
        return False
    return True


def assert_one_line(error: ValueError) -> None:
    assert "\n" not in str(error) and len(str(error)) > 20


def ends(grid: Grid, data: Law) -> tuple[Law, Law]:
    """The exact laws of the state at the first and at the last level."""
    mean, std = grid.alphas * data[0], np.hypot(grid.alphas * data[1], grid.sigmas)
    return (float(mean[0]), float(std[0])), (float(mean[-1]), float(std[-1]))


# ------------------------------------------------------------------------------------------------- one step


@settings(fixed, max_examples=400)
@given(cases(DETERMINISTIC | NOISY, most=1))
def test_one_step_from_noise_goes_to_the_data_and_not_to_noise(case: tuple[Any, ...]) -> None:
    """Its end is D(x_T), which is near the data's mean and no wider than the data, whatever the sampler."""
    sampler, schedule, predicts, data = case
    grid = sampler.grid(schedule)
    assert start_below_noise(sampler, schedule) is None
    mean, std = end_law(*recorded(sampler, schedule, predicts), data)
    exact = ends(grid, data)[1]
    assert abs(mean - exact[0]) <= 0.03 * (abs(data[0]) + data[1])
    assert std <= 1.01 * exact[1]


# --------------------------------------------------------------------------------------- deterministic samplers


def first_order_error(grid: Grid, std: float) -> float:
    """Of x_s = alpha_s D + sigma_s eps on every level: the relative error of the last standard deviation."""
    alphas, sigmas = grid.alphas, grid.sigmas
    power = (alphas * std) ** 2 + sigmas**2
    gains = (alphas[1:] * alphas[:-1] * std**2 + sigmas[1:] * sigmas[:-1]) / power[:-1]
    return float(abs(np.prod(gains) * np.sqrt(power[0] / power[-1]) - 1))


def longest_step(grid: Grid, rows: int) -> float:
    """The longest way in log-SNR that one step of `rows` levels goes, steps from and to infinity left out."""
    finite = grid.log_snr[np.isfinite(grid.log_snr)]
    return max((float(finite[min(i + rows, len(finite) - 1)] - finite[i]) for i in range(len(finite))), default=0.0)


@pytest.mark.long
@settings(fixed, max_examples=800)
@given(cases(DETERMINISTIC, least=2))
def test_short_steps_are_no_worse_than_first_order(case: tuple[Any, ...]) -> None:
    """Where no step is longer than 1 in log-SNR; the trajectory of the mean, along which eps is 0, is exact."""
    sampler, schedule, predicts, data = case
    grid = sampler.grid(schedule)
    singlestep = getattr(sampler, "kind", "") == "singlestep"
    # diffusers' mean over outputs is of another level's v: first order in steps of the training grid only
    assume(getattr(sampler, "mixes", "eps") == "eps" or predicts not in ("v", "score", "raw"))
    assume(longest_step(grid, sampler.order if singlestep else 1) <= 1)  # type: ignore[attr-defined]
    # DPM2's middle is in log sigma, so its step out of pure noise is short only where it ends among the noise
    assume(not isinstance(sampler, DPM2) or grid.alphas[0] > 0 or grid.alphas[1] <= grid.sigmas[1])
    start, exact = ends(grid, data)
    mean, std = end_law(*recorded(sampler, schedule, predicts), data, start)
    scale = max(exact[1], 1e-3)
    assert abs(mean - exact[0]) <= 1e-8 * (1 + abs(exact[0])) / scale
    # 2: DPM2 from pure noise, whose middle is in log sigma, and RES from nearly pure noise; all others are below 1
    assert abs(std / exact[1] - 1) <= 2 * first_order_error(grid, data[1]) + 1e-8


BOUND = {1: 0.35, 2: 0.3, 3: 0.15}  # error <= BOUND[order] longest_step ^ order on the grids below


@st.composite
def uneven(draw: st.DrawFn) -> tuple[Schedule, Array]:
    """A schedule and 13 to 49 noise levels (`coordinate`), uneven, with steps up to 0.8 in log-SNR, ending in noise."""
    schedule = SCHEDULES[draw(st.sampled_from(["cosine", "scaled", "ve", "shifted"]))]
    count = 6 * draw(st.integers(2, 8))
    jitter = np.array(draw(st.lists(st.floats(0.8, 1.25), min_size=count, max_size=count)))
    ratios = 9.0 * np.exp(-np.append(0.0, np.cumsum(jitter) / jitter.sum()) * np.log(9.0 / 0.08))
    return schedule, ratios / (1 + ratios) if isinstance(schedule, FlowMatching) else ratios


@pytest.mark.long
@pytest.mark.parametrize("name", DETERMINISTIC)
@settings(fixed, max_examples=40)
@given(data=st.data())
def test_errors_shrink_with_the_declared_order_on_uneven_grids(name: str, data: st.DataObject) -> None:
    schedule, levels = data.draw(uneven())
    arguments = data.draw(DETERMINISTIC[name])
    if "lower_order_final" in {*catalogue()[name].__dataclass_fields__}:
        arguments |= {"lower_order_final": False}
    sampler = catalogue()[name](sigmas=tuple(levels[:-1]), final=float(levels[-1]), **arguments)
    predicts = data.draw(st.sampled_from(["eps", "x0", "v", "flow"]))
    law = data.draw(st.floats(-1, 1)), data.draw(st.floats(0.3, 1.0))
    program, at = recorded(sampler, schedule, predicts)
    grid = sampler.grid(schedule)
    start, exact = ends(grid, law)
    assume(arguments.get("mixes") != "output" or predicts == "eps")
    rows = sampler.order if getattr(sampler, "kind", "") == "singlestep" else 1  # type: ignore[attr-defined]
    step = longest_step(grid, rows)
    mean, std = end_law(program, at, law, start)
    assert abs(std / exact[1] - 1) <= BOUND[program.order] * step**program.order, (sampler, step)
    assert mean == pytest.approx(exact[0], abs=1e-8)


# ------------------------------------------------------------------------------------------- ancestral samplers

Row = tuple[Any, Any, Any, Any]  # on x, on D, on eps, on z


def ddim(grid: Grid, eta: float) -> Row:
    """Song 2021a, eq. 12 and 16."""
    (a_t, a_s), (s_t, s_s) = (grid.alphas[:-1], grid.alphas[1:]), (grid.sigmas[:-1], grid.sigmas[1:])
    variance = np.minimum(eta**2 * (s_s**2 - (a_t * s_s**2 / (a_s * s_t)) ** 2), s_s**2)
    return 0 * a_t, a_s, np.sqrt(s_s**2 - variance), np.sqrt(variance)


def ddpm(grid: Grid, variance: str) -> Row:
    """Bayes' rule for x_s given x_t and x_0 [Ho 2020, eq. 6 and 7]."""
    (a_t, a_s), (s_t, s_s) = (grid.alphas[:-1], grid.alphas[1:]), (grid.sigmas[:-1], grid.sigmas[1:])
    a = a_t / a_s
    fresh = s_t**2 - (a * s_s) ** 2  # Var[x_t | x_s]
    std = np.sqrt(fresh) * (s_s / s_t if variance == "posterior" else 1)
    return a * s_s**2 / s_t**2, a_s * fresh / s_t**2, 0 * a, np.where(s_s > 0, std, 0.0)


def ancestral(grid: Grid, eta: float) -> Row:
    """k-diffusion's get_ancestral_step, in u = sigma / alpha; from infinity the limit."""
    u_t, u_s, a_s = grid.ratios[:-1], grid.ratios[1:], grid.alphas[1:]
    up = np.minimum(u_s, eta * np.sqrt(u_s**2 * (1 - (u_s / u_t) ** 2)))
    return 0 * u_s, a_s, a_s * np.sqrt(u_s**2 - up**2), a_s * up


@st.composite
def ancestral_cases(draw: st.DrawFn) -> tuple[Any, ...]:
    sampler, schedule, predicts, data = draw(cases({name: NOISY[name] for name in ("DDIM", "DDPM", "EulerAncestral")}))
    rows = {DDIM: lambda g: ddim(g, sampler.eta), DDPM: lambda g: ddpm(g, sampler.variance)}
    rows[EulerAncestral] = lambda g: ancestral(g, sampler.eta)
    return sampler, schedule, predicts, data, rows[type(sampler)](sampler.grid(schedule))


@settings(fixed, max_examples=500)
@given(ancestral_cases())
def test_ancestral_samplers_have_the_exact_recursion(case: tuple[Any, ...]) -> None:
    sampler, schedule, predicts, (mu, std), row = case
    grid = sampler.grid(schedule)
    program, levels = recorded(sampler, schedule, predicts)
    mean, variance = 0.0, program.init_scale**2
    for i, (on_x, on_D, on_eps, on_z) in enumerate(zip(*row, strict=True)):
        alpha, sigma = grid.alphas[i], grid.sigmas[i]
        power = (alpha * std) ** 2 + sigma**2  # D = mu + alpha std^2 y / power, eps = sigma y / power, y = x - alpha mu
        gain = on_x + (on_D * alpha * std**2 + on_eps * sigma) / power
        mean = gain * (mean - alpha * mu) + on_x * alpha * mu + on_D * mu
        variance = gain**2 * variance + on_z**2
    found = end_law(program, levels, (mu, std))
    assert found[0] == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert found[1] == pytest.approx(np.sqrt(variance), rel=1e-6, abs=1e-7)


@settings(fixed, max_examples=200)
@given(cases({"PredictorCorrector": NOISY["PredictorCorrector"]}))
def test_predictor_corrector_has_the_exact_recursion(case: tuple[Any, ...]) -> None:
    """Song 2021b, alg. 2 to 5, eq. 47, with norm(z) / norm(s) = sigma_t; the last row gives D."""
    sampler, schedule, predicts, (mu, std) = case
    assert isinstance(sampler, PredictorCorrector)
    grid, vp = sampler.grid(schedule), isinstance(schedule, VariancePreserving)
    program, levels = recorded(sampler, schedule, predicts)
    mean, variance = 0.0, program.init_scale**2
    for i in range(len(grid)):
        (a_t, a_s), (s_t, s_s) = grid.alphas[i : i + 2], grid.sigmas[i : i + 2]
        power, a = (a_t * std) ** 2 + s_t**2, a_t / a_s
        v = s_t**2 - (a * s_s) ** 2

        def moved(on_x: float, h: float, noise: float) -> tuple[float, float]:
            """x <- on_x x + h s + noise z with s = -(x - alpha mu) / power."""
            return on_x * mean - h / power * (mean - a_t * mu), (on_x - h / power) ** 2 * variance + noise**2  # noqa: B023

        if sampler.corrector == "langevin":
            h = 2 * (a * sampler.snr * s_t) ** 2
            mean, variance = moved(1.0, h, np.sqrt(2 * h))
        if s_s == 0:
            gain = a_t * std**2 / power
            mean, variance = mu + gain * (mean - a_t * mu), gain**2 * variance
        elif sampler.predictor == "reverse_diffusion":
            mean, variance = moved(2 - a, v, np.sqrt(v))
        else:
            # a = 0: (x + v s) / a is the limit 0 x + a_s mu
            noise = np.sqrt(v) * (1 if vp else s_s / s_t)
            mean, variance = moved(1 / a, v / a, noise) if a > 0 else (a_s * mu, noise**2)
    found = end_law(program, levels, (mu, std))
    assert found[0] == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert found[1] == pytest.approx(np.sqrt(variance), rel=1e-6, abs=1e-7)
