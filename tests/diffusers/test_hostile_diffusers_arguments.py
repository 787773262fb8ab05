"""Arguments of fuse, of a fused scheduler's methods and of from_diffusers, replaced by invalid values."""

from __future__ import annotations

import atexit
import copy
import inspect
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from fuse_cases import ALL, SHAPE, make
from hostile_arguments import Given, failures

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

import ulam  # noqa: E402
from ulam.integrations.diffusers import fuse, fused  # noqa: E402
from ulam.integrations.diffusers.scheduler import ScaledInput  # noqa: E402

SCORE = "ScoreSdeVeScheduler"
EVERY = [*ALL, SCORE]
STEPS = 6
# What each may be given beside model_output, timestep and sample: valid, and where it can be, other than by default.
OPTIONS: Given = {
    "return_dict": False, "eta": 0.5, "use_clipped_model_output": True, "variance_noise": None, "s_churn": 0.5,
    "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.0, "order": 3, "per_token_timesteps": None,
    "pred_original_sample": None, "r_timestep": 500.0, "prev_timestep": 5,
}  # fmt: skip
GRID: Given = {"num_inference_steps": STEPS, "device": "cpu", "timesteps": None, "sigmas": None, "mu": None,
               "original_inference_steps": 50, "strength": 1.0}  # fmt: skip
# Grids that are given, one at a time, by the names that they are given by.
GIVEN_GRIDS: dict[str, Any] = {"timesteps": [900, 500, 100], "sigmas": [10.0, 5.0, 1.0]}
FLOW_GRIDS: dict[str, Any] = {"timesteps": [900.0, 500.0, 100.0], "sigmas": [0.9, 0.5, 0.1]}
LTX_GRIDS: dict[str, Any] = {"timesteps": [0.9, 0.5, 0.0], "sigmas": [0.9, 0.5, 0.0]}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    level = logging.getLogger("diffusers").level
    logging.getLogger("diffusers").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="diffusers")
        yield
    logging.getLogger("diffusers").setLevel(level)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def new(name: str, noise: str = "torch") -> Any:
    """At the beginning of a loop."""
    return copy.copy(_made(name, noise, STEPS))


@cache
def _made(name: str, noise: str, steps: int | None) -> Any:
    scheduler = fuse(make(name), noise=noise)
    if steps is not None:
        scheduler.set_timesteps(steps)
        if name == SCORE:
            scheduler.set_sigmas(steps)
    return scheduler


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


# ------------------------------------------------------------------------------------------------- the calls


def step_arguments(name: str, method: str) -> Callable[[], Given]:
    def make_them() -> Given:
        scheduler = new(name)
        given = {"model_output": normal(*SHAPE), "timestep": scheduler.timesteps[0].clone(),
                 "sample": normal(*SHAPE, seed=1), "generator": torch.Generator().manual_seed(3)}  # fmt: skip
        return {key: (given | OPTIONS)[key] for key in parameters(getattr(scheduler, method))}

    return make_them


def per_chain() -> Given:
    given = step_arguments("DDPMScheduler", "step")()
    return given | {"timestep": new("DDPMScheduler").timesteps[:3].clone()}


def explicit_noise() -> Given:
    given = step_arguments("DDIMScheduler", "step")()
    return given | {"variance_noise": normal(*SHAPE, seed=2), "generator": None}


def estimate_given() -> Given:
    return step_arguments("EDMEulerScheduler", "step")() | {"pred_original_sample": normal(*SHAPE, seed=2)}


def tokens() -> Given:
    given = step_arguments("FlowMatchEulerDiscreteScheduler", "step")()
    batch = {"sample": normal(2, 5, 3), "model_output": normal(2, 5, 3, seed=1)}
    return given | batch | {"per_token_timesteps": torch.full((2, 5), 500.0)}


def stepped(name: str, method: str = "step", noise: str = "torch") -> Callable[..., Any]:
    def call(**given: Any) -> list[torch.Tensor]:
        scheduler = new(name, noise)
        result = getattr(scheduler, method)(**given)
        return list(result) if isinstance(result, tuple) else [result.prev_sample]

    return call


def scaled(name: str) -> tuple[Callable[..., Any], Callable[[], Given]]:
    def make_them() -> Given:
        return {"sample": normal(*SHAPE), "timestep": new(name).timesteps[0].clone()}

    return lambda **given: new(name).scale_model_input(**given), make_them


def gridded(name: str, given: Given) -> tuple[Callable[..., Any], Callable[[], Given]]:
    def call(**given: Any) -> list[torch.Tensor]:
        scheduler = copy.copy(_made(name, "torch", None))
        scheduler.set_timesteps(**given)
        method = scheduler.step_pred if name == SCORE else scheduler.step
        result = method(normal(*SHAPE), scheduler.timesteps[0], normal(*SHAPE, seed=1), return_dict=False)
        return [scheduler.timesteps, *(result if "generator" not in parameters(method) else ())]

    return call, lambda: dict(given)


def fuse_arguments() -> Given:
    return {"scheduler": make("DDPMScheduler"), "noise": "noise-v1", "seed": 1, "chains": torch.arange(3),
            "backend": None}  # fmt: skip


def fused_call(**given: Any) -> torch.Tensor:
    scheduler = fuse(**given)
    scheduler.set_timesteps(STEPS)
    return scheduler.step(normal(*SHAPE), scheduler.timesteps[0], normal(*SHAPE, seed=1)).prev_sample


@cache
def network() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=4, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(4,), norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    ).eval()  # fmt: skip


def denoised(**given: Any) -> torch.Tensor:
    try:
        denoiser = ulam.Denoiser.from_diffusers(**given)
    except OSError as error:  # no such folder
        raise ValueError(str(error)) from None
    return ulam.sample(denoiser, ulam.samplers.DDIM(2, spacing="trailing"), (3, 4, 4), 1, progress=False)


@cache
def folder() -> str:
    where = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, where)
    diffusers.DDPMPipeline(unet=network(), scheduler=diffusers.DDPMScheduler()).save_pretrained(where)
    return where


def folder_read(**given: Any) -> None:
    """Where it is read it has the dtype that was asked for."""
    try:
        denoiser = ulam.Denoiser.from_diffusers(**given)
    except OSError as error:
        raise ValueError(str(error)) from None
    asked = torch.float32 if given["dtype"] is None else given["dtype"]
    assert denoiser.net.model.dtype == asked


def grids(name: str) -> Iterator[tuple[str, Given]]:
    """The valid calls of set_timesteps."""
    names = parameters(_made(name, "torch", None).set_timesteps)
    yield name, {key: GRID[key] for key in names if key in GRID}
    known = FLOW_GRIDS if name.startswith("Flow") else LTX_GRIDS if name.startswith("LTX") else GIVEN_GRIDS
    if name.startswith("Helios"):  # whose sigmas are those of a stage
        known = {}
    known = {"timesteps": [30, 10, 0]} if name.startswith("CM") else known  # of its 40 levels
    for key in sorted(known.keys() & set(names)):
        yield f"{name}, {key}", {key: known[key], "device": "cpu"}


METHODS = [(name, "step") for name in ALL] + [(SCORE, "step_pred"), (SCORE, "step_correct")]
METHODS += [("PNDMScheduler", "step_prk")]
VALID: dict[str, tuple[Callable[..., Any], Callable[[], Given]]] = {
    "fuse": (fused_call, fuse_arguments),
    "fused": (fused, lambda: {"scheduler_class": diffusers.DDIMScheduler}),
    "from_diffusers": (denoised, lambda: {
        "source": network(), "scheduler": diffusers.DDPMScheduler(), "variant": None, "dtype": None,
    }),
    "from_diffusers, a folder": (folder_read, lambda: {
        "source": folder(), "scheduler": None, "variant": None, "dtype": torch.float16,
    }),
    **{f"{name}.{method}": (stepped(name, method), step_arguments(name, method)) for name, method in METHODS},
    "noise-v1": (stepped("DDPMScheduler", noise="noise-v1"), step_arguments("DDPMScheduler", "step")),
    "timesteps of chains": (stepped("DDPMScheduler"), per_chain),
    "timesteps of chains, counted": (stepped("DEISMultistepScheduler"), lambda: {
        key: value for key, value in per_chain().items() if key != "generator"
    } | {"timestep": new("DEISMultistepScheduler").timesteps[:3].clone()}),
    "variance_noise": (stepped("DDIMScheduler"), explicit_noise),
    "pred_original_sample": (stepped("EDMEulerScheduler"), estimate_given),
    "per_token_timesteps": (stepped("FlowMatchEulerDiscreteScheduler"), tokens),
    **{f"{name}.scale_model_input": scaled(name) for name in ALL if issubclass(fused(type(make(name))), ScaledInput)},
    **{f"set_timesteps of {label}": gridded(name, given) for name in EVERY for label, given in grids(name)},
}  # fmt: skip
EXTRA = ("ULAM_BACKEND", "sigmas", "timesteps", "num_inference_steps", "source", "scheduler", "variant, dtype",
         "original_inference_steps")  # fmt: skip


def test_every_fused_method_is_here() -> None:
    for name in EVERY:
        kind = fused(type(make(name)))
        own = {m for m in ("step", "step_pred", "step_correct", "step_prk", "scale_model_input")
               if "ulam" in getattr(getattr(kind, m, None), "__module__", "")}  # fmt: skip
        missing = own - {label.split(".")[1] for label in VALID if label.startswith(f"{name}.")}
        assert not missing, (name, missing)


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, (_, make) in VALID.items() for a in make()])
def test_a_hostile_argument_is_right_or_named(name: str, argument: str) -> None:
    function, make = VALID[name]
    found = failures(function, make, argument, EXTRA)
    assert not found, "\n".join(found)


# ------------------------------------------------------------------------------------------------- progress

WRONG: Given = {
    "sample": torch.zeros(SHAPE, dtype=torch.int64), "model_output": torch.zeros(2, 3), "return_dict": "no",
    "timestep": "now",
}  # fmt: skip


def ends(scheduler: Any, wrong: Given, method: str = "step") -> list[torch.Tensor]:
    """Every sample of a loop; wrong: in place of one argument, before each right call, which is refused."""
    step, x, generator = getattr(scheduler, method), normal(*SHAPE), torch.Generator().manual_seed(1)
    samples = []
    for t in scheduler.timesteps:
        given = {"model_output": 0.5 * x, "timestep": t, "sample": x, "return_dict": False}
        given |= {"generator": generator} if "generator" in parameters(step) else {}
        for name, value in wrong.items():
            with pytest.raises((TypeError, ValueError), match=f"^{name}"):
                step(**given | {name: value})
        x = step(**given)[0]
        samples.append(x)
    return samples


@pytest.mark.parametrize("noise", ["torch", "noise-v1"])
@pytest.mark.parametrize("name", EVERY)
def test_a_refused_call_is_none(name: str, noise: str) -> None:
    """It neither counts nor draws: the loop goes on as if it had not been."""
    method = "step_pred" if name == SCORE else "step"
    ours, theirs = (ends(new(name, noise), wrong, method) for wrong in (WRONG, {}))
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("name", ["LCMScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_refused_generator_draws_nothing(name: str) -> None:
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    scheduler, x = new(name), normal(*SHAPE)
    with pytest.raises(ValueError, match=r"^generator: got 2 generators, expected one, or 3"):
        scheduler.step(x, scheduler.timesteps[0], x, generator=generators)
    assert all(
        torch.equal(g.get_state(), torch.Generator().manual_seed(i).get_state()) for i, g in enumerate(generators)
    )
    assert scheduler._local._step_index is None


@pytest.mark.parametrize("name", EVERY)
def test_a_refused_grid_changes_nothing(name: str) -> None:
    """After one in the middle of a loop the loop goes on, on the timesteps that it had."""
    method = "step_pred" if name == SCORE else "step"
    scheduler, expected = new(name), ends(new(name), {}, method)
    x, generator = normal(*SHAPE), torch.Generator().manual_seed(1)
    step = getattr(scheduler, method)
    for t, sample in zip(scheduler.timesteps.clone(), expected, strict=True):
        for count in (0, -1, 2.5, "3", None, 10**7):
            with pytest.raises((TypeError, ValueError), match=r"^[\w, ]+: got "):
                scheduler.set_timesteps(count)
        if not name.startswith("LTX"):  # which takes any names, and reads none of them
            with pytest.raises(TypeError, match=r"^set_timesteps: .*'stepz', expected num_inference_steps, "):
                scheduler.set_timesteps(4, stepz=3)
        named = {"generator": generator} if "generator" in parameters(step) else {}
        x = step(0.5 * x, t, x, return_dict=False, **named)[0]
        assert torch.equal(x, sample)


@pytest.mark.parametrize("name", EVERY)
def test_a_key_that_a_configuration_lacks_is_right_or_named(name: str) -> None:
    for key in parameters(getattr(diffusers, name).__init__)[1:]:
        theirs = make(name)
        kept = {other: value for other, value in theirs.config.items() if other != key}
        theirs._internal_dict = diffusers.configuration_utils.FrozenDict(kept)
        try:
            scheduler = fuse(theirs)
            scheduler.set_timesteps(STEPS)
            method = scheduler.step_pred if name == SCORE else scheduler.step
            assert method(normal(*SHAPE), scheduler.timesteps[0], normal(*SHAPE)).prev_sample.isfinite().all()
        except Exception as error:
            assert isinstance(error, (TypeError, ValueError)) and key in str(error), (key, error)
            assert "\n" not in str(error), (key, error)
