"""Bulk runs on a GPU: the bits of ulam.sample there, kept page-locked or finished on the device, across kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import ulam
import ulam_kernels
from bulk_cases import Decoder, Net, job, jobs, sampled
from processes import started
from ulam import bulk
from ulam.samplers import DDPM

SUPPORT = Path(__file__).parent.parent / "support"
STATES = ulam_kernels.backends()
GPUS = torch.cuda.device_count()
PLACES = [pytest.param(("cpu", None), id="cpu")]
for name in ("cuda", "triton"):
    missing = pytest.mark.skipif(STATES[name] != "usable", reason=f"no GPU for {name}: {STATES[name]}")
    PLACES.append(pytest.param(("cuda", name), marks=[pytest.mark.gpu, missing], id=name))
needs_gpu = pytest.mark.skipif(not GPUS, reason="torch sees no GPU")
Place = tuple[str, str | None]
JOBS = """
model = "mine:net"
shape = [2, 3]
slots = 32
unit = 32
device = "{}"
[[job]]
sampler = "ddpm"
steps = 5
chains = 1024
"""


def run(place: Place, folder: Path, given: Any, workers: int | None = None, **options: Any) -> bulk.Folder:
    device, backend = place
    plan = bulk.Plan(given, slots=32, device=device, backend=backend, **options)
    return bulk.run(plan, folder, workers, progress=False)


def stored(folder: bulk.Folder) -> torch.Tensor:
    return torch.cat([unit.x for _, unit in folder.finished()])


def on_place(place: Place, **arguments: Any) -> torch.Tensor:
    device, backend = place
    return sampled(device=device, backend=backend, **arguments).cpu()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", jobs())
def test_units_hold_the_bits_of_sample(tmp_path, place: Place, name: str):
    given = jobs()[name]
    assert same_bits(stored(run(place, tmp_path, job(**given), unit=50)), on_place(place, **given))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_every_type(tmp_path, place: Place, dtype: torch.dtype):
    given = {"denoiser": ulam.Denoiser(Net().to(dtype), ulam.schedules.vp_linear(20)), "sampler": DDPM(5)}
    assert same_bits(stored(run(place, tmp_path, job(**given), dtype=dtype)), on_place(place, **given, dtype=dtype))


@pytest.mark.parametrize("place", PLACES)
def test_finish_runs_where_the_samples_are(tmp_path, place: Place):
    met = set()

    class Seeing(Decoder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            met.add(x.device.type)
            return super().forward(x)

    folder = run(place, tmp_path, job(finish=Seeing()))
    decoder = Decoder().to(place[0])
    with torch.inference_mode():
        expected = torch.cat([decoder(part.to(place[0])).cpu() for part in on_place(place).split(32)])
    assert met == {place[0]}
    assert same_bits(stored(folder), expected)


@pytest.mark.parametrize("place", PLACES)
def test_units_are_the_same_again(tmp_path, place: Place):
    given = job(sampler=DDPM(5))
    run(place, tmp_path, given, unit=32)
    plan = bulk.Plan(given, slots=32, unit=32, device=place[0], backend=place[1])
    assert bulk.recompute(plan, tmp_path, 2) == []
    assert bulk.open(tmp_path).verify().passed


@pytest.mark.gpu
@needs_gpu
def test_other_devices_are_another_environment(tmp_path):
    run(("cuda", None), tmp_path, job())
    with pytest.raises(ValueError, match=r"environment: got .*device"):
        run(("cpu", None), tmp_path, job())


@pytest.mark.gpu
@needs_gpu
def test_more_workers_than_gpus_are_refused(tmp_path):
    with pytest.raises(ValueError, match=rf"workers: got {GPUS + 1}, expected at most one for each of {GPUS} GPU"):
        run(("cuda", None), tmp_path, job(), GPUS + 1)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def test_a_run_killed_whole_goes_on(tmp_path, monkeypatch, device: str):
    """Killed by SIGKILL after its first units, started again: the bytes of a run that nothing disturbed."""
    (tmp_path / "mine.py").write_text("from bulk_cases import Slow as net\n")
    (tmp_path / "jobs.toml").write_text(JOBS.format(device))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SUPPORT), *filter(None, sys.path)]))
    command = [sys.executable, "-W", "ignore", "-m", "ulam", "run", "jobs.toml", "--threads", "1", "--out"]
    subprocess.run([*command, "right"], check=True, capture_output=True)
    disturbed = started([*command, "out"], tmp_path, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(list((tmp_path / "out").rglob("units/*/*.safetensors"))) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    disturbed.send_signal(signal.SIGKILL)
    disturbed.communicate()
    assert bulk.open("out").status().done_units < bulk.open("right").status().done_units
    subprocess.run([*command, "out"], check=True, capture_output=True)
    right, out = (bulk.open(name).export("npz", f"{name}.npz") for name in ("right", "out"))
    assert right == out and right.rows == 1024
