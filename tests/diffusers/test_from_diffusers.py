"""`Denoiser.from_diffusers`: folders as diffusers saves them, and errors that say what is wrong."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import safetensors.torch
import torch

import ulam
import ulam.integrations.diffusers
from pipeline_cases import autoencoder, edit, randn, read, unet_2d, unet_condition
from ulam.schedules import vp_linear

pytestmark = pytest.mark.filterwarnings("ignore:x_init. got states without a seed")

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


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
    with pytest.raises(TypeError, match=r"cond: got y, expected only what UNet2DModel takes: nothing"):
        net(randn(1, 3, 8, 8), torch.zeros(1), y=torch.zeros(1))
