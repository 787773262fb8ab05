"""DDPM and DDIM against exact laws of Gaussian data, and where diffusers departs from them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler

from oracles import affine_rows, execute, impulses, in_float64, run_diffusers
from sampler_cases import CONTINUOUS, VP, ours
from ulam import Program, schedules
from ulam.samplers import DDIM, DDPM
from ulam.samplers.grid import spaced
from ulam.schedules import Schedule


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 10), ("trailing", 7)])
def test_ddim_steps_to_the_next_time_of_the_grid_where_diffusers_does_not(
    spacing: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Song 2021a, eq. 12 goes from tau_i to tau_{i-1} of the grid; diffusers always steps by T // n."""
    schedule = VP["linear"]
    theirs = DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    program = DDIM(steps, spacing=spacing).program(schedule)
    times = program.time.astype(int)
    assert times.tolist() == theirs.timesteps.tolist()
    abar, before = schedule.alphas_cumprod[times], np.append(schedule.alphas_cumprod[times[1:]], 1.0)
    np.testing.assert_allclose(program.A[:, 0, 0], np.sqrt(before / abar), rtol=1e-13)
    along = np.sqrt(1 - before) - np.sqrt(before / abar) * np.sqrt(1 - abar)
    np.testing.assert_allclose(program.A[:, 0, 2], along, rtol=1e-10)
    signal = impulses(steps)
    expected = run_diffusers(in_float64(theirs, schedule), *signal, monkeypatch)
    assert abs(ours(program, *signal) - expected).max() > 1e-2 * abs(expected).max()


@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_last_row_has_no_noise_where_diffusers_adds_some(variance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ho 2020, algorithm 2: z = 0 at the last step. diffusers tests t > 0, which trailing grids end above."""
    theirs = DDPMScheduler(variance_type=variance, clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(10)
    name = {"fixed_large": "beta", "learned_range": "learned_range"}[variance]
    program = DDPM(10, variance=name, spacing="trailing").program(VP["linear"])
    assert program.time[-1] == 99 and not program.A[-1, 0, 3] and not program.learned[-1]
    x, outputs, noises = (
        np.zeros((1, 1)),
        np.zeros((10, 2 if variance == "learned_range" else 1, 1)),
        np.zeros((10, 1, 1)),
    )
    if variance == "learned_range":
        outputs[:, 1] = 1.0
    noises[-1] = 1.0
    expected = run_diffusers(in_float64(theirs, VP["linear"]), x, outputs, noises, monkeypatch)
    assert ours(program, x, outputs, noises)[-1] == 0 and abs(expected[-1]) > 0.1


def test_trailing_spacing_has_the_steps_asked_for_where_diffusers_has_one_more() -> None:
    theirs = DDPMScheduler(timestep_spacing="trailing")
    theirs.set_timesteps(61)
    assert len(theirs.timesteps) == 62 and theirs.timesteps[-1] == -1
    assert spaced(1000, 61, "trailing", "index").tolist() == theirs.timesteps[:-1].tolist()


def test_ddim_eta_above_one_keeps_the_marginals_where_diffusers_gives_nan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = DDIMScheduler(clip_sample=False)
    theirs.set_timesteps(10)
    signal = impulses(10)
    assert np.isnan(run_diffusers(in_float64(theirs, VP["cosine"]), *signal, monkeypatch, eta=1.5)).any()
    program = DDIM(10, eta=1.5).program(VP["cosine"])
    assert_marginals_of_a_point(program, VP["cosine"])


def levels_of(program: Program, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    return schedule.levels(program.time)


def assert_marginals_of_a_point(program: Program, schedule: Schedule) -> None:
    """Data at mu: from x_t ~ N(alpha_t mu, sigma_t^2) each row must give N(alpha_s mu, sigma_s^2)."""
    mu, (alpha, sigma) = 1.7, levels_of(program, schedule)
    alpha_s, sigma_s = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    for row, (gain, offset, noise) in enumerate(affine_rows(program, (alpha, sigma), mu, 0.0)):
        scale = abs(gain * alpha[row] * mu) + abs(offset) + 1
        assert gain * alpha[row] * mu + offset == pytest.approx(alpha_s[row] * mu, abs=1e-12 * scale)
        assert gain**2 * sigma[row] ** 2 + noise**2 == pytest.approx(sigma_s[row] ** 2, rel=1e-10, abs=1e-20 * scale)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score", "flow"])
@pytest.mark.parametrize("sampler", [DDPM(11), DDIM(11), DDIM(11, eta=0.4), DDIM(11, eta=1.0), DDIM(11, eta=3.0)])
@pytest.mark.parametrize("name", [*VP, *CONTINUOUS])
def test_marginals_are_kept_exactly_on_every_schedule(name: str, sampler: DDPM | DDIM, predicts: str) -> None:
    schedule = (VP | CONTINUOUS)[name]
    if name in VP:
        sampler = dataclasses.replace(sampler, spacing="linspace")
    if name == "flow" and predicts in ("eps", "score"):  # alpha = 0 at t = 1
        sampler = dataclasses.replace(sampler, steps=None, timesteps=tuple(schedule.grid(11) * 0.98))
    assert_marginals_of_a_point(sampler.program(schedule, predicts), schedule)


@pytest.mark.parametrize("sampler", [DDPM(9), DDPM(9, "beta"), DDIM(9), DDIM(9, eta=0.5)])
@pytest.mark.parametrize("name", VP)
def test_every_prediction_compiles_to_the_same_map(sampler: DDPM | DDIM, name: str) -> None:
    rows = []
    for predicts in ("eps", "x0", "v", "score", "flow"):
        program = sampler.program(VP[name], predicts)
        rows.append(affine_rows(program, levels_of(program, VP[name]), 0.3, 0.6))
    np.testing.assert_allclose(rows, [rows[1]] * 5, rtol=1e-9, atol=1e-12)


def test_raw_is_edm_preconditioning_of_the_same_map() -> None:
    raw, x0 = (DDIM(8).program(schedules.edm(), predicts) for predicts in ("raw", "x0"))
    draw = np.random.default_rng(8)
    x, D = draw.normal(size=(4, 2)) * 80, draw.normal(size=(8, 4, 2))
    sigma = x0.time

    def inner(row: int, net_in: np.ndarray) -> np.ndarray:
        state = net_in * np.sqrt(sigma[row] ** 2 + 0.25)  # undo c_in of Karras 2022, table 1
        c_skip = 0.25 / (sigma[row] ** 2 + 0.25)
        return (D[row] - c_skip * state) / (sigma[row] * 0.5 / np.sqrt(sigma[row] ** 2 + 0.25))

    silent = np.zeros_like
    np.testing.assert_allclose(
        execute(raw, x, inner, lambda _: silent(x)), ours(x0, x, D, silent(D)), rtol=1e-9, atol=1e-9
    )
    assert raw.init_scale == 80


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("steps", [None, 25])
@pytest.mark.parametrize("name", VP)
def test_ddpm_mean_and_variance_follow_the_papers_recursion(name: str, steps: int | None, variance: str) -> None:
    """Data N(mu, s^2). The recursion uses Ho 2020's beta, abar and E[x_0 | x_t], the program its rows."""
    mu, s, schedule = -0.4, 0.7, VP[name]
    program = DDPM(steps, variance=variance).program(schedule)
    rows = affine_rows(program, levels_of(program, schedule), mu, s)
    times = program.time.astype(int)
    mean = theirs_mean = 0.3
    var = theirs_var = 1.0
    for t, before, (gain, offset, noise) in zip(times, [*times[1:], None], rows, strict=True):
        mean, var = gain * mean + offset, gain**2 * var + noise**2
        abar = schedule.alphas_cumprod[t]
        abar_s = 1.0 if before is None else schedule.alphas_cumprod[before]
        beta = 1 - abar / abar_s
        shrink = math.sqrt(abar) * s**2 / (abar * s**2 + 1 - abar)  # E[x_0 | x_t] = mu + shrink (x_t - sqrt(abar) mu)
        on_x0, on_x = math.sqrt(abar_s) * beta / (1 - abar), math.sqrt(1 - beta) * (1 - abar_s) / (1 - abar)
        theirs_mean = on_x0 * (mu + shrink * (theirs_mean - math.sqrt(abar) * mu)) + on_x * theirs_mean
        added = 0.0 if before is None else beta * ((1 - abar_s) / (1 - abar) if variance == "posterior" else 1)
        theirs_var = (on_x0 * shrink + on_x) ** 2 * theirs_var + added
        assert mean == pytest.approx(theirs_mean, rel=1e-9, abs=1e-10)
        assert var == pytest.approx(theirs_var, rel=1e-9)
    if steps is None:  # all steps: close to the data's own law
        assert mean == pytest.approx(mu, abs=0.01) and var == pytest.approx(s**2, rel=0.03)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", [*VP, "ve", "edm", "sub_vp"])
def test_ddim_is_the_exact_product_of_linear_maps(name: str, predicts: str) -> None:
    """x_s - alpha_s mu = (alpha_s alpha_t s^2 + sigma_s sigma_t) / P_t (x_t - alpha_t mu), P_t = Var x_t."""
    mu, s, schedule = 0.8, 0.5, (VP | CONTINUOUS)[name]
    program = DDIM(20).program(schedule, predicts)
    alpha, sigma = (np.append(level, end) for level, end in zip(levels_of(program, schedule), (1.0, 0.0), strict=True))
    slope = 1.0
    for t in range(20):
        power = alpha[t] ** 2 * s**2 + sigma[t] ** 2
        slope *= (alpha[t + 1] * alpha[t] * s**2 + sigma[t + 1] * sigma[t]) / power
    gain, offset = 1.0, 0.0
    for g, o, noise in affine_rows(program, (alpha[:-1], sigma[:-1]), mu, s):
        gain, offset = g * gain, g * offset + o
        assert noise == 0
    assert gain == pytest.approx(slope, rel=1e-10)
    assert offset == pytest.approx(mu - slope * alpha[0] * mu, rel=1e-10)


def test_declared_order_is_measured_by_step_halving() -> None:
    """DDIM against the exact flow map sqrt(P_s / P_t), DDPM's variance against P_s (P = Var x)."""
    schedule, s = VP["cosine"], 0.5
    log_ratio = np.log(schedule.sigma([900, 50]) / schedule.alpha([900, 50]))
    errors: dict[str, list[float]] = {"ddim": [], "ddpm": []}
    for n in (40, 80, 160, 320):
        times = tuple(schedule.t_of_sigma(np.exp(np.linspace(*log_ratio, n + 1))))
        for name, sampler in (("ddim", DDIM(timesteps=times)), ("ddpm", DDPM(timesteps=times))):
            program = sampler.program(schedule)
            assert program.order == 1
            alpha, sigma = levels_of(program, schedule)
            power = alpha**2 * s**2 + sigma**2
            gain, var = 1.0, power[0]
            for g, _, noise in affine_rows(program, (alpha, sigma), 0.0, s)[:-1]:
                gain, var = gain * g, g**2 * var + noise**2
            exact = math.sqrt(power[-1] / power[0])
            errors[name].append(abs(gain - exact) if name == "ddim" else abs(var - power[-1]))
    for values in errors.values():
        assert (np.log2(np.array(values[:-1]) / values[1:]) > 0.7).all()


@pytest.mark.parametrize("steps", range(1, 12))
@pytest.mark.parametrize("variance", ["posterior", "beta", "learned", "learned_range"])
def test_cosine_with_few_steps_has_finite_bounded_rows(steps: int, variance: str) -> None:
    for spacing in ("leading", "linspace", "trailing"):
        program = DDPM(steps, variance, clip=(-1, 1), spacing=spacing).program(VP["cosine"])
        assert (program.A[:, 0, 1] >= 0).all() and (abs(program.A) <= 1 + 1e-12).all()
        assert program.A[-1, 0].tolist() == [0, 1, 0, 0]


def test_zero_terminal_snr_works_for_v_x0_and_flow_and_raises_for_eps() -> None:
    schedule = schedules.from_betas(np.append(np.linspace(1e-3, 0.2, 99), 1.0))
    for predicts in ("v", "x0", "flow"):
        for sampler in (DDPM(10, spacing="trailing"), DDIM(10, spacing="trailing", eta=0.5)):
            assert_marginals_of_a_point(sampler.program(schedule, predicts), schedule)
    for predicts in ("eps", "score"):
        with pytest.raises(ValueError, match=f"predicts: got '{predicts}', which says nothing about x_0"):
            DDIM(10, spacing="trailing").program(schedule, predicts)
    assert DDIM(10, spacing="leading").program(schedule).time[0] == 90
