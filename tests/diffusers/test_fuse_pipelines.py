"""Real pipelines, with random weights: the same images with a fused scheduler as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ulam.integrations.diffusers import fuse


def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    ).eval()


def images(pipe: Any, scheduler: Any = None, **call: Any) -> np.ndarray:
    if scheduler is not None:
        pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    return np.asarray(pipe(generator=generator, output_type="np", **call).images)


@pytest.mark.parametrize("steps", [10, 25])
def test_ddpm_pipeline(steps: int) -> None:
    pipe = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    expected = images(pipe, batch_size=2, num_inference_steps=steps)
    found = images(pipe, fuse(pipe.scheduler), batch_size=2, num_inference_steps=steps)
    assert expected.std() > 0.05 and abs(found - expected).max() <= 1e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_pipeline(eta: float) -> None:
    pipe = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler())
    expected = images(pipe, batch_size=2, num_inference_steps=10, eta=eta)
    found = images(pipe, fuse(pipe.scheduler), batch_size=2, num_inference_steps=10, eta=eta)
    assert expected.std() > 0.05 and abs(found - expected).max() <= 1e-4


def stable_diffusion(scheduler: Any) -> Any:
    """A small StableDiffusionPipeline: text encoder, UNet and autoencoder with random weights, embeddings given."""
    clip = pytest.importorskip("transformers", reason="the text encoder of StableDiffusionPipeline needs transformers")
    torch.manual_seed(0)
    text = clip.CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=1000,
        max_position_embeddings=77,
    )
    denoiser = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
    )
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder.eval(),
        text_encoder=clip.CLIPTextModel(text).eval(),
        tokenizer=None,
        unet=denoiser.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
        ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("UniPCMultistepScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("LMSDiscreteScheduler", {}),
        ("LCMScheduler", {}),
    ],
)
def test_stable_diffusion_pipeline(name: str, config: dict[str, Any]) -> None:
    pipe = stable_diffusion(getattr(diffusers, name)(**SD, **config))
    embeddings = torch.randn(2, 1, 77, 32, generator=torch.Generator().manual_seed(1))
    call = {
        "prompt_embeds": embeddings[0],
        "negative_prompt_embeds": embeddings[1],
        "num_inference_steps": 8,
        "guidance_scale": 4.0,
        "height": 32,
        "width": 32,
    }
    expected = images(pipe, **call)
    found = images(pipe, fuse(pipe.scheduler), **call)
    assert expected.std() > 0.01 and abs(found - expected).max() <= 1e-4


def test_saved_pipelines_are_read_by_diffusers(tmp_path: Path) -> None:
    pipe = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler(beta_end=0.03))
    pipe.scheduler = fuse(pipe.scheduler)
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.DDIMPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is diffusers.DDIMScheduler and loaded.scheduler.config.beta_end == 0.03
