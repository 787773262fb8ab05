"""The command line as a user and as a hostile one meet it, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import ulam
from archives import arrays

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

USER_MODULE = """
import os, signal, time
import torch, ulam

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))
    def forward(self, x, t, y=None):
        return x * self.scale

def net(): return Net()
def denoiser(): return ulam.Denoiser(Net(), ulam.schedules.vp_cosine(1000), predicts="v")
def half(): return lambda x, t: x * 0.5
def none(): return lambda x, t: None
def small(): return lambda x, t: x[:1]
def slow():
    def net(x, t):
        time.sleep(0.2)
        return x * 0.5
    return net
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(USER_MODULE)
    return tmp_path


def ulam_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ulam", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_digits_run_leaves_samples_grid_and_report(folder: Path):
    options = [
        "--model",
        "digits",
        "--steps",
        "4",
        "--chains",
        "12",
        "--labels",
        "0-9",
        "--guidance",
        "2",
        "--seed",
        "3",
        "--out",
        "out",
    ]
    ran = ulam_command(folder, "sample", *options)
    assert ran.returncode == 0, ran.stderr
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["grid.png", "report.json", "samples.npz"]
    samples = arrays(folder / "out" / "samples.npz")
    assert samples["arr_0"].dtype == np.uint8 and samples["arr_0"].shape == (12, 28, 28, 1)
    assert samples["arr_1"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["backend"] == "cpu" and report["fallbacks"] == [] and report["evaluations"] == 48
    assert report["seconds"] > report["network_seconds"] > 0
    assert report["versions"]["ulam"] == ulam.__version__

    # The samples are those of the library, and the grid shows them in order, ten a row, enlarged twice.
    from ulam.cli.models import load_model

    labels = torch.arange(12) % 10
    model = load_model("digits")
    x = ulam.sample(
        model.denoiser,
        ulam.samplers.DDIM(steps=4),
        model.shape,
        12,
        3,
        cond={"y": labels},
        uncond={"y": torch.full_like(labels, 10)},
        guidance=2.0,
        progress=False,
    )
    expected = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.abs(expected.astype(int) - samples["arr_0"].astype(int)).max() <= 1
    grid = np.asarray(Image.open(folder / "out" / "grid.png"))
    assert grid.shape == (2 * 58 + 2, 10 * 58 + 2)
    assert (grid[60:116, 60:116] == samples["arr_0"][11, :, :, 0].repeat(2, 0).repeat(2, 1)).all()


def test_own_network_with_weights(folder: Path):
    safetensors.torch.save_file({"scale": torch.tensor(0.25)}, folder / "w.safetensors")
    options = [
        "--model",
        "mine:net",
        "--weights",
        "w.safetensors",
        "--shape",
        "3,8,8",
        "--steps",
        "3",
        "--chains",
        "5",
        "--clip",
        "-1",
        "1",
        "--out",
        "out",
    ]
    ran = ulam_command(folder, "sample", *options)
    assert ran.returncode == 0, ran.stderr
    x = ulam.sample(
        ulam.Denoiser(lambda x, t: x * 0.25, ulam.schedules.vp_linear(1000)),
        ulam.samplers.DDIM(steps=3, clip=(-1, 1)),
        (3, 8, 8),
        5,
        progress=False,
    )
    expected = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert (arrays(folder / "out" / "samples.npz")["arr_0"] == expected).all()


def test_own_denoiser_and_samples_that_are_no_pictures(folder: Path):
    ran = ulam_command(
        folder, "sample", *["--model", "mine:denoiser", "--shape", "7", "--steps", "3", "--chains", "5", "--out", "out"]
    )
    assert ran.returncode == 0, ran.stderr
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["report.json", "samples.npz"]
    assert arrays(folder / "out" / "samples.npz")["arr_0"].dtype == np.float32


def broken_weights(folder: Path) -> None:
    whole = safetensors.torch.save({"scale": torch.zeros(1000)})
    (folder / "truncated.safetensors").write_bytes(whole[:-7])
    safetensors.torch.save_file({"other": torch.zeros(1)}, folder / "other.safetensors")
    torch.save({"scale": torch.tensor(1.0)}, folder / "pickled.pt")


def broken_jobs(folder: Path) -> None:
    (folder / "empty.toml").write_text("")
    (folder / "other.toml").write_text("[task]\nsteps = 3\n")
    (folder / "bad.toml").write_text("[[job]]\nsteps = 3\n[[job]]\nchains = 2.5\n")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(folder / "known.png")


OWN = "--model mine:net --shape 3,8,8 --out out"
BAD = {
    "no command": "",
    "unknown command": "simple",
    "no out": "sample --model digits",
    "unknown model": "sample --model dog --out out",
    "unknown module": "sample --model nowhere:net --out out",
    "unknown factory": "sample --model mine:nothing --out out",
    "no shape": "sample --model mine:net --out out",
    "bad shape": "sample --model mine:net --shape 3x8 --out out",
    "zero shape": "sample --model mine:net --shape 3,0 --out out",
    "too many chains": "sample --model digits --chains 99999999999999999999 --out out",
    "zero chains": "sample --model digits --chains 0 --out out",
    "negative chains": "sample --model digits --chains -4 --out out",
    "zero steps": "sample --model digits --steps 0 --out out",
    "negative steps": "sample --model digits --steps=-1 --out out",
    "too many steps": "sample --model digits --steps 1001 --out out",
    "unknown sampler": "sample --model digits --sampler dog --out out",
    "option of another sampler": "sample --model digits --sampler ddpm --eta 1 --out out",
    "unknown label": "sample --model digits --labels 3,10 --out out",
    "bad labels": "sample --model digits --labels 9-0 --out out",
    "nan guidance": "sample --model digits --labels 0-9 --guidance nan --out out",
    "guidance without labels": "sample --model digits --guidance 2 --out out",
    "nan eta": "sample --model digits --eta nan --out out",
    "bad clip": "sample --model digits --clip 1 -1 --out out",
    "bad schedule": f"sample {OWN} --schedule vp_linear(1000,nan)",
    "no schedule": f"sample {OWN} --schedule __import__('os')",
    "bad prediction": f"sample {OWN} --predicts noise",
    "bad device": f"sample {OWN} --device moon",
    "missing device": f"sample {OWN} --device cuda:63",
    "bad backend": f"sample {OWN} --backend dog",
    "huge seed": f"sample {OWN} --seed 99999999999999999999999",
    "missing weights": f"sample {OWN} --weights nowhere.safetensors",
    "truncated weights": f"sample {OWN} --weights truncated.safetensors",
    "pickled weights": f"sample {OWN} --weights pickled.pt",
    "foreign weights": f"sample {OWN} --weights other.safetensors",
    "no jobs file": f"sample {OWN} --jobs nowhere.toml",
    "jobs file is not TOML": f"sample {OWN} --jobs mine.py",
    "jobs file without jobs": f"sample {OWN} --jobs empty.toml",
    "jobs file with another table": f"sample {OWN} --jobs other.toml",
    "bad job": f"sample {OWN} --jobs bad.toml",
    "option of no sampler": f"sample {OWN} --option dog=3",
    "option without a value": f"sample {OWN} --option order",
    "bad option": f"sample {OWN} --sampler unipc --option order=ten",
    "clip and threshold": f"sample {OWN} --clip -1 1 --threshold 0.9",
    "bad threshold": f"sample {OWN} --threshold 2",
    "bad sigmas": f"sample {OWN} --sampler euler --sigmas 1,2",
    "base class of samplers": f"sample {OWN} --sampler gridsampler",
    "bad slots": f"sample {OWN} --slots many",
    "no slots": f"sample {OWN} --slots 0",
    "bad policy": f"sample {OWN} --policy dog",
    "bad interval": "sample --model digits --labels 0-9 --guidance 2 --guidance-interval 5 1 --out out",
    "interval without guidance": "sample --model digits --labels 0-9 --guidance-interval 1 5 --out out",
    "bad rescale": "sample --model digits --labels 0-9 --guidance 2 --guidance-rescale 2 --out out",
    "known without repaint": f"sample {OWN} --known known.png --mask known.png",
    "repaint without known": f"sample {OWN} --sampler repaint",
    "no known file": f"sample {OWN} --sampler repaint --known nowhere.png --mask known.png",
    "known of another size": f"sample {OWN} --sampler repaint --known known.png --mask known.png",
    "known is no picture": f"sample {OWN} --sampler repaint --known mine.py --mask known.png",
    "previews of no pictures": "sample --model mine:net --shape 7 --out out --preview-every 2",
    "previews every 0": f"sample {OWN} --preview-every 0",
    "bad autocast": f"sample {OWN} --autocast fp8",
    "folder is a file": "sample --model digits --steps 1 --chains 1 --out mine.py",
    "folder cannot be made": "sample --model digits --steps 1 --chains 1 --out /proc/none",
    "network returns None": "sample --model mine:none --shape 3,8,8 --steps 50 --out out/deep",
    "network returns a wrong shape": "sample --model mine:small --shape 3,8,8 --steps 50 --out out",
}


def test_bad_input_is_one_line_and_exit_code_2_and_writes_nothing(folder: Path, capsys, monkeypatch):
    """All in one process: importing torch for each would take minutes."""
    from ulam.cli import main as cli

    broken_weights(folder)
    broken_jobs(folder)
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    for name, arguments in BAD.items():
        try:
            code = cli.main(arguments.split())
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr().err
        assert code == 2, name
        assert told.startswith("ulam: error: ") and told.count("\n") == 1, (name, told)
        assert "Traceback" not in told, name
        after = sorted(p for p in folder.iterdir() if p.name != "__pycache__")
        assert after == before, name


def test_one_of_them_as_a_process(folder: Path):
    ran = ulam_command(folder, "sample", *BAD["network returns None"].split()[1:])
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and not (folder / "out").exists()


def interrupt(folder: Path, *arguments: str) -> tuple[int, str]:
    """Start a run and press Ctrl-C once it has said what it does."""
    command = [sys.executable, "-m", "ulam", "sample", "--model", "mine:slow", "--shape", "3,8,8", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in background jobs
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_ctrl_c_before_any_sample_writes_nothing(folder: Path):
    code, err = interrupt(folder, "--steps", "100", "--chains", "4", "--out", "out")
    assert code == 130 and "0 of 4 samples written" in err and "Traceback" not in err
    assert not (folder / "out").exists()


def test_ctrl_c_keeps_the_samples_that_are_finished(folder: Path):
    code, err = interrupt(folder, "--steps", "2", "--chains", "60", "--slots", "2", "--out", "out")
    assert code == 130 and "Traceback" not in err
    written = arrays(folder / "out" / "samples.npz")["arr_0"]
    assert 0 < len(written) < 60 and f"{len(written)} of 60 samples written" in err
    assert json.loads((folder / "out" / "report.json").read_text())["chains"] == len(written)


def test_full_disk_leaves_no_file(folder: Path, monkeypatch):
    from ulam.cli import output

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.np, "savez_compressed", full)
    (folder / "out").mkdir()
    with pytest.raises(OSError, match="No space left"):
        output.write_run(folder / "out", torch.zeros(2, 1, 4, 4), None, None, {})
    assert list((folder / "out").iterdir()) == []


def here(folder: Path, monkeypatch, *arguments: str) -> int:
    """`ulam sample` in this process: importing torch for each would take minutes."""
    from ulam.cli import main as cli

    monkeypatch.chdir(folder)
    return cli.main(["sample", "--out", "out", *arguments])


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "report.json").read_text())


BROKEN = """
import torch
def net():
    def call(x, t, y):
        return torch.where((y == 2).view(-1, 1, 1, 1) & (t < 500).view(-1, 1, 1, 1), float("nan"), x * 0.5)
    return call
def overflow():
    return lambda x, t: torch.full_like(x, 3e38)
"""


def test_chains_that_fail_are_named_with_their_row(folder: Path, monkeypatch, capsys):
    """The others are written, the failed ones keep their place in black, and the exit code says so."""
    (folder / "broken.py").write_text(BROKEN)
    options = "--model broken:net --shape 1,4,4 --steps 4 --chains 6 --labels 0-4"
    assert here(folder, monkeypatch, *options.split()) == 1
    assert "failed: 1 of 6 chains turned NaN or Inf: chain 2 at row 2\n" in capsys.readouterr().err
    report, samples = told(folder), arrays(folder / "out" / "samples.npz")["arr_0"]
    assert report["chains_failed"] == [{"sample": 2, "job": 0, "chain": 2, "row": 2}] and report["failed"] == 1
    assert (samples[2] == 0).all() and (samples[[0, 1, 3, 4, 5]] > 0).any(axis=(1, 2, 3)).all()


def test_a_state_that_overflows_in_the_last_update_has_failed_too(folder: Path, monkeypatch, capsys):
    (folder / "broken.py").write_text(BROKEN)
    options = "--model broken:overflow --shape 1,4,4 --predicts eps --chains 3 --option timesteps=900,800"
    assert here(folder, monkeypatch, *options.split()) == 1
    assert "3 of 3 chains" in capsys.readouterr().err
    assert [entry["chain"] for entry in told(folder)["chains_failed"]] == [0, 1, 2]


def pixels(x: torch.Tensor) -> np.ndarray[Any, Any]:
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def half(x, t):
    return x * 0.5


HALF = ulam.Denoiser(half, ulam.schedules.vp_linear(1000))
JOBS = """
[[job]]
sampler = "euler"
steps = 3
chains = 4
[[job]]
sampler = "DPMSolverPP"
steps = 5
order = 3
chains = 3
first = 10
seed = 7
priority = 2
[[job]]
chains = 2
clip = [-1, 1]
"""


def test_jobs_of_a_file_are_one_run(folder: Path, monkeypatch):
    """In the order of the file, each as alone; what the command line says holds for jobs that say nothing."""
    (folder / "jobs.toml").write_text(JOBS)
    options = "--model mine:half --shape 3,8,8 --jobs jobs.toml --seed 5 --steps 2 --slots 4 --policy shortest"
    assert here(folder, monkeypatch, *options.split()) == 0
    samplers = (
        ulam.samplers.Euler(steps=3),
        ulam.samplers.DPMSolverPP(steps=5, order=3),
        ulam.samplers.DDIM(2, clip=(-1, 1)),
    )
    chains, seeds = (range(4), range(10, 13), range(2)), (5, 7, 5)
    expected = torch.cat(
        [
            ulam.sample(HALF, sampler, (3, 8, 8), ids, seed, progress=False)
            for sampler, ids, seed in zip(samplers, chains, seeds, strict=True)
        ]
    )
    assert (arrays(folder / "out" / "samples.npz")["arr_0"] == pixels(expected)).all()
    report = told(folder)
    assert report["chains"] == 9 and report["evaluations"] == 4 * 3 + 3 * 5 + 2 * 2 and report["slots"] == 4
    assert [(job["first"], job["chains"], job["seed"]) for job in report["jobs"]] == [(0, 4, 5), (10, 3, 7), (0, 2, 5)]
    assert 0 < report["occupancy"] <= 1 and report["host_seconds"] > 0 and report["energy_joules"] is None


def test_labels_of_several_jobs(folder: Path, monkeypatch):
    (folder / "jobs.toml").write_text('[[job]]\nlabels = "3,1"\nchains = 3\n[[job]]\nlabels = 7\nchains = 2\n')
    assert here(folder, monkeypatch, *["--model", "digits", "--jobs", "jobs.toml", "--steps", "1"]) == 0
    assert arrays(folder / "out" / "samples.npz")["arr_1"].tolist() == [3, 1, 3, 7, 7]


def test_sampler_arguments(folder: Path, monkeypatch):
    """Thresholds, noise levels and anything else by name."""
    clip = ulam.samplers.DynamicThreshold(0.9, 3.0)
    cases = {
        "--sampler ddim --steps 3 --threshold 0.9,3": ulam.samplers.DDIM(steps=3, clip=clip),
        "--sampler heun --steps 3 --sigmas karras": ulam.samplers.Heun(steps=3, sigmas="karras"),
        "--sampler euler --sigmas 5,2,1,0": ulam.samplers.Euler(sigmas=(5.0, 2.0, 1.0, 0.0)),
        "--sampler unipc --steps 4 --option order=3 --option variant=bh1": ulam.samplers.UniPC(
            steps=4, order=3, variant="bh1"
        ),
        "--sampler dpmsolverpp --steps 4 --option sde=true": ulam.samplers.DPMSolverPP(steps=4, sde=True),
    }
    for options, sampler in cases.items():
        assert here(folder, monkeypatch, *f"--model mine:half --shape 3,8,8 --chains 2 {options}".split()) == 0, options
        expected = ulam.sample(HALF, sampler, (3, 8, 8), 2, progress=False)
        assert (arrays(folder / "out" / "samples.npz")["arr_0"] == pixels(expected)).all(), options
        assert told(folder)["sampler"] == repr(sampler)


def test_guidance_interval_and_rescale(folder: Path, monkeypatch):
    options = "--model digits --labels 0-2 --chains 3 --steps 4 --guidance 3 --guidance-interval 300 600"
    assert here(folder, monkeypatch, *options.split(), "--guidance-rescale", "0.5") == 0
    from ulam.cli.models import load_model

    model, y = load_model("digits"), torch.arange(3)
    with ulam.Engine(model.denoiser, model.shape, 3) as engine:
        job = engine.submit(
            ulam.samplers.DDIM(steps=4), 3, 0, {"y": y}, 3.0, {"y": torch.full_like(y, 10)},
            guidance_interval=(300, 600), guidance_rescale=0.5,
        )  # fmt: skip
        expected = engine.run()[job]
    assert (arrays(folder / "out" / "samples.npz")["arr_0"] == pixels(expected)).all()


def test_previews_are_grids_of_x0(folder: Path, monkeypatch):
    """With eps = x / 2: x0 = (1 - sigma / 2) / alpha x, of the state in front of the row."""
    options = "--model mine:half --shape 3,8,8 --chains 4 --slots 3 --steps 4 --preview-every 2"
    assert here(folder, monkeypatch, *options.split()) == 0
    names = sorted(path.name for path in (folder / "out" / "previews").iterdir())
    assert names == ["job-000-row-0001.png", "job-000-row-0003.png"]
    states = {}

    def spy(x, t):
        states[float(t[0])] = x.clone()
        return x * 0.5

    program = ulam.samplers.DDIM(steps=4).program(HALF.schedule)
    ulam.sample(ulam.Denoiser(spy, HALF.schedule), ulam.samplers.DDIM(steps=4), (3, 8, 8), 4, progress=False)
    x = states[float(program.time[3])]
    abar = HALF.schedule.alphas_cumprod[int(program.time[3])]
    expected = pixels((1 - 0.5 * (1 - abar) ** 0.5) / abar**0.5 * x)
    shown = np.asarray(Image.open(folder / "out" / "previews" / names[1]))
    factor = 7  # 8 pixels become 56
    assert (shown[2 : 2 + 56 : factor, 2 : 2 + 56 : factor].astype(int) - expected[0]).__abs__().max() <= 1
    assert (shown[60 : 60 + 56 : factor, 60 : 60 + 56 : factor].astype(int) - expected[3]).__abs__().max() <= 1


def test_repaint_keeps_the_known_part(folder: Path, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, :4] = 255
    Image.fromarray(picture).save(folder / "known.png")
    Image.fromarray(mask).save(folder / "mask.png")
    options = "--model mine:half --shape 3,8,8 --chains 2 --sampler repaint --steps 6 --known known.png --mask mask.png"
    options += " --option jump_length=2 --option jump_n_sample=2"
    assert here(folder, monkeypatch, *options.split()) == 0
    samples = arrays(folder / "out" / "samples.npz")["arr_0"]
    assert np.abs(samples[:, :, :4].astype(int) - picture[:, :4]).max() <= 1
    assert (samples[0, :, 4:] != samples[1, :, 4:]).any()


def test_options_of_the_network_and_automatic_slots(folder: Path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    options = "--model mine:net --shape 3,8,8 --chains 5 --steps 3 --slots auto --channels-last --autocast bf16"
    assert here(folder, monkeypatch, *options.split()) == 0
    slots = told(folder)["slots"]
    assert f"ulam: {slots} slots\n" in capsys.readouterr().out and slots & (slots - 1) == 0
    assert list(json.loads((folder / "cache" / "ulam" / "slots.json").read_text()).values()) == [slots]


def test_ctrl_c_may_let_the_batch_end(folder: Path):
    code, err = interrupt(
        folder, *["--steps", "20", "--chains", "9", "--slots", "3", "--on-interrupt", "drain", "--out", "out"]
    )
    assert code == 130 and "finishing the chains" in err and "3 of 9 samples written" in err
    assert told(folder)["cancelled"] == 6 and len(arrays(folder / "out" / "samples.npz")["arr_0"]) == 3


def test_info_names_every_backend(folder: Path):
    ran = ulam_command(folder, "info", "--json")
    facts = json.loads(ran.stdout)
    assert ran.returncode == 0 and facts["backends"].keys() == {"cpu", "triton", "cuda", "reference"}
    assert facts["backends"]["cpu"] == "usable"
    assert all(len(reason) > 5 for reason in facts["backends"].values())
