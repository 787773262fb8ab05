"""`Denoiser.from_diffusers` of models alone and of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ulam
from pipeline_cases import (
    CHAINS,
    FLOW,
    WORDS,
    conditioning,
    difference,
    dit,
    flux,
    randn,
    sample,
    sd3,
    unet_2d,
    unet_condition,
)
from ulam.samplers import DDIM, Euler

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

from diffusers.training_utils import EMAModel  # noqa: E402

# ------------------------------------------------------------------------------------------------ models alone


def test_a_model_beside_its_scheduler():
    unet = unet_2d()
    scheduler = diffusers.DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear")
    denoiser = ulam.Denoiser.from_diffusers(unet, scheduler=scheduler)
    assert denoiser.schedule == ulam.schedules.vp_scaled_linear(1000, 1e-4, 0.02) and denoiser.net.model is unet
    x = randn(CHAINS, 3, 8, 8)
    got = sample(denoiser, DDIM(10), (3, 8, 8), x)
    scheduler.set_timesteps(10)
    with torch.inference_mode():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    assert difference(got, x) < 1e-5


@pytest.mark.parametrize("make", [unet_2d, unet_condition, dit, sd3, flux])
def test_a_model_without_a_scheduler_says_what_to_pass(make):
    with pytest.raises(
        TypeError, match=r"source: got \w+Model alone, expected a pipeline, or also scheduler="
    ) as raised:
        ulam.Denoiser.from_diffusers(make())
    assert "\n" not in str(raised.value)


def test_what_is_no_scheduler_is_named():
    for wrong in (diffusers.DDIMScheduler, FLOW):
        name = wrong.__name__
        with pytest.raises(TypeError, match=rf"scheduler: got the class {name}, expected .* such as {name}\(\)"):
            ulam.Denoiser.from_diffusers(unet_2d(), scheduler=wrong)
    for wrong in ("DDIMScheduler", {}, DDIM(10), unet_2d()):
        with pytest.raises(
            TypeError, match=f"scheduler: got {type(wrong).__name__}, expected a scheduler of diffusers"
        ):
            ulam.Denoiser.from_diffusers(unet_2d(), scheduler=wrong)


WRAPPERS = {
    "DataParallel": torch.nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled": lambda unet: torch.compile(unet, backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_model_in_a_wrapper_is_called_through_it(wrap):
    """Alone and in a pipeline, with labels, which are looked up in the model inside."""
    unet, y = unet_2d(num_class_embeds=10), torch.tensor([3, 0, 9])
    x, t = randn(CHAINS, 3, 8, 8), torch.tensor([1.0, 500.0, 999.0])
    pipe, wrapped = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler()), wrap(unet)
    pipe.unet = wrapped
    for source, scheduler in ((wrapped, pipe.scheduler), (pipe, None)):
        net = ulam.Denoiser.from_diffusers(source, scheduler=scheduler).net
        assert net.model is wrapped and net.kind == "UNet2DModel" and net.needs == ("class_labels",)
        with torch.inference_mode():
            assert torch.equal(net(x, t, y=y), unet(x, t, y).sample)
    with pytest.raises(TypeError, match="source: got DataParallel, expected a folder"):
        ulam.Denoiser.from_diffusers(torch.nn.DataParallel(torch.nn.Linear(1, 1)), scheduler=pipe.scheduler)
    with pytest.raises(TypeError, match=r"source: got EMAModel, expected .*: the model, after ema.copy_to\("):
        ulam.Denoiser.from_diffusers(EMAModel(unet.parameters()), scheduler=pipe.scheduler)


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [sd3, flux])
def test_what_encoders_made_is_cast_to_the_models_type(make, given):
    """To the bit what the model gives when all is cast before."""
    cond, model = conditioning(), make().to(torch.bfloat16)
    denoiser, x = ulam.Denoiser.from_diffusers(model, scheduler=FLOW()), randn(CHAINS, 4, 8, 8)
    own, told = ({name: value.to(kind) for name, value in cond.items()} for kind in (torch.bfloat16, given))
    got, expected = (sample(denoiser, Euler(3), (4, 8, 8), x, cond=each) for each in (told, own))
    assert torch.equal(got, expected)


def test_a_scheduler_in_place_of_the_pipelines_own(tmp_path):
    pipe = diffusers.DDIMPipeline(unet_2d(), diffusers.DDIMScheduler())
    pipe.save_pretrained(tmp_path)
    for source in (pipe, tmp_path, tmp_path / "unet"):
        assert ulam.Denoiser.from_diffusers(source, scheduler=FLOW(shift=2.0)).schedule == ulam.schedules.flow(2.0)


# ------------------------------------------------------------------------------------------------ transformers


def euler(scheduler, x, network):
    """diffusers' own loop."""
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.1, 10))
    with torch.inference_mode():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.expand(CHAINS)), t, x).prev_sample
    return x


def test_stable_diffusion_3_gives_the_same_states():
    model, cond, start = sd3(), conditioning(), randn(CHAINS, 4, 8, 8)
    denoiser = ulam.Denoiser.from_diffusers(model, scheduler=FLOW(shift=3.0))
    got = sample(denoiser, Euler(10), (4, 8, 8), start, cond=cond)
    expected = euler(FLOW(shift=3.0), start, lambda x, t: model(x, timestep=t, **cond).sample)
    assert denoiser.schedule == ulam.schedules.flow(3.0) and denoiser.predicts == "flow"
    assert difference(got, expected) < 1e-5


@pytest.mark.parametrize("guided", [False, True])
def test_flux_gives_the_same_states(guided):
    """Packed, placed and told as in diffusers' pipeline, by its own functions; 8 x 12 latents."""
    model, cond, start = flux(guidance_embeds=guided), conditioning(), randn(CHAINS, 4, 8, 12)
    cond |= {"guidance": torch.full((CHAINS,), 3.5)} if guided else {}
    denoiser = ulam.Denoiser.from_diffusers(model, scheduler=FLOW(shift=3.0))
    got = sample(denoiser, Euler(10), (4, 8, 12), start, cond=cond)
    pipe, kinds = diffusers.FluxPipeline, (start.device, start.dtype)
    ids = pipe._prepare_latent_image_ids(CHAINS, 4, 6, *kinds)
    expected = euler(
        FLOW(shift=3.0),
        pipe._pack_latents(start, CHAINS, 4, 8, 12),
        lambda x, t: model(x, timestep=t / 1000, img_ids=ids, txt_ids=torch.zeros(WORDS, 3), **cond).sample,
    )
    assert difference(got, pipe._unpack_latents(expected, 64, 96, 8)) < 1e-5


def test_conditioning_that_a_model_cannot_do_without_is_named():
    t, x = torch.full((CHAINS,), 0.5), randn(CHAINS, 4, 8, 8)
    vp, flow = diffusers.DDIMScheduler(), FLOW()
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    sdxl = unet_condition(**added, projection_class_embeddings_input_dim=34)
    cases = [
        (dit(), vp, {}, "class_labels, which DiTTransformer2DModel needs"),
        (unet_2d(num_class_embeds=7), vp, {}, "class_labels, which UNet2DModel needs"),
        (unet_condition(), vp, {}, "encoder_hidden_states, which UNet2DConditionModel needs"),
        (
            sdxl,
            vp,
            {"encoder_hidden_states": randn(CHAINS, 7, 12)},
            "text_embeds, time_ids, which UNet2DCond.*",
        ),
        (sd3(), flow, {}, "encoder_hidden_states, pooled_projections, which SD3Transformer2DModel needs"),
        (flux(guidance_embeds=True), flow, conditioning(), "guidance, which FluxTransformer2DModel needs"),
    ]
    for model, scheduler, cond, message in cases:
        net = ulam.Denoiser.from_diffusers(model, scheduler=scheduler).net
        with pytest.raises(TypeError, match=f"cond: got .*, expected also {message}$"):
            net(x, t, **cond)
    net = ulam.Denoiser.from_diffusers(sd3(), scheduler=flow).net
    with pytest.raises(
        TypeError, match=r"cond: got y, expected only what SD3Transformer2DModel takes: encoder_hidden_states, pooled"
    ):
        net(x, t, **conditioning(), y=t)


def test_what_flux_cannot_take_is_said_in_one_line():
    net = ulam.Denoiser.from_diffusers(flux(), scheduler=FLOW()).net
    with pytest.raises(ValueError, match=r"shape: got \[4, 7, 8\], expected even height and width"):
        net(randn(1, 4, 7, 8), torch.ones(1), **{name: value[:1] for name, value in conditioning().items()})
    with pytest.raises(ValueError, match="scheduler: got DDIMScheduler, expected one of flow matching for Flux"):
        ulam.Denoiser.from_diffusers(flux(), scheduler=diffusers.DDIMScheduler())
    with pytest.raises(
        ValueError, match="use_dynamic_shifting=True, expected one shift for all sizes: pass scheduler="
    ):
        ulam.Denoiser.from_diffusers(flux(), scheduler=FLOW(use_dynamic_shifting=True))
