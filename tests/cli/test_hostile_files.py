"""Files that are damaged or hostile: read as they say, or refused in one line of the reader's own.

Every document is mutated by bytes; what is accepted must mean what an independent, strict reading of it means. A longer
run: `make fuzz`.
"""

from __future__ import annotations

import io
import json
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tomllib
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import ulam
from ulam.cli.examples import read_examples
from ulam.engine import best_slots
from ulam.jobs.images import read_image
from ulam.jobs.tables import read_jobs
from ulam.models.built_in import Model
from ulam.models.conversion import convert
from ulam.models.weights import load_weights
from ulam.programs.program import Program
from ulam.samplers import DDIM, DDPM, DPMSolverPP

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # of metadata that it skips

MUTATED = settings(
    max_examples=int(os.environ.get("ULAM_FUZZ", 300)),
    derandomize="ULAM_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
REFUSALS = (ValueError, TypeError, OSError)
SCHEDULE = ulam.schedules.vp_linear(1000)
MODEL = Model("mine", ulam.Denoiser(lambda x, t, y=None: x, SCHEDULE), (1, 5, 4), classes=3, null_class=3)
CPU = torch.device("cpu")
TOKENS = [
    *(b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b"1.5", b"true", b"null", b'"x"', b"[]", b"{}", b"[" * 3000),
    *(b"\xff\xfe", b"\0", b"\n", b"../../etc/passwd", b"0", b"1_0", b"0x10", b"inf", b"'", b'"', b",", b"="),
    *(struct.pack("<Q", size) for size in (0, 1, 2**31, 2**63 - 1, 2**64 - 1)),
]


@st.composite
def mutated(draw: Callable[..., Any], documents: list[bytes]) -> bytes:
    """A document with one to three mutations of its bytes."""
    data = draw(st.sampled_from(documents))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 12)))
        kind = draw(st.integers(0, 4))
        if kind == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + data[to:]
        elif kind == 3:
            data = data[:to] + data[at:]
        else:
            data = data[:at] + draw(st.sampled_from(TOKENS)) + data[to:]
    return data


def refused_or(read: Callable[[], Any], *names: str) -> Any:
    """What is read; None where it is refused in one line that begins with one of these names."""
    try:
        return read()
    except REFUSALS as error:
        said = str(error)
        assert said.startswith(names) and "\n" not in said and len(said) < 1000, said
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


PROGRAMS = [
    sampler.program(SCHEDULE).to_json().encode() for sampler in (DDIM(steps=2), DDPM(steps=2), DPMSolverPP(steps=3))
]


@given(mutated(PROGRAMS))
@MUTATED
def test_programs(data: bytes) -> None:
    text = data.decode(errors="replace")
    program = refused_or(lambda: Program.from_json(text), "text: ")
    if program is not None:
        assert np.isfinite(program.init_scale) and len(program) == len(program.evaluates)
        own, given = json.loads(program.to_json()), json.loads(text)
        assert own.keys() == given.keys()
        for name, value in given.items():
            assert own[name] == value or np.array_equal(
                np.array(own[name], dtype=float), np.array(value, dtype=float), equal_nan=True
            ), name


JOBS = b"""[[job]]
sampler = "ddim"
steps = 3
eta = 0.5
chains = 2
seed = 7
labels = [0, 2]
guidance = 1.5

[[job]]
sampler = "euler"
steps = 4
first = 10
chains = 1
labels = [1]
priority = 2
"""


@given(mutated([JOBS]))
@MUTATED
def test_jobs(folder: Path, data: bytes) -> None:
    path = folder / "jobs.toml"
    path.write_bytes(data)
    specs = refused_or(lambda: read_jobs(path, {}, MODEL, CPU), "job")
    if specs is None:
        return
    tables = tomllib.loads(data.decode())["job"]
    assert len(specs) == len(tables)
    for spec, table in zip(specs, tables, strict=True):
        first = table.get("first", 0)
        assert list(spec.chains) == list(range(first, first + len(spec.chains)))
        assert len(spec.chains) == table.get("chains", len(spec.chains))
        assert getattr(spec.sampler, "steps", None) == table.get("steps", getattr(spec.sampler, "steps", None))
        assert spec.submit["seed"] == table.get("seed", 0)
        if "labels" in table and isinstance(table["labels"], list) and len(table["labels"]) == len(spec.chains):
            assert spec.labels == table["labels"]


def weights() -> tuple[torch.nn.Module, bytes]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    return net, safetensors.torch.save({name: value.contiguous() for name, value in net.state_dict().items()})


NET, WEIGHTS = weights()


@given(mutated([WEIGHTS]))
@MUTATED
def test_weights(folder: Path, data: bytes) -> None:
    path = folder / "net.safetensors"
    path.write_bytes(data)
    net, before = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)), NET.state_dict()
    net.load_state_dict(before)
    if refused_or(lambda: load_weights(net, path) or True, "weights: "):
        expected = safetensors.torch.load(data)
        for name, value in net.state_dict().items():
            assert torch.equal(value.view(-1), expected[name].to(value.dtype).view(-1)) or expected[name].isnan().any()


def checkpoints() -> list[bytes]:
    """Of torch, of both formats."""
    made = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save({"epoch": 3, "model": NET.state_dict()}, file, _use_new_zipfile_serialization=zipped)
        made.append(file.getvalue())
    return made


@given(mutated(checkpoints()))
@MUTATED
def test_checkpoints(folder: Path, data: bytes) -> None:
    """What is written has the names and shapes that torch reads, whichever they are; else nothing is."""
    path, target = folder / "net.pt", folder / "net.safetensors"
    path.write_bytes(data)
    target.unlink(missing_ok=True)
    if refused_or(lambda: convert(path, target), "in: "):
        read = torch.load(io.BytesIO(data), weights_only=True)
        read = next((part for part in read.values() if isinstance(part, dict)), read)
        written = safetensors.torch.load_file(target)
        assert {name: value.shape for name, value in written.items()} == {k: v.shape for k, v in read.items()}
    else:
        assert not target.exists()


def pictures() -> list[bytes]:
    grey = np.arange(20, dtype=np.uint8).reshape(5, 4) * 12
    images = {
        "PNG": Image.fromarray(grey),
        "BMP": Image.fromarray(grey),
        "GIF": Image.fromarray(grey).convert("P"),
        "TIFF": Image.fromarray(grey.astype(np.uint16) * 257),
        "JPEG": Image.fromarray(np.repeat(grey[:, :, None], 3, 2)),
        "PPM": Image.fromarray(grey),
        "WEBP": Image.fromarray(np.repeat(grey[:, :, None], 3, 2)),
    }
    made = []
    for kind, image in images.items():
        file = io.BytesIO()
        image.save(file, format=kind)
        made.append(file.getvalue())
    return made


@given(mutated(pictures()))
@MUTATED
def test_pictures(folder: Path, data: bytes) -> None:
    path = folder / "picture"
    path.write_bytes(data)
    shared = refused_or(lambda: read_image("known", path, (1, 5, 4)), "known: ")
    if shared is not None:
        assert shared.tensor.shape == (1, 5, 4) and ((shared.tensor >= -1) & (shared.tensor <= 1)).all()


def examples() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, arr_0=np.linspace(-1, 1, 120, dtype=np.float32).reshape(6, 1, 5, 4), arr_1=np.arange(6))
    return file.getvalue()


@given(mutated([examples()]))
@MUTATED
def test_examples(folder: Path, data: bytes) -> None:
    path = folder / "data.npz"
    path.write_bytes(data)
    found = refused_or(lambda: read_examples(path, (1, 5, 4)), "data: ", "pixels: ")
    if found is not None:
        assert found.x.shape[1:] == (1, 5, 4) and torch.isfinite(found.x).all()


@given(mutated([json.dumps({"a" * 8: 64, "b" * 8: 2}).encode()]))
@MUTATED
def test_remembered_slots(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        file = io.BytesIO(data)
        patch.setattr(Path, "read_text", lambda self: file.getvalue().decode())
        for name, slots in best_slots.remembered().read().items():
            assert isinstance(name, str) and type(slots) is int and 1 <= slots <= best_slots.MOST


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Path:
    """A saved pipeline of a very small network."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (4,)}
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        **blocks,
    )
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(60)).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@given(st.data())
@MUTATED
def test_pipelines(pipeline: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]))
    path, level = pipeline / name, logging.getLogger("diffusers").level
    before = path.read_bytes()
    logging.getLogger("diffusers").setLevel(logging.CRITICAL)
    try:
        path.write_bytes(data.draw(mutated([before])))
        denoiser = refused_or(lambda: ulam.Denoiser.from_diffusers(pipeline), "source: ", "scheduler: ")
    finally:
        path.write_bytes(before)
        logging.getLogger("diffusers").setLevel(level)
    if denoiser is not None:
        assert np.isfinite(denoiser.schedule.levels(1.0)).all()
        if name != "unet/config.json":  # a network that diffusers makes and cannot run fails when it is called
            x = torch.zeros(1, 1, 8, 8)
            with torch.no_grad():
                assert denoiser.net(x, torch.ones(1)).shape == x.shape
