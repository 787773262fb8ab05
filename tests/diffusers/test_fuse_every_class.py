"""Every class of diffusers' schedulers: fused, or refused by its name with a reason; and the dtypes of results."""

from __future__ import annotations

import inspect
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils.import_utils import DummyObject

from fuse_cases import ALL, SHAPE, make
from ulam.integrations.diffusers import fuse, fused
from ulam.integrations.diffusers.fusing import FAMILIES
from ulam.integrations.diffusers.refusals import REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "diffusers.md"
PUBLIC = sorted(
    name
    for name in set(dir(diffusers.schedulers)) | set(dir(diffusers))
    if name.endswith("Scheduler") and isinstance(getattr(diffusers.schedulers, name, None), type)
)


def test_the_list_of_classes_is_whole() -> None:
    """Those of diffusers itself are among them, and there are at least the 51 of version 0.42."""
    mixin = diffusers.SchedulerMixin
    values = {name: getattr(diffusers, name, None) for name in dir(diffusers)}
    own = {name for name, value in values.items() if isinstance(value, type) and issubclass(value, mixin)}
    assert own - {"SchedulerMixin"} <= set(PUBLIC) and len(PUBLIC) >= 50
    assert not set(FAMILIES) & set(REFUSED)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_class_is_fused_or_refused_by_name_and_on_the_page(name: str) -> None:
    kind = getattr(diffusers.schedulers, name)
    assert f"`{name.removesuffix('Scheduler')}`" in PAGE.read_text()
    if name in FAMILIES:
        scheduler = fuse(make(name))
        assert isinstance(scheduler, kind) and isinstance(scheduler, FAMILIES[name])
        return
    if isinstance(kind, DummyObject):  # of a package that is not installed: any class of that name
        kind = type(name, (diffusers.SchedulerMixin,), {"__module__": f"diffusers.schedulers.{name}"})
    for attempt in (lambda: fused(kind), lambda: fuse(kind.__new__(kind))):
        with pytest.raises(
            TypeError, match=rf"^scheduler: got {name}, expected another: \S.*: use it as it is"
        ) as error:
            attempt()
        assert "\n" not in str(error.value)


HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
MEMBERS = ("prev_sample", "pred_original_sample", "pred_noised_sample", "denoised")
TYPES = list(product((HALF, BFLOAT, FLOAT, DOUBLE), repeat=2))
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "DPMSolverMultistepScheduler": [
        {"prediction_type": "sample"},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver++"},
    ],
    "DDIMScheduler": [{"prediction_type": "sample"}, {"thresholding": True}],
    "DDPMScheduler": [{"prediction_type": "sample"}],
    "EulerDiscreteScheduler": [{"prediction_type": "sample"}, {"prediction_type": "v_prediction"}],
    "LCMScheduler": [{"prediction_type": "sample"}],
    "UniPCMultistepScheduler": [{"predict_x0": False}],
    "DPMSolverSinglestepScheduler": [{"prediction_type": "sample"}],
}


def outputs(scheduler: Any, sample: torch.dtype, output: torch.dtype) -> list[tuple[torch.Tensor, ...]]:
    """What three calls return; each sample in the dtype of the first."""
    generator = torch.Generator().manual_seed(0)
    x, m = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    x, returned = x.to(sample), []
    named = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps[:3]:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        result = scheduler.step((m * x.float()).to(output), t, x, **named)
        returned.append(tuple(result[name] for name in MEMBERS if name in result))
        x = returned[-1][0].to(sample)
    return returned


@pytest.mark.parametrize(
    ("name", "config"), [(name, config) for name in ALL for config in ({}, *CONFIGS.get(name, []))]
)
def test_results_have_the_dtypes_of_diffusers(name: str, config: dict[str, Any]) -> None:
    """Also where sample and output differ, and those of the second output."""
    for sample, output in TYPES:
        ours, theirs = (outputs(s, sample, output) for s in (fuse(make(name, **config)), make(name, **config)))
        for mine, other in zip(ours, theirs, strict=True):
            kinds = [[v.dtype for v in call if isinstance(v, torch.Tensor)] for call in (mine, other)]
            assert kinds[0] == kinds[1], (sample, output)


def test_score_sdes_have_the_dtypes_of_diffusers() -> None:
    for sample, output in TYPES:
        kinds = []
        for scheduler in (fuse(make("ScoreSdeVeScheduler")), make("ScoreSdeVeScheduler")):
            scheduler.set_timesteps(4)
            scheduler.set_sigmas(4)
            m, x = torch.ones(SHAPE, dtype=output), torch.ones(SHAPE, dtype=sample)
            results = [scheduler.step_correct(m, x), scheduler.step_pred(m, scheduler.timesteps[1], x)]
            kinds.append([v.dtype for result in results for v in result.to_tuple()])
        for scheduler in (fuse(make("ScoreSdeVpScheduler")), make("ScoreSdeVpScheduler")):
            scheduler.set_timesteps(4)
            m, x = torch.ones(SHAPE, dtype=output), torch.ones(SHAPE, dtype=sample)
            kinds.append([v.dtype for v in scheduler.step_pred(m, x, scheduler.timesteps[1:2])])
        assert kinds[0] == kinds[1] and kinds[2] == kinds[3], (sample, output)
