"""Configurations of diffusers' schedulers that are hostile or odd: read and fused, or one line that names the key."""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from fuse_cases import ALL
from ulam.integrations.diffusers import fuse, loading, trained_schedule

SCHEDULERS = trained_schedule.SCHEDULERS
REFUSALS = (ValueError, TypeError, OSError, ImportError)
VALUES: list[Any] = [
    *("x", "3", "False", "a\nb", None, True),
    *(float("nan"), float("inf"), -float("inf"), -1, -0.5, 0, 1.5, 10**30, -(10**30)),
    *([], [1], [-1.0], [float("nan")], [["x"]], [1, 1, 1], {}, {"a": [1]}),
]
FEW = {"num_train_timesteps": 60}
# diffusers' own constructors make a list of so many.
ENDLESS = {("UnCLIPScheduler", "num_train_timesteps", repr(10**30))}
# Grids that diffusers makes too, which only the levels that come of them rule out: beta 0 leaves a level of no noise,
# one above 1 levels of no signal.
LATER = {("beta_start", 0), ("beta_end", 1.5), ("rescale_betas_zero_snr", True)}


@pytest.fixture(autouse=True)
def quiet():
    level = logging.getLogger("diffusers").level
    logging.getLogger("diffusers").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("diffusers").setLevel(level)


def keys(name: str) -> list[str]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return [key for key in parameters if key not in ("self", "args", "kwargs")]


def write(folder: Path, **config: Any) -> None:
    (folder / "scheduler_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_saved_configuration_is_read_or_refused_by_key(name: str, tmp_path: Path) -> None:
    for key in keys(name):
        for value in VALUES:
            write(tmp_path, _class_name=name, **{**FEW, key: value})
            try:
                schedule, *_ = trained_schedule.trained_on(loading._load_scheduler(tmp_path), "source")
            except Exception as error:
                said = str(error)
                assert isinstance(error, REFUSALS), (key, value, error)
                assert said.startswith("source: ") and key in said and "\n" not in said, (key, value, said)
                assert len(said) < 1000
            else:
                assert schedule.kind in ("vp", "flow", "edm", "ve")


@pytest.mark.parametrize("name", [*ALL, *trained_schedule.VE])
def test_a_configuration_is_fused_or_refused_by_key(name: str) -> None:
    """Of those that diffusers' own constructor takes; what is fused steps."""
    x = torch.zeros(1, 3, 4, 4)
    for key in keys(name):
        for value in (value for value in VALUES if (name, key, repr(value)) not in ENDLESS):
            try:
                theirs = getattr(diffusers, name)(**{**FEW, key: value})
                theirs.set_timesteps(6)
            except Exception:
                continue
            try:
                ours = fuse(theirs)
                ours.set_timesteps(6)
                step = ours.step_pred if name in trained_schedule.VE else ours.step
                result = step(x, ours.timesteps[0], x).prev_sample
            except Exception as error:
                said = str(error)
                assert isinstance(error, REFUSALS) and "\n" not in said, (key, value, error)
                assert key in said or (key, value) in LATER, (key, value, said)
            else:
                assert result.isfinite().all(), (key, value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "expected a JSON object"),
        (b'{"a": ' * 100_000, "expected a JSON object"),
        (b"\xff\xfe", "expected a JSON object"),
        (b"", "expected a JSON object"),
        (b'{"num_train_timesteps": ' + b"9" * 5000 + b"}", "expected a JSON object"),
        (b"null", "with a NoneType, expected a JSON object"),
        (b"{}", "of class None, expected one of DDPMScheduler"),
        (b'{"_class_name": ["DDIMScheduler"]}', "of class .*expected one of"),
        (b'{"_class_name": "a\\nb"}', "of class .*expected one of"),
        (b'{"_class_name": "os.system"}', "of class .*os.system.*expected one of"),
        (b'{"_class_name": "ModelMixin"}', "of class ModelMixin, expected one of"),
        (json.dumps({"_class_name": "x" * 100_000}).encode(), "of class .*expected one of"),
        (
            json.dumps({"_class_name": "DDIMScheduler", "trained_betas": [0.1] * 3_000_000}).encode(),
            "trained_betas=",
        ),
    ],
)
def test_a_file_that_holds_no_configuration_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"^source: .*{said}") as raised:
        loading._load_scheduler(tmp_path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1500


def test_a_key_that_diffusers_does_not_know_is_left_to_it(tmp_path: Path) -> None:
    write(tmp_path, _class_name="DDIMScheduler", anything={"at": ["all"]})
    assert type(loading._load_scheduler(tmp_path)) is diffusers.DDIMScheduler


@pytest.mark.parametrize("shards", [[], "x", None, {"a": 3}, {"a": None}])
def test_an_index_of_weights_that_is_none_is_named(shards: Any, tmp_path: Path) -> None:
    path = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ValueError, match=r"^source: got weight_map .*, expected names of files by weight$"):
        loading._shards(tmp_path, path)
