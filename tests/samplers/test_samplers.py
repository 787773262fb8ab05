"""DDPM and DDIM against diffusers by impulse response, and wrong arguments.

diffusers runs in float64 here, on our alphas_cumprod. Its samplers are linear and act element by element, so
one run on unit vectors (component 0 is x_T, then one per output and per noise) reads off every coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler

from oracles import impulses, in_float64, run_diffusers
from sampler_cases import VP, ours
from ulam import schedules
from ulam.samplers import DDIM, DDPM, DynamicThreshold

PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def assert_same_response(mine: np.ndarray, theirs: np.ndarray) -> None:
    assert abs(mine - theirs).max() <= 1e-9 * abs(theirs).max()


# -------------------------------------------------------------------------------------- impulse response


@pytest.mark.parametrize("prediction", PREDICTS)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize(
    ("spacing", "steps"),
    [("leading", 7), ("leading", 50), ("trailing", 10), ("trailing", 30), ("linspace", 12)],
)
@pytest.mark.parametrize("name", VP)
def test_ddpm_impulse_response(
    name: str, spacing: str, steps: int, variance: str, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = DDPMScheduler(
        variance_type={"posterior": "fixed_small", "beta": "fixed_large"}[variance],
        clip_sample=False,
        prediction_type=prediction,
        timestep_spacing=spacing,
    )
    theirs.set_timesteps(steps)
    program = DDPM(steps, variance=variance, spacing=spacing).program(VP[name], PREDICTS[prediction])
    assert program.time.tolist() == theirs.timesteps.tolist()
    signal = impulses(steps)
    assert_same_response(ours(program, *signal), run_diffusers(in_float64(theirs, VP[name]), *signal, monkeypatch))


def test_ddpm_over_all_training_steps_is_the_papers_algorithm_2() -> None:
    schedule = VP["linear"]
    beta, abar = schedule.betas[::-1], schedule.alphas_cumprod[::-1]
    program = DDPM().program(schedule)
    assert (
        program.time.tolist() == list(range(999, -1, -1))
        and DDPM(1000).program(schedule).A.tolist() == program.A.tolist()
    )
    np.testing.assert_allclose(program.A[:, 0, 0], 1 / np.sqrt(1 - beta), rtol=1e-14)
    np.testing.assert_allclose(program.A[:, 0, 2], -beta / np.sqrt(1 - abar) / np.sqrt(1 - beta), rtol=1e-12)
    before = np.append(abar[1:], 1.0)
    np.testing.assert_allclose(program.A[:, 0, 3] ** 2, (1 - before) / (1 - abar) * beta, rtol=1e-11)
    large = DDPM(variance="beta").program(schedule)
    np.testing.assert_allclose(large.A[:-1, 0, 3] ** 2, beta[:-1], rtol=1e-11)
    assert large.A[-1, 0, 3] == 0 and program.init_scale == 1


@pytest.mark.parametrize("prediction", PREDICTS)
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("name", VP)
def test_ddpm_learned_range_equals_diffusers(
    name: str, spacing: str, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, draw = 20, np.random.default_rng(5)
    theirs = DDPMScheduler(
        variance_type="learned_range",
        clip_sample_range=1.5,
        prediction_type=prediction,
        timestep_spacing=spacing,
    )
    theirs.set_timesteps(steps)
    sampler = DDPM(steps, variance="learned_range", clip=(-1.5, 1.5), spacing=spacing)
    program = sampler.program(VP[name], PREDICTS[prediction])
    signal = (
        draw.normal(size=(3, 4)),
        draw.uniform(-1, 1, size=(steps, 6, 4)),
        draw.normal(size=(steps, 3, 4)),
    )
    expected = run_diffusers(in_float64(theirs, VP[name]), *signal, monkeypatch)
    np.testing.assert_allclose(ours(program, *signal), expected, rtol=1e-9, atol=1e-10)


def test_ddpm_learned_is_the_log_variance() -> None:
    """improved-diffusion: model_log_variance = v, noise exp(v / 2) z."""
    program = DDPM(5, variance="learned").program(VP["linear"])
    assert program.learned.tolist() == [True] * 4 + [False]
    assert set(program.lv_m[:4]) == {0.5} and not program.lv_b.any()
    assert program.A[:, 0, 3].tolist() == [1, 1, 1, 1, 0]
    posterior = DDPM(5).program(VP["linear"])
    np.testing.assert_array_equal(program.A[:, 0, :3], posterior.A[:, 0, :3])


def test_learned_range_ends_are_the_two_fixed_variances() -> None:
    program = DDPM(8, variance="learned_range").program(VP["cosine"])
    for v, variance in ((-1, "posterior"), (1, "beta")):
        fixed = DDPM(8, variance=variance).program(VP["cosine"]).A[:-1, 0, 3]
        np.testing.assert_allclose(np.exp(program.lv_m * v + program.lv_b)[:-1], fixed, rtol=1e-13)


@pytest.mark.parametrize("prediction", PREDICTS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 7), ("leading", 50), ("trailing", 10), ("trailing", 25)])
@pytest.mark.parametrize("name", VP)
def test_ddim_impulse_response(
    name: str, spacing: str, steps: int, eta: float, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = DDIMScheduler(clip_sample=False, prediction_type=prediction, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    program = DDIM(steps, eta=eta, spacing=spacing).program(VP[name], PREDICTS[prediction])
    assert program.time.tolist() == theirs.timesteps.tolist() and program.needs_noise == (eta > 0)
    signal = impulses(steps, noisy_end=True)  # with set_alpha_to_one diffusers' own last noise is 0
    expected = run_diffusers(in_float64(theirs, VP[name]), *signal, monkeypatch, eta=eta)
    assert_same_response(ours(program, *signal), expected)


@pytest.mark.parametrize("prediction", PREDICTS)
@pytest.mark.parametrize("rederive", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_clipped_ddim_equals_diffusers(
    rederive: bool, eta: float, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, draw = 20, np.random.default_rng(6)
    theirs = DDIMScheduler(clip_sample_range=0.8, prediction_type=prediction)
    theirs.set_timesteps(steps)
    sampler = DDIM(steps, eta=eta, clip=(-0.8, 0.8), rederive_eps=rederive)
    program = sampler.program(VP["cosine"], PREDICTS[prediction])
    signal = draw.normal(size=(3, 4)), draw.normal(size=(steps, 3, 4)), draw.normal(size=(steps, 3, 4))
    expected = run_diffusers(
        in_float64(theirs, VP["cosine"]), *signal, monkeypatch, eta=eta, use_clipped_model_output=rederive
    )
    np.testing.assert_allclose(ours(program, *signal), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", [DDPM(20, clip=(-1, 1)), DDPM(20, "beta", clip=(-1, 1))])
def test_clipped_ddpm_equals_diffusers(sampler: DDPM, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(7)
    theirs = DDPMScheduler(variance_type={"posterior": "fixed_small", "beta": "fixed_large"}[sampler.variance])
    theirs.set_timesteps(20)
    signal = draw.normal(size=(3, 4)), draw.normal(size=(20, 3, 4)), draw.normal(size=(20, 3, 4))
    expected = run_diffusers(in_float64(theirs, VP["linear"]), *signal, monkeypatch)
    np.testing.assert_allclose(ours(sampler.program(VP["linear"]), *signal), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTS)
@pytest.mark.parametrize(("quantile", "cap"), [(0.995, 1.0), (0.9, 1.5), (1.0, math.inf)])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim rederived"])
def test_dynamic_thresholding_equals_diffusers(
    name: str, quantile: float, cap: float, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, draw, clip = 12, np.random.default_rng(9), DynamicThreshold(quantile, cap)
    scheduler = DDPMScheduler if name == "ddpm" else DDIMScheduler
    theirs = scheduler(
        clip_sample=False, thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=cap,
        prediction_type=prediction,
    )  # fmt: skip
    theirs.set_timesteps(steps)
    rederive = name == "ddim rederived"
    sampler = DDPM(steps, clip=clip) if name == "ddpm" else DDIM(steps, eta=0.5, clip=clip, rederive_eps=rederive)
    program = sampler.program(VP["linear"], PREDICTS[prediction])
    assert program.threshold.all() and program.needs == ("noise", "reductions")
    signal = draw.normal(size=(3, 4)), 2 * draw.normal(size=(steps, 3, 4)), draw.normal(size=(steps, 3, 4))
    step = {} if name == "ddpm" else {"eta": 0.5, "use_clipped_model_output": rederive}
    expected = run_diffusers(in_float64(theirs, VP["linear"]), *signal, monkeypatch, **step)
    np.testing.assert_allclose(ours(program, *signal), expected, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------- caching and bad input


def test_programs_are_compiled_once() -> None:
    assert DDIM(9).program(schedules.vp_linear()) is DDIM(9, eta=0).program(schedules.vp_linear(), predicts="eps")
    assert DDIM(9).program(VP["linear"], "v") is not DDIM(9).program(VP["linear"])
    assert DDPM(clip=[-1, 1]) == DDPM(clip=(-1.0, 1.0)) and hash(DDPM(np.int64(3))) == hash(DDPM(3))
    assert repr(DDIM(4)) == "DDIM(steps=4)" and eval(repr(DDIM(4, eta=0.5))) == DDIM(4, eta=0.5)


BAD: dict[str, Callable[[], object]] = {
    "variance: got 'small', expected one of .*learned_range": lambda: DDPM(5, variance="small"),
    "clip: got 1.0, expected None, a DynamicThreshold or a pair": lambda: DDPM(clip=1.0),
    "clip: got .1, -1., expected None, a DynamicThreshold or a pair": lambda: DDPM(clip=(1, -1)),
    "clip: got .nan, 1., expected None, a DynamicThreshold or a pair": lambda: DDIM(5, clip=(math.nan, 1)),
    "clip: got .-1, 0, 1., expected None, a DynamicThreshold or a pair": lambda: DDIM(5, clip=(-1, 0, 1)),
    "quantile: got 0, expected a number in .0, 1.": lambda: DynamicThreshold(0),
    "quantile: got '0.9', expected a number": lambda: DynamicThreshold("0.9"),
    "cap: got 0.5, expected a number of at least 1": lambda: DynamicThreshold(cap=0.5),
    "cap: got nan, expected a number of at least 1": lambda: DynamicThreshold(cap=math.nan),
    "eta: got nan, expected a finite number of at least 0": lambda: DDIM(5, eta=math.nan),
    "eta: got -0.5, expected a finite number of at least 0": lambda: DDIM(5, eta=-0.5),
    "eta: got inf, expected a finite number of at least 0": lambda: DDIM(5, eta=math.inf),
    "eta: got '1', expected a number": lambda: DDIM(5, eta="1"),
    "eta: got True, expected a number": lambda: DDIM(5, eta=True),
    "rederive_eps: got 1, expected True or False": lambda: DDIM(5, rederive_eps=1),
    "predicts: got 'noise', expected one of ": lambda: DDIM(5).program(VP["linear"], "noise"),
    "schedule: got .* under predicts='raw' .*, expected edm": lambda: DDIM(5).program(VP["linear"], "raw"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_a_schedule_must_be_a_schedule() -> None:
    for schedule in ("linear", None, [0.1], {}):
        with pytest.raises(TypeError, match=r"schedule: got .*, expected a ulam schedule"):
            DDIM(5).program(schedule)
