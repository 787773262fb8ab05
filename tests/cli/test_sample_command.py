"""`ulam sample`: what its options and its file of jobs do, chain by chain; chains that fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ulam
from archives import arrays
from cli_cases import here, told

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")


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


def test_a_ladder_keeps_the_bits_and_says_what_it_did(folder: Path, monkeypatch, capsys):
    options = ["--model", "mine:half", "--shape", "3,8,8", "--steps", "20", "--chains", "36", "--slots", "32", "--out"]
    assert here(folder, monkeypatch, *options, "plain") == 0
    assert here(folder, monkeypatch, *options, "out", "--ladder", "1e-6") == 0
    plain, ours = (arrays(folder / name / "samples.npz")["arr_0"] for name in ("plain", "out"))
    assert (plain == ours).all()
    assert told(folder)["ladder"] == ["4 of 32 slots: the same bits"] and told(folder)["rows"] == 20 * (32 + 4)
    assert "ulam: note: 4 of 32 slots: the same bits\n" in capsys.readouterr().err
    assert here(folder, monkeypatch, *options, "wrong", "--ladder", "2") == 2
    assert "tolerance: got 2.0, expected a number from 0 to below 1" in capsys.readouterr().err


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
    from ulam.jobs.models import load_model

    model, y = load_model("digits"), torch.arange(3)
    with ulam.Engine(model.denoiser, model.shape, 3) as engine:
        job = engine.submit(
            ulam.samplers.DDIM(steps=4), 3, 0, {"y": y}, 3.0, {"y": torch.full_like(y, 10)},
            guidance_interval=(300, 600), guidance_rescale=0.5,
        )  # fmt: skip
        expected = engine.run()[job]
    assert (arrays(folder / "out" / "samples.npz")["arr_0"] == pixels(expected)).all()


def test_a_rule_of_guidance(folder: Path, monkeypatch):
    options = "--model digits --labels 0-2 --chains 3 --steps 4 --guidance 3 --guidance-rule apg:eta=0.5,norm=9"
    assert here(folder, monkeypatch, *options.split()) == 0
    from ulam.jobs.models import load_model

    model, y = load_model("digits"), torch.arange(3)
    expected = ulam.sample(
        model.denoiser, ulam.samplers.DDIM(steps=4), model.shape, 3, 0, cond={"y": y}, guidance=3.0,
        uncond={"y": torch.full_like(y, 10)}, guidance_rule=ulam.guidance.APG(eta=0.5, norm=9.0), progress=False,
    )  # fmt: skip
    assert (arrays(folder / "out" / "samples.npz")["arr_0"] == pixels(expected)).all()


def test_a_rule_of_guidance_says_each_number_once():
    with pytest.raises(ValueError, match=r"guidance_rule: got eta twice, expected it once"):
        ulam.guidance.rule_of("apg:eta=1,norm=2,eta=0.5")


def test_names_from_elsewhere_are_what_named_makes_of_them_but_for_classes_of_that_name():
    from ulam.jobs.tables import make_sampler, samplers_by_name
    from ulam.samplers.names import A1111, COMFYUI, named

    known = samplers_by_name()
    for name in COMFYUI:
        assert make_sampler(name, {"steps": 8}) == named(name, 8), name
    for name in A1111:
        own = known.get(name.lower())
        assert make_sampler(name, {"steps": 8}) == (named(name, 8) if own is None else own(steps=8)), name
        assert make_sampler(f"A1111 {name}", {"steps": 8}) == named(f"a1111 {name}", 8) == named(name, 8)


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


GUIDED = """
import ulam
def half(x, t): return x * 0.5
def worse(x, t): return x * 0.4
def make(): return ulam.Denoiser(half, ulam.schedules.vp_linear(1000), guide=worse)
"""


def test_guidance_by_a_second_network_needs_no_labels(folder: Path, monkeypatch):
    (folder / "guided.py").write_text(GUIDED)
    options = "--model guided:make --shape 1,4,4 --steps 4 --chains 3 --guidance 1.5 --save npz"
    assert here(folder, monkeypatch, *options.split()) == 0
    denoiser = ulam.Denoiser(half, ulam.schedules.vp_linear(1000), guide=lambda x, t: x * 0.4)
    expected = ulam.sample(denoiser, ulam.samplers.DDIM(4), (1, 4, 4), 3, guidance=1.5)
    assert (arrays(folder / "out" / "samples.npz")["arr_0"] == pixels(expected)).all()
    assert (pixels(expected) != pixels(ulam.sample(denoiser, ulam.samplers.DDIM(4), (1, 4, 4), 3))).any()
