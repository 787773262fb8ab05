"""`Denoiser.from_diffusers`: the same samples as diffusers' own pipelines, and errors that say what is wrong."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import sys

import numpy as np
import pytest
import safetensors.torch
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
)
from ulam.samplers import DDIM, DDPM
from ulam.schedules import from_betas, vp_cosine, vp_linear, vp_scaled_linear, vp_sigmoid, zero_terminal_snr

pytestmark = pytest.mark.filterwarnings("ignore:x_init. got states without a seed")

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.CRITICAL)


# ------------------------------------------------------------------------------------ the pipelines' own samples


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
    pipe = diffusers.DDPMPipeline(unet_2d(), diffusers.DDPMScheduler())
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
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
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


# ------------------------------------------------------------------------------------------------- schedules


def read(scheduler):
    pipe = diffusers.DDIMPipeline(unet_2d(), diffusers.DDIMScheduler())
    pipe.scheduler = scheduler
    return ulam.Denoiser.from_diffusers(pipe)


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


# ------------------------------------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    diffusers.DDIMPipeline(unet_2d(), diffusers.DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "pipeline")


def weights(denoiser):
    return dict(denoiser.net.model.state_dict())


def test_folders_give_the_weights_bit_by_bit(folder):
    expected = unet_2d().state_dict()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle that nobody opens")
    for source in (folder, str(folder), folder / "unet"):
        denoiser = ulam.Denoiser.from_diffusers(source)
        got = weights(denoiser)
        assert got.keys() == expected.keys() and all(torch.equal(got[key], expected[key]) for key in expected)
        assert not denoiser.net.model.training and denoiser.schedule == vp_linear(1000) and denoiser.predicts == "eps"


def test_shards_variants_and_dtype(folder):
    expected = unet_2d()
    expected.save_pretrained(folder / "unet", max_shard_size="20KB", variant="fp16")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    with pytest.raises(FileNotFoundError, match=r"no weights .* only .*fp16.*variant="):
        ulam.Denoiser.from_diffusers(folder)
    got = weights(ulam.Denoiser.from_diffusers(folder, variant="fp16", dtype=torch.bfloat16))
    assert all(torch.equal(got[key], value.bfloat16()) for key, value in expected.state_dict().items())


def test_names_that_diffusers_has_changed_since_are_read(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    expected, old = unet_2d().state_dict(), {}
    for name, tensor in expected.items():
        for own, former in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            name = name.replace(f".{own}.", f".{former}.")
        old[name] = tensor
    assert old.keys() != expected.keys()
    safetensors.torch.save_file(old, path)
    got = weights(ulam.Denoiser.from_diffusers(folder))
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def unlink(path):
    return lambda folder: (folder / path).unlink()


def write(path, content):
    return lambda folder: (folder / path).write_bytes(content)


def pickled(folder):
    whole = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save({}, whole.with_name("diffusion_pytorch_model.bin"))
    whole.unlink()


def pickled_shards(folder):
    index = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00001.bin"}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def incomplete(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = unet_2d().state_dict()
    tensors.pop("conv_out.weight")
    safetensors.torch.save_file(tensors, path)


def with_weight(name, change):
    """The weights with one more, or another in place of one."""

    def break_it(folder):
        path = folder / "unet/diffusion_pytorch_model.safetensors"
        tensors = safetensors.torch.load_file(path)
        safetensors.torch.save_file({**tensors, name: change(tensors["conv_in.weight"])}, path)

    return break_it


def sharded(edit):
    """The weights in two files, whose index and second tensors ``edit`` changes."""

    def break_it(folder):
        path = folder / "unet/diffusion_pytorch_model.safetensors"
        tensors = safetensors.torch.load_file(path)
        names = sorted(tensors)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        files = {file: {name: tensors[name] for name in part} for file, part in parts.items()}
        where = {name: file for file, part in parts.items() for name in part}
        edit(where, files["b.safetensors"], tensors)
        for file, part in files.items():
            safetensors.torch.save_file(part, path.with_name(file))
        path.with_name(path.name + ".index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        path.unlink()

    return break_it


def elsewhere(where, second, tensors):
    where.update(dict.fromkeys(second, "a.safetensors"))


def in_both(where, second, tensors):
    second.update({name: 2 * tensors[name] for name in sorted(tensors)[:1]})


def twice_a_key(folder):
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + ', "prediction_type": "v_prediction"}')


def changed(path, **changes):
    return lambda folder: edit(folder / path, **changes)


BROKEN = [
    (shutil.rmtree, NotADirectoryError, "expected a folder: nothing is fetched"),
    (unlink("model_index.json"), FileNotFoundError, "no model_index.json"),
    (write("model_index.json", b"{"), ValueError, "got .*model_index.json .*, expected a JSON object"),
    (write("model_index.json", b"[]"), ValueError, "with a list, expected a JSON object"),
    (changed("model_index.json", unet=[None, None]), ValueError, "neither unet nor transformer"),
    (unlink("unet/config.json"), FileNotFoundError, "no file .*config.json"),
    (changed("unet/config.json", _class_name="UNet3DConditionModel"), ValueError, "class UNet3DConditionModel"),
    (unlink("scheduler/scheduler_config.json"), FileNotFoundError, "no file .*scheduler_config.json"),
    (changed("scheduler/scheduler_config.json", _class_name="VQDiffusionScheduler"), ValueError, "VQDiffusion"),
    (changed("scheduler/scheduler_config.json", prediction_type="x1"), ValueError, "prediction_type='x1'"),
    (unlink("unet/diffusion_pytorch_model.safetensors"), FileNotFoundError, "no weights"),
    (write("unet/diffusion_pytorch_model.safetensors", b"no"), ValueError, "expected a model that diffusers loads"),
    (changed("unet/config.json", block_out_channels=[8, 24]), ValueError, "expected a model that diffusers loads"),
    (incomplete, ValueError, "lack 1 of the model's, such as conv_out.weight"),
    (with_weight("conv_in.more", torch.clone), ValueError, r"got 1 weights .* does not have, such as conv_in.more"),
    (changed("unet/config.json", add_attention=False), ValueError, r"got 10 weights .* does not have, such as mid_"),
    (
        with_weight("conv_in.weight", lambda own: (own * 99).to(torch.int8)),
        ValueError,
        "got int weights conv_in.weight in",
    ),
    (with_weight("conv_in.weight", lambda own: own > 0), ValueError, "got bool weights .*, expected float ones"),
    (sharded(elsewhere), ValueError, r"in a.safetensors, expected the file that holds it"),
    (sharded(in_both), ValueError, "in two files of .*, expected it in one"),
    (twice_a_key, ValueError, "the key 'prediction_type' twice"),
    (pickled, ValueError, r"got pickled weights \(diffusion_pytorch_model.bin\) in .*: pickles are not opened"),
    (pickled_shards, ValueError, "expected safetensors: pickles are not opened"),
]


@pytest.mark.parametrize("breaks, error, message", BROKEN)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(breaks, error, message, folder):
    breaks(folder)
    with pytest.raises(error, match=message) as raised:
        ulam.Denoiser.from_diffusers(folder)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("source: ")


def test_a_model_folder_without_a_scheduler_beside_it(folder):
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(FileNotFoundError, match=r"source: got no file .*scheduler_config.json, expected one"):
        ulam.Denoiser.from_diffusers(folder / "unet")


def test_what_is_wrong_with_an_object_is_said_in_one_line(folder):
    class Custom(diffusers.DDIMScheduler):
        pass

    pipe = diffusers.DDIMPipeline(unet_2d(), diffusers.DDIMScheduler())
    assert read(Custom()).schedule == vp_linear(1000)
    with pytest.raises(TypeError, match="source: got Linear, expected a folder or a pipeline or model of diffusers"):
        ulam.Denoiser.from_diffusers(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"variant, dtype: got None, torch.float16, expected None but for folders"):
        ulam.Denoiser.from_diffusers(pipe, dtype=torch.float16)
    with pytest.raises(ValueError, match="source: got a scheduler IPNDMScheduler, expected one of"):
        read(diffusers.IPNDMScheduler())
    with pytest.raises(ValueError, match="timestep_type='continuous'"):
        read(diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"))
    with pytest.raises(ValueError, match="use_dynamic_shifting=True"):
        read(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with pytest.raises(TypeError, match="dtype: got 'float16', expected"):
        ulam.Denoiser.from_diffusers(folder, dtype="float16")
    pipe.unet = autoencoder()
    with pytest.raises(ValueError, match="source: got a model AutoencoderKL, expected one of"):
        ulam.Denoiser.from_diffusers(pipe)
    pipe.unet = unet_condition(in_channels=9)
    with pytest.raises(ValueError, match="reads 9 channels and returns 4"):
        ulam.Denoiser.from_diffusers(pipe)
    pipe.unet = None
    with pytest.raises(ValueError, match="got a DDIMPipeline without a unet or transformer"):
        ulam.Denoiser.from_diffusers(pipe)


def test_a_subclass_is_made_where_it_is_asked_for(folder):
    class Mine(ulam.Denoiser):
        """A denoiser of one's own."""

    denoiser = Mine.from_diffusers(folder)
    assert type(denoiser) is Mine and denoiser.predicts == "eps" and denoiser.schedule == vp_linear(1000)
    assert type(ulam.Denoiser.from_diffusers(folder)) is ulam.Denoiser


def test_without_diffusers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"diffusers: got no such package, .* pip install 'ulam\[diffusers\]'"):
        ulam.Denoiser.from_diffusers(folder)


def test_unknown_conditioning_is_named():
    net = read(diffusers.DDIMScheduler()).net
    with pytest.raises(TypeError, match=r"cond: got y, expected only what UNet2DModel takes: class_labels"):
        net(randn(1, 3, 8, 8), torch.zeros(1), y=torch.zeros(1))
