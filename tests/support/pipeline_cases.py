"""Tiny networks and pipelines of diffusers, and samples from them."""

from __future__ import annotations

import json

import pytest
import torch

import ulam
import ulam.integrations.diffusers

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

FLOW = diffusers.FlowMatchEulerDiscreteScheduler
STEPS, CHAINS, WORDS = 20, 3, 5
TINY = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}


def unet_2d(**options):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return diffusers.UNet2DModel(**{"in_channels": 3, "out_channels": 3, **TINY, **blocks, **options}).eval()


def unet_condition(**options):
    torch.manual_seed(1)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 12,
    }
    return diffusers.UNet2DConditionModel(**{"in_channels": 4, "out_channels": 4, **TINY, **blocks, **options}).eval()


def autoencoder():
    torch.manual_seed(2)
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8).eval()


def random_weights(model, seed):
    torch.manual_seed(seed)
    for parameter in model.parameters():  # some start at zero, where conditioning would not matter
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def dit():
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, in_channels=4, out_channels=8
    )
    return random_weights(model, 3)


def sd3():
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return random_weights(model, 4)


def flux(**options):
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
        **options,
    )
    return random_weights(model, 5)


def stable_diffusion(**scheduler):
    pytest.importorskip("transformers", reason="StableDiffusionPipeline needs transformers")
    defaults = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    pipe = diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=None,
        tokenizer=None,
        unet=unet_condition(),
        scheduler=diffusers.DDIMScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.scheduler = diffusers.DDIMScheduler(**{**defaults, **scheduler})  # the constructor insists on an offset of 1
    return pipe


def with_exact_levels(scheduler):
    """With diffusers' linear betas multiplied in float64: in float32 1 - alpha_bar / alpha_bar' loses three digits."""
    first, last, steps = (scheduler.config[name] for name in ("beta_start", "beta_end", "num_train_timesteps"))
    scheduler.alphas_cumprod = (1 - torch.linspace(first, last, steps, dtype=torch.float64)).cumprod(0)
    return scheduler


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditioning():
    return {"encoder_hidden_states": randn(CHAINS, WORDS, 12), "pooled_projections": randn(CHAINS, 10, seed=1)}


def sample(denoiser, sampler, shape, x_init, **options):
    return ulam.sample(denoiser, sampler, shape=shape, chains=len(x_init), x_init=x_init, progress=False, **options)


def difference(got, expected):
    """The largest difference, relative to the largest value where that is above 1."""
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    return (got - expected).abs().max() / expected.abs().max().clamp(min=1)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def read(scheduler):
    pipe = diffusers.DDIMPipeline(unet_2d(), diffusers.DDIMScheduler())
    pipe.scheduler = scheduler
    return ulam.Denoiser.from_diffusers(pipe)
