"""Pipelines of six families, each brought in two lines, `from_diffusers` and `sample`: their own states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import ulam
from pipeline_cases import (
    CHAINS,
    FLOW,
    autoencoder,
    conditioning,
    difference,
    dit,
    flux,
    randn,
    sd3,
    stable_diffusion,
    unet_2d,
)
from ulam.samplers import DDIM, Euler

pytestmark = pytest.mark.filterwarnings("ignore:x_init. got states without a seed", "ignore:.*got a first noise level")

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="the pipelines of Stable Diffusion and Flux need transformers")

STEPS = 10
LABELS = torch.tensor([3, 0, 9])


class Family(NamedTuple):
    """A pipeline, the shape of its samples, what it is told, and its own samples from the states x."""

    pipe: Any
    shape: tuple[int, ...]
    cond: dict[str, torch.Tensor]
    own: Callable[[torch.Tensor], torch.Tensor]
    sampler: Any = DDIM(STEPS)


def looped(pipe, model, **told):
    """diffusers' documented loop."""

    def loop(x):
        pipe.scheduler.set_timesteps(STEPS)
        with torch.inference_mode():
            for t in pipe.scheduler.timesteps:
                m = model(x, t.expand(CHAINS), **told).sample
                x = pipe.scheduler.step(m[:, : x.shape[1]], t, x).prev_sample
        return x

    return loop


def images():
    pipe = diffusers.DDPMPipeline(unet_2d(), diffusers.DDIMScheduler(clip_sample=False))
    return Family(pipe, (3, 8, 8), {}, looped(pipe, pipe.unet))


def images_of_classes():
    pipe = diffusers.DDIMPipeline(unet_2d(num_class_embeds=10), diffusers.DDIMScheduler(clip_sample=False))
    return Family(pipe, (3, 8, 8), {"y": LABELS}, looped(pipe, pipe.unet, class_labels=LABELS))


def dit_pipeline():
    pipe = diffusers.DiTPipeline(dit(), autoencoder(), diffusers.DDIMScheduler(clip_sample=False))
    return Family(pipe, (4, 8, 8), {"y": LABELS}, looped(pipe, pipe.transformer, class_labels=LABELS))


def called(pipe, cond, **options):
    """The pipeline's own call, unguided, on latents."""
    names = {"encoder_hidden_states": "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"}
    pipe.set_progress_bar_config(disable=True)
    told = {names[name]: value for name, value in cond.items()}
    return pipe(**told, guidance_scale=1.0, output_type="latent", **options).images


def stable_diffusion_pipeline():
    pipe, cond = stable_diffusion(), {"encoder_hidden_states": randn(CHAINS, 7, 12)}
    return Family(pipe, (4, 8, 8), cond, lambda x: called(pipe, cond, latents=x, num_inference_steps=STEPS))


def without_text(*names):
    return {f"{part}{name}": None for part in ("text_encoder", "tokenizer") for name in names}


def sd3_pipeline():
    pipe = diffusers.StableDiffusion3Pipeline(sd3(), FLOW(shift=3.0), autoencoder(), **without_text("", "_2", "_3"))
    cond, sigmas = conditioning(), np.linspace(1, 1 / STEPS, STEPS).tolist()
    own = lambda x: called(pipe, cond, latents=x, sigmas=sigmas, height=8, width=8)  # noqa: E731
    return Family(pipe, (4, 8, 8), cond, own, Euler(STEPS))


def flux_pipeline():
    pipe = diffusers.FluxPipeline(FLOW(), autoencoder(), transformer=flux(), **without_text("", "_2"))
    cond = conditioning()

    def own(x):
        packed = pipe._pack_latents(x, CHAINS, 4, 8, 12)
        got = called(pipe, cond, latents=packed, num_inference_steps=STEPS, height=8, width=12)
        return pipe._unpack_latents(got, 8, 12, pipe.vae_scale_factor)

    return Family(pipe, (4, 8, 12), cond, own, Euler(STEPS))


FAMILIES = [images, images_of_classes, dit_pipeline, stable_diffusion_pipeline, sd3_pipeline, flux_pipeline]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "from a folder"])
def test_two_lines_bring_a_pipeline_and_give_its_own_states(family, saved, tmp_path, no_network):
    pipe, shape, cond, own, sampler = family()
    x = randn(CHAINS, *shape)
    expected = own(x)
    if saved:
        pipe.save_pretrained(tmp_path)
    denoiser = ulam.Denoiser.from_diffusers(tmp_path if saved else pipe)
    got = ulam.sample(denoiser, sampler, shape=shape, chains=CHAINS, x_init=x, cond=cond, progress=False)
    assert difference(got, expected) < 1e-5
    told = {name: value.roll(1, 0) for name, value in cond.items()}
    if told:  # what it is told matters
        other = ulam.sample(denoiser, sampler, shape=shape, chains=CHAINS, x_init=x, cond=told, progress=False)
        assert difference(other, expected) > 1e-3


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "shift=.*, 1.649 for images of 256 tokens, 3.158 for images of 4096 tokens"),
        (
            {"time_shift_type": "linear", "max_shift": 2.0, "max_image_seq_len": 1024},
            "0.5 for .*, 2 for images of 1024",
        ),
    ],
)
def test_flux_with_a_shift_for_each_size_says_which_line_brings_it(options, said):
    """The shifts said are those of the scheduler itself, at the mu of diffusers' pipeline."""
    pipe = diffusers.FluxPipeline(
        FLOW(use_dynamic_shifting=True, **options), autoencoder(), transformer=flux(), **without_text("", "_2")
    )
    with pytest.raises(ValueError, match=f"^source: got .* expected one shift for all sizes: .*{said}") as raised:
        ulam.Denoiser.from_diffusers(pipe)
    assert "\n" not in str(raised.value)
    config = pipe.scheduler.config
    pipe.scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=config["max_shift"])
    shift = float(str(raised.value).split(", ")[-1].split()[0])
    fixed = FLOW(shift=shift)
    fixed.set_timesteps(sigmas=[1.0, 0.5])
    assert torch.allclose(fixed.sigmas, pipe.scheduler.sigmas, rtol=1e-3)
    assert ulam.Denoiser.from_diffusers(pipe, scheduler=fixed).schedule == ulam.schedules.flow(shift)
