"""Folders that diffusers saved, on the command line and in recipes: of pipelines, and of models alone."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

import ulam
from archives import arrays
from pipeline_cases import FLOW, autoencoder, dit, edit, flux, randn, sd3, unet_2d, unet_condition
from ulam.cli.main import main
from ulam.samplers import DDIM

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*got a first noise level"),
    pytest.mark.usefixtures("no_network"),
]

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

from diffusers.training_utils import EMAModel  # noqa: E402

LABELLED = {"num_class_embeds": 10}


def save(folder, model, scheduler=None):
    """A pipeline's folder, as diffusers saves one; returns the arguments that sample it."""
    pipe = diffusers.DDIMPipeline(unet_2d(), diffusers.DDIMScheduler())  # its constructor makes any scheduler DDIM
    pipe.unet, pipe.scheduler = model, scheduler or pipe.scheduler
    pipe.save_pretrained(folder)
    return command(folder)


def command(folder, *more):
    return ["sample", "--model", str(folder), "--steps", "3", "--chains", "2", "--out", str(folder / "out"), *more]


def samples(folder):
    return arrays(folder / "out" / "samples.npz")["arr_0"]


def refused(capsys, arguments):
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert main(arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ulam: error:")]
    assert len(said) == 1
    return said[0].removeprefix("ulam: error: ")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


def written(folder):
    return arrays(folder / "samples.npz")["arr_0"], json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("clips", [True, False])
def test_clipping_that_is_left_out_is_said(tmp_path, capsys, clips):
    arguments = save(tmp_path, unet_2d(), diffusers.DDPMScheduler(clip_sample=clips, clip_sample_range=2.0))
    said = f"warning: clip: got none, the scheduler of {tmp_path} has -2 to 2: --clip -2 2 does so here"
    for more, expected in (([], clips), (["--clip", "-2", "2"], False), (["--sampler", "dpmsolverpp"], clips)):
        capsys.readouterr()
        assert main([*arguments, *more]) == 0
        assert (said in capsys.readouterr().err) == expected, more


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


# ------------------------------------------------------------------------------------------------ other folders


def test_a_flat_folder_is_read_as_diffusers_reads_it(tmp_path):
    """Weights and both configurations beside model_index.json, as the first pipelines were saved."""
    deep, flat = tmp_path / "deep", tmp_path / "flat"
    assert main(save(deep, unet_2d(), diffusers.DDIMScheduler(beta_schedule="scaled_linear"))) == 0
    shutil.copytree(deep / "unet", flat)
    for file in (deep / "scheduler" / "scheduler_config.json", deep / "model_index.json"):
        shutil.copy(file, flat)
    assert main(command(flat)) == 0
    assert np.array_equal(samples(flat), samples(deep))
    own = diffusers.DDIMPipeline.from_pretrained(flat, local_files_only=True).unet.state_dict()
    mine = ulam.Denoiser.from_diffusers(flat).net.model.state_dict()
    assert own.keys() == mine.keys() and all(torch.equal(own[name], mine[name]) for name in own)
    (flat / "model_index.json").unlink()  # a model with its scheduler's configuration
    shutil.rmtree(flat / "out")
    assert main(command(flat)) == 0 and np.array_equal(samples(flat), samples(deep))


@pytest.mark.parametrize(
    "own, schedule, predicts",
    [
        (diffusers.DDIMScheduler(), "vp_linear(1000)", None),
        (diffusers.DDIMScheduler(prediction_type="v_prediction"), "vp_linear(1000)", "v"),
        (FLOW(shift=3.0), "flow(3)", None),
        (diffusers.EDMEulerScheduler(), "edm", None),
        (diffusers.ScoreSdeVeScheduler(sigma_min=0.1, sigma_max=9.0), "ve(0.1, 9)", None),
    ],
    ids=["eps", "v", "flow", "edm", "ve"],
)
def test_a_model_without_a_scheduler_takes_a_schedule(own, schedule, predicts, tmp_path, capsys):
    """The same samples as with the scheduler that says so."""
    pipeline, alone = tmp_path / "pipeline", tmp_path / "model"
    assert main(save(pipeline, unet_2d(), own)) == 0
    shutil.copytree(pipeline / "unet", alone)
    said = refused(capsys, command(alone))
    assert said.startswith("schedule: got none for the model in") and "--schedule 'vp_linear(1000)'" in said
    told = ["--schedule", schedule, *(["--predicts", predicts] if predicts else [])]
    assert main(command(alone, *told)) == 0
    assert np.array_equal(samples(alone), samples(pipeline))
    assert "predicts: got 'x'" in refused(capsys, command(alone, "--schedule", schedule, "--predicts", "x"))
    assert "schedule: got 'no'" in refused(capsys, command(alone, "--schedule", "no"))


def test_the_average_that_a_training_run_saved(tmp_path):
    """As EMAModel saves it, with settings of its own in config.json."""
    unet, other, folder = unet_2d(), unet_2d(), tmp_path / "unet_ema"
    average = EMAModel(unet.parameters(), model_cls=diffusers.UNet2DModel, model_config=unet.config)
    average.save_pretrained(folder)
    other.conv_in.weight.data.zero_()
    average.copy_to(other.parameters())
    assert main(command(folder, "--schedule", "vp_linear(1000)")) == 0
    assert main(save(tmp_path / "pipeline", other)) == 0
    assert np.array_equal(samples(folder), samples(tmp_path / "pipeline"))


def test_a_shape_that_the_configuration_does_not_say(tmp_path, capsys):
    arguments = save(tmp_path, unet_2d(sample_size=None))
    assert "shape: got none for a model whose sample_size is None" in refused(capsys, arguments)
    assert main([*arguments, "--shape", "3,8,8"]) == 0
    edit(tmp_path / "unet" / "config.json", sample_size=[8, 16])
    shutil.rmtree(tmp_path / "out")
    assert main(arguments) == 0 and samples(tmp_path).shape == (2, 8, 16, 3)


def test_pickled_weights_are_refused_and_the_way_out_is_named(tmp_path, capsys):
    arguments = save(tmp_path, unet_2d())
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(pickle := weights.with_suffix(".bin"))
    said = refused(capsys, arguments)
    assert said.startswith("model: got pickled weights (diffusion_pytorch_model.bin) in")
    assert f"ulam convert {pickle} {weights}" in said


# ------------------------------------------------------------------------------------------------------- labels


def test_labels_of_a_class_conditional_unet(tmp_path, capsys):
    unet = unet_2d(**LABELLED)
    arguments = save(tmp_path, unet)
    assert main([*arguments, "--labels", "3,7"]) == 0
    denoiser, y = ulam.Denoiser.from_diffusers(tmp_path), torch.tensor([3, 7])
    x = ulam.sample(denoiser, DDIM(3), shape=(3, 8, 8), chains=2, cond={"y": y}, progress=False)
    expected = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(samples(tmp_path), expected)
    wrong = [
        ([], "labels: got no label, expected labels of 0 to 9 for"),
        (["--labels", "3,10"], "labels: got 10, expected 0 to 9"),
        (["--labels", "3", "--guidance", "2"], "guidance: got 2.0, expected null-class with it"),
        (["--labels", "3", "--null-class", "10"], "null-class: got 10, expected 0 to 9"),
        (["--labels", "3", "--null-class", "-1"], "null-class: got -1, expected 0 to 9"),
    ]
    for more, said in wrong:
        assert refused(capsys, [*arguments, *more]).startswith(said)


def test_checking_a_model_of_classes_asks_for_labels(tmp_path, capsys):
    save(tmp_path, unet_2d(**LABELLED))
    np.savez(tmp_path / "data.npz", arr_0=np.zeros((8, 3, 8, 8), np.float32))
    arguments = ["check", "--model", str(tmp_path), "--data", str(tmp_path / "data.npz"), "--no-plots"]
    said = refused(capsys, [*arguments, "--chains", "4", "--out", str(tmp_path / "report")])
    assert said.startswith("data: got no label, expected labels of 0 to 9 for")


def test_labels_that_are_numbers_or_vectors(tmp_path, capsys):
    number, vector = tmp_path / "number", tmp_path / "vector"
    arguments = save(number, unet_2d(class_embed_type="timestep"))
    assert refused(capsys, arguments).startswith("labels: got no label, expected labels for")
    assert main([*arguments, "--labels", "999"]) == 0
    said = refused(capsys, [*save(vector, unet_2d(class_embed_type="identity")), "--labels", "3"])
    assert "which needs labels that are vectors" in said and "cond={'class_labels': ...}" in said


def test_one_name_at_a_time_and_none_where_there_are_no_labels():
    scheduler, t = diffusers.DDIMScheduler(), torch.zeros(2)
    x, y = randn(2, 3, 8, 8), torch.tensor([3, 7])
    labelled = ulam.Denoiser.from_diffusers(unet_2d(**LABELLED), scheduler=scheduler).net
    assert torch.equal(labelled(x, t, y=y), labelled(x, t, class_labels=y))
    assert not torch.equal(labelled(x, t, y=y), labelled(x, t, y=y.flip(0)))
    with pytest.raises(TypeError, match="cond: got class_labels and y, expected one of them"):
        labelled(x, t, y=y, class_labels=y)
    for model, other in ((unet_2d(), {}), (unet_condition(), {"encoder_hidden_states": randn(2, 7, 12)})):
        net = ulam.Denoiser.from_diffusers(model, scheduler=scheduler).net
        for name in ("y", "class_labels"):
            with pytest.raises(TypeError, match=f"cond: got {name}, expected only what {net.kind} takes: "):
                net(randn(2, model.config.in_channels, 8, 8), t, **other, **{name: y})


def test_a_recipe_of_a_folder_gives_the_same_samples(tmp_path, monkeypatch):
    """From another folder too, and with a model that has no scheduler."""
    save(tmp_path / "pipeline", unet_2d(**LABELLED))
    monkeypatch.chdir(tmp_path)
    x = ulam.sample(
        ulam.Denoiser.from_diffusers("pipeline"), DDIM(3), shape=(3, 8, 8), chains=32,
        cond={"class_labels": torch.tensor([3, 7] * 16)}, slots=32, progress=False,
    )  # fmt: skip
    shutil.copytree("pipeline/unet", "alone")
    for model in ('model = "pipeline"', 'model = "alone"\nschedule = "vp_linear(1000)"\npredicts = "eps"'):
        (tmp_path / "jobs.toml").write_text(f"{model}\nslots = 32\n[[job]]\nsteps = 3\nchains = 32\nlabels = [3, 7]\n")
        assert main(["run", "jobs.toml", "--out", "many"]) == 0
        assert main(["verify", "many", "--recompute", "1"]) == 0
        run = ulam.bulk.open("many")
        (batch,) = run.batches()
        assert torch.equal(batch["x"], x) and batch["labels"].tolist() == [3, 7] * 16
        shutil.rmtree("many")


# ------------------------------------------------------------------------------- what a command line cannot give


@pytest.mark.parametrize(
    "make, scheduler, shape, names",
    [
        (unet_condition, None, "(4, 8, 8)", "encoder_hidden_states"),
        (sd3, FLOW(), "(4, 8, 8)", "encoder_hidden_states, pooled_projections"),
        (flux, FLOW(), "(C, H, W)", "encoder_hidden_states, pooled_projections"),
    ],
    ids=["sd", "sd3", "flux"],
)
def test_what_needs_text_is_refused_with_the_two_lines_that_sample_it(make, scheduler, shape, names, tmp_path, capsys):
    arguments = save(tmp_path, make(), scheduler)
    said = refused(capsys, arguments)
    kind = type(make()).__name__
    assert said.startswith(f"model: got the {kind} in {tmp_path}, which needs {names}, expected one told a label")
    assert f"ulam.Denoiser.from_diffusers({str(tmp_path)!r})" in said and f"shape={shape}" in said
    assert all(f"'{name}': ..." in said for name in names.split(", "))
    shutil.rmtree(tmp_path / "scheduler")
    said = refused(capsys, [*arguments, "--schedule", "vp_linear(1000)" if scheduler is None else "flow(3)"])
    assert f"ulam.Denoiser.from_diffusers({str(tmp_path)!r}, scheduler=...)" in said


def test_errors_of_folders_are_about_the_option(tmp_path, capsys):
    assert re.match("model: got .* with no model_index.json and no config.json", refused(capsys, command(tmp_path)))
    said = refused(capsys, command(tmp_path / "none"))
    assert "none', which is not there, expected digits, a folder that diffusers saved" in said
    assert "expected digits, a folder" in refused(capsys, ["sample", "--model", "google/ddpm", "--out", str(tmp_path)])
