"""Arguments of bulk sampling, replaced by invalid values: right, or one line that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bulk_cases import DENOISER, SHAPE, Decoder, values
from hostile_arguments import Given, failures
from ulam import bulk
from ulam.samplers import DDIM, DDPM, RePaint

CHAINS = 3
JOB: Given = {"denoiser": DENOISER, "sampler": DDPM(2), "shape": SHAPE, "chains": CHAINS, "seed": 1, "first_row": 2}


def guided() -> Given:
    y = torch.arange(CHAINS)
    return JOB | {
        "cond": {"y": y}, "uncond": {"y": torch.zeros_like(y)}, "guidance": torch.ones(CHAINS) * 2,
        "guidance_interval": (0.0, 5.0), "guidance_rescale": 0.5, "x_init": values(CHAINS, *SHAPE),
        "finish": Decoder(), "labels": y, "labelled": True,
        "guidance_rule": None, "guidance_schedule": [1.0, 2.0],
        "blend": [({"y": y}, 0.5)],
    }  # fmt: skip


def inpainted() -> Given:
    image = values(CHAINS, *SHAPE)
    return JOB | {"sampler": RePaint(2), "known": image, "mask": (image > 0).float()}


def planned(**given: Any) -> list[Any]:
    job = bulk.Plan(bulk.Job(**given)).jobs[0].checked
    return [job.chains, job.cond, job.guidance, job.x_init]


def plan_arguments() -> Given:
    return {
        "jobs": bulk.Job(DENOISER, DDIM(2), SHAPE, CHAINS), "slots": 32, "unit": 2, "device": "cpu", "backend": None,
        "dtype": torch.float32, "options": None, "format": "npz",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "name"),
    [(guided, name) for name in guided()] + [(inpainted, "known"), (inpainted, "mask")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_job(make, name):
    assert not failures(planned, make, name, ("norms", "guidance", "uncond", "cond", "known", "mask"))


@pytest.mark.parametrize("name", plan_arguments())
def test_a_plan(name):
    def call(**given: Any) -> list[str]:
        return [unit.key for unit in bulk.Plan(**given).units()]

    assert not failures(call, plan_arguments, name, ())


def run_arguments(folder: Path) -> Given:
    return {
        "plan": bulk.Plan(bulk.Job(DENOISER, DDIM(2), SHAPE, CHAINS)), "folder": folder, "workers": 1,
        "launcher": "local", "address": None, "threads": torch.get_num_threads(), "allow_environment": False,
        "on_interrupt": "drop", "progress": False,
    }  # fmt: skip


@pytest.mark.parametrize("name", run_arguments(Path()))
def test_a_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)

    def call(**given: Any) -> list[torch.Tensor]:
        return [unit.x for _, unit in bulk.run(**given).finished()]

    # out: the store; environment: of another number of threads
    assert not failures(call, lambda: run_arguments(tmp_path / "a"), name, ("out", "environment"))


@pytest.mark.parametrize("call", [bulk.open, bulk.read_plan])
def test_a_folder_to_open(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    made = {bulk.open: lambda: {"folder": tmp_path}, bulk.read_plan: lambda: {"path": tmp_path / "a", "settings": {}}}
    found = [line for name in made[call]() for line in failures(call, made[call], name, ("model",))]
    assert not [line for line in found if "FileNotFoundError" not in line], found


def test_a_folder(tmp_path):
    folder = bulk.run(bulk.Plan(bulk.Job(DENOISER, DDIM(2), SHAPE, CHAINS)), tmp_path / "a", progress=False)
    assert not failures(folder.merge, lambda: {"other": folder, "allow_environment": False}, "other", ())
    assert not failures(folder.merge, lambda: {"other": folder, "allow_environment": False}, "allow_environment", ())
    assert not failures(folder.export, lambda: {"to": "npz", "out": tmp_path / "b"}, "to", ("out",))
