"""`Denoiser.from_diffusers` of models alone, of transformers, and a saved pipeline on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ulam
from archives import arrays
from pipeline_cases import CHAINS, autoencoder, difference, dit, randn, sample, unet_2d, unet_condition
from ulam.cli.main import main
from ulam.samplers import DDIM, Euler

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
FLOW = diffusers.FlowMatchEulerDiscreteScheduler
WORDS = 5


def random_weights(model, seed):
    torch.manual_seed(seed)
    for parameter in model.parameters():  # some start at zero, where conditioning would not matter
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


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


def conditioning():
    return {"encoder_hidden_states": randn(CHAINS, WORDS, 12), "pooled_projections": randn(CHAINS, 10, seed=1)}


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
    for wrong in ("DDIMScheduler", {}, DDIM(10), unet_2d()):
        with pytest.raises(
            TypeError, match=f"scheduler: got {type(wrong).__name__}, expected a scheduler of diffusers"
        ):
            ulam.Denoiser.from_diffusers(unet_2d(), scheduler=wrong)


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


# -------------------------------------------------------------------------------------------- the command line


def written(folder):
    return arrays(folder / "samples.npz")["arr_0"], json.loads((folder / "report.json").read_text())


def test_a_pipelines_folder_on_the_command_line(tmp_path, capsys):
    saved, out = tmp_path / "pipeline", tmp_path / "out"
    diffusers.DDIMPipeline(unet_2d(), diffusers.DDIMScheduler(beta_schedule="scaled_linear")).save_pretrained(saved)
    arguments = ["sample", "--model", str(saved), "--steps", "3", "--chains", "2"]
    assert main([*arguments, "--out", str(out)]) == 0
    _, report = written(out)
    denoiser = ulam.Denoiser.from_diffusers(saved)
    assert report["schedule"] == repr(denoiser.schedule) and report["chains"] == 2
    x = ulam.sample(denoiser, DDIM(3), shape=(3, 8, 8), chains=2, progress=False)
    assert x.shape == (2, 3, 8, 8)
    assert main([*arguments, "--shape", "3,16,16", "--out", str(tmp_path / "large")]) == 0
    for option, value in (("--schedule", "vp_linear(1000)"), ("--predicts", "eps"), ("--weights", "x.safetensors")):
        capsys.readouterr()
        assert main([*arguments, option, value, "--out", str(tmp_path / "no")]) == 2
        assert f"{option[2:]}: got " in (said := capsys.readouterr().err) and "expected none: the pipeline in" in said


def test_classes_on_the_command_line(tmp_path):
    """Without labels the class of none; labels and guidance as from Python, to the bit."""
    saved, out = tmp_path / "pipeline", tmp_path / "out"
    pipe = diffusers.DiTPipeline(dit(), autoencoder(), diffusers.DDIMScheduler(clip_sample=False))
    pipe.save_pretrained(saved)
    arguments = ["sample", "--model", str(saved), "--steps", "3", "--chains", "2"]
    denoiser, shape = ulam.Denoiser.from_diffusers(saved), (4, 8, 8)
    null = torch.full((2,), 1000)
    for more, y, guidance in (
        ([], null, {}),
        (
            ["--labels", "3,7", "--guidance", "2"],
            torch.tensor([3, 7]),
            {"guidance": 2.0, "uncond": {"class_labels": null}},
        ),
    ):
        assert main([*arguments, *more, "--out", str(out)]) == 0
        cond = {"class_labels": y}
        expected = ulam.sample(denoiser, DDIM(3), shape=shape, chains=2, cond=cond, **guidance, progress=False)
        assert np.array_equal(written(out)[0], expected.numpy())


def test_a_pipeline_that_needs_more_than_a_label_is_refused(tmp_path, capsys):
    pipe = diffusers.DDIMPipeline(unet_2d(), diffusers.DDIMScheduler())
    pipe.save_pretrained(tmp_path)
    unet_condition().save_pretrained(tmp_path / "unet")
    assert main(["sample", "--model", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "model: got the UNet2DConditionModel" in said and "which needs encoder_hidden_states, " in said
    assert "sample it from Python" in said
    assert len(said.strip().splitlines()) == 1
    assert main(["sample", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "expected digits, a folder that is there or module:factory" in capsys.readouterr().err
