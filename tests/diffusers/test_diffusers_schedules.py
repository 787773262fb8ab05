"""`Denoiser.from_diffusers`: the schedule and the prediction that a scheduler's configuration names."""

from __future__ import annotations

import numpy as np
import pytest

import ulam
import ulam.integrations.diffusers
from pipeline_cases import read
from ulam.schedules import from_betas, vp_cosine, vp_linear, vp_scaled_linear, vp_sigmoid, zero_terminal_snr

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


BETAS = np.linspace(1e-3, 0.3, 50).tolist()


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("DDPMScheduler", {}, vp_linear(1000)),
        ("DDIMScheduler", {"num_train_timesteps": 50, "beta_end": 0.3}, vp_linear(50, 1e-4, 0.3)),
        ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear"}, vp_scaled_linear(1000, 1e-4, 0.02)),
        ("UniPCMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}, vp_cosine(1000)),
        ("DDPMScheduler", {"beta_schedule": "sigmoid"}, vp_sigmoid(1000)),
        ("PNDMScheduler", {"trained_betas": BETAS}, from_betas(BETAS)),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, zero_terminal_snr(vp_linear(1000))),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 2.0}, ulam.schedules.flow(2.0)),
    ],
)
def test_schedule_is_float64_from_the_configuration(name, options, expected):
    scheduler = getattr(diffusers, name)(**options)
    schedule = read(scheduler).schedule
    assert schedule == expected
    if schedule.kind == "vp":
        # diffusers' own float32 numbers, up to their rounding
        assert np.allclose(schedule.betas, scheduler.betas.numpy(), rtol=1e-3, atol=1e-7)


def test_schedule_without_a_name_is_read_from_the_betas():
    scheduler = diffusers.HeunDiscreteScheduler(beta_schedule="exp")
    assert np.array_equal(read(scheduler).schedule.betas, scheduler.betas.double().numpy())


def test_fused_schedulers_are_read_as_what_they_replace():
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    denoiser = read(ulam.integrations.diffusers.fuse(scheduler))
    assert denoiser.schedule == read(scheduler).schedule and denoiser.predicts == "v"


@pytest.mark.parametrize(
    "prediction, predicts",
    [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v"), ("flow_prediction", "flow")],
)
def test_prediction_type(prediction, predicts):
    options = {"use_flow_sigmas": predicts == "flow", "prediction_type": prediction}
    assert read(diffusers.DPMSolverMultistepScheduler(**options)).predicts == predicts
