"""`Denoiser.from_diffusers`: the same samples as diffusers' own pipelines and schedulers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import ulam
import ulam.integrations.diffusers
from pipeline_cases import (
    CHAINS,
    STEPS,
    autoencoder,
    difference,
    dit,
    edit,
    randn,
    sample,
    stable_diffusion,
    unet_2d,
    unet_condition,
    with_exact_levels,
)
from ulam.samplers import DDIM, DDPM
from ulam.schedules import vp_scaled_linear

pytestmark = pytest.mark.filterwarnings("ignore:x_init. got states without a seed")

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "from a folder"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_stable_diffusion_gives_the_same_latents(saved, prediction, tmp_path):
    pipe = stable_diffusion(prediction_type=prediction)
    prompts, empty, latents = randn(CHAINS, 7, 12), randn(CHAINS, 7, 12, seed=1), randn(CHAINS, 4, 8, 8, seed=2)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt_embeds=prompts,
        negative_prompt_embeds=empty,
        latents=latents,
        num_inference_steps=STEPS,
        guidance_scale=7.5,
        output_type="latent",
    ).images
    if saved:
        pipe.save_pretrained(tmp_path)
    denoiser = ulam.Denoiser.from_diffusers(tmp_path if saved else pipe)
    got = sample(
        denoiser,
        DDIM(STEPS),
        (4, 8, 8),
        latents,
        cond={"encoder_hidden_states": prompts},
        guidance=7.5,
        uncond={"encoder_hidden_states": empty},
    )
    assert denoiser.schedule == vp_scaled_linear(1000, 0.00085, 0.012)
    assert (got - expected).abs().max() < 1e-4


def test_stable_diffusions_own_offset_and_last_level():
    """steps_offset=1 and set_alpha_to_one=False belong to the sampler: explicit timesteps and final="sigma_min"."""
    pipe = stable_diffusion(steps_offset=1, set_alpha_to_one=False)
    prompts, latents = randn(CHAINS, 7, 12), randn(CHAINS, 4, 8, 8, seed=2)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt_embeds=prompts, latents=latents, num_inference_steps=STEPS, guidance_scale=1.0, output_type="latent"
    ).images
    sampler = DDIM(timesteps=pipe.scheduler.timesteps, final="sigma_min")
    got = sample(
        ulam.Denoiser.from_diffusers(pipe), sampler, (4, 8, 8), latents, cond={"encoder_hidden_states": prompts}
    )
    assert difference(got, expected) < 1e-5


def test_ddpm_pipeline_gives_the_same_images():
    """With the pipeline's noise, drawn again from its generator."""
    pipe = diffusers.DDPMPipeline(unet_2d(), with_exact_levels(diffusers.DDPMScheduler()))
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(CHAINS, torch.Generator().manual_seed(5), num_inference_steps=STEPS, output_type="np").images
    generator = torch.Generator().manual_seed(5)

    def draw(*_):
        return torch.randn(CHAINS, 3, 8, 8, generator=generator)

    denoiser = ulam.Denoiser.from_diffusers(pipe)
    got = sample(denoiser, DDPM(STEPS, clip=(-1.0, 1.0)), (3, 8, 8), draw(), noise=draw)
    images = (got / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert difference(images, expected) < 1e-5


def test_class_conditional_unet_2d_gives_the_same_states():
    unet, scheduler = unet_2d(num_class_embeds=10), diffusers.DDIMScheduler(clip_sample=False)
    x, labels = randn(CHAINS, 3, 8, 8), torch.tensor([3, 0, 9])
    got = sample(
        ulam.Denoiser.from_diffusers(diffusers.DDIMPipeline(unet, scheduler)),
        DDIM(STEPS),
        (3, 8, 8),
        x,
        cond={"class_labels": labels},
    )
    scheduler.set_timesteps(STEPS)
    with torch.inference_mode():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x).prev_sample
    assert difference(got, x) < 1e-5


@pytest.mark.parametrize("legacy", [False, True], ids=["its own class", "Transformer2DModel"])
def test_dit_pipeline_gives_the_same_images(legacy, tmp_path):
    """Guided, with 2C output channels of which DDIM reads the first half."""
    pipe = diffusers.DiTPipeline(dit(), autoencoder(), diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    labels, generator = [3, 0, 999], torch.Generator().manual_seed(5)
    expected = pipe(labels, 4.0, generator, num_inference_steps=STEPS, output_type="np").images
    pipe.save_pretrained(tmp_path)
    if legacy:
        edit(tmp_path / "transformer/config.json", _class_name="Transformer2DModel", norm_type="ada_norm_zero")
    got = sample(
        ulam.Denoiser.from_diffusers(tmp_path),
        DDIM(STEPS),
        (4, 8, 8),
        torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5)),
        cond={"class_labels": torch.tensor(labels)},
        guidance=4.0,
        uncond={"class_labels": torch.full((3,), 1000)},
    )
    with torch.inference_mode():
        images = (pipe.vae.decode(got / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert difference(images.permute(0, 2, 3, 1), expected) < 1e-5


def test_dit_with_a_learned_variance():
    """DDPM on 2C channels, against diffusers' DDPM with learned_range."""
    scheduler = with_exact_levels(diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False))
    pipe = diffusers.DiTPipeline(dit(), autoencoder(), scheduler)
    x, labels = randn(CHAINS, 4, 8, 8), torch.tensor([3, 0, 999])
    mine, theirs = torch.Generator().manual_seed(6), torch.Generator().manual_seed(6)
    got = sample(
        ulam.Denoiser.from_diffusers(pipe),
        DDPM(STEPS, variance="learned_range"),
        (4, 8, 8),
        x,
        cond={"class_labels": labels},
        noise=lambda row, chains: torch.randn(x.shape, generator=mine),
    )
    scheduler.set_timesteps(STEPS)
    with torch.inference_mode():
        for t in scheduler.timesteps:
            m = pipe.transformer(x, t.expand(CHAINS), class_labels=labels).sample
            x = scheduler.step(m, t, x, generator=theirs).prev_sample
    assert difference(got, x) < 1e-5


def test_added_conditioning_is_given_flat():
    """SDXL's text_embeds and time_ids."""
    unet = unet_condition(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=34
    )
    pipe = diffusers.DDIMPipeline(unet_2d(), diffusers.DDIMScheduler())
    pipe.unet = unet
    net = ulam.Denoiser.from_diffusers(pipe).net
    x, t = randn(CHAINS, 4, 8, 8), torch.tensor([1.0, 500.0, 999.0])
    states, text, ids = randn(CHAINS, 7, 12), randn(CHAINS, 10), randn(CHAINS, 6).abs() * 100
    with torch.inference_mode():
        expected = unet(x, t, states, added_cond_kwargs={"text_embeds": text, "time_ids": ids}).sample
        got = net(x, t, encoder_hidden_states=states, text_embeds=text, time_ids=ids)
        assert not torch.equal(got, net(x, t, encoder_hidden_states=states, text_embeds=text, time_ids=ids + 1))
    assert torch.equal(got, expected)


def test_guidance_embedding():
    """timestep_cond of latent consistency models."""
    unet = unet_condition(time_cond_proj_dim=6)
    pipe = diffusers.DDIMPipeline(unet_2d(), diffusers.LCMScheduler())
    pipe.unet = unet
    x, t, states, w = randn(CHAINS, 4, 8, 8), torch.tensor([1.0, 5.0, 9.0]), randn(CHAINS, 7, 12), randn(CHAINS, 6)
    with torch.inference_mode():
        got = ulam.Denoiser.from_diffusers(pipe).net(x, t, encoder_hidden_states=states, timestep_cond=w)
        assert torch.equal(got, unet(x, t, states, timestep_cond=w).sample)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_gives_the_same_states(prediction):
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_max=20.0, sigma_data=0.7)
    unet, start = unet_2d(), randn(CHAINS, 3, 8, 8) * 20
    pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    pipe.scheduler = scheduler
    denoiser = ulam.Denoiser.from_diffusers(pipe)
    got = sample(denoiser, DDIM(STEPS), (3, 8, 8), start)  # on sigma: Euler's method
    scheduler.set_timesteps(STEPS)
    x = start
    with torch.inference_mode():
        for t in scheduler.timesteps:
            m = unet(scheduler.scale_model_input(x, t), t.expand(CHAINS)).sample
            x = scheduler.step(m, t, x).prev_sample
    assert denoiser.schedule == ulam.schedules.edm(0.002, 20.0, 0.7, 7.0)
    assert difference(got, x) < 1e-5


def test_flow_matching_gives_the_same_states():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    unet, start = unet_2d(), randn(CHAINS, 3, 8, 8)
    pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    pipe.scheduler = scheduler
    denoiser = ulam.Denoiser.from_diffusers(pipe)
    got = sample(denoiser, DDIM(STEPS), (3, 8, 8), start)  # on straight paths: Euler's method
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS))
    x = start
    with torch.inference_mode():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t.expand(CHAINS)).sample, t, x).prev_sample
    assert denoiser.schedule == ulam.schedules.flow(3.0)
    assert difference(got, x) < 1e-5


def test_score_network_is_told_sigma():
    """The exact step on VE from the network's score: x + sigma (sigma - sigma_s) score."""
    unet = unet_2d(time_embedding_type="fourier", num_class_embeds=None)
    pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    pipe.scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.1, sigma_max=9.0)
    denoiser = ulam.Denoiser.from_diffusers(pipe)
    start = randn(CHAINS, 3, 8, 8) * 9
    got = sample(denoiser, DDIM(5), (3, 8, 8), start)
    sigmas = [*np.geomspace(9.0, 0.1, 5), 0.0]
    x = start.double()
    with torch.inference_mode():
        for t, s in itertools.pairwise(sigmas):
            x = x + t * (t - s) * unet(x.float(), torch.full((CHAINS,), t, dtype=torch.float32)).sample.double()
    assert difference(got, x) < 1e-5
