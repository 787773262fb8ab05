"""docs/diffusers.md does what it says: its Python runs, its commands sample folders of the names that it gives."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from ulam.cli.main import main

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

from pages import DOCS, execute  # noqa: E402
from pipeline_cases import autoencoder, dit, unet_2d  # noqa: E402
from ulam.integrations.diffusers.networks import MODELS  # noqa: E402

PAGE = (DOCS / "diffusers.md").read_text()
COMMANDS = re.findall(r"^(ulam sample .*)$", PAGE, flags=re.MULTILINE)
pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")


def test_the_python_of_the_page_runs() -> None:
    namespace = execute("diffusers.md")
    x, latents = namespace["x"], namespace["latents"]
    assert x.shape == (4, 3, 8, 8) and latents.shape == (2, 4, 8, 8)
    assert bool(torch.isfinite(x).all()) and bool(torch.isfinite(latents).all())


def test_the_table_has_every_model() -> None:
    assert set(re.findall(r"`(\w+Model)`", PAGE)) == MODELS.keys()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[3])
def test_a_command_samples_a_folder(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    diffusers.DDPMPipeline(unet_2d(), diffusers.DDPMScheduler()).save_pretrained("ddpm-cifar10")
    diffusers.DiTPipeline(dit(), autoencoder(), diffusers.DDIMScheduler()).save_pretrained("dit-256")
    unet_2d().save_pretrained("ema/unet")
    assert main(shlex.split(command)[1:]) == 0
    (out,) = re.findall(r"--out (\S+)", command)
    report = json.loads((tmp_path / out / "report.json").read_text())
    assert report["chains"] == int(re.findall(r"--chains (\d+)", command)[0]) and not report["chains_failed"]


def test_the_shift_of_flux_at_its_own_size() -> None:
    """1024 x 1024 pixels are 128 x 128 latents, 4096 tokens, at which mu is max_shift."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    (shift,) = re.findall(r"shift=([\d.]+)\)\)` at 1024 x 1024", PAGE)
    assert scheduler.config.max_image_seq_len == (1024 // 8 // 2) ** 2
    assert np.isclose(float(shift), np.exp(scheduler.config.max_shift), rtol=1e-3)
